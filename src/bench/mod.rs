//! `lumilink bench turn`: what a turn costs along three paths, measured from outside in one run.
//!
//! | path | between the load client and the agent |
//! |---|---|
//! | `stdio` | nothing: the agent's pipes ([`acp_paths`]) |
//! | `runtime` | ACP over WebSocket, `lumilink runtime` as a process of its own ([`acp_paths`]) |
//! | `supervisor` | HTTP, session actor, SQLite, WebSocket, runtime: `lumilink serve` as a process of its own ([`http_path`]) |
//!
//! `lumilink bench resume` ([`resume`]) measures broken connections and killed supervisors, `lumilink bench capacity`
//! ([`capacity`]) a service that is full, `lumilink bench route` ([`route`]) the same turns over ACP and over the HTTP
//! fallback, `lumilink bench toasts` ([`toasts`]) toasts to many readers.
//!
//! Invariant: it measures and prints, also what is bad; it never judges. Everything is bounded in count and
//! time and stays on loopback, and every point (of `route`: every load, with both routes) begins with fresh processes,
//! so none inherits from another.

mod acp_paths;
mod capacity;
mod closed_loop;
mod conversation;
mod facts;
mod http_link;
mod http_path;
mod latency;
mod open_files;
mod plan;
mod point;
mod processes;
mod program;
mod report;
mod resume;
mod route;
mod text;
mod toasts;

use std::{io::Write, path::Path};

pub(crate) use self::{
    capacity::{CapacityPlan, MAX_REFUSALS, run as run_capacity},
    conversation::BenchError,
    plan::{MAX_SECONDS, MAX_SESSIONS, PathKind, Plan},
    report::Report,
    resume::{MAX_MESSAGES, MAX_ROUNDS, ResumePlan, run as run_resume},
    route::{MAX_MODEL_MS, RoutePlan, run as run_route},
    text::render,
    toasts::{MAX_NOTIFICATIONS, MAX_SUBSCRIBERS, ToastsPlan, run as run_toasts},
};
use self::{
    open_files::OpenFiles,
    point::{Stage, measure},
    program::Workplace,
    report::{Point, Unmeasured},
};

/// Measures every point of the plan. A point that cannot be measured is told in the report and the next one is
/// tried. Dropping the future ends every process that it started.
///
/// # Errors
/// Where nothing can be measured at all: no folder, or no program to start.
pub(crate) async fn run(plan: Plan, command: Vec<String>) -> Result<Report, BenchError> {
    let open_files = OpenFiles::raise();
    let workplace = Workplace::new(plan.folder.as_deref())?;
    let facts = facts::gather(workplace.program(), workplace.path(), open_files);
    let mut report = Report::new(facts, command, &plan);
    for &sessions in &plan.sessions {
        for &path in &plan.paths {
            progress(&format!("{path}, {sessions} concurrent"));
            match point_of(&plan, path, sessions, &workplace, open_files).await {
                Ok(point) => report.points.push(point),
                Err(cause) => {
                    progress(&format!("{path}, {sessions} concurrent: not measured: {cause}"));
                    report.unmeasured.push(Unmeasured { path, sessions, reason: cause.to_string() });
                }
            }
        }
    }
    report.compare();
    Ok(report)
}

async fn point_of(
    plan: &Plan,
    path: PathKind,
    sessions: usize,
    workplace: &Workplace,
    open_files: OpenFiles,
) -> Result<Point, BenchError> {
    open_files.check(path, sessions)?;
    let folder = workplace.folder(&format!("{path}-{sessions}"))?;
    let stage = Stage::start(path, plan, workplace, &folder).await?;
    let measured = measure(&stage, plan, path, sessions).await;
    let log = stage.stop().await;
    remove(&folder);
    let mut point = measured?;
    point.errors_logged = log?;
    Ok(point)
}

/// A folder that stays until the whole run ends does no harm.
fn remove(folder: &Path) {
    let _ = std::fs::remove_dir_all(folder);
}

/// Tells whoever waits. Standard output is for the report.
fn progress(what: &str) {
    let _ = writeln!(std::io::stderr(), "bench: {what}");
}
