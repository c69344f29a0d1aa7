//! Readers of payloads whose senders are not known yet: which of them gives way to a new one.
//!
//! A genuine delivery arrives at once. A sender who keeps a place without sending is behind the pace; so however many of them
//! there are, a delivery that keeps the pace gets a place and is not the one that loses it.

use std::time::Duration;

/// The pace of a reader that is not behind, in bytes per second. GitHub sends a delivery of usual size, 10 to 30 KB, with its
/// headers; keeping 512 places at this pace takes a stranger 32 MiB per second.
const PACE: u64 = 64 * 1024;

/// The progress of a reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Time since the place was taken.
    pub age: Duration,
    /// Bytes that have arrived.
    pub received: usize,
}

impl Progress {
    /// Microseconds by which the reader is behind the pace; negative if it is ahead.
    fn lag_us(self) -> i128 {
        let due = u128::from(PACE) * self.age.as_micros();
        let lag = i128::try_from(due).unwrap_or(i128::MAX) - self.received as i128 * 1_000_000;
        lag / i128::from(PACE)
    }
}

/// The reader that gives way: the one that is furthest behind, of equal ones the first.
pub(crate) fn furthest_behind(readers: impl IntoIterator<Item = (u64, Progress)>) -> Option<u64> {
    let mut found: Option<(u64, i128)> = None;
    for (id, progress) in readers {
        let lag = progress.lag_us();
        if found.is_none_or(|(_, most)| lag > most) {
            found = Some((id, lag));
        }
    }
    found.map(|(id, _)| id)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(age_ms: u64, received: usize) -> Progress {
        Progress { age: Duration::from_millis(age_ms), received }
    }

    #[test]
    fn reader_without_progress_gives_way_and_one_that_keeps_the_pace_stays() {
        let slow = (1, at(900, 100));
        let genuine = (2, at(900, 64 * 1024));
        let new = (3, at(0, 0));
        assert_eq!(furthest_behind([genuine, slow, new]), Some(1));
        assert_eq!(furthest_behind([genuine, new]), Some(3), "a new one before one that is ahead");
        assert_eq!(furthest_behind([(4, at(5, 0)), (5, at(5, 0))]), Some(4));
        assert_eq!(furthest_behind([]), None);
        assert_eq!(furthest_behind([(6, Progress { age: Duration::MAX, received: usize::MAX })]), Some(6));
    }

    proptest! {
        #[test]
        fn delivery_at_the_pace_loses_no_place_to_slower_ones(
            slow in prop::collection::vec((1_u64..5000, 0_usize..64), 1..20),
            age_ms in 0_u64..5000,
        ) {
            // 64 bytes and less in a millisecond and more.
            let slow = slow.into_iter().enumerate().map(|(id, (age, bytes))| (id as u64, at(age, bytes)));
            let genuine = (99, at(age_ms, usize::try_from(age_ms * 66).unwrap()));
            prop_assert_ne!(furthest_behind(slow.chain([genuine])), Some(99));
        }
    }
}
