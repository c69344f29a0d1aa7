//! The tables of notifications: what was told, and in which order.

pub(crate) mod deliveries;
pub(crate) mod inbox;
pub(crate) mod notes;

use std::time::Duration;

use diesel::{
    BoolExpressionMethods, ExpressionMethods, Insertable, OptionalExtension, QueryDsl, Queryable, RunQueryDsl,
    sql_types::BigInt,
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
use crate::domain::{
    clock::Timestamp,
    ids::{SessionId, UserId, WorkspaceKey},
    notify::toast::{AUTO_DISMISS_MS, NewNotification, Scope, Severity, Stream, TITLE, Trigger},
};

/// A stored notification. Beside the item of the contract, because subscribers filter by its stream and user and its
/// severity and trigger are matched, so they stay typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NotificationRow {
    /// Its id.
    pub notification_id: Uuid,
    /// The sequence in which it stands.
    pub stream: Stream,
    /// Its place there, from 1.
    pub seq: u64,
    /// The workspace; none where it is for operators.
    pub key: Option<WorkspaceKey>,
    /// The session, where it is about one.
    pub session_id: Option<SessionId>,
    /// The session's user.
    pub user_id: Option<UserId>,
    /// The title.
    pub title: String,
    /// The text.
    pub body: String,
    /// How bad it is.
    pub severity: Severity,
    /// What it is about.
    pub trigger: Trigger,
    /// How long it is shown.
    pub auto_dismiss: Duration,
    /// What caused it.
    pub cause_id: String,
    /// When it was written.
    pub created: Timestamp,
}

/// A toast that is there and cannot be read: this version does not know what stands in it, or something else wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct UnreadableNotification {
    /// Its place in its sequence.
    pub seq: u64,
}

/// A toast of a sequence, or that one is there which cannot be read.
pub(crate) type StoredNotification = Result<NotificationRow, UnreadableNotification>;

/// What there is of a sequence: the numbers after `tail`, until `head`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct StreamEnds {
    /// The newest number; 0 before the first.
    pub head: u64,
    /// The newest number that was removed because of its age.
    pub tail: u64,
}

/// The toasts of a sequence among which those for a scope are looked for at once, and the newest among which unread ones
/// are: some milliseconds, however long a tenant is there.
pub(crate) const LOOKED_AT: i64 = 5000;

/// A part of what a scope sees of a sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StreamPage {
    /// In the order of their numbers.
    pub rows: Vec<StoredNotification>,
    /// Up to this number they are all there is.
    pub until: u64,
    /// Whether the sequence had nothing after that.
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
        })
    }

    /// Reads it, or says in the log which one cannot be read: what comes after it is told all the same.
    pub(crate) fn read_or_log(self) -> StoredNotification {
        let (notification_id, seq) = (self.notification_id.clone(), columns::unsigned(self.seq));
        self.read().map_err(|cause| {
            tracing::error!(marker = "[ACP]", notification_id, seq, %cause, "a notification cannot be read and is left out");
            UnreadableNotification { seq }
        })
    }
}

/// "toasts" in ASCII: the advisory lock of PostgreSQL that a transaction holds from its first toast until its end.
const NOTIFICATIONS_LOCK: i64 = 0x746f_6173_7473;

/// Lets one process at a time tell something. A transaction tells in several sequences, whose rows it would take in any
/// order: of two processes each would wait for the other, until the database sees that after a second. SQLite has one
/// writer anyway.
pub(crate) fn lock_notifications(tx: &mut WriteTx<'_>) -> Result<(), StoreError> {
    if std::mem::replace(tx.has_lock, true) {
        return Ok(());
    }
    if let AnyConnection::Postgres(connection) = &mut *tx.connection {
        diesel::sql_query("SELECT pg_advisory_xact_lock($1)")
            .bind::<BigInt, _>(NOTIFICATIONS_LOCK)
            .execute(connection)?;
    }
    Ok(())
}

/// Adds a toast to its sequence, in the transaction of its cause. `false` where the cause was told before: then
/// nothing is added.
pub(crate) fn add(tx: &mut WriteTx<'_>, toast: &NewNotification, now: Timestamp) -> Result<bool, StoreError> {
    let (stream, cause_id) = (toast.to.stream(), super::engine::columns::clean(toast.cause_id.clone()));
    let name = stream.to_string();
    lock_notifications(tx)?;
    let begun = diesel::insert_into(notification_streams::table)
        .values((
            notification_streams::stream.eq(name.as_str()),
            notification_streams::head.eq(0),
            notification_streams::tail.eq(0),
        ))
        .on_conflict_do_nothing();
    execute!(tx.connection, begun)?;
    let ours = notification_streams::table.find(name.as_str());
    // Holds the row until the commit: whoever adds to the same sequence waits here.
    diesel::update(ours).set(notification_streams::head.eq(notification_streams::head)).execute(tx.connection)?;
    let told = notifications::table.filter(notifications::cause_id.eq(cause_id.as_str()));
    let told: Option<i64> = told.select(notifications::seq).first(tx.connection).optional()?;
    if told.is_some() {
        if tx.in_doubt {
            // It was perhaps this write that told it, and nobody was woken.
            tx.grown.push(stream);
        }
        return Ok(false);
    }
    let head: i64 = ours.select(notification_streams::head).first(tx.connection)?;
    let seq = head + 1;
    diesel::update(ours).set(notification_streams::head.eq(seq)).execute(tx.connection)?;
    let session_id = toast.to.session().map(|id| id.to_string());
    let user_id: Option<Option<String>> = match &session_id {
        Some(id) => sessions::table.find(id.as_str()).select(sessions::user_id).first(tx.connection).optional()?,
        None => None,
    };
    let workspace = toast.to.workspace();
    let record = NotificationRecord {
        notification_id: toast.id.to_string(),
        stream: name,
        seq,
        installation_id: workspace.map(|key| key.installation_id.to_string()),
        workspace_id: workspace.map(|key| key.workspace_id.to_string()),
        session_id,
        user_id: user_id.flatten(),
        title: TITLE.to_owned(),
        body: columns::clean(toast.notice.body.as_str().to_owned()),
        severity: toast.notice.severity.as_str().to_owned(),
        trigger: toast.notice.trigger.as_str().to_owned(),
        auto_dismiss_ms: i64::from(AUTO_DISMISS_MS),
        cause_id,
        created_us: now.0,
    };
    tx.rows += diesel::insert_into(notifications::table).values(&record).execute(tx.connection)?;
    if stream == Stream::Operators {
        deliveries::enqueue(tx, &record.notification_id, now)?;
    }
    tx.grown.push(stream);
    Ok(true)
}

/// What a scope sees, as a query.
macro_rules! within {
    ($scope:expr) => {{
        let scope: &Scope = $scope;
        let mut rows = notifications::table.filter(notifications::stream.eq(scope.stream.to_string())).into_boxed();
        if let Stream::Tenant(tenant) = &scope.stream {
            // Says nothing new, but it is what the indexes of lists begin with.
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
    /// Keeps a toast whose cause is kept nowhere else: waits for room in the queue and for the commit, as
    /// [`Store::append`] does; `false` where the cause was told before. Safe to retry. A dropped future may have written.
    pub(crate) async fn tell(&self, toast: NewNotification, now: Timestamp) -> Result<bool, StoreError> {
        self.write_when_there_is_room(move |tx| add(tx, &toast, now)).await
    }

    /// The first and the last number of a sequence. Cancel-safe.
    pub(crate) async fn stream_ends(&self, stream: Stream) -> Result<StreamEnds, StoreError> {
        self.read(move |connection| ends(connection, &stream)).await
    }

    /// The newest numbers of sequences, of those that there are. Cancel-safe.
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

    /// What a scope sees after a number, in order: at most `limit` rows, among the next 5,000 of the sequence, so that a
    /// page takes milliseconds however little of it is for the scope; those too that cannot be read. Cancel-safe.
    pub(crate) async fn notifications_after(
        &self,
        scope: Scope,
        after: u64,
        limit: usize,
    ) -> Result<StreamPage, StoreError> {
        self.read(move |connection| {
            // First: what is committed meanwhile is among the rows or after this number.
            let head = ends(connection, &scope.stream)?.head;
            let end = after.saturating_add(LOOKED_AT.unsigned_abs()).min(head.max(after));
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
