//! What can go wrong with the log.

use std::path::Path;
use std::sync::Arc;

use deephold_base::ErrorCode;

/// The log cannot be opened, written or read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AuditError {
    /// The system refused.
    #[error("cannot {action} the audit log's {file}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Name of the file, without its folder.
        file: String,
        /// Why.
        source: Arc<std::io::Error>,
    },
    /// Something in the folder is not what was written.
    #[error("the audit log is damaged at {file} line {line}: {problem}; see `deephold audit verify`")]
    Damaged {
        /// Which file.
        file: String,
        /// Which line, from 1; 0 for the file as a whole.
        line: u64,
        /// What is wrong.
        problem: String,
    },
    /// Another process writes the log.
    #[error("the audit log is open in another process")]
    Locked,
    /// A record beyond the bound.
    #[error("an audit record of {bytes} bytes is too large")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// Too many records wait to be written.
    #[error("the audit log cannot keep up")]
    Busy,
    /// The writer has ended.
    #[error("the audit log is closed")]
    Closed,
    /// Options that cannot work.
    #[error("audit log: {0}")]
    Options(String),
    /// No randomness, or a signing key that is none.
    #[error("the audit log's signing key cannot be used: {0}")]
    Key(&'static str),
}

impl AuditError {
    pub(crate) fn io(action: &'static str, path: &Path, source: std::io::Error) -> Self {
        let file = path.file_name().map_or_else(|| "folder".into(), |n| n.to_string_lossy().into_owned());
        Self::Io { action, file, source: Arc::new(source) }
    }

    pub(crate) fn named(action: &'static str, file: &str, source: std::io::Error) -> Self {
        Self::Io { action, file: file.to_owned(), source: Arc::new(source) }
    }

    pub(crate) fn damaged(file: &str, line: u64, problem: impl Into<String>) -> Self {
        Self::Damaged { file: file.to_owned(), line, problem: problem.into() }
    }

    /// The closed code that callers see.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Io { .. } => ErrorCode::Io,
            Self::Damaged { .. } | Self::Key(_) | Self::Options(_) => ErrorCode::InvalidInput,
            Self::Locked | Self::Busy => ErrorCode::Busy,
            Self::TooLarge { .. } => ErrorCode::LimitExceeded,
            Self::Closed => ErrorCode::Internal,
        }
    }
}
