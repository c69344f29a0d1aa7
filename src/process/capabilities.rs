//! The capabilities of a thread of this program.

use std::io;

use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

/// Takes the effective capabilities from the calling thread until the answer is dropped: as root it then reads what the
/// modes of files let root read, as a process in the jail does. No other thread is affected.
///
/// # Errors
/// The kernel refuses the change; the thread has its former capabilities then.
pub(crate) fn lay_down() -> io::Result<LaidDown> {
    let former = capabilities(None)?;
    set_capabilities(None, CapabilitySets { effective: CapabilitySet::empty(), ..former })?;
    Ok(LaidDown { former })
}

/// The former capabilities of a thread. See [`lay_down`].
#[derive(Debug)]
pub(crate) struct LaidDown {
    former: CapabilitySets,
}

impl Drop for LaidDown {
    fn drop(&mut self) {
        // What is permitted can always become effective again. If it could not, the thread would fail at the work of others.
        if set_capabilities(None, self.former).is_err() {
            std::process::abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    #[test]
    fn file_without_read_mode_is_refused_to_root_until_the_capabilities_are_back() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("NOT CHECKED: needs root");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a");
        fs::write(&file, "x").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o000)).unwrap();
        let laid_down = lay_down().unwrap();
        assert_eq!(fs::read(&file).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        drop(laid_down);
        assert_eq!(fs::read(&file).unwrap(), b"x");
    }
}
