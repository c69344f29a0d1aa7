//! Handle of the notification hub. A hub that panics is replaced; its notifications are on disk, so subscribers resume
//! from their cursors.

pub(crate) mod hub;
pub(crate) mod webhook;

use std::{sync::Arc, time::Duration};

use actix::{Addr, Context};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::timeout,
};

use self::hub::{HubServices, Notifications};
use super::{
    handles::messages::{CloseSubscribers, Subscribe, Subscribed},
    upkeep::keeper::Keeper,
};
use crate::{
    domain::turn::outcome::{ErrorCode, Failure},
    store::{self, StoreError},
};

/// Concurrent reads of subscribers: half of the store's readers.
const READERS: usize = 4;
/// Concurrent ticket lookups of unauthenticated callers.
const LOOKUPS: usize = 1;
/// Time limit for a read to start: the lifetime of a ticket, after which a client needs a new ticket anyway.
const TURN_WAIT: Duration = Duration::from_secs(30);
/// Time that a subscriber waits for a hub that is being replaced; enough unless the hub panics repeatedly.
const HUB_TIMEOUT: Duration = Duration::from_secs(2);

/// Handle of the hub. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct NotificationHub {
    hub: watch::Receiver<Option<Addr<Notifications>>>,
    seats: Arc<Semaphore>,
    readers: Arc<Semaphore>,
    lookups: Arc<Semaphore>,
    max_subscribers: u32,
    closed: Arc<watch::Sender<bool>>,
}

impl NotificationHub {
    /// Starts the hub on this thread, for at most `max_subscribers`, and replaces it whenever it panics.
    pub(crate) fn start(services: HubServices, keeper: Keeper, max_subscribers: usize) -> Self {
        let closed = services.closed.clone();
        let (present, hub) = watch::channel(None);
        actix::spawn(keeper.keep("notifications", move || {
            let running = Context::new().into_future(Notifications::new(services.clone()));
            present.send_replace(Some(running.address()));
            actix::spawn(running)
        }));
        let max_subscribers = u32::try_from(max_subscribers).unwrap_or(u32::MAX);
        let seats = Arc::new(Semaphore::new(usize::try_from(max_subscribers).unwrap_or(Semaphore::MAX_PERMITS)));
        let (readers, lookups) = (Arc::new(Semaphore::new(READERS)), Arc::new(Semaphore::new(LOOKUPS)));
        Self { hub, seats, readers, lookups, max_subscribers, closed }
    }

    /// Runs a read for a subscriber; at most 4 run at once, so that thousands of reconnecting subscribers delay only
    /// each other. The slot is released with the end of the read, even if the subscriber stalls. Cancel-safe.
    ///
    /// # Errors
    /// Those of the read, and [`StoreError::Busy`] if no slot is free within 30 s.
    pub(crate) fn read<T, R>(&self, reading: R) -> impl Future<Output = Result<T, StoreError>> + use<T, R>
    where
        T: Send + 'static,
        R: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        in_turn(self.readers.clone(), reading)
    }

    /// Runs a lookup for a caller that is not authenticated yet; one runs at a time, so that such callers delay only
    /// each other. Errors and cancel safety are those of [`Self::read`].
    pub(crate) fn look<T, R>(&self, looking: R) -> impl Future<Output = Result<T, StoreError>> + use<T, R>
    where
        T: Send + 'static,
        R: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        in_turn(self.lookups.clone(), looking)
    }

    /// Takes the seat of a subscriber; the seat is released on drop.
    ///
    /// # Errors
    /// `capacity_exhausted` if all `[notifications] max_subscribers` seats are taken.
    pub(crate) fn seat(&self) -> Result<OwnedSemaphorePermit, Failure> {
        let full =
            |_| Failure::new(ErrorCode::CapacityExhausted, "all `[notifications] max_subscribers` seats are taken");
        self.seats.clone().try_acquire_owned().map_err(full)
    }

    /// Adds a subscriber that has every notification up to its cursor. Waits up to 2 s for a hub that is being
    /// replaced.
    ///
    /// # Errors
    /// `internal` if no hub became available, or it panicked before it answered; safe to retry.
    pub(crate) async fn subscribe(&self, subscribe: Subscribe) -> Result<Subscribed, Failure> {
        let gone = || Failure::new(ErrorCode::Internal, "the notification hub is restarting");
        let present = timeout(HUB_TIMEOUT, self.present()).await.ok().flatten().ok_or_else(gone)?;
        // Not repeated at the next hub: this message may have caused the panic.
        present.send(subscribe).await.map_err(|_| gone())
    }

    /// Returns the running hub, or waits for the next one; `None` if no hub will be started any more. Cancel-safe.
    async fn present(&self) -> Option<Addr<Notifications>> {
        let mut hub = self.hub.clone();
        let is_there = |hub: &Option<Addr<Notifications>>| hub.as_ref().is_some_and(Addr::connected);
        hub.wait_for(is_there).await.ok()?.clone()
    }

    /// Completes when all subscribers must close. Cancel-safe.
    pub(crate) fn closed(&self) -> impl Future<Output = ()> + use<> {
        let mut closed = self.closed.subscribe();
        async move {
            // An error means that the hub no longer exists.
            let _ = closed.wait_for(|is_closed| *is_closed).await;
        }
    }

    /// Closes every subscriber, including those before their hello, those that still replay missed notifications, and
    /// those that arrive later; waits until their seats are released, at most `patience`.
    pub(crate) async fn close(&self, patience: Duration) {
        // Applies also to a hub that replaces this one.
        self.closed.send_replace(true);
        let present = self.hub.borrow().clone();
        let leaving = async {
            if let Some(present) = present {
                // An error means that the hub has exited, and its subscribers were disconnected with it.
                let _ = present.send(CloseSubscribers).await;
            }
            // The semaphore is never closed.
            let _ = self.seats.acquire_many(self.max_subscribers).await;
        };
        // The end of the service disconnects subscribers that do not close in time.
        let _ = timeout(patience, leaving).await;
    }
}

fn in_turn<T, R>(turns: Arc<Semaphore>, reading: R) -> impl Future<Output = Result<T, StoreError>> + use<T, R>
where
    T: Send + 'static,
    R: Future<Output = Result<T, StoreError>> + Send + 'static,
{
    store::apart(async move {
        let turn = timeout(TURN_WAIT, turns.acquire()).await;
        let _turn = turn.map_err(|_| StoreError::Busy)?.map_err(|_| StoreError::Closed)?;
        reading.await
    })
}

#[cfg(test)]
mod tests {
    use actix::{Handler, Message};
    use futures_util::FutureExt;
    use uuid::Uuid;

    use super::super::handles::{
        session_progress::{self, SessionTelemetry},
        subscriber::{Ending, Item, Outlet},
    };
    use super::*;
    use crate::{
        domain::{
            ids::{SessionId, WorkspaceKey},
            notify::{
                notice,
                notification::{Addressee, NewNotification, Scope, Stream},
            },
            session::restart::RestartLimits,
        },
        store::Store,
        telemetry::{Metrics, SystemClock},
    };

    #[derive(Message)]
    #[rtype(result = "()")]
    struct Panic;

    impl Handler<Panic> for Notifications {
        type Result = ();

        fn handle(&mut self, _: Panic, _: &mut Context<Self>) {
            panic!("intended by the test");
        }
    }

    struct Stage {
        hub: NotificationHub,
        store: Store,
        metrics: Metrics,
        telemetry: tokio::sync::mpsc::Sender<SessionTelemetry>,
        _folder: tempfile::TempDir,
    }

    fn key() -> WorkspaceKey {
        WorkspaceKey { installation_id: "acme".parse().unwrap(), workspace_id: "web".parse().unwrap() }
    }

    impl Stage {
        fn new(max_restarts: u32) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let store = Store::for_tests(&folder.path().join("test.db"));
            let metrics = Metrics::for_tests();
            let (telemetry, source) = session_progress::queue();
            let services = HubServices::new(store.clone(), source, false);
            let limits = RestartLimits { max_restarts, within: Duration::from_secs(3600) };
            let keeper = Keeper { metrics: metrics.clone(), clock: Arc::new(SystemClock), limits };
            Self { hub: NotificationHub::start(services, keeper, 9), store, metrics, telemetry, _folder: folder }
        }

        async fn joins(&self, after: u64) -> Outlet {
            let scope = Scope::all(Stream::Tenant(key().installation_id));
            let subscribe = Subscribe { scope, after, wants_telemetry: true, cut: Arc::new(|_| {}) };
            match self.hub.subscribe(subscribe).await {
                Ok(Subscribed::Joined { outlet, missed }) if missed.is_empty() => outlet,
                other => panic!("{other:?}"),
            }
        }

        async fn writes_notification(&self) {
            let notice = notice::of_failed_session(SessionId(Uuid::nil()), ErrorCode::AgentCrashed);
            let notification =
                NewNotification::new(Uuid::now_v7(), Addressee::Workspace(key()), notice, Uuid::now_v7());
            assert!(self.store.add_notification(notification, crate::domain::clock::Timestamp(0)).await.unwrap());
        }

        async fn panics(&self) {
            let present = self.hub.present().await.unwrap();
            assert!(present.send(Panic).await.is_err());
        }

        fn has_started_again(&self, times: u32) -> bool {
            let counted = format!("lumilink_restarts_total{{cause=\"panic\"}} {times}\n");
            self.metrics.render().unwrap().contains(&counted)
        }
    }

    async fn gets_notification(outlet: &mut Outlet, seq: u64) {
        match outlet.next().await {
            Ok(Item::Notification(frame)) => assert_eq!(frame.seq, seq),
            other => panic!("{seq}: {other:?}"),
        }
    }

    #[actix::test]
    async fn panicked_hub_is_replaced_and_subscribers_resume() {
        let stage = Stage::new(5);
        for hubs in 0..3 {
            let after = 2 * hubs;
            let (mut outlet, mut other) = (stage.joins(after).await, stage.joins(after).await);
            // The database is not polled here, so the commit must wake the new hub.
            stage.writes_notification().await;
            gets_notification(&mut outlet, after + 1).await;
            let telemetry =
                SessionTelemetry { workspace: key(), session: SessionId(Uuid::nil()), user: None, text: "{}".into() };
            stage.telemetry.send(telemetry).await.unwrap();
            assert!(matches!(outlet.next().await, Ok(Item::Telemetry(_))));
            stage.panics().await;
            assert!(matches!(outlet.next().await, Err(Ending::Broken)));
            gets_notification(&mut other, after + 1).await;
            // Written while no hub runs.
            stage.writes_notification().await;
            let mut again = stage.joins(after + 1).await;
            gets_notification(&mut again, after + 2).await;
        }
        assert!(stage.has_started_again(3));
    }

    #[actix::test]
    async fn hub_that_panics_too_often_is_replaced_later() {
        let stage = Stage::new(1);
        stage.panics().await;
        stage.panics().await;
        while !stage.has_started_again(2) {
            tokio::task::yield_now().await;
        }
        assert!(stage.hub.present().now_or_never().is_none(), "an hour has to pass");
    }

    #[actix::test]
    async fn replaced_hub_stays_closed() {
        let stage = Stage::new(5);
        let mut outlet = stage.joins(0).await;
        let (hub, closing) = (stage.hub.clone(), Duration::from_secs(60));
        let closed = actix::spawn(async move { hub.close(closing).await });
        assert!(matches!(outlet.next().await, Err(Ending::Stopping)));
        drop(outlet);
        closed.await.unwrap();
        stage.panics().await;
        assert!(matches!(stage.joins(0).await.next().await, Err(Ending::Stopping)));
    }
}
