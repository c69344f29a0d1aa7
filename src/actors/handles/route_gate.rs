//! Where sessions read their workspace's route, at the start of each turn and without a hop.

use std::{fmt, sync::Arc, time::Duration};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;

use crate::{
    contract::result::ResultRollback,
    domain::{
        redaction::Redacted,
        routing::{
            RecoveryRules, Route, Routing,
            turn_route::{RouteState, TurnReport, TurnRoute},
        },
        session::eta::TurnPace,
    },
    telemetry::Metrics,
};

/// The route of one workspace: written by its router, read by its sessions. Cheap to clone; it outlives the router's
/// actor, whose successor writes to the same.
#[derive(Clone)]
pub(crate) struct RouteGate(Arc<Inner>);

struct Inner {
    state: watch::Sender<RouteState>,
    /// Turns since the state was set, for telling canaries.
    turns: Mutex<u64>,
    /// Makes reporters; none before the window is there.
    window: Mutex<Option<Window>>,
}

/// Tells the window the outcome of one turn or handshake. From any thread; never blocks.
pub(crate) type Reporter = Box<dyn FnOnce(TurnReport) + Send>;

/// A window, as who reports to it sees it.
pub(crate) type Window = Box<dyn Fn() -> Reporter + Send>;

impl fmt::Debug for RouteGate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RouteGate").field("state", &*self.0.state.borrow()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner").field("state", &*self.state.borrow()).finish_non_exhaustive()
    }
}

impl RouteGate {
    /// Begins with a route.
    pub(crate) fn new(routing: &Routing, rules: &RecoveryRules) -> Self {
        let state = watch::Sender::new(RouteState::of(routing, rules));
        Self(Arc::new(Inner { state, turns: Mutex::default(), window: Mutex::default() }))
    }

    /// Sets where outcomes are reported from now on.
    pub(crate) fn report_to(&self, window: Window) {
        *self.0.window.lock() = Some(window);
    }

    /// For one turn or handshake, which thereby has a place of its own in the window's mailbox.
    pub(crate) fn reporter(&self) -> Reporter {
        match &*self.0.window.lock() {
            Some(window) => window(),
            None => Box::new(|_| ()),
        }
    }

    /// Sets it, and counts the workspaces on each route.
    pub(crate) fn set(&self, routing: &Routing, rules: &RecoveryRules, metrics: &Metrics) {
        let state = RouteState::of(routing, rules);
        let mut turns = self.0.turns.lock();
        let before = self.0.state.borrow().clone();
        if before == state {
            return;
        }
        // A canary of another step is counted from there on.
        *turns = 0;
        metrics.routes().moved(before.route, state.route);
        self.0.state.send_replace(state);
    }

    pub(crate) fn state(&self) -> RouteState {
        self.0.state.borrow().clone()
    }

    /// What carries turns now, canaries aside.
    pub(crate) fn route(&self) -> Route {
        self.0.state.borrow().route
    }

    /// The way of a turn that begins now.
    pub(crate) fn next_turn(&self) -> TurnRoute {
        let mut turns = self.0.turns.lock();
        let turn = self.0.state.borrow().turn(*turns);
        *turns = turns.wrapping_add(1);
        turn
    }

    /// Whether the workspace is rolled back, and why, as results tell.
    pub(crate) fn rollback(&self) -> ResultRollback {
        match self.state().rollback {
            Some(rollback) => ResultRollback {
                active: true,
                reason: Some(Redacted::new(&rollback.reason).into_string()),
                trigger: Some(rollback.trigger.as_str().to_owned()),
            },
            None => ResultRollback::default(),
        }
    }

    /// What a handshake that is no turn counts for.
    pub(crate) fn handshake(&self) -> TurnRoute {
        let state = self.0.state.borrow();
        TurnRoute { route: state.route, epoch: state.epoch, canary: None, is_watched: false }
    }
}

/// The pace of one workspace: fed by the end of each completed turn, read where one begins. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct WorkspacePace(Arc<Mutex<TurnPace>>);

impl fmt::Debug for WorkspacePace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkspacePace").field("median", &self.median()).finish()
    }
}

impl WorkspacePace {
    /// Begins with what is known.
    pub(crate) fn new(pace: TurnPace) -> Self {
        Self(Arc::new(Mutex::new(pace)))
    }

    /// A turn was completed.
    pub(crate) fn add(&self, took: Duration) {
        self.lock().add(took);
    }

    /// How long a turn usually takes; `None` before the first.
    pub(crate) fn median(&self) -> Option<Duration> {
        self.lock().median()
    }

    fn lock(&self) -> MutexGuard<'_, TurnPace> {
        // Durations are put in and taken out one at a time, so a poisoned pace is still whole.
        self.0.lock()
    }
}
