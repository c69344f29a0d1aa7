//! Deliveries of GitHub's webhook: the answer to GitHub, and the records of those that start turns.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::words::word_schemas;
use crate::domain::{
    automation::trigger::{DeliveryState, EventKind, IgnoreReason, TriggerCause},
    clock::Timestamp,
    ids::{InstallationId, PromptId, SessionId, WorkspaceId},
    words::words,
};

words! {
    /// Verdict on a delivery.
    DeliveryVerdict {
        /// The test of a new webhook arrived.
        Pong = "pong",
        /// The delivery is stored, and may start a turn.
        Queued = "queued",
        /// A delivery with this id or this body arrived before.
        Duplicate = "duplicate",
        /// The delivery starts no turn; `reason` says why.
        Ignored = "ignored",
    }
}

word_schemas! {
    DeliveryState => "TriggerState", "State of a delivery: the last step that was done. It ends as `answered`, `ignored` or `failed`.";
    EventKind => "TriggerEvent", "An event of GitHub's webhook.";
    IgnoreReason => "TriggerIgnoreReason", "Why a delivery starts no turn.";
    TriggerCause => "TriggerCause", "The act that starts a turn.";
    DeliveryVerdict => "TriggerVerdict", "What became of a delivery.";
}

/// Answer to a delivery of GitHub.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DeliveryAnswer {
    pub result: DeliveryVerdict,
    /// Why the delivery starts no turn; absent otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub reason: Option<IgnoreReason>,
}

/// The members of a delivery that are looked at first. Others are those of GitHub's documentation.
#[derive(Debug, ToSchema)]
#[schema(examples(json!({"zen": "Keep it logically awesome.", "hook_id": 1})))]
#[allow(dead_code, reason = "a schema; the payload is parsed in `domain/automation/trigger`")]
pub(crate) struct DeliveryBody {
    /// The kind of change, such as `labeled`.
    #[schema(nullable = false)]
    action: Option<String>,
}

/// Filters of `GET /acp/automation/triggers`.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct TriggerQuery {
    /// Only deliveries for this tenant.
    pub installation_id: Option<InstallationId>,
    /// Only deliveries for the workspace of this name.
    pub workspace_id: Option<WorkspaceId>,
    /// Only deliveries for this session.
    pub session_id: Option<SessionId>,
    /// Only deliveries in this state.
    pub state: Option<DeliveryState>,
    /// Only deliveries that arrived at or after this time, RFC 3339.
    pub from: Option<Timestamp>,
    /// Only deliveries that arrived before this time, RFC 3339.
    pub until: Option<Timestamp>,
    /// The most deliveries on the page, up to `[limits] page_entries`.
    #[param(minimum = 1, maximum = 1000)]
    pub limit: Option<usize>,
    /// `nextCursor` of the previous page.
    #[param(pattern = r"^-?[0-9]{1,18}~[!-~]{0,300}$")]
    pub cursor: Option<String>,
}

/// A delivery of GitHub that started a turn, or was to, without its texts. Members without a value are null.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Trigger {
    /// `X-GitHub-Delivery`, as on the page of the App's webhook.
    pub delivery_id: Uuid,
    pub installation_id: InstallationId,
    /// The workspace of the issue or pull request; it exists once there is a session.
    pub workspace_id: WorkspaceId,
    pub session_id: Option<SessionId>,
    /// The turn.
    pub prompt_id: Option<PromptId>,
    pub event: EventKind,
    pub cause: TriggerCause,
    pub state: DeliveryState,
    /// Why no turn was started, or the code of the newest failure.
    pub reason: Option<String>,
    /// `owner/name`.
    pub repository: String,
    /// Number of the issue or pull request.
    pub number: u64,
    pub pull_request: bool,
    /// Login of the person who applied the label or wrote the text.
    pub sender: String,
    /// Failed executions of the next step.
    pub attempts: u32,
    /// Time of the next execution after a failure.
    pub retry_at: Option<Timestamp>,
    /// Time of arrival, RFC 3339 in UTC.
    pub created_at: Timestamp,
    /// Time of the newest change, RFC 3339 in UTC.
    pub updated_at: Timestamp,
}
