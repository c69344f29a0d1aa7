//! Reads sessions, transcripts, diffs, events, workspaces and agents.

use actix_web::{HttpRequest, HttpResponse, get, http::header::HeaderValue, web};
use futures_util::StreamExt;
use serde_json::value::RawValue;

use super::{state_of, stream};
use crate::{
    actors::handles::{
        agent_handshakes::LastHandshake,
        event_feed::{EventFeed, ReadFrom},
    },
    contract::{
        events::SessionStream,
        lists::{
            AgentHandshake, AgentItem, EventsQuery, From, Page, SessionQuery, SessionStates, TranscriptItem,
            TranscriptPage, TranscriptQuery, WorkspaceItem, WorkspaceQuery,
        },
        routing::protocol::TenantQuery,
        runtime::WorkspaceDiff,
        session::{FailureInfo, Mode, SessionInfo, WaitingPermission},
    },
    domain::{
        access::{Caller, Privilege},
        ids::{SessionId, WorkspaceId},
        redaction::{Redacted, RedactedJson},
        session::{
            choices::{Chosen, Offers},
            lifecycle::{SessionMode, SessionState},
            pending_permissions::WaitingRequest,
        },
        turn::outcome::ErrorCode,
    },
    http::{
        HttpState,
        problem::ApiError,
        refusals::{OfFolder, OfRuntime, OfSession, OfWorkspace, Problems},
        request::{Query, page, page_size, path_id},
        rows::{self, find_live, find_preparing, find_session, find_workspace},
        tokens,
    },
    store::{self, SessionFilter, SessionRow, TranscriptRow, WorkspaceFilter, WorkspaceRow},
};

/// The most pages of rows read for one page of sessions in a given state.
const MAX_PAGES_READ: usize = 10;

/// State of a session.
#[utoipa::path(
    tag = "sessions",
    security(("token" = ["sessions.read"])),
    params(("id" = SessionId, Path, description = "sessionId")),
    responses(
        (status = 200, description = "The session", body = SessionInfo),
    )
)]
#[get("/acp/session/{id:[0-9a-fA-F-]+}")]
pub(crate) async fn get_session(
    state: web::Data<HttpState>,
    caller: Caller,
    id: web::Path<String>,
) -> Result<web::Json<SessionInfo>, ApiError> {
    let id: SessionId = path_id(&id, "session")?;
    let row = find_session(&state, &caller, id).await?;
    let path = match &row.own_folder {
        Some(own) => own.path.clone(),
        None => {
            let workspace = state.workspaces.services().store.workspace(row.key.clone()).await?;
            workspace.and_then(|workspace| workspace.workspace_path)
        }
    };
    // They have parts of the conversation.
    let live = find_live(&state, &caller, id).filter(|_| caller.may(Privilege::ReadContents));
    let waiting = live.map(|live| live.shared.feed.waiting()).unwrap_or_default();
    let permission_requests = waiting.iter().map(|request| waiting_permission(request)).collect();
    Ok(web::Json(SessionInfo { workspace_path: path, permission_requests, ..info(&state, row, true) }))
}

fn waiting_permission(request: &WaitingRequest) -> WaitingPermission {
    WaitingPermission {
        request_id: request.request_id.clone(),
        prompt_id: request.prompt_id,
        tool_call: request.tool_call.clone(),
        options: request.options.clone(),
        since: request.since.to_string(),
        deadline: request.deadline.to_string(),
    }
}

/// A session from its row, updated from the live session.
fn info(state: &HttpState, row: SessionRow, whole: bool) -> SessionInfo {
    let preparing = rows::preparing_of(state, &row);
    let live = rows::live_of(state, &row).filter(|_| preparing.is_none());
    let view = live.as_ref().map(|live| live.shared.view().clone());
    let current = match (&preparing, &view) {
        (Some(_), _) => SessionState::Preparing,
        (None, Some(view)) => view.state,
        (None, None) => state_of(state, &row),
    };
    let feed = preparing.as_ref().map(|it| &it.feed).or(live.as_ref().map(|live| &live.shared.feed));
    let last_event_id = feed.map_or(row.last_event_id, EventFeed::last_id);
    let agent_facts = row.agent_facts.as_deref().filter(|_| whole);
    let agent_facts = agent_facts.and_then(|facts| match &view {
        Some(view) => facts_with(facts, view.chosen.offers()),
        None => facts_with(facts, Chosen::of_row(row.choices.clone(), Some(facts)).offers()),
    });
    let mcp_secrets_lost = if whole { state.workspaces.lost_servers(&row) } else { Vec::new() };
    SessionInfo {
        session_id: row.session_id,
        installation_id: row.key.installation_id,
        workspace_id: row.key.workspace_id,
        user_id: row.user_id,
        agent: row.agent,
        mode: match row.mode {
            SessionMode::Development => Mode::Development,
            SessionMode::Conversation => Mode::Conversation,
        },
        state: current,
        failure: row.failure.map(|it| FailureInfo { code: it.code.as_str().to_owned(), detail: it.detail }),
        connection_status: live.as_ref().map(|live| live.shared.connection_status().as_str()),
        last_heartbeat: view.as_ref().and_then(|view| view.last_heard).map(|at| at.to_string()),
        running_prompt_id: view.as_ref().and_then(|view| view.running),
        protocol: view.as_ref().map_or(row.protocol, |view| view.carrier).as_str(),
        protocol_version: row.protocol_version,
        restarts: view.as_ref().map_or(row.restarts, |view| view.restarts),
        last_event_id,
        workspace_path: None,
        is_isolated: row.own_folder.is_some(),
        permission_requests: Vec::new(),
        agent_facts,
        mcp_servers: RawValue::from_string(row.mcp_servers).ok().filter(|_| whole),
        mcp_secrets_lost,
        mode_unavailable: view.as_ref().and_then(|view| view.chosen.mode_unavailable()).map(str::to_owned),
        created_at: row.created.to_string(),
        last_used_at: view.map_or(row.last_used, |view| view.last_used).to_string(),
    }
}

/// The facts of an agent's handshake with modes, models and options as they are now.
fn facts_with(facts: &str, offers: &Offers) -> Option<Box<RawValue>> {
    let mut facts: serde_json::Value = serde_json::from_str(facts).ok()?;
    for (member, now) in [("modes", &offers.modes), ("models", &offers.models), ("configOptions", &offers.options)] {
        if let (Some(facts), Some(now)) = (facts.as_object_mut(), now) {
            facts.insert(member.to_owned(), now.clone());
        }
    }
    serde_json::value::to_raw_value(&facts).ok()
}

/// Persisted entries of the conversation, oldest first. With `changedAfter` in the order of their newest change.
#[utoipa::path(
    tag = "sessions",
    security(("token" = ["contents.read"])),
    params(("id" = SessionId, Path, description = "sessionId"), TranscriptQuery),
    responses(
        (status = 200, description = "A page", body = TranscriptPage),
    )
)]
#[get("/acp/session/{id:[0-9a-fA-F-]+}/transcript")]
pub(crate) async fn get_transcript(
    state: web::Data<HttpState>,
    caller: Caller,
    id: web::Path<String>,
    query: Query<TranscriptQuery>,
) -> Result<web::Json<TranscriptPage>, ApiError> {
    let id: SessionId = path_id(&id, "session")?;
    find_session(&state, &caller, id).await?;
    let limit = page_size(&state, query.limit)?;
    let store = &state.workspaces.services().store;
    let (rows, next_cursor) = match (query.changed_after, query.cursor.as_deref()) {
        (Some(_), Some(_)) => {
            return Err(ApiError::new(ErrorCode::InvalidRequest, "cursor: not possible together with changedAfter"));
        }
        (Some(after), None) => (store.transcript_changes(id, after, limit).await?, None),
        (None, cursor) => {
            let bad = |_| ApiError::new(ErrorCode::InvalidRequest, "cursor: not a cursor of this transcript");
            let after = cursor.map_or(Ok(0), str::parse::<u64>).map_err(bad)?;
            let rows = store.transcript(id, after, limit).await?;
            let next_cursor = rows.last().filter(|_| rows.len() == limit).map(|row| row.seq.to_string());
            (rows, next_cursor)
        }
    };
    let entries = rows.into_iter().map(transcript_item).collect();
    Ok(web::Json(TranscriptPage { entries, next_cursor }))
}

fn transcript_item(row: TranscriptRow) -> TranscriptItem {
    let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    TranscriptItem {
        seq: number(row.seq),
        revision: number(row.revision),
        changed: number(row.changed),
        prompt_id: row.prompt_id,
        event_type: row.entry.event_type,
        text: row.entry.text.into_string(),
        message_id: row.entry.message_id,
        payload: row.entry.payload.map(RedactedJson::into_raw),
        created_at: row.created.to_string(),
    }
}

/// Changes in the workspace of a session since it was prepared.
#[utoipa::path(
    tag = "sessions",
    security(("token" = ["contents.read"])),
    params(("id" = SessionId, Path, description = "sessionId")),
    responses(
        (status = 200, description = "Files and patch", body = WorkspaceDiff),
        Problems<(OfRuntime, OfFolder)>,
    )
)]
#[get("/acp/session/{id:[0-9a-fA-F-]+}/diff")]
pub(crate) async fn get_diff(
    state: web::Data<HttpState>,
    caller: Caller,
    id: web::Path<String>,
) -> Result<web::Json<WorkspaceDiff>, ApiError> {
    let id: SessionId = path_id(&id, "session")?;
    let row = find_session(&state, &caller, id).await?;
    let workspace = state.workspaces.services().store.workspace(row.key.clone()).await?;
    let missing = || ApiError::new(ErrorCode::NotFound, "the workspace of the session does not exist any more");
    Ok(web::Json(state.workspaces.diff(&workspace.ok_or_else(missing)?, &row).await?))
}

/// Events of a live session, or of one that is being prepared, as server-sent events. They are raw updates of the agent and events of the service, in order,
/// each once. Starts after `Last-Event-ID`, else with the oldest event in memory, or with the next event for `?from=live`. A
/// `gap` event reports evicted events; the transcript has them. A reader that does not keep up is disconnected after a
/// `gap` and can resume with its last id. Ends with the session.
#[utoipa::path(
    tag = "sessions",
    security(("token" = ["contents.read"])),
    params(
        ("id" = SessionId, Path, description = "sessionId"),
        EventsQuery,
        ("Last-Event-ID" = Option<u64>, Header, description = "Id of the last event that the reader received"),
    ),
    responses(
        (status = 200, description = "The events", body = SessionStream, content_type = "text/event-stream"),
        Problems<OfSession>,
    )
)]
#[get("/acp/session/{id:[0-9a-fA-F-]+}/events")]
pub(crate) async fn follow_events(
    request: HttpRequest,
    state: web::Data<HttpState>,
    caller: Caller,
    id: web::Path<String>,
    query: Query<EventsQuery>,
) -> Result<HttpResponse, ApiError> {
    let id: SessionId = path_id(&id, "session")?;
    let preparing = find_preparing(&state, &caller, id).map(|it| it.feed.clone());
    let feed = preparing.or_else(|| find_live(&state, &caller, id).map(|live| live.shared.feed.clone()));
    let Some(feed) = feed else {
        let current = state_of(&state, &find_session(&state, &caller, id).await?);
        let code = current.admits_load().err().unwrap_or(ErrorCode::SessionNotLoaded);
        return Err(ApiError::new(code, format!("the session is {}", current.as_str())));
    };
    let from = match (last_event_id(request.headers().get("last-event-id"))?, query.from) {
        (Some(last_id), _) => ReadFrom::After(last_id),
        (None, Some(From::Live)) => ReadFrom::Live,
        (None, None) => ReadFrom::Oldest,
    };
    let services = state.workspaces.services();
    let events = stream::follow_session(&feed, from, services.index.clone(), services.metrics.clone());
    let until = tokens::until_token_ends(state.clone(), caller);
    Ok(stream::answer(events.take_until(Box::pin(until))))
}

fn last_event_id(given: Option<&HeaderValue>) -> Result<Option<u64>, ApiError> {
    let Some(given) = given else { return Ok(None) };
    let id = given.to_str().ok().and_then(|id| id.parse().ok());
    let id = id.ok_or_else(|| ApiError::new(ErrorCode::InvalidRequest, "Last-Event-ID: must be a number"))?;
    Ok(Some(id))
}

/// Lists sessions, newest first.
#[utoipa::path(
    tag = "sessions",
    security(("token" = ["sessions.read"])),
    params(SessionQuery),
    responses(
        (status = 200, description = "A page", body = Page<SessionInfo>),
    )
)]
#[get("/acp/sessions")]
pub(crate) async fn list_sessions(
    state: web::Data<HttpState>,
    caller: Caller,
    query: Query<SessionQuery>,
) -> Result<web::Json<Page<SessionInfo>>, ApiError> {
    let SessionQuery { installation_id, workspace_id, user_id, state: SessionStates(wanted), limit, cursor } =
        query.into_inner();
    let mut page = page(&state, limit, cursor)?;
    let limit = page.limit;
    let installation_id = rows::tenant(&caller, installation_id)?;
    let workspace_id = rows::workspace(&caller, workspace_id)?;
    let user_id = rows::user(&caller, user_id)?;
    let states = wanted.iter().flat_map(|wanted| wanted.kept_as()).copied().collect();
    let filter = SessionFilter { installation_id, workspace_id, user_id, states };
    let mut items = Vec::new();
    let mut next_cursor = None;
    // A live session may be in another state than its row, so a page of rows may have fewer matches; after some pages
    // the caller gets what was found, and the cursor to continue.
    for _ in 0..MAX_PAGES_READ {
        let rows = state.workspaces.services().store.list_sessions(filter.clone(), page.clone()).await?;
        let more = rows.len() == page.limit;
        let last = rows.last().map(|row| row.cursor());
        let is_wanted = |it: &SessionInfo| wanted.is_empty() || wanted.contains(&it.state);
        items.extend(rows.into_iter().map(|row| info(&state, row, false)).filter(is_wanted));
        next_cursor = last.filter(|_| more);
        if items.len() == limit || next_cursor.is_none() {
            break;
        }
        page = store::Page { limit: limit - items.len(), after: next_cursor.clone() };
    }
    Ok(web::Json(Page { items, next_cursor: next_cursor.map(|cursor| cursor.to_string()) }))
}

/// Lists workspaces, newest first. A token that is limited to a user gets those in which the user has or had a session.
#[utoipa::path(
    tag = "workspaces",
    security(("token" = ["sessions.read"])),
    params(WorkspaceQuery),
    responses(
        (status = 200, description = "A page", body = Page<WorkspaceItem>),
    )
)]
#[get("/acp/workspaces")]
pub(crate) async fn list_workspaces(
    state: web::Data<HttpState>,
    caller: Caller,
    query: Query<WorkspaceQuery>,
) -> Result<web::Json<Page<WorkspaceItem>>, ApiError> {
    let WorkspaceQuery { installation_id, workspace_id, limit, cursor } = query.into_inner();
    let page = page(&state, limit, cursor)?;
    let limit = page.limit;
    let filter = WorkspaceFilter {
        installation_id: rows::tenant(&caller, installation_id)?,
        workspace_id: rows::workspace(&caller, workspace_id)?,
        user_id: rows::user(&caller, None)?,
    };
    let rows = state.workspaces.services().store.list_workspaces(filter, page).await?;
    let next_cursor = if rows.len() < limit { None } else { rows.last().map(|row| row.cursor().to_string()) };
    Ok(web::Json(Page { items: rows.into_iter().map(|row| workspace_item(&state, row)).collect(), next_cursor }))
}

/// The workspace as it is now.
#[utoipa::path(
    tag = "workspaces",
    security(("token" = ["sessions.read"])),
    params(("id" = WorkspaceId, Path, description = "workspaceId"), TenantQuery),
    responses(
        (status = 200, description = "The workspace", body = WorkspaceItem),
        Problems<OfWorkspace>,
    )
)]
#[get("/acp/workspaces/{id}")]
pub(crate) async fn get_workspace(
    state: web::Data<HttpState>,
    caller: Caller,
    id: web::Path<String>,
    query: Query<TenantQuery>,
) -> Result<web::Json<WorkspaceItem>, ApiError> {
    let row = find_workspace(&state, &caller, &id, query.into_inner()).await?;
    Ok(web::Json(workspace_item(&state, row)))
}

fn workspace_item(state: &HttpState, row: WorkspaceRow) -> WorkspaceItem {
    WorkspaceItem {
        disk_bytes: state.workspaces.services().disk.of(&row.key),
        installation_id: row.key.installation_id,
        workspace_id: row.key.workspace_id,
        repository: row.repository,
        path: row.workspace_path,
        permission_policy: row.permission_policy,
        created_at: row.created.to_string(),
        last_used_at: row.last_used.to_string(),
    }
}

/// Lists the configured agents, with what is known about each. A token of a tenant gets no `lastHandshake`: it may be of
/// a session of another tenant.
#[utoipa::path(
    tag = "workspaces",
    security(("token" = ["service.read"])),
    responses(
        (status = 200, description = "The agents", body = Page<AgentItem>),
        Problems<OfRuntime>,
    )
)]
#[get("/acp/agents")]
pub(crate) async fn list_agents(
    state: web::Data<HttpState>,
    caller: Caller,
) -> Result<web::Json<Page<AgentItem>>, ApiError> {
    let status = state.workspaces.workspace_client().status().await?;
    let handshakes = &state.workspaces.services().handshakes;
    let item = |(index, name): (usize, String)| {
        let details = status.agent_details.iter().find(|it| it.name == name);
        AgentItem {
            is_default: index == 0,
            program: details.map(|it| it.program.clone()),
            is_installed: details.and_then(|it| it.is_installed),
            has_oneshot: details.is_some_and(|it| it.has_oneshot),
            last_handshake: handshakes.of(&name).filter(|_| caller.is_of_service()).map(handshake),
            name,
        }
    };
    Ok(web::Json(Page { items: status.agents.into_iter().enumerate().map(item).collect(), next_cursor: None }))
}

fn handshake(last: LastHandshake) -> AgentHandshake {
    let failure = last
        .failure
        .map(|it| FailureInfo { code: it.code.as_str().to_owned(), detail: Redacted::new(&it.detail).into_string() });
    AgentHandshake {
        at: last.at,
        took_ms: u64::try_from(last.took.as_millis()).unwrap_or(u64::MAX),
        failure,
        agent_facts: last.facts.map(RedactedJson::into_raw),
    }
}

#[cfg(test)]
mod tests {
    use actix_web::ResponseError;
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;
    use crate::{actors::handles::event_feed::EventFeed, domain::session::event::EventKind, store::Cursor};

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(5_000))]

        #[test]
        fn last_event_id_is_a_position_or_a_400(
            text in prop_oneof!["[0-9]{0,21}", "-[0-9]{1,3}", "[ -~]{0,8}", Just(u64::MAX.to_string())],
            bytes in prop::collection::vec(any::<u8>(), 0..6),
            published in 0u64..4,
        ) {
            let feed = EventFeed::new(SessionId(Uuid::nil()), 2, 1000, 7);
            for _ in 0..published {
                feed.announce(None, EventKind::Status, &serde_json::json!({}));
            }
            for given in [HeaderValue::from_str(&text).ok(), HeaderValue::from_bytes(&bytes).ok()].iter().flatten() {
                match last_event_id(Some(given)) {
                    Ok(id) => {
                        let id = id.unwrap();
                        prop_assert!(given.to_str().unwrap().parse::<u64>().is_ok_and(|it| it == id));
                        let replay = feed.subscribe(ReadFrom::After(id)).replay;
                        prop_assert!(replay.events.iter().all(|event| event.id > id));
                    }
                    Err(refusal) => {
                        prop_assert_eq!(refusal.status_code().as_u16(), 400);
                        prop_assert!(refusal.problem().detail.contains("Last-Event-ID"));
                    }
                }
            }
        }

        #[test]
        fn no_query_panics(
            text in "(from|limit|cursor|state|x)?=?(live|idle|-?[0-9]{0,21}|%[0-9a-f]{0,2}|\\PC{0,5})(&(from|limit|cursor)=[a-z0-9.%]{0,9}){0,2}",
        ) {
            let refused = [
                Query::<EventsQuery>::parse(&text).err(),
                Query::<TranscriptQuery>::parse(&text).err(),
                Query::<SessionQuery>::parse(&text).err(),
            ];
            for refusal in refused.into_iter().flatten() {
                prop_assert!(refusal.problem().detail.len() > 10);
            }
            let _ = text.parse::<Cursor>();
        }
    }
}
