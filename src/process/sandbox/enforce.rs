//! Confines a child between fork and exec.

use std::{io, os::fd::OwnedFd};

use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set, remove_capability_from_bounding_set,
    set_capabilities, set_no_new_privs,
};

use super::ruleset;
use crate::{domain::jail::limits::ResourceLimits, process::inherited::Inherited};

/// Everything that a child does to itself before it runs its program. Made before fork.
#[derive(Debug)]
pub(crate) struct Enforcement {
    /// The Landlock ruleset; `None` where the kernel has none, and without a jail.
    pub(super) ruleset: Option<OwnedFd>,
    /// True if the child gives up every capability and can never gain one.
    pub(super) drops_privileges: bool,
    pub(super) inherited: Inherited,
    /// Limits of its control group, where it has one.
    pub(in crate::process) limits: ResourceLimits,
}

impl Enforcement {
    /// True if file rules are applied.
    pub(crate) fn hides_files(&self) -> bool {
        self.ruleset.is_some()
    }

    /// Confines the calling process. Must be called between fork and exec, after the change of user, and makes only
    /// async-signal-safe calls.
    ///
    /// # Errors
    /// A restriction is refused; the program must not be run then.
    pub(crate) fn apply(&self) -> io::Result<()> {
        self.inherited.restore();
        if self.drops_privileges {
            set_no_new_privs(true)?;
            drop_capabilities()?;
        }
        self.ruleset.as_ref().map_or(Ok(()), ruleset::restrict_self)
    }
}

/// A root process without capabilities reads what root owns, and nothing that only capabilities open: memory and
/// environment of processes that are not dumpable, files of others.
fn drop_capabilities() -> io::Result<()> {
    for capability in CapabilitySet::all().iter() {
        // Fails without CAP_SETPCAP, which only root has, and for capabilities that are newer than the kernel.
        // `no_new_privs` keeps an exec from gaining them.
        let _ = remove_capability_from_bounding_set(capability);
    }
    let _ = clear_ambient_capability_set();
    let none = CapabilitySet::empty();
    Ok(set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?)
}
