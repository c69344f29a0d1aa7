//! The way to the hub of notifications. A hub that panics is replaced; what it told its subscribers is on disk, so they
//! go on from their cursors.

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

/// Reads of subscribers that continue at the same time: half of the store's readers.
const READERS: usize = 4;
/// Looks for tickets that continue at the same time.
const STRANGERS: usize = 1;
/// The longest wait for a turn: as long as a ticket holds, for which a page would have to ask again anyway.
const TURN_WAIT: Duration = Duration::from_secs(30);
/// How long a subscriber waits for a hub that is being replaced; longer than that takes unless it panics again and
/// again.
const PATIENCE: Duration = Duration::from_secs(2);

/// The way to the hub. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct NotificationHub {
    hub: watch::Receiver<Option<Addr<Notifications>>>,
    seats: Arc<Semaphore>,
    readers: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
    max_subscribers: u32,
    closed: Arc<watch::Sender<bool>>,
}

impl NotificationHub {
    /// Starts the hub on this thread, for at most `max_subscribers`, and another one in its place each time that it
    /// panics.
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
        let (readers, strangers) = (Arc::new(Semaphore::new(READERS)), Arc::new(Semaphore::new(STRANGERS)));
        Self { hub, seats, readers, strangers, max_subscribers, closed }
    }

    /// Runs a read of a subscriber when it is its turn: thousands that come back at once wait for each other, and
    /// nobody else for them. A turn ends with its read, also where the subscriber stands still. Cancel-safe.
    ///
    /// # Errors
    /// Those of the read, and [`StoreError::Busy`] where the turn did not come in 30 s.
    pub(crate) fn read<T, R>(&self, reading: R) -> impl Future<Output = Result<T, StoreError>> + use<T, R>
    where
        T: Send + 'static,
        R: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        in_turn(self.readers.clone(), reading)
    }

    /// The same for those of whom it is not known yet whether they may: strangers wait for strangers.
    pub(crate) fn look<T, R>(&self, looking: R) -> impl Future<Output = Result<T, StoreError>> + use<T, R>
    where
        T: Send + 'static,
        R: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        in_turn(self.strangers.clone(), looking)
    }

    /// Takes a subscriber's place; it is given back on drop.
    pub(crate) fn seat(&self) -> Result<OwnedSemaphorePermit, Failure> {
        let full = |_| Failure::new(ErrorCode::CapacityExhausted, "`[notifications] max_subscribers` are there");
        self.seats.clone().try_acquire_owned().map_err(full)
    }

    /// Enters a subscriber that has everything until a number. Waits up to 2 s for a hub that is being replaced.
    ///
    /// # Errors
    /// `internal` where there was none, or it panicked before it answered: safe to retry after a moment.
    pub(crate) async fn subscribe(&self, subscribe: Subscribe) -> Result<Subscribed, Failure> {
        let gone = || Failure::new(ErrorCode::Internal, "the hub of notifications is being started again");
        let present = timeout(PATIENCE, self.present()).await.ok().flatten().ok_or_else(gone)?;
        // Not sent to the next one: it may be what this one panicked at.
        present.send(subscribe).await.map_err(|_| gone())
    }

    /// The hub that is there, or the next one that will be; none where none will be any more. Cancel-safe.
    async fn present(&self) -> Option<Addr<Notifications>> {
        let mut hub = self.hub.clone();
        let is_there = |hub: &Option<Addr<Notifications>>| hub.as_ref().is_some_and(Addr::connected);
        hub.wait_for(is_there).await.ok()?.clone()
    }

    /// Ends when every subscriber is to go. Cancel-safe.
    pub(crate) fn closed(&self) -> impl Future<Output = ()> + use<> {
        let mut closed = self.closed.subscribe();
        async move {
            // An error means that there is no hub any more.
            let _ = closed.wait_for(|is_closed| *is_closed).await;
        }
    }

    /// Lets every subscriber go, those too that have not said hello or still read what they missed, and each that still
    /// comes; waits until their seats are given back or `patience` is over.
    pub(crate) async fn close(&self, patience: Duration) {
        // Also for a hub that takes this one's place.
        self.closed.send_replace(true);
        let present = self.hub.borrow().clone();
        let leaving = async {
            if let Some(present) = present {
                // An error means that there is no hub, and so nobody waits for one.
                let _ = present.send(CloseSubscribers).await;
            }
            // Never closed.
            let _ = self.seats.acquire_many(self.max_subscribers).await;
        };
        // Who does not go in time is cut off with the service.
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
                toast::{Addressee, NewNotification, Scope, Stream},
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
            panic!("as the test wants");
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

        async fn tells(&self) {
            let said = notice::of_failed_session(SessionId(Uuid::nil()), ErrorCode::AgentCrashed);
            let toast = NewNotification::new(Uuid::now_v7(), Addressee::Workspace(key()), said, Uuid::now_v7());
            assert!(self.store.tell(toast, crate::domain::clock::Timestamp(0)).await.unwrap());
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
            Ok(Item::Toast(frame)) => assert_eq!(frame.seq, seq),
            other => panic!("{seq}: {other:?}"),
        }
    }

    #[actix::test]
    async fn panicked_hub_is_replaced_and_subscribers_resume() {
        let stage = Stage::new(5);
        for hubs in 0..3 {
            let after = 2 * hubs;
            let (mut outlet, mut other) = (stage.joins(after).await, stage.joins(after).await);
            // Nobody looks at the database without being woken: the new hub is.
            stage.tells().await;
            gets_notification(&mut outlet, after + 1).await;
            let session_notice =
                SessionTelemetry { workspace: key(), session: SessionId(Uuid::nil()), user: None, text: "{}".into() };
            stage.telemetry.send(session_notice).await.unwrap();
            assert!(matches!(outlet.next().await, Ok(Item::Telemetry(_))));
            stage.panics().await;
            assert!(matches!(outlet.next().await, Err(Ending::Broken)));
            gets_notification(&mut other, after + 1).await;
            // While there is no hub.
            stage.tells().await;
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
    async fn a_hub_that_was_closed_stays_closed_when_it_is_replaced() {
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
