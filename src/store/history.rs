//! Removal of old sessions, turns, transcripts and workspaces, in chunks. Each removal is recorded in `removals`, in the
//! transaction that removes.
//!
//! Never removed: a turn that has not ended, a turn within the period of its idempotency key, what belongs to such a
//! turn, a live session, and a migration that has not ended.

use std::collections::BTreeMap;

use diesel::{
    BoolExpressionMethods, ExpressionMethods, OptionalExtension, QueryDsl, RunQueryDsl,
    dsl::{exists, not, sql},
    sql_types::{BigInt, Bool, Text},
};
use uuid::Uuid;

use super::{
    SessionRow, Store, StoreError, WorkspaceRow,
    audit::summary::id_of,
    engine::{
        columns::{self, clean, clean_text},
        connection::{AnyConnection, execute},
        writer::WriteTx,
    },
    schema::{automation_sagas, prompts, removals, sessions, transcript_entries, workspaces},
    sessions::Record as SessionRecord,
    workspaces::{Record as WorkspaceRecord, read_all},
};
use crate::domain::{
    automation::saga::SagaStatus,
    clock::Timestamp,
    ids::{SessionId, WorkspaceKey},
    retention::{IDEMPOTENCY_PERIOD, RemovalCause, Removed, Tenants},
    session::lifecycle::SessionState,
};

/// The record of a removal: one for each run, tenant and kind.
#[derive(Debug, Clone)]
pub(crate) struct Removal {
    /// Identifies the run, such as one sweep.
    pub run: Uuid,
    pub cause: RemovalCause,
    /// The person or part that removes.
    pub actor: String,
    pub reason: String,
    pub now: Timestamp,
}

impl Removal {
    /// Records rows of a tenant, or one folder of a workspace; adds to the record of the same run.
    fn record(
        &self,
        tx: &mut WriteTx<'_>,
        removed: Removed,
        (tenant, workspace): (&str, Option<&str>),
        amount: usize,
    ) -> diesel::QueryResult<()> {
        let Some(amount) = i64::try_from(amount).ok().filter(|amount| *amount > 0) else { return Ok(()) };
        let name = format!("{tenant}/{}/{}", workspace.unwrap_or_default(), removed.as_str());
        let id = Uuid::new_v5(&self.run, name.as_bytes()).to_string();
        let known = diesel::update(removals::table.find(id.as_str()));
        tx.rows += 1;
        if known.set(removals::amount.eq(removals::amount + amount)).execute(tx.connection)? > 0 {
            return Ok(());
        }
        let (actor, reason) = (clean(self.actor.clone()), clean_text(&self.reason));
        diesel::insert_into(removals::table)
            .values((
                removals::removal_id.eq(id),
                removals::installation_id.eq(tenant),
                removals::workspace_id.eq(workspace),
                removals::removed.eq(removed.as_str()),
                removals::cause.eq(self.cause.as_str()),
                removals::actor.eq(actor),
                removals::reason.eq(reason),
                removals::amount.eq(amount),
                removals::created_us.eq(self.now.0),
            ))
            .execute(tx.connection)?;
        Ok(())
    }

    fn record_all(&self, tx: &mut WriteTx<'_>, removed: Removed, of: &[(String, String)]) -> diesel::QueryResult<()> {
        let mut amounts: BTreeMap<&str, usize> = BTreeMap::new();
        for (_, tenant) in of {
            *amounts.entry(tenant).or_default() += 1;
        }
        for (tenant, amount) in amounts {
            self.record(tx, removed, (tenant, None), amount)?;
        }
        Ok(())
    }
}

/// A chunk of history to remove.
#[derive(Debug, Clone)]
pub(crate) struct PruneHistory {
    pub kind: Removed,
    pub tenants: Tenants,
    /// Rows from before this time.
    pub before: Timestamp,
    /// Rows of the chunk, at most, and at most [`MAX_PAGE`](super::MAX_PAGE).
    pub limit: usize,
    /// [`Pruned::next`] of the previous chunk.
    pub after: Option<String>,
    pub removal: Removal,
}

/// A chunk that was removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pruned {
    pub rows: usize,
    /// Where the next chunk begins; `None` after the last one.
    pub next: Option<String>,
}

/// Adds the condition on tenants to a boxed query.
macro_rules! of_tenants {
    ($rows:expr, $column:expr, $tenants:expr) => {
        match $tenants {
            Tenants::Only(tenant) => $rows.filter($column.eq(tenant.as_str())),
            Tenants::Except(tenants) if tenants.is_empty() => $rows,
            Tenants::Except(tenants) => {
                $rows.filter($column.ne_all(tenants.iter().map(|tenant| tenant.as_str().to_owned())))
            }
        }
    };
}

/// Condition of a session with a folder of its own. A literal, because both databases use the partial index only if they
/// see its condition.
const WITH_FOLDER: &str = "(sessions.is_isolated AND sessions.folder_removed_us IS NULL)";

/// States of sessions without an agent.
fn ended_states() -> impl Iterator<Item = &'static str> {
    SessionState::ALL.into_iter().filter(|state| !state.is_live()).map(SessionState::as_str)
}

/// Ids and tenants of rows that may be removed.
type Found = Vec<(String, String)>;

/// Sessions with entries from before the time, in the order of their ids, which begin with their time.
fn with_old_entries(
    connection: &mut AnyConnection,
    prune: &PruneHistory,
) -> diesel::QueryResult<Option<(String, String)>> {
    let old = transcript_entries::table
        .filter(transcript_entries::session_id.eq(sessions::session_id))
        .filter(transcript_entries::created_us.lt(prune.before.0));
    let found = sessions::table
        .filter(sessions::session_id.gt(prune.after.clone().unwrap_or_default()))
        .filter(sessions::created_us.lt(prune.before.0))
        .filter(exists(old))
        .into_boxed();
    let found = of_tenants!(found, sessions::installation_id, &prune.tenants);
    found
        .order(sessions::session_id)
        .select((sessions::session_id, sessions::installation_id))
        .first(connection)
        .optional()
}

/// Removes the oldest entries of a session, except those of a turn that is kept.
fn remove_entries(tx: &mut WriteTx<'_>, session_id: &str, before: i64, limit: i64) -> diesel::QueryResult<usize> {
    // Entries are in the order of their time, so the oldest are the first of the primary key.
    // SQLite numbers parameters in the order in which they first appear.
    const OLDEST: &str = "DELETE FROM transcript_entries WHERE session_id = $1 AND seq IN \
         (SELECT seq FROM (SELECT seq, created_us, prompt_id FROM transcript_entries WHERE session_id = $1 \
         ORDER BY seq LIMIT $2) AS oldest WHERE created_us < $3 AND NOT EXISTS (SELECT 1 FROM prompts \
         WHERE prompts.prompt_id = oldest.prompt_id AND (prompts.ended_us IS NULL OR prompts.accepted_us >= $3)))";
    let oldest =
        diesel::sql_query(OLDEST).bind::<Text, _>(session_id).bind::<BigInt, _>(limit).bind::<BigInt, _>(before);
    execute!(tx.connection, oldest)
}

fn old_turns(connection: &mut AnyConnection, prune: &PruneHistory, limit: i64) -> diesel::QueryResult<Found> {
    let found = prompts::table
        .filter(prompts::prompt_id.gt(prune.after.clone().unwrap_or_default()))
        .filter(prompts::prompt_id.lt(id_of(prune.before, 1)))
        .filter(prompts::ended_us.is_not_null())
        .filter(prompts::accepted_us.lt(prune.before.0))
        .into_boxed();
    let found = of_tenants!(found, prompts::installation_id, &prune.tenants);
    found
        .order(prompts::prompt_id)
        .limit(limit)
        .select((prompts::prompt_id, prompts::installation_id))
        .load(connection)
}

fn old_sessions(connection: &mut AnyConnection, prune: &PruneHistory, limit: i64) -> diesel::QueryResult<Found> {
    let entries = transcript_entries::table.filter(transcript_entries::session_id.eq(sessions::session_id));
    let turns = prompts::table.filter(prompts::session_id.eq(sessions::session_id));
    let found = sessions::table
        .filter(sessions::session_id.gt(prune.after.clone().unwrap_or_default()))
        .filter(sessions::created_us.lt(prune.before.0))
        .filter(sessions::last_used_us.lt(prune.before.0))
        .filter(sessions::state.eq_any(ended_states()))
        .filter(not(exists(entries)))
        .filter(not(exists(turns)))
        .filter(not(sql::<Bool>(WITH_FOLDER)))
        .into_boxed();
    let found = of_tenants!(found, sessions::installation_id, &prune.tenants);
    found
        .order(sessions::session_id)
        .limit(limit)
        .select((sessions::session_id, sessions::installation_id))
        .load(connection)
}

/// Removes workspaces without a session and a folder of their own. The text before the tenant's is the name.
fn remove_workspaces(tx: &mut WriteTx<'_>, prune: &PruneHistory, limit: i64) -> diesel::QueryResult<Found> {
    let of_workspace = sessions::table
        .filter(sessions::installation_id.eq(workspaces::installation_id))
        .filter(sessions::workspace_id.eq(workspaces::workspace_id));
    let found = workspaces::table
        .filter(workspaces::created_us.lt(prune.before.0))
        .filter(workspaces::last_used_us.lt(prune.before.0))
        .filter(workspaces::removed_us.is_not_null().or(workspaces::path.is_not_null()))
        .filter(not(exists(of_workspace)))
        .into_boxed();
    let found = of_tenants!(found, workspaces::installation_id, &prune.tenants);
    let found: Found = found
        .order(workspaces::created_us)
        .limit(limit)
        .select((workspaces::workspace_id, workspaces::installation_id))
        .load(tx.connection)?;
    for (workspace, tenant) in &found {
        diesel::delete(workspaces::table.find((tenant.as_str(), workspace.as_str()))).execute(tx.connection)?;
    }
    Ok(found)
}

impl Store {
    /// Removes one chunk of history, and records it. Safe to retry.
    ///
    /// # Cancel safety
    /// A dropped future may have removed.
    pub(crate) async fn prune_history(&self, mut prune: PruneHistory) -> Result<Pruned, StoreError> {
        // A turn is protected for the period of its key, whatever the age.
        prune.before = prune.before.min(prune.removal.now.minus(IDEMPOTENCY_PERIOD));
        let limit = columns::limit(prune.limit);
        let full = move |found: &Found| found.len() >= usize::try_from(limit).unwrap_or(usize::MAX);
        match prune.kind {
            Removed::Transcripts => self.prune_transcripts(prune, limit).await,
            Removed::Turns => {
                let found = self.found(&prune, move |connection, prune| old_turns(connection, prune, limit)).await?;
                let next = found.last().filter(|_| full(&found)).map(|(id, _)| id.clone());
                let removal = prune.removal;
                let rows = self.write(move |tx| {
                    let ids = found.iter().map(|(id, _)| id.as_str());
                    let ended =
                        prompts::table.filter(prompts::prompt_id.eq_any(ids)).filter(prompts::ended_us.is_not_null());
                    let rows = diesel::delete(ended).execute(tx.connection)?;
                    tx.rows += rows;
                    removal.record_all(tx, Removed::Turns, &found)?;
                    Ok(rows)
                });
                Ok(Pruned { rows: rows.await?, next })
            }
            Removed::Sessions => {
                let found =
                    self.found(&prune, move |connection, prune| old_sessions(connection, prune, limit)).await?;
                let next = found.last().filter(|_| full(&found)).map(|(id, _)| id.clone());
                let (removal, before) = (prune.removal, prune.before);
                let rows = self.write(move |tx| {
                    let ids = found.iter().map(|(id, _)| id.as_str());
                    // One that was loaded since is live or has a newer use.
                    let unused = sessions::table
                        .filter(sessions::session_id.eq_any(ids))
                        .filter(sessions::last_used_us.lt(before.0))
                        .filter(sessions::state.eq_any(ended_states()));
                    let rows = diesel::delete(unused).execute(tx.connection)?;
                    tx.rows += rows;
                    removal.record_all(tx, Removed::Sessions, &found)?;
                    Ok(rows)
                });
                Ok(Pruned { rows: rows.await?, next })
            }
            Removed::Workspaces => {
                let rows = self.write(move |tx| {
                    let found = remove_workspaces(tx, &prune, limit)?;
                    tx.rows += found.len();
                    prune.removal.record_all(tx, Removed::Workspaces, &found)?;
                    Ok((found.len(), full(&found)))
                });
                let (rows, more) = rows.await?;
                Ok(Pruned { rows, next: more.then(String::new) })
            }
            Removed::Folders => Ok(Pruned { rows: 0, next: None }),
        }
    }

    async fn found<T: Send + 'static>(
        &self,
        prune: &PruneHistory,
        find: impl FnOnce(&mut AnyConnection, &PruneHistory) -> diesel::QueryResult<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let prune = prune.clone();
        self.read(move |connection| Ok(find(connection, &prune)?)).await
    }

    /// One session at a time: its oldest entries, until none from before the time is left.
    async fn prune_transcripts(&self, prune: PruneHistory, limit: i64) -> Result<Pruned, StoreError> {
        let Some((session_id, tenant)) = self.found(&prune, with_old_entries).await? else {
            return Ok(Pruned { rows: 0, next: None });
        };
        let (removal, before, of) = (prune.removal, prune.before.0, session_id.clone());
        let rows = self.write(move |tx| {
            let rows = remove_entries(tx, &of, before, limit)?;
            tx.rows += rows;
            removal.record(tx, Removed::Transcripts, (&tenant, None), rows)?;
            Ok(rows)
        });
        let rows = rows.await?;
        // With fewer rows than the limit, the session has none left; otherwise the same session is found again.
        let is_done = rows < usize::try_from(limit).unwrap_or(usize::MAX);
        Ok(Pruned {
            rows,
            next: if is_done { Some(session_id) } else { prune.after.or_else(|| Some(String::new())) },
        })
    }
}

/// Folders that may be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum UnusedFolders {
    /// Kept folders without use since a time.
    Since(Timestamp),
    /// Folders whose sessions have all ended: of ephemeral workspaces, and of isolated sessions.
    Ephemeral,
}

fn unused_folders(
    connection: &mut AnyConnection,
    unused: UnusedFolders,
    only: Option<&WorkspaceKey>,
    limit: i64,
) -> Result<Vec<WorkspaceRow>, StoreError> {
    let of_workspace = || {
        sessions::table
            .filter(sessions::installation_id.eq(workspaces::installation_id))
            .filter(sessions::workspace_id.eq(workspaces::workspace_id))
    };
    let open_turns = prompts::table.filter(prompts::ended_us.is_null()).select(prompts::session_id);
    let ended = [SessionState::Closed, SessionState::Expired].map(SessionState::as_str);
    let rows = workspaces::table
        .filter(workspaces::path.is_null())
        .filter(workspaces::removed_us.is_null())
        .filter(not(exists(of_workspace().filter(sessions::session_id.eq_any(open_turns)))))
        .into_boxed();
    let rows = match unused {
        UnusedFolders::Since(time) => {
            let used = sessions::last_used_us.ge(time.0).or(sessions::state.ne_all(ended_states()));
            rows.filter(workspaces::last_used_us.lt(time.0)).filter(not(exists(of_workspace().filter(used))))
        }
        UnusedFolders::Ephemeral => rows
            .filter(workspaces::is_ephemeral)
            .filter(not(exists(of_workspace().filter(sessions::state.ne_all(ended))))),
    };
    let rows = match only {
        Some(key) => rows
            .filter(workspaces::installation_id.eq(key.installation_id.as_str().to_owned()))
            .filter(workspaces::workspace_id.eq(key.workspace_id.as_str().to_owned())),
        None => rows,
    };
    let records: Vec<WorkspaceRecord> = rows.order(workspaces::last_used_us).limit(limit).load(connection)?;
    read_all(records)
}

/// Sessions whose own folder may be removed. Of an open turn, or of an attempt of automation, the folder is needed; a run
/// that waits has its commit nowhere else unless the commit is kept. The same holds for a run that failed: its folder stays
/// until it is old.
fn unused_session_folders(
    connection: &mut AnyConnection,
    unused: UnusedFolders,
    only: Option<SessionId>,
    limit: i64,
) -> Result<Vec<SessionRow>, StoreError> {
    let open_turns = prompts::table.filter(prompts::ended_us.is_null()).select(prompts::session_id);
    let is_attempted = automation_sagas::status.eq(SagaStatus::Running.as_str());
    let waits = automation_sagas::status.eq(SagaStatus::Waiting.as_str()).and(automation_sagas::kept_us.is_null());
    let runs = automation_sagas::table
        .filter(automation_sagas::session_id.eq(sessions::session_id))
        .filter(is_attempted.or(waits));
    let failed = automation_sagas::table
        .filter(automation_sagas::session_id.eq(sessions::session_id))
        .filter(automation_sagas::status.eq(SagaStatus::Error.as_str()))
        .filter(automation_sagas::kept_us.is_null());
    let rows = sessions::table
        .filter(sql::<Bool>(WITH_FOLDER))
        .filter(sessions::session_id.ne_all(open_turns))
        .filter(not(exists(runs)))
        .into_boxed();
    let rows = match unused {
        UnusedFolders::Since(time) => {
            rows.filter(sessions::last_used_us.lt(time.0)).filter(sessions::state.eq_any(ended_states()))
        }
        UnusedFolders::Ephemeral => {
            let ephemeral = workspaces::table
                .filter(workspaces::installation_id.eq(sessions::installation_id))
                .filter(workspaces::workspace_id.eq(sessions::workspace_id))
                .filter(workspaces::is_ephemeral);
            let is_expired = sessions::state.eq(SessionState::Expired.as_str());
            rows.filter(sessions::state.eq(SessionState::Closed.as_str()).or(is_expired.and(exists(ephemeral))))
                .filter(not(exists(failed)))
        }
    };
    let rows = match only {
        Some(id) => rows.filter(sessions::session_id.eq(id.to_string())),
        None => rows,
    };
    let records: Vec<SessionRecord> = rows.order(sessions::last_used_us).limit(limit).load(connection)?;
    records.into_iter().map(SessionRecord::read).collect()
}

impl Store {
    /// Reads sessions whose own folder may be removed, the longest unused first, at most `limit`. Cancel-safe.
    pub(crate) async fn unused_session_folders(
        &self,
        unused: UnusedFolders,
        limit: usize,
    ) -> Result<Vec<SessionRow>, StoreError> {
        self.read(move |connection| unused_session_folders(connection, unused, None, columns::limit(limit))).await
    }

    /// True if the folder of a session may still be removed. Cancel-safe.
    pub(crate) async fn is_session_folder_unused(
        &self,
        id: SessionId,
        unused: UnusedFolders,
    ) -> Result<bool, StoreError> {
        self.read(move |connection| Ok(!unused_session_folders(connection, unused, Some(id), 1)?.is_empty())).await
    }

    /// Records that the folder of a session was removed. Safe to retry.
    ///
    /// # Cancel safety
    /// A dropped future may have written.
    pub(crate) async fn session_folder_removed(
        &self,
        id: SessionId,
        key: WorkspaceKey,
        removal: Removal,
    ) -> Result<(), StoreError> {
        self.write(move |tx| {
            let row = sessions::table.find(id.to_string()).filter(sessions::folder_removed_us.is_null());
            let changes = (sessions::folder_removed_us.eq(removal.now.0), sessions::folder_path.eq(None::<&str>));
            let changed = diesel::update(row).set(changes).execute(tx.connection)?;
            tx.rows += changed;
            let (tenant, workspace) = (key.installation_id.as_str(), key.workspace_id.as_str());
            removal.record(tx, Removed::Folders, (tenant, Some(workspace)), changed)?;
            Ok(())
        })
        .await
    }

    /// Reads workspaces whose folder may be removed, the longest unused first, at most `limit`. Cancel-safe.
    pub(crate) async fn unused_folders(
        &self,
        unused: UnusedFolders,
        limit: usize,
    ) -> Result<Vec<WorkspaceRow>, StoreError> {
        self.read(move |connection| unused_folders(connection, unused, None, columns::limit(limit))).await
    }

    /// True if the folder of a workspace may still be removed. Cancel-safe.
    pub(crate) async fn is_folder_unused(
        &self,
        key: WorkspaceKey,
        unused: UnusedFolders,
    ) -> Result<bool, StoreError> {
        self.read(move |connection| Ok(!unused_folders(connection, unused, Some(&key), 1)?.is_empty())).await
    }

    /// Records that the folder of a workspace was removed. Safe to retry.
    ///
    /// # Cancel safety
    /// A dropped future may have written.
    pub(crate) async fn folder_removed(&self, key: WorkspaceKey, removal: Removal) -> Result<(), StoreError> {
        self.write(move |tx| {
            let (tenant, workspace) = (key.installation_id.as_str(), key.workspace_id.as_str());
            let row = workspaces::table.find((tenant, workspace)).filter(workspaces::removed_us.is_null());
            let changes = (workspaces::removed_us.eq(removal.now.0), workspaces::workspace_path.eq(None::<&str>));
            let changed = diesel::update(row).set(changes).execute(tx.connection)?;
            tx.rows += changed;
            removal.record(tx, Removed::Folders, (tenant, Some(workspace)), changed)?;
            Ok(())
        })
        .await
    }
}

#[cfg(test)]
impl Store {
    /// Records of removals of a tenant, the oldest first: kind, cause, amount and workspace. Cancel-safe.
    pub(crate) async fn removals(
        &self,
        tenant: crate::domain::ids::InstallationId,
    ) -> Result<Vec<(String, String, i64, Option<String>)>, StoreError> {
        self.read(move |connection| {
            let rows = removals::table.filter(removals::installation_id.eq(tenant.as_str()));
            let columns = (removals::removed, removals::cause, removals::amount, removals::workspace_id);
            Ok(rows.order((removals::created_us, removals::removal_id)).select(columns).load(connection)?)
        })
        .await
    }
}
