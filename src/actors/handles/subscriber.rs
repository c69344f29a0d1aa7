//! What goes to one subscriber: a bounded queue between the hub and its socket.
//!
//! A subscriber that is behind by more than the queue holds is released with the place to resume from; nobody waits for
//! it.

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
    contract::notifications::{frames::ServerFrame, toast::Toast},
    domain::{
        clock::Timestamp,
        heartbeat::STALL,
        ids::{SessionId, UserId, WorkspaceId},
        notify::{
            subscription::{Eviction, QUEUE_BYTES, QUEUE_FRAMES},
            toast::{Scope, session_suffix},
        },
    },
    store::{NotificationRow, StoredNotification, UnreadableNotification},
};

/// A notification as it is sent: written once, shared by all who get it.
#[derive(Debug)]
pub(crate) struct NotificationFrame {
    /// Its place in its sequence.
    pub seq: u64,
    /// When it was written to disk.
    pub created: Timestamp,
    /// JSON; none where the notification cannot be read: then its readers have to be told that something is missing
    /// here.
    pub text: Option<ByteString>,
    workspace: Option<WorkspaceId>,
    session: Option<SessionId>,
    user: Option<UserId>,
}

/// A notification as clients see it.
pub(crate) fn notification_of(row: &NotificationRow) -> Toast {
    Toast {
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
    /// Writes it.
    pub(crate) fn new(toast: StoredNotification) -> Self {
        let row = match toast {
            Ok(row) => row,
            Err(UnreadableNotification { seq }) => {
                return Self { seq, created: Timestamp(0), text: None, workspace: None, session: None, user: None };
            }
        };
        let frame = ServerFrame::Toast(notification_of(&row));
        Self {
            seq: row.seq,
            created: row.created,
            text: Some(serde_json::to_string(&frame).unwrap_or_default().into()),
            workspace: row.key.map(|key| key.workspace_id),
            session: row.session_id,
            user: row.user_id,
        }
    }

    /// Whether a scope of its sequence takes it; one that cannot be read may be for any.
    pub(crate) fn is_for(&self, scope: &Scope) -> bool {
        self.text.is_none() || scope.takes(self.workspace.as_ref(), self.session, self.user.as_ref())
    }
}

/// What waits for a subscriber.
#[derive(Debug, Clone)]
pub(crate) enum Item {
    /// A notification.
    Toast(Arc<NotificationFrame>),
    /// A frame of telemetry, as JSON.
    Telemetry(ByteString),
    /// So many frames of telemetry were skipped, and nothing more waits.
    LeftOut(u64),
    /// Up to this number there is nothing more for it.
    ReadUntil(u64),
}

impl Item {
    fn size_bytes(&self) -> usize {
        match self {
            Self::Toast(frame) => frame.text.as_ref().map_or(0, |text| text.len()),
            Self::Telemetry(text) => text.len(),
            Self::LeftOut(_) | Self::ReadUntil(_) => 0,
        }
    }
}

/// Why nothing more comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It was released.
    Evicted(Eviction),
    Stopping,
    /// The hub broke, by a fault of ours; another one takes its place.
    Broken,
}

/// Breaks a socket from outside, for a reason: a reader that does not read keeps its own actor from being run.
pub(crate) type Cut = Arc<dyn Fn(Ending) + Send + Sync>;

#[derive(Debug, Default)]
struct Gauge {
    bytes: AtomicUsize,
    taken: AtomicU64,
    left_out: AtomicU64,
    /// Wakes a subscriber that has taken everything before it could see that something was skipped.
    has_left_out: Notify,
    ending: OnceLock<Ending>,
}

pub(crate) struct Intake {
    scope: Scope,
    wants_telemetry: bool,
    /// What is not after this number it has already.
    after: u64,
    /// Up to this number it was told what there is.
    told: u64,
    queue: Option<mpsc::Sender<Item>>,
    gauge: Arc<Gauge>,
    cut: Cut,
    /// What had been taken when it was last looked at, and since when that is all.
    looked_at: (u64, Instant),
    /// Since when nothing more is put in.
    ended: Option<Instant>,
}

impl fmt::Debug for Intake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Intake").field("scope", &self.scope).field("gauge", &self.gauge).finish_non_exhaustive()
    }
}

/// The socket's end. Dropped, it is forgotten by the hub within a second.
#[derive(Debug)]
pub(crate) struct Outlet {
    queue: mpsc::Receiver<Item>,
    gauge: Arc<Gauge>,
}

/// How long a subscriber that was released may take to close its socket, until that is broken.
const PARTING: Duration = Duration::from_secs(4);

/// A pair of ends.
pub(crate) fn pipe(scope: Scope, wants_telemetry: bool, after: u64, cut: Cut) -> (Intake, Outlet) {
    let (queue, waiting) = mpsc::channel(QUEUE_FRAMES);
    let gauge = Arc::new(Gauge::default());
    let looked_at = (0, Instant::now());
    let intake = Intake {
        scope,
        wants_telemetry,
        after,
        told: after,
        queue: Some(queue),
        gauge: gauge.clone(),
        cut,
        looked_at,
        ended: None,
    };
    (intake, Outlet { queue: waiting, gauge })
}

impl Intake {
    /// Hands a notification on, where it is for this subscriber and new to it. One that is too far behind is released.
    pub(crate) fn toast(&mut self, frame: &Arc<NotificationFrame>) {
        if frame.seq <= self.after || !frame.is_for(&self.scope) {
            return;
        }
        self.told = frame.seq;
        if !self.push(Item::Toast(frame.clone())) {
            self.end(Ending::Evicted(Eviction::TooSlow));
        }
    }

    /// Tells one for whom nothing waits that up to a number there is nothing more for it: what is not for it need not
    /// be looked at again when it comes back.
    pub(crate) fn read_until(&mut self, seq: u64) {
        if seq > self.told && self.is_idle() && self.push(Item::ReadUntil(seq)) {
            self.told = seq;
        }
    }

    fn is_idle(&self) -> bool {
        self.queue.as_ref().is_some_and(|queue| queue.capacity() == QUEUE_FRAMES)
    }

    /// Hands telemetry on, where it is wanted. It takes half of the queue at most, so that it is never in the way of a
    /// notification; what does not fit is counted, and nothing worse.
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
        self.gauge.left_out.fetch_add(1, Ordering::AcqRel);
        self.gauge.has_left_out.notify_one();
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
            // It is gone, and forgotten at the next look.
            Err(mpsc::error::TrySendError::Closed(_)) => true,
            Err(mpsc::error::TrySendError::Full(_)) => false,
        }
    }

    /// Ends it: what waits still goes out, then the reason.
    pub(crate) fn end(&mut self, ending: Ending) {
        if let Some(queue) = self.queue.take() {
            // Before the queue ends, since who sees that asks for the reason. Only the first one counts.
            let _ = self.gauge.ending.set(ending);
            drop(queue);
            let now = Instant::now();
            (self.looked_at.1, self.ended) = (now, Some(now));
        }
    }

    /// Whether the subscriber is gone. One that takes nothing of what waits is released, and one that was released and
    /// neither takes what waits nor closes its socket in time has it broken.
    pub(crate) fn is_gone(&mut self, now: Instant) -> bool {
        if Arc::strong_count(&self.gauge) == 1 {
            return true;
        }
        let taken = self.gauge.taken.load(Ordering::Acquire);
        let may_go_on = self.ended.is_none_or(|ended| now.saturating_duration_since(ended) < STALL);
        if (taken != self.looked_at.0 && may_go_on) || self.is_idle() {
            self.looked_at = (taken, now);
        }
        let stands_since = now.saturating_duration_since(self.looked_at.1);
        if self.queue.is_some() && stands_since >= STALL {
            self.end(Ending::Evicted(Eviction::Stalled));
            (self.cut)(Ending::Evicted(Eviction::Stalled));
        } else if self.queue.is_none() && stands_since >= PARTING {
            (self.cut)(self.gauge.ending.get().copied().unwrap_or(Ending::Stopping));
        }
        false
    }

    /// Whether it wants telemetry.
    pub(crate) fn wants_telemetry(&self) -> bool {
        self.wants_telemetry
    }
}

impl Outlet {
    /// The next item, or why nothing more comes. Once everything is taken it says how much telemetry was skipped, which
    /// may have been the last of it. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Result<Item, Ending> {
        loop {
            if let Ok(item) = self.queue.try_recv() {
                return Ok(self.take(item));
            }
            match self.left_out() {
                0 => {}
                frames => return Ok(Item::LeftOut(frames)),
            }
            tokio::select! {
                biased;
                item = self.queue.recv() => {
                    // The hub gives a reason to everyone that it lets go.
                    let ending = || self.gauge.ending.get().copied().unwrap_or(Ending::Broken);
                    return item.map(|item| self.take(item)).ok_or_else(ending);
                }
                () = self.gauge.has_left_out.notified() => {}
            }
        }
    }

    fn take(&self, item: Item) -> Item {
        self.gauge.bytes.fetch_sub(item.size_bytes(), Ordering::AcqRel);
        self.gauge.taken.fetch_add(1, Ordering::AcqRel);
        item
    }

    /// Takes the number of frames of telemetry that were skipped since it was last asked.
    pub(crate) fn left_out(&self) -> u64 {
        self.gauge.left_out.swap(0, Ordering::AcqRel)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use uuid::Uuid;

    use super::*;
    use crate::domain::notify::toast::Stream;

    fn watched() -> (Intake, Outlet) {
        pipe(Scope::all(Stream::Tenant("acme".parse().unwrap())), true, 0, Arc::new(|_| {}))
    }

    fn toast(seq: u64) -> Arc<NotificationFrame> {
        let text = Some(ByteString::from("{}"));
        Arc::new(NotificationFrame { seq, created: Timestamp(0), text, workspace: None, session: None, user: None })
    }

    #[tokio::test]
    async fn only_an_up_to_date_subscriber_gets_the_head() {
        let (mut intake, mut outlet) = watched();
        intake.read_until(3);
        intake.read_until(3);
        intake.toast(&toast(4));
        intake.read_until(9);
        assert!(matches!(outlet.next().await, Ok(Item::ReadUntil(3))));
        assert!(matches!(outlet.next().await, Ok(Item::Toast(frame)) if frame.seq == 4));
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
            intake.toast(&toast(seq));
        }
        let begin = Instant::now();
        let mut seconds = 0;
        while cuts.load(Ordering::SeqCst) == 0 {
            seconds += 3;
            assert!(matches!(outlet.next().await, Ok(Item::Toast(_))));
            assert!(!intake.is_gone(begin + Duration::from_secs(seconds)));
        }
        let longest = (STALL + PARTING).as_secs() + 3;
        assert!((STALL.as_secs()..=longest).contains(&seconds), "{seconds} s");
    }

    fn tell(intake: &mut Intake, frames: usize) {
        for _ in 0..frames {
            intake.telemetry((&"web".parse().unwrap(), SessionId(Uuid::nil()), None), &ByteString::from("{}"));
        }
    }

    #[tokio::test]
    async fn skipped_telemetry_is_reported_without_a_successor() {
        let (mut intake, mut outlet) = watched();
        tell(&mut intake, QUEUE_FRAMES / 2 + 3);
        for _ in 0..QUEUE_FRAMES / 2 {
            assert!(matches!(outlet.next().await, Ok(Item::Telemetry(_))));
        }
        assert!(matches!(outlet.next().await, Ok(Item::LeftOut(3))));
        assert!(outlet.next().now_or_never().is_none(), "told once");
        tell(&mut intake, 1);
        assert!(matches!(outlet.next().await, Ok(Item::Telemetry(_))));
        assert_eq!(outlet.left_out(), 0);
        intake.end(Ending::Stopping);
        assert!(matches!(outlet.next().await, Err(Ending::Stopping)));
    }

    /// The hub finds no room; before it notes that, the subscriber has taken everything and waits.
    #[tokio::test]
    async fn waiting_subscriber_learns_of_skipped_telemetry() {
        let (intake, mut outlet) = watched();
        let waiting = tokio::spawn(async move { outlet.next().await });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        intake.leave_out();
        assert!(matches!(waiting.await.unwrap(), Ok(Item::LeftOut(1))));
    }

    #[tokio::test]
    async fn missing_hub_reply_means_a_break() {
        let (intake, mut outlet) = watched();
        drop(intake);
        assert!(matches!(outlet.next().await, Err(Ending::Broken)));
    }
}
