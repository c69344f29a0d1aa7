//! The inbox: pages of the notifications in a scope, unread counts and read marks; and the tickets of subscribers.

use diesel::{
    BoolExpressionMethods, ExpressionMethods, OptionalExtension, QueryDsl, RunQueryDsl,
    dsl::sql,
    sql_types::{Bool, Text},
};
use uuid::Uuid;

use super::{MAX_SCANNED, NotificationRecord, NotificationRow, ends, within};
use crate::{
    domain::{
        clock::Timestamp,
        notify::notification::{Scope, Stream},
    },
    store::{
        Cursor, Page, Store, StoreError,
        engine::{
            columns::{self, page_of},
            connection::{AnyConnection, execute},
            writer::WriteTx,
        },
        schema::{notification_reads, notification_tickets, notifications},
    },
};

/// Maximum of an unread count: above it, users do not need the exact number.
pub(crate) const MAX_UNREAD: u64 = 1000;

/// A page of the inbox.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct InboxRows {
    /// Notifications, newest first; the flag is true if the notification was read.
    pub rows: Vec<(NotificationRow, bool)>,
    /// Number of unreadable notifications in this page.
    pub unreadable: usize,
    /// Cursor of the next page; `None` if this page is not full.
    pub next: Option<Cursor>,
}

/// Condition: the notification was marked as read neither by the scope's user nor for all users.
macro_rules! is_unread {
    ($scope:expr) => {{
        let user = $scope.user.as_ref().map_or_else(String::new, |user| user.as_str().to_owned());
        sql::<Bool>(
            "NOT EXISTS (SELECT 1 FROM notification_reads WHERE notification_reads.notification_id = \
             notifications.notification_id AND (notification_reads.user_id = '' OR notification_reads.user_id = ",
        )
        .bind::<Text, _>(user)
        .sql("))")
    }};
}

fn unread(connection: &mut AnyConnection, scope: &Scope) -> Result<u64, StoreError> {
    let limit = i64::try_from(MAX_UNREAD).unwrap_or(i64::MAX);
    let rows = within!(scope).filter(notifications::seq.gt(newest(connection, scope)?)).filter(is_unread!(scope));
    let rows = rows.order(notifications::seq.desc()).limit(limit).select(notifications::seq);
    Ok(rows.load::<i64>(connection)?.len() as u64)
}

/// Sequence number after which notifications are searched for unread ones.
fn newest(connection: &mut AnyConnection, scope: &Scope) -> Result<i64, StoreError> {
    Ok(columns::signed(ends(connection, &scope.stream)?.head) - MAX_SCANNED)
}

fn mark_read(tx: &mut WriteTx<'_>, scope: &Scope, id: &str, now: Timestamp) -> Result<bool, StoreError> {
    let found: Option<i64> = within!(scope)
        .filter(notifications::notification_id.eq(id.to_owned()))
        .select(notifications::seq)
        .first(tx.connection)
        .optional()?;
    if found.is_none() {
        return Ok(false);
    }
    let user = scope.user.as_ref().map_or("", |user| user.as_str());
    let read = diesel::insert_into(notification_reads::table)
        .values((
            notification_reads::notification_id.eq(id),
            notification_reads::user_id.eq(user),
            notification_reads::read_us.eq(now.0),
        ))
        .on_conflict_do_nothing();
    tx.rows += execute!(tx.connection, read)?;
    Ok(true)
}

impl Store {
    /// Reads a page of the notifications in a scope, newest first, with their read marks. `unread_only` searches the
    /// newest 5,000 of the stream, as [`Store::unread`] does. Cancel-safe.
    pub(crate) async fn inbox(&self, scope: Scope, unread_only: bool, page: Page) -> Result<InboxRows, StoreError> {
        self.read(move |connection| {
            let mut rows = within!(&scope);
            if unread_only {
                rows = rows.filter(notifications::seq.gt(newest(connection, &scope)?)).filter(is_unread!(&scope));
            }
            let rows = page_of!(rows, page, notifications::created_us, notifications::notification_id);
            let records: Vec<NotificationRecord> = rows.load(connection)?;
            let user = scope.user.as_ref().map_or("", |user| user.as_str());
            let ids = records.iter().map(|record| record.notification_id.as_str());
            let read: Vec<String> = notification_reads::table
                .filter(notification_reads::notification_id.eq_any(ids))
                .filter(notification_reads::user_id.eq_any(["", user]))
                .select(notification_reads::notification_id)
                .load(connection)?;
            let last = records.last().filter(|_| records.len() >= page.limit.clamp(1, columns::MAX_PAGE));
            let next = last.map(|it| Cursor { created: Timestamp(it.created_us), id: it.notification_id.clone() });
            let mut inbox = InboxRows { next, ..InboxRows::default() };
            for record in records {
                let is_read = read.contains(&record.notification_id);
                let kept = record.read_or_log();
                inbox.unreadable += usize::from(kept.is_err());
                inbox.rows.extend(kept.map(|row| (row, is_read)));
            }
            Ok(inbox)
        })
        .await
    }

    /// Number of notifications in a scope that were marked as read neither by its user nor for all users: at most
    /// [`MAX_UNREAD`], among the newest 5,000 of the stream. Cancel-safe.
    pub(crate) async fn unread(&self, scope: Scope) -> Result<u64, StoreError> {
        self.read(move |connection| unread(connection, &scope)).await
    }

    /// Marks notifications as read by the scope's user, or for all users if it names none, in one transaction.
    /// Returns for each whether it is in the scope. Safe to retry.
    ///
    /// # Cancel safety
    /// A dropped future may have written.
    pub(crate) async fn mark_read(
        &self,
        scope: Scope,
        ids: Vec<Uuid>,
        now: Timestamp,
    ) -> Result<Vec<bool>, StoreError> {
        self.write(move |tx| ids.iter().map(|id| mark_read(tx, &scope, &id.to_string(), now)).collect()).await
    }
}

/// Maximum number of expired tickets that are deleted with each new one; more than are created, so that they cannot
/// accumulate.
const MAX_DELETED: i64 = 16;

impl Store {
    /// Stores the hash of a ticket with the scope that it grants.
    ///
    /// # Cancel safety
    /// A dropped future may have written.
    pub(crate) async fn add_ticket(
        &self,
        hash: String,
        scope: String,
        expires: Timestamp,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let scope = columns::clean(scope);
        self.write(move |tx| {
            let old: Vec<String> = notification_tickets::table
                .filter(notification_tickets::expires_us.le(now.0))
                .limit(MAX_DELETED)
                .select(notification_tickets::ticket_hash)
                .load(tx.connection)?;
            diesel::delete(notification_tickets::table.filter(notification_tickets::ticket_hash.eq_any(old)))
                .execute(tx.connection)?;
            let ticket = (
                notification_tickets::ticket_hash.eq(hash.as_str()),
                notification_tickets::scope.eq(scope.as_str()),
                notification_tickets::expires_us.eq(expires.0),
            );
            tx.rows += diesel::insert_into(notification_tickets::table).values(ticket).execute(tx.connection)?;
            Ok(())
        })
        .await
    }

    /// True if the ticket exists, expired or not. Cancel-safe.
    pub(crate) async fn has_ticket(&self, hash: String) -> Result<bool, StoreError> {
        self.read(move |connection| {
            let kept = notification_tickets::table.find(hash).select(notification_tickets::expires_us);
            Ok(kept.first::<i64>(connection).optional()?.is_some())
        })
        .await
    }

    /// Deletes a ticket and returns the scope that it grants; `None` if it does not exist or has expired. Of two
    /// concurrent callers, one gets the scope.
    ///
    /// # Cancel safety
    /// A dropped future may have deleted the ticket.
    pub(crate) async fn take_ticket(&self, hash: String, now: Timestamp) -> Result<Option<String>, StoreError> {
        self.write(move |tx| {
            let ours = notification_tickets::table.find(hash.as_str());
            let kept: Option<(String, i64)> = ours
                .select((notification_tickets::scope, notification_tickets::expires_us))
                .first(tx.connection)
                .optional()?;
            let taken = diesel::delete(ours).execute(tx.connection)?;
            tx.rows += taken;
            Ok(kept.filter(|(_, expires)| taken == 1 && now.0 < *expires).map(|(scope, _)| scope))
        })
        .await
    }
}
