//! Short notices to users, and the notes that stand beside them in the transcript.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::contract::automation::{AutomationStatus, RollbackThreshold, RollbackTrigger, SkipReason};
pub(crate) use crate::domain::notify::toast::{Severity as ToastSeverity, Trigger as ToastTrigger};

/// A notice to the users of a workspace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Toast {
    /// Its own id.
    pub id: String,
    /// Its place among the toasts of its tenant: what a reader resumes after.
    pub seq: u64,
    /// `Automation update`.
    pub title: String,
    /// At most 140 characters, without secrets.
    #[schema(min_length = 1, max_length = 140)]
    pub body: String,
    /// How bad it is.
    pub severity: ToastSeverity,
    /// What it is about.
    pub trigger: ToastTrigger,
    /// How long it stays on the screen, in milliseconds.
    pub auto_dismiss_ms: u32,
    /// The id of what caused it; two toasts never have the same.
    pub cause_id: String,
    /// The workspace; absent where it is for operators.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub workspace_id: Option<String>,
    /// The last 6 characters of the session's id, where it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, max_length = 6)]
    pub session_suffix: Option<String>,
    /// When, RFC 3339 in UTC.
    #[schema(format = "date-time")]
    pub created_at: String,
}

/// What stands in the transcript beside a toast.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct TranscriptNote {
    /// When, RFC 3339 in UTC.
    #[schema(format = "date-time")]
    pub timestamp: String,
    /// What kind of note.
    pub event_type: NoteKind,
    /// The body of the toast.
    #[schema(min_length = 1, max_length = 140)]
    pub summary: String,
    /// What became of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub status: Option<NoteStatus>,
    /// More about it.
    #[serde(default)]
    pub details: NoteDetails,
}

/// Kinds of note.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum NoteKind {
    /// GitHub automation.
    Automation,
    /// Repeats a toast.
    Toast,
    /// A flip of the route.
    Rollback,
    /// Anything else.
    Info,
}

/// What became of what a note is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum NoteStatus {
    /// Automation succeeded.
    Success,
    /// Automation was left out.
    Skipped,
    /// Automation failed.
    Error,
    /// A rollback is over.
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

/// More about a note; only what applies is there.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct NoteDetails {
    /// Why automation was left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub skip_reason: Option<SkipReason>,
    /// Who or what rolled back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub rollback_trigger: Option<RollbackTrigger>,
    /// The rule that was broken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub threshold: Option<RollbackThreshold>,
    /// The issue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, format = "uri")]
    pub issue_url: Option<String>,
    /// The pull request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, format = "uri")]
    pub pr_url: Option<String>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use utoipa::OpenApi;

    use super::*;
    use crate::domain::notify::toast::{AUTO_DISMISS_MS, TITLE};

    #[derive(OpenApi)]
    #[openapi(components(schemas(Toast, TranscriptNote)))]
    struct Document;

    fn schema_takes(name: &str, value: &serde_json::Value) -> bool {
        let mut schema = serde_json::to_value(Document::openapi()).unwrap();
        schema["$ref"] = format!("#/components/schemas/{name}").into();
        schema["$schema"] = "https://json-schema.org/draft/2020-12/schema".into();
        jsonschema::draft202012::new(&schema).unwrap().is_valid(value)
    }

    #[test]
    fn a_toast_and_its_note_fit_their_schemas() {
        let toast = Toast {
            id: "t1".into(),
            seq: 1,
            title: TITLE.into(),
            body: "GitHub automation was left out.".into(),
            severity: ToastSeverity::Warning,
            trigger: ToastTrigger::AutomationSkipped,
            auto_dismiss_ms: AUTO_DISMISS_MS,
            cause_id: "c1".into(),
            workspace_id: Some("w".into()),
            session_suffix: Some("abcdef".into()),
            created_at: "2026-01-01T00:00:00Z".into(),
        };
        let note = TranscriptNote {
            timestamp: toast.created_at.clone(),
            event_type: NoteKind::Automation,
            summary: toast.body.clone(),
            status: Some(AutomationStatus::Skipped.into()),
            details: NoteDetails { skip_reason: Some(SkipReason::RateLimited), ..NoteDetails::default() },
        };
        let (toast, note) = (serde_json::to_value(toast).unwrap(), serde_json::to_value(note).unwrap());
        assert_eq!(toast["trigger"], "automationSkipped");
        assert_eq!(note["details"], json!({"skipReason": "rateLimited"}));
        assert!(schema_takes("Toast", &toast) && schema_takes("TranscriptNote", &note));
        let mut long = toast.clone();
        long["body"] = "x".repeat(141).into();
        assert!(!schema_takes("Toast", &long));
    }
}
