//! From what subscribers have read to figures.

use std::{
    collections::HashMap,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use uuid::Uuid;

use super::subscriber::Log;
use crate::{bench::latency::Latencies, domain::clock::Timestamp};

/// A toast that everyone was to get.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Expected {
    /// Its id.
    pub id: Uuid,
    /// `createdAt`: its cause is written down in the commit that follows.
    pub created: Instant,
    /// When the call that caused it was answered.
    pub answered: Instant,
    /// Whether its latency counts; a warm-up's does not.
    pub counts: bool,
}

/// The two clocks of this machine, looked at in one moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clocks {
    wall: SystemTime,
    steady: Instant,
}

impl Clocks {
    /// Looks at them.
    pub(crate) fn now() -> Self {
        Self { wall: SystemTime::now(), steady: Instant::now() }
    }

    /// The moment that the server's wall clock, which is this machine's, called `timestamp`.
    pub(crate) fn steady(self, timestamp: Timestamp) -> Instant {
        let at = UNIX_EPOCH + Duration::from_micros(u64::try_from(timestamp.0).unwrap_or(0));
        match at.duration_since(self.wall) {
            Ok(later) => self.steady + later,
            Err(earlier) => self.steady.checked_sub(earlier.duration()).unwrap_or(self.steady),
        }
    }
}

/// What came of a point.
#[derive(Debug, Clone)]
pub(crate) struct Tally {
    /// From `createdAt` until a subscriber had read it.
    pub from_created: Latencies,
    /// From the answer to the call; what was read before it counts as nothing.
    pub from_answer: Latencies,
    /// From `createdAt` until the last of all subscribers had read it, for each toast.
    pub until_last: Latencies,
    /// Toasts that were read, by all subscribers, warm-up included.
    pub delivered: u64,
    /// Those that a subscriber did not get.
    pub missing: u64,
    /// Those that one got more than once.
    pub doubled: u64,
    /// Those that came before an earlier one, and ids that nobody was to get.
    pub out_of_order: u64,
}

impl Tally {
    /// Compares what was read with what was to be read, in this order.
    pub(crate) fn new<'a>(expected: &[Expected], logs: impl IntoIterator<Item = &'a Log>) -> Self {
        let places: HashMap<Uuid, usize> =
            expected.iter().enumerate().map(|(place, toast)| (toast.id, place)).collect();
        let mut last: Vec<Option<Instant>> = vec![None; expected.len()];
        let mut tally = Self {
            from_created: Latencies::new(),
            from_answer: Latencies::new(),
            until_last: Latencies::new(),
            delivered: 0,
            missing: 0,
            doubled: 0,
            out_of_order: 0,
        };
        for log in logs {
            let mut times = vec![0u64; expected.len()];
            let mut newest = None;
            for read in &log.toasts {
                let Some(&place) = places.get(&read.id) else {
                    tally.out_of_order += 1;
                    continue;
                };
                tally.delivered += 1;
                times[place] += 1;
                if times[place] > 1 {
                    continue;
                }
                tally.out_of_order += u64::from(newest.is_some_and(|newest| place < newest));
                newest = newest.max(Some(place));
                last[place] = last[place].max(Some(read.at));
                let toast = &expected[place];
                if toast.counts {
                    tally.from_created.record(read.at.saturating_duration_since(toast.created));
                    tally.from_answer.record(read.at.saturating_duration_since(toast.answered));
                }
            }
            tally.missing += times.iter().map(|times| u64::from(*times == 0)).sum::<u64>();
            tally.doubled += times.iter().map(|times| times.saturating_sub(1)).sum::<u64>();
        }
        for (toast, last) in expected.iter().zip(last).filter(|(toast, _)| toast.counts) {
            last.into_iter().for_each(|last| tally.until_last.record(last.saturating_duration_since(toast.created)));
        }
        tally
    }
}

#[cfg(test)]
mod tests {
    use super::{super::subscriber::Read, *};

    const MS: Duration = Duration::from_millis(1);

    fn expected(begin: Instant) -> Vec<Expected> {
        let toast = |place: u32| Expected {
            id: Uuid::from_u128(place.into()),
            created: begin + MS * 100 * place,
            answered: begin + MS * 100 * place + MS * 5,
            counts: place > 0,
        };
        (0..3).map(toast).collect()
    }

    fn log(begin: Instant, read: &[(u128, u32)]) -> Log {
        let read = read.iter().map(|(id, at)| Read { id: Uuid::from_u128(*id), at: begin + MS * *at });
        Log { toasts: read.collect(), ended: None }
    }

    #[test]
    fn latencies_count_from_the_cause_and_from_the_answer_and_the_warm_up_does_not() {
        let begin = Instant::now();
        let logs = [log(begin, &[(0, 90), (1, 110), (2, 203)]), log(begin, &[(0, 1), (1, 120), (2, 204)])];
        let tally = Tally::new(&expected(begin), &logs);
        assert_eq!((tally.delivered, tally.from_created.count()), (6, 4));
        assert_eq!((tally.missing, tally.doubled, tally.out_of_order), (0, 0, 0));
        let close = |found: f64, wanted: f64| (found - wanted).abs() < 0.05;
        let (created, answer, last) =
            (tally.from_created.summary(), tally.from_answer.summary(), tally.until_last.summary());
        assert!(close(created.max_ms, 20.0) && close(created.p50_ms, 4.0), "{created:?}");
        assert!(close(answer.max_ms, 15.0) && close(answer.p50_ms, 0.0), "{answer:?}");
        assert!(tally.until_last.count() == 2 && close(last.p50_ms, 4.0) && close(last.max_ms, 20.0), "{last:?}");
    }

    #[test]
    fn what_is_missing_doubled_foreign_or_late_is_counted() {
        let begin = Instant::now();
        let logs = [log(begin, &[(0, 1), (2, 1), (1, 1), (1, 1)]), log(begin, &[(1, 1), (9, 1)]), Log::default()];
        let tally = Tally::new(&expected(begin), &logs);
        assert_eq!((tally.missing, tally.doubled, tally.out_of_order), (5, 1, 2));
        assert_eq!(tally.delivered, 5);
    }

    #[test]
    fn a_timestamp_of_the_wall_clock_is_a_moment_of_the_steady_one() {
        let clocks = Clocks { wall: UNIX_EPOCH + MS * 5000, steady: Instant::now() };
        assert_eq!(clocks.steady(Timestamp(5_000_000)), clocks.steady);
        assert_eq!(clocks.steady(Timestamp(5_007_000)), clocks.steady + MS * 7);
        assert_eq!(clocks.steady(Timestamp(4_999_000)), clocks.steady - MS);
    }
}
