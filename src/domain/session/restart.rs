//! The restart rule for sessions and parts of the service: the limit of restarts and the delay before each; and the
//! delays between attempts to reconnect.

use std::{collections::VecDeque, time::Duration};

use crate::domain::{clock::Timestamp, turn::outcome::ErrorCode};

/// Restart intensity as in OTP: after more than `max_restarts` restarts within `within`, another one would not help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RestartLimits {
    /// Restarts that are allowed within the period; with 0 the first unexpected end is final.
    pub max_restarts: u32,
    pub within: Duration,
}

/// The decision about a session that ended unexpectedly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Start a fresh session after this delay.
    Restart(Duration),
    /// Give up: the session is `failed` until it is loaded.
    GiveUp,
}

/// The first delay; a session must be usable again within a second of its first crash.
const FIRST_DELAY: Duration = Duration::from_millis(50);
/// The longest delay before a restart.
const LONGEST_DELAY: Duration = Duration::from_secs(5);

/// The remedy for an unexpected end of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Remedy {
    /// A fresh agent, which spends a restart.
    Restart,
    /// Failures of the runtime and the database end by themselves: another attempt later, which spends nothing.
    Wait,
    /// The folder, the configured agent or one of its features is gone. No attempt can succeed before somebody has
    /// changed that: the session is `failed` at once.
    GiveUp,
}

impl Remedy {
    /// The remedy for an end with this error.
    pub(crate) fn of(code: ErrorCode) -> Self {
        match code {
            ErrorCode::RuntimeUnavailable | ErrorCode::DatabaseUnavailable => Self::Wait,
            ErrorCode::FolderMissing
            | ErrorCode::PathNotAllowed
            | ErrorCode::UnknownAgent
            | ErrorCode::UnknownSecret
            | ErrorCode::NotSupportedByAgent => Self::GiveUp,
            _ => Self::Restart,
        }
    }
}

/// Applies [`RestartLimits`] to one session or one part of the service.
#[derive(Debug)]
pub(crate) struct RestartPolicy {
    limits: RestartLimits,
    recent: VecDeque<Timestamp>,
    total: u32,
}

impl RestartPolicy {
    pub(crate) fn new(limits: RestartLimits) -> Self {
        Self { limits, recent: VecDeque::new(), total: 0 }
    }

    /// Records an unexpected end at `now` and decides. The delay doubles with each restart within the period: 50 ms,
    /// 100 ms, … up to 5 s.
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

    /// Like [`Self::on_end`], for a part of the service, which cannot be loaded later and is therefore never given up:
    /// at the limit the delay is the whole period.
    pub(crate) fn on_end_of_part(&mut self, now: Timestamp) -> Duration {
        match self.on_end(now) {
            Verdict::Restart(delay) => delay,
            Verdict::GiveUp => self.limits.within,
        }
    }

    #[cfg(test)]
    pub(crate) fn total(&self) -> u32 {
        self.total
    }
}

/// Range of the first wait. Short, since most interruptions are brief; a range, so that a hundred sessions that lost their
/// connections together do not reconnect at once.
const FIRST: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(250));
/// The second wait; doubles with each further attempt.
const BASE: Duration = Duration::from_secs(1);
/// The first wait of a notification reader. Longer than a session's: there may be many thousand readers, and no turn
/// waits for them.
const READER_BASE: Duration = Duration::from_millis(500);
/// The longest wait, before the jitter.
const LONGEST: Duration = Duration::from_secs(30);
/// The largest deviation of a wait, up or down, as a share of it.
const JITTER: f64 = 0.2;

/// The wait before reconnect attempt `attempt`, counted from 0: 50 to 250 ms, then 1 s doubling to 30 s, each ± 20 %.
/// `fraction` is a random number from 0 to 1; other values are clamped.
pub(crate) fn reconnect_delay(attempt: u32, fraction: f64) -> Duration {
    let Some(doublings) = attempt.checked_sub(1) else {
        let (least, most) = FIRST;
        return least + (most - least).mul_f64(bounded(fraction));
    };
    doubled(BASE, LONGEST, doublings, fraction)
}

/// The wait before status request `attempt` to an unavailable runtime, counted from 0: 1 s doubling to 30 s, each
/// ± 20 %. `fraction` as in [`reconnect_delay`].
pub(crate) fn runtime_delay(attempt: u32, fraction: f64) -> Duration {
    doubled(BASE, LONGEST, attempt, fraction)
}

/// The wait of a notification reader after `failures` failed attempts in a row: 0.5 s doubling to 30 s, each ± 20 %.
/// `fraction` as in [`reconnect_delay`].
pub(crate) fn reader_delay(failures: u32, fraction: f64) -> Duration {
    doubled(READER_BASE, LONGEST, failures, fraction)
}

/// Doubles `base` `doublings` times, up to `longest`, then varies it by ± 20 %. `fraction` as in [`reconnect_delay`].
pub(crate) fn doubled(base: Duration, longest: Duration, doublings: u32, fraction: f64) -> Duration {
    let delay = base.saturating_mul(2u32.saturating_pow(doublings)).min(longest);
    delay.mul_f64(1.0 - JITTER + 2.0 * JITTER * bounded(fraction))
}

/// Clamps to 0 to 1; NaN becomes 0.5.
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
    fn sixth_end_within_the_period_gives_up() {
        let mut policy = policy();
        for n in 0..5 {
            assert!(matches!(policy.on_end(Timestamp(n)), Verdict::Restart(_)));
        }
        assert_eq!(policy.on_end(Timestamp(6)), Verdict::GiveUp);
        assert_eq!(policy.total(), 5);
    }

    #[test]
    fn ends_far_apart_restart_with_the_first_delay() {
        let mut policy = policy();
        for n in 0..100 {
            assert_eq!(policy.on_end(Timestamp(n * 30_000_000)), Verdict::Restart(FIRST_DELAY));
        }
    }

    #[test]
    fn part_that_always_ends_is_restarted_forever_within_the_limits() {
        let (mut policy, mut now, mut starts) = (policy(), Timestamp(0), 0);
        while now < Timestamp(3_600_000_000) {
            now = now.plus(policy.on_end_of_part(now));
            starts += 1;
        }
        assert!((120..=720).contains(&starts), "{starts} starts in an hour");
    }

    #[test]
    fn restart_delay_doubles_up_to_its_limit() {
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
    fn reconnect_delay_starts_short_and_then_doubles_up_to_its_limit() {
        let delays: Vec<_> = (0..9).map(|attempt| reconnect_delay(attempt, 0.5).as_millis()).collect();
        assert_eq!(delays, [150, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000, 30_000]);
        assert_eq!(reconnect_delay(0, 0.0), Duration::from_millis(50));
        assert_eq!(reconnect_delay(0, 1.0), Duration::from_millis(250));
        assert_eq!(reconnect_delay(1, 0.0), Duration::from_millis(800));
        assert_eq!(reconnect_delay(1, 1.0), Duration::from_millis(1200));
    }

    #[test]
    fn unavailable_runtime_is_asked_after_1_to_30_s_and_spends_no_restart() {
        let delays: Vec<_> = (0..7).map(|attempt| runtime_delay(attempt, 0.5).as_secs()).collect();
        assert_eq!(delays, [1, 2, 4, 8, 16, 30, 30]);
        let remedies = [ErrorCode::RuntimeUnavailable, ErrorCode::DatabaseUnavailable].map(Remedy::of);
        assert_eq!(remedies, [Remedy::Wait; 2]);
        assert_eq!([ErrorCode::AgentCrashed, ErrorCode::ConnectionLost].map(Remedy::of), [Remedy::Restart; 2]);
    }

    #[test]
    fn missing_folder_or_agent_is_not_restarted() {
        let codes = [ErrorCode::FolderMissing, ErrorCode::PathNotAllowed, ErrorCode::UnknownAgent];
        assert_eq!(codes.map(Remedy::of), [Remedy::GiveUp; 3]);
    }

    #[test]
    fn reader_delay_doubles_from_half_a_second() {
        let delays: Vec<_> = (0..8).map(|failures| reader_delay(failures, 0.5).as_millis()).collect();
        assert_eq!(delays, [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]);
        assert_eq!(reader_delay(0, 0.0), Duration::from_millis(400));
        assert_eq!(reader_delay(u32::MAX, 2.0), Duration::from_secs(36));
    }

    proptest! {
        #[test]
        fn reconnect_delay_is_between_50_ms_and_36_s(attempt: u32, fraction: f64) {
            let delay = reconnect_delay(attempt, fraction);
            prop_assert!(delay >= Duration::from_millis(50) && delay <= Duration::from_secs(36), "{delay:?}");
        }
    }
}
