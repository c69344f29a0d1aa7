//! Brings a database to the schema of this version, under a lock, so that any number of replicas can
//! start together.

use std::time::{Duration, Instant};

use diesel::{
    ExpressionMethods, OptionalExtension, QueryDsl, RunQueryDsl, SqliteConnection,
    connection::{AnsiTransactionManager, SimpleConnection},
};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};
use uuid::Uuid;

use super::connection::{AnyConnection, DatabaseUrl, Purpose, execute};
use crate::store::{StoreError, schema::identity};

/// The migrations, compiled in. A new folder is noticed when this file is compiled again.
const MIGRATIONS: EmbeddedMigrations = embed_migrations!();

/// "lumilink" in ASCII: the advisory lock of PostgreSQL under which migrations run.
const ADVISORY_LOCK: i64 = 0x6c75_6d69_6c69_6e6b;

/// How long to wait for another process that migrates. A migration that rewrites a large table takes
/// minutes, but then it is run alone by `lumilink migrate`.
const LOCK_PATIENCE: Duration = Duration::from_secs(60);
/// How often SQLite is asked again for a lock for which it does not wait by itself.
const LOCK_RETRY: Duration = Duration::from_millis(20);

/// Runs what has not run yet, in order, and names it. Blocks. Safe to repeat.
pub(crate) fn run(url: &DatabaseUrl) -> Result<Vec<String>, StoreError> {
    let mut connection = url.connect(Purpose::Migrate)?;
    lock(&mut connection).map_err(|cause| StoreError::Unavailable(format!("the migration lock: {cause}")))?;
    let ran = run_pending(&mut connection);
    let unlocked = match (&mut connection, ran.is_ok()) {
        (AnyConnection::Sqlite(_), true) => connection.commit(),
        (AnyConnection::Sqlite(_), false) => {
            connection.roll_back();
            Ok(())
        }
        (AnyConnection::Postgres(connection), _) => {
            connection.batch_execute(&format!("SELECT pg_advisory_unlock({ADVISORY_LOCK})"))
        }
    };
    let ran = ran.map_err(|cause| StoreError::Unavailable(format!("migration: {cause}")))?;
    unlocked.map_err(|cause| StoreError::Unavailable(format!("migration: {cause}")))?;
    Ok(ran)
}

fn run_pending(connection: &mut AnyConnection) -> diesel::migration::Result<Vec<String>> {
    let mut ran = Vec::new();
    for migration in connection.pending_migrations(MIGRATIONS)? {
        connection.run_migration(&*migration)?;
        ran.push(migration.name().to_string());
    }
    Ok(ran)
}

fn lock(connection: &mut AnyConnection) -> diesel::QueryResult<()> {
    match connection {
        AnyConnection::Sqlite(connection) => {
            // SQLite gives up at once on this change when somebody else is making it.
            patiently(|| connection.batch_execute("PRAGMA journal_mode = WAL"))?;
            // One transaction around all of them, with the lock that nobody can share: what another
            // process has migrated is seen, and a failed migration leaves nothing half done.
            patiently(|| begin_exclusive(connection))
        }
        AnyConnection::Postgres(connection) => {
            let patience = LOCK_PATIENCE.as_secs();
            connection
                .batch_execute(&format!("SET lock_timeout = '{patience}s'; SELECT pg_advisory_lock({ADVISORY_LOCK})"))
        }
    }
}

fn begin_exclusive(connection: &mut SqliteConnection) -> diesel::QueryResult<()> {
    AnsiTransactionManager::begin_transaction_sql(connection, "BEGIN EXCLUSIVE")
}

fn patiently(mut attempt: impl FnMut() -> diesel::QueryResult<()>) -> diesel::QueryResult<()> {
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match attempt() {
            Err(cause) if cause.to_string().contains("locked") && Instant::now() < deadline => {
                #[expect(clippy::disallowed_methods, reason = "a thread of its own, which has nothing else to do")]
                std::thread::sleep(LOCK_RETRY);
            }
            outcome => return outcome,
        }
    }
}

/// The name that a database had, and the one that it has now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RenewedEpoch {
    /// Before: cursors with it are of no use any more.
    pub before: String,
    /// From now on, for whoever opens the database.
    pub now: String,
}

/// The database's name, which the first start makes; another process that starts at the same time sees the same.
pub(crate) fn epoch(url: &DatabaseUrl) -> Result<String, StoreError> {
    let mut connection = url.connect(Purpose::Write)?;
    let kept = |connection: &mut AnyConnection| {
        identity::table.find(true).select(identity::epoch).first::<String>(connection).optional()
    };
    if let Some(epoch) = kept(&mut connection)? {
        return Ok(epoch);
    }
    let insert = diesel::insert_into(identity::table)
        .values((identity::one.eq(true), identity::epoch.eq(new_name())))
        .on_conflict_do_nothing();
    execute!(&mut connection, insert)?;
    kept(&mut connection)?.ok_or_else(|| StoreError::Corrupt("the database has no name".into()))
}

/// Gives the database another name.
pub(crate) fn renew(url: &DatabaseUrl) -> Result<RenewedEpoch, StoreError> {
    let (before, now) = (epoch(url)?, new_name());
    let mut connection = url.connect(Purpose::Write)?;
    diesel::update(identity::table.find(true)).set(identity::epoch.eq(now.as_str())).execute(&mut connection)?;
    Ok(RenewedEpoch { before, now })
}

fn new_name() -> String {
    Uuid::new_v4().simple().to_string()
}
