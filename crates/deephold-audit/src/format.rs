//! The bytes of the log: lines, hashes, signatures, names.

use std::fmt::Write;

use sha2::{Digest, Sha256};

/// A SHA-256.
pub type Hash = [u8; 32];

/// The longest line that is written or read.
pub(crate) const MAX_LINE: usize = 16 << 20;
/// The largest header that is read.
pub(crate) const MAX_HEADER: usize = 4096;
/// Ordinary records between two checkpoints at most; more would make a header's word on cadence worthless.
pub(crate) const CHECKPOINT_EVERY_MAX: u64 = 1_000_000;

/// The header's file.
pub(crate) const HEADER: &str = "log.json";
/// The kind of a record that is a checkpoint.
pub(crate) const CHECKPOINT: &str = "checkpoint";
/// The kind of a record that tells of a repair.
pub(crate) const REPAIR: &str = "repair";

const TAIL: &str = ",\"hash\":\"";

/// Where a record stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Its number, from 1.
    pub seq: u64,
    /// Its hash.
    pub hash: Hash,
}

/// What `log.json` holds. The first record's `prev` is the hash of these bytes, so none of it can be changed later.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Header {
    pub(crate) format: u32,
    /// 128 random bits, hex: signatures of one log do not fit another.
    pub(crate) id: String,
    /// Ed25519, hex.
    pub(crate) public_key: String,
    /// After so many ordinary records a checkpoint follows at the latest.
    pub(crate) checkpoint_every: u64,
}

impl Header {
    pub(crate) const FORMAT: u32 = 2;

    /// From the file's bytes, with the hash that the first record continues.
    pub(crate) fn parse(bytes: &[u8]) -> Result<(Self, Hash), String> {
        let header: Self = serde_json::from_slice(bytes).map_err(|e| format!("is malformed: {e}"))?;
        if header.format != Self::FORMAT {
            return Err(format!("has format {}; this program knows {}", header.format, Self::FORMAT));
        }
        if header.checkpoint_every == 0 || header.checkpoint_every > CHECKPOINT_EVERY_MAX {
            let every = header.checkpoint_every;
            return Err(format!("has checkpoint_every = {every}, which must be 1..={CHECKPOINT_EVERY_MAX}"));
        }
        Ok((header, genesis(bytes)))
    }
}

pub(crate) fn genesis(header: &[u8]) -> Hash {
    let mut hasher = Sha256::new();
    hasher.update(b"deephold audit header 2\0");
    hasher.update(header);
    hasher.finalize().into()
}

pub(crate) fn chain(prev: &Hash, before_hash: &[u8]) -> Hash {
    let mut hasher = Sha256::new();
    hasher.update(b"deephold audit 2\0");
    hasher.update(prev);
    hasher.update(before_hash);
    hasher.finalize().into()
}

/// What a checkpoint's signature covers: the log, the checkpoint's own number and the hash of the record before it.
pub(crate) fn signed_bytes(id: &str, seq: u64, prev: &Hash) -> Vec<u8> {
    let mut out = b"deephold audit checkpoint 2\0".to_vec();
    out.extend_from_slice(id.as_bytes());
    out.push(0);
    out.extend_from_slice(&seq.to_be_bytes());
    out.extend_from_slice(prev);
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

/// One record to be written.
pub(crate) struct NewRecord<'a> {
    pub(crate) time: &'a str,
    pub(crate) kind: &'a str,
    /// The last record that was on the disk when this one was written.
    pub(crate) durable: u64,
    /// JSON.
    pub(crate) data: &'a str,
}

/// Appends the record's line behind `head`; gives the new head.
pub(crate) fn append_line(out: &mut Vec<u8>, head: &Receipt, record: &NewRecord<'_>) -> Receipt {
    let (seq, start) = (head.seq + 1, out.len());
    let NewRecord { time, kind, durable, data } = record;
    let prev = hex(&head.hash);
    let line = format!(
        "{{\"seq\":{seq},\"time\":\"{time}\",\"kind\":\"{kind}\",\"durable\":{durable},\"data\":{data},\"prev\":\"{prev}\""
    );
    out.extend_from_slice(line.as_bytes());
    let hash = chain(&head.hash, &out[start..]);
    out.extend_from_slice(format!("{TAIL}{}\"}}\n", hex(&hash)).as_bytes());
    Receipt { seq, hash }
}

/// A line taken apart. Only the fields' places are trusted, not their content.
pub(crate) struct Line<'a> {
    pub(crate) seq: u64,
    pub(crate) time: &'a str,
    pub(crate) kind: &'a str,
    pub(crate) durable: u64,
    pub(crate) data: &'a str,
    pub(crate) prev: Hash,
    pub(crate) hash: Hash,
    /// Whether `hash` is that of the line and `prev`.
    pub(crate) is_consistent: bool,
}

impl<'a> Line<'a> {
    /// Splits a line without its newline.
    pub(crate) fn parse(line: &'a [u8]) -> Result<Self, &'static str> {
        let text = std::str::from_utf8(line).map_err(|_| "is not UTF-8")?;
        let at = text.rfind(TAIL).ok_or("has no hash")?;
        let hash =
            text[at + TAIL.len()..].strip_suffix("\"}").and_then(unhex).ok_or("has a malformed hash")?;
        let before = &text[..at];
        const PREV: &str = ",\"prev\":\"";
        let prev_at = before.rfind(PREV).ok_or("has no prev")?;
        let prev =
            before[prev_at + PREV.len()..].strip_suffix('"').and_then(unhex).ok_or("has a malformed prev")?;
        // The fields before the data cannot contain what separates them.
        let rest = text.strip_prefix("{\"seq\":").ok_or("does not begin with its number")?;
        let (seq, rest) = rest.split_once(",\"time\":\"").ok_or("has no time")?;
        let (time, rest) = rest.split_once("\",\"kind\":\"").ok_or("has no kind")?;
        let (kind, rest) = rest.split_once("\",\"durable\":").ok_or("does not say what was durable")?;
        let (durable, data) = rest.split_once(",\"data\":").ok_or("has no data")?;
        let data = data.get(..data.len().saturating_sub(text.len() - prev_at)).ok_or("has no data")?;
        let seq = seq.parse().map_err(|_| "does not begin with its number")?;
        let durable = durable.parse().map_err(|_| "does not say what was durable")?;
        let is_consistent = chain(&prev, &line[..at]) == hash;
        Ok(Self { seq, time, kind, durable, data, prev, hash, is_consistent })
    }
}

pub(crate) fn segment_name(number: u32) -> String {
    format!("audit-{number:08}.jsonl")
}

/// Where the `nth` torn end is kept that was found in place of record `seq`.
pub(crate) fn torn_name(seq: u64, nth: u32) -> String {
    format!("torn-{seq:08}-{nth}.bin")
}

/// The number of a segment's file name.
pub(crate) fn segment_number(name: &str) -> Option<u32> {
    let digits = name.strip_prefix("audit-")?.strip_suffix(".jsonl")?;
    (digits.len() == 8).then(|| digits.parse().ok())?
}
