//! Measures the workspaces in use on disk.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::time::{MissedTickBehavior, interval};

use crate::{
    actors::{
        handles::{disk_use::Folder, folder_use::own_reference, index::LiveSession},
        services::Services,
    },
    contract::runtime::{MeasureWorkspace, WorkspaceRef},
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
    let folder = |live: &Arc<LiveSession>| (live.shared.spec.workspace.clone(), live.shared.spec.folder_owner());
    let used: BTreeSet<Folder> = live.iter().map(folder).collect();
    drop(live);
    services.disk.retain(|folder| used.contains(folder));
    for folder in used {
        let Some(workspace) = reference_of(services, &folder).await else { continue };
        match client.measure(&MeasureWorkspace { workspace }).await {
            Ok(measured) => {
                let limit = services.settings.workspace_bytes;
                if measured.bytes > limit && services.disk.check(&folder, limit).is_ok() {
                    let (bytes, is_whole, key) = (measured.bytes, measured.is_whole, &folder.0);
                    tracing::warn!(marker = "[ACP]", workspace = %key, bytes, limit, is_whole, "workspace is full");
                }
                services.disk.record(&folder, measured.bytes);
            }
            // An older runtime, or none: the others fail too.
            Err(cause) => {
                tracing::debug!(marker = "[ACP]", workspace = %folder.0, %cause, "workspace could not be measured");
                break;
            }
        }
    }
    let (largest, full) = services.disk.figures(services.settings.workspace_bytes);
    services.metrics.workspaces_measured(largest, full);
}

/// The folder for the runtime; `None` for one that a caller gave, and for a workspace without a row.
async fn reference_of(services: &Services, (key, session): &Folder) -> Option<WorkspaceRef> {
    if let Some(session) = session {
        return Some(own_reference(*session));
    }
    let row = services.store.workspace(key.clone()).await.ok()??;
    row.path.is_none().then_some(WorkspaceRef { folder_id: row.folder_id, path: None, within: None })
}
