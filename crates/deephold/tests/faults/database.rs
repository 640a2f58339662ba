//! A shared database that dies, is slow, or has no place.

use std::process::Command;
use std::time::Duration;

use deephold_testkit::{PostgresServer, TempDir};

use crate::common::text;
use crate::service::Service;
use crate::{Fault, Load, all_are_recorded, ask, counted};

struct Shared {
    dir: TempDir,
    postgres: PostgresServer,
    args: Vec<String>,
}

impl Shared {
    fn start(settings: &[&str]) -> Option<Self> {
        let postgres = PostgresServer::start(settings)?;
        let dir = TempDir::new("faults");
        let url = postgres.database("deephold");
        let password = dir.join("password");
        std::fs::write(&password, format!("{}\n", PostgresServer::PASSWORD)).expect("a file");
        let args = ["--store", &url, "--store-password-file", text(&password)].map(str::to_owned).to_vec();
        Some(Self { dir, postgres, args })
    }

    fn args(&self) -> Vec<&str> {
        self.args.iter().map(String::as_str).collect()
    }

    fn serve(&self) -> Service {
        Service::start(&self.dir.join("state"), &self.args())
    }

    fn config(&self) -> Vec<String> {
        let path = self.dir.join("deephold.toml");
        let lines = format!("store = {:?}\nstore_password_file = {:?}\n", self.args[1], self.args[3]);
        std::fs::write(&path, lines).expect("a file");
        vec!["--config".to_owned(), text(&path).to_owned()]
    }

    /// All answers are recorded, and in the usage.
    fn holds_all(&self, acknowledged: &[String]) -> u64 {
        let state = self.dir.join("state");
        all_are_recorded(&state, acknowledged);
        let config = self.config();
        let counted = counted(&state, &config.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(counted >= acknowledged.len() as u64, "{counted} of {}", acknowledged.len());
        counted
    }
}

#[test]
fn postgresql_dies_and_comes_back() {
    let fault = Fault {
        name: "PostgreSQL killed and restarted",
        done: "under load the database's server is ended as by a crash, is away for 2 s, and comes back; three times",
        holds: "503 meanwhile, answers again afterwards; every answer is recorded and counted",
    };
    let Some(mut shared) = Shared::start(&[]) else { return };
    let service = shared.serve();
    let load = Load::new(&service);
    load.run(3, || {
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(700));
            shared.postgres.kill();
            std::thread::sleep(Duration::from_secs(2));
            shared.postgres.resume();
        }
        std::thread::sleep(Duration::from_secs(2));
    });
    assert!(ask(&service.address, &service.key).is_ok());
    let problems = load.problems();
    assert!(!problems.is_empty() && problems.iter().all(|p| p.starts_with("status 503")), "{problems:?}");
    let acknowledged = load.acknowledged.into_inner().expect("ids");
    let counted = shared.holds_all(&acknowledged);
    fault.ours(&format!(
        "{} answers, {} refused with 503; all recorded, {counted} counted",
        acknowledged.len(),
        problems.len()
    ));
}

#[test]
fn postgresql_is_slow() {
    let fault = Fault {
        name: "PostgreSQL slow",
        done: "under load the table of usage is locked for 3 s",
        holds: "answers wait or are refused with 503; health is answered at once; every answer is recorded and counted",
    };
    let Some(shared) = Shared::start(&[]) else { return };
    let service = shared.serve();
    let load = Load::new(&service);
    let healthy = load.run(3, || {
        std::thread::sleep(Duration::from_millis(500));
        std::thread::scope(|scope| {
            let lock = "BEGIN; LOCK TABLE usage IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(3); COMMIT";
            scope.spawn(|| shared.postgres.sql("deephold", lock));
            std::thread::sleep(Duration::from_secs(1));
            let begun = std::time::Instant::now();
            assert_eq!(service.get("/healthz").status, 200);
            begun.elapsed()
        })
    });
    assert!(ask(&service.address, &service.key).is_ok());
    let problems = load.problems();
    assert!(problems.iter().all(|p| p.starts_with("status 503")), "{problems:?}");
    let acknowledged = load.acknowledged.into_inner().expect("ids");
    let counted = shared.holds_all(&acknowledged);
    assert!(healthy < Duration::from_secs(1), "{healthy:?}");
    fault.ours(&format!(
        "{} answers, {} refused; health within {:.0} ms; all recorded, {counted} counted",
        acknowledged.len(),
        problems.len(),
        healthy.as_secs_f64() * 1e3
    ));
}

#[test]
fn postgresql_has_no_place() {
    let fault = Fault {
        name: "PostgreSQL out of connections",
        done: "8 connections are all that it gives, and others hold them for 4 s: while a server starts, and under load",
        holds: "the start ends with a message; a running server refuses with 503 or answers with the connections that it has; nothing is lost",
    };
    let Some(shared) = Shared::start(&["max_connections=8", "superuser_reserved_connections=0"]) else {
        return;
    };
    let hold = |count: usize, during: &dyn Fn()| {
        std::thread::scope(|scope| {
            for _ in 0..count {
                scope.spawn(|| {
                    // Where there is no place any more it ends with an error, as is wanted.
                    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                        shared.postgres.sql("deephold", "SELECT pg_sleep(4)");
                    }));
                });
            }
            std::thread::sleep(Duration::from_secs(1));
            during();
        });
    };
    let refused = std::sync::Mutex::new(String::new());
    hold(8, &|| {
        let mut command = Command::new("timeout");
        command.args(["10", env!("CARGO_BIN_EXE_deephold"), "serve", "--bind", "127.0.0.1:0", "--state"]);
        let out = command.arg(shared.dir.join("other")).args(shared.args()).output().expect("timeout");
        assert!(!out.status.success(), "{out:?}");
        *refused.lock().expect("words") = format!(
            "code {}, {}",
            out.status.code().unwrap_or(-1),
            String::from_utf8_lossy(&out.stderr)
                .trim()
                .replace(text(shared.dir.path()), "...")
                .lines()
                .last()
                .unwrap_or_default()
        );
    });
    let service = shared.serve();
    let load = Load::new(&service);
    load.run(3, || hold(8, &|| ()));
    assert!(ask(&service.address, &service.key).is_ok());
    let problems = load.problems();
    assert!(problems.iter().all(|p| p.starts_with("status 503")), "{problems:?}");
    let acknowledged = load.acknowledged.into_inner().expect("ids");
    let counted = shared.holds_all(&acknowledged);
    fault.ours(&format!(
        "start: {}; running: {} answers, {} refused; all recorded, {counted} counted",
        refused.into_inner().expect("words"),
        acknowledged.len(),
        problems.len()
    ));
}
