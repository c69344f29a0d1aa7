use std::{
    sync::LazyLock,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use crate::domain::clock::{Clock, Timestamp};

/// The first reading of the clock, monotonic and wall.
static BEGIN: LazyLock<(Instant, Timestamp)> = LazyLock::new(|| (Instant::now(), time_of_day()));

fn time_of_day() -> Timestamp {
    // A clock before 1970 reads as 1970.
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

/// The system clock: wall time, and a monotonic time anchored at it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        time_of_day()
    }

    fn steady(&self) -> Timestamp {
        let (begin, at) = *BEGIN;
        at.plus(begin.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_reads_a_plausible_time() {
        assert!(SystemClock.now() > Timestamp(1_700_000_000_000_000));
        let steady = SystemClock.steady();
        assert!(steady > Timestamp(1_700_000_000_000_000) && SystemClock.steady() >= steady);
    }
}
