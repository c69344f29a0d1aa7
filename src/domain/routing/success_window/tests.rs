use proptest::{prelude::*, test_runner::RngAlgorithm};

use super::*;

const RULES: WindowRules = WindowRules {
    length: Duration::from_secs(3600),
    bucket: Duration::from_secs(10),
    min_samples: 20,
    min_failures: 1,
    threshold_bp: 9900,
    rule: WindowRule::Literal,
};

fn at(seconds: u64) -> Timestamp {
    Timestamp(1_800_000_000_000_000).plus(Duration::from_secs(seconds))
}

fn of(successes: u64, failures: u64) -> WindowState {
    let mut window = OutcomeWindow::new(RULES, 0);
    for n in 0..successes + failures {
        let sample = if n < failures { Sample::Failure } else { Sample::Success };
        assert!(window.record(0, sample, at(0)));
    }
    window.figures(at(0)).state
}

#[test]
fn fr_007_literal_rule_is_exact_at_its_boundaries() {
    use WindowState::*;
    for (successes, failures, state) in [
        (19, 1, Breached),     // 1 of 20
        (98, 1, Breached),     // 1 of 99
        (99, 1, Degraded),     // 1 of 100: exactly 99.00 %
        (9898, 102, Breached), // 98.98 %
        (9900, 100, Degraded), // 99.00 %
        (9901, 99, Degraded),  // 99.01 %
        (9899, 101, Breached), // 98.99 %
        (18, 1, Unknown),      // 19 outcomes
        (20, 0, Healthy),
        (19, 0, Unknown),
        (2, 3, Breached), // 3 of 5
        (3, 2, Unknown),  // 2 of 5
        (0, 4, Unknown),
    ] {
        assert_eq!(of(successes, failures), state, "{failures} of {}", successes + failures);
    }
}

#[test]
fn fr_007_below_min_samples_half_of_five_failures_breach_and_fewer_do_not() {
    use WindowState::*;
    for (successes, failures, state) in
        [(0, 5, Breached), (3, 3, Breached), (4, 3, Unknown), (9, 10, Breached), (10, 9, Unknown), (10, 10, Breached)]
    {
        assert_eq!(of(successes, failures), state, "{failures} of {}", successes + failures);
    }
}

#[test]
fn fr_007_outcome_counts_for_an_hour_and_leaves_with_its_bucket() {
    let micros = |n: i64| Timestamp(at(0).0 + n);
    for (recorded, seen, counts) in [
        (at(0), at(59 * 60 + 59), true),
        (at(0), micros(3_599_999_999), true),
        (at(0), at(3600), false),
        (at(0), at(60 * 60 + 1), false),
        // An outcome at the end of a bucket leaves together with one at its start.
        (micros(9_999_999), at(3599), true),
        (micros(9_999_999), at(3600), false),
        (at(10), at(3609), true),
        (at(10), at(3610), false),
        // A clock that steps back removes no outcome.
        (at(7200), at(0), true),
    ] {
        let mut window = OutcomeWindow::new(RULES, 0);
        window.record(0, Sample::Failure, recorded);
        assert_eq!(window.figures(seen).samples, u64::from(counts), "{recorded} seen at {seen}");
    }
}

#[test]
fn outcome_of_another_epoch_is_not_counted_and_a_new_epoch_starts_empty() {
    let mut window = OutcomeWindow::new(RULES, 3);
    assert!(window.record(3, Sample::Failure, at(0)));
    assert!(!window.record(2, Sample::Failure, at(0)));
    assert!(!window.record(4, Sample::Failure, at(0)));
    assert_eq!(window.figures(at(0)).samples, 1);
    window.reset(4);
    assert_eq!((window.epoch(), window.figures(at(0)).samples), (4, 0));
    assert!(!window.record(3, Sample::Failure, at(0)));
}

#[test]
fn confident_rule_needs_significance_and_two_recent_failures() {
    let of = |successes: u64, failures: &[u64], seen: u64| {
        let mut window = OutcomeWindow::new(WindowRules { rule: WindowRule::Confident, ..RULES }, 0);
        failures.iter().for_each(|second| assert!(window.record(0, Sample::Failure, at(*second))));
        (0..successes).for_each(|_| assert!(window.record(0, Sample::Success, at(seen))));
        window.figures(at(seen)).state
    };
    use WindowState::*;
    assert_eq!(of(19, &[0], 0), Degraded, "1 of 20 may be chance, and is one failure");
    assert_eq!(of(98, &[0, 0], 0), Degraded, "2 of 100 may be chance");
    assert_eq!(of(18, &[0, 0], 0), Breached, "2 of 20 is hardly chance at 99 %");
    assert_eq!(of(18, &[0, 0], 599), Breached);
    assert_eq!(of(18, &[0, 0], 609), Breached, "a bucket partly within the ten minutes counts");
    assert_eq!(of(18, &[0, 0], 610), Degraded, "nothing failed in the last ten minutes");
    assert_eq!(of(18, &[0, 300], 700), Degraded, "one failure in the last ten minutes");
    assert_eq!(of(2, &[0, 0, 0], 0), Breached, "a quiet workspace does not stay on a dead route");
}

/// An event of a window.
#[derive(Debug, Clone)]
enum Step {
    Record(Sample),
    OfAnotherEpoch(Sample),
    /// The clock moves by this many microseconds, forward or back.
    Pass(i64),
    /// The clock moves to this many microseconds after the next edge of a bucket.
    Edge(i64),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let sample = prop_oneof![3 => Just(Sample::Success), 1 => Just(Sample::Failure)];
    let second = 1_000_000i64;
    prop_oneof![
        12 => sample.clone().prop_map(Step::Record),
        1 => sample.prop_map(Step::OfAnotherEpoch),
        4 => (0..20 * second).prop_map(Step::Pass),
        2 => (0..4000 * second).prop_map(Step::Pass),
        1 => (0..10 * 86_400 * second).prop_map(Step::Pass),
        1 => (-5000 * second..0).prop_map(Step::Pass),
        2 => prop_oneof![Just(-1i64), Just(0), Just(1)].prop_map(Step::Edge),
        1 => Just(Step::Restart),
    ]
}

fn random_rules() -> impl Strategy<Value = WindowRules> {
    let buckets = prop_oneof![Just(360u64), 1u64..8];
    let rule = prop_oneof![Just(WindowRule::Literal), Just(WindowRule::Confident)];
    let threshold = prop_oneof![2 => Just(9900u32), 1 => 0u32..=10_000];
    (buckets, prop_oneof![Just(10u64), 1u64..700], 1u64..30, 1u64..4, threshold, rule).prop_map(
        |(buckets, bucket, min_samples, min_failures, threshold_bp, rule)| WindowRules {
            length: Duration::from_secs(buckets * bucket),
            bucket: Duration::from_secs(bucket),
            min_samples,
            min_failures,
            threshold_bp,
            rule,
        },
    )
}

/// A model of the window: each outcome with the time at which it counts.
struct Exact {
    rules: WindowRules,
    held: Vec<(Timestamp, Sample)>,
}

impl Exact {
    fn bucket(&self, at: Timestamp) -> i64 {
        at.0.div_euclid(self.rules.bucket.as_micros() as i64)
    }

    fn pass(&mut self, now: Timestamp) {
        let buckets = (self.rules.length.as_micros() / self.rules.bucket.as_micros()) as i64;
        let held = std::mem::take(&mut self.held);
        self.held = held.into_iter().filter(|(at, _)| self.bucket(now) - self.bucket(*at) < buckets).collect();
    }

    fn record(&mut self, sample: Sample, now: Timestamp) {
        let newest = self.held.last().map_or(now, |(at, _)| *at);
        self.held.push((now.max(newest), sample));
    }

    /// `None` if the Wilson bound is too close to the threshold for floating-point arithmetic.
    fn state(&self, now: Timestamp) -> Option<WindowState> {
        let failed = |held: &[(Timestamp, Sample)]| held.iter().filter(|(_, it)| *it == Sample::Failure).count();
        let (samples, failures) = (self.held.len() as u64, failed(&self.held) as u64);
        if samples < self.rules.min_samples {
            let dead = samples >= 5 && failures * 2 >= samples;
            return Some(if dead { WindowState::Breached } else { WindowState::Unknown });
        }
        if failures == 0 {
            return Some(WindowState::Healthy);
        }
        let is_low = failures * 10_000 > samples * u64::from(10_000 - self.rules.threshold_bp);
        let mut is_breached = is_low && failures >= self.rules.min_failures;
        if self.rules.rule == WindowRule::Confident && is_breached {
            let border = now.0 - 600_000_000;
            let length = self.rules.bucket.as_micros() as i64;
            let lately: Vec<_> =
                self.held.iter().filter(|(at, _)| (self.bucket(*at) + 1) * length > border).copied().collect();
            // The Wilson interval holds every rate from which the observed one deviates by at most z standard errors.
            let (n, threshold) = (samples as f64, f64::from(self.rules.threshold_bp) / 10_000.0);
            let off = threshold - (samples - failures) as f64 / n;
            let margin = n * off * off - 2.33 * 2.33 * threshold * (1.0 - threshold);
            if margin.abs() < 1e-6 {
                return None;
            }
            is_breached = failed(&lately) >= 2 && margin > 0.0;
        }
        Some(if is_breached { WindowState::Breached } else { WindowState::Degraded })
    }
}

proptest! {
    // XorShift instead of ChaCha: in a debug build the default generator takes most of the test's time.
    #![proptest_config(ProptestConfig { cases: 10_000, rng_algorithm: RngAlgorithm::XorShift, ..ProptestConfig::default() })]

    #[test]
    fn fr_007_window_matches_an_exact_deque(
        rules in random_rules(),
        steps in prop::collection::vec(step(), 1..50),
        start in 0i64..20_000_000,
    ) {
        let mut window = OutcomeWindow::new(rules, 7);
        let mut exact = Exact { rules, held: Vec::new() };
        let mut all: Vec<Timestamp> = Vec::new();
        let mut now = Timestamp(at(0).0 + start);
        let mut latest = now;
        for step in steps {
            match step {
                Step::Record(sample) => {
                    prop_assert!(window.record(7, sample, now));
                    exact.record(sample, now);
                    all.extend(exact.held.last().map(|(at, _)| *at));
                }
                Step::OfAnotherEpoch(sample) => prop_assert!(!window.record(8, sample, now)),
                Step::Pass(micros) => now = Timestamp(now.0 + micros),
                Step::Edge(micros) => {
                    now = Timestamp(bucket_start(now, rules.bucket).plus(rules.bucket).0 + micros);
                }
                Step::Restart => {
                    // As rows are read: in any order, with a bucket that two processes wrote in two parts.
                    let kept = window.buckets().rev().flat_map(|bucket| {
                        let failed = Bucket { successes: 0, ..*bucket };
                        [Bucket { failures: 0, ..*bucket }, failed]
                    });
                    let restored = OutcomeWindow::restore(rules, 7, kept.collect::<Vec<_>>());
                    prop_assert_eq!(restored.buckets().collect::<Vec<_>>(), window.buckets().collect::<Vec<_>>());
                    window = restored;
                }
            }
            latest = latest.max(now);
            let figures = window.figures(now);
            exact.pass(now);
            let failures = exact.held.iter().filter(|(_, it)| *it == Sample::Failure).count() as u64;
            prop_assert_eq!((figures.samples, figures.failures), (exact.held.len() as u64, failures));
            if let Some(state) = exact.state(now) {
                prop_assert_eq!(figures.state, state);
            }
            // Off by less than one bucket from a window without buckets.
            let within = |age: Duration, now: Timestamp| all.iter().filter(|at| now.since(**at) < age).count() as u64;
            prop_assert!(figures.samples <= within(rules.length, now));
            prop_assert!(figures.samples >= within(rules.length - rules.bucket, latest));
            let most = rules.length.as_secs() / rules.bucket.as_secs();
            prop_assert!(window.buckets().count() as u64 <= most + 1, "bounded");
            prop_assert!((0.0..=1.0).contains(&figures.success_rate()));
        }
    }
}
