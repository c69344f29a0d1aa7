//! Processes that left their process group (`setsid`, daemons), killed after their group has ended.
//!
//! Each process below a group stays below it, or its parent becomes this process: the leader of a group is the subreaper of
//! its descendants, unless the group has a control group ([`cgroup`](crate::process::cgroup)), and this process is the
//! subreaper of all. A descendant of a leader therefore becomes a child of this process only when its leader has ended, when
//! its leader gave up that duty, or when its control group is the guarantee. Leaders begin a session of their own, and a
//! process can never join the session of this process, so such children differ from those that other parts of this
//! program started and wait for: only adopted children are killed or reaped here.
//!
//! All that needs no environment, so clearing it hides nothing. The mark in the environment finds processes after the
//! death of the program that started them. As process 1 of a container this program also adopts, and so kills, daemons that
//! were started by a command which an operator ran in the container.

use std::{
    collections::{HashMap, HashSet},
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, watch};

use super::{
    cgroup,
    run::{pid_namespace, run_lives, run_of_this_process},
    tree::{Stat, Tree, children_of_this_process, stat},
};

/// Longest time of a sweep. Killed processes usually exit within a millisecond; what is left then waits in the kernel, or
/// starts processes faster than they can be killed.
const SWEEP_TIME: Duration = Duration::from_secs(2);
/// Rounds of a sweep without a pause, so that a process which only forks and exits, and so has another id each time, is hit.
const EAGER_ROUNDS: u32 = 32;
/// Largest number of rounds of a sweep.
const SWEEP_ROUNDS: u32 = 400;
/// Longest pause between two rounds.
const ROUND_PAUSE: Duration = Duration::from_millis(10);

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
    /// The number of ended groups that the last complete sweep covers.
    swept: Arc<watch::Sender<u64>>,
}

#[derive(Debug, Default)]
struct Live {
    groups_made: u64,
    groups_ended: u64,
    leaders: HashMap<u32, u64>,
    /// Processes that outlived a sweep, with their start times: each is reported once, and later sweeps do not wait for it.
    survivors: HashSet<(u32, u64)>,
}

/// Receives the number of processes that a sweep could not end.
pub(crate) type ReportSurvivors = Box<dyn Fn(u64) + Send + Sync>;

impl Orphans {
    /// Creates the tracker of this run, without any live group.
    pub(crate) fn new() -> Self {
        Self {
            run: run_of_this_process().into(),
            live: Arc::default(),
            group_ended: Arc::default(),
            swept: Arc::new(watch::Sender::new(0)),
        }
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

    /// Records the end of a group, and waits until a sweep has killed the processes that left it, at most for two sweeps of
    /// [`SWEEP_TIME`].
    pub(crate) async fn gone(&self, pid: u32, mark: &Mark) {
        let ended = {
            let mut live = self.live();
            // The process id may already belong to a younger group.
            if live.leaders.get(&pid) == Some(&mark.group) {
                live.leaders.remove(&pid);
            }
            live.groups_ended += 1;
            live.groups_ended
        };
        self.group_ended.notify_one();
        // Fails only without a sweeper, when the program ends.
        let _ = self.swept.subscribe().wait_for(|swept| *swept >= ended).await;
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock()
    }

    /// Sweeps after the end of each group, for as long as the program runs. Several ends in quick succession cause
    /// one sweep.
    pub(crate) async fn sweep_after_each_end(self, report: ReportSurvivors) {
        loop {
            self.group_ended.notified().await;
            let ended = self.live().groups_ended;
            let left = self.sweep_until_clear().await;
            if left > 0 {
                tracing::warn!(processes = left, "processes of ended agents could not be killed");
                report(left);
            }
            self.swept.send_replace(ended);
        }
    }

    /// Repeats [`sweep`](Self::sweep) until it finds nothing: killed processes leave orphans of their own. Returns the
    /// number of processes that are left at the limit and were not left before.
    async fn sweep_until_clear(&self) -> u64 {
        let deadline = Instant::now() + SWEEP_TIME;
        let mut pause = Duration::from_millis(1);
        for round in 1.. {
            let found = self.sweep();
            if found.is_empty() {
                break;
            }
            if round >= SWEEP_ROUNDS || Instant::now() >= deadline {
                self.live().survivors.extend(&found);
                return found.len() as u64;
            }
            if round < EAGER_ROUNDS {
                tokio::task::yield_now().await;
                continue;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(ROUND_PAUSE);
        }
        0
    }

    /// Kills the adopted processes of ended groups with everything below them, and reaps those that have exited. Returns
    /// those that it killed, with their start times, without survivors of earlier sweeps.
    fn sweep(&self) -> Vec<(u32, u64)> {
        let own_session = stat(std::process::id()).map_or(0, |stat| stat.session);
        let leaders = self.live().leaders.clone();
        let mut roots = HashMap::new();
        // The youngest first: those that are quickest to get another id.
        for child in children_of_this_process().into_iter().rev() {
            let Some(stat) = stat(child).filter(|_| !leaders.contains_key(&child)) else { continue };
            if stat.session == own_session {
                // Another part of this program started it and waits for it.
                continue;
            }
            if stat.zombie {
                // SAFETY: a null status is allowed. Only this process is reaped.
                unsafe { libc::waitpid(child as i32, std::ptr::null_mut(), libc::WNOHANG) };
            } else if !self.is_of_live_group(child, &stat, &leaders) {
                // At once, before the others are looked at, and with its process group, which its session has alone.
                kill(child);
                kill_group(stat.group);
                roots.insert(child, stat.started);
            }
        }
        if roots.is_empty() {
            self.live().survivors.clear();
            return Vec::new();
        }
        let tree = Tree::read();
        let tops = roots.keys().copied().collect();
        let below = tree.processes.iter().filter(|(pid, stat)| !stat.zombie && tree.descends(**pid, &tops));
        for (pid, stat) in below {
            // It descends from an adopted process, so it is no other's.
            kill(*pid);
            roots.insert(*pid, stat.started);
        }
        let survivors = &self.live().survivors;
        roots.into_iter().filter(|process| !survivors.contains(process)).collect()
    }

    /// True if an adopted process belongs to a group that has not ended. Session and control group cannot be forged.
    fn is_of_live_group(&self, pid: u32, stat: &Stat, leaders: &HashMap<u32, u64>) -> bool {
        leaders.contains_key(&stat.session)
            || cgroup::group_of(pid, &self.run).is_some_and(|group| leaders.values().any(|live| *live == group))
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
                kill(pid);
                if stat.group == pid {
                    kill_group(pid);
                }
            }
        }
    }

    /// Identifies this run of the program.
    pub(crate) fn run(&self) -> &str {
        &self.run
    }
}

fn kill(pid: u32) {
    // SAFETY: a system call without pointers.
    unsafe { libc::kill(pid as i32, libc::SIGKILL) };
}

/// Kills all processes of a process group at once: none of them can fork in between.
fn kill_group(group: u32) {
    // Group 0 would be that of this process, and group 1 all processes.
    if group > 1 {
        // SAFETY: a system call without pointers.
        unsafe { libc::kill(-(group as i32), libc::SIGKILL) };
    }
}

pub(super) fn mark_of(pid: u32) -> Option<(String, u64)> {
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let value = environment
        .split(|byte| *byte == 0)
        .find_map(|variable| variable.strip_prefix(MARK.as_bytes())?.strip_prefix(b"="))?;
    let (run, group) = std::str::from_utf8(value).ok()?.rsplit_once(':')?;
    Some((run.to_owned(), group.parse().ok()?))
}
