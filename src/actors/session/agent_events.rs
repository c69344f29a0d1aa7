//! Handles the agent's events: updates, requests, answers and the state of its connection.

use std::time::Duration;

use actix::{
    ActorFutureExt, AsyncContext, Context, Handler, ResponseActFuture, ResponseFuture, StreamHandler, WrapFuture,
};
use serde_json::{json, value::RawValue};
use tokio::sync::oneshot;
use uuid::Uuid;

use super::{Call, Session, choices::MAX_WRITES, connection_log, notices, turn::Turn, woken::completed};
use crate::{
    acp::{
        jsonrpc::{self, RpcError},
        schema::{CANCEL_REQUEST, RequestId, client_method},
    },
    actors::handles::messages::{AnswerPermission, CancelTurn, EndCause, has_ended},
    contract::fallback::LineNotification,
    domain::{
        redaction::{Redacted, RedactedJson},
        session::{
            background::{Mark, mark_of_notification},
            choices::Setting,
            connection::ConnectionStatus,
            event::EventKind,
            pending_permissions::{Answer, Received, ReceivedRequest, Resolution},
            permission::AnsweredBy,
        },
        turn::{
            PromptEnd, Severity, TurnOutcome, UNKNOWN_ANSWER,
            agent_error::{classify_agent_error, unread_message},
            outcome::{ErrorCode, Failure},
            read_prompt_end,
            transcript::TranscriptEntry,
            update::{UpdateView, view_update},
        },
    },
    store::{StoreError, TranscriptAppend},
    telemetry::labels::PermissionAnswer,
    transport::{
        AgentEvent,
        acp::connection::{answer_unserved, closed_in_turn},
    },
};

/// Time that the answer to a cancel waits for its write.
const CANCEL_WRITE: Duration = Duration::from_secs(1);
/// Transcript entries that are collected before they are written during a turn.
const ENTRIES_PER_WRITE: usize = 32;
/// Bytes of entries that are written even if there are fewer than `ENTRIES_PER_WRITE`.
const BYTES_PER_WRITE: usize = 256 * 1024;
/// Entries that may wait for a slow database before the session stops reading from the agent.
pub(super) const MAX_ENTRIES_WAITING: usize = 1000;
/// Bytes that may wait for a slow database before the session stops reading from the agent.
const MAX_BYTES_WAITING: usize = 1024 * 1024;

impl StreamHandler<AgentEvent> for Session {
    fn handle(&mut self, event: AgentEvent, ctx: &mut Context<Self>) {
        let now = self.services.clock.now();
        self.shared.view().last_heard = Some(now);
        let in_turn = self.turn.is_some();
        if let Some(turn) = &mut self.turn {
            turn.heard = now;
            turn.unsettled_bytes += size_of_event(&event);
        }
        match event {
            AgentEvent::Update { update, meta } => self.on_update(&update, meta.as_deref(), ctx),
            AgentEvent::Notification { method, params } if method == CANCEL_REQUEST => {
                if let Some(answer) = self.permissions.withdraw(&params) {
                    self.answer_permission(answer, ctx);
                }
            }
            AgentEvent::Notification { method, params } => {
                let mark = mark_of_notification(&method);
                if mark == Some(Mark::TurnBegan) {
                    self.on_turn_mark(mark.as_ref(), ctx);
                }
                // Written without a tree, which cannot hold every JSON text of an agent.
                let update = LineNotification { method, params };
                self.shared.feed.announce(self.asking_turn(), EventKind::Notification, &update);
                if mark == Some(Mark::TurnEnded) {
                    self.outside.work.on_update(&UpdateView::default(), mark.as_ref());
                    self.on_turn_mark(mark.as_ref(), ctx);
                }
            }
            AgentEvent::Request { id, method, params } => self.on_request(id, &method, &params, ctx),
            AgentEvent::Answered { call, result } => self.on_answer(call, result, ctx),
            AgentEvent::StrayLine(line) => {
                let ticket = self.turn.as_mut().and_then(|turn| turn.ticket.as_mut());
                if let Some(Err(failure)) = ticket.map(|ticket| ticket.on_stray_line(&line)) {
                    self.fail(failure, ctx);
                }
            }
            AgentEvent::Remark { severity, message } => self.remark(severity, &message),
            AgentEvent::Permission(resolution) => self.record_permission(&resolution),
            AgentEvent::Failed { call, failure } => self.on_failed(call, failure, ctx),
            AgentEvent::Unassigned(error) => match unread_message(&error) {
                Some(failure) => self.fail(failure, ctx),
                None => self.remark(Severity::Warn, &format!("the agent reported an error of no request: {error}")),
            },
            AgentEvent::Violation(detail) => self.fail(Failure::new(ErrorCode::ProtocolViolation, detail), ctx),
            AgentEvent::Interrupted(cause) => {
                let cause = Redacted::new(&cause);
                self.on_connection_change(ConnectionStatus::Reconnecting, Some(cause.as_str()));
            }
            AgentEvent::Resumed => {
                self.services.metrics.reconnected();
                self.on_connection_change(ConnectionStatus::Connected, None);
            }
            AgentEvent::Closed(reason) => self.fail(closed_in_turn(&reason), ctx),
        }
        // The runtime keeps every message until it is settled, and stops reading from the agent when it keeps too much.
        match (in_turn, self.turn.is_some()) {
            (true, true) => self.save_entries(ctx),
            // The event that ended the turn is settled when the end is on disk.
            (true, false) => {}
            (false, _) => {
                self.write_choices(MAX_WRITES);
                self.settle_outside();
            }
        }
        self.outside.work.hear(now);
        if self.turn.is_none() && self.link.is_some() {
            self.settle_background(ctx);
        }
    }

    fn finished(&mut self, ctx: &mut Context<Self>) {
        // A stream sends `Closed` first, which stops the actor; this handles a stream that ends without it.
        if self.link.is_some() {
            self.fail(Failure::new(ErrorCode::ConnectionLost, "the agent's events ended without a reason"), ctx);
        }
    }
}

/// Bytes of an event's payload; small fields count as zero.
fn size_of_event(event: &AgentEvent) -> usize {
    match event {
        AgentEvent::Update { update, meta } => update.get().len() + meta.as_ref().map_or(0, |meta| meta.get().len()),
        AgentEvent::Notification { params, .. } | AgentEvent::Request { params, .. } => params.get().len(),
        AgentEvent::Answered { result: Ok(answer), .. } => answer.get().len(),
        AgentEvent::StrayLine(line) => line.len(),
        _ => 0,
    }
}

impl Session {
    /// Adds a diagnostic to the running turn, if there is one.
    fn remark(&mut self, severity: Severity, message: &str) {
        if let Some(ticket) = self.turn.as_mut().and_then(|turn| turn.ticket.as_mut()) {
            ticket.remark(severity, message);
        }
    }

    fn on_update(&mut self, update: &RawValue, meta: Option<&RawValue>, ctx: &mut Context<Self>) {
        let now = self.services.clock.now();
        let view = view_update(update);
        self.on_choice_update(view.as_ref(), update);
        let Some(is_echo) = self.origin_of(view.as_ref(), update) else { return };
        let mark = self.note_work(view.as_ref(), update, meta);
        if is_echo {
            // The agent has begun the prompt, so it has ended what it had begun by itself.
            self.end_woken(&completed(), None);
        }
        let of_woken = self.is_of_woken(view.as_ref(), is_echo);
        // A tool call or message of the previous turn stays one entry, whenever its update comes.
        let is_known = |turn: &Turn, view: &UpdateView| turn.ticket.as_ref().is_some_and(|ticket| ticket.knows(view));
        let late = &self.late;
        let is_late = |turn: &&mut Turn| {
            !turn.is_sent() || view.as_ref().is_some_and(|view| late.knows(view) && !is_known(turn, view))
        };
        let turn = self.turn.as_mut().filter(|turn| !of_woken && !is_late(turn));
        match turn.and_then(|turn| turn.ticket.as_mut()) {
            Some(ticket) => ticket.on_update(view, update, meta, is_echo, now),
            None => self.on_late_update(view.as_ref(), update, meta, ctx),
        }
        self.on_turn_mark(mark.as_ref(), ctx);
    }

    /// Returns whether an update repeats the running prompt; `None` if it is history that the agent replays, which is
    /// left out.
    fn origin_of(&mut self, view: Option<&UpdateView>, update: &RawValue) -> Option<bool> {
        const ECHO: &str = "user_message_chunk";
        let Some(view) = view.filter(|view| self.replay.is_some() || view.kind == ECHO) else { return Some(false) };
        let context = self.missing.text();
        let repeats = |turn: &Turn| turn.is_echoed_by(view.text.as_deref(), update, context);
        let is_echo = view.kind == ECHO && self.turn.as_ref().is_some_and(repeats);
        if self.replay.as_mut().is_some_and(|replay| replay.contains(view, update, is_echo)) {
            self.turn.iter_mut().for_each(|turn| turn.replayed += 1);
            return None;
        }
        Some(is_echo)
    }

    /// Persists transcript entries once enough have accumulated, and lets the runtime discard the messages behind them:
    /// every write has all entries up to the newest message, and its number. Messages outside a turn are discarded at
    /// once.
    pub(crate) fn save_entries(&mut self, ctx: &mut Context<Self>) {
        let now = self.services.clock.now();
        let Some(turn) = &mut self.turn else { return self.settle_outside() };
        let prompt_id = turn.prompt_id();
        let Some(ticket) = &mut turn.ticket else { return self.settle_outside() };
        let delivered = self.link.as_ref().map(|link| link.delivered()).unwrap_or_default();
        let (handled, settings) = (delivered.handled(), &self.services.settings);
        // Messages are kept for replay while a permission request is pending, so that a restarted supervisor receives
        // it. Entries of these messages are not written before; the runtime's limits bound their number.
        if handled > 0 && self.permissions.is_waiting() {
            return;
        }
        // The runtime keeps messages until they are known to be on disk, so a long turn is persisted in parts.
        let is_much = handled.saturating_sub(turn.settled_seq) >= settings.settle_messages
            || (handled > turn.settled_seq && turn.unsettled_bytes >= settings.settle_bytes);
        let (at_least, bytes) = if is_much { (0, 0) } else { (ENTRIES_PER_WRITE, BYTES_PER_WRITE) };
        let Some(entries) = ticket.take_entries(at_least, bytes) else { return };
        // Ahead of the entries, which let the runtime discard the messages.
        self.write_choices(usize::MAX);
        let Some(turn) = &mut self.turn else { return };
        let Some(ticket) = &mut turn.ticket else { return };
        let spec = &self.shared.spec;
        let append = TranscriptAppend {
            session_id: spec.session_id,
            key: spec.workspace.clone(),
            prompt_id: Some(prompt_id),
            entries,
            settles: handled,
            now,
        };
        let settle = delivered.clone();
        // Settled after a failed write too: otherwise the runtime would stop reading, and the turn would never end.
        let done = move |written: Result<(), StoreError>| {
            if !matches!(written, Err(StoreError::Closed)) {
                settle.settle(handled);
            }
        };
        let append = match self.services.store.try_append(append, done) {
            Ok(()) => {
                (turn.settled_seq, turn.unsettled_bytes) = (handled, 0);
                return;
            }
            Err((_, append)) => append,
        };
        let waiting: usize = append.entries.iter().map(TranscriptEntry::size_bytes).sum();
        // A write that is due is not postponed: once the runtime stops reading, no event arrives to retry it.
        if !is_much && append.entries.len() < MAX_ENTRIES_WAITING && waiting < MAX_BYTES_WAITING {
            ticket.put_back(append.entries);
            return;
        }
        // The session reads no more events until the database has accepted these entries.
        (turn.settled_seq, turn.unsettled_bytes) = (handled, 0);
        let services = self.services.clone();
        let writing = async move {
            if let Err(cause) = services.store.append(append).await {
                tracing::error!(marker = "[ACP]", %cause, "transcript entries lost");
            }
            delivered.settle(handled);
        };
        ctx.wait(writing.into_actor(self));
    }

    /// Publishes that the agent connection broke or is re-established.
    fn on_connection_change(&mut self, connection: ConnectionStatus, cause: Option<&str>) {
        let state = {
            let mut view = self.shared.view();
            view.connection = connection;
            view.state
        };
        // Without a running turn nobody waits, so no notification is sent.
        let is_felt = connection == ConnectionStatus::Reconnecting && self.turn.is_some();
        let connection = self.shared.connection_status();
        let spec = &self.shared.spec;
        tracing::info!(marker = "[ACP]", session_id = %spec.session_id, workspace = %spec.workspace,
            connection = connection.as_str(), cause, "agent connection changed state");
        let now = self.services.clock.now();
        let session_notice = is_felt.then(|| notices::of_reconnecting(spec, now));
        match (self.connection_row_id, session_notice) {
            (Some(row_id), session_notice) => {
                let cause = cause.unwrap_or("reconnected");
                connection_log::changed(&self.services, spec, row_id, connection, cause, None, session_notice);
            }
            // A connection over the fallback, or of an adopted turn, has no record.
            (None, Some(session_notice)) => connection_log::notify(&self.services, spec, session_notice, now),
            (None, None) => {}
        }
        self.services.telemetry.publish(&self.shared, now);
        let prompt = self.turn.as_ref().map(|turn| turn.prompt_id());
        let update = json!({"state": state, "connection": connection.as_str(), "cause": cause});
        self.shared.feed.announce(prompt, EventKind::Status, &update);
    }

    /// Settles the agent's messages outside a turn, so that the runtime discards them; does nothing until the end of
    /// the previous turn is on disk. The runtime is notified once enough messages have accumulated.
    fn settle_outside(&self) {
        // As in a turn, a restarted supervisor receives a pending permission request again.
        if self.permissions.is_waiting() || self.has_unwritten_updates() || self.choice_writes.is_pending() {
            return;
        }
        if self.last_end.as_ref().is_some_and(|end| !has_ended(&end.borrow())) {
            return;
        }
        let Some(delivered) = self.link.as_ref().map(|link| link.delivered()) else { return };
        let handled = delivered.handled();
        if handled > delivered.settled() {
            delivered.settle(handled);
        }
    }

    fn on_request(&mut self, id: RequestId, method: &str, params: &RawValue, ctx: &mut Context<Self>) {
        if method != client_method::SESSION_REQUEST_PERMISSION {
            return self.respond(&id, answer_unserved(method), ctx);
        }
        if self.turn.is_none() && self.late.takes_updates {
            // Only an agent that works by itself asks outside a turn.
            self.wake(self.outside.work.expects_turn());
        }
        // While its turn is being cancelled, every request is answered as cancelled.
        let is_cancelled = match (&self.turn, &self.outside.woken) {
            (_, Some(woken)) if self.turn.is_none() || woken.is_marked => woken.is_cancelled,
            (Some(turn), _) => turn.is_cancelled(),
            (None, _) => true,
        };
        if is_cancelled || self.ending.is_some() {
            return self.respond(&id, Ok(json!({"outcome": {"outcome": "cancelled"}})), ctx);
        }
        let received = ReceivedRequest {
            id: id.clone(),
            params,
            request_id: Uuid::now_v7(),
            prompt_id: self.asking_turn(),
            now: self.services.clock.now(),
            patience: self.services.settings.permission_timeout,
        };
        match self.permissions.receive(self.shared.spec.policy.get(), received) {
            Received::Answer(answer) => self.answer_permission(answer, ctx),
            Received::Malformed(cause) => {
                let refusal =
                    RpcError::new(jsonrpc::INVALID_PARAMS, format!("malformed permission request: {cause}"));
                self.respond(&id, Err(refusal), ctx);
            }
            Received::Repeated => {
                if let Some(ticket) = self.turn.as_mut().and_then(|turn| turn.ticket.as_mut()) {
                    let message = "the agent sent a permission request again that waits already";
                    ticket.remark(Severity::Warn, message);
                }
            }
            Received::Waits { request, event } => {
                let request_id = request.request_id.clone();
                self.shared.feed.ask(request, &event);
                // The timer is not cancelled when the request is answered: `time_out` then finds no request.
                ctx.run_later(self.services.settings.permission_timeout, move |this, ctx| {
                    if let Some(answer) = this.permissions.time_out(&request_id) {
                        this.answer_permission(answer, ctx);
                    }
                });
            }
        }
    }

    /// Answers a permission request, and records the decision and its origin.
    pub(crate) fn answer_permission(&mut self, answer: Answer, ctx: &mut Context<Self>) {
        self.record_permission(&answer.resolution);
        self.respond(&answer.id, answer.response, ctx);
        self.save_entries(ctx);
    }

    /// Answers permission requests that were ended without a decision.
    pub(crate) fn end_permissions(&mut self, ended: Vec<Answer>) {
        for answer in ended {
            self.record_permission(&answer.resolution);
            if let Some(link) = &mut self.link {
                // The turn itself detects a connection that is broken.
                let _ = link.respond(&answer.id, answer.response);
            }
        }
    }

    fn record_permission(&mut self, resolution: &Resolution) {
        self.services.metrics.permission_settled(match (resolution.by, &resolution.option) {
            (AnsweredBy::Timeout, _) => PermissionAnswer::TimedOut,
            (_, None) => PermissionAnswer::Cancelled,
            _ if resolution.allows() => PermissionAnswer::Allowed,
            _ => PermissionAnswer::Rejected,
        });
        self.shared.feed.resolve(resolution);
        let (text, payload) = (resolution.text(), RedactedJson::of(&resolution.event()));
        let entry = TranscriptEntry::with_payload("permission", &text, payload);
        let asking = resolution.prompt_id;
        if let Some(woken) = self.outside.woken.as_mut().filter(|woken| Some(woken.prompt_id()) == asking) {
            woken.transcript.note(entry);
        } else if let Some(ticket) = self.turn.as_mut().and_then(|turn| turn.ticket.as_mut()) {
            ticket.note(entry);
        }
    }

    fn respond(&mut self, id: &RequestId, result: Result<serde_json::Value, RpcError>, ctx: &mut Context<Self>) {
        if let Some(Err(cause)) = self.link.as_mut().map(|link| link.respond(id, result)) {
            self.fail(Failure::new(ErrorCode::ConnectionLost, cause.to_string()), ctx);
        }
    }

    fn on_answer(&mut self, call: u64, result: Result<Box<RawValue>, RpcError>, ctx: &mut Context<Self>) {
        match self.calls.take(call) {
            Some(Call::Prompt) => self.on_prompt_answer(result, ctx),
            Some(Call::Close) => {
                let cause = self.ending.clone().unwrap_or(EndCause::Closed);
                self.stop(cause, ctx);
            }
            Some(Call::Set(setting, later)) => match result {
                Ok(answer) => self.on_setting_confirmed(&setting, answer, later),
                // Fails only if the caller has stopped waiting.
                Err(error) => drop(later.send(Err(classify_agent_error(&error)))),
            },
            Some(Call::Restore(setting)) => {
                self.on_restored(&setting, result.as_deref().map_err(|error| error.message.clone()), ctx);
            }
            None => self.remark(Severity::Warn, UNKNOWN_ANSWER),
        }
    }

    fn on_prompt_answer(&mut self, result: Result<Box<RawValue>, RpcError>, ctx: &mut Context<Self>) {
        let cancelled = self.turn.as_ref().is_some_and(|turn| turn.is_cancelled());
        let replayed = self.turn.as_ref().map_or(0, |turn| turn.replayed);
        if replayed > 0 {
            let message = format!("{replayed} updates were left out: the agent replayed its history");
            self.remark(Severity::Info, &message);
        }
        let PromptEnd { outcome, usage, oddity } =
            read_prompt_end(result.as_deref().map_err(Clone::clone), cancelled);
        if let Some(oddity) = oddity {
            self.remark(Severity::Warn, &oddity);
        }
        // An agent that violates the protocol cannot be trusted with the next turn, so its session ends as well.
        let broken = match &outcome {
            TurnOutcome::Failed(failure) if failure.code == ErrorCode::ProtocolViolation => Some(failure.clone()),
            _ => None,
        };
        match broken {
            Some(failure) => self.fail(failure, ctx),
            None => self.end_turn(outcome, usage, ctx),
        }
    }

    /// A call failed while its connection is intact: the turn ends, the session does not.
    fn on_failed(&mut self, call: u64, failure: Failure, ctx: &mut Context<Self>) {
        match self.calls.take(call) {
            Some(Call::Prompt) => {
                // A failure that follows a cancel ends the turn as cancelled, so the flag decides the outcome.
                let cancelled = self.turn.as_ref().is_some_and(|turn| turn.is_cancelled());
                self.end_turn(TurnOutcome::of_failure(failure, cancelled), None, ctx);
            }
            Some(Call::Set(_, later)) => drop(later.send(Err(failure))),
            Some(Call::Restore(setting)) => self.on_restored(&setting, Err(failure.detail), ctx),
            Some(Call::Close) => {
                let cause = self.ending.clone().unwrap_or(EndCause::Closed);
                self.stop(cause, ctx);
            }
            None => tracing::debug!(marker = "[ACP]", call, %failure, "call without a waiting caller failed"),
        }
    }

    /// Sends a setting to the agent and returns its answer; fails after the inactivity timeout.
    ///
    /// # Errors
    /// `TurnRunning` if too many calls are pending, `SessionClosed` while the session is closing, else the failure
    /// of the connection, the timeout or the agent's error.
    pub(crate) fn call(&mut self, setting: Setting) -> ResponseActFuture<Self, Result<Box<RawValue>, Failure>> {
        let (later, answer) = oneshot::channel();
        let sent = match (&mut self.link, &self.ending) {
            (Some(link), None) => match self.calls.open(Call::Set(setting.clone(), later)) {
                Ok(call) => link
                    .set(call, &setting)
                    .inspect_err(|_| drop(self.calls.take(call)))
                    .map(|()| call)
                    .map_err(|cause| Failure::new(ErrorCode::ConnectionLost, cause.to_string())),
                Err(cause) => Err(Failure::new(ErrorCode::TurnRunning, cause.to_string())),
            },
            (_, ending) => Err(not_ready(ending.as_ref())),
        };
        let call = sent.as_ref().ok().copied();
        let limit = self.services.settings.inactivity_timeout;
        let waiting = async move {
            sent?;
            let gone = || Failure::new(ErrorCode::ConnectionLost, "the agent exited before it answered");
            match tokio::time::timeout(limit, answer).await {
                Ok(answer) => answer.map_err(|_| gone())?,
                Err(_) => Err(Failure::new(ErrorCode::InactivityTimeout, "the agent did not answer in time")),
            }
        };
        Box::pin(waiting.into_actor(self).map(move |answer, this, _| {
            // A call that was not answered in time gives its slot back.
            call.and_then(|call| this.calls.take(call));
            answer
        }))
    }
}

impl Handler<CancelTurn> for Session {
    type Result = ResponseFuture<bool>;

    fn handle(&mut self, message: CancelTurn, ctx: &mut Self::Context) -> Self::Result {
        let meant = |turn: &Turn| message.prompt_id.is_none_or(|wanted| wanted == turn.prompt_id());
        let closing = self.services.closing.get(self.shared.spec.session_id);
        if let Some(closing) = closing.filter(|it| message.prompt_id.is_none_or(|wanted| wanted == it.prompt_id)) {
            closing.cancel();
            return Box::pin(std::future::ready(true));
        }
        let prompt_id = match self.turn.as_ref().filter(|turn| meant(turn)).map(Turn::prompt_id) {
            Some(prompt_id) => {
                self.cancel_turn(message.cause, ctx);
                Some(prompt_id)
            }
            None => self.cancel_woken(message.prompt_id),
        };
        let Some(prompt_id) = prompt_id else { return Box::pin(std::future::ready(false)) };
        let services = self.services.clone();
        Box::pin(async move {
            // The agent is asked at once, and the caller is answered when a restart would keep the promise. A database
            // that does not answer must not keep a person from stopping an agent.
            let asked = tokio::time::timeout(CANCEL_WRITE, services.store.ask_cancel(prompt_id)).await;
            if !matches!(asked, Ok(Ok(()))) {
                tracing::warn!(marker = "[ACP]", %prompt_id, "cancel was not written");
            }
            true
        })
    }
}

impl Handler<AnswerPermission> for Session {
    type Result = Result<(), Failure>;

    fn handle(&mut self, message: AnswerPermission, ctx: &mut Self::Context) -> Self::Result {
        let answer = self.permissions.answer(&message.request_id, message.option_id.as_deref())?;
        self.answer_permission(answer, ctx);
        Ok(())
    }
}

/// Failure of a call while the session is starting or closing.
pub(crate) fn not_ready(ending: Option<&EndCause>) -> Failure {
    match ending {
        Some(_) => Failure::new(ErrorCode::SessionClosed, "the session is being closed"),
        None => Failure::new(ErrorCode::ConnectionLost, "the session's agent is being started; try again"),
    }
}
