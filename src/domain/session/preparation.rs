//! Progress of the clone for a session that is being prepared.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::domain::words::words;

words! {
    /// Part of a clone, in the order in which git goes through them.
    ClonePhase {
        /// Objects arrive from the host.
        Receiving = "receiving",
        /// Objects are assembled from differences.
        Resolving = "resolving",
        /// Files are written.
        Updating = "updating",
    }
}

/// Progress of a clone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CloneProgress {
    pub phase: ClonePhase,
    /// 0 to 100, of the phase.
    pub percent: u8,
}

/// Shortest time between two reports of one clone.
pub(crate) const REPORT_EVERY: Duration = Duration::from_secs(1);

impl CloneProgress {
    /// Reads a line of `git clone --progress`, such as `Receiving objects:  42% (5/12), 1.2 MiB`. `None` for every other line;
    /// those of the host begin with `remote: `.
    pub(crate) fn of_line(line: &str) -> Option<Self> {
        let (name, rest) = line.split_once(':')?;
        let phase = match name {
            "Receiving objects" => ClonePhase::Receiving,
            "Resolving deltas" => ClonePhase::Resolving,
            "Updating files" => ClonePhase::Updating,
            _ => return None,
        };
        let percent = rest.trim_start().split_once('%')?.0.parse().ok().filter(|percent| *percent <= 100)?;
        Some(Self { phase, percent })
    }

    fn place(self) -> (usize, u8) {
        let order = ClonePhase::ALL.iter().position(|phase| *phase == self.phase);
        (order.unwrap_or_default(), self.percent)
    }

    /// True if this is further than an earlier report. Reports of a clone are therefore at most 303.
    pub(crate) fn is_after(self, earlier: Option<Self>) -> bool {
        earlier.is_none_or(|earlier| self.place() > earlier.place())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_git_are_read_and_those_of_the_host_are_not() {
        let read = |line: &str| CloneProgress::of_line(line).map(|it| (it.phase, it.percent));
        assert_eq!(read("Receiving objects:  42% (5/12), 1.2 MiB | 3.00 MiB/s"), Some((ClonePhase::Receiving, 42)));
        assert_eq!(read("Resolving deltas: 100% (9/9), done."), Some((ClonePhase::Resolving, 100)));
        assert_eq!(read("Updating files:   0% (1/2000)"), Some((ClonePhase::Updating, 0)));
        for line in [
            "remote: Receiving objects:  42% (5/12)",
            "Cloning into '/x/workspace'...",
            "Receiving objects: 101%",
            "Receiving objects: -1%",
            "Receiving objects: 5",
            "fatal: Receiving objects: 5%",
            "",
        ] {
            assert_eq!(read(line), None, "{line}");
        }
    }

    #[test]
    fn progress_never_goes_back() {
        let at = |phase, percent| CloneProgress { phase, percent };
        let middle = Some(at(ClonePhase::Resolving, 10));
        assert!(at(ClonePhase::Receiving, 0).is_after(None));
        assert!(at(ClonePhase::Resolving, 11).is_after(middle) && at(ClonePhase::Updating, 0).is_after(middle));
        assert!(!at(ClonePhase::Resolving, 10).is_after(middle) && !at(ClonePhase::Receiving, 100).is_after(middle));
    }
}
