//! How the connection to a session's agent is: its status, which status may follow which, and how healthy it was.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::domain::{clock::Timestamp, turn::outcome::ErrorClass, words::words};

words! {
    /// How the connection to a session's agent is.
    ConnectionStatus {
        /// For the first time.
        Connecting = "connecting",
        /// It stands.
        Connected = "connected",
        /// It stands, but the last turn failed by it, or its turns take twice as long as before: the next ones tell.
        Degraded = "degraded",
        /// It broke, and is being made again, or the agent is being started again.
        Reconnecting = "reconnecting",
        /// It broke for good.
        Error = "error",
        /// It was released: the workspace's turns go over the fallback.
        RolledBack = "rolledBack",
    }
}

impl ConnectionStatus {
    /// Whether `next` may follow. The same status again is no transition.
    ///
    /// The mission's walk is connecting → connected → degraded → error → reconnecting → connected, and any →
    /// rolledBack. Ours takes steps of it at once: a standing line that breaks is reconnected without being an error in
    /// between, and one that cannot be made is an error from wherever it was. A degraded one recovers with the next
    /// good turn. After a rollback, and when a failed session is loaded, a connection begins anew; a session that ends
    /// while it is rolled back leaves an error like every other.
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

    /// What is shown of a connection on which the last turn failed with an error of this class, or did not fail, and
    /// whose turns are slow ([`LatencyWatch::is_doubled`]) or not.
    pub(crate) fn after(self, last_failure: Option<ErrorClass>, is_slow: bool) -> Self {
        let has_failed = matches!(last_failure, Some(ErrorClass::Connection | ErrorClass::Protocol));
        match self {
            Self::Connected if has_failed || is_slow => Self::Degraded,
            status => status,
        }
    }
}

/// Turns that are compared with those before them. Under so many a 95th percentile is the slowest of a handful.
const RECENT_TURNS: usize = 20;
/// Turns before those: so many are looked at, and half of them are enough.
const BASELINE_TURNS: usize = 80;
/// The fewest turns that make a baseline.
const MIN_BASELINE_TURNS: usize = 40;
/// Turns that take no longer than so many milliseconds are never slow: twice next to nothing is nothing to show.
const NEVER_SLOW_MS: u64 = 100;

/// Whether the turns of a connection, or of a workspace, take twice as long as they did.
///
/// Compares the 95th percentile of the last 20 turns with that of the 80 before them; says nothing until there were
/// 20 and 40. Bounded: 100 numbers. A lasting slowness becomes the baseline after about 80 turns.
#[derive(Debug, Clone, Default)]
pub(crate) struct LatencyWatch {
    /// Oldest first; at most [`RECENT_TURNS`] + [`BASELINE_TURNS`].
    latencies_ms: VecDeque<u64>,
}

impl LatencyWatch {
    /// Counts a turn that ended by itself after `latency_ms`; what was cancelled or failed says nothing about speed.
    pub(crate) fn record(&mut self, latency_ms: u64) {
        if self.latencies_ms.len() == RECENT_TURNS + BASELINE_TURNS {
            self.latencies_ms.pop_front();
        }
        self.latencies_ms.push_back(latency_ms);
    }

    /// The 95th percentile of the last turns, in milliseconds; absent where there was none.
    pub(crate) fn p95_ms(&self) -> Option<u64> {
        p95(self.latencies_ms.iter().rev().take(RECENT_TURNS))
    }

    /// The 95th percentile of the turns before those, in milliseconds; absent where there were too few.
    pub(crate) fn baseline_p95_ms(&self) -> Option<u64> {
        let earlier = self.latencies_ms.len().checked_sub(RECENT_TURNS)?;
        if earlier < MIN_BASELINE_TURNS { None } else { p95(self.latencies_ms.iter().take(earlier)) }
    }

    /// Whether the last turns took at least twice as long as those before them, and more than 100 ms.
    pub(crate) fn is_doubled(&self) -> bool {
        // The baseline is sorted only where it decides: it is asked for with every turn.
        let Some(now) = self.p95_ms().filter(|now| *now > NEVER_SLOW_MS) else { return false };
        self.baseline_p95_ms().is_some_and(|before| now >= before.saturating_mul(2))
    }
}

/// The 95th percentile by nearest rank: the smallest number that at least 95 of 100 do not exceed.
fn p95<'a>(numbers: impl Iterator<Item = &'a u64>) -> Option<u64> {
    let mut sorted: Vec<u64> = numbers.copied().collect();
    sorted.sort_unstable();
    let rank = (sorted.len() * 95).div_ceil(100);
    sorted.get(rank.checked_sub(1)?).copied()
}

/// How a connection did, as the audit keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ConnectionHealth {
    /// Turns that ended on it and are counted ([`crate::domain::routing::sampling`]).
    pub turns: u64,
    /// Those of them that failed.
    pub failures: u64,
    /// The 95th percentile of its last turns, in milliseconds; absent where none ended by itself.
    pub latency_p95_ms: Option<u64>,
    /// When its agent last said something.
    pub last_heard: Option<Timestamp>,
}

impl ConnectionHealth {
    /// The share of successes, 0 to 1; absent where no turn was counted.
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
    fn only_connection_failures_or_slowness_degrade_a_connection() {
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
    fn every_status_reads_back_and_serialises_under_its_name() {
        for status in ConnectionStatus::ALL {
            assert_eq!(ConnectionStatus::from_name(status.as_str()), Some(status));
            assert_eq!(serde_json::to_value(status).unwrap(), status.as_str());
        }
    }

    #[test]
    fn mission_walk_is_legal_and_skipping_the_handshake_is_not() {
        use ConnectionStatus::*;
        let walk = [Connecting, Connected, Degraded, Error, Reconnecting, Connected];
        for pair in walk.windows(2) {
            assert!(pair[0].may_become(pair[1]), "{pair:?}");
        }
        for status in ConnectionStatus::ALL {
            assert_eq!(status.may_become(RolledBack), status != RolledBack, "{status:?}");
            assert!(!status.may_become(status), "{status:?}");
        }
        // What the sessions do: a line that breaks and stands again, one that cannot be made, a load, a restore.
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
    fn turns_that_take_twice_as_long_are_slow_and_single_ones_are_not() {
        assert!(!watch(&[]).is_doubled());
        assert_eq!(watch(&[(1, 7)]).p95_ms(), Some(7));
        assert!(watch(&[(40, 200), (20, 400)]).is_doubled(), "exactly twice");
        assert!(!watch(&[(40, 200), (20, 399)]).is_doubled());
        assert!(!watch(&[(39, 200), (20, 400)]).is_doubled(), "too few before them");
        assert!(!watch(&[(80, 200), (19, 200), (1, 9000)]).is_doubled(), "one slow turn of twenty");
        assert!(watch(&[(80, 200), (18, 200), (2, 9000)]).is_doubled());
        assert!(!watch(&[(80, 5), (20, 100)]).is_doubled(), "fast enough whatever was before");
        assert!(!watch(&[(80, 200), (100, 9000)]).is_doubled(), "what lasts is what it is compared with");
    }

    #[test]
    fn health_has_a_rate_once_a_turn_was_counted() {
        assert_eq!(ConnectionHealth::default().success_rate(), None);
        let health = ConnectionHealth { turns: 4, failures: 1, latency_p95_ms: Some(12), last_heard: None };
        assert_eq!(health.success_rate(), Some(0.75));
        let kept = serde_json::to_value(health).unwrap();
        let shown = serde_json::json!({"turns": 4, "failures": 1, "latencyP95Ms": 12, "lastHeard": null});
        assert_eq!(kept, shown);
        assert_eq!(serde_json::from_value::<ConnectionHealth>(kept).unwrap(), health);
    }

    proptest! {
        // A plain generator: the strong one takes most of the time in a build for tests.
    #![proptest_config(ProptestConfig { cases: 10_000, rng_algorithm: RngAlgorithm::XorShift, ..ProptestConfig::default() })]

        #[test]
        fn the_percentiles_are_those_of_the_last_turns_and_memory_is_bounded(
            latencies in prop::collection::vec(0u64..1000, 0..130),
        ) {
            let mut watch = LatencyWatch::default();
            latencies.iter().for_each(|latency| watch.record(*latency));
            prop_assert!(watch.latencies_ms.len() <= 100);
            let (earlier, recent) = latencies.split_at(latencies.len().saturating_sub(20));
            let earlier = &earlier[earlier.len().saturating_sub(80)..];
            // The largest of what is left when the 5 % above it are taken away.
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
