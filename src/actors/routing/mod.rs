//! Route of one workspace: its gate, `SuccessWindow` and `ProtocolRouter`, restored from the database.

pub(crate) mod router;
pub(crate) mod window;

use std::{fmt, sync::Arc};

use actix::{Actor, Addr, WeakRecipient};
use parking_lot::Mutex;

use self::{router::ProtocolRouter, window::SuccessWindow};
use super::{
    handles::{
        messages::{ChangeRoute, OutcomeObserved, ProbeRoute, ReadRoute, ReadWindow, RouteView, StopRouting},
        route_gate::{RouteGate, WorkspacePace},
    },
    services::Services,
};
use crate::{
    domain::{
        ids::WorkspaceKey,
        routing::{
            Route,
            success_window::{OutcomeWindow, WindowFigures},
        },
        session::eta::{PACE_TURNS, TurnPace},
        turn::outcome::{ErrorCode, Failure},
    },
    store,
    telemetry::Metrics,
};

/// Route of one workspace. Cheap to clone; outlives its actors, which are replaced after a panic.
#[derive(Clone)]
pub(crate) struct WorkspaceRouting(Arc<Inner>);

struct Inner {
    key: WorkspaceKey,
    gate: RouteGate,
    pace: WorkspacePace,
    actors: Mutex<Actors>,
    metrics: Metrics,
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The timers of the router would keep it alive, and it would probe beside its successor.
        self.actors.lock().stop();
        self.metrics.routes().vanished(self.gate.route());
    }
}

#[derive(Clone)]
struct Actors {
    router: Addr<ProtocolRouter>,
    window: Addr<SuccessWindow>,
}

impl fmt::Debug for WorkspaceRouting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkspaceRouting").field("key", &self.0.key).finish_non_exhaustive()
    }
}

impl WorkspaceRouting {
    /// Restores the route, the counted outcomes and the durations of turns, and starts the two actors on this thread. A
    /// workspace that was never flipped uses its tenant's default.
    ///
    /// # Errors
    /// Those of the database reads; safe to retry.
    pub(crate) async fn start(key: WorkspaceKey, services: &Arc<Services>) -> Result<Self, Failure> {
        let (row, acp, http) = kept(&key, services).await?;
        let durations = services.store.turn_durations(key.clone(), PACE_TURNS).await;
        let durations = durations.map_err(|cause| store::failure(&cause))?;
        let pace = WorkspacePace::new(TurnPace::of_newest(durations));
        let gate = RouteGate::new(&row.routing, &services.settings.recovery);
        services.metrics.routes().appeared(gate.route());
        let actors = Mutex::new(Actors::start(row, acp, http, services, &gate));
        Ok(Self(Arc::new(Inner { key, gate, pace, actors, metrics: services.metrics.clone() })))
    }

    /// Restarts actors that died, which only a bug can cause. A failed restart is repeated at the next call.
    pub(crate) async fn look_after(self, services: Arc<Services>) {
        if self.actors().is_alive() {
            return;
        }
        tracing::error!(marker = "[ROLLBACK]", workspace = %self.0.key, "route actors died and are restarted");
        match kept(&self.0.key, &services).await {
            Ok((row, acp, http)) => {
                let mut actors = self.0.actors.lock();
                // Checked again under the lock: two probes may have found the same dead actors.
                if !actors.is_alive() {
                    // The one that is left would run beside its successor.
                    actors.stop();
                    *actors = Actors::start(row, acp, http, &services, &self.0.gate);
                }
            }
            Err(cause) => tracing::error!(marker = "[ROLLBACK]", %cause, "route actors could not be restarted yet"),
        }
    }

    /// Identity of this handle and its clones, as long as one of them exists.
    pub(crate) fn id(&self) -> usize {
        Arc::as_ptr(&self.0).addr()
    }

    /// Returns the number of clones of this handle.
    pub(crate) fn holders(&self) -> usize {
        Arc::strong_count(&self.0)
    }

    /// Returns the gate at which sessions read the route.
    pub(crate) fn gate(&self) -> &RouteGate {
        &self.0.gate
    }

    /// Returns the recent durations of turns.
    pub(crate) fn pace(&self) -> &WorkspacePace {
        &self.0.pace
    }

    /// Reads the route from its router.
    pub(crate) async fn view(&self) -> Result<RouteView, Failure> {
        self.actors().router.send(ReadRoute).await.map_err(router_stopped)
    }

    /// Reads the figures of the success window.
    pub(crate) async fn figures(&self) -> Result<WindowFigures, Failure> {
        self.actors().window.send(ReadWindow).await.map_err(router_stopped)
    }

    /// Changes the route.
    ///
    /// # Errors
    /// A failure has changed nothing.
    ///
    /// # Cancel safety
    /// A dropped future may have changed the route.
    pub(crate) async fn change(&self, change: ChangeRoute) -> Result<RouteView, Failure> {
        self.actors().router.send(change).await.map_err(router_stopped)?
    }

    /// Probes ACP with a handshake with an agent of the workspace.
    pub(crate) async fn probe(&self) -> Result<(), Failure> {
        self.actors().router.send(ProbeRoute).await.map_err(router_stopped)?
    }

    /// Stops both actors, which write nothing afterwards.
    pub(crate) async fn stop(&self) {
        let Actors { router, window } = self.actors();
        // Fails only for an actor that has exited.
        let _ = router.send(StopRouting).await;
        let _ = window.send(StopRouting).await;
    }

    fn actors(&self) -> Actors {
        self.0.actors.lock().clone()
    }
}

impl Actors {
    fn start(
        row: store::RouteRow,
        acp: OutcomeWindow,
        http: OutcomeWindow,
        services: &Arc<Services>,
        gate: &RouteGate,
    ) -> Self {
        let key = row.key.clone();
        let router = ProtocolRouter::new(row, services.clone(), gate.clone()).start();
        let (breaches, turns) = (router.clone().recipient(), router.clone().recipient());
        let window = SuccessWindow::new(key, services.clone(), acp, http, breaches, turns).start();
        // Weak: the gate must not keep the window alive, nor the window the router, which holds the gate.
        let observed: WeakRecipient<OutcomeObserved> = window.clone().recipient().downgrade();
        gate.report_to(Box::new(move || {
            let slot = observed.upgrade();
            // Fails only if the window has exited; its successor restores the outcomes from disk.
            Box::new(move |report| {
                if let Some(slot) = slot {
                    let _ = slot.try_send(OutcomeObserved(report));
                }
            })
        }));
        Self { router, window }
    }

    /// Stops both actors; one that has exited is ignored.
    fn stop(&self) {
        let _ = self.router.try_send(StopRouting);
        let _ = self.window.try_send(StopRouting);
    }

    fn is_alive(&self) -> bool {
        self.router.connected() && self.window.connected()
    }
}

fn router_stopped(_: actix::MailboxError) -> Failure {
    Failure::new(ErrorCode::Internal, "the workspace's router has exited and is being restarted; try again")
}

/// Returns the default route of a workspace without a route of its own: that of its tenant, else ACP.
pub(crate) fn default_route(tenant: Option<&store::TenantProtocol>) -> Route {
    tenant.map_or(Route::Acp, |tenant| if tenant.enable_acp { tenant.default_protocol } else { Route::Http })
}

/// Reads the persisted route and the outcome windows of its epoch.
async fn kept(
    key: &WorkspaceKey,
    services: &Services,
) -> Result<(store::RouteRow, OutcomeWindow, OutcomeWindow), Failure> {
    let failed = |cause: store::StoreError| store::failure(&cause);
    let now = services.clock.steady();
    let row = match services.store.route(key.clone()).await.map_err(failed)? {
        Some(row) => store::RouteRow { routing: row.routing.after_restart(now), ..row },
        None => {
            let tenant = services.store.tenant_protocol(key.installation_id.clone()).await.map_err(failed)?;
            let default = tenant.map_or(Route::Acp, |it| it.new_route());
            router::fresh(key.clone(), default, services.clock.now())
        }
    };
    let rules = services.settings.window;
    let (epoch, since) = (row.routing.epoch(), now.minus(rules.length));
    let acp = services.store.window(key.clone(), epoch, Route::Acp, since).await.map_err(failed)?;
    let http = services.store.window(key.clone(), epoch, Route::Http, since).await.map_err(failed)?;
    let acp = OutcomeWindow::restore(rules, epoch, acp);
    let http = OutcomeWindow::restore(rules, epoch, http);
    Ok((row, acp, http))
}
