use super::*;
use crate::domain::success_window::{Sample, WindowState};

fn rules() -> RecoveryRules {
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

fn figures() -> WindowFigures {
    WindowFigures { state: WindowState::Breached, samples: 20, failures: 1, length_seconds: 3600 }
}

fn at(seconds: u64) -> Timestamp {
    Timestamp(1_800_000_000_000_000).plus(Duration::from_secs(seconds))
}

#[test]
fn fr_007_a_workspace_rolls_back_probes_tries_canaries_and_is_restored() {
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
