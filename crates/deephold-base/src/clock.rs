//! The only place that reads time, so that schedulers can be simulated.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Monotonic time since an arbitrary origin.
pub trait Clock: Send + Sync {
    /// Time since the clock's origin; never goes back.
    fn now(&self) -> Duration;

    /// Time since 1970 (UTC), for records and calendars; may jump when someone sets the system's clock.
    fn unix_time(&self) -> Duration;

    /// The same in whole milliseconds, as databases and the wire hold it.
    fn unix_ms(&self) -> i64 {
        i64::try_from(self.unix_time().as_millis()).unwrap_or(i64::MAX)
    }
}

/// The machine's monotonic clock, its origin the moment it was made.
#[derive(Clone, Debug)]
pub struct SystemClock(Instant);

impl Default for SystemClock {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }

    fn unix_time(&self) -> Duration {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
    }
}

/// A clock that tests move by hand; clones share one time.
#[derive(Clone, Debug, Default)]
pub struct ManualClock(Arc<AtomicU64>);

impl ManualClock {
    /// Moves time forward by `by`.
    pub fn advance(&self, by: Duration) {
        let nanos = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
        self.0.fetch_add(nanos, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::SeqCst))
    }

    fn unix_time(&self) -> Duration {
        self.now()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_clock_moves_only_by_hand() {
        let clock = ManualClock::default();
        let other = clock.clone();
        assert_eq!(clock.now(), Duration::ZERO);
        other.advance(Duration::from_millis(5));
        assert_eq!(clock.now(), Duration::from_millis(5));
    }
}
