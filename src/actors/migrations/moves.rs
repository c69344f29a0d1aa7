//! The move of one workspace, and the row that it leaves.

use uuid::Uuid;

use super::RETRY;
use crate::{
    actors::{
        handles::messages::{ChangeRoute, RouteChange},
        workspaces::Workspaces,
    },
    domain::{
        clock::Timestamp,
        ids::{WorkspaceId, WorkspaceKey},
        migration::{MigrationSkip, MigrationStatus},
        redaction::Redacted,
        routing::{FlipTrigger, Route, Wish},
        turn::outcome::{ErrorCode, Failure},
    },
    store::{MigrationRow, StoreError},
};

/// A workspace that is to get another default.
#[derive(Debug, Clone)]
pub(super) struct Step {
    /// The run.
    pub run_id: Uuid,
    /// Which workspace.
    pub key: WorkspaceKey,
    /// Which default.
    pub to: Route,
    /// Who wants it, and why.
    pub wish: Wish,
    /// When it began.
    pub now: Timestamp,
}

/// How a move ended.
#[derive(Debug)]
pub(super) struct Moved {
    /// Which workspace.
    pub workspace: WorkspaceId,
    /// Why it is where it was, if it is.
    pub outcome: Result<(), Redacted>,
}

/// Moves one workspace. A database that is away is waited for. Turns that run end where they began.
pub(super) async fn make(workspaces: Workspaces, step: Step) -> Moved {
    let was_in_use = workspaces.is_in_use(&step.key);
    let outcome = loop {
        match attempt(&workspaces, &step).await {
            Ok(is_flipped) => break Ok(is_flipped),
            // Nothing is said about the workspace by these.
            Err(cause) if matches!(cause.code, ErrorCode::DatabaseUnavailable | ErrorCode::RouteChanged) => {
                tokio::time::sleep(RETRY).await;
            }
            Err(cause) => break Err(Redacted::new(&cause.to_string())),
        }
    };
    if !was_in_use {
        workspaces.let_go(&step.key);
    }
    // A flip leaves its own row.
    let row = match &outcome {
        Ok(true) => None,
        Ok(false) => Some(row(&step, step.to.other(), MigrationStatus::Succeeded, step.wish.reason.clone())),
        Err(detail) => Some(row(&step, step.to.other(), MigrationStatus::Failed, detail.as_str().to_owned())),
    };
    if let Some(row) = row {
        record(&workspaces, row).await;
    }
    Moved { workspace: step.key.workspace_id, outcome: outcome.map(|_| ()) }
}

/// Whether it was a flip.
async fn attempt(workspaces: &Workspaces, step: &Step) -> Result<bool, Failure> {
    let routing = workspaces.routing(&step.key).await?;
    if step.to == Route::Acp {
        routing.probe().await?;
    }
    let changes = vec![RouteChange::Default(step.to)];
    let change = ChangeRoute { changes, wish: step.wish.clone(), run_id: Some(step.run_id) };
    Ok(routing.change(change).await?.is_flipped)
}

async fn record(workspaces: &Workspaces, row: MigrationRow) {
    while let Err(cause) = workspaces.parts().store.record_migration(row.clone()).await {
        if matches!(cause, StoreError::Conflict(_) | StoreError::Corrupt(_) | StoreError::Closed) {
            tracing::error!(marker = "[MIGRATION]", workspace = %row.key, %cause, "a step leaves no row");
            return;
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Whether the runtime speaks ACP.
pub(super) async fn speaks_acp(workspaces: &Workspaces) -> Result<bool, Failure> {
    let status = workspaces.door().status().await?;
    Ok(status.protocols.iter().any(|protocol| protocol == Route::Acp.as_str()))
}

/// The row of a workspace that is left out: the same one however often that is seen.
pub(super) fn skipped(step: &Step, from: Route, reason: MigrationSkip) -> MigrationRow {
    let name = format!("skip {}", step.key);
    let reason = serde_json::to_value(reason).ok().and_then(|word| word.as_str().map(str::to_owned));
    MigrationRow {
        migration_id: Uuid::new_v5(&step.run_id, name.as_bytes()),
        ..row(step, from, MigrationStatus::Cancelled, format!("skipped: {}", reason.unwrap_or_default()))
    }
}

fn row(step: &Step, from: Route, status: MigrationStatus, reason: String) -> MigrationRow {
    MigrationRow {
        migration_id: Uuid::now_v7(),
        run_id: Some(step.run_id),
        key: step.key.clone(),
        from,
        to: step.to,
        epoch: None,
        initiated_by: step.wish.initiator,
        actor: step.wish.actor.clone(),
        trigger: FlipTrigger::Migration,
        reason,
        status,
        metrics: "{}".to_owned(),
        started: step.now,
        completed: Some(step.now),
    }
}
