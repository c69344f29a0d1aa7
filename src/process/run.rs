//! Identifies one run of this program, so that a later one recognises its end.

use std::{fs, os::linux::fs::MetadataExt};

use super::tree::stat;

/// PID namespace, process id and start time of this process; unique until the next boot.
pub(super) fn run_of_this_process() -> String {
    let own = std::process::id();
    let started = stat(own).map_or(0, |stat| stat.started);
    format!("{}.{own}.{started}", pid_namespace(own).unwrap_or(0))
}

/// True if the given run of this program is still alive. A run of another PID namespace counts as alive, and so does
/// a malformed value.
pub(super) fn run_lives(run: &str) -> bool {
    let mut parts = run.splitn(3, '.').map(str::parse::<u64>);
    let (Some(Ok(namespace)), Some(Ok(owner)), Some(Ok(started))) = (parts.next(), parts.next(), parts.next()) else {
        return true;
    };
    pid_namespace(std::process::id()) != Some(namespace)
        || u32::try_from(owner).ok().and_then(stat).is_some_and(|stat| stat.started == started && !stat.zombie)
}

/// The number of the PID namespace of a process.
pub(super) fn pid_namespace(pid: u32) -> Option<u64> {
    Some(fs::metadata(format!("/proc/{pid}/ns/pid")).ok()?.st_ino())
}
