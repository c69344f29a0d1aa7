//! SuccessWindow: outcomes in, verdict out. One for each workspace in use; the rule is in
//! [`crate::domain::routing::success_window`].

use std::sync::Arc;

use actix::{Actor, ActorFutureExt, AsyncContext, Context, Handler, Recipient, WrapFuture};

use crate::{
    actors::{
        handles::messages::{OutcomeObserved, ReadWindow, TurnObserved, WindowBreached},
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

/// Outcomes that wait beyond the one place that each sender owns, which is what bounds them: a turn has one sender.
const MAILBOX: usize = 64;

/// Counts the outcome of a workspace's turns.
pub(crate) struct SuccessWindow {
    workspace: WorkspaceKey,
    services: Arc<Services>,
    acp: OutcomeWindow,
    /// The same of the fallback. It decides nothing; that it fails too is an alarm.
    http: OutcomeWindow,
    router: Recipient<WindowBreached>,
    turns: Recipient<TurnObserved>,
    /// The epoch whose breach the router has taken.
    told: Option<u64>,
    /// The epoch whose bad fallback was told.
    alarmed: Option<u64>,
}

impl SuccessWindow {
    /// Resumes what was counted before.
    pub(crate) fn new(
        workspace: WorkspaceKey,
        services: Arc<Services>,
        acp: OutcomeWindow,
        http: OutcomeWindow,
        router: Recipient<WindowBreached>,
        turns: Recipient<TurnObserved>,
    ) -> Self {
        Self { workspace, services, acp, http, router, turns, told: None, alarmed: None }
    }

    /// A breach is told once for each epoch, and again with the next outcome where the router could not write it down.
    fn report_breach(&mut self, figures: WindowFigures, ctx: &mut Context<Self>) {
        let epoch = self.acp.epoch();
        if figures.state != WindowState::Breached || self.told == Some(epoch) {
            return;
        }
        self.told = Some(epoch);
        let session_notice = self.router.send(WindowBreached { epoch, figures });
        ctx.wait(session_notice.into_actor(self).map(|taken, this, _| {
            if !matches!(taken, Ok(Ok(true))) {
                this.told = None;
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

impl Actor for SuccessWindow {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
        // What was counted before a death may have gone unheard.
        let figures = self.acp.figures(self.services.clock.steady());
        self.report_breach(figures, ctx);
    }
}

impl Handler<OutcomeObserved> for SuccessWindow {
    type Result = ();

    fn handle(&mut self, message: OutcomeObserved, ctx: &mut Self::Context) {
        let OutcomeObserved(report) = message;
        let TurnReport { turn, carrier, sample, at } = report;
        if turn.epoch > self.acp.epoch() {
            self.acp.reset(turn.epoch);
            self.http.reset(turn.epoch);
        }
        if turn.canary.is_some() || turn.is_watched {
            let session_notice = self.turns.send(TurnObserved(report));
            // A router that is gone has left its place to another, which knows what is on disk.
            ctx.wait(session_notice.into_actor(self).map(|_, _, _| ()));
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
                if turn.route == Route::Http {
                    self.alarm(figures);
                }
            }
        }
    }
}

impl Handler<ReadWindow> for SuccessWindow {
    type Result = actix::MessageResult<ReadWindow>;

    fn handle(&mut self, _: ReadWindow, _: &mut Self::Context) -> Self::Result {
        actix::MessageResult(self.acp.figures(self.services.clock.steady()))
    }
}
