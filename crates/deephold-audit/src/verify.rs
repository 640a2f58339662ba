//! Checking a whole log, without trusting anything in it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use serde::Serialize;

use crate::read::time_of;
use crate::{
    AuditError, Checkpoint, Hash, LogFile, MAX_LINE, chain, genesis, hex, parse_line, segment_name, segments,
    signed_bytes, unhex,
};

/// What is known from elsewhere.
#[derive(Clone, Debug, Default)]
pub struct VerifyOptions {
    /// A record that must be in the log: number and hash, as `head` said at another time.
    pub expected_head: Option<(u64, Hash)>,
    /// The key that checkpoints must be signed with, instead of the one in the folder.
    pub public_key: Option<[u8; 32]>,
}

/// What is wrong first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Which file.
    pub file: String,
    /// Which line, from 1; 0 for the file as a whole.
    pub line: u64,
    /// The record that stands there or is missing there.
    pub seq: u64,
    /// What.
    pub what: String,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    /// Whether everything is as it was written.
    pub ok: bool,
    /// Records that are.
    pub records: u64,
    /// Signed checkpoints that match.
    pub checkpoints: u64,
    /// When the first record was written.
    pub first_time: Option<String>,
    /// When the last was.
    pub last_time: Option<String>,
    /// The last good record's hash.
    pub head: String,
    /// The first problem.
    pub problem: Option<Problem>,
}

/// Checks numbers, hashes, segments and checkpoints; memory is bounded by one line and the checkpoints.
///
/// # Errors
/// The folder cannot be read; what is wrong with its content is in the report.
pub fn verify(dir: &Path, options: &VerifyOptions) -> Result<VerifyReport, AuditError> {
    let mut report = VerifyReport::default();
    match check(dir, options, &mut report) {
        Ok(()) => report.ok = true,
        Err(Stop::Problem(problem)) => report.problem = Some(problem),
        Err(Stop::Error(e)) => return Err(e),
    }
    Ok(report)
}

enum Stop {
    Problem(Problem),
    Error(AuditError),
}

impl From<AuditError> for Stop {
    fn from(e: AuditError) -> Self {
        Self::Error(e)
    }
}

fn problem(file: &str, line: u64, seq: u64, what: impl Into<String>) -> Stop {
    Stop::Problem(Problem { file: file.to_owned(), line, seq, what: what.into() })
}

fn check(dir: &Path, options: &VerifyOptions, report: &mut VerifyReport) -> Result<(), Stop> {
    let path = dir.join("log.json");
    let mut text = String::new();
    let read = File::open(&path).and_then(|f| f.take(4096).read_to_string(&mut text));
    read.map_err(|e| AuditError::io("read", &path, e))?;
    let log: LogFile =
        serde_json::from_str(&text).map_err(|e| problem("log.json", 1, 0, format!("is malformed: {e}")))?;
    let key = match options.public_key {
        Some(key) => key,
        None => unhex(&log.public_key).ok_or_else(|| problem("log.json", 1, 0, "has a malformed key"))?,
    };
    let checkpoints = checkpoints(dir, &log.id, &key)?;
    let mut head = genesis(&log.id);
    let mut seq = 0;
    let mut last = (segment_name(1), 0);
    for (i, (number, path)) in segments(dir)?.into_iter().enumerate() {
        let name = segment_name(number);
        if number as usize != i + 1 {
            let missing = segment_name(i as u32 + 1);
            return Err(problem(&missing, 0, seq + 1, "the segment is missing"));
        }
        let file = File::open(&path).map_err(|e| AuditError::io("open", &path, e))?;
        let mut lines = BufReader::new(file);
        let mut line = Vec::new();
        for line_number in 1.. {
            line.clear();
            let read = (&mut lines).take(MAX_LINE as u64 + 1).read_until(b'\n', &mut line);
            if read.map_err(|e| AuditError::io("read", &path, e))? == 0 {
                break;
            }
            if line.pop() != Some(b'\n') {
                return Err(problem(&name, line_number, seq + 1, "the record is not whole: cut off or torn"));
            }
            (seq, head) = record(&name, line_number, &line, seq, &head)?;
            last = (name.clone(), line_number);
            let time = time_of(&line).unwrap_or_default();
            report.first_time.get_or_insert_with(|| time.clone());
            report.last_time = Some(time);
            (report.records, report.head) = (seq, hex(&head));
            if let Some((line, signed)) = checkpoints.get(&seq) {
                if *signed != head {
                    let what = "the signed hash of this record is another one: the log was written anew";
                    return Err(problem("checkpoints.jsonl", *line, seq, what));
                }
                report.checkpoints += 1;
            }
            if options.expected_head.is_some_and(|(s, h)| s == seq && h != head) {
                return Err(problem(&name, line_number, seq, "the record is not the expected one"));
            }
        }
    }
    let signed = checkpoints.last_key_value().map_or(0, |(s, _)| *s);
    let expected = options.expected_head.map_or(0, |(s, _)| s);
    if signed.max(expected) > seq {
        let what =
            format!("records up to {} existed and are gone: the log was truncated", signed.max(expected));
        return Err(problem(&last.0, last.1, seq + 1, what));
    }
    Ok(())
}

/// Checks one record against the one before it.
fn record(name: &str, line_number: u64, line: &[u8], seq: u64, head: &Hash) -> Result<(u64, Hash), Stop> {
    let parsed =
        parse_line(line).map_err(|e| problem(name, line_number, seq + 1, format!("the record {e}")))?;
    if chain(&parsed.prev, &line[..parsed.covered]) != parsed.hash {
        return Err(problem(name, line_number, seq + 1, "the record has been edited: its hash does not fit"));
    }
    if parsed.seq != seq + 1 {
        let what = format!("record {} stands where {} should: deleted or reordered", parsed.seq, seq + 1);
        return Err(problem(name, line_number, seq + 1, what));
    }
    if parsed.prev != *head {
        let what = "the record does not continue the one before it: the log was written anew up to here";
        return Err(problem(name, line_number, seq + 1, what));
    }
    if serde_json::from_slice::<serde::de::IgnoredAny>(line).is_err() {
        return Err(problem(name, line_number, seq + 1, "the record is not JSON"));
    }
    Ok((parsed.seq, parsed.hash))
}

/// Checkpoints by record, and their lines; a torn last line counts as absent.
fn checkpoints(dir: &Path, id: &str, key: &[u8; 32]) -> Result<BTreeMap<u64, (u64, Hash)>, Stop> {
    const NAME: &str = "checkpoints.jsonl";
    let path = dir.join(NAME);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(e) => return Err(AuditError::io("open", &path, e).into()),
    };
    let key = UnparsedPublicKey::new(&ED25519, key);
    let mut lines = BufReader::new(file);
    let mut out = BTreeMap::new();
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let read = (&mut lines).take(4096).read_until(b'\n', &mut line);
        if read.map_err(|e| AuditError::io("read", &path, e))? == 0 {
            break;
        }
        if line.pop() != Some(b'\n') {
            break;
        }
        let parsed: Option<Checkpoint> = serde_json::from_slice(&line).ok();
        let Some(c) = parsed else {
            // Torn by a crash and continued after it.
            continue;
        };
        let hash: Option<Hash> = unhex(&c.hash);
        let signature: Option<[u8; 64]> = unhex(&c.signature);
        let (Some(hash), Some(signature)) = (hash, signature) else {
            return Err(problem(NAME, number, c.seq, "the checkpoint is malformed"));
        };
        if key.verify(&signed_bytes(id, c.seq, &hash), &signature).is_err() {
            return Err(problem(NAME, number, c.seq, "the checkpoint's signature does not fit"));
        }
        out.insert(c.seq, (number, hash));
    }
    Ok(out)
}
