//! A session's connection to its agent: status, allowed transitions, latency, and health figures.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::domain::{clock::Timestamp, turn::outcome::ErrorClass, words::words};

words! {
    /// Status of the connection to a session's agent.
    ConnectionStatus {
        /// A new connection is being established.
        Connecting = "connecting",
        /// The connection is up.
        Connected = "connected",
        /// The connection is up, but the last turn failed because of it, or its turns take twice as long as before. The
        /// next turns decide.
        Degraded = "degraded",
        /// The connection broke and is being re-established, or the agent is being restarted.
        Reconnecting = "reconnecting",
        /// The connection failed permanently.
        Error = "error",
        /// The connection was released: the workspace's turns use the fallback.
        RolledBack = "rolledBack",
    }
}

impl ConnectionStatus {
    /// True if `next` may follow. The same status again is no transition.
    ///
    /// The usual order is connecting → connected → degraded → error → reconnecting → connected, and any → rolledBack.
    /// Sessions also skip steps: a connection that breaks goes to reconnecting without error in between, and one that
    /// cannot be established goes to error from any status. A degraded one recovers with the next successful turn. After
    /// a rollback, and when a failed session is loaded, a new connection starts as connecting; a session that fails while
    /// it is rolled back goes to error.
    #[cfg(test)]
    pub(crate) fn may_become(self, next: Self) -> bool {
        use ConnectionStatus::*;
        match self {
            Connecting => matches!(next, Connected | Reconnecting | Error | RolledBack),
            Connected => matches!(next, Degraded | Reconnecting | Error | RolledBack),
            Degraded => matches!(next, Connected | Reconnecting | Error | RolledBack),
            Reconnecting => matches!(next, Connected | Degraded | Error | RolledBack),
            Error => matches!(next, Reconnecting | Connecting | RolledBack),
            RolledBack => matches!(next, Connecting | Error),
        }
    }

    /// The published status: degraded instead of connected if the last turn failed with a connection or protocol error,
    /// or if turns are slow ([`LatencyWatch::is_doubled`]).
    pub(crate) fn after(self, last_failure: Option<ErrorClass>, is_slow: bool) -> Self {
        let has_failed = matches!(last_failure, Some(ErrorClass::Connection | ErrorClass::Protocol));
        match self {
            Self::Connected if has_failed || is_slow => Self::Degraded,
            status => status,
        }
    }
}

/// The newest turns, whose latency is compared with the baseline. With fewer turns a 95th percentile is the maximum.
const RECENT_TURNS: usize = 20;
/// The most turns of the baseline, which precede the recent ones.
const BASELINE_TURNS: usize = 80;
/// The fewest turns of a baseline.
const MIN_BASELINE_TURNS: usize = 40;
/// Latency up to which turns are never slow, since twice a very short time is not noticeable.
const NEVER_SLOW_MS: u64 = 100;

/// Detects that the turns of a connection, or of a workspace, take twice as long as before.
///
/// Compares the 95th percentile of the last 20 turns with that of the up to 80 turns before them, of which at least 40
/// are needed. Bounded: 100 numbers. A lasting slowdown becomes the baseline after about 80 turns.
#[derive(Debug, Clone, Default)]
pub(crate) struct LatencyWatch {
    /// Oldest first; at most [`RECENT_TURNS`] + [`BASELINE_TURNS`].
    latencies_ms: VecDeque<u64>,
}

impl LatencyWatch {
    /// Records a completed turn. Cancelled and failed turns are not recorded, since their duration is no measure of speed.
    pub(crate) fn record(&mut self, latency_ms: u64) {
        if self.latencies_ms.len() == RECENT_TURNS + BASELINE_TURNS {
            self.latencies_ms.pop_front();
        }
        self.latencies_ms.push_back(latency_ms);
    }

    /// The 95th percentile of the last [`RECENT_TURNS`] turns; `None` without any turn.
    pub(crate) fn p95_ms(&self) -> Option<u64> {
        p95(self.latencies_ms.iter().rev().take(RECENT_TURNS))
    }

    /// The 95th percentile of the turns before those; `None` if they are fewer than [`MIN_BASELINE_TURNS`].
    pub(crate) fn baseline_p95_ms(&self) -> Option<u64> {
        let earlier = self.latencies_ms.len().checked_sub(RECENT_TURNS)?;
        if earlier < MIN_BASELINE_TURNS { None } else { p95(self.latencies_ms.iter().take(earlier)) }
    }

    /// True if the recent percentile is at least twice the baseline and above [`NEVER_SLOW_MS`].
    pub(crate) fn is_doubled(&self) -> bool {
        // Every turn asks; the baseline is read only if the recent turns are slow enough to matter.
        let Some(now) = self.p95_ms().filter(|now| *now > NEVER_SLOW_MS) else { return false };
        self.baseline_p95_ms().is_some_and(|before| now >= before.saturating_mul(2))
    }
}

/// The 95th percentile by nearest rank: the smallest number that at least 95 % of the numbers do not exceed.
fn p95<'a>(numbers: impl Iterator<Item = &'a u64>) -> Option<u64> {
    let mut numbers: Vec<u64> = numbers.copied().collect();
    let rank = (numbers.len() * 95).div_ceil(100);
    // A selection instead of a sort, since every turn asks for it.
    Some(*numbers.select_nth_unstable(rank.checked_sub(1)?).1)
}

/// Health figures of a connection, for the audit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ConnectionHealth {
    /// Turns that ended on the connection and are counted ([`crate::domain::routing::sampling`]).
    pub turns: u64,
    /// Counted turns that failed.
    pub failures: u64,
    /// The 95th percentile of the last turns; `None` if none completed.
    pub latency_p95_ms: Option<u64>,
    /// Time of the agent's last message.
    pub last_heard: Option<Timestamp>,
}

impl ConnectionHealth {
    /// The share of successes, 0 to 1; `None` if no turn was counted.
    #[cfg(test)]
    pub(crate) fn success_rate(&self) -> Option<f64> {
        (self.turns > 0).then(|| (self.turns - self.failures.min(self.turns)) as f64 / self.turns as f64)
    }
}

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, test_runner::RngAlgorithm};

    use super::*;

    #[test]
    fn only_connection_failures_and_slowness_degrade_a_connected_status() {
        use ConnectionStatus::*;
        assert_eq!(Connected.after(None, false), Connected);
        assert_eq!(Connected.after(Some(ErrorClass::Connection), false), Degraded);
        assert_eq!(Connected.after(Some(ErrorClass::Protocol), false), Degraded);
        assert_eq!(Connected.after(Some(ErrorClass::Application), false), Connected);
        assert_eq!(Connected.after(None, true), Degraded);
        assert_eq!(Reconnecting.after(Some(ErrorClass::Connection), true), Reconnecting);
        assert_eq!(RolledBack.after(Some(ErrorClass::Protocol), true), RolledBack);
    }

    #[test]
    fn status_parses_and_serialises_under_its_name() {
        for status in ConnectionStatus::ALL {
            assert_eq!(ConnectionStatus::from_name(status.as_str()), Some(status));
            assert_eq!(serde_json::to_value(status).unwrap(), status.as_str());
        }
    }

    #[test]
    fn transitions_of_the_mission_are_legal_and_those_without_handshake_are_not() {
        use ConnectionStatus::*;
        let walk = [Connecting, Connected, Degraded, Error, Reconnecting, Connected];
        for pair in walk.windows(2) {
            assert!(pair[0].may_become(pair[1]), "{pair:?}");
        }
        for status in ConnectionStatus::ALL {
            assert_eq!(status.may_become(RolledBack), status != RolledBack, "{status:?}");
            assert!(!status.may_become(status), "{status:?}");
        }
        // Transitions of sessions: a connection that breaks and recovers, one that cannot be established, a load, a
        // restore.
        for (from, to) in [
            (Connected, Reconnecting),
            (Degraded, Reconnecting),
            (Degraded, Connected),
            (Connecting, Reconnecting),
            (Connecting, Error),
            (Reconnecting, Error),
            (Error, Connecting),
            (RolledBack, Connecting),
            (RolledBack, Error),
        ] {
            assert!(from.may_become(to), "{from:?} {to:?}");
        }
        for (from, to) in [
            (Connecting, Degraded),
            (Connected, Connecting),
            (Error, Connected),
            (Error, Degraded),
            (RolledBack, Connected),
            (RolledBack, Reconnecting),
        ] {
            assert!(!from.may_become(to), "{from:?} {to:?}");
        }
    }

    fn watch(earlier: &[(usize, u64)]) -> LatencyWatch {
        let mut watch = LatencyWatch::default();
        for (times, latency) in earlier {
            (0..*times).for_each(|_| watch.record(*latency));
        }
        watch
    }

    #[test]
    fn latency_watch_detects_doubled_turns_and_ignores_single_slow_ones() {
        assert!(!watch(&[]).is_doubled());
        assert_eq!(watch(&[(1, 7)]).p95_ms(), Some(7));
        assert!(watch(&[(40, 200), (20, 400)]).is_doubled(), "exactly twice");
        assert!(!watch(&[(40, 200), (20, 399)]).is_doubled());
        assert!(!watch(&[(39, 200), (20, 400)]).is_doubled(), "baseline too small");
        assert!(!watch(&[(80, 200), (19, 200), (1, 9000)]).is_doubled(), "one slow turn of twenty");
        assert!(watch(&[(80, 200), (18, 200), (2, 9000)]).is_doubled());
        assert!(!watch(&[(80, 5), (20, 100)]).is_doubled(), "never slow up to 100 ms");
        assert!(!watch(&[(80, 200), (100, 9000)]).is_doubled(), "a lasting slowdown becomes the baseline");
    }

    #[test]
    fn health_has_a_success_rate_once_a_turn_was_counted() {
        assert_eq!(ConnectionHealth::default().success_rate(), None);
        let health = ConnectionHealth { turns: 4, failures: 1, latency_p95_ms: Some(12), last_heard: None };
        assert_eq!(health.success_rate(), Some(0.75));
        let kept = serde_json::to_value(health).unwrap();
        let shown = serde_json::json!({"turns": 4, "failures": 1, "latencyP95Ms": 12, "lastHeard": null});
        assert_eq!(kept, shown);
        assert_eq!(serde_json::from_value::<ConnectionHealth>(kept).unwrap(), health);
    }

    proptest! {
        // XorShift instead of ChaCha: in a debug build the default generator takes most of the test's time.
        #![proptest_config(ProptestConfig { cases: 10_000, rng_algorithm: RngAlgorithm::XorShift, ..ProptestConfig::default() })]

        #[test]
        fn percentiles_match_the_last_turns_and_memory_is_bounded(
            latencies in prop::collection::vec(0u64..1000, 0..130),
        ) {
            let mut watch = LatencyWatch::default();
            latencies.iter().for_each(|latency| watch.record(*latency));
            prop_assert!(watch.latencies_ms.len() <= 100);
            let (earlier, recent) = latencies.split_at(latencies.len().saturating_sub(20));
            let earlier = &earlier[earlier.len().saturating_sub(80)..];
            // The maximum after removal of the largest 5 %.
            let exact = |of: &[u64]| {
                let mut sorted = of.to_vec();
                sorted.sort_unstable();
                sorted.truncate(of.len() - of.len() * 5 / 100);
                sorted.last().copied()
            };
            prop_assert_eq!(watch.p95_ms(), exact(recent));
            let baseline = if earlier.len() >= 40 { exact(earlier) } else { None };
            prop_assert_eq!(watch.baseline_p95_ms(), baseline);
            let is_doubled = baseline.zip(exact(recent)).is_some_and(|(before, now)| now > 100 && now >= before * 2);
            prop_assert_eq!(watch.is_doubled(), is_doubled);
        }
    }
}
