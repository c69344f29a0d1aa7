//! Figures from the logs of the subscribers.

use std::{
    collections::HashMap,
    time::{Instant, SystemTime},
};

use uuid::Uuid;

use super::subscriber::Log;
use crate::support::latency::Latencies;

/// A notification that every subscriber must receive.
#[derive(Debug, Clone, Copy)]
pub(super) struct Expected {
    pub id: Uuid,
    /// `createdAt`, which precedes the commit.
    pub created: Instant,
    /// Time of the answer to the call that caused it.
    pub answered: Instant,
    /// False in the warm-up, whose latencies do not count.
    pub counts: bool,
}

/// The two clocks of this machine, read at the same moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clocks {
    wall: SystemTime,
    steady: Instant,
}

impl Clocks {
    pub(super) fn now() -> Self {
        Self { wall: SystemTime::now(), steady: Instant::now() }
    }

    /// Converts a time of the wall clock, which this process shares with the server.
    pub(super) fn steady(self, at: SystemTime) -> Instant {
        match at.duration_since(self.wall) {
            Ok(later) => self.steady + later,
            Err(earlier) => self.steady.checked_sub(earlier.duration()).unwrap_or(self.steady),
        }
    }
}

/// Results of a point.
#[derive(Debug, Clone)]
pub(super) struct Tally {
    /// From `createdAt` to the arrival at a subscriber.
    pub from_created: Latencies,
    /// From the answer to the call to the arrival; an arrival before the answer counts as 0.
    pub from_answer: Latencies,
    /// From `createdAt` to the arrival at the last subscriber, for each notification.
    pub until_last: Latencies,
    /// Notifications that arrived at all subscribers together, warm-up included.
    pub delivered: u64,
    /// Notifications that did not arrive at a subscriber.
    pub missing: u64,
    /// Notifications that arrived at a subscriber more than once.
    pub doubled: u64,
    /// Notifications that arrived after a later one, and unknown ids.
    pub out_of_order: u64,
}

impl Tally {
    /// Compares the logs with the expected notifications, which are in order.
    pub(super) fn new<'a>(expected: &[Expected], logs: impl IntoIterator<Item = &'a Log>) -> Self {
        let places: HashMap<Uuid, usize> =
            expected.iter().enumerate().map(|(place, notification)| (notification.id, place)).collect();
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
            for arrival in &log.arrivals {
                let Some(&place) = places.get(&arrival.id) else {
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
                last[place] = last[place].max(Some(arrival.at));
                let notification = &expected[place];
                if notification.counts {
                    tally.from_created.record(arrival.at.saturating_duration_since(notification.created));
                    tally.from_answer.record(arrival.at.saturating_duration_since(notification.answered));
                }
            }
            tally.missing += times.iter().map(|times| u64::from(*times == 0)).sum::<u64>();
            tally.doubled += times.iter().map(|times| times.saturating_sub(1)).sum::<u64>();
        }
        for (notification, last) in expected.iter().zip(last).filter(|(notification, _)| notification.counts) {
            last.into_iter()
                .for_each(|last| tally.until_last.record(last.saturating_duration_since(notification.created)));
        }
        tally
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{super::subscriber::Arrival, *};

    const MS: Duration = Duration::from_millis(1);

    fn expected(begin: Instant) -> Vec<Expected> {
        let notification = |place: u32| Expected {
            id: Uuid::from_u128(place.into()),
            created: begin + MS * 100 * place,
            answered: begin + MS * 100 * place + MS * 5,
            counts: place > 0,
        };
        (0..3).map(notification).collect()
    }

    fn log(begin: Instant, arrivals: &[(u128, u32)]) -> Log {
        let arrivals = arrivals.iter().map(|(id, at)| Arrival { id: Uuid::from_u128(*id), at: begin + MS * *at });
        Log { arrivals: arrivals.collect(), ended: None }
    }

    #[test]
    fn latencies_count_from_cause_and_answer_without_the_warm_up() {
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
    fn missing_doubled_unknown_and_late_notifications_are_counted() {
        let begin = Instant::now();
        let logs = [log(begin, &[(0, 1), (2, 1), (1, 1), (1, 1)]), log(begin, &[(1, 1), (9, 1)]), Log::default()];
        let tally = Tally::new(&expected(begin), &logs);
        assert_eq!((tally.missing, tally.doubled, tally.out_of_order), (5, 1, 2));
        assert_eq!(tally.delivered, 5);
    }

    #[test]
    fn time_of_the_wall_clock_is_converted_to_the_steady_clock() {
        let clocks = Clocks { wall: SystemTime::UNIX_EPOCH + MS * 5000, steady: Instant::now() };
        let steady = |ms| clocks.steady(SystemTime::UNIX_EPOCH + MS * ms);
        assert_eq!([5000, 5007, 4999].map(steady), [clocks.steady, clocks.steady + MS * 7, clocks.steady - MS]);
    }
}
