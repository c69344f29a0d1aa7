//! What goes to one subscriber: a bounded queue between the hub and its socket.
//!
//! A subscriber that is behind by more than the queue holds is let go with the place to resume from; nobody waits for it.

use std::{
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytestring::ByteString;
use tokio::sync::mpsc;

use crate::{
    contract::{toast::Toast, toast_frames::ServerFrame},
    domain::{
        clock::Timestamp,
        ids::{SessionId, UserId, WorkspaceId},
        subscription::{Eviction, QUEUE_BYTES, QUEUE_FRAMES, STALL},
        toast::{Scope, session_suffix},
    },
    store::NotificationRow,
};

/// A toast as it is sent: written once, shared by all who get it.
#[derive(Debug)]
pub struct ToastFrame {
    /// Its place in its sequence.
    pub seq: u64,
    /// When it was written down.
    pub created: Timestamp,
    /// JSON.
    pub text: ByteString,
    workspace: Option<WorkspaceId>,
    session: Option<SessionId>,
    user: Option<UserId>,
}

/// A toast as clients see it.
pub fn toast_of(row: &NotificationRow) -> Toast {
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

impl ToastFrame {
    /// Writes it.
    pub fn new(row: NotificationRow) -> Self {
        let frame = ServerFrame::Toast(toast_of(&row));
        Self {
            seq: row.seq,
            created: row.created,
            text: serde_json::to_string(&frame).unwrap_or_default().into(),
            workspace: row.key.map(|key| key.workspace_id),
            session: row.session_id,
            user: row.user_id,
        }
    }

    /// Whether a scope of its sequence takes it.
    pub fn is_for(&self, scope: &Scope) -> bool {
        scope.takes(self.workspace.as_ref(), self.session, self.user.as_ref())
    }
}

/// What waits for a subscriber.
#[derive(Debug, Clone)]
pub enum Item {
    /// A toast.
    Toast(Arc<ToastFrame>),
    /// A frame of telemetry, as JSON.
    Telemetry(ByteString),
}

impl Item {
    fn size_bytes(&self) -> usize {
        match self {
            Self::Toast(frame) => frame.text.len(),
            Self::Telemetry(text) => text.len(),
        }
    }
}

/// Why nothing more comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It was let go.
    Evicted(Eviction),
    /// The service stops.
    Stopping,
}

/// Breaks a socket from outside, for a reason: a reader that does not read keeps its own actor from being run.
pub type Cut = Arc<dyn Fn(Ending) + Send + Sync>;

#[derive(Debug, Default)]
struct Gauge {
    bytes: AtomicUsize,
    taken: AtomicU64,
    left_out: AtomicU64,
    ending: OnceLock<Ending>,
}

/// The hub's end.
pub struct Intake {
    scope: Scope,
    wants_telemetry: bool,
    /// What is not after this number it has already.
    after: u64,
    queue: Option<mpsc::Sender<Item>>,
    gauge: Arc<Gauge>,
    cut: Cut,
    /// What had been taken when it was last looked at, and since when that is all.
    looked_at: (u64, Instant),
}

impl fmt::Debug for Intake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Intake").field("scope", &self.scope).field("gauge", &self.gauge).finish_non_exhaustive()
    }
}

/// The socket's end. Dropped, it is forgotten by the hub within a second.
#[derive(Debug)]
pub struct Outlet {
    queue: mpsc::Receiver<Item>,
    gauge: Arc<Gauge>,
}

/// How long a subscriber that was let go may take to close its socket, until that is broken.
const PARTING: Duration = Duration::from_secs(4);

/// A pair of ends.
pub fn pipe(scope: Scope, wants_telemetry: bool, after: u64, cut: Cut) -> (Intake, Outlet) {
    let (queue, waiting) = mpsc::channel(QUEUE_FRAMES);
    let gauge = Arc::new(Gauge::default());
    let looked_at = (0, Instant::now());
    let intake = Intake { scope, wants_telemetry, after, queue: Some(queue), gauge: gauge.clone(), cut, looked_at };
    (intake, Outlet { queue: waiting, gauge })
}

impl Intake {
    /// Hands a toast on, where it is for this subscriber and new to it. One that is too far behind is let go.
    pub fn toast(&mut self, frame: &Arc<ToastFrame>) {
        if frame.seq > self.after && frame.is_for(&self.scope) && !self.push(Item::Toast(frame.clone())) {
            self.end(Ending::Evicted(Eviction::TooSlow));
        }
    }

    /// Hands telemetry on, where it is wanted. It takes half of the queue at most, so that it is never in the way of a
    /// toast; what does not fit is counted, and nothing worse.
    pub fn telemetry(&mut self, about: (&WorkspaceId, SessionId, Option<&UserId>), text: &ByteString) {
        let (workspace, session, user) = about;
        if !self.wants_telemetry || !self.scope.takes(Some(workspace), Some(session), user) {
            return;
        }
        let has_room = self.queue.as_ref().is_some_and(|queue| queue.capacity() > QUEUE_FRAMES / 2);
        if !has_room || !self.push(Item::Telemetry(text.clone())) {
            self.gauge.left_out.fetch_add(1, Ordering::Relaxed);
        }
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
    pub fn end(&mut self, ending: Ending) {
        if self.queue.take().is_some() {
            // Only the first reason counts.
            let _ = self.gauge.ending.set(ending);
            self.looked_at.1 = Instant::now();
        }
    }

    /// Whether the subscriber is gone. One that takes nothing of what waits is let go, and one that was let go and does
    /// not close its socket in time has it broken.
    pub fn is_gone(&mut self, now: Instant) -> bool {
        if Arc::strong_count(&self.gauge) == 1 {
            return true;
        }
        let taken = self.gauge.taken.load(Ordering::Acquire);
        let is_idle = self.queue.as_ref().is_some_and(|queue| queue.capacity() == QUEUE_FRAMES);
        if (taken != self.looked_at.0 || is_idle) && self.queue.is_some() {
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
    pub fn wants_telemetry(&self) -> bool {
        self.wants_telemetry
    }
}

impl Outlet {
    /// The next item, or why nothing more comes. Cancel-safe.
    pub async fn next(&mut self) -> Result<Item, Ending> {
        match self.queue.recv().await {
            Some(item) => {
                self.gauge.bytes.fetch_sub(item.size_bytes(), Ordering::AcqRel);
                self.gauge.taken.fetch_add(1, Ordering::AcqRel);
                Ok(item)
            }
            // Without a reason, the hub is gone with the service.
            None => Err(self.gauge.ending.get().copied().unwrap_or(Ending::Stopping)),
        }
    }

    /// Takes the number of frames of telemetry that were left out since it was last asked.
    pub fn left_out(&self) -> u64 {
        self.gauge.left_out.swap(0, Ordering::AcqRel)
    }
}
