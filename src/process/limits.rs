//! Limits that a command gets between fork and exec.

use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Limits of a command and of what it starts. The kernel ends a process that exceeds one, and refuses memory above its limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Processor time of each process, of all its threads together; full seconds.
    pub cpu: Option<Duration>,
    /// Largest file that may be written, in bytes.
    pub file_bytes: Option<u64>,
    /// Memory that each process may write and has for itself, in bytes: heap and stacks, and no mapped files.
    pub memory_bytes: Option<u64>,
}

impl Limits {
    /// Sets the limits of the calling process, never above its own. Async-signal-safe.
    pub(super) fn apply(self) {
        // The soft limit ends a process with a signal of its own, the hard one kills.
        let cpu = self.cpu.map(|cpu| (Resource::Cpu, cpu.as_secs().max(1), 5));
        let file = self.file_bytes.map(|bytes| (Resource::Fsize, bytes, 0));
        let memory = self.memory_bytes.map(|bytes| (Resource::Data, bytes, 0));
        for (resource, limit, room) in [cpu, file, memory].into_iter().flatten() {
            let own = getrlimit(resource).maximum.unwrap_or(u64::MAX);
            let (current, maximum) = (own.min(limit), own.min(limit.saturating_add(room)));
            // Lowering a limit cannot fail.
            let _ = setrlimit(resource, Rlimit { current: Some(current), maximum: Some(maximum) });
        }
    }
}
