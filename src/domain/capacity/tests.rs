use proptest::{prelude::*, test_runner::RngAlgorithm};

use super::*;

const RULES: CapacityRules = CapacityRules {
    limit: 1000,
    tenant_share_bp: 10_000,
    warn_bp: 8500,
    critical_bp: 9500,
    resolve_bp: 7000,
    resolve_after: Duration::from_secs(300),
};

fn at(seconds: u64) -> Timestamp {
    Timestamp(1_800_000_000_000_000).plus(Duration::from_secs(seconds))
}

fn tenant(name: &str) -> InstallationId {
    name.parse().unwrap()
}

/// Observes `taken` seats without an earlier peak; returns the changes.
fn seen(alerts: &mut CapacityAlerts, taken: usize, seconds: u64) -> Vec<(AlertLevel, AlertKind, usize)> {
    let changes = alerts.observe(SeatsSeen { taken, peak: taken }, at(seconds));
    changes.into_iter().map(|change| (change.level, change.kind, change.taken)).collect()
}

#[test]
fn fr_010_thresholds_are_exact_and_each_level_is_raised_once() {
    use AlertKind::*;
    use AlertLevel::*;
    let mut alerts = CapacityAlerts::new(RULES, None);
    assert_eq!(seen(&mut alerts, 849, 0), []);
    assert_eq!(seen(&mut alerts, 850, 1), [(Warning, Raised, 850)]);
    assert_eq!(seen(&mut alerts, 800, 2), []);
    assert_eq!(seen(&mut alerts, 949, 3), []);
    assert_eq!(seen(&mut alerts, 950, 4), [(Critical, Raised, 950)]);
    assert_eq!(seen(&mut alerts, 1000, 5), []);
    assert_eq!(seen(&mut alerts, 700, 6), [], "70 % is not below 70 %");
    assert_eq!(seen(&mut alerts, 699, 10), []);
    assert_eq!(alerts.resolves_at(), Some(at(310)));
    assert_eq!(seen(&mut alerts, 699, 309), [], "4:59");
    assert_eq!(seen(&mut alerts, 0, 310), [(Critical, Resolved, 0), (Warning, Resolved, 0)]);
    assert_eq!((alerts.level(), alerts.resolves_at()), (None, None));
    assert_eq!(seen(&mut alerts, 1000, 311), [(Warning, Raised, 1000), (Critical, Raised, 1000)]);
}

#[test]
fn short_peak_between_observations_restarts_the_calm_period() {
    let mut alerts = CapacityAlerts::new(RULES, Some(AlertLevel::Warning));
    assert_eq!(seen(&mut alerts, 10, 0), []);
    assert_eq!(alerts.observe(SeatsSeen { taken: 10, peak: 700 }, at(299)), []);
    assert_eq!(seen(&mut alerts, 10, 300), []);
    assert_eq!(seen(&mut alerts, 10, 598), []);
    assert_eq!(seen(&mut alerts, 10, 599).len(), 1, "five minutes after the peak");
}

#[test]
fn tenant_share_is_exact_at_its_limits() {
    for (limit, share_bp, seats) in [
        (1000, 10_000, 1000),
        (1000, 2500, 250),
        (10, 2999, 2),
        (10, 3000, 3),
        (10, 3001, 3),
        (3, 9999, 2),
        (10, 1, 1),
        (10, 0, 1),
        (usize::MAX, 10_000, usize::MAX),
    ] {
        let rules = CapacityRules { limit, tenant_share_bp: share_bp, ..RULES };
        assert_eq!(rules.tenant_limit(), seats, "{share_bp} of {limit}");
    }
    let mut seats = Seats::new(CapacityRules { limit: 10, tenant_share_bp: 3000, ..RULES });
    let (one, two) = (tenant("one"), tenant("two"));
    (0..3).for_each(|_| seats.admit(&one).unwrap());
    let figures = SeatFigures { taken: 3, limit: 10, tenant_taken: 3, tenant_limit: 3 };
    assert_eq!(seats.admit(&one), Err(Refused { bound: SeatBound::Tenant, figures }));
    seats.admit(&two).unwrap();
    assert_eq!(seats.near_their_share(9), [(one.clone(), 3)]);
    seats.admit_returning(&one);
    assert_eq!(seats.figures(&one).tenant_taken, 4, "a returning session is not limited by the share");
    seats.give_back(&one);
    assert!(seats.admit(&one).is_err());
    seats.give_back(&one);
    seats.admit(&one).unwrap();
}

#[test]
fn releasing_a_seat_of_a_tenant_without_seats_changes_nothing() {
    let mut seats = Seats::new(RULES);
    seats.give_back(&tenant("nobody"));
    assert_eq!((seats.taken(), seats.by_tenant.len()), (0, 0));
}

#[derive(Debug, Clone)]
enum Step {
    Admit(usize),
    Return(usize),
    GiveBack(usize),
    Wait(u64),
    Look,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0usize..3).prop_map(Step::Admit),
        1 => (0usize..3).prop_map(Step::Return),
        5 => (0usize..3).prop_map(Step::GiveBack),
        3 => (0u64..12).prop_map(Step::Wait),
        3 => Just(Step::Look),
    ];
    proptest::collection::vec(step, 1..400)
}

proptest! {
    // XorShift instead of ChaCha: in a debug build the default generator takes most of the test's time.
    #![proptest_config(ProptestConfig { cases: 2_000, rng_algorithm: RngAlgorithm::XorShift, ..ProptestConfig::default() })]

    /// Compares alerts with the true number of seats at each second, for arbitrary times of observation.
    #[test]
    fn alerts_pair_up_miss_no_peak_and_never_end_early(steps in steps(), share_bp in 0u32..=10_000, after in 0u64..20) {
        let rules = CapacityRules {
            limit: 12,
            tenant_share_bp: share_bp,
            warn_bp: 7000,
            critical_bp: 9000,
            resolve_bp: 5000,
            resolve_after: Duration::from_secs(after),
        };
        let mut seats = Seats::new(rules);
        let mut alerts = CapacityAlerts::new(rules, None);
        let tenants = ["t0", "t1", "t2"].map(tenant);
        let mut model = [0_usize; 3];
        let mut now = 0;
        // Taken seats by second; the peak since the last observation; the open levels.
        let mut truth = vec![(0, 0)];
        let (mut highest, mut open) = (0, [false; 2]);
        for step in steps {
            let before: usize = model.iter().sum();
            match step {
                Step::Admit(n) => {
                    let mine = model[n];
                    let room = before < 12 && mine < rules.tenant_limit();
                    prop_assert_eq!(seats.admit(&tenants[n]).is_ok(), room, "{} of 12, {} of {}", before, mine, share_bp);
                    if room {
                        model[n] += 1;
                    }
                }
                Step::Return(n) => {
                    seats.admit_returning(&tenants[n]);
                    model[n] += 1;
                }
                Step::GiveBack(n) => {
                    if model[n] > 0 {
                        model[n] -= 1;
                        seats.give_back(&tenants[n]);
                    }
                }
                Step::Wait(seconds) => now += seconds,
                Step::Look => {
                    let changes = alerts.observe(seats.look(), at(now));
                    for change in &changes {
                        let is_open = &mut open[change.level as usize];
                        let raised = change.kind == AlertKind::Raised;
                        prop_assert_ne!(*is_open, raised, "{:?}", change);
                        *is_open = raised;
                        if raised {
                            prop_assert!(reaches(highest, 12, rules.threshold_bp(change.level)), "{:?}", change);
                        } else {
                            let from = now.saturating_sub(after);
                            let calm = |taken: usize| !reaches(taken, 12, 5000);
                            let mut period = truth.iter().rev().take_while(|(since, _)| *since > from);
                            prop_assert!(period.all(|it| calm(it.1)), "{:?}", truth);
                            // The value at the start of the period; a change in its first second may precede it.
                            let at_from = truth.iter().rfind(|(since, _)| *since <= from);
                            prop_assert!(at_from.is_none_or(|it| calm(it.1)), "{:?}", truth);
                        }
                    }
                    let resolved = changes.iter().any(|change| change.kind == AlertKind::Resolved);
                    for level in AlertLevel::ALL {
                        let reached = reaches(highest, 12, rules.threshold_bp(level));
                        prop_assert!(!reached || open[level as usize] || resolved, "{:?} was missed", level);
                    }
                    prop_assert!(!open[1] || open[0], "critical implies warning");
                    highest = model.iter().sum();
                }
            }
            let taken: usize = model.iter().sum();
            prop_assert_eq!(seats.taken(), taken);
            highest = highest.max(taken);
            truth.push((now, taken));
        }
        // Once all seats are free, the alert is resolved after the period, and no tenant has an entry.
        for (tenant, mine) in tenants.iter().zip(model) {
            (0..mine).for_each(|_| seats.give_back(tenant));
        }
        alerts.observe(seats.look(), at(now));
        prop_assert!(alerts.level().is_none() || alerts.resolves_at() <= Some(at(now + after)));
        alerts.observe(seats.look(), at(now + after));
        prop_assert_eq!(alerts.level(), None);
        prop_assert_eq!(seats.by_tenant.len(), 0);
    }
}
