//! The user that an agent runs as.

use std::{ffi::CString, fs, io, mem::MaybeUninit, os::unix::fs::MetadataExt};

use crate::domain::jail::pool::{BadPool, UserPool};

/// A user and its primary group. Supplementary groups are dropped rather than looked up, so the agent gets no rights
/// beyond these two ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RunAs {
    pub uid: u32,
    pub gid: u32,
}

/// The setting `run_as`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RunsAs {
    /// One user for all tenants.
    User(RunAs),
    /// A user of its own for each tenant.
    Pool(UserPool),
}

/// Reasons why the configured user cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunAsError {
    #[error("`run_as`: user `{0}` does not exist")]
    Unknown(String),
    /// This program does not run as root, so it cannot change the user.
    #[error("`run_as = \"{0}\"` requires the runtime to run as root")]
    NotRoot(String),
    #[error("`run_as`: {0}")]
    Lookup(#[from] io::Error),
    #[error("`run_as`: {0}")]
    Pool(#[from] BadPool),
}

impl RunsAs {
    /// Parses a pool, or looks up a user by name or number. Blocks while the system's user database is read, which may ask a
    /// directory service over the network.
    ///
    /// # Errors
    /// This program is not root, the user does not exist, the pool is malformed, or the user database cannot be read. Only
    /// the last is worth a retry.
    pub(crate) fn resolve(run_as: &str) -> Result<Self, RunAsError> {
        if rustix::process::geteuid().is_root() {
            if UserPool::is_meant(run_as) {
                return Ok(Self::Pool(run_as.parse()?));
            }
            let user = lookup(run_as)?.ok_or_else(|| RunAsError::Unknown(run_as.to_owned()))?;
            return Ok(Self::User(user));
        }
        Err(RunAsError::NotRoot(run_as.to_owned()))
    }

    /// The user whose rights stand for all: the first one of a pool.
    pub(crate) fn example(self) -> RunAs {
        match self {
            Self::User(user) => user,
            Self::Pool(pool) => RunAs { uid: *pool.ids().start(), gid: *pool.ids().start() },
        }
    }
}

impl RunAs {
    /// The owner of a file, if this program is root and it is another user: work on what the owner wrote then needs no more
    /// rights than the owner has.
    pub(crate) fn owner(metadata: &fs::Metadata) -> Option<Self> {
        let own = rustix::process::geteuid();
        let is_other = own.is_root() && metadata.uid() != own.as_raw();
        is_other.then(|| Self { uid: metadata.uid(), gid: metadata.gid() })
    }

    /// Gives the calling thread the rights of this user on files, without any supplementary group, until the answer is
    /// dropped: new files belong to the user, and the kernel refuses what the user may not touch. No other thread is
    /// affected. Requires root.
    ///
    /// # Errors
    /// The kernel refuses the change; the thread has its former rights then.
    pub(crate) fn assume_for_files(self) -> io::Result<FileIdentity> {
        let groups = rustix::process::getgroups()?.into_iter().map(rustix::process::Gid::as_raw).collect();
        // SAFETY: system calls without pointers that affect this thread alone. An invalid id only returns the current one.
        let former = unsafe { (libc::setfsuid(u32::MAX) as u32, libc::setfsgid(u32::MAX) as u32) };
        let identity = FileIdentity { uid: former.0, gid: former.1, groups };
        // The groups are set first: the change of user takes the rights on files, and no right to change groups.
        set_groups(&[])?;
        // SAFETY: as above.
        let is_changed = unsafe {
            libc::setfsgid(self.gid);
            libc::setfsuid(self.uid);
            libc::setfsgid(u32::MAX) as u32 == self.gid && libc::setfsuid(u32::MAX) as u32 == self.uid
        };
        if is_changed { Ok(identity) } else { Err(io::Error::from_raw_os_error(libc::EPERM)) }
    }
}

/// Rights of another user on files, for one thread. See [`RunAs::assume_for_files`].
#[derive(Debug)]
pub(crate) struct FileIdentity {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
}

impl Drop for FileIdentity {
    fn drop(&mut self) {
        // SAFETY: system calls without pointers that affect this thread alone.
        let is_back = unsafe {
            libc::setfsuid(self.uid);
            libc::setfsgid(self.gid);
            libc::setfsuid(u32::MAX) as u32 == self.uid && libc::setfsgid(u32::MAX) as u32 == self.gid
        };
        if set_groups(&self.groups).is_err() || !is_back {
            // The thread would do the work of others with the wrong rights.
            std::process::abort();
        }
    }
}

/// Sets the supplementary groups of the calling thread alone, unlike the function of the C library.
fn set_groups(groups: &[u32]) -> io::Result<()> {
    // SAFETY: the pointer is valid for the given number of groups.
    match unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// True if the machine has an account with this id. Blocks as [`RunsAs::resolve`] does.
pub(super) fn exists(uid: u32) -> io::Result<bool> {
    Ok(lookup(&uid.to_string())?.is_some())
}

fn lookup(user: &str) -> io::Result<Option<RunAs>> {
    let name = CString::new(user).map_err(|cause| io::Error::new(io::ErrorKind::InvalidInput, cause))?;
    let mut entry = MaybeUninit::<libc::passwd>::uninit();
    let mut found = std::ptr::null_mut();
    // Holds the text fields of the entry. They are not used, but the call fails if they do not fit.
    let mut text = vec![0; 64 * 1024];
    // SAFETY: all pointers are valid for the whole call, and the length is that of the buffer.
    let error = unsafe {
        match user.parse() {
            Ok(uid) => libc::getpwuid_r(uid, entry.as_mut_ptr(), text.as_mut_ptr(), text.len(), &mut found),
            Err(_) => libc::getpwnam_r(name.as_ptr(), entry.as_mut_ptr(), text.as_mut_ptr(), text.len(), &mut found),
        }
    };
    if error != 0 {
        return Err(io::Error::from_raw_os_error(error));
    }
    if found.is_null() {
        return Ok(None);
    }
    // SAFETY: the call succeeded and returned a pointer to the entry, so the entry is initialised.
    let entry = unsafe { entry.assume_init() };
    Ok(Some(RunAs { uid: entry.pw_uid, gid: entry.pw_gid }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lookup_finds_users_by_name_and_by_number() {
        assert_eq!(lookup("root").unwrap(), Some(RunAs { uid: 0, gid: 0 }));
        assert_eq!(lookup("0").unwrap(), Some(RunAs { uid: 0, gid: 0 }));
        assert_eq!(lookup("no-such-user-here").unwrap(), None);
    }

    #[test]
    fn rights_on_files_are_those_of_the_user_without_the_groups_of_this_program() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("NOT CHECKED: needs root");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let file = |name: &str, mode: u32, gid: u32| {
            let path = folder.path().join(name);
            fs::write(&path, "x").unwrap();
            std::os::unix::fs::chown(&path, Some(0), Some(gid)).unwrap();
            fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
            path
        };
        let (of_root, of_group, of_all) = (file("a", 0o600, 0), file("b", 0o640, 4321), file("c", 0o644, 0));
        // A thread of its own: the groups of a failed test end with it.
        let work = move || {
            set_groups(&[0, 4321]).unwrap();
            let identity = RunAs { uid: 70000, gid: 70000 }.assume_for_files().unwrap();
            assert!(fs::read(&of_root).is_err() && fs::read(&of_group).is_err() && fs::read(&of_all).is_ok());
            drop(identity);
            assert!(fs::read(&of_root).is_ok());
            let groups: Vec<_> = rustix::process::getgroups().unwrap().into_iter().map(|it| it.as_raw()).collect();
            assert_eq!(groups, [0, 4321]);
        };
        std::thread::spawn(work).join().unwrap();
    }
}
