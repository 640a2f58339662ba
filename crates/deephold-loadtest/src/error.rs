//! What can go wrong before a load test begins.

use std::path::PathBuf;

use deephold_base::ErrorCode;

/// The load test cannot begin. What fails within it is counted, see [`Outcome`](crate::Outcome).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// An address that is none.
    #[error("`{url}` {problem}; write it as http://HOST:PORT or https://HOST:PORT")]
    Url {
        /// As it was given.
        url: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A trace that cannot be used.
    #[error("{}, line {line}: {problem}", path.display())]
    Trace {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: u64,
        /// What is wrong with it.
        problem: String,
    },
    /// A plan that cannot be kept to.
    #[error("{0}")]
    Plan(String),
    /// Certificates that cannot be used.
    #[error("{what}: {problem}")]
    Certificates {
        /// Whose they are.
        what: String,
        /// What is wrong with them.
        problem: String,
    },
    /// The server does not answer.
    #[error("{url} does not answer: {problem}")]
    Unreachable {
        /// What was asked.
        url: String,
        /// Why.
        problem: String,
    },
    /// The server refuses what the test would ask.
    #[error("{url} refuses a request of the test with status {status}: {message}")]
    Refused {
        /// What was asked.
        url: String,
        /// The HTTP status.
        status: u16,
        /// The server's words, shortened.
        message: String,
    },
    /// A file that cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl LoadError {
    /// The closed code that callers see.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => ErrorCode::NotFound,
            Self::Io { .. } | Self::Unreachable { .. } => ErrorCode::Io,
            Self::Url { .. }
            | Self::Trace { .. }
            | Self::Plan(_)
            | Self::Certificates { .. }
            | Self::Refused { .. } => ErrorCode::InvalidInput,
        }
    }
}
