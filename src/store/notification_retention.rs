//! Forgets old notifications: readers see where a sequence begins now.

use std::collections::BTreeMap;

use diesel::{ExpressionMethods, QueryDsl, RunQueryDsl};

use super::{
    StoreError,
    engine::writer::WriteTx,
    notifications::take_turn,
    schema::{notification_reads, notification_streams, notifications, webhook_deliveries},
};
use crate::domain::clock::Timestamp;

/// Removes old notifications with all that belongs to them; not those that are still to be posted, which are given up
/// first ([`Store::expire_deliveries`](super::Store::expire_deliveries)).
pub(super) fn prune(tx: &mut WriteTx<'_>, before: Timestamp, limit: i64) -> Result<usize, StoreError> {
    take_turn(tx)?;
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
    let mut tails = BTreeMap::new();
    for (_, stream, seq) in &old {
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
    Ok(removed)
}
