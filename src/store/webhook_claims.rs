//! Taking deliveries that are due, so that each is tried by one replica at a time.

use std::time::Duration;

use diesel::{BoolExpressionMethods, ExpressionMethods, OptionalExtension, QueryDsl, RunQueryDsl};
use uuid::Uuid;

use super::{
    Store, StoreError, columns,
    notifications::{NotificationRow, Record},
    schema::{notifications, webhook_deliveries},
    webhook_deliveries::pending,
    writer::WriteTx,
};
use crate::domain::{clock::Timestamp, webhook::DeliveryState};

/// The most deliveries that one claim gives; each is under 2 KB.
pub const MAX_CLAIM: usize = 16;

/// Which deliveries are to be tried, and until when they are the caller's.
#[derive(Debug, Clone, Copy)]
pub struct ClaimDeliveries {
    /// At most so many, and [`MAX_CLAIM`].
    pub limit: usize,
    /// So long nobody else tries them: longer than a try takes.
    pub lease: Duration,
    /// Longer than any wait: what is due later than that was written under another clock, and is due now.
    pub longest_wait: Duration,
    /// The time.
    pub now: Timestamp,
}

/// A delivery that the caller is to try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DueDelivery {
    /// Its id.
    pub delivery_id: Uuid,
    /// Which try this is, from 1.
    pub attempt: u32,
    /// What to post.
    pub notification: NotificationRow,
}

fn claim(tx: &mut WriteTx<'_>, wanted: ClaimDeliveries) -> Result<Vec<DueDelivery>, StoreError> {
    use webhook_deliveries::{attempts, delivery_id, endpoint, next_attempt_us, updated_us};
    let ClaimDeliveries { limit, lease, longest_wait, now } = wanted;
    let Some(to) = tx.webhook else { return Ok(Vec::new()) };
    let due: Vec<(String, i32, i64, String)> = pending!()
        .filter(next_attempt_us.le(now.0).or(next_attempt_us.gt(now.plus(longest_wait).0)))
        .order((next_attempt_us.asc(), delivery_id.asc()))
        .limit(columns::limit(limit.min(MAX_CLAIM)))
        .select((delivery_id, attempts, next_attempt_us, webhook_deliveries::notification_id))
        .load(tx.connection)?;
    let mut claimed = Vec::new();
    for (id, tried, seen, notification) in due {
        // Another replica may have been faster: then it is no longer as it was seen.
        let ours = pending!().filter(delivery_id.eq(&id)).filter(attempts.eq(tried)).filter(next_attempt_us.eq(seen));
        let attempt = tried.saturating_add(1);
        let change =
            (attempts.eq(attempt), next_attempt_us.eq(now.plus(lease).0), endpoint.eq(to), updated_us.eq(now.0));
        let changed = diesel::update(ours).set(change).execute(tx.connection)?;
        tx.rows += changed;
        let toast: Option<Record> = match changed {
            0 => None,
            _ => notifications::table.find(&notification).first(tx.connection).optional()?,
        };
        if let Some(toast) = toast {
            claimed.push(DueDelivery {
                delivery_id: columns::parse(&id, "webhook_deliveries.delivery_id")?,
                attempt: u32::try_from(attempt).unwrap_or(1),
                notification: toast.read()?,
            });
        }
    }
    Ok(claimed)
}

impl Store {
    /// Takes deliveries that are due, the longest due first, so that no other caller and no other replica takes them while
    /// the lease lasts; a caller that dies leaves them to the next one after that. Counts the try. Nothing is taken while
    /// the database is away. Safe to retry. A dropped future may have taken some, which are due again after the lease.
    pub async fn claim_deliveries(&self, wanted: ClaimDeliveries) -> Result<Vec<DueDelivery>, StoreError> {
        self.write(move |tx| claim(tx, wanted)).await
    }
}
