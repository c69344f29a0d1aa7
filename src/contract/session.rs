//! Requests and answers of the session API.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::domain::{
    automation::skip::WantedMode,
    ids::{InstallationId, PromptId, SessionId, UserId, WorkspaceId},
    session::{lifecycle::SessionState, permission::PermissionPolicy},
    turn::TurnState,
};

/// `POST /acp/session/new`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct NewSessionBody {
    /// The tenant's name for the workspace.
    #[schema(value_type = String, example = "demo")]
    pub workspace_id: WorkspaceId,
    /// The tenant.
    #[schema(value_type = String, example = "acme")]
    pub installation_id: InstallationId,
    /// For whom.
    #[schema(value_type = Option<String>)]
    pub user_id: Option<UserId>,
    /// `owner/name` or a URL, cloned into a new workspace.
    pub repository: Option<String>,
    /// Branch of `repository`.
    pub branch: Option<String>,
    /// An existing folder under one of `[workspaces] allow_paths`.
    pub path: Option<String>,
    /// Whether changes are to become pull requests; true where a repository is given.
    pub enable_git_ops: Option<bool>,
    /// `development` (default) or `conversation`: no git.
    #[serde(default)]
    pub mode: Mode,
    /// Name of a configured agent.
    pub agent: Option<String>,
    /// ACP `mcpServers`, handed to the agent.
    #[schema(value_type = Option<Vec<Object>>)]
    pub mcp_servers: Option<Box<RawValue>>,
    /// How this workspace answers permission requests from now on: `allow-once`, `allow-always`, `reject` or
    /// `ask`.
    #[schema(value_type = Option<String>)]
    pub permission_policy: Option<PermissionPolicy>,
}

/// What a session is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    /// Work on files.
    #[default]
    Development,
    /// Talk: no git.
    Conversation,
}

/// A session that is ready: answer to new and load.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SessionReady {
    /// Its id; every other call wants it.
    #[schema(value_type = String)]
    pub session_id: SessionId,
    /// What carries its turns: `acp` or `http`.
    pub protocol: &'static str,
    /// The negotiated ACP version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol_version: Option<u16>,
    /// Id of the connection to the runtime.
    pub connection_id: String,
    /// ACP `agentInfo`.
    #[schema(value_type = Option<Object>)]
    pub agent_info: Option<Box<RawValue>>,
    /// ACP `agentCapabilities`.
    #[schema(value_type = Option<Object>)]
    pub agent_capabilities: Option<Box<RawValue>>,
    /// ACP `modes` of the session.
    #[schema(value_type = Option<Object>)]
    pub modes: Option<Box<RawValue>>,
    /// ACP `configOptions` of the session.
    #[schema(value_type = Option<Vec<Object>>)]
    pub config_options: Option<Box<RawValue>>,
    /// Where its agent works.
    pub workspace: WorkspaceInfo,
}

/// A workspace, as a session sees it.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct WorkspaceInfo {
    /// The tenant's name for it.
    #[schema(value_type = String)]
    pub workspace_id: WorkspaceId,
    /// The tenant.
    #[schema(value_type = String)]
    pub installation_id: InstallationId,
    /// Absolute path in the runtime.
    pub path: String,
    /// Whether it goes with its last session.
    pub is_ephemeral: bool,
}

/// `POST /acp/session/prompt`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct PromptBody {
    /// The session.
    pub session_id: String,
    /// A string, or an array of ACP content blocks.
    #[schema(value_type = Object, example = "write hello.txt hello")]
    pub prompt: Box<RawValue>,
    /// What is to become of the turn's changes.
    #[serde(default)]
    pub automation: AutomationBody,
}

/// What is to become of a turn's changes.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct AutomationBody {
    /// `github` (issue, branch, commit and pull request; the default), `commit-only`, or `none`.
    #[serde(default)]
    pub mode: WantedMode,
}

/// Answer to a prompt with `Prefer: respond-async`, and data of the stream's first event.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PromptAccepted {
    /// The turn; `GET /acp/prompt/{id}` tells about it.
    #[schema(value_type = String)]
    pub prompt_id: PromptId,
    /// The session.
    #[schema(value_type = String)]
    pub session_id: SessionId,
    /// Whether the same `Idempotency-Key` had asked before, so that nothing new was started.
    pub duplicate: bool,
}

/// A session and nothing more: close, load.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct SessionBody {
    /// The session.
    pub session_id: String,
}

/// `POST /acp/session/load`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct LoadBody {
    /// The session.
    pub session_id: String,
    /// ACP `mcpServers`; the ones of before without their secrets where absent, since secrets are not kept.
    #[schema(value_type = Option<Vec<Object>>)]
    pub mcp_servers: Option<Box<RawValue>>,
}

/// `POST /acp/session/cancel`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct CancelBody {
    /// The session.
    pub session_id: String,
    /// Only this turn; whichever runs where absent.
    pub prompt_id: Option<String>,
}

/// Answer to a cancel.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Cancelled {
    /// Whether a turn was running; it ends `cancelled`.
    pub cancelled: bool,
}

/// Answer to a close.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Closed {
    /// The session.
    #[schema(value_type = String)]
    pub session_id: SessionId,
    /// `closed`.
    #[schema(value_type = String)]
    pub state: SessionState,
}

/// `POST /acp/session/permission`: exactly one of `optionId` and `cancelled`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct PermissionBody {
    /// The session.
    pub session_id: String,
    /// From the `permission_request` event.
    pub request_id: String,
    /// The chosen option.
    pub option_id: Option<String>,
    /// `true` declines to choose.
    pub cancelled: Option<bool>,
}

/// Answer to a permission.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PermissionAnswered {
    /// The request.
    pub request_id: String,
}

/// `POST /acp/session/mode`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ModeBody {
    /// The session.
    pub session_id: String,
    /// One of the session's `modes`.
    pub mode_id: String,
}

/// `POST /acp/session/config`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ConfigBody {
    /// The session.
    pub session_id: String,
    /// One of the session's `configOptions`.
    pub config_id: String,
    /// One of its values: a string or a boolean.
    #[schema(value_type = Object, example = "fast")]
    pub value: serde_json::Value,
}

/// What the agent answered to a mode or config change.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AgentAnswer {
    /// Raw.
    #[schema(value_type = serde_json::Value)]
    pub answer: Box<RawValue>,
}

/// A session, as `GET /acp/session/{id}` and lists tell about it.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SessionInfo {
    /// Its id.
    #[schema(value_type = String)]
    pub session_id: SessionId,
    /// The tenant.
    #[schema(value_type = String)]
    pub installation_id: InstallationId,
    /// Its workspace.
    #[schema(value_type = String)]
    pub workspace_id: WorkspaceId,
    /// For whom.
    #[schema(value_type = Option<String>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_id: Option<UserId>,
    /// Name of its agent.
    pub agent: String,
    /// What it is for.
    pub mode: Mode,
    /// starting, idle, running, hibernated, expired, interrupted, failed or closed.
    #[schema(value_type = String)]
    pub state: SessionState,
    /// Why it failed, if it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<FailureInfo>,
    /// connecting, connected, degraded (it stands, but the last turn failed by it), reconnecting or error; absent where
    /// the session is not live.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection_status: Option<&'static str>,
    /// When its agent last said something.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_heartbeat: Option<String>,
    /// The turn that runs.
    #[schema(value_type = Option<String>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub running_prompt_id: Option<PromptId>,
    /// `acp` or `http`.
    pub protocol: &'static str,
    /// The negotiated ACP version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol_version: Option<u16>,
    /// How often its agent was started again.
    pub restarts: u32,
    /// The newest event.
    pub last_event_id: u64,
    /// Absolute path in the runtime.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workspace_path: Option<String>,
    /// `agentInfo`, `agentCapabilities`, `modes` and `configOptions` of its last handshake.
    #[schema(value_type = Option<Object>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent_facts: Option<Box<RawValue>>,
    /// When it was created.
    pub created_at: String,
    /// When it was last used.
    pub last_used_at: String,
}

/// A failure that is told beside something else.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct FailureInfo {
    /// The stable code.
    pub code: String,
    /// What happened.
    pub detail: String,
}

/// A turn, as `GET /acp/prompt/{id}` tells about it.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PromptInfo {
    /// Its id.
    #[schema(value_type = String)]
    pub prompt_id: PromptId,
    /// Its session.
    #[schema(value_type = String)]
    pub session_id: SessionId,
    /// accepted, running, completed, cancelled, failed or interrupted.
    #[schema(value_type = String)]
    pub state: TurnState,
    /// The first characters of the prompt.
    pub preview: String,
    /// Its result, once it ended.
    #[schema(value_type = Option<super::result::ACPSessionResult>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<Box<RawValue>>,
    /// Why it failed, if it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<FailureInfo>,
    /// When it was accepted.
    pub accepted_at: String,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<String>,
}
