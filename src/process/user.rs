//! The user as whom an agent runs.

use std::{ffi::CString, io, mem::MaybeUninit};

/// A user and its primary group. Supplementary groups are dropped, not looked up: the agent gets no more
/// than its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RunAs {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// The configured user cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunAsError {
    /// No such user.
    #[error("`run_as`: there is no user `{0}` on this machine")]
    Unknown(String),
    /// The program is not root.
    #[error("`run_as = \"{0}\"` needs the runtime to run as root")]
    NotRoot(String),
    /// The user database could not be read.
    #[error("`run_as`: {0}")]
    Lookup(#[from] io::Error),
}

impl RunAs {
    /// Looks a user up by name or number. Blocks, for as long as the machine's user database takes.
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
    // The text fields of an entry; they are not used, but have to fit.
    let mut text = vec![0; 64 * 1024];
    // SAFETY: all pointers are valid through the call, and the buffer's length is its own.
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
    // SAFETY: the call succeeded and says that it filled the entry.
    let entry = unsafe { entry.assume_init() };
    Ok(Some(RunAs { uid: entry.pw_uid, gid: entry.pw_gid }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_name_and_number() {
        assert_eq!(lookup("root").unwrap(), Some(RunAs { uid: 0, gid: 0 }));
        assert_eq!(lookup("0").unwrap(), Some(RunAs { uid: 0, gid: 0 }));
        assert_eq!(lookup("no-such-user-here").unwrap(), None);
    }
}
