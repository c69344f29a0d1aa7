//! The route table of the API.

use actix_web::{
    App, HttpRequest, HttpResponse,
    http::header::{ACCEPT, LOCATION},
    web::Data,
};
use utoipa::openapi::OpenApi;
use utoipa_actix_web::{AppExt, service_config::ServiceConfig};

use super::{
    HttpState, audit, automation, erasure, health, notifications, openapi, problem::ApiError, routing, sessions,
    tenants, tokens, triggers,
};
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
        .service(sessions::read::get_workspace)
        .service(sessions::read::list_agents)
        .service(routing::protocol::get_protocol)
        .service(routing::protocol::put_protocol)
        .service(routing::protocol::roll_back)
        .service(routing::protocol::restore)
        .service(routing::tenants::get_tenant)
        .service(routing::tenants::put_tenant)
        .service(tenants::get_settings)
        .service(tenants::put_settings)
        .service(erasure::delete_session)
        .service(erasure::delete_workspace)
        .service(erasure::delete_tenant)
        .service(sessions::explain::explain_session)
        .service(audit::list_migration_records)
        .service(audit::list_rollback_events)
        .service(audit::list_connections)
        .service(audit::list_automation_runs)
        .service(audit::list_capacity_alerts)
        .service(audit::list_notifications)
        .service(audit::list_erasures)
        .service(audit::list_changes)
        .service(audit::summary::get_summary)
        .service(automation::list_runs)
        // Before the run whose id is in the path.
        .service(triggers::list_triggers)
        .service(automation::get_run)
        .service(automation::get_rescue)
        .service(automation::retry_run)
        .service(triggers::receive_delivery);
    operations(table);
}

/// Routes for operators, and of notifications.
fn operations(table: &mut ServiceConfig<'_>) {
    table
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
        .service(tokens::create_token)
        .service(tokens::list_tokens)
        .service(tokens::revoke_token)
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
    // By the path that routes are matched with, in which some characters are decoded.
    let Some(route) = state.table.find(request.match_info().as_str()) else { return Err(ApiError::no_route(path)) };
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
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    fn json() -> Value {
        serde_json::to_value(document()).unwrap()
    }

    /// Calls `check` with method, path and operation.
    fn each_operation(document: &Value, mut check: impl FnMut(&str, &str, &Value)) {
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                check(method, path, operation);
            }
        }
    }

    #[test]
    fn document_has_every_route_and_schema() {
        let document = document();
        assert_eq!(document.paths.paths.len(), 59);
        let components = document.components.unwrap();
        for name in ["ACPSessionResult", "GithubAutomation", "Toast", "TranscriptNote", "Problem"] {
            assert!(components.schemas.contains_key(name), "{name}");
        }
    }

    #[test]
    fn path_parameters_are_those_of_the_path() {
        each_operation(&json(), |method, path, operation| {
            let wanted: Vec<_> =
                path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')).collect();
            let parameters = operation["parameters"].as_array().into_iter().flatten();
            let declared: Vec<_> = parameters
                .filter(|parameter| parameter["in"] == "path")
                .map(|parameter| parameter["name"].as_str().unwrap())
                .collect();
            assert_eq!(declared, wanted, "{method} {path}");
        });
    }

    #[test]
    fn every_operation_needs_a_privilege_or_no_token() {
        each_operation(&json(), |method, path, operation| {
            let roles = operation["security"][0]["token"].as_array();
            let is_open = super::super::guard::is_open(path);
            assert_eq!(operation["x-privilege"].is_string(), !is_open, "{method} {path}");
            assert_eq!(roles.is_some_and(|roles| !roles.is_empty()), !is_open, "{method} {path}");
        });
    }

    #[test]
    fn operation_ids_are_unique() {
        let mut seen = BTreeSet::new();
        each_operation(&json(), |method, path, operation| {
            let id = operation["operationId"].as_str().unwrap().to_owned();
            assert!(seen.insert(id.clone()), "{method} {path} repeats the operationId {id}");
        });
    }

    #[test]
    fn summaries_are_one_short_line_without_markup() {
        each_operation(&json(), |method, path, operation| {
            let summary = operation["summary"].as_str().unwrap();
            let is_title = (5..=100).contains(&summary.len()) && !summary.contains(['`', '\n']);
            assert!(is_title, "{method} {path}: {summary}");
        });
    }

    #[test]
    fn every_operation_declares_its_problems_by_status() {
        each_operation(&json(), |method, path, operation| {
            let responses = operation["responses"].as_object().unwrap();
            let mut statuses = responses.keys().filter(|status| status.starts_with(['4', '5'])).peekable();
            assert!(statuses.peek().is_some(), "{method} {path} declares no problem");
            for status in statuses {
                let response = &responses[status];
                let schema = &response["content"]["application/problem+json"]["schema"]["$ref"];
                assert_eq!(schema, "#/components/schemas/Problem", "{method} {path} {status}");
                for code in response["description"].as_str().unwrap().split(", ") {
                    let code = ErrorCode::from_name(code.trim_matches('`')).unwrap();
                    assert_eq!(crate::contract::problem::status_of(code).to_string(), *status, "{method} {path}");
                }
            }
            assert!(responses.keys().all(|status| status.parse::<u16>().is_ok()), "{method} {path}: {responses:?}");
        });
    }

    #[test]
    fn every_body_has_an_example_that_fits_its_schema() {
        let document = json();
        each_operation(&document, |method, path, operation| {
            let Some(schema) = operation["requestBody"]["content"]["application/json"]["schema"].as_object() else {
                return;
            };
            let Some(name) = schema.get("$ref").and_then(Value::as_str) else { return };
            let body = document.pointer(name.trim_start_matches('#')).unwrap();
            let mut root = document.clone();
            root["$ref"] = name.into();
            root["$schema"] = "https://json-schema.org/draft/2020-12/schema".into();
            let validator = jsonschema::draft202012::new(&root).unwrap();
            let examples = body["examples"].as_array().unwrap_or_else(|| panic!("{method} {path}: no example"));
            assert!(examples.iter().all(|example| validator.is_valid(example)), "{method} {path}: {examples:?}");
        });
    }

    /// Members and parameters with these names hold a word of a closed list.
    const WORDS: [&str; 16] = [
        "level",
        "status",
        "state",
        "protocol",
        "route",
        "class",
        "code",
        "errorCode",
        "eventType",
        "connectionStatus",
        "permissionPolicy",
        "trigger",
        "severity",
        "initiatedBy",
        "format",
        "target",
    ];
    /// Members and parameters with these names hold an id or a name with a given form.
    const IDS: [&str; 6] = ["sessionId", "promptId", "installationId", "workspaceId", "userId", "migrationId"];

    #[test]
    fn closed_lists_and_ids_are_no_free_strings() {
        fn is_free(schema: &Value) -> bool {
            let is_text = schema["type"] == "string" || schema["type"] == serde_json::json!(["string", "null"]);
            is_text && schema["enum"].is_null() && schema["format"].is_null() && schema["pattern"].is_null()
        }
        let document = json();
        let is_closed = |name: &str| WORDS.contains(&name) || IDS.contains(&name);
        for (schema, body) in document["components"]["schemas"].as_object().unwrap() {
            for (name, member) in body["properties"].as_object().into_iter().flatten() {
                // Automation has codes of its own.
                let is_other = schema.starts_with("Automation") || schema == "ToastSeverity";
                let free = is_closed(name) && is_free(member) && !is_other;
                assert!(!free, "{schema}.{name} is a free string");
            }
        }
        each_operation(&document, |method, path, operation| {
            for parameter in operation["parameters"].as_array().into_iter().flatten() {
                let free = is_closed(parameter["name"].as_str().unwrap()) && is_free(&parameter["schema"]);
                assert!(!free, "{method} {path}: {parameter} is a free string");
            }
        });
    }

    #[test]
    fn no_schema_is_an_object_of_which_nothing_is_known() {
        fn check(value: &Value, place: &str) {
            if let Some(members) = value.as_object() {
                let is_object =
                    members.get("type").is_some_and(|it| it == "object" || it.to_string().contains("\"object\""));
                let is_known =
                    ["properties", "additionalProperties", "allOf"].iter().any(|it| members.contains_key(*it));
                assert!(!is_object || is_known, "{place}: {value}");
                members.iter().for_each(|(name, member)| check(member, &format!("{place}/{name}")));
            }
            value.as_array().into_iter().flatten().for_each(|item| check(item, place));
        }
        let document = json();
        check(&document["components"]["schemas"], "schemas");
        check(&document["paths"], "paths");
    }

    #[test]
    fn variants_of_tagged_unions_are_named_components() {
        let document = json();
        for name in ["ServerFrame", "ClientFrame", "WebhookEvent", "ContentBlock"] {
            let union = &document["components"]["schemas"][name];
            assert_eq!(union["discriminator"]["propertyName"], "type", "{name}");
            for reference in union["discriminator"]["mapping"].as_object().unwrap().values() {
                let pointer = reference.as_str().unwrap().trim_start_matches('#');
                let variant = document.pointer(pointer).unwrap_or_else(|| panic!("{name}: no {pointer}"));
                assert!(variant["properties"]["type"]["enum"].is_array(), "{name}: {variant}");
            }
        }
    }
}
