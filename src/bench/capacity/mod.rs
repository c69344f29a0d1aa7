//! `lumilink bench capacity`: the service filled to its limit and asked for more, measured from outside.
//!
//! Every seat is taken, then the sessions work at a stated load: first undisturbed, then while new sessions are asked
//! for and refused. All events of all sessions are read and counted by their ids ([`events`]).

mod events;
mod report;
mod trial;

use std::{path::PathBuf, time::Duration};

pub(crate) use self::report::CapacityReport;
use super::{
    conversation::BenchError, facts, open_files::OpenFiles, plan::PathKind, program::Workplace, progress, remove,
};

/// The most sessions that are asked for in a second and refused.
pub(crate) const MAX_REFUSALS: u32 = 10_000;

/// What is to be measured.
#[derive(Debug, Clone)]
pub(crate) struct CapacityPlan {
    /// Seats; all of them are taken.
    pub sessions: usize,
    /// How long each of the two phases is measured, warm-up not counted.
    pub measured: Duration,
    /// The pause between two prompts of one session.
    pub think: Duration,
    /// New sessions a second that are asked for in the second phase.
    pub refusals_per_second: u32,
    /// Sessions whose events are read as they happen; those of the others are read at the end.
    pub followed: usize,
    /// What every prompt says to the demo agent.
    pub prompt: String,
    /// `SECTION.KEY=VALUE` for the supervisor.
    pub settings: Vec<String>,
    /// Folder on the disk that databases and workspaces are to use.
    pub folder: Option<PathBuf>,
}

impl CapacityPlan {
    /// The service has as many seats as are to be taken, and what these need; what was asked for comes last.
    fn settings(&self) -> Vec<String> {
        let mut settings = vec![
            format!("capacity.max_sessions={}", self.sessions),
            // As many more as by default, for restarts that overlap.
            format!("runtime.max_agents={}", self.sessions + 100),
            format!("limits.write_queue={}", (self.sessions * 2).max(4096)),
        ];
        settings.extend(self.settings.iter().cloned());
        settings
    }
}

/// Measures. Dropping the future ends every process that it started.
///
/// # Errors
/// Where not every seat could be taken, or the supervisor does not start.
pub(crate) async fn run(plan: CapacityPlan, command: Vec<String>) -> Result<CapacityReport, BenchError> {
    let open_files = OpenFiles::raise();
    open_files.check(PathKind::Supervisor, plan.sessions + plan.followed)?;
    let workplace = Workplace::new(plan.folder.as_deref())?;
    let facts = facts::gather(workplace.program(), workplace.path(), open_files);
    progress(&format!("{} seats are taken", plan.sessions));
    let folder = workplace.folder("capacity")?;
    let measured = trial::measure(&workplace, &folder, &plan).await;
    remove(&folder);
    Ok(CapacityReport::new(facts, command, &plan, measured?))
}
