//! Tampering is named, crashes lose nothing that was acknowledged.

mod faults;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use deephold_base::ManualClock;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::format::{CHECKPOINT, Header, Line, NewRecord, append_line, genesis, segment_name};
use crate::{
    AuditError, AuditLog, Filter, Finding, FsyncPolicy, Options, Reader, Receipt, SigningKey, VerifyReport,
    hex, read_public_key, verify,
};

/// A log and, apart from it, its key.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("deephold-audit-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        Self(path)
    }

    fn dir(&self) -> PathBuf {
        self.0.join("log")
    }

    fn key_file(&self) -> PathBuf {
        self.0.join("keys/audit.key")
    }

    fn log(&self, options: Options) -> Result<AuditLog, AuditError> {
        let key = SigningKey::open_or_create(&self.key_file())?;
        AuditLog::open(&self.dir(), key, options, Arc::new(ManualClock::default()))
    }

    fn segment(&self, n: u32) -> PathBuf {
        self.dir().join(segment_name(n))
    }

    fn segments(&self) -> Vec<PathBuf> {
        (1..).map(|n| self.segment(n)).take_while(|p| p.exists()).collect()
    }

    fn public_key(&self) -> [u8; 32] {
        read_public_key(&self.key_file().with_extension("pub")).unwrap()
    }

    fn verify(&self) -> VerifyReport {
        verify(&self.dir(), &self.public_key(), None).unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn small() -> Options {
    Options { segment_bytes: 1500, checkpoint_every: 4, ..Options::default() }
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
    assert_eq!((report.records - report.checkpoints, report.unsigned), (13, 0));
    assert!(report.checkpoints >= 4 && folder.segment(3).exists());
    let reader = Reader::new(&folder.dir());
    let all = reader.newest(&Filter::default(), 100).unwrap();
    assert_eq!(all.iter().map(|r| r.seq).collect::<Vec<_>>(), (1..=report.records).rev().collect::<Vec<_>>());
    let kind = Some("request".to_owned());
    let ours = Filter { tenant: Some("t1".into()), kind, ..Filter::default() };
    assert_eq!(reader.newest(&ours, 100).unwrap().len(), 6);
    assert_eq!(reader.newest(&Filter::default(), 3).unwrap().len(), 3);
    assert_eq!(reader.get(5).unwrap().unwrap().kind, CHECKPOINT);
    let log = folder.log(small()).unwrap();
    assert!(matches!(folder.log(small()), Err(AuditError::Locked)));
    drop(log);
}

#[cfg(unix)]
#[test]
fn a_segment_that_is_deleted_while_it_is_written_comes_back() {
    let folder = Folder::new("deleted");
    let log = folder.log(Options::default()).unwrap();
    let append = |i: u64| log.append("request", &json!({ "i": i }));
    (0..3).for_each(|i| _ = append(i).unwrap());
    std::fs::remove_file(folder.segment(1)).unwrap();
    (3..6).for_each(|i| _ = append(i).unwrap());
    assert!(folder.verify().ok);
    let all = Reader::new(&folder.dir()).newest(&Filter::default(), 100).unwrap();
    let kinds: Vec<&str> = all.iter().rev().map(|r| r.kind.as_str()).collect();
    assert_eq!(kinds, ["request", "request", "request", "request", "repair", "request", "request"]);
    assert!(all[2].data.to_string().contains("audit-00000001.jsonl"));
    // Another file in its place is somebody's doing: nothing more is acknowledged, and what was written is in the open file still.
    std::fs::rename(folder.segment(1), folder.segment(9)).unwrap();
    std::fs::write(folder.segment(1), "forged\n").unwrap();
    let refused = append(6).unwrap_err().to_string();
    assert!(refused.contains("another file"), "{refused}");
    assert!(append(7).is_err());
}

fn tampered(name: &str, change: impl Fn(&Folder)) -> Finding {
    let folder = Folder::new(name);
    fill(&folder, 20);
    change(&folder);
    let report = folder.verify();
    assert!(!report.ok, "{name} went unnoticed");
    report.finding.unwrap()
}

fn edit(path: &Path, change: impl Fn(&mut Vec<String>)) {
    let mut lines: Vec<String> = std::fs::read_to_string(path).unwrap().lines().map(String::from).collect();
    change(&mut lines);
    std::fs::write(path, lines.iter().map(|l| format!("{l}\n")).collect::<String>()).unwrap();
}

#[test]
fn deletion_reordering_truncation_and_missing_segments_are_named() {
    let f = tampered("delete", |f| edit(&f.segment(1), |l| _ = l.remove(1)));
    assert_eq!((f.line, f.seq), (2, 2), "{f:?}");
    let f = tampered("swap", |f| edit(&f.segment(1), |l| l.swap(0, 1)));
    assert_eq!((f.line, f.seq), (1, 1), "{f:?}");
    let f = tampered("segment", |f| std::fs::remove_file(f.segment(2)).unwrap());
    assert!(f.file.contains("00000002") && f.what.contains("missing"), "{f:?}");
    let last = |f: &Folder| f.segments().pop().unwrap();
    let f = tampered("cut", |f| {
        let bytes = std::fs::read(last(f)).unwrap();
        std::fs::write(last(f), &bytes[..bytes.len() - 5]).unwrap();
    });
    assert!(f.what.contains("not whole"), "{f:?}");
    // A cut at a line's end leaves a log that is sound in itself; a head that was kept elsewhere tells.
    let folder = Folder::new("truncate");
    fill(&folder, 10);
    let head = folder.log(small()).unwrap().head();
    edit(&last(&folder), |l| _ = l.pop());
    assert!(folder.verify().ok);
    let report = verify(&folder.dir(), &folder.public_key(), Some(head)).unwrap();
    assert!(report.finding.unwrap().what.contains("cut off"));
}

/// Each of these verified in the first format, whose checkpoints lay beside the chain.
#[test]
fn checkpoints_can_neither_be_removed_nor_damaged() {
    let f = tampered("braces", |f| {
        edit(&f.segment(1), |lines| {
            let at = lines.iter().position(|l| l.contains("\"kind\":\"checkpoint\"")).unwrap();
            lines[at] = "{}".into();
        });
    });
    assert_eq!((f.line, f.seq), (5, 5), "{f:?}");
    let f = tampered("removed", |f| {
        edit(&f.segment(1), |lines| lines.retain(|l| !l.contains("\"kind\":\"checkpoint\"")));
    });
    assert_eq!(f.seq, 5, "{f:?}");
}

/// Writes every record anew with right numbers and hashes, after `change` has had its way with kind and data.
fn forge(folder: &Folder, change: impl Fn(&str, &str) -> Option<(String, String)>) {
    let header = std::fs::read(folder.dir().join("log.json")).unwrap();
    let mut head = Receipt { seq: 0, hash: genesis(&header) };
    for path in folder.segments() {
        let mut out = Vec::new();
        for line in std::fs::read_to_string(&path).unwrap().lines() {
            let line = Line::parse(line.as_bytes()).unwrap();
            let Some((kind, data)) = change(line.kind, line.data) else { continue };
            let record = NewRecord { time: line.time, kind: &kind, durable: 0, data: &data };
            head = append_line(&mut out, &head, &record);
        }
        std::fs::write(&path, out).unwrap();
    }
}

#[test]
fn a_forger_without_the_key_is_caught() {
    // One word changed, all hashes made anew: the signatures no longer fit.
    let f = tampered("forged", |f| {
        forge(f, |kind, data| Some((kind.to_owned(), data.replace("t0", "t9"))));
    });
    assert!(f.seq == 5 && f.what.contains("signature"), "{f:?}");
    // Checkpoints left out or made ordinary: they are missing where the header calls for them.
    let f = tampered("without", |f| {
        forge(f, |kind, data| (kind != CHECKPOINT).then(|| (kind.to_owned(), data.to_owned())));
    });
    assert!(f.seq == 5 && f.what.contains("no checkpoint"), "{f:?}");
    let f = tampered("ordinary", |f| forge(f, |_, data| Some(("request".to_owned(), data.to_owned()))));
    assert!(f.seq == 5 && f.what.contains("no checkpoint"), "{f:?}");
    // A header that calls for fewer: the first record continues the old one, and with all hashes made anew the rest is signed
    // for another log.
    let rarer = |f: &Folder| {
        let path = f.dir().join("log.json");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("\"checkpoint_every\":4", "\"checkpoint_every\":1000")).unwrap();
    };
    let f = tampered("header", rarer);
    assert!(f.seq == 1 && f.what.contains("does not continue"), "{f:?}");
    let f = tampered("header-and-all", |f| {
        rarer(f);
        forge(f, |kind, data| Some((kind.to_owned(), data.to_owned())));
    });
    assert!(f.what.contains("signature"), "{f:?}");
    // A whole log of the forger's own, with his key in its header.
    let f = tampered("own", |f| {
        let other = Folder::new("own-other");
        fill(&other, 10);
        std::fs::remove_dir_all(f.dir()).unwrap();
        std::fs::rename(other.dir(), f.dir()).unwrap();
    });
    assert!(f.file == "log.json" && f.what.contains("another key"), "{f:?}");
}

#[test]
fn the_key_lies_apart_and_is_its_owners_alone() {
    let folder = Folder::new("key");
    fill(&folder, 1);
    let names: Vec<String> = std::fs::read_dir(folder.dir())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(!names.iter().any(|n| n.contains("key")), "{names:?}");
    let header = std::fs::read(folder.dir().join("log.json")).unwrap();
    let header = Header::parse(&header).unwrap().0;
    assert_eq!((header.public_key, header.checkpoint_every), (hex(&folder.public_key()), 4));
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = |p: &Path| std::fs::metadata(p).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&folder.key_file()), 0o600);
        assert_eq!(mode(folder.key_file().parent().unwrap()), 0o700);
        assert_eq!(mode(&folder.dir()), 0o700);
        std::fs::set_permissions(folder.key_file(), std::fs::Permissions::from_mode(0o640)).unwrap();
        let error = folder.log(small()).err().unwrap().to_string();
        assert!(error.contains("chmod 600"), "{error}");
        std::fs::set_permissions(folder.key_file(), std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    // Another key cannot continue the log.
    std::fs::rename(folder.key_file(), folder.0.join("kept")).unwrap();
    let error = folder.log(small()).err().unwrap().to_string();
    assert!(error.contains("begun with"), "{error}");
    std::fs::write(folder.key_file(), b"no key").unwrap();
    assert!(matches!(folder.log(small()), Err(AuditError::Key(_))));
}

#[test]
fn what_cannot_be_a_log_is_refused_by_name() {
    let damaged = |name: &str, change: &dyn Fn(&Folder)| {
        let folder = Folder::new(name);
        fill(&folder, 10);
        change(&folder);
        let error = folder.log(small()).err().unwrap_or_else(|| panic!("{name} was opened"));
        assert!(matches!(error, AuditError::Damaged { .. }), "{name}: {error}");
        error.to_string()
    };
    let text = damaged("no-header", &|f| std::fs::remove_file(f.dir().join("log.json")).unwrap());
    assert!(text.contains("log.json"), "{text}");
    damaged("bad-header", &|f| std::fs::write(f.dir().join("log.json"), "{}").unwrap());
    damaged("format", &|f| {
        let path = f.dir().join("log.json");
        let text = std::fs::read_to_string(&path).unwrap().replace("\"format\":2", "\"format\":3");
        std::fs::write(path, text).unwrap();
    });
    let text = damaged("gap", &|f| std::fs::remove_file(f.segment(1)).unwrap());
    assert!(text.contains("00000001"), "{text}");
    damaged("cut-segment", &|f| edit(&f.segment(1), |l| l.clear()));
    let every = Options { checkpoint_every: 0, ..small() };
    assert!(matches!(Folder::new("every").log(every), Err(AuditError::Options(_))));
}

/// A torn batch: a hole where one record was, and a whole record behind it. What was acknowledged stays; the repair is noted.
#[test]
fn a_torn_batch_is_repaired_and_a_later_change_is_refused() {
    let folder = Folder::new("torn");
    fill(&folder, 3);
    let path = folder.segment(1);
    let good = std::fs::read(&path).unwrap();
    let whole = |bytes: &[u8]| bytes.iter().filter(|b| **b == b'\n').count() as u64;
    let ends: Vec<usize> = (0..good.len()).filter(|i| good[*i] == b'\n').map(|i| i + 1).collect();
    // A batch of two records that never was acknowledged, cut and holed in every way.
    let mut head = {
        let line = Line::parse(&good[ends[ends.len() - 2]..good.len() - 1]).unwrap();
        Receipt { seq: line.seq, hash: line.hash }
    };
    let mut batch = Vec::new();
    let durable = head.seq;
    let mut first_end = 0;
    for i in 0..2 {
        let record =
            NewRecord { time: "2026-11-24T06:30:00.123Z", kind: "x", durable, data: "{\"a\":[1,2,3]}" };
        head = append_line(&mut batch, &head, &record);
        if i == 0 {
            first_end = batch.len();
        }
    }
    for (from, to) in
        [(0, first_end), (5, 20), (first_end - 1, first_end), (0, batch.len()), (first_end, batch.len())]
    {
        for cut in [batch.len(), batch.len() - 1, first_end + 7] {
            let mut torn = [&good[..], &batch[..cut]].concat();
            torn[good.len() + from..(good.len() + to).min(good.len() + cut)].fill(0);
            std::fs::write(&path, &torn).unwrap();
            let log = folder.log(small()).unwrap_or_else(|e| panic!("hole {from}..{to} cut {cut}: {e}"));
            drop(log);
            let report = folder.verify();
            assert!(report.ok, "{report:?}");
            // The first record of the batch may have reached the disk whole; then it stays.
            let kept = u64::from(from >= first_end);
            let reader = Reader::new(&folder.dir());
            let note = reader.get(whole(&good) + kept + 1).unwrap().unwrap();
            assert_eq!(note.kind, "repair", "hole {from}..{to} cut {cut}");
            let kept = std::fs::read(folder.dir().join(note.data["kept"].as_str().unwrap())).unwrap();
            assert!(!kept.is_empty() && torn.ends_with(&kept));
            assert_eq!(note.data["bytes"].as_u64().unwrap(), kept.len() as u64);
            assert_eq!(note.data["sha256"].as_str().unwrap(), hex(&Sha256::digest(&kept)));
        }
    }
    // Damage to a record that a later one calls durable is no crash.
    for at in [good.len() / 3, 20, ends[0] + 40] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        std::fs::write(&path, &bad).unwrap();
        let error = folder.log(small()).err().unwrap_or_else(|| panic!("byte {at}"));
        assert!(error.to_string().contains("changed afterwards"), "{error}");
    }
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
        let finding = report.finding.unwrap_or_else(|| panic!("byte {at} went unnoticed"));
        assert_eq!(finding.line, line, "byte {at}: {finding:?}");
    }
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
    drop(log);
    let report = folder.verify();
    assert!(report.ok && report.records == 400 + report.checkpoints, "{report:?}");
}

/// Run as a child by the test below: appends until it is killed, printing what was acknowledged.
#[test]
fn child_that_is_killed() {
    let Ok(dir) = std::env::var("DEEPHOLD_AUDIT_CHILD") else { return };
    let options = Options { fsync: FsyncPolicy::Never, segment_bytes: 4000, ..Options::default() };
    // The parent cleans up.
    let folder = std::mem::ManuallyDrop::new(Folder(dir.into()));
    let log = folder.log(options).unwrap();
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
        assert!(report.ok && report.records >= head, "{report:?}");
    }
}
