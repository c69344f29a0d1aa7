//! `lumilink bench route`: the same turns over ACP and over the HTTP fallback, measured from outside in one run.
//!
//! For each number of sessions and each pause of the pretended model there is one supervisor and one runtime, with two
//! workspaces: one is pinned to `acp`, one to `http` ([`stage`]). Both get the same prompts from the same client
//! ([`turns`]), first cold (a new session and its first turn), then warm (turns of sessions that are open). Every turn
//! is checked to have gone over the route that it is counted for.

mod compare;
mod point;
mod report;
mod stage;
mod text;
mod turns;

use std::{path::PathBuf, time::Duration};

pub(crate) use self::report::RouteReport;
use self::{report::Unmeasured, stage::Stage};
use super::{
    conversation::BenchError, facts, open_files::OpenFiles, plan::PathKind, program::Workplace, progress, remove,
};
use crate::domain::routing::Route;

/// The longest pause of the pretended model, in milliseconds: with it a turn stays far below the limit of one.
pub(crate) const MAX_MODEL_MS: u64 = 10_000;

/// What is to be measured.
#[derive(Debug, Clone)]
pub(crate) struct RoutePlan {
    /// At how many concurrent sessions.
    pub sessions: Vec<usize>,
    /// How long the agent pretends to think in each turn; zero: not at all.
    pub models: Vec<Duration>,
    /// How long each point is measured, warm-up not counted.
    pub measured: Duration,
    /// What every prompt says to the demo agent, after the pause.
    pub prompt: String,
    /// `SECTION.KEY=VALUE` for supervisor and runtime.
    pub settings: Vec<String>,
    /// Folder on the disk that databases and workspaces are to use.
    pub folder: Option<PathBuf>,
}

impl RoutePlan {
    /// A prompt that takes as long as the model is to take.
    fn prompt(&self, model: Duration) -> String {
        match model {
            Duration::ZERO => self.prompt.clone(),
            model => format!("sleep {} ; {}", model.as_secs_f64(), self.prompt),
        }
    }

    /// A fifth of the measurement, between 0.1 and 2 s, and long enough that every session has had a turn.
    fn warm_up(&self, model: Duration) -> Duration {
        (self.measured / 5).clamp(Duration::from_millis(100), Duration::from_secs(2)).max(model * 2)
    }

    /// There are seats and agents for all, also while those of the point before are on their way out; what was asked
    /// for comes last.
    fn settings(&self, sessions: usize) -> Vec<String> {
        let mut settings = vec![
            format!("capacity.max_sessions={}", sessions * 2 + 100),
            format!("runtime.max_agents={}", sessions * 2 + 200),
            format!("limits.write_queue={}", (sessions * 2).max(4096)),
        ];
        settings.extend(self.settings.iter().cloned());
        settings
    }
}

/// How a turn begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Start {
    /// With its session: `session/new` and the first turn of it count as one.
    Cold,
    /// In a session that is open and has had turns before.
    Warm,
}

impl Start {
    const ALL: [Self; 2] = [Self::Cold, Self::Warm];

    fn as_str(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Warm => "warm",
        }
    }
}

/// What one point measures.
#[derive(Debug, Clone, Copy)]
struct Load {
    route: Route,
    start: Start,
    sessions: usize,
    model: Duration,
}

/// Measures every point of the plan. What cannot be measured is told in the report and the rest is tried. Dropping the
/// future ends every process that it started.
///
/// # Errors
/// Where nothing can be measured at all: no folder, or no program to start.
pub(crate) async fn run(plan: RoutePlan, command: Vec<String>) -> Result<RouteReport, BenchError> {
    let open_files = OpenFiles::raise();
    let workplace = Workplace::new(plan.folder.as_deref())?;
    let facts = facts::gather(workplace.program(), workplace.path(), open_files);
    let mut report = RouteReport::new(facts, command, &plan);
    for &sessions in &plan.sessions {
        for &model in &plan.models {
            if let Err(cause) = compare_at(&plan, sessions, model, &workplace, open_files, &mut report).await {
                progress(&format!("{sessions} sessions: not measured: {cause}"));
                report.unmeasured.push(Unmeasured::new(sessions, model, &cause));
            }
        }
    }
    report.compare();
    Ok(report)
}

/// Both routes, cold and warm, at the same processes one after the other.
async fn compare_at(
    plan: &RoutePlan,
    sessions: usize,
    model: Duration,
    workplace: &Workplace,
    open_files: OpenFiles,
    report: &mut RouteReport,
) -> Result<(), BenchError> {
    open_files.check(PathKind::Supervisor, sessions)?;
    let folder = workplace.folder(&format!("route-{sessions}-{}", model.as_millis()))?;
    let stage = Stage::start(workplace, &folder, &plan.settings(sessions)).await?;
    let mut measured = Ok(());
    'points: for start in Start::ALL {
        for route in Route::ALL {
            let load = Load { route, start, sessions, model };
            let (route, start, model) = (route.as_str(), start.as_str(), model.as_millis());
            progress(&format!("{route}, {start}, {sessions} concurrent, model {model} ms"));
            match stage.measure(plan, load).await {
                Ok(point) => report.points.push(point),
                Err(cause) => {
                    measured = Err(cause);
                    break 'points;
                }
            }
        }
    }
    let logged = stage.stop().await;
    remove(&folder);
    report.errors_logged += logged?;
    measured
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_a_pause_ahead_of_the_prompt_and_makes_the_warm_up_longer() {
        let plan = RoutePlan {
            sessions: vec![1],
            models: vec![Duration::ZERO],
            measured: Duration::from_secs(2),
            prompt: "echo hello".into(),
            settings: vec!["limits.write_queue=9".into()],
            folder: None,
        };
        assert_eq!(plan.prompt(Duration::ZERO), "echo hello");
        assert_eq!(plan.prompt(Duration::from_millis(50)), "sleep 0.05 ; echo hello");
        assert_eq!(plan.warm_up(Duration::ZERO), Duration::from_millis(400));
        assert_eq!(plan.warm_up(Duration::from_millis(500)), Duration::from_secs(1));
        let settings = plan.settings(10);
        assert_eq!(
            (settings[0].as_str(), settings[3].as_str()),
            ("capacity.max_sessions=120", "limits.write_queue=9")
        );
    }
}
