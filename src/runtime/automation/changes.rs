//! The changes of a turn, as a tree of the runtime's own repository.
//!
//! The tree is that of the parent with the changes of the workspace, by path: files that the agent did not change keep
//! their blobs to the byte. If the parent has commits of others, made on the branch meanwhile, both are merged.

use std::collections::{BTreeMap, HashMap, HashSet};

use uuid::Uuid;

use super::{
    Made, Step, failure,
    local::{broken, missing_parent, repository, skipped},
};
use crate::{
    domain::automation::{
        omitted::{MAX_OMITTED, Obstacle, sentences},
        signing::{self, ChangedFile},
        skip::SkipDetail,
        step::{Changes, Finding, RefusedPath, Remedy, StepFact, StepFailure, StepInput},
        tree::{
            self, GITLINK, LINK, MAX_FILE_BYTES, MAX_POINTER_BYTES, MAX_SEARCHED_BYTES, TreeChange, shown,
            unsafe_link, unsafe_path,
        },
    },
    runtime::workspaces::{
        Delta, Incoming, SUMMARY, Summary,
        repositories::{BareRepository, Cloned, TreeEntry, is_object_name},
    },
};

/// Largest list of the files of a repository, in bytes: half a million paths of 130 bytes.
const FILES_BYTES: usize = 96 * 1024 * 1024;
/// Largest list of changes, in bytes.
const CHANGES_BYTES: usize = 64 * 1024 * 1024;
/// Largest content that is searched for secrets, in bytes of all files.
const MAX_SEARCHED_IN_ALL: u64 = 64 * 1024 * 1024;
/// Content that is searched at once, in bytes.
const SEARCHED_AT_ONCE: u64 = 8 * 1024 * 1024;
/// Longest target of a symbolic link, in bytes, as Linux limits it.
const MAX_TARGET_BYTES: u64 = 4096;
/// Largest part of a summary that is read, in bytes; as much as of the agent's.
const MAX_SUMMARY_BYTES: usize = 8 * 1024;
/// The most unsafe paths of one answer.
const MAX_UNSAFE: usize = 20;

/// The commit and the trees from which a change is computed.
struct Origin {
    parent: String,
    parent_tree: String,
    /// The tree of the clone.
    base_tree: String,
    /// The tree that the workspace had when the parent was made.
    folder_tree: String,
}

/// The part of a delta that may be in a commit.
struct Usable {
    entries: Vec<TreeEntry>,
    unsafe_paths: Vec<RefusedPath>,
    /// The first paths that are as in the parent, since git cannot read them; and the number of all.
    omitted: (Vec<RefusedPath>, u64),
    /// Objects of the clone, which are no new content.
    known: HashSet<String>,
    has_attributes: bool,
}

pub(super) async fn changes(step: &mut Step<'_>) -> Made {
    let StepInput::Changes { parent } = &step.order.input else { return Err(super::local::other_step()) };
    let repository = repository(step)?;
    let busy = step.workspaces.busy_with(repository.folder());
    let _turn = busy.lock().await;
    let cloned = repository.cloned().await.map_err(broken)?;
    let cloned = cloned
        .ok_or_else(|| skipped(SkipDetail::EmptyRepository, "The repository had no commit when it was cloned"))?;
    let origin = origin(&repository, &cloned, parent.as_deref()).await?;
    let temporary = step.workspaces.temporary_folder().await.map_err(broken)?;
    let pack = temporary.path().join("changes.pack");
    let delta = step.workspaces.delta(step.order.workspace.folder_id, pack.clone()).await.map_err(broken)?;
    if tokio::fs::try_exists(&pack).await.unwrap_or(false) {
        repository.add_pack(pack).await.map_err(broken)?;
    }
    let usable = usable(step, &repository, &origin, &delta).await?;
    let tree = tree_with(&repository, &origin, &usable, &temporary).await?;
    let changed = repository.differences(&origin.parent_tree, &tree, CHANGES_BYTES).await.map_err(broken)?;
    let mut listed = with_sizes(&repository, &changed).await?;
    listed.extend(delta.refused.iter().cloned());
    let mut findings = tree::too_large(&listed);
    if delta.is_incomplete {
        let rule = "the list of changed files is too long to read".to_owned();
        findings.push(Finding { detail: SkipDetail::TooLarge, path: String::new(), line: None, rule });
    }
    if findings.is_empty() {
        findings = lfs_findings(&repository, &origin, &usable, &listed, &changed, &temporary).await?;
        findings.extend(secret_findings(&repository, &usable.known, &listed, &changed).await?);
    }
    let summary = summary(&repository, step.run, &origin.base_tree, delta.summary).await?;
    Ok(StepFact::Changes(Changes {
        parent: origin.parent,
        tree,
        files: tree::listed(&listed),
        total: listed.len() as u64,
        ignored: delta.ignored,
        summary,
        base_branch: cloned.branch,
        findings,
        unsafe_paths: usable.unsafe_paths,
        omitted: usable.omitted.0,
        omitted_total: usable.omitted.1,
        api_obstacle: signing::api_obstacle(
            changed.iter().zip(&listed).map(|(entry, listed)| file_of(entry, listed.bytes)),
        ),
    }))
}

/// The agent's summary, if it wrote one since the last run: neither one of an earlier turn nor one of the repository.
async fn summary(
    repository: &BareRepository,
    run: Uuid,
    base_tree: &str,
    found: Option<Summary>,
) -> Result<Option<String>, StepFailure> {
    let Some(Summary { text, mark }) = found else { return Ok(None) };
    let is_new = repository.is_new_summary(run, &mark).await.map_err(broken)?;
    let cloned = repository.file_of(base_tree, SUMMARY, MAX_SUMMARY_BYTES).await.map_err(broken)?;
    let is_cloned = cloned.is_some_and(|cloned| String::from_utf8_lossy(&cloned).trim() == text);
    Ok(Some(text).filter(|_| is_new && !is_cloned))
}

/// A changed file for the limits of commits that GitHub makes.
pub(super) fn file_of(entry: &TreeEntry, bytes: u64) -> ChangedFile<'_> {
    ChangedFile { path: &entry.path, old_mode: entry.old_mode, mode: entry.mode, bytes }
}

async fn origin(repository: &BareRepository, cloned: &Cloned, parent: Option<&str>) -> Result<Origin, StepFailure> {
    let parent = parent.unwrap_or(&cloned.base).to_owned();
    if !is_object_name(&parent) {
        return Err(failure("invalid-order", "the parent is not the name of a commit", Remedy::Never));
    }
    let tree = |commit: String| async move {
        repository.tree_of(&commit).await.map_err(broken)?.ok_or_else(|| missing_parent(&commit))
    };
    let (parent_tree, base_tree) = (tree(parent.clone()).await?, tree(cloned.base.clone()).await?);
    let folder_tree = match repository.recorded_folder(&parent).await {
        Some(folder) => folder,
        None if parent == cloned.base => base_tree.clone(),
        None => return Err(missing_parent(&parent)),
    };
    Ok(Origin { parent, parent_tree, base_tree, folder_tree })
}

/// Leaves out submodules, unsafe paths, and what git cannot read.
async fn usable(
    step: &mut Step<'_>,
    repository: &BareRepository,
    origin: &Origin,
    delta: &Delta,
) -> Result<Usable, StepFailure> {
    if delta.entries.is_empty() && delta.unsafe_paths.is_empty() && delta.omitted.is_empty() {
        let why = "it is a pipe, for which git waits; remove it";
        let of_pipe = |path: &Vec<u8>| RefusedPath { path: shown(path), why: why.to_owned() };
        return Ok(Usable {
            entries: Vec::new(),
            unsafe_paths: delta.pipes.iter().map(of_pipe).collect(),
            omitted: Default::default(),
            known: HashSet::new(),
            has_attributes: false,
        });
    }
    let files = repository.files(&origin.base_tree, FILES_BYTES).await.map_err(broken)?;
    let gitlinks: HashSet<&[u8]> =
        files.iter().filter(|file| file.mode == Some(GITLINK)).map(|file| file.path.as_slice()).collect();
    let omitted = omitted(delta, &gitlinks);
    let (mut entries, mut unsafe_paths) = (kept_entries(repository, origin, &omitted).await?, Vec::new());
    for entry in delta.entries.iter().filter(|entry| !omitted.has(&entry.path)) {
        if is_within(&gitlinks, &entry.path) {
            step.log(&format!("not committed, since it is of another repository: {}", shown(&entry.path)));
        } else if let Some(why) = unsafe_path(&entry.path, entry.mode) {
            unsafe_paths.push(RefusedPath { path: shown(&entry.path), why: why.to_owned() });
        } else {
            entries.push(entry.clone());
        }
    }
    for path in &delta.unsafe_paths {
        let path = path.strip_suffix(b"/").unwrap_or(path);
        if let Some(why) = unsafe_path(path, None)
            && unsafe_paths.iter().all(|it: &RefusedPath| it.path != shown(path))
        {
            unsafe_paths.push(RefusedPath { path: shown(path), why: why.to_owned() });
        }
    }
    let links = unsafe_links(repository, &entries).await?;
    unsafe_paths.extend(links.into_iter().chain(colliding(&files, &entries)));
    let refused: HashSet<&str> = unsafe_paths.iter().map(|it| it.path.as_str()).collect();
    entries.retain(|entry| !refused.contains(shown(&entry.path).as_str()));
    unsafe_paths.truncate(MAX_UNSAFE);
    let omitted = omitted.named();
    for sentence in sentences(&omitted.0, omitted.1) {
        step.log(&sentence);
    }
    let has_attributes = files.iter().any(|file| file.path.ends_with(b".gitattributes"));
    let known = files.into_iter().map(|file| file.object).collect();
    Ok(Usable { entries, unsafe_paths, omitted, known, has_attributes })
}

/// Paths that stay as they are in the parent.
struct Omitted<'a>(BTreeMap<&'a [u8], Obstacle>);

impl Omitted<'_> {
    /// True for such a path, and for one below it.
    fn has(&self, path: &[u8]) -> bool {
        !self.0.is_empty() && ancestors(path).any(|it| self.0.contains_key(it))
    }

    /// The first ones as text, and the number of all.
    fn named(&self) -> (Vec<RefusedPath>, u64) {
        let to_named =
            |(path, obstacle): (&&[u8], &Obstacle)| RefusedPath { path: shown(path), why: obstacle.why().to_owned() };
        (self.0.iter().take(MAX_OMITTED).map(to_named).collect(), self.0.len() as u64)
    }
}

/// The paths that git cannot read, and the repositories that it recorded. Submodules of the clone are no news.
fn omitted<'a>(delta: &'a Delta, gitlinks: &HashSet<&[u8]>) -> Omitted<'a> {
    let unreadable = delta.omitted.iter().map(|(path, obstacle)| (path.as_slice(), *obstacle));
    let recorded = delta.entries.iter().filter(|entry| entry.mode == Some(GITLINK));
    let recorded = recorded.map(|entry| (entry.path.as_slice(), Obstacle::Repository));
    Omitted(recorded.chain(unreadable).filter(|(path, _)| !is_within(gitlinks, path)).collect())
}

/// The entries of what is left out, from the tree that the workspace had when the parent was made.
async fn kept_entries(
    repository: &BareRepository,
    origin: &Origin,
    omitted: &Omitted<'_>,
) -> Result<Vec<TreeEntry>, StepFailure> {
    if omitted.0.is_empty() || origin.base_tree == origin.folder_tree {
        return Ok(Vec::new());
    }
    let then = repository.differences(&origin.base_tree, &origin.folder_tree, CHANGES_BYTES).await.map_err(broken)?;
    Ok(then.into_iter().filter(|entry| omitted.has(&entry.path)).collect())
}

/// Entries whose names equal those of others but for case or composition.
fn colliding(files: &[TreeEntry], entries: &[TreeEntry]) -> Vec<RefusedPath> {
    let present: HashSet<&[u8]> = paths(files.iter()).collect();
    let changes: Vec<_> =
        entries.iter().map(|entry| change(entry, 0, !present.contains(entry.path.as_slice()))).collect();
    let deleted: HashSet<&[u8]> = paths(entries.iter().filter(|entry| entry.mode.is_none())).collect();
    let kept = paths(files.iter()).filter(|path| !deleted.contains(path));
    tree::collisions(kept.chain(paths(entries.iter().filter(|entry| entry.mode.is_some()))), &changes)
}

fn paths<'a>(entries: impl Iterator<Item = &'a TreeEntry>) -> impl Iterator<Item = &'a [u8]> {
    entries.map(|entry| entry.path.as_slice())
}

/// True for a path of the set, and for one below such a path.
fn is_within(folders: &HashSet<&[u8]>, path: &[u8]) -> bool {
    !folders.is_empty() && ancestors(path).any(|it| folders.contains(it))
}

/// The folders of a path, and the path itself.
fn ancestors(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    memchr::memchr_iter(b'/', path).chain([path.len()]).map(|end| &path[..end])
}

fn change(entry: &TreeEntry, bytes: u64, is_added: bool) -> TreeChange {
    TreeChange { path: entry.path.clone(), mode: entry.mode, bytes, is_added }
}

async fn unsafe_links(repository: &BareRepository, entries: &[TreeEntry]) -> Result<Vec<RefusedPath>, StepFailure> {
    let links: Vec<_> = entries.iter().filter(|entry| entry.mode == Some(LINK)).collect();
    let objects: Vec<_> = links.iter().map(|link| link.object.as_str()).collect();
    let sizes = repository.sizes(&objects).await.map_err(broken)?;
    let total = sizes.iter().sum::<u64>();
    if total > MAX_TARGET_BYTES * links.len() as u64 {
        return Err(failure("unsafe-path", "a symbolic link has a target that is too long", Remedy::Never));
    }
    let targets =
        repository.contents(&objects, usize::try_from(total).unwrap_or(usize::MAX)).await.map_err(broken)?;
    let checked = links.iter().zip(&targets).filter_map(|(link, target)| {
        let why = unsafe_link(&link.path, target)?;
        Some(RefusedPath { path: shown(&link.path), why: format!("it is {why}") })
    });
    Ok(checked.collect())
}

/// Writes the tree of the workspace, relative to the clone, and merges it with what is on the branch.
async fn tree_with(
    repository: &BareRepository,
    origin: &Origin,
    usable: &Usable,
    temporary: &Incoming,
) -> Result<String, StepFailure> {
    let folder = match usable.entries.is_empty() {
        true => origin.base_tree.clone(),
        false => {
            let index = temporary.path().join("index");
            repository.write_tree(&origin.base_tree, &usable.entries, &index).await.map_err(broken)?
        }
    };
    let merged = repository.merge(&origin.folder_tree, &origin.parent_tree, &folder).await.map_err(broken)?;
    let tree = merged.ok_or_else(|| {
        let message = "The changes conflict with commits that others made on the branch. Nothing was pushed";
        failure("conflict", message, Remedy::Never)
    })?;
    repository.record_folder(&tree, &folder).await.map_err(broken)?;
    Ok(tree)
}

async fn with_sizes(repository: &BareRepository, changed: &[TreeEntry]) -> Result<Vec<TreeChange>, StepFailure> {
    let written: Vec<_> = changed.iter().filter(|entry| is_blob(entry)).map(|entry| entry.object.as_str()).collect();
    let sizes = repository.sizes(&written).await.map_err(broken)?;
    let sizes: HashMap<_, _> = written.into_iter().zip(sizes).collect();
    let bytes = |entry: &TreeEntry| sizes.get(entry.object.as_str()).copied().unwrap_or_default();
    Ok(changed.iter().map(|entry| change(entry, bytes(entry), entry.old.is_none())).collect())
}

fn is_blob(entry: &TreeEntry) -> bool {
    entry.mode.is_some_and(|mode| mode != GITLINK)
}

/// Files that Git LFS stores, by the attributes of the parent, whose new contents are no pointers.
async fn lfs_findings(
    repository: &BareRepository,
    origin: &Origin,
    usable: &Usable,
    listed: &[TreeChange],
    changed: &[TreeEntry],
    temporary: &Incoming,
) -> Result<Vec<Finding>, StepFailure> {
    let files: Vec<_> =
        changed.iter().zip(listed).filter(|(entry, _)| is_blob(entry) && entry.mode != Some(LINK)).collect();
    if files.is_empty() || !usable.has_attributes {
        return Ok(Vec::new());
    }
    let names: Vec<_> = files.iter().map(|(entry, _)| entry.path.as_slice()).collect();
    let index = temporary.path().join("index-of-parent");
    let stored = repository.lfs_paths(&origin.parent_tree, &names, &index).await.map_err(broken)?;
    let stored: HashSet<_> = stored.into_iter().collect();
    let (small, large): (Vec<_>, Vec<_>) = files
        .into_iter()
        .filter(|(entry, _)| stored.contains(&entry.path))
        .partition(|(_, change)| change.bytes <= MAX_POINTER_BYTES);
    let mut findings: Vec<_> = large.iter().map(|(entry, _)| tree::lfs(&entry.path)).collect();
    for some in small.chunks(1000) {
        let objects: Vec<_> = some.iter().map(|(entry, _)| entry.object.as_str()).collect();
        let room = usize::try_from(MAX_POINTER_BYTES).unwrap_or_default() * some.len();
        let contents = repository.contents(&objects, room).await.map_err(broken)?;
        let wrong = some.iter().zip(contents).filter(|(_, content)| !tree::is_lfs_pointer(content));
        findings.extend(wrong.map(|((entry, _), _)| tree::lfs(&entry.path)));
    }
    findings.truncate(MAX_UNSAFE);
    Ok(findings)
}

/// Secrets in new contents.
async fn secret_findings(
    repository: &BareRepository,
    known: &HashSet<String>,
    listed: &[TreeChange],
    changed: &[TreeEntry],
) -> Result<Vec<Finding>, StepFailure> {
    let is_new = |entry: &TreeEntry| is_blob(entry) && !known.contains(&entry.object);
    let mut findings = Vec::new();
    let (mut batch, mut bytes, mut total) = (Vec::new(), 0, 0);
    for (entry, change) in changed.iter().zip(listed).filter(|(entry, _)| is_new(entry)) {
        total += change.bytes;
        if change.bytes > MAX_SEARCHED_BYTES || total > MAX_SEARCHED_IN_ALL {
            continue;
        }
        (bytes, _) = (bytes + change.bytes, batch.push(entry));
        if bytes > SEARCHED_AT_ONCE {
            findings.extend(search(repository, &std::mem::take(&mut batch)).await?);
            bytes = 0;
        }
    }
    findings.extend(search(repository, &batch).await?);
    findings.truncate(MAX_UNSAFE);
    Ok(findings)
}

async fn search(repository: &BareRepository, entries: &[&TreeEntry]) -> Result<Vec<Finding>, StepFailure> {
    let objects: Vec<_> = entries.iter().map(|entry| entry.object.as_str()).collect();
    let room = |count: usize| usize::try_from(MAX_SEARCHED_BYTES).unwrap_or_default() * count;
    let contents = repository.contents(&objects, room(objects.len())).await.map_err(broken)?;
    let mut findings = Vec::new();
    for (entry, content) in entries.iter().zip(contents) {
        // Binary files have no lines.
        if memchr::memchr(0, &content).is_some() || tree::secrets(&entry.path, b"", &content).is_empty() {
            continue;
        }
        let old = match &entry.old {
            Some(old)
                if repository.sizes(&[old]).await.map_err(broken)?.iter().all(|size| *size <= MAX_FILE_BYTES) =>
            {
                let room = usize::try_from(MAX_FILE_BYTES).unwrap_or_default();
                repository.contents(&[old], room).await.map_err(broken)?.pop().unwrap_or_default()
            }
            _ => Vec::new(),
        };
        findings.extend(tree::secrets(&entry.path, &old, &content));
    }
    Ok(findings)
}
