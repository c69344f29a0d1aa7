//! The inbox: what a scope sees as a list, how much of it is unread, and who has read what.

use diesel::{
    BoolExpressionMethods, ExpressionMethods, OptionalExtension, QueryDsl, RunQueryDsl,
    dsl::sql,
    sql_types::{Bool, Text},
};
use uuid::Uuid;

use super::{LOOKED_AT, NotificationRecord, NotificationRow, ends, within};
use crate::{
    domain::{
        clock::Timestamp,
        notify::toast::{Scope, Stream},
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

/// The most unread toasts that are counted: beyond it nobody wants to know how many exactly.
pub(crate) const MAX_UNREAD: u64 = 1000;

/// A page of the inbox.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct InboxRows {
    /// The newest first, each with whether it was read.
    pub rows: Vec<(NotificationRow, bool)>,
    /// Toasts of this page that cannot be read.
    pub unreadable: usize,
    /// Where the next page begins; none where this one is not full.
    pub next: Option<Cursor>,
}

/// Whether nobody who counts for the scope has read it.
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

/// What comes after this number is looked at for what is unread.
fn newest(connection: &mut AnyConnection, scope: &Scope) -> Result<i64, StoreError> {
    Ok(columns::signed(ends(connection, &scope.stream)?.head) - LOOKED_AT)
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
    /// A page of what a scope sees, the newest first, each with whether it was read; where only what is unread is wanted,
    /// among the newest 5,000 of its sequence, as it is counted. Cancel-safe.
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

    /// How many a scope sees that its user, or everyone, has not read: [`MAX_UNREAD`] at most, among the newest 5,000 of
    /// its sequence. Cancel-safe.
    pub(crate) async fn unread(&self, scope: Scope) -> Result<u64, StoreError> {
        self.read(move |connection| unread(connection, &scope)).await
    }

    /// Notes that the scope's user, or everyone where it names none, has read some toasts, in one transaction; for each
    /// whether the scope sees it. Safe to retry. A dropped future may have written.
    pub(crate) async fn mark_read(
        &self,
        scope: Scope,
        ids: Vec<Uuid>,
        now: Timestamp,
    ) -> Result<Vec<bool>, StoreError> {
        self.write(move |tx| ids.iter().map(|id| mark_read(tx, &scope, &id.to_string(), now)).collect()).await
    }
}

/// Tickets of the past that are removed with each new one; more of them than are made cannot pile up.
const SWEPT_AT_ONCE: i64 = 16;

impl Store {
    /// Keeps a ticket by its hash, and what it allows. A dropped future may have written.
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
                .limit(SWEPT_AT_ONCE)
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

    /// Whether there is such a ticket, too old or not. Cancel-safe.
    pub(crate) async fn has_ticket(&self, hash: String) -> Result<bool, StoreError> {
        self.read(move |connection| {
            let kept = notification_tickets::table.find(hash).select(notification_tickets::expires_us);
            Ok(kept.first::<i64>(connection).optional()?.is_some())
        })
        .await
    }

    /// Takes a ticket away and says what it allowed; nothing where there is none, or none any more. Of two callers one
    /// gets it. A dropped future may have taken it.
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
