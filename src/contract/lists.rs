//! Pages, what stands on them, and how to ask for them.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::{IntoParams, ToSchema};

use crate::domain::{
    ids::{InstallationId, PromptId, UserId, WorkspaceId},
    session::{lifecycle::SessionState, permission::PermissionPolicy},
};

/// One page of a list.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Page<T> {
    /// The entries.
    pub items: Vec<T>,
    /// Give it as `cursor` for the next page; absent on the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// One page of a transcript.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TranscriptPage {
    /// The entries, oldest first.
    pub entries: Vec<TranscriptItem>,
    /// Give it as `cursor` for the next page; absent where there is none yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// One entry of a transcript.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TranscriptItem {
    /// Counts up from 1 within the session.
    pub seq: i64,
    /// The turn it belongs to.
    #[schema(value_type = Option<String>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_id: Option<PromptId>,
    /// `user_message`, `agent_message`, `agent_thought`, `tool_call`, `plan`, `permission`, `info`, ….
    pub event_type: String,
    /// What was said.
    pub text: String,
    /// The raw update, or the blocks of a prompt, where it is more than text.
    #[schema(value_type = Option<serde_json::Value>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload: Option<Box<RawValue>>,
    /// When.
    pub created_at: String,
}

/// A workspace, as lists tell about it.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct WorkspaceItem {
    /// The tenant.
    #[schema(value_type = String)]
    pub installation_id: InstallationId,
    /// The tenant's name for it.
    #[schema(value_type = String)]
    pub workspace_id: WorkspaceId,
    /// What was checked out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
    /// Absolute path in the runtime, once it was prepared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// How it answers permission requests; absent where the configured policy holds.
    #[schema(value_type = Option<String>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub permission_policy: Option<PermissionPolicy>,
    /// When it was first asked for.
    pub created_at: String,
    /// When it was last asked for.
    pub last_used_at: String,
}

/// An agent that sessions may name.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AgentItem {
    /// Its name.
    pub name: String,
    /// Whether sessions get it that name none.
    pub is_default: bool,
}

/// Filters of `GET /acp/sessions`.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct SessionQuery {
    /// Only this tenant's.
    #[param(value_type = Option<String>)]
    pub installation_id: Option<InstallationId>,
    /// Only this workspace's.
    #[param(value_type = Option<String>)]
    pub workspace_id: Option<WorkspaceId>,
    /// Only this user's.
    #[param(value_type = Option<String>)]
    pub user_id: Option<UserId>,
    /// Only in this state.
    #[param(value_type = Option<String>)]
    pub state: Option<SessionState>,
    /// Entries on the page, up to `[limits] page_entries`.
    pub limit: Option<usize>,
    /// `nextCursor` of the page before.
    pub cursor: Option<String>,
}

/// Filters of `GET /acp/workspaces`.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct WorkspaceQuery {
    /// Only this tenant's.
    #[param(value_type = Option<String>)]
    pub installation_id: Option<InstallationId>,
    /// Only of this name.
    #[param(value_type = Option<String>)]
    pub workspace_id: Option<WorkspaceId>,
    /// Entries on the page, up to `[limits] page_entries`.
    pub limit: Option<usize>,
    /// `nextCursor` of the page before.
    pub cursor: Option<String>,
}

/// Page of `GET /acp/session/{id}/transcript`.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct TranscriptQuery {
    /// Entries on the page, up to `[limits] page_entries`.
    pub limit: Option<usize>,
    /// `nextCursor` of the page before.
    pub cursor: Option<String>,
}

/// Where `GET /acp/session/{id}/events` starts.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct EventsQuery {
    /// `live`: at now; absent: at the oldest event held.
    #[param(value_type = Option<String>)]
    pub from: Option<From>,
}

/// A place in the events of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum From {
    /// Now.
    Live,
}
