//! The success window of ACP in a workspace: exact counts of outcomes over a rolling period, and the verdict on them.
//!
//! Counts are kept in a ring of buckets, 360 of 10 s by default. An outcome older than the newest bucket counts in that
//! bucket, so that a clock that steps back loses no outcome.

use std::{collections::VecDeque, time::Duration};

use serde::{Deserialize, Serialize};

use crate::domain::{clock::Timestamp, share::FULL_BP, words::words};

/// The fewest outcomes that can breach a window below `min_samples`, so that a quiet workspace does not stay on a dead
/// route.
const QUIET_SAMPLES: u64 = 5;
/// Such a window is breached if at least one outcome in this number failed.
const QUIET_SHARE: u64 = 2;
/// The quantile of the Wilson bound of the rule `confident`: a chance of one in a hundred.
const CONFIDENT_Z: f64 = 2.33;
/// The fewest failures within [`CONFIDENT_PERIOD`] for a breach by the rule `confident`.
const CONFIDENT_FAILURES: u64 = 2;
const CONFIDENT_PERIOD: Duration = Duration::from_secs(600);

/// The rule by which a success rate is too low.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum WindowRule {
    /// The rate is below the threshold.
    #[default]
    Literal,
    /// The upper Wilson bound of the rate is below the threshold, and failures are recent.
    Confident,
}

/// The rule and its numbers (`[window]`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WindowRules {
    /// Age at which outcomes leave the window.
    pub length: Duration,
    /// The window's resolution: outcomes leave it one bucket at a time.
    pub bucket: Duration,
    /// The fewest outcomes for a verdict by the rate.
    pub min_samples: u64,
    /// The fewest failures for a breach by the rate.
    pub min_failures: u64,
    /// The lowest healthy success rate, in basis points.
    pub threshold_bp: u32,
    pub rule: WindowRule,
}

/// An outcome as a window counts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Sample {
    Success,
    Failure,
}

words! {
    /// The verdict on a window.
    WindowState {
        /// Too few outcomes for a verdict.
        Unknown = "unknown",
        Healthy = "healthy",
        /// Some outcomes failed, within the rule.
        Degraded = "degraded",
        /// The rule is violated: the workspace is rolled back.
        Breached = "breached",
    }
}

/// The contents of a window at a point in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct WindowFigures {
    pub state: WindowState,
    /// Outcomes, failures included.
    pub samples: u64,
    pub failures: u64,
    pub length_seconds: u64,
}

impl WindowFigures {
    /// The share of successes, 0 to 1; 1 for an empty window.
    pub(crate) fn success_rate(&self) -> f64 {
        if self.samples == 0 {
            return 1.0;
        }
        (self.samples - self.failures.min(self.samples)) as f64 / self.samples as f64
    }
}

/// The counts of one bucket; also the form in which a window is persisted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bucket {
    /// A multiple of the bucket's length.
    pub start: Timestamp,
    pub successes: u64,
    pub failures: u64,
}

/// The start of the bucket that contains `now`.
pub(crate) fn bucket_start(now: Timestamp, length: Duration) -> Timestamp {
    let length = i64::try_from(length.as_micros()).unwrap_or(i64::MAX).max(1);
    Timestamp(now.0.div_euclid(length) * length)
}

/// The outcomes of one workspace in one epoch.
#[derive(Debug, Clone)]
pub(crate) struct OutcomeWindow {
    rules: WindowRules,
    epoch: u64,
    /// Non-empty buckets, oldest first; at most `length / bucket + 1`.
    buckets: VecDeque<Bucket>,
    samples: u64,
    failures: u64,
}

impl OutcomeWindow {
    pub(crate) fn new(rules: WindowRules, epoch: u64) -> Self {
        Self { rules, epoch, buckets: VecDeque::new(), samples: 0, failures: 0 }
    }

    /// A window from persisted buckets, in any order; buckets of the same start are added up.
    pub(crate) fn restore(rules: WindowRules, epoch: u64, kept: impl IntoIterator<Item = Bucket>) -> Self {
        let mut window = Self::new(rules, epoch);
        let mut kept: Vec<_> = kept.into_iter().collect();
        kept.sort_by_key(|bucket| bucket.start);
        for bucket in kept {
            window.add(bucket.start, bucket.successes, bucket.failures);
        }
        window
    }

    /// The epoch whose outcomes are counted.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Empties the window and changes its epoch.
    pub(crate) fn reset(&mut self, epoch: u64) {
        *self = Self::new(self.rules, epoch);
    }

    /// Counts an outcome of a turn that began in `epoch`. Ignores it and returns false if that is not the window's epoch.
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

    /// Drops expired buckets and returns counts and verdict as of `now`.
    pub(crate) fn figures(&mut self, now: Timestamp) -> WindowFigures {
        self.expire(now);
        WindowFigures {
            state: self.state(now),
            samples: self.samples,
            failures: self.failures,
            length_seconds: self.rules.length.as_secs(),
        }
    }

    /// The non-empty buckets, oldest first.
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

    /// Drops buckets that ended at least one window length before the end of the bucket of `now`.
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

    /// Compares in whole numbers, so that a rate exactly at the threshold is not below it.
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

/// The upper bound of the Wilson score interval of a success rate.
fn wilson_upper(successes: u64, samples: u64) -> f64 {
    let (n, z) = (samples as f64, CONFIDENT_Z);
    let rate = successes as f64 / n;
    let spread = z * (rate * (1.0 - rate) / n + z * z / (4.0 * n * n)).sqrt();
    (rate + z * z / (2.0 * n) + spread) / (1.0 + z * z / n)
}

#[cfg(test)]
pub(crate) mod tests;
