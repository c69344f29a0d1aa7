//! How far a turn has come, and when it will have ended.

use std::{collections::VecDeque, fmt, time::Duration};

use serde::{
    Deserialize, Deserializer,
    de::{SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::domain::clock::Timestamp;

/// Turns of a workspace from whose durations the next one is guessed: enough for a median, and few enough that it
/// follows when the work becomes another.
pub(crate) const PACE_TURNS: usize = 50;
/// The shortest estimate that is told when a turn begins. A shorter one is over before anyone has read it, and would
/// cost every short turn an event.
const SHORTEST_TOLD: Duration = Duration::from_secs(1);

/// An agent's plan, counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PlanProgress {
    /// Entries that are completed; at most `total`.
    pub done: u32,
    /// Entries, at least one.
    pub total: u32,
}

impl PlanProgress {
    /// Counts the entries of a raw ACP update of the kind `plan`, which always holds the whole plan. `None` for a plan
    /// without entries, and for what is no plan. Nothing of the entries is kept while they are counted.
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

/// The status of an entry; one that nobody knows is not completed.
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

/// How long the last turns of a workspace took that were completed, at most [`PACE_TURNS`] of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct TurnPace(VecDeque<Duration>);

impl TurnPace {
    /// From durations, the newest first; what is beyond the bound is skipped.
    pub(crate) fn of_newest(durations: impl IntoIterator<Item = Duration>) -> Self {
        let mut durations: VecDeque<_> = durations.into_iter().take(PACE_TURNS).collect();
        durations.make_contiguous().reverse();
        Self(durations)
    }

    /// Takes the newest one, and lets the oldest go.
    pub(crate) fn add(&mut self, took: Duration) {
        if self.0.len() >= PACE_TURNS {
            self.0.pop_front();
        }
        self.0.push_back(took);
    }

    /// The middle one, or what lies midway between the two in the middle; `None` where nothing is known.
    pub(crate) fn median(&self) -> Option<Duration> {
        if self.0.is_empty() {
            return None;
        }
        let mut known: Vec<_> = self.0.iter().copied().collect();
        let is_odd = known.len() % 2 == 1;
        let middle = known.len() / 2;
        // No more is sorted than has to be: it is asked for with every turn.
        let (below, upper, _) = known.select_nth_unstable(middle);
        let upper = *upper;
        let lower = if is_odd { upper } else { below.iter().max().copied().unwrap_or(upper) };
        Some(lower.saturating_add(upper.saturating_sub(lower) / 2))
    }
}

/// How a turn that runs gets on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Progress {
    /// When it was accepted.
    pub accepted_at: Timestamp,
    /// The agent's plan, where it told one.
    pub plan: Option<PlanProgress>,
    /// How long such turns took so far, where that is known.
    pub usual: Option<Duration>,
}

impl Progress {
    /// How long it has run.
    pub(crate) fn elapsed(&self, now: Timestamp) -> Duration {
        now.since(self.accepted_at)
    }

    /// When it will have ended, from now on, by estimate:
    /// - from the plan once an entry of it is done, as if each entry took as long as those before it;
    /// - else what is left of the usual time;
    /// - else nothing is known. A turn that takes longer than usual is one of these: that it ends at once is not known.
    pub(crate) fn eta(&self, now: Timestamp) -> Option<Duration> {
        let elapsed = self.elapsed(now);
        match self.plan {
            Some(PlanProgress { done, total }) if done > 0 => {
                let left = u128::from(total.saturating_sub(done));
                let micros = elapsed.as_micros().saturating_mul(left) / u128::from(done);
                Some(Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX)))
            }
            _ => self.usual?.checked_sub(elapsed).filter(|left| !left.is_zero()),
        }
    }

    /// Whether there is something worth telling when the turn begins.
    pub(crate) fn is_published_at_start(&self, now: Timestamp) -> bool {
        self.eta(now).is_some_and(|eta| eta >= SHORTEST_TOLD)
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
    fn a_plan_is_counted_whatever_else_it_says() {
        let entry = |status: &str| json!({"content": "x", "priority": "high", "status": status, "_meta": {"a": [1]}});
        let entries = ["completed", "in_progress", "pending", "completed", "given_up"].map(entry);
        assert_eq!(read(&json!({"sessionUpdate": "plan", "entries": entries, "later": 1})), Some((2, 5)));
        assert_eq!(read(&json!({"entries": [{}, {"status": "completed"}]})), Some((1, 2)));
        for none in [json!({"entries": []}), json!({}), json!({"entries": 3}), json!([1]), json!({"entries": [4]})] {
            assert_eq!(read(&none), None, "{none}");
        }
    }

    #[test]
    fn the_estimate_comes_from_the_plan_then_from_the_median_then_from_nowhere() {
        assert_eq!(eta(seconds(10), plan(1, 3), Some(seconds(500))), Some(seconds(20)));
        assert_eq!(eta(seconds(10), plan(3, 3), None), Some(Duration::ZERO), "the plan is done");
        assert_eq!(eta(seconds(10), plan(0, 3), Some(seconds(30))), Some(seconds(20)), "nothing of it is done");
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
    fn a_clock_that_was_stepped_back_makes_no_negative_time() {
        let progress = Progress { accepted_at: Timestamp(5_000_000), plan: plan(1, 2), usual: None };
        assert_eq!(
            (progress.elapsed(Timestamp(0)), progress.eta(Timestamp(0))),
            (Duration::ZERO, Some(Duration::ZERO))
        );
    }

    proptest! {
        #[test]
        fn the_pace_is_the_median_of_the_newest(millis in prop::collection::vec(any::<u32>(), 0..120)) {
            let durations: Vec<_> = millis.iter().map(|n| Duration::from_millis(u64::from(*n))).collect();
            let mut pace = TurnPace::default();
            durations.iter().for_each(|took| pace.add(*took));
            prop_assert_eq!(&pace, &TurnPace::of_newest(durations.iter().rev().copied()), "as it is read back");
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
        fn no_figures_overflow_and_more_done_is_never_later(
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
