//! How supervisor and runtime run a turn over HTTP alone, when ACP over WebSocket is not well.
//!
//! `POST /process-prompt` runs a turn with a fresh agent ([`ProcessPrompt`]) and answers with its
//! [`ACPSessionResult`](super::result::ACPSessionResult), also for a turn that failed; what is refused before a turn
//! began is a [`Problem`](super::problem::Problem). It is idempotent by `promptId`: a repeat joins the running turn or
//! gets the same answer. `GET /process-prompt/{promptId}` joins a turn that this runtime knows, or is 404; it never
//! runs anything. `DELETE /process-prompt/{promptId}` asks for its end ([`TurnCancelled`]).
//!
//! A client that accepts [`NDJSON`] is answered with one [`TurnLine`] after the other while the turn runs; any other
//! gets the result as JSON, with white space ahead of it while the turn runs.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::result::{ResultDiagnostic, ResultWorkspace};
use crate::domain::{
    ids::{PromptId, SessionId},
    session::{mcp, permission::PermissionPolicy},
};

/// The path of the fallback; with `/{promptId}` behind it, of one turn.
pub(crate) const PROCESS_PROMPT: &str = "/process-prompt";
/// The media type of the stream.
pub(crate) const NDJSON: &str = "application/x-ndjson";
/// Query parameter of `GET`: how many lines with [`TurnLine::is_counted`] the client has. What is kept of those after
/// them comes first. Absent: the stream from now on.
pub(crate) const AFTER: &str = "after";

/// `POST /process-prompt`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ProcessPrompt {
    /// The session.
    pub session_id: SessionId,
    /// The turn.
    pub prompt_id: PromptId,
    /// A string or an array of ACP content blocks, raw.
    pub prompt: Box<RawValue>,
    /// The conversation so far, as [`crate::domain::session::context`] writes it: goes ahead of the prompt, since the agent is
    /// a fresh one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conversation: Option<String>,
    /// Where the agent is to work: a path that `prepare` answered.
    pub workspace: ResultWorkspace,
    /// Which configured agent; the default one where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// ACP `mcpServers`, raw.
    #[serde(default = "mcp::none")]
    pub mcp_servers: Box<RawValue>,
    /// The sign-in method to use when the agent asks for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth_method: Option<String>,
    /// Who answers the agent's permission requests. Nobody can be asked here: `ask` rejects.
    #[serde(default)]
    pub permission_policy: PermissionPolicy,
    /// The turn fails when its agent says nothing for so long, in milliseconds, 1 to ten years.
    pub inactivity_timeout_ms: u64,
    /// How long the agent may take to confirm a cancel, in milliseconds.
    pub cancel_grace_ms: u64,
    /// How long its handshake may take, in milliseconds.
    pub handshake_timeout_ms: u64,
    /// What the automation around the turn is about, raw; taken, and not used yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub automation: Option<Box<RawValue>>,
}

/// One line of the stream: one of these members (`_meta` goes with `update`, `failure` with `result`). Lines with
/// members that a reader does not know are to be ignored.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TurnLine {
    /// An ACP update of the agent, raw.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update: Option<Box<RawValue>>,
    /// `_meta` beside it.
    #[serde(default, rename = "_meta", skip_serializing_if = "Option::is_none")]
    pub meta: Option<Box<RawValue>>,
    /// Any other notification of the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notification: Option<LineNotification>,
    /// A remark about the turn; the result has it too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diagnostic: Option<ResultDiagnostic>,
    /// A permission request of the agent was answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permission: Option<LinePermission>,
    /// So many counted lines of the ones that the client asked for are not kept any more: they are counted as read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missed: Option<u64>,
    /// The turn runs; comes at least every 5 s, so that a long silence is not taken for a dead line.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub alive: bool,
    /// The [`ACPSessionResult`](super::result::ACPSessionResult); the last line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Box<RawValue>>,
    /// Why it failed, for a result with `stopReason: error`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<LineFailure>,
}

impl TurnLine {
    /// Whether it counts for [`AFTER`]: what the agent said and was permitted, and remarks.
    pub(crate) fn is_counted(&self) -> bool {
        self.update.is_some() || self.notification.is_some() || self.diagnostic.is_some() || self.permission.is_some()
    }
}

/// A notification of the agent that is no update.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LineNotification {
    /// Its method.
    pub method: String,
    /// Its params, raw.
    pub params: Box<RawValue>,
}

/// How a permission request of the agent was answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LinePermission {
    /// The option that was chosen; absent where the request was cancelled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub option_id: Option<String>,
    /// Whether that option allows.
    pub allows: bool,
    /// Who chose: the name of the policy, or `fallback` where a person would have been asked.
    pub by: String,
}

/// Why a turn failed.
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
    /// Whether a turn was running that is being cancelled now; false for one that has ended or is not known.
    pub cancelled: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_only_what_it_says_and_is_read_back() {
        let alive = TurnLine { alive: true, ..TurnLine::default() };
        assert_eq!(serde_json::to_string(&alive).unwrap(), r#"{"alive":true}"#);
        assert!(!alive.is_counted());
        let text = r#"{"update":{"sessionUpdate":"x","n":1.50},"_meta":{"a": 1}}"#;
        let line: TurnLine = serde_json::from_str(text).unwrap();
        assert!(line.is_counted());
        assert_eq!(serde_json::to_string(&line).unwrap(), text);
    }
}
