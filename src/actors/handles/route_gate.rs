//! A workspace's route, read by its sessions at the start of each turn without a hop.

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

/// Route of one workspace: written by its router, read by its sessions. Cheap to clone; outlives the router's actor,
/// whose successor writes to the same gate.
#[derive(Clone)]
pub(crate) struct RouteGate(Arc<Inner>);

struct Inner {
    state: watch::Sender<RouteState>,
    /// Turns since the state was set; selects the canaries.
    turns: Mutex<u64>,
    /// Creates reporters; absent until the window has started.
    window: Mutex<Option<Window>>,
}

/// Reports the outcome of one turn or handshake to the window. From any thread; never blocks.
pub(crate) type Reporter = Box<dyn FnOnce(TurnReport) + Send>;

/// Creates a [`Reporter`] to a window.
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
    /// Creates a gate with a route.
    pub(crate) fn new(routing: &Routing, rules: &RecoveryRules) -> Self {
        let state = watch::Sender::new(RouteState::of(routing, rules));
        Self(Arc::new(Inner { state, turns: Mutex::default(), window: Mutex::default() }))
    }

    /// Sets the window that later outcomes are reported to.
    pub(crate) fn report_to(&self, window: Window) {
        *self.0.window.lock() = Some(window);
    }

    /// Creates a reporter for one turn or handshake, with its own slot in the window's mailbox.
    pub(crate) fn reporter(&self) -> Reporter {
        match &*self.0.window.lock() {
            Some(window) => window(),
            None => Box::new(|_| ()),
        }
    }

    /// Sets the route and updates the number of workspaces on each route.
    pub(crate) fn set(&self, routing: &Routing, rules: &RecoveryRules, metrics: &Metrics) {
        let state = RouteState::of(routing, rules);
        let mut turns = self.0.turns.lock();
        let before = self.0.state.borrow().clone();
        // The routing is also saved with each successful canary; the count of turns, which selects the next one, must
        // survive that.
        if before == state {
            return;
        }
        // A new state restarts the canary count.
        *turns = 0;
        metrics.routes().moved(before.route, state.route);
        self.0.state.send_replace(state);
    }

    pub(crate) fn state(&self) -> RouteState {
        self.0.state.borrow().clone()
    }

    /// Current carrier of turns, canaries aside.
    pub(crate) fn route(&self) -> Route {
        self.0.state.borrow().route
    }

    /// Route of a turn that begins now; counts it for the canaries.
    pub(crate) fn next_turn(&self) -> TurnRoute {
        let mut turns = self.0.turns.lock();
        let turn = self.0.state.borrow().turn(*turns);
        *turns = turns.wrapping_add(1);
        turn
    }

    /// Rollback state of the workspace and its reason, for a turn's result.
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

    /// Route to which a handshake outside of a turn is attributed, and a turn that the agent began by itself.
    pub(crate) fn outside_turns(&self) -> TurnRoute {
        let state = self.0.state.borrow();
        TurnRoute { route: state.route, epoch: state.epoch, canary: None, is_watched: false }
    }
}

/// Durations of the turns of one workspace: fed by the end of each completed turn, read at the start of the next.
/// Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct WorkspacePace(Arc<Mutex<TurnPace>>);

impl fmt::Debug for WorkspacePace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkspacePace").field("median", &self.median()).finish()
    }
}

impl WorkspacePace {
    /// Starts from the durations that are already known.
    pub(crate) fn new(pace: TurnPace) -> Self {
        Self(Arc::new(Mutex::new(pace)))
    }

    /// Adds the duration of a completed turn.
    pub(crate) fn add(&self, took: Duration) {
        self.lock().add(took);
    }

    /// Median duration of a turn; `None` before the first.
    pub(crate) fn median(&self) -> Option<Duration> {
        self.lock().median()
    }

    fn lock(&self) -> MutexGuard<'_, TurnPace> {
        // Each duration is added or removed in one step, so the state is always consistent.
        self.0.lock()
    }
}
