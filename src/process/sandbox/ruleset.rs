//! Builds Landlock rulesets, and applies them.
//!
//! A ruleset is built before fork, because opening the paths allocates. [`restrict_self`] is one system call, so that it
//! can be made between fork and exec. Every right is a hard requirement of the library: it returns an error where the
//! kernel lacks one, and never a ruleset that enforces less.

use std::{
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
};

use landlock::{
    AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, NetPort, PathBeneath, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, Scope, make_bitflags,
};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, openat2};

use crate::domain::jail::{KernelRights, Right};

/// Kind of access to a path and everything below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Access {
    /// Listing the names in folders.
    List,
    /// Reading and running.
    Read,
    /// Reading and writing a device, with `ioctl`.
    Device,
    /// Everything but making device files.
    Write,
}

const READ: BitFlags<AccessFs> = make_bitflags!(AccessFs::{Execute | ReadFile | ReadDir});
const DEVICE: BitFlags<AccessFs> = make_bitflags!(AccessFs::{ReadFile | ReadDir | WriteFile | Truncate | IoctlDev});
const WRITE: BitFlags<AccessFs> = make_bitflags!(AccessFs::{
    Execute | ReadFile | ReadDir | WriteFile | RemoveDir | RemoveFile | MakeDir | MakeReg | MakeSock | MakeFifo | MakeSym
        | Refer | Truncate
});
/// Rights that no access has.
const NEVER: BitFlags<AccessFs> = make_bitflags!(AccessFs::{MakeChar | MakeBlock});
/// Rights that apply to a file itself. Others are for folders.
const OF_FILES: BitFlags<AccessFs> = make_bitflags!(AccessFs::{Execute | ReadFile | WriteFile | Truncate | IoctlDev});

impl Access {
    fn rights(self) -> BitFlags<AccessFs> {
        match self {
            Self::List => AccessFs::ReadDir.into(),
            Self::Read => READ,
            Self::Device => DEVICE,
            Self::Write => WRITE,
        }
    }
}

/// A path with the access to it. The path has no symbolic links.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rule {
    pub path: PathBuf,
    pub access: Access,
}

fn handled(kernel: KernelRights) -> BitFlags<AccessFs> {
    let mut handled = READ | WRITE | DEVICE | NEVER;
    for (right, flag) in [(Right::Truncate, AccessFs::Truncate), (Right::IoctlDev, AccessFs::IoctlDev)] {
        if !kernel.has(right) {
            handled.remove(flag);
        }
    }
    handled
}

/// Builds a ruleset with every right that the kernel has. A path that does not exist is left out. TCP connections are
/// limited to `ports` unless it is empty, where the kernel can do it. Blocks while the paths are opened.
///
/// # Errors
/// The kernel refuses the ruleset or a rule; nothing is confined then.
pub(crate) fn build(kernel: KernelRights, rules: &[Rule], ports: &[u16]) -> io::Result<OwnedFd> {
    let handled = handled(kernel);
    let mut ruleset =
        Ruleset::default().set_compatibility(CompatLevel::HardRequirement).handle_access(handled).map_err(refused)?;
    for (right, scope) in [(Right::Signals, Scope::Signal), (Right::AbstractSockets, Scope::AbstractUnixSocket)] {
        if kernel.has(right) {
            ruleset = ruleset.scope(scope).map_err(refused)?;
        }
    }
    let limits_ports = !ports.is_empty() && kernel.has(Right::TcpConnect);
    if limits_ports {
        ruleset = ruleset.handle_access(AccessNet::ConnectTcp).map_err(refused)?;
    }
    let mut created = ruleset.create().map_err(refused)?;
    for rule in rules {
        created = add(created, rule, handled)?;
    }
    for &port in ports.iter().filter(|_| limits_ports) {
        created = created.add_rule(NetPort::new(port, AccessNet::ConnectTcp)).map_err(refused)?;
    }
    Option::<OwnedFd>::from(created).ok_or_else(|| io::Error::other("the kernel has no Landlock"))
}

fn add(created: RulesetCreated, rule: &Rule, handled: BitFlags<AccessFs>) -> io::Result<RulesetCreated> {
    let Ok(path) = open(&rule.path) else { return Ok(created) };
    let mut rights = rule.access.rights() & handled;
    if FileType::from_raw_mode(fstat(&path)?.st_mode) != FileType::Directory {
        rights &= OF_FILES;
    }
    if rights.is_empty() {
        return Ok(created);
    }
    created.add_rule(PathBeneath::new(path.as_fd(), rights)).map_err(refused)
}

/// Opens a path as a place only, and not through a link: a link that replaced a part of it meanwhile must not lead
/// elsewhere.
fn open(path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    match openat2(rustix::fs::CWD, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS) {
        // A container may forbid the newer call.
        Err(rustix::io::Errno::NOSYS | rustix::io::Errno::PERM) => {
            rustix::fs::open(path, flags | OFlags::NOFOLLOW, Mode::empty())
        }
        opened => opened,
    }
}

fn refused(cause: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::other(cause)
}

/// Applies a ruleset to the calling thread. Async-signal-safe: one system call, no allocation. The thread must have
/// `no_new_privs`.
pub(crate) fn restrict_self(ruleset: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: a system call without pointers.
    match unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Rules for `path` and everything below it, except for the `hidden` paths and what is below them.
///
/// Landlock has no exceptions, so a folder that contains a hidden path is replaced by the entries beside it. Entries that
/// are made in such a folder later are therefore not covered. Links are left out: their targets have rules of their own or none.
/// All paths must be without links. Blocks while folders are read.
pub(crate) fn around(path: &Path, access: Access, hidden: &[PathBuf]) -> Vec<Rule> {
    if hidden.iter().any(|hidden| path.starts_with(hidden)) {
        return Vec::new();
    }
    if !hidden.iter().any(|hidden| hidden.starts_with(path)) {
        return vec![Rule { path: path.to_owned(), access }];
    }
    let Ok(entries) = fs::read_dir(path) else { return Vec::new() };
    let entries = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| !kind.is_symlink()));
    entries.flat_map(|entry| around(&entry.path(), access, hidden)).collect()
}

/// True if the folder is on a file system whose programs cannot be run.
pub(crate) fn is_noexec(folder: &Path) -> bool {
    rustix::fs::statvfs(folder).is_ok_and(|it| it.f_flag.contains(rustix::fs::StatVfsMountFlags::NOEXEC))
}

/// True if the path belongs to this user and only this user can enter it.
pub(crate) fn is_own(metadata: &fs::Metadata, uid: u32) -> bool {
    metadata.is_dir() && metadata.uid() == uid
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_paths_are_excluded_by_rules_for_the_entries_beside_them() {
        let home = tempfile::tempdir().unwrap();
        let home = home.path().canonicalize().unwrap();
        for name in ["src/project/data/workspaces", "src/project/code", "src/other", "docs"] {
            fs::create_dir_all(home.join(name)).unwrap();
        }
        fs::write(home.join("src/project/lumilink.toml"), "").unwrap();
        std::os::unix::fs::symlink(home.join("src/project/data"), home.join("link")).unwrap();
        let hidden = [home.join("src/project/data"), home.join("src/project/lumilink.toml")];
        let mut paths: Vec<_> = around(&home, Access::Read, &hidden)
            .into_iter()
            .map(|rule| rule.path.strip_prefix(&home).unwrap().display().to_string())
            .collect();
        paths.sort();
        assert_eq!(paths, ["docs", "src/other", "src/project/code"]);
        assert!(around(&hidden[0].join("workspaces"), Access::Write, &hidden).is_empty());
        assert_eq!(around(&home.join("docs"), Access::Write, &hidden).len(), 1);
    }
}
