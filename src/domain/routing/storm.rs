//! When many workspaces fall back at once, the cause is none of theirs: one systemic alarm takes the place of that
//! many notifications (mission: "Both routes bad").
//!
//! Pure and bounded. Each automatic flip is asked about once, before it is told of; the figures are of this process,
//! and of the one before it where a storm outlived that.

use std::{collections::VecDeque, time::Duration};

use crate::domain::{clock::Timestamp, ids::WorkspaceKey};

/// How long a flip counts (mission: 5 min).
pub(crate) const PERIOD: Duration = Duration::from_secs(300);
/// The fewest workspaces that make a storm (mission: at least 5) …
const MIN_FLIPPED: usize = 5;
/// … and one in so many of the live ones do not make one yet (mission: more than 10 %).
const ONE_IN: usize = 10;
/// Workspaces whose flip is remembered. A process holds 1,000 live sessions, and so at most as many live workspaces;
/// beyond this the oldest is forgotten, which says nothing wrong under 40,960 live workspaces. About 100 bytes each.
pub(crate) const MAX_REMEMBERED: usize = 4096;
/// What the cause of an alarm's end adds to that of the alarm, so that each has one end, whoever tells it.
pub(crate) const RESOLVED: &str = ":resolved";

/// What an automatic flip is a part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FlipCause {
    /// It is the workspace's own: tell of it.
    Alone,
    /// With it a storm begins: raise the one alarm instead of telling of it.
    BeginsStorm,
    /// It belongs to the storm whose alarm was raised: do not tell of it.
    InStorm,
}

impl FlipCause {
    /// Whether the alarm stands for it, so that its own notification is skipped.
    pub(crate) fn is_storm(self) -> bool {
        self != Self::Alone
    }
}

/// What a storm was, once it is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StormEnded {
    /// When its alarm was raised.
    pub since: Timestamp,
    /// The most workspaces that had flipped within five minutes.
    pub most_flipped: usize,
}

#[derive(Debug, Clone, Copy)]
struct Storm {
    since: Timestamp,
    most_flipped: usize,
}

/// The automatic flips of the last five minutes over all workspaces of the process.
#[derive(Debug, Clone, Default)]
pub(crate) struct FlipStorm {
    /// Oldest first, each workspace once; at most [`MAX_REMEMBERED`].
    flips: VecDeque<(Timestamp, WorkspaceKey)>,
    storm: Option<Storm>,
}

impl FlipStorm {
    /// Resumes a storm whose alarm an earlier process raised, and told no end of. `flips` are those since [`PERIOD`]
    /// before the alarm, oldest first; what is later than `now`, since the clock was stepped back, counts as now.
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

    /// A workspace has flipped to HTTP by itself, among `live` workspaces that are in use. A second flip of the same
    /// workspace counts as one. A clock that steps back takes nothing away.
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

    /// Time has passed. Gives a storm's end once, when the rate has fallen below: the alarm is resolved. Until it was
    /// asked the storm continues, so that one alarm stays one where the rate swings about the mark.
    pub(crate) fn on_tick(&mut self, live: usize, now: Timestamp) -> Option<StormEnded> {
        self.expire(now);
        if self.is_above(live) {
            return None;
        }
        let Storm { since, most_flipped } = self.storm.take()?;
        Some(StormEnded { since, most_flipped })
    }

    /// Whether the alarm is raised.
    pub(crate) fn is_raging(&self) -> bool {
        self.storm.is_some()
    }

    /// Workspaces that flipped within the last five minutes.
    pub(crate) fn flipped(&mut self, now: Timestamp) -> usize {
        self.expire(now);
        self.flips.len()
    }

    /// When [`Self::on_tick`] may have an end to tell, while a storm rages: with the next flip that leaves the period.
    #[cfg(test)]
    pub(crate) fn wakes_at(&self) -> Option<Timestamp> {
        self.storm?;
        self.flips.front().map(|(oldest, _)| oldest.plus(PERIOD))
    }

    /// Counts a flip, and gives how many workspaces have flipped within the period.
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
    fn five_and_more_than_a_tenth_raise_one_alarm_and_fewer_do_not() {
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
    fn a_flip_counts_for_five_minutes_and_a_workspace_once() {
        for (second, expected) in [(299, BeginsStorm), (300, Alone)] {
            let mut storm = FlipStorm::default();
            causes(&mut storm, 0, 4, 10, at(0));
            assert_eq!(storm.on_flip(&workspace(9), 10, at(second)), expected, "{second} s");
        }
        let mut storm = FlipStorm::default();
        for _ in 0..20 {
            assert_eq!(storm.on_flip(&workspace(1), 1, at(0)), Alone, "one workspace is no storm");
        }
        assert_eq!(storm.flipped(at(0)), 1);
        storm.on_flip(&workspace(1), 1, at(200));
        assert_eq!(storm.flipped(at(400)), 1, "its last flip counts");
    }

    #[test]
    fn storm_ends_once_and_the_next_raises_a_new_alarm() {
        let mut storm = FlipStorm::default();
        causes(&mut storm, 0, 4, 20, at(0));
        assert_eq!((storm.wakes_at(), storm.on_tick(20, at(0))), (None, None));
        assert_eq!(causes(&mut storm, 4, 2, 20, at(100)), [BeginsStorm, InStorm]);
        assert_eq!((storm.is_raging(), storm.wakes_at()), (true, Some(at(300))));
        assert_eq!(storm.on_tick(20, at(299)), None);
        // The rate has fallen, but nobody has asked yet: it is still the same storm.
        assert_eq!(storm.on_flip(&workspace(10), 20, at(300)), Alone);
        assert_eq!(causes(&mut storm, 11, 2, 20, at(310)), [Alone, InStorm]);
        assert_eq!(storm.on_tick(20, at(400)), Some(StormEnded { since: at(100), most_flipped: 6 }));
        assert_eq!((storm.on_tick(20, at(401)), storm.is_raging(), storm.wakes_at()), (None, false, None));
        assert_eq!(causes(&mut storm, 30, 3, 20, at(402)), [Alone, BeginsStorm, InStorm]);
    }

    #[test]
    fn more_live_workspaces_end_a_storm() {
        let mut storm = FlipStorm::default();
        causes(&mut storm, 0, 5, 20, at(1000));
        assert_eq!(storm.on_tick(20, at(0)), None);
        assert_eq!(storm.on_flip(&workspace(9), 20, at(0)), InStorm);
        assert!(storm.on_tick(60, at(1000)).is_some());
    }

    #[test]
    fn recovered_storm_ends_by_the_same_rule_without_a_second_alarm() {
        // Four before the alarm, two with it and after it; the first flipped again.
        let seconds = [0, 1, 2, 3, 100, 120, 130];
        let flips = || seconds.into_iter().enumerate().map(|(n, second)| (at(second), workspace(n % 6)));
        let taken = |now| FlipStorm::recover(at(100), flips(), at(now));
        let mut storm = taken(200);
        assert_eq!((storm.is_raging(), storm.flipped(at(200))), (true, 6));
        assert_eq!(storm.on_flip(&workspace(9), 20, at(200)), InStorm);
        assert_eq!(storm.on_tick(20, at(302)), None, "five are left");
        assert_eq!(storm.on_tick(20, at(303)), Some(StormEnded { since: at(100), most_flipped: 7 }));
        assert_eq!(storm.on_tick(20, at(304)), None);
        // Long after it, it is over at once.
        assert_eq!(taken(9000).on_tick(20, at(9000)), Some(StormEnded { since: at(100), most_flipped: 6 }));
        // A clock that was stepped back makes it no longer than a period from now.
        let mut ahead = FlipStorm::recover(at(5000), (0..6).map(|n| (at(5000), workspace(n))), at(0));
        assert_eq!((ahead.on_tick(20, at(299)), ahead.is_raging()), (None, true));
        assert_eq!(ahead.on_tick(20, at(300)), Some(StormEnded { since: at(0), most_flipped: 6 }));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2_000, rng_algorithm: RngAlgorithm::XorShift, ..ProptestConfig::default() })]

        #[test]
        fn every_storm_matches_an_exact_count_with_one_alarm_and_one_end(
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
                prop_assert_eq!((storm.is_raging(), storm.flipped(now)), (raging, flipped));
                prop_assert!(storm.flips.len() <= MAX_REMEMBERED);
                prop_assert!(!raging || storm.wakes_at().is_none_or(|at| at > now));
            }
        }
    }
}
