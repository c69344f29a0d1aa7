//! Decides when a thread that runs actors is stalled, and when only a restart of the process helps.

use std::time::Duration;

/// Limits by which heartbeats of threads are judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WatchdogLimits {
    /// Period of each thread's heartbeat and of the check. Default 1 s.
    pub every: Duration,
    /// Lag of a heartbeat at which its thread counts as stalled. Default 5 s.
    pub stalled_after: Duration,
    /// Lag of a heartbeat at which only a restart of the process helps. Default 60 s.
    pub dead_after: Duration,
}

impl Default for WatchdogLimits {
    /// Stalled after 5 s: no code of this service occupies a thread for a tenth of a second, and a busy or paused machine
    /// recovers in less. Dead after a minute, since a restart costs every other session its agent.
    fn default() -> Self {
        Self {
            every: Duration::from_secs(1),
            stalled_after: Duration::from_secs(5),
            dead_after: Duration::from_secs(60),
        }
    }
}

/// The result of a check of a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finding {
    Beats,
    /// The thread is newly found stalled.
    Stalled,
    StillStalled,
    /// The thread was stalled and beats again.
    Recovered,
}

impl WatchdogLimits {
    /// The lag of a thread whose last heartbeat was `since_beat` ago: the time beyond one period.
    pub(crate) fn lag(&self, since_beat: Duration) -> Duration {
        since_beat.saturating_sub(self.every)
    }

    /// Judges a thread by its lag and the result of the previous check.
    pub(crate) fn look(&self, was_stalled: bool, lag: Duration) -> Finding {
        match (was_stalled, lag >= self.stalled_after) {
            (false, false) => Finding::Beats,
            (false, true) => Finding::Stalled,
            (true, true) => Finding::StillStalled,
            (true, false) => Finding::Recovered,
        }
    }

    /// False if only a restart of the process helps: all threads are stalled, or one has been for `dead_after`.
    pub(crate) fn is_alive(&self, lags: &[Duration]) -> bool {
        let all_stalled = !lags.is_empty() && lags.iter().all(|lag| *lag >= self.stalled_after);
        !all_stalled && lags.iter().all(|lag| *lag < self.dead_after)
    }

    /// True if the previous check was so long ago that the whole process must have been stopped in between. The lags of
    /// its threads then mean nothing.
    pub(crate) fn was_stopped(&self, since_look: Duration) -> bool {
        since_look >= self.every + self.stalled_after / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn stall_and_recovery_are_each_found_once() {
        let limits = WatchdogLimits::default();
        assert_eq!(limits.look(false, 4 * SECOND), Finding::Beats);
        assert_eq!(limits.look(false, 5 * SECOND), Finding::Stalled);
        assert_eq!(limits.look(true, 9 * SECOND), Finding::StillStalled);
        assert_eq!(limits.look(true, SECOND), Finding::Recovered);
    }

    #[test]
    fn process_is_alive_with_one_thread_stalled_under_a_minute_not_with_all() {
        let limits = WatchdogLimits::default();
        assert!(limits.is_alive(&[]));
        assert!(limits.is_alive(&[59 * SECOND, Duration::ZERO]));
        assert!(!limits.is_alive(&[60 * SECOND, Duration::ZERO]));
        assert!(!limits.is_alive(&[5 * SECOND, 6 * SECOND]));
        assert!(!limits.is_alive(&[5 * SECOND]));
    }

    #[test]
    fn process_that_was_stopped_as_a_whole_is_not_judged() {
        let limits = WatchdogLimits::default();
        assert!(!limits.was_stopped(2 * SECOND));
        assert!(limits.was_stopped(4 * SECOND));
        assert_eq!(limits.lag(SECOND / 2), Duration::ZERO);
    }
}
