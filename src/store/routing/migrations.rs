//! The `migration_runs` table: the whole state of each migration of a fleet.

use diesel::{AsChangeset, ExpressionMethods, Insertable, OptionalExtension, QueryDsl, Queryable, RunQueryDsl};
use uuid::Uuid;

use crate::{
    domain::{
        clock::Timestamp,
        ids::InstallationId,
        migration::{MigrationRun, MigrationStatus},
    },
    store::{
        Store, StoreError,
        engine::{
            columns::{self, Cursor, Page, page_of},
            connection::AnyConnection,
            writer::WriteTx,
        },
        schema::migration_runs,
    },
};

/// A stored migration of a fleet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MigrationRunRow {
    pub run_id: Uuid,
    /// The whole state; the caller must [settle](crate::domain::migration::MigrationRun::settle) moves of a process
    /// that died.
    pub run: MigrationRun,
    /// Version of the state, from 1; the next write must name it as [`SaveMigrationRun::expected_version`].
    pub version: u64,
    /// Time of the last write.
    pub updated: Timestamp,
}

impl MigrationRunRow {
    /// The position of this row in [`Store::migration_runs`].
    pub(crate) fn cursor(&self) -> Cursor {
        Cursor { created: self.run.created(), id: self.run_id.to_string() }
    }
}

/// A new state of a migration, to be written.
#[derive(Debug, Clone)]
pub(crate) struct SaveMigrationRun {
    pub run_id: Uuid,
    /// The version on which the new state is based; 0 if nothing was written yet.
    pub expected_version: u64,
    pub run: MigrationRun,
    pub now: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SavedMigrationRun {
    /// The state is on disk under this version; perhaps an earlier attempt wrote it.
    Saved(u64),
    /// Nothing was written, because another writer changed the row; this is the current row.
    Stale(Option<Box<MigrationRunRow>>),
}

/// Conditions on listed migrations; all of them must hold.
#[derive(Debug, Clone, Default)]
pub(crate) struct MigrationRunFilter {
    /// Only migrations of this tenant.
    pub installation_id: Option<InstallationId>,
    /// Only migrations with this status.
    pub status: Option<MigrationStatus>,
    /// Only migrations that still need work, moves under way included.
    pub open_only: bool,
}

#[derive(Queryable, Insertable, AsChangeset)]
#[diesel(table_name = migration_runs)]
struct Record {
    run_id: String,
    installation_id: String,
    status: String,
    is_open: bool,
    run: String,
    version: i64,
    created_us: i64,
    updated_us: i64,
}

/// Maximum size of a page: 20 MB at worst.
const MAX_RUNS: usize = 50;

const RUN: &str = "migration_runs.run";

impl Record {
    fn new(save: SaveMigrationRun) -> Result<Self, StoreError> {
        let SaveMigrationRun { run_id, expected_version, run, now } = save;
        Ok(Self {
            run_id: run_id.to_string(),
            installation_id: run.installation_id().to_string(),
            status: run.status().as_str().to_owned(),
            is_open: run.is_open(),
            run: columns::json_text(&run.redacted(), RUN)?,
            version: columns::signed(expected_version.saturating_add(1)),
            created_us: run.created().0,
            updated_us: now.0,
        })
    }

    fn read(self) -> Result<MigrationRunRow, StoreError> {
        Ok(MigrationRunRow {
            run_id: columns::parse(&self.run_id, "migration_runs.run_id")?,
            run: columns::json(&self.run, RUN)?,
            version: columns::unsigned(self.version),
            updated: Timestamp(self.updated_us),
        })
    }

    fn save(&self, tx: &mut WriteTx<'_>) -> Result<SavedMigrationRun, StoreError> {
        let before = self.version - 1;
        let expected = migration_runs::table.find(&self.run_id).filter(migration_runs::version.eq(before));
        let mut written = diesel::update(expected).set(self).execute(tx.connection)?;
        if written == 0 {
            match find(tx.connection, &self.run_id)? {
                // An earlier attempt may have been committed although its outcome was lost.
                Some(found) if found.version == self.version && found.run == self.run => {
                    return Ok(SavedMigrationRun::Saved(columns::unsigned(self.version)));
                }
                Some(found) => return Ok(SavedMigrationRun::Stale(Some(Box::new(found.read()?)))),
                None if before != 0 => return Ok(SavedMigrationRun::Stale(None)),
                None => written = diesel::insert_into(migration_runs::table).values(self).execute(tx.connection)?,
            }
        }
        tx.rows += written;
        Ok(SavedMigrationRun::Saved(columns::unsigned(self.version)))
    }
}

fn find(connection: &mut AnyConnection, run_id: &str) -> diesel::QueryResult<Option<Record>> {
    migration_runs::table.find(run_id).first(connection).optional()
}

impl Store {
    /// Writes the state of a migration of a fleet, unless another writer changed the row since `expected_version`.
    ///
    /// # Errors
    /// An unavailable database or a full queue refuses the write: no workspace may be moved before it is written.
    /// Safe to retry with the same value after any error or a dropped future: if an earlier attempt was written, the
    /// outcome is [`SavedMigrationRun::Saved`].
    pub(crate) async fn save_migration_run(&self, save: SaveMigrationRun) -> Result<SavedMigrationRun, StoreError> {
        let record = Record::new(save)?;
        self.write(move |tx| record.save(tx)).await
    }

    /// Reads a migration of a fleet. Cancel-safe.
    pub(crate) async fn migration_run(&self, run_id: Uuid) -> Result<Option<MigrationRunRow>, StoreError> {
        self.read(move |connection| find(connection, &run_id.to_string())?.map(Record::read).transpose()).await
    }

    /// Reads a page of migrations of fleets, newest first; at most 50, because each may hold 400 KB. Cancel-safe.
    pub(crate) async fn migration_runs(
        &self,
        filter: MigrationRunFilter,
        page: Page,
    ) -> Result<Vec<MigrationRunRow>, StoreError> {
        use migration_runs::{created_us, installation_id, run_id, status};
        self.read(move |connection| {
            let mut rows = migration_runs::table.into_boxed();
            if let Some(tenant) = &filter.installation_id {
                rows = rows.filter(installation_id.eq(tenant.as_str()));
            }
            if let Some(wanted) = filter.status {
                rows = rows.filter(status.eq(wanted.as_str()));
            }
            if filter.open_only {
                // A literal, because both databases use the partial index only if they see its condition.
                rows = rows.filter(diesel::dsl::sql::<diesel::sql_types::Bool>("is_open"));
            }
            let page = Page { limit: page.limit.min(MAX_RUNS), ..page };
            let records: Vec<Record> = page_of!(rows, page, created_us, run_id).load(connection)?;
            // A migration of a newer version does not stop those that this version can read.
            let read = |record: Record| {
                let id = record.run_id.clone();
                let unreadable = |cause| tracing::warn!(marker = "[ACP]", run = id, %cause, "migration is left out");
                record.read().map_err(unreadable).ok()
            };
            Ok(records.into_iter().filter_map(read).collect())
        })
        .await
    }
}
