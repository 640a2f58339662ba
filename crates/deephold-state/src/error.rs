//! What can go wrong with the store.

use deephold_base::ErrorCode;

/// The store cannot be opened, read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// The system refused.
    #[error("cannot {action} the state's database: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// The database refused, or is none.
    #[error("the state's database: {0}; restore it from a backup, or move it away to begin anew")]
    Database(#[from] rusqlite::Error),
    /// A database on another machine that does not answer, or refuses.
    #[error("the state's database does not answer: {0}")]
    Unavailable(String),
    /// An address that is no good.
    #[error("the address of the state's database {0}")]
    Address(String),
    /// A database that a newer program has written.
    #[error(
        "the state's database has format {found}, this program knows up to {known}; use the newer program"
    )]
    Newer {
        /// Its format.
        found: i64,
        /// The newest that this program knows.
        known: i64,
    },
    /// A backup that cannot be trusted.
    #[error("line {line} of the backup {problem}")]
    Backup {
        /// From 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// A store that holds something already.
    #[error("the state is not empty; restore into an empty one, so that nothing is lost")]
    NotEmpty,
    /// A stored value that this program does not write.
    #[error("the state's database holds a {what} that is none: {value}")]
    Value {
        /// What it should be.
        what: &'static str,
        /// What it is.
        value: String,
    },
}

impl StateError {
    /// The closed code that callers see.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Io { .. } | Self::Unavailable(_) => ErrorCode::Io,
            Self::Newer { .. } => ErrorCode::Unsupported,
            Self::Database(_)
            | Self::Value { .. }
            | Self::Backup { .. }
            | Self::NotEmpty
            | Self::Address(_) => ErrorCode::InvalidInput,
        }
    }
}
