//! Detects rollback storms: when many workspaces roll back at once, the cause is common, and one systemic alarm replaces
//! the notifications of the workspaces (FR-007).
//!
//! Pure and bounded. Each automatic rollback is recorded once, before its notification is written. The figures cover
//! this process, and the previous one if its storm is still open.

use std::{collections::VecDeque, time::Duration};

use crate::domain::{clock::Timestamp, ids::WorkspaceKey};

/// The period during which a flip counts: 5 minutes.
pub(crate) const PERIOD: Duration = Duration::from_secs(300);
/// The fewest workspaces of a storm, so that a small service has none.
const MIN_FLIPPED: usize = 5;
/// A storm needs more than one in this number of the live workspaces: more than 10 %.
const ONE_IN: usize = 10;
/// Workspaces whose flip is remembered, about 100 bytes each; beyond this the oldest is dropped. A process holds 1,000
/// live sessions, and so at most as many live workspaces; the verdict is exact below 40,960 live workspaces.
pub(crate) const MAX_REMEMBERED: usize = 4096;
/// Suffix of an alarm's cause id that makes the cause of its resolution, so that each alarm is resolved once, by
/// whichever process.
pub(crate) const RESOLVED: &str = ":resolved";

/// The relation of an automatic flip to a storm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FlipCause {
    /// No storm: the workspace gets its own notification.
    Alone,
    /// The flip begins a storm: the alarm replaces its notification.
    BeginsStorm,
    /// The flip belongs to a storm whose alarm is raised: no notification.
    InStorm,
}

impl FlipCause {
    /// True if the alarm replaces the flip's own notification.
    pub(crate) fn is_storm(self) -> bool {
        self != Self::Alone
    }
}

/// The summary of a storm that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StormEnded {
    /// The time of its alarm.
    pub since: Timestamp,
    /// The highest number of workspaces that flipped within one [`PERIOD`].
    pub most_flipped: usize,
}

#[derive(Debug, Clone, Copy)]
struct Storm {
    since: Timestamp,
    most_flipped: usize,
}

/// The automatic flips of the last [`PERIOD`] over all workspaces of the process.
#[derive(Debug, Clone, Default)]
pub(crate) struct FlipStorm {
    /// Oldest first, each workspace once; at most [`MAX_REMEMBERED`].
    flips: VecDeque<(Timestamp, WorkspaceKey)>,
    storm: Option<Storm>,
}

impl FlipStorm {
    /// Resumes a storm whose alarm an earlier process raised and did not resolve. `flips` are those since [`PERIOD`]
    /// before the alarm, oldest first; times later than `now`, after a step back of the clock, count as `now`.
    pub(crate) fn recover(
        since: Timestamp,
        flips: impl IntoIterator<Item = (Timestamp, WorkspaceKey)>,
        now: Timestamp,
    ) -> Self {
        let (mut taken, mut most_flipped) = (Self::default(), 0);
        for (at, workspace) in flips {
            let flipped = taken.remember(workspace, at.min(now));
            if at >= since {
                most_flipped = most_flipped.max(flipped);
            }
        }
        taken.storm = Some(Storm { since: since.min(now), most_flipped });
        taken
    }

    /// Records an automatic rollback of a workspace, among `live` workspaces in use. A workspace counts once, with its
    /// last flip. A clock that steps back removes no flip.
    pub(crate) fn on_flip(&mut self, workspace: &WorkspaceKey, live: usize, now: Timestamp) -> FlipCause {
        let flipped = self.remember(workspace.clone(), now);
        if !self.is_above(live) {
            return FlipCause::Alone;
        }
        match &mut self.storm {
            Some(storm) => {
                storm.most_flipped = storm.most_flipped.max(flipped);
                FlipCause::InStorm
            }
            None => {
                self.storm = Some(Storm { since: now, most_flipped: flipped });
                FlipCause::BeginsStorm
            }
        }
    }

    /// Drops expired flips and ends the storm if the rate is below the threshold; returns each end once. A storm ends only
    /// here, so that a rate around the threshold does not raise one alarm after the other.
    pub(crate) fn on_tick(&mut self, live: usize, now: Timestamp) -> Option<StormEnded> {
        self.expire(now);
        if self.is_above(live) {
            return None;
        }
        let Storm { since, most_flipped } = self.storm.take()?;
        Some(StormEnded { since, most_flipped })
    }

    /// True while the alarm is raised.
    pub(crate) fn is_active(&self) -> bool {
        self.storm.is_some()
    }

    /// Workspaces that flipped within the last [`PERIOD`].
    pub(crate) fn flipped(&mut self, now: Timestamp) -> usize {
        self.expire(now);
        self.flips.len()
    }

    /// The earliest time at which [`Self::on_tick`] may end the current storm: when the oldest flip leaves the period.
    #[cfg(test)]
    pub(crate) fn wakes_at(&self) -> Option<Timestamp> {
        self.storm?;
        self.flips.front().map(|(oldest, _)| oldest.plus(PERIOD))
    }

    /// Records a flip and returns the number of workspaces that flipped within the period.
    fn remember(&mut self, workspace: WorkspaceKey, at: Timestamp) -> usize {
        self.expire(at);
        self.flips.retain(|(_, flipped)| *flipped != workspace);
        if self.flips.len() == MAX_REMEMBERED {
            self.flips.pop_front();
        }
        let newest = self.flips.back().map_or(at, |(newest, _)| *newest);
        self.flips.push_back((at.max(newest), workspace));
        self.flips.len()
    }

    fn is_above(&self, live: usize) -> bool {
        let flipped = self.flips.len();
        flipped >= MIN_FLIPPED && flipped.saturating_mul(ONE_IN) > live
    }

    fn expire(&mut self, now: Timestamp) {
        while self.flips.front().is_some_and(|(oldest, _)| now.since(*oldest) >= PERIOD) {
            self.flips.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use FlipCause::*;
    use proptest::{prelude::*, test_runner::RngAlgorithm};

    use super::*;

    fn workspace(n: usize) -> WorkspaceKey {
        WorkspaceKey { installation_id: "octo".parse().unwrap(), workspace_id: format!("ws-{n}").parse().unwrap() }
    }

    fn at(seconds: u64) -> Timestamp {
        Timestamp(1_800_000_000_000_000).plus(Duration::from_secs(seconds))
    }

    fn causes(storm: &mut FlipStorm, from: usize, count: usize, live: usize, now: Timestamp) -> Vec<FlipCause> {
        (from..from + count).map(|n| storm.on_flip(&workspace(n), live, now)).collect()
    }

    #[test]
    fn storm_needs_five_workspaces_and_more_than_a_tenth_of_the_live_ones() {
        for (flipped, live, expected) in [
            (4, 4, Alone),
            (5, 5, BeginsStorm),
            (5, 49, BeginsStorm),
            (5, 50, Alone), // exactly a tenth
            (6, 50, BeginsStorm),
            (100, 1000, Alone),
            (101, 1000, BeginsStorm),
            (5, 0, BeginsStorm),
        ] {
            let mut storm = FlipStorm::default();
            let last = causes(&mut storm, 0, flipped, live, at(0)).pop();
            let expected = if expected == BeginsStorm && flipped > 5 && live < flipped { InStorm } else { expected };
            assert_eq!(last, Some(expected), "{flipped} of {live}");
        }
        let mut storm = FlipStorm::default();
        let all = causes(&mut storm, 0, 8, 20, at(0));
        assert_eq!(all, [Alone, Alone, Alone, Alone, BeginsStorm, InStorm, InStorm, InStorm]);
    }

    #[test]
    fn flip_counts_for_five_minutes_and_a_workspace_counts_once() {
        for (second, expected) in [(299, BeginsStorm), (300, Alone)] {
            let mut storm = FlipStorm::default();
            causes(&mut storm, 0, 4, 10, at(0));
            assert_eq!(storm.on_flip(&workspace(9), 10, at(second)), expected, "{second} s");
        }
        let mut storm = FlipStorm::default();
        for _ in 0..20 {
            assert_eq!(storm.on_flip(&workspace(1), 1, at(0)), Alone, "one workspace makes no storm");
        }
        assert_eq!(storm.flipped(at(0)), 1);
        storm.on_flip(&workspace(1), 1, at(200));
        assert_eq!(storm.flipped(at(400)), 1, "its last flip counts");
    }

    #[test]
    fn storm_ends_once_when_the_rate_falls_and_the_next_raises_a_new_alarm() {
        let mut storm = FlipStorm::default();
        causes(&mut storm, 0, 4, 20, at(0));
        assert_eq!((storm.wakes_at(), storm.on_tick(20, at(0))), (None, None));
        assert_eq!(causes(&mut storm, 4, 2, 20, at(100)), [BeginsStorm, InStorm]);
        assert_eq!((storm.is_active(), storm.wakes_at()), (true, Some(at(300))));
        assert_eq!(storm.on_tick(20, at(299)), None);
        // The rate has fallen, but no tick has ended the storm: it is still the same one.
        assert_eq!(storm.on_flip(&workspace(10), 20, at(300)), Alone);
        assert_eq!(causes(&mut storm, 11, 2, 20, at(310)), [Alone, InStorm]);
        assert_eq!(storm.on_tick(20, at(400)), Some(StormEnded { since: at(100), most_flipped: 6 }));
        assert_eq!((storm.on_tick(20, at(401)), storm.is_active(), storm.wakes_at()), (None, false, None));
        assert_eq!(causes(&mut storm, 30, 3, 20, at(402)), [Alone, BeginsStorm, InStorm]);
    }

    #[test]
    fn more_live_workspaces_end_a_storm_and_a_clock_step_back_does_not() {
        let mut storm = FlipStorm::default();
        causes(&mut storm, 0, 5, 20, at(1000));
        assert_eq!(storm.on_tick(20, at(0)), None);
        assert_eq!(storm.on_flip(&workspace(9), 20, at(0)), InStorm);
        assert!(storm.on_tick(60, at(1000)).is_some());
    }

    #[test]
    fn resumed_storm_ends_by_the_same_rule_without_a_second_alarm() {
        // Four flips before the alarm, one with it, one after it; then the first workspace flips again.
        let seconds = [0, 1, 2, 3, 100, 120, 130];
        let flips = || seconds.into_iter().enumerate().map(|(n, second)| (at(second), workspace(n % 6)));
        let taken = |now| FlipStorm::recover(at(100), flips(), at(now));
        let mut storm = taken(200);
        assert_eq!((storm.is_active(), storm.flipped(at(200))), (true, 6));
        assert_eq!(storm.on_flip(&workspace(9), 20, at(200)), InStorm);
        assert_eq!(storm.on_tick(20, at(302)), None, "five remain");
        assert_eq!(storm.on_tick(20, at(303)), Some(StormEnded { since: at(100), most_flipped: 7 }));
        assert_eq!(storm.on_tick(20, at(304)), None);
        // Resumed long after its last flip, it ends at the first tick.
        assert_eq!(taken(9000).on_tick(20, at(9000)), Some(StormEnded { since: at(100), most_flipped: 6 }));
        // After a step back of the clock it lasts no longer than one period from now.
        let mut ahead = FlipStorm::recover(at(5000), (0..6).map(|n| (at(5000), workspace(n))), at(0));
        assert_eq!((ahead.on_tick(20, at(299)), ahead.is_active()), (None, true));
        assert_eq!(ahead.on_tick(20, at(300)), Some(StormEnded { since: at(0), most_flipped: 6 }));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2_000, rng_algorithm: RngAlgorithm::XorShift, ..ProptestConfig::default() })]

        #[test]
        fn storm_matches_an_exact_count_with_one_alarm_and_one_end(
            steps in prop::collection::vec((0usize..40, 0u64..90, any::<bool>()), 1..80),
            live in 1usize..80,
        ) {
            let mut storm = FlipStorm::default();
            let (mut now, mut raging) = (at(0), false);
            let mut last: Vec<Option<Timestamp>> = vec![None; 40];
            for (n, seconds, is_tick) in steps {
                now = now.plus(Duration::from_secs(seconds));
                if !is_tick {
                    last[n] = Some(now);
                }
                let flipped = last.iter().flatten().filter(|at| now.since(**at) < PERIOD).count();
                let is_above = flipped >= 5 && flipped * 100 > live * 10;
                if is_tick {
                    let ended = storm.on_tick(live, now).is_some();
                    prop_assert_eq!(ended, raging && !is_above);
                    raging &= is_above;
                } else {
                    let expected = match (is_above, raging) {
                        (false, _) => Alone,
                        (true, false) => BeginsStorm,
                        (true, true) => InStorm,
                    };
                    prop_assert_eq!(storm.on_flip(&workspace(n), live, now), expected);
                    raging |= is_above;
                }
                prop_assert_eq!((storm.is_active(), storm.flipped(now)), (raging, flipped));
                prop_assert!(storm.flips.len() <= MAX_REMEMBERED);
                prop_assert!(!raging || storm.wakes_at().is_none_or(|at| at > now));
            }
        }
    }
}
