//! A running server and what it answers.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json as object};

use crate::QUESTION;
use crate::common::text;

/// A running server; killed when dropped.
pub(crate) struct Service {
    pub(crate) child: Child,
    pub(crate) address: String,
    pub(crate) key: String,
    /// All that it printed at its start.
    pub(crate) banner: String,
}

impl Service {
    pub(crate) fn start(state: &Path, more: &[&str]) -> Self {
        Self::start_by(Command::new(env!("CARGO_BIN_EXE_deephold")), state, more)
    }

    /// With a command that runs the program.
    pub(crate) fn start_by(mut command: Command, state: &Path, more: &[&str]) -> Self {
        command.stderr(Stdio::null());
        Self::start_logged(command, state, more)
    }

    /// With files that cannot grow beyond 128 KiB, as on a full disk, until [`Self::lift_limit`]. The state is made before that.
    pub(crate) fn start_limited(state: &Path, more: &[&str]) -> Self {
        let mut first = Self::start(state, more);
        let key = first.key.clone();
        first.terminate();
        assert!(first.child.wait().expect("ended").success());
        // The shell ignores the signal of the limit, so that writing fails as it would on a full disk; so does the program then.
        let limited = r#"trap '' XFSZ; ulimit -S -f 128; exec "$0" "$@""#;
        let mut command = Command::new("bash");
        command.args(["-c", limited, env!("CARGO_BIN_EXE_deephold")]);
        let mut limited = Self::start_by(command, state, more);
        limited.key = key;
        limited
    }

    /// Room again.
    pub(crate) fn lift_limit(&self) {
        let pid = self.child.id().to_string();
        let lifted = Command::new("prlimit").args(["--pid", &pid, "--fsize=unlimited"]).status();
        assert!(lifted.expect("prlimit").success());
    }

    /// With a command that says where its log goes.
    pub(crate) fn start_logged(command: Command, state: &Path, more: &[&str]) -> Self {
        Self::start_with(command, &[&["--state", text(state)], more].concat())
    }

    /// With a command that may know its state already.
    pub(crate) fn start_with(mut command: Command, more: &[&str]) -> Self {
        let mut child = command
            .arg("serve")
            .args(if more.contains(&"--bind") { &[][..] } else { &["--bind", "127.0.0.1:0"] })
            .args(more)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut lines = BufReader::new(child.stdout.take().expect("stdout")).lines();
        let mut banner = String::new();
        while !banner.contains("Ctrl-C stops") {
            banner += &lines.next().expect("a line").expect("text");
            banner.push('\n');
        }
        // Whatever else it prints must not block it.
        std::thread::spawn(move || lines.for_each(drop));
        let address = banner.split("://").nth(1).expect("an address").split_whitespace().next().expect("one");
        let key = banner.split_whitespace().find(|w| w.starts_with("dh_")).unwrap_or_default();
        Self { address: address.to_owned(), key: key.to_owned(), child, banner }
    }

    pub(crate) fn terminate(&mut self) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().expect("kill").success());
    }

    pub(crate) fn send(&self, bytes: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).expect("a connection");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a time limit");
        // A server that refuses early closes before all is sent.
        let _ = stream.write_all(bytes);
        stream
    }

    pub(crate) fn post_as(&self, key: &str, path: &str, body: &str) -> Response {
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {key}\r\nContent-Type: \
             application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        Response::read(self.send(format!("{head}{body}").as_bytes()))
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Response {
        self.post_as(&self.key, path, &body.to_string())
    }

    pub(crate) fn get(&self, path: &str) -> Response {
        self.get_as(&self.key, path)
    }

    pub(crate) fn get_as(&self, key: &str, path: &str) -> Response {
        let head = format!(
            "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {key}\r\n\r\n"
        );
        Response::read(self.send(head.as_bytes()))
    }

    pub(crate) fn ask(&self, more: Value) -> Response {
        let mut body = object!({ "model": "guide", "messages": [{ "role": "user", "content": QUESTION }] });
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        self.post("/v1/chat/completions", &body)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Response {
    pub(crate) fn read(mut stream: TcpStream) -> Self {
        let mut bytes = Vec::new();
        // A refused body may end in a reset after the answer.
        let _ = stream.read_to_end(&mut bytes);
        let all = String::from_utf8(bytes).expect("UTF-8");
        let (head, body) = all.split_once("\r\n\r\n").unwrap_or((&all, ""));
        let status = head.split_whitespace().nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
        let body = if head.contains("chunked") { dechunked(body) } else { body.to_owned() };
        Self { status, head: head.to_owned(), body }
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {} {}", self.head, self.body))
    }

    /// The events' data; the last must be `[DONE]`.
    pub(crate) fn events(&self) -> Vec<Value> {
        let mut data: Vec<&str> = self.body.lines().filter_map(|l| l.strip_prefix("data: ")).collect();
        assert_eq!(data.pop(), Some("[DONE]"), "{}", self.body);
        data.into_iter().map(|d| serde_json::from_str(d).expect("JSON")).collect()
    }
}

fn dechunked(mut body: &str) -> String {
    let mut out = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).expect("a size");
        if size == 0 {
            break;
        }
        out.push_str(&rest[..size]);
        body = rest[size..].trim_start_matches("\r\n");
    }
    out
}
