//! The inbox of toasts, and what opens a WebSocket that reads them.

pub(crate) mod frames;
pub(crate) mod toast;
pub(crate) mod webhook;

use std::fmt;

use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use self::toast::Toast;
use crate::domain::{
    clock::Timestamp,
    ids::{InstallationId, SessionId, UserId, WorkspaceId},
};

/// Which toasts. A member that is misspelt is refused: without it more would be seen than was meant.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Subscription {
    /// The tenant; may be left out beside `sessionId` and `stream`.
    #[schema(value_type = Option<String>)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub installation_id: Option<InstallationId>,
    /// Only of this workspace.
    #[schema(value_type = Option<String>)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace_id: Option<WorkspaceId>,
    /// Only of this user's sessions, and what concerns a workspace as a whole.
    #[schema(value_type = Option<String>)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_id: Option<UserId>,
    /// Only of this session, and what concerns its workspace as a whole.
    #[schema(value_type = Option<String>)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_id: Option<SessionId>,
    /// `operators` for what concerns the service as a whole; a tenant's where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<StreamName>,
}

/// A stream that is no tenant's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum StreamName {
    /// Of the service's operators.
    Operators,
}

/// `GET /ws/notifications`: which toasts, and the ticket where neither header nor subprotocol says who asks.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct SocketQuery {
    /// The tenant; may be left out beside `sessionId` and `stream=operators`.
    #[param(value_type = Option<String>)]
    pub installation_id: Option<InstallationId>,
    /// Only of this workspace.
    #[param(value_type = Option<String>)]
    pub workspace_id: Option<WorkspaceId>,
    /// Only of this user's sessions, and what concerns a workspace as a whole.
    #[param(value_type = Option<String>)]
    pub user_id: Option<UserId>,
    /// Only of this session, and what concerns its workspace as a whole.
    #[param(value_type = Option<String>)]
    pub session_id: Option<SessionId>,
    /// `operators` for what concerns the service as a whole; a tenant's where absent.
    pub stream: Option<StreamName>,
    /// From `POST /acp/notifications/ticket`.
    #[param(value_type = Option<String>)]
    pub ticket: Option<SecretString>,
}

impl SocketQuery {
    /// Which toasts.
    pub(crate) fn subscription(self) -> Subscription {
        let Self { installation_id, workspace_id, user_id, session_id, stream, ticket: _ } = self;
        Subscription { installation_id, workspace_id, user_id, session_id, stream }
    }
}

/// A ticket: opens one WebSocket, once.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Ticket {
    /// Give it as `?ticket=` or as a subprotocol `lumilink.ticket.<ticket>`.
    pub ticket: String,
    /// Until when it can be used.
    #[schema(value_type = String, format = DateTime)]
    pub expires_at: Timestamp,
}

impl fmt::Debug for Ticket {
    /// Without the ticket.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket").field("expires_at", &self.expires_at).finish_non_exhaustive()
    }
}

/// `GET /acp/notifications`: which toasts, and which part of the list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct InboxQuery {
    /// The tenant; may be left out beside `sessionId` and `stream=operators`.
    #[param(value_type = Option<String>)]
    pub installation_id: Option<InstallationId>,
    /// Only of this workspace.
    #[param(value_type = Option<String>)]
    pub workspace_id: Option<WorkspaceId>,
    /// Only of this user's sessions, and what concerns a workspace as a whole.
    #[param(value_type = Option<String>)]
    pub user_id: Option<UserId>,
    /// Only of this session, and what concerns its workspace as a whole.
    #[param(value_type = Option<String>)]
    pub session_id: Option<SessionId>,
    /// `operators` for what concerns the service as a whole; a tenant's where absent.
    pub stream: Option<StreamName>,
    /// Whether to leave out what was read; then only the newest 5,000 toasts of the stream are looked at.
    #[serde(default)]
    pub unread_only: bool,
    /// The most toasts.
    pub limit: Option<usize>,
    /// `nextCursor` of the page before.
    pub cursor: Option<String>,
}

impl InboxQuery {
    /// Which toasts.
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
    /// The toasts.
    pub items: Vec<InboxItem>,
    /// Toasts of this page that are there and cannot be read, and so are left out; absent where there are none.
    #[serde(skip_serializing_if = "is_zero")]
    #[schema(required = false)]
    pub unreadable: usize,
    /// Toasts of the subscription that were not read, 1,000 at most.
    pub unread: u64,
    /// Names the database.
    pub epoch: String,
    /// The newest toast of the stream: with the epoch, where a WebSocket goes on from here.
    pub head: u64,
    /// Give it as `cursor` for the next page; absent on the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(count: &usize) -> bool {
    *count == 0
}

/// A toast of the inbox.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct InboxItem {
    /// The toast.
    pub toast: Toast,
    /// Whether the user of the query, or everyone, has read it.
    pub read: bool,
}

/// `POST /acp/notifications/{id}/ack`: of which subscription; with `userId` for this user, else for everyone.
pub(crate) type AckBody = Subscription;

/// Answer to an acknowledgement.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Acknowledged {
    /// The toast.
    #[schema(value_type = String)]
    pub id: Uuid,
    /// Toasts of the subscription that were not read, 1,000 at most.
    pub unread: u64,
}
