//! The route of one turn.

use super::{Probe, RecoveryRules, Rollback, Route, Routing, success_window::Sample};
use crate::domain::{clock::Timestamp, ids::PromptId, turn::outcome::ErrorCode};

/// A workspace's route as its sessions read it at the start of each turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RouteState {
    /// The route of turns that are no canaries.
    pub route: Route,
    pub epoch: u64,
    /// The attempt to which canaries belong.
    trial: Probe,
    /// Canary interval: one turn in `n` is tried over ACP.
    canary_every: Option<u64>,
    /// True during the first turns after a restore.
    is_watched: bool,
    pub rollback: Option<Rollback>,
}

/// The router's choice for a turn; the turn is stamped with it, and its outcome counts for this epoch and attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TurnRoute {
    pub route: Route,
    /// The epoch in which the turn began.
    pub epoch: u64,
    /// The attempt of which the turn is a canary; `None` if it is no canary.
    pub canary: Option<Probe>,
    /// True for one of the first turns after a restore.
    pub is_watched: bool,
}

/// The facts that are fixed when a turn starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TurnStart {
    /// The id of the turn and of its prompt.
    pub prompt_id: PromptId,
    pub route: TurnRoute,
    /// ACP for a canary; HTTP if the session has no usable ACP connection.
    pub carrier: Route,
    pub accepted_at: Timestamp,
}

/// The result of a turn or of a handshake, reported after its commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TurnReport {
    pub turn: TurnRoute,
    pub carrier: Route,
    /// `None` if the outcome is not counted.
    pub sample: Option<Sample>,
    /// The time of the end, by the steady clock.
    pub at: Timestamp,
}

impl TurnReport {
    /// True if the report concerns a trial of ACP: a canary, or one of the first turns after a restore, that ACP carried.
    /// A turn over HTTP proves nothing about ACP, whatever its stamp says.
    pub(crate) fn is_trial(&self) -> bool {
        self.carrier == Route::Acp && (self.turn.canary.is_some() || self.turn.is_watched)
    }
}

impl TurnRoute {
    /// The stamp of a handshake during this turn. A failed handshake ends the canary that caused it; a successful one
    /// only begins it. No handshake counts as one of the first turns after a restore: the turn itself does.
    pub(crate) fn of_handshake(self, failed: bool) -> Self {
        Self { canary: self.canary.filter(|_| failed), is_watched: false, ..self }
    }
}

impl RouteState {
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

    /// The route of turn number `turn`, counted from 0 since this state was published. Every `n`-th turn is a canary, by
    /// count and not at random.
    pub(crate) fn turn(&self, turn: u64) -> TurnRoute {
        // `turn + 1`, so that the first turn after a probe is no canary unless every turn is one.
        let is_canary = self.canary_every.is_some_and(|every| (turn + 1).is_multiple_of(every));
        TurnRoute {
            route: if is_canary { Route::Acp } else { self.route },
            epoch: self.epoch,
            canary: is_canary.then_some(self.trial),
            is_watched: self.is_watched,
        }
    }
}

/// A session's knowledge when a handshake with its agent fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Handshake {
    /// True if the agent has a headless command, which needs no handshake.
    pub has_oneshot: bool,
    /// True if the runtime was just reached over HTTP, so that only the ACP connection is broken.
    pub runtime_answers: bool,
    /// True if the session's turns used the fallback until now.
    pub was_on_fallback: bool,
}

/// True if the fallback avoids the cause of a failed handshake. Errors of the request, the sign-in, the capacity or this
/// service recur there, so they are never bypassed.
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
        ErrorCode::ConnectionLost => runtime_answers || was_on_fallback,
        // The fallback needs the runtime too. For a first handshake the runtime has just answered a request.
        ErrorCode::RuntimeUnavailable => runtime_answers,
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
    fn every_fourth_turn_is_a_canary_at_a_share_of_a_quarter() {
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
    fn only_a_turn_that_acp_carried_is_a_trial_and_no_handshake_is_a_watched_turn() {
        let trial = Probe { epoch: 3, attempt: 1 };
        let plain = TurnRoute { route: Route::Acp, epoch: 3, canary: None, is_watched: false };
        let canary = TurnRoute { canary: Some(trial), ..plain };
        let watched = TurnRoute { is_watched: true, ..plain };
        let is_trial =
            |turn, carrier| TurnReport { turn, carrier, sample: Some(Sample::Success), at: Timestamp(0) }.is_trial();
        assert!(is_trial(canary, Route::Acp) && is_trial(watched, Route::Acp) && !is_trial(plain, Route::Acp));
        assert!(!is_trial(canary, Route::Http) && !is_trial(watched, Route::Http));
        assert_eq!((canary.of_handshake(true), canary.of_handshake(false)), (canary, plain));
        assert_eq!((watched.of_handshake(true), watched.of_handshake(false)), (plain, plain));
    }

    #[test]
    fn fr_002_failed_handshake_is_bypassed_only_if_the_fallback_avoids_its_cause() {
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
        for code in [
            ErrorCode::AgentAuthRequired,
            ErrorCode::Authentication,
            ErrorCode::UnknownAgent,
            ErrorCode::CapacityExhausted,
        ] {
            assert!(!bypasses(code, was), "{code:?}");
        }
    }
}
