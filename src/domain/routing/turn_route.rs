//! Which way one turn goes.

use super::{Probe, RecoveryRules, Rollback, Route, Routing, success_window::Sample};
use crate::domain::{clock::Timestamp, ids::PromptId, turn::outcome::ErrorCode};

/// The route of a workspace, as its sessions read it at the start of each turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RouteState {
    /// What carries turns, canaries aside.
    pub route: Route,
    pub epoch: u64,
    /// What canaries of now belong to.
    trial: Probe,
    /// Canary interval: one turn in `n` is tried over ACP.
    canary_every: Option<u64>,
    /// Whether turns are watched closely.
    is_watched: bool,
    /// Why the workspace is rolled back, while it is.
    pub rollback: Option<Rollback>,
}

/// Which way a turn goes; it is stamped with that, and its outcome counts for that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TurnRoute {
    /// What the router chose for it.
    pub route: Route,
    /// The epoch in which it began.
    pub epoch: u64,
    /// What it belongs to, where it tries whether ACP has recovered.
    pub canary: Option<Probe>,
    /// Whether it is one of the first after a restore.
    pub is_watched: bool,
}

/// What is fixed when a turn starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TurnStart {
    /// Also the id of its prompt.
    pub prompt_id: PromptId,
    pub route: TurnRoute,
    /// What is to carry it: ACP where it is a canary; HTTP where its session has no ACP connection to use.
    pub carrier: Route,
    /// When the prompt was accepted.
    pub accepted_at: Timestamp,
}

/// The result of a turn or of a handshake, once that is on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TurnReport {
    pub turn: TurnRoute,
    pub carrier: Route,
    /// What it counts as, if it counts.
    pub sample: Option<Sample>,
    /// When, by the steady clock.
    pub at: Timestamp,
}

impl RouteState {
    /// What is to be read of a routing.
    pub(crate) fn of(routing: &Routing, rules: &RecoveryRules) -> Self {
        Self {
            route: routing.route(),
            epoch: routing.epoch(),
            trial: routing.trial(),
            canary_every: routing.canary_every(rules),
            is_watched: routing.is_watched(),
            rollback: routing.rollback().cloned(),
        }
    }

    /// Which way the turn goes that is number `turn`, from 0, since this was decided. Every n-th one is a canary, by
    /// count and not by chance.
    pub(crate) fn turn(&self, turn: u64) -> TurnRoute {
        let is_canary = self.canary_every.is_some_and(|every| (turn + 1).is_multiple_of(every));
        TurnRoute {
            route: if is_canary { Route::Acp } else { self.route },
            epoch: self.epoch,
            canary: is_canary.then_some(self.trial),
            is_watched: self.is_watched,
        }
    }
}

/// What a session knows when a handshake of its agent fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Handshake {
    /// Whether its agent has a headless command, which needs no handshake.
    pub has_oneshot: bool,
    /// Whether the runtime has just been reached over HTTP, so that it is the connection over ACP that is broken.
    pub runtime_answers: bool,
    /// Whether the session's turns went over the fallback until now.
    pub was_on_fallback: bool,
}

/// Whether the fallback does not depend on what has just failed. What is wrong with the request, the sign-in, the
/// capacity or this service is no better there.
pub(crate) fn bypasses(code: ErrorCode, handshake: Handshake) -> bool {
    let Handshake { has_oneshot, runtime_answers, was_on_fallback } = handshake;
    match code {
        ErrorCode::ProtocolVersion
        | ErrorCode::HandshakeFailed
        | ErrorCode::HandshakeTimeout
        | ErrorCode::ProtocolViolation
        | ErrorCode::FrameTooLarge
        | ErrorCode::AgentError
        | ErrorCode::AgentCrashed
        | ErrorCode::AgentStartFailed => has_oneshot || was_on_fallback,
        ErrorCode::RuntimeUnavailable | ErrorCode::ConnectionLost => runtime_answers || was_on_fallback,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{
        super::{
            Attribution,
            success_window::{WindowFigures, WindowState},
        },
        *,
    };

    #[test]
    fn every_fourth_turn_is_a_canary_at_a_quarter_and_the_route_stays_http() {
        let rules = RecoveryRules {
            cooldown: Duration::ZERO,
            max_cooldown: Duration::ZERO,
            jitter_bp: 0,
            probe_timeout: Duration::from_secs(1),
            canary_steps_bp: vec![2500],
            close_after_successes: 1,
            reopen_failures: 1,
            reopen_within: 1,
        };
        let now = Timestamp(1);
        let mut routing = Routing::new(Route::Acp);
        let figures = WindowFigures { state: WindowState::Breached, samples: 5, failures: 5, length_seconds: 60 };
        routing.on_breach(figures, now, 0.5, &rules).unwrap();
        let probe = routing.on_tick(now, 0.5, &rules).unwrap();
        routing.on_probe(probe, Sample::Success, now, 0.5, &rules);
        let state = RouteState::of(&routing, &rules);
        let turns: Vec<_> = (0..8).map(|turn| state.turn(turn)).collect();
        let canaries: Vec<_> = turns.iter().map(|turn| turn.canary.is_some()).collect();
        assert_eq!(canaries, [false, false, false, true, false, false, false, true]);
        assert!(turns.iter().all(|turn| (turn.route == Route::Acp) == turn.canary.is_some() && turn.epoch == 1));
        routing.set_pin(Route::Http, Attribution::of_system("held"), now);
        assert!(RouteState::of(&routing, &rules).turn(3).canary.is_none(), "a pin ends the trial");
    }

    #[test]
    fn fr_002_failed_handshake_uses_the_fallback_only_if_independent() {
        let nothing = Handshake { has_oneshot: false, runtime_answers: false, was_on_fallback: false };
        let oneshot = Handshake { has_oneshot: true, ..nothing };
        let answers = Handshake { runtime_answers: true, ..nothing };
        let was = Handshake { was_on_fallback: true, ..nothing };
        for code in ErrorCode::ALL {
            assert!(!bypasses(*code, nothing), "{code:?}");
        }
        assert!(bypasses(ErrorCode::ProtocolVersion, oneshot) && !bypasses(ErrorCode::ProtocolVersion, answers));
        assert!(
            bypasses(ErrorCode::RuntimeUnavailable, answers) && !bypasses(ErrorCode::RuntimeUnavailable, oneshot)
        );
        assert!(bypasses(ErrorCode::HandshakeTimeout, was));
        for code in [ErrorCode::AgentAuthRequired, ErrorCode::UnknownAgent, ErrorCode::CapacityExhausted] {
            assert!(!bypasses(code, was), "{code:?}");
        }
    }
}
