//! Raises and resolves capacity alerts: each change is a row, a log message, a count in the metrics, and visible in
//! health.
//!
//! The rules are in [`CapacityAlerts`]. The row comes first; while the database is unavailable, the other outputs do
//! not wait for it, and the row is written as soon as possible.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

use crate::{
    actors::{handles::capacity_guard::CapacityGuard, services::Services},
    domain::capacity::{AlertKind, AlertLevel, CapacityAlerts},
    store::{NewCapacityAlert, OpenCapacityAlert, StoreError},
};

/// Changes that wait for the database. An alert has at most four changes and is resolved at most once per `[capacity]
/// resolve_after_s`. At this limit no further change is decided; the seats remember their peak.
const MAX_PENDING: usize = 64;
/// Pause before a write is retried; it is not urgent, since the change has already been logged.
const RETRY: Duration = Duration::from_secs(1);

/// Watches the seats and raises alerts.
pub(crate) struct CapacityWatch {
    guard: CapacityGuard,
    services: Arc<Services>,
    alerts: CapacityAlerts,
    pending: VecDeque<Pending>,
    retry_at: Instant,
}

struct Pending {
    row: NewCapacityAlert,
    is_announced: bool,
}

impl CapacityWatch {
    /// Resumes the alert that was open when an earlier process ended: it is not raised again, and is resolved when
    /// due.
    ///
    /// # Errors
    /// If the database cannot be read. Safe to retry.
    pub(crate) async fn recover(guard: CapacityGuard, services: Arc<Services>) -> Result<Self, StoreError> {
        let open = services.store.open_capacity_alert().await?;
        if let Some(OpenCapacityAlert { alert_id, level, since }) = open {
            let alert = level.as_str();
            tracing::info!(marker = "[CAPACITY]", %alert_id, alert, %since, "open capacity alert recovered");
        }
        guard.set_alert(open);
        let alerts = CapacityAlerts::new(*guard.rules(), open.map(|open| open.level));
        Ok(Self { guard, services, alerts, pending: VecDeque::new(), retry_at: Instant::now() })
    }

    /// Watches until the guard is closed and every change is written.
    ///
    /// # Cancel safety
    /// Dropping the future may lose changes that are not written yet.
    pub(crate) async fn run(mut self) {
        loop {
            // Read before the check, which then sees every change before the close.
            let is_last = self.guard.is_closed();
            self.look();
            self.write().await;
            if is_last && self.pending.is_empty() {
                return;
            }
            let wakes_at = self.wakes_at();
            tokio::select! {
                () = self.guard.changed() => {}
                () = at(wakes_at) => {}
            }
        }
    }

    fn look(&mut self) {
        // Without a database the changes are not observed any more; the next look compares with the peak since the
        // last one.
        if self.pending.len() >= MAX_PENDING {
            return;
        }
        for change in self.alerts.observe(self.guard.look(), self.services.clock.steady()) {
            let now = self.services.clock.now();
            let open = self.guard.alert();
            let alert_id = open.map_or_else(Uuid::now_v7, |open| open.alert_id);
            self.guard.set_alert(match (change.kind, change.level) {
                (AlertKind::Raised, level) => {
                    Some(OpenCapacityAlert { alert_id, level, since: open.map_or(now, |open| open.since) })
                }
                // Critical is resolved first, and the warning right after it.
                (AlertKind::Resolved, AlertLevel::Critical) => {
                    open.map(|open| OpenCapacityAlert { level: AlertLevel::Warning, ..open })
                }
                (AlertKind::Resolved, AlertLevel::Warning) => None,
            });
            let event_id = Uuid::now_v7();
            let row = NewCapacityAlert { event_id, alert_id, change, installation_id: None, created: now };
            self.pending.push_back(Pending { row, is_announced: false });
        }
    }

    /// Writes pending changes in one transaction, then logs and counts them.
    async fn write(&mut self) {
        if self.pending.is_empty() || Instant::now() < self.retry_at {
            return;
        }
        let rows: Vec<_> = self.pending.iter().map(|pending| pending.row.clone()).collect();
        let written = self.services.store.add_capacity_alerts(&rows).await;
        for pending in self.pending.iter_mut().filter(|pending| !pending.is_announced) {
            log_change(&pending.row, written.is_ok());
            self.services.metrics.capacity().changed(&pending.row.change);
            // Logged and counted once, also if the write is repeated.
            pending.is_announced = true;
        }
        match written {
            Ok(()) => self.pending.clear(),
            // An internal error, which a retry does not cure.
            Err(cause @ (StoreError::Conflict(_) | StoreError::Corrupt(_))) => {
                tracing::error!(marker = "[CAPACITY]", %cause, "capacity alert changes are not written");
                self.pending.clear();
            }
            Err(_) => self.retry_at = Instant::now() + RETRY,
        }
    }

    fn wakes_at(&self) -> Option<Instant> {
        let resolves_at = self.alerts.resolves_at();
        let resolves_at = resolves_at.map(|time| Instant::now() + time.since(self.services.clock.steady()));
        let retry_at = (!self.pending.is_empty()).then_some(self.retry_at);
        resolves_at.filter(|_| self.pending.len() < MAX_PENDING).into_iter().chain(retry_at).min()
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

fn log_change(row: &NewCapacityAlert, on_disk: bool) {
    let NewCapacityAlert { alert_id, change, .. } = row;
    // `level` is the level of the log message.
    let (alert, kind, taken, limit) = (change.level.as_str(), change.kind.as_str(), change.taken, change.limit);
    match change.kind {
        AlertKind::Raised => {
            tracing::warn!(marker = "[CAPACITY]", %alert_id, alert, kind, taken, limit, on_disk, "capacity is near its limit");
        }
        AlertKind::Resolved => {
            tracing::info!(marker = "[CAPACITY]", %alert_id, alert, kind, taken, limit, on_disk, "capacity is back to normal");
        }
    }
}
