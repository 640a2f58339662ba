//! Everything in a store as a stream of records: for backups, and for moving from one database to another.
//!
//! A backup is JSON in lines: a head, the records, and an end that counts them and holds SHA-256 of all lines before it. It holds the
//! hashes of keys, never a secret, and names of tenants and owners.

use std::io::{BufRead, Write};

use deephold_base::rfc3339;
use sha2::{Digest, Sha256};

use crate::{ApiKey, Project, SpendingRow, StateError, Tenant, UsageRow};

/// The form of a backup; readers refuse others.
const FORMAT: u32 = 1;
/// Bytes of a line at most.
const LINE_MAX: u64 = 1 << 20;

/// One thing that a store holds.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Record {
    /// A tenant.
    Tenant(Tenant),
    /// A project.
    Project(Project),
    /// A key, with SHA-256 of its secret in hex.
    Key {
        /// As it is stored.
        key: ApiKey,
        /// The hash.
        hash: String,
    },
    /// Usage of one replica.
    Usage {
        /// Which.
        replica: String,
        /// How much.
        row: UsageRow,
    },
    /// Spending of one replica.
    Spending(SpendingRow),
}

/// How many of each a store or a backup holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Contents {
    /// Tenants.
    pub tenants: u64,
    /// Projects.
    pub projects: u64,
    /// Keys, also those that hold no more.
    pub keys: u64,
    /// Rows of usage.
    pub usage_rows: u64,
    /// Rows of spending.
    pub spending_rows: u64,
}

impl Contents {
    pub(crate) fn count(&mut self, record: &Record) {
        *match record {
            Record::Tenant(_) => &mut self.tenants,
            Record::Project(_) => &mut self.projects,
            Record::Key { .. } => &mut self.keys,
            Record::Usage { .. } => &mut self.usage_rows,
            Record::Spending(_) => &mut self.spending_rows,
        } += 1;
    }
}

/// A store that can be written out and read back whole.
pub trait Archive: Send + Sync {
    /// All records of one moment, each after what it refers to.
    ///
    /// # Errors
    /// The store's.
    fn export(&self) -> Result<Vec<Record>, StateError>;

    /// Fills an empty store, all or nothing.
    ///
    /// # Errors
    /// The store's; one that is not empty; records that contradict each other.
    fn import(&self, records: &[Record]) -> Result<(), StateError>;

    /// What is wrong with the content: damaged pages, broken references, values that this program does not write. Empty where all
    /// is well.
    ///
    /// # Errors
    /// The store's, where it cannot be read at all.
    fn check(&self) -> Result<Vec<String>, StateError>;
}

#[derive(serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    DeepholdState { format: u32, program: String, taken: String },
    Record(Box<Record>),
    End { contents: Contents, sha256: String },
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The bytes of a hash in hex.
fn hash_of(text: &str) -> Result<[u8; 32], StateError> {
    let bad = || StateError::Value { what: "hash of a key", value: "no 64 digits of hex".into() };
    if text.len() != 64 || !text.is_ascii() {
        return Err(bad());
    }
    let mut hash = [0; 32];
    for (i, byte) in hash.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).map_err(|_| bad())?;
    }
    Ok(hash)
}

impl Record {
    /// A key's record.
    pub(crate) fn of_key(key: ApiKey) -> Self {
        let hash = hex(&key.hash);
        Self::Key { key, hash }
    }
}

/// Writes a store's records as a backup.
///
/// # Errors
/// The store's and the writer's.
pub fn write_backup(
    store: &dyn Archive,
    program: &str,
    now_ms: i64,
    out: &mut dyn Write,
) -> Result<Contents, StateError> {
    let io = |source| StateError::Io { action: "write a backup of", source };
    let mut digest = Sha256::new();
    let mut put = |line: &Line, digest: Option<&mut Sha256>| {
        let mut text = serde_json::to_string(line).map_err(|e| io(e.into()))?;
        text.push('\n');
        if let Some(digest) = digest {
            digest.update(text.as_bytes());
        }
        out.write_all(text.as_bytes()).map_err(io)
    };
    let taken = rfc3339(std::time::Duration::from_millis(now_ms.unsigned_abs()));
    put(&Line::DeepholdState { format: FORMAT, program: program.to_owned(), taken }, Some(&mut digest))?;
    let mut contents = Contents::default();
    for record in store.export()? {
        contents.count(&record);
        put(&Line::Record(Box::new(record)), Some(&mut digest))?;
    }
    let sha256 = hex(&digest.finalize());
    put(&Line::End { contents, sha256 }, None)?;
    out.flush().map_err(io)?;
    Ok(contents)
}

/// Reads a backup whole and checks it against its end.
///
/// # Errors
/// The reader's; a file that is no backup, is damaged, incomplete, or of another form.
pub fn read_backup(input: &mut dyn BufRead) -> Result<(Vec<Record>, Contents), StateError> {
    let io = |source| StateError::Io { action: "read a backup of", source };
    let (mut digest, mut records, mut contents) = (Sha256::new(), Vec::new(), Contents::default());
    for number in 1.. {
        let bad = |problem: String| StateError::Backup { line: number, problem };
        let mut text = String::new();
        std::io::Read::take(&mut *input, LINE_MAX).read_line(&mut text).map_err(io)?;
        if text.is_empty() {
            return Err(bad("is missing: the file was cut off".into()));
        }
        let line = serde_json::from_str(&text).map_err(|e| bad(format!("cannot be read: {e}")))?;
        match (number, line) {
            (1, Line::DeepholdState { format: FORMAT, .. }) => {}
            (1, Line::DeepholdState { format, .. }) => {
                return Err(bad(format!("says format {format}; this program reads {FORMAT}")));
            }
            (1, _) => return Err(bad("begins no backup".into())),
            (_, Line::Record(mut record)) => {
                if let Record::Key { key, hash } = &mut *record {
                    key.hash = hash_of(hash)?;
                }
                contents.count(&record);
                records.push(*record);
            }
            (_, Line::End { contents: told, sha256 }) => {
                if told != contents || sha256 != hex(&digest.finalize()) {
                    return Err(bad("contradicts the lines before it: the file was changed".into()));
                }
                return Ok((records, contents));
            }
            (_, Line::DeepholdState { .. }) => return Err(bad("begins a second backup".into())),
        }
        digest.update(text.as_bytes());
    }
    Err(StateError::Backup { line: 0, problem: "has no end".into() })
}
