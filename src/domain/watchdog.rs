//! When a thread that runs actors counts as stalled, and when the process is past help.

use std::time::Duration;

/// By what heartbeats are judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WatchdogLimits {
    /// How often each thread beats, and how often the beats are looked at.
    pub every: Duration,
    /// Silence beyond a beat's period after which a thread is stalled.
    pub stalled_after: Duration,
    /// The same, after which only a restart of the process helps.
    pub dead_after: Duration,
}

impl Default for WatchdogLimits {
    /// Stalled after 5 s: nothing of ours keeps a thread for a tenth of a second, and a busy or paused machine
    /// recovers in less. Dead after a minute: a restart costs every other session its agent.
    fn default() -> Self {
        Self {
            every: Duration::from_secs(1),
            stalled_after: Duration::from_secs(5),
            dead_after: Duration::from_secs(60),
        }
    }
}

/// What a look at a thread found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finding {
    /// It beats.
    Beats,
    /// It has just been found to stand still.
    Stalled,
    /// It still does.
    StillStalled,
    /// It stood still and beats again.
    Recovered,
}

impl WatchdogLimits {
    /// How late a beat is that came so long ago.
    pub(crate) fn lag(&self, since_beat: Duration) -> Duration {
        since_beat.saturating_sub(self.every)
    }

    /// Judges a thread.
    pub(crate) fn look(&self, was_stalled: bool, lag: Duration) -> Finding {
        match (was_stalled, lag >= self.stalled_after) {
            (false, false) => Finding::Beats,
            (false, true) => Finding::Stalled,
            (true, true) => Finding::StillStalled,
            (true, false) => Finding::Recovered,
        }
    }

    /// Whether the process can help itself: not when every thread stands still, nor when one has for too long.
    pub(crate) fn is_alive(&self, lags: &[Duration]) -> bool {
        let all_stalled = !lags.is_empty() && lags.iter().all(|lag| *lag >= self.stalled_after);
        !all_stalled && lags.iter().all(|lag| *lag < self.dead_after)
    }

    /// Whether a look that was due after one period came so late that the whole process had been stopped: then
    /// nothing can be said about its threads.
    pub(crate) fn was_stopped(&self, since_look: Duration) -> bool {
        since_look >= self.every + self.stalled_after / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_stall_is_found_once_and_so_is_its_end() {
        let limits = WatchdogLimits::default();
        assert_eq!(limits.look(false, 4 * SECOND), Finding::Beats);
        assert_eq!(limits.look(false, 5 * SECOND), Finding::Stalled);
        assert_eq!(limits.look(true, 9 * SECOND), Finding::StillStalled);
        assert_eq!(limits.look(true, SECOND), Finding::Recovered);
    }

    #[test]
    fn one_stalled_thread_is_tolerated_for_a_minute() {
        let limits = WatchdogLimits::default();
        assert!(limits.is_alive(&[]));
        assert!(limits.is_alive(&[59 * SECOND, Duration::ZERO]));
        assert!(!limits.is_alive(&[60 * SECOND, Duration::ZERO]));
        assert!(!limits.is_alive(&[5 * SECOND, 6 * SECOND]));
        assert!(!limits.is_alive(&[5 * SECOND]));
    }

    #[test]
    fn a_process_that_was_stopped_as_a_whole_is_not_judged() {
        let limits = WatchdogLimits::default();
        assert!(!limits.was_stopped(2 * SECOND));
        assert!(limits.was_stopped(4 * SECOND));
        assert_eq!(limits.lag(SECOND / 2), Duration::ZERO);
    }
}
