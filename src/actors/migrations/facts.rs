//! What is known of a workspace that is to be moved.

use std::collections::HashMap;

use crate::{
    actors::routing::default_route,
    domain::{
        ids::{InstallationId, WorkspaceId, WorkspaceKey},
        migration::{MAX_WORKSPACES, WorkspaceFacts},
        routing::Route,
    },
    store::{MAX_PAGE, Page, RouteFilter, Store, StoreError, TenantProtocol, WorkspaceFilter},
};

/// The facts of a workspace, as they are on disk. Cancel-safe.
pub(super) async fn of(
    store: &Store,
    key: &WorkspaceKey,
    tenant: Option<&TenantProtocol>,
    speaks_acp: bool,
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
        speaks_acp,
    })
}

/// The default route of a workspace. Cancel-safe.
pub(super) async fn default_of(
    store: &Store,
    key: &WorkspaceKey,
    tenant: Option<&TenantProtocol>,
) -> Result<Route, StoreError> {
    let route = store.route(key.clone()).await?;
    Ok(route.map_or_else(|| default_route(tenant), |row| row.routing.default_route()))
}

/// A tenant's workspaces whose default is another route than `target`, those first that were made last; at most
/// [`MAX_WORKSPACES`]. Cancel-safe.
pub(super) async fn with_another_default(
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
    let filter = WorkspaceFilter { installation_id: Some(installation.clone()), workspace_id: None };
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

pub(super) fn first() -> Page {
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
    fn a_repository_is_blocked_however_it_is_written() {
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
