//! Schemas of the domain's closed lists of words, and of its ids and names.
//!
//! A member of such a type needs no schema of its own: the document has one component per type, which is derived from
//! the same words and rules as the parser.

use utoipa::openapi::{
    KnownFormat, ObjectBuilder, RefOr, Schema, SchemaFormat,
    schema::{AdditionalProperties, SchemaType, Type},
};

use crate::domain::{
    access::Role,
    capacity::{AlertKind, AlertLevel},
    changes::ChangeKind,
    clock::Timestamp,
    erasure::EraseScope,
    explain::EntryKind,
    ids::{InstallationId, MAX_NAME_LENGTH, PromptId, SessionId, Subject, UserId, WorkspaceId},
    jail::JailState,
    limits::LimitKind,
    migration::MigrationSkip,
    routing::{FlipTrigger, Initiator, Route, Stage, success_window::WindowState},
    session::{
        connection::ConnectionStatus, event::EventKind, lifecycle::SessionState, permission::PermissionPolicy,
    },
    tenant::{McpCeiling, PathCeiling},
    turn::{
        Severity, TurnInitiator, TurnState,
        outcome::{ErrorClass, ErrorCode},
    },
    words::{FollowUp, MigrationStatus, ReasonCode, RollbackKind},
};

/// Implements the schema of lists: name in the OpenAPI document and description.
macro_rules! word_schemas {
    ($($list:ty => $name:literal, $description:literal;)*) => {$(
        impl utoipa::PartialSchema for $list {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
                let words = <$list>::ALL.iter().map(|word| word.as_str());
                utoipa::openapi::ObjectBuilder::new()
                    .schema_type(utoipa::openapi::schema::Type::String)
                    .description(Some($description))
                    .enum_values(Some(words))
                    .into()
            }
        }

        impl utoipa::ToSchema for $list {
            fn name() -> std::borrow::Cow<'static, str> {
                $name.into()
            }
        }
    )*};
}

pub(crate) use word_schemas;

word_schemas! {
    AlertKind => "CapacityAlertKind", "Change of a capacity alert.";
    AlertLevel => "CapacityAlertLevel", "Level of a capacity alert.";
    ConnectionStatus => "ConnectionStatus", "Status of the connection to the agent of a session.";
    ChangeKind => "ChangeKind", "Kind of an administrative change: `tenantProtocol` is one of route defaults and blocked repositories.";
    EntryKind => "TimelineEntryKind", "Kind of an entry of a timeline: `connection` is a handshake, `transition` a change of a connection, `flip` a change of the route of the workspace.";
    ErrorClass => "ErrorClass", "Part of the system that an error concerns, and with it the kind of recovery.";
    ErrorCode => "ErrorCode", "A stable error code, for programs to branch on.";
    EraseScope => "EraseScope", "The extent of an erasure.";
    EventKind => "EventKind", "Kind of a session's event.";
    FlipTrigger => "FlipTrigger", "Why the route of a workspace was flipped.";
    FollowUp => "RollbackFollowUp", "Action after a rollback.";
    Initiator => "Initiator", "Initiator of a change.";
    JailState => "JailState", "State of the jail of the agents: `partial` lacks a later right, `off` the file rules for at least one agent.";
    LimitKind => "LimitKind", "A limit that refuses requests.";
    PathCeiling => "PathCeiling", "Existing folders that callers may open by `path`: `listed` are those that the settings list.";
    McpCeiling => "McpCeiling", "MCP servers that callers may give to a session: `listed` are those that the configuration names.";
    MigrationSkip => "MigrationSkip", "Why a migration skips a workspace.";
    MigrationStatus => "MigrationStatus", "Status of a migration.";
    PermissionPolicy => "PermissionPolicy", "Answer to the permission requests of agents.";
    Role => "Role", "Role of a token: a set of operations.";
    ReasonCode => "RollbackReason", "Why a workspace was rolled back or restored.";
    RollbackKind => "RollbackKind", "Direction of a flip: `rollback` to HTTP, `restore` to ACP.";
    Route => "Protocol", "Protocol that carries turns: `acp`, or `http` for the fallback.";
    SessionState => "SessionState", "State of a session. In `background` no turn runs, but the agent still works.";
    Severity => "DiagnosticSeverity", "Severity of a diagnostic.";
    Stage => "RecoveryStage", "Stage of the recovery of ACP: `closed` (ACP carries the turns), `open` (cooling down), `halfOpen` (a probe is under way) or `recovering` (some turns use ACP).";
    TurnInitiator => "TurnInitiator", "Initiator of a turn: `agent` for one that the agent began by itself.";
    TurnState => "TurnState", "State of a turn.";
    WindowState => "WindowState", "Verdict on the success window of a workspace: `unknown` means too few outcomes.";
}

/// The form of a name that a caller chooses ([`crate::domain::ids`]).
const NAME_PATTERN: &str = "^[A-Za-z0-9][A-Za-z0-9._:@-]*$";

/// A name of 1 to [`MAX_NAME_LENGTH`] characters.
fn name_schema(description: &str) -> RefOr<Schema> {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .description(Some(description))
        .pattern(Some(NAME_PATTERN))
        .max_length(Some(MAX_NAME_LENGTH))
        .into()
}

fn uuid_schema(description: &str) -> RefOr<Schema> {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .format(Some(SchemaFormat::KnownFormat(KnownFormat::Uuid)))
        .description(Some(description))
        .into()
}

fn time_schema() -> RefOr<Schema> {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime)))
        .description(Some("A time, RFC 3339; the service writes UTC."))
        .into()
}

/// Implements a schema: name in the OpenAPI document, and the schema itself.
macro_rules! schemas {
    ($($of:ty => $name:literal, $schema:expr;)*) => {$(
        impl utoipa::PartialSchema for $of {
            fn schema() -> RefOr<Schema> {
                $schema
            }
        }

        impl utoipa::ToSchema for $of {
            fn name() -> std::borrow::Cow<'static, str> {
                $name.into()
            }
        }
    )*};
}

schemas! {
    Timestamp => "Timestamp", time_schema();
    SessionId => "SessionId", uuid_schema("Id of a session.");
    PromptId => "PromptId", uuid_schema("Id of a turn.");
    InstallationId => "InstallationId", name_schema("Name of a tenant.");
    WorkspaceId => "WorkspaceId", name_schema("Name of a workspace, unique within its tenant.");
    Subject => "Subject", name_schema("Name of the person or program that holds a token.");
    UserId => "UserId", name_schema("Name of a user.");
    AgentObject => "AgentObject", open_object("An object of the Agent Client Protocol, as the agent sent it.");
}

/// Schema of an object whose members belong to the agent and its protocol.
#[derive(Debug)]
pub(crate) struct AgentObject;

/// An object with any members.
pub(crate) fn open_object(description: &str) -> RefOr<Schema> {
    ObjectBuilder::new()
        .schema_type(SchemaType::Type(Type::Object))
        .description(Some(description))
        .additional_properties(Some(AdditionalProperties::FreeForm(true)))
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pattern_of_names_accepts_what_the_parser_accepts() {
        let pattern = regex::Regex::new(NAME_PATTERN).unwrap();
        for name in ["a", "ws-1", "octo_org.repo:main", "1", "a@b", "", "-x", "..", ".git", "a/b", "a b", "a\n", "ü"]
        {
            assert_eq!(pattern.is_match(name), name.parse::<WorkspaceId>().is_ok(), "{name:?}");
        }
    }
}
