//! The table of tickets: each opens one WebSocket, once, and soon. In the database, so that the replica that gave one
//! out need not be the one that is asked.

use diesel::{ExpressionMethods, OptionalExtension, QueryDsl, RunQueryDsl};

use super::{Store, StoreError, engine::columns, schema::notification_tickets};
use crate::domain::clock::Timestamp;

/// Tickets of the past that are removed with each new one; more of them than are made cannot pile up.
const SWEPT_AT_ONCE: i64 = 16;

impl Store {
    /// Keeps a ticket by its hash, and what it allows. A dropped future may have written.
    pub async fn add_ticket(
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
    pub async fn has_ticket(&self, hash: String) -> Result<bool, StoreError> {
        self.read(move |connection| {
            let kept = notification_tickets::table.find(hash).select(notification_tickets::expires_us);
            Ok(kept.first::<i64>(connection).optional()?.is_some())
        })
        .await
    }

    /// Takes a ticket away and says what it allowed; nothing where there is none, or none any more. Of two callers one
    /// gets it. A dropped future may have taken it.
    pub async fn take_ticket(&self, hash: String, now: Timestamp) -> Result<Option<String>, StoreError> {
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
