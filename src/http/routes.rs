//! The route table of the API.

use actix_web::{
    App, HttpRequest, HttpResponse,
    http::header::{ACCEPT, LOCATION},
    web::Data,
};
use utoipa::openapi::OpenApi;
use utoipa_actix_web::{AppExt, service_config::ServiceConfig};

use super::{HttpState, audit, health, notifications, openapi, problem::ApiError, routing, sessions};
use crate::domain::turn::outcome::ErrorCode;

pub(super) fn routes(table: &mut ServiceConfig<'_>) {
    table
        .service(sessions::new_session)
        .service(sessions::prompt::run_prompt)
        .service(sessions::cancel_turn)
        .service(sessions::answer_permission)
        .service(sessions::set_mode)
        .service(sessions::set_model)
        .service(sessions::set_config)
        .service(sessions::load_session)
        .service(sessions::close_session)
        .service(sessions::read::get_session)
        .service(sessions::read::get_transcript)
        .service(sessions::read::get_diff)
        .service(sessions::read::follow_events)
        .service(sessions::prompt::get_prompt)
        .service(sessions::prompt::list_prompts)
        .service(sessions::read::list_sessions)
        .service(sessions::read::list_workspaces)
        .service(sessions::read::list_agents)
        .service(routing::protocol::get_protocol)
        .service(routing::protocol::put_protocol)
        .service(routing::protocol::roll_back)
        .service(routing::protocol::restore)
        .service(routing::tenants::get_tenant)
        .service(routing::tenants::put_tenant)
        .service(sessions::explain::explain_session)
        .service(audit::list_migrations)
        .service(audit::list_rollback_events)
        .service(audit::list_connections)
        .service(audit::list_automation_runs)
        .service(audit::list_capacity_alerts)
        .service(audit::list_notifications)
        .service(audit::summary::get_summary)
        .service(routing::migrations::begin_migration)
        .service(routing::migrations::list_migrations)
        .service(routing::migrations::get_migration)
        .service(routing::migrations::pause_migration)
        .service(routing::migrations::resume_migration)
        .service(routing::migrations::cancel_migration)
        .service(routing::migrations::roll_migration_back)
        .service(notifications::list_inbox)
        .service(notifications::make_ticket)
        .service(notifications::acknowledge)
        .service(notifications::subscribe)
        .service(notifications::webhooks::list_deliveries)
        .service(notifications::webhooks::replay_dead_deliveries)
        .service(notifications::webhooks::replay_delivery)
        .service(health::get_health)
        .service(health::livez)
        .service(health::readyz)
        .service(health::get_metrics);
}

/// The OpenAPI document of the routes.
pub(crate) fn document() -> OpenApi {
    let (_, document) = App::new().into_utoipa_app().configure(routes).split_for_parts();
    openapi::complete(document)
}

/// Answers requests that no route takes: 404 for an unknown path and for a malformed id, 405 for another method.
pub(super) async fn no_route(request: HttpRequest, state: Data<HttpState>) -> Result<HttpResponse, ApiError> {
    let (path, method) = (request.path(), request.method());
    let Some(route) = state.table.find(path) else { return Err(ApiError::no_route(path)) };
    if route.operation(method).is_some() {
        // The template takes the path, and its route does not: a parameter is malformed.
        return Err(ApiError::new(ErrorCode::NotFound, format!("nothing at {path}")));
    }
    Err(ApiError::no_method(format!("{path} does not support {method}"), route.allow()))
}

/// Answers `/`: redirects people to the documentation, and gives programs the addresses of everything else.
pub(super) async fn index(request: HttpRequest) -> HttpResponse {
    let accept = request.headers().get(ACCEPT).and_then(|accept| accept.to_str().ok());
    if accept.is_some_and(|accept| accept.contains("text/html")) {
        return HttpResponse::Found().insert_header((LOCATION, "/docs/")).finish();
    }
    HttpResponse::Ok().json(serde_json::json!({
        "name": "LumiLink",
        "version": env!("CARGO_PKG_VERSION"),
        "docs": "/docs/",
        "handbook": "/docs/handbook/",
        "openapi": "/openapi.json",
        "health": "/acp/health",
        "metrics": "/metrics",
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn document_has_every_route_and_schema() {
        let document = document();
        assert_eq!(document.paths.paths.len(), 47);
        let components = document.components.unwrap();
        for name in ["ACPSessionResult", "GithubAutomation", "Toast", "TranscriptNote", "Problem"] {
            assert!(components.schemas.contains_key(name), "{name}");
        }
    }
}
