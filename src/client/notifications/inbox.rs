//! Notifications over HTTP: the inbox and acknowledgements.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::frames::ReceivedNotification;
use crate::client::{ApiClient, ClientError, api::to_query};

/// Time limit for an acknowledgement.
const ACK_TIMEOUT: Duration = Duration::from_secs(30);

/// A selection of notifications.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NotificationScope {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub installation_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workspace_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_id: Option<String>,
    /// Notifications of operators instead of a tenant's.
    #[serde(rename = "stream", serialize_with = "as_stream", skip_serializing_if = "std::ops::Not::not")]
    pub operators: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn as_stream<S: serde::Serializer>(_: &bool, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str("operators")
}

impl NotificationScope {
    /// Name of the stream: a cursor is valid in its stream only.
    pub(crate) fn sequence(&self) -> String {
        match (&self.installation_id, &self.session_id) {
            _ if self.operators => "operators".to_owned(),
            (Some(tenant), _) => format!("tenant:{tenant}"),
            (None, Some(session)) => format!("tenant of session:{session}"),
            (None, None) => "tenant of the token".to_owned(),
        }
    }

    /// The members as query pairs.
    ///
    /// # Errors
    /// None known.
    pub(crate) fn query(&self) -> Result<Vec<(String, String)>, ClientError> {
        to_query(self)
    }
}

/// One page of the inbox, newest first.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NotificationPage {
    pub items: Vec<InboxEntry>,
    /// Unread notifications of the selection.
    #[serde(default)]
    pub unread: u64,
    /// `cursor` of the next page; absent on the last page.
    #[serde(default)]
    pub next_cursor: Option<String>,
}

/// An entry of the inbox.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct InboxEntry {
    #[serde(rename = "toast")]
    pub notification: ReceivedNotification,
    /// True if it is marked as read, by the user of the selection or for everyone.
    #[serde(default)]
    pub read: bool,
}

impl ApiClient {
    /// One page of the inbox: the newest entries, or those before `cursor`.
    pub(crate) async fn notifications(
        &self,
        scope: &NotificationScope,
        unread_only: bool,
        cursor: Option<&str>,
        limit: Option<usize>,
    ) -> Result<NotificationPage, ClientError> {
        let mut query = serde_json::to_value(scope)?;
        if unread_only {
            query["unreadOnly"] = true.into();
        }
        query["cursor"] = cursor.into();
        query["limit"] = json!(limit);
        self.get(&["acp", "notifications"], &query).await
    }

    /// Marks a notification as read for the user of the selection, or for everyone if it names none. Idempotent.
    pub(crate) async fn ack_notification(
        &self,
        scope: &NotificationScope,
        id: uuid::Uuid,
    ) -> Result<Value, ClientError> {
        self.post(&["acp", "notifications", &id.to_string(), "ack"], scope, Some(ACK_TIMEOUT)).await
    }
}
