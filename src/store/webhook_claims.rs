//! Taking deliveries that are due, so that each is tried by one replica at a time.

use std::time::Duration;

use diesel::{BoolExpressionMethods, ExpressionMethods, OptionalExtension, QueryDsl, RunQueryDsl};
use uuid::Uuid;

use super::{
    Store, StoreError,
    engine::{columns, writer::WriteTx},
    notifications::{
        NotificationRow, Record,
        deliveries::{dead, of_another_clock, pending},
    },
    schema::{notifications, webhook_deliveries},
};
use crate::domain::{clock::Timestamp, notify::webhook::DeliveryState, redaction::Redacted};

/// Why a delivery was given up that nobody posted in time: [`WebhookDeliveryRow::last_error`](super::WebhookDeliveryRow).
const EXPIRED: &str = "expired";

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

/// What a claim came to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Claimed {
    /// What the caller is to try.
    pub due: Vec<DueDelivery>,
    /// What was due and cannot be posted, ever: it was given up.
    pub given_up: Vec<GivenUpDelivery>,
}

/// A delivery that was given up without a try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GivenUpDelivery {
    /// Its id, as it stands in the row.
    pub delivery_id: String,
    /// Why.
    pub reason: Redacted,
}

/// A delivery that the caller is to try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DueDelivery {
    /// Its id.
    pub delivery_id: Uuid,
    /// Which try this is, from 1.
    pub attempt: u32,
    /// Until when it is the caller's; by it the caller's try is known from others.
    pub lease_until: Timestamp,
    /// What to post.
    pub notification: NotificationRow,
}

fn claim(tx: &mut WriteTx<'_>, wanted: ClaimDeliveries) -> Result<Claimed, StoreError> {
    use webhook_deliveries::{attempts, delivery_id, endpoint, next_attempt_us, updated_us};
    let ClaimDeliveries { limit, lease, longest_wait, now } = wanted;
    let lease_until = now.plus(lease);
    let mut claimed = Claimed::default();
    let Some(to) = tx.webhook else { return Ok(claimed) };
    let due: Vec<(String, i32, i64, String)> = pending!()
        .filter(next_attempt_us.le(now.0).or(of_another_clock!(now, longest_wait)))
        .order((next_attempt_us.asc(), delivery_id.asc()))
        .limit(columns::limit(limit.min(MAX_CLAIM)))
        .select((delivery_id, attempts, next_attempt_us, webhook_deliveries::notification_id))
        .load(tx.connection)?;
    for (id, tried, seen, notification) in due {
        // Another replica may have been faster: then it is no longer as it was seen.
        let ours = pending!().filter(delivery_id.eq(&id)).filter(attempts.eq(tried)).filter(next_attempt_us.eq(seen));
        let attempt = tried.saturating_add(1);
        let change = (attempts.eq(attempt), next_attempt_us.eq(lease_until.0), endpoint.eq(to), updated_us.eq(now.0));
        let changed = diesel::update(ours).set(change).execute(tx.connection)?;
        tx.rows += changed;
        if changed == 0 {
            continue;
        }
        match read(tx, &id, attempt, lease_until, &notification) {
            Ok(delivery) => claimed.due.push(delivery),
            // It would be the same each time, and hold up what is due after it.
            Err(StoreError::Corrupt(reason)) => claimed.given_up.push(give_up(tx, id, &reason, now)?),
            Err(cause) => return Err(cause),
        }
    }
    Ok(claimed)
}

/// A delivery with its toast; [`StoreError::Corrupt`] where that is gone, or either cannot be read.
fn read(
    tx: &mut WriteTx<'_>,
    id: &str,
    attempt: i32,
    lease_until: Timestamp,
    notification: &str,
) -> Result<DueDelivery, StoreError> {
    let toast: Option<Record> = notifications::table.find(notification).first(tx.connection).optional()?;
    let toast = toast.ok_or_else(|| StoreError::Corrupt("the notification is gone".into()))?;
    Ok(DueDelivery {
        delivery_id: columns::parse(id, "webhook_deliveries.delivery_id")?,
        attempt: u32::try_from(attempt).unwrap_or(1),
        lease_until,
        notification: toast.read()?,
    })
}

fn give_up(
    tx: &mut WriteTx<'_>,
    delivery_id: String,
    reason: &str,
    now: Timestamp,
) -> Result<GivenUpDelivery, StoreError> {
    let reason = Redacted::new(&columns::clean(reason.to_owned()));
    let ours = webhook_deliveries::table.find(&delivery_id);
    tx.rows += diesel::update(ours).set(dead!(reason.as_str(), now)).execute(tx.connection)?;
    Ok(GivenUpDelivery { delivery_id, reason })
}

/// Gives up what was made before a time and still waits.
fn expire(tx: &mut WriteTx<'_>, before: Timestamp, limit: i64, now: Timestamp) -> Result<usize, StoreError> {
    use webhook_deliveries::{created_us, delivery_id};
    let old: Vec<String> = pending!()
        .filter(created_us.lt(before.0))
        .order(created_us.asc())
        .limit(limit)
        .select(delivery_id)
        .load(tx.connection)?;
    let old = webhook_deliveries::table.filter(delivery_id.eq_any(old));
    let expired = diesel::update(old).set(dead!(EXPIRED, now)).execute(tx.connection)?;
    tx.rows += expired;
    Ok(expired)
}

impl Store {
    /// Takes deliveries that are due, the longest due first, so that no other caller and no other replica takes them while
    /// the lease lasts; a caller that dies leaves them to the next one after that. Counts the try. Nothing is taken while
    /// the database is away. What cannot be posted, since its toast is gone or cannot be read, is given up in the same
    /// transaction. Safe to retry. A dropped future may have taken some, which are due again after the lease.
    pub async fn claim_deliveries(&self, wanted: ClaimDeliveries) -> Result<Claimed, StoreError> {
        self.write(move |tx| claim(tx, wanted)).await
    }

    /// Gives up what was made before a time and still waits for a post, the oldest first, at most `limit` rows, and
    /// [`MAX_PAGE`](super::MAX_PAGE): without a webhook nobody would ever post it, and its toast would stay. Says how many.
    /// Safe to retry. A dropped future may have written.
    pub async fn expire_deliveries(
        &self,
        before: Timestamp,
        limit: usize,
        now: Timestamp,
    ) -> Result<usize, StoreError> {
        self.write(move |tx| expire(tx, before, columns::limit(limit), now)).await
    }
}
