//! `[workspaces]`: the folders in which agents work.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::check::{Check, is_host};

/// The folders in which agents work.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Workspaces {
    /// Folder that holds the workspaces. Not set: `workspaces` in the data folder.
    pub root: Option<PathBuf>,
    /// Folders under which a session may name an existing folder with `path`. Empty: `path` is refused.
    pub allow_paths: Vec<PathBuf>,
    /// Hosts (`host` or `host:port`) from which repositories may be cloned; at least one. A repository `owner/name`
    /// is cloned from the first.
    pub git_hosts: Vec<String>,
    /// Time limit for a clone, in seconds, 1 or more. A shallow clone of the largest public repositories takes about
    /// two minutes.
    pub clone_timeout_s: u64,
    /// Largest workspace on disk, in bytes; 0: no limit. Workspaces in use are measured, those that were given by `path` are
    /// not. A workspace over the limit takes no further turn.
    pub max_bytes: u64,
    /// Interval between measurements of the workspaces in use, in seconds, 1 or more.
    pub measure_s: u64,
}

impl Default for Workspaces {
    fn default() -> Self {
        Self {
            root: None,
            allow_paths: Vec::new(),
            git_hosts: vec!["github.com".into()],
            clone_timeout_s: 300,
            max_bytes: 10 << 30,
            measure_s: 30,
        }
    }
}

impl Workspaces {
    /// True if the text of a path is in one of `allow_paths`.
    pub(crate) fn allows(&self, path: &Path) -> bool {
        self.allow_paths.iter().any(|allowed| path.starts_with(allowed))
    }

    pub(super) fn validate(&self, check: &mut Check<'_>) {
        let hosts = &self.git_hosts;
        check.require(!hosts.is_empty(), "workspaces.git_hosts", "must name at least one host, such as github.com");
        for (index, host) in hosts.iter().enumerate() {
            let what =
                format!("{host:?} must be a host name such as github.com or host:port, without scheme and path");
            let name = match host.rsplit_once(':') {
                Some((name, port)) if port.parse::<u16>().is_ok_and(|port| port > 0) => name,
                _ => host,
            };
            check.require(is_host(name), format!("workspaces.git_hosts.{index}"), what);
        }
        check.seconds("workspaces.clone_timeout_s", self.clone_timeout_s);
        check.seconds("workspaces.measure_s", self.measure_s);
    }
}
