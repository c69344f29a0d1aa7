//! `GET /ws/notifications`: the frames of both ends. Each is a JSON object in one text message, and `type` names it.
//!
//! The client opens with `hello`; the server answers `welcome`, and `reset` where it cannot go on after the client's
//! cursor. What was missed follows, then what comes. Members that a version does not know are to be passed over.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::toast::Toast;
pub(crate) use crate::domain::notify::subscription::ResetReason;
use crate::domain::{
    clock::Timestamp,
    ids::{PromptId, SessionId, WorkspaceId},
    session::eta::Progress,
};

/// The version of the frames; it goes up with a change that an older client would take wrongly.
pub(crate) const FRAMES_VERSION: u32 = 1;
/// What the server answers where a client offers subprotocols.
pub(crate) const SUBPROTOCOL: &str = "lumilink.notifications.v1";
/// Before the token, as base64url without padding, in a subprotocol that a client offers beside [`SUBPROTOCOL`].
pub(crate) const BEARER_SUBPROTOCOL: &str = "lumilink.bearer.";
/// Before the ticket, in a subprotocol that a client offers beside [`SUBPROTOCOL`].
pub(crate) const TICKET_SUBPROTOCOL: &str = "lumilink.ticket.";
/// The longest frame of a client, in bytes; the longest one that means something has some hundred.
pub(crate) const MAX_CLIENT_FRAME_BYTES: usize = 4096;

/// Why a socket was closed: the code of the closing frame, whose reason is a [`ServerFrame::Bye`]'s.
pub(crate) mod close_code {
    /// The service stops; connect again.
    pub(crate) const GOING_AWAY: u16 = 1001;
    /// A frame of the client is none that is known, or came at the wrong time.
    pub(crate) const POLICY: u16 = 1008;
    /// A fault of ours, or the database is away; connect again after a moment.
    pub(crate) const TRY_AGAIN: u16 = 1013;
    /// What the socket was opened with holds no longer; get a new ticket.
    pub(crate) const EXPIRED: u16 = 4001;
    /// The client did not read fast enough; connect again with the cursor.
    pub(crate) const TOO_SLOW: u16 = 4008;
}

/// What a client says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub(crate) enum ClientFrame {
    /// The first frame, within 10 s.
    Hello {
        /// The version of the frames, 1 where absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        version: Option<u32>,
        /// The `epoch` of an earlier `welcome`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        epoch: Option<String>,
        /// The newest `seq` or `cursor` that was handled; absent for a client that wants only what comes.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cursor: Option<u64>,
        /// Whether frames of `telemetry` are wanted.
        #[serde(default)]
        telemetry: bool,
    },
    /// Marks a toast as read, for the user of the subscription, or for everyone where it names none. Is answered with
    /// `ack` once that is on disk; without an answer it is safe to repeat. At most 256 may be without one.
    Ack {
        /// The toast's `id`.
        id: Uuid,
    },
    /// Is answered with `pong`; for clients that do not see control frames.
    Ping,
}

/// What the server says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub(crate) enum ServerFrame {
    /// The answer to `hello`.
    Welcome {
        /// The version of the frames.
        version: u32,
        /// Names the database; a cursor is worth nothing in another one.
        epoch: String,
        /// Where this subscription begins: after the client's cursor, or at the newest toast.
        cursor: u64,
        /// The newest toast of the stream.
        head: u64,
        /// Toasts of the subscription that are not marked as read, 1,000 at most.
        unread: u64,
    },
    /// One toast.
    Toast(Toast),
    /// How a session is doing; only the newest one of a session counts.
    Telemetry(Telemetry),
    /// Frames of telemetry were left out, since the client did not read fast enough; told before the next one, or once
    /// nothing more waits. Toasts never are.
    Gap {
        /// How many.
        telemetry: u64,
    },
    /// The client's cursor cannot be gone on from: it has to read the list anew. What comes is after `cursor`. Right after
    /// `welcome`, or later in place of a toast that is there and cannot be read.
    Reset {
        /// Why.
        reason: ResetReason,
        /// The epoch from now on.
        epoch: String,
        /// The newest toast, or the one that cannot be read.
        cursor: u64,
    },
    /// A toast is marked as read.
    Ack {
        /// The toast's `id`.
        id: Uuid,
        /// Whether there is such a toast in this subscription.
        found: bool,
        /// Toasts of the subscription that are not marked as read, 1,000 at most.
        unread: u64,
    },
    /// The answer to `ping`.
    Pong {
        /// Everything up to here has been sent.
        cursor: u64,
    },
    /// The last frame before the socket closes.
    Bye {
        /// The code of the closing frame.
        code: u16,
        /// Why, and what to do.
        reason: String,
        /// Everything up to here has been sent; connect again with it.
        cursor: u64,
    },
}

/// How a session is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Telemetry {
    /// The workspace.
    #[schema(value_type = String)]
    pub workspace_id: WorkspaceId,
    /// The session.
    #[schema(value_type = String)]
    pub session_id: SessionId,
    /// starting, idle, running, hibernated, expired, interrupted, failed or closed.
    pub state: String,
    /// connecting, connected, degraded, error, reconnecting or rolledBack.
    pub connection: String,
    /// The turn that runs.
    #[schema(value_type = Option<String>)]
    pub prompt_id: Option<PromptId>,
    /// How it gets on.
    pub progress: Option<TurnProgress>,
    /// When, RFC 3339 in UTC.
    #[schema(format = "date-time")]
    pub at: String,
}

/// How a turn gets on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TurnProgress {
    /// Since the turn was accepted, in milliseconds.
    pub elapsed_ms: u64,
    /// When it will have ended, by estimate, in milliseconds from now; null where nothing is known.
    pub eta_ms: Option<u64>,
    /// Entries of the agent's plan that are done; null where it told no plan.
    pub plan_done: Option<u32>,
    /// Entries of the agent's plan.
    pub plan_total: Option<u32>,
}

impl TurnProgress {
    /// As it is now.
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
    fn progress_is_in_milliseconds_and_null_where_nothing_is_known() {
        let mut progress = Progress { accepted_at: Timestamp(1_000_000), plan: None, usual: None };
        let told =
            |progress: &Progress| serde_json::to_value(TurnProgress::of(progress, Timestamp(3_000_900))).unwrap();
        let nothing = json!({"elapsedMs": 2000, "etaMs": null, "planDone": null, "planTotal": null});
        assert_eq!(told(&progress), nothing);
        progress.plan = Some(crate::domain::session::eta::PlanProgress { done: 2, total: 3 });
        assert_eq!(told(&progress), json!({"elapsedMs": 2000, "etaMs": 1000, "planDone": 2, "planTotal": 3}));
    }

    #[test]
    fn frames_are_named_by_their_type_and_unknown_members_are_passed_over() {
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
