//! `[database]` and `[retention]`: where and for how long records are kept.

use std::{collections::BTreeMap, time::Duration};

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use super::{check::Check, hidden};
use crate::domain::{
    automation::trigger::REDELIVERY_DAYS,
    ids::InstallationId,
    retention::{HistoryAges, HistoryPart, history_parts},
};

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
    /// Commits of these runs that could not be delivered and are kept at the runtime, by the newest attempt to deliver them;
    /// never longer than the runs. A month, so that somebody notices and can retry, while the disk does not fill up.
    pub rescues_days: u64,
    /// Deliveries of GitHub that started turns, or were to, and hashes of their bodies, by arrival; 0, or 4 and more: GitHub
    /// repeats deliveries for 3 days, and a repeat is recognised by them.
    pub github_deliveries_days: u64,
    /// Notifications and their webhook deliveries. An older cursor is reset.
    pub notifications_days: u64,
    /// Sessions without an agent, by last use, once their turns and entries are removed; then their workspaces.
    pub sessions_days: u64,
    /// Turns with their results, by start. A turn that runs is kept, and one is kept for the 24 hours of its
    /// `Idempotency-Key`.
    pub turns_days: u64,
    /// Entries of transcripts. A fresh agent gets the conversation from them.
    pub transcripts_days: u64,
    /// Folders of workspaces without a live session, by last use. The next session makes the folder again. A folder that
    /// was given by `path` is never removed.
    pub folders_days: u64,
    /// Records of these removals. A year and a month.
    pub removals_days: u64,
    /// Tokens that were revoked or have expired. A year and a month, so that actors of the audit are known.
    pub tokens_days: u64,
    /// Records of administrative changes: settings of tenants, and tokens. A year and a month.
    pub changes_days: u64,
    /// Other ages for the sessions, turns and transcripts of a tenant: `[retention.tenants.<installationId>]` with
    /// `sessions_days`, `turns_days` and `transcripts_days`; one that is missing has the value above.
    pub tenants: BTreeMap<String, TenantRetention>,
}

/// Ages of a tenant's history, in days; 0 keeps it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct TenantRetention {
    pub sessions_days: Option<u64>,
    pub turns_days: Option<u64>,
    pub transcripts_days: Option<u64>,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            connections_days: 90,
            migrations_days: 400,
            capacity_alerts_days: 400,
            automation_runs_days: 400,
            rescues_days: 30,
            github_deliveries_days: 90,
            notifications_days: 90,
            sessions_days: 90,
            turns_days: 90,
            transcripts_days: 90,
            folders_days: 30,
            removals_days: 400,
            tokens_days: 400,
            changes_days: 400,
            tenants: BTreeMap::new(),
        }
    }
}

/// `None` for 0 days.
fn age(days: u64) -> Option<Duration> {
    (days > 0).then(|| Duration::from_secs(days.saturating_mul(24 * 3600)))
}

impl Retention {
    /// Time without use after which folders are removed.
    pub(crate) fn folders(&self) -> Option<Duration> {
        age(self.folders_days)
    }

    /// Age at which kept commits of automation are removed: not above that of their runs.
    pub(crate) fn rescues(&self) -> Option<Duration> {
        age(self.rescues_days).into_iter().chain(age(self.automation_runs_days)).min()
    }

    /// The parts of a sweep over sessions, turns and transcripts.
    pub(crate) fn history(&self) -> Vec<HistoryPart> {
        let ages = |own: &TenantRetention| HistoryAges {
            transcripts: age(own.transcripts_days.unwrap_or(self.transcripts_days)),
            turns: age(own.turns_days.unwrap_or(self.turns_days)),
            sessions: age(own.sessions_days.unwrap_or(self.sessions_days)),
        };
        let own = self.tenants.iter().filter_map(|(tenant, own)| Some((tenant.parse().ok()?, ages(own)))).collect();
        history_parts(ages(&TenantRetention::default()), &own)
    }

    pub(super) fn validate(&self, check: &mut Check<'_>) {
        let days = self.github_deliveries_days;
        let is_long = days == 0 || days > REDELIVERY_DAYS;
        let what = format!("is {days}, must be 0, or more than {REDELIVERY_DAYS}");
        check.require(is_long, "retention.github_deliveries_days", what);
        for tenant in self.tenants.keys() {
            let is_id = tenant.parse::<InstallationId>().is_ok();
            check.require(is_id, format!("retention.tenants.{tenant}"), "must be an installationId");
        }
    }
}

/// The path of a `sqlite:PATH` address; `None` for another kind of database.
pub(crate) fn sqlite_path(url: &str) -> Option<&str> {
    let path = url.strip_prefix("sqlite:")?;
    // Other tools write `sqlite:///abs` for `sqlite:/abs`.
    Some(path.strip_prefix("//").unwrap_or(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_commits_are_removed_no_later_than_their_runs() {
        let of = |rescues_days, automation_runs_days| {
            Retention { rescues_days, automation_runs_days, ..Retention::default() }.rescues()
        };
        assert_eq!(of(30, 400), age(30));
        assert_eq!((of(30, 5), of(0, 400)), (age(5), age(400)));
        assert_eq!((of(30, 0), of(0, 0)), (age(30), None));
    }
}
