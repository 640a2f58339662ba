//! Tampering is named, crashes lose nothing that was acknowledged.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use deephold_base::ManualClock;
use serde_json::json;

use crate::{
    AuditError, AuditLog, Filter, FsyncPolicy, Options, Reader, VerifyOptions, VerifyReport, verify,
};

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("deephold-audit-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        Self(path)
    }

    fn log(&self, options: Options) -> Result<AuditLog, AuditError> {
        AuditLog::open(&self.0, options, Arc::new(ManualClock::default()))
    }

    fn segment(&self, n: u32) -> PathBuf {
        self.0.join(crate::segment_name(n))
    }

    fn verify(&self) -> VerifyReport {
        verify(&self.0, &VerifyOptions::default()).unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn small() -> Options {
    Options { segment_bytes: 900, checkpoint_every: 4, ..Options::default() }
}

fn fill(folder: &Folder, n: u64) {
    let log = folder.log(small()).unwrap();
    for i in 0..n {
        log.append("request", &json!({ "tenant": format!("t{}", i % 2), "text": "\",\"hash\":\"x" }))
            .unwrap();
    }
}

#[test]
fn records_come_back_and_verify_across_segments_and_reopening() {
    let folder = Folder::new("round");
    fill(&folder, 7);
    fill(&folder, 6);
    let report = folder.verify();
    assert!(report.ok, "{report:?}");
    assert_eq!(report.records, 13);
    assert!(report.checkpoints >= 2 && folder.segment(3).exists());
    let reader = Reader::new(&folder.0);
    let of = |filter: Filter| reader.newest(&filter, 100).unwrap().iter().map(|r| r.seq).collect::<Vec<_>>();
    assert_eq!(of(Filter::default()), (1..=13).rev().collect::<Vec<_>>());
    assert_eq!(of(Filter { tenant: Some("t1".into()), before_seq: Some(8), ..Filter::default() }), [6, 4, 2]);
    assert_eq!(reader.newest(&Filter::default(), 3).unwrap().len(), 3);
    assert_eq!(reader.get(5).unwrap().unwrap().seq, 5);
    let log = folder.log(small()).unwrap();
    assert!(matches!(folder.log(small()), Err(AuditError::Locked)));
    drop(log);
}

fn tampered(name: &str, change: impl Fn(&Folder)) -> crate::Problem {
    let folder = Folder::new(name);
    fill(&folder, 10);
    change(&folder);
    let report = folder.verify();
    assert!(!report.ok, "{name} went unnoticed");
    report.problem.unwrap()
}

fn edit(path: &Path, change: impl Fn(&mut Vec<String>)) {
    let mut lines: Vec<String> = std::fs::read_to_string(path).unwrap().lines().map(String::from).collect();
    change(&mut lines);
    std::fs::write(path, lines.iter().map(|l| format!("{l}\n")).collect::<String>()).unwrap();
}

#[test]
fn deletion_reordering_truncation_and_missing_segments_are_named() {
    let p = tampered("delete", |f| edit(&f.segment(1), |l| _ = l.remove(1)));
    assert_eq!((p.line, p.seq), (2, 2), "{p:?}");
    let p = tampered("swap", |f| edit(&f.segment(1), |l| l.swap(0, 1)));
    assert_eq!((p.line, p.seq), (1, 1), "{p:?}");
    let p = tampered("segment", |f| std::fs::remove_file(f.segment(2)).unwrap());
    assert!(p.file.contains("00000002") && p.what.contains("missing"), "{p:?}");
    let last = |f: &Folder| crate::segments(&f.0).unwrap().pop().unwrap().1;
    let p = tampered("truncate", |f| edit(&last(f), |l| _ = l.pop()));
    assert!(p.seq == 10 && p.what.contains("truncated"), "{p:?}");
    let p = tampered("cut", |f| {
        let bytes = std::fs::read(last(f)).unwrap();
        std::fs::write(last(f), &bytes[..bytes.len() - 5]).unwrap();
    });
    assert!(p.seq == 10 && p.what.contains("not whole"), "{p:?}");
    let p = tampered("signature", |f| {
        edit(&f.0.join("checkpoints.jsonl"), |l| l[0] = l[0].replace("\"seq\":4", "\"seq\":5"));
    });
    assert!(p.what.contains("signature"), "{p:?}");
    let folder = Folder::new("expected");
    fill(&folder, 3);
    let _ = std::fs::remove_file(folder.0.join("checkpoints.jsonl"));
    let head = folder.log(small()).unwrap().head();
    edit(&folder.segment(1), |l| _ = l.pop());
    let _ = std::fs::remove_file(folder.0.join("checkpoints.jsonl"));
    assert!(folder.verify().ok, "nothing inside can tell");
    let options = VerifyOptions { expected_head: Some((head.seq, head.hash)), ..VerifyOptions::default() };
    assert!(!verify(&folder.0, &options).unwrap().ok, "a head kept elsewhere can");
}

#[test]
fn an_edit_of_any_byte_is_named() {
    let folder = Folder::new("bytes");
    fill(&folder, 5);
    let path = folder.segment(1);
    let good = std::fs::read(&path).unwrap();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1;
        std::fs::write(&path, &bad).unwrap();
        let line = 1 + good[..at].iter().filter(|b| **b == b'\n').count() as u64;
        let report = folder.verify();
        let problem = report.problem.unwrap_or_else(|| panic!("byte {at} went unnoticed"));
        assert_eq!(problem.line, line, "byte {at}: {problem:?}");
    }
}

#[test]
fn a_forger_without_the_key_is_caught_by_the_checkpoint() {
    let folder = Folder::new("forge");
    fill(&folder, 10);
    // Writes every record anew with right hashes, one of them changed.
    let log: crate::LogFile =
        serde_json::from_slice(&std::fs::read(folder.0.join("log.json")).unwrap()).unwrap();
    let mut head = crate::genesis(&log.id);
    for (_, path) in crate::segments(&folder.0).unwrap() {
        let mut out = String::new();
        for line in std::fs::read_to_string(&path).unwrap().lines() {
            let line = line.replace("\"tenant\":\"t0\"", "\"tenant\":\"t9\"");
            let prev = line.rfind(",\"prev\"").unwrap();
            let body = format!("{},\"prev\":\"{}\"", &line[..prev], crate::hex(&head));
            head = crate::chain(&head, body.as_bytes());
            out.push_str(&format!("{body},\"hash\":\"{}\"}}\n", crate::hex(&head)));
        }
        std::fs::write(&path, out).unwrap();
    }
    let problem = folder.verify().problem.unwrap();
    assert!(problem.file == "checkpoints.jsonl" && problem.what.contains("anew"), "{problem:?}");
}

#[test]
fn a_torn_last_line_is_cut_off_and_other_damage_refuses_to_open() {
    let folder = Folder::new("torn");
    fill(&folder, 3);
    let path = folder.segment(1);
    let good = std::fs::read(&path).unwrap();
    let last = good[..good.len() - 1].iter().rposition(|b| *b == b'\n').unwrap() + 1;
    for cut in [last + 1, last + 40, good.len() - 1] {
        let _ = std::fs::remove_file(folder.0.join("checkpoints.jsonl"));
        std::fs::write(&path, &good[..cut]).unwrap();
        let log = folder.log(Options::default()).unwrap();
        assert_eq!(log.head().seq, 2);
        assert_eq!(log.append("again", &json!({})).unwrap().seq, 3);
        drop(log);
        assert!(folder.verify().ok);
    }
    let mut bad = good.clone();
    bad[last + 60] ^= 1;
    std::fs::write(&path, &bad).unwrap();
    let error = folder.log(Options::default()).err().unwrap();
    assert!(error.to_string().contains("audit verify"), "{error}");
}

#[test]
fn many_writers_share_commits() {
    let folder = Folder::new("many");
    let log = Arc::new(folder.log(Options::default()).unwrap());
    std::thread::scope(|s| {
        for t in 0..8 {
            let log = Arc::clone(&log);
            s.spawn(move || (0..50).for_each(|i| _ = log.append("x", &json!({ "t": t, "i": i })).unwrap()));
        }
    });
    assert_eq!(log.head().seq, 400);
    drop(log);
    assert!(folder.verify().ok);
}

/// Run as a child by the test below: appends until it is killed, printing what was acknowledged.
#[test]
fn child_that_is_killed() {
    let Ok(dir) = std::env::var("DEEPHOLD_AUDIT_CHILD") else { return };
    let options = Options { fsync: FsyncPolicy::Never, segment_bytes: 4000, ..Options::default() };
    let log = AuditLog::open(Path::new(&dir), options, Arc::new(ManualClock::default())).unwrap();
    loop {
        let receipt = log.append("x", &json!({ "pad": "y".repeat(200) })).unwrap();
        println!("acknowledged {}", receipt.seq);
    }
}

#[test]
fn a_kill_at_any_moment_loses_nothing_acknowledged() {
    use std::io::{BufRead, BufReader};
    let folder = Folder::new("kill");
    let mut last = 0;
    for round in 0..12u64 {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "tests::child_that_is_killed", "--nocapture"])
            .env("DEEPHOLD_AUDIT_CHILD", &folder.0)
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut seen = 0;
        while seen < 20 + round * 7 {
            let line = lines.next().expect("the child ended by itself").unwrap();
            if let Some(seq) = line.strip_prefix("acknowledged ") {
                last = seq.parse().unwrap();
                seen += 1;
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        for line in lines.map_while(Result::ok) {
            last = line.strip_prefix("acknowledged ").and_then(|s| s.parse().ok()).unwrap_or(last);
        }
        let head = folder.log(Options::default()).unwrap().head().seq;
        assert!(head >= last, "record {last} was acknowledged, the log ends at {head}");
        let report = folder.verify();
        assert!(report.ok && report.records == head, "{report:?}");
    }
}
