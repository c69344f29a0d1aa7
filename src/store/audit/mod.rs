//! Pages of audit records, the newest first.

pub(crate) mod capacity_alerts;
pub(crate) mod connections;
pub(crate) mod summary;

use diesel::{BoolExpressionMethods, ExpressionMethods, OptionalExtension, QueryDsl, RunQueryDsl};

use self::connections::ConnectionRow;
use super::{
    Store, StoreError,
    automation::{self, AutomationRunRow},
    engine::{
        columns::{self, Cursor, Page},
        connection::AnyConnection,
    },
    notifications::{self, NotificationRow},
    routing::flips::{self, MigrationRow, RollbackEventRow},
    schema::{self, sessions},
};
use crate::domain::{
    clock::Timestamp,
    ids::{InstallationId, SessionId, WorkspaceId},
};

/// Which audit records to read.
#[derive(Debug, Clone, Default)]
pub(crate) struct AuditFilter {
    /// Only those of a tenant.
    pub installation_id: Option<InstallationId>,
    /// Only those of workspaces of this name.
    pub workspace_id: Option<WorkspaceId>,
    /// Only those of a session. What belongs to a workspace as a whole, such as a rollback, is a session's where it is
    /// of the session's workspace and not older than the session.
    pub session_id: Option<SessionId>,
    /// Only those of this time or later.
    pub from: Option<Timestamp>,
    /// Only those before this time.
    pub until: Option<Timestamp>,
}

impl AuditFilter {
    /// The same for records of workspaces as a whole; nothing where no record can fit.
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

/// The rows of a table that a filter lets through, after a cursor. Each table has types of its own in Diesel.
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
        if let Some(Cursor { created, id }) = &page.after {
            rows = rows
                .filter($table::$time.le(created.0))
                .filter($table::$time.lt(created.0).or($table::$id.lt(id.as_str())));
        }
        let rows = rows.order(($table::$time.desc(), $table::$id.desc())).limit(columns::limit(page.limit));
        rows.load($connection)
    }};
}

impl MigrationRow {
    /// The place of this row in [`Store::migrations`].
    pub(crate) fn cursor(&self) -> Cursor {
        Cursor { created: self.started, id: self.migration_id.to_string() }
    }
}

impl RollbackEventRow {
    /// The place of this row in [`Store::rollback_events`].
    pub(crate) fn cursor(&self) -> Cursor {
        Cursor { created: self.created, id: self.event_id.to_string() }
    }
}

impl ConnectionRow {
    /// The place of this row in [`Store::connections`].
    pub(crate) fn cursor(&self) -> Cursor {
        Cursor { created: self.created, id: self.connection_row_id.to_string() }
    }
}

impl AutomationRunRow {
    /// The place of this row in [`Store::automation_runs`].
    pub(crate) fn cursor(&self) -> Cursor {
        Cursor { created: self.created, id: self.run_id.to_string() }
    }
}

impl Store {
    /// A page of migrations, by when they began. Cancel-safe.
    pub(crate) async fn migrations(&self, filter: AuditFilter, page: Page) -> Result<Vec<MigrationRow>, StoreError> {
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
    ) -> Result<Vec<RollbackEventRow>, StoreError> {
        self.read(move |connection| {
            let Some(filter) = filter.of_workspaces(connection)? else { return Ok(Vec::new()) };
            let records: Vec<flips::RollbackRecord> =
                page!(connection, rollback_events, created_us, event_id, filter, page)?;
            records.into_iter().map(flips::RollbackRecord::read).collect()
        })
        .await
    }

    /// A page of handshakes with what became of the connections: of all that became of a page's connections the newest
    /// 10,000 changes. Cancel-safe.
    pub(crate) async fn connections(
        &self,
        filter: AuditFilter,
        page: Page,
    ) -> Result<Vec<ConnectionRow>, StoreError> {
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
    ) -> Result<Vec<AutomationRunRow>, StoreError> {
        self.read(move |connection| {
            let records: Vec<automation::Record> =
                page!(connection, automation_runs, created_us, run_id, filter, page, session_id)?;
            records.into_iter().map(automation::Record::read).collect()
        })
        .await
    }

    /// A page of notifications. Cancel-safe.
    pub(crate) async fn notifications(
        &self,
        filter: AuditFilter,
        page: Page,
    ) -> Result<Vec<NotificationRow>, StoreError> {
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
            records.into_iter().map(notifications::NotificationRecord::read).collect()
        })
        .await
    }
}
