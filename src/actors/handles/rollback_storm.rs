//! One alarm where many workspaces fall back at once; the rule is in [`crate::domain::routing::storm`].

use std::{fmt, sync::Arc, time::Duration};

use parking_lot::{Mutex, MutexGuard};
use uuid::Uuid;

use crate::{
    domain::{
        clock::Clock,
        ids::WorkspaceKey,
        notify::{
            notice,
            toast::{Addressee, NewNotification, Notice},
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

/// So often the end of a storm is looked for.
const LOOK: Duration = Duration::from_secs(10);

/// The automatic rollbacks of all workspaces of this process. Cheap to clone.
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
    /// What operators are told of the storm that rages, each with an end of its own: one, or more where ends of earlier
    /// ones could not be written.
    alarms: Vec<NewNotification>,
}

impl fmt::Debug for Storm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Storm").field(&*self.flips()).finish()
    }
}

impl Storm {
    /// Nothing has rolled back yet.
    pub(crate) fn new(store: Store, metrics: Metrics, clock: Arc<dyn Clock>) -> Self {
        Self(Arc::new(Inner { flips: Mutex::default(), store, metrics, clock }))
    }

    /// Takes up the storm of whose end an earlier process did not tell: its alarm is not raised again, and is
    /// resolved when it is over.
    ///
    /// # Errors
    /// Where the database cannot be read.
    pub(crate) async fn recover(store: Store, metrics: Metrics, clock: Arc<dyn Clock>) -> Result<Self, StoreError> {
        let unended = store.unended_storm(PERIOD, MAX_REMEMBERED).await?;
        let storm = Self::new(store, metrics, clock);
        if let Some(UnendedStorm { since, alarms, flips }) = unended {
            tracing::info!(marker = "[ROLLBACK]", %since, "open mass rollback alert recovered");
            let counted = FlipStorm::recover(since, flips, storm.0.clock.steady());
            *storm.flips() = Flips { counted, alarms: alarms.into_iter().map(told).collect() };
            storm.0.metrics.routes().storm(true);
            actix::spawn(storm.clone().resolve());
        }
        Ok(storm)
    }

    /// A workspace rolls back by itself, and this is about to be written. Gives what operators are told in place of its
    /// users, where it is one of many: the same for all of a storm, so that whichever is written first tells of it.
    /// Where a storm begins with it, the alarm is raised, and resolved when it is over.
    pub(crate) fn on_rollback(&self, workspace: &WorkspaceKey) -> Option<NewNotification> {
        let (now, live) = (self.0.clock.steady(), self.live());
        let mut flips = self.flips();
        let cause = flips.counted.on_flip(workspace, live, now);
        if cause == FlipCause::BeginsStorm {
            let (id, flipped) = (Uuid::now_v7(), flips.counted.flipped(now));
            let told =
                NewNotification::new(Uuid::now_v7(), Addressee::Operators, notice::of_storm(flipped, live), id);
            flips.alarms.push(told);
            self.0.metrics.routes().storm(true);
            tracing::error!(
                marker = "[ROLLBACK]",
                workspaces = flipped,
                live,
                "many workspaces fall back at once, and the cause is none of theirs: look at the runtime, the network \
                 and the agents' provider"
            );
            let storm = self.clone();
            actix::spawn(async move {
                // The alarm itself is written first.
                tokio::time::sleep(LOOK).await;
                storm.resolve().await;
            });
        }
        flips.alarms.last().filter(|_| cause.is_storm()).cloned()
    }

    /// Whether many workspaces fall back at once.
    pub(crate) fn is_raging(&self) -> bool {
        self.flips().counted.is_raging()
    }

    /// Waits for the end of one storm, and tells it.
    async fn resolve(self) {
        while !self.look().await {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Whether the storm is over, of which operators are told then.
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
            let told =
                NewNotification::new(Uuid::now_v7(), Addressee::Operators, notice::of_storm_end(&ended), cause);
            if let Err(cause) = self.0.store.tell(told, self.0.clock.now()).await {
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
        // Nothing in there panics half-way.
        self.0.flips.lock()
    }
}

/// What operators were told, as it was told.
fn told(row: NotificationRow) -> NewNotification {
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
            notify::toast::{Scope, Stream},
            routing::{
                Routing,
                success_window::{WindowFigures, WindowState},
            },
        },
        store::{NotificationRow, SaveRoute, SavedRoute},
    };

    /// Stands until it is moved.
    struct Moved(AtomicI64);

    impl Clock for Moved {
        fn now(&self) -> Timestamp {
            Timestamp(self.0.load(Ordering::SeqCst))
        }

        fn steady(&self) -> Timestamp {
            self.now()
        }
    }

    /// A database and a clock that outlive the processes that work with them.
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
        /// What a process that starts now finds.
        async fn start(&self) -> Storm {
            let metrics = Metrics::new("test", None).unwrap();
            Storm::recover(self.store.clone(), metrics, self.clock.clone()).await.unwrap()
        }

        fn pass(&self, seconds: i64) {
            self.clock.0.fetch_add(seconds * 1_000_000, Ordering::SeqCst);
        }

        /// A workspace rolls back by itself; says by which alarm operators are told of it.
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
            let alarm = systemic.as_ref().map(|told| told.cause_id.clone());
            let now = self.clock.now();
            let flip = Some(router::of(&flip, systemic, &[], &settings.window, now));
            let (migration_enabled, auto_rollout) = (None, None);
            let save = SaveRoute { key, expected_epoch: 0, routing, migration_enabled, auto_rollout, flip, now };
            assert_eq!(self.store.save_route(save).await, Ok(SavedRoute::Saved));
            alarm
        }

        /// What operators were told.
        async fn told(&self) -> Vec<NotificationRow> {
            let page = self.store.notifications_after(Scope::all(Stream::Operators), 0, 100).await.unwrap();
            page.rows.into_iter().map(Result::unwrap).collect()
        }
    }

    /// Waits until something is so.
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
        assert_eq!(alarms.len(), 2, "the fifth raised it, the sixth belongs to it");
        drop(first);
        // In the middle of it: the next one belongs to the same alarm.
        let second = stage.start().await;
        assert!(second.is_raging() && !second.look().await);
        assert_eq!(stage.falls(&second, 6).await.as_ref(), Some(&alarms[0]));
        assert_eq!(stage.told().await.len(), 1, "it is not raised again");
        assert!(!second.look().await, "seven within five minutes");
        stage.pass(300);
        // It looks by itself too, but not that often.
        second.look().await;
        until("the end is told", async || stage.told().await.len() > 1).await;
        let told = stage.told().await;
        assert_eq!(told.len(), 2, "{told:?}");
        assert_eq!(told[1].cause_id, format!("{}:resolved", alarms[0]));
        assert!(told[1].body.contains("at its peak, 7 workspaces"), "{told:?}");
        assert!(!stage.start().await.is_raging(), "it has its end");
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
        until("both see that it is over", async || !one.is_raging() && !two.is_raging()).await;
        until("the end is told", async || stage.told().await.len() > 1).await;
        // A write of ours stands behind those of both.
        let behind = NewNotification::new(Uuid::now_v7(), Addressee::Operators, notice::of_storm(5, 5), "behind");
        stage.store.tell(behind, stage.clock.now()).await.unwrap();
        let causes: Vec<_> = stage.told().await.into_iter().map(|row| row.cause_id).collect();
        assert_eq!(causes, [causes[0].clone(), format!("{}:resolved", causes[0]), "behind".to_owned()]);
    }
}
