//! The stream of one subscriber: missed notifications page by page, then live ones.

use std::{collections::VecDeque, sync::Arc};

use bytestring::ByteString;
use futures_util::{Stream, stream};

use crate::{
    actors::{
        handles::{
            messages::{Subscribe, Subscribed},
            subscriber::{Cut, Ending, Item, NotificationFrame, Outlet},
        },
        notifications::NotificationHub,
    },
    contract::notifications::frames::close_code,
    domain::{
        notify::notification::Scope,
        turn::outcome::{ErrorCode, Failure},
    },
    store::{self, Store},
};

/// Notifications per page of a replay: some tens of kilobytes.
const PAGE: usize = 100;

/// An item of the stream.
#[derive(Debug)]
pub(crate) enum Fed {
    /// A notification, or the position of an unreadable one.
    Notification {
        frame: Arc<NotificationFrame>,
        /// True if it is replayed.
        is_replay: bool,
    },
    /// No more notifications up to this `seq`.
    ReadUntil(u64),
    /// The replay is complete; live notifications follow.
    Joined,
    /// Progress of a session.
    Telemetry {
        text: ByteString,
        /// Frames that were dropped before it.
        dropped: u64,
    },
    /// Progress frames that were dropped, if none follows for now.
    Dropped(u64),
    /// The end of the stream.
    Ended(Ending),
    /// The replay failed; the end of the stream.
    Failed(Failure),
}

/// Close code and reason of the closing frame.
pub(crate) fn close_reason(ending: Ending) -> (u16, &'static str) {
    match ending {
        Ending::Evicted(_) => (close_code::TOO_SLOW, "too slow: reconnect with this cursor"),
        Ending::Stopping => (close_code::GOING_AWAY, "the service is stopping: reconnect"),
        Ending::Broken => (close_code::TRY_AGAIN, "internal error: reconnect with this cursor"),
    }
}

enum Stage {
    /// Replays missed notifications.
    Missed,
    /// The replay is complete; the hub takes over next.
    Joins,
    Live(Outlet),
    Over,
}

struct Feed {
    store: Store,
    hub: NotificationHub,
    scope: Arc<Scope>,
    after: u64,
    wants_telemetry: bool,
    cut: Cut,
    ready: VecDeque<Fed>,
    stage: Stage,
}

/// The stream of a subscriber that has everything up to `after`; `head` is the newest `seq`. Pages are read only as the
/// stream is polled.
pub(crate) fn feed(
    store: Store,
    hub: NotificationHub,
    scope: Arc<Scope>,
    (after, head): (u64, u64),
    wants_telemetry: bool,
    cut: Cut,
) -> impl Stream<Item = Fed> {
    let stage = if after < head { Stage::Missed } else { Stage::Joins };
    let feed = Feed { store, hub, scope, after, wants_telemetry, cut, ready: VecDeque::new(), stage };
    stream::unfold(feed, |mut feed| async move {
        let fed = feed.next().await?;
        Some((fed, feed))
    })
}

impl Feed {
    async fn next(&mut self) -> Option<Fed> {
        loop {
            if let Some(fed) = self.ready.pop_front() {
                return Some(fed);
            }
            let stepped = match &mut self.stage {
                Stage::Over => return None,
                Stage::Live(outlet) => match outlet.next().await {
                    Ok(Item::Notification(frame)) => return Some(Fed::Notification { frame, is_replay: false }),
                    Ok(Item::Telemetry(text)) => {
                        return Some(Fed::Telemetry { text, dropped: outlet.take_dropped() });
                    }
                    Ok(Item::Dropped(frames)) => return Some(Fed::Dropped(frames)),
                    Ok(Item::ReadUntil(seq)) => return Some(Fed::ReadUntil(seq)),
                    Err(ending) => {
                        self.stage = Stage::Over;
                        return Some(Fed::Ended(ending));
                    }
                },
                Stage::Missed => self.read_page().await,
                Stage::Joins => self.join().await,
            };
            if let Err(cause) = stepped {
                self.stage = Stage::Over;
                return Some(Fed::Failed(cause));
            }
        }
    }

    /// Reads one page of missed notifications.
    async fn read_page(&mut self) -> Result<(), Failure> {
        let (store, scope, after) = (self.store.clone(), self.scope.clone(), self.after);
        let reading = async move {
            let page = store.notifications_after((*scope).clone(), after, PAGE).await?;
            Ok((page, store.stream_ends(scope.stream.clone()).await?))
        };
        let (page, ends) = self.hub.read(reading).await.map_err(|cause| store::failure(&cause))?;
        if ends.tail > self.after {
            // The next `hello` gets a reset: a partial replay is never taken for a complete one.
            return Err(Failure::new(ErrorCode::NotFound, "missed notifications were removed during the replay"));
        }
        if page.is_last {
            self.stage = Stage::Joins;
        }
        let notification = |row| Fed::Notification { frame: Arc::new(NotificationFrame::new(row)), is_replay: true };
        self.ready.extend(page.rows.into_iter().map(notification));
        self.ready.push_back(Fed::ReadUntil(page.until));
        self.after = page.until;
        Ok(())
    }

    async fn join(&mut self) -> Result<(), Failure> {
        let subscribe = Subscribe {
            scope: (*self.scope).clone(),
            after: self.after,
            wants_telemetry: self.wants_telemetry,
            cut: self.cut.clone(),
        };
        match self.hub.subscribe(subscribe).await? {
            Subscribed::Behind => self.stage = Stage::Missed,
            Subscribed::Joined { missed, outlet } => {
                self.ready.extend(missed.into_iter().map(|frame| Fed::Notification { frame, is_replay: true }));
                self.ready.push_back(Fed::Joined);
                self.stage = Stage::Live(outlet);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use diesel::{Connection, SqliteConnection, connection::SimpleConnection};
    use futures_util::StreamExt;
    use uuid::Uuid;

    use super::*;
    use crate::{
        actors::{handles::session_progress, notifications::hub::HubServices, upkeep::keeper::Keeper},
        domain::{
            clock::Timestamp,
            ids::SessionId,
            notify::{
                notice,
                notification::{Addressee, NewNotification, Stream as Sequence},
                subscription::Eviction,
            },
            session::restart::RestartLimits,
        },
        store::Retained,
        telemetry::{Metrics, SystemClock},
    };

    fn store(file: &std::path::Path) -> Store {
        Store::for_tests(file)
    }

    fn hub(store: &Store) -> NotificationHub {
        let metrics = Metrics::new("0", None).unwrap();
        let (_, telemetry) = session_progress::telemetry(metrics.clone());
        let limits = RestartLimits { max_restarts: 0, within: Duration::from_secs(60) };
        let keeper = Keeper { metrics, clock: Arc::new(SystemClock), limits };
        let services = HubServices::new(store.clone(), telemetry, false);
        NotificationHub::start(services, keeper, 9)
    }

    /// Notifications with an even number cannot be read.
    fn is_notification(fed: Option<Fed>, seq: u64) {
        match fed {
            Some(Fed::Notification { frame, .. }) => {
                assert_eq!((frame.seq, frame.text.is_some()), (seq, seq % 2 == 1));
            }
            other => panic!("{seq}: {other:?}"),
        }
    }

    #[test]
    fn close_codes_differ_by_ending() {
        assert_eq!(close_reason(Ending::Broken).0, close_code::TRY_AGAIN);
        assert_eq!(close_reason(Ending::Stopping).0, close_code::GOING_AWAY);
        assert_eq!(close_reason(Ending::Evicted(Eviction::TooSlow)).0, close_code::TOO_SLOW);
    }

    #[actix::test]
    async fn removal_during_a_replay_ends_it_instead_of_leaving_a_hole() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder.path().join("test.db"));
        let count = 2 * PAGE as u64 + 10;
        for n in 0..count {
            let notice = notice::of_failed_session(SessionId(Uuid::nil()), ErrorCode::AgentCrashed);
            let notification = NewNotification::new(Uuid::now_v7(), Addressee::Operators, notice, n);
            assert!(store.add_notification(notification, Timestamp(n as i64)).await.unwrap());
        }
        let hub = hub(&store);
        let scope = Arc::new(Scope::all(Sequence::Operators));
        let feed = feed(store.clone(), hub, scope, (0, count), false, Arc::new(|_| {}));
        let mut feed = std::pin::pin!(feed);
        for n in 1..=PAGE as u64 {
            assert!(
                matches!(feed.next().await, Some(Fed::Notification { frame, is_replay: true }) if frame.seq == n)
            );
        }
        // Removing rows that were already read is harmless.
        let prune = |until: usize| store.prune(Retained::Notifications, Timestamp(until as i64), 2 * PAGE);
        assert_eq!(prune(PAGE).await, Ok(PAGE));
        assert!(matches!(feed.next().await, Some(Fed::ReadUntil(until)) if until == PAGE as u64));
        assert!(matches!(feed.next().await, Some(Fed::Notification { frame, .. }) if frame.seq == PAGE as u64 + 1));
        assert_eq!(prune(2 * PAGE + 1).await, Ok(PAGE + 1));
        for _ in 1..PAGE {
            assert!(matches!(feed.next().await, Some(Fed::Notification { .. })));
        }
        assert!(matches!(feed.next().await, Some(Fed::ReadUntil(_))));
        assert!(matches!(feed.next().await, Some(Fed::Failed(_))));
        assert!(feed.next().await.is_none());
    }

    #[actix::test]
    async fn an_unreadable_notification_is_reported_and_does_not_block() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("test.db");
        let store = store(&file);
        let notify = async |n: i64| {
            let notice = notice::of_failed_session(SessionId(Uuid::nil()), ErrorCode::AgentCrashed);
            let notification = NewNotification::new(Uuid::now_v7(), Addressee::Operators, notice, n);
            assert!(store.add_notification(notification, Timestamp(n)).await.unwrap());
            if n % 2 == 0 {
                let mut other = SqliteConnection::establish(file.to_str().unwrap()).unwrap();
                let broken = format!("UPDATE notifications SET severity = 'info', trigger = '?' WHERE seq = {n}");
                other.batch_execute(&broken).unwrap();
            }
        };
        for n in 1..=3 {
            notify(n).await;
        }
        let hub = hub(&store);
        let scope = Arc::new(Scope::all(Sequence::Operators));
        let read = |after| feed(store.clone(), hub.clone(), scope.clone(), (after, 3), false, Arc::new(|_| {}));
        let mut first = std::pin::pin!(read(0));
        for seq in 1..=3 {
            is_notification(first.next().await, seq);
        }
        assert!(matches!(first.next().await, Some(Fed::ReadUntil(3))));
        for n in 4..=5 {
            notify(n).await;
        }
        // The hub reads them when the first subscriber joins, and keeps them for the second.
        assert!(matches!(first.next().await, Some(Fed::Joined)));
        for seq in 4..=5 {
            is_notification(first.next().await, seq);
        }
        let mut other = std::pin::pin!(read(3));
        for seq in 4..=5 {
            is_notification(other.next().await, seq);
        }
    }
}
