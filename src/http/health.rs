//! Health of the service: for people, probes and Prometheus.

use actix_web::{HttpResponse, get, web};

use super::{
    HttpState,
    problem::ApiError,
    refusals::{OfLiveness, OfReadiness, Problems},
};
use crate::{
    actors::handles::capacity_guard::CapacityGuard,
    contract::health::{
        CapacityAlertHealth, CapacityHealth, CapacityLevel, Health, PartHealth, PartStatus, Probe, ProtocolHealth,
        Protocols, RuntimeHealth, ServiceStatus, TenantSeats, WorkspacesHealth,
    },
    domain::{
        access::Caller,
        routing::{Route, success_window::Sample},
        turn::outcome::ErrorCode,
    },
    telemetry::{Metrics, metrics::TEXT_FORMAT},
};

/// Health of the service and its parts. A token of a tenant gets the states, and no figures: they are of all tenants.
#[utoipa::path(
    tag = "operations",
    security(("token" = ["service.read"])),
    responses(
        (status = 200, description = "Health of the service", body = Health),
    )
)]
#[get("/acp/health")]
pub(crate) async fn get_health(state: web::Data<HttpState>, caller: Caller) -> web::Json<Health> {
    let workspaces = &state.workspaces;
    let database = match workspaces.services().store.ping().await {
        Ok(()) => PartHealth { status: PartStatus::Ok, detail: None },
        Err(cause) => PartHealth { status: PartStatus::Unavailable, detail: Some(cause.to_string()) },
    };
    let unavailable_for_s = workspaces.services().runtime.unavailable_for().map(|it| it.as_secs());
    let (runtime, jail) = match workspaces.workspace_client().status().await {
        Ok(status) => {
            let runtime = RuntimeHealth {
                status: PartStatus::Ok,
                detail: None,
                unavailable_for_s,
                version: Some(status.version),
                agent_processes: Some(status.agent_processes).filter(|_| caller.is_of_service()),
            };
            (runtime, status.jail)
        }
        Err(failure) => {
            let runtime = RuntimeHealth {
                status: PartStatus::Unavailable,
                detail: Some(failure.detail),
                unavailable_for_s,
                version: None,
                agent_processes: None,
            };
            (runtime, None)
        }
    };
    let whole = database.status == PartStatus::Ok && runtime.status == PartStatus::Ok;
    let status = match (workspaces.admission(), whole) {
        (Err(refusal), _) if refusal.code == ErrorCode::Draining => ServiceStatus::Draining,
        (Ok(()), true) => ServiceStatus::Ok,
        _ => ServiceStatus::Degraded,
    };
    // Figures of all tenants together are not for one of them.
    let metrics = Some(&workspaces.services().metrics).filter(|_| caller.is_of_service());
    web::Json(Health {
        status,
        version: env!("CARGO_PKG_VERSION"),
        protocols: metrics
            .map(|metrics| Protocols { acp: protocol(metrics, Route::Acp), http: protocol(metrics, Route::Http) }),
        workspaces: metrics.map(routes),
        capacity: metrics.map(|_| capacity_health(workspaces.capacity())),
        database,
        runtime,
        jail,
    })
}

/// The most tenants that are listed near their limit.
const MAX_TENANTS: usize = 20;

fn capacity_health(guard: &CapacityGuard) -> CapacityHealth {
    let alert = guard.alert();
    let near = guard.near_their_share(MAX_TENANTS).into_iter();
    CapacityHealth {
        taken: guard.taken(),
        limit: guard.rules().limit,
        level: alert.map_or(CapacityLevel::Ok, |alert| alert.level.into()),
        alert: alert.map(|it| CapacityAlertHealth { alert_id: it.alert_id.to_string(), since: it.since }),
        tenant_limit: guard.rules().tenant_limit(),
        tenants_near_limit: near
            .map(|(tenant, taken)| TenantSeats { installation_id: tenant.as_str().to_owned(), taken })
            .collect(),
    }
}

fn protocol(metrics: &Metrics, route: Route) -> ProtocolHealth {
    let started = |route| metrics.turns_started(route);
    let outcomes = |sample| metrics.routes().outcomes(route, sample);
    let (succeeded, failed) = (outcomes(Sample::Success), outcomes(Sample::Failure));
    ProtocolHealth {
        turns_started: started(route),
        turns_completed: metrics.turns_ended(route, "completed"),
        turns_failed: metrics.turns_ended(route, "failed"),
        turns_cancelled: metrics.turns_ended(route, "cancelled"),
        share: share(started(route), Route::ALL.into_iter().map(started).sum()),
        success_rate: share(succeeded, succeeded + failed),
    }
}

fn share(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

fn routes(metrics: &Metrics) -> WorkspacesHealth {
    let routes = metrics.routes();
    WorkspacesHealth {
        on_acp: routes.workspaces(Route::Acp),
        in_fallback: routes.workspaces(Route::Http),
        flips_to_http: routes.flips(Route::Http),
        flips_to_acp: routes.flips(Route::Acp),
    }
}

/// Liveness probe. 503 if all threads that run sessions are stalled, or one has been stalled for a minute: restart the
/// process.
#[utoipa::path(
    tag = "operations",
    responses(
        (status = 200, description = "The process is alive", body = Probe),
        Problems<OfLiveness>,
    )
)]
#[get("/livez")]
pub(crate) async fn livez(state: web::Data<HttpState>) -> Result<web::Json<Probe>, ApiError> {
    if !state.watchdog.is_alive() {
        return Err(ApiError::new(ErrorCode::Stalled, "a thread that runs sessions is stalled"));
    }
    Ok(web::Json(Probe { status: PartStatus::Ok, runtime: None }))
}

/// Readiness probe. 503 during a drain and while the database is unavailable: send work elsewhere. A
/// runtime that does not answer is named and does not change the status: all replicas have the same one, and reads,
/// notifications and the audit work without it.
#[utoipa::path(
    tag = "operations",
    responses(
        (status = 200, description = "The service accepts work", body = Probe),
        Problems<OfReadiness>,
    )
)]
#[get("/readyz")]
pub(crate) async fn readyz(state: web::Data<HttpState>) -> Result<web::Json<Probe>, ApiError> {
    state.workspaces.admission()?;
    let services = state.workspaces.services();
    services.store.ping().await?;
    Ok(web::Json(Probe {
        status: PartStatus::Ok,
        runtime: (!services.runtime.answers()).then_some(PartStatus::Unavailable),
    }))
}

/// Metrics for Prometheus.
#[utoipa::path(
    tag = "operations",
    security(("token" = ["metrics.read"])),
    responses((status = 200, description = "Text format 0.0.4", body = String, content_type = "text/plain"))
)]
#[get("/metrics")]
pub(crate) async fn get_metrics(state: web::Data<HttpState>, _caller: Caller) -> Result<HttpResponse, ApiError> {
    let text = state.workspaces.services().metrics.render();
    let text = text.map_err(|cause| ApiError::new(ErrorCode::Internal, cause.to_string()))?;
    Ok(HttpResponse::Ok().content_type(TEXT_FORMAT).body(text))
}
