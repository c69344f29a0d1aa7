//! The route of one workspace: its gate, its SuccessWindow and its ProtocolRouter, brought back from the database.

pub(crate) mod router;
pub(crate) mod window;

use std::{fmt, sync::Arc};

use actix::{Actor, Addr, Recipient};
use parking_lot::Mutex;

use self::{router::ProtocolRouter, window::SuccessWindow};
use super::{
    handles::{
        messages::{ChangeRoute, OutcomeObserved, ProbeRoute, ReadRoute, ReadWindow, RouteView},
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

/// The route of one workspace. Cheap to clone; sessions hold it, and resume it when its actors were replaced.
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
    /// Brings the route, what was counted and the pace of turns back, and starts the two actors on this thread. A
    /// workspace that was never flipped takes its tenant's default. Safe to retry.
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

    /// Replaces actors that are gone, which only a fault of ours can cause; what cannot be done now is done the next
    /// time.
    pub(crate) async fn look_after(self, services: Arc<Services>) {
        if self.actors().is_alive() {
            return;
        }
        tracing::error!(marker = "[ROLLBACK]", workspace = %self.0.key, "route actors died and are restarted");
        match kept(&self.0.key, &services).await {
            Ok((row, acp, http)) => {
                let mut actors = self.0.actors.lock();
                if !actors.is_alive() {
                    *actors = Actors::start(row, acp, http, &services, &self.0.gate);
                }
            }
            Err(cause) => tracing::error!(marker = "[ROLLBACK]", %cause, "route actors could not be restarted yet"),
        }
    }

    /// How many hold on to it.
    pub(crate) fn holders(&self) -> usize {
        Arc::strong_count(&self.0)
    }

    /// Where sessions read the route.
    pub(crate) fn gate(&self) -> &RouteGate {
        &self.0.gate
    }

    /// How long turns take.
    pub(crate) fn pace(&self) -> &WorkspacePace {
        &self.0.pace
    }

    /// The route as its router sees it.
    pub(crate) async fn view(&self) -> Result<RouteView, Failure> {
        self.actors().router.send(ReadRoute).await.map_err(router_gone)
    }

    /// What the window holds.
    pub(crate) async fn figures(&self) -> Result<WindowFigures, Failure> {
        self.actors().window.send(ReadWindow).await.map_err(router_gone)
    }

    /// Changes the route. A failure has changed nothing. A dropped future may have changed it.
    pub(crate) async fn change(&self, change: ChangeRoute) -> Result<RouteView, Failure> {
        self.actors().router.send(change).await.map_err(router_gone)?
    }

    /// Shakes hands with an agent of the workspace.
    pub(crate) async fn probe(&self) -> Result<(), Failure> {
        self.actors().router.send(ProbeRoute).await.map_err(router_gone)?
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
        let observed: Recipient<OutcomeObserved> = window.clone().recipient();
        gate.report_to(Box::new(move || {
            let place = observed.clone();
            // Refused only by a window that is gone, whose successor counts what is on disk.
            Box::new(move |report| drop(place.try_send(OutcomeObserved(report))))
        }));
        Self { router, window }
    }

    fn is_alive(&self) -> bool {
        self.router.connected() && self.window.connected()
    }
}

fn router_gone(_: actix::MailboxError) -> Failure {
    Failure::new(ErrorCode::Internal, "the workspace's router is gone; it is replaced in a moment")
}

/// The default route of a workspace that was never routed: that of its tenant.
pub(crate) fn default_route(tenant: Option<&store::TenantProtocol>) -> Route {
    tenant.map_or(Route::Acp, |tenant| if tenant.enable_acp { tenant.default_protocol } else { Route::Http })
}

/// The route as it is kept, and the windows of its epoch.
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
