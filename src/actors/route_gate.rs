//! Where sessions read their workspace's route, at the start of each turn and without a hop.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use crate::{
    domain::{
        routing::{RecoveryRules, Route, Routing},
        turn_route::{RouteState, TurnRoute},
    },
    telemetry::Metrics,
};

/// The route of one workspace: written by its router, read by its sessions. Cheap to clone; it outlives the router's
/// actor, whose successor writes to the same.
#[derive(Debug, Clone)]
pub struct RouteGate {
    state: Arc<watch::Sender<RouteState>>,
    /// Turns since the state was set, for telling canaries.
    turns: Arc<Mutex<u64>>,
}

impl RouteGate {
    /// Begins with a route.
    pub fn new(routing: &Routing, rules: &RecoveryRules) -> Self {
        Self { state: Arc::new(watch::Sender::new(RouteState::of(routing, rules))), turns: Arc::default() }
    }

    /// Sets it, and counts the workspaces on each route.
    pub fn set(&self, routing: &Routing, rules: &RecoveryRules, metrics: &Metrics) {
        let state = RouteState::of(routing, rules);
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.state.borrow().clone();
        if before == state {
            return;
        }
        // A canary of another step is counted from there on.
        *turns = 0;
        metrics.routes().moved(before.route, state.route);
        self.state.send_replace(state);
    }

    /// The route now.
    pub fn state(&self) -> RouteState {
        self.state.borrow().clone()
    }

    /// What carries turns now, canaries aside.
    pub fn route(&self) -> Route {
        self.state.borrow().route
    }

    /// The way of a turn that begins now.
    pub fn next_turn(&self) -> TurnRoute {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = self.state.borrow().turn(*turns);
        *turns = turns.wrapping_add(1);
        turn
    }

    /// What a handshake that is no turn counts for.
    pub fn handshake(&self) -> TurnRoute {
        let state = self.state.borrow();
        TurnRoute { route: state.route, epoch: state.epoch, canary: None, is_watched: false }
    }
}
