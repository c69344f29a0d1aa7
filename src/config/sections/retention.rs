//! `[retention]`: for how long records are kept.

use serde::{Deserialize, Serialize};

/// Days after which records are removed; 0 keeps them.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Retention {
    /// Handshakes and the state of their connections: one record for each start of an agent.
    pub connections_days: u64,
    /// Flips, migrations and rollback events. A year and a month, so that a yearly review finds the year before.
    pub migrations_days: u64,
    /// Alerts of capacity. A year and a month.
    pub capacity_alerts_days: u64,
    /// Runs of GitHub automation. A year and a month.
    pub automation_runs_days: u64,
    /// Notifications and their webhook deliveries. An older cursor is reset.
    pub notifications_days: u64,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            connections_days: 90,
            migrations_days: 400,
            capacity_alerts_days: 400,
            automation_runs_days: 400,
            notifications_days: 90,
        }
    }
}
