//! Sessions: open, load, close, cancel, permissions, modes and options.

pub(crate) mod explain;
pub(crate) mod prompt;
pub(crate) mod read;
pub(crate) mod stream;

use std::time::Duration;

use actix_web::{
    HttpRequest, HttpResponse,
    http::header::{HeaderName, LOCATION},
    post, web,
};
use serde_json::value::RawValue;

use self::prompt::PREFERENCE_APPLIED;
use super::{
    HttpState,
    problem::{ApiError, REPLAYED},
    refusals::{OfAgent, OfBody, OfCall, OfKey, OfPermission, OfRuntime, OfSession, OfStart, Problems},
    request::{Body, idempotency, parse_body, path_id, run_to_completion},
    rows::{self, find_live, find_session, is_prepared},
};
use crate::{
    actors::{
        handles::{
            closing::ClosingTurn,
            index::LiveSession,
            messages::{AnswerPermission, CancelTurn, ChangeSetting},
        },
        workspaces::{OpenOnce, ReadySession, once::AnsweredOnce, open::OpenSession},
    },
    contract::{
        runtime::Checkout,
        session::{
            AgentAnswer, CancelBody, Cancelled, Closed, ConfigBody, LoadBody, Mode, ModeBody, ModelBody,
            NewSessionBody, PermissionAnswered, PermissionBody, SessionAccepted, SessionBody, SessionReady,
            WorkspaceInfo,
        },
    },
    domain::{
        access::Caller,
        automation::branch::ref_of_pull_request,
        ids::{PromptId, SessionId},
        redaction::RedactedJson,
        session::{
            choices::Setting,
            lifecycle::{SessionMode, SessionState},
            mcp::{self, McpServers},
        },
        turn::{CancelCause, outcome::ErrorCode},
    },
    store::SessionRow,
};

/// Creates a session in a workspace and starts its agent.
///
/// With `Prefer: respond-async` it answers at once with the session in state `preparing`: its folder is made and its agent
/// started afterwards. Events `preparation` of the session show the progress of a clone; the state becomes `idle`, or
/// `failed` with the failure that the answer would have had. A load prepares such a session again.
///
/// An `Idempotency-Key` (per tenant, 24 h) makes a retry safe: one key opens one session, and a repeat gets the first
/// answer with `Idempotent-Replayed: true`. A request that fails does not use up its key.
#[utoipa::path(
    tag = "sessions",
    security(("token" = ["sessions.use"])),
    params(
        ("Idempotency-Key" = Option<String>, Header, pattern = r"^[!-~]{1,128}$", description = "Makes a retry safe"),
        ("Prefer" = Option<String>, Header, description = "`respond-async` answers at once"),
    ),
    request_body = NewSessionBody,
    responses(
        (status = 201, description = "The session is ready for prompts; `Location` has its address", body = SessionReady),
        (status = 202, description = "The session is being prepared; `Location` has its address", body = SessionAccepted),
        Problems<(OfAgent, OfStart, OfKey)>,
    )
)]
#[post("/acp/session/new")]
pub(crate) async fn new_session(
    request: HttpRequest,
    state: web::Data<HttpState>,
    caller: Caller,
    body: Body,
) -> Result<HttpResponse, ApiError> {
    let key = idempotency(&request, &body)?.map(|key| rows::own_key(&caller, key));
    let is_async = prompt::prefers_async(&request);
    let request = open_request(&caller, parse_body(&body)?)?;
    let workspaces = state.workspaces.clone();
    let Some(idempotency) = key else {
        if is_async {
            let accepted = run_to_completion(async move { workspaces.open_later(request).await }).await?;
            let location = location(&accepted.session_id.to_string());
            let mut answer = HttpResponse::Accepted();
            return Ok(answer.insert_header(location).insert_header(PREFERENCE_APPLIED).json(accepted));
        }
        let opened = run_to_completion(async move { workspaces.open(request).await }).await?;
        let location = location(&opened.session_id.to_string());
        return Ok(HttpResponse::Created().insert_header(location).json(ready(opened)));
    };
    let once = OpenOnce { idempotency, answer_of, is_async };
    let AnsweredOnce { session_id, answer, is_accepted, is_replay } =
        run_to_completion(async move { workspaces.open_once(request, once).await }).await?;
    let mut created = if is_accepted { HttpResponse::Accepted() } else { HttpResponse::Created() };
    if is_accepted {
        created.insert_header(PREFERENCE_APPLIED);
    }
    if is_replay {
        created.insert_header(REPLAYED);
    }
    Ok(created.insert_header(location(&session_id)).content_type("application/json").body(answer))
}

fn location(session_id: &str) -> (HeaderName, String) {
    (LOCATION, format!("/acp/session/{session_id}"))
}

fn answer_of(opened: &ReadySession) -> RedactedJson {
    RedactedJson::of(&ready(opened.clone()))
}

fn open_request(caller: &Caller, body: NewSessionBody) -> Result<OpenSession, ApiError> {
    if body.repository.is_some() && body.path.is_some() {
        return Err(ApiError::new(ErrorCode::InvalidRequest, "give `repository` or `path`, not both"));
    }
    if body.branch.is_some() && body.repository.is_none() {
        return Err(ApiError::new(ErrorCode::InvalidRequest, "`branch` needs a `repository`"));
    }
    if body.pull_request.is_some() && (body.branch.is_some() || body.repository.is_none()) {
        let detail = "`pullRequest` needs a `repository`, and excludes `branch`";
        return Err(ApiError::new(ErrorCode::InvalidRequest, detail));
    }
    if body.pull_request == Some(0) {
        return Err(ApiError::new(ErrorCode::InvalidRequest, "`pullRequest` must be at least 1"));
    }
    let branch = body.pull_request.map(ref_of_pull_request).or(body.branch);
    let mcp_servers = body.mcp_servers.unwrap_or_else(mcp::none);
    mcp::check(&mcp_servers)?;
    if caller.scope().user.is_some() && body.permission_policy.is_some() {
        let detail = "permissionPolicy: the token is limited to a user, and the policy is that of the workspace";
        return Err(ApiError::new(ErrorCode::Forbidden, detail));
    }
    if body.github_token.is_some() && body.path.is_some() {
        return Err(ApiError::new(ErrorCode::InvalidRequest, "`githubToken` needs a `repository`"));
    }
    if body.isolate == Some(true) && body.path.is_some() {
        return Err(ApiError::new(ErrorCode::InvalidRequest, "`isolate` needs a `repository`, not a `path`"));
    }
    let github_token = body.github_token.map(prompt::github_token).transpose()?;
    let enable_git_ops = body.enable_git_ops.unwrap_or(body.repository.is_some());
    Ok(OpenSession {
        workspace: rows::workspace_key(caller, body.installation_id, body.workspace_id)?,
        user_id: rows::user(caller, body.user_id)?,
        agent: body.agent,
        mode: match body.mode {
            Mode::Development => SessionMode::Development,
            Mode::Conversation => SessionMode::Conversation,
        },
        enable_git_ops: enable_git_ops && body.mode == Mode::Development,
        checkout: body.repository.map(|repository| Checkout { repository, branch }),
        path: body.path,
        is_ephemeral: body.ephemeral,
        isolate: body.isolate,
        permission_policy: body.permission_policy,
        mcp_servers: McpServers::given(mcp_servers),
        is_of_delivery: false,
        github_token,
        limited: caller.limited_use(),
    })
}

fn ready(session: ReadySession) -> SessionReady {
    let facts = session.facts;
    SessionReady {
        session_id: session.session_id,
        protocol: session.protocol.as_str(),
        protocol_version: facts.protocol_version,
        connection_id: facts.connection_id.clone(),
        agent_info: facts.info.clone(),
        agent_capabilities: facts.capabilities.clone(),
        modes: session.offers.modes,
        models: session.offers.models,
        config_options: session.offers.options,
        mcp_servers: session.mcp_servers.into_raw(),
        mcp_secrets_lost: session.lost_servers,
        workspace: WorkspaceInfo {
            workspace_id: session.workspace.workspace_id,
            installation_id: session.workspace.installation_id,
            path: session.path,
            is_ephemeral: session.is_ephemeral,
            is_isolated: session.is_isolated,
        },
    }
}

/// The state of a session for callers: one hibernated for `session.max_age_s` is `expired`.
pub(crate) fn state_of(state: &HttpState, row: &SessionRow) -> SessionState {
    let now = state.workspaces.services().clock.now();
    row.state.at_age(now.since(row.last_used), Duration::from_secs(state.config.session.max_age_s))
}

/// Brings back a session that is not live.
///
/// The agent has its own memory of it, or gets the conversation as context. Never refused for lack of seats. A live session changes only if `mcpServers` differ from its own: its agent is then replaced, at once
/// or, while it works, ahead of the next prompt.
#[utoipa::path(
    tag = "sessions",
    security(("token" = ["sessions.use"])),
    request_body = LoadBody,
    responses(
        (status = 200, description = "The session is ready for prompts", body = SessionReady),
        Problems<(OfAgent, OfStart, OfSession, OfBody)>,
    )
)]
#[post("/acp/session/load")]
pub(crate) async fn load_session(
    state: web::Data<HttpState>,
    caller: Caller,
    body: Body,
) -> Result<web::Json<SessionReady>, ApiError> {
    let body: LoadBody = parse_body(&body)?;
    let id: SessionId = path_id(&body.session_id, "session")?;
    if let Some(servers) = &body.mcp_servers {
        mcp::check(servers)?;
    }
    is_prepared(&state, &caller, id)?;
    let row = find_session(&state, &caller, id).await?;
    let (workspaces, given) = (state.workspaces.clone(), body.mcp_servers.map(McpServers::given));
    let loaded = run_to_completion(async move { workspaces.load(&row, given).await }).await?;
    Ok(web::Json(ready(loaded)))
}

/// Ends a session for good: cancels its running turn, ends its agent and frees its seat. Idempotent.
#[utoipa::path(
    tag = "sessions",
    security(("token" = ["sessions.use"])),
    request_body = SessionBody,
    responses(
        (status = 200, description = "The session is closed", body = Closed),
        Problems<(OfSession, OfRuntime, OfBody)>,
    )
)]
#[post("/acp/session/close")]
pub(crate) async fn close_session(
    state: web::Data<HttpState>,
    caller: Caller,
    body: Body,
) -> Result<web::Json<Closed>, ApiError> {
    let body: SessionBody = parse_body(&body)?;
    let id: SessionId = path_id(&body.session_id, "session")?;
    if rows::find_preparing(&state, &caller, id).is_none()
        && find_live(&state, &caller, id).is_none()
        && find_session(&state, &caller, id).await?.state == SessionState::Closed
    {
        return Ok(web::Json(Closed { session_id: id, state: SessionState::Closed }));
    }
    let workspaces = state.workspaces.clone();
    run_to_completion(async move { workspaces.close(id).await }).await?;
    Ok(web::Json(Closed { session_id: id, state: SessionState::Closed }))
}

/// Cancels the running turn, which ends as `cancelled`. Answers whether a turn was running.
#[utoipa::path(
    tag = "turns",
    security(("token" = ["sessions.use"])),
    request_body = CancelBody,
    responses(
        (status = 200, description = "Whether a turn was running", body = Cancelled),
        Problems<OfBody>,
    )
)]
#[post("/acp/session/cancel")]
pub(crate) async fn cancel_turn(
    state: web::Data<HttpState>,
    caller: Caller,
    body: Body,
) -> Result<web::Json<Cancelled>, ApiError> {
    let body: CancelBody = parse_body(&body)?;
    let id: SessionId = path_id(&body.session_id, "session")?;
    let prompt_id: Option<PromptId> = body.prompt_id.as_deref().map(|id| path_id(id, "prompt")).transpose()?;
    let cancelled = match find_live(&state, &caller, id) {
        Some(live) => state
            .workspaces
            .ask(&live, |it| it.cancel_turn.clone(), |_| CancelTurn { prompt_id, cause: CancelCause::User })
            .await
            .unwrap_or(false),
        None => {
            find_session(&state, &caller, id).await?;
            // The session may have ended after its agent did, while automation still runs.
            let closing = state.workspaces.services().closing.get(id);
            let closing = closing.filter(|turn| prompt_id.is_none_or(|wanted| wanted == turn.prompt_id));
            closing.inspect(ClosingTurn::cancel).is_some()
        }
    };
    Ok(web::Json(Cancelled { cancelled }))
}

/// The live session, or the reason why it is not live.
async fn live(state: &HttpState, caller: &Caller, id: &str) -> Result<std::sync::Arc<LiveSession>, ApiError> {
    let id: SessionId = path_id(id, "session")?;
    is_prepared(state, caller, id)?;
    if let Some(live) = find_live(state, caller, id) {
        return Ok(live);
    }
    let row = find_session(state, caller, id).await?;
    let current = state_of(state, &row);
    let code = current.admits_prompt().err().unwrap_or(ErrorCode::SessionNotLoaded);
    Err(ApiError::new(code, format!("the session is {}", current.as_str())))
}

fn session_lost() -> ApiError {
    ApiError::new(ErrorCode::ConnectionLost, "the session ended during the request")
}

/// Answers a pending permission request (event `permission_request`).
#[utoipa::path(
    tag = "turns",
    security(("token" = ["sessions.use"])),
    request_body = PermissionBody,
    responses(
        (status = 200, description = "The answer was sent to the agent", body = PermissionAnswered),
        Problems<(OfPermission, OfAgent, OfSession, OfBody)>,
    )
)]
#[post("/acp/session/permission")]
pub(crate) async fn answer_permission(
    state: web::Data<HttpState>,
    caller: Caller,
    body: Body,
) -> Result<web::Json<PermissionAnswered>, ApiError> {
    let body: PermissionBody = parse_body(&body)?;
    let option_id = match (body.option_id, body.cancelled) {
        (Some(option_id), None | Some(false)) => Some(option_id),
        (None, Some(true)) => None,
        _ => return Err(ApiError::new(ErrorCode::InvalidRequest, "give either `optionId` or `cancelled: true`")),
    };
    let live = live(&state, &caller, &body.session_id).await?;
    let make = |_| AnswerPermission { request_id: body.request_id.clone(), option_id: option_id.clone() };
    state.workspaces.ask(&live, |it| it.answer_permission.clone(), make).await.ok_or_else(session_lost)??;
    Ok(web::Json(PermissionAnswered { request_id: body.request_id }))
}

async fn change(state: &HttpState, live: &LiveSession, setting: Setting) -> Result<Box<RawValue>, ApiError> {
    let make = |_| ChangeSetting(setting.clone());
    Ok(state.workspaces.ask(live, |it| it.change_setting.clone(), make).await.ok_or_else(session_lost)??)
}

/// Sets the mode of the agent to one that it offers. The session keeps it: a restarted agent, and the agents of the
/// fallback, get it before their first prompt.
#[utoipa::path(
    tag = "sessions",
    security(("token" = ["sessions.use"])),
    request_body = ModeBody,
    responses(
        (status = 200, description = "Answer of the agent", body = AgentAnswer),
        Problems<(OfCall, OfAgent, OfSession, OfBody)>,
    )
)]
#[post("/acp/session/mode")]
pub(crate) async fn set_mode(
    state: web::Data<HttpState>,
    caller: Caller,
    body: Body,
) -> Result<web::Json<AgentAnswer>, ApiError> {
    let body: ModeBody = parse_body(&body)?;
    let live = live(&state, &caller, &body.session_id).await?;
    let answer = change(&state, &live, Setting::Mode(body.mode_id)).await?;
    Ok(web::Json(AgentAnswer { answer }))
}

/// Sets the model of the agent to one that it offers in `models`. The session keeps it as it keeps the mode.
#[utoipa::path(
    tag = "sessions",
    security(("token" = ["sessions.use"])),
    request_body = ModelBody,
    responses(
        (status = 200, description = "Answer of the agent", body = AgentAnswer),
        Problems<(OfCall, OfAgent, OfSession, OfBody)>,
    )
)]
#[post("/acp/session/model")]
pub(crate) async fn set_model(
    state: web::Data<HttpState>,
    caller: Caller,
    body: Body,
) -> Result<web::Json<AgentAnswer>, ApiError> {
    let body: ModelBody = parse_body(&body)?;
    let live = live(&state, &caller, &body.session_id).await?;
    let answer = change(&state, &live, Setting::Model(body.model_id)).await?;
    Ok(web::Json(AgentAnswer { answer }))
}

/// Sets an option that the agent offers. The session keeps it as it keeps the mode.
#[utoipa::path(
    tag = "sessions",
    security(("token" = ["sessions.use"])),
    request_body = ConfigBody,
    responses(
        (status = 200, description = "Answer of the agent", body = AgentAnswer),
        Problems<(OfCall, OfAgent, OfSession, OfBody)>,
    )
)]
#[post("/acp/session/config")]
pub(crate) async fn set_config(
    state: web::Data<HttpState>,
    caller: Caller,
    body: Body,
) -> Result<web::Json<AgentAnswer>, ApiError> {
    let body: ConfigBody = parse_body(&body)?;
    if !(body.value.is_string() || body.value.is_boolean()) {
        return Err(ApiError::new(ErrorCode::InvalidRequest, "value: must be a string or a boolean"));
    }
    let live = live(&state, &caller, &body.session_id).await?;
    let answer = change(&state, &live, Setting::Option { id: body.config_id, value: body.value }).await?;
    Ok(web::Json(AgentAnswer { answer }))
}
