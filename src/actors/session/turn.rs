//! The current turn of a session, from the prompt to its end.

use std::{sync::Arc, time::Duration};

use actix::{ActorFutureExt, AsyncContext, Context, Handler, ResponseActFuture, SpawnHandle, WrapFuture};
use serde_json::value::RawValue;
use tokio::sync::watch;
use uuid::Uuid;

use super::{
    Call, Session,
    automation::accept,
    turn_ticket::{TurnTicket, WhenDropped},
    woken::completed,
};
use crate::{
    actors::handles::{
        messages::{PromptRefused, RunPrompt, TurnBegun, TurnEnded, TurnHandle, has_ended},
        runtime_availability::PROMPT_WAIT,
        tenants::UsePermit,
    },
    domain::{
        access::LimitedUse,
        automation::skip::Automation,
        clock::Timestamp,
        ids::{InstallationId, PromptId},
        redaction::{Redacted, RedactedJson},
        routing::{
            Route,
            sampling::sample_of,
            success_window::Sample,
            turn_route::{TurnRoute, TurnStart},
        },
        session::{connection::ConnectionStatus, context::Missing, lifecycle::SessionState, permission::AnsweredBy},
        turn::{
            CancelCause, Severity, TurnInitiator, TurnOutcome, Usage,
            arrival::{Arrival, CANCEL_WAIT, Key, arrival},
            outcome::{ErrorCode, Failure},
            prompt::Prompt,
            transcript::{KeptEntry, TranscriptEntry},
        },
    },
    store::{self, Acceptance, EndSlot, Idempotency, NewTurn, PromptRow},
    transport::TurnRequest,
};

/// The end of a turn, once it is on disk.
type Ended = watch::Receiver<Option<Arc<TurnEnded>>>;

/// Added to the cancel grace for a connection that enforces time limits itself: the cancel must reach it first, and it
/// answers only after the agent has ended.
const CARRIER_MARGIN: Duration = Duration::from_secs(10);

/// The count of a turn against the limits of its tenant, and of its token.
type TurnUse = (UsePermit<InstallationId>, Option<UsePermit<Uuid>>);

/// The turn that is being accepted, waits for its agent, or runs.
pub(super) struct Turn {
    handle: TurnHandle,
    idempotency: Option<Idempotency>,
    /// Absent while the turn is being written to disk.
    pub(super) ticket: Option<TurnTicket>,
    /// Set to the outcome if the turn ends while it is being written to disk.
    when_dropped: WhenDropped,
    /// Present until it is sent to the agent.
    prompt: Option<Prompt>,
    /// The prompt once it is sent, to recognise an echo of it.
    sent: Option<Prompt>,
    /// Updates that were left out because the agent replayed its history.
    pub(super) replayed: u64,
    pub(super) route: TurnRoute,
    /// Carrier of the turn; differs from `route.route` if the session fell back on its own.
    pub(super) carrier: Route,
    /// Time of the agent's last message.
    pub(super) heard: Timestamp,
    cancel_asked: Option<CancelCause>,
    /// Bytes that the agent sent since its messages were last persisted.
    pub(super) unsettled_bytes: usize,
    /// Number of the last message that was persisted.
    pub(super) settled_seq: u64,
    inactivity_timer: Option<SpawnHandle>,
    grace_timer: Option<SpawnHandle>,
    /// Limits the wait for an unavailable runtime.
    runtime_timer: Option<SpawnHandle>,
    /// Count of the turn against the limits of its tenant.
    _used: TurnUse,
}

impl Turn {
    fn new(
        handle: TurnHandle,
        idempotency: Option<Idempotency>,
        when_dropped: WhenDropped,
        start: TurnStart,
        used: TurnUse,
        now: Timestamp,
    ) -> Self {
        Self {
            _used: used,
            route: start.route,
            carrier: start.carrier,
            handle,
            idempotency,
            when_dropped,
            ticket: None,
            prompt: None,
            sent: None,
            replayed: 0,
            heard: now,
            cancel_asked: None,
            unsettled_bytes: 0,
            settled_seq: 0,
            inactivity_timer: None,
            grace_timer: None,
            runtime_timer: None,
        }
    }

    /// True if a `user_message_chunk` repeats the turn's prompt, or `context`, which preceded it.
    pub(super) fn is_echoed_by(&self, text: Option<&str>, update: &RawValue, context: Option<&str>) -> bool {
        self.sent.as_ref().is_some_and(|sent| sent.is_echoed_by(text, update, context))
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.cancel_asked.is_some()
    }

    pub(super) fn prompt_id(&self) -> PromptId {
        self.handle.prompt_id
    }

    /// True once the agent has the prompt, so that its updates belong to this turn.
    pub(super) fn is_sent(&self) -> bool {
        self.ticket.is_some() && self.prompt.is_none()
    }
}

fn compare(asked: Option<&Idempotency>, running: Option<&Idempotency>) -> Key {
    match (asked, running) {
        (Some(asked), Some(running)) if asked == running => Key::Same,
        (Some(asked), Some(running)) if asked.key == running.key => Key::OtherBody,
        _ => Key::Other,
    }
}

impl Handler<RunPrompt> for Session {
    type Result = ResponseActFuture<Self, Result<TurnBegun, PromptRefused>>;

    fn handle(&mut self, message: RunPrompt, ctx: &mut Self::Context) -> Self::Result {
        self.run(message, false, ctx)
    }
}

impl Session {
    fn run(
        &mut self,
        message: RunPrompt,
        waited: bool,
        ctx: &mut Context<Self>,
    ) -> ResponseActFuture<Self, Result<TurnBegun, PromptRefused>> {
        match self.begin(message, waited, ctx) {
            Begin::Answer(answer) => Box::pin(actix::fut::ready(answer)),
            Begin::Wait(message, ended) => self.run_after(*message, ended),
            Begin::Write(new_turn, ticket) => {
                let (services, spec) = (self.services.clone(), self.shared.spec.clone());
                let writing = async move { accept(&services, &spec, *new_turn, ticket).await };
                Box::pin(
                    writing
                        .into_actor(self)
                        .map(|(acceptance, ticket), this, ctx| this.on_accepted(acceptance, ticket, ctx)),
                )
            }
        }
    }
}

enum Begin {
    /// Wait for the end of the running turn, which is being cancelled.
    Wait(Box<RunPrompt>, Ended),
    Answer(Result<TurnBegun, PromptRefused>),
    Write(Box<NewTurn>, TurnTicket),
}

impl Session {
    /// Begins the turn once the running one has ended. A turn that takes too long is left to run, and a caller that
    /// disconnected gets no turn.
    fn run_after(
        &mut self,
        message: RunPrompt,
        mut ended: Ended,
    ) -> ResponseActFuture<Self, Result<TurnBegun, PromptRefused>> {
        self.prompts_waiting += 1;
        let mut caller = message.caller.clone();
        let waiting = async move {
            tokio::select! {
                // The sender is dropped without a value if the end was not written; the session decides then.
                _ = ended.wait_for(has_ended) => true,
                // Nothing is sent, so this is the caller's end.
                _ = caller.changed() => false,
                () = tokio::time::sleep(CANCEL_WAIT) => true,
            }
        };
        Box::pin(waiting.into_actor(self).then(|is_present, this, ctx| {
            this.prompts_waiting -= 1;
            match is_present {
                true => this.run(message, true, ctx),
                false => {
                    let failure =
                        Failure::new(ErrorCode::TurnRunning, "the caller disconnected before the turn began");
                    Box::pin(actix::fut::ready(Err(failure.into())))
                }
            }
        }))
    }

    /// Handles a prompt that arrives while the turn of `handle` runs.
    fn meet(&self, message: RunPrompt, waited: bool, running: (TurnHandle, Option<&Idempotency>, bool)) -> Begin {
        let (handle, idempotency, is_cancelled) = running;
        let key = compare(message.idempotency.as_ref(), idempotency);
        // A session that ends takes no further prompt.
        let is_ending = is_cancelled && self.ending.is_none();
        match arrival(key, is_ending, waited, self.prompts_waiting) {
            Arrival::Join => Begin::Answer(Ok(TurnBegun::Joined(handle))),
            Arrival::Mismatch => Begin::Answer(Err(Failure::idempotency_mismatch().into())),
            Arrival::Wait => Begin::Wait(Box::new(message), handle.ended),
            Arrival::Refuse => Begin::Answer(Err(PromptRefused {
                failure: Failure::new(ErrorCode::TurnRunning, "another turn of the session is still running"),
                running: Some(handle.prompt_id),
            })),
        }
    }

    /// Admits a turn within the limits of workspace, tenant and token, and reserves the place for its end: a turn that is accepted
    /// can then always record its outcome, however full the queue has become.
    fn admit_turn(&self, limited: Option<LimitedUse>, now: Timestamp) -> Result<(TurnUse, EndSlot), Failure> {
        let (services, key) = (&self.services, &self.shared.spec.workspace);
        services.disk.check(&(key.clone(), self.shared.spec.folder_owner()), services.settings.workspace_bytes)?;
        let limits = services.tenant_settings(&key.installation_id).limits;
        let used = services.tenant_use.begin_turn(&key.installation_id, &limits, now);
        let of_tenant = used.map_err(|figures| Failure::limit_reached("the tenant", figures))?;
        let of_token =
            limited.map(|LimitedUse { token_id, limits }| services.token_use.begin_turn(&token_id, &limits, now));
        let of_token = of_token.transpose().map_err(|figures| Failure::limit_reached("the token", figures))?;
        let slot = services.store.reserve_end().map_err(|cause| store::failure(&cause))?;
        Ok(((of_tenant, of_token), slot))
    }

    fn begin(&mut self, message: RunPrompt, waited: bool, ctx: &mut Context<Self>) -> Begin {
        if let Some(turn) = &self.turn {
            let running = (turn.handle.clone(), turn.idempotency.as_ref(), turn.is_cancelled());
            return self.meet(message, waited, running);
        }
        // A closing session stops within the close wait, which would cut off a turn that was accepted now.
        if self.ending.is_some() {
            let failure = Failure::new(ErrorCode::SessionClosed, "the session is being closed");
            return Begin::Answer(Err(failure.into()));
        }
        if let Some(closing) = self.services.closing.get(self.shared.spec.session_id) {
            let is_cancelled = closing.is_cancelled();
            let handle = self.turn_handle(closing.prompt_id, closing.ended);
            return self.meet(message, waited, (handle, closing.idempotency.as_ref(), is_cancelled));
        }
        let RunPrompt { prompt_id, prompt, wanted, token, idempotency, again, span, limited, .. } = message;
        if let Some(facts) = &self.facts
            && let Err(failure) = prompt.check_taken_by(facts.takes)
        {
            return Begin::Answer(Err(failure.into()));
        }
        let now = self.services.clock.now();
        let (used, slot) = match self.admit_turn(limited, now) {
            Ok(admitted) => admitted,
            Err(failure) => return Begin::Answer(Err(failure.into())),
        };
        // From here on the session is in use: it must not hibernate while the turn is being written.
        self.disarm_idle_timer(ctx);
        let span =
            tracing::info_span!(parent: &span, "session.turn", session_id = %self.shared.spec.session_id, %prompt_id);
        let route = self.shared.spec.gate.next_turn();
        let carrier = self.carrier_of(route.route, self.services.clock.steady());
        if let Some(failure) = self.refusal_of_mode(carrier) {
            self.arm_idle_timer(ctx);
            return Begin::Answer(Err(failure.into()));
        }
        let start = TurnStart { prompt_id, route, carrier, accepted_at: now };
        // The ticket exists before the write: if the actor dies during the write, the drop of the ticket ends the
        // turn.
        let (mut ticket, ended) = TurnTicket::new(self.services.clone(), self.shared.clone(), start, slot, span);
        ticket.keep_token(token);
        let new_turn = NewTurn {
            prompt_id,
            session_id: self.shared.spec.session_id,
            key: self.shared.spec.workspace.clone(),
            initiator: TurnInitiator::User,
            idempotency: idempotency.clone(),
            preview: Redacted::new(&prompt.preview()),
            again,
            first_entry: TranscriptEntry::with_payload(
                "user_message",
                prompt.text(),
                RedactedJson::new(&prompt.as_json()),
            ),
            route: route.route,
            protocol: carrier,
            epoch: route.epoch,
            is_canary: route.canary.is_some(),
            wanted,
            decision: Automation::Nothing,
            now,
        };
        self.shared.add_transcript_bytes(new_turn.first_entry.size_bytes() as u64);
        let turn =
            Turn::new(self.turn_handle(prompt_id, ended), idempotency, ticket.when_dropped(), start, used, now);
        // Set before the write, so that a second prompt is joined or refused while the first is on its way to the
        // disk.
        self.turn = Some(Turn { prompt: Some(prompt), ..turn });
        Begin::Write(Box::new(new_turn), ticket)
    }

    /// Returns a handle to the end of a turn and to the events from now on.
    fn turn_handle(&self, prompt_id: PromptId, ended: watch::Receiver<Option<Arc<TurnEnded>>>) -> TurnHandle {
        let feed = self.shared.feed.clone();
        TurnHandle { prompt_id, after_event: feed.last_id(), feed, ended }
    }

    /// Resumes a turn that an earlier process left open; `output` is the text that its agent had sent until then, and
    /// `kept` the entries on disk that may change.
    pub(super) fn resume_turn(&mut self, row: &PromptRow, slot: EndSlot, (output, kept): (&[String], &[KeptEntry])) {
        let prompt_id = row.prompt_id;
        let span = tracing::info_span!("session.turn", session_id = %self.shared.spec.session_id, %prompt_id);
        // The turn keeps the epoch in which it began. It is no longer a canary: the process that ran the trial died.
        let route = TurnRoute { route: row.route, epoch: row.epoch, canary: None, is_watched: false };
        // Only an agent over ACP outlives its supervisor.
        let start = TurnStart { prompt_id, route, carrier: Route::Acp, accepted_at: row.accepted };
        let (mut ticket, ended) = TurnTicket::new(self.services.clone(), self.shared.clone(), start, slot, span);
        ticket.automate(row.wanted.mode, row.decision);
        // Counted as started in this process too, because its end will be counted here.
        ticket.accepted();
        let now = self.services.clock.now();
        ticket.sent(now, false, self.remembered.clone());
        ticket.resume(output, kept);
        let handle = self.turn_handle(prompt_id, ended);
        let used = (self.services.tenant_use.resume_turn(&self.shared.spec.workspace.installation_id, now), None);
        let turn = Turn::new(handle, row.idempotency.clone(), ticket.when_dropped(), start, used, now);
        self.turn = Some(Turn { ticket: Some(ticket), ..turn });
        self.shared.move_to(SessionState::Running, &self.services.metrics).running = Some(prompt_id);
    }

    fn on_accepted(
        &mut self,
        acceptance: Result<Acceptance, store::StoreError>,
        mut ticket: TurnTicket,
        ctx: &mut Context<Self>,
    ) -> Result<TurnBegun, PromptRefused> {
        let refused = match acceptance {
            Ok(Acceptance::Accepted) => {
                // A cancel during the write finds no ticket and only leaves its mark; it takes effect below.
                ticket.accepted();
                let Some(turn) = &mut self.turn else {
                    // Only this function and the end of a turn clear it, and the turn has not begun.
                    return Err(
                        Failure::new(ErrorCode::Internal, "the turn was removed while it was being written").into()
                    );
                };
                // The session may have switched to the fallback while the turn was being written to disk.
                if turn.carrier != ticket.carrier() {
                    ticket.fell_back();
                }
                turn.ticket = Some(ticket);
                let begun = TurnBegun::Accepted(turn.handle.clone());
                let prompt_id = turn.prompt_id();
                let state = if self.link.is_some() { SessionState::Running } else { SessionState::Starting };
                let mut view = self.shared.move_to(state, &self.services.metrics);
                view.running = Some(prompt_id);
                view.last_used = self.services.clock.now();
                drop(view);
                self.services.telemetry.publish(&self.shared, self.services.clock.now());
                if turn.is_cancelled() {
                    self.end_turn(TurnOutcome::Cancelled { confirmed: true }, None, ctx);
                } else {
                    self.dispatch(ctx);
                }
                return Ok(begun);
            }
            Ok(Acceptance::Existing(row)) => Ok(TurnBegun::Stored(Box::new(row))),
            Ok(Acceptance::Mismatch(_)) => Err(Failure::idempotency_mismatch().into()),
            Err(cause) => Err(PromptRefused::from(store::failure(&cause))),
        };
        // The turn has no row, so it has no outcome and no place in the metrics.
        ticket.discard();
        self.turn = None;
        match self.ending.take() {
            Some(cause) => self.release(cause, ctx),
            None => self.arm_idle_timer(ctx),
        }
        refused
    }

    /// Sends the prompt to the agent once the turn is on disk and the agent is connected over the turn's carrier.
    pub(super) fn dispatch(&mut self, ctx: &mut Context<Self>) {
        let Some(turn) = &self.turn else { return };
        if turn.ticket.is_none() || turn.prompt.is_none() {
            return;
        }
        if self.link.is_none() {
            return self.limit_runtime_wait(ctx);
        }
        if turn.carrier != self.connection_route || self.servers.is_outdated {
            return self.change_connection(turn.carrier, ctx);
        }
        if self.missing == Missing::Unread {
            return self.read_conversation(ctx);
        }
        if self.restores(ctx) || self.ends_without_mode(ctx) {
            return;
        }
        if self.outside.woken.as_ref().is_some_and(|woken| !woken.is_marked) {
            self.end_woken(&completed(), Some("the end of the turn is assumed: a prompt followed"));
        }
        let choices = self.choices_for_prompt();
        let (Some(link), Some(facts), Some(turn)) = (&mut self.link, &self.facts, &mut self.turn) else { return };
        let Some(ticket) = &mut turn.ticket else { return };
        self.servers.report_lost(ticket);
        let Some(prompt) = turn.prompt.take() else { return };
        // Checked again: at acceptance the agent may not have been connected yet, and its facts were unknown.
        if let Err(failure) = prompt.check_taken_by(facts.takes) {
            turn.prompt = Some(prompt);
            return self.end_turn(TurnOutcome::Failed(failure), None, ctx);
        }
        let context = self.missing.text();
        let request = TurnRequest {
            prompt_id: turn.handle.prompt_id,
            prompt: &prompt,
            context,
            policy: self.shared.spec.policy.get(),
            choices: &choices,
        };
        // In the span of the request, whose id the runtime logs too.
        let call = self.calls.open_reserved(Call::Prompt);
        let sent = ticket.span().in_scope(|| link.prompt(call, request));
        let now = self.services.clock.now();
        turn.heard = now;
        self.late.takes_updates = true;
        // Messages from before the turn need no replay: the end of the previous turn was persisted before this one
        // began.
        let delivered = link.delivered();
        turn.settled_seq = delivered.handled();
        if turn.settled_seq > delivered.settled() {
            delivered.settle(turn.settled_seq);
        }
        match sent {
            Ok(()) => {
                turn.sent = Some(prompt);
                let conversation = self.agent_session_id.clone().filter(|_| turn.carrier == Route::Acp);
                ticket.sent(now, context.is_some(), conversation);
                // A connection that enforces time limits reports the inactivity timeout itself.
                if !link.enforces_limits() {
                    self.watch_inactivity(self.services.settings.inactivity_timeout, ctx);
                }
            }
            Err(cause) => {
                let detail = format!("the prompt could not be sent to the agent: {cause}");
                self.fail(Failure::new(ErrorCode::ConnectionLost, detail), ctx);
            }
        }
    }

    /// Ends a turn that has waited for an unavailable runtime for [`PROMPT_WAIT`]; the session continues to wait.
    pub(super) fn limit_runtime_wait(&mut self, ctx: &mut Context<Self>) {
        let Some(turn) = &mut self.turn else { return };
        if turn.runtime_timer.is_none() {
            turn.runtime_timer = Some(ctx.run_later(PROMPT_WAIT, |this, ctx| {
                if this.link.is_none() && this.services.runtime.unavailable_for().is_some() {
                    this.end_turn(TurnOutcome::Failed(runtime_unavailable()), None, ctx);
                }
            }));
        }
    }

    /// Checks the inactivity limit after `wait`.
    pub(super) fn watch_inactivity(&mut self, wait: std::time::Duration, ctx: &mut Context<Self>) {
        let timer = ctx.run_later(wait, |this, ctx| {
            let limit = this.services.settings.inactivity_timeout;
            let Some(turn) = &mut this.turn else { return };
            let now = this.services.clock.now();
            if this.permissions.is_waiting() || this.shared.view().connection == ConnectionStatus::Reconnecting {
                // The turn waits for a person or for a reconnect; each has its own limit.
                turn.heard = now;
            }
            let silent = now.since(turn.heard);
            if silent < limit {
                return this.watch_inactivity(limit - silent, ctx);
            }
            let detail = format!("the agent sent nothing for {} s", limit.as_secs_f32());
            this.fail(Failure::new(ErrorCode::InactivityTimeout, detail), ctx);
        });
        if let Some(turn) = &mut self.turn {
            turn.inactivity_timer = Some(timer);
        }
    }

    /// Asks the agent to end the turn, answers its pending permission requests, and waits for the cancel grace. A turn
    /// whose prompt was not sent ends at once.
    pub(super) fn cancel_turn(&mut self, cause: CancelCause, ctx: &mut Context<Self>) {
        let Some(turn) = &mut self.turn else { return };
        if turn.is_cancelled() {
            return;
        }
        // Also if the actor dies before the agent answers.
        let _ = turn.when_dropped.set(TurnOutcome::Cancelled { confirmed: false });
        turn.cancel_asked = Some(cause);
        let (session_id, prompt_id) = (self.shared.spec.session_id, turn.prompt_id());
        tracing::info!(marker = "[ACP]", %session_id, %prompt_id, cause = cause.as_str(), "turn is being cancelled");
        if let (CancelCause::Drain, Some(ticket)) = (cause, &mut turn.ticket) {
            ticket.remark(Severity::Info, "the turn was cancelled because the service is stopping");
        }
        if turn.prompt.is_some() {
            if turn.ticket.is_some() {
                self.end_turn(TurnOutcome::Cancelled { confirmed: true }, None, ctx);
            }
            return;
        }
        let sent = self.link.as_mut().map(|link| link.cancel());
        let enforces_limits = self.link.as_ref().is_some_and(|link| link.enforces_limits());
        let grace =
            self.services.settings.cancel_grace + if enforces_limits { CARRIER_MARGIN } else { Duration::ZERO };
        // ACP requires that pending permission requests are answered as cancelled once the cancel was sent.
        let ended = self.permissions.cancel_of(self.turn.as_ref().map(Turn::prompt_id), AnsweredBy::Cancel);
        self.end_permissions(ended);
        // Messages that were held back for a permission request may be settled now.
        self.save_entries(ctx);
        if let Some(Err(cause)) = sent {
            return self.fail(Failure::new(ErrorCode::ConnectionLost, cause.to_string()), ctx);
        }
        let grace = ctx.run_later(grace, |this, ctx| {
            let detail = "the agent did not confirm the cancel within its grace";
            this.fail(Failure::new(ErrorCode::CancelUnconfirmed, detail), ctx);
        });
        if let Some(turn) = &mut self.turn {
            turn.grace_timer = Some(grace);
        }
    }

    /// Ends the running turn, if any, with its only outcome.
    pub(super) fn end_turn(&mut self, outcome: TurnOutcome, usage: Option<Usage>, ctx: &mut Context<Self>) {
        // Before the turn is taken, because the decisions belong in its transcript.
        if let Some(turn) = &self.turn {
            let ended = self.permissions.cancel_of(Some(turn.prompt_id()), AnsweredBy::TurnEnd);
            self.end_permissions(ended);
        }
        let Some(turn) = self.turn.take() else { return };
        for timer in [turn.inactivity_timer, turn.grace_timer, turn.runtime_timer].into_iter().flatten() {
            ctx.cancel_future(timer);
        }
        let outcome = match outcome {
            TurnOutcome::Failed(failure) => {
                self.services.runtime.on_failure(&failure);
                TurnOutcome::Failed(self.with_credentials_named(failure))
            }
            other => other,
        };
        self.note_health(&turn, &outcome);
        self.note_memory(&turn, &outcome);
        let (is_completed, now) = (matches!(outcome, TurnOutcome::Completed(_)), self.services.clock.now());
        if is_completed {
            self.end_woken(&completed(), Some("the agent did not mark the end of the turn"));
        }
        match self.connection_route {
            Route::Acp => self.outside.work.turn_ended(is_completed, now),
            // The agent ended with the turn.
            Route::Http => self.outside.work.begin(now),
        }
        match turn.ticket {
            Some(ticket) => {
                // Ahead of the end, which lets the runtime discard the messages.
                self.write_choices(usize::MAX);
                // Messages that arrive from now on are settled only after this end is on disk, see `settle_outside`.
                self.last_end = Some(turn.handle.ended);
                let delivered = self.link.as_ref().map(|link| link.delivered());
                let transcript = ticket.end(outcome, usage, delivered, turn.idempotency);
                self.write_late_updates();
                self.late.follow(turn.handle.prompt_id, transcript);
            }
            // The turn is still being written to disk: that future owns the ticket, and dropping it ends the turn with
            // this outcome.
            None => {
                let _ = turn.when_dropped.set(outcome);
                return;
            }
        }
        match self.ending.take() {
            Some(cause) => self.release(cause, ctx),
            None => {
                self.arm_idle_timer(ctx);
                self.settle_background(ctx);
            }
        }
    }
}

impl Session {
    /// Records what the agent knows after a turn.
    fn note_memory(&mut self, turn: &Turn, outcome: &TurnOutcome) {
        let (is_completed, was_sent) = (matches!(outcome, TurnOutcome::Completed(_)), turn.prompt.is_none());
        let is_lasting = self.connection_route == Route::Acp;
        self.missing = self.missing.after_turn(is_completed, was_sent, is_lasting);
        if is_completed && is_lasting {
            self.remembered = self.agent_session_id.clone();
        }
        if was_sent {
            self.replay = None;
        }
    }

    /// Counts a turn in the health of the connection, and shows whether turns have become slow.
    fn note_health(&mut self, turn: &Turn, outcome: &TurnOutcome) {
        let Some(ticket) = &turn.ticket else { return };
        if let Some(sample) = sample_of(outcome) {
            self.health.turns += 1;
            self.health.failures += u64::from(sample == Sample::Failure);
        }
        // Failed and cancelled turns are left out: their duration depends on time limits and callers, not on the
        // agent.
        if matches!(outcome, TurnOutcome::Completed(_)) {
            let took = self.services.clock.now().since(ticket.accepted_at());
            self.latency.record(u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
            self.health.latency_p95_ms = self.latency.p95_ms();
            self.shared.view().is_slow = self.latency.is_doubled();
        }
    }
}

/// Failure of a prompt that the runtime's absence keeps from its agent.
fn runtime_unavailable() -> Failure {
    Failure::new(ErrorCode::RuntimeUnavailable, "the runtime is unavailable; the session waits for it")
}
