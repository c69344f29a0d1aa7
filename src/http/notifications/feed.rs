//! What a subscriber gets, as one stream: first what it missed, page by page, then what comes.

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
        notify::toast::Scope,
        turn::outcome::{ErrorCode, Failure},
    },
    store::{self, Store},
};

/// Toasts that are read at once: some tens of kilobytes.
const PAGE: usize = 100;

/// One thing for the subscriber.
#[derive(Debug)]
pub(crate) enum Fed {
    /// A toast, or the place of one that cannot be read.
    Toast {
        /// As it is sent.
        frame: Arc<NotificationFrame>,
        /// Whether it had been missed.
        is_replay: bool,
    },
    /// Up to this number there is nothing more for it.
    ReadUntil(u64),
    /// It has what it missed; from here on it gets what comes.
    Joined,
    /// Telemetry.
    Telemetry {
        /// As it is sent.
        text: ByteString,
        /// Frames that were left out before it.
        left_out: u64,
    },
    /// Frames of telemetry that were left out, where none follows for now.
    LeftOut(u64),
    /// Nothing more comes.
    Ended(Ending),
    /// What it missed could not be read; nothing more comes.
    Failed(Failure),
}

/// How a subscriber is told that nothing more comes: the code of the closing frame, and what to do.
pub(crate) fn goodbye(ending: Ending) -> (u16, &'static str) {
    match ending {
        Ending::Evicted(_) => (close_code::TOO_SLOW, "too slow: connect again with this cursor"),
        Ending::Stopping => (close_code::GOING_AWAY, "the service stops: connect again"),
        Ending::Broken => (close_code::TRY_AGAIN, "a fault of ours: connect again with this cursor"),
    }
}

enum Stage {
    /// Reads what was missed.
    Missed,
    /// Has it all, and is about to join those who get what comes.
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

/// The stream of one subscriber that has everything until `after`, where `head` was the newest toast a moment ago. It
/// reads on only when it is asked for more.
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
                    Ok(Item::Toast(frame)) => return Some(Fed::Toast { frame, is_replay: false }),
                    Ok(Item::Telemetry(text)) => return Some(Fed::Telemetry { text, left_out: outlet.left_out() }),
                    Ok(Item::LeftOut(frames)) => return Some(Fed::LeftOut(frames)),
                    Ok(Item::ReadUntil(seq)) => return Some(Fed::ReadUntil(seq)),
                    Err(ending) => {
                        self.stage = Stage::Over;
                        return Some(Fed::Ended(ending));
                    }
                },
                Stage::Missed => self.read_on().await,
                Stage::Joins => self.join().await,
            };
            if let Err(cause) = stepped {
                self.stage = Stage::Over;
                return Some(Fed::Failed(cause));
            }
        }
    }

    /// One page of what was missed.
    async fn read_on(&mut self) -> Result<(), Failure> {
        let (store, scope, after) = (self.store.clone(), self.scope.clone(), self.after);
        let reading = async move {
            let page = store.notifications_after((*scope).clone(), after, PAGE).await?;
            Ok((page, store.stream_ends(scope.stream.clone()).await?))
        };
        let (page, ends) = self.hub.read(reading).await.map_err(|cause| store::failure(&cause))?;
        if ends.tail > self.after {
            // It is told when it says hello again: a part is never taken for the whole.
            return Err(Failure::new(
                ErrorCode::NotFound,
                "what was missed has just been removed, since it was too old",
            ));
        }
        if page.is_last {
            self.stage = Stage::Joins;
        }
        let toast = |row| Fed::Toast { frame: Arc::new(NotificationFrame::new(row)), is_replay: true };
        self.ready.extend(page.rows.into_iter().map(toast));
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
                self.ready.extend(missed.into_iter().map(|frame| Fed::Toast { frame, is_replay: true }));
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
                subscription::Eviction,
                toast::{Addressee, NewNotification, Stream as Sequence},
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

    /// Those with an even number cannot be read.
    fn is_toast(fed: Option<Fed>, seq: u64) {
        match fed {
            Some(Fed::Toast { frame, .. }) => {
                assert_eq!((frame.seq, frame.text.is_some()), (seq, seq % 2 == 1));
            }
            other => panic!("{seq}: {other:?}"),
        }
    }

    #[test]
    fn a_subscriber_whose_hub_broke_is_told_to_try_again_and_not_that_the_service_stops() {
        assert_eq!(goodbye(Ending::Broken).0, close_code::TRY_AGAIN);
        assert_eq!(goodbye(Ending::Stopping).0, close_code::GOING_AWAY);
        assert_eq!(goodbye(Ending::Evicted(Eviction::TooSlow)).0, close_code::TOO_SLOW);
    }

    #[actix::test]
    async fn what_is_removed_while_it_is_read_ends_the_reading_instead_of_leaving_a_hole() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder.path().join("test.db"));
        let told = 2 * PAGE as u64 + 10;
        for n in 0..told {
            let said = notice::of_failed_session(SessionId(Uuid::nil()), ErrorCode::AgentCrashed);
            let toast = NewNotification::new(Uuid::now_v7(), Addressee::Operators, said, n);
            assert!(store.tell(toast, Timestamp(n as i64)).await.unwrap());
        }
        let hub = hub(&store);
        let scope = Arc::new(Scope::all(Sequence::Operators));
        let feed = feed(store.clone(), hub, scope, (0, told), false, Arc::new(|_| {}));
        let mut feed = std::pin::pin!(feed);
        for n in 1..=PAGE as u64 {
            assert!(matches!(feed.next().await, Some(Fed::Toast { frame, is_replay: true }) if frame.seq == n));
        }
        // What has been read already may go.
        let prune = |until: usize| store.prune(Retained::Notifications, Timestamp(until as i64), 2 * PAGE);
        assert_eq!(prune(PAGE).await, Ok(PAGE));
        assert!(matches!(feed.next().await, Some(Fed::ReadUntil(until)) if until == PAGE as u64));
        assert!(matches!(feed.next().await, Some(Fed::Toast { frame, .. }) if frame.seq == PAGE as u64 + 1));
        assert_eq!(prune(2 * PAGE + 1).await, Ok(PAGE + 1));
        for _ in 1..PAGE {
            assert!(matches!(feed.next().await, Some(Fed::Toast { .. })));
        }
        assert!(matches!(feed.next().await, Some(Fed::ReadUntil(_))));
        assert!(matches!(feed.next().await, Some(Fed::Failed(_))));
        assert!(feed.next().await.is_none());
    }

    #[actix::test]
    async fn a_toast_that_cannot_be_read_is_told_to_everyone_and_holds_nobody_up() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("test.db");
        let store = store(&file);
        let tell = async |n: i64| {
            let said = notice::of_failed_session(SessionId(Uuid::nil()), ErrorCode::AgentCrashed);
            let toast = NewNotification::new(Uuid::now_v7(), Addressee::Operators, said, n);
            assert!(store.tell(toast, Timestamp(n)).await.unwrap());
            if n % 2 == 0 {
                let mut other = SqliteConnection::establish(file.to_str().unwrap()).unwrap();
                let broken = format!("UPDATE notifications SET severity = 'info', trigger = '?' WHERE seq = {n}");
                other.batch_execute(&broken).unwrap();
            }
        };
        for n in 1..=3 {
            tell(n).await;
        }
        let hub = hub(&store);
        let scope = Arc::new(Scope::all(Sequence::Operators));
        let read = |after| feed(store.clone(), hub.clone(), scope.clone(), (after, 3), false, Arc::new(|_| {}));
        let mut first = std::pin::pin!(read(0));
        for seq in 1..=3 {
            is_toast(first.next().await, seq);
        }
        assert!(matches!(first.next().await, Some(Fed::ReadUntil(3))));
        for n in 4..=5 {
            tell(n).await;
        }
        // The hub reads them when the first one joins, and has them at hand for the other one.
        assert!(matches!(first.next().await, Some(Fed::Joined)));
        for seq in 4..=5 {
            is_toast(first.next().await, seq);
        }
        let mut other = std::pin::pin!(read(3));
        for seq in 4..=5 {
            is_toast(other.next().await, seq);
        }
    }
}
