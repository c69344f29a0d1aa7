//! Finds and signals the processes of a run.

use std::{fs, path::Path};

/// A process of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    /// Its id.
    pub pid: i32,
    /// Its command line, for the message of a failed test.
    pub command: String,
}

/// All processes with `marker`, the path of the run's folder, in their working directory, environment or command
/// line. Agents work below that folder and inherit a HOME there, so this also finds processes that left their process
/// group or session. Excludes zombies and the calling process.
pub(crate) fn with_marker(marker: &Path) -> Vec<Found> {
    let marker = marker.to_string_lossy();
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_string_lossy().parse::<i32>().ok())
        .filter(|pid| *pid != own && carries(*pid, &marker) && !is_zombie(*pid))
        .map(|pid| Found { pid, command: command_line(pid) })
        .collect()
}

/// Whether a process exists and is not a zombie.
pub(crate) fn is_alive(pid: i32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists() && !is_zombie(pid)
}

/// Sends a signal; ignores a process that no longer exists.
pub(crate) fn signal(pid: i32, signal: i32) {
    // SAFETY: kill(2) touches no memory of this process.
    unsafe { libc::kill(pid, signal) };
}

fn carries(pid: i32, marker: &str) -> bool {
    let contains = |file: &str| {
        fs::read(format!("/proc/{pid}/{file}")).is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains(marker))
    };
    fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|path| path.to_string_lossy().contains(marker))
        || contains("environ")
        || contains("cmdline")
}

fn is_zombie(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z')))
}

fn command_line(pid: i32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ")
}
