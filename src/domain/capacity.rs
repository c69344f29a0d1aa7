//! Seats of sessions, their admission, and the alerts about capacity.
//!
//! A session has a seat from its admission until its agent has exited. A new session is refused without a free seat. A
//! returning one is always admitted, so that more seats than the limit may be taken.

use std::{collections::HashMap, time::Duration};

use super::{clock::Timestamp, ids::InstallationId, share::FULL_BP, words::words};

/// The limits and thresholds of seats (`[capacity]`). Shares are in basis points of the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CapacityRules {
    pub limit: usize,
    /// The share that one tenant may take; at least one seat.
    pub tenant_share_bp: u32,
    /// The share that raises a warning.
    pub warn_bp: u32,
    /// The share that raises a critical alert.
    pub critical_bp: u32,
    /// The share below which alerts are resolved; with 0 they never are.
    pub resolve_bp: u32,
    /// Time for which the share must stay below `resolve_bp` without interruption.
    pub resolve_after: Duration,
}

impl CapacityRules {
    /// Seats that one tenant may take: the share rounded down, at least 1.
    pub(crate) fn tenant_limit(&self) -> usize {
        let seats = self.limit as u128 * u128::from(self.tenant_share_bp) / u128::from(FULL_BP);
        usize::try_from(seats).unwrap_or(self.limit).max(1)
    }

    fn threshold_bp(&self, level: AlertLevel) -> u32 {
        match level {
            AlertLevel::Warning => self.warn_bp,
            AlertLevel::Critical => self.critical_bp,
        }
    }
}

/// True if `taken` of `limit` is at least this share. Whole numbers, so that thresholds are exact.
fn reaches(taken: usize, limit: usize, share_bp: u32) -> bool {
    taken as u128 * u128::from(FULL_BP) >= limit as u128 * u128::from(share_bp)
}

/// Taken and available seats of the service and of one tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SeatFigures {
    pub taken: usize,
    pub limit: usize,
    pub tenant_taken: usize,
    pub tenant_limit: usize,
}

/// The limit that caused a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SeatBound {
    /// The limit of the whole service.
    Service,
    Tenant,
}

/// The refusal of a seat, with the figures at that time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refused {
    pub bound: SeatBound,
    pub figures: SeatFigures,
}

/// Observation of the seats. The peak covers the time since the previous observation, so that no short rise is missed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SeatsSeen {
    pub taken: usize,
    /// The most seats taken since the previous observation, that one included.
    pub peak: usize,
}

/// The taken seats by tenant. Constant time per operation unless stated; one entry for each tenant with a seat.
#[derive(Debug)]
pub(crate) struct Seats {
    rules: CapacityRules,
    taken: usize,
    peak: usize,
    by_tenant: HashMap<InstallationId, usize>,
}

impl Seats {
    pub(crate) fn new(rules: CapacityRules) -> Self {
        Self { rules, taken: 0, peak: 0, by_tenant: HashMap::new() }
    }

    /// Takes a seat for a new session.
    ///
    /// # Errors
    /// If the service or the tenant has no free seat.
    pub(crate) fn admit(&mut self, tenant: &InstallationId) -> Result<(), Refused> {
        let figures = self.figures(tenant);
        if figures.taken >= figures.limit {
            return Err(Refused { bound: SeatBound::Service, figures });
        }
        if figures.tenant_taken >= figures.tenant_limit {
            return Err(Refused { bound: SeatBound::Tenant, figures });
        }
        self.admit_returning(tenant);
        Ok(())
    }

    /// Takes a seat for a returning session, even beyond the limits.
    pub(crate) fn admit_returning(&mut self, tenant: &InstallationId) {
        self.taken += 1;
        self.peak = self.peak.max(self.taken);
        match self.by_tenant.get_mut(tenant) {
            Some(seats) => *seats += 1,
            None => drop(self.by_tenant.insert(tenant.clone(), 1)),
        }
    }

    /// Releases one of the tenant's seats; ignored if the tenant has none.
    pub(crate) fn give_back(&mut self, tenant: &InstallationId) {
        let Some(seats) = self.by_tenant.get_mut(tenant) else { return };
        self.taken -= 1;
        *seats -= 1;
        if *seats == 0 {
            self.by_tenant.remove(tenant);
        }
    }

    pub(crate) fn taken(&self) -> usize {
        self.taken
    }

    pub(crate) fn figures(&self, tenant: &InstallationId) -> SeatFigures {
        SeatFigures {
            taken: self.taken,
            limit: self.rules.limit,
            tenant_taken: self.by_tenant.get(tenant).copied().unwrap_or(0),
            tenant_limit: self.rules.tenant_limit(),
        }
    }

    /// Observes the seats and restarts the peak.
    pub(crate) fn look(&mut self) -> SeatsSeen {
        let peak = std::mem::replace(&mut self.peak, self.taken);
        SeatsSeen { taken: self.taken, peak }
    }

    /// The tenants that have taken at least `warn_bp` of their own limit, with their seats; most seats first, at most
    /// `most`. Takes O(n log n) time for n tenants.
    pub(crate) fn near_their_share(&self, most: usize) -> Vec<(InstallationId, usize)> {
        let limit = self.rules.tenant_limit();
        let near = self.by_tenant.iter().filter(|(_, seats)| reaches(**seats, limit, self.rules.warn_bp));
        let mut near: Vec<_> = near.map(|(tenant, seats)| (tenant.clone(), *seats)).collect();
        near.sort_unstable_by(|(a, more), (b, less)| less.cmp(more).then_with(|| a.cmp(b)));
        near.truncate(most);
        near
    }
}

words! {
    /// Severity of a capacity alert.
    #[derive(PartialOrd, Ord)]
    AlertLevel {
        /// The taken seats have reached the warning threshold.
        Warning = "warning",
        /// The limit is nearly reached.
        Critical = "critical",
    }
}

words! {
    /// Outcome of a level of an alert.
    AlertKind {
        /// The level was raised.
        Raised = "raised",
        /// The level was resolved, together with every other open level.
        Resolved = "resolved",
    }
}

/// One change of an alert; each is a row, a log message and a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CapacityChange {
    pub level: AlertLevel,
    pub kind: AlertKind,
    /// Seats taken at a resolution; the peak at a raise.
    pub taken: usize,
    pub limit: usize,
}

/// The capacity alert of the service. It is raised as a warning, may become critical, and is resolved as a whole: no level
/// is raised again before it was resolved.
#[derive(Debug)]
pub(crate) struct CapacityAlerts {
    rules: CapacityRules,
    /// The highest open level; lower ones are open too.
    open: Option<AlertLevel>,
    /// The first observation of the current time below `resolve_bp`.
    calm_since: Option<Timestamp>,
}

impl CapacityAlerts {
    /// Resumes an alert of an earlier process with its highest open level; the time until it is resolved starts again.
    pub(crate) fn new(rules: CapacityRules, open: Option<AlertLevel>) -> Self {
        Self { rules, open, calm_since: None }
    }

    #[cfg(test)]
    pub(crate) fn level(&self) -> Option<AlertLevel> {
        self.open
    }

    /// The time at which the alert is resolved if the seats stay below `resolve_bp`; `None` without such an alert.
    pub(crate) fn resolves_at(&self) -> Option<Timestamp> {
        self.open.and(self.calm_since).map(|since| since.plus(self.rules.resolve_after))
    }

    /// Applies an observation at `now`, which must not decrease, and returns the changes in order. A late observation only
    /// delays them: no alert is missed, and none is resolved too early.
    pub(crate) fn observe(&mut self, seen: SeatsSeen, now: Timestamp) -> Vec<CapacityChange> {
        let limit = self.rules.limit;
        let mut changes = Vec::new();
        for level in AlertLevel::ALL {
            if self.open < Some(level) && reaches(seen.peak, limit, self.rules.threshold_bp(level)) {
                self.open = Some(level);
                changes.push(CapacityChange { level, kind: AlertKind::Raised, taken: seen.peak, limit });
            }
        }
        if reaches(seen.peak, limit, self.rules.resolve_bp) {
            self.calm_since = None;
        }
        if self.open.is_none() || reaches(seen.taken, limit, self.rules.resolve_bp) {
            return changes;
        }
        let since = *self.calm_since.get_or_insert(now);
        if now.since(since) >= self.rules.resolve_after {
            let over = AlertLevel::ALL.into_iter().rev().filter(|level| Some(*level) <= self.open);
            let kind = AlertKind::Resolved;
            changes.extend(over.map(|level| CapacityChange { level, kind, taken: seen.taken, limit }));
            (self.open, self.calm_since) = (None, None);
        }
        changes
    }
}

#[cfg(test)]
mod tests;
