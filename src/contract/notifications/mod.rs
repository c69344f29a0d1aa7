//! The inbox of notifications, and the tickets and queries that open a WebSocket.

pub(crate) mod frames;
pub(crate) mod notification;
pub(crate) mod webhook;

use std::fmt;

use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use self::notification::Notification;
use crate::domain::{
    clock::Timestamp,
    ids::{InstallationId, SessionId, UserId, WorkspaceId},
};

/// A selection of notifications. Unknown members are refused, because a misspelt filter would select more than
/// intended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(examples(json!({"installationId": "acme"})))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Subscription {
    /// Name of the tenant; optional with `sessionId` and with `stream`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub installation_id: Option<InstallationId>,
    /// Only notifications of this workspace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace_id: Option<WorkspaceId>,
    /// Only notifications of sessions of this user, and those of a workspace as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_id: Option<UserId>,
    /// Only notifications of this session, and those of its workspace as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_id: Option<SessionId>,
    /// `operators` selects notifications about the service as a whole; absent: those of a tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<StreamName>,
}

/// A stream that belongs to no tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum StreamName {
    /// Notifications for operators of the service.
    Operators,
}

/// `GET /ws/notifications`: the notifications to read, and the ticket, unless a header or subprotocol authorises the
/// request.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct SocketQuery {
    /// Name of the tenant; optional with `sessionId` and with `stream=operators`.
    pub installation_id: Option<InstallationId>,
    /// Only notifications of this workspace.
    pub workspace_id: Option<WorkspaceId>,
    /// Only notifications of sessions of this user, and those of a workspace as a whole.
    pub user_id: Option<UserId>,
    /// Only notifications of this session, and those of its workspace as a whole.
    pub session_id: Option<SessionId>,
    /// `operators` selects notifications about the service as a whole; absent: those of a tenant.
    pub stream: Option<StreamName>,
    /// Ticket from `POST /acp/notifications/ticket`, for browsers, which cannot send an `Authorization` header.
    #[param(value_type = Option<String>)]
    pub ticket: Option<SecretString>,
}

impl SocketQuery {
    /// The selected notifications.
    pub(crate) fn subscription(self) -> Subscription {
        let Self { installation_id, workspace_id, user_id, session_id, stream, ticket: _ } = self;
        Subscription { installation_id, workspace_id, user_id, session_id, stream }
    }
}

/// A ticket that opens one WebSocket, once.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Ticket {
    /// The ticket, to be sent as `?ticket=` or as the subprotocol `lumilink.ticket.<ticket>`.
    pub ticket: String,
    /// Time until which it can be used, RFC 3339 in UTC.
    pub expires_at: Timestamp,
}

impl fmt::Debug for Ticket {
    /// Omits the ticket.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket").field("expires_at", &self.expires_at).finish_non_exhaustive()
    }
}

/// `GET /acp/notifications`: the notifications to list, and the page.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct InboxQuery {
    /// Name of the tenant; optional with `sessionId` and with `stream=operators`.
    pub installation_id: Option<InstallationId>,
    /// Only notifications of this workspace.
    pub workspace_id: Option<WorkspaceId>,
    /// Only notifications of sessions of this user, and those of a workspace as a whole.
    pub user_id: Option<UserId>,
    /// Only notifications of this session, and those of its workspace as a whole.
    pub session_id: Option<SessionId>,
    /// `operators` selects notifications about the service as a whole; absent: those of a tenant.
    pub stream: Option<StreamName>,
    /// Lists only unread notifications, among the newest 5,000 of the stream.
    #[serde(default)]
    pub unread_only: bool,
    /// Most entries on the page.
    #[param(minimum = 1, maximum = 1000)]
    pub limit: Option<usize>,
    /// `nextCursor` of the previous page.
    #[param(pattern = r"^-?[0-9]{1,18}~[!-~]{0,300}$")]
    pub cursor: Option<String>,
}

impl InboxQuery {
    /// The selected notifications.
    pub(crate) fn subscription(&self) -> Subscription {
        Subscription {
            installation_id: self.installation_id.clone(),
            workspace_id: self.workspace_id.clone(),
            user_id: self.user_id.clone(),
            session_id: self.session_id,
            stream: self.stream,
        }
    }
}

/// A page of the inbox, the newest first.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct InboxPage {
    /// The notifications of the page, newest first.
    pub items: Vec<InboxItem>,
    /// Notifications of this page that cannot be read and are omitted; absent if there are none.
    #[serde(skip_serializing_if = "is_zero")]
    #[schema(required = false)]
    pub unreadable: usize,
    /// Unread notifications of the selection, at most 1,000.
    pub unread: u64,
    /// Epoch of the database, which cursors belong to.
    pub epoch: String,
    /// Newest `seq` of the stream: with `epoch`, the cursor for a WebSocket that continues after this page.
    pub head: u64,
    /// `cursor` of the next page; absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(count: &usize) -> bool {
    *count == 0
}

/// A notification of the inbox.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct InboxItem {
    /// The notification, as in frames of the WebSocket.
    #[serde(rename = "toast")]
    pub notification: Notification,
    /// True if it is marked as read, by the user of the query or for everyone.
    pub read: bool,
}

/// `POST /acp/notifications/{id}/ack`: marks it as read for `userId`, else for everyone.
pub(crate) type AckBody = Subscription;

/// Answer to the acknowledgement of a notification.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Acknowledged {
    /// The notification, as in frames of the WebSocket.
    pub id: Uuid,
    /// Unread notifications of the selection, at most 1,000.
    pub unread: u64,
}
