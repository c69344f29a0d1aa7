//! Latencies of turns, in bounded memory.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::report::float;

/// Lower bound of the histogram: nothing is faster.
const SHORTEST: Duration = Duration::from_nanos(1);
/// Upper bound of the histogram: a slower turn counts as this. Turns are given up earlier.
const LONGEST: Duration = Duration::from_secs(120);
/// Decimal digits that the histogram keeps of each latency.
const DIGITS: u8 = 3;

/// A histogram of fixed size, since a run has millions of latencies.
#[derive(Debug, Clone)]
pub(crate) struct Latencies(Histogram<u64>);

/// Quantiles, maximum and mean of latencies, in milliseconds; all 0 without a latency.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LatencySummary {
    pub p50_ms: f64,
    pub p95_ms: f64,
    pub p99_ms: f64,
    pub max_ms: f64,
    pub mean_ms: f64,
}

impl Latencies {
    pub(crate) fn new() -> Self {
        let histogram = Histogram::new_with_bounds(nanoseconds(SHORTEST), nanoseconds(LONGEST), DIGITS);
        Self(histogram.unwrap_or_else(|cause| unreachable!("the bounds are constants: {cause}")))
    }

    pub(crate) fn record(&mut self, latency: Duration) {
        self.0.saturating_record(nanoseconds(latency.max(SHORTEST)));
    }

    pub(crate) fn count(&self) -> u64 {
        self.0.len()
    }

    pub(crate) fn summary(&self) -> LatencySummary {
        let at = |quantile| milliseconds(self.0.value_at_quantile(quantile));
        LatencySummary {
            p50_ms: at(0.50),
            p95_ms: at(0.95),
            p99_ms: at(0.99),
            max_ms: milliseconds(self.0.max()),
            mean_ms: self.0.mean() / 1e6,
        }
    }
}

impl LatencySummary {
    /// Headings of [`LatencySummary::columns`].
    pub(crate) const COLUMNS: &str = "   p50 ms   p95 ms   p99 ms   max ms";

    /// The columns p50, p95, p99 and max of a table, nine characters each.
    pub(crate) fn columns(&self) -> String {
        let Self { p50_ms, p95_ms, p99_ms, max_ms, .. } = self;
        format!("{p50_ms:>9.2}{p95_ms:>9.2}{p99_ms:>9.2}{max_ms:>9.1}")
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn milliseconds(nanoseconds: u64) -> f64 {
    float(nanoseconds) / 1e6
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(milliseconds: impl IntoIterator<Item = u64>) -> LatencySummary {
        let mut latencies = Latencies::new();
        milliseconds.into_iter().for_each(|it| latencies.record(Duration::from_millis(it)));
        latencies.summary()
    }

    fn close(found: f64, exact: f64) -> bool {
        (found - exact).abs() <= exact * 0.001
    }

    #[test]
    fn quantiles_of_one_to_a_thousand_are_known() {
        let summary = of(1..=1000);
        assert!(close(summary.p50_ms, 500.0) && close(summary.p95_ms, 950.0), "{summary:?}");
        assert!(close(summary.p99_ms, 990.0) && close(summary.max_ms, 1000.0), "{summary:?}");
        assert!(close(summary.mean_ms, 500.5), "{summary:?}");
    }

    #[test]
    fn p99_excludes_one_slow_turn_in_a_hundred_and_includes_two() {
        assert!(close(of([1; 99].into_iter().chain([500])).p99_ms, 1.0));
        assert!(close(of([1; 98].into_iter().chain([500, 500])).p99_ms, 500.0));
    }

    #[test]
    fn empty_is_zero_and_values_out_of_bounds_count_at_the_bound() {
        assert_eq!(Latencies::new().summary().p99_ms, 0.0);
        let mut latencies = Latencies::new();
        latencies.record(Duration::ZERO);
        latencies.record(Duration::from_secs(100_000));
        let summary = latencies.summary();
        assert_eq!(latencies.count(), 2);
        assert!(close(summary.p50_ms, 1e-6), "{summary:?}");
        assert!(summary.max_ms >= 120_000.0 && summary.max_ms < 200_000.0, "{summary:?}");
    }

    proptest! {
        #[test]
        fn quantiles_are_those_of_the_sorted_sample(mut sample in proptest::collection::vec(1u64..100_000, 1..300)) {
            let summary = of(sample.iter().copied());
            sample.sort_unstable();
            for (found, hundredths) in [(summary.p50_ms, 50), (summary.p95_ms, 95), (summary.p99_ms, 99)] {
                let exact = sample[(sample.len() * hundredths).div_ceil(100) - 1];
                let exact = float(exact);
                prop_assert!(close(found, exact), "{found} is not {exact}");
            }
        }
    }
}
