//! The bounded queue between the notification hub and the socket of one subscriber.
//!
//! A subscriber that is behind by more than the queue holds is evicted with the cursor to resume from; nothing waits
//! for it.

use std::{
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytestring::ByteString;
use tokio::sync::{Notify, mpsc};

use crate::{
    contract::notifications::{frames::ServerFrame, notification::Notification},
    domain::{
        clock::Timestamp,
        heartbeat::STALL,
        ids::{SessionId, UserId, WorkspaceId},
        notify::{
            notification::{Scope, session_suffix},
            subscription::{Eviction, QUEUE_BYTES, QUEUE_FRAMES},
        },
    },
    store::{NotificationRow, StoredNotification, UnreadableNotification},
};

/// A notification as it is sent: serialised once, shared by all its subscribers.
#[derive(Debug)]
pub(crate) struct NotificationFrame {
    /// Position in its stream.
    pub seq: u64,
    /// Time of the write to disk.
    pub created: Timestamp,
    /// JSON; `None` if the notification is unreadable: its subscribers are then notified that one is missing here.
    pub text: Option<ByteString>,
    workspace: Option<WorkspaceId>,
    session: Option<SessionId>,
    user: Option<UserId>,
}

/// Converts a row to the notification that clients see.
pub(crate) fn notification_of(row: &NotificationRow) -> Notification {
    Notification {
        id: row.notification_id.to_string(),
        seq: row.seq,
        title: row.title.clone(),
        body: row.body.clone(),
        severity: row.severity,
        trigger: row.trigger,
        auto_dismiss_ms: u32::try_from(row.auto_dismiss.as_millis()).unwrap_or(u32::MAX),
        cause_id: row.cause_id.clone(),
        workspace_id: row.key.as_ref().map(|key| key.workspace_id.to_string()),
        session_suffix: row.session_id.map(session_suffix),
        created_at: row.created.to_string(),
    }
}

impl NotificationFrame {
    /// Serialises a notification.
    pub(crate) fn new(notification: StoredNotification) -> Self {
        let row = match notification {
            Ok(row) => row,
            Err(UnreadableNotification { seq }) => {
                return Self { seq, created: Timestamp(0), text: None, workspace: None, session: None, user: None };
            }
        };
        let frame = ServerFrame::Notification(notification_of(&row));
        Self {
            seq: row.seq,
            created: row.created,
            text: Some(serde_json::to_string(&frame).unwrap_or_default().into()),
            workspace: row.key.map(|key| key.workspace_id),
            session: row.session_id,
            user: row.user_id,
        }
    }

    /// True if a scope of its stream includes the notification; an unreadable one may belong to any scope.
    pub(crate) fn is_for(&self, scope: &Scope) -> bool {
        self.text.is_none() || scope.takes(self.workspace.as_ref(), self.session, self.user.as_ref())
    }
}

/// An item in the queue of a subscriber.
#[derive(Debug, Clone)]
pub(crate) enum Item {
    Notification(Arc<NotificationFrame>),
    /// Session progress, as JSON.
    Telemetry(ByteString),
    /// Number of session progress frames that were skipped while the queue was full.
    Dropped(u64),
    /// Up to this position no further notification is for the subscriber.
    ReadUntil(u64),
}

impl Item {
    fn size_bytes(&self) -> usize {
        match self {
            Self::Notification(frame) => frame.text.as_ref().map_or(0, |text| text.len()),
            Self::Telemetry(text) => text.len(),
            Self::Dropped(_) | Self::ReadUntil(_) => 0,
        }
    }
}

/// Reason for the end of the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The hub evicted the subscriber.
    Evicted(Eviction),
    Stopping,
    /// The hub crashed; a new one takes its place.
    Broken,
}

/// Breaks a socket from outside, with a reason: a client that does not read can block the actor of its own socket.
pub(crate) type Cut = Arc<dyn Fn(Ending) + Send + Sync>;

#[derive(Debug, Default)]
struct Gauge {
    bytes: AtomicUsize,
    taken: AtomicU64,
    dropped: AtomicU64,
    /// Wakes a subscriber that emptied its queue before it could see that frames were skipped.
    has_dropped: Notify,
    ending: OnceLock<Ending>,
}

pub(crate) struct Intake {
    scope: Scope,
    wants_telemetry: bool,
    /// Notifications up to this position were received earlier.
    after: u64,
    /// Last position that the subscriber was sent or informed of.
    announced: u64,
    queue: Option<mpsc::Sender<Item>>,
    gauge: Arc<Gauge>,
    cut: Cut,
    /// Items taken at the last check, and the time since which that count is unchanged.
    looked_at: (u64, Instant),
    /// Time since which nothing more is queued.
    ended: Option<Instant>,
}

impl fmt::Debug for Intake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Intake").field("scope", &self.scope).field("gauge", &self.gauge).finish_non_exhaustive()
    }
}

/// The socket's end. Once it is dropped, the hub forgets the subscriber within a second.
#[derive(Debug)]
pub(crate) struct Outlet {
    queue: mpsc::Receiver<Item>,
    gauge: Arc<Gauge>,
}

/// Time for an evicted subscriber to close its socket before the hub breaks it.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(4);

/// Creates both ends.
pub(crate) fn pipe(scope: Scope, wants_telemetry: bool, after: u64, cut: Cut) -> (Intake, Outlet) {
    let (queue, waiting) = mpsc::channel(QUEUE_FRAMES);
    let gauge = Arc::new(Gauge::default());
    let looked_at = (0, Instant::now());
    let intake = Intake {
        scope,
        wants_telemetry,
        after,
        announced: after,
        queue: Some(queue),
        gauge: gauge.clone(),
        cut,
        looked_at,
        ended: None,
    };
    (intake, Outlet { queue: waiting, gauge })
}

impl Intake {
    /// Queues a notification if the subscriber wants it and does not have it. Evicts a subscriber that is too far
    /// behind.
    pub(crate) fn notification(&mut self, frame: &Arc<NotificationFrame>) {
        if frame.seq <= self.after || !frame.is_for(&self.scope) {
            return;
        }
        self.announced = frame.seq;
        if !self.push(Item::Notification(frame.clone())) {
            self.end(Ending::Evicted(Eviction::TooSlow));
        }
    }

    /// Informs an up-to-date subscriber that no notification up to `seq` is for it, so that the range need not be
    /// read again when it reconnects.
    pub(crate) fn read_until(&mut self, seq: u64) {
        if seq > self.announced && self.is_idle() && self.push(Item::ReadUntil(seq)) {
            self.announced = seq;
        }
    }

    fn is_idle(&self) -> bool {
        self.queue.as_ref().is_some_and(|queue| queue.capacity() == QUEUE_FRAMES)
    }

    /// Queues session progress if the subscriber wants it. Session progress takes at most half of the queue, so that
    /// it never displaces a notification; what does not fit is only counted.
    pub(crate) fn telemetry(&mut self, about: (&WorkspaceId, SessionId, Option<&UserId>), text: &ByteString) {
        let (workspace, session, user) = about;
        if !self.wants_telemetry || !self.scope.takes(Some(workspace), Some(session), user) {
            return;
        }
        let has_room = self.queue.as_ref().is_some_and(|queue| queue.capacity() > QUEUE_FRAMES / 2);
        if !has_room || !self.push(Item::Telemetry(text.clone())) {
            self.leave_out();
        }
    }

    fn leave_out(&self) {
        self.gauge.dropped.fetch_add(1, Ordering::AcqRel);
        self.gauge.has_dropped.notify_one();
    }

    fn push(&self, item: Item) -> bool {
        let Some(queue) = &self.queue else { return true };
        let size = item.size_bytes();
        if self.gauge.bytes.fetch_add(size, Ordering::AcqRel) + size > QUEUE_BYTES {
            self.gauge.bytes.fetch_sub(size, Ordering::AcqRel);
            return false;
        }
        match queue.try_send(item) {
            Ok(()) => true,
            // The subscriber has disconnected; the next check drops it.
            Err(mpsc::error::TrySendError::Closed(_)) => true,
            Err(mpsc::error::TrySendError::Full(_)) => false,
        }
    }

    /// Ends the queue: pending items are still delivered, then the reason.
    pub(crate) fn end(&mut self, ending: Ending) {
        if let Some(queue) = self.queue.take() {
            // Set before the queue ends, since the receiver then reads the reason. Only the first one counts.
            let _ = self.gauge.ending.set(ending);
            drop(queue);
            let now = Instant::now();
            (self.looked_at.1, self.ended) = (now, Some(now));
        }
    }

    /// True if the subscriber has disconnected. Evicts one that takes nothing from a filled queue, and breaks the
    /// socket of an evicted one that neither drains its queue nor closes the socket in time.
    pub(crate) fn has_disconnected(&mut self, now: Instant) -> bool {
        if Arc::strong_count(&self.gauge) == 1 {
            return true;
        }
        let taken = self.gauge.taken.load(Ordering::Acquire);
        let may_drain = self.ended.is_none_or(|ended| now.saturating_duration_since(ended) < STALL);
        if (taken != self.looked_at.0 && may_drain) || self.is_idle() {
            self.looked_at = (taken, now);
        }
        let unchanged_for = now.saturating_duration_since(self.looked_at.1);
        if self.queue.is_some() && unchanged_for >= STALL {
            self.end(Ending::Evicted(Eviction::Stalled));
            (self.cut)(Ending::Evicted(Eviction::Stalled));
        } else if self.queue.is_none() && unchanged_for >= CLOSE_TIMEOUT {
            (self.cut)(self.gauge.ending.get().copied().unwrap_or(Ending::Stopping));
        }
        false
    }

    /// True if the subscriber wants session progress.
    pub(crate) fn wants_telemetry(&self) -> bool {
        self.wants_telemetry
    }
}

impl Outlet {
    /// The next item, or the reason for the end. Once the queue is empty, reports the number of skipped session
    /// progress frames, since no later frame may follow.
    ///
    /// # Cancel safety
    /// No item is lost.
    pub(crate) async fn next(&mut self) -> Result<Item, Ending> {
        loop {
            if let Ok(item) = self.queue.try_recv() {
                return Ok(self.take(item));
            }
            match self.take_dropped() {
                0 => {}
                frames => return Ok(Item::Dropped(frames)),
            }
            tokio::select! {
                biased;
                item = self.queue.recv() => {
                    // The hub sets a reason for every subscriber that it evicts.
                    let ending = || self.gauge.ending.get().copied().unwrap_or(Ending::Broken);
                    return item.map(|item| self.take(item)).ok_or_else(ending);
                }
                () = self.gauge.has_dropped.notified() => {}
            }
        }
    }

    fn take(&self, item: Item) -> Item {
        self.gauge.bytes.fetch_sub(item.size_bytes(), Ordering::AcqRel);
        self.gauge.taken.fetch_add(1, Ordering::AcqRel);
        item
    }

    /// Takes the number of session progress frames skipped since the last call.
    pub(crate) fn take_dropped(&self) -> u64 {
        self.gauge.dropped.swap(0, Ordering::AcqRel)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use uuid::Uuid;

    use super::*;
    use crate::domain::notify::notification::Stream;

    fn watched() -> (Intake, Outlet) {
        pipe(Scope::all(Stream::Tenant("acme".parse().unwrap())), true, 0, Arc::new(|_| {}))
    }

    fn notification(seq: u64) -> Arc<NotificationFrame> {
        let text = Some(ByteString::from("{}"));
        Arc::new(NotificationFrame { seq, created: Timestamp(0), text, workspace: None, session: None, user: None })
    }

    #[tokio::test]
    async fn only_an_up_to_date_subscriber_gets_the_head() {
        let (mut intake, mut outlet) = watched();
        intake.read_until(3);
        intake.read_until(3);
        intake.notification(&notification(4));
        intake.read_until(9);
        assert!(matches!(outlet.next().await, Ok(Item::ReadUntil(3))));
        assert!(matches!(outlet.next().await, Ok(Item::Notification(frame)) if frame.seq == 4));
        intake.read_until(4);
        intake.read_until(9);
        assert!(matches!(outlet.next().await, Ok(Item::ReadUntil(9))));
        assert!(outlet.next().now_or_never().is_none());
    }

    #[tokio::test]
    async fn evicted_subscriber_may_drain_for_a_bounded_time() {
        let cuts = Arc::new(AtomicUsize::new(0));
        let cut = {
            let cuts = cuts.clone();
            Arc::new(move |_| {
                cuts.fetch_add(1, Ordering::SeqCst);
            })
        };
        let scope = Scope::all(Stream::Tenant("acme".parse().unwrap()));
        let (mut intake, mut outlet) = pipe(scope, false, 0, cut);
        for seq in 1..=QUEUE_FRAMES as u64 + 1 {
            intake.notification(&notification(seq));
        }
        let begin = Instant::now();
        let mut seconds = 0;
        while cuts.load(Ordering::SeqCst) == 0 {
            seconds += 3;
            assert!(matches!(outlet.next().await, Ok(Item::Notification(_))));
            assert!(!intake.has_disconnected(begin + Duration::from_secs(seconds)));
        }
        let longest = (STALL + CLOSE_TIMEOUT).as_secs() + 3;
        assert!((STALL.as_secs()..=longest).contains(&seconds), "{seconds} s");
    }

    fn send_progress(intake: &mut Intake, frames: usize) {
        for _ in 0..frames {
            intake.telemetry((&"web".parse().unwrap(), SessionId(Uuid::nil()), None), &ByteString::from("{}"));
        }
    }

    #[tokio::test]
    async fn skipped_telemetry_is_reported_without_a_successor() {
        let (mut intake, mut outlet) = watched();
        send_progress(&mut intake, QUEUE_FRAMES / 2 + 3);
        for _ in 0..QUEUE_FRAMES / 2 {
            assert!(matches!(outlet.next().await, Ok(Item::Telemetry(_))));
        }
        assert!(matches!(outlet.next().await, Ok(Item::Dropped(3))));
        assert!(outlet.next().now_or_never().is_none(), "reported once");
        send_progress(&mut intake, 1);
        assert!(matches!(outlet.next().await, Ok(Item::Telemetry(_))));
        assert_eq!(outlet.take_dropped(), 0);
        intake.end(Ending::Stopping);
        assert!(matches!(outlet.next().await, Err(Ending::Stopping)));
    }

    /// The queue is full; before the hub counts the skipped frame, the subscriber has taken everything and waits.
    #[tokio::test]
    async fn waiting_subscriber_learns_of_skipped_telemetry() {
        let (intake, mut outlet) = watched();
        let waiting = tokio::spawn(async move { outlet.next().await });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        intake.leave_out();
        assert!(matches!(waiting.await.unwrap(), Ok(Item::Dropped(1))));
    }

    #[tokio::test]
    async fn dropped_intake_reports_a_broken_hub() {
        let (intake, mut outlet) = watched();
        drop(intake);
        assert!(matches!(outlet.next().await, Err(Ending::Broken)));
    }
}
