//! How well ACP does in a workspace: exact counts of outcomes over a rolling period, and the verdict on them.
//!
//! Counts stand in a ring of buckets (mission: 360 of 10 s). Nothing here reads a clock, and an outcome whose time is
//! before the newest one's counts as of that moment: a clock that steps back takes nothing away.

use std::{collections::VecDeque, time::Duration};

use serde::{Deserialize, Serialize};

use crate::domain::{clock::Timestamp, share::FULL_BP};

/// Below the floor, so few outcomes roll back too (mission: 5) …
const QUIET_SAMPLES: u64 = 5;
/// … of which one in so many failed, so that a quiet workspace is not left on a dead route.
const QUIET_SHARE: u64 = 2;
/// The quantile of the Wilson bound of the rule `confident` (mission: z = 2.33, one in a hundred).
const CONFIDENT_Z: f64 = 2.33;
/// What the rule `confident` wants to have failed lately …
const CONFIDENT_FAILURES: u64 = 2;
/// … and within how long.
const CONFIDENT_PERIOD: Duration = Duration::from_secs(600);

/// Which rule says that a success rate is too low.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum WindowRule {
    /// The rate as such.
    #[default]
    Literal,
    /// The rate, where chance is an unlikely reason for it.
    Confident,
}

/// The rule and its numbers (`[window]`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WindowRules {
    /// How far back it looks.
    pub length: Duration,
    /// How exactly: outcomes leave the window a bucket at a time.
    pub bucket: Duration,
    /// Outcomes under which the rate says nothing.
    pub min_samples: u64,
    /// Failures under which it says nothing.
    pub min_failures: u64,
    /// The lowest rate that is well, in basis points.
    pub threshold_bp: u32,
    pub rule: WindowRule,
}

/// What an outcome counts as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Sample {
    /// ACP did its work.
    Success,
    /// It did not.
    Failure,
}

/// What the figures of a window say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum WindowState {
    /// Too few outcomes to say anything.
    Unknown,
    /// Nothing failed, or next to nothing.
    Healthy,
    /// Something failed; the rule is not broken.
    Degraded,
    /// The rule is broken: the workspace is to be rolled back.
    Breached,
}

impl WindowState {}

/// What a window holds at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct WindowFigures {
    pub state: WindowState,
    /// Outcomes.
    pub samples: u64,
    /// Those that failed.
    pub failures: u64,
    /// How far back it looks, in seconds.
    pub length_seconds: u64,
}

impl WindowFigures {
    /// The share of successes, 0 to 1; 1 where there was nothing.
    pub(crate) fn success_rate(&self) -> f64 {
        if self.samples == 0 {
            return 1.0;
        }
        (self.samples - self.failures.min(self.samples)) as f64 / self.samples as f64
    }
}

/// One bucket, also as it is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bucket {
    /// When it begins: a multiple of the bucket's length.
    pub start: Timestamp,
    /// Successes in it.
    pub successes: u64,
    /// Failures in it.
    pub failures: u64,
}

/// When the bucket begins in which `now` lies.
pub(crate) fn bucket_start(now: Timestamp, length: Duration) -> Timestamp {
    let length = i64::try_from(length.as_micros()).unwrap_or(i64::MAX).max(1);
    Timestamp(now.0.div_euclid(length) * length)
}

/// The outcomes of one workspace in one epoch.
#[derive(Debug, Clone)]
pub(crate) struct OutcomeWindow {
    rules: WindowRules,
    epoch: u64,
    /// Oldest first; without empty ones. At most length / bucket + 1 of them.
    buckets: VecDeque<Bucket>,
    samples: u64,
    failures: u64,
}

impl OutcomeWindow {
    /// An empty window of an epoch.
    pub(crate) fn new(rules: WindowRules, epoch: u64) -> Self {
        Self { rules, epoch, buckets: VecDeque::new(), samples: 0, failures: 0 }
    }

    /// A window as it was kept; buckets may come in any order, and two of the same start are added up.
    pub(crate) fn restore(rules: WindowRules, epoch: u64, kept: impl IntoIterator<Item = Bucket>) -> Self {
        let mut window = Self::new(rules, epoch);
        let mut kept: Vec<_> = kept.into_iter().collect();
        kept.sort_by_key(|bucket| bucket.start);
        for bucket in kept {
            window.add(bucket.start, bucket.successes, bucket.failures);
        }
        window
    }

    /// The epoch that it counts.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Begins anew, empty, with another epoch.
    pub(crate) fn reset(&mut self, epoch: u64) {
        *self = Self::new(self.rules, epoch);
    }

    /// Counts an outcome of a turn that began in `epoch`; one of another epoch is not counted. Says whether it was.
    pub(crate) fn record(&mut self, epoch: u64, sample: Sample, now: Timestamp) -> bool {
        if epoch != self.epoch {
            return false;
        }
        let (successes, failures) = match sample {
            Sample::Success => (1, 0),
            Sample::Failure => (0, 1),
        };
        self.add(bucket_start(now, self.rules.bucket), successes, failures);
        self.expire(now);
        true
    }

    /// What it holds at `now`.
    pub(crate) fn figures(&mut self, now: Timestamp) -> WindowFigures {
        self.expire(now);
        WindowFigures {
            state: self.state(now),
            samples: self.samples,
            failures: self.failures,
            length_seconds: self.rules.length.as_secs(),
        }
    }

    /// Its buckets, oldest first.
    #[cfg(test)]
    pub(crate) fn buckets(&self) -> impl DoubleEndedIterator<Item = &Bucket> {
        self.buckets.iter()
    }

    fn add(&mut self, start: Timestamp, successes: u64, failures: u64) {
        if successes + failures == 0 {
            return;
        }
        self.samples += successes + failures;
        self.failures += failures;
        match self.buckets.back_mut() {
            Some(newest) if newest.start >= start => {
                newest.successes += successes;
                newest.failures += failures;
            }
            _ => self.buckets.push_back(Bucket { start, successes, failures }),
        }
    }

    /// Keeps the bucket of `now` and those before it that together are as long as the window.
    fn expire(&mut self, now: Timestamp) {
        let newest = bucket_start(now, self.rules.bucket);
        while let Some(oldest) = self.buckets.front().filter(|oldest| oldest.start.plus(self.rules.length) <= newest)
        {
            self.samples -= oldest.successes + oldest.failures;
            self.failures -= oldest.failures;
            self.buckets.pop_front();
        }
    }

    fn state(&self, now: Timestamp) -> WindowState {
        if self.samples < self.rules.min_samples {
            let is_dead = self.samples >= QUIET_SAMPLES && self.failures * QUIET_SHARE >= self.samples;
            return if is_dead { WindowState::Breached } else { WindowState::Unknown };
        }
        if self.failures == 0 {
            return WindowState::Healthy;
        }
        if self.failures >= self.rules.min_failures && self.is_below_threshold() && self.is_beyond_chance(now) {
            return WindowState::Breached;
        }
        WindowState::Degraded
    }

    /// In whole numbers: exactly the threshold is not below it.
    fn is_below_threshold(&self) -> bool {
        let successes = u128::from(self.samples - self.failures);
        successes * u128::from(FULL_BP) < u128::from(self.samples) * u128::from(self.rules.threshold_bp)
    }

    fn is_beyond_chance(&self, now: Timestamp) -> bool {
        if self.rules.rule == WindowRule::Literal {
            return true;
        }
        let since = now.minus(CONFIDENT_PERIOD);
        let lately = self.buckets.iter().filter(|bucket| bucket.start.plus(self.rules.bucket) > since);
        let threshold = f64::from(self.rules.threshold_bp) / f64::from(FULL_BP);
        lately.map(|bucket| bucket.failures).sum::<u64>() >= CONFIDENT_FAILURES
            && wilson_upper(self.samples - self.failures, self.samples) < threshold
    }
}

/// The upper bound of the Wilson score interval of a share of successes.
fn wilson_upper(successes: u64, samples: u64) -> f64 {
    let (n, z) = (samples as f64, CONFIDENT_Z);
    let rate = successes as f64 / n;
    let spread = z * (rate * (1.0 - rate) / n + z * z / (4.0 * n * n)).sqrt();
    (rate + z * z / (2.0 * n) + spread) / (1.0 + z * z / n)
}

#[cfg(test)]
pub(crate) mod tests;
