//! One turn over HTTP, from the request to its end, across interrupted connections.

use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use reqwest::{Method, Response, header};
use serde_json::{json, value::RawValue};
use tokio::time::{Instant, sleep, timeout};

use super::{
    client::{RuntimeClient, root_cause},
    events::EventSender,
};
use crate::{
    contract::{
        fallback::{AFTER, NDJSON, PROCESS_PROMPT, ProcessPrompt, TurnLine, line_bytes},
        result::{ACPSessionResult, ResultStopReason},
    },
    domain::{
        ids::PromptId,
        session::restart::reconnect_delay,
        turn::{
            Severity,
            outcome::{ErrorCode, Failure},
        },
    },
    transport::{AgentEvent, socket::random_fraction},
};

/// Silence after which the connection counts as lost. The runtime sends a sign of life every 5 s.
const SILENCE: Duration = Duration::from_secs(15);
/// Number of "unknown turn" answers after which the request is not expected to arrive any more.
const UNKNOWN_TRIES: u32 = 3;

pub(crate) struct RequestedTurn {
    client: RuntimeClient,
    call: u64,
    prompt_id: PromptId,
    to_session: EventSender,
    grace: Duration,
    line_bytes: usize,
    /// The number of counted lines received so far.
    received: u64,
}

/// Results of reading an answer.
enum Read {
    /// The turn ended; its last event.
    Over(Box<AgentEvent>),
    /// The rest of the answer cannot be read, while the turn still runs.
    Unreadable(Failure),
    /// The connection broke; the cause.
    Broken(String),
    /// The session dropped its events.
    ReceiverDropped,
}

impl RequestedTurn {
    /// Creates a turn. The request and each line have at most [`line_bytes`] for messages of `frame_bytes`; a lost
    /// connection is restored for at most `grace`.
    pub(crate) fn new(
        client: RuntimeClient,
        call: u64,
        prompt_id: PromptId,
        to_session: EventSender,
        grace: Duration,
        frame_bytes: usize,
    ) -> Self {
        Self { client, call, prompt_id, to_session, grace, line_bytes: line_bytes(frame_bytes), received: 0 }
    }

    /// Requests the turn and forwards its events. The last one is an answer or the failure.
    pub(crate) async fn run(mut self, body: ProcessPrompt) {
        let end = match self.request_turn(body).await {
            Read::Over(end) => Some(*end),
            Read::Unreadable(failure) => Some(self.give_up(failure).await),
            Read::Broken(cause) => self.recover(cause).await,
            Read::ReceiverDropped => None,
        };
        if let Some(end) = end {
            // The session may have dropped its events.
            let _ = self.to_session.send(end, 1).await;
        }
    }

    /// Ends the turn at the runtime, which no session follows any more.
    async fn give_up(&self, failure: Failure) -> AgentEvent {
        if !self.client.cancel_is_accepted(self.prompt_id).await {
            // Ended by the runtime once it had no reader for its grace.
            tracing::warn!(marker = "[ACP]", prompt_id = %self.prompt_id, "turn with an unreadable answer was not cancelled");
        }
        self.failed(failure)
    }

    fn failed(&self, failure: Failure) -> AgentEvent {
        AgentEvent::Failed { call: self.call, failure }
    }

    async fn request_turn(&mut self, body: ProcessPrompt) -> Read {
        let path = PROCESS_PROMPT.trim_start_matches('/');
        let body = serde_json::to_vec(&body).unwrap_or_default();
        if body.len() > self.line_bytes {
            let detail =
                format!("the prompt takes {} bytes, and a message has at most {}", body.len(), self.line_bytes);
            return Read::Over(Box::new(self.failed(Failure::new(ErrorCode::FrameTooLarge, detail))));
        }
        let request = self.client.request(Method::POST, path).header(header::ACCEPT, NDJSON);
        let request = request.header(header::CONTENT_TYPE, "application/json").body(body);
        match timeout(SILENCE, request.send()).await {
            Ok(Ok(response)) if response.status().is_success() => self.read(response).await,
            Ok(Ok(response)) => {
                let failure = self.client.refusal(response).await;
                Read::Over(Box::new(self.failed(failure)))
            }
            // There was no connection, so the request was not sent.
            Ok(Err(cause)) if cause.is_connect() || cause.is_builder() => {
                Read::Over(Box::new(self.failed(self.client.unavailable(&cause))))
            }
            // The request may have arrived, so the turn is searched for and not sent again.
            Ok(Err(cause)) => Read::Broken(root_cause(&cause)),
            Err(_) => Read::Broken(silence_error()),
        }
    }

    /// Queries the state of the turn until it is known or the grace has expired. The grace starts again after each
    /// successful reconnection.
    async fn recover(&mut self, mut cause: String) -> Option<AgentEvent> {
        let (mut until, mut attempt, mut unknown, mut reported) = (Instant::now() + self.grace, 0, 0, false);
        loop {
            if !std::mem::replace(&mut reported, true) {
                self.to_session.send(AgentEvent::Interrupted(cause.clone()), 1).await.ok()?;
            }
            let wait = reconnect_delay(attempt, random_fraction());
            attempt += 1;
            // Given up before the wait: an attempt after the grace would find no turn.
            if Instant::now() + wait >= until {
                return Some(self.failed(self.lost(&cause)));
            }
            sleep(wait).await;
            let turn = PROCESS_PROMPT.trim_start_matches('/');
            let path = format!("{turn}/{}?{AFTER}={}", self.prompt_id, self.received);
            let request = self.client.request(Method::GET, &path);
            match timeout(SILENCE, request.header(header::ACCEPT, NDJSON).send()).await {
                Ok(Ok(response)) if response.status().is_success() => {
                    self.to_session.send(AgentEvent::Resumed, 1).await.ok()?;
                    match self.read(response).await {
                        Read::Over(end) => return Some(*end),
                        Read::Unreadable(failure) => return Some(self.give_up(failure).await),
                        Read::ReceiverDropped => return None,
                        Read::Broken(again) => {
                            // The turn was found, so this is a new break with a grace of its own.
                            (cause, reported, attempt) = (again, false, 0);
                            until = Instant::now() + self.grace;
                        }
                    }
                }
                Ok(Ok(response)) => {
                    let failure = self.client.refusal(response).await;
                    // The request for the turn may still be on its way, so one answer is not taken as final.
                    unknown += u32::from(failure.code == ErrorCode::NotFound);
                    cause = failure.detail;
                    if unknown >= UNKNOWN_TRIES {
                        return Some(self.failed(self.lost(&cause)));
                    }
                }
                Ok(Err(again)) => cause = root_cause(&again),
                Err(_) => cause = silence_error(),
            }
        }
    }

    fn lost(&self, cause: &str) -> Failure {
        let detail = format!(
            "the connection to the runtime was lost and the turn may have run; received {}: {cause}",
            match self.received {
                0 => "no message".to_owned(),
                1 => "one message".to_owned(),
                count => format!("{count} messages"),
            }
        );
        Failure::new(ErrorCode::ConnectionLost, detail)
    }

    async fn read(&mut self, mut response: Response) -> Read {
        let mut buffer = BytesMut::new();
        let mut searched = 0;
        loop {
            while let Some(end) = memchr::memchr(b'\n', &buffer[searched..])
                && searched + end <= self.line_bytes
            {
                let line = buffer.split_to(searched + end);
                buffer.advance(1);
                searched = 0;
                if let Some(read) = self.on_line(&line).await {
                    return read;
                }
            }
            searched = buffer.len();
            if searched > self.line_bytes {
                let detail = format!("the runtime sent a line longer than {} bytes", self.line_bytes);
                return Read::Unreadable(Failure::new(ErrorCode::FrameTooLarge, detail));
            }
            let chunk: Bytes = tokio::select! {
                chunk = timeout(SILENCE, response.chunk()) => match chunk {
                    Ok(Ok(Some(chunk))) => chunk,
                    Ok(Ok(None)) => return Read::Broken("the answer ended before the result".into()),
                    Ok(Err(cause)) => return Read::Broken(root_cause(&cause)),
                    Err(_) => return Read::Broken(silence_error()),
                },
                () = self.to_session.closed() => return Read::ReceiverDropped,
            };
            buffer.extend_from_slice(&chunk);
        }
    }

    /// Handles one line. Returns a value if it ends the reading.
    async fn on_line(&mut self, line: &[u8]) -> Option<Read> {
        let bytes = line.len();
        let line: TurnLine = match serde_json::from_slice(line) {
            Ok(line) => line,
            Err(cause) => {
                let detail = format!("the runtime sent a malformed line: {cause}");
                return Some(Read::Unreadable(Failure::new(ErrorCode::ProtocolViolation, detail)));
            }
        };
        // Counted before the event is delivered: the number only selects the lines to request after a break.
        self.received += u64::from(line.is_counted());
        let event = match line {
            TurnLine { update: Some(update), meta, .. } => AgentEvent::Update { update, meta },
            TurnLine { notification: Some(notification), .. } => {
                AgentEvent::Notification { method: notification.method, params: notification.params }
            }
            TurnLine { diagnostic: Some(diagnostic), .. } => {
                AgentEvent::Remark { severity: diagnostic.severity, message: diagnostic.message }
            }
            TurnLine { permission: Some(answer), .. } => AgentEvent::Permission(answer.resolution(self.prompt_id)),
            TurnLine { missed: Some(missed), .. } => {
                // Evicted lines count as received, or the next reconnect would request them again.
                self.received += missed;
                let message = format!("{missed} messages of the agent were lost with the connection to the runtime");
                AgentEvent::Remark { severity: Severity::Error, message }
            }
            TurnLine { result, failure, .. } if result.is_some() || failure.is_some() => {
                let failure = failure.map(|failure| {
                    let code = ErrorCode::from_name(&failure.code).unwrap_or(ErrorCode::Internal);
                    Failure::new(code, failure.detail)
                });
                return Some(Read::Over(Box::new(self.end_of(result.as_deref(), failure))));
            }
            _ => return None,
        };
        // Back-pressure: a session that does not read makes the runtime wait.
        self.to_session.send(event, bytes).await.err().map(|_| Read::ReceiverDropped)
    }

    /// Converts the runtime's result to the event that an agent's answer would have caused.
    fn end_of(&self, result: Option<&RawValue>, failure: Option<Failure>) -> AgentEvent {
        if let Some(failure) = failure {
            return self.failed(failure);
        }
        let result: Option<ACPSessionResult> = result.and_then(|result| serde_json::from_str(result.get()).ok());
        let Some((result, meta)) = result.and_then(|mut result| result.meta.take().map(|meta| (result, meta))) else {
            let failure = Failure::new(ErrorCode::Internal, "the runtime's result is malformed");
            return self.failed(failure);
        };
        match (result.stop_reason, meta.acp_stop_reason) {
            (ResultStopReason::Completed | ResultStopReason::Cancelled, Some(reason)) => {
                let mut answer = json!({"stopReason": reason});
                if meta.usage_known {
                    answer["usage"] = json!({
                        "inputTokens": result.usage.input_tokens,
                        "outputTokens": result.usage.output_tokens,
                    });
                }
                let answer = serde_json::value::to_raw_value(&answer).unwrap_or_else(|_| RawValue::NULL.to_owned());
                AgentEvent::Answered { call: self.call, result: Ok(answer) }
            }
            (ResultStopReason::Cancelled, None) => {
                let detail = "the agent did not confirm the cancel within its grace";
                self.failed(Failure::new(ErrorCode::CancelUnconfirmed, detail))
            }
            (ResultStopReason::Completed | ResultStopReason::Error, _) => {
                let code = meta.error_code.as_deref().and_then(ErrorCode::from_name).unwrap_or(ErrorCode::Internal);
                let detail = result.diagnostics.last().map_or("the turn failed", |last| &last.message);
                self.failed(Failure::new(code, detail))
            }
        }
    }
}

fn silence_error() -> String {
    format!("the runtime was silent for {} s", SILENCE.as_secs())
}
