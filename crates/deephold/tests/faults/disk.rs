//! What happens to the files: a full disk, a state that can only be read, bytes that changed.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use deephold_testkit::TempDir;
use serde_json::json as object;

use crate::common::{deephold, text};
use crate::service::Service;
use crate::{Fault, QUESTION, all_are_recorded, ask, counted, library};

/// A server whose state lies on a small disk of its own, in a mount namespace; none where that may not be made.
fn on_small_disk(mount: &Path, size: &str) -> Option<Service> {
    let may = Command::new("unshare").args(["-m", "mount", "-t", "tmpfs", "none"]).arg(mount).output();
    if !may.is_ok_and(|o| o.status.success()) {
        not_on_this_machine("a disk of its own for a fault (unshare -m): mounting is not allowed");
        return None;
    }
    let mut command = Command::new("unshare");
    let script = r#"mount -t tmpfs -o size="$0" none "$1"; shift; exec "$@""#;
    command.args(["-m", "bash", "-c", script, size]).arg(mount).arg(env!("CARGO_BIN_EXE_deephold"));
    // The sandbox is turned off: what fills the disk writes through the process's own view of it.
    Some(Service::start_by(command, &mount.join("state"), &["--sandbox", "off"]))
}

/// What a machine cannot do is no failure of the checkout, also in CI, whose end counts it.
fn not_on_this_machine(what: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "SKIPPED: {what}");
    if let Some(list) = std::env::var_os("DEEPHOLD_CI_SKIPPED") {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(list);
        let _ = file.and_then(|mut f| writeln!(f, "{what}"));
    }
}

/// The disk as its server sees it.
fn seen_by(service: &Service, mount: &Path) -> PathBuf {
    PathBuf::from(format!("/proc/{}/root{}", service.child.id(), text(mount)))
}

/// Asks until it is refused.
fn until_refused(service: &Service) -> (Vec<String>, String) {
    let mut ids = Vec::new();
    for _ in 0..5000 {
        match ask(&service.address, &service.key) {
            Ok(id) => ids.push(id),
            Err(problem) => return (ids, problem),
        }
    }
    panic!("it answers on a full disk");
}

fn until_answered(service: &Service) -> (String, Duration) {
    let begun = Instant::now();
    loop {
        match ask(&service.address, &service.key) {
            Ok(id) => return (id, begun.elapsed()),
            Err(problem) => assert!(begun.elapsed() < Duration::from_secs(60), "{problem}"),
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A copy of the state that stays when the server has gone.
fn copied(service: &Service, mount: &Path, to: &Path) {
    let from = seen_by(service, mount).join("state");
    let copied = Command::new("cp").arg("-r").arg(&from).arg(to).status().expect("cp");
    assert!(copied.success());
}

#[test]
fn the_disk_is_full() {
    let fault = Fault {
        name: "disk full",
        done: "the state on a tmpfs of 6 MiB, filled to the last byte; later there is room again",
        holds: "nothing is answered that cannot be recorded; afterwards it answers again, and nothing is lost",
    };
    let dir = TempDir::new("faults");
    let mount = dir.join("disk");
    std::fs::create_dir(&mount).expect("a folder");
    let Some(service) = on_small_disk(&mount, "6m") else { return };
    let disk = seen_by(&service, &mount);
    let mut ids = vec![ask(&service.address, &service.key).expect("an answer")];
    let filler = disk.join("filler");
    let _ = std::fs::write(&filler, vec![0u8; 64 << 20]);
    let (mut more, problem) = until_refused(&service);
    assert!(problem.contains("503"), "{problem}");
    ids.append(&mut more);
    let answered = ids.len();
    std::fs::remove_file(&filler).expect("room again");
    let (id, took) = until_answered(&service);
    ids.push(id);
    let copy = dir.join("copy");
    copied(&service, &mount, &copy);
    all_are_recorded(&copy, &ids);
    assert!(counted(&copy, &[]) >= ids.len() as u64);
    fault.ours(&format!(
        "{answered} answers, then status 503; {:.1} s after there was room it answered again; all recorded and counted",
        took.as_secs_f64()
    ));
}

#[cfg(target_os = "linux")]
#[test]
fn the_state_can_only_be_read() {
    let fault = Fault {
        name: "read-only state",
        done: "every write of a running server to a file gives EROFS, as on a disk that the system remounts after an error, then none; a server is started on a read-only state",
        holds: "503 while it cannot be written, answers again afterwards; the start ends with a message",
    };
    let dir = TempDir::new("faults");
    let (state, switch) = (dir.join("disk/state"), dir.join("switch"));
    std::fs::create_dir(dir.join("disk")).expect("a folder");
    std::fs::write(&switch, 0i64.to_ne_bytes()).expect("a file");
    let mut command = Command::new(env!("CARGO_BIN_EXE_deephold"));
    command.env("LD_PRELOAD", library("read_only_disk")).env("READ_ONLY_DISK", &switch);
    let service = Service::start_by(command, &state, &[]);
    let set = |is_read_only: bool| {
        use std::os::unix::fs::FileExt;
        let file = std::fs::OpenOptions::new().write(true).open(&switch).expect("the switch");
        file.write_all_at(&i64::from(is_read_only).to_ne_bytes(), 0).expect("written");
    };
    let mut ids = vec![ask(&service.address, &service.key).expect("an answer")];
    set(true);
    let (mut more, problem) = until_refused(&service);
    assert!(problem.contains("503"), "{problem}");
    assert_eq!(more.len(), 0, "answered, and nowhere to write it");
    ids.append(&mut more);
    set(false);
    let (id, took) = until_answered(&service);
    ids.push(id);
    all_are_recorded(&state, &ids);
    drop(service);
    let seen_running = format!(
        "status 503 from the first request on, answers again {:.1} s after it was writable",
        took.as_secs_f64()
    );
    let start = format!(
        r#"mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && {} serve --sandbox off --bind 127.0.0.1:0 --state "$0/state""#,
        env!("CARGO_BIN_EXE_deephold")
    );
    let out = Command::new("unshare").args(["-m", "bash", "-c", &start]).arg(dir.join("disk")).output();
    let out = out.expect("unshare");
    if String::from_utf8_lossy(&out.stderr).contains("Operation not permitted") {
        return not_on_this_machine("a state that can only be read (unshare -m): mounting is not allowed");
    }
    let words = String::from_utf8_lossy(&out.stderr).trim().replace(text(dir.path()), "...");
    assert!(!out.status.success() && words.contains("Read-only file system"), "{out:?}");
    all_are_recorded(&state, &ids);
    fault.ours(&format!("{seen_running}; start: code {}, {words}", out.status.code().unwrap_or(-1)));
}

#[test]
fn files_are_corrupt() {
    let fault = Fault {
        name: "corrupt database, log, certificate, configuration",
        done: "each of these files is replaced by garbage (of the log its first 200 bytes); then a server is started",
        holds: "it ends with the file's name or what it is, and changes nothing; as it was, it serves again",
    };
    let dir = TempDir::new("faults");
    let state = dir.join("state");
    let mut service = Service::start(&state, &["--tls"]);
    let key = service.key.clone();
    // A server that was killed leaves a journal from which the database would be made anew.
    service.terminate();
    assert!(service.child.wait().expect("an end").success());
    let config = dir.join("deephold.toml");
    std::fs::write(&config, "max_batch = 4\n").expect("a file");
    let mut words = Vec::new();
    let refused = |more: &[&str]| {
        let base = ["serve", "--state", text(&state), "--bind", "127.0.0.1:0"];
        // A server that starts all the same would never end.
        let mut command = vec!["10", env!("CARGO_BIN_EXE_deephold")];
        command.extend(base);
        command.extend(more);
        let out = Command::new("timeout").args(command).output().expect("timeout");
        (out.status.code().unwrap_or(-1), String::from_utf8_lossy(&out.stderr).into_owned())
    };
    let tls = ["--tls"];
    let with_config = ["--config", text(&config)];
    for (path, more, named) in [
        (state.join("state.db"), &[][..], "database"),
        (state.join("audit/audit-00000001.jsonl"), &[], "audit-00000001.jsonl"),
        (state.join("audit/log.json"), &[], "log.json"),
        (state.join("tls/server.pem"), &tls, "server.pem"),
        (state.join("tls/server.key"), &tls, "server.key"),
        (config.clone(), &with_config, "deephold.toml"),
    ] {
        let whole = std::fs::read(&path).expect("a file");
        let mut garbage: Vec<u8> = (0..whole.len().max(64)).map(|i| (i * 7 + 13) as u8).collect();
        if named.ends_with(".jsonl") {
            // A log that holds nothing readable is one whose first batch never reached the disk; what a later record calls
            // durable was there, and is not any more.
            garbage.clone_from(&whole);
            garbage[..200].fill(b'x');
        }
        std::fs::write(&path, &garbage).expect("written");
        let (code, err) = refused(more);
        assert!((2..124).contains(&code) && err.contains(named), "{named}: {code} {err}");
        assert_eq!(std::fs::read(&path).expect("a file"), garbage, "{named} was changed");
        words.push(format!("{named}: code {code}"));
        std::fs::write(&path, &whole).expect("as it was");
    }
    let mut service = Service::start(&state, &[]);
    service.key = key;
    let answer =
        service.ask(object!({ "max_tokens": 1, "messages": [{ "role": "user", "content": QUESTION }] }));
    assert_eq!(answer.status, 200);
    assert_eq!(deephold(&["audit", "verify", "--state", text(&state)]).code, 0);
    fault.ours(&words.join("; "));
}
