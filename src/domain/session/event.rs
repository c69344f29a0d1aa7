//! What a session tells its readers, written once and shared by all of them.

use std::sync::Arc;

use serde_json::value::RawValue;

use crate::domain::ids::{PromptId, SessionId};

/// The kinds of event, by which clients switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// An update of the agent, raw.
    Update,
    /// The agent asks for permission and somebody has to answer.
    PermissionRequest,
    /// A permission request was answered, by whomever.
    PermissionResolved,
    /// The session's state or connection changed.
    Status,
    /// Something was tolerated.
    Diagnostic,
    /// A notification of the agent that the protocol does not know, raw.
    Notification,
    /// How the turn gets on, and when it will have ended.
    Progress,
    /// The workspace's route was flipped: to the fallback, or back.
    Rollback,
    /// A turn ended; the event carries its result.
    Result,
}

impl EventKind {
    /// Its name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Update => "update",
            Self::PermissionRequest => "permission_request",
            Self::PermissionResolved => "permission_resolved",
            Self::Status => "status",
            Self::Diagnostic => "diagnostic",
            Self::Notification => "notification",
            Self::Progress => "progress",
            Self::Rollback => "rollback",
            Self::Result => "result",
        }
    }
}

/// One event: `data` is the JSON that every reader gets.
#[derive(Debug, Clone)]
pub struct SessionEvent {
    /// Counts up by one within the session.
    pub id: u64,
    /// The turn that it belongs to, if any.
    pub prompt_id: Option<PromptId>,
    /// What it is.
    pub kind: EventKind,
    /// `{sessionId, promptId, type, update}`, and the agent's `_meta` where it stood beside the update.
    pub data: Arc<str>,
}

/// Writes an event's `data`: `update` is the agent's raw update, or our own event's content; `meta` is what the
/// agent put beside it.
pub fn event_data(
    session: SessionId,
    prompt: Option<PromptId>,
    kind: EventKind,
    update: &RawValue,
    meta: Option<&RawValue>,
) -> Arc<str> {
    let update = update.get();
    let mut data = String::with_capacity(update.len() + 160);
    data.push_str("{\"sessionId\":\"");
    data.push_str(&session.to_string());
    match prompt {
        Some(prompt) => {
            data.push_str("\",\"promptId\":\"");
            data.push_str(&prompt.to_string());
            data.push('"');
        }
        None => data.push_str("\",\"promptId\":null"),
    }
    data.push_str(",\"type\":\"");
    data.push_str(kind.as_str());
    data.push_str("\",\"update\":");
    data.push_str(update);
    if let Some(meta) = meta {
        data.push_str(",\"_meta\":");
        data.push_str(meta.get());
    }
    data.push('}');
    data.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn data_is_json_with_the_update_untouched() {
        let update = RawValue::from_string(r#"{"sessionUpdate":"x",  "n":1.0}"#.to_owned()).unwrap();
        let session = SessionId(Uuid::nil());
        let data = event_data(session, Some(PromptId(Uuid::nil())), EventKind::Update, &update, None);
        let value: serde_json::Value = serde_json::from_str(&data).unwrap();
        assert_eq!(value["type"], "update");
        assert_eq!(value["promptId"], Uuid::nil().to_string());
        assert!(data.contains(update.get()));
        assert!(event_data(session, None, EventKind::Status, &update, Some(&update)).contains("\"promptId\":null"));
    }
}
