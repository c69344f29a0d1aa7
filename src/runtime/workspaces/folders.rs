//! Checks where agents may work: in folders under the root or under an allowed path, with symbolic links resolved.

use std::{
    io,
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use cap_std::{ambient_authority, fs::Dir};
use parking_lot::RwLock;

use crate::{
    domain::{
        ceilings::{PATH_NOT_ADMITTED, is_below_one_of},
        turn::outcome::{ErrorCode, Failure},
    },
    process::sandbox::without_links,
};

/// Largest number of folders of one connection. Each session may add one; known clients open a handful of sessions.
const MAX_FOLDERS: usize = 64;

/// Reason of a refusal that reveals nothing about the path.
const NOT_ALLOWED: &str = "is neither a workspace nor under one of `[workspaces] allow_paths`";

/// Reason of a refusal of a folder with files of this program: its agent could read the database of all tenants.
const OWN_FILES: &str =
    "contains the data folder, the database or the configuration file of this program, or is in the data folder";

/// Folders that the configuration allows, with links resolved.
#[derive(Debug, Clone)]
pub(crate) struct AllowedFolders {
    root: PathBuf,
    allow_paths: Vec<PathBuf>,
    /// Files and folders of this program.
    own_files: Vec<PathBuf>,
}

/// Checked folder. The folder is held open, so replacing it by a link later has no effect.
#[derive(Debug, Clone)]
pub(crate) struct Folder {
    /// Path with links resolved.
    path: PathBuf,
    /// Path as the client wrote it. Agents use it too, so it is accepted as a prefix.
    given: PathBuf,
    dir: Arc<Dir>,
}

impl AllowedFolders {
    /// Creates the root if it is missing, and resolves links in all paths. No folder may contain one of `own_files` or be
    /// inside one, but for workspaces. Blocks.
    ///
    /// # Errors
    /// The root cannot be created, or an allowed path does not exist.
    pub(crate) fn new(root: &Path, allow_paths: &[PathBuf], own_files: &[PathBuf]) -> io::Result<Self> {
        std::fs::create_dir_all(root)?;
        let root = root.canonicalize()?;
        let allow_paths = allow_paths
            .iter()
            .map(|path| {
                path.canonicalize().map_err(|cause| {
                    io::Error::new(cause.kind(), format!("allow_paths: {}: {cause}", path.display()))
                })
            })
            .collect::<io::Result<_>>()?;
        let own_files = own_files.iter().map(|path| without_links(path)).collect();
        Ok(Self { root, allow_paths, own_files })
    }

    /// Root of the workspaces, with links resolved.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Opens an existing folder that is a workspace, inside one, or under an allowed path. Blocks.
    ///
    /// # Errors
    /// `path_not_allowed`, or `folder_missing` if the path is by its text under the root or an allowed path; elsewhere the
    /// answer does not depend on what exists.
    pub(crate) fn open(&self, given: &str) -> Result<Folder, Failure> {
        let refused = |why: &str| Failure::new(ErrorCode::PathNotAllowed, format!("{given}: {why}"));
        let given_path = Path::new(given);
        if !given_path.is_absolute() {
            return Err(refused("is not an absolute path"));
        }
        let path = given_path.canonicalize().map_err(|cause| self.unresolved(given_path, &cause))?;
        let allowed = match path.strip_prefix(&self.root) {
            Ok(below) => is_workspace(below),
            Err(_) => self.allow_paths.iter().any(|allowed| path.starts_with(allowed)),
        };
        if !allowed {
            return Err(refused(NOT_ALLOWED));
        }
        let mut own_files = self.own_files.iter().chain([&self.root]);
        if !path.starts_with(&self.root) && own_files.any(|own| own.starts_with(&path) || path.starts_with(own)) {
            return Err(refused(OWN_FILES));
        }
        let dir = Dir::open_ambient_dir(&path, ambient_authority()).map_err(|cause| refused(&cause.to_string()))?;
        Ok(Folder { path, given: given_path.to_owned(), dir: Arc::new(dir) })
    }

    /// The failure for a path that cannot be resolved.
    fn unresolved(&self, given: &Path, cause: &io::Error) -> Failure {
        let mut places = std::iter::once(&self.root).chain(&self.allow_paths);
        let is_below = places.any(|place| given.starts_with(place) && given != place)
            && !given.components().any(|part| part == Component::ParentDir);
        match cause.kind() {
            _ if !is_below => Failure::new(ErrorCode::PathNotAllowed, format!("{}: {NOT_ALLOWED}", given.display())),
            io::ErrorKind::NotFound => {
                Failure::new(ErrorCode::FolderMissing, format!("{}: does not exist", given.display()))
            }
            _ => Failure::new(ErrorCode::PathNotAllowed, format!("{}: {cause}", given.display())),
        }
    }

    /// Opens an existing folder that a caller named by `path`: under an allowed path, in one of `within` if given, and
    /// outside the root. Blocks.
    ///
    /// # Errors
    /// As [`open`](Self::open); `ceiling_exceeded` outside `within`, whether the folder exists or not.
    pub(crate) fn open_allowed_path(&self, given: &str, within: Option<&[String]>) -> Result<Folder, Failure> {
        let opened = self.open(given);
        if let Some(within) = within {
            let is_within = match &opened {
                Ok(folder) => within.iter().any(|it| folder.path.starts_with(without_links(Path::new(it)))),
                Err(_) => is_below_one_of(within, given),
            };
            if !is_within {
                return Err(Failure::new(ErrorCode::CeilingExceeded, PATH_NOT_ADMITTED));
            }
        }
        let folder = opened?;
        if folder.path.starts_with(&self.root) {
            return Err(Failure::new(ErrorCode::PathNotAllowed, format!("{given}: is inside the workspaces' root")));
        }
        Ok(folder)
    }
}

/// True if a path relative to the root is a workspace or inside one. Names that begin with a dot belong to the
/// runtime itself.
fn is_workspace(below_root: &Path) -> bool {
    matches!(below_root.components().next(), Some(Component::Normal(name)) if !name.as_encoded_bytes().starts_with(b"."))
}

impl Folder {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Open handle, relative to which paths are resolved without leaving the folder.
    pub(crate) fn dir(&self) -> &Dir {
        &self.dir
    }

    /// True if `other` is this folder or inside it.
    pub(crate) fn contains(&self, other: &Folder) -> bool {
        other.path.starts_with(&self.path)
    }

    /// Strips this folder's path from `path`. Returns `None` for a path that is textually outside.
    ///
    /// The result is unchecked: `..` or a link may still lead out. Only opening it through [`Folder::dir`] is safe.
    pub(crate) fn relative<'a>(&self, path: &'a Path) -> Option<&'a Path> {
        let below = path.strip_prefix(&self.path).or_else(|_| path.strip_prefix(&self.given)).ok()?;
        Some(if below.as_os_str().is_empty() { Path::new(".") } else { below })
    }
}

/// Folders of all sessions of one connection, which share one agent process. Clones share the same list.
#[derive(Debug, Clone, Default)]
pub(crate) struct SessionFolders {
    folders: Arc<RwLock<Vec<Folder>>>,
}

impl SessionFolders {
    /// Adds a session's folder, which becomes the default working directory of commands.
    ///
    /// # Errors
    /// `invalid_request` if the connection already uses [`MAX_FOLDERS`] folders.
    pub(crate) fn add(&self, folder: Folder) -> Result<(), Failure> {
        let mut folders = self.folders.write();
        folders.retain(|known| known.path != folder.path || known.given != folder.given);
        if folders.len() >= MAX_FOLDERS {
            let detail = format!("one connection may use at most {MAX_FOLDERS} folders");
            return Err(Failure::new(ErrorCode::InvalidRequest, detail));
        }
        folders.push(folder);
        Ok(())
    }

    /// Returns the folder that `path` is textually in, newest first, and the unchecked path relative to it.
    pub(crate) fn find(&self, path: &Path) -> Option<(Folder, PathBuf)> {
        let folders = self.folders.read();
        folders.iter().rev().find_map(|folder| Some((folder.clone(), folder.relative(path)?.to_owned())))
    }

    /// Paths of all folders, without links.
    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        self.folders.read().iter().map(|folder| folder.path.clone()).collect()
    }

    /// Folder that was added last; `None` before the first session.
    pub(crate) fn latest(&self) -> Option<Folder> {
        self.folders.read().last().cloned()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_workspaces_and_allowed_paths_can_be_opened() {
        let base = tempfile::tempdir().unwrap();
        let base = base.path().canonicalize().unwrap();
        for name in ["root/ws/src", "root/.baselines/x", "allowed/project", "other"] {
            std::fs::create_dir_all(base.join(name)).unwrap();
        }
        symlink(base.join("other"), base.join("root/ws/link")).unwrap();
        symlink(base.join("other"), base.join("allowed/link")).unwrap();
        let allowed = AllowedFolders::new(&base.join("root"), &[base.join("allowed")], &[]).unwrap();
        let open = |name: &str| allowed.open(base.join(name).to_str().unwrap());
        for name in ["root/ws", "root/ws/src", "root/ws/../ws", "allowed", "allowed/project"] {
            assert!(open(name).is_ok(), "{name}");
        }
        for name in [
            "root",
            "root/.baselines/x",
            "root/ws/link",
            "root/ws/../../other",
            "allowed/link",
            "",
            "none",
            "other/none",
            "allowed/../none",
        ] {
            assert_eq!(open(name).unwrap_err().code, ErrorCode::PathNotAllowed, "{name}");
        }
        for name in ["root/gone", "allowed/gone", "root/ws/gone"] {
            assert_eq!(open(name).unwrap_err().code, ErrorCode::FolderMissing, "{name}");
        }
        assert!(allowed.open("root/ws").is_err());
        assert!(allowed.open_allowed_path(base.join("root/ws").to_str().unwrap(), None).is_err());
        let wide = AllowedFolders::new(&base.join("root"), std::slice::from_ref(&base), &[]).unwrap();
        assert!(wide.open(base.to_str().unwrap()).is_err(), "a folder around the root");
    }

    #[test]
    fn link_out_of_the_listed_folders_is_refused_like_a_folder_outside() {
        let base = tempfile::tempdir().unwrap();
        let base = base.path().canonicalize().unwrap();
        for name in ["root", "allowed/a/project", "allowed/b/project"] {
            std::fs::create_dir_all(base.join(name)).unwrap();
        }
        symlink(base.join("allowed/a/project"), base.join("allowed/b/link")).unwrap();
        symlink(base.join("allowed/b"), base.join("allowed/of-b")).unwrap();
        let allowed = AllowedFolders::new(&base.join("root"), &[base.join("allowed")], &[]).unwrap();
        let text = |name: &str| base.join(name).to_str().unwrap().to_owned();
        let code = |name: &str, listed: &str| {
            allowed.open_allowed_path(&text(name), Some(&[text(listed)])).err().map(|it| it.code)
        };
        for name in ["allowed/b", "allowed/b/project"] {
            assert_eq!(code(name, "allowed/b"), None, "{name}");
            assert_eq!(code(name, "allowed/of-b"), None, "{name}: the listed folder is a link");
        }
        for name in ["allowed/a/project", "allowed/b/link", "allowed/a/none", "allowed", "none", "allowed/b/../a"] {
            assert_eq!(code(name, "allowed/b"), Some(ErrorCode::CeilingExceeded), "{name}");
        }
        assert_eq!(code("allowed/b/none", "allowed/b"), Some(ErrorCode::FolderMissing));
        assert_eq!(code("allowed/b", "none"), Some(ErrorCode::CeilingExceeded));
    }

    #[test]
    fn folder_with_the_data_folder_or_the_configuration_cannot_be_opened() {
        let base = tempfile::tempdir().unwrap();
        let base = base.path().canonicalize().unwrap();
        for name in ["project/data/workspaces/ws", "project/data/cache", "project/src", "conf"] {
            std::fs::create_dir_all(base.join(name)).unwrap();
        }
        let own = [base.join("project/data"), base.join("conf/lumilink.toml")];
        let allow = [base.clone()];
        let allowed = AllowedFolders::new(&base.join("project/data/workspaces"), &allow, &own).unwrap();
        let open = |name: &str| allowed.open(base.join(name).to_str().unwrap());
        assert!(open("project/src").is_ok() && open("project/data/workspaces/ws").is_ok());
        for name in ["project", "project/data", "project/data/cache", "conf"] {
            let refused = open(name).unwrap_err();
            assert_eq!(refused.code, ErrorCode::PathNotAllowed, "{name}");
        }
        assert!(open("project").unwrap_err().detail.contains("data folder"));
    }
}
