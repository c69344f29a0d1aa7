//! Schemas of members that are passed on as they came: prompts, MCP servers, and values of an agent's options.
//!
//! The types here only describe; the parsers are in `domain/turn/prompt.rs` and `domain/session/mcp.rs`, and a test
//! compares them.

use serde_json::{Value, json};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        ArrayBuilder, ObjectBuilder, OneOfBuilder, Ref, RefOr, Schema,
        extensions::Extensions,
        schema::{AdditionalProperties, AnyOfBuilder, Discriminator, Type},
    },
};

use super::notifications::notification::NoteKind;
use crate::domain::{
    automation::{
        policy::{MAX_INSTALLATION, MAX_PROTECTED_CHARS},
        wanted::MAX_LABEL_CHARS,
    },
    routing::Initiator,
    session::mcp::MAX_SERVERS,
    tenant::{MAX_AGENT_CHARS, MAX_PATH_CHARS},
    turn::prompt::MAX_BLOCKS,
};

/// Texts with at least one character that is not white space.
const NOT_BLANK: &str = r"\S";

fn text(description: &str) -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String).description(Some(description))
}

/// The prompt of a turn: a text, or content blocks.
#[derive(Debug)]
pub(crate) struct PromptInput;

impl PartialSchema for PromptInput {
    fn schema() -> RefOr<Schema> {
        let blocks = ArrayBuilder::new()
            .description(Some("Content blocks of the Agent Client Protocol"))
            .items(Ref::from_schema_name(ContentBlock::name()))
            .min_items(Some(1))
            .max_items(Some(MAX_BLOCKS));
        OneOfBuilder::new()
            .item(text("A text").pattern(Some(NOT_BLANK)))
            .item(blocks)
            .description(Some("The prompt of a turn: a text, or content blocks."))
            .examples([json!("write hello.txt hello"), json!([{"type": "text", "text": "write hello.txt hello"}])])
            .into()
    }
}

impl ToSchema for PromptInput {
    fn name() -> std::borrow::Cow<'static, str> {
        "PromptInput".into()
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push((ContentBlock::name().into(), ContentBlock::schema()));
        ContentBlock::schemas(schemas);
    }
}

/// A content block of ACP version 1. Members that are not listed are passed to the agent, too.
#[derive(Debug)]
pub(crate) struct ContentBlock;

/// Names of members with their types.
type Members = &'static [(&'static str, Type)];

/// The types of content block: value of `type`, name of the schema, and members with their types. All are required.
const BLOCKS: [(&str, &str, Members); 5] = [
    ("text", "TextContent", &[("text", Type::String)]),
    ("image", "ImageContent", &[("data", Type::String), ("mimeType", Type::String)]),
    ("audio", "AudioContent", &[("data", Type::String), ("mimeType", Type::String)]),
    ("resource_link", "ResourceLink", &[("name", Type::String), ("uri", Type::String)]),
    ("resource", "EmbeddedResource", &[("resource", Type::Object)]),
];

/// A block of one type.
fn block(kind: &str, members: &[(&str, Type)]) -> RefOr<Schema> {
    let word = ObjectBuilder::new().schema_type(Type::String).enum_values(Some([kind]));
    let mut block = ObjectBuilder::new().property("type", word).required("type");
    for (name, of) in members {
        let member = match (*name, of) {
            ("text", _) if kind == "text" => text("The text").pattern(Some(NOT_BLANK)),
            ("resource", _) => resource(),
            _ => ObjectBuilder::new().schema_type(of.clone()),
        };
        block = block.property(*name, member).required(*name);
    }
    block.additional_properties(Some(AdditionalProperties::FreeForm(true))).into()
}

/// The contents of an embedded resource: `text`, or `blob` as base64.
fn resource() -> ObjectBuilder {
    let contents = json!([{"anyOf": [{"required": ["text"]}, {"required": ["blob"]}]}]);
    ObjectBuilder::new()
        .property("uri", ObjectBuilder::new().schema_type(Type::String))
        .property("text", ObjectBuilder::new().schema_type(Type::String))
        .property("blob", ObjectBuilder::new().schema_type(Type::String))
        .required("uri")
        .additional_properties(Some(AdditionalProperties::FreeForm(true)))
        .description(Some("The contents: `text`, or `blob` as base64"))
        .extensions(Some(Extensions::from_iter([("allOf", contents)])))
}

impl PartialSchema for ContentBlock {
    fn schema() -> RefOr<Schema> {
        let mut discriminator = Discriminator::new("type");
        let mut blocks = OneOfBuilder::new().description(Some(
            "A content block of the Agent Client Protocol, passed to the agent with all its members.",
        ));
        for (kind, name, _) in BLOCKS {
            blocks = blocks.item(Ref::from_schema_name(name));
            discriminator.mapping.insert(kind.to_owned(), format!("#/components/schemas/{name}"));
        }
        blocks.discriminator(Some(discriminator)).into()
    }
}

impl ToSchema for ContentBlock {
    fn name() -> std::borrow::Cow<'static, str> {
        "ContentBlock".into()
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.extend(BLOCKS.iter().map(|(kind, name, members)| ((*name).to_owned(), block(kind, members))));
    }
}

/// An MCP server of ACP: `command` with `args` and `env`, or `type` (`http`, `sse`) with `url` and `headers`.
#[derive(Debug)]
pub(crate) struct McpServer;

impl PartialSchema for McpServer {
    fn schema() -> RefOr<Schema> {
        let description = "A server of the Model Context Protocol, as in the Agent Client Protocol: with `command`, \
            `args` and `env`, or with `type` (`http` or `sse`), `url` and `headers`. The agent validates it.";
        ObjectBuilder::new()
            .description(Some(description))
            .property("name", text("Name of the server"))
            .required("name")
            .additional_properties(Some(AdditionalProperties::FreeForm(true)))
            .examples([json!({"name": "files", "command": "mcp-files", "args": ["/data"], "env": []})])
            .into()
    }
}

impl ToSchema for McpServer {
    fn name() -> std::borrow::Cow<'static, str> {
        "McpServer".into()
    }
}

/// Value of an option of an agent.
#[derive(Debug)]
pub(crate) struct OptionValue;

impl PartialSchema for OptionValue {
    fn schema() -> RefOr<Schema> {
        OneOfBuilder::new()
            .item(text("The id of an offered value"))
            .item(ObjectBuilder::new().schema_type(Type::Boolean))
            .description(Some("Value of an option of the agent: the id of an offered value, or a boolean."))
            .examples([json!("fast")])
            .into()
    }
}

impl ToSchema for OptionValue {
    fn name() -> std::borrow::Cow<'static, str> {
        "OptionValue".into()
    }
}

/// Printable text on one line, with white space at most around it. `\s` differs between dialects, so it is spelt out.
const ONE_LINE: &str = concat!(
    r"^[\t\n\x0b\x0c\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]*",
    r"[^\x00-\x20\x7f-\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]",
    r"([^\x00-\x1f\x7f-\x9f]*[^\x00-\x20\x7f-\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000])?",
    r"[\t\n\x0b\x0c\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]*$",
);

/// The longest actor of a change, in characters: a name or an address.
pub(crate) const MAX_ACTOR_CHARS: usize = 128;
/// The longest reason of a change, in characters: a sentence or two.
pub(crate) const MAX_REASON_CHARS: usize = 500;

/// Author of a change.
#[derive(Debug)]
pub(crate) struct Actor;

/// Reason of a change.
#[derive(Debug)]
pub(crate) struct Reason;

/// Initiator of a change that a request may name.
#[derive(Debug)]
pub(crate) struct ChangeInitiator;

/// A pattern of repositories.
#[derive(Debug)]
pub(crate) struct RepositoryPattern;

/// A name of an agent in a ceiling.
#[derive(Debug)]
pub(crate) struct AgentName;

/// Id of an installation of the GitHub App.
#[derive(Debug)]
pub(crate) struct InstallationNumber;

/// A label of a tenant's automation.
#[derive(Debug)]
pub(crate) struct AutomationLabel;

/// A login of a tenant's automation.
#[derive(Debug)]
pub(crate) struct Login;

/// A reviewer of a tenant's automation.
#[derive(Debug)]
pub(crate) struct Reviewer;

/// A pattern of protected paths.
#[derive(Debug)]
pub(crate) struct ProtectedPath;

/// A path of a folder in a ceiling.
#[derive(Debug)]
pub(crate) struct AbsolutePath;

macro_rules! text_schemas {
    ($($of:ident = $schema:expr;)*) => {$(
        impl PartialSchema for $of {
            fn schema() -> RefOr<Schema> {
                $schema.into()
            }
        }

        impl ToSchema for $of {
            fn name() -> std::borrow::Cow<'static, str> {
                stringify!($of).into()
            }
        }
    )*};
}

text_schemas! {
    Actor = text("Name of the person or program that makes the change; recorded in the audit.")
        .pattern(Some(ONE_LINE))
        .max_length(Some(MAX_ACTOR_CHARS))
        .examples(["alice"]);
    Reason = text("Why; recorded in the audit.")
        .pattern(Some(ONE_LINE))
        .max_length(Some(MAX_REASON_CHARS))
        .examples(["planned maintenance"]);
    ChangeInitiator = text("Initiator of a change.")
        .enum_values(Some([Initiator::Operator.as_str(), Initiator::User.as_str()]));
    AgentName = text("Name of an agent; `default` is the default agent.")
        .pattern(Some(r"^[^\x00-\x1f\x7f-\x9f]+$"))
        .max_length(Some(MAX_AGENT_CHARS))
        .examples(["default"]);
    AbsolutePath = text("Absolute path of a folder, without `..`.")
        .pattern(Some(r"^/(?!\.\.(/|$))([^/]*/(?!\.\.(/|$)))*[^/]*$"))
        .max_length(Some(MAX_PATH_CHARS))
        .examples(["/srv/projects/acme"]);
    InstallationNumber = ObjectBuilder::new()
        .schema_type(Type::Integer)
        .description(Some("Id of an installation of the GitHub App."))
        .minimum(Some(1))
        .maximum(Some(MAX_INSTALLATION))
        .examples([json!(48_151_623)]);
    AutomationLabel = text("A label, on one line.")
        .min_length(Some(1))
        .max_length(Some(MAX_LABEL_CHARS))
        .examples(["automated"]);
    Login = text("Login of a person or a bot at GitHub.")
        .pattern(Some(r"^[A-Za-z0-9._\[\]-]{1,100}$"))
        .examples(["octocat"]);
    Reviewer = text("Login of a person at GitHub, or a team as `owner/team`.")
        .pattern(Some(r"^[A-Za-z0-9._\[\]-]{1,100}(/[A-Za-z0-9._\[\]-]{1,100})?$"))
        .examples(["octo/core"]);
    ProtectedPath = text("A folder with `/` at its end, a path with `/`, or a name in any folder.")
        .pattern(Some(r"^[^\x00-\x1f\x7f-\x9f]+$"))
        .max_length(Some(MAX_PROTECTED_CHARS))
        .examples([".github/"]);
    RepositoryPattern = text("`owner/name`, where `*` matches any characters.")
        .pattern(Some(r"^(?!\.{1,2}/)[A-Za-z0-9._*-]{1,100}/(?!\.{1,2}$)[A-Za-z0-9._*-]{1,100}$"))
        .examples(["acme/*"]);
}

/// Kind of a transcript entry: a known one, or the name of a kind of ACP update that this version does not know.
#[derive(Debug)]
pub(crate) struct TranscriptEventType;

/// The kinds of entries beside those of notes.
const ENTRY_TYPES: [&str; 7] =
    ["user_message", "agent_message", "agent_thought", "agent_turn", "tool_call", "plan", "permission"];
const NOTES: [NoteKind; 4] = [NoteKind::Automation, NoteKind::Notification, NoteKind::Rollback, NoteKind::Info];

impl PartialSchema for TranscriptEventType {
    fn schema() -> RefOr<Schema> {
        let notes = NOTES.iter().filter_map(|kind| serde_json::to_value(kind).ok());
        let known = ENTRY_TYPES.iter().map(|word| json!(word)).chain(notes);
        AnyOfBuilder::new()
            .item(ObjectBuilder::new().schema_type(Type::String).enum_values(Some(known)))
            .item(text("Another kind of update of the agent"))
            .description(Some("Kind of a transcript entry."))
            .into()
    }
}

impl ToSchema for TranscriptEventType {
    fn name() -> std::borrow::Cow<'static, str> {
        "TranscriptEventType".into()
    }
}

/// The rules between members of bodies, as JSON Schema: the body and what holds for it.
pub(crate) fn relations() -> [(&'static str, Extensions); 7] {
    let given = |name: &str| json!({"required": [name], "properties": {name: {"not": {"type": "null"}}}});
    let is = |name: &str, value: Value| json!({"required": [name], "properties": {name: {"const": value}}});
    let both = |one: &Value, other: &Value| json!({"allOf": [one, other]});
    let one_of = |names: &[&str]| json!({"anyOf": names.iter().copied().map(given).collect::<Vec<_>>()});
    let (option, cancelled) = (given("optionId"), is("cancelled", json!(true)));
    let mut pinned = one_of(&["defaultProtocol", "migrationEnabled", "autoRollout"]);
    // A null pin removes it.
    pinned["anyOf"].as_array_mut().into_iter().for_each(|them| them.push(json!({"required": ["pin"]})));
    let tenant = ["defaultProtocol", "enableAcp", "allowMigration", "autoMigration", "blockedRepositories"];
    let rules = |name, rules: Value| (name, Extensions::from_iter([("allOf", rules)]));
    [
        rules(
            "NewSessionBody",
            json!([
                {"not": both(&given("repository"), &given("path"))},
                {"not": both(&is("ephemeral", json!(true)), &given("path"))},
                {"if": given("branch"), "then": given("repository")},
            ]),
        ),
        rules(
            "PermissionBody",
            json!([{"anyOf": [
                both(&option, &json!({"not": cancelled})),
                both(&cancelled, &json!({"not": option})),
            ]}]),
        ),
        rules(
            "Subscription",
            json!([{
                "if": is("stream", json!("operators")),
                "then": {"not": one_of(&["installationId", "workspaceId", "userId", "sessionId"])},
                "else": one_of(&["installationId", "sessionId"]),
            }]),
        ),
        rules("ProtocolBody", json!([pinned])),
        rules("TenantProtocolBody", json!([one_of(&tenant)])),
        rules("TenantBody", json!([one_of(&["limits", "ceilings", "automation"])])),
        rules(
            "MigrationBody",
            json!([{"if": is("mode", json!("at")), "then": given("at"), "else": {"not": given("at")}}]),
        ),
    ]
}

const _: () = assert!(MAX_SERVERS == 32, "the schemas of `mcpServers` state the number");

#[cfg(test)]
mod tests {
    use serde_json::value::to_raw_value;

    use super::*;
    use crate::domain::access::Caller;
    use crate::domain::{session::mcp, turn::prompt::Prompt};

    fn schema_takes(name: &str, value: &Value) -> bool {
        let mut schema = serde_json::to_value(crate::http::document()).unwrap();
        schema["$ref"] = format!("#/components/schemas/{name}").into();
        schema["$schema"] = "https://json-schema.org/draft/2020-12/schema".into();
        jsonschema::draft202012::new(&schema).unwrap().is_valid(value)
    }

    #[test]
    fn schema_of_a_prompt_accepts_what_the_parser_accepts() {
        for prompt in [
            json!("hello"),
            json!(""),
            json!("  \n"),
            json!([]),
            json!({}),
            json!(7),
            json!(["hello"]),
            json!([{"type": "text", "text": "hello"}]),
            json!([{"type": "text"}]),
            json!([{"type": "text", "text": "hello", "annotations": {"priority": 1}, "_meta": {"a": 1}}]),
            json!([{"type": "video", "data": "AA=="}]),
            json!([{"type": "image", "data": "AA==", "mimeType": "image/png"}]),
            json!([{"type": "image", "data": "AA=="}]),
            json!([{"type": "audio", "data": "AA==", "mimeType": "audio/wav"}]),
            json!([{"type": "resource_link", "name": "a", "uri": "file:///a"}]),
            json!([{"type": "resource_link", "uri": "file:///a"}]),
            json!([{"type": "resource", "resource": {"uri": "file:///a", "text": "a"}}]),
            json!([{"type": "resource", "resource": {"uri": "file:///a", "blob": "AA=="}}]),
            json!([{"type": "resource", "resource": {"uri": "file:///a"}}]),
            json!(vec![json!({"type": "text", "text": "a"}); MAX_BLOCKS]),
            json!(vec![json!({"type": "text", "text": "a"}); MAX_BLOCKS + 1]),
        ] {
            let parsed = Prompt::parse(&to_raw_value(&prompt).unwrap());
            assert_eq!(schema_takes("PromptInput", &prompt), parsed.is_ok(), "{prompt}: {parsed:?}");
        }
    }

    #[test]
    fn schema_of_a_reason_accepts_what_the_check_accepts() {
        let long = "x".repeat(MAX_REASON_CHARS);
        let (padded, longer) = (format!(" {long}"), format!("{long}x"));
        for text in ["a", " a b\n", "a\nb", "", " ", "\u{1c}a", "a\u{a0}", "ü", "a\u{85}", &long, &padded, &longer] {
            let caller = Caller::of_server();
            let checked = crate::http::routing::protocol::attribution(&caller, None, text, None);
            assert_eq!(schema_takes("Reason", &json!(text)), checked.is_ok(), "{text:?}");
        }
    }

    #[test]
    fn schema_of_a_server_accepts_what_the_check_accepts() {
        for server in [json!({"name": "a", "command": "x"}), json!({}), json!(1), json!({"name": 1})] {
            let checked = mcp::check(&to_raw_value(&[&server]).unwrap());
            assert_eq!(schema_takes("McpServer", &server), checked.is_ok(), "{server}");
        }
    }
}
