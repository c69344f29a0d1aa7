//! Turns over HTTP between supervisor and runtime, used while ACP over WebSocket fails.
//!
//! `POST /process-prompt` runs a turn with a fresh agent ([`ProcessPrompt`]) and answers with its
//! [`ACPSessionResult`](super::result::ACPSessionResult), also for a failed turn; a request refused before the turn
//! started is answered with a [`Problem`](super::problem::Problem). It is idempotent by `promptId`: a repeat joins the
//! running turn or gets the same answer. `GET /process-prompt/{promptId}` joins a known turn, else 404; it never runs
//! one. `DELETE /process-prompt/{promptId}` cancels a turn ([`TurnCancelled`]).
//!
//! A client that accepts [`NDJSON`] gets a stream of [`TurnLine`], each at most [`line_bytes`] long; any other client gets the result as JSON, preceded by
//! white space while the turn runs.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::result::{ResultDiagnostic, ResultWorkspace};
use crate::domain::{
    ids::{InstallationId, PromptId, SessionId},
    session::{
        choices::Choices,
        mcp,
        pending_permissions::Resolution,
        permission::{AnsweredBy, OfferedOption, PermissionPolicy},
    },
};

/// Path of the fallback; with `/{promptId}`, of one turn.
pub(crate) const PROCESS_PROMPT: &str = "/process-prompt";
/// Media type of the stream.
pub(crate) const NDJSON: &str = "application/x-ndjson";
/// Query parameter of `GET`: number of lines with [`TurnLine::is_counted`] that the client has. Later lines are
/// replayed as far as they are kept. Absent: new lines only.
pub(crate) const AFTER: &str = "after";

/// Bytes of a line or request beside the message in it.
const ENVELOPE_BYTES: usize = 64 * 1024;

/// The largest line of the stream and the largest request for a turn, in bytes: one message of `frame_bytes`
/// (`[limits] frame_bytes`), as over ACP, and 64 KiB for its envelope.
pub(crate) fn line_bytes(frame_bytes: usize) -> usize {
    frame_bytes.saturating_add(ENVELOPE_BYTES)
}

/// Body of `POST /process-prompt`: a turn to run, at most [`line_bytes`] long.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ProcessPrompt {
    pub session_id: SessionId,
    pub prompt_id: PromptId,
    /// A string or an array of ACP content blocks, raw.
    pub prompt: Box<RawValue>,
    /// The previous conversation, as [`crate::domain::session::context`] writes it: sent ahead of the prompt, because the
    /// agent is fresh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conversation: Option<String>,
    /// Workspace of the agent: a path that `prepare` returned.
    pub workspace: ResultWorkspace,
    /// Tenant of the session; agents with a private `HOME` get that of the tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub installation_id: Option<InstallationId>,
    /// Name of the configured agent; absent: the default agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// ACP `mcpServers`, raw.
    #[serde(default = "mcp::none")]
    pub mcp_servers: Box<RawValue>,
    /// Id of the sign-in method for agents that require one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth_method: Option<String>,
    /// Policy for permission requests; `ask` rejects, because no request can be answered here.
    #[serde(default)]
    pub permission_policy: PermissionPolicy,
    /// The turn fails when the agent is silent for this time, in milliseconds, 1 to ten years.
    pub inactivity_timeout_ms: u64,
    /// Time limit for the agent to confirm a cancel, in milliseconds.
    pub cancel_grace_ms: u64,
    /// Time limit for the handshake, in milliseconds.
    pub handshake_timeout_ms: u64,
    /// The mode, model and options that the agent must have before the prompt. The turn fails with `mode_unavailable`,
    /// and nothing is sent to the agent, if it cannot have a mode that a user set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub choices: Option<Choices>,
    /// Automation of the turn, raw; accepted, but not used yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub automation: Option<Box<RawValue>>,
}

/// One line of the stream: exactly one member, plus `_meta` with `update` and `failure` with `result`. Readers ignore
/// unknown members.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TurnLine {
    /// An ACP update of the agent, raw.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update: Option<Box<RawValue>>,
    /// The `_meta` member that the agent sent beside `update`, raw.
    #[serde(default, rename = "_meta", skip_serializing_if = "Option::is_none")]
    pub meta: Option<Box<RawValue>>,
    /// Any other notification of the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notification: Option<LineNotification>,
    /// A diagnostic of the turn, also in the result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diagnostic: Option<ResultDiagnostic>,
    /// A permission request of the agent was answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permission: Option<LinePermission>,
    /// Number of requested lines that were evicted; they count as read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missed: Option<u64>,
    /// The turn is running; sent at least every 5 s, so that a silent turn is not mistaken for a broken connection.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub alive: bool,
    /// The [`ACPSessionResult`](super::result::ACPSessionResult); the last line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Box<RawValue>>,
    /// The failure, for a result with `stopReason: error`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<LineFailure>,
}

impl TurnLine {
    /// True if the line counts for [`AFTER`]: messages of the agent, permissions and diagnostics.
    pub(crate) fn is_counted(&self) -> bool {
        self.update.is_some() || self.notification.is_some() || self.diagnostic.is_some() || self.permission.is_some()
    }
}

/// A notification of the agent other than an update.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LineNotification {
    pub method: String,
    pub params: Box<RawValue>,
}

/// Answer to a permission request of the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LinePermission {
    /// Id of the request, fresh; empty from an older runtime.
    #[serde(default)]
    pub request_id: String,
    /// The tool call that needs the permission.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// The chosen option; absent if the request was cancelled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub option_id: Option<String>,
    /// The chosen option with name and kind; absent from an older runtime.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub option: Option<OfferedOption>,
    /// True if the option allows the call.
    pub allows: bool,
    /// Name of the policy that chose, or `fallback` in place of `ask`.
    pub by: String,
}

impl LinePermission {
    pub(crate) fn of(resolution: Resolution) -> Self {
        let allows = resolution.allows();
        let Resolution { request_id, tool_call_id, option, by, .. } = resolution;
        let (option_id, by) = (option.as_ref().map(|option| option.option_id.clone()), by.as_str().to_owned());
        Self { request_id, tool_call_id, option_id, option, allows, by }
    }

    /// The answer in the turn `prompt_id`. Of an older runtime's option only the id and the effect are known.
    pub(crate) fn resolution(self, prompt_id: PromptId) -> Resolution {
        let Self { request_id, tool_call_id, option_id, option, allows, by } = self;
        let of_id = |option_id: String| {
            let kind = Some(if allows { "allow_once" } else { "reject_once" }.to_owned());
            OfferedOption { name: option_id.clone(), option_id, kind }
        };
        let by = AnsweredBy::from_name(&by).unwrap_or(AnsweredBy::Fallback);
        let option = option.or_else(|| option_id.map(of_id));
        Resolution { request_id, prompt_id: Some(prompt_id), tool_call_id, option, by }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LineFailure {
    /// The name of an [`ErrorCode`](crate::domain::turn::outcome::ErrorCode).
    pub code: String,
    /// One sentence about this case; it may quote the agent.
    pub detail: String,
}

/// Answer to `DELETE /process-prompt/{promptId}`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TurnCancelled {
    /// True if a running turn is being cancelled; `false` for an ended or unknown turn.
    pub cancelled: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_serialises_only_set_members() {
        let alive = TurnLine { alive: true, ..TurnLine::default() };
        assert_eq!(serde_json::to_string(&alive).unwrap(), r#"{"alive":true}"#);
        assert!(!alive.is_counted());
        let text = r#"{"update":{"sessionUpdate":"x","n":1.50},"_meta":{"a": 1}}"#;
        let line: TurnLine = serde_json::from_str(text).unwrap();
        assert!(line.is_counted());
        assert_eq!(serde_json::to_string(&line).unwrap(), text);
    }
}
