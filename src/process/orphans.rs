//! Processes that left their group (`setsid`, daemons): found by a mark in their environment.
//!
//! Only those are touched that carry a mark of this program, so nobody else's child is killed or reaped.
//! A process that clears its environment *and* leaves its group is not found; only a control group
//! ([`control_group`](crate::process::cgroup)) is a guarantee against that.

use std::{
    collections::{HashMap, HashSet},
    fs,
    os::linux::fs::MetadataExt,
    sync::Arc,
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

/// The variable that every child carries; its value names this program's run and the group.
pub(crate) const MARK: &str = "LUMILINK_GROUP";

/// The mark of one group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mark {
    run: Arc<str>,
    group: u64,
}

impl Mark {
    /// Counts the groups of a run.
    pub(crate) fn group(&self) -> u64 {
        self.group
    }

    /// As it stands in the environment.
    pub(crate) fn value(&self) -> String {
        format!("{}:{}", self.run, self.group)
    }
}

/// Which groups live, and a sweep for what the others left behind. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Orphans {
    /// PID namespace, process id and start time: names a run of a program until the next boot.
    run: Arc<str>,
    live: Arc<Mutex<Live>>,
    told: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Live {
    groups_made: u64,
    leaders: HashMap<u32, u64>,
}

/// What `/proc/<pid>/stat` says.
struct Stat {
    zombie: bool,
    group: u32,
    session: u32,
    started: u64,
}

impl Orphans {
    /// Nothing lives yet.
    pub(crate) fn new() -> Self {
        let own = std::process::id();
        let started = stat(own).map_or(0, |stat| stat.started);
        let run = format!("{}.{own}.{started}", pid_namespace(own).unwrap_or(0));
        Self { run: run.into(), live: Arc::default(), told: Arc::default() }
    }

    /// A mark for a group that is about to be started.
    pub(crate) fn next_mark(&self) -> Mark {
        let mut live = self.live();
        live.groups_made += 1;
        Mark { run: self.run.clone(), group: live.groups_made }
    }

    /// A group was started.
    pub(crate) fn born(&self, pid: u32, mark: &Mark) {
        self.live().leaders.insert(pid, mark.group);
    }

    /// A group is gone; what left it is swept soon.
    pub(crate) fn gone(&self, pid: u32, mark: &Mark) {
        let mut live = self.live();
        // The id may already belong to a younger group.
        if live.leaders.get(&pid) == Some(&mark.group) {
            live.leaders.remove(&pid);
        }
        drop(live);
        self.told.notify_one();
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock()
    }

    /// Sweeps after every group that ended; several ends in a row are one sweep.
    pub(crate) async fn sweep_on_request(self) {
        loop {
            self.told.notified().await;
            // What is killed leaves orphans of its own: a few rounds until nothing is found.
            for round in 0..8 {
                if !self.sweep() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(2 << round)).await;
            }
        }
    }

    /// Kills and reaps what dead groups left; says whether something was killed.
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
                // A member of a living group; or a child that another part of this program waits for.
                continue;
            }
            if stat.zombie {
                // SAFETY: a null status is allowed; only this one process is reaped.
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

    /// Kills what a run of this program left that was itself killed: nobody else would.
    pub(crate) fn kill_those_of_dead_predecessors(&self) {
        let Some(namespace) = pid_namespace(std::process::id()) else { return };
        let Ok(processes) = fs::read_dir("/proc") else { return };
        let pids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        for pid in pids {
            let Some((run, _)) = mark_of(pid) else { continue };
            if pid_namespace(pid) == Some(namespace)
                && !run_lives(&run)
                && let Some(stat) = stat(pid)
            {
                kill(pid, stat.group);
            }
        }
    }

    /// Names this run of the program.
    pub(crate) fn run(&self) -> &str {
        &self.run
    }
}

/// Whether a run of this program lives; one of another PID namespace, or that is not named as ours are, is taken to.
pub(crate) fn run_lives(run: &str) -> bool {
    let mut parts = run.splitn(3, '.').map(str::parse::<u64>);
    let (Some(Ok(namespace)), Some(Ok(owner)), Some(Ok(started))) = (parts.next(), parts.next(), parts.next()) else {
        return true;
    };
    pid_namespace(std::process::id()) != Some(namespace)
        || u32::try_from(owner).ok().and_then(stat).is_some_and(|stat| stat.started == started)
}

/// With its group, where it leads one.
fn kill(pid: u32, group: u32) {
    let target = if group == pid { -(pid as i32) } else { pid as i32 };
    // SAFETY: a system call without pointers.
    unsafe { libc::kill(target, libc::SIGKILL) };
}

/// `None` where the kernel does not list them.
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

fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name may contain anything, so it is skipped from behind.
    let fields: Vec<&str> = text.rsplit_once(") ")?.1.split_ascii_whitespace().collect();
    Some(Stat {
        zombie: matches!(*fields.first()?, "Z" | "X"),
        group: fields.get(2)?.parse().ok()?,
        session: fields.get(3)?.parse().ok()?,
        started: fields.get(19)?.parse().ok()?,
    })
}

fn mark_of(pid: u32) -> Option<(String, u64)> {
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let value = environment
        .split(|byte| *byte == 0)
        .find_map(|variable| variable.strip_prefix(MARK.as_bytes())?.strip_prefix(b"="))?;
    let (run, group) = std::str::from_utf8(value).ok()?.rsplit_once(':')?;
    Some((run.to_owned(), group.parse().ok()?))
}
