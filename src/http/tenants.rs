//! Settings of a tenant: limits and ceilings.

use actix_web::{get, put, web};

use super::{
    HttpState,
    problem::ApiError,
    refusals::{OfTenant, Problems},
    request::{Body, parse_body, run_to_completion},
    routing::protocol::attribution,
    rows,
};
use crate::{
    contract::tenants::{TenantBody, TenantInfo},
    domain::{
        access::Caller,
        ids::InstallationId,
        turn::outcome::{ErrorCode, Failure},
    },
};

/// Limits and ceilings of a tenant, and its use now; an unknown tenant has none.
#[utoipa::path(
    tag = "tenants",
    security(("token" = ["fleet.read"])),
    params(("installationId" = InstallationId, Path, description = "The tenant")),
    responses(
        (status = 200, description = "The settings", body = TenantInfo),
    )
)]
#[get("/acp/tenants/{installationId}")]
pub(crate) async fn get_settings(
    state: web::Data<HttpState>,
    caller: Caller,
    tenant: web::Path<String>,
) -> Result<web::Json<TenantInfo>, ApiError> {
    Ok(web::Json(info(&state, rows::tenant_in_path(&caller, &tenant)?)))
}

/// Changes limits and ceilings of a tenant. Each part that is given replaces the earlier one as a whole; an absent or null
/// member of it is unlimited. Limits apply from the next session and prompt on; what runs is not ended.
#[utoipa::path(
    tag = "tenants",
    security(("token" = ["tenants.change"])),
    params(("installationId" = InstallationId, Path, description = "The tenant")),
    request_body = TenantBody,
    responses(
        (status = 200, description = "The changed settings", body = TenantInfo),
        Problems<OfTenant>,
    )
)]
#[put("/acp/tenants/{installationId}")]
pub(crate) async fn put_settings(
    state: web::Data<HttpState>,
    caller: Caller,
    tenant: web::Path<String>,
    body: Body,
) -> Result<web::Json<TenantInfo>, ApiError> {
    let tenant = rows::tenant_to_change(&state, &caller, &tenant)?;
    let TenantBody { limits, ceilings, actor, reason } = parse_body(&body)?;
    let attribution = attribution(&caller, actor.as_deref(), &reason, None)?;
    if limits.is_none() && ceilings.is_none() {
        return Err(ApiError::new(ErrorCode::InvalidRequest, "give at least one of limits and ceilings"));
    }
    let (services, of) = (state.workspaces.services().clone(), tenant.clone());
    run_to_completion(async move {
        let now = services.clock.now();
        let change = services.tenants.change(&services.store, &of, now, |settings| {
            settings.limits = limits.map_or(settings.limits, Into::into);
            if let Some(ceilings) = ceilings {
                settings.ceilings = ceilings.into();
            }
            settings.check().map_err(|detail| Failure::new(ErrorCode::InvalidRequest, detail))
        });
        change.await?;
        let (actor, reason) = (&attribution.actor, &attribution.reason);
        tracing::info!(marker = "[ACP]", tenant = %of, actor, reason, "settings of a tenant changed");
        Ok(())
    })
    .await?;
    Ok(web::Json(info(&state, tenant)))
}

fn info(state: &HttpState, tenant: InstallationId) -> TenantInfo {
    let services = state.workspaces.services();
    let (settings, updated_at) = services.tenants.kept(&tenant);
    let (live_sessions, running_turns) = services.tenant_use.now(&tenant);
    TenantInfo {
        limits: settings.limits.into(),
        ceilings: settings.ceilings.clone().into(),
        live_sessions,
        running_turns,
        updated_at,
        installation_id: tenant,
    }
}
