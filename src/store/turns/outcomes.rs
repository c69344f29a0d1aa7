//! The counts of each workspace's success window, one row for each bucket, so that they survive a restart.

use diesel::{BoolExpressionMethods, ExpressionMethods, Insertable, QueryDsl, RunQueryDsl};

use crate::{
    domain::{
        clock::Timestamp,
        ids::WorkspaceKey,
        routing::{
            Route,
            success_window::{Bucket, Sample},
        },
    },
    store::{
        Store, StoreError,
        engine::{
            columns,
            connection::{AnyConnection, Cached, Update, execute},
            writer::WriteTx,
        },
        schema::outcome_buckets,
    },
};

/// An outcome to count in a workspace's success window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OutcomeCount {
    /// The epoch in which the turn or the handshake began.
    pub epoch: u64,
    pub route: Route,
    /// Start of its bucket; a multiple of the bucket's length.
    pub bucket: Timestamp,
    pub sample: Sample,
}

#[derive(Insertable)]
#[diesel(table_name = outcome_buckets)]
struct Record<'a> {
    installation_id: &'a str,
    workspace_id: &'a str,
    epoch: i64,
    route: &'a str,
    bucket_us: i64,
    successes: i64,
    failures: i64,
}

/// Identifies the update that counts one outcome.
struct CountOutcome;

/// Counts one outcome. Called once for each, in the transaction that records it.
pub(crate) fn count(tx: &mut WriteTx<'_>, key: &WorkspaceKey, count: OutcomeCount) -> diesel::QueryResult<()> {
    let (successes, failures) = match count.sample {
        Sample::Success => (1, 0),
        Sample::Failure => (0, 1),
    };
    let record = Record {
        installation_id: key.installation_id.as_str(),
        workspace_id: key.workspace_id.as_str(),
        epoch: columns::signed(count.epoch),
        route: count.route.as_str(),
        bucket_us: count.bucket.0,
        successes,
        failures,
    };
    let sums = (
        outcome_buckets::successes.eq(outcome_buckets::successes + successes),
        outcome_buckets::failures.eq(outcome_buckets::failures + failures),
    );
    // True for every outcome but the first of a bucket.
    let is_bucket = outcome_buckets::installation_id
        .eq(record.installation_id)
        .and(outcome_buckets::workspace_id.eq(record.workspace_id))
        .and(outcome_buckets::epoch.eq(record.epoch))
        .and(outcome_buckets::route.eq(record.route))
        .and(outcome_buckets::bucket_us.eq(record.bucket_us));
    let counted = Cached::<CountOutcome, _>::new(Update::new(outcome_buckets::table, is_bucket, sums));
    let counted = execute!(tx.connection, counted)?;
    if counted > 0 {
        tx.rows += counted;
        return Ok(());
    }
    let begun = diesel::insert_into(outcome_buckets::table)
        .values(&record)
        .on_conflict((
            outcome_buckets::installation_id,
            outcome_buckets::workspace_id,
            outcome_buckets::epoch,
            outcome_buckets::route,
            outcome_buckets::bucket_us,
        ))
        .do_update()
        .set(sums);
    tx.rows += execute!(tx.connection, begun)?;
    Ok(())
}

/// The most buckets that are read: four windows of 360 buckets.
const MAX_BUCKETS: i64 = 1440;

impl Store {
    /// The buckets of a workspace's window that begin at `since` or later, oldest first: the newest 1,440 at most.
    /// Cancel-safe.
    pub(crate) async fn window(
        &self,
        key: WorkspaceKey,
        epoch: u64,
        route: Route,
        since: Timestamp,
    ) -> Result<Vec<Bucket>, StoreError> {
        self.read(move |connection| {
            let rows: Vec<(i64, i64, i64)> = outcome_buckets::table
                .filter(outcome_buckets::installation_id.eq(key.installation_id.as_str()))
                .filter(outcome_buckets::workspace_id.eq(key.workspace_id.as_str()))
                .filter(outcome_buckets::epoch.eq(columns::signed(epoch)))
                .filter(outcome_buckets::route.eq(route.as_str()))
                .filter(outcome_buckets::bucket_us.ge(since.0))
                .order(outcome_buckets::bucket_us.desc())
                .limit(MAX_BUCKETS)
                .select((outcome_buckets::bucket_us, outcome_buckets::successes, outcome_buckets::failures))
                .load(connection)?;
            let bucket = |(start, successes, failures)| Bucket {
                start: Timestamp(start),
                successes: columns::unsigned(successes),
                failures: columns::unsigned(failures),
            };
            Ok(rows.into_iter().rev().map(bucket).collect())
        })
        .await
    }
}
