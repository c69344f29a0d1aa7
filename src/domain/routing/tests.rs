use proptest::{prelude::*, test_runner::RngAlgorithm};

use super::{
    success_window::{Sample, WindowState},
    *,
};

pub(crate) fn rules() -> RecoveryRules {
    RecoveryRules {
        cooldown: Duration::from_secs(60),
        max_cooldown: Duration::from_secs(1800),
        jitter_bp: 2000,
        probe_timeout: Duration::from_secs(10),
        canary_steps_bp: vec![500, 2500, 5000, 10_000],
        close_after_successes: 3,
        reopen_failures: 2,
        reopen_within: 100,
    }
}

pub(crate) fn figures() -> WindowFigures {
    WindowFigures { state: WindowState::Breached, samples: 20, failures: 1, length_seconds: 3600 }
}

pub(crate) fn at(seconds: u64) -> Timestamp {
    Timestamp(1_800_000_000_000_000).plus(Duration::from_secs(seconds))
}

#[test]
fn fr_007_workspace_rolls_back_probes_tries_canaries_and_is_restored() {
    let (rules, mut routing) = (rules(), Routing::new(Route::Acp));
    let flip = routing.on_breach(figures(), at(0), 0.5, &rules).unwrap();
    assert_eq!((flip.to, flip.epoch, flip.is_rollback()), (Route::Http, 1, true));
    assert_eq!(routing.on_breach(figures(), at(1), 0.5, &rules), None);
    assert_eq!(routing.on_tick(at(59), 0.5, &rules), None);
    let probe = routing.on_tick(at(60), 0.5, &rules).unwrap();
    routing.on_probe(probe, Sample::Success, at(61), 0.5, &rules);
    let mut shares = Vec::new();
    let flip = loop {
        assert_eq!(routing.route(), Route::Http, "a handshake or a canary alone does not restore");
        shares.push(routing.canary_every(&rules).unwrap());
        if let Some(flip) = routing.on_canary(probe, Some(Sample::Success), at(62), 0.5, &rules) {
            break flip;
        }
    };
    assert_eq!(shares, [20, 20, 20, 4, 4, 4, 2, 2, 2, 1, 1, 1]);
    assert_eq!((flip.to, flip.epoch, flip.is_restore()), (Route::Acp, 2, true));
    assert_eq!(routing.on_turn(2, Sample::Failure, at(63), 0.5, &rules), None);
    let again = routing.on_turn(2, Sample::Failure, at(64), 0.5, &rules).unwrap();
    assert_eq!((again.to, again.epoch, again.attempt), (Route::Http, 3, 1));
    assert_eq!(routing.next_probe_at(), Some(at(64 + 120)), "the second cool-down is twice as long");
}

/// A workspace rolled back automatically at 0, with `times` failed probes since; and the time of the last one.
fn failed(times: u32) -> (Routing, Timestamp) {
    let (rules, mut routing, mut now) = (rules(), Routing::new(Route::Acp), at(0));
    routing.on_breach(figures(), now, 0.5, &rules).unwrap();
    for _ in 0..times {
        now = routing.next_probe_at().unwrap();
        let probe = routing.on_tick(now, 0.5, &rules).unwrap();
        routing.on_probe(probe, Sample::Failure, now, 0.5, &rules);
    }
    (routing, now)
}

fn attribution() -> Attribution {
    Attribution { initiator: Initiator::Operator, actor: "ann".into(), actor_note: None, reason: "a test".into() }
}

/// Makes a probe and all canaries succeed; returns the restore.
fn recover(routing: &mut Routing, now: Timestamp) -> Flip {
    let rules = rules();
    let probe = routing.on_tick(now, 0.5, &rules).unwrap();
    routing.on_probe(probe, Sample::Success, now, 0.5, &rules);
    for _ in 0..11 {
        assert_eq!(routing.on_canary(probe, Some(Sample::Success), now, 0.5, &rules), None);
    }
    routing.on_canary(probe, Some(Sample::Success), now, 0.5, &rules).unwrap()
}

#[test]
fn cool_down_doubles_to_its_maximum_and_jitter_stays_within_bounds() {
    for (times, seconds) in [(0, 60), (1, 120), (2, 240), (4, 960), (5, 1800), (6, 1800), (19, 1800), (40, 1800)] {
        let (routing, now) = failed(times);
        assert_eq!(routing.next_probe_at(), Some(now.plus(Duration::from_secs(seconds))), "after {times}");
    }
    for (fraction, seconds) in [(0.0, 48), (1.0, 72), (-1.0, 48), (2.0, 72)] {
        let mut routing = Routing::new(Route::Acp);
        routing.on_breach(figures(), at(0), fraction, &rules()).unwrap();
        assert_eq!(routing.next_probe_at(), Some(at(seconds)), "fraction {fraction}");
    }
}

#[test]
fn late_probe_of_an_earlier_attempt_is_ignored_even_after_twenty_failures() {
    let rules = rules();
    for times in [0, 1, 19, 20, 21, 30] {
        let (mut routing, _) = failed(times);
        let now = routing.next_probe_at().unwrap();
        let lost = routing.on_tick(now, 0.5, &rules).unwrap();
        let timed_out = routing.wakes_at(&rules).unwrap();
        assert_eq!(timed_out, now.plus(rules.probe_timeout * 2));
        assert_eq!(routing.on_tick(timed_out, 0.5, &rules), None);
        assert_eq!(routing.stage(), Stage::Open, "the slot is free again");
        routing.on_tick(routing.next_probe_at().unwrap(), 0.5, &rules).unwrap();
        let before = routing.clone();
        routing.on_probe(lost, Sample::Success, now, 0.5, &rules);
        assert_eq!(routing, before, "after {times}");
    }
}

#[test]
fn healthy_hours_forgive_one_failed_attempt_each_and_a_failure_restarts_the_hour() {
    let (rules, (mut routing, _)) = (rules(), failed(30));
    let now = routing.next_probe_at().unwrap();
    recover(&mut routing, now);
    assert_eq!(routing.attempt(), 20, "a restore keeps at most 20");
    let after = |seconds| now.plus(Duration::from_secs(seconds));
    assert_eq!(routing.wakes_at(&rules), Some(after(3600)));
    routing.on_tick(after(3599), 0.5, &rules);
    assert_eq!(routing.attempt(), 20);
    routing.on_tick(after(3600), 0.5, &rules);
    assert_eq!(routing.attempt(), 19);
    assert_eq!(routing.on_turn(routing.epoch(), Sample::Failure, after(5400), 0.5, &rules), None);
    routing.on_tick(after(8999), 0.5, &rules);
    assert_eq!(routing.attempt(), 19);
    routing.on_tick(after(5400 + 7200), 0.5, &rules);
    assert_eq!(routing.attempt(), 17);
    routing.on_tick(after(5400 + 365 * 24 * 3600), 0.5, &rules);
    assert_eq!((routing.attempt(), routing.wakes_at(&rules)), (0, None));
}

#[test]
fn workspace_is_watched_for_the_first_hundred_turns_after_a_restore() {
    let rules = rules();
    for (between, flips) in [(0, true), (98, true), (99, false)] {
        let (mut routing, _) = failed(0);
        let now = routing.next_probe_at().unwrap();
        let epoch = recover(&mut routing, now).epoch;
        assert_eq!(routing.on_turn(epoch, Sample::Failure, now, 0.5, &rules), None);
        for _ in 0..between {
            assert_eq!(routing.on_turn(epoch, Sample::Success, now, 0.5, &rules), None);
        }
        let flip = routing.on_turn(epoch, Sample::Failure, now, 0.5, &rules);
        assert_eq!(flip.is_some(), flips, "failures in turn 1 and turn {}", between + 2);
    }
}

#[test]
fn pin_overrides_the_window_until_it_is_released() {
    let (rules, mut routing) = (rules(), Routing::new(Route::Acp));
    assert_eq!(routing.set_pin(Route::Acp, attribution(), at(0)), None);
    assert_eq!(routing.on_breach(figures(), at(1), 0.5, &rules), None);
    assert_eq!(routing.release_pin(attribution(), at(2)), None);
    assert_eq!(routing.on_breach(figures(), at(3), 0.5, &rules).unwrap().to, Route::Http);
    assert_eq!(routing.roll_back(attribution(), at(4)), None);
    assert_eq!((routing.wakes_at(&rules), routing.on_tick(at(9999), 0.5, &rules)), (None, None), "no probe");
    assert_eq!(routing.restore(attribution(), at(10_000)).unwrap().trigger, FlipTrigger::ManualOperator);
    assert_eq!((routing.stage(), routing.pin(), routing.attempt()), (Stage::Closed, None, 0));
}

#[test]
fn default_changed_to_http_ends_the_rollback() {
    let (mut routing, now) = failed(1);
    assert_eq!(routing.rollback().unwrap().trigger, FlipTrigger::AutoThreshold);
    assert_eq!(routing.set_default(Route::Http, attribution(), now), None);
    assert_eq!((routing.rollback(), routing.stage()), (None, Stage::Closed));
    let mut routing = Routing::new(Route::Http);
    assert_eq!(routing.set_pin(Route::Acp, attribution(), now).unwrap().to, Route::Acp);
    assert_eq!(routing.release_pin(attribution(), now).unwrap().to, Route::Http);
    assert_eq!(routing.rollback(), None);
}

#[test]
fn restart_after_a_clock_step_back_waits_at_most_one_cool_down() {
    let (rules, mut routing) = (rules(), Routing::new(Route::Acp));
    routing.on_breach(figures(), at(100_000), 0.5, &rules).unwrap();
    assert_eq!(routing.clone().after_restart(at(100_030)).next_probe_at(), Some(at(100_060)));
    assert_eq!(routing.clone().after_restart(at(100_000 - 86_400)).next_probe_at(), Some(at(100_060 - 86_400)));
    assert_eq!(routing.clone().after_restart(at(200_000)).next_probe_at(), Some(at(100_060)), "at once");
    routing.on_tick(at(100_060), 0.5, &rules).unwrap();
    let restarted = routing.after_restart(at(50));
    assert_eq!((restarted.stage(), restarted.next_probe_at()), (Stage::Open, Some(at(50))), "the probe is repeated");
}

proptest! {
    // XorShift instead of ChaCha: in a debug build the default generator takes most of the test's time.
    #![proptest_config(ProptestConfig { cases: 10_000, rng_algorithm: RngAlgorithm::XorShift, ..ProptestConfig::default() })]

    #[test]
    fn workspace_with_two_dead_routes_is_probed_ever_more_rarely_and_never_flips(
        ends in prop::collection::vec((0u8..4, 0.0f64..=1.0), 1..40),
    ) {
        let (rules, mut routing, mut now) = (rules(), Routing::new(Route::Acp), at(0));
        routing.on_breach(figures(), now, 0.5, &rules).unwrap();
        for (n, (end, fraction)) in ends.into_iter().enumerate() {
            let waited = routing.wakes_at(&rules).unwrap().since(now);
            let mark = Duration::from_secs(60 * (1 << n.min(5))).min(rules.max_cooldown);
            let fine = mark.mul_f64(0.799)..=mark.mul_f64(1.201);
            prop_assert!(fine.contains(&waited), "waited {waited:?} after {n} failed attempts");
            now = now.plus(waited);
            let probe = routing.on_tick(now, fraction, &rules).unwrap();
            match end {
                0 => routing.on_probe(probe, Sample::Failure, now, fraction, &rules),
                // The probe's result is lost.
                1 => {
                    now = routing.wakes_at(&rules).unwrap();
                    prop_assert_eq!(routing.on_tick(now, fraction, &rules), None);
                }
                // The handshake succeeds, and a canary fails after some successful ones.
                successes => {
                    routing.on_probe(probe, Sample::Success, now, fraction, &rules);
                    for _ in 0..successes {
                        prop_assert_eq!(routing.on_canary(probe, Some(Sample::Success), now, fraction, &rules), None);
                    }
                    prop_assert_eq!(routing.on_canary(probe, Some(Sample::Failure), now, fraction, &rules), None);
                }
            }
            // Turns over the fallback fail too; the window does not count them, and nothing changes.
            let before = routing.clone();
            prop_assert_eq!(routing.on_turn(1, Sample::Failure, now, fraction, &rules), None);
            prop_assert_eq!(routing.on_breach(figures(), now, fraction, &rules), None);
            prop_assert_eq!(&routing, &before);
            prop_assert_eq!((routing.route(), routing.epoch(), routing.attempt()), (Route::Http, 1, n as u32 + 1));
        }
    }
}
