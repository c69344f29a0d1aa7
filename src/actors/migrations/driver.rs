//! The driver: resumes open migration runs.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};

use tokio::{
    task::{Id, JoinError, JoinSet},
    time::{Instant, sleep_until},
};
use uuid::Uuid;

use super::{
    Migrations, moves,
    pass::{After, Pass},
};
use crate::{
    actors::workspaces::Workspaces,
    domain::{
        clock::Timestamp,
        ids::{InstallationId, WorkspaceId, WorkspaceKey},
        migration::{MAX_WORKSPACES, MigrationMode, MigrationPlan, MigrationRun, Place},
        routing::{Attribution, Route},
        turn::outcome::{ErrorCode, Failure},
    },
    store::{
        self, MigrationRunFilter, MigrationRunRow, Page, RouteFilter, SaveMigrationRun, StoreError, TenantProtocol,
    },
};

/// Runs resumed at the same time; the others wait, oldest first.
const RUNS_AT_ONCE: usize = 4;
/// Longest interval between two checks of the open runs: another supervisor may have left one, or ACP may have
/// recovered.
const LOOK: Duration = Duration::from_secs(5);
/// Shortest pause between two checks without an event.
const SHORTEST: Duration = Duration::from_millis(10);
/// If other supervisors use the database too, a step without a write for this long counts as left by a process that
/// died; a live one writes every 2 s.
const ABANDONED: Duration = Duration::from_secs(30);
/// Runs read per page.
const PAGE: usize = 50;

/// The driver's state beside the rows.
struct Driver {
    migrations: Migrations,
    passes: JoinSet<Result<After, Failure>>,
    running: HashMap<Id, Uuid>,
    /// Runs with nothing to do before a time.
    waiting: HashMap<Uuid, Instant>,
    /// Version of each open run, and the time since which it is unchanged.
    seen: HashMap<Uuid, (u64, Instant)>,
    next_rollout: Instant,
}

impl Migrations {
    /// Runs migrations; never returns.
    ///
    /// # Cancel safety
    /// Dropping the future leaves steps in progress to the next start.
    pub(crate) async fn run(self) {
        let mut driver = Driver {
            migrations: self,
            passes: JoinSet::new(),
            running: HashMap::new(),
            waiting: HashMap::new(),
            seen: HashMap::new(),
            next_rollout: Instant::now(),
        };
        loop {
            let wakes_at = driver.look().await.unwrap_or_else(|cause| {
                tracing::warn!(marker = "[MIGRATION]", %cause, "migrations could not be resumed; retrying");
                Instant::now() + LOOK
            });
            let changed = driver.migrations.clone();
            tokio::select! {
                Some(ended) = driver.passes.join_next_with_id() => driver.on_end(ended),
                () = changed.0.changed.notified() => driver.waiting.clear(),
                () = sleep_until(wakes_at) => {}
            }
        }
    }
}

impl Driver {
    /// Resumes every run that is due and returns the time of the next check.
    async fn look(&mut self) -> Result<Instant, Failure> {
        let mut open = self.open().await?;
        if Instant::now() >= self.next_rollout {
            if begin(&self.migrations.0.workspaces, &open).await? {
                open = self.open().await?;
            }
            self.next_rollout = Instant::now() + self.migrations.0.auto_look;
        }
        let now = Instant::now();
        self.notice(&open, now);
        let mut wakes_at = self.next_rollout.min(now + LOOK);
        for row in open {
            let is_running = self.running.values().any(|running| *running == row.run_id);
            match self.waiting.get(&row.run_id) {
                _ if is_running => {}
                Some(until) if *until > now => wakes_at = wakes_at.min(*until),
                _ if self.passes.len() < RUNS_AT_ONCE => self.resume_run(row, now),
                _ => {}
            }
        }
        Ok(wakes_at.max(now + SHORTEST))
    }

    fn resume_run(&mut self, row: MigrationRunRow, now: Instant) {
        let since = self.seen.get(&row.run_id).map_or(now, |(_, since)| *since);
        let is_abandoned = self.migrations.0.is_alone || now.saturating_duration_since(since) >= ABANDONED;
        let run_id = row.run_id;
        let pass = Pass::new(self.migrations.0.workspaces.clone(), row);
        let task = self.passes.spawn_local(pass.run(is_abandoned));
        self.running.insert(task.id(), run_id);
    }

    fn on_end(&mut self, ended: Result<(Id, Result<After, Failure>), JoinError>) {
        let now = Instant::now();
        let (id, wait) = match ended {
            Ok((id, Ok(After::Again))) => (id, None),
            Ok((id, Ok(After::Wait(until)))) => (id, Some(until)),
            Ok((id, Err(cause))) => {
                tracing::warn!(marker = "[MIGRATION]", %cause, "migration step failed; retrying");
                (id, Some(None))
            }
            Err(cause) => {
                tracing::error!(marker = "[MIGRATION]", %cause, "migration step panicked");
                (cause.id(), Some(None))
            }
        };
        let Some(run_id) = self.running.remove(&id) else { return };
        match wait {
            None => self.waiting.remove(&run_id),
            Some(until) => {
                let clock = &self.migrations.0.workspaces.services().clock;
                let wait = until.map_or(LOOK, |until| until.since(clock.now()).min(LOOK));
                self.waiting.insert(run_id, now + wait)
            }
        };
    }

    /// Every open run, oldest first.
    async fn open(&self) -> Result<Vec<MigrationRunRow>, Failure> {
        let store = &self.migrations.0.workspaces.services().store;
        let filter = MigrationRunFilter { open_only: true, ..MigrationRunFilter::default() };
        let (mut open, mut after) = (Vec::new(), None);
        loop {
            let page = Page { limit: PAGE, after };
            let rows = store.migration_runs(filter.clone(), page).await.map_err(|cause| store::failure(&cause))?;
            after = rows.last().filter(|_| rows.len() == PAGE).map(MigrationRunRow::cursor);
            open.extend(rows);
            if after.is_none() {
                break;
            }
        }
        open.reverse();
        Ok(open)
    }

    fn notice(&mut self, open: &[MigrationRunRow], now: Instant) {
        let mut seen = HashMap::with_capacity(open.len());
        for row in open {
            let known = self.seen.get(&row.run_id).filter(|(version, _)| *version == row.version);
            seen.insert(row.run_id, known.copied().unwrap_or((row.version, now)));
        }
        self.waiting.retain(|run_id, _| seen.contains_key(run_id));
        self.seen = seen;
    }
}

/// Workspaces moved in one step of an automatic run: few, since no operator watches it.
const BATCH_SIZE: u32 = 10;
/// Failed moves after which an automatic run ends.
const MAX_FAILURES: u32 = 10;
/// Pause before an automatic run tries a workspace again that could not be moved.
const REST: Duration = Duration::from_secs(3600);
/// Recent runs of a tenant that are searched for workspaces that could not be moved.
const RUNS: usize = 20;

/// Begins a run for each tenant that has workspaces to be moved automatically and no open automatic run. Returns
/// `true` if it began one. Safe to retry and to call from several supervisors.
pub(crate) async fn begin(workspaces: &Workspaces, open: &[MigrationRunRow]) -> Result<bool, Failure> {
    if !workspaces.fleet_health().is_healthy() {
        return Ok(false);
    }
    let mut candidates = candidates(&workspaces.services().store).await.map_err(|cause| store::failure(&cause))?;
    let is_open = |tenant: &InstallationId| {
        open.iter().any(|row| row.run.installation_id() == tenant && row.run.mode() == MigrationMode::Automatic)
    };
    candidates.retain(|tenant, _| !is_open(tenant));
    if candidates.is_empty() || !moves::supports_acp(workspaces).await? {
        return Ok(false);
    }
    let mut has_begun = false;
    for (tenant, names) in candidates {
        has_begun |= begin_for(workspaces, tenant, names).await?;
    }
    Ok(has_begun)
}

/// Workspaces whose default is HTTP and which are to be moved automatically, by their own setting or that of their
/// tenant.
async fn candidates(store: &store::Store) -> Result<BTreeMap<InstallationId, Vec<WorkspaceId>>, StoreError> {
    let mut found = BTreeMap::new();
    for tenant in store.auto_migrating_tenants().await? {
        let name = tenant.installation_id.clone();
        let names = moves::with_another_default(store, &name, Some(&tenant), Route::Acp).await?;
        if !names.is_empty() {
            found.insert(name, names);
        }
    }
    let whole: HashSet<_> = found.keys().cloned().collect();
    let filter = RouteFilter { default_protocol: Some(Route::Http), ..RouteFilter::default() };
    let mut page = moves::first();
    loop {
        let rows = store.routes(filter.clone(), page).await?;
        let next = rows.last().filter(|_| rows.len() == store::MAX_PAGE).map(|row| row.cursor());
        for row in rows.into_iter().filter(|row| row.auto_rollout && !whole.contains(&row.key.installation_id)) {
            let names: &mut Vec<_> = found.entry(row.key.installation_id).or_default();
            if names.len() < MAX_WORKSPACES {
                names.push(row.key.workspace_id);
            }
        }
        let Some(cursor) = next else { return Ok(found) };
        page = Page { after: Some(cursor), ..moves::first() };
    }
}

async fn begin_for(
    workspaces: &Workspaces,
    installation_id: InstallationId,
    names: Vec<WorkspaceId>,
) -> Result<bool, Failure> {
    let services = workspaces.services();
    let failed = |cause: StoreError| store::failure(&cause);
    let filter = MigrationRunFilter { installation_id: Some(installation_id.clone()), ..Default::default() };
    let runs = services.store.migration_runs(filter, Page { limit: RUNS, after: None }).await.map_err(failed)?;
    let resting = resting(&runs, services.clock.now());
    let tenant = services.store.tenant_protocol(installation_id.clone()).await.map_err(failed)?;
    let mut wanted = Vec::new();
    for name in names.into_iter().filter(|name| !resting.contains(name)) {
        if may_move(&services.store, &installation_id, &name, tenant.as_ref()).await.map_err(failed)? {
            wanted.push(name);
        }
    }
    if wanted.is_empty() {
        return Ok(false);
    }
    let plan = MigrationPlan {
        installation_id: installation_id.clone(),
        target: Route::Acp,
        workspaces: wanted,
        mode: MigrationMode::Automatic,
        batch_size: BATCH_SIZE,
        max_failures: MAX_FAILURES,
    };
    let attribution = Attribution::of_system("automatic rollout is enabled and ACP is healthy");
    let run = MigrationRun::new(plan, attribution, services.clock.now());
    let run = run.map_err(|cause| Failure::new(ErrorCode::Internal, cause.to_string()))?;
    // Two supervisors derive the same id, so the second write is stale.
    let before = runs.first().map_or(Uuid::nil(), |row| row.run_id);
    let run_id = Uuid::new_v5(&before, format!("automatic {installation_id}").as_bytes());
    let save = SaveMigrationRun { run_id, expected_version: 0, run, now: services.clock.now() };
    services.store.save_migration_run(save).await.map_err(failed)?;
    Ok(true)
}

/// Workspaces that an automatic run recently could not move, and those that a caller excluded by cancelling or
/// rolling back the run.
fn resting(runs: &[MigrationRunRow], now: Timestamp) -> HashSet<WorkspaceId> {
    let lately = |row: &&MigrationRunRow| row.run.mode() == MigrationMode::Automatic && now.since(row.updated) < REST;
    let entries = runs.iter().filter(lately).flat_map(|row| row.run.entries());
    let stays = |place: &Place| matches!(place, Place::Failed { .. } | Place::MovedBack | Place::Untouched);
    entries.filter(|entry| stays(&entry.place)).map(|entry| entry.workspace_id.clone()).collect()
}

async fn may_move(
    store: &store::Store,
    installation: &InstallationId,
    name: &WorkspaceId,
    tenant: Option<&TenantProtocol>,
) -> Result<bool, StoreError> {
    let key = WorkspaceKey { installation_id: installation.clone(), workspace_id: name.clone() };
    let facts = moves::of(store, &key, tenant, true).await?;
    Ok(facts.skips(Route::Acp, MigrationMode::Automatic).is_none())
}
