//! The data of server-sent events, which streams of turns and of sessions have in common.

use std::collections::BTreeMap;

use serde_json::json;
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{ObjectBuilder, RefOr, Schema, extensions::Extensions, schema::Type},
};

use crate::domain::{
    ids::{PromptId, SessionId},
    session::event::EventKind,
};

/// Data of an event of a session. The name of the event is `type`.
#[derive(Debug, ToSchema)]
#[schema(as = SessionEvent, rename_all = "camelCase")]
#[allow(dead_code, reason = "a schema; `domain/session/event.rs` writes the JSON")]
pub(crate) struct EventData {
    /// Id of the session.
    session_id: SessionId,
    /// Id of the turn that the event belongs to; null if it belongs to none.
    prompt_id: Option<PromptId>,
    /// Kind of the event.
    #[schema(rename = "type")]
    kind: EventKind,
    /// With the type `update`, the update of the agent as it was sent: an ACP `SessionUpdate`. With other types, the
    /// content of an event of the service: with the type `automation` an `AutomationProgress`.
    update: serde_json::Value,
    /// The `_meta` that the agent sent beside its update.
    #[schema(rename = "_meta")]
    meta: Option<BTreeMap<String, serde_json::Value>>,
}

/// Data of the event `gap`: events that the reader missed.
#[derive(Debug, ToSchema)]
#[schema(as = GapEvent, rename_all = "camelCase")]
#[allow(dead_code, reason = "a schema; `http/sessions/stream.rs` writes the JSON")]
pub(crate) struct GapData {
    /// Id of the turn whose stream has the gap; null in the stream of a session.
    prompt_id: Option<PromptId>,
    /// Always `gap`.
    #[schema(rename = "type")]
    kind: GapWord,
    /// The missing events.
    update: GapRange,
}

/// The type of a gap.
#[derive(Debug, ToSchema)]
#[schema(as = GapType, rename_all = "lowercase")]
#[allow(dead_code, reason = "a schema")]
pub(crate) enum GapWord {
    Gap,
}

/// The missing events: ids above `after`, up to `until`.
#[derive(Debug, ToSchema)]
#[schema(rename_all = "camelCase")]
#[allow(dead_code, reason = "a schema")]
pub(crate) struct GapRange {
    /// Id of the last event before the gap.
    after: u64,
    /// Id of the last missing event.
    until: u64,
    /// Where the missing events can be read.
    read_on: String,
}

/// Schema of a stream of events. Each event has a name and, mostly, an id; `x-event-data` has the schema of its data.
fn stream(description: &str, events: &[(&str, &str)]) -> RefOr<Schema> {
    let of = |name: &str| json!({"$ref": format!("#/components/schemas/{name}")});
    let mut data: serde_json::Map<_, _> =
        EventKind::ALL.iter().map(|kind| (kind.as_str().to_owned(), of("SessionEvent"))).collect();
    data.insert("gap".into(), of("GapEvent"));
    data.extend(events.iter().map(|(event, schema)| ((*event).to_owned(), of(schema))));
    let mut stream = ObjectBuilder::new()
        .schema_type(Type::String)
        .description(Some(description))
        .extensions(Some(Extensions::from_iter([("x-event-data", serde_json::Value::Object(data))])))
        .build();
    stream.content_media_type = "text/event-stream".into();
    Schema::Object(stream).into()
}

/// The stream of a session.
#[derive(Debug)]
pub(crate) struct SessionStream;

impl PartialSchema for SessionStream {
    fn schema() -> RefOr<Schema> {
        stream(
            "Server-sent events of a session. `data` of each event is JSON: a `SessionEvent`, and a `GapEvent` for the \
             event `gap`.",
            &[],
        )
    }
}

impl ToSchema for SessionStream {
    fn name() -> std::borrow::Cow<'static, str> {
        "SessionStream".into()
    }
}

/// The stream of a turn.
#[derive(Debug)]
pub(crate) struct TurnStream;

impl PartialSchema for TurnStream {
    fn schema() -> RefOr<Schema> {
        stream(
            "Server-sent events of a turn. `data` of each event is JSON: `PromptAccepted` for the first event, `accepted`; \
             a `SessionEvent` for those that follow; a `GapEvent` for `gap`; at the end an `ACPSessionResult` for \
             `result`, or a `Problem` for `problem`.",
            &[("accepted", "PromptAccepted"), ("result", "ACPSessionResult"), ("problem", "Problem")],
        )
    }
}

impl ToSchema for TurnStream {
    fn name() -> std::borrow::Cow<'static, str> {
        "TurnStream".into()
    }
}
