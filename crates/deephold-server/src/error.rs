//! Why the server cannot start or go on.

use deephold_audit::AuditError;
use deephold_base::ErrorCode;
use deephold_state::StateError;

/// A failure of the server itself; what callers of the API are told is `api::error`'s.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// The address cannot be had.
    #[error("cannot listen at {address}: {source}")]
    Bind {
        /// Which.
        address: String,
        /// Why.
        source: std::io::Error,
    },
    /// Plain HTTP beyond this machine.
    #[error(
        "{0} is reached by other machines, and this server speaks plain HTTP: keys and prompts would be readable on the way; say --tls, or put a proxy with TLS before it and say --insecure-http"
    )]
    Plaintext(std::net::SocketAddr),
    /// A record from which nothing can be computed again.
    #[error("the record {0}")]
    Record(String),
    /// Certificates and keys that do not fit.
    #[error("TLS: {0}")]
    Tls(String),
    /// The audit log.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// The store.
    #[error(transparent)]
    State(#[from] StateError),
    /// The system.
    #[error("cannot {action}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// A secret could not be made.
    #[error("the system gives no randomness")]
    Random,
}

impl ServerError {
    /// The closed code that callers see.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Audit(e) => e.code(),
            Self::State(e) => e.code(),
            Self::Plaintext(_) | Self::Tls(_) | Self::Record(_) => ErrorCode::InvalidInput,
            Self::Bind { .. } | Self::Io { .. } | Self::Random => ErrorCode::Io,
        }
    }
}
