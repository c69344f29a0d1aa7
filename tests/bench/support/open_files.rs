//! Limits of open files, and the number that a point needs.

use serde::Serialize;

use super::conversation::BenchError;

/// Limits of this process, which the processes that it starts inherit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct OpenFiles {
    /// The limit in force.
    pub limit: u64,
    /// The value to which the limit can be raised.
    pub hard_limit: u64,
}

/// The process that holds the sessions of a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Holder {
    /// The load client itself, which starts the agents.
    Client,
    /// A runtime without a supervisor.
    Runtime,
    /// A supervisor with an embedded runtime.
    Supervisor,
}

/// Files that a process needs beside its sessions.
const BASE: u64 = 128;

impl OpenFiles {
    /// Raises the limit to the hard limit where the system permits it.
    pub(crate) fn raise() -> Self {
        let mut limits = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the kernel writes to a local struct; a failure leaves it unchanged.
        unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limits) };
        let hard_limit = limits.rlim_max;
        let raised = libc::rlimit { rlim_cur: hard_limit, rlim_max: hard_limit };
        // SAFETY: the kernel only reads the struct.
        let done = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) };
        Self { limit: if done == 0 { hard_limit } else { limits.rlim_cur }, hard_limit }
    }

    /// Checks the process that holds most files for a number of sessions.
    ///
    /// # Errors
    /// Where the limit is too low; the message has the number needed and the remedy.
    pub(crate) fn check(self, holder: Holder, sessions: usize) -> Result<(), BenchError> {
        self.allow(&format!("{sessions} sessions"), needed(holder, sessions))
    }

    /// Checks a process that holds one end of each connection.
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

fn needed(holder: Holder, sessions: usize) -> u64 {
    let per_session = match holder {
        // Two pipes and the process handle of an agent; more while a process starts.
        Holder::Client => 5,
        // Pipes and handle of an agent, a socket and the agent's folders: measured 7.
        Holder::Runtime => 8,
        // The files of a runtime, the other end of the WebSocket, and HTTP: measured 9.
        Holder::Supervisor => 10,
    };
    BASE + per_session * u64::try_from(sessions).unwrap_or(u64::MAX / 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_low_limit_is_refused_with_the_number_needed() {
        let few = OpenFiles { limit: 1024, hard_limit: 4096 };
        assert!(few.check(Holder::Supervisor, 80).is_ok());
        let refusal = few.check(Holder::Supervisor, 1000).unwrap_err().to_string();
        assert!(refusal.contains("10128") && refusal.contains("1024") && refusal.contains("4096"), "{refusal}");
        assert!(few.check_connections(896).is_ok() && few.check_connections(897).is_err());
    }

    #[test]
    fn limit_is_raised_to_the_hard_limit() {
        let raised = OpenFiles::raise();
        assert_eq!(raised.limit, raised.hard_limit);
        assert!(raised.limit >= 256);
    }
}
