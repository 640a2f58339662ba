//! Reading records, also while the log is being written.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::{AuditError, MAX_LINE, segments};

/// A record as it was written.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Record {
    /// Its number, from 1.
    pub seq: u64,
    /// When, RFC 3339 in UTC.
    pub time: String,
    /// What kind of event.
    pub kind: String,
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
    /// With this text anywhere in the line.
    pub text: Option<String>,
}

impl Filter {
    fn takes(&self, record: &Record, line: &str) -> bool {
        self.from_seq.is_none_or(|s| record.seq >= s)
            && self.before_seq.is_none_or(|s| record.seq < s)
            && self.kind.as_ref().is_none_or(|k| record.kind == *k)
            && self
                .tenant
                .as_ref()
                .is_none_or(|t| record.data.get("tenant").and_then(Value::as_str) == Some(t))
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
        for (_, path) in segments(&self.dir)? {
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
        for (_, path) in segments(&self.dir)?.into_iter().rev() {
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
    let mut lines = BufReader::new(file);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = (&mut lines).take(MAX_LINE as u64 + 1).read_until(b'\n', &mut line);
        if read.map_err(|e| AuditError::io("read", path, e))? == 0 || line.pop() != Some(b'\n') {
            return Ok(true);
        }
        let Ok(text) = std::str::from_utf8(&line) else { continue };
        // Cheaper than parsing what the filter will not take.
        if filter.text.as_ref().is_some_and(|t| !text.contains(t.as_str())) {
            continue;
        }
        let Ok(record) = serde_json::from_str::<Record>(text) else { continue };
        if filter.takes(&record, text) && !visit(record, text) {
            return Ok(false);
        }
    }
}

/// The time of a line, wherever its data end.
pub(crate) fn time_of(line: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(line.get(..128.min(line.len()))?).ok()?;
    let at = text.find("\"time\":\"")? + 8;
    text.get(at..at + 24).map(str::to_owned)
}
