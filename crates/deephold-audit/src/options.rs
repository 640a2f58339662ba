//! How a log is written.

use std::time::Duration;

/// When a record counts as written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FsyncPolicy {
    /// On the disk: what was acknowledged survives a loss of power.
    Always,
    /// With the system: what was acknowledged survives the end of the process; the disk follows within this time, also
    /// under load.
    Interval(Duration),
    /// With the system, which decides about the disk.
    Never,
}

/// How a log is written.
#[derive(Clone, Debug)]
pub struct Options {
    /// When a record counts as written.
    pub fsync: FsyncPolicy,
    /// A segment of this size is followed by a new one.
    pub segment_bytes: u64,
    /// Ordinary records after which a signed checkpoint follows, 1 to 1,000,000. A new log's header records it; an existing
    /// log keeps its own.
    pub checkpoint_every: u64,
    /// A checkpoint follows after this time at the latest, so that the end of a quiet log is signed as well.
    pub checkpoint_after: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            fsync: FsyncPolicy::Always,
            segment_bytes: 64 << 20,
            checkpoint_every: 1000,
            checkpoint_after: Duration::from_secs(10),
        }
    }
}
