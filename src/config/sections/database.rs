//! `[database]` and `[retention]`: where and for how long records are kept.

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use super::{check::Check, hidden};

/// Where sessions, turns, transcripts and audit records are kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Database {
    /// `sqlite:PATH` (a file) or `postgres://user:password@host/name`. Not set: `lumilink.db` in the data folder. The
    /// password and the options are never shown.
    #[serde(serialize_with = "hidden")]
    pub url: Option<SecretString>,
    /// Time for which the end of a turn waits for a database that does not answer before its caller gets an error, in
    /// seconds, 1 or more. The end is written as soon as the database answers again. The default is longer than a
    /// failover takes.
    pub patience_s: u64,
    /// Time for which a supervisor waits for another one that works with the same `PostgreSQL` database, in seconds, 0 or
    /// more; meanwhile it is alive and not ready. Then it exits with the address of the other one. On SQLite it exits at
    /// once. The default is longer than a rolling restart takes.
    pub lock_wait_s: u64,
}

impl Default for Database {
    fn default() -> Self {
        Self { url: None, patience_s: 60, lock_wait_s: 60 }
    }
}

impl Database {
    pub(super) fn validate(&self, check: &mut Check<'_>) {
        if let Some(url) = &self.url {
            let url = url.expose_secret();
            let is_postgres = ["postgres://", "postgresql://"].iter().any(|scheme| url.starts_with(scheme));
            let is_sqlite = sqlite_path(url).is_some_and(|path| !path.is_empty() && path != ":memory:");
            let fine = is_sqlite || (is_postgres && url::Url::parse(url).is_ok());
            check.require(fine, "database.url", "must be sqlite:PATH (a file) or postgres://user:password@host/name");
        }
        check.seconds("database.patience_s", self.patience_s);
        check.seconds_or_0("database.lock_wait_s", self.lock_wait_s);
    }
}

/// Days after which records are removed; 0 keeps them.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Retention {
    /// Handshakes and the state of their connections: one record for each start of an agent.
    pub connections_days: u64,
    /// Flips, migrations and rollback events. A year and a month, so that a yearly review finds the year before.
    pub migrations_days: u64,
    /// Alerts of capacity. A year and a month.
    pub capacity_alerts_days: u64,
    /// Runs of GitHub automation. A year and a month.
    pub automation_runs_days: u64,
    /// Notifications and their webhook deliveries. An older cursor is reset.
    pub notifications_days: u64,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            connections_days: 90,
            migrations_days: 400,
            capacity_alerts_days: 400,
            automation_runs_days: 400,
            notifications_days: 90,
        }
    }
}

/// The path of a `sqlite:PATH` address; `None` for another kind of database.
pub(crate) fn sqlite_path(url: &str) -> Option<&str> {
    let path = url.strip_prefix("sqlite:")?;
    // Other tools write `sqlite:///abs` for `sqlite:/abs`.
    Some(path.strip_prefix("//").unwrap_or(path))
}
