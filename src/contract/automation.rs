//! What GitHub automation and its notices look like: part of the result's contract from the first version
//! on.

use serde::{Deserialize, Serialize};

/// Outcome of the automation of one turn.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GithubAutomation {
    /// What became of it.
    pub status: AutomationStatus,
}

/// What became of the automation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum AutomationStatus {
    /// Done.
    Success,
    /// Left out on purpose.
    Skipped,
    /// Failed.
    Error,
}
