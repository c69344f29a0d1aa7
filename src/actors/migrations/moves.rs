//! The move of one workspace, and its migration row.

use std::collections::HashMap;

use uuid::Uuid;

use super::RETRY;
use crate::{
    actors::{
        handles::messages::{ChangeRoute, RouteChange},
        routing::default_route,
        workspaces::Workspaces,
    },
    contract::audit::MigrationItem,
    domain::{
        clock::Timestamp,
        ids::{InstallationId, WorkspaceId, WorkspaceKey},
        migration::{MAX_WORKSPACES, MigrationSkip, MigrationStatus, WorkspaceFacts},
        redaction::Redacted,
        routing::{Attribution, FlipTrigger, Route},
        turn::outcome::{ErrorCode, Failure},
    },
    store::{MAX_PAGE, Page, RouteFilter, Store, StoreError, TenantProtocol, WorkspaceFilter},
};

/// A workspace whose default route is to change.
#[derive(Debug, Clone)]
pub(super) struct Step {
    pub run_id: Uuid,
    pub key: WorkspaceKey,
    pub to: Route,
    pub attribution: Attribution,
    pub now: Timestamp,
}

#[derive(Debug)]
pub(super) struct Moved {
    pub workspace: WorkspaceId,
    /// The reason if the workspace was not moved.
    pub outcome: Result<(), Redacted>,
}

/// Moves one workspace. Waits for an unavailable database. Running turns end on the route on which they began.
pub(super) async fn make(workspaces: Workspaces, step: Step) -> Moved {
    let was_in_use = workspaces.is_in_use(&step.key);
    let outcome = loop {
        match attempt(&workspaces, &step).await {
            Ok(is_flipped) => break Ok(is_flipped),
            // These errors do not depend on the workspace.
            Err(cause) if matches!(cause.code, ErrorCode::DatabaseUnavailable | ErrorCode::RouteChanged) => {
                tokio::time::sleep(RETRY).await;
            }
            Err(cause) => break Err(Redacted::new(&cause.to_string())),
        }
    };
    if !was_in_use {
        workspaces.evict(&step.key);
    }
    // A flip writes its own row.
    let row = match &outcome {
        Ok(true) => None,
        Ok(false) => Some(row(&step, step.to.other(), MigrationStatus::Succeeded, step.attribution.reason.clone())),
        Err(detail) => Some(row(&step, step.to.other(), MigrationStatus::Failed, detail.as_str().to_owned())),
    };
    if let Some(row) = row {
        record(&workspaces, &step.key, row).await;
    }
    Moved { workspace: step.key.workspace_id, outcome: outcome.map(|_| ()) }
}

/// Changes the default once; returns `true` if the change was a flip.
async fn attempt(workspaces: &Workspaces, step: &Step) -> Result<bool, Failure> {
    let routing = workspaces.routing(&step.key).await?;
    if step.to == Route::Acp {
        routing.probe().await?;
    }
    let changes = vec![RouteChange::Default(step.to)];
    let change = ChangeRoute { changes, attribution: step.attribution.clone(), run_id: Some(step.run_id) };
    Ok(routing.change(change).await?.is_flipped)
}

async fn record(workspaces: &Workspaces, key: &WorkspaceKey, row: MigrationItem) {
    while let Err(cause) = workspaces.services().store.record_migration(row.clone()).await {
        if matches!(cause, StoreError::Conflict(_) | StoreError::Corrupt(_) | StoreError::Closed) {
            tracing::error!(marker = "[MIGRATION]", workspace = %key, %cause, "migration step was not written");
            return;
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// True if the runtime supports ACP.
pub(super) async fn supports_acp(workspaces: &Workspaces) -> Result<bool, Failure> {
    let status = workspaces.workspace_client().status().await?;
    Ok(status.protocols.iter().any(|protocol| protocol == Route::Acp.as_str()))
}

/// Row of a skipped workspace; its id is the same however often the skip is recorded.
pub(super) fn skipped(step: &Step, from: Route, reason: MigrationSkip) -> MigrationItem {
    let name = format!("skip {}", step.key);
    MigrationItem {
        migration_id: Uuid::new_v5(&step.run_id, name.as_bytes()),
        ..row(step, from, MigrationStatus::Cancelled, format!("skipped: {}", reason.as_str()))
    }
}

fn row(step: &Step, from: Route, status: MigrationStatus, reason: String) -> MigrationItem {
    MigrationItem {
        migration_id: Uuid::now_v7(),
        run_id: Some(step.run_id),
        installation_id: step.key.installation_id.clone(),
        workspace_id: step.key.workspace_id.clone(),
        from_protocol: from,
        to_protocol: step.to,
        epoch: None,
        initiated_by: step.attribution.initiator,
        actor: step.attribution.actor.clone(),
        actor_note: step.attribution.actor_note.clone(),
        trigger: FlipTrigger::Migration,
        reason,
        status,
        metrics: serde_json::json!({}),
        started_at: step.now,
        completed_at: Some(step.now),
    }
}

/// Facts of a workspace, as they are on disk. Cancel-safe.
pub(crate) async fn of(
    store: &Store,
    key: &WorkspaceKey,
    tenant: Option<&TenantProtocol>,
    supports_acp: bool,
) -> Result<WorkspaceFacts, StoreError> {
    let workspace = store.workspace(key.clone()).await?;
    let route = store.route(key.clone()).await?;
    let routing = route.as_ref().map(|row| &row.routing);
    let default = routing.map_or_else(|| default_route(tenant), |routing| routing.default_route());
    let repository = workspace.as_ref().and_then(|row| row.repository.as_deref());
    Ok(WorkspaceFacts {
        default_route: workspace.is_some().then_some(default),
        is_pinned: routing.is_some_and(|routing| routing.pin().is_some()),
        migration_enabled: route.as_ref().is_none_or(|row| row.migration_enabled),
        auto_rollout: route.as_ref().is_some_and(|row| row.auto_rollout)
            || tenant.is_some_and(|tenant| tenant.auto_migration),
        tenant_allows: tenant.is_none_or(|tenant| tenant.allow_migration),
        acp_enabled: tenant.is_none_or(|tenant| tenant.enable_acp),
        is_blocked: tenant
            .zip(repository)
            .is_some_and(|(tenant, repository)| is_blocked(&tenant.blocked_repositories, repository)),
        supports_acp,
    })
}

/// Default route of a workspace. Cancel-safe.
pub(crate) async fn default_of(
    store: &Store,
    key: &WorkspaceKey,
    tenant: Option<&TenantProtocol>,
) -> Result<Route, StoreError> {
    let route = store.route(key.clone()).await?;
    Ok(route.map_or_else(|| default_route(tenant), |row| row.routing.default_route()))
}

/// A tenant's workspaces whose default route is not `target`, newest first; at most [`MAX_WORKSPACES`]. Cancel-safe.
pub(crate) async fn with_another_default(
    store: &Store,
    installation: &InstallationId,
    tenant: Option<&TenantProtocol>,
    target: Route,
) -> Result<Vec<WorkspaceId>, StoreError> {
    let mut defaults = HashMap::new();
    let filter = RouteFilter { installation_id: Some(installation.clone()), ..RouteFilter::default() };
    let mut page = first();
    loop {
        let rows = store.routes(filter.clone(), page).await?;
        let next = rows.last().filter(|_| rows.len() == MAX_PAGE).map(|row| row.cursor());
        defaults.extend(rows.into_iter().map(|row| (row.key.workspace_id, row.routing.default_route())));
        let Some(cursor) = next else { break };
        page = Page { after: Some(cursor), ..first() };
    }
    let filter = WorkspaceFilter { installation_id: Some(installation.clone()), ..WorkspaceFilter::default() };
    let (mut found, mut page) = (Vec::new(), first());
    loop {
        let rows = store.list_workspaces(filter.clone(), page).await?;
        let next = rows.last().filter(|_| rows.len() == MAX_PAGE).map(|row| row.cursor());
        let names = rows.into_iter().map(|row| row.key.workspace_id);
        let default = |name: &WorkspaceId| defaults.get(name).copied().unwrap_or_else(|| default_route(tenant));
        found.extend(names.filter(|name| default(name) != target));
        found.truncate(MAX_WORKSPACES);
        let Some(cursor) = next.filter(|_| found.len() < MAX_WORKSPACES) else { return Ok(found) };
        page = Page { after: Some(cursor), ..first() };
    }
}

pub(crate) fn first() -> Page {
    Page { limit: MAX_PAGE, after: None }
}

fn is_blocked(blocked: &[String], repository: &str) -> bool {
    let wanted = name_of(repository);
    blocked.iter().any(|one| name_of(one) == wanted)
}

/// `owner/name` of a repository, which may be given as a URL.
fn name_of(repository: &str) -> String {
    let text = repository.trim_end_matches('/');
    let text = text.strip_suffix(".git").unwrap_or(text);
    let mut parts = text.rsplit(['/', ':']);
    let (name, owner) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    format!("{owner}/{name}").to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repository_is_blocked_in_every_spelling() {
        let blocked = ["Acme/Secret".to_owned(), "https://github.com/acme/other.git".to_owned()];
        for repository in
            ["acme/secret", "https://github.com/acme/secret", "git@github.com:acme/secret.git", "acme/other"]
        {
            assert!(is_blocked(&blocked, repository), "{repository}");
        }
        for repository in ["acme/open", "secret", "", "other/secret"] {
            assert!(!is_blocked(&blocked, repository), "{repository}");
        }
    }
}
