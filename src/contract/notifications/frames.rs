//! `GET /ws/notifications`: the frames of both ends. Each is a JSON object in one text message, and `type` names it.
//!
//! The client starts with `hello`; the server answers `welcome`, and `reset` if it rejects the cursor. Missed
//! notifications follow, then new ones. Both ends ignore unknown members.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::notification::Notification;
pub(crate) use crate::domain::notify::subscription::ResetReason;
use crate::{
    contract::words::word_schemas,
    domain::{
        clock::Timestamp,
        ids::{PromptId, SessionId, WorkspaceId},
        session::{connection::ConnectionStatus, eta::Progress, lifecycle::SessionState},
    },
};

/// Version of the frames; it increases with an incompatible change.
pub(crate) const FRAMES_VERSION: u32 = 1;
/// The subprotocol that the server selects.
pub(crate) const SUBPROTOCOL: &str = "lumilink.notifications.v1";
/// Prefix of a subprotocol with the token as base64url without padding, offered beside [`SUBPROTOCOL`].
pub(crate) const BEARER_SUBPROTOCOL: &str = "lumilink.bearer.";
/// Prefix of a subprotocol with the ticket, offered beside [`SUBPROTOCOL`].
pub(crate) const TICKET_SUBPROTOCOL: &str = "lumilink.ticket.";
/// The longest frame of a client, in bytes; valid frames have some hundred.
pub(crate) const MAX_CLIENT_FRAME_BYTES: usize = 4096;

/// Close codes of the WebSocket; the reason is that of [`ServerFrame::Bye`].
pub(crate) mod close_code {
    /// The service is stopping; reconnect.
    pub(crate) const GOING_AWAY: u16 = 1001;
    /// The client sent an unknown frame, or a frame at the wrong time.
    pub(crate) const POLICY: u16 = 1008;
    /// Internal error, or the database is unavailable; reconnect later.
    pub(crate) const TRY_AGAIN: u16 = 1013;
    /// The authorisation of the socket expired; get a new ticket.
    pub(crate) const EXPIRED: u16 = 4001;
    /// The client did not read fast enough; reconnect with the cursor.
    pub(crate) const TOO_SLOW: u16 = 4008;
}

/// A frame of the client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub(crate) enum ClientFrame {
    /// The first frame, within 10 s of the upgrade.
    Hello {
        /// Version of the frames; 1 by default.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        version: Option<u32>,
        /// The `epoch` of an earlier `welcome`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        epoch: Option<String>,
        /// The newest `seq` or `cursor` that the client processed; absent: only new notifications.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cursor: Option<u64>,
        /// True to send frames of type `telemetry`.
        #[serde(default)]
        telemetry: bool,
    },
    /// Marks a notification as read, for the user of the subscription, or for everyone if it names none. Answered with
    /// `ack` once persisted; safe to repeat without an answer. At most 256 may be unanswered.
    Ack {
        /// The `id` of the notification, as in its frame.
        id: Uuid,
    },
    /// Answered with `pong`; for clients that cannot see control frames.
    Ping,
}

word_schemas! {
    ResetReason => "ResetReason", "Why a cursor was rejected.";
}

/// A frame of the server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub(crate) enum ServerFrame {
    /// Answer to `hello`, and the first frame of the server.
    Welcome {
        /// Version of the frames that the server sends.
        version: u32,
        /// Epoch of the database; a cursor is valid in its epoch only.
        epoch: String,
        /// Where the subscription starts: the cursor of the client, or the newest notification.
        cursor: u64,
        /// Newest `seq` of the stream.
        head: u64,
        /// Unread notifications of the selection, at most 1,000.
        unread: u64,
    },
    /// A notification of the selection, replayed or new.
    #[serde(rename = "toast")]
    Notification(Notification),
    /// Progress of a session; the newest frame of a session replaces older ones.
    Telemetry(Telemetry),
    /// Frames of type `telemetry` were dropped because the client did not read fast enough. Sent ahead of the next such
    /// frame, or once the queue is empty. Notifications are never dropped.
    Gap {
        /// Number of frames that were dropped since the last `gap`.
        telemetry: u64,
    },
    /// The cursor is rejected: the client has to read the inbox. The stream continues after `cursor`. Sent right after
    /// `welcome`, or later in place of a notification that cannot be read.
    Reset {
        /// The reason for which the cursor is rejected.
        reason: ResetReason,
        /// Current epoch of the database, for the next `hello`.
        epoch: String,
        /// `seq` of the newest notification, or of the unreadable one.
        cursor: u64,
    },
    /// A notification is marked as read.
    Ack {
        /// The `id` of the notification, as in its frame.
        id: Uuid,
        /// True if the selection has this notification.
        found: bool,
        /// Unread notifications of the selection, at most 1,000.
        unread: u64,
    },
    /// Answer to the frame `ping`.
    Pong {
        /// Everything up to this `seq` has been sent.
        cursor: u64,
    },
    /// The last frame before the socket closes.
    Bye {
        /// The close code of the WebSocket, which follows.
        code: u16,
        /// The reason, and what to do.
        reason: String,
        /// Everything up to this `seq` has been sent; the cursor to reconnect with.
        cursor: u64,
    },
}

/// State and progress of one session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Telemetry {
    /// Name of the session's workspace within its tenant.
    pub workspace_id: WorkspaceId,
    /// Id of the session.
    pub session_id: SessionId,
    /// starting, idle, running, hibernated, expired, interrupted, failed or closed.
    #[schema(value_type = SessionState)]
    pub state: String,
    /// connecting, connected, degraded, error, reconnecting or rolledBack.
    #[schema(value_type = ConnectionStatus)]
    pub connection: String,
    /// Id of the running turn.
    pub prompt_id: Option<PromptId>,
    /// Progress of the running turn.
    pub progress: Option<TurnProgress>,
    /// Time, RFC 3339 in UTC.
    #[schema(value_type = Timestamp)]
    pub at: String,
}

/// Progress of the running turn of a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TurnProgress {
    /// Time since acceptance, in milliseconds.
    pub elapsed_ms: u64,
    /// Estimated time left, in milliseconds; null without an estimate.
    pub eta_ms: Option<u64>,
    /// Completed entries of the agent's plan; null without a plan.
    pub plan_done: Option<u32>,
    /// Entries of the agent's plan; null without a plan.
    pub plan_total: Option<u32>,
}

impl TurnProgress {
    pub(crate) fn of(progress: &Progress, now: Timestamp) -> Self {
        let millis = |time: std::time::Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Self {
            elapsed_ms: millis(progress.elapsed(now)),
            eta_ms: progress.eta(now).map(millis),
            plan_done: progress.plan.map(|plan| plan.done),
            plan_total: progress.plan.map(|plan| plan.total),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn progress_is_in_milliseconds_and_null_if_unknown() {
        let mut progress = Progress { accepted_at: Timestamp(1_000_000), plan: None, usual: None };
        let json_of =
            |progress: &Progress| serde_json::to_value(TurnProgress::of(progress, Timestamp(3_000_900))).unwrap();
        let nothing = json!({"elapsedMs": 2000, "etaMs": null, "planDone": null, "planTotal": null});
        assert_eq!(json_of(&progress), nothing);
        progress.plan = Some(crate::domain::session::eta::PlanProgress { done: 2, total: 3 });
        assert_eq!(json_of(&progress), json!({"elapsedMs": 2000, "etaMs": 1000, "planDone": 2, "planTotal": 3}));
    }

    #[test]
    fn frames_have_a_type_and_ignore_unknown_members() {
        let hello: ClientFrame = serde_json::from_value(json!({"type": "hello", "cursor": 7, "later": 1})).unwrap();
        assert_eq!(hello, ClientFrame::Hello { version: None, epoch: None, cursor: Some(7), telemetry: false });
        let frames = [
            json!({"type": "pong", "cursor": 3}),
            json!({"type": "reset", "reason": "tooOld", "epoch": "e", "cursor": 9}),
            json!({"type": "toast", "id": "i", "seq": 4, "title": "t", "body": "b", "severity": "info",
                "trigger": "capacity", "autoDismissMs": 10_000, "causeId": "c", "createdAt": "2026-01-01T00:00:00Z"}),
        ];
        for frame in frames {
            let read: ServerFrame = serde_json::from_value(frame.clone()).unwrap();
            assert_eq!(serde_json::to_value(read).unwrap(), frame);
        }
        assert!(serde_json::from_value::<ClientFrame>(json!({"type": "toast"})).is_err());
        assert!(serde_json::from_value::<ClientFrame>(json!({"cursor": 7})).is_err());
    }
}
