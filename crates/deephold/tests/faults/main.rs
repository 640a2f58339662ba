//! What goes wrong around a server, and what is left of it afterwards. `cargo xtask faults` runs this longer
//! and writes what was seen into `docs/faults.md`; `DEEPHOLD_PEER_PYTHON` (a Python with xllamacpp) runs the faults
//! of clients against llama.cpp's server too.
#![cfg(unix)]
#![allow(missing_docs, reason = "a test")]

#[path = "../common/mod.rs"]
mod common;
mod database;
mod disk;
mod process;
#[path = "../serve/service.rs"]
#[allow(dead_code, reason = "the tests of the service use the rest")]
mod service;
mod soak;
mod target;
mod wire;

use std::collections::HashSet;
use std::io::Write;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{json, records, text};
use serde_json::{Value, json as object};
use service::{Response, Service};

const QUESTION: &str = "What is Deephold?";

/// Names the file that collects what was seen, and makes everything longer.
const REPORT: &str = "DEEPHOLD_FAULTS_REPORT";

/// One number for every change, another for a report.
fn rounds(short: usize, long: usize) -> usize {
    if std::env::var_os(REPORT).is_some() { long } else { short }
}

/// A fault, as the table has it.
struct Fault {
    name: &'static str,
    /// What is done.
    done: &'static str,
    /// What must hold.
    holds: &'static str,
}

impl Fault {
    /// Adds what was seen to the report.
    fn seen(&self, server: &str, seen: &str) {
        static FILE: Mutex<()> = Mutex::new(());
        let Some(path) = std::env::var_os(REPORT) else { return };
        let line = object!({ "name": self.name, "done": self.done, "holds": self.holds, "server": server, "seen": seen });
        let _one = FILE.lock().expect("one at a time");
        let file = std::fs::OpenOptions::new().append(true).create(true).open(path);
        writeln!(file.expect("the report"), "{line}").expect("the report");
    }

    fn ours(&self, seen: &str) {
        self.seen("deephold", seen);
    }
}

/// Asks for a few tokens; the answer's id where there is an answer.
fn ask(address: &str, key: &str) -> Result<String, String> {
    let body =
        object!({ "model": "guide", "max_tokens": 4, "messages": [{ "role": "user", "content": QUESTION }] })
            .to_string();
    let mut stream = TcpStream::connect(address).map_err(|e| e.to_string())?;
    stream.set_read_timeout(Some(std::time::Duration::from_secs(60))).map_err(|e| e.to_string())?;
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {key}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).map_err(|e| e.to_string())?;
    let response = Response::read(stream);
    match serde_json::from_str::<Value>(&response.body) {
        Ok(body) if response.status == 200 => Ok(body["id"].as_str().unwrap_or_default().to_owned()),
        _ => Err(format!("status {}: {}", response.status, response.body)),
    }
}

/// Clients that ask again and again until they are told to stop.
struct Load<'a> {
    address: &'a str,
    key: &'a str,
    stop: AtomicBool,
    acknowledged: Mutex<Vec<String>>,
    refused: Mutex<Vec<String>>,
}

impl<'a> Load<'a> {
    fn new(service: &'a Service) -> Self {
        let (acknowledged, refused) = (Mutex::default(), Mutex::default());
        Self {
            address: &service.address,
            key: &service.key,
            stop: AtomicBool::new(false),
            acknowledged,
            refused,
        }
    }

    /// Asks with so many clients while `meanwhile` runs.
    fn run<T>(&self, clients: usize, meanwhile: impl FnOnce() -> T) -> T {
        std::thread::scope(|scope| {
            for _ in 0..clients {
                scope.spawn(|| {
                    while !self.stop.load(Ordering::SeqCst) {
                        match ask(self.address, self.key) {
                            Ok(id) => self.acknowledged.lock().expect("ids").push(id),
                            Err(problem) => {
                                self.refused.lock().expect("problems").push(problem);
                                std::thread::sleep(std::time::Duration::from_millis(20));
                            }
                        }
                    }
                });
            }
            // Also where it panics, the clients must end.
            let _stop = StopAtEnd(&self.stop);
            meanwhile()
        })
    }

    fn problems(&self) -> Vec<String> {
        self.refused.lock().expect("problems").clone()
    }
}

struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// The audit log is whole, and holds every one of these answers.
fn all_are_recorded(state: &Path, acknowledged: &[String]) {
    assert_eq!(json(&["audit", "verify", "--state", text(state), "--json"])["ok"], true);
    let recorded: HashSet<String> = records(state, "request")
        .iter()
        .map(|r| format!("chatcmpl-{}", r["data"]["request_id"].as_str().expect("an id")))
        .collect();
    for id in acknowledged {
        assert!(recorded.contains(id), "{id} was answered and is not recorded");
    }
}

/// Requests that the state counts.
fn counted(state: &Path, more: &[&str]) -> u64 {
    let rows = json(&[&["usage", "--json", "--state", text(state)], more].concat());
    let rows = rows.as_array().expect("rows");
    rows.iter().filter_map(|r| r["row"]["requests"].as_u64()).sum()
}

fn signal(pid: u32, name: &str) {
    let sent = std::process::Command::new("kill").args([name, &pid.to_string()]).status();
    assert!(sent.expect("kill").success());
}

/// A library beside this test, built from the testkit's example of that name, that the program is loaded with (`LD_PRELOAD`).
fn library(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a path");
    let folder = test.ancestors().nth(2).expect("the target folder").join("examples");
    let path = folder.join(format!("lib{name}.so"));
    assert!(path.is_file(), "cargo test builds {}", path.display());
    path
}
