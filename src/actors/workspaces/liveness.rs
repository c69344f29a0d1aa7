//! Decides when a session that does not answer probes is replaced.

use std::time::{Duration, Instant};

use actix::Handler;

use crate::actors::{handles::messages::Probe, session::Session};

/// How often a session is asked for a sign of life. Cheap: a message to the same thread.
pub(crate) const PROBE_EVERY: Duration = Duration::from_secs(5);

impl Handler<Probe> for Session {
    type Result = ();

    fn handle(&mut self, _: Probe, _: &mut Self::Context) {}
}

/// What is known of one session's answers.
#[derive(Debug, Default)]
pub(crate) struct ProbeState {
    /// Since when the last probe waits for its answer.
    waits_since: Option<Instant>,
}

/// What to do about a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Ask it.
    Ask,
    /// Its answer is still waited for.
    Wait,
    /// It has not answered for too long.
    Replace,
}

impl ProbeState {
    /// Decides, and notes a probe that is sent now. After `was_late`, when the asking thread itself stood still,
    /// the wait begins anew: the session had no chance to answer.
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

    /// Notes an answer.
    pub(crate) fn answered(&mut self) {
        self.waits_since = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_replaced_only_when_it_had_the_time_to_answer() {
        let (begin, second) = (Instant::now(), Duration::from_secs(1));
        let mut probe = ProbeState::default();
        assert_eq!(probe.step(begin, 9 * second, false), Step::Ask);
        assert_eq!(probe.step(begin + 5 * second, 9 * second, false), Step::Wait);
        assert_eq!(probe.step(begin + 10 * second, 9 * second, true), Step::Wait, "nobody could answer");
        assert_eq!(probe.step(begin + 15 * second, 9 * second, false), Step::Wait);
        assert_eq!(probe.step(begin + 20 * second, 9 * second, false), Step::Replace);
        probe.answered();
        assert_eq!(probe.step(begin + 25 * second, 9 * second, false), Step::Ask);
    }
}
