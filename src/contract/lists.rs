//! Lists of the API: pages, their entries and their filters.

use serde::{Deserialize, Deserializer, Serialize, de::Error};
use serde_json::value::RawValue;
use utoipa::{IntoParams, ToSchema};

use super::{inputs::TranscriptEventType, session::FailureInfo, words::AgentObject};
use crate::domain::{
    clock::Timestamp,
    ids::{InstallationId, PromptId, UserId, WorkspaceId},
    session::{lifecycle::SessionState, permission::PermissionPolicy},
};

/// Body of a request that needs none: an empty object.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(examples(json!({})))]
#[serde(deny_unknown_fields)]
pub(crate) struct NoMembers {}

/// One page of a list.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Page<T> {
    /// The entries of the page, at most `limit`.
    pub items: Vec<T>,
    /// `cursor` of the next page; absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// One page of a transcript.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TranscriptPage {
    /// The entries of the page, oldest first.
    pub entries: Vec<TranscriptItem>,
    /// `cursor` of the next page; absent on the last page and with `changedAfter`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// One entry of a transcript.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TranscriptItem {
    /// Number of the entry in the session, from 1; entries are in its order. Changes take numbers of the same sequence, so
    /// the numbers of entries have gaps.
    pub seq: i64,
    /// 1 for a new entry, incremented by each change: updates of a message, a tool call or a plan change its entry.
    pub revision: i64,
    /// Number of the newest change, for `changedAfter`; the same as `seq` while `revision` is 1.
    pub changed: i64,
    /// Id of the turn, if the entry belongs to one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_id: Option<PromptId>,
    /// Kind of the entry.
    #[schema(value_type = TranscriptEventType)]
    pub event_type: String,
    /// The text of the entry.
    pub text: String,
    /// The agent's id of the message. A message above 64 KiB has several entries with the same id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message_id: Option<String>,
    /// The raw update, or the blocks of a prompt that is more than text. A tool call has the newest value of each member.
    /// Above 64 KiB it is cut: long texts keep head and tail, and `_meta.lumilink` has `truncated` and `originalBytes`.
    #[schema(value_type = Option<serde_json::Value>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload: Option<Box<RawValue>>,
    /// Time, RFC 3339 in UTC.
    #[schema(value_type = Timestamp)]
    pub created_at: String,
}

/// A workspace in a list.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct WorkspaceItem {
    /// Name of the tenant.
    pub installation_id: InstallationId,
    /// Name of the workspace, unique within its tenant.
    pub workspace_id: WorkspaceId,
    /// The repository that was cloned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
    /// Absolute path in the runtime, once prepared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Permission policy of the workspace; absent if it uses the configured one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub permission_policy: Option<PermissionPolicy>,
    /// Bytes on disk, as last measured; absent while no session is live, and for a folder that was given by `path`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_bytes: Option<u64>,
    /// Time of its first session, RFC 3339 in UTC.
    #[schema(value_type = Timestamp)]
    pub created_at: String,
    /// Time of its last use, RFC 3339 in UTC.
    #[schema(value_type = Timestamp)]
    pub last_used_at: String,
}

/// An agent of the configuration.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AgentItem {
    pub name: String,
    /// True if sessions that name no agent get this one.
    pub is_default: bool,
    /// Program of its command, without arguments; absent if the runtime is of an earlier version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub program: Option<String>,
    /// True if the runtime finds the program; absent if that depends on the workspace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub is_installed: Option<bool>,
    /// True if it has a headless command, which runs its turns over the fallback.
    pub has_oneshot: bool,
    /// The newest handshake of a session with the agent; absent if there was none since the start of the service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_handshake: Option<AgentHandshake>,
}

/// A handshake with an agent.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AgentHandshake {
    /// Time, RFC 3339 in UTC.
    pub at: Timestamp,
    /// Duration, in milliseconds.
    pub took_ms: u64,
    /// The failure, if it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<FailureInfo>,
    /// `agentInfo`, `agentCapabilities`, `modes`, `models` and `configOptions` of the newest handshake that succeeded.
    #[schema(value_type = Option<AgentObject>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent_facts: Option<Box<RawValue>>,
}

/// States of sessions, separated by commas; none: every state.
#[derive(Debug, Clone, Default)]
pub(crate) struct SessionStates(pub Vec<SessionState>);

impl<'de> Deserialize<'de> for SessionStates {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        let state = |name: &str| {
            let unknown = || {
                let known: Vec<_> = SessionState::ALL.into_iter().map(SessionState::as_str).collect();
                D::Error::custom(format!("unknown state {name:?}, expected some of {}", known.join(", ")))
            };
            SessionState::from_name(name).ok_or_else(unknown)
        };
        text.split(',').map(state).collect::<Result<_, _>>().map(Self)
    }
}

/// Filters of `GET /acp/sessions`.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct SessionQuery {
    /// Only entries of this tenant.
    pub installation_id: Option<InstallationId>,
    /// Only entries of this workspace.
    pub workspace_id: Option<WorkspaceId>,
    /// Only entries of this user.
    pub user_id: Option<UserId>,
    /// Only entries in one of these states, separated by commas.
    #[serde(default)]
    #[param(value_type = Option<Vec<SessionState>>, style = Form, explode = false, min_items = 1)]
    pub state: SessionStates,
    /// Most entries on the page, 1 to `limits.page_entries`; 50 by default.
    #[param(minimum = 1, maximum = 1000)]
    pub limit: Option<usize>,
    /// `nextCursor` of the previous page.
    #[param(pattern = r"^-?[0-9]{1,18}~[!-~]{0,300}$")]
    pub cursor: Option<String>,
}

/// Filters of `GET /acp/workspaces`.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct WorkspaceQuery {
    /// Only entries of this tenant.
    pub installation_id: Option<InstallationId>,
    /// Only workspaces of this name.
    pub workspace_id: Option<WorkspaceId>,
    /// Most entries on the page, 1 to `limits.page_entries`; 50 by default.
    #[param(minimum = 1, maximum = 1000)]
    pub limit: Option<usize>,
    /// `nextCursor` of the previous page.
    #[param(pattern = r"^-?[0-9]{1,18}~[!-~]{0,300}$")]
    pub cursor: Option<String>,
}

/// Page of `GET /acp/session/{id}/prompts`.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct PromptQuery {
    /// Most entries on the page, 1 to `limits.page_entries`; 50 by default.
    #[param(minimum = 1, maximum = 1000)]
    pub limit: Option<usize>,
    /// `nextCursor` of the previous page.
    #[param(pattern = r"^-?[0-9]{1,18}~[!-~]{0,300}$")]
    pub cursor: Option<String>,
}

/// Page of `GET /acp/session/{id}/transcript`.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct TranscriptQuery {
    /// Most entries on the page, 1 to `limits.page_entries`; 50 by default.
    #[param(minimum = 1, maximum = 1000)]
    pub limit: Option<usize>,
    /// `nextCursor` of the previous page. Excludes `changedAfter`.
    #[param(pattern = r"^[0-9]{1,18}$")]
    pub cursor: Option<String>,
    /// Reads entries in the order of their newest change, those with `changed` above this number: 0 reads all. Pass the
    /// largest `changed` that was read to get what was added or changed since. An entry that changes while pages are read
    /// is read again; none is missed.
    #[param(format = "uint64", maximum = 18446744073709551615u64)]
    pub changed_after: Option<u64>,
}

/// Where `GET /acp/session/{id}/events` starts.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct EventsQuery {
    /// `live` starts with the next event; without it the stream starts with the oldest event in memory.
    #[param(inline)]
    pub from: Option<From>,
}

/// Start of an event stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[schema(as = EventsFrom)]
#[serde(rename_all = "lowercase")]
pub(crate) enum From {
    /// Only events that follow the request.
    Live,
}
