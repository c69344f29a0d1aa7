//! Runs turns over HTTP alone, each with a fresh agent process. This is the fallback while ACP over WebSocket is
//! degraded, so it depends neither on a socket nor on a long-lived agent.
//!
//! Invariant: a turn runs once, however often it is requested. Its prompt id is registered before its agent starts
//! and stays registered until [`ENDED_FOR`] after its end, or until [`ENDED_TURNS`] newer turns have ended.

mod lines;
mod oneshot;
mod turn;

use std::{
    collections::{HashMap, VecDeque},
    convert::Infallible,
    sync::Arc,
    time::Duration,
};

use actix_web::{
    HttpRequest, HttpResponse,
    http::header::{self, ContentType},
    web,
};
use bytes::Bytes;
use futures_util::{Stream, stream};
use parking_lot::{Mutex, MutexGuard};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio::{sync::watch, time::Instant};

pub(crate) use self::lines::LineLimits;

use self::{
    lines::{Ended, Lines, Reader, ReaderItem},
    turn::Run,
};
use super::{
    agents::Agents,
    reply::{answer, answer_failure, read},
};
use crate::{
    contract::fallback::{LineFailure, NDJSON, ProcessPrompt, TurnCancelled, TurnLine, line_bytes},
    domain::{
        ids::PromptId,
        session::mcp,
        turn::{
            outcome::{ErrorCode, Failure},
            prompt::Prompt,
        },
    },
};

/// Largest number of ended turns that are remembered: more than any runtime ends in a second. Each holds a result of
/// at most 32 KB.
const ENDED_TURNS: usize = 1024;
/// Time that an ended turn is remembered. A supervisor asks again for up to two minutes, other clients up to their
/// own time limits, which rarely exceed ten minutes.
const ENDED_FOR: Duration = Duration::from_secs(600);
/// Largest total of the lines that ended turns hold, in bytes. Above it, the oldest turns drop their lines and keep
/// their results. That is safe because a supervisor that lost its connection near the end reconnects within seconds.
const ENDED_LINES_BYTES: usize = 32 * 1024 * 1024;
/// Largest time limit that a request may set: ten years, in milliseconds.
const MAX_LIMIT_MS: u64 = 10 * 366 * 24 * 3600 * 1000;

/// Fallback turns of one runtime. The number of running turns is limited by the permits for agent processes.
pub(crate) struct Fallback {
    agents: Arc<Agents>,
    settings: FallbackSettings,
    stopping: watch::Receiver<bool>,
    turns: Mutex<Turns>,
}

/// Settings for running turns and holding their lines.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FallbackSettings {
    /// Time that a turn continues without a reader before it is ended.
    pub grace: Duration,
    /// Limits of the lines that each turn holds for its readers.
    pub lines: LineLimits,
    /// `[limits] frame_bytes`: the largest message in either direction, in bytes.
    pub frame_bytes: usize,
}

#[derive(Default)]
struct Turns {
    known: HashMap<PromptId, Arc<Turn>>,
    /// Known turns that have ended, the oldest first.
    ended: VecDeque<(Instant, PromptId)>,
    /// Ended turns that hold lines, the oldest first, with the bytes that each holds.
    held: VecDeque<(Arc<Lines>, usize)>,
    held_bytes: usize,
}

struct Turn {
    /// SHA-256 of the request, to distinguish a repeat from a different request with the same prompt id.
    fingerprint: [u8; 32],
    lines: Arc<Lines>,
    cancel: watch::Sender<bool>,
}

/// Form in which a client wants to receive a turn.
#[derive(Debug, Clone, Copy)]
enum TurnRequest {
    /// Only the result, once the turn has ended.
    Result,
    /// All lines after the first `after`, or only new lines if `None`; then the result.
    Stream { after: Option<u64> },
}

impl Turn {
    fn reader(&self, turn_request: TurnRequest) -> Reader {
        match turn_request {
            TurnRequest::Result => self.lines.wait(),
            TurnRequest::Stream { after } => self.lines.stream(after),
        }
    }
}

impl Fallback {
    /// Creates an empty set of turns. When `stopping` becomes true, running turns end and new ones are refused.
    pub(crate) fn new(agents: Arc<Agents>, settings: FallbackSettings, stopping: watch::Receiver<bool>) -> Self {
        Self { agents, settings, stopping, turns: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Turns> {
        self.turns.lock()
    }

    /// Runs a turn, or joins the one that runs or ran under the same prompt id. The turn runs in a task of its own on
    /// the caller's tokio runtime.
    ///
    /// # Errors
    /// `invalid_request`; `idempotency_mismatch` if the prompt id belongs to a different request; `draining` while
    /// the runtime stops; `path_not_allowed`, `unknown_agent` or `capacity_exhausted` if no agent can be started.
    /// Nothing was run, and the same request may be sent again. `internal` if the task of the turn died: it is not
    /// run again.
    ///
    /// # Cancel safety
    /// A dropped future does not cancel the turn; it continues for the grace of [`FallbackSettings`].
    async fn begin(self: &Arc<Self>, request: ProcessPrompt, turn_request: TurnRequest) -> Result<Reader, Failure> {
        let prompt = check(&request)?;
        let fingerprint = fingerprint(&request)?;
        let mut reader = self.join_or_run(request, prompt, fingerprint, turn_request)?;
        reader.begun().await?;
        Ok(reader)
    }

    fn join_or_run(
        self: &Arc<Self>,
        request: ProcessPrompt,
        prompt: Prompt,
        fingerprint: [u8; 32],
        turn_request: TurnRequest,
    ) -> Result<Reader, Failure> {
        let prompt_id = request.prompt_id;
        let mut turns = self.lock();
        turns.forget_old();
        if let Some(turn) = turns.known.get(&prompt_id) {
            if turn.fingerprint != fingerprint {
                let detail = format!("the prompt {prompt_id} was already used by a different request");
                return Err(Failure::new(ErrorCode::IdempotencyMismatch, detail));
            }
            return Ok(turn.reader(turn_request));
        }
        // Checked after the lookup: a stopping runtime still answers for turns that it knows.
        if *self.stopping.borrow() {
            return Err(Failure::new(ErrorCode::Draining, "the runtime is stopping"));
        }
        let (cancel, cancelled) = watch::channel(false);
        let turn = Arc::new(Turn { fingerprint, lines: Arc::new(Lines::new(self.settings.lines)), cancel });
        // Registered before the turn runs, so that the turn is not abandoned before its client reads.
        let reader = turn.reader(turn_request);
        turns.known.insert(prompt_id, turn.clone());
        drop(turns);
        let lines = turn.lines.clone();
        let ending = Ending { fallback: self.clone(), prompt_id, turn };
        let (stopping, grace) = (self.stopping.clone(), self.settings.grace);
        let run = Run { request, prompt, lines, cancelled, stopping, grace };
        tokio::spawn(async move {
            let ended = run.run(&ending.fallback.agents).await;
            ending.turn.lines.end(ended);
        });
        Ok(reader)
    }

    /// Joins a turn that runs or has ended.
    ///
    /// # Errors
    /// `not_found` for an unknown prompt id, and the failure of a turn that was refused.
    async fn join(&self, prompt_id: PromptId, turn_request: TurnRequest) -> Result<Reader, Failure> {
        let turn = self.known(prompt_id);
        let turn = turn.ok_or_else(|| Failure::new(ErrorCode::NotFound, "this runtime knows no such turn"))?;
        let mut reader = turn.reader(turn_request);
        reader.begun().await?;
        Ok(reader)
    }

    /// Requests the cancellation of a turn. Returns true if it was running.
    fn cancel(&self, prompt_id: PromptId) -> bool {
        let running = self.known(prompt_id).filter(|turn| !turn.lines.has_ended());
        if let Some(turn) = &running {
            turn.cancel.send_replace(true);
        }
        running.is_some()
    }

    fn known(&self, prompt_id: PromptId) -> Option<Arc<Turn>> {
        let mut turns = self.lock();
        turns.forget_old();
        turns.known.get(&prompt_id).cloned()
    }
}

impl Turns {
    fn forget_old(&mut self) {
        while let Some((at, prompt_id)) = self.ended.front().copied()
            && (self.ended.len() > ENDED_TURNS || at.elapsed() >= ENDED_FOR)
        {
            self.ended.pop_front();
            self.known.remove(&prompt_id);
        }
    }

    fn note_end(&mut self, prompt_id: PromptId, lines: &Arc<Lines>) {
        self.ended.push_back((Instant::now(), prompt_id));
        self.forget_old();
        let bytes = lines.held_bytes();
        self.held.push_back((lines.clone(), bytes));
        self.held_bytes += bytes;
        // Also limited by number: no client can join a turn that is not known any more.
        while (self.held_bytes > ENDED_LINES_BYTES || self.held.len() > ENDED_TURNS)
            && let Some((oldest, bytes)) = self.held.pop_front()
        {
            self.held_bytes -= bytes;
            oldest.forget();
        }
    }
}

/// Guard in the task of a turn: records the turn's end when dropped, even if the task panics.
struct Ending {
    fallback: Arc<Fallback>,
    prompt_id: PromptId,
    turn: Arc<Turn>,
}

impl Drop for Ending {
    fn drop(&mut self) {
        let died = Failure::new(ErrorCode::Internal, "the task of the turn ended unexpectedly");
        // Has no effect if the turn has ended regularly.
        self.turn.lines.end(Ended::Died(died));
        let mut turns = self.fallback.lock();
        if self.turn.lines.was_refused() {
            // Nothing ran, so the same request may be sent again.
            turns.known.remove(&self.prompt_id);
        } else {
            turns.note_end(self.prompt_id, &self.turn.lines);
        }
    }
}

fn check(request: &ProcessPrompt) -> Result<Prompt, Failure> {
    for (name, limit) in [
        ("inactivityTimeoutMs", request.inactivity_timeout_ms),
        ("cancelGraceMs", request.cancel_grace_ms),
        ("handshakeTimeoutMs", request.handshake_timeout_ms),
    ] {
        if limit == 0 || limit > MAX_LIMIT_MS {
            let detail = format!("{name}: is {limit}, must be 1 to {MAX_LIMIT_MS}");
            return Err(Failure::new(ErrorCode::InvalidRequest, detail));
        }
    }
    mcp::check(&request.mcp_servers)?;
    Prompt::parse(&request.prompt)
}

fn fingerprint(request: &ProcessPrompt) -> Result<[u8; 32], Failure> {
    let text = serde_json::to_vec(request).map_err(|cause| Failure::new(ErrorCode::Internal, cause.to_string()))?;
    Ok(Sha256::digest(text).into())
}

/// Interval of keep-alives on a turn without output. They let the client distinguish a silent turn from a dead
/// connection, and let the runtime detect a client that has disconnected.
const ALIVE_EVERY: Duration = Duration::from_secs(5);

/// `POST /process-prompt`: runs a turn and answers with its lines or its result.
pub(crate) async fn process(request: HttpRequest, body: web::Payload, fallback: web::Data<Fallback>) -> HttpResponse {
    let fallback = fallback.into_inner();
    let limit = line_bytes(fallback.settings.frame_bytes);
    let read = read::<ProcessPrompt>(&request, body, limit, "a request for a turn ([limits] frame_bytes)").await;
    // A repeated request has received nothing yet, so it gets every line that is held.
    let turn_request = turn_request(&request, Some(0));
    let begun = match read {
        Ok(asked) => fallback.begin(asked, turn_request).await,
        Err(failure) => Err(failure),
    };
    respond(begun)
}

#[derive(Deserialize)]
struct Query {
    after: Option<u64>,
}

/// `GET /process-prompt/{promptId}`: joins a known turn; never runs one.
pub(crate) async fn join(
    request: HttpRequest,
    path: web::Path<String>,
    fallback: web::Data<Fallback>,
) -> HttpResponse {
    let joined = match (named(&path), web::Query::<Query>::from_query(request.query_string())) {
        (Err(failure), _) => Err(failure),
        (_, Err(cause)) => Err(Failure::new(ErrorCode::InvalidRequest, cause.to_string())),
        (Ok(prompt_id), Ok(query)) => fallback.join(prompt_id, turn_request(&request, query.after)).await,
    };
    respond(joined)
}

/// `DELETE /process-prompt/{promptId}`: cancels a running turn.
pub(crate) async fn cancel(path: web::Path<String>, fallback: web::Data<Fallback>) -> HttpResponse {
    answer(named(&path).map(|prompt_id| TurnCancelled { cancelled: fallback.cancel(prompt_id) }))
}

fn named(path: &str) -> Result<PromptId, Failure> {
    path.parse().map_err(|_| Failure::new(ErrorCode::NotFound, "the prompt id is not a UUID"))
}

fn turn_request(request: &HttpRequest, after: Option<u64>) -> TurnRequest {
    let accepts = request.headers().get_all(header::ACCEPT).filter_map(|accepted| accepted.to_str().ok());
    if accepts.into_iter().any(|accepted| accepted.contains(NDJSON)) {
        TurnRequest::Stream { after }
    } else {
        TurnRequest::Result
    }
}

fn respond(begun: Result<Reader, Failure>) -> HttpResponse {
    match begun {
        Ok(reader) if reader.is_stream() => HttpResponse::Ok().content_type(NDJSON).streaming(body(reader)),
        Ok(reader) => HttpResponse::Ok().content_type(ContentType::json()).streaming(body(reader)),
        Err(failure) => answer_failure(&failure),
    }
}

/// Response body: the turn's lines as they arrive with keep-alives in between, then its end.
fn body(reader: Reader) -> impl Stream<Item = Result<Bytes, Infallible>> {
    stream::unfold(Some(reader), |reader| async {
        let mut reader = reader?;
        let is_stream = reader.is_stream();
        match tokio::time::timeout(ALIVE_EVERY, reader.next()).await {
            // White space may precede a JSON value, so it serves as a keep-alive.
            Err(_) if !is_stream => Some((Ok(Bytes::from_static(b"\n")), Some(reader))),
            Err(_) => Some((Ok(as_line(&TurnLine { alive: true, ..TurnLine::default() })), Some(reader))),
            Ok(ReaderItem::Lines(lines)) => Some((Ok(lines), Some(reader))),
            Ok(ReaderItem::Ended(ended)) => Some((Ok(end_of_body(ended, is_stream)), None)),
        }
    })
}

fn end_of_body(ended: Ended, is_stream: bool) -> Bytes {
    let (result, failure) = match ended {
        Ended::WithResult { result, failure } => (Some(result), failure),
        Ended::Died(failure) => (None, Some(failure)),
        // Unreachable in practice: a refused turn is answered with a problem instead of a body.
        Ended::Refused(failure) => (None, Some(failure)),
    };
    if !is_stream {
        return result.map_or_else(Bytes::new, |result| Bytes::from(result.get().to_owned()));
    }
    let failure =
        failure.map(|failure| LineFailure { code: failure.code.as_str().to_owned(), detail: failure.detail });
    let result = result.map(|result| (*result).to_owned());
    as_line(&TurnLine { result, failure, ..TurnLine::default() })
}

fn as_line(line: &TurnLine) -> Bytes {
    let mut text = serde_json::to_vec(line).unwrap_or_default();
    text.push(b'\n');
    text.into()
}

#[cfg(test)]
pub(crate) mod tests;
