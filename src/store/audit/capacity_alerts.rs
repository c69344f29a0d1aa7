//! The table of changes of capacity alerts. Rows are added and pruned, never updated.

use diesel::{ExpressionMethods, Insertable, QueryDsl, Queryable, RunQueryDsl};
use uuid::Uuid;

use crate::{
    contract::audit::CapacityAlertItem,
    domain::{
        capacity::{AlertKind, AlertLevel, CapacityChange},
        clock::Timestamp,
        ids::InstallationId,
        notify::{
            notice,
            notification::{Addressee, NewNotification},
        },
    },
    store::{
        Store, StoreError,
        engine::{
            columns::{self, Page, page_of},
            connection::AnyConnection,
            writer::WriteTx,
        },
        notifications,
        schema::capacity_alerts,
    },
};

/// A change of an alert to record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NewCapacityAlert {
    /// Made by the caller: a UUID of version 7.
    pub event_id: Uuid,
    /// The same for all levels of an alert and their resolution.
    pub alert_id: Uuid,
    pub change: CapacityChange,
    /// The tenant whose share the alert is about; `None` for the whole service.
    pub installation_id: Option<InstallationId>,
    pub created: Timestamp,
}

/// An alert that is raised and not resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OpenCapacityAlert {
    pub alert_id: Uuid,
    /// The highest level that was raised.
    pub level: AlertLevel,
    /// When its first level was raised.
    pub since: Timestamp,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct CapacityAlertFilter {
    /// Only alerts about a tenant's share.
    pub installation_id: Option<InstallationId>,
    /// Start of the period, inclusive.
    pub from: Option<Timestamp>,
    /// End of the period, exclusive.
    pub until: Option<Timestamp>,
}

#[derive(Queryable, Insertable)]
#[diesel(table_name = capacity_alerts, treat_none_as_default_value = false)]
struct Record {
    event_id: String,
    alert_id: String,
    level: String,
    kind: String,
    taken: i64,
    seat_limit: i64,
    installation_id: Option<String>,
    created_us: i64,
}

impl Record {
    fn of(row: &NewCapacityAlert) -> Self {
        let seats = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        Self {
            event_id: row.event_id.to_string(),
            alert_id: row.alert_id.to_string(),
            level: row.change.level.as_str().to_owned(),
            kind: row.change.kind.as_str().to_owned(),
            taken: seats(row.change.taken),
            seat_limit: seats(row.change.limit),
            installation_id: row.installation_id.as_ref().map(|tenant| tenant.as_str().to_owned()),
            created_us: row.created.0,
        }
    }

    fn read(self) -> Result<CapacityAlertItem, StoreError> {
        let seats = |count| usize::try_from(columns::unsigned(count)).unwrap_or(usize::MAX);
        let tenant = self.installation_id.as_deref();
        Ok(CapacityAlertItem {
            event_id: columns::parse(&self.event_id, "capacity_alerts.event_id")?,
            alert_id: columns::parse(&self.alert_id, "capacity_alerts.alert_id")?,
            installation_id: tenant
                .map(|tenant| columns::parse(tenant, "capacity_alerts.installation_id"))
                .transpose()?,
            level: self.level().as_str(),
            kind: AlertKind::tolerant(&self.kind).as_str(),
            taken: seats(self.taken),
            limit: seats(self.seat_limit),
            created_at: Timestamp(self.created_us),
        })
    }

    fn level(&self) -> AlertLevel {
        AlertLevel::tolerant(&self.level)
    }
}

/// Inserts the rows that do not exist yet.
fn add(tx: &mut WriteTx<'_>, records: &[Record]) -> Result<(), StoreError> {
    let ids = records.iter().map(|record| record.event_id.as_str());
    let there: Vec<String> = capacity_alerts::table
        .filter(capacity_alerts::event_id.eq_any(ids))
        .select(capacity_alerts::event_id)
        .load(tx.connection)?;
    for record in records.iter().filter(|record| !there.contains(&record.event_id)) {
        tx.rows += diesel::insert_into(capacity_alerts::table).values(record).execute(tx.connection)?;
    }
    Ok(())
}

diesel::alias!(capacity_alerts as ends: Ends);

/// The resolved alerts. All levels of an alert are resolved in one transaction.
macro_rules! resolved {
    () => {
        ends.filter(ends.field(capacity_alerts::kind).eq(AlertKind::Resolved.as_str()))
            .select(ends.field(capacity_alerts::alert_id))
    };
}

fn open_alert(connection: &mut AnyConnection) -> Result<Option<OpenCapacityAlert>, StoreError> {
    let open: Vec<Record> = capacity_alerts::table
        .filter(capacity_alerts::installation_id.is_null())
        .filter(capacity_alerts::alert_id.ne_all(resolved!()))
        .order((capacity_alerts::created_us.desc(), capacity_alerts::event_id.desc()))
        // The newest alert has at most one for each level.
        .limit(2)
        .load(connection)?;
    let Some(newest) = open.first() else { return Ok(None) };
    let (mut level, mut since) = (newest.level(), newest.created_us);
    for raised in open.iter().filter(|raised| raised.alert_id == newest.alert_id) {
        level = level.max(raised.level());
        since = since.min(raised.created_us);
    }
    let alert_id = columns::parse(&newest.alert_id, "capacity_alerts.alert_id")?;
    Ok(Some(OpenCapacityAlert { alert_id, level, since: Timestamp(since) }))
}

fn prune(tx: &mut WriteTx<'_>, before: Timestamp, limit: usize) -> Result<usize, StoreError> {
    let old: Vec<String> = capacity_alerts::table
        .filter(capacity_alerts::created_us.lt(before.0))
        .filter(capacity_alerts::alert_id.eq_any(resolved!()))
        .order(capacity_alerts::created_us.asc())
        .limit(columns::limit(limit))
        .select(capacity_alerts::event_id)
        .load(tx.connection)?;
    let removed = diesel::delete(capacity_alerts::table.filter(capacity_alerts::event_id.eq_any(old)))
        .execute(tx.connection)?;
    tx.rows += removed;
    Ok(removed)
}

impl Store {
    /// Adds rows and notifies operators in one transaction; existing rows stay unchanged. Safe to retry. An unavailable
    /// database refuses the rows, and the caller keeps them for a retry. A dropped future may have written.
    pub(crate) async fn add_capacity_alerts(&self, rows: &[NewCapacityAlert]) -> Result<(), StoreError> {
        let records: Vec<_> = rows.iter().map(Record::of).collect();
        let notification = |row: &NewCapacityAlert| {
            // Alerts about a tenant's share are not for operators.
            let notice = notice::of_capacity(&row.change).filter(|_| row.installation_id.is_none())?;
            Some((NewNotification::new(Uuid::now_v7(), Addressee::Operators, notice, row.event_id), row.created))
        };
        let notifications: Vec<_> = rows.iter().filter_map(notification).collect();
        self.write(move |tx| {
            add(tx, &records)?;
            for (notification, now) in &notifications {
                notifications::add_later(tx, notification, *now);
            }
            Ok(())
        })
        .await
    }

    /// The newest alert of the whole service that is not resolved. Cancel-safe.
    pub(crate) async fn open_capacity_alert(&self) -> Result<Option<OpenCapacityAlert>, StoreError> {
        self.read(open_alert).await
    }

    /// A page of rows, the newest first. Cancel-safe.
    pub(crate) async fn list_capacity_alerts(
        &self,
        filter: CapacityAlertFilter,
        page: Page,
    ) -> Result<Vec<CapacityAlertItem>, StoreError> {
        self.read(move |connection| {
            let mut rows = capacity_alerts::table.into_boxed();
            if let Some(tenant) = &filter.installation_id {
                rows = rows.filter(capacity_alerts::installation_id.eq(tenant.as_str()));
            }
            if let Some(from) = filter.from {
                rows = rows.filter(capacity_alerts::created_us.ge(from.0));
            }
            if let Some(until) = filter.until {
                rows = rows.filter(capacity_alerts::created_us.lt(until.0));
            }
            let rows = page_of!(rows, page, capacity_alerts::created_us, capacity_alerts::event_id);
            let records: Vec<Record> = rows.load(connection)?;
            records.into_iter().map(Record::read).collect()
        })
        .await
    }

    /// Removes rows from before a time, the oldest first, at most `limit`; rows of an open alert stay. Returns the number of
    /// rows; fewer than `limit` means that none are left. Safe to retry. A dropped future may have written.
    pub(crate) async fn prune_capacity_alerts(&self, before: Timestamp, limit: usize) -> Result<usize, StoreError> {
        self.write(move |tx| prune(tx, before, limit)).await
    }
}
