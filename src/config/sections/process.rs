//! Settings of the process itself: how it stops, and what it says.

use serde::{Deserialize, Serialize};

/// `[drain]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Drain {
    /// How long running turns may go on after SIGTERM, in seconds, before they are cancelled. Below the
    /// 30 s that Kubernetes waits.
    pub timeout_s: u64,
}

impl Default for Drain {
    fn default() -> Self {
        Self { timeout_s: 20 }
    }
}

/// `[log]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Log {
    /// `json` (one object a line) or `text`.
    pub format: LogFormat,
    /// A level, or a filter such as `info,lumilink=debug`.
    pub level: String,
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Json, level: "info".into() }
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}
