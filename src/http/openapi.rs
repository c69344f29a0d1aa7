//! The OpenAPI document: derived from the handlers, plus what no handler states.

use std::collections::BTreeMap;

use utoipa::{
    OpenApi,
    openapi::{
        Ref, RefOr, Schema, Server,
        extensions::ExtensionsBuilder,
        path::{Operation, PathItem},
        schema::{Discriminator, Object},
        security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
    },
};

use super::{guard::is_open, refusals};
use crate::contract::{
    automation::GithubAutomation,
    events::{EventData, GapData},
    inputs::relations,
    notifications::{
        frames::{ClientFrame, ServerFrame},
        notification::{Notification, TranscriptNote},
        webhook::WebhookEvent,
    },
    problem::Problem,
    result::ACPSessionResult,
    runs::AutomationProgress,
};
use crate::domain::access::Privilege;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "LumiLink",
        description = "Sessions with coding agents that speak the Agent Client Protocol.\n\n\
            Errors are `application/problem+json` (RFC 9457) with a stable `code`; each operation lists the codes that it \
            answers, by status.\n\n\
            Readers must tolerate what they do not know: a minor version may add members to answers and words to the \
            lists of words in answers, such as states, event types and error codes. Requests are strict: an unknown \
            member is refused.",
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
        EventData,
        GapData,
        AutomationProgress,
    )),
    tags(
        (name = "sessions", description = "Open, load, steer, read and close sessions"),
        (name = "turns", description = "Run, follow and cancel prompt turns"),
        (name = "workspaces", description = "Workspaces and agents"),
        (name = "tenants", description = "Limits, ceilings and automation of tenants"),
        (name = "routes", description = "Routes of workspaces and defaults of tenants"),
        (name = "automation", description = "Runs of GitHub automation, and commits that could not be delivered"),
        (name = "audit", description = "Records of decisions, and figures by day"),
        (name = "migrations", description = "Move fleets of workspaces to another default route, in steps"),
        (name = "notifications", description = "Notifications: live over a WebSocket, and as an inbox"),
        (name = "access", description = "Tokens, with their roles"),
        (name = "operations", description = "Health, probes, metrics and webhook deliveries"),
    )
)]
struct Base;

/// Adds what no handler states: the schemas of frames and events, the bearer token, the address, short titles, and one
/// problem document per error status. Makes unions and flattened members what generators of clients can read.
pub(super) fn complete(mut document: utoipa::openapi::OpenApi) -> utoipa::openapi::OpenApi {
    let mut base = Base::openapi();
    base.merge(std::mem::take(&mut document));
    let token = SecurityScheme::Http(
        HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some(
                "`server.token`, or a token of `POST /acp/tokens`; the scopes of an operation are roles",
            ))
            .build(),
    );
    let components = base.components.get_or_insert_default();
    components.add_security_scheme(TOKEN, token);
    plain_schemas(&mut components.schemas);
    for (name, rules) in relations() {
        if let Some(RefOr::T(Schema::Object(body))) = components.schemas.get_mut(name) {
            body.extensions.get_or_insert_default().merge(rules);
        }
    }
    base.servers = Some(vec![Server::new("/")]);
    for (path, item) in &mut base.paths.paths {
        for operation in operations(item) {
            shorten_summary(operation);
            name_roles(operation);
            refusals::declare(path, operation, is_open(path));
        }
    }
    base
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [&mut item.get, &mut item.put, &mut item.post, &mut item.delete, &mut item.patch].into_iter().flatten()
}

/// The scheme of [`SecurityScheme`] and the member that names the privilege of an operation.
const TOKEN: &str = "token";
const PRIVILEGE: &str = "x-privilege";

/// Replaces the privilege that an operation declares by the roles that have it.
fn name_roles(operation: &mut Operation) {
    let declared = operation.security.take().unwrap_or_default();
    let requirement = serde_json::to_value(declared.first()).unwrap_or_default();
    let Some(privilege) = requirement[TOKEN][0].as_str().and_then(Privilege::from_name) else {
        // No token is needed.
        operation.security = Some(Vec::new());
        return;
    };
    let roles = privilege.roles().iter().map(|role| role.as_str());
    let mut security = vec![SecurityRequirement::new(TOKEN, roles)];
    // Where something else can take the place of the token: a ticket.
    security.extend(declared.into_iter().skip(1));
    operation.security = Some(security);
    let name = ExtensionsBuilder::new().add(PRIVILEGE, privilege.as_str()).build();
    operation.extensions.get_or_insert_default().merge(name);
}

/// The privilege that an operation of the completed document needs; `None` if it needs no token.
pub(super) fn privilege_of(operation: &Operation) -> Option<Privilege> {
    operation.extensions.as_ref()?.get(PRIVILEGE)?.as_str().and_then(Privilege::from_name)
}

/// The summary is the first sentence of the doc comment, without markup; the rest is the description.
fn shorten_summary(operation: &mut Operation) {
    let Some(text) = operation.summary.take() else { return };
    let text = text.replace('\n', " ");
    let (first, rest) = text.split_once(". ").unwrap_or((&text, ""));
    operation.summary = Some(first.trim_end_matches('.').replace('`', ""));
    let description = [Some(rest.to_owned()), operation.description.take()];
    let description: Vec<_> = description.into_iter().flatten().filter(|part| !part.is_empty()).collect();
    operation.description = Some(description.join("\n\n")).filter(|text| !text.is_empty());
}

/// Schemas of components by name.
type Schemas = BTreeMap<String, RefOr<Schema>>;

/// Merges flattened members into one object, and gives each variant of a tagged union a component of its own.
fn plain_schemas(schemas: &mut Schemas) {
    let names: Vec<_> = schemas.keys().cloned().collect();
    for name in names {
        if let Some(merged) = schemas.get(&name).and_then(|schema| flattened(schema, schemas)) {
            schemas.insert(name, Schema::Object(merged).into());
        } else {
            name_variants(&name, schemas);
        }
    }
}

/// The object that a schema describes, if it is one or is composed of some by `allOf`.
fn flattened(schema: &RefOr<Schema>, schemas: &Schemas) -> Option<Object> {
    match schema {
        RefOr::Ref(reference) => {
            let name = reference.ref_location.rsplit('/').next()?;
            flattened(schemas.get(name)?, schemas)
        }
        RefOr::T(Schema::Object(object)) => Some(object.clone()),
        RefOr::T(Schema::AllOf(parts)) => {
            let mut whole = Object::new();
            for part in &parts.items {
                let part = flattened(part, schemas)?;
                whole.properties.extend(part.properties);
                whole.required.extend(part.required);
                whole.additional_properties = part.additional_properties.or(whole.additional_properties);
                whole.description = whole.description.or(part.description);
            }
            whole.description = parts.description.clone().or(whole.description);
            Some(whole)
        }
        RefOr::T(_) => None,
    }
}

/// The member that names the variant of a tagged union.
const TAG: &str = "type";

/// Replaces the variants of a tagged union by components, named after the union and the variant.
fn name_variants(name: &str, schemas: &mut Schemas) {
    let Some(RefOr::T(Schema::OneOf(union))) = schemas.get(name) else { return };
    let Some(variants) = union.items.iter().map(|item| variant(item, schemas)).collect::<Option<Vec<_>>>() else {
        return;
    };
    let mut discriminator = Discriminator::new(TAG);
    let mut items = Vec::new();
    for (word, object) in variants {
        let variant_name = format!("{name}{}{}", word[..1].to_uppercase(), &word[1..]);
        let reference = Ref::from_schema_name(&variant_name);
        discriminator.mapping.insert(word, reference.ref_location.clone());
        items.push(reference.into());
        schemas.insert(variant_name, Schema::Object(object).into());
    }
    if let Some(RefOr::T(Schema::OneOf(union))) = schemas.get_mut(name) {
        union.items = items;
        union.discriminator = Some(discriminator);
    }
}

/// The tag and the object of an inline variant of a tagged union.
fn variant(item: &RefOr<Schema>, schemas: &Schemas) -> Option<(String, Object)> {
    let RefOr::T(_) = item else { return None };
    let object = flattened(item, schemas)?;
    let RefOr::T(Schema::Object(tag)) = object.properties.get(TAG)? else { return None };
    match tag.enum_values.as_deref()? {
        [serde_json::Value::String(word)] => Some((word.clone(), object)),
        _ => None,
    }
}
