//! Protection of this process, and the limits of its start, which agents get back.

use rustix::{
    fs::Mode,
    process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit, umask},
};

/// The umask and the limit of open files with which this process was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Inherited {
    umask: Mode,
    /// Soft limit of open files; `None`: unlimited.
    open_files: Option<u64>,
}

impl Inherited {
    /// Protects this process, and returns what agents get back: files are for this user alone, no other process of the
    /// same user can read its memory or environment, and no core dump contains its secrets. Called once, at the start.
    pub(crate) fn take_over() -> Self {
        // None of these fails on Linux. A process that cannot protect itself continues: the jail does not depend on it.
        let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
        no_core_dumps();
        Self { umask: umask(Mode::RWXG | Mode::RWXO), open_files: getrlimit(Resource::Nofile).current }
    }

    /// The same with the umask of this program, for its own commands: their files are for one user.
    pub(super) fn with_private_files(self) -> Self {
        Self { umask: Mode::RWXG | Mode::RWXO, ..self }
    }

    /// Changes nothing.
    #[cfg(test)]
    pub(crate) fn of_tests() -> Self {
        Self { umask: Mode::WGRP | Mode::WOTH, open_files: getrlimit(Resource::Nofile).current }
    }

    /// Raises the soft limit of open files to the hard limit: an agent takes six descriptors, and the usual soft limit
    /// of 1,024 would cap a runtime at about 170 agents.
    pub(crate) fn raise_open_files() {
        let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
        let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    }

    /// Gives the calling process what this one was started with. Core dumps stay off: they would contain the agent's
    /// keys. Async-signal-safe.
    pub(super) fn restore(self) {
        umask(self.umask);
        let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
        // A lower hard limit fails, and is stricter than the one to restore.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: self.open_files, maximum });
        no_core_dumps();
    }
}

fn no_core_dumps() {
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
}
