//! A server that faults of clients are tried on: ours, or llama.cpp's.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use deephold_testkit::{TempDir, fetched_model};
use serde_json::json as object;

use crate::service::{Response, Service};

pub(crate) struct Target {
    pub(crate) name: &'static str,
    pub(crate) address: String,
    pub(crate) pid: u32,
    key: String,
    /// Killed when dropped.
    process: Process,
    _dir: TempDir,
}

enum Process {
    Ours(#[allow(dead_code, reason = "held until the end")] Box<Service>),
    Peer(Child),
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Process::Peer(child) = &mut self.process {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Target {
    /// Ours, started by a shell that first runs `before`, as a limit.
    pub(crate) fn ours(before: &str) -> Self {
        let mut command = Command::new("bash");
        command.args(["-c", &format!("{before}\nexec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_deephold")]);
        Self::ours_by(command)
    }

    /// Ours, started by a command.
    pub(crate) fn ours_by(command: Command) -> Self {
        let dir = TempDir::new("faults");
        let service = Service::start_by(command, &dir.join("state"), &[]);
        let (address, pid, key) = (service.address.clone(), service.child.id(), service.key.clone());
        Self { name: "deephold", address, pid, key, process: Process::Ours(Box::new(service)), _dir: dir }
    }

    /// llama.cpp's, where `DEEPHOLD_PEER_PYTHON` names a Python that carries it.
    pub(crate) fn peer(before: &str) -> Option<Self> {
        let python = std::env::var_os("DEEPHOLD_PEER_PYTHON")?;
        let model = fetched_model("smollm2-135m-instruct.q4_1.gguf")?;
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/llama_server_alone.py");
        let mut command = Command::new("bash");
        command.args(["-c", &format!("{before}\nexec \"$0\" \"$@\"")]).arg(python).arg(script).arg(model);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let mut child = child.expect("the peer starts");
        let lines = BufReader::new(child.stdout.take().expect("stdout")).lines();
        let line = lines.map_while(Result::ok).find(|l| l.starts_with("http://")).expect("an address");
        let address = line.trim().trim_start_matches("http://").to_owned();
        let (pid, key) = (child.id(), "none".to_owned());
        let dir = TempDir::new("faults");
        let target =
            Self { name: "llama-server", address, pid, key, process: Process::Peer(child), _dir: dir };
        let begun = Instant::now();
        while target.answers(Duration::from_secs(30)).is_err() && begun.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(200));
        }
        Some(target)
    }

    pub(crate) fn connect(&self) -> std::io::Result<TcpStream> {
        let address = self.address.parse().map_err(std::io::Error::other)?;
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        Ok(stream)
    }

    /// A request for a few tokens, whole.
    pub(crate) fn question(&self) -> Vec<u8> {
        let model = if self.name == "deephold" { "guide" } else { "any" };
        let body =
            object!({ "model": model, "max_tokens": 4, "messages": [{ "role": "user", "content": "hi" }] });
        self.with_body(&body.to_string())
    }

    pub(crate) fn with_body(&self, body: &str) -> Vec<u8> {
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {}\r\nContent-Type: \
             application/json\r\nContent-Length: {}\r\n\r\n",
            self.key,
            body.len()
        );
        format!("{head}{body}").into_bytes()
    }

    /// Whether others are answered within this time: how long it took, or what was wrong.
    pub(crate) fn answers(&self, within: Duration) -> Result<Duration, String> {
        let begun = Instant::now();
        let mut stream = self.connect().map_err(|e| e.to_string())?;
        stream.set_read_timeout(Some(within)).map_err(|e| e.to_string())?;
        stream.write_all(&self.question()).map_err(|e| e.to_string())?;
        match Response::read(stream).status {
            200 => Ok(begun.elapsed()),
            status => Err(format!("status {status} after {:.1} s", begun.elapsed().as_secs_f64())),
        }
    }

    /// Bytes of memory that are resident.
    pub(crate) fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default();
        let line = status.lines().find(|l| l.starts_with("VmRSS")).unwrap_or_default();
        line.split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) * 1024
    }

    pub(crate) fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid)).map(Iterator::count).unwrap_or(0)
    }
}

/// Reads until the server closes: the status it gave, 0 where it gave none, and none where it has not closed within the time.
pub(crate) fn until_closed(mut stream: TcpStream, within: Duration) -> Option<u16> {
    let deadline = Instant::now() + within;
    let mut bytes = Vec::new();
    let mut part = [0; 4096];
    loop {
        let left = deadline.checked_duration_since(Instant::now()).filter(|d| !d.is_zero())?;
        let _ = stream.set_read_timeout(Some(left));
        match stream.read(&mut part) {
            Ok(0) => break,
            Ok(n) => bytes.extend_from_slice(&part[..n]),
            Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {}
            Err(_) => break,
        }
    }
    let text = String::from_utf8_lossy(&bytes);
    Some(text.split_whitespace().nth(1).and_then(|s| s.parse().ok()).unwrap_or(0))
}
