//! The tables of notifications and of their streams.

pub(crate) mod deliveries;
pub(crate) mod inbox;
pub(crate) mod notes;

#[cfg(test)]
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};
use std::time::Duration;

use diesel::{
    BoolExpressionMethods, ExpressionMethods, Insertable, OptionalExtension, QueryDsl, Queryable, RunQueryDsl,
};
use uuid::Uuid;

use super::{
    Store, StoreError,
    engine::{
        columns,
        connection::{AnyConnection, execute},
        writer::WriteTx,
    },
    schema::{notification_streams, notifications, sessions},
};
use crate::{
    contract::notifications::webhook::WebhookFigures,
    domain::{
        clock::Timestamp,
        ids::{SessionId, UserId, WorkspaceKey},
        notify::notification::{AUTO_DISMISS_MS, NewNotification, Scope, Severity, Stream, TITLE, Trigger},
    },
};

/// A stored notification. Beside the item of the contract, because subscribers filter by its stream and user and its
/// severity and trigger are matched, so they stay typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NotificationRow {
    pub notification_id: Uuid,
    pub stream: Stream,
    /// The number in its stream, from 1.
    pub seq: u64,
    /// `None` in the operators' stream.
    pub key: Option<WorkspaceKey>,
    /// `None` if it is about a whole workspace.
    pub session_id: Option<SessionId>,
    pub user_id: Option<UserId>,
    pub title: String,
    pub body: String,
    pub severity: Severity,
    pub trigger: Trigger,
    /// Time that clients show it.
    pub auto_dismiss: Duration,
    /// The record that caused it; unique.
    pub cause_id: String,
    pub created: Timestamp,
    /// The figures of an operators' notification; `None` if it has none, or a newer version wrote others.
    pub figures: Option<WebhookFigures>,
}

/// A stored notification that this version cannot parse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct UnreadableNotification {
    /// The number in its stream.
    pub seq: u64,
}

/// A notification of a stream, or the number of an unreadable one.
pub(crate) type StoredNotification = Result<NotificationRow, UnreadableNotification>;

/// The ends of a stream: it holds the numbers after `tail`, up to `head`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct StreamEnds {
    /// The newest number; 0 before the first.
    pub head: u64,
    /// The newest number that retention removed.
    pub tail: u64,
}

/// The most notifications of a stream that one read scans for a scope, and the newest ones among which unread ones are
/// counted: some milliseconds, however long the stream is.
pub(crate) const MAX_SCANNED: i64 = 5000;

/// A page of a stream, as a scope sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StreamPage {
    /// Ordered by number.
    pub rows: Vec<StoredNotification>,
    /// The rows are complete up to this number.
    pub until: u64,
    /// True if the stream ends at `until`.
    pub is_last: bool,
}

#[derive(Queryable, Insertable)]
#[diesel(table_name = notifications, treat_none_as_default_value = false)]
pub(crate) struct NotificationRecord {
    pub(crate) notification_id: String,
    stream: String,
    seq: i64,
    installation_id: Option<String>,
    workspace_id: Option<String>,
    session_id: Option<String>,
    user_id: Option<String>,
    title: String,
    body: String,
    severity: String,
    trigger: String,
    auto_dismiss_ms: i64,
    cause_id: String,
    pub(crate) created_us: i64,
    figures: Option<String>,
}

impl NotificationRecord {
    pub(crate) fn read(self) -> Result<NotificationRow, StoreError> {
        let key = self.installation_id.zip(self.workspace_id);
        Ok(NotificationRow {
            notification_id: columns::parse(&self.notification_id, "notifications.notification_id")?,
            stream: columns::parse(&self.stream, "notifications.stream")?,
            seq: columns::unsigned(self.seq),
            key: key.map(|(tenant, workspace)| columns::workspace_key(tenant, workspace)).transpose()?,
            session_id: self.session_id.map(|id| columns::parse(&id, "notifications.session_id")).transpose()?,
            user_id: self.user_id.map(|id| columns::parse(&id, "notifications.user_id")).transpose()?,
            title: self.title,
            body: self.body,
            severity: columns::named(Severity::from_name, &self.severity, "notifications.severity")?,
            trigger: columns::named(Trigger::from_name, &self.trigger, "notifications.trigger")?,
            auto_dismiss: Duration::from_millis(columns::unsigned(self.auto_dismiss_ms)),
            cause_id: self.cause_id,
            created: Timestamp(self.created_us),
            figures: self.figures.and_then(|figures| serde_json::from_str(&figures).ok()),
        })
    }

    /// Reads the row, or logs that it is unreadable, so that later ones are delivered nevertheless.
    pub(crate) fn read_or_log(self) -> StoredNotification {
        let (notification_id, seq) = (self.notification_id.clone(), columns::unsigned(self.seq));
        self.read().map_err(|cause| {
            tracing::error!(marker = "[ACP]", notification_id, seq, %cause, "a notification cannot be read and is left out");
            UnreadableNotification { seq }
        })
    }
}

/// Creates missing streams and locks them until the end of the transaction, so that numbers of a stream are given out in
/// commit order. `streams` are sorted, so that two processes cannot deadlock. SQLite has a single writer and needs no
/// lock.
pub(crate) fn lock_streams(connection: &mut AnyConnection, streams: &[Stream]) -> Result<(), StoreError> {
    for stream in streams {
        let name = stream.to_string();
        let create_stream = diesel::insert_into(notification_streams::table)
            .values((
                notification_streams::stream.eq(name.as_str()),
                notification_streams::head.eq(0),
                notification_streams::tail.eq(0),
            ))
            .on_conflict_do_nothing();
        execute!(connection, create_stream)?;
        if let AnyConnection::Postgres(connection) = &mut *connection {
            let ours = notification_streams::table.find(name.as_str());
            diesel::update(ours)
                .set(notification_streams::head.eq(notification_streams::head))
                .execute(connection)?;
        }
    }
    Ok(())
}

/// Appends a notification to its stream at the end of the transaction; nothing is added if the cause was notified before.
pub(crate) fn add_later(tx: &mut WriteTx<'_>, notification: &NewNotification, now: Timestamp) {
    let notification = notification.clone();
    tx.later(vec![notification.to.stream()], move |tx| add(tx, &notification, now).map(|_| ()));
}

/// True if the cause was notified before.
fn is_notified(tx: &mut WriteTx<'_>, notification: &NewNotification) -> diesel::QueryResult<bool> {
    let cause_id = columns::clean(notification.cause_id.clone());
    let earlier = notifications::table.filter(notifications::cause_id.eq(cause_id));
    Ok(earlier.select(notifications::seq).first::<i64>(tx.connection).optional()?.is_some())
}

/// Appends a notification to its stream, which is locked. `false`, and nothing is added, if the cause was notified before.
pub(crate) fn add(tx: &mut WriteTx<'_>, notification: &NewNotification, now: Timestamp) -> Result<bool, StoreError> {
    let (stream, cause_id) = (notification.to.stream(), super::engine::columns::clean(notification.cause_id.clone()));
    let name = stream.to_string();
    let ours = notification_streams::table.find(name.as_str());
    if is_notified(tx, notification)? {
        if tx.in_doubt {
            // An earlier attempt of this write may have added it without notifying subscribers.
            tx.grown.push(stream);
        }
        return Ok(false);
    }
    let head: i64 = ours.select(notification_streams::head).first(tx.connection)?;
    let seq = head + 1;
    diesel::update(ours).set(notification_streams::head.eq(seq)).execute(tx.connection)?;
    let session_id = notification.to.session().map(|id| id.to_string());
    let user_id: Option<Option<String>> = match &session_id {
        Some(id) => sessions::table.find(id.as_str()).select(sessions::user_id).first(tx.connection).optional()?,
        None => None,
    };
    let workspace = notification.to.workspace();
    let figures = notification.notice.figures.as_ref().map(WebhookFigures::from);
    let record = NotificationRecord {
        notification_id: notification.id.to_string(),
        stream: name,
        seq,
        installation_id: workspace.map(|key| key.installation_id.to_string()),
        workspace_id: workspace.map(|key| key.workspace_id.to_string()),
        session_id,
        user_id: user_id.flatten(),
        title: TITLE.to_owned(),
        body: columns::clean(notification.notice.body.as_str().to_owned()),
        severity: notification.notice.severity.as_str().to_owned(),
        trigger: notification.notice.trigger.as_str().to_owned(),
        auto_dismiss_ms: i64::from(AUTO_DISMISS_MS),
        cause_id,
        created_us: now.0,
        figures: figures.and_then(|figures| serde_json::to_string(&figures).ok()),
    };
    tx.rows += diesel::insert_into(notifications::table).values(&record).execute(tx.connection)?;
    if stream == Stream::Operators {
        deliveries::enqueue(tx, &record.notification_id, now)?;
    }
    tx.grown.push(stream);
    Ok(true)
}

/// A query of the notifications that a scope sees.
macro_rules! within {
    ($scope:expr) => {{
        let scope: &Scope = $scope;
        let mut rows = notifications::table.filter(notifications::stream.eq(scope.stream.to_string())).into_boxed();
        if let Stream::Tenant(tenant) = &scope.stream {
            // Redundant, but the first column of the lists' indexes.
            rows = rows.filter(notifications::installation_id.eq(tenant.as_str().to_owned()));
        }
        if let Some(workspace) = &scope.workspace {
            rows = rows.filter(notifications::workspace_id.eq(workspace.as_str().to_owned()));
        }
        if let Some(session) = scope.session {
            let is_of_session = notifications::session_id.eq(session.to_string());
            rows = rows.filter(notifications::session_id.is_null().or(is_of_session));
        }
        if let Some(user) = &scope.user {
            let is_of_user = notifications::user_id.eq(user.as_str().to_owned());
            rows = rows.filter(notifications::session_id.is_null().or(is_of_user));
        }
        if scope.sessions_only {
            rows = rows.filter(notifications::session_id.is_not_null());
        }
        rows
    }};
}

pub(crate) use within;

pub(crate) fn ends(connection: &mut AnyConnection, stream: &Stream) -> Result<StreamEnds, StoreError> {
    let ends: Option<(i64, i64)> = notification_streams::table
        .find(stream.to_string())
        .select((notification_streams::head, notification_streams::tail))
        .first(connection)
        .optional()?;
    let ends = ends.map(|(head, tail)| StreamEnds { head: columns::unsigned(head), tail: columns::unsigned(tail) });
    Ok(ends.unwrap_or_default())
}

impl Store {
    /// Adds a notification without a record of its cause. Waits for room in the queue and for the commit, as
    /// [`Store::append`] does. `false` if the cause was notified before. Safe to retry. A dropped future may have written.
    #[cfg(test)]
    pub(crate) async fn add_notification(
        &self,
        notification: NewNotification,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let (stream, added) = (notification.to.stream(), Arc::new(AtomicBool::new(false)));
        let is_added = added.clone();
        self.write_when_there_is_room(move |tx| {
            let (notification, added) = (notification.clone(), added.clone());
            tx.later(vec![stream.clone()], move |tx| {
                added.store(add(tx, &notification, now)?, Ordering::Release);
                Ok(())
            });
            Ok(())
        })
        .await?;
        Ok(is_added.load(Ordering::Acquire))
    }

    /// The ends of a stream; both 0 for an unknown one. Cancel-safe.
    pub(crate) async fn stream_ends(&self, stream: Stream) -> Result<StreamEnds, StoreError> {
        self.read(move |connection| ends(connection, &stream)).await
    }

    /// The newest numbers of those streams that exist. Cancel-safe.
    pub(crate) async fn stream_heads(&self, streams: Vec<Stream>) -> Result<Vec<(Stream, u64)>, StoreError> {
        self.read(move |connection| {
            let names = streams.iter().map(Stream::to_string);
            let heads: Vec<(String, i64)> = notification_streams::table
                .filter(notification_streams::stream.eq_any(names))
                .select((notification_streams::stream, notification_streams::head))
                .load(connection)?;
            let read = |(name, head): (String, i64)| {
                Ok((columns::parse(&name, "notification_streams.stream")?, columns::unsigned(head)))
            };
            heads.into_iter().map(read).collect()
        })
        .await
    }

    /// The notifications that a scope sees after a number, in order and with the unreadable ones: at most `limit`, among the
    /// next 5,000 of the stream, so that a page takes milliseconds however few are for the scope. Cancel-safe.
    pub(crate) async fn notifications_after(
        &self,
        scope: Scope,
        after: u64,
        limit: usize,
    ) -> Result<StreamPage, StoreError> {
        self.read(move |connection| {
            // Read before the rows: a concurrent commit is then among the rows or after this number.
            let head = ends(connection, &scope.stream)?.head;
            let end = after.saturating_add(MAX_SCANNED.unsigned_abs()).min(head.max(after));
            let rows = within!(&scope)
                .filter(notifications::seq.gt(columns::signed(after)))
                .filter(notifications::seq.le(columns::signed(end)))
                .order(notifications::seq.asc())
                .limit(columns::limit(limit));
            let records: Vec<NotificationRecord> = rows.load(connection)?;
            let is_full = records.len() >= limit.clamp(1, columns::MAX_PAGE);
            let last = records.last().filter(|_| is_full).map(|record| columns::unsigned(record.seq));
            let (until, rows) =
                (last.unwrap_or(end), records.into_iter().map(NotificationRecord::read_or_log).collect());
            Ok(StreamPage { rows, until, is_last: until >= head })
        })
        .await
    }
}
