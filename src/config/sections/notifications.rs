//! `[notifications]`: WebSockets that read notifications.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::check::{Check, MAX_SECONDS};

/// The longest that a ticket is valid, in seconds.
const MAX_TICKET_S: u64 = 300;

/// WebSockets that read notifications.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Notifications {
    /// WebSockets that are open at the same time. Each takes a file descriptor and 10 to 18 KB.
    pub max_subscribers: usize,
    /// Time for which a ticket can be used to open a WebSocket, in seconds, 1 to 300.
    pub ticket_ttl_s: u64,
    /// Longest life of a WebSocket that a browser page opened with a ticket, or with the token as subprotocol, in
    /// seconds, 1 or more. Then the page needs a new ticket. The default is a working day.
    pub ticket_session_s: u64,
}

impl Default for Notifications {
    fn default() -> Self {
        Self { max_subscribers: 20_000, ticket_ttl_s: 30, ticket_session_s: 43_200 }
    }
}

impl Notifications {
    pub(crate) fn ticket_ttl(&self) -> Duration {
        Duration::from_secs(self.ticket_ttl_s)
    }

    pub(crate) fn ticket_session(&self) -> Duration {
        Duration::from_secs(self.ticket_session_s)
    }

    pub(super) fn validate(&self, check: &mut Check<'_>) {
        check.range_of("notifications.ticket_ttl_s", self.ticket_ttl_s, 1..=MAX_TICKET_S, " seconds");
        check.range_of("notifications.ticket_session_s", self.ticket_session_s, 1..=MAX_SECONDS, " seconds");
    }
}
