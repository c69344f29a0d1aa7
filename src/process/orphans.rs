//! Processes that left their process group (`setsid`, daemons), found by a mark in their environment.
//!
//! Only processes that carry a mark of this program are killed or reaped, so children of other parts of the program
//! are safe. A process that clears its environment *and* leaves its group is not found; only a control group
//! ([`cgroup`](crate::process::cgroup)) catches that.

use std::{
    collections::{HashMap, HashSet},
    fs,
    os::linux::fs::MetadataExt,
    sync::Arc,
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

/// The environment variable that every child carries. Its value identifies the run of this program and the group.
pub(crate) const MARK: &str = "LUMILINK_GROUP";

/// The mark of one group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mark {
    run: Arc<str>,
    group: u64,
}

impl Mark {
    /// The number of the group within its run, from 1.
    pub(crate) fn group(&self) -> u64 {
        self.group
    }

    /// The run of the program that made the group.
    pub(super) fn run(&self) -> &str {
        &self.run
    }

    /// True if a process with this run and group carries the mark.
    pub(super) fn is(&self, run: &str, group: u64) -> bool {
        (&*self.run, self.group) == (run, group)
    }

    /// The value of [`MARK`].
    pub(crate) fn value(&self) -> String {
        format!("{}:{}", self.run, self.group)
    }
}

/// Tracks the live process groups and kills processes that ended groups left behind. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Orphans {
    /// PID namespace, process id and start time of this program; unique until the next boot.
    run: Arc<str>,
    live: Arc<Mutex<Live>>,
    group_ended: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Live {
    groups_made: u64,
    leaders: HashMap<u32, u64>,
}

/// The fields of `/proc/<pid>/stat` that identify a process and its group.
pub(super) struct Stat {
    pub zombie: bool,
    group: u32,
    session: u32,
    /// Ticks since the boot.
    pub started: u64,
}

impl Orphans {
    /// Creates the tracker of this run, without any live group.
    pub(crate) fn new() -> Self {
        Self { run: run_of_this_process().into(), live: Arc::default(), group_ended: Arc::default() }
    }

    /// Creates the mark of a group that is about to start.
    pub(crate) fn next_mark(&self) -> Mark {
        let mut live = self.live();
        live.groups_made += 1;
        Mark { run: self.run.clone(), group: live.groups_made }
    }

    /// Records the start of a group.
    pub(crate) fn record_start(&self, pid: u32, mark: &Mark) {
        self.live().leaders.insert(pid, mark.group);
    }

    /// Records the end of a group and requests a sweep for processes that left it.
    pub(crate) fn gone(&self, pid: u32, mark: &Mark) {
        let mut live = self.live();
        // The process id may already belong to a younger group.
        if live.leaders.get(&pid) == Some(&mark.group) {
            live.leaders.remove(&pid);
        }
        drop(live);
        self.group_ended.notify_one();
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock()
    }

    /// Sweeps after the end of each group, for as long as the program runs. Several ends in quick succession cause
    /// one sweep.
    pub(crate) async fn sweep_after_each_end(self) {
        loop {
            self.group_ended.notified().await;
            // Killed processes leave orphans of their own, so the sweep repeats until it finds none, at most 8 times
            // within about half a second.
            for round in 0..8 {
                if !self.sweep() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(2 << round)).await;
            }
        }
    }

    /// Kills and reaps the processes that ended groups left behind. Returns true if it killed one.
    fn sweep(&self) -> bool {
        let Some(children) = children_of_this_process() else { return false };
        let (leaders, groups): (HashSet<u32>, HashSet<u64>) = {
            let live = self.live();
            (live.leaders.keys().copied().collect(), live.leaders.values().copied().collect())
        };
        let own_session = stat(std::process::id()).map_or(0, |stat| stat.session);
        let mut killed = false;
        for child in children {
            if leaders.contains(&child) {
                continue;
            }
            let Some(stat) = stat(child) else { continue };
            if leaders.contains(&stat.group) || stat.session == own_session {
                // A member of a live group, or a child that another part of this program waits for.
                continue;
            }
            if stat.zombie {
                // SAFETY: a null status is allowed. Only this process is reaped.
                unsafe { libc::waitpid(child as i32, std::ptr::null_mut(), libc::WNOHANG) };
            } else if let Some((run, group)) = mark_of(child)
                && *run == *self.run
                && !groups.contains(&group)
            {
                kill(child, stat.group);
                killed = true;
            }
        }
        killed
    }

    /// Kills the processes of earlier runs of this program that were killed themselves: no other program would.
    pub(crate) fn kill_those_of_dead_predecessors(&self) {
        let Some(namespace) = pid_namespace(std::process::id()) else { return };
        let Ok(processes) = fs::read_dir("/proc") else { return };
        let pids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        for pid in pids {
            let Some((run, _)) = mark_of(pid) else { continue };
            if pid_namespace(pid) == Some(namespace)
                // The run is checked by its start time too, because its process id may have been reused.
                && !run_lives(&run)
                && let Some(stat) = stat(pid)
            {
                kill(pid, stat.group);
            }
        }
    }

    /// Identifies this run of the program.
    pub(crate) fn run(&self) -> &str {
        &self.run
    }
}

/// Identifies this run of the program: PID namespace, process id and start time.
pub(super) fn run_of_this_process() -> String {
    let own = std::process::id();
    let started = stat(own).map_or(0, |stat| stat.started);
    format!("{}.{own}.{started}", pid_namespace(own).unwrap_or(0))
}

/// True if the given run of this program is still alive. A run of another PID namespace counts as alive, and so does
/// a malformed value.
pub(crate) fn run_lives(run: &str) -> bool {
    let mut parts = run.splitn(3, '.').map(str::parse::<u64>);
    let (Some(Ok(namespace)), Some(Ok(owner)), Some(Ok(started))) = (parts.next(), parts.next(), parts.next()) else {
        return true;
    };
    pid_namespace(std::process::id()) != Some(namespace)
        || u32::try_from(owner).ok().and_then(stat).is_some_and(|stat| stat.started == started && !stat.zombie)
}

/// Sends SIGKILL to a process, and to its whole group if it is the leader.
fn kill(pid: u32, group: u32) {
    let target = if group == pid { -(pid as i32) } else { pid as i32 };
    // SAFETY: a system call without pointers.
    unsafe { libc::kill(target, libc::SIGKILL) };
}

/// Returns `None` if the kernel does not list the children of a task.
fn children_of_this_process() -> Option<Vec<u32>> {
    let mut children = Vec::new();
    for task in fs::read_dir("/proc/self/task").ok()?.flatten() {
        let listed = fs::read_to_string(task.path().join("children")).ok()?;
        children.extend(listed.split_ascii_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
    }
    Some(children)
}

fn pid_namespace(pid: u32) -> Option<u64> {
    Some(fs::metadata(format!("/proc/{pid}/ns/pid")).ok()?.st_ino())
}

pub(super) fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command name may contain spaces and parentheses, so the fields start after its last closing parenthesis.
    let fields: Vec<&str> = text.rsplit_once(") ")?.1.split_ascii_whitespace().collect();
    Some(Stat {
        zombie: matches!(*fields.first()?, "Z" | "X"),
        group: fields.get(2)?.parse().ok()?,
        session: fields.get(3)?.parse().ok()?,
        started: fields.get(19)?.parse().ok()?,
    })
}

pub(super) fn mark_of(pid: u32) -> Option<(String, u64)> {
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let value = environment
        .split(|byte| *byte == 0)
        .find_map(|variable| variable.strip_prefix(MARK.as_bytes())?.strip_prefix(b"="))?;
    let (run, group) = std::str::from_utf8(value).ok()?.rsplit_once(':')?;
    Some((run.to_owned(), group.parse().ok()?))
}
