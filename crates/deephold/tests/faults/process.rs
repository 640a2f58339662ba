//! What happens to the process: killed, short of memory, its clock set, its neighbours.

use std::io::Write;
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use deephold_testkit::TempDir;

use crate::common::{deephold, records, text};
use crate::service::Service;
use crate::{Fault, Load, all_are_recorded, ask, counted, library, rounds, signal};

#[test]
fn killed_under_load_again_and_again() {
    let fault = Fault {
        name: "kill -9 under load, in a loop",
        done: "4 clients ask without pause; the process is killed and started again",
        holds: "every answer that was given is in the audit log and in the usage; the log verifies",
    };
    let dir = TempDir::new("faults");
    let state = dir.join("state");
    let first = Service::start(&state, &[]);
    let key = first.key.clone();
    drop(first);
    let mut acknowledged = Vec::new();
    let kills = rounds(20, 200);
    for round in 0..kills as u64 {
        let mut service = Service::start(&state, &[]);
        service.key.clone_from(&key);
        let load = Load::new(&service);
        load.run(4, || {
            std::thread::sleep(Duration::from_millis(40 + 17 * (round % 20)));
            signal(service.child.id(), "-9");
        });
        acknowledged.append(&mut load.acknowledged.into_inner().expect("ids"));
    }
    assert!(acknowledged.len() > 5 * kills, "{}", acknowledged.len());
    let begun = Instant::now();
    let service = Service::start(&state, &[]);
    let started = begun.elapsed();
    all_are_recorded(&state, &acknowledged);
    let in_usage = counted(&state, &[]);
    assert!(in_usage >= acknowledged.len() as u64, "{in_usage} of {}", acknowledged.len());
    drop(service);
    fault.ours(&format!(
        "{kills} kills, {} answers given: all recorded, {in_usage} counted in the usage (those that were cut off count too); the last start took {:.1} s",
        acknowledged.len(),
        started.as_secs_f64()
    ));
}

#[test]
fn two_on_one_state() {
    let fault = Fault {
        name: "two servers on one state folder",
        done: "a second server is started on the state of a running one",
        holds: "it ends with code 75 and says why; the first serves on",
    };
    let dir = TempDir::new("faults");
    let state = dir.join("state");
    let service = Service::start(&state, &[]);
    let second = deephold(&["serve", "--state", text(&state), "--bind", "127.0.0.1:0"]);
    assert_eq!(second.code, 75, "{}", second.err);
    let id = ask(&service.address, &service.key).expect("an answer");
    all_are_recorded(&state, &[id]);
    fault.ours(&format!("code {}: {}", second.code, second.err.trim().replace(text(dir.path()), "...")));
}

#[test]
fn the_audit_log_is_deleted_while_it_is_written() {
    let fault = Fault {
        name: "audit segment deleted while running",
        done: "`rm` of the segment that is written, under load",
        holds: "no answer is lost: the segment comes back before the next answer ends, and the log says so",
    };
    let dir = TempDir::new("faults");
    let state = dir.join("state");
    let service = Service::start(&state, &[]);
    let load = Load::new(&service);
    let deletions = rounds(3, 20);
    load.run(2, || {
        for _ in 0..deletions {
            std::thread::sleep(Duration::from_millis(300));
            std::fs::remove_file(state.join("audit/audit-00000001.jsonl")).expect("a segment");
        }
        std::thread::sleep(Duration::from_millis(300));
    });
    assert_eq!(load.problems(), [""; 0]);
    let acknowledged = load.acknowledged.into_inner().expect("ids");
    all_are_recorded(&state, &acknowledged);
    let repairs = records(&state, "repair");
    assert_eq!(repairs.len(), deletions, "{repairs:?}");
    fault.ours(&format!(
        "{deletions} deletions, {} answers, none refused: all recorded, and a record of each deletion",
        acknowledged.len()
    ));
}

#[cfg(target_os = "linux")]
#[test]
fn the_clock_jumps() {
    let fault = Fault {
        name: "clock jumps",
        done: "under load the system's time jumps two days ahead, four back, two ahead again",
        holds: "answers go on; a limit for a day is passed on no day; the log verifies",
    };
    let dir = TempDir::new("faults");
    let (state, shift) = (dir.join("state"), dir.join("shift"));
    std::fs::write(&shift, 0i64.to_ne_bytes()).expect("a file");
    let mut command = Command::new(env!("CARGO_BIN_EXE_deephold"));
    command.env("LD_PRELOAD", library("shifted_clock")).env("SHIFTED_CLOCK", &shift);
    let service = Service::start_by(command, &state, &[]);
    let days = |n: i64| {
        use std::os::unix::fs::FileExt;
        let file = std::fs::OpenOptions::new().write(true).open(&shift).expect("the shift");
        file.write_all_at(&(n * 86_400).to_ne_bytes(), 0).expect("written");
    };
    let answer = service.post(
        "/admin/v1/keys",
        &serde_json::json!({ "owner": "Ada", "role": "app", "tenant": "bank", "limits": { "requests_per_day": 2 } }),
    );
    let limited = answer.json()["secret"].as_str().expect("a secret").to_owned();
    let of_a_day = || (0..3).filter(|_| ask(&service.address, &limited).is_ok()).count();
    let load = Load::new(&service);
    let allowed = load.run(2, || {
        let mut allowed = vec![of_a_day()];
        for jump in [2, -2, 0] {
            days(jump);
            std::thread::sleep(Duration::from_millis(rounds(300, 2000) as u64));
            allowed.push(of_a_day());
        }
        allowed
    });
    assert_eq!(load.problems(), [""; 0]);
    let acknowledged = load.acknowledged.into_inner().expect("ids");
    all_are_recorded(&state, &acknowledged);
    let times: Vec<String> = records(&state, "request")
        .iter()
        .map(|r| r["time"].as_str().expect("a time")[..10].to_owned())
        .collect();
    let mut seen_days = times.clone();
    seen_days.sort();
    seen_days.dedup();
    assert_eq!(seen_days.len(), 3, "the clock did not jump: {seen_days:?}");
    assert!(allowed.iter().all(|n| *n <= 2) && allowed[1] == 2, "{allowed:?}");
    fault.ours(&format!(
        "{} answers on three days, none refused; of a limit of 2 a day {:?} were answered in turn; the log verifies",
        acknowledged.len(),
        allowed
    ));
}

#[cfg(target_os = "linux")]
#[test]
fn memory_runs_out() {
    let fault = Fault {
        name: "memory limit",
        done: "a start with 64 MiB of address space; under load the limit of its data falls to what is used (prlimit), and bodies of 6 MiB come",
        holds: "the start ends with a message; the process dies, loses no answer, and starts again",
    };
    let dir = TempDir::new("faults");
    let state = dir.join("state");
    let script = format!(
        "ulimit -v 65536; exec {} serve --state {} --bind 127.0.0.1:0",
        env!("CARGO_BIN_EXE_deephold"),
        text(&dir.join("other"))
    );
    let poor = Command::new("bash").args(["-c", &script]).output().expect("bash");
    let words = String::from_utf8_lossy(&poor.stderr).into_owned();
    assert!(!poor.status.success() && words.contains("cannot allocate"), "{poor:?}");
    let mut service = Service::start(&state, &["--cache-memory", "64MiB"]);
    let key = service.key.clone();
    let load = Load::new(&service);
    let pid = service.child.id();
    load.run(8, || {
        std::thread::sleep(Duration::from_millis(300));
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a status");
        let used = status.lines().find(|l| l.starts_with("VmData")).expect("its size");
        let used: u64 = used.split_whitespace().nth(1).expect("KiB").parse().expect("a number");
        let limit = format!("--data={}", used * 1024);
        assert!(
            Command::new("prlimit")
                .args(["--pid", &pid.to_string(), &limit])
                .status()
                .expect("prlimit")
                .success()
        );
        // Answers of a few tokens need nothing new; a body has to be put somewhere.
        let large = vec![b' '; 6 << 20];
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(30) {
            // Nobody listens any more once it has died.
            let Ok(mut stream) = TcpStream::connect(&service.address) else { break };
            let head = format!(
                "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Length: {}\r\n\r\n",
                large.len()
            );
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&large));
        }
    });
    let acknowledged = load.acknowledged.into_inner().expect("ids");
    let end = service.child.try_wait().expect("a status");
    assert!(end.is_some_and(|status| !status.success()), "it lives on: {end:?}");
    drop(service);
    let mut service = Service::start(&state, &[]);
    service.key = key;
    assert!(ask(&service.address, &service.key).is_ok());
    all_are_recorded(&state, &acknowledged);
    let line = words.lines().find(|l| l.contains("allocate")).unwrap_or_default();
    fault.ours(&format!(
        "start: code {}, {line}; under load: {}, {} answers, all recorded; it started again",
        poor.status.code().map_or("none".to_owned(), |c| c.to_string()),
        end.map_or("it lives".to_owned(), |status| status.to_string()),
        acknowledged.len()
    ));
}

#[test]
fn certificates_change_under_load() {
    let fault = Fault {
        name: "certificate rotation under load",
        done: "4 clients make new connections over TLS without pause; certificate and key are replaced and SIGHUP is sent",
        holds: "no request fails",
    };
    let dir = TempDir::new("faults");
    let (state, other) = (dir.join("state"), dir.join("other"));
    let service = Service::start(&state, &["--tls"]);
    drop(Service::start(&other, &["--tls"]));
    let tls =
        |state: &std::path::Path, file: &str| std::fs::read(state.join("tls").join(file)).expect("a file");
    let both = dir.join("both.pem");
    std::fs::write(&both, [tls(&state, "ca.pem"), tls(&other, "ca.pem")].concat()).expect("a file");
    let pairs = [&other, &state].map(|s| [tls(s, "server.pem"), tls(s, "server.key")]);
    let url = format!("https://localhost:{}/healthz", service.address.rsplit(':').next().expect("a port"));
    let rotations = rounds(6, 60);
    let stop = std::sync::atomic::AtomicBool::new(false);
    let (made, failed) = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let (mut made, mut failed) = (0usize, Vec::new());
                    while !stop.load(std::sync::atomic::Ordering::SeqCst) {
                        let out = Command::new("curl")
                            .args(["-sS", "--max-time", "20", "--cacert", text(&both), &url])
                            .output()
                            .expect("curl");
                        made += 1;
                        if !out.status.success() {
                            failed.push(String::from_utf8_lossy(&out.stderr).into_owned());
                        }
                    }
                    (made, failed)
                })
            })
            .collect();
        for i in 0..rotations {
            let [certificate, key] = &pairs[i % 2];
            std::fs::write(state.join("tls/server.pem"), certificate).expect("written");
            std::fs::write(state.join("tls/server.key"), key).expect("written");
            signal(service.child.id(), "-HUP");
            std::thread::sleep(Duration::from_millis(300));
        }
        stop.store(true, std::sync::atomic::Ordering::SeqCst);
        clients.into_iter().map(|c| c.join().expect("a client")).fold(
            (0, Vec::new()),
            |(n, mut all), (m, f)| {
                all.extend(f);
                (n + m, all)
            },
        )
    });
    assert_eq!(failed, [""; 0]);
    assert!(made > 2 * rotations, "{made}");
    fault.ours(&format!("{rotations} rotations, {made} handshakes, none failed"));
    all_are_recorded(&state, &[]);
}
