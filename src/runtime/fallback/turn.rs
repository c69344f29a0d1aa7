//! Runs one turn of the fallback with its own agent process: a headless command, or ACP over stdio for one prompt.
//!
//! The rules are those of a session's turn over ACP; both use `domain::turn` and `domain::session`.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures_util::{Stream, StreamExt};
use serde_json::{json, value::RawValue};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use uuid::Uuid;

use super::{
    lines::{Ended, Lines},
    oneshot,
};
use crate::{
    acp::{
        jsonrpc::{self, RpcError},
        schema::{RequestId, client_method},
    },
    contract::{
        fallback::{LineNotification, LinePermission, ProcessPrompt, TurnLine},
        result::{ACPSessionResult, ResultDiagnostic, ResultRollback, TurnFacts},
        runtime::InitializeMeta,
    },
    domain::{
        clock::Clock,
        routing::Route,
        session::{
            choices::{Choices, Offers, not_set, refusal_of_headless},
            mcp::McpServers,
            pending_permissions::{Answer, PendingPermissions, Received, ReceivedRequest},
            permission::{AnsweredBy, PermissionPolicy},
        },
        turn::{
            Severity, TurnOutcome, TurnProgress, UNKNOWN_ANSWER, Usage,
            agent_error::unread_message,
            outcome::{ErrorClass, ErrorCode, Failure},
            prompt::Prompt,
            read_prompt_end,
            update::view_update,
        },
    },
    runtime::agents::{Agents, Place},
    telemetry::SystemClock,
    transport::{
        AgentEvent, AgentSession, OpenRequest, OpenedSession, TurnRequest,
        acp::{
            connection::{answer_unserved, closed_in_turn},
            handshake::{HandshakeLimit, Peer, perform_handshake},
            reapply::reapply,
        },
    },
};

pub(crate) struct Run {
    pub request: ProcessPrompt,
    /// Checked prompt of the request.
    pub prompt: Prompt,
    pub lines: Arc<Lines>,
    /// Becomes true when the turn is to be cancelled.
    pub cancelled: watch::Receiver<bool>,
    /// Becomes true when the runtime stops.
    pub stopping: watch::Receiver<bool>,
    /// Time that the turn continues without a reader.
    pub grace: Duration,
}

type End = (TurnOutcome, Option<Usage>);
type Events = Pin<Box<dyn Stream<Item = AgentEvent> + Send>>;

fn failed(code: ErrorCode, detail: impl Into<String>) -> TurnOutcome {
    TurnOutcome::Failed(Failure::new(code, detail))
}

impl Run {
    /// Runs the turn to its end.
    ///
    /// # Cancel safety
    /// A dropped future ends the agent without a result.
    pub(crate) async fn run(self, agents: &Agents) -> Ended {
        let asked = InitializeMeta {
            agent: self.request.agent.clone(),
            cwd: Some(self.request.workspace.path.clone()),
            installation_id: self.request.installation_id.clone(),
            resumable: false,
        };
        // Reserved before the turn begins, so that a refusal is answered with a status and not in a body that has
        // started.
        let place = match agents.reserve(&asked).await {
            Ok(place) => place,
            Err(failure) => return Ended::Refused(failure),
        };
        self.lines.begin();
        let mut course = RunningTurn::new(&self);
        let opened = tokio::select! {
            opened = self.open(agents, place) => opened.map_err(TurnOutcome::Failed),
            // The prompt was not sent yet, so the cancellation needs no confirmation by the agent.
            () = is_true(self.cancelled.clone()) => Err(TurnOutcome::Cancelled { confirmed: true }),
            outcome = self.given_up() => Err(outcome),
        };
        let (outcome, usage) = match opened {
            Ok(opened) => {
                course.protocol_version = opened.facts.protocol_version;
                course.converse(opened).await
            }
            Err(outcome) => (outcome, None),
        };
        course.finish(outcome, usage)
    }

    /// Waits until the turn must end without a request to cancel it, and returns its outcome: the runtime stops, or
    /// the turn had no reader for the grace.
    async fn given_up(&self) -> TurnOutcome {
        tokio::select! {
            () = is_true(self.stopping.clone()) => {
                failed(ErrorCode::Interrupted, "the runtime was stopped during the turn")
            }
            () = self.lines.abandoned_for(self.grace) => {
                let detail = format!("no client waited for the turn for {} s", self.grace.as_secs_f32());
                failed(ErrorCode::ConnectionLost, detail)
            }
        }
    }

    async fn open(&self, agents: &Agents, place: Place<'_>) -> Result<OpenedSession, Failure> {
        // A headless command is preferred: it does not depend on the ACP handshake, whose failure may have led here.
        if place.has_oneshot() {
            if let Some(failure) = self.request.choices.as_ref().and_then(refusal_of_headless) {
                return Err(failure);
            }
            let process = agents.start_oneshot_in(place).await?;
            let mut opened = oneshot::open(process, agents.frame_bytes());
            let lost = self.request.choices.as_ref().map(|choices| choices.changed_settings(&Offers::default()));
            let because = |setting| (setting, "a headless command has no modes and options".to_owned());
            opened.facts.reapplied.failed = lost.into_iter().flatten().map(because).collect();
            return Ok(opened);
        }
        let request = &self.request;
        let limit = HandshakeLimit::start(Duration::from_millis(request.handshake_timeout_ms));
        let tenant = request.installation_id.as_ref().map_or("", |tenant| tenant.as_str());
        let servers = agents.with_secrets(&request.mcp_servers, tenant)?;
        let servers = servers.unwrap_or_else(|| request.mcp_servers.clone());
        let handshake = async {
            let started = limit.keep(agents.start_in(place)).await?;
            let opening = OpenRequest {
                session_id: request.session_id,
                installation_id: request.installation_id.clone(),
                is_ephemeral: request.workspace.is_ephemeral,
                agent: None,
                cwd: request.workspace.path.clone(),
                mcp_servers: McpServers::given(servers),
                previous: None,
                cookies: None,
                choices: request.choices.clone().unwrap_or_default(),
            };
            let peer = Peer::Agent { capabilities: started.serves.capabilities() };
            perform_handshake(started.pipe, &opening, peer, request.auth_method.as_deref(), limit).await
        };
        let opened = match handshake.await {
            Ok(opened) => {
                let limit = Duration::from_millis(request.handshake_timeout_ms);
                reapply(opened, request.choices.clone().unwrap_or_default(), limit).await
            }
            Err(failure) => Err(failure),
        };
        opened.map_err(|failure| match failure.code.class() {
            ErrorClass::Connection | ErrorClass::Protocol => {
                let detail = format!(
                    "the agent cannot be used over HTTP either, and has no headless command ({}): {}",
                    failure.code.as_str(),
                    failure.detail
                );
                Failure::new(ErrorCode::FallbackUnavailable, detail)
            }
            ErrorClass::Application | ErrorClass::System => failure,
        })
    }
}

async fn is_true(mut flag: watch::Receiver<bool>) {
    if flag.wait_for(|flag| *flag).await.is_err() {
        // The sender was dropped, so the flag cannot become true any more.
        std::future::pending().await
    }
}

/// State of a running turn.
struct RunningTurn<'a> {
    run: &'a Run,
    progress: TurnProgress,
    protocol_version: Option<u16>,
    cancel_asked: bool,
    permissions: PendingPermissions,
}

impl<'a> RunningTurn<'a> {
    fn new(run: &'a Run) -> Self {
        let progress = TurnProgress::new(SystemClock.now());
        Self {
            run,
            progress,
            protocol_version: None,
            cancel_asked: false,
            permissions: PendingPermissions::default(),
        }
    }

    async fn converse(&mut self, opened: OpenedSession) -> End {
        let OpenedSession { mut link, mut events, next_call: call, facts } = opened;
        let (run, request) = (self.run, &self.run.request);
        if let Err(failure) = run.prompt.check_taken_by(facts.takes) {
            return (TurnOutcome::Failed(failure), None);
        }
        if let Some(detail) = facts.reapplied.mode_unavailable {
            return (failed(ErrorCode::ModeUnavailable, detail), None);
        }
        facts.reapplied.failed.iter().for_each(|(setting, cause)| {
            self.remark(Severity::Warn, &not_set(setting, cause));
        });
        let turn = TurnRequest {
            prompt_id: request.prompt_id,
            prompt: &run.prompt,
            context: request.conversation.as_deref(),
            policy: request.permission_policy,
            choices: &Choices::default(),
        };
        if let Err(cause) = link.prompt(call, turn) {
            let detail = format!("the prompt could not be sent to the agent: {cause}");
            return (failed(ErrorCode::ConnectionLost, detail), None);
        }
        self.progress.sent_at = Some(SystemClock.now());
        let silence = Duration::from_millis(request.inactivity_timeout_ms);
        let (mut heard, mut grace_ends) = (Instant::now(), None);
        let given_up = run.given_up();
        tokio::pin!(given_up);
        loop {
            tokio::select! {
                event = next(&run.lines, &mut events) => {
                    heard = Instant::now();
                    if let Some(end) = self.on_event(event, call, link.as_mut()) {
                        return end;
                    }
                }
                () = is_true(run.cancelled.clone()), if !self.cancel_asked => {
                    self.cancel_asked = true;
                    grace_ends = Some(Instant::now() + Duration::from_millis(request.cancel_grace_ms));
                    // The agent has closed its input, so it cannot confirm.
                    if link.cancel().is_err() {
                        return (TurnOutcome::Cancelled { confirmed: false }, None);
                    }
                }
                () = sleep_until(grace_ends.unwrap_or(heard)), if grace_ends.is_some() => {
                    return (TurnOutcome::Cancelled { confirmed: false }, None);
                }
                () = sleep_until(heard + silence) => {
                    if run.lines.has_room() {
                        let detail = format!("the agent sent nothing for {} s", silence.as_secs_f32());
                        return self.fail(Failure::new(ErrorCode::InactivityTimeout, detail));
                    }
                    // The agent was not read because its readers lag, so its silence does not count.
                    heard = Instant::now();
                }
                outcome = &mut given_up => return (outcome, None),
            }
        }
    }

    /// Processes an event of the agent. Returns the end of the turn if the event ends it.
    fn on_event(&mut self, event: Option<AgentEvent>, call: u64, link: &mut dyn AgentSession) -> Option<End> {
        match event {
            Some(AgentEvent::Update { update, meta }) => {
                self.progress.take(view_update(&update).as_ref(), SystemClock.now());
                self.run.lines.push(&TurnLine { update: Some(update), meta, ..TurnLine::default() });
            }
            Some(AgentEvent::Notification { method, params }) => {
                let notification = Some(LineNotification { method, params });
                self.run.lines.push(&TurnLine { notification, ..TurnLine::default() });
            }
            Some(AgentEvent::Request { id, method, params }) => {
                let answer = self.answer(&id, &method, &params);
                if let Err(cause) = link.respond(&id, answer) {
                    return Some(self.fail(Failure::new(ErrorCode::ConnectionLost, cause.to_string())));
                }
            }
            Some(AgentEvent::Answered { call: answered, result }) if answered == call => {
                let end = read_prompt_end(result.as_deref().map_err(Clone::clone), self.cancel_asked);
                if let Some(oddity) = &end.oddity {
                    self.remark(Severity::Warn, oddity);
                }
                return Some((end.outcome, end.usage));
            }
            Some(AgentEvent::Answered { .. }) => {
                self.remark(Severity::Warn, UNKNOWN_ANSWER);
            }
            Some(AgentEvent::StrayLine(line)) => {
                let ended = self.progress.on_stray_line(&line);
                self.push_last_remark();
                if let Err(failure) = ended {
                    return Some(self.fail(failure));
                }
            }
            Some(AgentEvent::Remark { severity, message }) => self.remark(severity, &message),
            Some(AgentEvent::Failed { failure, .. }) => return Some(self.fail(failure)),
            Some(AgentEvent::Unassigned(error)) => match unread_message(&error) {
                Some(failure) => return Some(self.fail(failure)),
                None => self.remark(Severity::Warn, &format!("the agent reported an error of no request: {error}")),
            },
            Some(AgentEvent::Violation(detail)) => {
                return Some(self.fail(Failure::new(ErrorCode::ProtocolViolation, detail)));
            }
            Some(AgentEvent::Closed(reason)) => return Some(self.fail(closed_in_turn(&reason))),
            None => {
                let detail = "the agent's events ended without a reason";
                return Some(self.fail(Failure::new(ErrorCode::ConnectionLost, detail)));
            }
            // Not sent by these transports: pipes do not reconnect, and permissions are decided here.
            Some(AgentEvent::Interrupted(_) | AgentEvent::Resumed | AgentEvent::Permission(_)) => {}
        }
        None
    }

    fn answer(&mut self, id: &RequestId, method: &str, params: &RawValue) -> Result<serde_json::Value, RpcError> {
        if method != client_method::SESSION_REQUEST_PERMISSION {
            return answer_unserved(method);
        }
        let cancelled = json!({"outcome": {"outcome": "cancelled"}});
        // ACP requires pending permission requests to be answered as cancelled once the turn is being cancelled.
        if self.cancel_asked {
            return Ok(cancelled);
        }
        let (policy, is_replaced) = match self.run.request.permission_policy {
            PermissionPolicy::Ask => {
                let text = "nobody can be asked over HTTP: a permission request was rejected under the policy `ask`";
                self.remark(Severity::Warn, text);
                (PermissionPolicy::Reject, true)
            }
            policy => (policy, false),
        };
        let received = ReceivedRequest {
            id: id.clone(),
            params,
            request_id: Uuid::now_v7(),
            prompt_id: Some(self.run.request.prompt_id),
            now: SystemClock.now(),
            patience: Duration::ZERO,
        };
        match self.permissions.receive(policy, received) {
            Received::Answer(Answer { response, mut resolution, .. }) => {
                if is_replaced {
                    resolution.by = AnsweredBy::Fallback;
                }
                let permission = Some(LinePermission::of(resolution));
                self.run.lines.push(&TurnLine { permission, ..TurnLine::default() });
                response
            }
            // Unreachable: only the policy `ask` leaves a request pending, and it was replaced above.
            Received::Waits { .. } | Received::Repeated => Ok(cancelled),
            Received::Malformed(cause) => {
                Err(RpcError::new(jsonrpc::INVALID_PARAMS, format!("malformed permission request: {cause}")))
            }
        }
    }

    fn fail(&self, failure: Failure) -> End {
        (TurnOutcome::of_failure(failure, self.cancel_asked), None)
    }

    fn remark(&mut self, severity: Severity, message: &str) {
        self.progress.remark(severity, message);
        self.push_last_remark();
    }

    fn push_last_remark(&self) {
        let Some(last) = self.progress.diagnostics.last() else { return };
        let diagnostic = ResultDiagnostic {
            severity: last.severity,
            message: last.message.clone(),
            context: last.context.clone(),
        };
        self.run.lines.push(&TurnLine { diagnostic: Some(diagnostic), ..TurnLine::default() });
    }

    fn finish(mut self, outcome: TurnOutcome, usage: Option<Usage>) -> Ended {
        let request = &self.run.request;
        let now = SystemClock.now();
        let failure = match &outcome {
            TurnOutcome::Failed(failure) => Some(failure.clone()),
            _ => None,
        };
        tracing::info!(
            marker = "[ACP]",
            route = Route::Http.as_str(),
            session_id = %request.session_id,
            prompt_id = %request.prompt_id,
            outcome = outcome.label(),
            error_code = failure.as_ref().map(|failure| failure.code.as_str()),
            updates = self.progress.updates,
            "fallback run ended"
        );
        self.progress.usage = usage;
        let facts = TurnFacts {
            session_id: request.session_id,
            prompt_id: request.prompt_id,
            protocol: Route::Http,
            route: Route::Http,
            protocol_version: self.protocol_version,
            workspace: request.workspace.clone(),
            // The supervisor, not the runtime, knows why the turn used HTTP.
            rollback: ResultRollback::default(),
            context_injected: request.conversation.is_some() && self.progress.sent_at.is_some(),
            automation: None,
        };
        let result = ACPSessionResult::of_turn(&mut self.progress, &outcome, facts, now).into_bounded_json();
        Ended::WithResult { result: result.into(), failure }
    }
}

/// Returns the next event, but not before there is room for the line that it may add.
///
/// # Cancel safety
/// Cancel-safe: no event is lost.
async fn next(lines: &Lines, events: &mut Events) -> Option<AgentEvent> {
    lines.room().await;
    events.next().await
}
