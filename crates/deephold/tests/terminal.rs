//! `deephold chat` on a terminal, as people use it: a pseudo terminal takes the keys and gives the screen.
#![cfg(target_os = "linux")]
#![allow(missing_docs, reason = "a test")]

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use common::text;
use deephold_testkit::TempDir;
use nix::pty::openpty;
use serde_json::Value;

struct Terminal {
    keys: File,
    screen: Receiver<Vec<u8>>,
    /// What was shown and not yet looked at.
    shown: String,
    child: Child,
}

impl Terminal {
    fn chat(args: &[&str]) -> Self {
        let pty = openpty(None, None).expect("a pseudo terminal");
        let slave = File::from(pty.slave);
        let end = || Stdio::from(slave.try_clone().expect("terminal"));
        // Makes it the controlling terminal, so that Ctrl-C is a signal.
        let child = Command::new("setsid")
            .args(["--ctty", "--wait", env!("CARGO_BIN_EXE_deephold"), "chat"])
            .args(args)
            .env("TERM", "xterm")
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .expect("setsid of util-linux");
        let keys = File::from(pty.master);
        let mut from = keys.try_clone().expect("terminal");
        let (to, screen) = channel();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(n @ 1..) = from.read(&mut bytes) {
                if to.send(bytes[..n].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self { keys, screen, shown: String::new(), child }
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).expect("keys");
    }

    /// Waits for a text on the screen; what was shown up to its end.
    fn wait_for(&mut self, part: &str) -> String {
        let start = Instant::now();
        loop {
            if let Some(at) = self.shown.find(part) {
                let rest = self.shown.split_off(at + part.len());
                return std::mem::replace(&mut self.shown, rest);
            }
            match self.screen.recv_timeout(Duration::from_millis(200)) {
                Ok(bytes) => self.shown += &String::from_utf8_lossy(&bytes),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => panic!("ended without `{part}`: {:?}", self.shown),
            }
            assert!(start.elapsed() < Duration::from_secs(60), "no `{part}` in {:?}", self.shown);
        }
    }

    fn prompt(&mut self) -> String {
        self.wait_for("> ")
    }

    /// A line at the prompt; what is shown until the next.
    fn line(&mut self, line: &str) -> String {
        self.press(&format!("{line}\r"));
        self.wait_for("\n");
        self.prompt()
    }

    fn ends(mut self) -> Option<i32> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("waited") {
                return status.code();
            }
            assert!(start.elapsed() < Duration::from_secs(60), "it does not end: {:?}", self.shown);
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn commands_do_what_they_say() {
    let dir = TempDir::new("chat");
    let (talk, other) = (dir.join("talk.json"), dir.join("other.json"));
    let mut chat = Terminal::chat(&["guide", "--temperature", "0"]);
    chat.prompt();
    let first = chat.line("What is Deephold?");
    assert!(chat.line("/system").contains("(none)"));
    chat.line("/system Be short.");
    assert!(chat.line("/system").contains("Be short."));
    chat.line("/system -");
    assert!(chat.line("/system").contains("(none)"));
    assert!(chat.line("/set").contains("temperature 0 "));
    chat.line("/set temperature 0.5");
    chat.line("/set thinking off");
    let settings = chat.line("/set");
    assert!(settings.contains("temperature 0.5") && settings.contains("thinking off"), "{settings}");
    chat.line("/set temperature default");
    chat.line("/set thinking default");
    assert!(chat.line("/set temperature 1000").contains("error: `temperature` = 1000 must be from 0 to 100"));
    assert!(chat.line("/set colour red").contains("there is no setting colour"));
    assert!(chat.line("/set temperature").contains("/set temperature default"));
    assert!(chat.line("/nonsense").contains("there is no command /nonsense"));
    // The same answer once more; the conversation has it once.
    assert_eq!(chat.line("/regen"), first);
    chat.line(&format!("/save {}", text(&talk)));
    let mode = std::fs::metadata(&talk).expect("saved").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let saved = |path| serde_json::from_slice::<Value>(&std::fs::read(path).expect("saved")).expect("JSON");
    assert_eq!(saved(&talk)["messages"].as_array().map(Vec::len), Some(2));
    // Not overwritten without being asked.
    chat.line("Who are you?");
    chat.press(&format!("/save {}\r", text(&talk)));
    chat.wait_for("[y/N]");
    chat.line("n");
    assert_eq!(saved(&talk)["messages"].as_array().map(Vec::len), Some(2));
    chat.press(&format!("/save {}\r", text(&talk)));
    chat.wait_for("[y/N]");
    chat.line("y");
    assert_eq!(saved(&talk)["messages"].as_array().map(Vec::len), Some(4));
    chat.line("/clear");
    assert!(chat.line("/regen").contains("there is no question yet"));
    assert!(chat.line(&format!("/load {}", text(&talk))).contains("(4 messages)"));
    // The last question stands at the prompt again, to be changed.
    chat.press("/edit\r");
    chat.wait_for("> Who are you?");
    chat.press("\r");
    chat.prompt();
    chat.line(&format!("/save {}", text(&other)));
    assert_eq!(saved(&other), saved(&talk));
    std::fs::write(&other, r#"{"messages": [{"role": "tool", "content": 1}]}"#).expect("written");
    assert!(chat.line(&format!("/load {}", text(&other))).contains("error: "));
    assert!(chat.line("/load /nowhere/x.json").contains("/nowhere/x.json"));
    chat.press("/exit\r");
    assert_eq!(chat.ends(), Some(0));
}

#[test]
fn what_is_typed_ahead_waits() {
    // Long enough that keys come while it answers.
    let mut chat =
        Terminal::chat(&["guide", "--ignore-eos", "-n", "400", "--temperature", "1", "-c", "1024"]);
    chat.prompt();
    // Faster than lines are read.
    chat.press("/system One.\r/system\r/system Two.\r/system\r");
    chat.wait_for("it holds from the next answer on");
    chat.wait_for("\nOne.");
    chat.wait_for("\nTwo.");
    chat.prompt();
    chat.press("What is Deephold?\r");
    chat.wait_for("\n");
    std::thread::sleep(Duration::from_millis(100));
    chat.press("/system Be kind.\r/system\r/sys");
    let answer = chat.wait_for("> /system Be kind.");
    assert!(!answer.contains("/sys\r"), "keys within the answer: {answer:?}");
    chat.wait_for("> /system");
    chat.wait_for("Be kind.");
    // What was begun stands at the prompt.
    chat.wait_for("> /sys");
    chat.press("tem -\r");
    chat.wait_for("it holds from the next answer on");
    chat.press("/exit\r");
    assert_eq!(chat.ends(), Some(0));
}

/// Where one prompt is answered, keys are left to whoever reads the terminal next: they are echoed as ever.
#[test]
fn one_answer_takes_no_keys() {
    let args =
        ["guide", "-p", "What is Deephold?", "--ignore-eos", "-n", "900", "--temperature", "1", "-c", "1024"];
    let mut chat = Terminal::chat(&args);
    std::thread::sleep(Duration::from_millis(100));
    chat.press("ls -la");
    chat.wait_for("ls -la");
    assert_eq!(chat.ends(), Some(0));
}

#[test]
fn ctrl_c_stops_an_answer_and_not_the_program() {
    let mut chat =
        Terminal::chat(&["guide", "--ignore-eos", "-n", "900", "--temperature", "1", "-c", "1024"]);
    chat.prompt();
    chat.press("What is Deephold?\r");
    chat.wait_for("\n");
    std::thread::sleep(Duration::from_millis(100));
    chat.press("never asked\r\x03");
    chat.wait_for("(stopped)");
    chat.prompt();
    chat.press("\x03");
    chat.wait_for("(Ctrl-D or /exit leaves)");
    chat.prompt();
    let stats = chat.line("/stats");
    assert!(stats.contains("conversation    2 messages"), "{stats}");
    chat.press("\x04");
    assert_eq!(chat.ends(), Some(0));
}

#[test]
fn a_full_context_shifts() {
    let mut chat = Terminal::chat(&["guide", "-c", "96", "-n", "24", "-s", "Be short."]);
    chat.prompt();
    let mut shifted = false;
    for _ in 0..6 {
        let shown = chat.line("What is Deephold and who made it?");
        assert!(!shown.contains("error"), "{shown}");
        shifted |= shown.contains("the context is full: the oldest");
    }
    assert!(shifted);
    assert!(chat.line("/stats").contains("left out"));
    // One message that is longer than the context alone.
    chat.press(&format!("{}\r", "many words ".repeat(100)));
    chat.wait_for("error: the ");
    chat.prompt();
    chat.line("/clear");
    assert!(!chat.line("/stats").contains("left out"));
    chat.press("/exit\r");
    assert_eq!(chat.ends(), Some(0));
}
