//! `ProtocolRouter`: the sole writer of a workspace's route, one for each workspace in use. The state machine is in
//! [`crate::domain::routing`].
//!
//! A change takes effect only once it is on disk: the state machine runs on a copy; copy and flip are written in one
//! transaction, which fails if another process has flipped meanwhile; then the change is published to sessions,
//! readers, metrics and the log.

use std::{sync::Arc, time::Duration};

use actix::{
    Actor, ActorContext, ActorFutureExt, AsyncContext, AtomicResponse, Context, Handler, SpawnHandle, WrapFuture,
    fut::LocalBoxActorFuture,
};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    actors::{
        handles::{
            index::LiveSession,
            messages::{
                ChangeRoute, ProbeRoute, ReadRoute, RouteChange, RouteView, StopRouting, TurnObserved, WindowBreached,
            },
            route_gate::RouteGate,
        },
        services::Services,
        session::connection_log,
    },
    contract::{
        automation::{RollbackThreshold, RollbackTrigger},
        notifications::notification::{NoteDetails, NoteKind, NoteStatus, TranscriptNote},
    },
    domain::{
        clock::Timestamp,
        ids::{SessionId, WorkspaceKey},
        notify::notice,
        redaction::{Redacted, RedactedJson},
        routing::{
            Attribution, Flip, FlipTrigger, Probe, Route, Routing,
            storm::AutomaticRollback,
            success_window::{Sample, WindowRules},
            turn_route::TurnReport,
        },
        session::{choices::Choices, event::EventKind, mcp::McpServers},
        share::FULL_BP,
        turn::{
            outcome::{ErrorCode, Failure},
            transcript::TranscriptEntry,
        },
        words::{FollowUp, ReasonCode},
    },
    store::{self, FlipRecord, RouteRow, SaveRoute, SavedRoute},
    transport::OpenRequest,
};

/// Mailbox capacity for administrators' changes, the window's breach and canary outcomes; further senders wait.
const MAILBOX: usize = 64;
/// Shortest delay of the timer, so that a stopped clock does not cause a busy loop.
const SHORTEST_WAKE: Duration = Duration::from_millis(10);
/// Longest delay of the timer, so that a change that could not be written is retried.
const LONGEST_WAKE: Duration = Duration::from_secs(60);
/// Delay of the timer after a change could not be written.
const RETRY: Duration = Duration::from_secs(1);

/// Actor that owns the route of one workspace.
pub(crate) struct ProtocolRouter {
    row: RouteRow,
    services: Arc<Services>,
    gate: RouteGate,
    timer: Option<SpawnHandle>,
}

type Saving = LocalBoxActorFuture<ProtocolRouter, Result<(), Failure>>;

impl ProtocolRouter {
    /// Resumes a persisted route; its decisions are published at `gate`.
    pub(crate) fn new(row: RouteRow, services: Arc<Services>, gate: RouteGate) -> Self {
        services.metrics.routes().actor_created();
        Self { row, services, gate, timer: None }
    }

    fn key(&self) -> &WorkspaceKey {
        &self.row.key
    }

    /// Returns the monotonic time, and a random fraction from 0 to 1 for the jitter.
    fn now_and_jitter(&self) -> (Timestamp, f64) {
        let fraction = (Uuid::new_v4().as_u128() >> 96) as f64 / f64::from(u32::MAX);
        (self.services.clock.steady(), fraction)
    }

    fn save(&mut self, next: Routing, flip: Option<Flip>, settings: Option<(bool, bool)>) -> Saving {
        self.save_step(next, flip, settings, None)
    }

    /// Persists a change, then applies and publishes it. `settings` are `migration_enabled` and `auto_rollout`,
    /// `run_id` is the migration run of which the change is a step.
    ///
    /// # Errors
    /// `RouteChanged` if another process changed the route first; the row that it wrote is adopted. Else that of the
    /// database, and the change is not applied.
    fn save_step(
        &mut self,
        next: Routing,
        flip: Option<Flip>,
        settings: Option<(bool, bool)>,
        run_id: Option<Uuid>,
    ) -> Saving {
        let settings = settings.filter(|now| *now != (self.row.migration_enabled, self.row.auto_rollout));
        if next == self.row.routing && settings.is_none() {
            return Box::pin(actix::fut::ready(Ok(())));
        }
        let now = self.services.clock.now();
        let sessions = self.services.index.of_workspace(self.key());
        let is_automatic = flip.as_ref().is_some_and(Flip::is_automatic_rollback);
        let automatic = is_automatic.then(|| self.services.storm.rollback());
        let record_of = |flip: &Flip| {
            let record = of(flip, automatic, &sessions, &self.services.settings.window, now);
            FlipRecord { run_id, ..record }
        };
        let record = flip.as_ref().map(record_of);
        let save = SaveRoute {
            key: self.key().clone(),
            // The write succeeds only on the row from which the change was derived.
            expected_epoch: self.row.routing.epoch(),
            routing: next.clone(),
            migration_enabled: settings.map(|it| it.0),
            auto_rollout: settings.map(|it| it.1),
            flip: record,
            now,
        };
        let services = self.services.clone();
        let writing = async move {
            let saved = services.store.save_route(save).await;
            if automatic.is_some() && saved.is_ok() {
                services.storm.look().await;
            }
            saved
        };
        Box::pin(writing.into_actor(self).map(move |saved, this, ctx| match saved {
            Ok(SavedRoute::Saved) => {
                this.row.routing = next;
                if let Some((migration_enabled, auto_rollout)) = settings {
                    (this.row.migration_enabled, this.row.auto_rollout) = (migration_enabled, auto_rollout);
                }
                this.publish(flip.as_ref());
                this.wake(ctx);
                Ok(())
            }
            Ok(SavedRoute::Stale(row)) => {
                // Another replica changed the route first; its row is authoritative.
                if let Some(row) = row {
                    this.row = *row;
                    this.publish(None);
                }
                this.wake(ctx);
                Err(Failure::new(ErrorCode::RouteChanged, "the route was changed concurrently"))
            }
            Err(cause) => {
                this.wake_in(RETRY, ctx);
                Err(store::failure(&cause))
            }
        }))
    }

    /// Publishes the route: sessions read it at their next turn. A flip also goes to readers, metrics and the log.
    fn publish(&self, flip: Option<&Flip>) {
        let routing = &self.row.routing;
        // Before the flip is announced: a session that reacts to the event already finds the new route.
        self.gate.set(routing, &self.services.settings.recovery, &self.services.metrics);
        let Some(flip) = flip else { return };
        let update = event(flip, routing);
        let now = self.services.clock.now();
        for session in self.services.index.of_workspace(self.key()) {
            session.shared.feed.announce(None, EventKind::Rollback, &update);
            // The flip changes the status of the session's connection.
            self.services.telemetry.publish(&session.shared, now);
        }
        self.services.metrics.routes().flipped(flip.to, flip.trigger);
        let in_storm = self.services.storm.is_active();
        let (samples, failures) = flip.figures.map_or((0, 0), |figures| (figures.samples, figures.failures));
        let reason = crate::domain::redaction::Redacted::new(&flip.attribution.reason);
        let actor = crate::domain::redaction::Redacted::new(&flip.attribution.actor);
        tracing::warn!(
            marker = "[ROLLBACK]",
            workspace = %self.row.key,
            route = flip.to.as_str(),
            epoch = flip.epoch,
            trigger = flip.trigger.as_str(),
            actor = %actor,
            reason = %reason,
            samples,
            failures,
            attempt = flip.attempt,
            in_storm,
            "{}",
            notice::of_flip(flip).body
        );
    }

    fn wake(&mut self, ctx: &mut Context<Self>) {
        let (now, _) = self.now_and_jitter();
        if let Some(at) = self.row.routing.wakes_at(&self.services.settings.recovery) {
            self.wake_in(at.since(now).clamp(SHORTEST_WAKE, LONGEST_WAKE), ctx);
        }
    }

    fn wake_in(&mut self, wait: Duration, ctx: &mut Context<Self>) {
        if let Some(timer) = self.timer.take() {
            ctx.cancel_future(timer);
        }
        self.timer = Some(ctx.run_later(wait, Self::tick));
    }

    fn tick(&mut self, ctx: &mut Context<Self>) {
        self.timer = None;
        if self.services.runtime.unavailable_for().is_some() {
            // A probe would fail for a cause that is not ACP's.
            return self.wake_in(RETRY, ctx);
        }
        let (now, fraction) = self.now_and_jitter();
        let mut next = self.row.routing.clone();
        let probe = next.on_tick(now, fraction, &self.services.settings.recovery);
        if next == self.row.routing {
            return self.wake(ctx);
        }
        let saving = self.save(next, None, None);
        // Waits, as the handlers do by `AtomicResponse`: no message changes the route between the decision and its
        // write.
        ctx.wait(saving.map(move |saved, this, ctx| {
            if let (Ok(()), Some(probe)) = (saved, probe) {
                this.probe(probe, ctx);
            }
        }));
    }

    /// Probes ACP with a handshake. The probe always ends, and its outcome is always reported to the state machine.
    fn probe(&mut self, probe: Probe, ctx: &mut Context<Self>) {
        let (services, key) = (self.services.clone(), self.key().clone());
        let probing = async move { perform_handshake(&services, &key).await };
        ctx.spawn(probing.into_actor(self).map(move |outcome, this, ctx| {
            let sample = if outcome.is_ok() { Sample::Success } else { Sample::Failure };
            outcome.as_ref().inspect_err(|failure| this.services.runtime.on_failure(failure)).ok();
            this.services.metrics.routes().probed(sample);
            let cause = outcome.err().map(|failure| failure.to_string());
            let cause = cause.as_deref().map(crate::domain::redaction::Redacted::new);
            tracing::info!(marker = "[ROLLBACK]", workspace = %this.row.key, epoch = probe.epoch, attempt = probe.attempt,
                succeeded = sample == Sample::Success, cause = cause.as_ref().map(|it| it.as_str()), "ACP was probed");
            let (now, fraction) = this.now_and_jitter();
            let mut next = this.row.routing.clone();
            next.on_probe(probe, sample, now, fraction, &this.services.settings.recovery);
            let saving = this.save(next, None, None);
            // A failed write is not repeated: the probe counts as failed after its timeout, and a new one follows.
            ctx.wait(saving.map(|_, _, _| ()));
        }));
    }

    fn view(&self) -> RouteView {
        let RouteRow { routing, migration_enabled, auto_rollout, .. } = self.row.clone();
        let canary_share_bp = routing.canary_share_bp(&self.services.settings.recovery);
        RouteView { routing, migration_enabled, auto_rollout, canary_share_bp, is_flipped: false }
    }
}

impl Drop for ProtocolRouter {
    fn drop(&mut self) {
        self.services.metrics.routes().actor_dropped();
    }
}

impl Actor for ProtocolRouter {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
        self.publish(None);
        self.wake(ctx);
    }
}

impl Handler<WindowBreached> for ProtocolRouter {
    type Result = AtomicResponse<Self, Result<bool, Failure>>;

    fn handle(&mut self, message: WindowBreached, _: &mut Self::Context) -> Self::Result {
        let (now, fraction) = self.now_and_jitter();
        let mut next = self.row.routing.clone();
        // A breach of an earlier epoch describes turns from before the last flip.
        let flip = if message.epoch == next.epoch() {
            next.on_breach(message.figures, now, fraction, &self.services.settings.recovery)
        } else {
            None
        };
        let is_settled = next.pin().is_none();
        AtomicResponse::new(Box::pin(self.save(next, flip, None).map(move |saved, _, _| saved.map(|()| is_settled))))
    }
}

impl Handler<TurnObserved> for ProtocolRouter {
    type Result = AtomicResponse<Self, ()>;

    fn handle(&mut self, message: TurnObserved, _: &mut Self::Context) -> Self::Result {
        let TurnReport { turn, sample, at, .. } = message.0;
        let (_, fraction) = self.now_and_jitter();
        let rules = &self.services.settings.recovery;
        let mut next = self.row.routing.clone();
        let flip = match (turn.canary, sample) {
            (Some(trial), sample) => next.on_canary(trial, sample, at, fraction, rules),
            (None, Some(sample)) => next.on_turn(turn.epoch, sample, at, fraction, rules),
            (None, None) => None,
        };
        let workspace = self.row.key.clone();
        AtomicResponse::new(Box::pin(self.save(next, flip, None).map(move |saved, _, _| {
            // No caller waits for this write, and the turn is recorded independently of it.
            if let Err(cause) = saved {
                tracing::warn!(marker = "[ROLLBACK]", %workspace, %cause, "outcome was not written to the route");
            }
        })))
    }
}

impl Handler<ChangeRoute> for ProtocolRouter {
    type Result = AtomicResponse<Self, Result<RouteView, Failure>>;

    fn handle(&mut self, message: ChangeRoute, _: &mut Self::Context) -> Self::Result {
        let ChangeRoute { changes, attribution, run_id } = message;
        let (now, _) = self.now_and_jitter();
        let mut next = self.row.routing.clone();
        let before = next.route();
        let mut settings = (self.row.migration_enabled, self.row.auto_rollout);
        let mut last = None;
        for change in changes {
            let flip = apply(&mut next, change, attribution.clone(), now, &mut settings);
            last = flip.or(last);
        }
        // Several changes make one flip, or no flip if they cancel out.
        let flip = if next.route() == before { None } else { last };
        let is_flipped = flip.is_some();
        AtomicResponse::new(Box::pin(
            self.save_step(next, flip, Some(settings), run_id)
                .map(move |saved, this, _| saved.map(|()| RouteView { is_flipped, ..this.view() })),
        ))
    }
}

fn apply(
    routing: &mut Routing,
    change: RouteChange,
    attribution: Attribution,
    now: Timestamp,
    settings: &mut (bool, bool),
) -> Option<Flip> {
    match change {
        RouteChange::RollBack => routing.roll_back(attribution, now),
        RouteChange::Restore => routing.restore(attribution, now),
        RouteChange::Pin(Some(route)) => routing.set_pin(route, attribution, now),
        RouteChange::Pin(None) => routing.release_pin(attribution, now),
        RouteChange::Default(route) => routing.set_default(route, attribution, now),
        RouteChange::MigrationEnabled(enabled) => {
            settings.0 = enabled;
            None
        }
        RouteChange::AutoRollout(enabled) => {
            settings.1 = enabled;
            None
        }
    }
}

impl Handler<StopRouting> for ProtocolRouter {
    type Result = ();

    fn handle(&mut self, _: StopRouting, ctx: &mut Self::Context) {
        ctx.stop();
    }
}

impl Handler<ReadRoute> for ProtocolRouter {
    type Result = actix::MessageResult<ReadRoute>;

    fn handle(&mut self, _: ReadRoute, _: &mut Self::Context) -> Self::Result {
        actix::MessageResult(self.view())
    }
}

impl Handler<ProbeRoute> for ProtocolRouter {
    type Result = actix::ResponseFuture<Result<(), Failure>>;

    fn handle(&mut self, _: ProbeRoute, _: &mut Self::Context) -> Self::Result {
        let (services, key) = (self.services.clone(), self.key().clone());
        Box::pin(async move { perform_handshake(&services, &key).await })
    }
}

/// Creates the route of a workspace that was never flipped.
pub(crate) fn fresh(key: WorkspaceKey, default: Route, now: Timestamp) -> RouteRow {
    RouteRow {
        key,
        routing: Routing::new(default),
        migration_enabled: true,
        auto_rollout: false,
        created: now,
        updated: now,
    }
}

/// Probes ACP: starts an agent, performs the handshake and releases the agent. Uses the agent of a live session, else
/// the default agent. Ends within `[recovery] probe_timeout_s`. The outcome is persisted and counts in no success
/// window.
pub(crate) async fn perform_handshake(services: &Services, key: &WorkspaceKey) -> Result<(), Failure> {
    let live = services.index.of_workspace(key).into_iter().next();
    let (session_id, agent, folder) = match live {
        Some(live) => {
            let spec = &live.shared.spec;
            (Some(spec.session_id), spec.agent.clone(), Some((spec.cwd.clone(), spec.is_ephemeral)))
        }
        None => {
            let path =
                services.store.folder_of_workspace(key.clone()).await.map_err(|cause| store::failure(&cause))?;
            (None, None, path.map(|path| (path, false)))
        }
    };
    let no_folder = || Failure::new(ErrorCode::NotFound, "the workspace has no folder yet");
    let (cwd, is_ephemeral) = folder.ok_or_else(no_folder)?;
    let request = OpenRequest {
        // A probe without a live session has no id; the runtime's ACP endpoint ignores it.
        session_id: session_id.unwrap_or(SessionId(Uuid::nil())),
        installation_id: Some(key.installation_id.clone()),
        is_ephemeral,
        agent,
        cwd,
        mcp_servers: McpServers::none(),
        previous: None,
        cookies: None,
        choices: Choices::default(),
    };
    let begun = services.clock.steady();
    let limit = services.settings.recovery.probe_timeout;
    let opened = tokio::time::timeout(limit, services.acp.open(request)).await.unwrap_or_else(|_| {
        Err(Failure::new(
            ErrorCode::HandshakeTimeout,
            format!("the probe took longer than {} s", limit.as_secs_f32()),
        ))
    });
    let took = services.clock.steady().since(begun);
    let facts = opened.as_ref().map(|opened| &opened.facts);
    connection_log::probe(services, key, session_id, facts, took).await;
    // Dropping the opened session ends the agent.
    opened.map(|_| ())
}

/// Builds the rows of a flip, and the note for the transcripts of the live sessions.
pub(crate) fn of(
    flip: &Flip,
    automatic: Option<AutomaticRollback>,
    sessions: &[Arc<LiveSession>],
    rules: &WindowRules,
    now: Timestamp,
) -> FlipRecord {
    let running = sessions.iter().filter(|live| live.shared.view().running.is_some()).count();
    let snapshot = json!({
        "window": flip.figures,
        "attempt": flip.attempt,
        "liveSessions": sessions.len(),
        "runningTurns": running,
    });
    FlipRecord {
        migration_id: Uuid::now_v7(),
        event_id: Uuid::now_v7(),
        run_id: None,
        flip: flip.clone(),
        reason_code: match flip.trigger {
            FlipTrigger::AutoThreshold | FlipTrigger::Recovery => ReasonCode::Threshold,
            _ => ReasonCode::Manual,
        },
        // A route that does not recover automatically needs a review.
        follow_up: Some(if flip.attempt >= REVIEW_AFTER { FollowUp::ScheduleReview } else { FollowUp::NotifyUsers }),
        metrics: RedactedJson::of(&snapshot),
        notes: sessions.iter().map(|live| live.shared.spec.session_id).collect(),
        note: note(flip, rules, now),
        automatic,
    }
}

/// Failed recovery attempts after which a review is scheduled: half an hour of cool-downs.
const REVIEW_AFTER: u32 = 5;

fn note(flip: &Flip, rules: &WindowRules, now: Timestamp) -> TranscriptEntry {
    let rollback_trigger = match flip.trigger {
        FlipTrigger::AutoThreshold => Some(RollbackTrigger::AutoThreshold),
        FlipTrigger::ManualOperator => Some(RollbackTrigger::ManualOperator),
        FlipTrigger::ManualUser => Some(RollbackTrigger::ManualUser),
        FlipTrigger::Recovery | FlipTrigger::Pin | FlipTrigger::Migration => None,
    };
    let threshold = flip.figures.map(|_| RollbackThreshold {
        success_rate: f64::from(rules.threshold_bp) / f64::from(FULL_BP),
        window_minutes: u32::try_from(rules.length.as_secs().div_ceil(60)).unwrap_or(u32::MAX),
    });
    let summary = notice::of_flip(flip).body.into_string();
    let note = TranscriptNote {
        timestamp: now.to_string(),
        event_type: NoteKind::Rollback,
        summary: summary.clone(),
        status: flip.is_restore().then_some(NoteStatus::Resolved),
        details: NoteDetails { rollback_trigger, threshold, ..NoteDetails::default() },
    };
    TranscriptEntry::with_payload("rollback", &summary, RedactedJson::of(&note))
}

/// Builds the rollback event for the readers of a session.
pub(crate) fn event(flip: &Flip, routing: &Routing) -> Value {
    json!({
        "route": flip.to,
        "epoch": flip.epoch,
        "status": if flip.is_restore() { "resolved" } else { "active" },
        "trigger": flip.trigger,
        "reason": Redacted::new(&flip.attribution.reason).as_str(),
        "summary": notice::of_flip(flip).body.as_str(),
        "stage": routing.stage(),
        "nextProbeAt": routing.next_probe_at(),
    })
}
