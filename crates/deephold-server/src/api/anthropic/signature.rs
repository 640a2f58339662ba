//! Signatures of thinking: a block that comes back was thought here, unchanged.

use aws_lc_rs::hmac;
use deephold_audit::{hex, unhex};

fn key(secret: &[u8; 32]) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, secret)
}

/// HMAC-SHA256 of the text, in hex.
pub(super) fn sign(secret: &[u8; 32], thinking: &str) -> String {
    hex(hmac::sign(&key(secret), thinking.as_bytes()).as_ref())
}

/// Whether it is the text's.
pub(super) fn verify(secret: &[u8; 32], thinking: &str, signature: &str) -> bool {
    let bytes: Option<[u8; 32]> = unhex(signature);
    bytes.is_some_and(|bytes| hmac::verify(&key(secret), thinking.as_bytes(), &bytes).is_ok())
}
