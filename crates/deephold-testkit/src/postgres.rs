//! A PostgreSQL server of a test's own: its files go with it.

use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::{TempDir, skip};

/// Time for the server to start.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running server, ended when dropped.
pub struct PostgresServer {
    dir: TempDir,
    child: Option<Child>,
    programs: PathBuf,
    settings: Vec<String>,
    /// Where it listens on 127.0.0.1.
    pub port: u16,
}

/// The folder of the newest server's programs, where one is installed.
fn programs() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut folders: Vec<PathBuf> = versions.map(|v| v.path().join("bin")).collect();
    folders.sort();
    let has_all =
        |f: &PathBuf| ["initdb", "postgres", "pg_isready", "psql"].iter().all(|p| f.join(p).exists());
    folders.into_iter().rev().chain(["/usr/local/bin", "/usr/bin"].map(PathBuf::from)).find(has_all)
}

fn id(option: &str) -> Option<u32> {
    let out = Command::new("id").args([option, "postgres"]).output().ok()?;
    String::from_utf8(out.stdout).ok()?.trim().parse().ok()
}

fn is_root() -> bool {
    let out = Command::new("id").arg("-u").output();
    out.is_ok_and(|o| o.stdout.trim_ascii() == b"0")
}

/// A command of the server's, as somebody else where we are root: the server refuses to run as root.
fn command(program: &Path) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "postgres", "--regid", "postgres", "--clear-groups"]).arg(program);
    command
}

impl PostgresServer {
    /// The superuser's name.
    pub const USER: &'static str = "deephold";
    /// The superuser's password.
    pub const PASSWORD: &'static str = "a test's word: 'x'";

    /// Starts one with these settings, as `ssl=on`; none, with a note, where PostgreSQL is not installed.
    ///
    /// # Panics
    /// Where it is installed and does not start, or is not and may not be skipped.
    pub fn start(settings: &[&str]) -> Option<Self> {
        let Some(programs) = programs() else {
            skip("needs PostgreSQL's server (Debian's package postgresql)");
            return None;
        };
        let dir = TempDir::new("postgres");
        let password = dir.join("password");
        std::fs::write(&password, Self::PASSWORD).expect("a file");
        own(dir.path());
        own(&password);
        let mut init = command(&programs.join("initdb"));
        init.args(["--auth=scram-sha-256", "--no-sync", "--encoding=UTF8", "--locale=C", "-U", Self::USER]);
        init.arg(format!("--pwfile={}", password.display())).arg("-D").arg(dir.join("data"));
        let made = init.output().expect("initdb");
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").port();
        let settings = settings.iter().map(|&s| s.to_owned()).collect();
        let mut server = Self { dir, child: None, programs, settings, port };
        server.resume();
        Some(server)
    }

    /// Starts it again on the same files and port.
    pub fn resume(&mut self) {
        let log =
            std::fs::OpenOptions::new().create(true).append(true).open(self.dir.join("log")).expect("a log");
        let mut run = command(&self.programs.join("postgres"));
        run.arg("-D").arg(self.dir.join("data")).args([
            "-p",
            &self.port.to_string(),
            "-c",
            "listen_addresses=127.0.0.1",
        ]);
        run.arg("-c").arg(format!("unix_socket_directories={}", self.dir.path().display()));
        for setting in &self.settings {
            run.args(["-c", setting]);
        }
        let errors = log.try_clone().expect("a log");
        self.child = Some(run.stdout(log).stderr(Stdio::from(errors)).spawn().expect("postgres"));
        let begun = Instant::now();
        while !self.answers() {
            let log = std::fs::read_to_string(self.dir.join("log")).unwrap_or_default();
            assert!(begun.elapsed() < PATIENCE, "PostgreSQL does not start: {log}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn answers(&self) -> bool {
        let mut ready = Command::new(self.programs.join("pg_isready"));
        let asked = ready.args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-q"]).status();
        asked.is_ok_and(|s| s.success())
    }

    /// Ends it at once, as a crash would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // SIGQUIT: the server ends its processes and writes nothing more.
            let _ = Command::new("kill").args(["-QUIT", &child.id().to_string()]).status();
            let _ = child.wait();
        }
    }

    /// A file that the server may read, beside its data.
    pub fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.dir.join(name);
        let mut file = std::fs::File::create(&path).expect("a file");
        file.write_all(content).expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("a mode");
        own(&path);
        path
    }

    /// Runs SQL as the superuser.
    pub fn sql(&self, database: &str, sql: &str) {
        let port = self.port.to_string();
        let mut client = Command::new(self.programs.join("psql"));
        client.args(["-h", "127.0.0.1", "-p", &port, "-U", Self::USER, "-d", database, "-qc", sql]);
        let out = client.env("PGPASSWORD", Self::PASSWORD).output().expect("psql");
        assert!(out.status.success(), "{sql}: {}", String::from_utf8_lossy(&out.stderr));
    }

    /// A new database, and its address without a password.
    pub fn database(&self, name: &str) -> String {
        self.sql("postgres", &format!("CREATE DATABASE {name}"));
        format!("postgres://{}@127.0.0.1:{}/{name}", Self::USER, self.port)
    }
}

/// Gives a file to the server's user, where we run as root.
fn own(path: &Path) {
    if is_root() {
        let (user, group) = (id("-u"), id("-g"));
        assert!(user.is_some(), "there is no user `postgres`; Debian's package postgresql makes it");
        chown(path, user, group).expect("the file changes hands");
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        self.kill();
    }
}
