//! The result of a turn, the same for every route and every way to request it.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::automation::{GITHUB_AUTOMATION_VERSION, GithubAutomation};
use crate::domain::{
    clock::Timestamp,
    ids::{PromptId, SessionId},
    redaction::{Redacted, RedactedJson},
    routing::{FlipTrigger, Route},
    text,
    turn::{MAX_DIAGNOSTICS, Severity, TurnOutcome, TurnProgress, outcome::ErrorCode, stop_reason_name},
};

/// The result of a turn, under 32 KB as JSON.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ACPSessionResult {
    /// Reason for which the turn ended.
    pub stop_reason: ResultStopReason,
    /// Tokens; 0 with `meta.usageKnown: false` if the agent does not report them, or not as numbers. Agents differ in
    /// whether they count the turn or the whole conversation; the counts are those of the agent.
    pub usage: ResultUsage,
    /// Outcome of GitHub automation; absent for a session without a repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub github_automation: Option<GithubAutomation>,
    /// Ids, route, message and timings of the turn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub meta: Option<ResultMeta>,
    /// Warnings and errors of the turn.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 100)]
    pub diagnostics: Vec<ResultDiagnostic>,
}

/// Reason for which a turn ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ResultStopReason {
    /// The agent ended the turn: `end_turn`, `max_tokens`, `max_turn_requests` or refusal.
    Completed,
    /// A caller cancelled the turn, or the session was closed.
    Cancelled,
    /// The turn failed; `meta.errorCode` has the code.
    Error,
}

/// Token counts of a turn, as its agent reported them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ResultUsage {
    /// Tokens that the model read.
    pub input_tokens: u64,
    /// Tokens that the model wrote.
    pub output_tokens: u64,
}

/// Facts about a turn beside its outcome: the member `meta` of a result.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ResultMeta {
    /// Id of the session.
    #[schema(value_type = SessionId)]
    pub session_id: String,
    /// Id of the turn.
    #[schema(value_type = PromptId)]
    pub prompt_id: String,
    /// Protocol that carried the turn: `acp` or `http`.
    #[schema(value_type = Route)]
    pub protocol: String,
    /// Route of the workspace at the start of the turn: `acp` or `http`.
    #[schema(value_type = Route)]
    pub route: String,
    /// The negotiated ACP version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol_version: Option<u16>,
    /// The agent's own stop reason: `end_turn`, `max_tokens`, `max_turn_requests`, refusal or cancelled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acp_stop_reason: Option<String>,
    /// The text of all `agent_message_chunk` updates; truncated if long, the transcript has all of it.
    pub message: String,
    /// True if `message` was truncated.
    pub message_truncated: bool,
    /// The folder in which the agent worked.
    pub workspace: ResultWorkspace,
    /// Rollback of the workspace, if any.
    pub rollback: ResultRollback,
    /// The version of the automation contract; present with `githubAutomation`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub github_automation_version: Option<String>,
    /// The stable error code; present with `stopReason: error`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<ErrorCode>)]
    pub error_code: Option<String>,
    /// True if a fresh agent got the previous conversation as context ahead of the prompt.
    pub context_injected: bool,
    /// True if the agent reported tokens.
    pub usage_known: bool,
    /// Durations of the turn's phases, in milliseconds.
    pub timings: ResultTimings,
}

/// The folder in which the agent worked.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ResultWorkspace {
    /// Absolute path in the runtime.
    pub path: String,
    /// True if the folder is removed with its last session.
    pub is_ephemeral: bool,
}

/// Rollback of the workspace, if any.
#[derive(Debug, Clone, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ResultRollback {
    /// True if turns use HTTP.
    pub active: bool,
    /// The reason for the rollback, as a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Trigger of the rollback.
    #[schema(value_type = Option<FlipTrigger>)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trigger: Option<String>,
}

/// Durations of a turn, in milliseconds with three decimals.
#[derive(Debug, Clone, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ResultTimings {
    /// From acceptance until the prompt was sent to the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queued_ms: Option<f64>,
    /// From acceptance until the first update.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_update_ms: Option<f64>,
    /// From acceptance until the end.
    pub total_ms: f64,
    /// Number of updates of the agent.
    pub updates: u64,
}

/// A warning or error of a turn.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ResultDiagnostic {
    /// Severity of the diagnostic: `debug`, `info`, `warn` or `error`.
    pub severity: Severity,
    /// Description of the event, in one sentence.
    pub message: String,
    /// Additional data about the event, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<serde_json::Value>)]
    pub context: Option<serde_json::Value>,
}

/// The largest result, in bytes: under 32 KB.
pub(crate) const MAX_RESULT_BYTES: usize = 32_000;

/// Facts of a result beside the course of its turn.
#[derive(Debug)]
pub(crate) struct TurnFacts {
    /// Id of the session.
    pub session_id: SessionId,
    /// Id of the turn.
    pub prompt_id: PromptId,
    /// Protocol that carried the turn.
    pub protocol: Route,
    /// Route of the workspace at the start of the turn.
    pub route: Route,
    /// The negotiated ACP version.
    pub protocol_version: Option<u16>,
    /// The folder in which the agent worked.
    pub workspace: ResultWorkspace,
    /// Rollback of the workspace, if any.
    pub rollback: ResultRollback,
    /// True if a fresh agent got the previous conversation as context.
    pub context_injected: bool,
    /// Outcome of GitHub automation.
    pub automation: Option<GithubAutomation>,
}

impl ACPSessionResult {
    /// The result of a turn over any route. Takes message and diagnostics out of `progress`.
    pub(crate) fn of_turn(
        progress: &mut TurnProgress,
        outcome: &TurnOutcome,
        facts: TurnFacts,
        now: Timestamp,
    ) -> Self {
        let (stop_reason, acp_stop_reason, error_code) = match outcome {
            TurnOutcome::Completed(reason) => {
                if !progress.has_output {
                    // Some agents swallow an error of their provider.
                    progress.remark(Severity::Warn, "the agent ended the turn without output");
                }
                (ResultStopReason::Completed, Some(stop_reason_name(*reason)), None)
            }
            TurnOutcome::Cancelled { confirmed } => {
                if !confirmed {
                    let message =
                        "the agent did not confirm the cancel and was killed; the next turn gets a fresh agent";
                    progress.remark(Severity::Warn, message);
                }
                (ResultStopReason::Cancelled, confirmed.then_some("cancelled"), None)
            }
            TurnOutcome::Failed(failure) => {
                progress.remark(Severity::Error, &failure.detail);
                (ResultStopReason::Error, None, Some(failure.code.as_str().to_owned()))
            }
        };
        let since = |at: Option<Timestamp>| at.map(|at| milliseconds(at.since(progress.accepted_at)));
        let usage = progress.usage;
        let version = facts.automation.as_ref().map(|_| GITHUB_AUTOMATION_VERSION);
        Self {
            github_automation: facts.automation,
            stop_reason,
            usage: usage.map_or_else(ResultUsage::default, |usage| ResultUsage {
                input_tokens: usage.input_tokens,
                output_tokens: usage.output_tokens,
            }),
            meta: Some(ResultMeta {
                session_id: facts.session_id.to_string(),
                prompt_id: facts.prompt_id.to_string(),
                protocol: facts.protocol.as_str().to_owned(),
                route: facts.route.as_str().to_owned(),
                protocol_version: facts.protocol_version,
                acp_stop_reason: acp_stop_reason.map(str::to_owned),
                workspace: facts.workspace,
                rollback: facts.rollback,
                github_automation_version: version.map(str::to_owned),
                error_code,
                context_injected: facts.context_injected,
                usage_known: usage.is_some(),
                timings: ResultTimings {
                    queued_ms: since(progress.sent_at),
                    first_update_ms: since(progress.first_update_at),
                    total_ms: milliseconds(now.since(progress.accepted_at)),
                    updates: progress.updates,
                },
                message_truncated: progress.message_cut,
                message: std::mem::take(&mut progress.message),
            }),
            diagnostics: std::mem::take(&mut progress.diagnostics)
                .into_iter()
                .map(|it| ResultDiagnostic { severity: it.severity, message: it.message, context: it.context })
                .collect(),
        }
    }

    /// Adds a remark of the service.
    pub(crate) fn remark(&mut self, severity: Severity, message: &str) {
        if self.diagnostics.len() < MAX_DIAGNOSTICS {
            self.diagnostics.push(ResultDiagnostic { severity, message: message.to_owned(), context: None });
        }
    }

    /// The result of the whole turn, after the automation that followed its agent.
    pub(crate) fn closed(mut self, automation: Option<GithubAutomation>, is_cancelled: bool, took: Duration) -> Self {
        if is_cancelled {
            self.stop_reason = ResultStopReason::Cancelled;
        }
        if let Some(meta) = &mut self.meta {
            meta.github_automation_version = automation.as_ref().map(|_| GITHUB_AUTOMATION_VERSION.to_owned());
            meta.timings.total_ms = milliseconds(took);
        }
        self.github_automation = automation;
        self
    }

    /// The result as it is persisted and answered, so that a repeat of the answer equals the first. The texts are redacted
    /// before they are truncated: a half of a secret is not recognised.
    pub(crate) fn into_redacted_json(mut self) -> RedactedJson {
        if let Some(meta) = &mut self.meta {
            if meta.message_truncated {
                // The line that the cut interrupts may end with a half of a secret.
                let kept = meta.message.len() - text::last_line(&meta.message).len();
                meta.message.truncate(kept);
            }
            meta.message = Redacted::new(&meta.message).into_string();
        }
        for diagnostic in &mut self.diagnostics {
            diagnostic.message = Redacted::new(&diagnostic.message).into_string();
        }
        RedactedJson::new(&self.into_bounded_json())
    }

    /// Serialises within [`MAX_RESULT_BYTES`]: drops diagnostics from the end, then truncates the message and sets
    /// `messageTruncated`.
    pub(crate) fn into_bounded_json(mut self) -> Box<RawValue> {
        self.diagnostics.truncate(MAX_DIAGNOSTICS);
        loop {
            let json = serde_json::value::to_raw_value(&self)
                .unwrap_or_else(|cause| unreachable!("our own types serialise: {cause}"));
            let size = json.get().len();
            if size <= MAX_RESULT_BYTES {
                return json;
            }
            let over = size - MAX_RESULT_BYTES;
            if !self.diagnostics.is_empty() {
                let keep = self.diagnostics.len() / 2;
                self.diagnostics.truncate(keep);
            } else if let Some(meta) = self.meta.as_mut().filter(|meta| !meta.message.is_empty()) {
                // Escapes make JSON longer than text, so cutting by the excess converges.
                let keep = meta.message.len().saturating_sub(over.max(64));
                let keep = meta.message.floor_char_boundary(keep);
                meta.message.truncate(keep);
                meta.message_truncated = true;
            } else {
                return json;
            }
        }
    }
}

/// Returns the duration in milliseconds, rounded to three decimals.
fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_stays_within_its_bound() {
        let diagnostic = ResultDiagnostic { severity: Severity::Warn, message: "\u{1}".repeat(300), context: None };
        let result = ACPSessionResult {
            stop_reason: ResultStopReason::Completed,
            usage: ResultUsage::default(),
            github_automation: None,
            meta: Some(ResultMeta {
                session_id: String::new(),
                prompt_id: String::new(),
                protocol: "acp".into(),
                route: "acp".into(),
                protocol_version: Some(1),
                acp_stop_reason: None,
                message: "\u{1}".repeat(16 * 1024),
                message_truncated: false,
                workspace: ResultWorkspace { path: "/w".into(), is_ephemeral: false },
                rollback: ResultRollback::default(),
                github_automation_version: None,
                error_code: None,
                context_injected: false,
                usage_known: false,
                timings: ResultTimings::default(),
            }),
            diagnostics: vec![diagnostic; 200],
        };
        let json = result.into_bounded_json();
        assert!(json.get().len() <= MAX_RESULT_BYTES);
        let back: ACPSessionResult = serde_json::from_str(json.get()).unwrap();
        assert!(back.meta.unwrap().message_truncated);
    }
}
