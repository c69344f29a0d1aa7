//! Retention: deletes old rows in chunks.

use std::collections::BTreeMap;

use diesel::{ExpressionMethods, QueryDsl, RunQueryDsl, connection::SimpleConnection, sql_types::BigInt};

use super::{
    Store, StoreError,
    engine::{
        columns,
        connection::{AnyConnection, execute},
        writer::WriteTx,
    },
    schema::{notification_reads, notification_streams, notifications, webhook_deliveries},
};
use crate::domain::clock::Timestamp;

/// Kinds of rows that are deleted by age.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Retained {
    /// Handshakes and the connection events that followed. A handshake is deleted after the last of its events.
    Connections,
    /// Migrations of workspaces, by start time, and ended migrations of fleets, by last change.
    Migrations,
    RollbackEvents,
    /// Outcome counts, by start of the bucket.
    OutcomeBuckets,
    AutomationRuns,
    /// Deliveries of GitHub on which no work remains, and the hashes of all, by arrival.
    GithubDeliveries,
    /// Records of removals, and of erasures that have ended.
    Removals,
    /// Tokens, by the end of their use: revoked or expired.
    Tokens,
    /// Administrative changes.
    Changes,
    /// Notifications, except those with a pending webhook delivery.
    Notifications,
}

impl Retained {
    #[cfg(test)]
    pub(crate) const ALL: [Self; 10] = [
        Self::Connections,
        Self::Migrations,
        Self::RollbackEvents,
        Self::OutcomeBuckets,
        Self::AutomationRuns,
        Self::GithubDeliveries,
        Self::Removals,
        Self::Tokens,
        Self::Changes,
        Self::Notifications,
    ];

    /// Statements that delete rows older than `$1`, oldest first, each at most `$2` rows.
    fn statements(self) -> &'static [&'static str] {
        match self {
            Self::Connections => &[
                "DELETE FROM connection_events WHERE event_id IN (SELECT event_id FROM connection_events \
                 WHERE created_us < $1 ORDER BY created_us LIMIT $2)",
                "DELETE FROM acp_connections WHERE connection_row_id IN (SELECT connection_row_id FROM acp_connections c \
                 WHERE created_us < $1 AND NOT EXISTS (SELECT 1 FROM connection_events e \
                 WHERE e.connection_row_id = c.connection_row_id) ORDER BY created_us LIMIT $2)",
            ],
            Self::Migrations => &[
                "DELETE FROM protocol_migrations WHERE migration_id IN (SELECT migration_id FROM protocol_migrations \
                 WHERE started_us < $1 ORDER BY started_us LIMIT $2)",
                "DELETE FROM migration_runs WHERE run_id IN (SELECT run_id FROM migration_runs \
                 WHERE created_us < $1 AND updated_us < $1 AND NOT is_open ORDER BY created_us LIMIT $2)",
            ],
            Self::RollbackEvents => &["DELETE FROM rollback_events WHERE event_id IN (SELECT event_id \
                 FROM rollback_events WHERE created_us < $1 ORDER BY created_us LIMIT $2)"],
            Self::OutcomeBuckets => {
                &["DELETE FROM outcome_buckets WHERE (installation_id, workspace_id, epoch, route, bucket_us) IN \
                 (SELECT installation_id, workspace_id, epoch, route, bucket_us FROM outcome_buckets \
                 WHERE bucket_us < $1 ORDER BY bucket_us LIMIT $2)"]
            }
            Self::AutomationRuns => &[
                "DELETE FROM automation_runs WHERE run_id IN (SELECT run_id \
                 FROM automation_runs WHERE created_us < $1 ORDER BY created_us LIMIT $2)",
                "DELETE FROM automation_sagas WHERE run_id IN (SELECT run_id FROM automation_sagas \
                 WHERE created_us < $1 AND updated_us < $1 AND status NOT IN ('running', 'waiting') \
                 AND kept_us IS NULL ORDER BY created_us LIMIT $2)",
            ],
            Self::GithubDeliveries => &[
                "DELETE FROM github_deliveries WHERE delivery_id IN (SELECT delivery_id \
                 FROM github_deliveries WHERE created_us < $1 AND due_us IS NULL ORDER BY created_us LIMIT $2)",
                "DELETE FROM github_delivery_hashes WHERE content_hash IN (SELECT content_hash \
                 FROM github_delivery_hashes WHERE created_us < $1 ORDER BY created_us LIMIT $2)",
            ],
            Self::Removals => &[
                "DELETE FROM removals WHERE removal_id IN (SELECT removal_id FROM removals \
                 WHERE created_us < $1 ORDER BY created_us LIMIT $2)",
                "DELETE FROM erasures WHERE erasure_id IN \
                 (SELECT erasure_id FROM erasures WHERE created_us < $1 AND ended_us IS NOT NULL \
                 ORDER BY created_us LIMIT $2)",
            ],
            Self::Tokens => &["DELETE FROM client_tokens WHERE token_id IN (SELECT token_id FROM client_tokens \
                 WHERE COALESCE(revoked_us, expires_us) < $1 ORDER BY created_us LIMIT $2)"],
            Self::Changes => &["DELETE FROM admin_changes WHERE change_id IN (SELECT change_id FROM admin_changes \
                 WHERE created_us < $1 ORDER BY created_us LIMIT $2)"],
            // `prune_notifications` deletes them: it also moves the tail of the stream, by which readers detect the
            // removal.
            Self::Notifications => &[],
        }
    }
}

fn prune(tx: &mut WriteTx<'_>, what: Retained, before: Timestamp, limit: i64) -> Result<usize, StoreError> {
    if what == Retained::Notifications {
        return prune_notifications(tx, before, limit);
    }
    let mut deleted = 0;
    for statement in what.statements() {
        let left = limit - i64::try_from(deleted).unwrap_or(limit);
        let statement = diesel::sql_query(*statement).bind::<BigInt, _>(before.0).bind::<BigInt, _>(left);
        deleted += execute!(tx.connection, statement)?;
    }
    tx.rows += deleted;
    Ok(deleted)
}

/// Free pages that are returned to the file system after each deleted chunk: 1 MiB at SQLite's 4 KiB a page, which is
/// more than a chunk of rows frees and takes a few milliseconds.
const PAGES_PER_CHUNK: u32 = 256;

/// Shrinks a SQLite file by up to [`PAGES_PER_CHUNK`] free pages. `PostgreSQL` reuses free space by itself.
pub(super) fn release_free_pages(tx: &mut WriteTx<'_>) -> diesel::QueryResult<()> {
    match &mut *tx.connection {
        AnyConnection::Sqlite(connection) => {
            connection.batch_execute(&format!("PRAGMA incremental_vacuum({PAGES_PER_CHUNK})"))
        }
        AnyConnection::Postgres(_) => Ok(()),
    }
}

impl Store {
    /// Deletes rows older than `before`, oldest first: at most `limit`, and never more than
    /// [`MAX_PAGE`](super::MAX_PAGE), so that queued writes do not wait long. Returns the number of deleted rows; if
    /// it equals the limit, there may be more. Safe to retry.
    ///
    /// # Cancel safety
    /// A dropped future may have deleted.
    pub(crate) async fn prune(&self, what: Retained, before: Timestamp, limit: usize) -> Result<usize, StoreError> {
        self.write(move |tx| {
            let deleted = prune(tx, what, before, columns::limit(limit))?;
            if deleted > 0 {
                tx.later(Vec::new(), |tx| Ok(release_free_pages(tx)?));
            }
            Ok(deleted)
        })
        .await
    }
}

/// Deletes old notifications with their read marks and deliveries. Notifications with a pending delivery stay until
/// [`Store::expire_deliveries`](crate::store::Store::expire_deliveries) has given up the delivery.
pub(crate) fn prune_notifications(tx: &mut WriteTx<'_>, before: Timestamp, limit: i64) -> Result<usize, StoreError> {
    let pending = webhook_deliveries::table
        .filter(webhook_deliveries::state.eq("pending"))
        .select(webhook_deliveries::notification_id);
    let old: Vec<(String, String, i64)> = notifications::table
        .filter(notifications::created_us.lt(before.0))
        .filter(notifications::notification_id.ne_all(pending))
        .order(notifications::created_us.asc())
        .limit(limit)
        .select((notifications::notification_id, notifications::stream, notifications::seq))
        .load(tx.connection)?;
    let found = old.len();
    let streams = old.iter().map(|(_, stream, _)| columns::parse(stream, "notifications.stream"));
    let streams = streams.collect::<Result<Vec<_>, _>>()?;
    tx.later(streams, move |tx| delete_notifications(tx, &old));
    Ok(found)
}

fn delete_notifications(tx: &mut WriteTx<'_>, old: &[(String, String, i64)]) -> Result<(), StoreError> {
    let mut tails = BTreeMap::new();
    for (_, stream, seq) in old {
        let tail = tails.entry(stream.as_str()).or_insert(*seq);
        *tail = (*tail).max(*seq);
    }
    for (stream, tail) in tails {
        let ours = notification_streams::table.find(stream).filter(notification_streams::tail.lt(tail));
        diesel::update(ours).set(notification_streams::tail.eq(tail)).execute(tx.connection)?;
    }
    let ids = || old.iter().map(|(id, ..)| id.as_str());
    diesel::delete(notification_reads::table.filter(notification_reads::notification_id.eq_any(ids())))
        .execute(tx.connection)?;
    diesel::delete(webhook_deliveries::table.filter(webhook_deliveries::notification_id.eq_any(ids())))
        .execute(tx.connection)?;
    let removed = diesel::delete(notifications::table.filter(notifications::notification_id.eq_any(ids())))
        .execute(tx.connection)?;
    tx.rows += removed;
    Ok(())
}
