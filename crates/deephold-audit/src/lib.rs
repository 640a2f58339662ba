//! The audit log of record: append-only, hash-chained, signed at checkpoints.
//!
//! A folder of segments `audit-00000001.jsonl`, `audit-00000002.jsonl`, …, one record a line:
//!
//! ```text
//! {"seq":1,"time":"2026-11-24T06:30:00.123Z","kind":"request","data":{…},"prev":"<64 hex>","hash":"<64 hex>"}
//! ```
//!
//! `hash` is SHA-256 over `deephold audit 1`, a zero byte, the 32 bytes of `prev`, and the line's bytes before `,"hash":`.
//! The first record's `prev` is SHA-256 of the log's id in `log.json`. Whoever edits, deletes or reorders records has to
//! compute every later hash anew, and the signed ones in `checkpoints.jsonl` then no longer match:
//!
//! ```text
//! {"seq":1000,"hash":"<64 hex>","time":"…","signature":"<128 hex>"}
//! ```
//!
//! a signature (Ed25519) over `deephold audit checkpoint 1`, a zero byte, the log's id, a zero byte, `seq` as eight bytes
//! (big endian) and the 32 bytes of `hash`. A log and its checkpoints cut off together are caught by a head that was
//! written down elsewhere: see [`VerifyOptions::expected_head`].

mod error;
mod log;
mod read;
mod verify;

#[cfg(test)]
mod tests;

pub use error::AuditError;
pub use log::{AuditLog, FsyncPolicy, Options, Receipt};
pub use read::{Filter, Reader, Record};
pub use verify::{Problem, VerifyOptions, VerifyReport, verify};

use std::fmt::Write;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// A SHA-256.
pub type Hash = [u8; 32];

/// The longest line that is written or read.
const MAX_LINE: usize = 16 << 20;

const TAIL: &str = ",\"hash\":\"";

/// What `log.json` holds.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct LogFile {
    format: u32,
    id: String,
    /// Ed25519, hex.
    public_key: String,
}

/// A line of `checkpoints.jsonl`.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Checkpoint {
    seq: u64,
    hash: String,
    time: String,
    signature: String,
}

fn chain(prev: &Hash, before_hash: &[u8]) -> Hash {
    let mut hasher = Sha256::new();
    hasher.update(b"deephold audit 1\0");
    hasher.update(prev);
    hasher.update(before_hash);
    hasher.finalize().into()
}

fn genesis(id: &str) -> Hash {
    Sha256::digest(id.as_bytes()).into()
}

fn signed_bytes(id: &str, seq: u64, hash: &Hash) -> Vec<u8> {
    let mut out = b"deephold audit checkpoint 1\0".to_vec();
    out.extend_from_slice(id.as_bytes());
    out.push(0);
    out.extend_from_slice(&seq.to_be_bytes());
    out.extend_from_slice(hash);
    out
}

/// Bytes as hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, b| {
        let _ = write!(out, "{b:02x}");
        out
    })
}

/// Hex of exactly `N` bytes; `None` for anything else.
pub fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let text = text.as_bytes();
    if text.len() != 2 * N {
        return None;
    }
    let digit = |b: u8| (b as char).to_digit(16).filter(|_| !b.is_ascii_uppercase());
    let mut out = [0; N];
    for (i, byte) in out.iter_mut().enumerate() {
        *byte = (digit(text[2 * i])? << 4 | digit(text[2 * i + 1])?) as u8;
    }
    Some(out)
}

/// A line taken apart: sequence, prev, hash. Only the fields' places are trusted, not their content.
struct Parsed {
    seq: u64,
    prev: Hash,
    hash: Hash,
    /// What the hash covers.
    covered: usize,
}

/// Splits a line without its newline.
fn parse_line(line: &[u8]) -> Result<Parsed, &'static str> {
    let text = std::str::from_utf8(line).map_err(|_| "is not UTF-8")?;
    let at = text.rfind(TAIL).ok_or("has no hash")?;
    let rest = &text[at + TAIL.len()..];
    let hash = rest.strip_suffix("\"}").and_then(unhex).ok_or("has a malformed hash")?;
    let before = &text[..at];
    let prev = before.rfind(",\"prev\":\"").ok_or("has no prev")?;
    let prev = before[prev + 9..].strip_suffix('"').and_then(unhex).ok_or("has a malformed prev")?;
    let digits = text.strip_prefix("{\"seq\":").ok_or("does not begin with its number")?;
    let digits = digits.split_once(',').ok_or("does not begin with its number")?.0;
    let seq = digits.parse().map_err(|_| "does not begin with its number")?;
    Ok(Parsed { seq, prev, hash, covered: at })
}

fn segment_name(number: u32) -> String {
    format!("audit-{number:08}.jsonl")
}

/// The segments in their order, and their numbers.
fn segments(dir: &Path) -> Result<Vec<(u32, PathBuf)>, AuditError> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|e| AuditError::io("read", dir, e))? {
        let entry = entry.map_err(|e| AuditError::io("read", dir, e))?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|n| n.strip_prefix("audit-")?.strip_suffix(".jsonl"));
        if let Some(number) = number.filter(|n| n.len() == 8).and_then(|n| n.parse().ok()) {
            found.push((number, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}
