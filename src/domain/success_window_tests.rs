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
fn fr_007_the_boundaries_of_the_literal_rule() {
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
