//! What is posted to the operators' webhook, and what became of it.
//!
//! A post has the headers of Standard Webhooks: `webhook-id` (the `deliveryId`, the same for each try),
//! `webhook-timestamp` (seconds) and `webhook-signature` (`v1,` and base64 of HMAC-SHA256 over `id.timestamp.body`, one
//! for each secret, separated by spaces).

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::toast::Toast;
use crate::domain::{clock::Timestamp, notify::webhook::DeliveryState};

/// The body of a post. Members that a version does not know are to be passed over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub(crate) enum WebhookEvent {
    /// Operators were told something. Posts may overtake each other: `seq` has their order.
    Notification {
        /// What they were told, as in `GET /ws/notifications`.
        notification: Toast,
    },
}

/// A delivery of one notification.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct WebhookDelivery {
    /// Its id: the header `webhook-id`.
    #[schema(value_type = String)]
    pub delivery_id: Uuid,
    /// What is posted.
    #[schema(value_type = String)]
    pub notification_id: Uuid,
    /// Where to: scheme, host and port.
    pub endpoint: String,
    /// Where it stands.
    pub state: DeliveryState,
    /// Tries that were begun since it was made or replayed.
    pub attempts: u32,
    /// When it is tried next, RFC 3339 in UTC; only while it is pending.
    #[schema(value_type = Option<String>, format = "date-time")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_attempt_at: Option<Timestamp>,
    /// The status of the last answer; absent where the last try got none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_status: Option<u16>,
    /// Why the last try got no answer, or why it was given up without one: `expired`, or its notification cannot be
    /// read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// When it was made, RFC 3339 in UTC.
    #[schema(value_type = String, format = "date-time")]
    pub created_at: Timestamp,
    /// When it was last written.
    #[schema(value_type = String, format = "date-time")]
    pub updated_at: Timestamp,
}

/// Filters of `GET /acp/webhooks/deliveries`.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct DeliveryQuery {
    /// Only those that stand there.
    #[param(inline)]
    pub state: Option<DeliveryState>,
    /// Entries on the page, up to `[limits] page_entries`.
    pub limit: Option<usize>,
    /// `nextCursor` of the page before.
    pub cursor: Option<String>,
}

/// Answer to `POST /acp/webhooks/deliveries/replay`.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ReplayedDeliveries {
    /// How many were dead and are tried again.
    pub replayed: usize,
}
