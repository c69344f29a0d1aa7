//! Rights that Landlock offers on this kernel, found once at the start.

use std::{fs::File, io};

use super::ruleset;
use crate::domain::jail::KernelRights;

/// `LANDLOCK_CREATE_RULESET_VERSION`: the call returns the ABI instead of a ruleset.
const VERSION: u32 = 1;

/// Finds the rights that this kernel enforces, by its answer and by a trial: a thread confines itself and must then be
/// refused. Blocks for about a millisecond.
///
/// # Errors
/// The ABI promises more than the kernel enforces, or the thread cannot be started. The jail counts as absent then.
pub(crate) fn detect() -> io::Result<KernelRights> {
    let rights = KernelRights::of_abi(abi());
    if rights == KernelRights::default() {
        return Ok(rights);
    }
    // The thread ends with its confinement; no other thread is affected.
    let trial = std::thread::Builder::new().name("jail-trial".into()).spawn(move || try_out(rights))?;
    trial.join().unwrap_or_else(|_| Err(io::Error::other("the trial of the jail failed")))?;
    Ok(rights)
}

/// The Landlock ABI; 0 if the kernel has no Landlock, has it switched off, or a container forbids the call.
fn abi() -> u32 {
    // SAFETY: with this flag the kernel takes no pointer.
    let abi = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0_usize, VERSION) };
    u32::try_from(abi).unwrap_or(0)
}

/// Confines the calling thread, to nothing, and reads a folder that every process may read.
fn try_out(rights: KernelRights) -> io::Result<()> {
    File::open("/")?;
    let nothing = ruleset::build(rights, &[], &[])?;
    rustix::thread::set_no_new_privs(true)?;
    ruleset::restrict_self(&nothing)?;
    match File::open("/") {
        Err(cause) if cause.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        _ => Err(io::Error::other("the kernel accepts Landlock rules and does not enforce them")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trial_confines_its_own_thread_alone() {
        detect().unwrap();
        File::open("/").unwrap();
    }
}
