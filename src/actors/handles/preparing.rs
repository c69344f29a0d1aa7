//! Sessions whose folder is being prepared: they have a row, events and a seat, and no actor yet.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
};

use parking_lot::Mutex;
use tokio::sync::watch;

use super::event_feed::EventFeed;
use crate::{
    domain::{
        ids::{SessionId, UserId, WorkspaceKey},
        session::lifecycle::SessionState,
    },
    telemetry::Metrics,
};

/// Reason for which a preparation is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StopPreparing {
    /// The session is closed.
    Close,
    /// The service stops.
    Drain,
}

/// A session that is being prepared.
#[derive(Debug)]
pub(crate) struct PreparingSession {
    pub key: WorkspaceKey,
    pub user_id: Option<UserId>,
    /// Its events, which continue when it is live.
    pub feed: EventFeed,
    /// True if it was ready before, and is loaded: requests to it wait for the load.
    pub is_loaded: bool,
    stop: watch::Sender<Option<StopPreparing>>,
    /// Closed when the preparation has ended, with its row on disk.
    ended: watch::Receiver<()>,
}

impl PreparingSession {
    /// Stops the preparation, and waits for its end. Cancel-safe.
    pub(crate) async fn stop(&self, cause: StopPreparing) {
        self.stop.send_if_modified(|stop| stop.is_none() && stop.replace(cause).is_none());
        let mut ended = self.ended.clone();
        while ended.changed().await.is_ok() {}
    }
}

/// The sessions that are being prepared, one for each seat that they hold. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct PreparingSessions(Arc<Mutex<HashMap<SessionId, Arc<PreparingSession>>>>);

impl PreparingSessions {
    pub(crate) fn get(&self, id: SessionId) -> Option<Arc<PreparingSession>> {
        self.0.lock().get(&id).cloned()
    }

    /// The sessions for which a condition holds.
    pub(crate) fn all(&self, is_wanted: impl Fn(SessionId, &WorkspaceKey) -> bool) -> Vec<Arc<PreparingSession>> {
        let sessions = self.0.lock();
        sessions.iter().filter(|(id, it)| is_wanted(**id, &it.key)).map(|(_, it)| it.clone()).collect()
    }

    /// Registers a session until the returned value is dropped, after its row says how the preparation ended.
    pub(crate) fn register(
        &self,
        key: WorkspaceKey,
        user_id: Option<UserId>,
        feed: EventFeed,
        metrics: Metrics,
    ) -> (RegisteredPreparing, watch::Receiver<Option<StopPreparing>>) {
        let (stop, stopped) = watch::channel(None);
        let (alive, ended) = watch::channel(());
        let session = PreparingSession { key, user_id, feed: feed.clone(), is_loaded: false, stop, ended };
        self.0.lock().insert(feed.session(), Arc::new(session));
        metrics.session_changed(None, Some(SessionState::Preparing));
        (RegisteredPreparing { sessions: self.clone(), feed, metrics, alive: Some(alive) }, stopped)
    }

    /// Registers a session that is loaded, until the returned value is dropped. `None` if another load of it is registered.
    pub(crate) fn register_loaded(
        &self,
        (key, user_id): (WorkspaceKey, Option<UserId>),
        feed: EventFeed,
        stop: watch::Sender<Option<StopPreparing>>,
        metrics: Metrics,
    ) -> Option<RegisteredPreparing> {
        let (alive, ended) = watch::channel(());
        let session = PreparingSession { key, user_id, feed: feed.clone(), is_loaded: true, stop, ended };
        match self.0.lock().entry(feed.session()) {
            Entry::Occupied(_) => return None,
            Entry::Vacant(place) => place.insert(Arc::new(session)),
        };
        metrics.session_changed(None, Some(SessionState::Preparing));
        Some(RegisteredPreparing { sessions: self.clone(), feed, metrics, alive: Some(alive) })
    }
}

/// A registered session; removed on drop.
#[derive(Debug)]
pub(crate) struct RegisteredPreparing {
    sessions: PreparingSessions,
    feed: EventFeed,
    metrics: Metrics,
    /// `None` once nothing is left that could be stopped.
    alive: Option<watch::Sender<()>>,
}

impl RegisteredPreparing {
    pub(crate) fn feed(&self) -> &EventFeed {
        &self.feed
    }

    /// Ends the waits of [`PreparingSession::stop`]: the folder is there, and a close or a drain ends the start of the agent.
    pub(crate) fn end_stops(&mut self) {
        self.alive = None;
    }
}

impl Drop for RegisteredPreparing {
    fn drop(&mut self) {
        self.sessions.0.lock().remove(&self.feed.session());
        self.metrics.session_changed(Some(SessionState::Preparing), None);
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[tokio::test]
    async fn stop_waits_until_the_preparation_has_ended_and_the_first_cause_stays() {
        let sessions = PreparingSessions::default();
        let key = WorkspaceKey { installation_id: "acme".parse().unwrap(), workspace_id: "web".parse().unwrap() };
        let id = SessionId(Uuid::from_u128(1));
        let metrics = Metrics::new("test", None).unwrap();
        let (registered, stopped) = sessions.register(key, None, EventFeed::new(id, 10, 1000, 0), metrics);
        let session = sessions.get(id).unwrap();
        let stopping = tokio::spawn(async move {
            session.stop(StopPreparing::Close).await;
            session.stop(StopPreparing::Drain).await;
        });
        tokio::task::yield_now().await;
        assert!(!stopping.is_finished());
        assert_eq!(*stopped.borrow(), Some(StopPreparing::Close));
        drop(registered);
        stopping.await.unwrap();
        assert!(sessions.get(id).is_none() && *stopped.borrow() == Some(StopPreparing::Close));
    }

    #[tokio::test]
    async fn of_several_loads_of_a_session_one_is_registered() {
        let sessions = PreparingSessions::default();
        let key = WorkspaceKey { installation_id: "acme".parse().unwrap(), workspace_id: "web".parse().unwrap() };
        let id = SessionId(Uuid::from_u128(1));
        let register = || {
            let (feed, (stop, _)) = (EventFeed::new(id, 10, 1000, 0), watch::channel(None));
            sessions.register_loaded((key.clone(), None), feed, stop, Metrics::new("test", None).unwrap())
        };
        let mut first = register();
        assert!(first.is_some() && register().is_none() && sessions.get(id).is_some_and(|it| it.is_loaded));
        first.as_mut().unwrap().end_stops();
        sessions.get(id).unwrap().stop(StopPreparing::Close).await;
        drop(first);
        assert!(register().is_some() && sessions.get(id).is_none());
    }
}
