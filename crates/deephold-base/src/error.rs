//! The closed list of what can go wrong, as callers see it.

/// Why something was refused or failed. Exit codes and HTTP statuses are derived from it at the edge.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorCode {
    /// A file, request or argument is malformed.
    InvalidInput,
    /// Something that was named does not exist.
    NotFound,
    /// Well-formed, but this build cannot do it.
    Unsupported,
    /// A prompt or a request exceeds a limit that is known at start.
    LimitExceeded,
    /// Not enough memory.
    OutOfMemory,
    /// A queue is full; try again later.
    Busy,
    /// The caller went away or pressed Ctrl-C.
    Cancelled,
    /// A deadline passed.
    DeadlineExceeded,
    /// The operating system refused a read or write.
    Io,
    /// A defect of ours.
    Internal,
}

impl ErrorCode {
    /// Its name for programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::InvalidInput => "invalid_input",
            Self::NotFound => "not_found",
            Self::Unsupported => "unsupported",
            Self::LimitExceeded => "limit_exceeded",
            Self::OutOfMemory => "out_of_memory",
            Self::Busy => "busy",
            Self::Cancelled => "cancelled",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::Io => "io",
            Self::Internal => "internal",
        }
    }

    /// The process exit code (sysexits.h where it has one).
    pub fn exit_code(self) -> u8 {
        match self {
            Self::InvalidInput | Self::LimitExceeded => 65,
            Self::NotFound => 66,
            Self::Unsupported => 69,
            Self::Busy | Self::DeadlineExceeded => 75,
            Self::OutOfMemory => 71,
            Self::Cancelled => 130,
            Self::Io => 74,
            Self::Internal => 70,
        }
    }
}
