//! Sessions: open, load, close, steer.

pub(crate) mod explain;
pub(crate) mod prompt;
pub(crate) mod read;
pub(crate) mod stream;

use std::time::Duration;

use actix_web::{HttpResponse, post, web};

use super::{
    HttpState,
    problem::ApiError,
    request::{Body, find_session, parse_body, path_id, to_its_end},
};
use crate::{
    actors::{
        handles::{
            index::LiveSession,
            messages::{AnswerPermission, CancelTurn, SetConfigOption, SetMode},
        },
        workspaces::{ReadySession, open::OpenSession},
    },
    contract::{
        runtime::Checkout,
        session::{
            AgentAnswer, CancelBody, Cancelled, Closed, ConfigBody, LoadBody, Mode, ModeBody, NewSessionBody,
            PermissionAnswered, PermissionBody, SessionBody, SessionReady, WorkspaceInfo,
        },
    },
    domain::{
        ids::{PromptId, SessionId, WorkspaceKey},
        session::{
            lifecycle::{SessionMode, SessionState},
            mcp,
        },
        turn::outcome::ErrorCode,
    },
    store::{SessionChange, SessionRow},
};

/// Creates a session in a workspace and starts its agent.
#[utoipa::path(
    tag = "sessions",
    request_body = NewSessionBody,
    responses(
        (status = 201, description = "The session is ready for prompts", body = SessionReady),
    )
)]
#[post("/acp/session/new")]
pub(crate) async fn new_session(state: web::Data<HttpState>, body: Body) -> Result<HttpResponse, ApiError> {
    let body: NewSessionBody = parse_body(&body)?;
    if body.repository.is_some() && body.path.is_some() {
        return Err(ApiError::new(ErrorCode::InvalidRequest, "give `repository` or `path`, not both"));
    }
    if body.branch.is_some() && body.repository.is_none() {
        return Err(ApiError::new(ErrorCode::InvalidRequest, "`branch` needs a `repository`"));
    }
    let mcp_servers = body.mcp_servers.unwrap_or_else(mcp::none);
    mcp::check(&mcp_servers)?;
    let enable_git_ops = body.enable_git_ops.unwrap_or(body.repository.is_some());
    let request = OpenSession {
        workspace: WorkspaceKey { installation_id: body.installation_id, workspace_id: body.workspace_id },
        user_id: body.user_id,
        agent: body.agent,
        mode: match body.mode {
            Mode::Development => SessionMode::Development,
            Mode::Conversation => SessionMode::Conversation,
        },
        enable_git_ops: enable_git_ops && body.mode == Mode::Development,
        checkout: body.repository.map(|repository| Checkout { repository, branch: body.branch }),
        path: body.path,
        permission_policy: body.permission_policy,
        mcp_servers,
    };
    let workspaces = state.workspaces.clone();
    let opened = to_its_end(async move { workspaces.open(request).await }).await?;
    Ok(HttpResponse::Created().json(ready(opened)))
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
        modes: facts.modes.clone(),
        config_options: facts.config_options.clone(),
        workspace: WorkspaceInfo {
            workspace_id: session.workspace.workspace_id,
            installation_id: session.workspace.installation_id,
            path: session.path,
            is_ephemeral: session.is_ephemeral,
        },
    }
}

/// Where a session stands, as callers see it: hibernated for too long reads as expired.
pub(crate) fn state_of(state: &HttpState, row: &SessionRow) -> SessionState {
    let now = state.workspaces.services().clock.now();
    row.state.at_age(now.since(row.last_used), Duration::from_secs(state.config.session.max_age_s))
}

/// Brings a session back that is not live, with what its agent remembers or with the conversation as context.
/// For a session that is live it changes nothing. Never refused for want of seats.
#[utoipa::path(
    tag = "sessions",
    request_body = LoadBody,
    responses(
        (status = 200, description = "The session is ready for prompts", body = SessionReady),
    )
)]
#[post("/acp/session/load")]
pub(crate) async fn load_session(
    state: web::Data<HttpState>,
    body: Body,
) -> Result<web::Json<SessionReady>, ApiError> {
    let body: LoadBody = parse_body(&body)?;
    let id: SessionId = path_id(&body.session_id, "session")?;
    if let Some(servers) = &body.mcp_servers {
        mcp::check(servers)?;
    }
    let row = find_session(&state, id).await?;
    let workspaces = state.workspaces.clone();
    let loaded = to_its_end(async move { workspaces.load(&row, body.mcp_servers).await }).await?;
    Ok(web::Json(ready(loaded)))
}

/// Ends a session for good and frees everything that it held. A running turn is cancelled. Closing a closed
/// session changes nothing.
#[utoipa::path(
    tag = "sessions",
    request_body = SessionBody,
    responses(
        (status = 200, description = "It is closed", body = Closed),
    )
)]
#[post("/acp/session/close")]
pub(crate) async fn close_session(state: web::Data<HttpState>, body: Body) -> Result<web::Json<Closed>, ApiError> {
    let body: SessionBody = parse_body(&body)?;
    let id: SessionId = path_id(&body.session_id, "session")?;
    if !state.workspaces.close(id).await {
        let row = find_session(&state, id).await?;
        if row.state != SessionState::Closed {
            let services = state.workspaces.services();
            let change = SessionChange { state: Some(SessionState::Closed), ..SessionChange::new(id) };
            services.store.update_session(change).await?;
        }
    }
    Ok(web::Json(Closed { session_id: id, state: SessionState::Closed }))
}

/// Ends the running turn: it ends `cancelled`. Says truthfully whether one was running.
#[utoipa::path(
    tag = "turns",
    request_body = CancelBody,
    responses(
        (status = 200, description = "Whether a turn was running", body = Cancelled),
    )
)]
#[post("/acp/session/cancel")]
pub(crate) async fn cancel_turn(state: web::Data<HttpState>, body: Body) -> Result<web::Json<Cancelled>, ApiError> {
    let body: CancelBody = parse_body(&body)?;
    let id: SessionId = path_id(&body.session_id, "session")?;
    let prompt_id: Option<PromptId> = body.prompt_id.as_deref().map(|id| path_id(id, "prompt")).transpose()?;
    let cancelled = match state.workspaces.live(id) {
        Some(live) => state
            .workspaces
            .ask(&live, |it| it.cancel_turn.clone(), |_| CancelTurn { prompt_id })
            .await
            .unwrap_or(false),
        None => {
            find_session(&state, id).await?;
            false
        }
    };
    Ok(web::Json(Cancelled { cancelled }))
}

/// The live session, or why there is none to steer.
async fn live(state: &HttpState, id: &str) -> Result<std::sync::Arc<LiveSession>, ApiError> {
    let id: SessionId = path_id(id, "session")?;
    if let Some(live) = state.workspaces.live(id) {
        return Ok(live);
    }
    let row = find_session(state, id).await?;
    let standing = state_of(state, &row);
    let code = standing.admits_prompt().err().unwrap_or(ErrorCode::SessionNotLoaded);
    Err(ApiError::new(code, format!("the session is {}", standing.as_str())))
}

fn went_away() -> ApiError {
    ApiError::new(ErrorCode::ConnectionLost, "the session went away")
}

/// Answers a permission request that is waiting (event `permission_request`).
#[utoipa::path(
    tag = "turns",
    request_body = PermissionBody,
    responses(
        (status = 200, description = "The agent has the answer", body = PermissionAnswered),
    )
)]
#[post("/acp/session/permission")]
pub(crate) async fn answer_permission(
    state: web::Data<HttpState>,
    body: Body,
) -> Result<web::Json<PermissionAnswered>, ApiError> {
    let body: PermissionBody = parse_body(&body)?;
    let option_id = match (body.option_id, body.cancelled) {
        (Some(option_id), None | Some(false)) => Some(option_id),
        (None, Some(true)) => None,
        _ => return Err(ApiError::new(ErrorCode::InvalidRequest, "give either `optionId` or `cancelled: true`")),
    };
    let live = live(&state, &body.session_id).await?;
    let make = |_| AnswerPermission { request_id: body.request_id.clone(), option_id: option_id.clone() };
    state.workspaces.ask(&live, |it| it.answer_permission.clone(), make).await.ok_or_else(went_away)??;
    Ok(web::Json(PermissionAnswered { request_id: body.request_id }))
}

/// Selects one of the modes that the agent offers.
#[utoipa::path(
    tag = "sessions",
    request_body = ModeBody,
    responses(
        (status = 200, description = "What the agent answered", body = AgentAnswer),
    )
)]
#[post("/acp/session/mode")]
pub(crate) async fn set_mode(state: web::Data<HttpState>, body: Body) -> Result<web::Json<AgentAnswer>, ApiError> {
    let body: ModeBody = parse_body(&body)?;
    let live = live(&state, &body.session_id).await?;
    let make = |_| SetMode { mode_id: body.mode_id.clone() };
    let answer = state.workspaces.ask(&live, |it| it.set_mode.clone(), make).await.ok_or_else(went_away)??;
    Ok(web::Json(AgentAnswer { answer }))
}

/// Sets one of the options that the agent offers.
#[utoipa::path(
    tag = "sessions",
    request_body = ConfigBody,
    responses(
        (status = 200, description = "What the agent answered", body = AgentAnswer),
    )
)]
#[post("/acp/session/config")]
pub(crate) async fn set_config(state: web::Data<HttpState>, body: Body) -> Result<web::Json<AgentAnswer>, ApiError> {
    let body: ConfigBody = parse_body(&body)?;
    if !(body.value.is_string() || body.value.is_boolean()) {
        return Err(ApiError::new(ErrorCode::InvalidRequest, "value: must be a string or a boolean"));
    }
    let live = live(&state, &body.session_id).await?;
    let make = |_| SetConfigOption { config_id: body.config_id.clone(), value: body.value.clone() };
    let answer =
        state.workspaces.ask(&live, |it| it.set_config_option.clone(), make).await.ok_or_else(went_away)??;
    Ok(web::Json(AgentAnswer { answer }))
}
