//! The interface between supervisor and runtime beside plain ACP.
//!
//! `GET /acp` is ACP over WebSocket, with the members of [`InitializeMeta`] and the notifications below, all of which a
//! plain ACP peer can ignore or omit. HTTP prepares and inspects workspaces (`GET /status`, `GET /metrics`,
//! `POST /workspace/prepare`, `POST /workspace/diff`, `POST /workspace/remove`) and runs turns without ACP between the two
//! ([`super::fallback`]). Both require the bearer token, if one is configured, and answer errors as
//! [`Problem`](super::problem::Problem).

use std::collections::BTreeMap;

use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::problem::Problem;
use crate::domain::{
    ids::{FolderId, InstallationId, PromptId},
    jail::JailState,
    routing::Route,
    session::preparation::CloneProgress,
};

/// Key of our members under `_meta`.
pub(crate) const META_KEY: &str = "lumilink";

/// Notification: the agent printed a line that is not ACP ([`StrayLine`]).
pub(crate) const STRAY_LINE: &str = "_lumilink/stray_line";
/// Notification: the process of the agent ended ([`AgentExited`]); the socket closes right after it. Unacknowledged
/// messages of a resumable connection are kept for the grace, or for 10 s after the client confirmed the close.
pub(crate) const AGENT_EXITED: &str = "_lumilink/agent_exited";

/// Notification in either direction without params and without a number of its own (`seq` 0): acknowledges when no
/// other message can carry the acknowledgement.
pub(crate) const ACKNOWLEDGED: &str = "_lumilink/acknowledged";
/// Notification of the runtime, the first message of a resumed connection ([`Resumed`]), without a number. Missed
/// messages follow, then new ones.
pub(crate) const RESUMED: &str = "_lumilink/resumed";

/// Header of the 101 (ACP RFD "Streamable HTTP & WebSocket transport"): id of the connection. In a request it resumes
/// that connection, which the runtime holds for `runtime.reconnect_grace_s` after its socket broke; an unknown
/// connection is answered with 404. The newest socket wins: an older one of the same connection is closed with
/// [`close_code::REPLACED`].
pub(crate) const CONNECTION_ID_HEADER: &str = "acp-connection-id";
/// Header of a request that resumes a connection: number of the last message that the client received. Without it the
/// client gets every message that is held.
pub(crate) const RECEIVED_HEADER: &str = "lumilink-received";

/// WebSocket close codes of the runtime.
pub(crate) mod close_code {
    /// The client ended the session; its agent is killed. After any other close of a resumable connection the agent
    /// lives for the grace.
    pub(crate) const NORMAL: u16 = 1000;
    /// The runtime is shutting down.
    pub(crate) const GOING_AWAY: u16 = 1001;
    /// Protocol violation: a frame is not a JSON-RPC message, or the client sends faster than the agent reads.
    pub(crate) const POLICY: u16 = 1008;
    /// A frame was larger than the limit.
    pub(crate) const TOO_BIG: u16 = 1009;
    /// The agent ended, or sent a message larger than the limit.
    pub(crate) const AGENT_ENDED: u16 = 1011;
    /// Another socket resumed this connection.
    pub(crate) const REPLACED: u16 = 4009;
}

/// `initialize` → `_meta.lumilink`, from the supervisor. All members are optional: a plain client gets the default
/// agent, in the `cwd` of its first session.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct InitializeMeta {
    /// Name of the configured agent to start; absent: the default agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// Working directory of the agent: a path that `prepare` returned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Tenant of the session; agents with a private `HOME` get that of the tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub installation_id: Option<InstallationId>,
    /// True if the client numbers its messages and can resume a broken connection. The runtime then numbers its own
    /// messages too, from the answer to `initialize` on ([`crate::acp::numbered`]).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub resumable: bool,
}

/// `session/prompt` → `_meta.lumilink`, from the supervisor.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PromptMeta {
    /// Id of the turn, for a supervisor that reconnects after a restart.
    pub prompt_id: PromptId,
}

/// Params of [`RESUMED`].
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Resumed {
    /// Number of the last message received from the client.
    #[serde(default)]
    pub received: u64,
    /// Messages of the agent with a number above this one follow.
    #[serde(default)]
    pub after: u64,
    /// The newest prompt of the connection, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<ResumedPrompt>,
}

/// A prompt that was sent over a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ResumedPrompt {
    /// [`PromptMeta::prompt_id`].
    pub prompt_id: PromptId,
    /// JSON-RPC id of the request.
    pub call: u64,
    /// All messages of the turn have a number above this one.
    pub after: u64,
}

/// `error.data.lumilink` of an `initialize` that the runtime itself refused.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RefusalMeta {
    /// The name of a [`crate::domain::turn::outcome::ErrorCode`].
    pub code: String,
}

/// Params of [`STRAY_LINE`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct StrayLine {
    /// The line, truncated to 300 characters.
    pub line: String,
}

/// Params of [`AGENT_EXITED`].
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AgentExited {
    /// The exit code, if the agent exited.
    #[serde(default)]
    pub exit_code: Option<i32>,
    /// The signal, if one ended it.
    #[serde(default)]
    pub signal: Option<i32>,
    /// The last 4 KiB of standard error.
    #[serde(default)]
    pub stderr_tail: String,
    /// Set if the runtime ended the agent because of a message: the name of an
    /// [`ErrorCode`](crate::domain::turn::outcome::ErrorCode), such as `frame_too_large`.
    #[serde(default)]
    pub code: Option<String>,
}

/// Location of a workspace.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct WorkspaceRef {
    /// Folder under the root; unused with `path`.
    pub folder_id: FolderId,
    /// An existing folder under one of `workspaces.allow_paths`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Folders of which one must contain `path`, with links resolved; absent: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub within: Option<Vec<String>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Checkout {
    /// `owner/name`, or an https or ssh URL.
    pub repository: String,
    /// The branch; absent: the default branch of the repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch: Option<String>,
}

/// `POST /workspace/prepare`. Idempotent: an existing workspace is not changed.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PrepareWorkspace {
    pub workspace: WorkspaceRef,
    /// Name of the agent; an unknown agent is refused before anything is created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// Tenant of the workspace, whose agents may have a user of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub installation_id: Option<InstallationId>,
    /// Repository to clone (shallow) into a new workspace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkout: Option<Checkout>,
    /// Token for GitHub with which the repository is cloned over HTTPS; absent: without credentials, or with the keys of the
    /// runtime's user. It is used for the clone and not kept.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "super::exposed::expose_optional")]
    pub github_token: Option<SecretString>,
}

/// A line of the answer to [`PrepareWorkspace`] for a client that accepts [`NDJSON`](super::fallback::NDJSON): progress of the
/// clone, then the end. Empty lines keep the connection alive, and a runtime of an earlier version answers with
/// [`PreparedWorkspace`] alone.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum PrepareLine {
    Progress(CloneProgress),
    Prepared(PreparedWorkspace),
    Failed(Box<Problem>),
}

/// Answer to [`PrepareWorkspace`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PreparedWorkspace {
    /// Absolute path, with links resolved.
    pub path: String,
    /// True if the runtime removes it when its last session is closed.
    pub is_ephemeral: bool,
    /// True if the agent has a headless command, so that the fallback works without ACP.
    #[serde(default)]
    pub has_oneshot: bool,
}

/// `POST /workspace/remove`. Only folders under the root can be removed: one that was given by `path` belongs to the
/// caller. Idempotent.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RemoveWorkspace {
    /// The workspace; without `path` unless it is erased. No agent may work in it.
    pub workspace: WorkspaceRef,
    /// True to answer only when all files are deleted. Of a folder that was given by `path`, only the baseline is removed.
    #[serde(default)]
    pub erase: bool,
}

/// `POST /workspace/measure`: the disk use of a workspace, without `path`. Waits for the measurement of another one.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct MeasureWorkspace {
    pub workspace: WorkspaceRef,
}

/// Answer to [`MeasureWorkspace`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct MeasuredWorkspace {
    /// Bytes on disk; 0 if the folder does not exist.
    pub bytes: u64,
    /// False if the folder has too many entries, so that only a part of them was measured.
    pub is_whole: bool,
}

/// `POST /tenant/remove`: removes the private `HOME`s of a tenant's agents, none of which may run. Idempotent. Answers
/// [`RemovedHomes`] when all files are deleted.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RemoveTenant {
    pub installation_id: InstallationId,
}

/// Answer to [`RemoveTenant`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RemovedHomes {
    pub homes: u64,
}

/// Answer to [`RemoveWorkspace`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RemovedWorkspace {
    /// False if the folder did not exist.
    pub removed: bool,
}

/// `POST /agent/processes`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CountProcesses {
    /// Id of the connection to the agent.
    pub connection_id: Uuid,
    /// Counts processes that started at most this long ago, in milliseconds.
    pub within_ms: u64,
}

/// Answer to [`CountProcesses`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AgentProcesses {
    /// Running processes below the agent.
    pub processes: u64,
}

/// `POST /workspace/diff`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DiffWorkspace {
    pub workspace: WorkspaceRef,
}

/// Answer to [`DiffWorkspace`], and the body of `GET /acp/session/{id}/diff`: what changed since the
/// workspace was prepared.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct WorkspaceDiff {
    /// The changed files, at most 1,000. Those larger than `limits.diff_file_bytes` are compared by size and time, and are not in the
    /// patch.
    pub files: Vec<ChangedFile>,
    /// A unified diff with git's extended headers, truncated at `limits.diff_bytes`.
    pub patch: String,
    /// True if files or patch were truncated.
    pub truncated: bool,
    /// Paths that git cannot read, and that are not compared: at most 20.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub omitted: Vec<OmittedPath>,
}

/// A path that a [`WorkspaceDiff`] does not compare.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct OmittedPath {
    /// Path relative to the workspace, without control characters, of at most 200 characters.
    pub path: String,
    /// The reason and advice, as a part of a sentence whose subject is the path.
    pub why: String,
}

/// One file of a [`WorkspaceDiff`].
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ChangedFile {
    /// Path relative to the workspace.
    pub path: String,
    /// Kind of change.
    pub status: ChangeStatus,
    /// Lines added; absent for a binary or a large file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub additions: Option<u64>,
    /// Lines removed; absent for a binary or a large file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deletions: Option<u64>,
}

/// Kind of change of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ChangeStatus {
    Added,
    /// Content or mode changed.
    Modified,
    Deleted,
}

/// State of the agents' jail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct JailStatus {
    /// `on`; `partial`: the file rules are on, and a later right is missing; `off`: an agent runs without the file rules.
    pub state: JailState,
    /// The rights that the kernel can enforce, by name, and whether it does. `tcp_connect` is in use only with
    /// `agent.ports`.
    pub rights: BTreeMap<String, bool>,
    /// Agents with `jail = "off"`.
    pub unconfined_agents: Vec<String>,
    /// Sockets of container engines to which agents can connect. An agent that does is root on the machine.
    pub reachable_sockets: Vec<String>,
    /// Uses of control groups (cgroup v2) for each agent on this machine, by name: `processes` (they end with the agent,
    /// and a killed program's at its next start), and the controllers `pids`, `memory` and `cpu`, which enforce the limits
    /// of the settings.
    #[serde(default)]
    pub control_groups: BTreeMap<String, bool>,
    /// Gaps of the jail on this kernel.
    pub warnings: Vec<String>,
}

/// Answer to `GET /status`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RuntimeStatus {
    pub version: String,
    /// Names of the configured agents; the first is the default.
    pub agents: Vec<String>,
    /// The same agents; empty from an earlier version.
    #[serde(default)]
    pub agent_details: Vec<AgentStatus>,
    pub agent_processes: u64,
    /// Limit of agent processes.
    pub max_agents: u64,
    /// Conversations kept for a disconnected client.
    #[serde(default)]
    pub held_conversations: u64,
    /// State of the agents' jail; absent from an older runtime.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jail: Option<JailStatus>,
    /// Supported protocols: `acp` (`GET /acp`) and `http` (`POST /process-prompt`). Absent: `acp`.
    #[serde(default = "acp_alone")]
    pub protocols: Vec<String>,
}

/// A configured agent, as the runtime finds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AgentStatus {
    pub name: String,
    /// The program of its command, without arguments, which may be secrets.
    pub program: String,
    /// True if the program exists and can be executed; absent for a path that is relative to the workspace.
    #[serde(default)]
    pub is_installed: Option<bool>,
    /// True if it has a headless command for the fallback.
    pub has_oneshot: bool,
}

fn acp_alone() -> Vec<String> {
    vec![Route::Acp.as_str().to_owned()]
}
