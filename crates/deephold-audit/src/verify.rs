//! Checking a whole log, without trusting anything in it but the key that the caller brings.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use serde::Serialize;

use crate::format::{
    CHECKPOINT, HEADER, Header, Line, MAX_HEADER, Receipt, segment_name, segment_number, signed_bytes,
};
use crate::lines::Lines;
use crate::{AuditError, hex, unhex};

/// What is wrong first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
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
    /// Records that are, checkpoints included.
    pub records: u64,
    /// Signed checkpoints among them.
    pub checkpoints: u64,
    /// Records behind the last checkpoint: chained, but not signed yet. Only a head that was written down elsewhere can tell
    /// whether records behind them were cut off.
    pub unsigned: u64,
    /// When the first record was written.
    pub first_time: Option<String>,
    /// When the last was.
    pub last_time: Option<String>,
    /// The last good record's hash.
    pub head: String,
    /// The first thing that is wrong.
    pub finding: Option<Finding>,
}

/// Checks numbers, hashes, segments, and that signed checkpoints stand as often as the header says; memory is bounded by one
/// line. `public_key` comes from elsewhere than the log; `expected`, where given, is a record that must be in it, as
/// `AuditLog::head` said at another time.
///
/// # Errors
/// The folder cannot be read; what is wrong with its content is in the report.
pub fn verify(
    dir: &Path,
    public_key: &[u8; 32],
    expected: Option<Receipt>,
) -> Result<VerifyReport, AuditError> {
    let open = |name: &str| -> Result<Box<dyn Read>, AuditError> {
        let path = dir.join(name);
        let file = File::open(&path).map_err(|e| AuditError::io("open", &path, e))?;
        Ok(Box::new(file))
    };
    let read = std::fs::read_dir(dir).map_err(|e| AuditError::io("read", dir, e))?;
    let mut names = Vec::new();
    for entry in read {
        names.extend(entry.map_err(|e| AuditError::io("read", dir, e))?.file_name().into_string());
    }
    verify_files(&names, &open, public_key, expected)
}

/// Opens a file of the log by its name.
pub(crate) type Open<'a> = dyn Fn(&str) -> Result<Box<dyn Read + 'a>, AuditError> + 'a;

/// As [`verify`], over any files.
pub(crate) fn verify_files<'a>(
    names: &[String],
    open: &Open<'a>,
    public_key: &[u8; 32],
    expected: Option<Receipt>,
) -> Result<VerifyReport, AuditError> {
    let mut report = VerifyReport::default();
    match check(names, open, public_key, expected, &mut report) {
        Ok(()) => report.ok = true,
        Err(Stop::Finding(finding)) => report.finding = Some(finding),
        Err(Stop::Error(e)) => return Err(e),
    }
    Ok(report)
}

enum Stop {
    Finding(Finding),
    Error(AuditError),
}

impl From<AuditError> for Stop {
    fn from(e: AuditError) -> Self {
        Self::Error(e)
    }
}

fn finding(file: &str, line: u64, seq: u64, what: impl Into<String>) -> Stop {
    Stop::Finding(Finding { file: file.to_owned(), line, seq, what: what.into() })
}

fn check<'a>(
    names: &[String],
    open: &Open<'a>,
    public_key: &[u8; 32],
    expected: Option<Receipt>,
    report: &mut VerifyReport,
) -> Result<(), Stop> {
    let mut bytes = Vec::new();
    let read = open(HEADER)?.take(MAX_HEADER as u64 + 1).read_to_end(&mut bytes);
    read.map_err(|e| AuditError::named("read", HEADER, e))?;
    let (header, genesis) = Header::parse(&bytes).map_err(|e| finding(HEADER, 1, 0, e))?;
    if header.public_key != hex(public_key) {
        return Err(finding(
            HEADER,
            1,
            0,
            "names another key than the one given: this is another log, or a forged one",
        ));
    }
    let mut chain = Chain {
        id: header.id,
        checkpoint_every: header.checkpoint_every,
        key: UnparsedPublicKey::new(&ED25519, *public_key),
        head: Receipt { seq: 0, hash: genesis },
    };
    let mut numbers: Vec<u32> = names.iter().filter_map(|n| segment_number(n)).collect();
    numbers.sort_unstable();
    let mut last = (segment_name(1), 0);
    for (number, found) in (1..).zip(numbers) {
        let name = segment_name(number);
        if number != found {
            return Err(finding(&name, 0, chain.head.seq + 1, "the segment is missing"));
        }
        let io = |e| AuditError::named("read", &name, e);
        let mut lines = Lines::new(open(&name)?);
        let mut line_number = 0;
        while let Some(line) = lines.next().map_err(io)? {
            line_number += 1;
            let here = |what: String| finding(&name, line_number, chain.head.seq + 1, what);
            if !line.whole {
                return Err(here("the record is not whole: cut off or torn".into()));
            }
            let next = chain.check(line.bytes, report).map_err(here)?;
            if expected.is_some_and(|e| e.seq == next.seq && e.hash != next.hash) {
                return Err(here("the record is not the expected one: the log was written anew".into()));
            }
            chain.head = next;
            last = (name.clone(), line_number);
            (report.records, report.head) = (next.seq, hex(&next.hash));
        }
    }
    match expected {
        Some(e) if e.seq > chain.head.seq => {
            let what = format!("records up to {} existed and are gone: the log was cut off", e.seq);
            Err(finding(&last.0, last.1, chain.head.seq + 1, what))
        }
        _ => Ok(()),
    }
}

struct Chain {
    id: String,
    checkpoint_every: u64,
    key: UnparsedPublicKey<[u8; 32]>,
    head: Receipt,
}

impl Chain {
    /// Checks one record against the one before it, and counts it.
    fn check(&self, bytes: &[u8], report: &mut VerifyReport) -> Result<Receipt, String> {
        let line = Line::parse(bytes).map_err(|e| format!("the record {e}"))?;
        if !line.is_consistent {
            return Err("the record has been edited: its hash does not fit".into());
        }
        if line.seq != self.head.seq + 1 {
            return Err(format!(
                "record {} stands where {} should: deleted or reordered",
                line.seq,
                self.head.seq + 1
            ));
        }
        if line.prev != self.head.hash {
            return Err(
                "the record does not continue the one before it: the log was written anew up to here".into(),
            );
        }
        if line.durable >= line.seq || serde_json::from_slice::<serde::de::IgnoredAny>(bytes).is_err() {
            return Err("the record is not as the program writes it".into());
        }
        if line.kind == CHECKPOINT {
            self.check_signature(&line)?;
            (report.checkpoints, report.unsigned) = (report.checkpoints + 1, 0);
        } else {
            report.unsigned += 1;
        }
        if report.unsigned > self.checkpoint_every {
            return Err(format!(
                "no checkpoint stands here, though the header calls for one after {} records: the log was written anew",
                self.checkpoint_every
            ));
        }
        report.first_time.get_or_insert_with(|| line.time.to_owned());
        report.last_time = Some(line.time.to_owned());
        Ok(Receipt { seq: line.seq, hash: line.hash })
    }

    fn check_signature(&self, line: &Line<'_>) -> Result<(), String> {
        #[derive(serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Data {
            signature: String,
        }
        let data: Data =
            serde_json::from_str(line.data).map_err(|e| format!("the checkpoint is malformed: {e}"))?;
        let signature: [u8; 64] = unhex(&data.signature).ok_or("the checkpoint's signature is malformed")?;
        let signed = signed_bytes(&self.id, line.seq, &line.prev);
        self.key
            .verify(&signed, &signature)
            .map_err(|_| "the checkpoint's signature does not fit: the log was written anew".to_owned())
    }
}
