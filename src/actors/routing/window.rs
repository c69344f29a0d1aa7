//! `SuccessWindow`: counts outcomes and reports breaches, one for each workspace in use. The rule is in
//! [`crate::domain::routing::success_window`].

use std::sync::Arc;

use actix::{Actor, ActorContext, ActorFutureExt, AsyncContext, Context, Handler, Recipient, WrapFuture};

use crate::{
    actors::{
        handles::messages::{OutcomeObserved, ReadWindow, StopRouting, TurnObserved, WindowBreached},
        services::Services,
    },
    domain::{
        ids::WorkspaceKey,
        routing::{
            Route,
            success_window::{OutcomeWindow, WindowFigures, WindowState},
            turn_route::TurnReport,
        },
    },
};

/// Mailbox capacity beyond the slot that each sender owns. The slots bound the queue, because each turn has one sender.
const MAILBOX: usize = 64;

/// Counts the outcomes of a workspace's turns.
pub(crate) struct SuccessWindow {
    workspace: WorkspaceKey,
    services: Arc<Services>,
    acp: OutcomeWindow,
    /// Outcomes of the fallback. They do not change the route; a breach raises an alarm.
    http: OutcomeWindow,
    router: Recipient<WindowBreached>,
    turns: Recipient<TurnObserved>,
    /// Epoch whose breach was reported to the router.
    reported: Option<u64>,
    /// Epoch in which the failing fallback was logged.
    alarmed: Option<u64>,
}

impl SuccessWindow {
    /// Resumes from the persisted outcomes.
    pub(crate) fn new(
        workspace: WorkspaceKey,
        services: Arc<Services>,
        acp: OutcomeWindow,
        http: OutcomeWindow,
        router: Recipient<WindowBreached>,
        turns: Recipient<TurnObserved>,
    ) -> Self {
        services.metrics.routes().actor_created();
        Self { workspace, services, acp, http, router, turns, reported: None, alarmed: None }
    }

    /// Reports a breach once for each epoch; reports it again with the next outcome if the router could not persist it.
    fn report_breach(&mut self, figures: WindowFigures, ctx: &mut Context<Self>) {
        let epoch = self.acp.epoch();
        if figures.state != WindowState::Breached || self.reported == Some(epoch) {
            return;
        }
        self.reported = Some(epoch);
        let report = self.router.send(WindowBreached { epoch, figures });
        ctx.wait(report.into_actor(self).map(|taken, this, _| {
            if !matches!(taken, Ok(Ok(true))) {
                // The next outcome reports the breach again.
                this.reported = None;
            }
        }));
    }

    fn alarm(&mut self, figures: WindowFigures) {
        let epoch = self.http.epoch();
        if figures.state != WindowState::Breached || self.alarmed == Some(epoch) {
            return;
        }
        self.alarmed = Some(epoch);
        self.services.metrics.routes().both_failing();
        tracing::error!(
            marker = "[ROLLBACK]",
            workspace = %self.workspace,
            epoch,
            samples = figures.samples,
            failures = figures.failures,
            "fallback fails as well; the route is kept"
        );
    }
}

impl Drop for SuccessWindow {
    fn drop(&mut self) {
        self.services.metrics.routes().actor_dropped();
    }
}

impl Actor for SuccessWindow {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
        // A breach counted before a restart may not have been reported.
        let figures = self.acp.figures(self.services.clock.steady());
        self.report_breach(figures, ctx);
    }
}

impl Handler<OutcomeObserved> for SuccessWindow {
    type Result = ();

    fn handle(&mut self, message: OutcomeObserved, ctx: &mut Self::Context) {
        let OutcomeObserved(report) = message;
        let TurnReport { turn, carrier, sample, at } = report;
        // The first outcome of a new epoch; those of older epochs are ignored by the windows.
        if turn.epoch > self.acp.epoch() {
            self.acp.reset(turn.epoch);
            self.http.reset(turn.epoch);
        }
        if report.is_trial() {
            let sending = self.turns.send(TurnObserved(report));
            // If the router has exited, its successor restores the state from disk.
            ctx.wait(sending.into_actor(self).map(|_, _, _| ()));
        }
        let Some(sample) = sample else { return };
        self.services.metrics.routes().outcome(carrier, sample);
        match carrier {
            Route::Acp => {
                self.acp.record(turn.epoch, sample, at);
                let figures = self.acp.figures(at);
                self.report_breach(figures, ctx);
            }
            Route::Http => {
                self.http.record(turn.epoch, sample, at);
                let figures = self.http.figures(at);
                // A single session that fell back on its own is no sign that the workspace's fallback fails.
                if turn.route == Route::Http {
                    self.alarm(figures);
                }
            }
        }
    }
}

impl Handler<StopRouting> for SuccessWindow {
    type Result = ();

    fn handle(&mut self, _: StopRouting, ctx: &mut Self::Context) {
        ctx.stop();
    }
}

impl Handler<ReadWindow> for SuccessWindow {
    type Result = actix::MessageResult<ReadWindow>;

    fn handle(&mut self, _: ReadWindow, _: &mut Self::Context) -> Self::Result {
        actix::MessageResult(self.acp.figures(self.services.clock.steady()))
    }
}
