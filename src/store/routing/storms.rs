//! The rollback storm in progress: at most one row. It is changed with the operators' stream locked, after which a
//! transaction sees the committed rollbacks of every other one: writers of several processes agree on begin and end.

use std::{fmt::Display, ops::Range, sync::Arc};

use diesel::{ExpressionMethods, Insertable, OptionalExtension, Queryable, RunQueryDsl, sql_types::BigInt};
use parking_lot::Mutex;
use uuid::Uuid;

use crate::{
    domain::{
        clock::Timestamp,
        notify::{
            notice,
            notification::{Addressee, NewNotification, Notice, Stream},
        },
        routing::storm::{AutomaticRollback, RollbackStorm, counted_at, is_storm},
    },
    store::{
        Store, StoreError,
        engine::{columns, connection::AnyConnection, writer::WriteTx},
        notifications::add,
        schema::rollback_storm,
    },
};

#[derive(Queryable, Insertable)]
#[diesel(table_name = rollback_storm)]
struct Record {
    one: bool,
    storm_id: String,
    since_us: i64,
    most_flipped: i64,
}

fn open(connection: &mut AnyConnection) -> Result<Option<RollbackStorm>, StoreError> {
    let record: Option<Record> = rollback_storm::table.first(connection).optional()?;
    let read = |record: Record| {
        Ok(RollbackStorm {
            id: columns::parse(&record.storm_id, "rollback_storm.storm_id")?,
            since: Timestamp(record.since_us),
            most_flipped: usize::try_from(record.most_flipped).unwrap_or(0),
        })
    };
    record.map(read).transpose()
}

/// Workspaces with an automatic rollback at or after `$1` and before `$2`.
pub(crate) const FLIPPED: &str = "SELECT COUNT(*) AS flipped FROM (SELECT DISTINCT installation_id, workspace_id \
     FROM rollback_events WHERE counted_us >= $1 AND counted_us < $2) AS workspaces";

fn flipped(connection: &mut AnyConnection, counted: Range<Timestamp>) -> diesel::QueryResult<usize> {
    #[derive(diesel::QueryableByName)]
    struct Counted {
        #[diesel(sql_type = BigInt)]
        flipped: i64,
    }
    let query = diesel::sql_query(FLIPPED).bind::<BigInt, _>(counted.start.0).bind::<BigInt, _>(counted.end.0);
    Ok(usize::try_from(query.get_result::<Counted>(connection)?.flipped).unwrap_or(0))
}

fn to_operators(notice: Notice, cause: impl Display) -> NewNotification {
    NewNotification::new(Uuid::now_v7(), Addressee::Operators, notice, cause)
}

/// Returns the storm to which a rollback belongs, whose event `id` is written and whose transaction has locked the
/// operators' stream. The rollback that begins a storm raises the alarm.
pub(crate) fn join(
    tx: &mut WriteTx<'_>,
    rollback: AutomaticRollback,
    id: Uuid,
    now: Timestamp,
) -> Result<Option<RollbackStorm>, StoreError> {
    let open = open(tx.connection)?;
    let flipped = flipped(tx.connection, rollback.counted(open.is_some()))?;
    let Some(storm) = rollback.storm(open, flipped, id) else { return Ok(None) };
    let most_flipped = i64::try_from(storm.most_flipped).unwrap_or(i64::MAX);
    if open.is_some() {
        let peak = rollback_storm::most_flipped.eq(most_flipped);
        diesel::update(rollback_storm::table).set(peak).execute(tx.connection)?;
    } else {
        let record = Record { one: true, storm_id: storm.id.to_string(), since_us: storm.since.0, most_flipped };
        tx.rows += diesel::insert_into(rollback_storm::table).values(record).execute(tx.connection)?;
        add(tx, &to_operators(notice::of_storm(flipped, rollback.live), id), now)?;
    }
    Ok(Some(storm))
}

/// Ends the storm if the rate has fallen, and notifies operators; the operators' stream is locked.
fn end(
    tx: &mut WriteTx<'_>,
    live: usize,
    at: Timestamp,
    now: Timestamp,
) -> Result<Option<RollbackStorm>, StoreError> {
    let Some(storm) = open(tx.connection)? else { return Ok(None) };
    if is_storm(flipped(tx.connection, counted_at(at))?, live) {
        return Ok(None);
    }
    tx.rows += diesel::delete(rollback_storm::table).execute(tx.connection)?;
    let cause = format!("{}:resolved", storm.id);
    add(tx, &to_operators(notice::of_storm_end(storm.most_flipped), cause), now)?;
    Ok(Some(storm))
}

impl Store {
    /// Reads the storm in progress, and the number of workspaces that rolled back within the period up to `at`, the
    /// time of the database. Cancel-safe.
    pub(crate) async fn rollback_storm(&self, at: Timestamp) -> Result<Option<(RollbackStorm, usize)>, StoreError> {
        self.read(move |connection| match open(connection)? {
            Some(storm) => Ok(Some((storm, flipped(connection, counted_at(at))?))),
            None => Ok(None),
        })
        .await
    }

    /// Ends the storm in progress if too few of `live` workspaces rolled back within the period up to `at`, the time of
    /// the database, and notifies operators. Returns the storm that this call ended; of several processes one gets it.
    /// Safe to retry.
    ///
    /// # Cancel safety
    /// A dropped future may have ended the storm.
    pub(crate) async fn end_rollback_storm(
        &self,
        live: usize,
        at: Timestamp,
        now: Timestamp,
    ) -> Result<Option<RollbackStorm>, StoreError> {
        let ended = Arc::new(Mutex::new(None));
        let result = ended.clone();
        self.write(move |tx| {
            let result = result.clone();
            tx.later(vec![Stream::Operators], move |tx| {
                *result.lock() = end(tx, live, at, now)?;
                Ok(())
            });
            Ok(())
        })
        .await?;
        let ended = *ended.lock();
        Ok(ended)
    }
}
