//! `[capacity]`: how many sessions there may be, and when operators are alerted.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::check::Check;
use crate::domain::capacity::CapacityRules;

/// Limit of sessions, and alerts for operators.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Capacity {
    /// Seats, 1 to 1,000,000. A session holds a seat while it has an agent process or starts one. Without a free seat
    /// a new session is refused with 503; loading a session is not, and may exceed this number.
    pub max_sessions: usize,
    /// Share of the seats that one tenant may take, in hundredths of a percent, 0 to 10,000.
    pub tenant_share_bp: u32,
    /// Share of taken seats that raises a warning, in hundredths of a percent; `resolve_bp` or more.
    pub warn_bp: u32,
    /// Share of taken seats that raises a critical alert, in hundredths of a percent; `warn_bp` or more.
    pub critical_bp: u32,
    /// Share of taken seats below which alerts are resolved after `resolve_after_s`, in hundredths of a percent.
    pub resolve_bp: u32,
    /// Time for which the share must stay below `resolve_bp` without a break, in seconds.
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

    pub(super) fn validate(&self, check: &mut Check<'_>) {
        check.range("capacity.max_sessions", self.max_sessions, 1..=1_000_000);
        check.share("capacity.tenant_share_bp", self.tenant_share_bp);
        check.share("capacity.warn_bp", self.warn_bp);
        check.share("capacity.critical_bp", self.critical_bp);
        check.share("capacity.resolve_bp", self.resolve_bp);
        let rises = self.resolve_bp <= self.warn_bp && self.warn_bp <= self.critical_bp;
        check.require(rises, "capacity.warn_bp", "must be resolve_bp <= warn_bp <= critical_bp");
        check.seconds_or_0("capacity.resolve_after_s", self.resolve_after_s);
    }
}
