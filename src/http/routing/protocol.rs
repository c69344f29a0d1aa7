//! The route of a workspace: read, change, roll back, restore.

use actix_web::{get, post, put, web};

use crate::{
    actors::{
        handles::messages::{ChangeRoute, RouteChange, RouteView},
        routing::WorkspaceRouting,
    },
    contract::inputs::{MAX_ACTOR_CHARS, MAX_REASON_CHARS},
    contract::routing::protocol::{
        FlipBody, PinInfo, ProtocolBody, RecoveryInfo, RollbackInfo, TenantQuery, WindowInfo, WorkspaceProtocol,
    },
    domain::{
        access::{Caller, Role},
        ids::{InstallationId, WorkspaceId, WorkspaceKey},
        redaction::Redacted,
        routing::{Attribution, Initiator, success_window::WindowFigures},
        turn::outcome::{ErrorCode, Failure},
    },
    http::{
        HttpState,
        problem::ApiError,
        refusals::{OfRoute, Problems},
        request::{Body, Query, parse_body, run_to_completion},
        rows::find_workspace,
    },
};

/// Route of a workspace, with its success window and its recovery.
#[utoipa::path(
    tag = "routes",
    security(("token" = ["sessions.read"])),
    params(("id" = WorkspaceId, Path, description = "workspaceId"), TenantQuery),
    responses(
        (status = 200, description = "The route", body = WorkspaceProtocol),
        Problems<OfRoute>,
    )
)]
#[get("/acp/workspaces/{id}/protocol")]
pub(crate) async fn get_protocol(
    state: web::Data<HttpState>,
    caller: Caller,
    id: web::Path<String>,
    query: Query<TenantQuery>,
) -> Result<web::Json<WorkspaceProtocol>, ApiError> {
    let key = workspace_key(&state, &caller, &id, query.into_inner()).await?;
    let routing = state.workspaces.routing(&key).await?;
    let view = routing.view().await?;
    Ok(web::Json(protocol(key, view, routing.figures().await?)))
}

/// Changes defaults and pin of a workspace; absent members stay unchanged. All changes are at most one flip.
#[utoipa::path(
    tag = "routes",
    security(("token" = ["routes.change"])),
    params(("id" = WorkspaceId, Path, description = "workspaceId"), TenantQuery),
    request_body = ProtocolBody,
    responses(
        (status = 200, description = "The changed route", body = WorkspaceProtocol),
        Problems<OfRoute>,
    )
)]
#[put("/acp/workspaces/{id}/protocol")]
pub(crate) async fn put_protocol(
    state: web::Data<HttpState>,
    caller: Caller,
    id: web::Path<String>,
    query: Query<TenantQuery>,
    body: Body,
) -> Result<web::Json<WorkspaceProtocol>, ApiError> {
    let body: ProtocolBody = parse_body(&body)?;
    let attribution = attribution(&caller, body.actor.as_deref(), &body.reason, body.initiated_by)?;
    let changes = [
        body.default_protocol.map(RouteChange::Default),
        body.migration_enabled.map(RouteChange::MigrationEnabled),
        body.auto_rollout.map(RouteChange::AutoRollout),
        body.pin.map(|pin| RouteChange::Pin(pin.map(|pin| pin.protocol))),
    ];
    let changes: Vec<_> = changes.into_iter().flatten().collect();
    if changes.is_empty() {
        let detail = "give at least one of defaultProtocol, migrationEnabled, autoRollout and pin";
        return Err(ApiError::new(ErrorCode::InvalidRequest, detail));
    }
    let key = workspace_key(&state, &caller, &id, tenant_of(query.into_inner(), body.installation_id)?).await?;
    change(&state, key, ChangeRoute { changes, attribution, run_id: None }).await
}

/// Rolls a workspace back to the HTTP fallback until it is restored. Running turns keep their route. A repeat changes
/// only actor and reason.
#[utoipa::path(
    tag = "routes",
    security(("token" = ["workspaces.rollback"])),
    params(("id" = WorkspaceId, Path, description = "workspaceId"), TenantQuery),
    request_body = FlipBody,
    responses(
        (status = 200, description = "The changed route", body = WorkspaceProtocol),
        Problems<OfRoute>,
    )
)]
#[post("/acp/workspaces/{id}/rollback")]
pub(crate) async fn roll_back(
    state: web::Data<HttpState>,
    caller: Caller,
    id: web::Path<String>,
    query: Query<TenantQuery>,
    body: Body,
) -> Result<web::Json<WorkspaceProtocol>, ApiError> {
    flip(&state, &caller, &id, (query.into_inner(), &body), RouteChange::RollBack).await
}

/// Restores a workspace to its default route with an empty window; removes pin and cool-down. Idempotent.
#[utoipa::path(
    tag = "routes",
    security(("token" = ["routes.change"])),
    params(("id" = WorkspaceId, Path, description = "workspaceId"), TenantQuery),
    request_body = FlipBody,
    responses(
        (status = 200, description = "The changed route", body = WorkspaceProtocol),
        Problems<OfRoute>,
    )
)]
#[post("/acp/workspaces/{id}/restore")]
pub(crate) async fn restore(
    state: web::Data<HttpState>,
    caller: Caller,
    id: web::Path<String>,
    query: Query<TenantQuery>,
    body: Body,
) -> Result<web::Json<WorkspaceProtocol>, ApiError> {
    flip(&state, &caller, &id, (query.into_inner(), &body), RouteChange::Restore).await
}

async fn flip(
    state: &HttpState,
    caller: &Caller,
    id: &str,
    (query, body): (TenantQuery, &Body),
    flip: RouteChange,
) -> Result<web::Json<WorkspaceProtocol>, ApiError> {
    let body: FlipBody = parse_body(body)?;
    let attribution = attribution(caller, body.actor.as_deref(), &body.reason, body.initiated_by)?;
    let key = workspace_key(state, caller, id, tenant_of(query, body.installation_id)?).await?;
    change(state, key, ChangeRoute { changes: vec![flip], attribution, run_id: None }).await
}

async fn change(
    state: &HttpState,
    key: WorkspaceKey,
    change: ChangeRoute,
) -> Result<web::Json<WorkspaceProtocol>, ApiError> {
    let workspaces = state.workspaces.clone();
    let wanted = key.clone();
    let changed = run_to_completion(async move {
        let routing: WorkspaceRouting = workspaces.routing(&wanted).await?;
        let view = routing.change(change).await?;
        Ok((view, routing.figures().await?))
    });
    let (view, figures) = changed.await?;
    Ok(web::Json(protocol(key, view, figures)))
}

/// The origin of a change: the caller, and the texts that it gave, validated and redacted.
pub(crate) fn attribution(
    caller: &Caller,
    actor: Option<&str>,
    reason: &str,
    initiator: Option<Initiator>,
) -> Result<Attribution, Failure> {
    let checked = |name: &str, text: &str, most: usize| {
        let fits = text.chars().count() <= most;
        let text = text.trim();
        let fine = fits && !text.is_empty() && !text.chars().any(char::is_control);
        let detail = format!("{name}: must be 1 to {most} characters on one line");
        if fine {
            Ok(Redacted::new(text).into_string())
        } else {
            Err(Failure::new(ErrorCode::InvalidRequest, detail))
        }
    };
    let initiator = initiator.unwrap_or(Initiator::Operator);
    if initiator == Initiator::System {
        return Err(Failure::new(ErrorCode::InvalidRequest, "initiatedBy: must be operator or user"));
    }
    let initiator = if caller.role() == Role::User { Initiator::User } else { initiator };
    let subject = caller.subject();
    let actor_note = actor.map(|actor| checked("actor", actor, MAX_ACTOR_CHARS)).transpose()?;
    Ok(Attribution {
        initiator,
        actor: subject.to_owned(),
        actor_note: actor_note.filter(|note| note != subject),
        reason: checked("reason", reason, MAX_REASON_CHARS)?,
    })
}

/// The tenant of a change, from the query or the body.
fn tenant_of(query: TenantQuery, body: Option<InstallationId>) -> Result<TenantQuery, ApiError> {
    match (&query.installation_id, &body) {
        (Some(one), Some(other)) if one != other => {
            let detail = "installationId: the query and the body name different tenants";
            Err(ApiError::new(ErrorCode::InvalidRequest, detail))
        }
        _ => Ok(TenantQuery { installation_id: query.installation_id.or(body) }),
    }
}

/// The workspace of the tenant, or the only one of this name.
pub(crate) async fn workspace_key(
    state: &HttpState,
    caller: &Caller,
    id: &str,
    query: TenantQuery,
) -> Result<WorkspaceKey, ApiError> {
    Ok(find_workspace(state, caller, id, query).await?.key)
}

fn protocol(key: WorkspaceKey, view: RouteView, figures: WindowFigures) -> WorkspaceProtocol {
    let RouteView { routing, migration_enabled, auto_rollout, canary_share_bp, .. } = view;
    WorkspaceProtocol {
        installation_id: key.installation_id,
        workspace_id: key.workspace_id,
        route: routing.route(),
        epoch: routing.epoch(),
        default_protocol: routing.default_route(),
        migration_enabled,
        auto_rollout,
        pin: routing.pin().cloned().map(|pin| PinInfo {
            protocol: pin.protocol,
            actor: pin.attribution.actor,
            actor_note: pin.attribution.actor_note,
            reason: pin.attribution.reason,
            since: pin.since,
        }),
        rollback: routing.rollback().cloned().map(|rollback| RollbackInfo {
            trigger: rollback.trigger,
            reason: rollback.reason,
            since: rollback.since,
        }),
        window: WindowInfo {
            state: figures.state,
            samples: figures.samples,
            failures: figures.failures,
            success_rate: (figures.samples > 0).then(|| figures.success_rate()),
            length_seconds: figures.length_seconds,
        },
        recovery: RecoveryInfo {
            stage: routing.stage(),
            attempt: routing.attempt(),
            next_probe_at: routing.next_probe_at(),
            canary_share_bp,
        },
    }
}
