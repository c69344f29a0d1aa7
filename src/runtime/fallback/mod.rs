//! Turns over HTTP alone, each with a fresh agent: what takes the place of ACP over WebSocket when that is not well,
//! so it needs neither a socket nor an agent that lives.
//!
//! Invariant: a turn runs once, however often it is asked for: it is known by its prompt id from before its agent
//! starts until it is forgotten.

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
    contract::fallback::{LineFailure, NDJSON, ProcessPrompt, TurnCancelled, TurnLine},
    domain::{
        ids::PromptId,
        session::mcp,
        turn::{
            outcome::{ErrorCode, Failure},
            prompt::Prompt,
        },
    },
};

/// Turns that have ended and are still known: a second's worth of more than any runtime runs. Each holds a result of
/// at most 32 KB.
const ENDED_TURNS: usize = 1024;
/// For how long they are known. A supervisor asks again for two minutes, others for as long as their own limits, which
/// are rarely more than this.
const ENDED_FOR: Duration = Duration::from_secs(600);
/// Bytes of what ended turns told, all together; the oldest lose theirs first and keep their results. A supervisor
/// that lost its line at the very end comes back within seconds.
const ENDED_LINES_BYTES: usize = 32 * 1024 * 1024;
/// The longest limit that a request may name: ten years, in milliseconds.
const MAX_LIMIT_MS: u64 = 10 * 366 * 24 * 3600 * 1000;

/// The fallback's turns of one runtime. Those that run are bounded by the seats of agents.
pub(crate) struct Fallback {
    agents: Arc<Agents>,
    settings: FallbackSettings,
    stopping: watch::Receiver<bool>,
    turns: Mutex<Turns>,
}

/// How turns are run and kept.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FallbackSettings {
    /// For how long a turn continues that nobody waits for.
    pub grace: Duration,
    /// What of each turn is held for its readers.
    pub lines: LineLimits,
    /// Largest request, in bytes.
    pub body_bytes: usize,
}

#[derive(Default)]
struct Turns {
    known: HashMap<PromptId, Arc<Turn>>,
    /// Those of them that have ended, the oldest first.
    ended: VecDeque<(Instant, PromptId)>,
    /// What ended turns told, and how much that is.
    told: VecDeque<(Arc<Lines>, usize)>,
    told_bytes: usize,
}

struct Turn {
    /// Of the request, to tell a repeat from another one.
    fingerprint: [u8; 32],
    lines: Arc<Lines>,
    cancel: watch::Sender<bool>,
}

/// How somebody wants to hear of a turn.
#[derive(Debug, Clone, Copy)]
enum TurnRequest {
    Result,
    /// Its lines after so many, or from now on.
    Stream {
        after: Option<u64>,
    },
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
    /// No turns yet. `stopping` turning true ends those that run.
    pub(crate) fn new(agents: Arc<Agents>, settings: FallbackSettings, stopping: watch::Receiver<bool>) -> Self {
        Self { agents, settings, stopping, turns: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Turns> {
        self.turns.lock()
    }

    /// Runs a turn, or joins the one that runs or ran under the same id. Starts a task on the calling task's runtime.
    ///
    /// # Errors
    /// What is wrong with the request; `idempotency_mismatch` where its id came before with another one; why no agent
    /// may be started: `path_not_allowed`, `unknown_agent`, `capacity_exhausted`. Nothing was run then.
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
                let detail = format!("the prompt {prompt_id} came before with another request");
                return Err(Failure::new(ErrorCode::IdempotencyMismatch, detail));
            }
            return Ok(turn.reader(turn_request));
        }
        if *self.stopping.borrow() {
            return Err(Failure::new(ErrorCode::Draining, "the runtime is stopping"));
        }
        let (cancel, cancelled) = watch::channel(false);
        let turn = Arc::new(Turn { fingerprint, lines: Arc::new(Lines::new(self.settings.lines)), cancel });
        // Before it runs, so that it is never without a reader.
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

    /// Joins a turn that is known.
    ///
    /// # Errors
    /// `not_found` for one that is not.
    async fn join(&self, prompt_id: PromptId, turn_request: TurnRequest) -> Result<Reader, Failure> {
        let turn = self.known(prompt_id);
        let turn = turn.ok_or_else(|| Failure::new(ErrorCode::NotFound, "this runtime knows no such prompt"))?;
        let mut reader = turn.reader(turn_request);
        reader.begun().await?;
        Ok(reader)
    }

    /// Asks for the end of a turn; whether it was running.
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
        self.told.push_back((lines.clone(), bytes));
        self.told_bytes += bytes;
        // As many as are known at most: what is told of the others nobody can ask for.
        while (self.told_bytes > ENDED_LINES_BYTES || self.told.len() > ENDED_TURNS)
            && let Some((oldest, bytes)) = self.told.pop_front()
        {
            self.told_bytes -= bytes;
            oldest.forget();
        }
    }
}

/// Ends a turn whatever happens to its task.
struct Ending {
    fallback: Arc<Fallback>,
    prompt_id: PromptId,
    turn: Arc<Turn>,
}

impl Drop for Ending {
    fn drop(&mut self) {
        let died = Failure::new(ErrorCode::Internal, "the turn's task died in the middle of it");
        // Counts only where nothing else ended it.
        self.turn.lines.end(Ended::Died(died));
        let mut turns = self.fallback.lock();
        if self.turn.lines.was_refused() {
            // Nothing ran: it may be asked for again.
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

/// How often a silent turn says that it runs. A peer that is gone is noticed by it as well.
const ALIVE_EVERY: Duration = Duration::from_secs(5);

/// `POST /process-prompt`
pub(crate) async fn process(request: HttpRequest, body: web::Payload, fallback: web::Data<Fallback>) -> HttpResponse {
    let fallback = fallback.into_inner();
    let limit = fallback.settings.body_bytes;
    let read = read::<ProcessPrompt>(&request, body, limit, "a request for a turn ([limits] body_bytes)").await;
    // A repeat gets everything that is held.
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

/// `GET /process-prompt/{promptId}`
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

/// `DELETE /process-prompt/{promptId}`
pub(crate) async fn cancel(path: web::Path<String>, fallback: web::Data<Fallback>) -> HttpResponse {
    answer(named(&path).map(|prompt_id| TurnCancelled { cancelled: fallback.cancel(prompt_id) }))
}

fn named(path: &str) -> Result<PromptId, Failure> {
    path.parse().map_err(|_| Failure::new(ErrorCode::NotFound, "no such prompt: its id is a UUID"))
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
        Ok(reader) if reader.is_stream() => HttpResponse::Ok().content_type(NDJSON).streaming(body_of(reader)),
        Ok(reader) => HttpResponse::Ok().content_type(ContentType::json()).streaming(body_of(reader)),
        Err(failure) => answer_failure(&failure),
    }
}

/// The body: what the turn tells as it comes, then its end.
fn body_of(reader: Reader) -> impl Stream<Item = Result<Bytes, Infallible>> {
    stream::unfold(Some(reader), |reader| async {
        let mut reader = reader?;
        let is_stream = reader.is_stream();
        match tokio::time::timeout(ALIVE_EVERY, reader.next()).await {
            // JSON may have white space ahead of it.
            Err(_) if !is_stream => Some((Ok(Bytes::from_static(b"\n")), Some(reader))),
            Err(_) => Some((Ok(as_line(&TurnLine { alive: true, ..TurnLine::default() })), Some(reader))),
            Ok(ReaderItem::Lines(lines)) => Some((Ok(lines), Some(reader))),
            Ok(ReaderItem::Ended(ended)) => Some((Ok(last_words(ended, is_stream)), None)),
        }
    })
}

fn last_words(ended: Ended, is_stream: bool) -> Bytes {
    let (result, failure) = match ended {
        Ended::WithResult { result, failure } => (Some(result), failure),
        Ended::Died(failure) => (None, Some(failure)),
        // Its readers were told before there was a body.
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
