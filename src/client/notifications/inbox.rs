//! Toasts over HTTP: the list, and what is marked as read.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::frames::ReceivedNotification;
use crate::client::{ApiClient, ClientError, api::to_query};

/// How long marking may take; it starts nothing.
const ACK_TIMEOUT: Duration = Duration::from_secs(30);

/// Which toasts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NotificationScope {
    /// Of this tenant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub installation_id: Option<String>,
    /// Only of this workspace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workspace_id: Option<String>,
    /// Only of this user's sessions, and what concerns a workspace as a whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_id: Option<String>,
    /// Only of this session, and what concerns its workspace as a whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_id: Option<String>,
    /// Those for the service's operators, and no tenant's.
    #[serde(rename = "stream", serialize_with = "as_stream", skip_serializing_if = "std::ops::Not::not")]
    pub operators: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn as_stream<S: serde::Serializer>(_: &bool, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str("operators")
}

impl NotificationScope {
    /// Names the sequence: places in one of them say nothing in another.
    pub(crate) fn sequence(&self) -> String {
        match (&self.installation_id, &self.session_id) {
            _ if self.operators => "operators".to_owned(),
            (Some(tenant), _) => format!("tenant:{tenant}"),
            (None, Some(session)) => format!("tenant of session:{session}"),
            (None, None) => "tenant of the token".to_owned(),
        }
    }

    /// As a query.
    ///
    /// # Errors
    /// None that is known.
    pub(crate) fn query(&self) -> Result<Vec<(String, String)>, ClientError> {
        to_query(self)
    }
}

/// One page of the list, newest first.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NotificationPage {
    /// The toasts.
    pub items: Vec<InboxEntry>,
    /// Toasts of the scope that are not marked as read.
    #[serde(default)]
    pub unread: u64,
    /// Asks for the next page; absent on the last one.
    #[serde(default)]
    pub next_cursor: Option<String>,
}

/// A toast on the list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct InboxEntry {
    /// The toast.
    pub toast: ReceivedNotification,
    /// Whether it was read, by the user of the scope or by everyone.
    #[serde(default)]
    pub read: bool,
}

impl ApiClient {
    /// One page of toasts: the newest, or those before `cursor`. Without a limit as many as the server likes.
    pub(crate) async fn toasts(
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

    /// Marks a toast as read, for the user of the scope, or for everyone where it names none. May be repeated.
    pub(crate) async fn ack_toast(&self, scope: &NotificationScope, id: uuid::Uuid) -> Result<Value, ClientError> {
        self.post(&["acp", "notifications", &id.to_string(), "ack"], scope, Some(ACK_TIMEOUT)).await
    }
}
