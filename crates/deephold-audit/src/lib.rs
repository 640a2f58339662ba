//! The audit log of record: append-only, hash-chained, signed.
//!
//! The binary and the server write to it what must be provable later; auditors verify it with a public key that they keep
//! themselves. It never decides what is recorded, never deletes a record, and knows nothing of HTTP, tenants or models.
//!
//! # Format
//! A folder with a header, `log.json`, and segments `audit-00000001.jsonl`, `audit-00000002.jsonl`, …, one record a line:
//!
//! ```text
//! {"seq":7,"time":"2026-11-24T06:30:00.123Z","kind":"request","durable":6,"data":{…},"prev":"<64 hex>","hash":"<64 hex>"}
//! ```
//!
//! `hash` is SHA-256 over `deephold audit 2`, a zero byte, the 32 bytes of `prev`, and the line's bytes before `,"hash":`.
//! The first record's `prev` is SHA-256 over `deephold audit header 2`, a zero byte, and the header's bytes. So whoever
//! edits, deletes or reorders records, or changes the header, has to compute every later hash anew.
//!
//! That is of no use without the signing key: the header says after how many ordinary records a **checkpoint** stands at
//! the latest, a record like the others (so it cannot be taken out) whose data are an Ed25519 signature over
//! `deephold audit checkpoint 2`, a zero byte, the log's id, a zero byte, its own `seq` as eight bytes (big endian) and the
//! 32 bytes of its `prev`. The key lies apart from the log ([`SigningKey`]), and [`verify`] takes the public key from its
//! caller, not from the log.
//!
//! What no log can show by itself is that its end was cut off. A head that was written down elsewhere ([`AuditLog::head`])
//! shows it.
//!
//! # Crashes
//! `durable` is the last record that was on the disk when the line was written. After a loss of power the end of the last
//! segment may be torn, with holes where a batch did not reach the disk whole. Such an end was never acknowledged (under
//! [`FsyncPolicy::Always`]); it is cut off, its first 64 MiB are kept in a file `torn-00000007-1.bin` (for record 7), and a
//! record of kind `repair` holds its length, its SHA-256 and that name. A damaged record that a later one calls durable was
//! changed afterwards: then the log is refused, by name.
//!
//! A segment that is deleted while it is written is written anew from the open file at the next sync, before anything is
//! acknowledged, and a record of kind `repair` names it; where another file stands in its place, nothing more is acknowledged.

mod error;
mod format;
mod key;
mod lines;
mod log;
mod options;
mod read;
mod storage;
mod verify;
mod writer;

#[cfg(test)]
mod tests;

pub use error::AuditError;
pub use format::{Hash, Receipt, hex, unhex};
pub use key::{SigningKey, read_public_key};
pub use log::AuditLog;
pub use options::{FsyncPolicy, Options};
pub use read::{Filter, Reader, Record};
pub use storage::{create_private_dir, create_private_file, write_private};
pub use verify::{Finding, VerifyReport, verify};
