//! Hands a folder tree over to the user of an agent, by open descriptors.
//!
//! No path is resolved but that of the folder itself, and no link is followed: each entry is opened as a place below its open
//! folder, examined, and changed by that descriptor, so that a link which replaces an entry meanwhile changes nothing. Only
//! what belongs to this program's own user is handed over.

use std::{
    ffi::CStr,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::Path,
};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Uid, chownat, fstat, openat, openat2,
};

use super::user::RunAs;

/// Deepest folder that is handed over. Trees that git makes have some tens of levels; each level takes two descriptors.
const MAX_DEPTH: u32 = 256;

/// A tree cannot be handed over.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandOverError {
    /// A part of it belongs neither to this program's user nor to that of the agent.
    #[error("it belongs to user {owner}, and the agent runs as user {user}")]
    OtherOwner { owner: u32, user: u32 },
    /// A file of this program's user has another name, which may be outside of the tree.
    #[error("it holds a file with more than one name")]
    HardLink,
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<rustix::io::Errno> for HandOverError {
    fn from(cause: rustix::io::Errno) -> Self {
        Self::Io(cause.into())
    }
}

/// True if the folder belongs to the user.
///
/// # Errors
/// It belongs to another one than this program's own, or cannot be examined.
pub(crate) fn belongs_to(folder: &Path, user: RunAs) -> Result<bool, HandOverError> {
    is_owner(std::fs::symlink_metadata(folder)?.uid(), user)
}

/// Changes the owner of a folder and of everything in it to `user`. The folder is changed last: its owner marks the change
/// as complete, so an interrupted one is repeated by the next call. No agent may live in the folder. Blocks.
///
/// # Errors
/// Those of [`HandOverError`]; a part may have been handed over then. A retry is safe.
pub(crate) fn hand_over(folder: &Path, user: RunAs) -> Result<(), HandOverError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let top = open_at(CWD, folder, flags, ResolveFlags::NO_SYMLINKS)?;
    give(&top, &fstat(&top)?, user, MAX_DEPTH)
}

fn give(entry: &OwnedFd, stat: &Stat, user: RunAs, depth: u32) -> Result<(), HandOverError> {
    let is_given = is_owner(stat.st_uid, user)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        let depth = depth.checked_sub(1).ok_or_else(|| io::Error::other("its folders are too deep"))?;
        // The descriptor is only a place; `.` is the folder itself, whatever has its name now.
        let listing = openat(entry, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        for name in Dir::read_from(&listing)? {
            let name = name?;
            let name = name.file_name();
            if name != c"." && name != c".." {
                let below = open_below(entry, name)?;
                give(&below, &fstat(&below)?, user, depth)?;
            }
        }
    } else if !is_given && stat.st_nlink > 1 && FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        return Err(HandOverError::HardLink);
    }
    if !is_given {
        let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
        chownat(entry, c"", Some(uid), Some(gid), AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW)?;
    }
    Ok(())
}

fn is_owner(owner: u32, user: RunAs) -> Result<bool, HandOverError> {
    match owner {
        owner if owner == user.uid => Ok(true),
        owner if owner == rustix::process::geteuid().as_raw() => Ok(false),
        owner => Err(HandOverError::OtherOwner { owner, user: user.uid }),
    }
}

/// Opens an entry of a folder as a place; of a link, the link itself.
fn open_below(folder: &OwnedFd, name: &CStr) -> rustix::io::Result<OwnedFd> {
    let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    open_at(folder.as_fd(), name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, within)
}

fn open_at<P: rustix::path::Arg + Copy>(
    folder: std::os::fd::BorrowedFd<'_>,
    path: P,
    flags: OFlags,
    resolve: ResolveFlags,
) -> rustix::io::Result<OwnedFd> {
    match openat2(folder, path, flags, Mode::empty(), resolve) {
        // A container may forbid the newer call. A name of one part has no link but itself, and that is not followed.
        Err(rustix::io::Errno::NOSYS | rustix::io::Errno::PERM) => openat(folder, path, flags, Mode::empty()),
        opened => opened,
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{chown, symlink},
        path::PathBuf,
        sync::atomic::{AtomicBool, Ordering},
    };

    use super::*;

    const USER: RunAs = RunAs { uid: 70000, gid: 70000 };

    struct Place {
        base: tempfile::TempDir,
    }

    impl Place {
        /// `None` without root.
        fn new() -> Option<Self> {
            if !rustix::process::geteuid().is_root() {
                eprintln!("NOT CHECKED: needs root");
                return None;
            }
            let base = tempfile::tempdir().unwrap();
            fs::create_dir_all(base.path().join("ws/sub/deep")).unwrap();
            fs::create_dir_all(base.path().join("outside")).unwrap();
            fs::write(base.path().join("outside/secret"), "secret").unwrap();
            Some(Self { base })
        }

        fn at(&self, name: &str) -> PathBuf {
            self.base.path().canonicalize().unwrap().join(name)
        }

        fn owner(&self, name: &str) -> u32 {
            fs::symlink_metadata(self.at(name)).unwrap().uid()
        }

        fn hand_over(&self) -> Result<(), HandOverError> {
            hand_over(&self.at("ws"), USER)
        }
    }

    #[test]
    fn tree_is_handed_over_and_the_targets_of_its_links_are_not() {
        let Some(place) = Place::new() else { return };
        fs::write(place.at("ws/sub/deep/file"), "x").unwrap();
        symlink(place.at("outside"), place.at("ws/folder-link")).unwrap();
        symlink(place.at("outside/secret"), place.at("ws/sub/file-link")).unwrap();
        place.hand_over().unwrap();
        for name in ["ws", "ws/sub", "ws/sub/deep", "ws/sub/deep/file", "ws/folder-link", "ws/sub/file-link"] {
            assert_eq!(place.owner(name), USER.uid, "{name}");
        }
        assert_eq!((place.owner("outside"), place.owner("outside/secret")), (0, 0));
        assert!(belongs_to(&place.at("ws"), USER).unwrap());
    }

    #[test]
    fn files_of_other_users_and_with_other_names_are_refused() {
        let Some(place) = Place::new() else { return };
        fs::hard_link(place.at("outside/secret"), place.at("ws/sub/linked")).unwrap();
        assert!(matches!(place.hand_over(), Err(HandOverError::HardLink)));
        fs::remove_file(place.at("ws/sub/linked")).unwrap();
        chown(place.at("ws/sub"), Some(12), None).unwrap();
        assert!(matches!(place.hand_over(), Err(HandOverError::OtherOwner { owner: 12, .. })));
        assert_ne!(place.owner("ws"), USER.uid, "an incomplete change is not marked as complete");
        chown(place.at("ws/sub"), Some(0), None).unwrap();
        chown(place.at("ws"), Some(12), None).unwrap();
        assert!(matches!(place.hand_over(), Err(HandOverError::OtherOwner { owner: 12, .. })));
        assert!(belongs_to(&place.at("ws"), USER).is_err());
        assert_eq!(place.owner("outside/secret"), 0);
    }

    #[test]
    fn links_that_are_swapped_in_meanwhile_change_nothing_outside() {
        let Some(place) = Place::new() else { return };
        let names: Vec<_> = (0..8).map(|n| place.at(&format!("ws/{n}"))).collect();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for name in &names {
                let (stop, target) = (&stop, place.at("outside"));
                let spare = name.with_extension("link");
                scope.spawn(move || {
                    fs::create_dir(name).unwrap();
                    symlink(target, &spare).unwrap();
                    let path = |path: &Path| std::ffi::CString::new(path.to_str().unwrap()).unwrap();
                    let (name, spare) = (path(name), path(&spare));
                    while !stop.load(Ordering::Relaxed) {
                        // SAFETY: both names are C strings.
                        unsafe {
                            let cwd = libc::AT_FDCWD;
                            libc::renameat2(cwd, name.as_ptr(), cwd, spare.as_ptr(), libc::RENAME_EXCHANGE)
                        };
                    }
                });
            }
            for _ in 0..300 {
                // An entry that changes during the listing may be missing.
                let _ = place.hand_over();
                chown(place.at("ws"), Some(0), Some(0)).unwrap();
                assert_eq!((place.owner("outside"), place.owner("outside/secret")), (0, 0));
            }
            stop.store(true, Ordering::Relaxed);
        });
    }
}
