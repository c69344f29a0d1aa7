//! Progress of a running turn, and the estimate of its remaining time.

use std::{collections::VecDeque, fmt, time::Duration};

use serde::{
    Deserialize, Deserializer,
    de::{SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::domain::clock::Timestamp;

/// Completed turns of a workspace from which the duration of the next is estimated: enough for a median, and few enough
/// to follow a change of the kind of work.
pub(crate) const PACE_TURNS: usize = 50;
/// The shortest estimate that is published when a turn begins. A shorter one expires before anyone reads it, and would
/// cost every short turn an event.
const SHORTEST_PUBLISHED: Duration = Duration::from_secs(1);

/// The counts of an agent's plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PlanProgress {
    /// Completed entries; at most `total`.
    pub done: u32,
    /// All entries; at least one.
    pub total: u32,
}

impl PlanProgress {
    /// Counts the entries of a raw ACP update of the kind `plan`, which always holds the whole plan. `None` for a plan
    /// without entries and for a malformed one. Constant memory: entries are counted while they are parsed.
    pub(crate) fn read(update: &RawValue) -> Option<Self> {
        #[derive(Deserialize)]
        struct Plan {
            entries: Counted,
        }
        let Plan { entries: Counted { done, total } } = serde_json::from_str(update.get()).ok()?;
        (total > 0).then_some(Self { done, total })
    }
}

struct Counted {
    done: u32,
    total: u32,
}

/// A plan's entry; an unknown status counts as not completed.
#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    status: Status,
}

#[derive(Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
enum Status {
    Completed,
    #[default]
    #[serde(other)]
    Open,
}

impl<'de> Deserialize<'de> for Counted {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Counting;

        impl<'de> Visitor<'de> for Counting {
            type Value = Counted;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("entries of a plan")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Counted, A::Error> {
                let mut counted = Counted { done: 0, total: 0 };
                while let Some(Entry { status }) = entries.next_element()? {
                    counted.total = counted.total.saturating_add(1);
                    counted.done = counted.done.saturating_add(u32::from(status == Status::Completed));
                }
                Ok(counted)
            }
        }

        from.deserialize_seq(Counting)
    }
}

/// Durations of a workspace's newest completed turns, at most [`PACE_TURNS`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct TurnPace(VecDeque<Duration>);

impl TurnPace {
    /// From durations, newest first; those beyond [`PACE_TURNS`] are ignored.
    pub(crate) fn of_newest(durations: impl IntoIterator<Item = Duration>) -> Self {
        let mut durations: VecDeque<_> = durations.into_iter().take(PACE_TURNS).collect();
        durations.make_contiguous().reverse();
        Self(durations)
    }

    /// Adds the newest duration; drops the oldest beyond [`PACE_TURNS`].
    pub(crate) fn add(&mut self, took: Duration) {
        if self.0.len() >= PACE_TURNS {
            self.0.pop_front();
        }
        self.0.push_back(took);
    }

    /// The median duration; `None` without any turn.
    pub(crate) fn median(&self) -> Option<Duration> {
        if self.0.is_empty() {
            return None;
        }
        let mut known: Vec<_> = self.0.iter().copied().collect();
        let is_odd = known.len() % 2 == 1;
        let middle = known.len() / 2;
        // A selection instead of a sort, since every turn asks for it.
        let (below, upper, _) = known.select_nth_unstable(middle);
        let upper = *upper;
        let lower = if is_odd { upper } else { below.iter().max().copied().unwrap_or(upper) };
        Some(lower.saturating_add(upper.saturating_sub(lower) / 2))
    }
}

/// The progress of a running turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Progress {
    pub accepted_at: Timestamp,
    /// The agent's plan, once it has sent one.
    pub plan: Option<PlanProgress>,
    /// The median duration of the workspace's turns, if known.
    pub usual: Option<Duration>,
}

impl Progress {
    /// The time since the turn was accepted.
    pub(crate) fn elapsed(&self, now: Timestamp) -> Duration {
        now.since(self.accepted_at)
    }

    /// The estimated remaining time:
    /// - by the plan, once an entry of it is completed, as if each entry took the average of the completed ones;
    /// - else the rest of the usual duration;
    /// - else `None`, also for a turn that has run longer than usual, since nothing suggests that it ends at once.
    pub(crate) fn eta(&self, now: Timestamp) -> Option<Duration> {
        let elapsed = self.elapsed(now);
        match self.plan {
            Some(PlanProgress { done, total }) if done > 0 => {
                let left = u128::from(total.saturating_sub(done));
                let micros = elapsed.as_micros().saturating_mul(left) / u128::from(done);
                Some(Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX)))
            }
            // A plan without a completed entry says nothing about the speed.
            _ => self.usual?.checked_sub(elapsed).filter(|left| !left.is_zero()),
        }
    }

    /// True if the first estimate is long enough to be published when the turn begins.
    pub(crate) fn is_published_at_start(&self, now: Timestamp) -> bool {
        self.eta(now).is_some_and(|eta| eta >= SHORTEST_PUBLISHED)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn read(update: &serde_json::Value) -> Option<(u32, u32)> {
        let raw = serde_json::value::to_raw_value(update).unwrap();
        PlanProgress::read(&raw).map(|plan| (plan.done, plan.total))
    }

    fn plan(done: u32, total: u32) -> Option<PlanProgress> {
        Some(PlanProgress { done, total })
    }

    const fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn eta(elapsed: Duration, plan: Option<PlanProgress>, usual: Option<Duration>) -> Option<Duration> {
        let accepted_at = Timestamp(1_000_000);
        Progress { accepted_at, plan, usual }.eta(accepted_at.plus(elapsed))
    }

    #[test]
    fn plan_entries_are_counted_and_unknown_fields_ignored() {
        let entry = |status: &str| json!({"content": "x", "priority": "high", "status": status, "_meta": {"a": [1]}});
        let entries = ["completed", "in_progress", "pending", "completed", "given_up"].map(entry);
        assert_eq!(read(&json!({"sessionUpdate": "plan", "entries": entries, "later": 1})), Some((2, 5)));
        assert_eq!(read(&json!({"entries": [{}, {"status": "completed"}]})), Some((1, 2)));
        for none in [json!({"entries": []}), json!({}), json!({"entries": 3}), json!([1]), json!({"entries": [4]})] {
            assert_eq!(read(&none), None, "{none}");
        }
    }

    #[test]
    fn estimate_uses_the_plan_then_the_median_then_nothing() {
        assert_eq!(eta(seconds(10), plan(1, 3), Some(seconds(500))), Some(seconds(20)));
        assert_eq!(eta(seconds(10), plan(3, 3), None), Some(Duration::ZERO), "the plan is done");
        assert_eq!(eta(seconds(10), plan(0, 3), Some(seconds(30))), Some(seconds(20)), "no entry is completed");
        assert_eq!(eta(seconds(10), None, Some(seconds(30))), Some(seconds(20)));
        assert_eq!(eta(seconds(10), None, Some(seconds(10))), None, "longer than usual");
        assert_eq!((eta(seconds(10), None, None), eta(seconds(10), plan(0, 3), None)), (None, None));
        assert_eq!(eta(Duration::MAX, plan(1, u32::MAX), None), Some(Duration::from_micros(u64::MAX)));
        let begins = |usual| {
            let progress = Progress { accepted_at: Timestamp(0), plan: None, usual };
            progress.is_published_at_start(Timestamp(1000))
        };
        assert!(begins(Some(seconds(2))) && !begins(Some(seconds(1))) && !begins(None));
    }

    #[test]
    fn clock_step_back_gives_zero_elapsed_time() {
        let progress = Progress { accepted_at: Timestamp(5_000_000), plan: plan(1, 2), usual: None };
        assert_eq!(
            (progress.elapsed(Timestamp(0)), progress.eta(Timestamp(0))),
            (Duration::ZERO, Some(Duration::ZERO))
        );
    }

    proptest! {
        #[test]
        fn pace_is_the_median_of_the_newest_turns(millis in prop::collection::vec(any::<u32>(), 0..120)) {
            let durations: Vec<_> = millis.iter().map(|n| Duration::from_millis(u64::from(*n))).collect();
            let mut pace = TurnPace::default();
            durations.iter().for_each(|took| pace.add(*took));
            prop_assert_eq!(&pace, &TurnPace::of_newest(durations.iter().rev().copied()), "equal to the pace read from the database");
            let mut newest = durations[durations.len().saturating_sub(PACE_TURNS)..].to_vec();
            newest.sort();
            let median = pace.median();
            prop_assert_eq!(median.is_none(), newest.is_empty());
            if let Some(median) = median {
                let below = newest.iter().filter(|it| **it <= median).count();
                let above = newest.iter().filter(|it| **it >= median).count();
                prop_assert!(below * 2 >= newest.len() && above * 2 >= newest.len());
            }
        }

        #[test]
        fn estimate_never_overflows_nor_grows_with_completed_entries(
            elapsed in any::<u64>(), done in 1u32.., more in any::<u32>(), total in any::<u32>(), usual in any::<Option<u64>>(),
        ) {
            let usual = usual.map(Duration::from_micros);
            let elapsed = Duration::from_micros(elapsed);
            let at = |done| eta(elapsed, plan(done, total), usual);
            prop_assert!(at(done.saturating_add(more)) <= at(done));
            prop_assert!(eta(elapsed, None, usual).is_none_or(|left| Some(left) <= usual && !left.is_zero()));
            let mut pace = TurnPace::of_newest([elapsed, Duration::MAX, Duration::MAX]);
            pace.add(Duration::MAX);
            prop_assert_eq!(pace.median(), Some(Duration::MAX));
        }
    }
}
