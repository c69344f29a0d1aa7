//! Prompt turns: run and read.

use std::sync::Arc;

use actix_web::{HttpRequest, HttpResponse, get, http::header, post, web};
use futures_util::StreamExt;
use secrecy::{ExposeSecret, SecretString};
use serde_json::value::RawValue;
use tokio::sync::watch;
use uuid::Uuid;

use super::{state_of, stream};
use crate::{
    actors::handles::messages::{PromptRefused, RunPrompt, TurnBegun, TurnEnded, TurnHandle},
    contract::{
        events::TurnStream,
        lists::{Page, PromptQuery},
        result::ACPSessionResult,
        session::{FailureInfo, PromptAccepted, PromptBody, PromptInfo},
    },
    domain::{
        access::Caller,
        automation::wanted::Wanted,
        ids::{PromptId, SessionId},
        turn::{
            TurnState,
            outcome::{ErrorCode, Failure},
            prompt::Prompt,
        },
    },
    http::{
        HttpState,
        problem::{ApiError, REPLAYED},
        refusals::{OfAgent, OfBody, OfKey, OfSession, OfStart, OfTurn, Problems},
        request::{Body, Query, idempotency, page, parse_body, path_id, run_to_completion},
        rows::{find_live, find_prompt, find_session, is_prepared, is_running},
        tokens,
    },
    store::{Idempotency, PromptRow},
};

/// The requested form of the answer.
enum AnswerForm {
    Result,
    Stream,
    Promise,
}

fn has_word(request: &HttpRequest, name: header::HeaderName, word: &str) -> bool {
    request.headers().get(name).and_then(|value| value.to_str().ok()).is_some_and(|value| value.contains(word))
}

/// True if the caller does not wait for the work of the request.
pub(super) fn prefers_async(request: &HttpRequest) -> bool {
    has_word(request, header::HeaderName::from_static("prefer"), "respond-async")
}

/// The header of an answer to such a request.
pub(super) const PREFERENCE_APPLIED: (&str, &str) = ("preference-applied", "respond-async");

fn answer_form(request: &HttpRequest) -> AnswerForm {
    if has_word(request, header::ACCEPT, "text/event-stream") {
        AnswerForm::Stream
    } else if prefers_async(request) {
        AnswerForm::Promise
    } else {
        AnswerForm::Result
    }
}

/// Runs one prompt turn.
///
/// Answers with the result once the turn has ended. With `Accept: text/event-stream` it streams each update as an event
/// with an id and ends with the event `result`. With `Prefer: respond-async` it answers at once with a `Location` to
/// poll. An `Idempotency-Key` (per session, 24 h) makes a retry safe: a repeat joins the running turn or gets the same
/// answer, with `Idempotent-Replayed: true`; while the turn's end is not on disk and the turn does not run here, it gets 202
/// and a `Location`. A caller that disconnects does not end the turn. A prompt right after a cancel waits up to 2 s for the
/// end of the cancelled turn, then it is refused with 409.
#[utoipa::path(
    tag = "turns",
    security(("token" = ["sessions.use"])),
    params(
        ("Idempotency-Key" = Option<String>, Header, pattern = r"^[!-~]{1,128}$", description = "Makes a retry safe"),
        ("Prefer" = Option<String>, Header, description = "`respond-async` answers at once"),
    ),
    request_body = PromptBody,
    responses(
        (status = 200, description = "The turn has ended", content(
            (ACPSessionResult = "application/json"),
            (TurnStream = "text/event-stream"),
        )),
        (status = 202, description = "The turn was accepted", body = PromptAccepted),
        Problems<(OfTurn, OfKey, OfAgent, OfStart, OfSession, OfBody)>,
    )
)]
#[post("/acp/session/prompt")]
pub(crate) async fn run_prompt(
    request: HttpRequest,
    state: web::Data<HttpState>,
    caller: Caller,
    body: Body,
) -> Result<HttpResponse, ApiError> {
    let idempotency = idempotency(&request, &body)?;
    let body: PromptBody = parse_body(&body)?;
    let session_id: SessionId = path_id(&body.session_id, "session")?;
    let prompt = Prompt::parse(&body.prompt)?;
    let own = body.github_token.map(github_token).transpose()?;
    let token = own.or_else(|| state.workspaces.services().given_tokens.of(session_id.0));
    let wanted = body.automation.wanted(token.is_some())?;
    let begun = begin(&state, &caller, session_id, (prompt, wanted, token), idempotency).await?;
    let (turn, duplicate) = match begun {
        TurnBegun::Accepted(turn) => (turn, false),
        TurnBegun::Joined(turn) => (turn, true),
        TurnBegun::Stored(row) => return replayed(repeat(*row, &answer_form(&request))),
    };
    let accepted = PromptAccepted { prompt_id: turn.prompt_id, session_id, duplicate };
    let answered = match answer_form(&request) {
        AnswerForm::Result => ended(&state, turn).await.and_then(|ended| answer(&ended)),
        AnswerForm::Promise => Ok(promise(&accepted)),
        AnswerForm::Stream => {
            let metrics = state.workspaces.services().metrics.clone();
            let until = tokens::until_token_ends(state.clone(), caller);
            Ok(stream::answer(stream::follow(turn, &accepted, metrics).take_until(Box::pin(until))))
        }
    };
    if duplicate { replayed(answered) } else { answered }
}

/// The longest token of a caller, in bytes. Tokens of installations have about 520; no alphabet is assumed.
const MAX_TOKEN_BYTES: usize = 4096;

/// Checks a caller's GitHub token: it becomes a header.
///
/// # Errors
/// `invalid_request`.
pub(crate) fn github_token(token: SecretString) -> Result<SecretString, ApiError> {
    let text = token.expose_secret();
    let fits = (1..=MAX_TOKEN_BYTES).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
    match fits {
        true => Ok(token),
        false => {
            let why = format!("`githubToken` must be 1 to {MAX_TOKEN_BYTES} visible ASCII characters");
            Err(ApiError::new(ErrorCode::InvalidRequest, why))
        }
    }
}

/// Marks the answer to a request that repeats another one.
fn replayed(answered: Result<HttpResponse, ApiError>) -> Result<HttpResponse, ApiError> {
    let (name, value) = REPLAYED;
    let (name, value) = (header::HeaderName::from_static(name), header::HeaderValue::from_static(value));
    let mut answer = answered.map_err(|error| error.replayed_if(true))?;
    answer.headers_mut().insert(name, value);
    Ok(answer)
}

/// Starts a turn; loads a hibernated session first.
async fn begin(
    state: &HttpState,
    asking: &Caller,
    session_id: SessionId,
    (prompt, wanted, token): (Prompt, Wanted, Option<SecretString>),
    idempotency: Option<Idempotency>,
) -> Result<TurnBegun, ApiError> {
    let workspaces = &state.workspaces;
    workspaces.admission()?;
    let prompt_id = PromptId(Uuid::now_v7());
    let span = tracing::Span::current();
    // Dropped with this future when the caller disconnects.
    let (_present, presence) = watch::channel(());
    // Twice: a session can hibernate between the lookup and the request.
    for _ in 0..2 {
        is_prepared(state, asking, session_id)?;
        if let Some(live) = find_live(state, asking, session_id) {
            let make = |again| RunPrompt {
                prompt_id,
                prompt: prompt.clone(),
                wanted: wanted.clone(),
                token: token.clone(),
                idempotency: idempotency.clone(),
                again,
                span: span.clone(),
                limited: asking.limited_use(),
                caller: presence.clone(),
            };
            if let Some(begun) = workspaces.ask(&live, |it| it.run_prompt.clone(), make).await {
                return match begun {
                    Ok(begun) => Ok(begun),
                    // The refusal is of a new turn, and a repeat needs none.
                    Err(refusal) => match stored(state, session_id, idempotency.as_ref()).await? {
                        Some(before) => Ok(before),
                        None => Err(refused(refusal)),
                    },
                };
            }
        }
        let row = find_session(state, asking, session_id).await?;
        if let Some(before) = stored(state, session_id, idempotency.as_ref()).await? {
            return Ok(before);
        }
        let current = state_of(state, &row);
        current.admits_prompt().map_err(|code| {
            let why = row.failure.as_ref().map(|failure| format!(": {}", failure.detail)).unwrap_or_default();
            ApiError::new(code, format!("the session is {}{why}", current.as_str()))
        })?;
        let loading = workspaces.clone();
        run_to_completion(async move { loading.load(&row, None).await }).await?;
    }
    Err(ApiError::new(ErrorCode::ConnectionLost, "the session could not be loaded; try again"))
}

/// Finds the turn on disk that has the key of a request.
///
/// # Errors
/// `idempotency_mismatch` if the turn had another body.
async fn stored(
    state: &HttpState,
    session_id: SessionId,
    idempotency: Option<&Idempotency>,
) -> Result<Option<TurnBegun>, ApiError> {
    let Some(key) = idempotency else { return Ok(None) };
    let services = state.workspaces.services();
    let before = services.store.prompt_with_key(session_id, key.key.clone(), services.clock.now()).await?;
    match before {
        Some(before) if before.idempotency.as_ref() != Some(key) => Err(Failure::idempotency_mismatch().into()),
        before => Ok(before.map(|before| TurnBegun::Stored(Box::new(before)))),
    }
}

fn refused(refused: PromptRefused) -> ApiError {
    let error = ApiError::from(refused.failure);
    match refused.running {
        Some(prompt_id) => error.about(prompt_id),
        None => error,
    }
}

/// Waits for the end of a turn.
///
/// # Cancel safety
/// The turn continues without the caller.
async fn ended(state: &HttpState, mut turn: TurnHandle) -> Result<Arc<TurnEnded>, ApiError> {
    let Ok(ended) = turn.ended.wait_for(Option::is_some).await.map(|ended| ended.clone()) else {
        // A drain leaves a turn open whose agent has ended.
        state.workspaces.admission().map_err(|draining| ApiError::from(draining).about(turn.prompt_id))?;
        return Err(ApiError::new(ErrorCode::DatabaseUnavailable, "the turn could not be persisted"));
    };
    ended.ok_or_else(|| ApiError::new(ErrorCode::Internal, "the turn ended without a result"))
}

/// The answer to a turn that ended.
fn answer(ended: &TurnEnded) -> Result<HttpResponse, ApiError> {
    if ended.event_id.is_none() {
        return Err(ApiError::not_durable(ended));
    }
    answer_with(ended.prompt_id, ended.failure.clone(), ended.result.clone())
}

fn answer_with(
    prompt_id: PromptId,
    failure: Option<Failure>,
    result: Box<RawValue>,
) -> Result<HttpResponse, ApiError> {
    match failure {
        Some(failure) => Err(ApiError::of_turn(failure, prompt_id).with_result(Some(result))),
        None => Ok(HttpResponse::Ok().content_type("application/json").body(String::from(Box::<str>::from(result)))),
    }
}

/// Repeats the answer of a stored turn. One without an end may still be running in another process, or is about to be
/// recovered: its caller gets a `Location` to poll, whatever the requested form.
fn repeat(row: PromptRow, form: &AnswerForm) -> Result<HttpResponse, ApiError> {
    let accepted = PromptAccepted { prompt_id: row.prompt_id, session_id: row.session_id, duplicate: true };
    if row.ended.is_none() {
        return Ok(pending(&accepted));
    }
    let result = row.result.and_then(|result| RawValue::from_string(result).ok());
    let interrupted = || Failure::new(ErrorCode::Interrupted, "the service stopped during this turn");
    match (form, result) {
        (AnswerForm::Promise, _) => Ok(promise(&accepted)),
        (_, None) => Err(ApiError::of_turn(row.error.unwrap_or_else(interrupted), row.prompt_id)),
        (AnswerForm::Result, Some(result)) => answer_with(row.prompt_id, row.error, result),
        (AnswerForm::Stream, Some(result)) => Ok(stream::answer(stream::ended_before(&accepted, &result))),
    }
}

/// The answer about a turn without an end.
fn pending(accepted: &PromptAccepted) -> HttpResponse {
    HttpResponse::Accepted()
        .insert_header((header::LOCATION, format!("/acp/prompt/{}", accepted.prompt_id)))
        .json(accepted)
}

fn promise(accepted: &PromptAccepted) -> HttpResponse {
    let mut answer = pending(accepted);
    let (name, value) = PREFERENCE_APPLIED;
    answer.headers_mut().insert(header::HeaderName::from_static(name), header::HeaderValue::from_static(value));
    answer
}

/// State of a turn, and its result once it has ended.
#[utoipa::path(
    tag = "turns",
    security(("token" = ["contents.read"])),
    params(("id" = PromptId, Path, description = "promptId")),
    responses(
        (status = 200, description = "The turn", body = PromptInfo),
    )
)]
#[get("/acp/prompt/{id:[0-9a-fA-F-]+}")]
pub(crate) async fn get_prompt(
    state: web::Data<HttpState>,
    caller: Caller,
    id: web::Path<String>,
) -> Result<web::Json<PromptInfo>, ApiError> {
    let id: PromptId = path_id(&id, "prompt")?;
    let row = find_prompt(&state, &caller, id).await?;
    Ok(web::Json(info(&state, row)))
}

/// Lists the turns of a session, newest first, without their results.
#[utoipa::path(
    tag = "turns",
    security(("token" = ["contents.read"])),
    params(("id" = SessionId, Path, description = "sessionId"), PromptQuery),
    responses(
        (status = 200, description = "A page", body = Page<PromptInfo>),
    )
)]
#[get("/acp/session/{id:[0-9a-fA-F-]+}/prompts")]
pub(crate) async fn list_prompts(
    state: web::Data<HttpState>,
    caller: Caller,
    id: web::Path<String>,
    query: Query<PromptQuery>,
) -> Result<web::Json<Page<PromptInfo>>, ApiError> {
    let id: SessionId = path_id(&id, "session")?;
    find_session(&state, &caller, id).await?;
    let PromptQuery { limit, cursor } = query.into_inner();
    let page = page(&state, limit, cursor)?;
    let limit = page.limit;
    let rows = state.workspaces.services().store.list_turns(id, page).await?;
    let next_cursor = rows.last().filter(|_| rows.len() == limit).map(|row| row.cursor().to_string());
    let items = rows.into_iter().map(|row| info(&state, PromptRow { result: None, ..row })).collect();
    Ok(web::Json(Page { items, next_cursor }))
}

fn info(state: &HttpState, row: PromptRow) -> PromptInfo {
    let id = row.prompt_id;
    let running = is_running(state, &row);
    PromptInfo {
        prompt_id: id,
        session_id: row.session_id,
        // The row is `accepted` until the end; only the live session knows that the turn is running.
        state: if running && row.state == TurnState::Accepted { TurnState::Running } else { row.state },
        initiator: row.initiator,
        preview: row.preview,
        // Before the end it is the agent's part alone.
        result: row.result.filter(|_| row.ended.is_some()).and_then(|result| RawValue::from_string(result).ok()),
        failure: row.error.map(|it| FailureInfo { code: it.code.as_str().to_owned(), detail: it.detail }),
        accepted_at: row.accepted.to_string(),
        ended_at: row.ended.map(|at| at.to_string()),
    }
}
