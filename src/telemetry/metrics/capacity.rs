//! Metrics of seats and of capacity alerts.

use prometheus::{IntCounter, IntGauge};

use super::family::{Family, Maker};
use crate::{
    domain::capacity::{AlertLevel, CapacityChange, SeatBound},
    telemetry::labels::{AlertChange, Seats},
};

#[derive(Debug)]
pub(crate) struct CapacityMetrics {
    seats: Family<Seats, IntGauge>,
    alerts: Family<AlertLevel, IntGauge>,
    changes: Family<AlertChange, IntCounter>,
    refused: Family<SeatBound, IntCounter>,
}

impl CapacityMetrics {
    pub(crate) fn new(make: &Maker<'_>) -> prometheus::Result<Self> {
        Ok(Self {
            seats: make.gauges(
                "lumilink_capacity_seats",
                "Seats of sessions: taken, and the limit for new sessions.",
                &["state"],
            )?,
            alerts: make.gauges(
                "lumilink_capacity_alerts",
                "1 while a capacity alert of this level is open.",
                &["level"],
            )?,
            changes: make.counters(
                "lumilink_capacity_alert_changes_total",
                "Capacity alerts raised and resolved.",
                &["level", "kind"],
            )?,
            refused: make.counters(
                "lumilink_capacity_refused_total",
                "New sessions refused because no seat was free in the service or in the tenant's share.",
                &["reason"],
            )?,
        })
    }

    pub(crate) fn limit(&self, seats: usize) {
        set(&self.seats, Seats::Limit, seats);
    }

    pub(crate) fn taken(&self, seats: usize) {
        set(&self.seats, Seats::Taken, seats);
    }

    /// A new session was refused.
    pub(crate) fn refused(&self, bound: SeatBound) {
        self.refused.add(bound, 1);
    }

    /// Sets the highest open level; lower levels are open too.
    pub(crate) fn open(&self, highest: Option<AlertLevel>) {
        for level in AlertLevel::ALL {
            set(&self.alerts, level, usize::from(Some(level) <= highest));
        }
    }

    /// An alert was raised or resolved.
    pub(crate) fn changed(&self, change: &CapacityChange) {
        self.changes.add(AlertChange { level: change.level, kind: change.kind }, 1);
    }
}

fn set<L: crate::telemetry::labels::Label>(gauges: &Family<L, IntGauge>, label: L, value: usize) {
    if let Some(gauge) = gauges.get(label) {
        gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
    }
}
