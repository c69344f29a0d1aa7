//! The route table of the API.

use actix_web::{App, HttpRequest, HttpResponse, http::Method, web::Data};
use utoipa::openapi::OpenApi;
use utoipa_actix_web::{AppExt, service_config::ServiceConfig};

use super::{audit, health, notifications, openapi, problem::ApiError, routing, sessions};
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

/// Answers requests that no route takes: 405 where another method exists, else 404.
pub(super) async fn no_route(request: HttpRequest, document: Data<OpenApi>) -> Result<HttpResponse, ApiError> {
    let path = request.path();
    let matching: Vec<_> = document.paths.paths.iter().filter(|(template, _)| matches(template, path)).collect();
    // A malformed id fits the template but no route: that is 404. Only a path without parameters lacks the method.
    let exact = matching.iter().any(|(template, _)| *template == path);
    let has_get = matching.iter().any(|(_, item)| item.get.is_some()) && request.method() == Method::GET;
    if exact || !(matching.is_empty() || has_get) {
        let detail = format!("{path} does not support {}", request.method());
        return Err(ApiError::new(ErrorCode::MethodNotAllowed, detail));
    }
    Err(ApiError::new(ErrorCode::NotFound, format!("no route {path}")))
}

/// True if a path matches a template such as `/acp/session/{id}`.
fn matches(template: &str, path: &str) -> bool {
    let (mut template, mut path) = (template.split('/'), path.split('/'));
    loop {
        match (template.next(), path.next()) {
            (None, None) => return true,
            (Some(part), Some(given)) if part == given || (part.starts_with('{') && !given.is_empty()) => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn document_has_every_route_and_schema() {
        let document = document();
        assert_eq!(document.paths.paths.len(), 46);
        let components = document.components.unwrap();
        for name in ["ACPSessionResult", "GithubAutomation", "Toast", "TranscriptNote", "Problem"] {
            assert!(components.schemas.contains_key(name), "{name}");
        }
    }

    #[test]
    fn a_path_matches_only_its_template() {
        assert!(matches("/acp/session/{id}", "/acp/session/7"));
        assert!(!matches("/acp/session/{id}", "/acp/session/"));
        assert!(!matches("/acp/session/{id}", "/acp/session/7/diff"));
    }
}
