//! Seats: the bound on sessions that hold an agent at the same time.
//!
//! A handle, not an actor: any thread takes or returns a seat under one short lock, without a hop and without
//! waiting. The rules are in [`crate::domain::capacity`]; the
//! [`CapacityWatch`](crate::actors::upkeep::capacity::CapacityWatch) is woken by every change and raises alerts.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use super::tenants::UsePermit;
use uuid::Uuid;

use crate::{
    domain::{
        capacity::{CapacityRules, Refused, SeatBound, SeatFigures, Seats, SeatsSeen},
        ids::InstallationId,
        turn::outcome::{ErrorCode, Failure, Figures},
    },
    store::OpenCapacityAlert,
    telemetry::Metrics,
};

/// Hands out seats. Cheap to clone; clones share the same seats.
#[derive(Debug, Clone)]
pub(crate) struct CapacityGuard(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    rules: CapacityRules,
    seats: Mutex<Seats>,
    alert: Mutex<Option<OpenCapacityAlert>>,
    metrics: Metrics,
    /// Holds at most one wake-up: the seats themselves record what changed, so nothing queues.
    changed: Notify,
    closed: AtomicBool,
}

/// A session's seat; returned on drop, on any thread, also during a panic.
#[derive(Debug)]
pub(crate) struct Permit {
    guard: CapacityGuard,
    tenant: InstallationId,
    /// Count of the session against the limits of its tenant.
    used: Option<UsePermit<InstallationId>>,
    /// Count of the session against the limits of the token that opened it.
    used_by_token: Option<UsePermit<Uuid>>,
}

impl Permit {
    /// Counts the session against the limits of its tenant as long as it has its seat.
    pub(crate) fn counted(self, used: UsePermit<InstallationId>) -> Self {
        debug_assert!(self.used.is_none(), "a session is counted once");
        let mut this = self;
        this.used = Some(used);
        this
    }

    /// Counts the session against the limits of a token as long as it has its seat.
    pub(crate) fn counted_for(mut self, used_by_token: Option<UsePermit<Uuid>>) -> Self {
        self.used_by_token = used_by_token;
        self
    }
}

impl CapacityGuard {
    /// Creates a guard with all seats free.
    pub(crate) fn new(rules: CapacityRules, metrics: Metrics) -> Self {
        metrics.capacity().limit(rules.limit);
        Self(Arc::new(Inner {
            rules,
            seats: Mutex::new(Seats::new(rules)),
            alert: Mutex::default(),
            metrics,
            changed: Notify::new(),
            closed: AtomicBool::new(false),
        }))
    }

    /// Takes a seat for a new session. Does not wait.
    ///
    /// # Errors
    /// `capacity_exhausted` with the figures if the service or the tenant's share has no free seat.
    pub(crate) fn admit(&self, tenant: &InstallationId) -> Result<Permit, Failure> {
        self.change(|seats| seats.admit(tenant)).map_err(|refused| self.refusal(refused))?;
        Ok(Permit { guard: self.clone(), tenant: tenant.clone(), used: None, used_by_token: None })
    }

    /// Takes a seat for a returning session. Never refused, so it may exceed the limits. Does not wait.
    pub(crate) fn admit_returning(&self, tenant: &InstallationId) -> Permit {
        self.change(|seats| seats.admit_returning(tenant));
        Permit { guard: self.clone(), tenant: tenant.clone(), used: None, used_by_token: None }
    }

    pub(crate) fn taken(&self) -> usize {
        self.seats().taken()
    }

    pub(crate) fn rules(&self) -> &CapacityRules {
        &self.0.rules
    }

    /// Tenants near their share and their seats, those with the most first, at most `most`.
    pub(crate) fn near_their_share(&self, most: usize) -> Vec<(InstallationId, usize)> {
        self.seats().near_their_share(most)
    }

    pub(crate) fn alert(&self) -> Option<OpenCapacityAlert> {
        *self.0.alert.lock()
    }

    /// Makes the watch check a last time and end. Called after the last session has ended.
    pub(crate) fn close(&self) {
        self.0.closed.store(true, Ordering::Release);
        self.0.changed.notify_one();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.0.closed.load(Ordering::Acquire)
    }

    /// Waits for a change since the last wait. Only one caller may wait.
    ///
    /// # Cancel safety
    /// No change is lost.
    pub(crate) async fn changed(&self) {
        self.0.changed.notified().await;
    }

    /// Takes the peak and the current number of seats since the last call. Only one caller may use it.
    pub(crate) fn look(&self) -> SeatsSeen {
        self.seats().look()
    }

    pub(crate) fn set_alert(&self, alert: Option<OpenCapacityAlert>) {
        *self.0.alert.lock() = alert;
        self.0.metrics.capacity().open(alert.map(|alert| alert.level));
    }

    fn seats(&self) -> MutexGuard<'_, Seats> {
        // No code under this lock panics half-way.
        self.0.seats.lock()
    }

    fn change<T>(&self, change: impl FnOnce(&mut Seats) -> T) -> T {
        let mut seats = self.seats();
        let changed = change(&mut seats);
        // Set under the lock, so that the gauge shows the later of two changes.
        self.0.metrics.capacity().taken(seats.taken());
        drop(seats);
        self.0.changed.notify_one();
        changed
    }

    fn refusal(&self, refused: Refused) -> Failure {
        self.0.metrics.capacity().refused(refused.bound);
        let SeatFigures { taken, limit, tenant_taken, tenant_limit } = refused.figures;
        let detail = match refused.bound {
            SeatBound::Service => format!("{taken} of {limit} sessions are live"),
            SeatBound::Tenant => format!("the tenant has {tenant_taken} live sessions, its share is {tenant_limit}"),
        };
        let figures = Some(Box::new(Figures::Seats(refused.figures)));
        Failure { figures, ..Failure::new(ErrorCode::CapacityExhausted, detail) }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.guard.change(|seats| seats.give_back(&self.tenant));
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::Config;

    /// A guard of `limit` seats.
    pub(crate) fn guard(limit: usize) -> CapacityGuard {
        let rules = CapacityRules { limit, resolve_after: Duration::ZERO, ..Config::default().capacity.rules() };
        CapacityGuard::new(rules, Metrics::new("test", None).unwrap())
    }

    pub(crate) fn tenant(name: &str) -> InstallationId {
        name.parse().unwrap()
    }

    #[test]
    fn nfr_002_a_seat_is_given_back_on_drop_and_a_returning_session_is_never_shed() {
        let (guard, acme) = (guard(1), tenant("acme"));
        let seat = guard.admit(&acme).unwrap();
        let refused = guard.admit(&tenant("other")).unwrap_err();
        assert_eq!(refused.code, ErrorCode::CapacityExhausted);
        let figures = SeatFigures { taken: 1, limit: 1, tenant_taken: 0, tenant_limit: 1 };
        assert_eq!(refused.seats(), Some(&figures));
        let returning = guard.admit_returning(&acme);
        assert_eq!(guard.taken(), 2);
        drop(returning);
        drop(seat);
        assert!(guard.admit(&acme).is_ok());
    }

    #[test]
    fn panic_returns_its_seat_and_others_continue() {
        let (guard, all) = (guard(8), Arc::new(std::sync::Barrier::new(8)));
        let threads = (0..8).map(|n| {
            let (guard, all) = (guard.clone(), all.clone());
            std::thread::spawn(move || {
                let mut most = 0;
                for _ in 0..1000 {
                    let seats = (guard.admit(&tenant("acme")), guard.admit(&tenant("other")));
                    most = most.max(guard.taken());
                    drop(seats);
                }
                // Sessions that return are admitted over the limit.
                all.wait();
                assert!(most <= 8, "over the limit: {most}");
                let _seat = guard.admit_returning(&tenant("acme"));
                assert!(n % 2 == 0, "on purpose");
            })
        });
        let ended: Vec<_> = threads.collect::<Vec<_>>().into_iter().map(|it| it.join().is_ok()).collect();
        assert_eq!(ended.iter().filter(|fine| **fine).count(), 4);
        assert_eq!(guard.taken(), 0);
        let metrics = guard.0.metrics.render().unwrap();
        assert!(metrics.contains("lumilink_capacity_seats{state=\"taken\"} 0\n"), "{metrics}");
        assert!(metrics.contains("lumilink_capacity_seats{state=\"limit\"} 8\n"), "{metrics}");
    }

    #[tokio::test]
    async fn every_change_wakes_waiters_and_keeps_the_peak() {
        let guard = guard(10);
        drop([guard.admit(&tenant("a")), guard.admit(&tenant("a"))]);
        guard.changed().await;
        assert_eq!(guard.look(), SeatsSeen { taken: 0, peak: 2 });
        assert_eq!(guard.look(), SeatsSeen { taken: 0, peak: 0 });
        let more = tokio::time::timeout(Duration::from_millis(20), guard.changed()).await;
        assert!(more.is_err(), "four changes are one wake-up");
    }
}
