//! Commits that could not be delivered, kept as a bundle and a patch in a folder of the run.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use actix_web::{HttpResponse, body::SizedStream, web};
use bytes::Bytes;
use futures_util::{Stream, stream};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use uuid::Uuid;

use super::{
    Automation, Made, Step, failure,
    host::over,
    local::{broken, missing_parent, other_step, repository},
};
use crate::{
    contract::steps::DeletedRescue,
    domain::{
        automation::step::{CommitFact, Remedy, RescueFact, StepFact, StepFailure, StepInput},
        turn::outcome::ErrorCode,
    },
    process::sandbox::scratch::remove_tree,
    runtime::{
        reply::{answer, refuse},
        workspaces::{
            Workspaces,
            git::Input,
            proxy::Proxy,
            repositories::{BareRepository, is_object_name},
            repository::check_branch,
        },
    },
};

/// Largest bundle of one run, in bytes.
const MAX_BUNDLE_BYTES: usize = 512 * 1024 * 1024;
/// Largest patch of one run, in bytes; it is cut there.
const MAX_PATCH_BYTES: usize = 16 * 1024 * 1024;
/// Largest size of all kept commits of a runtime, in bytes. More are refused; none is deleted for another.
const MAX_KEPT_BYTES: u64 = 5 * 1024 * 1024 * 1024;
/// Bytes of one chunk of an answer.
const CHUNK_BYTES: usize = 64 * 1024;
const BUNDLE: &str = "bundle";
const PATCH: &str = "patch";
const DESCRIPTION: &str = "rescue.json";

/// Description of a kept commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kept {
    parent: String,
    commit: String,
    branch: String,
    fact: RescueFact,
}

fn folder_of(workspaces: &Workspaces, run: Uuid) -> PathBuf {
    workspaces.rescues().join(run.to_string())
}

async fn kept(folder: &Path) -> Option<Kept> {
    serde_json::from_slice(&tokio::fs::read(folder.join(DESCRIPTION)).await.ok()?).ok()
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, StepFailure> {
    let done = tokio::task::spawn_blocking(work).await.map_err(io::Error::other);
    done.and_then(|done| done).map_err(|cause| failure("rescue-failed", &format!("rescue: {cause}"), Remedy::Later))
}

pub(super) async fn rescue(step: &mut Step<'_>) -> Made {
    let StepInput::Rescue { parent, commit, branch } = &step.order.input else { return Err(other_step()) };
    if !is_object_name(parent) || !is_object_name(commit) {
        return Err(failure("invalid-order", "parent and commit must be names of commits", Remedy::Never));
    }
    check_branch(branch).map_err(broken)?;
    let folder = folder_of(step.workspaces, step.run);
    let all = step.workspaces.rescues();
    let busy = step.workspaces.busy_with(&all);
    let _one = busy.lock().await;
    if let Some(kept) = kept(&folder).await.filter(|kept| kept.commit == *commit) {
        return Ok(StepFact::Rescue(kept.fact));
    }
    let repository = repository(step)?;
    repository.tree_of(commit).await.map_err(broken)?.ok_or_else(|| missing_parent(commit))?;
    let temporary = step.workspaces.temporary_folder().await.map_err(broken)?;
    let incomplete = temporary.path().join("rescue");
    let made = incomplete.clone();
    blocking(move || fs::DirBuilder::new().mode(0o700).create(made)).await?;
    let fact = write(&repository, &incomplete, parent, commit, branch).await?;
    let kept = Kept { parent: parent.clone(), commit: commit.clone(), branch: branch.clone(), fact: fact.clone() };
    let used = blocking(move || bytes_in(&all)).await?;
    if used + fact.bundle_bytes + fact.patch_bytes > MAX_KEPT_BYTES {
        let message = format!("Undelivered commits take {used} bytes of {MAX_KEPT_BYTES}: deliver or delete some");
        return Err(failure("rescue-full", &message, Remedy::Later));
    }
    blocking(move || {
        fs::write(incomplete.join(DESCRIPTION), serde_json::to_vec(&kept)?)?;
        // Of another commit of the run.
        remove_tree(&folder);
        fs::rename(incomplete, folder)
    })
    .await?;
    Ok(StepFact::Rescue(fact))
}

/// Writes bundle and patch.
async fn write(
    repository: &BareRepository,
    folder: &Path,
    parent: &str,
    commit: &str,
    branch: &str,
) -> Result<RescueFact, StepFailure> {
    let strings = |args: &[&str]| args.iter().map(std::ffi::OsString::from).collect::<Vec<_>>();
    let reference = format!("refs/heads/{branch}");
    repository.run(strings(&["update-ref", &reference, commit]), Input::Nothing, 0).await.map_err(broken)?;
    let args = strings(&["bundle", "create", "--quiet", "-", &reference, &format!("^{parent}")]);
    let bundle = folder.join(BUNDLE);
    let written = repository.run_into(args, bundle.clone(), MAX_BUNDLE_BYTES).await;
    repository.run(strings(&["update-ref", "-d", &reference]), Input::Nothing, 0).await.map_err(broken)?;
    if written.map_err(broken)? {
        let message = format!("The commit is larger than {MAX_BUNDLE_BYTES} bytes, and was not kept");
        return Err(failure("rescue-too-large", &message, Remedy::Never));
    }
    let args = [
        "format-patch",
        "--stdout",
        "-1",
        "--binary",
        "--full-index",
        "--no-signature",
        "--no-ext-diff",
        "--no-textconv",
        "--no-renames",
        commit,
    ];
    let patch = folder.join(PATCH);
    let is_patch_cut = repository.run_into(strings(&args), patch.clone(), MAX_PATCH_BYTES).await.map_err(broken)?;
    let (bundle_bytes, patch_bytes) =
        blocking(move || Ok((fs::metadata(bundle)?.len(), fs::metadata(patch)?.len()))).await?;
    Ok(RescueFact { bundle_bytes, patch_bytes, is_patch_cut, commit: Some(commit.to_owned()) })
}

/// Bytes of all files in the folders of a folder. Blocks.
fn bytes_in(folder: &Path) -> io::Result<u64> {
    let mut total = 0;
    for run in fs::read_dir(folder)?.flatten() {
        for file in fs::read_dir(run.path()).into_iter().flatten().flatten() {
            total += file.metadata().map_or(0, |metadata| metadata.len());
        }
    }
    Ok(total)
}

/// The kept commit of the run as it is, for a run whose clone was removed; `None` if none is kept on this parent.
pub(super) async fn kept_commit(step: &mut Step<'_>, parent: &str) -> Option<StepFact> {
    let StepInput::Commit { message, .. } = &step.order.input else { return None };
    let kept = kept(&folder_of(step.workspaces, step.run)).await.filter(|kept| kept.parent == parent)?;
    step.log("the clone was removed: the kept commit is delivered as it is");
    Some(StepFact::Commit(CommitFact { sha: kept.commit, message: message.clone(), is_signed: false }))
}

/// Makes a repository with the commit of a run from its bundle: the parent is fetched from the host. `None` if the run has
/// no bundle of the commit.
///
/// # Errors
/// Those of git, and of the host.
pub(super) async fn restore(
    step: &Step<'_>,
    proxy: &Proxy,
    commit: &str,
    folder: PathBuf,
) -> Result<Option<BareRepository>, StepFailure> {
    let rescued = folder_of(step.workspaces, step.run);
    let Some(kept) = kept(&rescued).await.filter(|kept| kept.commit == commit) else { return Ok(None) };
    let repository = BareRepository::create(step.workspaces.git().clone(), folder).await.map_err(broken)?;
    let refspec = format!("{}:refs/lumilink/base", kept.parent);
    let args = ["fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--depth=1", "--", proxy.url(), &refspec];
    let args = args.map(std::ffi::OsString::from).to_vec();
    over(&repository, proxy, args, step.workspaces.network_timeout()).await?;
    let args = vec!["bundle".into(), "unbundle".into(), rescued.join(BUNDLE).into()];
    repository.run(args, Input::Nothing, CHUNK_BYTES).await.map_err(broken)?;
    Ok(Some(repository))
}

/// `GET /automation/{run}/rescue/{bundle|patch}`.
pub(in crate::runtime) async fn read(
    path: web::Path<(Uuid, String)>,
    automation: web::Data<Automation>,
) -> HttpResponse {
    let (run, part) = path.into_inner();
    let missing = || refuse(ErrorCode::NotFound, "the run has no commit that was kept");
    let kind = match part.as_str() {
        BUNDLE => "application/octet-stream",
        PATCH => "text/x-patch; charset=utf-8",
        _ => return missing(),
    };
    let Ok(file) = tokio::fs::File::open(folder_of(&automation.workspaces, run).join(part)).await else {
        return missing();
    };
    match file.metadata().await {
        Ok(metadata) => {
            let body = SizedStream::new(metadata.len(), chunks(file));
            HttpResponse::Ok().content_type(kind).body(body)
        }
        Err(cause) => refuse(ErrorCode::WorkspaceUnavailable, &format!("rescue: {cause}")),
    }
}

fn chunks(file: tokio::fs::File) -> impl Stream<Item = io::Result<Bytes>> {
    stream::try_unfold(file, |mut file| async move {
        let mut chunk = vec![0; CHUNK_BYTES];
        let read = file.read(&mut chunk).await?;
        chunk.truncate(read);
        Ok((read > 0).then(|| (Bytes::from(chunk), file)))
    })
}

/// `DELETE /automation/{run}/rescue`. Idempotent.
pub(in crate::runtime) async fn delete(path: web::Path<Uuid>, automation: web::Data<Automation>) -> HttpResponse {
    let folder = folder_of(&automation.workspaces, *path);
    let busy = automation.workspaces.busy_with(&automation.workspaces.rescues());
    let _one = busy.lock().await;
    let deleting = web::block(move || {
        let deleted = folder.exists();
        remove_tree(&folder);
        if folder.exists() { Err(io::Error::other("not every file could be deleted")) } else { Ok(deleted) }
    });
    match deleting.await.map_err(io::Error::other).and_then(|deleted| deleted) {
        Ok(deleted) => answer(Ok(DeletedRescue { deleted })),
        Err(cause) => refuse(ErrorCode::WorkspaceUnavailable, &format!("rescue: {cause}")),
    }
}
