//! Runs the program as a user would.
#![allow(dead_code, missing_docs, unreachable_pub, reason = "each test binary uses its part")]

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

pub struct Run {
    pub code: i32,
    pub out: String,
    pub err: String,
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

pub fn deephold(args: &[&str]) -> Run {
    with_input(args, "")
}

pub fn with_input(args: &[&str], input: &str) -> Run {
    let mut child = Command::new(env!("CARGO_BIN_EXE_deephold"))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    // A program that refuses its arguments never reads: a broken pipe is no failure.
    let _ = child.stdin.take().expect("stdin").write_all(input.as_bytes());
    let output = child.wait_with_output().expect("the program ends");
    Run {
        code: output.status.code().expect("an exit code, not a signal"),
        out: String::from_utf8(output.stdout).expect("UTF-8"),
        err: String::from_utf8(output.stderr).expect("UTF-8"),
    }
}

/// Runs what must work.
pub fn ok(args: &[&str]) -> String {
    let run = deephold(args);
    assert_eq!(run.code, 0, "{args:?}: {}", run.err);
    run.out
}

pub fn json(args: &[&str]) -> Value {
    let out = ok(args);
    serde_json::from_str(&out).unwrap_or_else(|e| panic!("{args:?}: {e}: {out}"))
}

/// The audit log's records of a kind, the newest first.
pub fn records(state: &Path, kind: &str) -> Vec<Value> {
    let out = ok(&["audit", "show", "--state", text(state), "--kind", kind, "--limit", "1000000"]);
    out.lines().map(|line| serde_json::from_str(line).expect("a record")).collect()
}

/// A writable copy of a folder's files.
pub fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("folder");
    for entry in std::fs::read_dir(from).expect("folder") {
        let path = entry.expect("entry").path();
        let bytes = std::fs::read(&path).expect("file");
        std::fs::write(to.join(path.file_name().expect("name")), bytes).expect("copy");
    }
}
