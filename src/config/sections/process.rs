//! `[drain]` and `[log]`: how the process stops, and how it logs.

use serde::{Deserialize, Serialize};

use super::check::Check;

/// Stop of the service.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Drain {
    /// Time for which running turns may continue after SIGTERM before they are cancelled, in seconds. The default is
    /// below the 30 s that Kubernetes waits.
    pub timeout_s: u64,
}

impl Default for Drain {
    fn default() -> Self {
        Self { timeout_s: 20 }
    }
}

impl Drain {
    pub(super) fn validate(&self, check: &mut Check<'_>) {
        check.seconds_or_0("drain.timeout_s", self.timeout_s);
    }
}

/// Log of the service, on standard error.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Log {
    /// `json` (one object per line) or `text`, for people.
    pub format: LogFormat,
    /// `off`, `error`, `warn`, `info`, `debug`, `trace`, or a filter such as `info,lumilink=debug`. Libraries log from `info` up
    /// only.
    pub level: String,
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Json, level: "info".into() }
    }
}

impl Log {
    pub(super) fn validate(&self, check: &mut Check<'_>) {
        let level = &self.level;
        let fine = tracing_subscriber::EnvFilter::builder().parse(level).is_ok() && !level.trim().is_empty();
        let what = format!(
            "is {level:?}, must be off, error, warn, info, debug, trace, or a filter such as info,lumilink=debug"
        );
        check.require(fine, "log.level", what);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    Json,
    Text,
}
