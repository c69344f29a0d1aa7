//! Schema upgrades: brings a database to the schema of this version, under a lock, so that any number of replicas can
//! start together.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use diesel::{
    ExpressionMethods, OptionalExtension, QueryDsl, QueryableByName, RunQueryDsl, SqliteConnection,
    connection::{AnsiTransactionManager, SimpleConnection},
    migration::{Migration, MigrationSource},
    sql_types::Text,
    sqlite::Sqlite,
};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};
use uuid::Uuid;

use super::connection::{AnyConnection, DatabaseUrl, Purpose, execute, open_sqlite_unchanged};
use crate::store::{StoreError, schema::identity};

/// The steps of the schema, compiled in. A new folder is noticed when this file is compiled again.
const STEPS: EmbeddedMigrations = embed_migrations!();

/// The version of the oldest step. Versions below it belong to development schemas, from before the first release.
const BASELINE: &str = "20261201013000";

/// "lumilink" in ASCII: the advisory lock of `PostgreSQL` under which upgrades run.
const ADVISORY_LOCK: i64 = 0x6c75_6d69_6c69_6e6b;

/// Time to wait for another process that upgrades. A step that rewrites a large table takes minutes, but then it is
/// run alone by `lumilink migrate`.
const LOCK_TIMEOUT: Duration = Duration::from_secs(60);
/// Pause between attempts to take a lock of SQLite for which it does not wait by itself.
const LOCK_RETRY: Duration = Duration::from_millis(20);

/// Runs the steps that have not run yet, in order, and returns their names. Blocks. Safe to retry.
///
/// # Errors
/// [`StoreError::OtherSchema`] if the database has a step with which this version cannot work; nothing was written then.
pub(crate) fn run(url: &DatabaseUrl) -> Result<Vec<String>, StoreError> {
    if let DatabaseUrl::Sqlite(path) = url {
        refuse_other_schema(path)?;
    }
    let mut connection = url.connect(Purpose::Upgrade)?;
    lock(&mut connection).map_err(|cause| StoreError::Unavailable(format!("the schema upgrade's lock: {cause}")))?;
    let ran = run_pending(&mut connection, url);
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
    let ran = ran?;
    unlocked.map_err(|cause| failed(&cause))?;
    Ok(ran)
}

fn failed(cause: &dyn std::fmt::Display) -> StoreError {
    StoreError::Unavailable(format!("schema upgrade: {cause}"))
}

fn run_pending(connection: &mut AnyConnection, url: &DatabaseUrl) -> Result<Vec<String>, StoreError> {
    // First: asking for pending steps creates their table.
    accept(&Applied::read(connection).map_err(|cause| failed(&cause))?, &url.name())?;
    let mut ran = Vec::new();
    for step in connection.pending_migrations(STEPS).map_err(|cause| failed(&cause))? {
        connection.run_migration(&*step).map_err(|cause| failed(&cause))?;
        ran.push(step.name().to_string());
    }
    Ok(ran)
}

/// Refuses a SQLite file of another schema before anything opens it for writing: taking the lock would write to it, and
/// closing it would move what is in its write-ahead log.
fn refuse_other_schema(path: &Path) -> Result<(), StoreError> {
    if !std::fs::metadata(path).is_ok_and(|file| file.len() > 0) {
        return Ok(());
    }
    let mut connection = AnyConnection::Sqlite(open_sqlite_unchanged(path)?);
    let mut found = Applied::default();
    let read = retry_while_locked(|| {
        found = Applied::read(&mut connection)?;
        Ok(())
    });
    match read {
        Ok(()) => accept(&found, &path.display().to_string()),
        // Not readable without a write, for example after a crash while it was created. The check under the lock decides.
        Err(_) => Ok(()),
    }
}

/// The schema of a database.
#[derive(Debug, Default)]
struct Applied {
    /// The versions of its steps, in order.
    versions: Vec<String>,
    /// The oldest version whose programs may use it; `None` if the database does not say.
    oldest: Option<String>,
}

#[derive(QueryableByName)]
struct Found {
    #[diesel(sql_type = Text)]
    text: String,
}

impl Applied {
    /// Writes nothing.
    fn read(connection: &mut AnyConnection) -> diesel::QueryResult<Self> {
        let versions = applied(connection)?;
        let oldest = texts(
            connection,
            "schema_compatibility",
            "SELECT oldest AS text FROM schema_compatibility ORDER BY oldest",
        )?;
        Ok(Self { versions, oldest: oldest.into_iter().next_back() })
    }
}

/// The versions of the steps that a database has. Writes nothing.
pub(super) fn applied(connection: &mut AnyConnection) -> diesel::QueryResult<Vec<String>> {
    const APPLIED: &str = "SELECT version AS text FROM __diesel_schema_migrations ORDER BY version";
    texts(connection, "__diesel_schema_migrations", APPLIED)
}

/// The texts that a query finds; empty without the table.
fn texts(connection: &mut AnyConnection, table: &str, query: &str) -> diesel::QueryResult<Vec<String>> {
    const SQLITE: &str = "SELECT name AS text FROM sqlite_master WHERE name = $1";
    const POSTGRES: &str = "SELECT $1 AS text WHERE to_regclass($1) IS NOT NULL";
    macro_rules! texts {
        ($connection:expr, $tables:expr) => {{
            let found: Vec<Found> = diesel::sql_query($tables).bind::<Text, _>(table).load($connection)?;
            if found.is_empty() { Vec::new() } else { diesel::sql_query(query).load::<Found>($connection)? }
        }};
    }
    let found = match connection {
        AnyConnection::Sqlite(connection) => texts!(connection, SQLITE),
        AnyConnection::Postgres(connection) => texts!(connection, POSTGRES),
    };
    Ok(found.into_iter().map(|found| found.text).collect())
}

/// Refuses a database that this version cannot use: from before the baseline, or with steps that it does not know and
/// that take something away from it. Unknown steps that only add are accepted, so that a version can run until it is
/// replaced, and again after a return to it.
fn accept(applied: &Applied, name: &str) -> Result<(), StoreError> {
    let known = known()?;
    let unknown = || applied.versions.iter().filter(|version| !known.contains(version));
    if unknown().any(|version| version.as_str() < BASELINE) {
        return Err(StoreError::OtherSchema(format!(
            "the database {name} was made by a development version from before the baseline schema; this version cannot \
             upgrade it and has left it unchanged. Start with a new database, or keep using the earlier version."
        )));
    }
    let Some(version) = unknown().next_back() else { return Ok(()) };
    if applied.oldest.as_ref().is_some_and(|oldest| known.last().is_some_and(|newest| oldest <= newest)) {
        tracing::info!(schema = %version, "the database has the schema of a newer version, which this one can use");
        return Ok(());
    }
    Err(StoreError::OtherSchema(format!(
        "the database {name} was upgraded by a newer version of lumilink, to schema {version}; this version cannot \
         use it and has left it unchanged. Start the newer version, or restore a backup from before the upgrade."
    )))
}

/// The versions of this version's steps, in order.
fn known() -> Result<Vec<String>, StoreError> {
    let steps: Vec<Box<dyn Migration<Sqlite>>> = STEPS.migrations().map_err(|cause| failed(&cause))?;
    let mut versions: Vec<_> = steps.iter().map(|step| step.name().version().to_string()).collect();
    versions.sort_unstable();
    Ok(versions)
}

fn lock(connection: &mut AnyConnection) -> diesel::QueryResult<()> {
    match connection {
        AnyConnection::Sqlite(connection) => {
            // Lets retention give pages back to the file system. Has an effect on an empty file only, and WAL mode
            // writes the first page, so it comes before that.
            retry_while_locked(|| connection.batch_execute("PRAGMA auto_vacuum = INCREMENTAL"))?;
            // SQLite gives up at once on this change when another process is making it.
            retry_while_locked(|| connection.batch_execute("PRAGMA journal_mode = WAL"))?;
            // One transaction around all steps, with the exclusive lock: it sees the steps of another process, and a
            // failed upgrade leaves nothing half done.
            retry_while_locked(|| begin_exclusive(connection))
        }
        AnyConnection::Postgres(connection) => {
            let patience = LOCK_TIMEOUT.as_secs();
            connection
                .batch_execute(&format!("SET lock_timeout = '{patience}s'; SELECT pg_advisory_lock({ADVISORY_LOCK})"))
        }
    }
}

fn begin_exclusive(connection: &mut SqliteConnection) -> diesel::QueryResult<()> {
    AnsiTransactionManager::begin_transaction_sql(connection, "BEGIN EXCLUSIVE")
}

/// Repeats an attempt while another process holds the lock, for up to [`LOCK_TIMEOUT`].
fn retry_while_locked(mut attempt: impl FnMut() -> diesel::QueryResult<()>) -> diesel::QueryResult<()> {
    let deadline = Instant::now() + LOCK_TIMEOUT;
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

/// The epoch of a database before and after it was renewed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RenewedEpoch {
    /// Cursors with this epoch are rejected from now on.
    pub before: String,
    /// The epoch for every process that opens the database from now on.
    pub now: String,
}

/// The database's epoch, made at the first start. Processes that start at the same time read the same one.
pub(crate) fn epoch(url: &DatabaseUrl) -> Result<String, StoreError> {
    let mut connection = url.connect(Purpose::Write)?;
    let stored = |connection: &mut AnyConnection| {
        identity::table.find(true).select(identity::epoch).first::<String>(connection).optional()
    };
    if let Some(epoch) = stored(&mut connection)? {
        return Ok(epoch);
    }
    let insert = diesel::insert_into(identity::table)
        .values((identity::one.eq(true), identity::epoch.eq(new_epoch())))
        .on_conflict_do_nothing();
    execute!(&mut connection, insert)?;
    stored(&mut connection)?.ok_or_else(|| StoreError::Corrupt("the database has no epoch".into()))
}

/// Gives the database another epoch.
pub(crate) fn renew(url: &DatabaseUrl) -> Result<RenewedEpoch, StoreError> {
    let (before, now) = (epoch(url)?, new_epoch());
    let mut connection = url.connect(Purpose::Write)?;
    diesel::update(identity::table.find(true)).set(identity::epoch.eq(now.as_str())).execute(&mut connection)?;
    Ok(RenewedEpoch { before, now })
}

fn new_epoch() -> String {
    Uuid::new_v4().simple().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_baseline_is_the_oldest_step() {
        assert_eq!(known().unwrap().first().map(String::as_str), Some(BASELINE));
    }
}
