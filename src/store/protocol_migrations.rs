//! The table of migrations: one row for each flip of a workspace, and for each step of a migration run. Rows are added
//! and pruned, never changed.

use diesel::{Insertable, OptionalExtension, QueryDsl, Queryable, RunQueryDsl};
use uuid::Uuid;

use super::{
    Store, StoreError,
    cached::execute,
    engine::{
        columns::{self, clean_text},
        connection::AnyConnection,
        writer::WriteTx,
    },
    schema::protocol_migrations,
};
use crate::domain::{
    clock::Timestamp,
    ids::WorkspaceKey,
    routing::{FlipTrigger, Initiator, Route},
    words::MigrationStatus,
};

/// A migration as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MigrationRow {
    /// Its id.
    pub migration_id: Uuid,
    /// The run of which it is a step.
    pub run_id: Option<Uuid>,
    /// Which workspace.
    pub key: WorkspaceKey,
    /// The route before.
    pub from: Route,
    /// The route after.
    pub to: Route,
    /// The epoch that began with it; absent where nothing was flipped.
    pub epoch: Option<u64>,
    /// In whose name.
    pub initiated_by: Initiator,
    /// Who; redacted on the way in.
    pub actor: String,
    /// Why, as a word.
    pub trigger: FlipTrigger,
    /// Why; redacted on the way in.
    pub reason: String,
    /// Where it stands.
    pub status: MigrationStatus,
    /// What was measured, as a JSON object; redacted on the way in.
    pub metrics: String,
    /// When it began, or will.
    pub started: Timestamp,
    /// When it ended.
    pub completed: Option<Timestamp>,
}

#[derive(Queryable, Insertable)]
#[diesel(table_name = protocol_migrations, treat_none_as_default_value = false)]
pub(super) struct Record {
    migration_id: String,
    run_id: Option<String>,
    installation_id: String,
    workspace_id: String,
    from_protocol: String,
    to_protocol: String,
    epoch: Option<i64>,
    initiated_by: String,
    actor: String,
    trigger: String,
    reason: String,
    status: String,
    metrics_snapshot: String,
    started_us: i64,
    completed_us: Option<i64>,
}

impl Record {
    pub(super) fn new(row: MigrationRow) -> Self {
        Self {
            migration_id: row.migration_id.to_string(),
            run_id: row.run_id.map(|id| id.to_string()),
            installation_id: row.key.installation_id.to_string(),
            workspace_id: row.key.workspace_id.to_string(),
            from_protocol: row.from.as_str().to_owned(),
            to_protocol: row.to.as_str().to_owned(),
            epoch: row.epoch.map(columns::signed),
            initiated_by: row.initiated_by.as_str().to_owned(),
            actor: clean_text(&row.actor),
            trigger: row.trigger.as_str().to_owned(),
            reason: clean_text(&row.reason),
            status: row.status.as_str().to_owned(),
            metrics_snapshot: clean_text(&row.metrics),
            started_us: row.started.0,
            completed_us: row.completed.map(|at| at.0),
        }
    }

    pub(super) fn read(self) -> Result<MigrationRow, StoreError> {
        let named = |name: &str, column| columns::named(Route::from_name, name, column);
        Ok(MigrationRow {
            migration_id: columns::parse(&self.migration_id, "protocol_migrations.migration_id")?,
            run_id: self.run_id.map(|id| columns::parse(&id, "protocol_migrations.run_id")).transpose()?,
            key: columns::workspace_key(self.installation_id, self.workspace_id)?,
            from: named(&self.from_protocol, "protocol_migrations.from_protocol")?,
            to: named(&self.to_protocol, "protocol_migrations.to_protocol")?,
            epoch: self.epoch.map(columns::unsigned),
            initiated_by: columns::named(
                Initiator::from_name,
                &self.initiated_by,
                "protocol_migrations.initiated_by",
            )?,
            actor: self.actor,
            trigger: columns::named(FlipTrigger::from_name, &self.trigger, "protocol_migrations.trigger")?,
            reason: self.reason,
            status: columns::named(MigrationStatus::from_name, &self.status, "protocol_migrations.status")?,
            metrics: self.metrics_snapshot,
            started: Timestamp(self.started_us),
            completed: self.completed_us.map(Timestamp),
        })
    }

    /// Whether there is one of this id.
    pub(super) fn exists(&self, connection: &mut AnyConnection) -> diesel::QueryResult<bool> {
        let found = protocol_migrations::table
            .find(self.migration_id.as_str())
            .select(protocol_migrations::started_us)
            .first::<i64>(connection);
        Ok(found.optional()?.is_some())
    }

    /// Writes it.
    pub(super) fn insert(&self, tx: &mut WriteTx<'_>) -> diesel::QueryResult<()> {
        tx.rows += diesel::insert_into(protocol_migrations::table).values(self).execute(tx.connection)?;
        Ok(())
    }
}

impl Store {
    /// Adds a row about a migration run that is no flip. Safe to retry: one id is one row. A dropped future may have
    /// written.
    pub async fn record_migration(&self, row: MigrationRow) -> Result<(), StoreError> {
        let record = Record::new(row);
        self.write(move |tx| {
            let insert = diesel::insert_into(protocol_migrations::table).values(&record).on_conflict_do_nothing();
            tx.rows += execute!(tx.connection, insert)?;
            Ok(())
        })
        .await
    }
}
