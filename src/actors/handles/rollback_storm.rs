//! Observes the rollback storm in progress; the rule is in [`crate::domain::routing::storm`], and the transaction of a
//! rollback decides.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use crate::{
    domain::{
        clock::{Clock, Timestamp},
        routing::{
            Route,
            storm::{AutomaticRollback, RollbackStorm, is_storm},
        },
    },
    store::{Store, StoreError},
    telemetry::Metrics,
};

/// Interval between checks for the end of a storm.
const LOOK: Duration = Duration::from_secs(10);

/// The rollback storm in progress, as last read from the database. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Storm {
    store: Store,
    metrics: Metrics,
    clock: Arc<dyn Clock>,
    started: Timestamp,
    is_active: Arc<AtomicBool>,
}

impl Storm {
    /// Starts without a storm.
    pub(crate) fn new(store: Store, metrics: Metrics, clock: Arc<dyn Clock>) -> Self {
        let started = clock.steady();
        Self { store, metrics, clock, started, is_active: Arc::default() }
    }

    /// Resumes the storm that an earlier process left.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub(crate) async fn recover(store: Store, metrics: Metrics, clock: Arc<dyn Clock>) -> Result<Self, StoreError> {
        let storm = Self::new(store, metrics, clock);
        if let (Some(RollbackStorm { since, .. }), _) = storm.read().await? {
            tracing::info!(marker = "[ROLLBACK]", %since, "open mass rollback alert recovered");
        }
        Ok(storm)
    }

    /// True while a storm is in progress.
    pub(crate) fn is_active(&self) -> bool {
        self.is_active.load(Ordering::Acquire)
    }

    /// An automatic rollback at this moment.
    pub(crate) fn rollback(&self) -> AutomaticRollback {
        AutomaticRollback { at: self.clock.steady(), live: self.live(), started: self.started }
    }

    /// Workspaces in use.
    fn live(&self) -> usize {
        let on = |route| self.metrics.routes().workspaces(route);
        usize::try_from(on(Route::Acp) + on(Route::Http)).unwrap_or(usize::MAX)
    }

    /// Looks for the end of storms; never returns.
    ///
    /// # Cancel safety
    /// As [`Self::look`].
    pub(crate) async fn watch(self) {
        loop {
            self.look().await;
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Reads the storm, logs one that began, and ends one whose rate has fallen; called after each automatic rollback.
    ///
    /// # Cancel safety
    /// A dropped future may have ended the storm; otherwise a later call does.
    pub(crate) async fn look(&self) {
        if let Err(cause) = self.read_and_end().await {
            tracing::warn!(marker = "[ROLLBACK]", %cause, "rollback storm was not checked; retrying");
        }
    }

    async fn read_and_end(&self) -> Result<(), StoreError> {
        let (open, began) = self.read().await?;
        let (Some(RollbackStorm { most_flipped: workspaces, .. }), live) = (open, self.live()) else { return Ok(()) };
        if began {
            tracing::error!(
                marker = "[ROLLBACK]",
                workspaces,
                live,
                "many workspaces fall back at once, so the cause is shared: check the runtime, the network and the \
                 agents' provider"
            );
        }
        if self.is_active() {
            return Ok(());
        }
        let (at, now) = (self.clock.steady(), self.clock.now());
        if let Some(RollbackStorm { since, most_flipped, .. }) = self.store.end_rollback_storm(live, at, now).await? {
            let seconds = at.since(since).as_secs();
            tracing::info!(marker = "[ROLLBACK]", most_workspaces = most_flipped, seconds, "mass rollback is over");
        }
        Ok(())
    }

    /// Reads the storm that has not ended, and whether this process sees its begin.
    async fn read(&self) -> Result<(Option<RollbackStorm>, bool), StoreError> {
        let found = self.store.rollback_storm(self.clock.steady()).await?;
        let is_active = found.is_some_and(|(_, flipped)| is_storm(flipped, self.live()));
        let was_active = self.is_active.swap(is_active, Ordering::AcqRel);
        self.metrics.routes().storm(is_active);
        Ok((found.map(|(storm, _)| storm), is_active && !was_active))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicI64;

    use super::*;
    use crate::{
        actors::routing::router,
        config::Config,
        domain::{
            ids::WorkspaceKey,
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

        /// Rolls a workspace back automatically.
        async fn falls(&self, storm: &Storm, n: usize) {
            let settings = crate::actors::services::SessionSettings::new(&Config::default());
            let key = WorkspaceKey {
                installation_id: "acme".parse().unwrap(),
                workspace_id: format!("w{n}").parse().unwrap(),
            };
            let figures =
                WindowFigures { state: WindowState::Breached, samples: 20, failures: 1, length_seconds: 3600 };
            let mut routing = Routing::new(Route::Acp);
            let now = self.clock.now();
            let flip = routing.on_breach(figures, now, 0.5, &settings.recovery).unwrap();
            let flip = Some(router::of(&flip, Some(storm.rollback()), &[], &settings.window, now));
            let (migration_enabled, auto_rollout) = (None, None);
            let save = SaveRoute { key, expected_epoch: 0, routing, migration_enabled, auto_rollout, flip, now };
            assert_eq!(self.store.save_route(save).await, Ok(SavedRoute::Saved));
            storm.look().await;
        }

        async fn notifications(&self) -> Vec<NotificationRow> {
            let page = self.store.notifications_after(Scope::all(Stream::Operators), 0, 100).await.unwrap();
            page.rows.into_iter().map(Result::unwrap).collect()
        }
    }

    #[actix::test]
    async fn storm_keeps_its_alarm_over_a_restart_and_ends_once() {
        let stage = stage();
        let first = stage.start().await;
        for n in 0..6 {
            assert_eq!(first.is_active(), n > 4, "the fifth rollback raises the alarm, the sixth belongs to it");
            stage.falls(&first, n).await;
            stage.pass(10);
        }
        let alarm = stage.notifications().await[0].cause_id.clone();
        // After a restart during the storm, the next rollback belongs to the same alarm.
        let second = stage.start().await;
        assert!(second.is_active());
        stage.falls(&second, 6).await;
        assert!(second.is_active(), "seven rollbacks within five minutes");
        assert_eq!(stage.notifications().await.len(), 1, "the alarm is not raised again");
        stage.pass(300);
        second.look().await;
        assert!(!second.is_active());
        let notifications = stage.notifications().await;
        assert_eq!(notifications.len(), 2, "{notifications:?}");
        assert_eq!(notifications[1].cause_id, format!("{alarm}:resolved"));
        assert!(notifications[1].body.contains("at its peak, 7 workspaces"), "{notifications:?}");
        let third = stage.start().await;
        third.look().await;
        assert!(!third.is_active(), "the storm has ended");
        assert_eq!(stage.notifications().await.len(), 2);
    }

    #[actix::test]
    async fn concurrent_processes_report_the_end_of_a_storm_once() {
        let stage = stage();
        let first = stage.start().await;
        for n in 0..5 {
            stage.falls(&first, n).await;
        }
        stage.pass(3600);
        let (one, two) = tokio::join!(stage.start(), stage.start());
        assert!(!one.is_active() && !two.is_active(), "its end is due");
        tokio::join!(one.look(), two.look(), one.look(), two.look());
        let causes: Vec<_> = stage.notifications().await.into_iter().map(|row| row.cause_id).collect();
        assert_eq!(causes, [causes[0].clone(), format!("{}:resolved", causes[0])]);
    }

    #[actix::test]
    async fn rollbacks_before_a_restart_begin_no_storm_among_the_few_workspaces_in_use() {
        let stage = stage();
        let first = stage.start().await;
        for n in 0..4 {
            stage.falls(&first, n).await;
        }
        stage.pass(10);
        let second = stage.start().await;
        for n in 4..8 {
            stage.falls(&second, n).await;
        }
        assert!(!second.is_active() && stage.notifications().await.is_empty());
        stage.falls(&second, 8).await;
        assert!(second.is_active());
    }

    #[actix::test]
    async fn storm_whose_last_rollbacks_are_far_apart_ends_between_them_and_begins_again() {
        let stage = stage();
        let storm = stage.start().await;
        for n in 0..5 {
            stage.falls(&storm, n).await;
        }
        // Five minutes after the storm's last rollback, a single one belongs to no storm and does not extend it.
        stage.pass(300);
        stage.falls(&storm, 5).await;
        assert!(!storm.is_active());
        assert_eq!(stage.notifications().await.len(), 2, "the alarm and its end");
        stage.pass(299);
        for n in 6..10 {
            stage.falls(&storm, n).await;
        }
        assert!(storm.is_active());
        let causes: Vec<_> = stage.notifications().await.into_iter().map(|row| row.cause_id).collect();
        assert!(causes.len() == 3 && causes[2] != causes[0], "{causes:?}");
    }
}
