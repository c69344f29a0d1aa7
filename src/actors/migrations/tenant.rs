//! Changes a tenant's protocol settings.

use std::collections::HashSet;

use crate::{
    actors::{
        handles::messages::{ChangeRoute, RouteChange},
        workspaces::Workspaces,
    },
    domain::{
        changes::ChangeKind,
        ids::{InstallationId, WorkspaceKey},
        routing::{Attribution, Route},
        turn::outcome::{ErrorCode, Failure},
    },
    store::{self, NewChange, Page, RouteFilter, TenantProtocol},
};

/// Workspaces written or read at once; other writes wait for some milliseconds.
const WORKSPACES_AT_ONCE: usize = 100;

/// Saves a tenant's protocol settings. If they change the route of new workspaces, existing workspaces keep theirs;
/// if they disable ACP, all workspaces are moved to HTTP, including those pinned to ACP. Returns the number of
/// workspaces that moved from ACP to HTTP.
///
/// # Errors
/// If the database or a router refuses a change. Safe to retry: finished parts are kept and the rest is done.
///
/// # Cancel safety
/// Dropping the future may leave a part done.
pub(crate) async fn change(
    workspaces: &Workspaces,
    before: &TenantProtocol,
    wanted: TenantProtocol,
    attribution: Attribution,
) -> Result<u64, Failure> {
    let failed = |cause: store::StoreError| store::failure(&cause);
    let services = workspaces.services();
    let tenant = wanted.installation_id.clone();
    if wanted.new_route() != before.new_route() {
        // Existing workspaces come first: once the tenant's settings are saved, a workspace without a route takes the
        // new one.
        let kept = before.new_route();
        while let WORKSPACES_AT_ONCE = services
            .store
            .settle_routes(tenant.clone(), kept, services.clock.now(), WORKSPACES_AT_ONCE)
            .await
            .map_err(failed)?
        {}
    }
    let is_without_acp = !wanted.enable_acp;
    let (default, enable_acp) = (wanted.default_protocol.as_str(), wanted.enable_acp);
    let change = NewChange {
        before: before.as_json(),
        after: wanted.as_json(),
        ..NewChange::of_tenant(ChangeKind::TenantProtocol, &tenant, &attribution, wanted.updated)
    };
    services.store.save_tenant_protocol(wanted, change).await.map_err(failed)?;
    let moved = if is_without_acp { move_to_http(workspaces, &tenant, &attribution).await? } else { 0 };
    tracing::info!(
        marker = "[ROLLBACK]",
        installation_id = %tenant,
        actor = attribution.actor,
        reason = attribution.reason,
        default,
        enable_acp,
        moved,
        "tenant protocol changed"
    );
    Ok(moved)
}

/// Moves the live workspaces, and those whose stored route is ACP.
async fn move_to_http(
    workspaces: &Workspaces,
    tenant: &InstallationId,
    attribution: &Attribution,
) -> Result<u64, Failure> {
    let services = workspaces.services();
    let mut moved = 0;
    let live: HashSet<_> = services.index.all().iter().map(|live| live.shared.spec.workspace.clone()).collect();
    for key in live.into_iter().filter(|key| key.installation_id == *tenant) {
        moved += u64::from(move_one(workspaces, &key, attribution).await?);
    }
    // A workspace with the default HTTP may still be pinned to ACP.
    for filter in [
        RouteFilter { default_protocol: Some(Route::Acp), ..RouteFilter::default() },
        RouteFilter { route: Some(Route::Acp), ..RouteFilter::default() },
    ] {
        let filter = RouteFilter { installation_id: Some(tenant.clone()), ..filter };
        let mut after = None;
        loop {
            let page = Page { limit: WORKSPACES_AT_ONCE, after };
            let rows = services.store.routes(filter.clone(), page).await.map_err(|cause| store::failure(&cause))?;
            after = rows.last().map(|row| row.cursor());
            let is_last = rows.len() < WORKSPACES_AT_ONCE;
            for row in rows {
                moved += u64::from(move_one(workspaces, &row.key, attribution).await?);
            }
            if is_last {
                break;
            }
        }
    }
    Ok(moved)
}

/// Moves one workspace; returns `true` if it was on ACP.
async fn move_one(workspaces: &Workspaces, key: &WorkspaceKey, attribution: &Attribution) -> Result<bool, Failure> {
    let routing = workspaces.routing(key).await?;
    loop {
        let before = routing.view().await?.routing;
        let is_pinned = before.pin().is_some_and(|pin| pin.protocol == Route::Acp);
        let release = is_pinned.then_some(RouteChange::Pin(None));
        let changes = release.into_iter().chain([RouteChange::Default(Route::Http)]).collect();
        match routing.change(ChangeRoute { changes, attribution: attribution.clone(), run_id: None }).await {
            Ok(after) => return Ok(before.route() == Route::Acp && after.routing.route() == Route::Http),
            // Another writer was first: read its change and apply this one after it.
            Err(failure) if failure.code == ErrorCode::RouteChanged => {}
            Err(failure) => return Err(failure),
        }
    }
}
