//! The user that an agent runs as.

use std::{ffi::CString, io, mem::MaybeUninit};

/// A user and its primary group. Supplementary groups are dropped rather than looked up, so the agent gets no rights
/// beyond these two ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RunAs {
    pub uid: u32,
    pub gid: u32,
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
}

impl RunAs {
    /// Looks up a user by name or number. Blocks while the system's user database is read, which may ask a directory
    /// service over the network.
    ///
    /// # Errors
    /// This program is not root, the user does not exist, or the user database cannot be read. Only the last is worth
    /// a retry.
    pub(crate) fn resolve(user: &str) -> Result<Self, RunAsError> {
        // SAFETY: a system call without arguments.
        if unsafe { libc::geteuid() } != 0 {
            return Err(RunAsError::NotRoot(user.to_owned()));
        }
        lookup(user)?.ok_or_else(|| RunAsError::Unknown(user.to_owned()))
    }
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
}
