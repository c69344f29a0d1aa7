//! Events posted to the operators' webhook, and their deliveries.
//!
//! A post has the headers of Standard Webhooks: `webhook-id` (the `deliveryId`, the same for each try),
//! `webhook-timestamp` (seconds) and `webhook-signature` (`v1,` and base64 of HMAC-SHA256 over `id.timestamp.body`, one
//! for each secret, separated by spaces).

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::notification::Notification;
use crate::{
    contract::words::word_schemas,
    domain::{
        capacity::{AlertKind, AlertLevel},
        clock::Timestamp,
        notify::{notification::Figures, webhook::DeliveryState},
    },
};

/// Version of the body of a post; it increases with an incompatible change.
pub(crate) const WEBHOOK_VERSION: u32 = 1;

/// The body of a post. Receivers must ignore unknown members.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub(crate) enum WebhookEvent {
    /// A notification of operators. Posts may arrive out of order; `seq` has the order.
    Notification {
        /// Version of the body: 1.
        version: u32,
        /// Time of the notification, RFC 3339 in UTC.
        #[schema(format = "date-time")]
        timestamp: String,
        /// The notification, as in `GET /ws/notifications`.
        notification: Notification,
        /// The figures of the notification's text; absent where it has none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schema(nullable = false)]
        data: Option<WebhookFigures>,
    },
}

/// The figures of a notification of operators. Members that do not apply are absent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct WebhookFigures {
    /// `capacity.raised`, `capacity.resolved`, `rollbackStorm.raised` or `rollbackStorm.resolved`.
    pub event: String,
    /// Change of the alert.
    #[schema(value_type = AlertKind)]
    pub kind: String,
    /// Level of the capacity alert.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = AlertLevel, required = false)]
    pub level: Option<String>,
    /// Taken seats: at the resolution, or the peak at the raise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub taken: Option<u64>,
    /// Seats up to which new sessions are admitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub limit: Option<u64>,
    /// Workspaces that rolled back by themselves within 5 minutes: now, or at the peak of a storm that has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub rolled_back_workspaces: Option<u64>,
    /// Workspaces in use when the storm began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub workspaces_in_use: Option<u64>,
}

impl From<&Figures> for WebhookFigures {
    fn from(figures: &Figures) -> Self {
        let (subject, kind) = match figures {
            Figures::Capacity(change) => ("capacity", change.kind),
            Figures::RollbackStorm { kind, .. } => ("rollbackStorm", *kind),
        };
        let none = Self {
            event: format!("{subject}.{}", kind.as_str()),
            kind: kind.as_str().to_owned(),
            level: None,
            taken: None,
            limit: None,
            rolled_back_workspaces: None,
            workspaces_in_use: None,
        };
        match figures {
            Figures::Capacity(change) => Self {
                level: Some(change.level.as_str().to_owned()),
                taken: Some(change.taken as u64),
                limit: Some(change.limit as u64),
                ..none
            },
            Figures::RollbackStorm { rolled_back, in_use, .. } => Self {
                rolled_back_workspaces: Some(*rolled_back as u64),
                workspaces_in_use: in_use.map(|count| count as u64),
                ..none
            },
        }
    }
}

word_schemas! {
    DeliveryState => "WebhookDeliveryState", "State of a delivery to the webhook.";
}

/// A delivery of one notification.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct WebhookDelivery {
    /// Id of the delivery: the header `webhook-id`.
    pub delivery_id: Uuid,
    /// Id of the notification.
    pub notification_id: Uuid,
    /// Scheme, host and port of the receiver.
    pub endpoint: String,
    /// State of the delivery: it waits for an attempt, was delivered, or was given up.
    pub state: DeliveryState,
    /// Attempts since it was created or replayed.
    pub attempts: u32,
    /// Time of the next attempt, RFC 3339 in UTC; only while pending.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_attempt_at: Option<Timestamp>,
    /// HTTP status of the last answer; absent if the last attempt got none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_status: Option<u16>,
    /// Why the last try got no answer, or why it was given up without one: `expired`, or its notification cannot be
    /// read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// Time of creation, RFC 3339 in UTC.
    pub created_at: Timestamp,
    /// Time of the last change, RFC 3339 in UTC.
    pub updated_at: Timestamp,
}

/// Filters of `GET /acp/webhooks/deliveries`.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct DeliveryQuery {
    /// Only entries with this status.
    pub state: Option<DeliveryState>,
    /// Most entries on the page, 1 to `limits.page_entries`; 50 by default.
    #[param(minimum = 1, maximum = 1000)]
    pub limit: Option<usize>,
    /// `nextCursor` of the previous page.
    #[param(pattern = r"^-?[0-9]{1,18}~[!-~]{0,300}$")]
    pub cursor: Option<String>,
}

/// Answer to `POST /acp/webhooks/deliveries/replay`.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ReplayedDeliveries {
    /// Deliveries that were given up and are pending again.
    pub replayed: usize,
}
