//! Toasts: the list, and a reader that follows them whatever becomes of the line.
//!
//! [`frames`] reads what the server says, [`line`] is one WebSocket, [`retry`] decides what to do after its end,
//! [`crate::domain::notify::reading`] what is new, and [`bookmark`] keeps the place in a file. Nothing is queued but what a reset has left to tell: a reader that is
//! not asked for the next event does not read, and the server, which bounds what waits for it, lets it go and gets it
//! back with its cursor.

pub(crate) mod bookmark;
pub(crate) mod connection;
pub(crate) mod frames;
pub(crate) mod inbox;
pub(crate) mod retry;

use std::{collections::VecDeque, time::Duration};

use serde::Serialize;
use serde_json::{Map, Value};
use tokio::time::{Instant, sleep_until, timeout};
use uuid::Uuid;

pub(crate) use self::{
    bookmark::Bookmark,
    frames::ReceivedNotification,
    inbox::{InboxEntry, NotificationScope},
};
use self::{
    connection::{End, OpenConnection},
    frames::Incoming,
    retry::{Next, after_close, after_refusal},
};
use super::{ApiClient, ClientError, clean::clean_line};
use crate::{
    contract::notifications::frames::{ClientFrame, FRAMES_VERSION},
    domain::{
        heartbeat::Heartbeat,
        notify::reading::{Place, Reading},
        session::restart::reader_delay,
    },
};

/// A line that stood this long was a good one: the next waits are short again.
const STEADY: Duration = Duration::from_secs(5);
/// Toasts that are read from the list after a reset, the newest.
const MAX_MISSED: usize = 1000;
/// How long reading them may take; the server waits for us meanwhile.
const MISSED_TIMEOUT: Duration = Duration::from_secs(15);

/// What a reader of toasts is told.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub(crate) enum NotificationEvent {
    /// The first line stands.
    Welcome {
        /// Names the database.
        epoch: String,
        /// What comes is after this one.
        cursor: u64,
        /// Toasts that are not marked as read.
        unread: u64,
    },
    /// A toast: each one once, and but for those after a reset in their order.
    Toast(ReceivedNotification),
    /// How a session is doing.
    Telemetry(Map<String, Value>),
    /// So many frames of telemetry were left out.
    Gap {
        /// How many.
        telemetry: u64,
    },
    /// The cursor cannot be gone on from. What the list still has of what was missed follows, then `caughtUp`.
    Reset {
        /// `tooOld`, `otherEpoch`, `ahead` or `unreadable`.
        reason: String,
    },
    /// What the list still had has been told.
    CaughtUp {
        /// How many toasts that were.
        toasts: usize,
        /// Why it may not be all.
        #[serde(skip_serializing_if = "Option::is_none")]
        incomplete: Option<String>,
    },
    /// The line is broken, or did not come up again.
    Broken {
        /// Why.
        reason: String,
        /// When it is tried again.
        again_in_ms: u64,
    },
    /// It stands again; nothing was missed, unless a reset follows.
    Restored {
        /// How long it was away.
        after_ms: u64,
        /// Toasts that are not marked as read.
        unread: u64,
    },
}

/// A reset whose toasts have not been read yet.
#[derive(Debug, Clone)]
struct Reset {
    reason: String,
    to: Place,
}

/// Follows toasts. Reconnects by itself, with the cursor of what was handed out.
pub(crate) struct NotificationFollower {
    client: ApiClient,
    scope: NotificationScope,
    telemetry: bool,
    heartbeat: Heartbeat,
    reading: Reading,
    line: Option<OpenConnection>,
    try_at: Instant,
    failures: u32,
    was_welcomed: bool,
    broken_since: Option<Instant>,
    reset: Option<Reset>,
    /// Told one by one: at most a reset, [`MAX_MISSED`] toasts, and the end of it. The place counts with its event.
    ready: VecDeque<(NotificationEvent, Option<Place>)>,
}

impl NotificationFollower {
    /// Makes one; connects when it is asked for the first event. Without a place it follows what comes from then on.
    pub(crate) fn new(client: ApiClient, scope: NotificationScope, place: Option<Place>, telemetry: bool) -> Self {
        Self {
            client,
            scope,
            telemetry,
            heartbeat: Heartbeat::SUBSCRIBER,
            reading: Reading::from(place),
            line: None,
            try_at: Instant::now(),
            failures: 0,
            was_welcomed: false,
            broken_since: None,
            reset: None,
            ready: VecDeque::new(),
        }
    }

    /// Where a later reader goes on after everything that was handed out; nothing before the first welcome.
    pub(crate) fn place(&self) -> Option<&Place> {
        self.reading.place()
    }

    /// The next event. Cancel-safe.
    ///
    /// # Errors
    /// What does not pass by itself: the server refuses, or the right to read has ended (`Ended`). To ask again
    /// connects again.
    pub(crate) async fn next(&mut self) -> Result<NotificationEvent, ClientError> {
        loop {
            if let Some((event, place)) = self.ready.pop_front() {
                place.into_iter().for_each(|place| self.reading.moves_to(place));
                return Ok(event);
            }
            if let Some(reset) = self.reset.clone() {
                let (mut missed, incomplete) = self.missed(&reset).await;
                missed.sort_by_key(|toast| toast.seq);
                self.reset = None;
                self.catch_up(reset, missed, incomplete);
                continue;
            }
            let heard = match &mut self.line {
                Some(line) => line.next().await,
                None => {
                    sleep_until(self.try_at).await;
                    let hello = self.hello();
                    match OpenConnection::open(&self.client, &self.scope, &hello, self.heartbeat).await {
                        Ok(line) => {
                            self.line = Some(line);
                            continue;
                        }
                        Err(end) => Err(end),
                    }
                }
            };
            match heard {
                Ok(Incoming::Bye { code, reason }) => self.ended(End::Closed(Some(code), clean_line(&reason)))?,
                Ok(heard) => self.take(heard),
                Err(end) => self.ended(end)?,
            }
        }
    }

    /// Leaves, and says so to the server.
    pub(crate) async fn close(self) {
        if let Some(line) = self.line {
            line.close().await;
        }
    }

    fn hello(&self) -> ClientFrame {
        let place = self.reading.place();
        ClientFrame::Hello {
            version: Some(FRAMES_VERSION),
            epoch: place.map(|place| place.epoch.clone()),
            cursor: place.map(|place| place.cursor),
            telemetry: self.telemetry,
        }
    }

    fn take(&mut self, heard: Incoming) {
        let event = match heard {
            Incoming::Welcome { epoch, cursor, unread } => {
                self.reading.welcome(Place { epoch: epoch.clone(), cursor });
                match self.broken_since.take().filter(|_| self.was_welcomed) {
                    Some(since) => NotificationEvent::Restored { after_ms: milliseconds(since.elapsed()), unread },
                    None => {
                        self.was_welcomed = true;
                        NotificationEvent::Welcome { epoch, cursor, unread }
                    }
                }
            }
            Incoming::Toast(toast) if self.reading.takes(toast.id, toast.seq) => NotificationEvent::Toast(toast),
            Incoming::Telemetry(telemetry) => NotificationEvent::Telemetry(telemetry),
            Incoming::Gap { telemetry } => NotificationEvent::Gap { telemetry },
            Incoming::Reset { reason, epoch, cursor } => {
                self.reset = Some(Reset { reason: clean_line(&reason), to: Place { epoch, cursor } });
                return;
            }
            Incoming::Pong { cursor } => return self.reading.reached(cursor),
            Incoming::Toast(_) | Incoming::Bye { .. } | Incoming::Other => return,
        };
        self.ready.push_back((event, None));
    }

    /// What the list still has of what was missed, and why it may not be all of it.
    async fn missed(&self, reset: &Reset) -> (Vec<ReceivedNotification>, Option<String>) {
        let mut missed = Vec::new();
        let reading = self.read_missed(reset, &mut missed);
        let incomplete = match timeout(MISSED_TIMEOUT, reading).await {
            Ok(Ok(true)) => None,
            Ok(Ok(false)) => Some(format!("there were more than {MAX_MISSED}")),
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("reading the list took longer than {} s", MISSED_TIMEOUT.as_secs())),
        };
        (missed, incomplete)
    }

    /// In the same database what is newer than the place; in another one, where its numbers say nothing, what nobody has
    /// read. `false` where there is more.
    async fn read_missed(&self, reset: &Reset, missed: &mut Vec<ReceivedNotification>) -> Result<bool, ClientError> {
        let after =
            self.reading.place().filter(|place| place.epoch == reset.to.epoch && place.cursor <= reset.to.cursor);
        let after = after.map(|place| place.cursor);
        let mut cursor = None;
        loop {
            let page = self.client.toasts(&self.scope, after.is_none(), cursor.as_deref(), None).await?;
            // The list is in the order of time, which is that of the numbers but for a moment: one page more is read.
            // A page is empty where nothing on it can be read.
            let is_past = !page.items.is_empty()
                && after.is_some_and(|after| page.items.iter().all(|entry| entry.toast.seq <= after));
            // What came after the reset comes over the line.
            let is_missed = |toast: &ReceivedNotification| {
                toast.seq <= reset.to.cursor && after.is_none_or(|after| toast.seq > after)
            };
            missed.extend(page.items.into_iter().map(|entry| entry.toast).filter(is_missed));
            cursor = page.next_cursor;
            if cursor.is_none() || is_past {
                return Ok(true);
            }
            if missed.len() >= MAX_MISSED {
                missed.truncate(MAX_MISSED);
                return Ok(false);
            }
        }
    }

    fn catch_up(&mut self, reset: Reset, missed: Vec<ReceivedNotification>, incomplete: Option<String>) {
        self.ready.push_back((NotificationEvent::Reset { reason: reset.reason }, None));
        let mut toasts = 0;
        for toast in missed {
            if self.reading.takes_from_list(toast.id) {
                toasts += 1;
                self.ready.push_back((NotificationEvent::Toast(toast), None));
            }
        }
        // Only now: whoever is stopped before reads it all again, rather than never.
        self.ready.push_back((NotificationEvent::CaughtUp { toasts, incomplete }, Some(reset.to)));
    }

    fn ended(&mut self, end: End) -> Result<(), ClientError> {
        let stood = self.line.take().is_some_and(|line| line.age() >= STEADY);
        self.reset = None;
        let (next, reason) = match end {
            End::Impossible(error) => return Err(error),
            End::Closed(code, reason) => match after_close(code) {
                Next::GiveUp => return Err(ClientError::Ended(reason)),
                next => (next, reason),
            },
            End::Refused(status, error) => match after_refusal(status) {
                Next::GiveUp => return Err(error),
                next => (next, error.to_string()),
            },
            End::Broke(reason) => (Next::Wait, reason),
        };
        if stood {
            self.failures = 0;
        }
        let wait = match next {
            Next::AtOnce if self.failures == 0 => Duration::ZERO,
            _ => reader_delay(self.failures, random_fraction()),
        };
        self.failures = self.failures.saturating_add(1);
        let now = Instant::now();
        self.try_at = now + wait;
        self.broken_since.get_or_insert(now);
        self.ready.push_back((NotificationEvent::Broken { reason, again_in_ms: milliseconds(wait) }, None));
        Ok(())
    }
}

/// From 0 to 1, for jitter.
fn random_fraction() -> f64 {
    let (_, low) = Uuid::new_v4().as_u64_pair();
    f64::from(low as u32) / f64::from(u32::MAX)
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
pub(crate) mod tests;
