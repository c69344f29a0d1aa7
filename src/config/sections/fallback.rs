//! Settings of what watches ACP, what takes its place, and what is kept about it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::domain::{
    capacity::CapacityRules,
    routing::{
        RecoveryRules,
        success_window::{WindowRule, WindowRules},
    },
};

/// `[window]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Window {
    /// How far back a workspace's success rate looks, in seconds (mission: an hour).
    pub length_s: u64,
    /// How exactly, in seconds (mission: 360 buckets of 10 s).
    pub bucket_s: u64,
    /// Outcomes under which the rate says nothing.
    pub min_samples: u64,
    /// Failures under which it says nothing.
    pub min_failures: u64,
    /// The lowest success rate that is well, in hundredths of a percent (mission: 99 %).
    pub threshold_bp: u32,
    /// `literal` or `confident`.
    pub rule: WindowRule,
}

impl Default for Window {
    fn default() -> Self {
        Self {
            length_s: 3600,
            bucket_s: 10,
            min_samples: 20,
            min_failures: 1,
            threshold_bp: 9900,
            rule: WindowRule::default(),
        }
    }
}

impl Window {
    /// The rules of the domain.
    pub(crate) fn rules(&self) -> WindowRules {
        WindowRules {
            length: Duration::from_secs(self.length_s),
            bucket: Duration::from_secs(self.bucket_s),
            min_samples: self.min_samples,
            min_failures: self.min_failures,
            threshold_bp: self.threshold_bp,
            rule: self.rule,
        }
    }
}

/// `[recovery]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Recovery {
    /// From a rollback to the first probe, in seconds; doubles with each failed try (mission: 60).
    pub cooldown_s: u64,
    /// The longest of these, in seconds (mission: 30 minutes).
    pub max_cooldown_s: u64,
    /// How far a cool-down may be off its mark, in hundredths of a percent (mission: 20 %): a fleet that fell
    /// together does not come back together.
    pub jitter_bp: u32,
    /// How long a probe may take, in seconds: a handshake, and the start of an agent.
    pub probe_timeout_s: u64,
    /// The shares of turns that go over ACP while it is tried, in hundredths of a percent (mission: 5, 25, 50, 100 %).
    pub canary_steps_bp: Vec<u32>,
    /// Successful canaries after which a step is passed.
    pub close_after_successes: u32,
    /// Failures that roll back again (mission: 2) …
    pub reopen_failures: u32,
    /// … among so many turns after a restore (mission: 100).
    pub reopen_within: u32,
}

impl Default for Recovery {
    fn default() -> Self {
        Self {
            cooldown_s: 60,
            max_cooldown_s: 1800,
            jitter_bp: 2000,
            probe_timeout_s: 60,
            canary_steps_bp: vec![500, 2500, 5000, 10_000],
            close_after_successes: 3,
            reopen_failures: 2,
            reopen_within: 100,
        }
    }
}

impl Recovery {
    /// The rules of the domain.
    pub(crate) fn rules(&self) -> RecoveryRules {
        RecoveryRules {
            cooldown: Duration::from_secs(self.cooldown_s),
            max_cooldown: Duration::from_secs(self.max_cooldown_s),
            jitter_bp: self.jitter_bp,
            probe_timeout: Duration::from_secs(self.probe_timeout_s),
            canary_steps_bp: self.canary_steps_bp.clone(),
            close_after_successes: self.close_after_successes,
            reopen_failures: self.reopen_failures,
            reopen_within: self.reopen_within,
        }
    }
}

/// `[capacity]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Capacity {
    /// Sessions with a seat (an agent process or its start) in this supervisor (mission: 1,000).
    pub max_sessions: usize,
    /// The share of seats that one tenant may take, in hundredths of a percent.
    pub tenant_share_bp: u32,
    /// The share of taken seats that raises a warning (mission: 85 %).
    pub warn_bp: u32,
    /// The share that raises a critical alert (mission: 95 %).
    pub critical_bp: u32,
    /// The share under which alerts are resolved (mission: 70 %) …
    pub resolve_bp: u32,
    /// … once it has been so for this many seconds without a break (mission: five minutes).
    pub resolve_after_s: u64,
}

impl Default for Capacity {
    fn default() -> Self {
        Self {
            max_sessions: 1000,
            tenant_share_bp: 10_000,
            warn_bp: 8500,
            critical_bp: 9500,
            resolve_bp: 7000,
            resolve_after_s: 300,
        }
    }
}

impl Capacity {
    /// The rules of the domain.
    pub(crate) fn rules(&self) -> CapacityRules {
        CapacityRules {
            limit: self.max_sessions,
            tenant_share_bp: self.tenant_share_bp,
            warn_bp: self.warn_bp,
            critical_bp: self.critical_bp,
            resolve_bp: self.resolve_bp,
            resolve_after: Duration::from_secs(self.resolve_after_s),
        }
    }
}

/// `[migration]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Migration {
    /// How often workspaces are looked for that are to be moved to ACP by themselves, in seconds.
    pub auto_look_s: u64,
}

impl Default for Migration {
    fn default() -> Self {
        Self { auto_look_s: 60 }
    }
}

impl Migration {
    /// [`Self::auto_look_s`].
    pub(crate) fn auto_look(&self) -> Duration {
        Duration::from_secs(self.auto_look_s)
    }
}

/// `[retention]`: days after which rows are removed; 0 keeps them.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Retention {
    /// Handshakes and what became of their connections; there is one for each start of an agent.
    pub connections_days: u64,
    /// Flips, migrations and rollback events.
    pub migrations_days: u64,
    /// Alerts of capacity.
    pub capacity_alerts_days: u64,
    /// What became of GitHub automation.
    pub automation_runs_days: u64,
    /// Toasts that were delivered.
    pub notifications_days: u64,
}

impl Default for Retention {
    fn default() -> Self {
        // A year and a month, so that a yearly review finds the year before.
        Self {
            connections_days: 90,
            migrations_days: 400,
            capacity_alerts_days: 400,
            automation_runs_days: 400,
            notifications_days: 90,
        }
    }
}
