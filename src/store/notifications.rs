//! The table of notifications: what was told to users, and what is still to be told.

use std::time::Duration;

use diesel::{Insertable, Queryable};
use uuid::Uuid;

use super::{StoreError, columns, schema::notifications};
use crate::domain::{
    clock::Timestamp,
    ids::{SessionId, WorkspaceKey},
};

/// A notification as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotificationRow {
    /// Its id.
    pub notification_id: Uuid,
    /// The workspace.
    pub key: WorkspaceKey,
    /// The session, where it is about one.
    pub session_id: Option<SessionId>,
    /// Its place among the others.
    pub seq: u64,
    /// The title.
    pub title: String,
    /// The text.
    pub body: String,
    /// `info`, `warning` or `error`.
    pub severity: String,
    /// What made it.
    pub trigger: String,
    /// How long it is shown.
    pub auto_dismiss: Duration,
    /// The record of which it tells.
    pub cause_id: String,
    /// When it was written.
    pub created: Timestamp,
    /// When it was told.
    pub delivered: Option<Timestamp>,
}

#[derive(Queryable, Insertable)]
#[diesel(table_name = notifications, treat_none_as_default_value = false)]
pub(super) struct Record {
    notification_id: String,
    installation_id: String,
    workspace_id: String,
    session_id: Option<String>,
    seq: i64,
    title: String,
    body: String,
    severity: String,
    trigger: String,
    auto_dismiss_ms: i64,
    cause_id: String,
    created_us: i64,
    delivered_us: Option<i64>,
}

impl Record {
    pub(super) fn read(self) -> Result<NotificationRow, StoreError> {
        Ok(NotificationRow {
            notification_id: columns::parse(&self.notification_id, "notifications.notification_id")?,
            key: columns::workspace_key(self.installation_id, self.workspace_id)?,
            session_id: self.session_id.map(|id| columns::parse(&id, "notifications.session_id")).transpose()?,
            seq: columns::unsigned(self.seq),
            title: self.title,
            body: self.body,
            severity: self.severity,
            trigger: self.trigger,
            auto_dismiss: Duration::from_millis(columns::unsigned(self.auto_dismiss_ms)),
            cause_id: self.cause_id,
            created: Timestamp(self.created_us),
            delivered: self.delivered_us.map(Timestamp),
        })
    }
}
