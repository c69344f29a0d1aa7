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

/// The system clock for records, and for decisions a monotonic time anchored at the database's clock: windows, cool-downs
/// and deadlines that a process wrote mean the same to its successor on another machine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DatabaseClock {
    begin: Instant,
    at: Timestamp,
}

impl DatabaseClock {
    /// A clock for a database that read `at` between the instants `asked` and now.
    pub(crate) fn anchored(asked: Instant, at: Timestamp) -> Self {
        Self { begin: asked + asked.elapsed() / 2, at }
    }
}

impl Clock for DatabaseClock {
    fn now(&self) -> Timestamp {
        time_of_day()
    }

    fn steady(&self) -> Timestamp {
        self.at.plus(self.begin.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decisions_use_the_time_of_the_database() {
        let clock = DatabaseClock::anchored(Instant::now(), Timestamp(5));
        assert!(clock.steady() < Timestamp(60_000_000) && clock.now() > Timestamp(1_700_000_000_000_000));
        let first = clock.steady();
        assert!(first >= Timestamp(5) && clock.steady() >= first);
    }

    #[test]
    fn the_clock_reads_a_plausible_time() {
        assert!(SystemClock.now() > Timestamp(1_700_000_000_000_000));
        let steady = SystemClock.steady();
        assert!(steady > Timestamp(1_700_000_000_000_000) && SystemClock.steady() >= steady);
    }
}
