//! Notification hub: delivers committed notifications and live telemetry to subscribers.
//!
//! The rows are authoritative: a commit only wakes this actor, which reads the rows after the newest notification that
//! it delivered, in order. So no notification is delivered before it is on disk, none is skipped, and any process may
//! have written it.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use actix::{Actor, ActorFutureExt, AsyncContext, Context, Handler, MessageResult, StreamHandler, WrapFuture};
use bytestring::ByteString;
use futures_util::stream;
use tokio::sync::watch;

use crate::{
    actors::handles::{
        messages::{CloseSubscribers, StreamGrew, Subscribe, Subscribed},
        session_progress::{SessionTelemetry, TelemetrySource},
        subscriber::{Ending, Intake, NotificationFrame, pipe},
    },
    domain::notify::notification::{Scope, Stream},
    store::{Store, StoreError, StoredNotification, StreamPage},
};

/// Mailbox capacity for subscriptions; further senders wait.
const MAILBOX: usize = 1024;
/// Recent notifications of a stream that are kept in memory for new subscribers.
const RECENT: usize = 256;
/// Notifications per read: half of a subscriber's queue, so that one batch cannot evict a subscriber that keeps
/// reading.
const AT_ONCE: usize = 128;
/// Interval of the check for disconnected and stalled subscribers, and the pause before a failed read is retried.
const LOOK: Duration = Duration::from_secs(1);

/// A stream with at least one subscriber.
#[derive(Debug, Default)]
struct FollowedStream {
    /// Sequence number of the newest delivered notification.
    head: u64,
    /// The newest notifications, without a gap up to `head`.
    recent: VecDeque<Arc<NotificationFrame>>,
    /// Sequence number before the first notification of `recent`.
    recent_after: u64,
    readers: Vec<Intake>,
    is_read: bool,
    /// True if the stream grew during a read.
    grew: bool,
}

/// Services of a hub, which outlive it. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct HubServices {
    pub store: Store,
    /// Source of the sessions' telemetry.
    pub telemetry: TelemetrySource,
    /// True if other processes write to the same database, so that it must be polled.
    pub is_shared: bool,
    /// True once subscribers are being closed; new ones are closed at once.
    pub closed: Arc<watch::Sender<bool>>,
}

impl HubServices {
    /// Services of a hub that accepts subscribers.
    pub(crate) fn new(store: Store, telemetry: TelemetrySource, is_shared: bool) -> Self {
        Self { store, telemetry, is_shared, closed: Arc::default() }
    }
}

pub(crate) struct Notifications {
    services: HubServices,
    followed: HashMap<Stream, FollowedStream>,
}

impl Notifications {
    /// Creates a hub without subscribers.
    pub(crate) fn new(services: HubServices) -> Self {
        // The watchers of an earlier hub have been disconnected.
        services.telemetry.watchers.store(0, Ordering::Relaxed);
        Self { services, followed: HashMap::new() }
    }
}

impl Actor for Notifications {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
        let grown = stream::unfold(self.services.store.grown_streams(), |streams| async move {
            let grown = streams.next().await;
            Some((grown, streams))
        });
        ctx.add_stream(futures_util::StreamExt::map(grown, |streams| StreamGrew(streams.into_iter().collect())));
        ctx.add_stream(stream::unfold(self.services.telemetry.clone(), |source| async move {
            let next = source.next().await?;
            Some((next, source))
        }));
        ctx.run_interval(LOOK, Self::look);
    }
}

impl Notifications {
    /// Reads the notifications after the newest delivered one.
    fn read(&mut self, stream: Stream, ctx: &mut Context<Self>) {
        let Some(followed) = self.followed.get_mut(&stream) else { return };
        // One read for each stream at a time keeps the order; growth meanwhile causes one more read.
        if std::mem::replace(&mut followed.is_read, true) {
            followed.grew = true;
            return;
        }
        followed.grew = false;
        let (store, after) = (self.services.store.clone(), followed.head);
        let reading = async move {
            let read = store.notifications_after(Scope::all(stream.clone()), after, AT_ONCE).await;
            (stream, read)
        };
        ctx.spawn(
            reading.into_actor(self).map(move |(stream, read), this, ctx| this.on_read(stream, after, read, ctx)),
        );
    }

    fn on_read(&mut self, stream: Stream, after: u64, read: Result<StreamPage, StoreError>, ctx: &mut Context<Self>) {
        let Some(followed) = self.followed.get_mut(&stream).filter(|followed| followed.resumes_after(after)) else {
            return;
        };
        followed.is_read = false;
        match read {
            Ok(StreamPage { rows, until, is_last }) => {
                followed.deliver(rows, until);
                if !is_last || followed.grew {
                    self.read(stream, ctx);
                }
            }
            Err(cause) => {
                tracing::warn!(%cause, %stream, "notifications could not be read; retrying");
                ctx.run_later(LOOK, move |this, ctx| this.read(stream, ctx));
            }
        }
    }

    /// Drops disconnected subscribers and evicts stalled ones; polls the database if other processes write to it.
    fn look(&mut self, ctx: &mut Context<Self>) {
        let now = Instant::now();
        let mut watchers = 0;
        self.followed.retain(|_, followed| {
            followed.readers.retain_mut(|reader| !reader.has_disconnected(now));
            followed.readers.iter_mut().for_each(|reader| reader.read_until(followed.head));
            watchers += followed.readers.iter().filter(|reader| reader.wants_telemetry()).count();
            !followed.readers.is_empty()
        });
        self.services.telemetry.watchers.store(watchers, Ordering::Relaxed);
        if self.services.is_shared && !self.followed.is_empty() {
            let (store, streams) = (self.services.store.clone(), self.followed.keys().cloned().collect());
            let looking = async move { store.stream_heads(streams).await };
            ctx.spawn(looking.into_actor(self).map(|heads, this, ctx| match heads {
                Ok(heads) => this.catch_up(heads, ctx),
                Err(cause) => tracing::debug!(%cause, "notifications of other processes could not be read; retrying"),
            }));
        }
    }
}

impl Notifications {
    /// Reads the streams to which other processes have appended.
    fn catch_up(&mut self, heads: Vec<(Stream, u64)>, ctx: &mut Context<Self>) {
        for (stream, head) in heads {
            if self.followed.get(&stream).is_some_and(|followed| followed.head < head) {
                self.read(stream, ctx);
            }
        }
    }
}

impl FollowedStream {
    /// True if a page that was read after `number` comes next. Otherwise the read was started for earlier subscribers:
    /// the stream was dropped and followed again from another position meanwhile, and has a read of its own.
    fn resumes_after(&self, number: u64) -> bool {
        self.head == number
    }

    fn deliver(&mut self, notifications: Vec<StoredNotification>, until: u64) {
        for notification in notifications {
            let frame = Arc::new(NotificationFrame::new(notification));
            for reader in &mut self.readers {
                reader.notification(&frame);
            }
            if self.recent.len() == RECENT {
                self.recent_after = self.recent.pop_front().map_or(self.recent_after, |oldest| oldest.seq);
            }
            self.recent.push_back(frame);
        }
        self.head = self.head.max(until);
    }
}

impl StreamHandler<StreamGrew> for Notifications {
    /// Keeps the hub running for its subscribers.
    fn finished(&mut self, _: &mut Self::Context) {}

    fn handle(&mut self, StreamGrew(streams): StreamGrew, ctx: &mut Self::Context) {
        for stream in streams {
            self.read(stream, ctx);
        }
    }
}

impl StreamHandler<SessionTelemetry> for Notifications {
    /// Keeps the hub running without telemetry.
    fn finished(&mut self, _: &mut Self::Context) {}

    fn handle(&mut self, telemetry: SessionTelemetry, _: &mut Self::Context) {
        let SessionTelemetry { workspace, session, user, text } = telemetry;
        let Some(followed) = self.followed.get_mut(&Stream::Tenant(workspace.installation_id)) else { return };
        let text = ByteString::from(text);
        for reader in &mut followed.readers {
            reader.telemetry((&workspace.workspace_id, session, user.as_ref()), &text);
        }
    }
}

impl Handler<Subscribe> for Notifications {
    type Result = MessageResult<Subscribe>;

    fn handle(&mut self, message: Subscribe, ctx: &mut Self::Context) -> Self::Result {
        let Subscribe { scope, after, wants_telemetry, cut } = message;
        let stream = scope.stream.clone();
        let fresh = || FollowedStream { head: after, recent_after: after, ..FollowedStream::default() };
        let followed = self.followed.entry(stream.clone()).or_insert_with(fresh);
        // The hub no longer holds everything after the cursor, so the subscriber reads a further page first.
        if after < followed.recent_after {
            return MessageResult(Subscribed::Behind);
        }
        let missed =
            followed.recent.iter().filter(|frame| frame.seq > after && frame.is_for(&scope)).cloned().collect();
        let (mut intake, outlet) = pipe(scope, wants_telemetry, after.max(followed.head), cut);
        if *self.services.closed.borrow() {
            // Joined and ended at once, so that the reason for the end reaches the client as for every other
            // subscriber.
            intake.end(Ending::Stopping);
        }
        followed.readers.push(intake);
        if wants_telemetry {
            self.services.telemetry.watchers.fetch_add(1, Ordering::Relaxed);
        }
        // A stream without subscribers may have grown meanwhile.
        self.read(stream, ctx);
        MessageResult(Subscribed::Joined { missed, outlet })
    }
}

impl Handler<CloseSubscribers> for Notifications {
    type Result = ();

    fn handle(&mut self, _: CloseSubscribers, _: &mut Self::Context) {
        for reader in self.followed.values_mut().flat_map(|followed| &mut followed.readers) {
            reader.end(Ending::Stopping);
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::{
        actors::handles::{session_progress, subscriber::Item},
        domain::{
            clock::Timestamp,
            ids::WorkspaceKey,
            notify::notification::{Severity, Trigger},
        },
        store::NotificationRow,
        telemetry::Metrics,
    };

    fn stream() -> Stream {
        Stream::Tenant("acme".parse().unwrap())
    }

    fn row(seq: u64) -> NotificationRow {
        NotificationRow {
            notification_id: Uuid::now_v7(),
            stream: stream(),
            seq,
            key: Some(WorkspaceKey {
                installation_id: "acme".parse().unwrap(),
                workspace_id: "web".parse().unwrap(),
            }),
            session_id: None,
            user_id: None,
            title: "t".into(),
            body: "b".into(),
            severity: Severity::Info,
            trigger: Trigger::Recovered,
            auto_dismiss: Duration::ZERO,
            cause_id: seq.to_string(),
            created: Timestamp(0),
            figures: None,
        }
    }

    /// A read may outlive its subscribers: the stream is dropped, then followed again from an earlier or later
    /// position.
    #[actix::test]
    async fn shared_reads_are_delivered_once_and_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::for_tests(&folder.path().join("test.db"));
        let (_, telemetry) = session_progress::telemetry(Metrics::new("0", None).unwrap());
        let services = HubServices::new(store, telemetry, false);
        let mut hub = Notifications::new(services);
        let (intake, mut outlet) = pipe(Scope::all(stream()), false, 3, Arc::new(|_| {}));
        let followed = FollowedStream {
            head: 3,
            recent_after: 3,
            is_read: true,
            readers: vec![intake],
            ..FollowedStream::default()
        };
        hub.followed.insert(stream(), followed);
        let rows = |seqs: std::ops::RangeInclusive<u64>| seqs.map(|seq| Ok(row(seq))).collect::<Vec<_>>();
        Notifications::create(move |ctx| {
            for (after, read) in [(5, 6..=7), (1, 2..=7), (3, 4..=7), (3, 4..=8), (1, 2..=8), (7, 8..=8)] {
                let until = *read.end();
                let page = StreamPage { rows: rows(read), until, is_last: true };
                hub.on_read(stream(), after, Ok(page), ctx);
            }
            hub
        });
        for seq in 4..=8 {
            match outlet.next().await {
                Ok(Item::Notification(frame)) => assert_eq!(frame.seq, seq),
                other => panic!("{seq}: {other:?}"),
            }
        }
    }
}
