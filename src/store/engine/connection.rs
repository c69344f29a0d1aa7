//! One connection to either database, set up the way that reader and writer need it.

use std::{
    fmt::Display,
    marker::PhantomData,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Once,
};

use diesel::{
    AppearsOnTable, AsChangeset, Connection, Expression, MultiConnection, PgConnection, QueryResult, QuerySource,
    RunQueryDsl, SqliteConnection, Table,
    backend::Backend,
    connection::{AnsiTransactionManager, SimpleConnection, TransactionManager},
    query_builder::{AstPass, QueryFragment, QueryId},
    sql_types::Bool,
};
use secrecy::{ExposeSecret, SecretString};

use crate::{config::Reloadable, store::StoreError};

/// A connection to one of the two databases.
#[derive(MultiConnection)]
pub(crate) enum AnyConnection {
    /// SQLite, compiled in.
    Sqlite(SqliteConnection),
    /// `PostgreSQL` through libpq, compiled in.
    Postgres(PgConnection),
}

/// The database's URL. Its `Debug` form shows no password.
#[derive(Debug, Clone)]
pub(crate) enum DatabaseUrl {
    /// A SQLite file; the file is created if it is missing, its folder is not.
    Sqlite(PathBuf),
    /// Clones share the URL, so that a reload reaches later connections of all of them.
    Postgres(Reloadable<SecretString>),
}

/// A malformed database URL. The message does not quote the URL, which may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("database URL: {0}")]
pub(crate) struct BadDatabaseUrl(&'static str);

impl FromStr for DatabaseUrl {
    type Err = BadDatabaseUrl;

    fn from_str(text: &str) -> Result<Self, BadDatabaseUrl> {
        if text.starts_with("postgres://") || text.starts_with("postgresql://") {
            return Ok(Self::Postgres(Reloadable::new(SecretString::from(text))));
        }
        let Some(path) = text.strip_prefix("sqlite:") else {
            return Err(BadDatabaseUrl("must be `sqlite:PATH` or `postgres://user:password@host/database`"));
        };
        match path.strip_prefix("//").unwrap_or(path) {
            "" => Err(BadDatabaseUrl("`sqlite:` needs the path of a file")),
            path if path.contains(":memory:") => Err(BadDatabaseUrl(
                "`sqlite::memory:` is not supported, since every connection would see another database; give a file",
            )),
            path => Ok(Self::Sqlite(PathBuf::from(path))),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// For the writer: commits are durable before they are reported.
    Write,
    /// The pool's: refuses to write.
    Read,
    /// The row of this supervisor: statements that must be short.
    Membership,
    /// Schema upgrades: statements may take minutes.
    Upgrade,
}

/// Time that SQLite waits for a lock that another process holds (backup, a second instance). All writes of this process
/// share one connection, so it never waits for itself.
const SQLITE_BUSY_TIMEOUT_MS: u32 = 5000;

/// With `synchronous = FULL` acknowledged writes survive a power failure; NORMAL would lose the last commits.
/// `secure_delete = FAST` overwrites deleted content in pages that are written anyway; free pages keep theirs until they
/// are returned to the file system.
const SQLITE_WRITE: &str = "PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA temp_store = MEMORY; \
     PRAGMA secure_delete = FAST;";
const SQLITE_READ: &str = "PRAGMA query_only = ON; PRAGMA foreign_keys = ON; PRAGMA temp_store = MEMORY;";

/// No statement takes a second; one that takes 30 would block a turn and everything queued behind it. Schema upgrades
/// have no such limit.
const POSTGRES_WRITE: &str = "SET statement_timeout = '30s'; SET lock_timeout = '10s'; \
     SET idle_in_transaction_session_timeout = '10s';";
const POSTGRES_READ: &str = "SET statement_timeout = '30s'; SET default_transaction_read_only = on;";

/// A renewal that takes longer would be late for the life of the row.
const POSTGRES_MEMBERSHIP: &str = "SET statement_timeout = '4s'; SET lock_timeout = '3s'; \
     SET idle_in_transaction_session_timeout = '4s';";

/// Defaults for `PostgreSQL` URLs: a server that vanished silently is noticed within 15 s, not after the kernel's 15
/// minutes.
const POSTGRES_PARAMETERS: [(&str, &str); 6] = [
    ("application_name", "lumilink"),
    ("connect_timeout", "5"),
    ("keepalives_idle", "5"),
    ("keepalives_interval", "5"),
    ("keepalives_count", "2"),
    ("tcp_user_timeout", "15000"),
];

impl DatabaseUrl {
    /// Name of the database in messages: the path of the file, or server and database without user and password.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Sqlite(path) => path.display().to_string(),
            Self::Postgres(url) => {
                let url = url.get();
                let url = url.expose_secret();
                let (url, _) = url.split_once('?').unwrap_or((url, ""));
                let place = url.split_once("://").map_or(url, |(_, place)| place);
                place.rsplit_once('@').map_or(place, |(_, place)| place).to_owned()
            }
        }
    }

    /// The URL of a `PostgreSQL` server without its password: user, host, database, and the options that say how to
    /// connect. A SQLite file's path. Safe to print.
    pub(crate) fn without_secrets(&self) -> String {
        const SHOWN: [&str; 6] = ["host", "port", "dbname", "user", "sslmode", "sslrootcert"];
        self.reduced(|_| {}, |option| SHOWN.contains(&option)).unwrap_or_else(|| self.name())
    }

    /// The URL without its password, changed by `change`, and with the options that `is_kept` names; `None` for a SQLite
    /// file, and for a text that is no URL.
    fn reduced(&self, change: impl Fn(&mut url::Url), is_kept: impl Fn(&str) -> bool) -> Option<String> {
        let Self::Postgres(secret) = self else { return None };
        let mut url = url::Url::parse(secret.get().expose_secret()).ok()?;
        if url.password().is_some() {
            url.set_password(None).ok()?;
        }
        change(&mut url);
        let options = url.query_pairs().filter(|(name, _)| is_kept(name));
        let options: Vec<(String, String)> = options.map(|it| (it.0.into(), it.1.into())).collect();
        url.set_query(None);
        if !options.is_empty() {
            url.query_pairs_mut().extend_pairs(options);
        }
        Some(url.to_string())
    }

    /// True if both are the same file, or differ in nothing but user, password and other credentials: any other option
    /// may name another server or schema.
    pub(crate) fn is_same_but_for_credentials(&self, other: &Self) -> bool {
        const CREDENTIALS: [&str; 6] = ["user", "password", "passfile", "sslcert", "sslkey", "sslpassword"];
        let without_user = |url: &mut url::Url| {
            // Refused by a URL without a host, which has no user.
            let _ = url.set_username("");
        };
        let place = |url: &Self| url.reduced(without_user, |option| !CREDENTIALS.contains(&option));
        match (self, other) {
            (Self::Sqlite(path), Self::Sqlite(other)) => path == other,
            _ => place(self).is_some_and(|this| place(other) == Some(this)),
        }
    }

    /// Lets this URL and its clones connect with the credentials of another URL of the same database from now on. Open
    /// connections remain.
    pub(crate) fn connect_as(&self, other: &Self) {
        if let (Self::Postgres(url), Self::Postgres(new)) = (self, other) {
            url.set(SecretString::clone(&new.get()));
        }
    }

    /// Connects and sets the connection up. Blocks.
    pub(crate) fn connect(&self, purpose: Purpose) -> Result<AnyConnection, StoreError> {
        match self {
            Self::Sqlite(path) => {
                let mut connection = open_sqlite(path)?;
                let setup = match purpose {
                    Purpose::Read => SQLITE_READ,
                    Purpose::Write | Purpose::Membership | Purpose::Upgrade => SQLITE_WRITE,
                };
                connection
                    .batch_execute(&format!("PRAGMA busy_timeout = {SQLITE_BUSY_TIMEOUT_MS}; {setup}"))
                    .map_err(|cause| sqlite_unavailable(path, cause))?;
                Ok(AnyConnection::Sqlite(connection))
            }
            Self::Postgres(url) => {
                let url = &*url.get();
                let unavailable = |cause: &dyn Display| {
                    StoreError::Unavailable(format!("PostgreSQL: {}", without_password(url, cause)))
                };
                let mut connection = PgConnection::establish(&with_parameters(url.expose_secret()))
                    .map_err(|cause| unavailable(&cause))?;
                let setup = match purpose {
                    Purpose::Read => POSTGRES_READ,
                    Purpose::Write => POSTGRES_WRITE,
                    Purpose::Membership => POSTGRES_MEMBERSHIP,
                    Purpose::Upgrade => "",
                };
                if !setup.is_empty() {
                    connection.batch_execute(setup).map_err(|cause| unavailable(&cause))?;
                }
                Ok(AnyConnection::Postgres(connection))
            }
        }
    }
}

fn sqlite_unavailable(path: &Path, cause: impl Display) -> StoreError {
    StoreError::Unavailable(format!("SQLite file {}: {cause}", path.display()))
}

/// Makes SQLite lock less: each connection has one user at a time, because Diesel's methods take it by `&mut`, and no
/// one reads the statistics of its memory, for which every allocation takes a lock. A turn saves 70 locks.
fn configure_sqlite() {
    static CONFIGURED: Once = Once::new();
    CONFIGURED.call_once(|| {
        // SAFETY: every connection is opened after a call of this function, so SQLite is not in use yet. If it were, it
        // would refuse the change, which is no error.
        unsafe {
            libsqlite3_sys::sqlite3_config(libsqlite3_sys::SQLITE_CONFIG_MULTITHREAD);
            libsqlite3_sys::sqlite3_config(libsqlite3_sys::SQLITE_CONFIG_MEMSTATUS, 0);
        }
    });
}

fn open_sqlite(path: &Path) -> Result<SqliteConnection, StoreError> {
    configure_sqlite();
    let unavailable = |cause: &dyn Display| sqlite_unavailable(path, cause);
    // Created here with mode 600, so that no other user can read transcripts; SQLite gives its side files the same
    // mode. A file that exists is never opened here: closing any descriptor of it would drop every
    // POSIX lock that this process holds on it, SQLite's included, and the next process that opens the database
    // would take itself for the only one and unlink the live `-wal`.
    let mut file = std::fs::OpenOptions::new();
    file.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut file, 0o600);
    match file.open(path) {
        Ok(_) => {}
        Err(cause) if cause.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(cause) => return Err(unavailable(&cause)),
    }
    // SQLite never takes an absolute path for one of its `file:` URLs.
    let absolute = std::path::absolute(path).map_err(|cause| unavailable(&cause))?;
    let text = absolute.to_str().ok_or_else(|| unavailable(&"the path is not UTF-8"))?;
    SqliteConnection::establish(text).map_err(|cause| unavailable(&cause))
}

/// Opens a SQLite file that exists so that nothing is written to it, not even by closing it. A write-ahead log
/// that a killed process left is read and kept.
pub(crate) fn open_sqlite_unchanged(path: &Path) -> Result<SqliteConnection, StoreError> {
    // A read-only connection makes the side files of WAL mode and cannot remove them. Without a log there is nothing in
    // them to read, and `immutable` does without.
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    let has_log = std::fs::metadata(log).is_ok_and(|log| log.len() > 0);
    open_existing_sqlite(path, if has_log { "mode=ro" } else { "mode=ro&immutable=1" })
}

/// Opens a SQLite file that exists, with these parameters of a `file:` URL. `immutable=1` is only for files that no
/// other process writes.
pub(super) fn open_existing_sqlite(path: &Path, parameters: &str) -> Result<SqliteConnection, StoreError> {
    configure_sqlite();
    let unavailable = |cause: &dyn Display| sqlite_unavailable(path, cause);
    let absolute = std::path::absolute(path).map_err(|cause| unavailable(&cause))?;
    let text = absolute.to_str().ok_or_else(|| unavailable(&"the path is not UTF-8"))?;
    // Only a URL can refuse to create the file; these characters end its path.
    let path_of_url = text.replace('%', "%25").replace('?', "%3f").replace('#', "%23");
    let mut connection = SqliteConnection::establish(&format!("file:{path_of_url}?{parameters}"))
        .map_err(|cause| unavailable(&cause))?;
    connection
        .batch_execute(&format!("PRAGMA busy_timeout = {SQLITE_BUSY_TIMEOUT_MS}"))
        .map_err(|cause| unavailable(&cause))?;
    Ok(connection)
}

fn with_parameters(url: &str) -> String {
    let mut url = url.to_owned();
    for (name, value) in POSTGRES_PARAMETERS {
        // A parameter in the operator's URL takes precedence.
        if !url.contains(&format!("{name}=")) {
            url.push(if url.contains('?') { '&' } else { '?' });
            url.push_str(&format!("{name}={value}"));
        }
    }
    url
}

/// Removes the password from an error of libpq, which quotes parts of a malformed URL.
fn without_password(url: &SecretString, cause: &dyn Display) -> String {
    // libpq writes for a terminal, with line ends and tabs.
    let said = cause.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
    let password = url
        .expose_secret()
        .split_once("://")
        .and_then(|(_, rest)| rest.rsplit_once('@'))
        .and_then(|(user, _)| user.split_once(':'));
    match password {
        Some((_, password)) if !password.is_empty() => said.replace(password, "[redacted]"),
        _ => said,
    }
}

impl AnyConnection {
    /// Begins a transaction that may write. SQLite takes the write lock at once: a transaction that reads first and writes
    /// later is refused if another process wrote in between.
    pub(crate) fn begin_write(&mut self) -> diesel::QueryResult<()> {
        match self {
            Self::Sqlite(connection) => AnsiTransactionManager::begin_transaction_sql(connection, "BEGIN IMMEDIATE"),
            Self::Postgres(connection) => AnsiTransactionManager::begin_transaction(connection),
        }
    }

    pub(crate) fn commit(&mut self) -> diesel::QueryResult<()> {
        match self {
            Self::Sqlite(connection) => AnsiTransactionManager::commit_transaction(connection),
            Self::Postgres(connection) => AnsiTransactionManager::commit_transaction(connection),
        }
    }

    /// Rolls back an open transaction; returns whether the connection is still usable.
    pub(crate) fn roll_back(&mut self) -> bool {
        fn roll_back<C>(connection: &mut C) -> bool
        where
            C: Connection<TransactionManager = AnsiTransactionManager>,
        {
            match AnsiTransactionManager::transaction_manager_status_mut(connection).transaction_depth() {
                Ok(None) => true,
                Ok(Some(_)) => AnsiTransactionManager::rollback_transaction(connection).is_ok(),
                Err(_) => false,
            }
        }
        let usable = match self {
            Self::Sqlite(connection) => roll_back(connection),
            Self::Postgres(connection) => roll_back(connection),
        };
        usable && self.is_alive()
    }

    /// True if the database answers.
    pub(crate) fn is_alive(&mut self) -> bool {
        self.batch_execute("SELECT 1").is_ok()
    }
}

/// A statement whose SQL text is always the same, so that its prepared form is cached. `Name` is a type that identifies
/// this text alone.
pub(crate) struct Cached<Name, Q> {
    statement: Q,
    name: PhantomData<Name>,
}

impl<Name, Q> Cached<Name, Q> {
    /// Wraps an [`Update`].
    pub(crate) fn new(statement: Q) -> Self {
        Self { statement, name: PhantomData }
    }
}

impl<DB: Backend, Name, Q: QueryFragment<DB>> QueryFragment<DB> for Cached<Name, Q> {
    fn walk_ast<'b>(&'b self, pass: AstPass<'_, 'b, DB>) -> QueryResult<()> {
        self.statement.walk_ast(pass)
    }
}

impl<Name: 'static, Q> QueryId for Cached<Name, Q> {
    type QueryId = Name;
    const HAS_STATIC_QUERY_ID: bool = true;
}

impl<Name, Q, Connection> RunQueryDsl<Connection> for Cached<Name, Q> {}

/// An update whose prepared form can be cached. Diesel's own update statement forbids that while it is written out, and a
/// wrapper cannot override it.
pub(crate) struct Update<From, Condition, Changes> {
    from: From,
    condition: Condition,
    changes: Changes,
}

impl<From, Condition, Changes> Update<From, Condition, Changes> {
    /// Updates the rows for which the condition holds. At least one column must change.
    pub(crate) fn new<T, C>(table: T, condition: Condition, changes: C) -> Self
    where
        T: Table + QuerySource<FromClause = From>,
        Condition: Expression<SqlType = Bool> + AppearsOnTable<T>,
        C: AsChangeset<Target = T, Changeset = Changes>,
    {
        Self { from: table.from_clause(), condition, changes: changes.as_changeset() }
    }
}

impl<DB, From, Condition, Changes> QueryFragment<DB> for Update<From, Condition, Changes>
where
    DB: Backend,
    From: QueryFragment<DB>,
    Condition: QueryFragment<DB>,
    Changes: QueryFragment<DB>,
{
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, DB>) -> QueryResult<()> {
        out.push_sql("UPDATE ");
        self.from.walk_ast(out.reborrow())?;
        out.push_sql(" SET ");
        self.changes.walk_ast(out.reborrow())?;
        out.push_sql(" WHERE ");
        self.condition.walk_ast(out)
    }
}

/// Defines the insert of one row: a struct whose fields are columns of a table. The text of the statement is constant, so
/// its prepared form is cached. Diesel's own insert visits every column several times for each row, which takes longer
/// than to bind the values.
macro_rules! insert_of_row {
    ($Insert:ident($Record:ident $(<$life:lifetime>)?) => $table:ident ($($column:ident),* $(,)?)) => {
        /// Inserts one row.
        struct $Insert<'a>(&'a $Record $(<$life>)?);

        impl diesel::query_builder::QueryId for $Insert<'_> {
            type QueryId = $Insert<'static>;
            const HAS_STATIC_QUERY_ID: bool = true;
        }

        impl<Connection> diesel::RunQueryDsl<Connection> for $Insert<'_> {}

        insert_of_row!(@of diesel::sqlite::Sqlite, $Insert($Record), $table ($($column),*));
        insert_of_row!(@of diesel::pg::Pg, $Insert($Record), $table ($($column),*));
    };
    (@of $Database:ty, $Insert:ident($Record:ident), $table:ident ($first:ident $(, $column:ident)*)) => {
        impl diesel::query_builder::QueryFragment<$Database> for $Insert<'_> {
            fn walk_ast<'b>(
                &'b self,
                mut out: diesel::query_builder::AstPass<'_, 'b, $Database>,
            ) -> diesel::QueryResult<()> {
                use diesel::expression::Expression;
                let $Record { $first $(, $column)* } = self.0;
                out.push_sql(concat!(
                    "INSERT INTO \"", stringify!($table), "\" (\"", stringify!($first), "\"",
                    $(", \"", stringify!($column), "\"",)* ") VALUES ("
                ));
                out.push_bind_param::<<$table::$first as Expression>::SqlType, _>($first)?;
                $(
                    out.push_sql(", ");
                    out.push_bind_param::<<$table::$column as Expression>::SqlType, _>($column)?;
                )*
                out.push_sql(")");
                Ok(())
            }
        }
    };
}
pub(crate) use insert_of_row;

/// Runs a statement on the inner connection. Through `AnyConnection` the SQL text would be built again for each run.
macro_rules! execute {
    ($connection:expr, $statement:expr) => {
        match &mut *$connection {
            AnyConnection::Postgres(connection) => $statement.execute(connection),
            AnyConnection::Sqlite(connection) => $statement.execute(connection),
        }
    };
}
pub(crate) use execute;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_malformed_database_url_is_rejected_with_the_valid_forms() {
        for (text, path) in [("sqlite:a/b.db", "a/b.db"), ("sqlite:///a.db", "/a.db"), ("sqlite:/a.db", "/a.db")] {
            assert!(matches!(text.parse(), Ok(DatabaseUrl::Sqlite(seen)) if seen == Path::new(path)), "{text}");
        }
        assert!(matches!("postgresql://u:p@h/d".parse(), Ok(DatabaseUrl::Postgres(_))));
        for (text, says) in [
            ("sqlite:", "path of a file"),
            ("sqlite::memory:", "not supported"),
            ("mysql://u:geheim@h/d", "must be `sqlite:PATH`"),
        ] {
            let said = text.parse::<DatabaseUrl>().unwrap_err().to_string();
            assert!(said.contains(says) && !said.contains("geheim"), "{said}");
        }
    }

    #[test]
    fn no_message_contains_the_password() {
        let url: DatabaseUrl = "postgres://u:ge%heim@127.0.0.1:1/d".parse().unwrap();
        let Err(StoreError::Unavailable(said)) = url.connect(Purpose::Read) else { panic!("nobody listens there") };
        assert!(!said.contains("heim"), "{said}");
        assert!(!format!("{url:?}").contains("heim"));
    }

    #[test]
    fn url_for_other_tools_has_neither_password_nor_secret_options() {
        for (url, shown) in [
            ("postgres://u:geheim@h:5433/d?sslmode=require&password=geheim", "postgres://u@h:5433/d?sslmode=require"),
            ("postgresql://h/d", "postgresql://h/d"),
            ("postgres:///d?host=%2Frun%2Fpg&sslpassword=geheim", "postgres:///d?host=%2Frun%2Fpg"),
        ] {
            assert_eq!(url.parse::<DatabaseUrl>().unwrap().without_secrets(), shown);
        }
    }

    #[test]
    fn urls_of_one_database_differ_in_credentials_alone() {
        let url = "postgres://ann:old@h:5433/d?sslmode=require&options=-csearch_path%3Da";
        let is_same = |other: &str| {
            let [this, other] = [url, other].map(|url| url.parse::<DatabaseUrl>().unwrap());
            this.is_same_but_for_credentials(&other)
        };
        for same in [
            "postgres://bob:new@h:5433/d?sslmode=require&options=-csearch_path%3Da",
            "postgres://h:5433/d?user=bob&sslmode=require&password=new&options=-csearch_path%3Da&sslkey=/k",
        ] {
            assert!(is_same(same), "{same}");
        }
        for other in [
            "postgres://ann:old@h:5433/e?sslmode=require&options=-csearch_path%3Da",
            "postgres://ann:old@i:5433/d?sslmode=require&options=-csearch_path%3Da",
            "postgres://ann:old@h:5432/d?sslmode=require&options=-csearch_path%3Da",
            "postgres://ann:old@h:5433/d?sslmode=require&options=-csearch_path%3Db",
            "postgres://ann:old@h:5433/d?sslmode=disable&options=-csearch_path%3Da",
            "postgres://ann:old@h:5433/d?sslmode=require&options=-csearch_path%3Da&hostaddr=10.0.0.9",
            "postgres://ann:old@h:5433/d?sslmode=require&options=-csearch_path%3Da&service=x",
            "sqlite:h",
        ] {
            assert!(!is_same(other), "{other}");
        }
    }

    #[test]
    fn default_parameters_do_not_override_given_ones() {
        let url = with_parameters("postgres://h/d?connect_timeout=1");
        assert!(url.starts_with("postgres://h/d?connect_timeout=1&application_name=lumilink&"), "{url}");
        assert_eq!(url.matches("connect_timeout").count(), 1);
    }
}
