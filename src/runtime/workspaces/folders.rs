//! Where agents may work: folders under the root or under an allowed path, with links resolved.

use std::{
    io,
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use cap_std::{ambient_authority, fs::Dir};
use parking_lot::RwLock;

use crate::domain::turn::outcome::{ErrorCode, Failure};

/// Sessions of one connection that may bring a folder of their own; known clients open a handful.
const MAX_FOLDERS: usize = 64;

/// The folders that the configuration allows, links resolved.
#[derive(Debug, Clone)]
pub(crate) struct AllowedFolders {
    root: PathBuf,
    allow_paths: Vec<PathBuf>,
}

/// A checked folder. It is held open, so that replacing it by a link changes nothing.
#[derive(Debug, Clone)]
pub(crate) struct Folder {
    path: PathBuf,
    given: PathBuf,
    dir: Arc<Dir>,
}

impl AllowedFolders {
    /// Makes the root if it is missing, and resolves links. Blocks.
    pub(crate) fn new(root: &Path, allow_paths: &[PathBuf]) -> io::Result<Self> {
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
        Ok(Self { root, allow_paths })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Opens an existing folder that is a workspace (or in one), or is under an allowed path. Blocks.
    pub(crate) fn open(&self, given: &str) -> Result<Folder, Failure> {
        let refused = |why: &str| Failure::new(ErrorCode::PathNotAllowed, format!("{given}: {why}"));
        let given_path = Path::new(given);
        if !given_path.is_absolute() {
            return Err(refused("is not an absolute path"));
        }
        let path = given_path.canonicalize().map_err(|cause| refused(&cause.to_string()))?;
        let allowed = match path.strip_prefix(&self.root) {
            Ok(below) => is_workspace(below),
            // A folder that contains the root would open every workspace.
            Err(_) => {
                !self.root.starts_with(&path) && self.allow_paths.iter().any(|allowed| path.starts_with(allowed))
            }
        };
        if !allowed {
            return Err(refused("is neither a workspace nor under one of `[workspaces] allow_paths`"));
        }
        let dir = Dir::open_ambient_dir(&path, ambient_authority()).map_err(|cause| refused(&cause.to_string()))?;
        Ok(Folder { path, given: given_path.to_owned(), dir: Arc::new(dir) })
    }

    /// Opens a folder for a caller's `path`: under an allowed path and not in the root. Blocks.
    pub(crate) fn open_allowed_path(&self, given: &str) -> Result<Folder, Failure> {
        let folder = self.open(given)?;
        if folder.path.starts_with(&self.root) {
            return Err(Failure::new(ErrorCode::PathNotAllowed, format!("{given}: is inside the workspaces' root")));
        }
        Ok(folder)
    }
}

/// Names that begin with a dot are the runtime's own.
fn is_workspace(below_root: &Path) -> bool {
    matches!(below_root.components().next(), Some(Component::Normal(name)) if !name.as_encoded_bytes().starts_with(b"."))
}

impl Folder {
    /// Its path, links resolved.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn dir(&self) -> &Dir {
        &self.dir
    }

    /// Whether another folder is this one or in it.
    pub(crate) fn contains(&self, other: &Folder) -> bool {
        other.path.starts_with(&self.path)
    }

    /// What `path` is relative to this folder, if by its text it is in it. Only opening it through
    /// [`Folder::dir`] tells whether it really is.
    pub(crate) fn relative<'a>(&self, path: &'a Path) -> Option<&'a Path> {
        let below = path.strip_prefix(&self.path).or_else(|_| path.strip_prefix(&self.given)).ok()?;
        Some(if below.as_os_str().is_empty() { Path::new(".") } else { below })
    }
}

/// The folders of one connection's sessions: one agent process serves them all.
#[derive(Debug, Clone, Default)]
pub(crate) struct SessionFolders {
    folders: Arc<RwLock<Vec<Folder>>>,
}

impl SessionFolders {
    /// Adds a session's folder; the latest is the one in which commands run by default.
    pub(crate) fn add(&self, folder: Folder) -> Result<(), Failure> {
        let mut folders = self.folders.write();
        folders.retain(|known| known.path != folder.path || known.given != folder.given);
        if folders.len() >= MAX_FOLDERS {
            let detail = format!("one connection may use {MAX_FOLDERS} folders");
            return Err(Failure::new(ErrorCode::InvalidRequest, detail));
        }
        folders.push(folder);
        Ok(())
    }

    /// The folder that `path` is in, and its path there. `None` where it is in none.
    pub(crate) fn find(&self, path: &Path) -> Option<(Folder, PathBuf)> {
        let folders = self.folders.read();
        folders.iter().rev().find_map(|folder| Some((folder.clone(), folder.relative(path)?.to_owned())))
    }

    /// The folder of the latest session.
    pub(crate) fn latest(&self) -> Option<Folder> {
        self.folders.read().last().cloned()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_workspaces_and_allowed_paths_are_opened() {
        let base = tempfile::tempdir().unwrap();
        let base = base.path().canonicalize().unwrap();
        for name in ["root/ws/src", "root/.baselines/x", "allowed/project", "other"] {
            std::fs::create_dir_all(base.join(name)).unwrap();
        }
        symlink(base.join("other"), base.join("root/ws/link")).unwrap();
        symlink(base.join("other"), base.join("allowed/link")).unwrap();
        let allowed = AllowedFolders::new(&base.join("root"), &[base.join("allowed")]).unwrap();
        let open = |name: &str| allowed.open(base.join(name).to_str().unwrap());
        for name in ["root/ws", "root/ws/src", "root/ws/../ws", "allowed", "allowed/project"] {
            assert!(open(name).is_ok(), "{name}");
        }
        for name in ["root", "root/.baselines/x", "root/ws/link", "root/ws/../../other", "allowed/link", "", "none"] {
            assert_eq!(open(name).unwrap_err().code, ErrorCode::PathNotAllowed, "{name}");
        }
        assert!(allowed.open("root/ws").is_err());
        assert!(allowed.open_allowed_path(base.join("root/ws").to_str().unwrap()).is_err());
        let wide = AllowedFolders::new(&base.join("root"), std::slice::from_ref(&base)).unwrap();
        assert!(wide.open(base.to_str().unwrap()).is_err(), "a folder around the root");
    }
}
