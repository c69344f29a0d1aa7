//! Removes the folders of workspaces and of isolated sessions: kept ones after a time without use, ephemeral ones after their
//! last session, and those of sessions that were closed.

use std::{sync::Arc, time::Duration};

use tokio::time::{MissedTickBehavior, interval};
use uuid::Uuid;

use crate::{
    actors::{handles::folder_use::own_reference, services::Services},
    contract::runtime::{RemoveWorkspace, WorkspaceRef},
    domain::{clock::Timestamp, retention::RemovalCause, turn::outcome::Failure},
    store::{self, Removal, SessionRow, UnusedFolders, WorkspaceRow},
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
        tokio::select! {
            _ = period.tick() => {}
            () = services.session_folders.offered() => {}
        }
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
            sweep_session_folders(&services, &client, unused, now).await;
        }
    }
}

/// Removes the folders of isolated sessions that are unused.
async fn sweep_session_folders(services: &Services, client: &WorkspaceClient, unused: UnusedFolders, now: Timestamp) {
    let found = match services.store.unused_session_folders(unused, FOLDERS_PER_SWEEP).await {
        Ok(found) => found,
        Err(cause) => {
            return tracing::warn!(marker = "[ACP]", %cause, "unused folders of sessions could not be read; retrying");
        }
    };
    for row in found {
        let session_id = row.session_id;
        let removal = removal_of(unused, "the isolated session ended", now);
        match remove_session_folder(services, client, &row, unused, removal).await {
            Ok(true) => {
                tracing::info!(marker = "[ACP]", %session_id, workspace = %row.key, "folder of the session removed")
            }
            Ok(false) => {}
            Err(cause) => {
                tracing::warn!(marker = "[ACP]", %session_id, %cause, "folder of the session could not be removed; retrying");
            }
        }
    }
}

/// Removes the folder of an isolated session, unless it is in use, and records that. Returns false if it is in use.
///
/// # Errors
/// The failure of runtime or database. A retry is safe.
async fn remove_session_folder(
    services: &Services,
    client: &WorkspaceClient,
    row: &SessionRow,
    unused: UnusedFolders,
    removal: Removal,
) -> Result<bool, Failure> {
    let id = row.session_id;
    let Some(_removing) = services.session_folders.remove(&id) else { return Ok(false) };
    if services.index.get(id).is_some() || services.closing.get(id).is_some() {
        return Ok(false);
    }
    // Read again: the session may have been loaded since.
    let is_unused = services.store.is_session_folder_unused(id, unused).await;
    if !is_unused.map_err(|cause| store::failure(&cause))? {
        return Ok(false);
    }
    client.remove(&RemoveWorkspace { workspace: own_reference(id), erase: false }).await?;
    let recorded = services.store.session_folder_removed(id, row.key.clone(), removal).await;
    recorded.map_err(|cause| store::failure(&cause))?;
    Ok(true)
}

fn removal_of(unused: UnusedFolders, ended: &str, now: Timestamp) -> Removal {
    let (cause, reason) = match unused {
        UnusedFolders::Ephemeral => (RemovalCause::Ephemeral, ended),
        UnusedFolders::Since(_) => (RemovalCause::Retention, "unused for retention.folders_days"),
    };
    Removal { run: Uuid::now_v7(), cause, actor: "lumilink".into(), reason: reason.to_owned(), now }
}

async fn remove_and_log(
    services: &Services,
    client: &WorkspaceClient,
    row: &WorkspaceRow,
    unused: UnusedFolders,
    now: Timestamp,
) {
    let removal = removal_of(unused, "the last session of the ephemeral workspace ended", now);
    let cause = removal.cause;
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
