//! The processes of this machine by parentage, as `/proc` shows them.

use std::{
    collections::{HashMap, HashSet},
    fs,
};

/// The fields of `/proc/<pid>/stat` that identify a process and its place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stat {
    pub zombie: bool,
    pub parent: u32,
    pub group: u32,
    /// Inherited; a process can only begin a new one, never join another.
    pub session: u32,
    /// Ticks since the boot.
    pub started: u64,
}

/// A view of all processes. It is read process by process, so it is not a moment's truth: a process that starts
/// meanwhile may be missing.
#[derive(Debug, Default)]
pub(super) struct Tree {
    pub processes: HashMap<u32, Stat>,
}

impl Tree {
    /// Reads all processes, about 10 µs for each. Blocks.
    pub(super) fn read() -> Self {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        Self { processes: pids.filter_map(|pid| Some((pid, stat(pid)?))).collect() }
    }

    /// True if `pid` descends from one of `roots` or is one.
    pub(super) fn descends(&self, pid: u32, roots: &HashSet<u32>) -> bool {
        let mut at = pid;
        // Process ids that are reused during the reading could form a circle.
        for _ in 0..self.processes.len() + 1 {
            if roots.contains(&at) {
                return true;
            }
            match self.processes.get(&at) {
                Some(stat) if stat.parent != 0 => at = stat.parent,
                _ => return false,
            }
        }
        false
    }
}

/// `None` if the process does not exist.
pub(super) fn stat(pid: u32) -> Option<Stat> {
    parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse(text: &str) -> Option<Stat> {
    // The command name may contain spaces and parentheses, so the fields start after its last closing parenthesis.
    let fields: Vec<&str> = text.rsplit_once(") ")?.1.split_ascii_whitespace().collect();
    Some(Stat {
        zombie: matches!(*fields.first()?, "Z" | "X"),
        parent: fields.get(1)?.parse().ok()?,
        group: fields.get(2)?.parse().ok()?,
        session: fields.get(3)?.parse().ok()?,
        started: fields.get(19)?.parse().ok()?,
    })
}

/// The children of this process. Blocks for microseconds where the kernel lists them, else while all processes are read.
pub(super) fn children_of_this_process() -> Vec<u32> {
    listed_children().unwrap_or_else(|| {
        let own = std::process::id();
        Tree::read().processes.into_iter().filter(|(_, stat)| stat.parent == own).map(|(pid, _)| pid).collect()
    })
}

/// `None` if the kernel does not list the children of a task.
fn listed_children() -> Option<Vec<u32>> {
    let mut children = Vec::new();
    for task in fs::read_dir("/proc/self/task").ok()?.flatten() {
        match fs::read_to_string(task.path().join("children")) {
            Ok(listed) => children.extend(listed.split_ascii_whitespace().filter_map(|pid| pid.parse::<u32>().ok())),
            // The thread has ended meanwhile, and another one has its children.
            Err(_) if !task.path().exists() => {}
            Err(_) => return None,
        }
    }
    Some(children)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_name_with_parentheses_does_not_shift_the_fields() {
        let text = "7 (a) b) Z 3 5 6 0 -1 4 0 0 0 0 0 0 0 0 20 0 1 0 99 0 0";
        let stat = parse(text).unwrap();
        assert!(stat.zombie);
        assert_eq!((stat.parent, stat.group, stat.session, stat.started), (3, 5, 6, 99));
        assert!(parse("7 (a").is_none());
    }

    #[test]
    fn descent_is_found_over_generations_and_circles_end() {
        let stat = |parent| Stat { zombie: false, parent, group: 1, session: 1, started: 1 };
        let tree = Tree { processes: [(2, stat(1)), (3, stat(2)), (4, stat(9)), (5, stat(6)), (6, stat(5))].into() };
        let roots = HashSet::from([2]);
        assert!(tree.descends(3, &roots) && tree.descends(2, &roots));
        assert!(!tree.descends(4, &roots) && !tree.descends(5, &roots) && !tree.descends(1, &roots));
    }

    #[test]
    fn children_of_this_process_include_one_that_another_thread_started() {
        let starter = std::thread::spawn(|| std::process::Command::new("sleep").arg("60").spawn().unwrap());
        let mut child = starter.join().unwrap();
        assert!(children_of_this_process().contains(&child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
