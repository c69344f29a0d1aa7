//! The standing order: workspaces that are to be moved to ACP by themselves, while ACP is healthy.

use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};

use uuid::Uuid;

use super::{facts, moves};
use crate::{
    actors::workspaces::Workspaces,
    domain::{
        clock::Timestamp,
        ids::{InstallationId, WorkspaceId, WorkspaceKey},
        migration::{MAX_WORKSPACES, MigrationMode, MigrationPlan, MigrationRun, Place},
        routing::{Route, Wish},
        turn::outcome::{ErrorCode, Failure},
    },
    store::{
        self, MigrationRunFilter, MigrationRunRow, Page, RouteFilter, SaveMigrationRun, StoreError, TenantProtocol,
    },
};

/// How many are moved in one step: a handful, since nobody watches.
const BATCH_SIZE: u32 = 10;
/// Failed moves after which the run ends.
const MAX_FAILURES: u32 = 10;
/// A workspace that could not be moved is left alone for so long.
const REST: Duration = Duration::from_secs(3600);
/// Runs of a tenant that are looked through for those that could not be moved.
const RUNS: usize = 20;

/// Begins a run for each tenant that has workspaces to be moved by themselves and no such run open. Says whether there
/// is one. Safe to retry, and while other supervisors do the same.
pub(super) async fn begin(workspaces: &Workspaces, open: &[MigrationRunRow]) -> Result<bool, Failure> {
    if !workspaces.fleet_health().is_healthy() {
        return Ok(false);
    }
    let mut candidates = candidates(&workspaces.parts().store).await.map_err(|cause| store::failure(&cause))?;
    let is_open = |tenant: &InstallationId| {
        open.iter().any(|row| row.run.installation_id() == tenant && row.run.mode() == MigrationMode::Automatic)
    };
    candidates.retain(|tenant, _| !is_open(tenant));
    if candidates.is_empty() || !moves::speaks_acp(workspaces).await? {
        return Ok(false);
    }
    let mut has_begun = false;
    for (tenant, names) in candidates {
        has_begun |= begin_for(workspaces, tenant, names).await?;
    }
    Ok(has_begun)
}

/// Workspaces with the default HTTP that want to be moved by themselves, or whose tenants do.
async fn candidates(store: &store::Store) -> Result<BTreeMap<InstallationId, Vec<WorkspaceId>>, StoreError> {
    let mut found = BTreeMap::new();
    for tenant in store.auto_migrating_tenants().await? {
        let name = tenant.installation_id.clone();
        let names = facts::with_another_default(store, &name, Some(&tenant), Route::Acp).await?;
        if !names.is_empty() {
            found.insert(name, names);
        }
    }
    let whole: HashSet<_> = found.keys().cloned().collect();
    let filter = RouteFilter { default_protocol: Some(Route::Http), ..RouteFilter::default() };
    let mut page = facts::first();
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
        page = Page { after: Some(cursor), ..facts::first() };
    }
}

async fn begin_for(
    workspaces: &Workspaces,
    installation_id: InstallationId,
    names: Vec<WorkspaceId>,
) -> Result<bool, Failure> {
    let parts = workspaces.parts();
    let failed = |cause: StoreError| store::failure(&cause);
    let filter = MigrationRunFilter { installation_id: Some(installation_id.clone()), ..Default::default() };
    let runs = parts.store.migration_runs(filter, Page { limit: RUNS, after: None }).await.map_err(failed)?;
    let resting = resting(&runs, parts.clock.now());
    let tenant = parts.store.tenant_protocol(installation_id.clone()).await.map_err(failed)?;
    let mut wanted = Vec::new();
    for name in names.into_iter().filter(|name| !resting.contains(name)) {
        if may_move(&parts.store, &installation_id, &name, tenant.as_ref()).await.map_err(failed)? {
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
    let wish = Wish::of_system("these workspaces are to be moved by themselves, and ACP is healthy");
    let run = MigrationRun::new(plan, wish, parts.clock.now());
    let run = run.map_err(|cause| Failure::new(ErrorCode::Internal, cause.to_string()))?;
    // Of two supervisors that have the same thought one is told that it is late.
    let before = runs.first().map_or(Uuid::nil(), |row| row.run_id);
    let run_id = Uuid::new_v5(&before, format!("automatic {installation_id}").as_bytes());
    let save = SaveMigrationRun { run_id, expected_version: 0, run, now: parts.clock.now() };
    parts.store.save_migration_run(save).await.map_err(failed)?;
    Ok(true)
}

/// Workspaces that an automatic run could not move a while ago, and those that somebody kept from it.
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
    let facts = facts::of(store, &key, tenant, true).await?;
    Ok(facts.skips(Route::Acp, MigrationMode::Automatic).is_none())
}
