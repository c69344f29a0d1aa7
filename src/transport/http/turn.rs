//! One turn over HTTP, from the request to its end, whatever happens to the lines between.

use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use reqwest::{Method, Response, header};
use serde_json::{json, value::RawValue};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};

use super::client::{RuntimeClient, root_cause};
use crate::{
    contract::{
        fallback::{AFTER, LinePermission, NDJSON, PROCESS_PROMPT, ProcessPrompt, TurnLine},
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

/// How long the runtime may say nothing before its line is considered dead: it says that a turn lives every 5 s.
const SILENCE: Duration = Duration::from_secs(15);
/// What a line has beside a message of the agent, in bytes, and more.
const ROOM: usize = 64 * 1024;
/// After so many answers that the turn is not known it is not waited for that the request may still arrive.
const UNKNOWN_TRIES: u32 = 3;

/// A turn that is asked for.
pub(crate) struct AskedTurn {
    client: RuntimeClient,
    call: u64,
    prompt_id: PromptId,
    says: mpsc::Sender<AgentEvent>,
    grace: Duration,
    line_bytes: usize,
    /// Counted lines that came.
    received: u64,
}

/// Outcome of reading an answer.
enum Read {
    Over(Box<AgentEvent>),
    /// The line broke; the cause.
    Broken(String),
    /// The session wants nothing more.
    NobodyListens,
}

impl AskedTurn {
    /// Lines are at most `frame_bytes` and something; a broken line is made again for `grace`.
    pub(crate) fn new(
        client: RuntimeClient,
        call: u64,
        prompt_id: PromptId,
        says: mpsc::Sender<AgentEvent>,
        grace: Duration,
        frame_bytes: usize,
    ) -> Self {
        Self { client, call, prompt_id, says, grace, line_bytes: frame_bytes.saturating_add(ROOM), received: 0 }
    }

    /// Asks for the turn and says what it says, the end last: an answer, or why it failed.
    pub(crate) async fn run(mut self, body: ProcessPrompt) {
        let end = match self.request(body).await {
            Read::Over(end) => Some(*end),
            Read::Broken(cause) => self.query_outcome(cause).await,
            Read::NobodyListens => None,
        };
        if let Some(end) = end {
            // Nobody who wants to know is fine.
            let _ = self.says.send(end).await;
        }
    }

    fn failed(&self, failure: Failure) -> AgentEvent {
        AgentEvent::Failed { call: self.call, failure }
    }

    async fn request(&mut self, body: ProcessPrompt) -> Read {
        let path = PROCESS_PROMPT.trim_start_matches('/');
        let request = self.client.request(Method::POST, path).header(header::ACCEPT, NDJSON).json(&body);
        match timeout(SILENCE, request.send()).await {
            Ok(Ok(response)) if response.status().is_success() => self.read(response).await,
            Ok(Ok(response)) => {
                let failure = self.client.refusal(response).await;
                Read::Over(Box::new(self.failed(failure)))
            }
            // Nothing was sent: there was no connection to send it on.
            Ok(Err(cause)) if cause.is_connect() || cause.is_builder() => {
                Read::Over(Box::new(self.failed(self.client.unavailable(&cause))))
            }
            Ok(Err(cause)) => Read::Broken(root_cause(&cause)),
            Err(_) => Read::Broken(silence()),
        }
    }

    /// Asks the outcome of the turn until that is known or the grace is over. Each line that stands and breaks again
    /// has a grace of its own.
    async fn query_outcome(&mut self, mut cause: String) -> Option<AgentEvent> {
        let (mut until, mut attempt, mut unknown, mut told) = (Instant::now() + self.grace, 0, 0, false);
        loop {
            if !std::mem::replace(&mut told, true) {
                self.says.send(AgentEvent::Interrupted(cause.clone())).await.ok()?;
            }
            let wait = reconnect_delay(attempt, random_fraction());
            attempt += 1;
            if Instant::now() + wait >= until {
                return Some(self.failed(self.lost(&cause)));
            }
            sleep(wait).await;
            let turn = PROCESS_PROMPT.trim_start_matches('/');
            let path = format!("{turn}/{}?{AFTER}={}", self.prompt_id, self.received);
            let request = self.client.request(Method::GET, &path);
            match timeout(SILENCE, request.header(header::ACCEPT, NDJSON).send()).await {
                Ok(Ok(response)) if response.status().is_success() => {
                    self.says.send(AgentEvent::Resumed).await.ok()?;
                    match self.read(response).await {
                        Read::Over(end) => return Some(*end),
                        Read::NobodyListens => return None,
                        Read::Broken(again) => {
                            (cause, told, attempt) = (again, false, 0);
                            until = Instant::now() + self.grace;
                        }
                    }
                }
                Ok(Ok(response)) => {
                    let failure = self.client.refusal(response).await;
                    unknown += u32::from(failure.code == ErrorCode::NotFound);
                    cause = failure.detail;
                    if unknown >= UNKNOWN_TRIES {
                        return Some(self.failed(self.lost(&cause)));
                    }
                }
                Ok(Err(again)) => cause = root_cause(&again),
                Err(_) => cause = silence(),
            }
        }
    }

    fn lost(&self, cause: &str) -> Failure {
        let detail = format!(
            "the answer of the runtime was lost and the turn may have run; {} of what it said came: {cause}",
            match self.received {
                0 => "nothing".to_owned(),
                1 => "one message".to_owned(),
                count => format!("{count} messages"),
            }
        );
        Failure::new(ErrorCode::ConnectionLost, detail)
    }

    async fn read(&mut self, mut response: Response) -> Read {
        let mut held = BytesMut::new();
        let mut searched = 0;
        loop {
            while let Some(end) = memchr::memchr(b'\n', &held[searched..]) {
                let line = held.split_to(searched + end);
                held.advance(1);
                searched = 0;
                if let Some(read) = self.on_line(&line).await {
                    return read;
                }
            }
            searched = held.len();
            if searched > self.line_bytes {
                let detail = format!("the runtime sent a line of more than {} bytes", self.line_bytes);
                return Read::Over(Box::new(self.failed(Failure::new(ErrorCode::FrameTooLarge, detail))));
            }
            let chunk: Bytes = tokio::select! {
                chunk = timeout(SILENCE, response.chunk()) => match chunk {
                    Ok(Ok(Some(chunk))) => chunk,
                    Ok(Ok(None)) => return Read::Broken("the answer ended before the result".into()),
                    Ok(Err(cause)) => return Read::Broken(root_cause(&cause)),
                    Err(_) => return Read::Broken(silence()),
                },
                () = self.says.closed() => return Read::NobodyListens,
            };
            held.extend_from_slice(&chunk);
        }
    }

    /// What ends the reading, if this line does.
    async fn on_line(&mut self, line: &[u8]) -> Option<Read> {
        let line: TurnLine = match serde_json::from_slice(line) {
            Ok(line) => line,
            Err(cause) => {
                let detail = format!("the runtime sent a line that is no part of a turn: {cause}");
                let failure = Failure::new(ErrorCode::ProtocolViolation, detail);
                return Some(Read::Over(Box::new(self.failed(failure))));
            }
        };
        self.received += u64::from(line.is_counted());
        let event = match line {
            TurnLine { update: Some(update), meta, .. } => AgentEvent::Update { update, meta },
            TurnLine { notification: Some(said), .. } => {
                AgentEvent::Notification { method: said.method, params: said.params }
            }
            TurnLine { diagnostic: Some(said), .. } => {
                AgentEvent::Remark { severity: said.severity, message: said.message }
            }
            TurnLine { permission: Some(answer), .. } => {
                let LinePermission { option_id, allows, by } = answer;
                AgentEvent::Permission { option_id, allows, by }
            }
            TurnLine { missed: Some(missed), .. } => {
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
        // A session that does not read makes the runtime wait.
        self.says.send(event).await.err().map(|_| Read::NobodyListens)
    }

    /// The end of the turn, as an agent would have answered.
    fn end_of(&self, result: Option<&RawValue>, failure: Option<Failure>) -> AgentEvent {
        if let Some(failure) = failure {
            return self.failed(failure);
        }
        let result: Option<ACPSessionResult> = result.and_then(|result| serde_json::from_str(result.get()).ok());
        let Some((result, meta)) = result.and_then(|mut result| result.meta.take().map(|meta| (result, meta))) else {
            let failure = Failure::new(ErrorCode::Internal, "the runtime's result cannot be read");
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

fn silence() -> String {
    format!("the runtime said nothing for {} s", SILENCE.as_secs())
}
