//! How many files may be open, and how many a point needs.

use serde::Serialize;

use super::{conversation::BenchError, plan::PathKind};

/// Limits of this process, which those that it starts inherit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct OpenFiles {
    /// In force.
    pub limit: u64,
    /// The most to which the limit can be raised.
    pub hard_limit: u64,
}

/// What a process needs beside its sessions.
const BASE: u64 = 128;

impl OpenFiles {
    /// Raises the limit to the hard limit, as far as the system lets us, and tells what is in force.
    pub(crate) fn raise() -> Self {
        let mut limits = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the kernel writes to a struct of ours; a failure leaves it as it is.
        unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limits) };
        let hard_limit = limits.rlim_max;
        let raised = libc::rlimit { rlim_cur: hard_limit, rlim_max: hard_limit };
        // SAFETY: the kernel only reads the struct.
        let done = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) };
        Self { limit: if done == 0 { hard_limit } else { limits.rlim_cur }, hard_limit }
    }

    /// Whether the process that holds the most on this path gets along.
    ///
    /// # Errors
    /// A sentence that says how many are needed and what to do.
    pub(crate) fn check(self, path: PathKind, sessions: usize) -> Result<(), BenchError> {
        self.allow(&format!("{sessions} sessions"), needed(path, sessions))
    }

    /// Whether a process gets along that holds one end of so many connections.
    ///
    /// # Errors
    /// As [`Self::check`].
    pub(crate) fn check_connections(self, connections: usize) -> Result<(), BenchError> {
        let needed = BASE + u64::try_from(connections).unwrap_or(u64::MAX / 16);
        self.allow(&format!("{connections} connections"), needed)
    }

    fn allow(self, what: &str, needed: u64) -> Result<(), BenchError> {
        if needed <= self.limit {
            return Ok(());
        }
        Err(BenchError::OpenFiles(format!(
            "{what} need about {needed} open files in one process, and the limit is {} (hard limit {}): raise it \
             (`ulimit -Hn {needed}` as root, LimitNOFILE= or --ulimit nofile=) or ask for fewer",
            self.limit, self.hard_limit
        )))
    }
}

fn needed(path: PathKind, sessions: usize) -> u64 {
    let per_session = match path {
        // Three pipes and the handle of the process: measured 4; while a process starts it is one more.
        PathKind::Stdio => 5,
        // The same, a socket and the agent's folders: measured 7.
        PathKind::Runtime => 8,
        // The same, the other end of the WebSocket, and HTTP: measured 9.
        PathKind::Supervisor => 10,
    };
    BASE + per_session * u64::try_from(sessions).unwrap_or(u64::MAX / 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_that_is_too_low_says_how_many_are_needed() {
        let few = OpenFiles { limit: 1024, hard_limit: 4096 };
        assert!(few.check(PathKind::Supervisor, 80).is_ok());
        let said = few.check(PathKind::Supervisor, 1000).unwrap_err().to_string();
        assert!(said.contains("10128") && said.contains("1024") && said.contains("4096"), "{said}");
        assert!(few.check_connections(896).is_ok() && few.check_connections(897).is_err());
    }

    #[test]
    fn the_limit_is_raised_to_the_hard_one() {
        let raised = OpenFiles::raise();
        assert_eq!(raised.limit, raised.hard_limit);
        assert!(raised.limit >= 256);
    }
}
