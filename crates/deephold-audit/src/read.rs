//! Reading records, also while the log is being written.

use std::fs::File;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::AuditError;
use crate::format::segment_number;
use crate::lines::Lines;

/// A record as it was written.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Record {
    /// Its number, from 1.
    pub seq: u64,
    /// When, RFC 3339 in UTC.
    pub time: String,
    /// What kind of event.
    pub kind: String,
    /// The last record that was on the disk when this one was written.
    pub durable: u64,
    /// What happened.
    pub data: Value,
    /// The hash of the record before.
    pub prev: String,
    /// Its hash.
    pub hash: String,
}

/// Which records.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// From this number on.
    pub from_seq: Option<u64>,
    /// Below this number.
    pub before_seq: Option<u64>,
    /// Of this kind.
    pub kind: Option<String>,
    /// Of this tenant: `data.tenant`.
    pub tenant: Option<String>,
    /// Of this project: `data.project`.
    pub project: Option<String>,
    /// At this time or later: RFC 3339 in UTC, or the beginning of it, as a date is.
    pub since: Option<String>,
    /// Before this time.
    pub until: Option<String>,
    /// With this text anywhere in the line.
    pub text: Option<String>,
}

impl Filter {
    fn takes(&self, record: &Record, line: &str) -> bool {
        let of = |name, wanted: &Option<String>| {
            wanted.as_ref().is_none_or(|w| record.data.get(name).and_then(Value::as_str) == Some(w))
        };
        self.from_seq.is_none_or(|s| record.seq >= s)
            && self.before_seq.is_none_or(|s| record.seq < s)
            && self.kind.as_ref().is_none_or(|k| record.kind == *k)
            && of("tenant", &self.tenant)
            && of("project", &self.project)
            // Times are written alike, so that their order is that of their texts.
            && self.since.as_ref().is_none_or(|t| record.time.as_str() >= t.as_str())
            && self.until.as_ref().is_none_or(|t| record.time.as_str() < t.as_str())
            && self.text.as_ref().is_none_or(|t| line.contains(t.as_str()))
    }
}

/// Reads the records of a folder; says nothing about whether they are genuine.
pub struct Reader {
    dir: PathBuf,
}

impl Reader {
    /// Over a folder.
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// Calls `visit` for each record that the filter takes, with its line, until it says false.
    ///
    /// # Errors
    /// The folder cannot be read. Lines that are no records are left out: that is for verification to tell.
    pub fn each(
        &self,
        filter: &Filter,
        visit: &mut dyn FnMut(Record, &str) -> bool,
    ) -> Result<(), AuditError> {
        for path in segments(&self.dir)? {
            if !segment(&path, filter, visit)? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// The newest records first, at most `limit`.
    ///
    /// # Errors
    /// As [`Self::each`].
    pub fn newest(&self, filter: &Filter, limit: usize) -> Result<Vec<Record>, AuditError> {
        let mut out: Vec<Record> = Vec::new();
        for path in segments(&self.dir)?.into_iter().rev() {
            let mut found = std::collections::VecDeque::new();
            segment(&path, filter, &mut |record, _| {
                found.push_back(record);
                if found.len() > limit - out.len() {
                    found.pop_front();
                }
                true
            })?;
            out.extend(found.into_iter().rev());
            if out.len() >= limit {
                break;
            }
        }
        Ok(out)
    }

    /// One record.
    ///
    /// # Errors
    /// As [`Self::each`].
    pub fn get(&self, seq: u64) -> Result<Option<Record>, AuditError> {
        let filter = Filter { from_seq: Some(seq), before_seq: seq.checked_add(1), ..Filter::default() };
        let mut found = None;
        self.each(&filter, &mut |record, _| {
            found = Some(record);
            false
        })?;
        Ok(found)
    }
}

fn segment(
    path: &Path,
    filter: &Filter,
    visit: &mut dyn FnMut(Record, &str) -> bool,
) -> Result<bool, AuditError> {
    let file = File::open(path).map_err(|e| AuditError::io("open", path, e))?;
    let mut lines = Lines::new(file);
    // A last line without its end is still being written.
    while let Some(line) = lines.next().map_err(|e| AuditError::io("read", path, e))?.filter(|l| l.whole) {
        let Ok(text) = std::str::from_utf8(line.bytes) else { continue };
        // Cheaper than parsing what the filter will not take.
        if filter.text.as_ref().is_some_and(|t| !text.contains(t.as_str())) {
            continue;
        }
        let Ok(record) = serde_json::from_str::<Record>(text) else { continue };
        if filter.takes(&record, text) && !visit(record, text) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The segments in their order.
fn segments(dir: &Path) -> Result<Vec<PathBuf>, AuditError> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|e| AuditError::io("read", dir, e))? {
        let entry = entry.map_err(|e| AuditError::io("read", dir, e))?;
        if let Some(number) = entry.file_name().to_str().and_then(segment_number) {
            found.push((number, entry.path()));
        }
    }
    found.sort();
    Ok(found.into_iter().map(|f| f.1).collect())
}
