//! The clock of the system.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::domain::clock::{Clock, Timestamp};

/// Reads the time of day; a step of the system's clock shows.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        // A clock before 1970 reads as 1970.
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_reads_a_plausible_time() {
        assert!(SystemClock.now() > Timestamp(1_700_000_000_000_000));
    }
}
