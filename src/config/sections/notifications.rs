//! Settings of what tells people and operators.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// `[notifications]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Notifications {
    /// WebSockets that may read toasts at the same time; each takes a file descriptor and some kilobytes.
    pub max_subscribers: usize,
    /// How long a ticket may be used to open one, in seconds (issue: 30).
    pub ticket_ttl_s: u64,
    /// How long one may stay open that a page opened, with a ticket or a token, in seconds; then it has to show anew that
    /// it may.
    pub ticket_session_s: u64,
}

impl Default for Notifications {
    fn default() -> Self {
        // A working day.
        Self { max_subscribers: 20_000, ticket_ttl_s: 30, ticket_session_s: 43_200 }
    }
}

impl Notifications {
    /// [`Self::ticket_ttl_s`].
    pub(crate) fn ticket_ttl(&self) -> Duration {
        Duration::from_secs(self.ticket_ttl_s)
    }

    /// [`Self::ticket_session_s`].
    pub(crate) fn ticket_session(&self) -> Duration {
        Duration::from_secs(self.ticket_session_s)
    }
}
