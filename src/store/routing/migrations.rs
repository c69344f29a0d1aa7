//! The table of migrations of fleets: each run whole, as it stands.

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

/// A migration of a fleet as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MigrationRunRow {
    /// Which one.
    pub run_id: Uuid,
    /// The whole state; moves of a process that died are to be
    /// [settled](crate::domain::migration::MigrationRun::settle).
    pub run: MigrationRun,
    /// To be named with the next write. Counts from 1.
    pub version: u64,
    /// When it was last written.
    pub updated: Timestamp,
}

impl MigrationRunRow {
    /// The place of this row in [`Store::migration_runs`].
    pub(crate) fn cursor(&self) -> Cursor {
        Cursor { created: self.run.created(), id: self.run_id.to_string() }
    }
}

/// A state to be written.
#[derive(Debug, Clone)]
pub(crate) struct SaveMigrationRun {
    /// Which one.
    pub run_id: Uuid,
    /// The version of the state that it came from; 0 where nothing was written yet.
    pub expected_version: u64,
    /// The state from now on.
    pub run: MigrationRun,
    /// The time.
    pub now: Timestamp,
}

/// What became of a state that was to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SavedMigrationRun {
    /// It is on disk, under this version; also where an earlier try had written it.
    Saved(u64),
    /// Somebody else wrote in the meantime; this is what is there. Nothing was written.
    Stale(Option<Box<MigrationRunRow>>),
}

/// Which migrations to list.
#[derive(Debug, Clone, Default)]
pub(crate) struct MigrationRunFilter {
    /// Only those of a tenant.
    pub installation_id: Option<InstallationId>,
    /// Only those that stand there.
    pub status: Option<MigrationStatus>,
    /// Only those with which somebody has to go on.
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

/// The most of one page: 20 MB at worst.
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
                // An earlier try may have been committed although nothing was heard of it.
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
    /// Writes a migration of a fleet as it stands now, unless somebody else wrote since `expected_version`. A database
    /// that is away, or a full queue, refuses it: as long as nothing is written, nothing is moved. Safe to retry with
    /// the same value after any error or a dropped future: what an earlier try has written answers
    /// [`SavedMigrationRun::Saved`].
    pub(crate) async fn save_migration_run(&self, save: SaveMigrationRun) -> Result<SavedMigrationRun, StoreError> {
        let record = Record::new(save)?;
        self.write(move |tx| record.save(tx)).await
    }

    /// A migration of a fleet. Cancel-safe.
    pub(crate) async fn migration_run(&self, run_id: Uuid) -> Result<Option<MigrationRunRow>, StoreError> {
        self.read(move |connection| find(connection, &run_id.to_string())?.map(Record::read).transpose()).await
    }

    /// A page of migrations of fleets, the newest first; never more than 50, since each may hold 400 KB. Cancel-safe.
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
                // Written out, so that both databases see that the index fits.
                rows = rows.filter(diesel::dsl::sql::<diesel::sql_types::Bool>("is_open"));
            }
            let page = Page { limit: page.limit.min(MAX_RUNS), ..page };
            let records: Vec<Record> = page_of!(rows, page, created_us, run_id).load(connection)?;
            records.into_iter().map(Record::read).collect()
        })
        .await
    }
}
