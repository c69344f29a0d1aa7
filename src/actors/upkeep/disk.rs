//! Measures the workspaces in use on disk.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::time::{MissedTickBehavior, interval};

use crate::{
    actors::services::Services,
    contract::runtime::{MeasureWorkspace, WorkspaceRef},
    domain::ids::WorkspaceKey,
    transport::http::client::WorkspaceClient,
};

/// Measures workspaces with a live session, one after the other, every `every`; returns only if there is no limit. A
/// workspace that was given by `path` is its caller's, and is not measured. A pass that takes longer delays the next one.
///
/// # Cancel safety
/// Cancel-safe.
pub(crate) async fn measure_workspaces(services: Arc<Services>, client: WorkspaceClient, every: Duration) {
    if services.settings.workspace_bytes == 0 {
        return;
    }
    let mut period = interval(every);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first tick is immediate, and there are no sessions yet.
    period.tick().await;
    loop {
        period.tick().await;
        measure_all(&services, &client).await;
    }
}

/// One pass over the workspaces in use.
async fn measure_all(services: &Services, client: &WorkspaceClient) {
    let live = services.index.all();
    let used: BTreeSet<WorkspaceKey> = live.iter().map(|live| live.shared.spec.workspace.clone()).collect();
    drop(live);
    services.disk.retain(|key| used.contains(key));
    for key in used {
        let Ok(Some(row)) = services.store.workspace(key.clone()).await else { continue };
        if row.path.is_some() {
            continue;
        }
        let workspace = WorkspaceRef { folder_id: row.folder_id, path: None, within: None };
        match client.measure(&MeasureWorkspace { workspace }).await {
            Ok(measured) => {
                let limit = services.settings.workspace_bytes;
                if measured.bytes > limit && services.disk.check(&key, limit).is_ok() {
                    let (bytes, is_whole) = (measured.bytes, measured.is_whole);
                    tracing::warn!(marker = "[ACP]", workspace = %key, bytes, limit, is_whole, "workspace is full");
                }
                services.disk.record(&key, measured.bytes);
            }
            // An older runtime, or none: the others fail too.
            Err(cause) => {
                tracing::debug!(marker = "[ACP]", workspace = %key, %cause, "workspace could not be measured");
                break;
            }
        }
    }
    let (largest, full) = services.disk.figures(services.settings.workspace_bytes);
    services.metrics.workspaces_measured(largest, full);
}
