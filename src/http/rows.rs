//! Rows and live sessions by the caller of a request: the only way from a handler to those of a tenant.
//!
//! Invariant: what a caller does not reach is answered exactly like what does not exist.

use std::{
    future::{Ready, ready},
    sync::Arc,
};

use actix_web::{FromRequest, HttpMessage, HttpRequest, dev::Payload};
use uuid::Uuid;

use super::{HttpState, problem::ApiError};
use crate::{
    actors::handles::{index::LiveSession, preparing::PreparingSession},
    contract::routing::protocol::TenantQuery,
    domain::{
        access::{Caller, Privilege, Scope},
        ids::{InstallationId, PromptId, SessionId, UserId, WorkspaceId, WorkspaceKey},
        turn::outcome::ErrorCode,
    },
    store::{
        Idempotency, MigrationRunRow, Page, PromptRow, SagaRow, SessionRow, Store, TokenRow, WorkspaceFilter,
        WorkspaceRow,
    },
};

/// The caller that the admission of requests found.
impl FromRequest for Caller {
    type Error = ApiError;
    type Future = Ready<Result<Self, ApiError>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let caller = request.extensions().get::<Self>().cloned();
        ready(caller.ok_or_else(|| ApiError::new(ErrorCode::Unauthorized, "the request names no caller")))
    }
}

fn store(state: &HttpState) -> &Store {
    &state.workspaces.services().store
}

fn unknown(what: &str) -> ApiError {
    ApiError::new(ErrorCode::NotFound, format!("no {what} with this id"))
}

/// Refuses a caller whose role or scope does not allow a part of an operation.
pub(crate) fn permit(caller: &Caller, privilege: Privilege) -> Result<(), ApiError> {
    if caller.may(privilege) { Ok(()) } else { Err(forbidden(caller, privilege)) }
}

/// The refusal of an operation that role or scope of a caller do not allow.
pub(super) fn forbidden(caller: &Caller, privilege: Privilege) -> ApiError {
    let role = caller.role();
    let detail = if privilege.roles().contains(&role) {
        "the token is limited to a tenant, a workspace or a user, and the operation is about more".to_owned()
    } else {
        format!("the role {} does not have {}", role.as_str(), privilege.as_str())
    };
    ApiError::new(ErrorCode::Forbidden, detail)
}

/// The tenant of a list, as far as the request or the token names one.
pub(crate) fn tenant(caller: &Caller, named: Option<InstallationId>) -> Result<Option<InstallationId>, ApiError> {
    caller.tenant(named).map_err(|_| unknown("tenant"))
}

/// The tenant of a request that concerns one.
///
/// # Errors
/// Neither the request nor the token names a tenant, or they name different ones.
pub(crate) fn one_tenant(caller: &Caller, named: Option<InstallationId>) -> Result<InstallationId, ApiError> {
    let missing = || ApiError::new(ErrorCode::InvalidRequest, "installationId: is missing");
    tenant(caller, named)?.ok_or_else(missing)
}

/// The tenant in a path. A malformed name is answered like an unknown one.
pub(crate) fn tenant_in_path(caller: &Caller, name: &str) -> Result<InstallationId, ApiError> {
    let named = name.parse().map_err(|_| unknown("tenant"))?;
    one_tenant(caller, Some(named))
}

/// [`tenant_in_path`] whose settings are to be changed.
///
/// # Errors
/// Also `erasing` while the tenant is being erased.
pub(crate) fn tenant_to_change(state: &HttpState, caller: &Caller, name: &str) -> Result<InstallationId, ApiError> {
    let tenant = tenant_in_path(caller, name)?;
    is_changeable(state, &tenant).map(|()| tenant)
}

/// Refuses changes of a tenant that is being erased.
pub(crate) fn is_changeable(state: &HttpState, tenant: &InstallationId) -> Result<(), ApiError> {
    if store(state).erasures().is_erasing_tenant(tenant) {
        return Err(ApiError::new(ErrorCode::Erasing, format!("the tenant {tenant} is being erased")));
    }
    Ok(())
}

/// The workspace of a list, as far as the request or the token names one.
pub(crate) fn workspace(caller: &Caller, named: Option<WorkspaceId>) -> Result<Option<WorkspaceId>, ApiError> {
    caller.workspace(named).map_err(|_| unknown("workspace"))
}

/// The user of a request, as far as the request or the token names one.
pub(crate) fn user(caller: &Caller, named: Option<UserId>) -> Result<Option<UserId>, ApiError> {
    caller.user(named).map_err(|_| unknown("user"))
}

/// The key of the workspace in which a request opens a session.
pub(crate) fn workspace_key(
    caller: &Caller,
    named: Option<InstallationId>,
    name: WorkspaceId,
) -> Result<WorkspaceKey, ApiError> {
    let installation_id = one_tenant(caller, named)?;
    let key = WorkspaceKey { installation_id, workspace_id: name };
    if caller.reaches_workspace(&key) { Ok(key) } else { Err(unknown("workspace")) }
}

/// The key of a request that opens a session, apart from those of callers with another scope: they would get an answer
/// about a session that they do not reach. Characters of scopes are not in keys of the whole tenant, which reach everything.
pub(crate) fn own_key(caller: &Caller, given: Idempotency) -> Idempotency {
    let Scope { tenant: _, workspace, user } = caller.scope();
    if workspace.is_none() && user.is_none() {
        return given;
    }
    let part = |name: Option<&str>| name.unwrap_or_default().to_owned();
    let scope =
        format!("{} {}", part(workspace.as_ref().map(WorkspaceId::as_str)), part(user.as_ref().map(UserId::as_str)));
    Idempotency { key: format!("{scope} {}", given.key), ..given }
}

/// The row of a session.
pub(crate) async fn find_session(state: &HttpState, caller: &Caller, id: SessionId) -> Result<SessionRow, ApiError> {
    let row = store(state).session(id).await?;
    let row = row.filter(|row| caller.reaches_session(&row.key, row.user_id.as_ref()));
    row.ok_or_else(|| ApiError::new(ErrorCode::NotFound, format!("no session {id}")))
}

/// A session that is live.
pub(crate) fn find_live(state: &HttpState, caller: &Caller, id: SessionId) -> Option<Arc<LiveSession>> {
    let spec = |live: &Arc<LiveSession>| {
        let spec = &live.shared.spec;
        caller.reaches_session(&spec.workspace, spec.user_id.as_ref())
    };
    state.workspaces.live(id).filter(spec)
}

/// A session that is being prepared.
pub(crate) fn find_preparing(state: &HttpState, caller: &Caller, id: SessionId) -> Option<Arc<PreparingSession>> {
    let preparing = state.workspaces.services().preparing.get(id);
    preparing.filter(|it| caller.reaches_session(&it.key, it.user_id.as_ref()))
}

/// Refuses a request to a session that is being prepared for the first time.
///
/// # Errors
/// `session_preparing`.
pub(crate) fn is_prepared(state: &HttpState, caller: &Caller, id: SessionId) -> Result<(), ApiError> {
    match find_preparing(state, caller, id).filter(|it| !it.is_loaded) {
        Some(_) => Err(ApiError::new(ErrorCode::SessionPreparing, "the folder of the session is being prepared")),
        None => Ok(()),
    }
}

/// The session of a row that is being prepared and that the caller reaches.
pub(crate) fn preparing_of(state: &HttpState, row: &SessionRow) -> Option<Arc<PreparingSession>> {
    state.workspaces.services().preparing.get(row.session_id)
}

/// The live session of a row that the caller reaches.
pub(crate) fn live_of(state: &HttpState, row: &SessionRow) -> Option<Arc<LiveSession>> {
    state.workspaces.live(row.session_id)
}

/// True while a turn, of a row that the caller reaches, is the running one of its session.
pub(crate) fn is_running(state: &HttpState, row: &PromptRow) -> bool {
    let live = state.workspaces.live(row.session_id);
    live.is_some_and(|live| live.shared.view().running == Some(row.prompt_id))
}

/// The row of a turn.
pub(crate) async fn find_prompt(state: &HttpState, caller: &Caller, id: PromptId) -> Result<PromptRow, ApiError> {
    let row = store(state).prompt(id).await?.filter(|row| caller.reaches_workspace(&row.key));
    let row = row.ok_or_else(|| ApiError::new(ErrorCode::NotFound, format!("no prompt {id}")))?;
    if caller.scope().user.is_some() {
        // Only the session has its user.
        find_session(state, caller, row.session_id).await?;
    }
    Ok(row)
}

/// True if a caller may be notified about a workspace as a whole: one that is limited to a user must have or have had a
/// session in it.
pub(crate) async fn works_in(state: &HttpState, caller: &Caller, key: &WorkspaceKey) -> Result<bool, ApiError> {
    if caller.scope().user.is_none() {
        return Ok(true);
    }
    let WorkspaceKey { installation_id, workspace_id } = key.clone();
    let (installation_id, workspace_id) = (Some(installation_id), Some(workspace_id));
    let filter = WorkspaceFilter { installation_id, workspace_id, user_id: user(caller, None)? };
    Ok(!store(state).list_workspaces(filter, Page { limit: 1, after: None }).await?.is_empty())
}

/// The workspace of a path and its tenant, which may be left out while the name is unique.
pub(crate) async fn find_workspace(
    state: &HttpState,
    caller: &Caller,
    id: &str,
    query: TenantQuery,
) -> Result<WorkspaceRow, ApiError> {
    let unknown = || unknown("workspace");
    let workspace_id = id.parse().map_err(|_| unknown())?;
    let installation_id = caller.tenant(query.installation_id).map_err(|_| unknown())?;
    let filter = WorkspaceFilter { installation_id, workspace_id: Some(workspace_id), user_id: user(caller, None)? };
    let mut found = store(state).list_workspaces(filter, Page { limit: 2, after: None }).await?;
    found.retain(|row| !store(state).erasures().is_erasing(&row.key));
    match (found.pop(), found.is_empty()) {
        (Some(row), true) if caller.reaches_workspace(&row.key) => Ok(row),
        (Some(_), false) => {
            Err(ApiError::new(ErrorCode::AmbiguousWorkspace, "several tenants have a workspace of this name"))
        }
        _ => Err(unknown()),
    }
}

/// The row of a migration.
pub(crate) async fn find_migration(
    state: &HttpState,
    caller: &Caller,
    id: Uuid,
) -> Result<MigrationRunRow, ApiError> {
    let row = store(state).migration_run(id).await?;
    let row = row.filter(|row| caller.tenant(Some(row.run.installation_id().clone())).is_ok());
    row.ok_or_else(|| unknown("migration"))
}

/// Name of runs of automation in answers.
pub(crate) const RUN: &str = "run of automation";

/// The row of a run of automation.
pub(crate) async fn find_run(state: &HttpState, caller: &Caller, id: Uuid) -> Result<SagaRow, ApiError> {
    let row = store(state).saga(id).await?.filter(|row| caller.reaches_workspace(&row.key));
    let row = row.filter(|row| !store(state).erasures().hides(&row.key, row.session_id));
    let row = row.ok_or_else(|| unknown(RUN))?;
    if caller.scope().user.is_some() {
        // Only the session has its user.
        let session = store(state).session(row.session_id).await?;
        let is_theirs = session.is_some_and(|it| caller.reaches_session(&it.key, it.user_id.as_ref()));
        return if is_theirs { Ok(row) } else { Err(unknown(RUN)) };
    }
    Ok(row)
}

/// The row of a token.
pub(crate) async fn find_token(state: &HttpState, caller: &Caller, id: Uuid) -> Result<TokenRow, ApiError> {
    let row = store(state).token(id).await?.filter(|row| caller.scope().includes(&row.scope));
    row.ok_or_else(|| unknown("token"))
}
