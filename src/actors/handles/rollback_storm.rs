//! Raises one alarm when many workspaces roll back at once; the rule is in [`crate::domain::routing::storm`].

use std::{fmt, sync::Arc, time::Duration};

use parking_lot::{Mutex, MutexGuard};
use uuid::Uuid;

use crate::{
    domain::{
        clock::Clock,
        ids::WorkspaceKey,
        notify::{
            notice,
            notification::{Addressee, NewNotification, Notice},
        },
        redaction::Redacted,
        routing::{
            Route,
            storm::{FlipCause, FlipStorm, MAX_REMEMBERED, PERIOD, RESOLVED},
        },
    },
    store::{NotificationRow, Store, StoreError, UnendedStorm},
    telemetry::Metrics,
};

/// Interval between checks for the end of a storm.
const LOOK: Duration = Duration::from_secs(10);

/// Automatic rollbacks of all workspaces of this process. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Storm(Arc<Inner>);

struct Inner {
    flips: Mutex<Flips>,
    store: Store,
    metrics: Metrics,
    clock: Arc<dyn Clock>,
}

#[derive(Debug, Default)]
struct Flips {
    counted: FlipStorm,
    /// Operators' notifications of the current storm, each with an end of its own: usually one, more if the ends of
    /// earlier storms could not be written.
    alarms: Vec<NewNotification>,
}

impl fmt::Debug for Storm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Storm").field(&*self.flips()).finish()
    }
}

impl Storm {
    /// Starts without any rollback.
    pub(crate) fn new(store: Store, metrics: Metrics, clock: Arc<dyn Clock>) -> Self {
        Self(Arc::new(Inner { flips: Mutex::default(), store, metrics, clock }))
    }

    /// Resumes the storm whose end an earlier process did not report: its alarm is not raised again, and is resolved
    /// when the storm is over.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub(crate) async fn recover(store: Store, metrics: Metrics, clock: Arc<dyn Clock>) -> Result<Self, StoreError> {
        let unended = store.unended_storm(PERIOD, MAX_REMEMBERED).await?;
        let storm = Self::new(store, metrics, clock);
        if let Some(UnendedStorm { since, alarms, flips }) = unended {
            tracing::info!(marker = "[ROLLBACK]", %since, "open mass rollback alert recovered");
            let counted = FlipStorm::recover(since, flips, storm.0.clock.steady());
            *storm.flips() = Flips { counted, alarms: alarms.into_iter().map(alarm_of).collect() };
            storm.0.metrics.routes().storm(true);
            actix::spawn(storm.clone().resolve());
        }
        Ok(storm)
    }

    /// Records an automatic rollback of a workspace, before it is written. If it belongs to a storm, returns the
    /// operators' notification that replaces the one for the workspace's users: the same for every rollback of the
    /// storm, so that the first one written announces the storm. The rollback that begins a storm raises the alarm
    /// and schedules its end.
    pub(crate) fn on_rollback(&self, workspace: &WorkspaceKey) -> Option<NewNotification> {
        let (now, live) = (self.0.clock.steady(), self.live());
        let mut flips = self.flips();
        let cause = flips.counted.on_flip(workspace, live, now);
        if cause == FlipCause::BeginsStorm {
            let (id, flipped) = (Uuid::now_v7(), flips.counted.flipped(now));
            let notification =
                NewNotification::new(Uuid::now_v7(), Addressee::Operators, notice::of_storm(flipped, live), id);
            flips.alarms.push(notification);
            self.0.metrics.routes().storm(true);
            tracing::error!(
                marker = "[ROLLBACK]",
                workspaces = flipped,
                live,
                "many workspaces fall back at once, so the cause is shared: check the runtime, the network and the \
                 agents' provider"
            );
            let storm = self.clone();
            actix::spawn(async move {
                // The alarm is written before its end.
                tokio::time::sleep(LOOK).await;
                storm.resolve().await;
            });
        }
        flips.alarms.last().filter(|_| cause.is_storm()).cloned()
    }

    /// True while a storm is in progress.
    pub(crate) fn is_active(&self) -> bool {
        self.flips().counted.is_active()
    }

    /// Waits for the end of one storm and reports it.
    async fn resolve(self) {
        while !self.look().await {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Checks for the end of the storm; returns `true` and notifies operators if it is over.
    async fn look(&self) -> bool {
        let (now, live) = (self.0.clock.steady(), self.live());
        let (ended, alarms) = {
            let mut flips = self.flips();
            let Some(ended) = flips.counted.on_tick(live, now) else { return false };
            (ended, std::mem::take(&mut flips.alarms))
        };
        self.0.metrics.routes().storm(false);
        let seconds = now.since(ended.since).as_secs();
        let most_workspaces = ended.most_flipped;
        tracing::info!(marker = "[ROLLBACK]", most_workspaces, seconds, "mass rollback is over");
        for alarm in alarms {
            let cause = format!("{}{RESOLVED}", alarm.cause_id);
            let notification =
                NewNotification::new(Uuid::now_v7(), Addressee::Operators, notice::of_storm_end(&ended), cause);
            if let Err(cause) = self.0.store.add_notification(notification, self.0.clock.now()).await {
                tracing::error!(marker = "[ROLLBACK]", %cause, "end of mass rollback was not written; it is written after a restart");
            }
        }
        true
    }

    fn live(&self) -> usize {
        let on = |route| self.0.metrics.routes().workspaces(route);
        usize::try_from(on(Route::Acp) + on(Route::Http)).unwrap_or(usize::MAX)
    }

    fn flips(&self) -> MutexGuard<'_, Flips> {
        // No code under this lock panics half-way.
        self.0.flips.lock()
    }
}

/// Rebuilds the operators' notification from its row.
fn alarm_of(row: NotificationRow) -> NewNotification {
    let NotificationRow { notification_id, severity, trigger, body, cause_id, .. } = row;
    let notice = Notice { severity, trigger, body: Redacted::new(&body) };
    NewNotification { id: notification_id, to: Addressee::Operators, notice, cause_id }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, Ordering};

    use super::*;
    use crate::{
        actors::routing::router,
        config::Config,
        domain::{
            clock::Timestamp,
            notify::notification::{Scope, Stream},
            routing::{
                Routing,
                success_window::{WindowFigures, WindowState},
            },
        },
        store::{NotificationRow, SaveRoute, SavedRoute},
    };

    /// A clock that moves only by hand.
    struct Moved(AtomicI64);

    impl Clock for Moved {
        fn now(&self) -> Timestamp {
            Timestamp(self.0.load(Ordering::SeqCst))
        }

        fn steady(&self) -> Timestamp {
            self.now()
        }
    }

    /// A database and a clock that outlive the processes that use them.
    struct Stage {
        store: Store,
        clock: Arc<Moved>,
        _folder: tempfile::TempDir,
    }

    fn stage() -> Stage {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::for_tests(&folder.path().join("test.db"));
        let clock = Arc::new(Moved(AtomicI64::new(1_800_000_000_000_000)));
        Stage { store, clock, _folder: folder }
    }

    impl Stage {
        /// Starts a process on this database.
        async fn start(&self) -> Storm {
            let metrics = Metrics::new("test", None).unwrap();
            Storm::recover(self.store.clone(), metrics, self.clock.clone()).await.unwrap()
        }

        fn pass(&self, seconds: i64) {
            self.clock.0.fetch_add(seconds * 1_000_000, Ordering::SeqCst);
        }

        /// Rolls a workspace back automatically; returns the cause id of the operators' alarm that reports it.
        async fn falls(&self, storm: &Storm, n: usize) -> Option<String> {
            let settings = crate::actors::services::SessionSettings::new(&Config::default());
            let key = WorkspaceKey {
                installation_id: "acme".parse().unwrap(),
                workspace_id: format!("w{n}").parse().unwrap(),
            };
            let figures =
                WindowFigures { state: WindowState::Breached, samples: 20, failures: 1, length_seconds: 3600 };
            let mut routing = Routing::new(Route::Acp);
            let flip = routing.on_breach(figures, self.clock.now(), 0.5, &settings.recovery).unwrap();
            let systemic = storm.on_rollback(&key);
            let alarm = systemic.as_ref().map(|notification| notification.cause_id.clone());
            let now = self.clock.now();
            let flip = Some(router::of(&flip, systemic, &[], &settings.window, now));
            let (migration_enabled, auto_rollout) = (None, None);
            let save = SaveRoute { key, expected_epoch: 0, routing, migration_enabled, auto_rollout, flip, now };
            assert_eq!(self.store.save_route(save).await, Ok(SavedRoute::Saved));
            alarm
        }

        /// Operators' notifications.
        async fn notifications(&self) -> Vec<NotificationRow> {
            let page = self.store.notifications_after(Scope::all(Stream::Operators), 0, 100).await.unwrap();
            page.rows.into_iter().map(Result::unwrap).collect()
        }
    }

    async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
        let waiting = async {
            while !is_so().await {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), waiting).await.expect(what);
    }

    #[actix::test]
    async fn storm_keeps_its_alarm_over_a_restart_and_ends_once() {
        let stage = stage();
        let first = stage.start().await;
        let mut alarms = Vec::new();
        for n in 0..6 {
            alarms.extend(stage.falls(&first, n).await);
            stage.pass(10);
        }
        assert_eq!(alarms.len(), 2, "the fifth rollback raises the alarm, the sixth belongs to it");
        drop(first);
        // After a restart during the storm, the next rollback belongs to the same alarm.
        let second = stage.start().await;
        assert!(second.is_active() && !second.look().await);
        assert_eq!(stage.falls(&second, 6).await.as_ref(), Some(&alarms[0]));
        assert_eq!(stage.notifications().await.len(), 1, "the alarm is not raised again");
        assert!(!second.look().await, "seven rollbacks within five minutes");
        stage.pass(300);
        // The storm also checks on its own, but less often.
        second.look().await;
        until("the end is announced", async || stage.notifications().await.len() > 1).await;
        let notifications = stage.notifications().await;
        assert_eq!(notifications.len(), 2, "{notifications:?}");
        assert_eq!(notifications[1].cause_id, format!("{}:resolved", alarms[0]));
        assert!(notifications[1].body.contains("at its peak, 7 workspaces"), "{notifications:?}");
        assert!(!stage.start().await.is_active(), "the storm has ended");
    }

    #[actix::test]
    async fn concurrent_starts_report_the_end_of_a_storm_once() {
        let stage = stage();
        let first = stage.start().await;
        for n in 0..5 {
            stage.falls(&first, n).await;
        }
        drop(first);
        stage.pass(3600);
        let (one, two) = tokio::join!(stage.start(), stage.start());
        until("both see the end of the storm", async || !one.is_active() && !two.is_active()).await;
        until("the end is announced", async || stage.notifications().await.len() > 1).await;
        // This write is queued behind the writes of both processes.
        let behind = NewNotification::new(Uuid::now_v7(), Addressee::Operators, notice::of_storm(5, 5), "behind");
        stage.store.add_notification(behind, stage.clock.now()).await.unwrap();
        let causes: Vec<_> = stage.notifications().await.into_iter().map(|row| row.cause_id).collect();
        assert_eq!(causes, [causes[0].clone(), format!("{}:resolved", causes[0]), "behind".to_owned()]);
    }
}
