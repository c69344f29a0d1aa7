//! Settings of a tenant: limits, ceilings and automation.

use std::path::Path;

use actix_web::{get, put, web};

use super::{
    HttpState,
    problem::ApiError,
    refusals::{OfBinding, OfPath, OfTenant, Problems},
    request::{Body, parse_body, run_to_completion},
    routing::protocol::attribution,
    rows,
};
use crate::{
    config::Config,
    contract::tenants::{TenantBody, TenantInfo, TenantLimits},
    domain::{
        access::Caller,
        ids::InstallationId,
        tenant::TenantSettings,
        turn::outcome::{ErrorCode, Failure},
    },
};

/// Limits, ceilings and automation of a tenant, and its use now; an unknown tenant has none.
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

/// Changes limits, ceilings and automation of a tenant. Each part that is given replaces the earlier one as a whole; an
/// absent or null member of it is unlimited, and in `automation` the value of the configuration, or no installation. Limits
/// apply from the next session and prompt on; what runs is not ended. Automation applies from the next run on, but for
/// installations: those that are removed get no token from then on. An installation is bound to one tenant at most.
#[utoipa::path(
    tag = "tenants",
    security(("token" = ["tenants.change"])),
    params(("installationId" = InstallationId, Path, description = "The tenant")),
    request_body = TenantBody,
    responses(
        (status = 200, description = "The changed settings", body = TenantInfo),
        Problems<(OfTenant, OfPath, OfBinding)>,
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
    let TenantBody { limits, ceilings, automation, actor, reason } = parse_body(&body)?;
    let attribution = attribution(&caller, actor.as_deref(), &reason, None)?;
    if limits.is_none() && ceilings.is_none() && automation.is_none() {
        return Err(ApiError::new(ErrorCode::InvalidRequest, "give at least one of limits, ceilings and automation"));
    }
    let (services, of, checking) = (state.workspaces.services().clone(), tenant.clone(), state.clone());
    run_to_completion(async move {
        let now = services.clock.now();
        let change = services.tenants.change(&services.store, &of, (&attribution, now), |settings| {
            if let Some(limits) = &limits {
                settings.limits = limits.into();
                settings.transcripts = limits.transcripts();
            }
            if let Some(ceilings) = ceilings {
                settings.ceilings = ceilings.into();
            }
            if let Some(automation) = automation {
                settings.automation = automation.into();
            }
            check(&checking.config, settings)
        });
        change.await?;
        let (actor, reason) = (&attribution.actor, &attribution.reason);
        tracing::info!(marker = "[ACP]", tenant = %of, actor, reason, "settings of a tenant changed");
        Ok(())
    })
    .await?;
    Ok(web::Json(info(&state, tenant)))
}

/// Checks settings that a caller gives.
///
/// # Errors
/// `invalid_request` or `path_not_allowed`, with the member and what it must be.
fn check(config: &Config, settings: &TenantSettings) -> Result<(), Failure> {
    settings.check().map_err(|detail| Failure::new(ErrorCode::InvalidRequest, detail))?;
    // A separate runtime has settings of its own, and refuses what they do not allow.
    let workspaces = config.runtime.url.is_none().then_some(&config.workspaces);
    let listed = settings.ceilings.listed_paths.as_deref().unwrap_or_default();
    let is_foreign = |path: &String| workspaces.is_some_and(|it| !it.allows(Path::new(path)));
    match listed.iter().position(is_foreign) {
        Some(place) => {
            let detail =
                format!("ceilings.listedPaths: number {} is not in one of `workspaces.allow_paths`", place + 1);
            Err(Failure::new(ErrorCode::PathNotAllowed, detail))
        }
        None => Ok(()),
    }
}

fn info(state: &HttpState, tenant: InstallationId) -> TenantInfo {
    let services = state.workspaces.services();
    let (settings, updated_at) = services.tenants.kept(&tenant);
    let (live_sessions, running_turns) = services.tenant_use.now(&tenant);
    TenantInfo {
        limits: TenantLimits::of(&settings),
        ceilings: settings.ceilings.clone().into(),
        automation: settings.automation.clone().into(),
        live_sessions,
        running_turns,
        updated_at,
        installation_id: tenant,
    }
}
