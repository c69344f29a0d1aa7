//! Seats, who may have one, and the alerts that tell how near to its limit the service is.
//!
//! A session has a seat from its admission until its agent is gone. A new one is refused where there is none left; one
//! that comes back never is, so more may be taken than there are.

use std::{collections::HashMap, time::Duration};

use super::{clock::Timestamp, ids::InstallationId, share::FULL_BP, words::words};

/// The numbers (`[capacity]`). Shares are hundredths of a percent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CapacityRules {
    /// Seats there are.
    pub limit: usize,
    /// The share of them that one tenant may take; where that is less than a seat, it is one.
    pub tenant_share_bp: u32,
    /// The share that raises a warning …
    pub warn_bp: u32,
    /// … and the one that raises a critical alert.
    pub critical_bp: u32,
    /// The share under which alerts are resolved; 0: they never are.
    pub resolve_bp: u32,
    /// For how long it has to be so without a break.
    pub resolve_after: Duration,
}

impl CapacityRules {
    /// Seats that one tenant may take: whole ones, at least 1.
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

/// Whether `taken` of `limit` is this share or more; in whole numbers, so that an edge is where it is said to be.
fn reaches(taken: usize, limit: usize, share_bp: u32) -> bool {
    taken as u128 * u128::from(FULL_BP) >= limit as u128 * u128::from(share_bp)
}

/// What is taken of what there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SeatFigures {
    /// Seats taken.
    pub taken: usize,
    /// Seats there are.
    pub limit: usize,
    /// Those that the tenant has.
    pub tenant_taken: usize,
    /// Those that it may have.
    pub tenant_limit: usize,
}

/// Which limit a refusal is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SeatBound {
    /// That of the whole service.
    Service,
    Tenant,
}

/// A session that got no seat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refused {
    pub bound: SeatBound,
    /// The figures at that moment.
    pub figures: SeatFigures,
}

/// What happened to the number of seats since somebody looked last. However fast it went up and down again, its
/// highest point is seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SeatsSeen {
    /// Taken now.
    pub taken: usize,
    /// The most that were taken, the last time of looking included.
    pub peak: usize,
}

/// The seats and who has them. Every step takes constant time; it holds one entry for each tenant with a seat.
#[derive(Debug)]
pub(crate) struct Seats {
    rules: CapacityRules,
    taken: usize,
    peak: usize,
    by_tenant: HashMap<InstallationId, usize>,
}

impl Seats {
    /// All of them free.
    pub(crate) fn new(rules: CapacityRules) -> Self {
        Self { rules, taken: 0, peak: 0, by_tenant: HashMap::new() }
    }

    /// Takes a seat for a new session, where there is one.
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

    /// Takes a seat for a session that comes back, also where there is none left.
    pub(crate) fn admit_returning(&mut self, tenant: &InstallationId) {
        self.taken += 1;
        self.peak = self.peak.max(self.taken);
        match self.by_tenant.get_mut(tenant) {
            Some(seats) => *seats += 1,
            None => drop(self.by_tenant.insert(tenant.clone(), 1)),
        }
    }

    /// Gives one of the tenant's seats back.
    pub(crate) fn give_back(&mut self, tenant: &InstallationId) {
        let Some(seats) = self.by_tenant.get_mut(tenant) else { return };
        self.taken -= 1;
        *seats -= 1;
        if *seats == 0 {
            self.by_tenant.remove(tenant);
        }
    }

    /// Seats taken now.
    pub(crate) fn taken(&self) -> usize {
        self.taken
    }

    /// The figures as this tenant sees them.
    pub(crate) fn figures(&self, tenant: &InstallationId) -> SeatFigures {
        SeatFigures {
            taken: self.taken,
            limit: self.rules.limit,
            tenant_taken: self.by_tenant.get(tenant).copied().unwrap_or(0),
            tenant_limit: self.rules.tenant_limit(),
        }
    }

    /// What happened since the last look.
    pub(crate) fn look(&mut self) -> SeatsSeen {
        let peak = std::mem::replace(&mut self.peak, self.taken);
        SeatsSeen { taken: self.taken, peak }
    }

    /// The tenants that have taken as much of their share as raises a warning for the whole service, those with the
    /// most seats first, `most` at most. Takes time by the number of tenants.
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
    /// How bad it is.
    #[derive(PartialOrd, Ord)]
    AlertLevel {
        /// The limit is near.
        Warning = "warning",
        /// It is nearly reached.
        Critical = "critical",
    }
}

words! {
    /// Outcome of a level of an alert.
    AlertKind {
        /// It begins.
        Raised = "raised",
        /// It is over.
        Resolved = "resolved",
    }
}

/// One change of an alert; each is a row, a line of the log and a count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CapacityChange {
    /// Of which level.
    pub level: AlertLevel,
    /// Outcome of it.
    pub kind: AlertKind,
    /// Seats that were taken: the most of them where it was raised.
    pub taken: usize,
    /// Seats there were.
    pub limit: usize,
}

/// The one alert of the service. It is raised as a warning, may become critical, and is resolved as a whole: a level is
/// never raised again before it was resolved.
#[derive(Debug)]
pub(crate) struct CapacityAlerts {
    rules: CapacityRules,
    /// The highest level that is open; those below it are open too.
    open: Option<AlertLevel>,
    /// Since when it has been calm without a break, as far as anybody looked.
    calm_since: Option<Timestamp>,
}

impl CapacityAlerts {
    /// Continues where an earlier start ended: with the highest level that was open. Its calm begins anew.
    pub(crate) fn new(rules: CapacityRules, open: Option<AlertLevel>) -> Self {
        Self { rules, open, calm_since: None }
    }

    /// The highest level that is open.
    #[cfg(test)]
    pub(crate) fn level(&self) -> Option<AlertLevel> {
        self.open
    }

    /// When it will be resolved if nothing happens until then.
    pub(crate) fn resolves_at(&self) -> Option<Timestamp> {
        self.open.and(self.calm_since).map(|since| since.plus(self.rules.resolve_after))
    }

    /// Takes what was seen at `now`, which never goes back, and gives what changes by it, in order. Looking late only
    /// makes it later: no alert is missed, and none is resolved too early.
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
