//! Notifications: the inbox, and a follower that reconnects by itself.
//!
//! [`frames`] reads frames, [`connection`] is one WebSocket, [`retry`] decides whether to reconnect,
//! [`crate::domain::notify::reading`] which notifications are new, and [`bookmark`] keeps the cursor in a file. Only the
//! notifications missed by a reset are queued: a follower that is not polled does not read, and the server, whose queue
//! is bounded, evicts it; it then reconnects with its cursor.

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

/// A connection that lasted this long resets the wait before the next.
const STEADY: Duration = Duration::from_secs(5);
/// The most notifications read from the inbox after a reset, the newest.
const MAX_MISSED: usize = 1000;
/// Time limit for reading them; the connection is not read meanwhile.
const MISSED_TIMEOUT: Duration = Duration::from_secs(15);

/// An event of a follower.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub(crate) enum NotificationEvent {
    /// The first connection is open.
    Welcome {
        /// Epoch of the cursor.
        epoch: String,
        /// Later notifications follow.
        cursor: u64,
        /// Unread notifications.
        unread: u64,
    },
    /// A notification: each once, in order except after a reset.
    #[serde(rename = "toast")]
    Notification(ReceivedNotification),
    /// Progress of a session.
    Telemetry(Map<String, Value>),
    /// Progress frames were dropped.
    Gap {
        /// Number of frames.
        telemetry: u64,
    },
    /// The cursor was rejected. Missed notifications from the inbox follow, then `caughtUp`.
    Reset {
        /// `tooOld`, `otherEpoch`, `ahead` or `unreadable`.
        reason: String,
    },
    /// All missed notifications of the inbox were delivered.
    CaughtUp {
        /// Number of notifications.
        #[serde(rename = "toasts")]
        notifications: usize,
        /// Why more may be missing.
        #[serde(skip_serializing_if = "Option::is_none")]
        incomplete: Option<String>,
    },
    /// The connection broke, or a reconnect failed.
    Broken {
        /// Why.
        reason: String,
        /// Wait before the next attempt.
        again_in_ms: u64,
    },
    /// The connection is open again; nothing was missed, unless a reset follows.
    Restored {
        /// Time for which it was broken.
        after_ms: u64,
        /// Unread notifications.
        unread: u64,
    },
}

/// A reset whose missed notifications have not been read yet.
#[derive(Debug, Clone)]
struct Reset {
    reason: String,
    to: Place,
}

/// Follows notifications. Reconnects by itself with the cursor of the last delivered event.
pub(crate) struct NotificationFollower {
    client: ApiClient,
    scope: NotificationScope,
    telemetry: bool,
    heartbeat: Heartbeat,
    reading: Reading,
    connection: Option<OpenConnection>,
    connect_at: Instant,
    failures: u32,
    was_welcomed: bool,
    broken_since: Option<Instant>,
    reset: Option<Reset>,
    /// Events to deliver: at most a reset, [`MAX_MISSED`] notifications and the end of it. A cursor takes effect with its
    /// event.
    ready: VecDeque<(NotificationEvent, Option<Place>)>,
}

impl NotificationFollower {
    /// Makes a follower, which connects for the first event. Without a cursor it delivers new notifications only.
    pub(crate) fn new(client: ApiClient, scope: NotificationScope, place: Option<Place>, telemetry: bool) -> Self {
        Self {
            client,
            scope,
            telemetry,
            heartbeat: Heartbeat::SUBSCRIBER,
            reading: Reading::from(place),
            connection: None,
            connect_at: Instant::now(),
            failures: 0,
            was_welcomed: false,
            broken_since: None,
            reset: None,
            ready: VecDeque::new(),
        }
    }

    /// The cursor after everything delivered; `None` before the first welcome.
    pub(crate) fn place(&self) -> Option<&Place> {
        self.reading.place()
    }

    /// The next event.
    ///
    /// # Errors
    /// Permanent errors: the server refuses, or the authorisation ended (`Ended`). Another call reconnects.
    ///
    /// # Cancel safety
    /// No event is lost.
    pub(crate) async fn next(&mut self) -> Result<NotificationEvent, ClientError> {
        loop {
            if let Some((event, place)) = self.ready.pop_front() {
                place.into_iter().for_each(|place| self.reading.moves_to(place));
                return Ok(event);
            }
            if let Some(reset) = self.reset.clone() {
                let (mut missed, incomplete) = self.missed(&reset).await;
                missed.sort_by_key(|notification| notification.seq);
                self.reset = None;
                self.catch_up(reset, missed, incomplete);
                continue;
            }
            let received = match &mut self.connection {
                Some(connection) => connection.next().await,
                None => {
                    sleep_until(self.connect_at).await;
                    let hello = self.hello();
                    match OpenConnection::open(&self.client, &self.scope, &hello, self.heartbeat).await {
                        Ok(connection) => {
                            self.connection = Some(connection);
                            continue;
                        }
                        Err(end) => Err(end),
                    }
                }
            };
            match received {
                Ok(Incoming::Bye { code, reason }) => self.ended(End::Closed(Some(code), clean_line(&reason)))?,
                Ok(frame) => self.take(frame),
                Err(end) => self.ended(end)?,
            }
        }
    }

    /// Closes the connection.
    pub(crate) async fn close(self) {
        if let Some(connection) = self.connection {
            connection.close().await;
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

    fn take(&mut self, frame: Incoming) {
        let event = match frame {
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
            Incoming::Notification(notification) if self.reading.takes(notification.id, notification.seq) => {
                NotificationEvent::Notification(notification)
            }
            Incoming::Telemetry(telemetry) => NotificationEvent::Telemetry(telemetry),
            Incoming::Gap { telemetry } => NotificationEvent::Gap { telemetry },
            Incoming::Reset { reason, epoch, cursor } => {
                self.reset = Some(Reset { reason: clean_line(&reason), to: Place { epoch, cursor } });
                return;
            }
            Incoming::Pong { cursor } => return self.reading.reached(cursor),
            Incoming::Notification(_) | Incoming::Bye { .. } | Incoming::Other => return,
        };
        self.ready.push_back((event, None));
    }

    /// The missed notifications of the inbox, and why they may be incomplete.
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

    /// Reads notifications newer than the cursor; in another epoch, where the cursor is invalid, unread ones. `false` if
    /// there are more.
    async fn read_missed(&self, reset: &Reset, missed: &mut Vec<ReceivedNotification>) -> Result<bool, ClientError> {
        let after =
            self.reading.place().filter(|place| place.epoch == reset.to.epoch && place.cursor <= reset.to.cursor);
        let after = after.map(|place| place.cursor);
        let mut cursor = None;
        loop {
            let page = self.client.notifications(&self.scope, after.is_none(), cursor.as_deref(), None).await?;
            // The inbox is ordered by time, which is nearly the order of `seq`, so one page more is read. A page is empty
            // if none of its notifications can be read.
            let is_past = !page.items.is_empty()
                && after.is_some_and(|after| page.items.iter().all(|entry| entry.notification.seq <= after));
            // The connection delivers notifications after the reset.
            let is_missed = |notification: &ReceivedNotification| {
                notification.seq <= reset.to.cursor && after.is_none_or(|after| notification.seq > after)
            };
            missed.extend(page.items.into_iter().map(|entry| entry.notification).filter(is_missed));
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
        let mut notifications = 0;
        for notification in missed {
            if self.reading.takes_from_list(notification.id) {
                notifications += 1;
                self.ready.push_back((NotificationEvent::Notification(notification), None));
            }
        }
        // The cursor moves last: a follower stopped earlier reads all of them again, rather than never.
        self.ready.push_back((NotificationEvent::CaughtUp { notifications, incomplete }, Some(reset.to)));
    }

    fn ended(&mut self, end: End) -> Result<(), ClientError> {
        let was_steady = self.connection.take().is_some_and(|connection| connection.age() >= STEADY);
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
        if was_steady {
            self.failures = 0;
        }
        let wait = match next {
            Next::AtOnce if self.failures == 0 => Duration::ZERO,
            _ => reader_delay(self.failures, random_fraction()),
        };
        self.failures = self.failures.saturating_add(1);
        let now = Instant::now();
        self.connect_at = now + wait;
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
