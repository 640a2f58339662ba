//! What can be wrong with weight files, in one enum.

use std::path::{Path, PathBuf};

use deephold_base::ErrorCode;
use deephold_quant::QuantError;

/// Why weights could not be read, checked or written.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The problem lies in this file.
    #[error("{}: {source}", path.display())]
    InFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<WeightsError>,
    },
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// `open`, `read`, `write` ...
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What it said.
        source: std::io::Error,
    },
    /// Something that was named is not there.
    #[error("{what} is not there; {hint}")]
    NotFound {
        /// What was looked for, with its place.
        what: String,
        /// What to do.
        hint: String,
    },
    /// The file ends before what it announces.
    #[error(
        "{what} needs {need} bytes, the file has {have} left: it is truncated or corrupt; fetch it again"
    )]
    Truncated {
        /// What was being read.
        what: String,
        /// Bytes announced.
        need: u64,
        /// Bytes there.
        have: u64,
    },
    /// The bytes contradict the format or each other.
    #[error("{what} {problem}")]
    Malformed {
        /// Tensor, key or part of the file.
        what: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Well-formed, but beyond what this build reads or writes.
    #[error("{what} is {found}; {hint}")]
    Unsupported {
        /// Tensor, key or part of the file.
        what: String,
        /// Its type or value.
        found: String,
        /// What to do.
        hint: String,
    },
    /// A tensor's values could not be converted.
    #[error("tensor `{tensor}`: {source}")]
    Values {
        /// Its name.
        tensor: String,
        /// Why.
        source: QuantError,
    },
    /// A tensor holds NaN or an infinity.
    #[error(
        "tensor `{tensor}` holds {value} at element {index}: the file is damaged or its training diverged"
    )]
    NotFinite {
        /// Its name.
        tensor: String,
        /// Position of the first such value.
        index: usize,
        /// The value.
        value: f32,
    },
    /// The caller asked to stop.
    #[error("cancelled")]
    Cancelled,
}

impl WeightsError {
    /// The closed code that exit codes and statuses come from.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::InFile { source, .. } => source.code(),
            Self::Io { source, .. } => match source.kind() {
                std::io::ErrorKind::NotFound => ErrorCode::NotFound,
                std::io::ErrorKind::OutOfMemory => ErrorCode::OutOfMemory,
                _ => ErrorCode::Io,
            },
            Self::NotFound { .. } => ErrorCode::NotFound,
            Self::Truncated { .. } | Self::Malformed { .. } | Self::NotFinite { .. } => {
                ErrorCode::InvalidInput
            }
            Self::Unsupported { .. } => ErrorCode::Unsupported,
            Self::Values { source, .. } => source.code(),
            Self::Cancelled => ErrorCode::Cancelled,
        }
    }

    /// Says which file it is about.
    pub(crate) fn in_file(self, path: &Path) -> Self {
        Self::InFile { path: path.to_owned(), source: Box::new(self) }
    }

    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }

    pub(crate) fn malformed(what: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Malformed { what: what.into(), problem: problem.into() }
    }

    pub(crate) fn unsupported(
        what: impl Into<String>,
        found: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self::Unsupported { what: what.into(), found: found.into(), hint: hint.into() }
    }
}

/// A name from a file as an error message may show it: one line, bounded.
pub(crate) fn shown(name: &str) -> String {
    let head: String = name.chars().take(120).map(|c| if c.is_control() { '?' } else { c }).collect();
    if head.len() < name.len() { format!("{head}...") } else { head }
}
