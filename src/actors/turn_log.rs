//! The lines that a turn leaves in the log.

use std::time::Duration;

use super::handles::session::SessionSpec;
use crate::domain::{
    automation::skip::{SkipDetail, SkipReason},
    ids::{PromptId, SessionId},
    redaction::Redacted,
    routing::Route,
    turn::TurnOutcome,
};

/// A turn ended.
pub fn ended(
    spec: &SessionSpec,
    prompt_id: PromptId,
    outcome: &TurnOutcome,
    carried: Route,
    updates: u64,
    took: Duration,
) {
    let duration_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    match outcome {
        TurnOutcome::Failed(failure) => tracing::warn!(
            marker = "[ACP]",
            session_id = %spec.session_id,
            prompt_id = %prompt_id,
            workspace = %spec.workspace,
            outcome = outcome.label(),
            protocol = carried.as_str(),
            error_code = failure.code.as_str(),
            error_class = failure.code.class().as_str(),
            detail = %Redacted::new(&failure.detail),
            updates,
            duration_ms,
            "turn ended"
        ),
        _ => tracing::info!(
            marker = "[ACP]",
            session_id = %spec.session_id,
            prompt_id = %prompt_id,
            workspace = %spec.workspace,
            outcome = outcome.label(),
            protocol = carried.as_str(),
            updates,
            duration_ms,
            "turn ended"
        ),
    }
}

/// Its changes were left where they are, which is on disk.
pub fn left_out(session_id: SessionId, prompt_id: PromptId, (reason, detail): (SkipReason, Option<SkipDetail>)) {
    let (reason, detail) = (reason.as_str(), detail.map(SkipDetail::as_str));
    tracing::info!(marker = "[GITHUB-AUTO]", %session_id, %prompt_id, reason, detail, "automation was left out");
}
