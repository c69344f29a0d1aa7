//! Removes the folders of workspaces: kept ones after a time without use, ephemeral ones after their last session.

use std::{sync::Arc, time::Duration};

use tokio::time::{MissedTickBehavior, interval};
use uuid::Uuid;

use crate::{
    actors::services::Services,
    contract::runtime::{RemoveWorkspace, WorkspaceRef},
    domain::{clock::Timestamp, retention::RemovalCause, turn::outcome::Failure},
    store::{self, Removal, UnusedFolders, WorkspaceRow},
    transport::http::client::WorkspaceClient,
};

/// Interval between sweeps. Ephemeral folders are removed soon after the end of their last session; a sweep that finds
/// nothing reads two small indexes.
const PERIOD: Duration = Duration::from_secs(5);
/// Folders of one sweep, at most, of each kind. A removal takes some milliseconds, because the runtime deletes the files
/// later.
const FOLDERS_PER_SWEEP: usize = 100;

/// Removes folders periodically; never returns.
///
/// # Cancel safety
/// Folders already removed stay removed; one whose record is missing is recorded by the next sweep.
pub(crate) async fn sweep_folders(services: Arc<Services>, client: WorkspaceClient, kept: Option<Duration>) {
    let mut period = interval(PERIOD);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        period.tick().await;
        let now = services.clock.now();
        let kinds = [Some(UnusedFolders::Ephemeral), kept.map(|age| UnusedFolders::Since(now.minus(age)))];
        for unused in kinds.into_iter().flatten() {
            match services.store.unused_folders(unused, FOLDERS_PER_SWEEP).await {
                Ok(found) => {
                    for row in found {
                        remove_and_log(&services, &client, &row, unused, now).await;
                    }
                }
                Err(cause) => tracing::warn!(marker = "[ACP]", %cause, "unused folders could not be read; retrying"),
            }
        }
    }
}

async fn remove_and_log(
    services: &Services,
    client: &WorkspaceClient,
    row: &WorkspaceRow,
    unused: UnusedFolders,
    now: Timestamp,
) {
    let (cause, reason) = match unused {
        UnusedFolders::Ephemeral => (RemovalCause::Ephemeral, "the last session of the ephemeral workspace ended"),
        UnusedFolders::Since(_) => (RemovalCause::Retention, "unused for retention.folders_days"),
    };
    let removal = Removal { run: Uuid::now_v7(), cause, actor: "lumilink".into(), reason: reason.to_owned(), now };
    match remove_folder(services, client, row, unused, removal).await {
        Ok(true) => tracing::info!(marker = "[ACP]", workspace = %row.key, cause = cause.as_str(), "folder removed"),
        Ok(false) => {}
        Err(cause) => {
            tracing::warn!(marker = "[ACP]", workspace = %row.key, %cause, "folder could not be removed; retrying")
        }
    }
}

/// Removes the folder of a workspace, unless it is in use, and records that. Returns false if the folder is in use.
///
/// # Errors
/// The failure of runtime or database. A retry is safe.
pub(crate) async fn remove_folder(
    services: &Services,
    client: &WorkspaceClient,
    row: &WorkspaceRow,
    unused: UnusedFolders,
    removal: Removal,
) -> Result<bool, Failure> {
    let Some(_removing) = services.folders.remove(&row.key) else { return Ok(false) };
    if !services.index.of_workspace(&row.key).is_empty() {
        return Ok(false);
    }
    // Read again: a session may have been opened and closed since.
    let is_unused = services.store.is_folder_unused(row.key.clone(), unused).await;
    if row.path.is_some() || !is_unused.map_err(|cause| store::failure(&cause))? {
        return Ok(false);
    }
    let workspace = WorkspaceRef { folder_id: row.folder_id, path: None, within: None };
    client.remove(&RemoveWorkspace { workspace, erase: false }).await?;
    let recorded = services.store.folder_removed(row.key.clone(), removal).await;
    recorded.map_err(|cause| store::failure(&cause))?;
    Ok(true)
}
