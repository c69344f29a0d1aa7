//! The OpenAPI document: derived from the handlers, plus what no handler states.

use utoipa::{
    OpenApi,
    openapi::{
        ContentBuilder, Ref, Response, ResponseBuilder,
        path::PathItem,
        security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
    },
};

use crate::contract::{
    automation::GithubAutomation,
    notifications::{
        frames::{ClientFrame, ServerFrame},
        notification::{Notification, TranscriptNote},
        webhook::WebhookEvent,
    },
    problem::{PROBLEM_JSON, Problem},
    result::ACPSessionResult,
};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "LumiLink",
        description = "Sessions with coding agents that speak the Agent Client Protocol. Errors are \
            application/problem+json (RFC 9457) with a stable `code`.",
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0"),
    ),
    components(schemas(
        ACPSessionResult,
        GithubAutomation,
        Notification,
        TranscriptNote,
        ClientFrame,
        ServerFrame,
        WebhookEvent,
        Problem,
    )),
    tags(
        (name = "sessions", description = "Open, load, steer, read and close sessions"),
        (name = "turns", description = "Run, follow and cancel prompt turns"),
        (name = "workspaces", description = "Workspaces and agents"),
        (name = "routes", description = "Routes of workspaces and defaults of tenants"),
        (name = "audit", description = "Records of decisions, and figures by day"),
        (name = "migrations", description = "Move fleets of workspaces to another default route, in steps"),
        (name = "notifications", description = "Notifications: live over a WebSocket, and as an inbox"),
        (name = "operations", description = "Health, probes, metrics and webhook deliveries"),
    )
)]
struct Base;

/// Adds what no handler states: the schemas of frames, the bearer token, and the problem document that every operation
/// but the text of `/metrics` answers on failure.
pub(crate) fn complete(mut document: utoipa::openapi::OpenApi) -> utoipa::openapi::OpenApi {
    let mut base = Base::openapi();
    base.merge(std::mem::take(&mut document));
    let token = SecurityScheme::Http(
        HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some("`server.token`, if one is configured"))
            .build(),
    );
    base.components.get_or_insert_default().add_security_scheme("token", token);
    base.security =
        Some(vec![SecurityRequirement::new("token", Vec::<String>::new()), SecurityRequirement::default()]);
    for (_, item) in base.paths.paths.iter_mut().filter(|(path, _)| *path != "/metrics") {
        add_problem(item);
    }
    base
}

fn add_problem(item: &mut PathItem) {
    let operations = [&mut item.get, &mut item.put, &mut item.post, &mut item.delete, &mut item.patch];
    for operation in operations.into_iter().flatten() {
        operation.responses.responses.entry("default".to_owned()).or_insert_with(|| problem().into());
    }
}

fn problem() -> Response {
    let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
    ResponseBuilder::new().description("The request was refused or failed").content(PROBLEM_JSON, content).build()
}
