//! What supervisor and runtime say to each other beside plain ACP.
//!
//! Two doors: `GET /acp` is ACP over WebSocket, with the additions of [`InitializeMeta`] and the
//! notifications below, all of which a plain ACP peer can ignore or leave out. The HTTP door prepares and
//! inspects workspaces: `GET /status`, `GET /metrics` (Prometheus), `POST /workspace/prepare`,
//! `POST /workspace/diff`; and it runs turns without ACP between the two ([`super::fallback`]). Both doors want
//! the bearer token, if one is configured, and answer errors as [`Problem`](super::problem::Problem).

use serde::{Deserialize, Serialize};

use crate::domain::{
    ids::{FolderId, PromptId},
    routing::Route,
};

/// The key of our additions under `_meta`.
pub(crate) const META_KEY: &str = "lumilink";

/// Notification: the agent printed a line that is not JSON ([`StrayLine`]).
pub(crate) const STRAY_LINE: &str = "_lumilink/stray_line";
/// Notification: the agent's process ended ([`AgentExited`]); the socket closes right after. What of a resumable
/// connection is not acknowledged is kept all the same: for the grace, or for 10 s after the client has confirmed the
/// close.
pub(crate) const AGENT_EXITED: &str = "_lumilink/agent_exited";

/// Notification in either direction with numbers and without a number of its own (`seq` 0): the numbers had nothing
/// else to travel on. It has no params.
pub(crate) const ACKNOWLEDGED: &str = "_lumilink/acknowledged";
/// Notification of the runtime, the first message on a connection that goes on with an earlier one ([`Resumed`]); it
/// has no number. What the client did not get follows, then what is new.
pub(crate) const RESUMED: &str = "_lumilink/resumed";

/// Header of the 101 (ACP RFD "Streamable HTTP & WebSocket transport"): names the connection. As a header of the
/// request for a connection it asks to go on with that one, which the runtime holds for `[runtime]
/// reconnect_grace_s` after its socket broke; a connection that is not held any more is answered with 404. The
/// newest socket wins: an older one of the same connection is closed with [`close_code::REPLACED`].
pub(crate) const CONNECTION_ID_HEADER: &str = "acp-connection-id";
/// Header of a request that goes on with a connection: the number of the last message that arrived. A client that has
/// forgotten leaves it out, and gets everything that is held.
pub(crate) const RECEIVED_HEADER: &str = "lumilink-received";

/// WebSocket close codes of the runtime's door.
pub(crate) mod close_code {
    /// The client ended the session; its agent is killed. Any other end of a resumable connection leaves the agent
    /// alive for the grace.
    pub(crate) const NORMAL: u16 = 1000;
    /// The runtime is shutting down.
    pub(crate) const GOING_AWAY: u16 = 1001;
    /// The peer broke the rules: a frame that is no JSON-RPC message, or more than the agent reads.
    pub(crate) const POLICY: u16 = 1008;
    /// A frame was larger than the limit.
    pub(crate) const TOO_BIG: u16 = 1009;
    /// The agent ended, or said something larger than the limit.
    pub(crate) const AGENT_ENDED: u16 = 1011;
    /// Another socket goes on with this connection.
    pub(crate) const REPLACED: u16 = 4009;
}

/// `initialize` → `_meta.lumilink`, from the supervisor. All of it is optional: a plain client gets the
/// default agent, in the folder of the `cwd` of its first session.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct InitializeMeta {
    /// Which configured agent to start; the default one where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// The agent's working directory: a path that `prepare` answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Whether the client numbers its messages and can go on with a connection that broke. The runtime then numbers
    /// its own, from the answer to `initialize` on ([`crate::acp::numbered`]).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub resumable: bool,
}

/// `session/prompt` → `_meta.lumilink`, from the supervisor.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PromptMeta {
    /// Which turn it is, for a supervisor that comes back and has forgotten.
    pub prompt_id: PromptId,
}

/// Params of [`RESUMED`].
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Resumed {
    /// The number of the client's last message that arrived.
    #[serde(default)]
    pub received: u64,
    /// Messages of the agent follow that have a number above this one.
    #[serde(default)]
    pub after: u64,
    /// The newest prompt of the connection, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<ResumedPrompt>,
}

/// A prompt that went through a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ResumedPrompt {
    /// [`PromptMeta::prompt_id`].
    pub prompt_id: PromptId,
    /// The id of its request.
    pub call: u64,
    /// Everything of the turn has a number above this one.
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
    /// The line, cut to 300 characters.
    pub line: String,
}

/// Params of [`AGENT_EXITED`].
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AgentExited {
    /// The exit code, if it exited.
    #[serde(default)]
    pub exit_code: Option<i32>,
    /// The signal, if one ended it.
    #[serde(default)]
    pub signal: Option<i32>,
    /// The end of what it wrote to stderr, at most 4 KiB.
    #[serde(default)]
    pub stderr_tail: String,
    /// Set where the runtime ended it because of what it said: the name of an
    /// [`ErrorCode`](crate::domain::turn::outcome::ErrorCode), `frame_too_large` for instance.
    #[serde(default)]
    pub code: Option<String>,
}

/// Where a workspace is.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct WorkspaceRef {
    /// Its folder under the root; not used where `path` is given.
    pub folder_id: FolderId,
    /// An existing folder of the caller, under one of `[workspaces] allow_paths`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

/// What to check out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Checkout {
    /// `owner/name`, or an https or ssh URL.
    pub repository: String,
    /// The branch; the repository's default where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch: Option<String>,
}

/// `POST /workspace/prepare`. Idempotent: a workspace that is there is left as it is.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PrepareWorkspace {
    /// Which one.
    pub workspace: WorkspaceRef,
    /// Which agent is to work in it; one that is not configured is refused before anything is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// What to clone (shallow) into it when it is new.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkout: Option<Checkout>,
}

/// Answer to [`PrepareWorkspace`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PreparedWorkspace {
    /// The absolute path, links resolved.
    pub path: String,
    /// Whether the runtime removes it when its last session is closed.
    pub is_ephemeral: bool,
    /// Whether the agent that is to work in it has a headless command, so that the fallback works without ACP.
    #[serde(default)]
    pub has_oneshot: bool,
}

/// `POST /workspace/diff`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DiffWorkspace {
    /// Which one.
    pub workspace: WorkspaceRef,
}

/// Answer to [`DiffWorkspace`], and the body of `GET /acp/session/{id}/diff`: what changed since the
/// workspace was prepared.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct WorkspaceDiff {
    /// The changed files, at most 1,000.
    pub files: Vec<ChangedFile>,
    /// A unified diff with git's extended headers, cut at `[limits] diff_bytes`.
    pub patch: String,
    /// Whether files or patch were cut.
    pub truncated: bool,
}

/// One file of a [`WorkspaceDiff`].
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ChangedFile {
    /// Relative to the workspace.
    pub path: String,
    /// What happened to it.
    pub status: ChangeStatus,
    /// Lines added; absent for a binary file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub additions: Option<u64>,
    /// Lines removed; absent for a binary file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deletions: Option<u64>,
}

/// What happened to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ChangeStatus {
    /// It is new.
    Added,
    /// Its content or mode changed.
    Modified,
    /// It is gone.
    Deleted,
}

/// Answer to `GET /status`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RuntimeStatus {
    /// Version of the program.
    pub version: String,
    /// Names of the configured agents; the first is the default one.
    pub agents: Vec<String>,
    /// Agent processes that run now.
    pub agent_processes: u64,
    /// The most that may run.
    pub max_agents: u64,
    /// Conversations that are kept for a client that is away.
    #[serde(default)]
    pub held_conversations: u64,
    /// What it speaks: `acp` (`GET /acp`), `http` (`POST /process-prompt`), or both. A runtime that does not say
    /// speaks ACP.
    #[serde(default = "acp_alone")]
    pub protocols: Vec<String>,
}

fn acp_alone() -> Vec<String> {
    vec![Route::Acp.as_str().to_owned()]
}
