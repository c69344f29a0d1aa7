//! The OpenAPI document: made from the handlers, completed with what no handler names.

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
        toast::{Toast, TranscriptNote},
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
        Toast,
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
        (name = "routes", description = "What carries the turns of workspaces and tenants, and changes of it"),
        (name = "audit", description = "Records of what was decided and done, and figures of it"),
        (name = "migrations", description = "Moves fleets of workspaces to another default route, in steps"),
        (name = "notifications", description = "Toasts: over a WebSocket as they come, and as a list to be read"),
        (name = "operations", description = "Health, probes and figures"),
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
            .description(Some("`[server] token`, if one is configured"))
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
