//! Requests and answers of the session API.

use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::{
    inputs::{McpServer, OptionValue, PromptInput},
    words::{AgentObject, word_schemas},
};
use crate::domain::{
    automation::{
        skip::WantedMode,
        wanted::{Wanted, WantedOptions},
    },
    clock::Timestamp,
    ids::{InstallationId, PromptId, SessionId, UserId, WorkspaceId},
    routing::Route,
    session::{connection::ConnectionStatus, lifecycle::SessionState, permission::PermissionPolicy},
    turn::{
        TurnInitiator, TurnState,
        outcome::{ErrorCode, Failure},
    },
};

/// Body of `POST /acp/session/new`: the workspace, the agent and the purpose of a session.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(examples(json!({"installationId": "acme", "workspaceId": "demo"})))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct NewSessionBody {
    /// Name of the workspace, unique within its tenant. Names that begin with `gh`, digits and a colon are those of workspaces
    /// that a label or a comment at GitHub has opened.
    #[schema(example = "demo")]
    pub workspace_id: WorkspaceId,
    /// Name of the tenant; optional with a token of a tenant.
    #[schema(example = "acme")]
    pub installation_id: Option<InstallationId>,
    /// The user for whom the session works.
    pub user_id: Option<UserId>,
    /// `owner/name` or a URL to clone into a new workspace. Not with `path`.
    #[schema(min_length = 1)]
    pub repository: Option<String>,
    /// Branch of `repository`; absent: its default branch. Only with `repository`.
    #[schema(min_length = 1)]
    pub branch: Option<String>,
    /// Number of a pull request of `repository` on which the session works: its head is checked out, and its branch gets the
    /// changes. Not with `branch`; only with `repository`.
    #[schema(minimum = 1)]
    pub pull_request: Option<u64>,
    /// GitHub token with which a private `repository` is cloned and the changes of the session's turns are automated. It stays
    /// in memory, at most until the service restarts.
    #[schema(value_type = Option<String>, format = "password", write_only, pattern = "^[!-~]{1,4096}$")]
    pub github_token: Option<SecretString>,
    /// An existing folder under one of `workspaces.allow_paths`.
    pub path: Option<String>,
    /// True to remove the folder of a new workspace with its last session; by default it is kept. Not with `path`.
    pub ephemeral: Option<bool>,
    /// True for a clone of its own, which no other session uses and which is removed with the session; false to share the
    /// folder of the workspace. By default, true if the changes of a `repository` are to become pull requests.
    pub isolate: Option<bool>,
    /// True if changes are to become pull requests; by default, true with `repository`.
    pub enable_git_ops: Option<bool>,
    /// `development` (default) or `conversation`, which has no git.
    #[serde(default)]
    pub mode: Mode,
    /// Name of a configured agent; absent: the default agent.
    pub agent: Option<String>,
    /// ACP `mcpServers`, passed to the agent; at most 32.
    #[schema(value_type = Option<Vec<McpServer>>, max_items = 32)]
    pub mcp_servers: Option<Box<RawValue>>,
    /// Permission policy of this workspace from now on: `allow-once`, `allow-always`, `reject` or `ask`.
    pub permission_policy: Option<PermissionPolicy>,
}

/// Purpose of a session, which decides about git.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    /// The agent works on files.
    #[default]
    Development,
    /// The agent only talks, and git is not used.
    Conversation,
}

/// A session that is ready for prompts.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SessionReady {
    /// Id of the session.
    pub session_id: SessionId,
    /// Protocol that carries the turns: `acp` or `http`.
    #[schema(value_type = Route)]
    pub protocol: &'static str,
    /// The negotiated ACP version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol_version: Option<u16>,
    /// Id of the connection to the runtime.
    pub connection_id: String,
    /// ACP `agentInfo` of the handshake, as the agent sent it.
    #[schema(value_type = Option<AgentObject>)]
    pub agent_info: Option<Box<RawValue>>,
    /// ACP `agentCapabilities` of the handshake, as the agent sent it.
    #[schema(value_type = Option<AgentObject>)]
    pub agent_capabilities: Option<Box<RawValue>>,
    /// ACP `modes` of the session, with the current one.
    #[schema(value_type = Option<AgentObject>)]
    pub modes: Option<serde_json::Value>,
    /// ACP `models` of the session (unstable in ACP), with the current one.
    #[schema(value_type = Option<AgentObject>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub models: Option<serde_json::Value>,
    /// ACP `configOptions` of the session, with their current values.
    #[schema(value_type = Option<Vec<AgentObject>>)]
    pub config_options: Option<serde_json::Value>,
    /// ACP `mcpServers` without their secrets; `_meta.lumilink.secretsRemoved` of a server names what was removed.
    #[schema(value_type = Vec<McpServer>)]
    pub mcp_servers: Box<RawValue>,
    /// Names of the MCP servers that the agent lacks because their secrets were lost with the process that had them; a load
    /// with `mcpServers` gives them again.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    pub mcp_secrets_lost: Vec<String>,
    /// The workspace of the session.
    pub workspace: WorkspaceInfo,
}

/// A session that is being prepared: the answer to `POST /acp/session/new` with `Prefer: respond-async`.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SessionAccepted {
    /// Id of the session, for `GET /acp/session/{id}` and `/events`.
    pub session_id: SessionId,
    /// Always `preparing`: prompts are refused until the session has another state.
    pub state: SessionState,
    /// The workspace of the session.
    pub workspace: AcceptedWorkspace,
}

/// The workspace of a session that is being prepared.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AcceptedWorkspace {
    /// Name of the workspace, unique within its tenant.
    pub workspace_id: WorkspaceId,
    /// Name of the tenant.
    pub installation_id: InstallationId,
    /// True if the session gets a folder of its own, which no other session uses and which is removed with it.
    pub is_isolated: bool,
}

/// The workspace of a session.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct WorkspaceInfo {
    /// Name of the workspace, unique within its tenant.
    pub workspace_id: WorkspaceId,
    /// Name of the tenant.
    pub installation_id: InstallationId,
    /// Absolute path in the runtime.
    pub path: String,
    /// True if the folder is removed with its last session.
    pub is_ephemeral: bool,
    /// True if the session has a folder of its own, which no other session uses and which is removed with it.
    pub is_isolated: bool,
}

/// Body of `POST /acp/session/prompt`: a turn to run.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(examples(json!({"sessionId": "01977c2e-7c1a-7d3b-9b1e-3f0a5c2d4e6f", "prompt": "write hello.txt hello"})))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct PromptBody {
    /// Id of the session.
    #[schema(value_type = SessionId)]
    pub session_id: String,
    /// A string, or an array of ACP content blocks.
    #[schema(value_type = PromptInput)]
    pub prompt: Box<RawValue>,
    /// Automation that publishes the changes of the turn.
    #[serde(default)]
    pub automation: AutomationBody,
    /// GitHub token for the automation of this turn, with write access to contents, issues and pull requests of the session's
    /// repository. It stays in memory: after a restart of the service the run is skipped, and its commit is kept.
    #[serde(default)]
    #[schema(value_type = Option<String>, format = "password", write_only, pattern = "^[!-~]{1,4096}$")]
    pub github_token: Option<SecretString>,
}

word_schemas! {
    WantedMode => "WantedMode", "Requested automation of the changes of a turn.";
}

/// Automation of the changes of a turn.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct AutomationBody {
    /// `github` (issue, branch, commit and pull request; the default), `commit-only`, or `none`.
    #[serde(default)]
    pub mode: WantedMode,
    /// True to change nothing at GitHub: the result shows branch and commit that would be pushed.
    #[serde(default)]
    pub dry_run: bool,
    /// Name of the branch; absent: a name with the number of the issue and the time. Later turns of the session push to the
    /// branch of its open pull request.
    #[schema(min_length = 1, max_length = 200)]
    pub branch_name: Option<String>,
    /// The branch that the pull request proposes to change; absent: the branch that was cloned.
    #[schema(min_length = 1, max_length = 200)]
    pub base_branch: Option<String>,
    /// Number of an existing issue to which the pull request belongs; absent: an issue is opened.
    #[schema(minimum = 1)]
    pub issue: Option<u64>,
    /// Title of the issue and the pull request; absent: the first line of the prompt.
    #[schema(min_length = 1, max_length = 120)]
    pub issue_title: Option<String>,
    /// Labels beside `automated` and `claude-prompt`.
    #[serde(default)]
    #[schema(max_items = 20)]
    pub labels: Vec<String>,
    /// Login at GitHub of the person who asks for the change. The commit credits them (`Co-authored-by`) if GitHub reports that
    /// they may write to the repository.
    #[schema(pattern = "^[A-Za-z0-9][A-Za-z0-9_-]{0,38}$")]
    pub requester: Option<String>,
}

impl AutomationBody {
    /// The request in the words of the rules.
    ///
    /// # Errors
    /// `invalid_request` that names the member.
    pub(crate) fn wanted(self, has_token: bool) -> Result<Wanted, Failure> {
        let Self { mode, dry_run: is_dry_run, branch_name, base_branch, issue, issue_title, labels, requester } =
            self;
        let options =
            WantedOptions { is_dry_run, branch_name, base_branch, issue, issue_title, labels, requester, has_token };
        let wanted = Wanted { mode, options };
        wanted.check()?;
        Ok(wanted)
    }
}

/// Answer to a prompt with `Prefer: respond-async`, and data of the event `accepted`.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PromptAccepted {
    /// Id of the turn, for `GET /acp/prompt/{id}`.
    pub prompt_id: PromptId,
    /// Id of the session.
    pub session_id: SessionId,
    /// True if the `Idempotency-Key` was used before, so that no new turn was started.
    pub duplicate: bool,
}

/// Body of `POST /acp/session/close`: the session to close.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(examples(json!({"sessionId": "01977c2e-7c1a-7d3b-9b1e-3f0a5c2d4e6f"})))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct SessionBody {
    /// Id of the session.
    #[schema(value_type = SessionId)]
    pub session_id: String,
}

/// Body of `POST /acp/session/load`: a session that is not live.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(examples(json!({"sessionId": "01977c2e-7c1a-7d3b-9b1e-3f0a5c2d4e6f"})))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct LoadBody {
    /// Id of the session.
    #[schema(value_type = SessionId)]
    pub session_id: String,
    /// ACP `mcpServers`, in place of those of the session. Absent: those of the session; servers whose secrets are lost are
    /// left out (`mcpSecretsLost`).
    #[schema(value_type = Option<Vec<McpServer>>, max_items = 32)]
    pub mcp_servers: Option<Box<RawValue>>,
}

/// Body of `POST /acp/session/cancel`: the turn to cancel.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(examples(json!({"sessionId": "01977c2e-7c1a-7d3b-9b1e-3f0a5c2d4e6f"})))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct CancelBody {
    /// Id of the session.
    #[schema(value_type = SessionId)]
    pub session_id: String,
    /// Cancels only this turn; absent: any running turn.
    #[schema(value_type = Option<PromptId>)]
    pub prompt_id: Option<String>,
}

/// Answer to `POST /acp/session/cancel`.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Cancelled {
    /// True if a turn was running; it ends as `cancelled`.
    pub cancelled: bool,
}

/// Answer to `POST /acp/session/close`.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Closed {
    /// Id of the session.
    pub session_id: SessionId,
    /// Always `closed`: the session cannot be loaded again.
    pub state: SessionState,
}

/// `POST /acp/session/permission`: exactly one of `optionId` and `cancelled`.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(examples(json!({"sessionId": "01977c2e-7c1a-7d3b-9b1e-3f0a5c2d4e6f", "requestId": "1", "optionId": "allow"})))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct PermissionBody {
    /// Id of the session.
    #[schema(value_type = SessionId)]
    pub session_id: String,
    /// `requestId` of the event `permission_request`.
    pub request_id: String,
    /// `optionId` of an offered option.
    pub option_id: Option<String>,
    /// `true` answers without an option.
    pub cancelled: Option<bool>,
}

/// A permission request was answered.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PermissionAnswered {
    /// The `requestId` of the permission request that was answered.
    pub request_id: String,
}

/// Body of `POST /acp/session/mode`: the mode to select.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(examples(json!({"sessionId": "01977c2e-7c1a-7d3b-9b1e-3f0a5c2d4e6f", "modeId": "code"})))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ModeBody {
    /// Id of the session.
    #[schema(value_type = SessionId)]
    pub session_id: String,
    /// One of the session's `modes`.
    pub mode_id: String,
}

/// Body of `POST /acp/session/model`: the model to select.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(examples(json!({"sessionId": "01977c2e-7c1a-7d3b-9b1e-3f0a5c2d4e6f", "modelId": "large"})))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ModelBody {
    /// Id of the session.
    #[schema(value_type = SessionId)]
    pub session_id: String,
    /// One of the session's `models`.
    pub model_id: String,
}

/// Body of `POST /acp/session/config`: the option to change.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(examples(json!({"sessionId": "01977c2e-7c1a-7d3b-9b1e-3f0a5c2d4e6f", "configId": "tone", "value": "loud"})))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ConfigBody {
    /// Id of the session.
    #[schema(value_type = SessionId)]
    pub session_id: String,
    /// One of the session's `configOptions`.
    pub config_id: String,
    /// One of its values: a string or a boolean.
    #[schema(value_type = OptionValue)]
    pub value: serde_json::Value,
}

/// Answer of the agent to a change of mode or option.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AgentAnswer {
    /// The answer of the agent, as it was sent.
    #[schema(value_type = serde_json::Value)]
    pub answer: Box<RawValue>,
}

/// A session, live or stored.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SessionInfo {
    pub session_id: SessionId,
    /// Name of the tenant.
    pub installation_id: InstallationId,
    /// Name of the workspace, unique within its tenant.
    pub workspace_id: WorkspaceId,
    /// The user for whom the session works.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_id: Option<UserId>,
    /// Name of the agent in the configuration; `default` for the default agent.
    pub agent: String,
    /// Purpose of the session: `development` or `conversation`.
    pub mode: Mode,
    /// preparing (its folder is made; prompts are refused), starting, idle, running, background (no turn runs, but the agent still works), hibernated, expired, interrupted,
    /// failed or closed.
    pub state: SessionState,
    /// The failure, if it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<FailureInfo>,
    /// connecting, connected, degraded (connected, but the last turn failed because of it), reconnecting or error;
    /// absent if the session is not live.
    #[schema(value_type = Option<ConnectionStatus>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection_status: Option<&'static str>,
    /// Time of the last message of the agent, RFC 3339 in UTC.
    #[schema(value_type = Option<Timestamp>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_heartbeat: Option<String>,
    /// Id of the running turn, which the agent may have begun by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub running_prompt_id: Option<PromptId>,
    /// Protocol that carries the turns: `acp` or `http`.
    #[schema(value_type = Route)]
    pub protocol: &'static str,
    /// The negotiated ACP version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol_version: Option<u16>,
    /// Number of times that the agent was restarted after a failure.
    pub restarts: u32,
    /// Id of the newest event.
    pub last_event_id: u64,
    /// Absolute path in the runtime.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workspace_path: Option<String>,
    /// True if the session has a folder of its own, which no other session uses and which is removed with it.
    pub is_isolated: bool,
    /// Permission requests that wait for `POST /acp/session/permission`, oldest first; only for a single session.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false, max_items = 32)]
    pub permission_requests: Vec<WaitingPermission>,
    /// `agentInfo` and `agentCapabilities` of the last handshake; `modes`, `models` and `configOptions` as they are now.
    #[schema(value_type = Option<AgentObject>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent_facts: Option<Box<RawValue>>,
    /// ACP `mcpServers` without their secrets; `_meta.lumilink.secretsRemoved` of a server names what was removed. Only
    /// for a single session.
    #[schema(value_type = Option<Vec<McpServer>>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mcp_servers: Option<Box<RawValue>>,
    /// Names of the MCP servers that a fresh agent lacks because their secrets were lost with the process that had them; a
    /// load with `mcpServers` gives them again. Only for a single session.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    pub mcp_secrets_lost: Vec<String>,
    /// The reason why the agent does not have the mode that a user set; prompts are refused meanwhile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode_unavailable: Option<String>,
    /// Time of creation, RFC 3339 in UTC.
    #[schema(value_type = Timestamp)]
    pub created_at: String,
    /// Time of the last use, RFC 3339 in UTC.
    #[schema(value_type = Timestamp)]
    pub last_used_at: String,
}

/// A permission request that waits for an answer.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct WaitingPermission {
    /// Id by which the request is answered; that of the event `permission_request`.
    pub request_id: String,
    /// Id of the turn that waits, which the agent may have begun by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_id: Option<PromptId>,
    /// ACP `toolCall` of the request; cut if it is longer than 48 KiB, with a mark in `_meta.lumilink`.
    #[schema(value_type = Option<AgentObject>)]
    pub tool_call: Box<RawValue>,
    /// ACP `options` of the request, at most 32. An option of a `kind` that ACP does not know is offered as well.
    #[schema(value_type = Vec<AgentObject>)]
    pub options: Vec<Box<RawValue>>,
    /// Time of the request, RFC 3339 in UTC.
    #[schema(value_type = Timestamp)]
    pub since: String,
    /// Time at which the request is rejected, RFC 3339 in UTC.
    #[schema(value_type = Timestamp)]
    pub deadline: String,
}

/// The failure of a session or of a turn.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct FailureInfo {
    /// The stable error code, for programs to branch on.
    #[schema(value_type = ErrorCode)]
    pub code: String,
    /// Description of the failure, for people.
    pub detail: String,
}

/// A turn of a session, running or ended.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PromptInfo {
    pub prompt_id: PromptId,
    /// Id of the session.
    pub session_id: SessionId,
    /// accepted, running, completed, cancelled, failed or interrupted.
    pub state: TurnState,
    /// `user`, or `agent` for a turn that the agent began by itself, for example when a background task ended.
    pub initiator: TurnInitiator,
    /// The start of the prompt; empty for a turn of the agent.
    pub preview: String,
    /// The result, once the turn ended.
    #[schema(value_type = Option<super::result::ACPSessionResult>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<Box<RawValue>>,
    /// The failure, if it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<FailureInfo>,
    /// Time of acceptance, RFC 3339 in UTC.
    #[schema(value_type = Timestamp)]
    pub accepted_at: String,
    /// Time of the end, RFC 3339 in UTC.
    #[schema(value_type = Option<Timestamp>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<String>,
}
