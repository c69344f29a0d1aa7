//! Removes commits of automation that are kept at the runtime: those that have reached their age, and those of a target that
//! is erased.

use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use uuid::Uuid;

use crate::{
    domain::{
        clock::Timestamp,
        erasure::EraseTarget,
        turn::outcome::{ErrorCode, Failure},
    },
    store::{self, SagaRow, SagaUpdate, Store},
    transport::http::client::WorkspaceClient,
};

/// Runs that are read at once.
const RUNS_PER_READ: usize = 100;
/// Requests to the runtime at once. Each removes a folder of two files.
const REMOVALS_AT_ONCE: usize = 4;

/// Removes the kept commits whose newest attempt is older than `age`, and returns their number.
///
/// # Errors
/// The failure of runtime or database. Safe to retry.
///
/// # Cancel safety
/// What is removed stays removed; a run whose record is missing is recorded by the next sweep.
pub(crate) async fn remove_old_rescues(
    store: &Store,
    runtime: &WorkspaceClient,
    age: Duration,
    now: Timestamp,
) -> Result<usize, Failure> {
    let mut removed = 0;
    loop {
        let found = store.sagas_with_rescue(now.minus(age), RUNS_PER_READ).await;
        let found = found.map_err(|cause| store::failure(&cause))?;
        let (read, mut recorded) = (found.len(), 0);
        let mut removing = stream::iter(found.into_iter().map(|row| remove_one(store, runtime, row, now)))
            .buffer_unordered(REMOVALS_AT_ONCE);
        while let Some(is_recorded) = removing.try_next().await? {
            recorded += usize::from(is_recorded);
        }
        removed += recorded;
        // Without a record the same runs would be read again.
        if read < RUNS_PER_READ || recorded == 0 {
            return Ok(removed);
        }
    }
}

/// Removes the kept commit of a run, then records that. False if the run has begun another attempt meanwhile.
async fn remove_one(store: &Store, runtime: &WorkspaceClient, row: SagaRow, now: Timestamp) -> Result<bool, Failure> {
    let SagaRow { run_id, version, status, saga: Some(mut saga), retry_at, updated, .. } = row else {
        return Ok(false);
    };
    discard(runtime, run_id).await?;
    saga.remove_rescue(now);
    // The time of the run's own change stays, by which the row itself is removed.
    let update = SagaUpdate { run_id, version, status, saga, retry_at, is_repeated: false, now: updated };
    match store.save_saga(update).await {
        Ok(()) => {
            tracing::info!(marker = "[GITHUB-AUTO]", %run_id, "kept commit removed: older than retention.rescues_days");
            Ok(true)
        }
        Err(store::StoreError::Fenced) => Ok(false),
        Err(cause) => Err(store::failure(&cause)),
    }
}

/// Stops the attempts of a target that is being erased, and removes its kept commits.
///
/// # Errors
/// The failure of runtime or database. Safe to retry.
///
/// # Cancel safety
/// What is removed stays removed.
pub(crate) async fn erase_rescues(
    store: &Store,
    runtime: &WorkspaceClient,
    target: &EraseTarget,
) -> Result<(), Failure> {
    let failed = |cause| store::failure(&cause);
    store.stop_sagas(target.clone()).await.map_err(failed)?;
    let mut after = None;
    loop {
        let found = store.rescues_of(target.clone(), after, RUNS_PER_READ).await.map_err(failed)?;
        after = found.last().copied();
        let read = found.len();
        let removing = stream::iter(found.into_iter().map(|run_id| discard(runtime, run_id)));
        removing.buffer_unordered(REMOVALS_AT_ONCE).try_collect::<()>().await?;
        if read < RUNS_PER_READ {
            return Ok(());
        }
    }
}

/// Removes the kept commit of a run; nothing to remove is no failure. A step that is keeping it ends first.
async fn discard(runtime: &WorkspaceClient, run_id: Uuid) -> Result<(), Failure> {
    match runtime.discard_rescue(run_id).await {
        // A runtime of an earlier version keeps no commits.
        Err(Failure { code: ErrorCode::NotFound, .. }) => Ok(()),
        done => done,
    }
}
