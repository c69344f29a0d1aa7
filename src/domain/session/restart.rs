//! The one restart rule: how often a session, or a part of the service, may be started again, and how long to wait
//! before.

use std::{collections::VecDeque, time::Duration};

use crate::domain::clock::Timestamp;

/// Restart intensity as in OTP: more than `max_restarts` within `within` means that starting again does
/// not help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestartLimits {
    /// How many restarts are allowed within the period; 0 fails at the first end.
    pub max_restarts: u32,
    /// The period.
    pub within: Duration,
}

/// What to do about a session that ended without being asked to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Starts a fresh one after this delay.
    Restart(Duration),
    /// Gives up: the session is `failed` until somebody loads it.
    GiveUp,
}

/// The first delay; the session has to be usable again within a second of its first crash.
const FIRST_DELAY: Duration = Duration::from_millis(50);
/// The longest delay between two restarts that the intensity still allows.
const LONGEST_DELAY: Duration = Duration::from_secs(5);

/// Remembers the restarts of one session, or of one part of the service, and applies [`RestartLimits`].
#[derive(Debug)]
pub struct RestartPolicy {
    limits: RestartLimits,
    recent: VecDeque<Timestamp>,
    total: u32,
}

impl RestartPolicy {
    /// Starts with a clean record.
    pub fn new(limits: RestartLimits) -> Self {
        Self { limits, recent: VecDeque::new(), total: 0 }
    }

    /// Notes an end at `now` and says what to do. The delay doubles with each restart that is still
    /// within the period: 50 ms, 100 ms, … up to 5 s.
    pub fn on_end(&mut self, now: Timestamp) -> Verdict {
        while self.recent.front().is_some_and(|at| now.since(*at) >= self.limits.within) {
            self.recent.pop_front();
        }
        if self.recent.len() >= self.limits.max_restarts as usize {
            return Verdict::GiveUp;
        }
        let doublings = u32::try_from(self.recent.len()).unwrap_or(u32::MAX).min(16);
        self.recent.push_back(now);
        self.total += 1;
        Verdict::Restart((FIRST_DELAY * 2u32.pow(doublings)).min(LONGEST_DELAY))
    }

    /// The same for a part of the service that nobody could bring back later: where a session would be given up, it waits
    /// for the whole period instead. Gives the delay before the next start.
    pub fn on_end_of_part(&mut self, now: Timestamp) -> Duration {
        match self.on_end(now) {
            Verdict::Restart(delay) => delay,
            Verdict::GiveUp => self.limits.within,
        }
    }

    /// Restarts since the session began.
    pub fn total(&self) -> u32 {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> RestartPolicy {
        RestartPolicy::new(RestartLimits { max_restarts: 5, within: Duration::from_secs(30) })
    }

    #[test]
    fn the_sixth_end_within_the_period_gives_up() {
        let mut policy = policy();
        for n in 0..5 {
            assert!(matches!(policy.on_end(Timestamp(n)), Verdict::Restart(_)));
        }
        assert_eq!(policy.on_end(Timestamp(6)), Verdict::GiveUp);
        assert_eq!(policy.total(), 5);
    }

    #[test]
    fn ends_that_are_far_apart_never_give_up_and_never_wait_long() {
        let mut policy = policy();
        for n in 0..100 {
            assert_eq!(policy.on_end(Timestamp(n * 30_000_000)), Verdict::Restart(FIRST_DELAY));
        }
    }

    #[test]
    fn a_part_that_always_ends_is_started_again_for_ever_and_no_more_often_than_the_limits_allow() {
        let (mut policy, mut now, mut starts) = (policy(), Timestamp(0), 0);
        while now < Timestamp(3_600_000_000) {
            now = now.plus(policy.on_end_of_part(now));
            starts += 1;
        }
        assert!((120..=720).contains(&starts), "{starts} starts in an hour");
    }

    #[test]
    fn the_delay_doubles_up_to_its_limit() {
        let limits = RestartLimits { max_restarts: 20, within: Duration::from_secs(3600) };
        let mut policy = RestartPolicy::new(limits);
        let delays: Vec<_> = (0..9)
            .map(|n| match policy.on_end(Timestamp(n)) {
                Verdict::Restart(delay) => delay.as_millis(),
                Verdict::GiveUp => panic!("too early"),
            })
            .collect();
        assert_eq!(delays, [50, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
    }
}
