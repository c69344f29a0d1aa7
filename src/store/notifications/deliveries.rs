//! The `webhook_deliveries` table. A delivery is created in the transaction of an operator notification, and retried
//! until the receiver has accepted it or it is given up.

use std::time::Duration;

use diesel::{
    BoolExpressionMethods, ExpressionMethods, Insertable, OptionalExtension, QueryDsl, Queryable, RunQueryDsl,
    dsl::min,
};
use uuid::Uuid;

use super::{NotificationRecord, NotificationRow};
use crate::{
    domain::{
        clock::Timestamp,
        notify::{
            notification::Stream,
            webhook::{DeliveryState, Verdict},
        },
        redaction::Redacted,
    },
    store::{
        Store, StoreError,
        engine::{
            columns::{self, Cursor, Page, page_of},
            connection::AnyConnection,
            writer::WriteTx,
        },
        schema::{notifications, webhook_deliveries},
    },
};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WebhookDeliveryRow {
    /// The id, a UUID of version 7, by which the receiver deduplicates.
    pub delivery_id: Uuid,
    /// The notification that is posted.
    pub notification_id: Uuid,
    /// The endpoint of the last attempt, without parts that may be secret.
    pub endpoint: String,
    pub state: DeliveryState,
    /// Attempts that were started since the delivery was created or replayed.
    pub attempts: u32,
    /// Time of the next attempt, while pending. During an attempt: end of its lease, after which it counts as lost.
    pub next_attempt: Timestamp,
    /// The HTTP status of the last answer; `None` if the last attempt got no answer.
    pub last_status: Option<u16>,
    /// The error of the last attempt without an answer, or the reason why the delivery was given up without one.
    pub last_error: Option<Redacted>,
    /// Creation time, which is that of the notification.
    pub created: Timestamp,
    /// Time of the last write.
    pub updated: Timestamp,
}

impl WebhookDeliveryRow {
    /// The position of this row in [`Store::webhook_deliveries`].
    pub(crate) fn cursor(&self) -> Cursor {
        Cursor { created: self.created, id: self.delivery_id.to_string() }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct TriedDelivery {
    pub delivery_id: Uuid,
    /// End of the lease that [`DueDelivery::lease_until`] gave.
    pub lease_until: Timestamp,
    pub verdict: Verdict,
    /// The HTTP status of the answer, if there was one.
    pub status: Option<u16>,
    /// The error, if there was no answer.
    pub error: Option<Redacted>,
    pub now: Timestamp,
}

/// Amounts of pending and dead deliveries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct WebhookBacklog {
    /// Number of deliveries that wait for an attempt.
    pub pending: u64,
    /// Number of deliveries that were given up.
    pub dead: u64,
    /// Due time of the first pending delivery; may be in the past.
    pub next: Option<Timestamp>,
}

#[derive(Queryable, Insertable)]
#[diesel(table_name = webhook_deliveries, treat_none_as_default_value = false)]
struct Record {
    delivery_id: String,
    notification_id: String,
    endpoint: String,
    state: String,
    attempts: i32,
    next_attempt_us: i64,
    last_status: Option<i32>,
    last_error: Option<String>,
    created_us: i64,
    updated_us: i64,
}

impl Record {
    fn read(self) -> Result<WebhookDeliveryRow, StoreError> {
        Ok(WebhookDeliveryRow {
            delivery_id: columns::parse(&self.delivery_id, "webhook_deliveries.delivery_id")?,
            notification_id: columns::parse(&self.notification_id, "webhook_deliveries.notification_id")?,
            endpoint: self.endpoint,
            state: DeliveryState::tolerant(&self.state),
            attempts: u32::try_from(self.attempts).unwrap_or(0),
            next_attempt: Timestamp(self.next_attempt_us),
            last_status: self.last_status.and_then(|status| u16::try_from(status).ok()),
            last_error: self.last_error.map(Redacted::from_kept),
            created: Timestamp(self.created_us),
            updated: Timestamp(self.updated_us),
        })
    }
}

/// Creates the delivery of an operator notification if a webhook is configured.
pub(crate) fn enqueue(tx: &mut WriteTx<'_>, notification_id: &str, now: Timestamp) -> Result<(), StoreError> {
    let Some(endpoint) = tx.webhook else { return Ok(()) };
    let record = Record {
        delivery_id: Uuid::now_v7().to_string(),
        notification_id: notification_id.to_owned(),
        endpoint: endpoint.to_owned(),
        state: DeliveryState::Pending.as_str().to_owned(),
        attempts: 0,
        next_attempt_us: now.0,
        last_status: None,
        last_error: None,
        created_us: now.0,
        updated_us: now.0,
    };
    tx.rows += diesel::insert_into(webhook_deliveries::table).values(&record).execute(tx.connection)?;
    Ok(())
}

/// Deliveries that wait for an attempt.
macro_rules! pending {
    () => {
        webhook_deliveries::table.filter(webhook_deliveries::state.eq(DeliveryState::Pending.as_str()))
    };
}

/// Condition: the delivery was written under a clock that was ahead, so it is due later than any wait lasts or was
/// written in the future. The clocks of replicas may differ by a minute.
macro_rules! of_another_clock {
    ($now:expr, $longest_wait:expr) => {
        webhook_deliveries::next_attempt_us
            .gt($now.plus($longest_wait).0)
            .or(webhook_deliveries::updated_us.gt($now.plus(std::time::Duration::from_secs(60)).0))
    };
}

/// Changes that mark a delivery as dead for a reason, without an attempt.
macro_rules! dead {
    ($reason:expr, $now:expr) => {
        (
            webhook_deliveries::state.eq(DeliveryState::Dead.as_str()),
            webhook_deliveries::next_attempt_us.eq($now.0),
            webhook_deliveries::last_status.eq(None::<i32>),
            webhook_deliveries::last_error.eq(Some($reason)),
            webhook_deliveries::updated_us.eq($now.0),
        )
    };
}

fn settle(tx: &mut WriteTx<'_>, tried: &TriedDelivery) -> Result<bool, StoreError> {
    use webhook_deliveries::{last_error, last_status, next_attempt_us, state, updated_us};
    let TriedDelivery { delivery_id, lease_until, verdict, status, error, now } = tried;
    let (becomes, next) = match verdict {
        Verdict::Delivered => (DeliveryState::Delivered, *now),
        Verdict::Dead => (DeliveryState::Dead, *now),
        Verdict::Retry(wait) => (DeliveryState::Pending, now.plus(*wait)),
    };
    let change = (
        state.eq(becomes.as_str()),
        next_attempt_us.eq(next.0),
        last_status.eq(status.map(i32::from)),
        last_error.eq(error.as_ref().map(|error| columns::clean(error.as_str().to_owned()))),
        updated_us.eq(now.0),
    );
    let ours = webhook_deliveries::table.find(delivery_id.to_string());
    let settled = match verdict {
        // Always written: the receiver has accepted it, even if the lease has ended.
        Verdict::Delivered => diesel::update(ours).set(change).execute(tx.connection)?,
        _ => {
            // The lease identifies the attempt: after its end another replica may have claimed the delivery.
            let still = ours.filter(next_attempt_us.eq(lease_until.0));
            let still = still.filter(state.eq(DeliveryState::Pending.as_str()));
            diesel::update(still).set(change).execute(tx.connection)?
        }
    };
    tx.rows += settled;
    Ok(settled > 0)
}

fn backlog(
    connection: &mut AnyConnection,
    longest_wait: Duration,
    now: Timestamp,
) -> Result<WebhookBacklog, StoreError> {
    use webhook_deliveries::{next_attempt_us, state};
    let dead = webhook_deliveries::table.filter(state.eq(DeliveryState::Dead.as_str()));
    let dead: i64 = dead.count().get_result(connection)?;
    let pending: i64 = pending!().count().get_result(connection)?;
    let next: Option<i64> = pending!().select(min(next_attempt_us)).first(connection)?;
    let too_far = pending!().filter(of_another_clock!(now, longest_wait));
    let too_far: i64 = too_far.count().get_result(connection)?;
    // Due now: a delivery that was written under a clock ahead of this one would otherwise wait for years.
    let next = if too_far > 0 { Some(now.0) } else { next };
    Ok(WebhookBacklog {
        pending: columns::unsigned(pending),
        dead: columns::unsigned(dead),
        next: next.map(Timestamp),
    })
}

/// Changes that reset a delivery for a replay, under its old id.
macro_rules! anew {
    ($now:expr) => {
        (
            webhook_deliveries::state.eq(DeliveryState::Pending.as_str()),
            webhook_deliveries::attempts.eq(0),
            webhook_deliveries::next_attempt_us.eq($now.0),
            webhook_deliveries::updated_us.eq($now.0),
        )
    };
}

fn replay(tx: &mut WriteTx<'_>, id: &str, now: Timestamp) -> Result<Option<WebhookDeliveryRow>, StoreError> {
    let ours = webhook_deliveries::table.find(id);
    let replayed = diesel::update(ours).set(anew!(now)).execute(tx.connection)?;
    tx.rows += replayed;
    if replayed > 0 {
        // Wakes the delivery worker, as a new notification does.
        tx.grown.push(Stream::Operators);
    }
    let record: Option<Record> = ours.first(tx.connection).optional()?;
    record.map(Record::read).transpose()
}

fn replay_dead(tx: &mut WriteTx<'_>, now: Timestamp) -> Result<usize, StoreError> {
    let dead = webhook_deliveries::table.filter(webhook_deliveries::state.eq(DeliveryState::Dead.as_str()));
    let replayed = diesel::update(dead).set(anew!(now)).execute(tx.connection)?;
    tx.rows += replayed;
    tx.grown.push(Stream::Operators);
    Ok(replayed)
}

impl Store {
    /// Writes the outcome of an attempt. Returns `false`, and writes nothing, if another attempt or a replay has
    /// superseded it; [`Verdict::Delivered`] is always written. Waits for room in the queue and for the commit, as
    /// [`Store::append`] does. Safe to retry.
    ///
    /// # Cancel safety
    /// A dropped future may have written.
    pub(crate) async fn settle_delivery(&self, tried: TriedDelivery) -> Result<bool, StoreError> {
        self.write_when_there_is_room(move |tx| settle(tx, &tried)).await
    }

    /// Reads the numbers of pending and dead deliveries and the next due time; `longest_wait` as in
    /// [`ClaimDeliveries`]. Cancel-safe.
    pub(crate) async fn webhook_backlog(
        &self,
        longest_wait: Duration,
        now: Timestamp,
    ) -> Result<WebhookBacklog, StoreError> {
        self.read(move |connection| backlog(connection, longest_wait, now)).await
    }

    /// Reads a page of deliveries, newest first. Cancel-safe.
    pub(crate) async fn webhook_deliveries(
        &self,
        wanted: Option<DeliveryState>,
        page: Page,
    ) -> Result<Vec<WebhookDeliveryRow>, StoreError> {
        use webhook_deliveries::{created_us, delivery_id, state};
        self.read(move |connection| {
            let mut rows = webhook_deliveries::table.into_boxed();
            if let Some(wanted) = wanted {
                rows = rows.filter(state.eq(wanted.as_str()));
            }
            let records: Vec<Record> = page_of!(rows, page, created_us, delivery_id).load(connection)?;
            records.into_iter().map(Record::read).collect()
        })
        .await
    }

    /// Makes a delivery due now with its attempts reset to 0, whatever its state, and returns it; `None` if it does
    /// not exist. Safe to retry.
    ///
    /// # Cancel safety
    /// A dropped future may have written.
    pub(crate) async fn replay_delivery(
        &self,
        id: Uuid,
        now: Timestamp,
    ) -> Result<Option<WebhookDeliveryRow>, StoreError> {
        let id = id.to_string();
        self.write(move |tx| replay(tx, &id, now)).await
    }

    /// Replays all dead deliveries as [`Store::replay_delivery`] does; returns their number. Safe to retry.
    ///
    /// # Cancel safety
    /// A dropped future may have written.
    pub(crate) async fn replay_dead_deliveries(&self, now: Timestamp) -> Result<usize, StoreError> {
        self.write(move |tx| replay_dead(tx, now)).await
    }
}

/// [`WebhookDeliveryRow::last_error`] of a delivery that was not posted in time.
const EXPIRED: &str = "expired";

/// Maximum number of deliveries in a claim; each is under 2 KB.
pub(crate) const MAX_CLAIM: usize = 16;

/// A request to claim due deliveries for a time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ClaimDeliveries {
    /// Maximum number of deliveries; capped at [`MAX_CLAIM`].
    pub limit: usize,
    /// Time for which no other caller claims them; must be longer than an attempt takes.
    pub lease: Duration,
    /// Upper bound of the wait between attempts: a delivery that is due later was written under another clock and
    /// counts as due now.
    pub longest_wait: Duration,
    pub now: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Claimed {
    /// Deliveries that the caller must attempt.
    pub due: Vec<DueDelivery>,
    /// Due deliveries that can never be posted and were given up.
    pub given_up: Vec<GivenUpDelivery>,
}

/// A delivery that was given up without an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GivenUpDelivery {
    /// The id as stored, which may be malformed.
    pub delivery_id: String,
    pub reason: Redacted,
}

/// A delivery that the caller must attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DueDelivery {
    pub delivery_id: Uuid,
    /// Number of this attempt, from 1.
    pub attempt: u32,
    /// End of the lease; also identifies this attempt in [`TriedDelivery`].
    pub lease_until: Timestamp,
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
        // Matches nothing if another replica was faster.
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
            // A retry would fail again and delay the deliveries after it.
            Err(StoreError::Corrupt(reason)) => claimed.given_up.push(give_up(tx, id, &reason, now)?),
            Err(cause) => return Err(cause),
        }
    }
    Ok(claimed)
}

/// Reads a delivery's notification.
///
/// # Errors
/// [`StoreError::Corrupt`] if the notification is missing, or if either row is malformed.
fn read(
    tx: &mut WriteTx<'_>,
    id: &str,
    attempt: i32,
    lease_until: Timestamp,
    notification: &str,
) -> Result<DueDelivery, StoreError> {
    let notification: Option<NotificationRecord> =
        notifications::table.find(notification).first(tx.connection).optional()?;
    let notification = notification.ok_or_else(|| StoreError::Corrupt("the notification is missing".into()))?;
    Ok(DueDelivery {
        delivery_id: columns::parse(id, "webhook_deliveries.delivery_id")?,
        attempt: u32::try_from(attempt).unwrap_or(1),
        lease_until,
        notification: notification.read()?,
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

/// Gives up pending deliveries that were created before a time.
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
    /// Claims due deliveries, earliest due first, so that no other caller and no other replica claims them during the
    /// lease; the deliveries of a caller that dies are due again after it. Counts the attempt. Deliveries whose
    /// notification is missing or malformed are given up in the same transaction. Claims nothing while the database
    /// is unavailable. Safe to retry.
    ///
    /// # Cancel safety
    /// A dropped future may have claimed deliveries, which are due again after the lease.
    pub(crate) async fn claim_deliveries(&self, wanted: ClaimDeliveries) -> Result<Claimed, StoreError> {
        self.write(move |tx| claim(tx, wanted)).await
    }

    /// Gives up pending deliveries that were created before a time, oldest first: at most `limit` rows and
    /// [`MAX_PAGE`](crate::store::MAX_PAGE). Returns their number. Without a webhook they would never be posted, and
    /// their notifications would never be deleted. Safe to retry.
    ///
    /// # Cancel safety
    /// A dropped future may have written.
    pub(crate) async fn expire_deliveries(
        &self,
        before: Timestamp,
        limit: usize,
        now: Timestamp,
    ) -> Result<usize, StoreError> {
        self.write(move |tx| expire(tx, before, columns::limit(limit), now)).await
    }
}
