//! Decides when a session that stops answering probes is replaced.

use std::time::{Duration, Instant};

use actix::Handler;

use crate::actors::{handles::messages::Probe, session::Session};

/// Interval between two probes of a session. A probe is cheap: one message within the same thread.
pub(crate) const PROBE_EVERY: Duration = Duration::from_secs(5);

impl Handler<Probe> for Session {
    type Result = ();

    fn handle(&mut self, _: Probe, _: &mut Self::Context) {}
}

/// Pending probe of one session.
#[derive(Debug, Default)]
pub(crate) struct ProbeState {
    /// Time of the unanswered probe, if there is one.
    waits_since: Option<Instant>,
}

/// Next action for a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Ask,
    /// Wait for the answer to the pending probe.
    Wait,
    /// Replace the session, because a probe was not answered in time.
    Replace,
}

impl ProbeState {
    /// Decides the next action, and records the probe if one is sent now. `was_late` means that the probing thread
    /// itself was blocked: the wait restarts, because the session had no chance to answer.
    pub(crate) fn step(&mut self, now: Instant, stuck_after: Duration, was_late: bool) -> Step {
        match &mut self.waits_since {
            None => {
                self.waits_since = Some(now);
                Step::Ask
            }
            Some(since) if was_late => {
                *since = now;
                Step::Wait
            }
            Some(since) if now.saturating_duration_since(*since) >= stuck_after => Step::Replace,
            Some(_) => Step::Wait,
        }
    }

    /// Clears the pending probe after its answer.
    pub(crate) fn answered(&mut self) {
        self.waits_since = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn session_is_replaced_only_if_it_had_time_to_answer() {
        let (begin, second) = (Instant::now(), Duration::from_secs(1));
        let mut probe = ProbeState::default();
        assert_eq!(probe.step(begin, 9 * second, false), Step::Ask);
        assert_eq!(probe.step(begin + 5 * second, 9 * second, false), Step::Wait);
        assert_eq!(probe.step(begin + 10 * second, 9 * second, true), Step::Wait, "the session could not answer");
        assert_eq!(probe.step(begin + 15 * second, 9 * second, false), Step::Wait);
        assert_eq!(probe.step(begin + 20 * second, 9 * second, false), Step::Replace);
        probe.answered();
        assert_eq!(probe.step(begin + 25 * second, 9 * second, false), Step::Ask);
    }
}
