//! The one restart rule: how often a session, or a part of the service, may be started again, and how long to wait
//! before.

use std::{collections::VecDeque, time::Duration};

use crate::domain::clock::Timestamp;

/// Restart intensity as in OTP: more than `max_restarts` within `within` means that starting again does
/// not help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RestartLimits {
    /// How many restarts are allowed within the period; 0 fails at the first end.
    pub max_restarts: u32,
    pub within: Duration,
}

/// What to do about a session that ended without being asked to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
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
pub(crate) struct RestartPolicy {
    limits: RestartLimits,
    recent: VecDeque<Timestamp>,
    total: u32,
}

impl RestartPolicy {
    /// Starts with a clean record.
    pub(crate) fn new(limits: RestartLimits) -> Self {
        Self { limits, recent: VecDeque::new(), total: 0 }
    }

    /// Notes an end at `now` and says what to do. The delay doubles with each restart that is still
    /// within the period: 50 ms, 100 ms, … up to 5 s.
    pub(crate) fn on_end(&mut self, now: Timestamp) -> Verdict {
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

    /// The same for a part of the service that nobody could bring back later: where a session would be given up, it
    /// waits for the whole period instead. Gives the delay before the next start.
    pub(crate) fn on_end_of_part(&mut self, now: Timestamp) -> Duration {
        match self.on_end(now) {
            Verdict::Restart(delay) => delay,
            Verdict::GiveUp => self.limits.within,
        }
    }

    /// Restarts since the session began.
    #[cfg(test)]
    pub(crate) fn total(&self) -> u32 {
        self.total
    }
}

/// The first try: most breaks are a blip, and a hundred sessions that broke together do not come back in one moment.
const FIRST: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(250));
/// The second wait; each one after it is twice as long.
const BASE: Duration = Duration::from_secs(1);
/// The first wait of a reader of notifications: there may be many thousand of them, and none has a turn that waits.
const READER_BASE: Duration = Duration::from_millis(500);
/// The longest wait, before the jitter.
const LONGEST: Duration = Duration::from_secs(30);
/// How far a wait may be off its mark, in either direction.
const JITTER: f64 = 0.2;

/// The wait before try number `attempt`, counted from 0: 50 to 250 ms, then 1 s doubling to 30 s, each ± 20 %.
/// `fraction` is a random number from 0 to 1; what is outside counts as the nearest of the two.
pub(crate) fn reconnect_delay(attempt: u32, fraction: f64) -> Duration {
    let Some(doublings) = attempt.checked_sub(1) else {
        let (least, most) = FIRST;
        return least + (most - least).mul_f64(bounded(fraction));
    };
    doubled(BASE, LONGEST, doublings, fraction)
}

/// The wait of a reader of notifications after `failures` tries in a row that came to nothing: 0.5 s doubling to 30 s,
/// each ± 20 %. `fraction` as of [`reconnect_delay`].
pub(crate) fn reader_delay(failures: u32, fraction: f64) -> Duration {
    doubled(READER_BASE, LONGEST, failures, fraction)
}

/// `base`, doubled so often, at most `longest`; then ± 20 % by `fraction`, a random number from 0 to 1.
pub(crate) fn doubled(base: Duration, longest: Duration, doublings: u32, fraction: f64) -> Duration {
    let delay = base.saturating_mul(2u32.saturating_pow(doublings)).min(longest);
    delay.mul_f64(1.0 - JITTER + 2.0 * JITTER * bounded(fraction))
}

/// What is outside of 0 to 1 counts as the nearest of the two.
fn bounded(fraction: f64) -> f64 {
    if fraction.is_nan() { 0.5 } else { fraction.clamp(0.0, 1.0) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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
    fn failing_part_is_restarted_forever_within_the_limits() {
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

    #[test]
    fn the_first_try_comes_at_once_and_the_others_double_up_to_their_limit() {
        let delays: Vec<_> = (0..9).map(|attempt| reconnect_delay(attempt, 0.5).as_millis()).collect();
        assert_eq!(delays, [150, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000, 30_000]);
        assert_eq!(reconnect_delay(0, 0.0), Duration::from_millis(50));
        assert_eq!(reconnect_delay(0, 1.0), Duration::from_millis(250));
        assert_eq!(reconnect_delay(1, 0.0), Duration::from_millis(800));
        assert_eq!(reconnect_delay(1, 1.0), Duration::from_millis(1200));
    }

    #[test]
    fn a_reader_waits_half_a_second_and_then_ever_longer() {
        let delays: Vec<_> = (0..8).map(|failures| reader_delay(failures, 0.5).as_millis()).collect();
        assert_eq!(delays, [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]);
        assert_eq!(reader_delay(0, 0.0), Duration::from_millis(400));
        assert_eq!(reader_delay(u32::MAX, 2.0), Duration::from_secs(36));
    }

    proptest! {
        #[test]
        fn no_wait_is_shorter_than_50_ms_or_longer_than_36_s(attempt: u32, fraction: f64) {
            let delay = reconnect_delay(attempt, fraction);
            prop_assert!(delay >= Duration::from_millis(50) && delay <= Duration::from_secs(36), "{delay:?}");
        }
    }
}
