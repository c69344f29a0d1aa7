//! Notifications, and their notes in the transcript.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub(crate) use crate::domain::notify::notification::{Severity, Trigger};
use crate::{
    contract::{
        automation::{AutomationStatus, RollbackThreshold, RollbackTrigger, SkipReason},
        words::word_schemas,
    },
    domain::{clock::Timestamp, ids::WorkspaceId},
};

word_schemas! {
    Severity => "ToastSeverity", "Severity of a notification.";
    Trigger => "ToastTrigger", "Cause of a notification.";
}

/// A notification.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = Toast)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Notification {
    /// Id of the notification, a UUID.
    pub id: String,
    /// Number in its stream, ascending: the cursor of a subscriber.
    pub seq: u64,
    /// Always `Automation update`.
    pub title: String,
    /// At most 140 characters, without secrets.
    #[schema(min_length = 1, max_length = 140)]
    pub body: String,
    /// Severity.
    pub severity: Severity,
    /// Cause of the notification.
    pub trigger: Trigger,
    /// Time for which a UI shows it, in milliseconds.
    pub auto_dismiss_ms: u32,
    /// Id of the cause, unique to this notification.
    pub cause_id: String,
    /// Name of the workspace; absent for notifications of operators.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<WorkspaceId>, nullable = false)]
    pub workspace_id: Option<String>,
    /// The last 6 characters of the id of the session, if it concerns one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, max_length = 6)]
    pub session_suffix: Option<String>,
    /// Time, RFC 3339 in UTC.
    #[schema(value_type = Timestamp)]
    pub created_at: String,
}

/// The note of a notification in the transcript.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct TranscriptNote {
    /// Time, RFC 3339 in UTC.
    #[schema(value_type = Timestamp)]
    pub timestamp: String,
    /// Kind of note.
    pub event_type: NoteKind,
    /// Text of the note, as in the body of the notification.
    #[schema(min_length = 1, max_length = 140)]
    pub summary: String,
    /// Outcome of the event, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub status: Option<NoteStatus>,
    /// Links and reasons of the event; each member is absent if it does not apply.
    #[serde(default)]
    pub details: NoteDetails,
}

/// Kind of note.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum NoteKind {
    /// A result of GitHub automation.
    Automation,
    /// Repeats the text of a notification.
    #[serde(rename = "toast")]
    Notification,
    /// A rollback or restore of the route.
    Rollback,
    /// Any other note of the service.
    Info,
}

/// Outcome that a note reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum NoteStatus {
    /// GitHub automation has published the changes.
    Success,
    /// GitHub automation was skipped on purpose.
    Skipped,
    /// GitHub automation could not publish the changes.
    Error,
    /// A rollback has ended and ACP carries the turns again.
    Resolved,
}

impl From<AutomationStatus> for NoteStatus {
    fn from(status: AutomationStatus) -> Self {
        match status {
            AutomationStatus::Success => Self::Success,
            AutomationStatus::Skipped => Self::Skipped,
            AutomationStatus::Error => Self::Error,
        }
    }
}

/// Details of a note; only applicable members are present.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct NoteDetails {
    /// Why automation was skipped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub skip_reason: Option<SkipReason>,
    /// Trigger of the rollback.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub rollback_trigger: Option<RollbackTrigger>,
    /// The rule that was broken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub threshold: Option<RollbackThreshold>,
    /// Web address of the issue at GitHub.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, format = "uri")]
    pub issue_url: Option<String>,
    /// Web address of the pull request at GitHub.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, format = "uri")]
    pub pr_url: Option<String>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use utoipa::OpenApi;

    use super::*;
    use crate::domain::notify::notification::{AUTO_DISMISS_MS, TITLE};

    #[derive(OpenApi)]
    #[openapi(components(schemas(Notification, TranscriptNote)))]
    struct Document;

    fn schema_takes(name: &str, value: &serde_json::Value) -> bool {
        let mut schema = serde_json::to_value(Document::openapi()).unwrap();
        schema["$ref"] = format!("#/components/schemas/{name}").into();
        schema["$schema"] = "https://json-schema.org/draft/2020-12/schema".into();
        jsonschema::draft202012::new(&schema).unwrap().is_valid(value)
    }

    #[test]
    fn a_notification_and_its_note_fit_their_schemas() {
        let notification = Notification {
            id: "t1".into(),
            seq: 1,
            title: TITLE.into(),
            body: "GitHub automation was left out.".into(),
            severity: Severity::Warning,
            trigger: Trigger::AutomationSkipped,
            auto_dismiss_ms: AUTO_DISMISS_MS,
            cause_id: "c1".into(),
            workspace_id: Some("w".into()),
            session_suffix: Some("abcdef".into()),
            created_at: "2026-01-01T00:00:00Z".into(),
        };
        let note = TranscriptNote {
            timestamp: notification.created_at.clone(),
            event_type: NoteKind::Automation,
            summary: notification.body.clone(),
            status: Some(AutomationStatus::Skipped.into()),
            details: NoteDetails { skip_reason: Some(SkipReason::RateLimited), ..NoteDetails::default() },
        };
        let (notification, note) = (serde_json::to_value(notification).unwrap(), serde_json::to_value(note).unwrap());
        assert_eq!(notification["trigger"], "automationSkipped");
        assert_eq!(note["details"], json!({"skipReason": "rateLimited"}));
        assert!(schema_takes("Toast", &notification) && schema_takes("TranscriptNote", &note));
        let mut long = notification.clone();
        long["body"] = "x".repeat(141).into();
        assert!(!schema_takes("Toast", &long));
    }
}
