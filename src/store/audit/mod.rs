//! Lists of audit records, in pages, newest first.

pub(crate) mod capacity_alerts;
pub(crate) mod connections;
pub(crate) mod summary;

use diesel::{
    BoolExpressionMethods, ExpressionMethods, OptionalExtension, QueryDsl, RunQueryDsl,
    dsl::sql,
    sql_types::{Bool, Text},
};

use super::{
    Store, StoreError,
    automation::{self, deliveries::DeliveryRow, sagas::SagaRow},
    changes,
    engine::{
        columns::{self, Cursor, Listed, Page, page_of},
        connection::AnyConnection,
    },
    erasure,
    notifications::{self, NotificationRow},
    routing::flips,
    schema::{self, sessions},
};
use crate::{
    contract::audit::{
        AutomationRunItem, CapacityAlertItem, ChangeItem, ConnectionItem, ErasureItem, MigrationItem,
        NotificationItem, RollbackEventItem,
    },
    domain::{
        automation::{saga::SagaStatus, trigger::DeliveryState},
        clock::Timestamp,
        ids::{InstallationId, SessionId, UserId, WorkspaceId},
    },
};

/// Filters of the lists of audit records.
#[derive(Debug, Clone, Default)]
pub(crate) struct AuditFilter {
    pub installation_id: Option<InstallationId>,
    /// Only records of workspaces of this name, of any tenant unless `installation_id` is given.
    pub workspace_id: Option<WorkspaceId>,
    /// Only records of a session. A record of a whole workspace, such as a rollback, belongs to the session if the
    /// workspace is the session's and the record is not older than the session.
    pub session_id: Option<SessionId>,
    /// Start of the period, inclusive.
    pub from: Option<Timestamp>,
    /// End of the period, exclusive.
    pub until: Option<Timestamp>,
}

/// Filters of the list of runs of automation.
#[derive(Debug, Clone, Default)]
pub(crate) struct SagaFilter {
    pub records: AuditFilter,
    pub status: Option<SagaStatus>,
    /// Only runs of sessions of this user that are still there.
    pub user_id: Option<UserId>,
}

impl AuditFilter {
    /// Translates the filter for records of whole workspaces; `None` if no record can match.
    fn of_workspaces(mut self, connection: &mut AnyConnection) -> Result<Option<Self>, StoreError> {
        let Some(session_id) = self.session_id.take() else { return Ok(Some(self)) };
        let session: Option<(String, String, i64)> = sessions::table
            .find(session_id.to_string())
            .select((sessions::installation_id, sessions::workspace_id, sessions::created_us))
            .first(connection)
            .optional()?;
        let Some((tenant, workspace, created)) = session else { return Ok(None) };
        let key = columns::workspace_key(tenant, workspace)?;
        let fits = self.installation_id.as_ref().is_none_or(|tenant| *tenant == key.installation_id)
            && self.workspace_id.as_ref().is_none_or(|workspace| *workspace == key.workspace_id);
        let created = Timestamp(created);
        Ok(fits.then(|| Self {
            installation_id: Some(key.installation_id),
            workspace_id: Some(key.workspace_id),
            from: Some(self.from.map_or(created, |from| from.max(created))),
            ..self
        }))
    }
}

/// Loads a page of a table's rows that match a filter. A macro, because each table has types of its own in Diesel.
macro_rules! page {
    ($connection:expr, $table:ident, $time:ident, $id:ident, $filter:expr, $page:expr $(, $session:ident)? $(; $more:expr)?) => {{
        use schema::$table;
        let (filter, page): (&AuditFilter, &Page) = (&$filter, &$page);
        let mut rows = $table::table.into_boxed();
        if let Some(tenant) = &filter.installation_id {
            rows = rows.filter($table::installation_id.eq(tenant.as_str()));
        }
        if let Some(workspace) = &filter.workspace_id {
            rows = rows.filter($table::workspace_id.eq(workspace.as_str()));
        }
        $(if let Some(session) = &filter.session_id {
            rows = rows.filter($table::$session.eq(session.to_string()));
        })?
        $(rows = rows.filter($more);)?
        if let Some(from) = filter.from {
            rows = rows.filter($table::$time.ge(from.0));
        }
        if let Some(until) = filter.until {
            rows = rows.filter($table::$time.lt(until.0));
        }
        page_of!(rows, page, $table::$time, $table::$id).load($connection)
    }};
}

/// Gives the contract's records their place in the store's lists.
macro_rules! listed {
    ($($item:ident by $time:ident, $id:ident;)*) => {$(
        impl Listed for $item {
            fn cursor(&self) -> Cursor {
                Cursor { created: self.$time, id: self.$id.to_string() }
            }
        }
    )*};
}

listed! {
    MigrationItem by started_at, migration_id;
    RollbackEventItem by created_at, event_id;
    ConnectionItem by created_at, connection_row_id;
    AutomationRunItem by created_at, run_id;
    CapacityAlertItem by created_at, event_id;
    NotificationItem by created_at, notification_id;
    ErasureItem by created_at, erasure_id;
    ChangeItem by created_at, change_id;
}

impl From<NotificationRow> for NotificationItem {
    fn from(row: NotificationRow) -> Self {
        let (installation_id, workspace_id) = row.key.map(|key| (key.installation_id, key.workspace_id)).unzip();
        Self {
            notification_id: row.notification_id,
            installation_id,
            workspace_id,
            session_id: row.session_id,
            user_id: row.user_id,
            stream: row.stream.to_string(),
            seq: row.seq,
            title: row.title,
            body: row.body,
            severity: row.severity.as_str(),
            trigger: row.trigger.as_str(),
            auto_dismiss_ms: u64::try_from(row.auto_dismiss.as_millis()).unwrap_or(u64::MAX),
            cause_id: row.cause_id,
            created_at: row.created,
        }
    }
}

impl Store {
    /// A page of migrations, ordered by their start. Cancel-safe.
    pub(crate) async fn migrations(&self, filter: AuditFilter, page: Page) -> Result<Vec<MigrationItem>, StoreError> {
        self.read(move |connection| {
            let Some(filter) = filter.of_workspaces(connection)? else { return Ok(Vec::new()) };
            let records: Vec<flips::MigrationRecord> =
                page!(connection, protocol_migrations, started_us, migration_id, filter, page)?;
            records.into_iter().map(flips::MigrationRecord::read).collect()
        })
        .await
    }

    /// A page of rollbacks and restores. Cancel-safe.
    pub(crate) async fn rollback_events(
        &self,
        filter: AuditFilter,
        page: Page,
    ) -> Result<Vec<RollbackEventItem>, StoreError> {
        self.read(move |connection| {
            let Some(filter) = filter.of_workspaces(connection)? else { return Ok(Vec::new()) };
            let records: Vec<flips::RollbackRecord> =
                page!(connection, rollback_events, created_us, event_id, filter, page)?;
            records.into_iter().map(flips::RollbackRecord::read).collect()
        })
        .await
    }

    /// A page of handshakes with the changes of their connections, at most the newest 10,000 of the page. Cancel-safe.
    pub(crate) async fn connections(
        &self,
        filter: AuditFilter,
        page: Page,
    ) -> Result<Vec<ConnectionItem>, StoreError> {
        self.read(move |connection| {
            let records: Vec<connections::ConnectionRecord> =
                page!(connection, acp_connections, created_us, connection_row_id, filter, page, session_id)?;
            let mut events = connections::of(connection, records.iter().map(|record| record.id()))?;
            records
                .into_iter()
                .map(|record| {
                    let events = events.remove(record.id()).unwrap_or_default();
                    record.read(events)
                })
                .collect()
        })
        .await
    }

    /// A page of automation runs. Cancel-safe.
    pub(crate) async fn automation_runs(
        &self,
        filter: AuditFilter,
        page: Page,
    ) -> Result<Vec<AutomationRunItem>, StoreError> {
        self.read(move |connection| {
            let records: Vec<automation::runs::Record> =
                page!(connection, automation_runs, created_us, run_id, filter, page, session_id)?;
            records.into_iter().map(automation::runs::Record::read).collect()
        })
        .await
    }

    /// A page of runs of automation with their state, by the end of the turn's agent. Cancel-safe.
    pub(crate) async fn sagas(&self, filter: SagaFilter, page: Page) -> Result<Vec<SagaRow>, StoreError> {
        use schema::automation_sagas as table;
        let SagaFilter {
            records: AuditFilter { installation_id, workspace_id, session_id, from, until },
            status,
            user_id,
        } = filter;
        self.read(move |connection| {
            let mut rows = table::table.into_boxed();
            if let Some(tenant) = &installation_id {
                rows = rows.filter(table::installation_id.eq(tenant.as_str()));
            }
            if let Some(workspace) = &workspace_id {
                rows = rows.filter(table::workspace_id.eq(workspace.as_str()));
            }
            if let Some(session) = session_id {
                rows = rows.filter(table::session_id.eq(session.to_string()));
            }
            if let Some(from) = from {
                rows = rows.filter(table::created_us.ge(from.0));
            }
            if let Some(until) = until {
                rows = rows.filter(table::created_us.lt(until.0));
            }
            if let Some(status) = status {
                rows = rows.filter(table::status.eq(status.as_str()));
            }
            if let Some(user) = &user_id {
                // Only the session has its user.
                let is_theirs = sql::<Bool>(
                    "EXISTS (SELECT 1 FROM sessions WHERE sessions.session_id = automation_sagas.session_id \
                     AND sessions.user_id = ",
                );
                rows = rows.filter(is_theirs.bind::<Text, _>(user.as_str().to_owned()).sql(")"));
            }
            let records: Vec<automation::sagas::Record> =
                page_of!(rows, page, table::created_us, table::run_id).load(connection)?;
            records.into_iter().map(automation::sagas::Record::read).collect()
        })
        .await
    }

    /// A page of deliveries, newest first. Cancel-safe.
    pub(crate) async fn deliveries(
        &self,
        filter: AuditFilter,
        state: Option<DeliveryState>,
        page: Page,
    ) -> Result<Vec<DeliveryRow>, StoreError> {
        use schema::github_deliveries as table;
        let AuditFilter { installation_id, workspace_id, session_id, from, until } = filter;
        self.read(move |connection| {
            let mut rows = table::table.into_boxed();
            if let Some(tenant) = installation_id.as_ref().map(InstallationId::as_str) {
                rows = rows.filter(table::installation_id.eq(tenant.to_owned()));
            }
            if let Some(workspace) = &workspace_id {
                rows = rows.filter(table::workspace_id.eq(workspace.as_str().to_owned()));
            }
            if let Some(session) = session_id {
                rows = rows.filter(table::session_id.eq(session.to_string()));
            }
            if let Some(from) = from {
                rows = rows.filter(table::created_us.ge(from.0));
            }
            if let Some(until) = until {
                rows = rows.filter(table::created_us.lt(until.0));
            }
            if let Some(state) = state {
                rows = rows.filter(table::state.eq(state.as_str()));
            }
            let records: Vec<automation::deliveries::Record> =
                page_of!(rows, page, table::created_us, table::delivery_id).load(connection)?;
            records.into_iter().map(automation::deliveries::Record::read).collect()
        })
        .await
    }

    /// A page of erasures. Cancel-safe.
    pub(crate) async fn list_erasures(
        &self,
        filter: AuditFilter,
        page: Page,
    ) -> Result<Vec<ErasureItem>, StoreError> {
        self.read(move |connection| {
            let records: Vec<erasure::Record> =
                page!(connection, erasures, created_us, erasure_id, filter, page, session_id)?;
            records.into_iter().map(erasure::Record::read).collect()
        })
        .await
    }

    /// A page of administrative changes; they belong to no session. Cancel-safe.
    pub(crate) async fn changes(&self, filter: AuditFilter, page: Page) -> Result<Vec<ChangeItem>, StoreError> {
        self.read(move |connection| {
            if filter.session_id.is_some() {
                return Ok(Vec::new());
            }
            let records: Vec<changes::Record> =
                page!(connection, admin_changes, created_us, change_id, filter, page)?;
            records.into_iter().map(changes::Record::read).collect()
        })
        .await
    }

    /// A page of notifications. Cancel-safe.
    pub(crate) async fn notifications(
        &self,
        filter: AuditFilter,
        page: Page,
    ) -> Result<Vec<NotificationItem>, StoreError> {
        self.read(move |connection| {
            use schema::notifications as table;
            let session = filter.session_id.map(|id| id.to_string());
            let Some(filter) = filter.of_workspaces(connection)? else { return Ok(Vec::new()) };
            let records: Vec<notifications::NotificationRecord> = match session {
                Some(id) => {
                    let concerns_it = table::session_id.is_null().or(table::session_id.eq(id));
                    page!(connection, notifications, created_us, notification_id, filter, page; concerns_it)?
                }
                None => page!(connection, notifications, created_us, notification_id, filter, page)?,
            };
            // A row of a newer version is left out, and logged.
            let read =
                |record: notifications::NotificationRecord| record.read_or_log().ok().map(NotificationItem::from);
            Ok(records.into_iter().filter_map(read).collect())
        })
        .await
    }
}
