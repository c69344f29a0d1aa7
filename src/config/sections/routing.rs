//! `[window]`, `[recovery]` and `[migration]`: when a workspace leaves ACP for the fallback, and how it returns.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::check::{Check, MAX_SECONDS};
use crate::domain::routing::{
    RecoveryRules,
    success_window::{WindowRule, WindowRules},
};
use crate::domain::share::FULL_BP;

/// The most buckets of a window; each takes 24 bytes per workspace.
const MAX_BUCKETS: u64 = 1440;
/// The most steps of a canary.
const MAX_STEPS: usize = 16;

/// The success window of a workspace: the outcomes of its turns and handshakes over ACP. When they fail too often, the
/// workspace is rolled back to the HTTP fallback.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Window {
    /// Length of the window, in seconds: a whole number of `bucket_s`, at most 1,440 of them.
    pub length_s: u64,
    /// Resolution of the window, in seconds, 1 or more: outcomes are counted in buckets of this length.
    pub bucket_s: u64,
    /// Fewest outcomes for which the success rate is compared with the threshold, 1 to 1,000,000. With 5 or more, but
    /// fewer than this, a workspace is rolled back when half of them failed.
    pub min_samples: u64,
    /// Fewest failures in the window that can roll a workspace back, whatever the rate, 1 to 1,000,000.
    pub min_failures: u64,
    /// The lowest healthy success rate, in hundredths of a percent, 0 to 10,000.
    pub threshold_bp: u32,
    /// `literal`: the rate alone decides. It rolls back a healthy workspace (99.5 % success, 120 turns an hour) about
    /// once a day. `confident`: rolls back only where chance is an unlikely cause and two failures came in the last 10
    /// minutes; a healthy workspace is rolled back 0.11 times a day.
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

    pub(super) fn validate(&self, check: &mut Check<'_>) {
        check.seconds("window.length_s", self.length_s);
        check.seconds("window.bucket_s", self.bucket_s);
        let buckets = self.length_s.checked_div(self.bucket_s).unwrap_or(0);
        let is_whole = self.length_s.checked_rem(self.bucket_s) == Some(0);
        let what = format!(
            "is {}, must be a whole number of buckets of {} s, at most {MAX_BUCKETS}",
            self.length_s, self.bucket_s
        );
        check.require(is_whole && buckets <= MAX_BUCKETS, "window.length_s", what);
        check.share("window.threshold_bp", self.threshold_bp);
        check.range("window.min_samples", self.min_samples, 1..=1_000_000);
        check.range("window.min_failures", self.min_failures, 1..=1_000_000);
    }
}

/// Return of a workspace from the fallback to ACP.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Recovery {
    /// Time from a rollback to the first probe, in seconds, 0 to `max_cooldown_s`; doubles with each failed attempt.
    pub cooldown_s: u64,
    /// The longest cool-down, in seconds.
    pub max_cooldown_s: u64,
    /// Random deviation of a cool-down, in hundredths of a percent, 0 to 10,000: workspaces that rolled back together
    /// do not return together.
    pub jitter_bp: u32,
    /// Time limit for a probe, in seconds, 1 or more. A probe is a handshake, which starts an agent.
    pub probe_timeout_s: u64,
    /// Shares of turns that use ACP during the canary phase, in hundredths of a percent: 1 to 16 rising values from 1
    /// to 10,000. 500 means every 20th turn.
    pub canary_steps_bp: Vec<u32>,
    /// Successful canary turns that complete a step, 1 to 1,000,000.
    pub close_after_successes: u32,
    /// Failures in the first `reopen_within` turns after a restore that roll the workspace back again, 1 to 1,000,000.
    pub reopen_failures: u32,
    /// Turns after a restore in which `reopen_failures` are counted, 1 to 1,000,000.
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

    pub(super) fn validate(&self, check: &mut Check<'_>) {
        let most = self.max_cooldown_s;
        let fine = self.cooldown_s <= most && most <= MAX_SECONDS;
        let what = format!("is {}, must be 0 to recovery.max_cooldown_s ({most})", self.cooldown_s);
        check.require(fine, "recovery.cooldown_s", what);
        check.share("recovery.jitter_bp", self.jitter_bp);
        check.seconds("recovery.probe_timeout_s", self.probe_timeout_s);
        let steps = &self.canary_steps_bp;
        let rises = steps.iter().all(|step| (1..=FULL_BP).contains(step)) && steps.is_sorted();
        let what = format!("is {steps:?}, must be 1 to {MAX_STEPS} rising shares from 1 to {FULL_BP}");
        check.require(rises && (1..=MAX_STEPS).contains(&steps.len()), "recovery.canary_steps_bp", what);
        for (setting, value) in [
            ("recovery.close_after_successes", self.close_after_successes),
            ("recovery.reopen_failures", self.reopen_failures),
            ("recovery.reopen_within", self.reopen_within),
        ] {
            check.range(setting, value, 1..=1_000_000);
        }
    }
}

/// Moves of fleets of workspaces to another default route.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Migration {
    /// Interval at which the service looks for workspaces to move to ACP automatically, in seconds, 1 or more.
    pub auto_look_s: u64,
}

impl Default for Migration {
    fn default() -> Self {
        Self { auto_look_s: 60 }
    }
}

impl Migration {
    pub(crate) fn auto_look(&self) -> Duration {
        Duration::from_secs(self.auto_look_s)
    }

    pub(super) fn validate(&self, check: &mut Check<'_>) {
        check.seconds("migration.auto_look_s", self.auto_look_s);
    }
}
