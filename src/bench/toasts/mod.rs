//! `lumilink bench toasts`: many readers of one workspace, and how long a toast takes to all of them.
//!
//! Every subscriber is a WebSocket of its own ([`subscriber`]). Toasts are caused one after the other; what each
//! subscriber read is compared with the server's own list ([`tally`]).

mod frames;
mod report;
mod subscriber;
mod tally;
mod trial;

use std::{path::PathBuf, time::Duration};

pub(crate) use self::report::ToastsReport;
use self::report::{PointReport, Unmeasured};
use super::{conversation::BenchError, facts, open_files::OpenFiles, program::Workplace, progress, remove};

/// The most subscribers: ports of one address to another one are some 28,000.
pub(crate) const MAX_SUBSCRIBERS: usize = 25_000;
/// The most toasts whose latency counts, at each point.
pub(crate) const MAX_NOTIFICATIONS: u32 = 10_000;

/// What is to be measured.
#[derive(Debug, Clone)]
pub(crate) struct ToastsPlan {
    /// Numbers of subscribers.
    pub subscribers: Vec<usize>,
    /// Toasts whose latency counts, at each point.
    pub toasts: u32,
    /// Between the last reader of a toast and the next one.
    pub pause: Duration,
    /// `SECTION.KEY=VALUE` for the supervisor.
    pub settings: Vec<String>,
    /// Folder on the disk that databases and workspaces are to use.
    pub folder: Option<PathBuf>,
}

impl ToastsPlan {
    /// The server admits as many as there are to be; what was asked for comes last.
    fn settings(&self, subscribers: usize) -> Vec<String> {
        let mut settings = vec![format!("notifications.max_subscribers={}", subscribers + 10)];
        settings.extend(self.settings.iter().cloned());
        settings
    }
}

/// Measures every point. One that cannot be measured is told in the report and the next one is tried. Dropping the
/// future ends every process that it started.
///
/// # Errors
/// Where nothing can be measured at all: no folder, or no program to start.
pub(crate) async fn run(plan: ToastsPlan, command: Vec<String>) -> Result<ToastsReport, BenchError> {
    let open_files = OpenFiles::raise();
    let workplace = Workplace::new(plan.folder.as_deref())?;
    let facts = facts::gather(workplace.program(), workplace.path(), open_files);
    let mut report = ToastsReport::new(facts, command, &plan);
    for &subscribers in &plan.subscribers {
        progress(&format!("{subscribers} subscribers connect"));
        match point_of(&plan, subscribers, &workplace, open_files).await {
            Ok(point) => report.points.push(point),
            Err(cause) => {
                progress(&format!("{subscribers} subscribers: not measured: {cause}"));
                report.unmeasured.push(Unmeasured { subscribers, reason: cause.to_string() });
            }
        }
    }
    Ok(report)
}

async fn point_of(
    plan: &ToastsPlan,
    subscribers: usize,
    workplace: &Workplace,
    open_files: OpenFiles,
) -> Result<PointReport, BenchError> {
    open_files.check_connections(subscribers)?;
    let folder = workplace.folder(&format!("toasts-{subscribers}"))?;
    let measured = trial::measure(workplace, &folder, plan, subscribers).await;
    remove(&folder);
    Ok(PointReport::new(subscribers, measured?))
}
