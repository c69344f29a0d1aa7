//! Erasure of sessions, workspaces and tenants.

use actix_web::{delete, web};

use super::{
    HttpState,
    problem::ApiError,
    refusals::{OfErasure, OfWorkspace, Problems},
    request::{Query, path_id, run_to_completion},
    rows::{self, find_session, find_workspace},
};
use crate::{
    actors::erasure,
    contract::{audit::ErasureItem, routing::protocol::TenantQuery},
    domain::{
        access::{Caller, Privilege},
        erasure::EraseTarget,
        ids::{InstallationId, SessionId, WorkspaceId},
    },
};

async fn erase(state: &HttpState, caller: &Caller, target: EraseTarget) -> Result<web::Json<ErasureItem>, ApiError> {
    let (workspaces, actor) = (state.workspaces.clone(), caller.subject().to_owned());
    let erased = run_to_completion(async move { erasure::erase(&workspaces, target, &actor).await });
    Ok(web::Json(erased.await?))
}

/// Erases a session.
///
/// Ends it, then removes its turns, transcript, notifications and records, and its conversation from the agent's own
/// history if the agent offers that. The workspace and its folder stay. Answers when all is removed; the session is not
/// found from the beginning on. After a failure, and after a restart of the service, the erasure is continued.
#[utoipa::path(
    tag = "sessions",
    security(("token" = ["erase"])),
    params(("id" = SessionId, Path, description = "sessionId")),
    responses(
        (status = 200, description = "Numbers of removed things", body = ErasureItem),
        Problems<OfErasure>,
    )
)]
#[delete("/acp/session/{id:[0-9a-fA-F-]+}")]
pub(crate) async fn delete_session(
    state: web::Data<HttpState>,
    caller: Caller,
    id: web::Path<String>,
) -> Result<web::Json<ErasureItem>, ApiError> {
    let id: SessionId = path_id(&id, "session")?;
    let row = find_session(&state, &caller, id).await?;
    erase(&state, &caller, EraseTarget::Session(row.key, id)).await
}

/// Erases a workspace with its sessions, its folder and its records.
///
/// A folder that was given by `path` stays; only the baseline of its diff is removed. While it is being erased, no session
/// can be opened in it (409 `erasing`); afterwards a workspace of the same name is a new one.
#[utoipa::path(
    tag = "workspaces",
    security(("token" = ["erase"])),
    params(("id" = WorkspaceId, Path, description = "workspaceId"), TenantQuery),
    responses(
        (status = 200, description = "Numbers of removed things", body = ErasureItem),
        Problems<(OfErasure, OfWorkspace)>,
    )
)]
#[delete("/acp/workspaces/{id}")]
pub(crate) async fn delete_workspace(
    state: web::Data<HttpState>,
    caller: Caller,
    id: web::Path<String>,
    query: Query<TenantQuery>,
) -> Result<web::Json<ErasureItem>, ApiError> {
    if caller.scope().user.is_some() {
        // It has sessions of other users, too. Before the look-up, which finds only those in which the user works.
        return Err(rows::forbidden(&caller, Privilege::Erase));
    }
    let row = find_workspace(&state, &caller, &id, query.into_inner()).await?;
    erase(&state, &caller, EraseTarget::Workspace(row.key)).await
}

/// Erases a tenant: all its workspaces, its settings, and the private home folders of its agents.
#[utoipa::path(
    tag = "tenants",
    security(("token" = ["tenants.erase"])),
    params(("installationId" = InstallationId, Path, description = "The tenant")),
    responses(
        (status = 200, description = "Numbers of removed things", body = ErasureItem),
        Problems<OfErasure>,
    )
)]
#[delete("/acp/tenants/{installationId}")]
pub(crate) async fn delete_tenant(
    state: web::Data<HttpState>,
    caller: Caller,
    tenant: web::Path<String>,
) -> Result<web::Json<ErasureItem>, ApiError> {
    erase(&state, &caller, EraseTarget::Tenant(rows::tenant_in_path(&caller, &tenant)?)).await
}
