//! Answers that are kept for a while, so that a request which is sent again under the same idempotency key is answered again and not
//! computed twice.

use crate::StateError;

/// Kept answers of one API key at most; beyond that the oldest go.
pub const KEPT_MAX: u64 = 1_000;

/// A request that is about to be computed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The API key's id.
    pub key: String,
    /// What the caller calls the request.
    pub name: String,
    /// SHA-256 of what was asked.
    pub fingerprint: [u8; 32],
    /// Who computes it.
    pub replica: String,
    /// Milliseconds since 1970 after which whoever claimed it has failed.
    pub until_ms: i64,
}

/// An answer as it was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptAnswer {
    /// HTTP's status.
    pub status: u16,
    /// The media type.
    pub content_type: String,
    /// All bytes of the body.
    pub body: Vec<u8>,
}

/// What is known of a claimed request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claimed {
    /// Nothing: it is the caller's to compute.
    New,
    /// A replica computes it.
    Running {
        /// Which.
        replica: String,
    },
    /// It was answered.
    Answered(KeptAnswer),
    /// The same name stands for another request.
    Other,
}

/// Where kept answers lie. Each call is one transaction.
pub trait Answers: Send + Sync {
    /// Claims a request, or says what is known of it. What has expired is removed first.
    ///
    /// # Errors
    /// The store's.
    fn claim(&self, claim: &Claim, now_ms: i64) -> Result<Claimed, StateError>;

    /// Keeps the answer to a claimed request until a time.
    ///
    /// # Errors
    /// The store's.
    fn keep(&self, claim: &Claim, answer: &KeptAnswer, until_ms: i64) -> Result<(), StateError>;

    /// Gives a claim back: nothing came of it.
    ///
    /// # Errors
    /// The store's.
    fn release(&self, claim: &Claim) -> Result<(), StateError>;
}
