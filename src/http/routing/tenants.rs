//! Route defaults of a tenant: read and change.

use actix_web::{get, put, web};

use super::protocol::attribution;
use crate::{
    actors::migrations::tenant,
    contract::routing::tenant::{TenantProtocolBody, TenantProtocolChanged, TenantProtocolInfo},
    domain::{
        access::Caller,
        automation::repository_pattern::{MAX_PATTERNS, is_pattern},
        clock::Timestamp,
        ids::InstallationId,
        turn::outcome::ErrorCode,
    },
    http::{
        HttpState,
        problem::ApiError,
        refusals::{OfRoute, OfTenant, Problems},
        request::{Body, parse_body, run_to_completion},
        rows,
    },
    store::TenantProtocol,
};

/// Route defaults of a tenant; an unknown tenant has the service's defaults.
#[utoipa::path(
    tag = "routes",
    security(("token" = ["fleet.read"])),
    params(("installationId" = InstallationId, Path, description = "The tenant")),
    responses(
        (status = 200, description = "The defaults", body = TenantProtocolInfo),
    )
)]
#[get("/acp/tenants/{installationId}/protocol")]
pub(crate) async fn get_tenant(
    state: web::Data<HttpState>,
    caller: Caller,
    tenant: web::Path<String>,
) -> Result<web::Json<TenantProtocolInfo>, ApiError> {
    let tenant = rows::tenant_in_path(&caller, &tenant)?;
    let kept = state.workspaces.services().store.tenant_protocol(tenant.clone()).await?;
    Ok(web::Json(info(kept, tenant)))
}

/// Changes the route defaults of a tenant; absent members stay unchanged. A changed default applies to new workspaces;
/// existing ones keep their route until a migration moves them. `enableAcp: false` is the exception: it moves every
/// workspace of the tenant to HTTP, one after the other, and `moved` counts them. After a failure, repeat the request to
/// move the others.
#[utoipa::path(
    tag = "routes",
    security(("token" = ["fleet.change"])),
    params(("installationId" = InstallationId, Path, description = "The tenant")),
    request_body = TenantProtocolBody,
    responses(
        (status = 200, description = "The changed defaults", body = TenantProtocolChanged),
        Problems<(OfRoute, OfTenant)>,
    )
)]
#[put("/acp/tenants/{installationId}/protocol")]
pub(crate) async fn put_tenant(
    state: web::Data<HttpState>,
    caller: Caller,
    tenant: web::Path<String>,
    body: Body,
) -> Result<web::Json<TenantProtocolChanged>, ApiError> {
    let tenant = rows::tenant_to_change(&state, &caller, &tenant)?;
    let body: TenantProtocolBody = parse_body(&body)?;
    let attribution = attribution(&caller, body.actor.as_deref(), &body.reason, body.initiated_by)?;
    let given = [body.enable_acp, body.allow_migration, body.auto_migration];
    if given == [None; 3] && body.default_protocol.is_none() && body.blocked_repositories.is_none() {
        let detail = "give at least one of defaultProtocol, enableAcp, allowMigration, autoMigration and \
                      blockedRepositories";
        return Err(ApiError::new(ErrorCode::InvalidRequest, detail));
    }
    if let Some(patterns) = &body.blocked_repositories {
        check(patterns)?;
    }
    let workspaces = state.workspaces.clone();
    let now = workspaces.services().clock.now();
    let before = workspaces.services().store.tenant_protocol(tenant.clone()).await?;
    let before = before.unwrap_or_else(|| TenantProtocol::with_defaults(tenant.clone(), now));
    let wanted = TenantProtocol {
        installation_id: tenant.clone(),
        default_protocol: body.default_protocol.unwrap_or(before.default_protocol),
        enable_acp: body.enable_acp.unwrap_or(before.enable_acp),
        allow_migration: body.allow_migration.unwrap_or(before.allow_migration),
        auto_migration: body.auto_migration.unwrap_or(before.auto_migration),
        blocked_repositories: body.blocked_repositories.unwrap_or_else(|| before.blocked_repositories.clone()),
        updated: now,
    };
    let kept = wanted.clone();
    let moved =
        run_to_completion(async move { tenant::change(&workspaces, &before, wanted, attribution).await }).await?;
    Ok(web::Json(TenantProtocolChanged { protocol: info(Some(kept), tenant), moved }))
}

fn check(patterns: &[String]) -> Result<(), ApiError> {
    let bad = |detail: String| ApiError::new(ErrorCode::InvalidRequest, detail);
    if patterns.len() > MAX_PATTERNS {
        return Err(bad(format!("blockedRepositories: at most {MAX_PATTERNS}")));
    }
    match patterns.iter().position(|pattern| !is_pattern(pattern)) {
        Some(place) => Err(bad(format!(
            "blockedRepositories: number {} is not owner/name, where * matches any characters",
            place + 1
        ))),
        None => Ok(()),
    }
}

fn info(kept: Option<TenantProtocol>, tenant: InstallationId) -> TenantProtocolInfo {
    let updated_at = kept.as_ref().map(|kept| kept.updated);
    let kept = kept.unwrap_or_else(|| TenantProtocol::with_defaults(tenant, Timestamp(0)));
    TenantProtocolInfo {
        installation_id: kept.installation_id,
        default_protocol: kept.default_protocol,
        enable_acp: kept.enable_acp,
        allow_migration: kept.allow_migration,
        auto_migration: kept.auto_migration,
        blocked_repositories: kept.blocked_repositories,
        updated_at,
    }
}
