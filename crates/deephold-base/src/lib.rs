//! Ids, units, clock and error codes that every layer shares.
//!
//! Every crate calls it; it calls nobody, does no I/O beyond reading the system's clock, and knows no domain.

mod clock;
mod error;
mod units;

pub use clock::{Clock, ManualClock, SystemClock};
pub use error::ErrorCode;
pub use units::{day_number, human_bytes, human_count, human_duration, rfc3339, utc_day};

/// A token of a vocabulary.
pub type TokenId = u32;
