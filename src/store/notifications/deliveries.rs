//! The table of what is posted to webhooks: made with each toast of operators, in its transaction; tried until the receiver
//! has it or it is given up.

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
            toast::Stream,
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

/// A delivery as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WebhookDeliveryRow {
    /// Its id, by which the receiver knows it again: a UUID of version 7.
    pub delivery_id: Uuid,
    /// What is posted.
    pub notification_id: Uuid,
    /// Where to, without what may be secret; where the last try went.
    pub endpoint: String,
    /// Where it stands.
    pub state: DeliveryState,
    /// Tries that were begun since it was made or replayed.
    pub attempts: u32,
    /// When it is tried next, while it is pending. While a try is out: when that is taken for lost.
    pub next_attempt: Timestamp,
    /// The status of the last answer; none where the last try got none.
    pub last_status: Option<u16>,
    /// Why the last try got no answer, or why it was given up without one.
    pub last_error: Option<Redacted>,
    /// When it was made, with its toast.
    pub created: Timestamp,
    /// When it was last written.
    pub updated: Timestamp,
}

impl WebhookDeliveryRow {
    /// The place of this row in [`Store::webhook_deliveries`].
    pub(crate) fn cursor(&self) -> Cursor {
        Cursor { created: self.created, id: self.delivery_id.to_string() }
    }
}

/// What became of a try.
#[derive(Debug, Clone)]
pub(crate) struct TriedDelivery {
    /// Of which delivery.
    pub delivery_id: Uuid,
    /// Until when it was the caller's.
    pub lease_until: Timestamp,
    /// What follows.
    pub verdict: Verdict,
    /// The status of the answer.
    pub status: Option<u16>,
    /// Why there was none.
    pub error: Option<Redacted>,
    /// The time.
    pub now: Timestamp,
}

/// What there is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct WebhookBacklog {
    /// Deliveries that wait for a try.
    pub pending: u64,
    /// Deliveries that were given up.
    pub dead: u64,
    /// When the first of the pending ones is due; perhaps in the past.
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
            state: columns::named(DeliveryState::from_name, &self.state, "webhook_deliveries.state")?,
            attempts: u32::try_from(self.attempts).unwrap_or(0),
            next_attempt: Timestamp(self.next_attempt_us),
            last_status: self.last_status.and_then(|status| u16::try_from(status).ok()),
            last_error: self.last_error.map(Redacted::from_kept),
            created: Timestamp(self.created_us),
            updated: Timestamp(self.updated_us),
        })
    }
}

/// Makes the delivery of a toast of operators, where they have a webhook.
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

/// Those that wait for a try.
macro_rules! pending {
    () => {
        webhook_deliveries::table.filter(webhook_deliveries::state.eq(DeliveryState::Pending.as_str()))
    };
}

/// Whether a delivery was written under a clock that was ahead: due later than any wait lasts, or written in the future. A
/// minute is what the clocks of replicas may differ by.
macro_rules! of_another_clock {
    ($now:expr, $longest_wait:expr) => {
        webhook_deliveries::next_attempt_us
            .gt($now.plus($longest_wait).0)
            .or(webhook_deliveries::updated_us.gt($now.plus(std::time::Duration::from_secs(60)).0))
    };
}

/// What makes a delivery dead without a try, for a reason.
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
        // Whatever has become of it since: the receiver has it.
        Verdict::Delivered => diesel::update(ours).set(change).execute(tx.connection)?,
        _ => {
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
    let next = if too_far > 0 { Some(now.0) } else { next };
    Ok(WebhookBacklog {
        pending: columns::unsigned(pending),
        dead: columns::unsigned(dead),
        next: next.map(Timestamp),
    })
}

/// What makes a delivery new again, under its old id.
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
        // Wakes who posts, as a new toast does.
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
    /// Writes down what became of a try; `false` where another try, or a replay, has taken its place, and nothing was
    /// written. That the receiver has it is always written. Waits for room in the queue and for the commit, as
    /// [`Store::append`] does. Safe to retry. A dropped future may have written.
    pub(crate) async fn settle_delivery(&self, tried: TriedDelivery) -> Result<bool, StoreError> {
        self.write_when_there_is_room(move |tx| settle(tx, &tried)).await
    }

    /// How many deliveries wait or were given up, and when the next is due; `longest_wait` as in
    /// [`ClaimDeliveries`](crate::store::ClaimDeliveries).
    /// Cancel-safe.
    pub(crate) async fn webhook_backlog(
        &self,
        longest_wait: Duration,
        now: Timestamp,
    ) -> Result<WebhookBacklog, StoreError> {
        self.read(move |connection| backlog(connection, longest_wait, now)).await
    }

    /// A page of deliveries, the newest first. Cancel-safe.
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

    /// Makes a delivery due now with all its tries before it, whatever has become of it, and gives it; nothing where there
    /// is none. Safe to retry. A dropped future may have written.
    pub(crate) async fn replay_delivery(
        &self,
        id: Uuid,
        now: Timestamp,
    ) -> Result<Option<WebhookDeliveryRow>, StoreError> {
        let id = id.to_string();
        self.write(move |tx| replay(tx, &id, now)).await
    }

    /// The same for all that were given up; says how many. Safe to retry. A dropped future may have written.
    pub(crate) async fn replay_dead_deliveries(&self, now: Timestamp) -> Result<usize, StoreError> {
        self.write(move |tx| replay_dead(tx, now)).await
    }
}

/// Why a delivery was given up that nobody posted in time: [`WebhookDeliveryRow::last_error`](crate::store::WebhookDeliveryRow).
const EXPIRED: &str = "expired";

/// The most deliveries that one claim gives; each is under 2 KB.
pub(crate) const MAX_CLAIM: usize = 16;

/// Which deliveries are to be tried, and until when they are the caller's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ClaimDeliveries {
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
pub(crate) struct Claimed {
    /// What the caller is to try.
    pub due: Vec<DueDelivery>,
    /// What was due and cannot be posted, ever: it was given up.
    pub given_up: Vec<GivenUpDelivery>,
}

/// A delivery that was given up without a try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GivenUpDelivery {
    /// Its id, as it stands in the row.
    pub delivery_id: String,
    /// Why.
    pub reason: Redacted,
}

/// A delivery that the caller is to try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DueDelivery {
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
    let toast: Option<NotificationRecord> =
        notifications::table.find(notification).first(tx.connection).optional()?;
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
    pub(crate) async fn claim_deliveries(&self, wanted: ClaimDeliveries) -> Result<Claimed, StoreError> {
        self.write(move |tx| claim(tx, wanted)).await
    }

    /// Gives up what was made before a time and still waits for a post, the oldest first, at most `limit` rows, and
    /// [`MAX_PAGE`](crate::store::MAX_PAGE): without a webhook nobody would ever post it, and its toast would stay. Says how many.
    /// Safe to retry. A dropped future may have written.
    pub(crate) async fn expire_deliveries(
        &self,
        before: Timestamp,
        limit: usize,
        now: Timestamp,
    ) -> Result<usize, StoreError> {
        self.write(move |tx| expire(tx, before, columns::limit(limit), now)).await
    }
}
