//! Rollback storms: when many workspaces roll back at once, the cause is probably common, and one alarm for operators
//! replaces the notifications of the workspaces (FR-007).
//!
//! The numbers come from rows, counted in the transaction that writes a rollback (`store/routing/storms.rs`).

use std::{ops::Range, time::Duration};

use uuid::Uuid;

use crate::domain::clock::Timestamp;

/// Time for which an automatic rollback counts: 5 minutes.
const PERIOD: Duration = Duration::from_secs(300);
/// The fewest workspaces of a storm, so that a small service has none.
const MIN_FLIPPED: usize = 5;
/// A storm needs more than one in this number of the workspaces in use: more than 10 %.
const ONE_IN: usize = 10;

/// True if so many workspaces rolled back within the period, of those in use, that the cause is probably common.
pub(crate) fn is_storm(flipped: usize, live: usize) -> bool {
    flipped >= MIN_FLIPPED && flipped.saturating_mul(ONE_IN) > live
}

/// The times at which a rollback counts. A clock of the database that was set back by up to a period hides none.
pub(crate) fn counted_at(now: Timestamp) -> Range<Timestamp> {
    now.minus(PERIOD).plus(Duration::from_micros(1))..now.plus(PERIOD)
}

/// A storm whose alarm was raised and whose end was not announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RollbackStorm {
    /// The rollback that raised the alarm; the cause of its notification.
    pub id: Uuid,
    /// Time of that rollback.
    pub since: Timestamp,
    /// The highest number of workspaces that rolled back within one period, since the alarm.
    pub most_flipped: usize,
}

/// A rollback that the service decided itself; only these count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AutomaticRollback {
    /// Time by the clock of the database, which a restart on another machine does not change.
    pub at: Timestamp,
    /// Workspaces in use.
    pub live: usize,
    /// Start of the process, by the same clock.
    pub started: Timestamp,
}

impl AutomaticRollback {
    /// The times at which other rollbacks count. Those from before the start of the process count for an open storm
    /// alone: their workspaces are not among those in use before their sessions come back.
    pub(crate) fn counted(self, is_open: bool) -> Range<Timestamp> {
        let Range { start, end } = counted_at(self.at);
        let start = if is_open { start } else { start.max(self.started) };
        start..end
    }

    /// The storm to which the rollback `id` belongs: the open one, or one that it begins. `flipped` workspaces,
    /// including its own, rolled back within the period. `None`: the workspace's users are notified. A storm is
    /// ended elsewhere, so that a rate around the threshold does not raise one alarm after the other.
    pub(crate) fn storm(self, open: Option<RollbackStorm>, flipped: usize, id: Uuid) -> Option<RollbackStorm> {
        let storm = open.unwrap_or(RollbackStorm { id, since: self.at, most_flipped: 0 });
        let most_flipped = storm.most_flipped.max(flipped);
        is_storm(flipped, self.live).then_some(RollbackStorm { most_flipped, ..storm })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp(1_800_000_000_000_000).plus(Duration::from_secs(seconds))
    }

    #[test]
    fn storm_needs_five_workspaces_and_more_than_a_tenth_of_the_live_ones() {
        for (flipped, live, expected) in [
            (4, 4, false),
            (5, 5, true),
            (5, 49, true),
            (5, 50, false), // exactly a tenth
            (6, 50, true),
            (100, 1000, false),
            (101, 1000, true),
            (5, 0, true),
            (usize::MAX, usize::MAX, false),
        ] {
            assert_eq!(is_storm(flipped, live), expected, "{flipped} of {live}");
        }
    }

    #[test]
    fn rollback_counts_for_five_minutes_and_after_a_step_back_of_the_clock() {
        let counts = |rolled_back, now| counted_at(at(now)).contains(&at(rolled_back));
        assert!(counts(0, 0) && counts(0, 299) && !counts(0, 300));
        assert!(counts(299, 0) && !counts(300, 0), "a rollback in the future counts for at most two periods");
    }

    #[test]
    fn first_rollback_above_the_threshold_begins_the_storm_and_the_others_join_it() {
        let (first, second) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let rollback = |seconds| AutomaticRollback { at: at(seconds), live: 20, started: at(0) };
        assert_eq!(rollback(0).storm(None, 4, first), None);
        let begun = rollback(10).storm(None, 5, first);
        assert_eq!(begun, Some(RollbackStorm { id: first, since: at(10), most_flipped: 5 }));
        let joined = rollback(20).storm(begun, 7, second);
        assert_eq!(joined, Some(RollbackStorm { most_flipped: 7, ..begun.unwrap() }));
        assert_eq!(rollback(30).storm(joined, 6, second), joined, "the peak remains");
        assert_eq!(
            rollback(400).storm(joined, 3, second),
            None,
            "the rate has fallen, although no end was announced"
        );
    }
    #[test]
    fn rollbacks_before_the_start_of_the_process_count_for_an_open_storm_alone() {
        let rollback = AutomaticRollback { at: at(400), live: 20, started: at(350) };
        let counts = |is_open, seconds| rollback.counted(is_open).contains(&at(seconds));
        assert!(counts(false, 350) && !counts(false, 349));
        assert!(counts(true, 101) && !counts(true, 100));
    }
}
