//! The same turns over ACP and over the HTTP fallback, measured from outside in one run.
//!
//! Each number of sessions and each pause of the simulated model gets one supervisor and one runtime with two workspaces:
//! one is pinned to `acp`, one to `http` ([`stage`]). Both get the same prompts from the same client ([`turns`]): first
//! cold (a new session and its first turn), then warm (turns of open sessions). Every turn is checked to have used the
//! route that it is counted for.

mod compare;
mod point;
mod report;
mod stage;
mod turns;

use std::time::Duration;

use clap::Parser;
use serde::{Deserialize, Serialize};

use self::{
    point::RoutePoint,
    report::{RouteReport, Unmeasured},
    stage::Stage,
};
use crate::support::{
    cli::{self, Benchmark, CommonArgs, Setup, progress},
    conversation::BenchError,
    open_files::Holder,
};

/// Longest pause of the simulated model, in milliseconds: far below the time limit of a turn.
const MAX_MODEL_MS: u64 = 10_000;

fn parse_model(text: &str) -> Result<Duration, String> {
    cli::parse_ms(text, 0, MAX_MODEL_MS)
}

/// Measures the same turns over ACP and over the HTTP fallback, in new sessions and in open ones.
///
/// Prints latency, throughput, time to the first update, processor time, and the comparison of both routes.
#[derive(Debug, Parser)]
#[command(name = "route", bin_name = "cargo bench --bench route --")]
pub(crate) struct RoutePlan {
    /// Numbers of concurrent sessions.
    #[arg(long, value_name = "N,N,…", value_delimiter = ',', default_value = "1,10,100", value_parser = cli::parse_sessions)]
    sessions: Vec<usize>,
    /// Pauses of the simulated model in each turn.
    #[arg(long = "model-ms", value_name = "MS,MS,…", value_delimiter = ',', default_value = "0,50,500", value_parser = parse_model)]
    models: Vec<Duration>,
    /// Duration of each measurement, after a warm-up.
    #[arg(long = "seconds", value_name = "SECONDS", default_value = "5", value_parser = cli::parse_seconds)]
    measured: Duration,
    /// Prompt to the demo agent, after the pause.
    #[arg(long, value_name = "TEXT", default_value = "echo a route is measured")]
    prompt: String,
    #[command(flatten)]
    common: CommonArgs,
}

impl RoutePlan {
    /// A prompt that takes as long as the model.
    fn prompt(&self, model: Duration) -> String {
        match model {
            Duration::ZERO => self.prompt.clone(),
            model => format!("sleep {} ; {}", model.as_secs_f64(), self.prompt),
        }
    }

    /// Long enough that every session has a turn.
    fn warm_up(&self, model: Duration) -> Duration {
        cli::warm_up(self.measured, model * 2)
    }

    /// Seats and agents for all sessions, also while those of the previous point are ending. The settings of the command
    /// line come last.
    fn settings(&self, sessions: usize) -> Vec<String> {
        let mut settings = vec![
            format!("capacity.max_sessions={}", sessions * 2 + 100),
            format!("runtime.max_agents={}", sessions * 2 + 200),
            format!("limits.write_queue={}", (sessions * 2).max(4096)),
        ];
        settings.extend(self.common.settings.iter().cloned());
        settings
    }
}

/// A route, under its name in the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Route {
    Acp,
    Http,
}

impl Route {
    const ALL: [Self; 2] = [Self::Acp, Self::Http];

    fn as_str(self) -> &'static str {
        match self {
            Self::Acp => "acp",
            Self::Http => "http",
        }
    }
}

/// Start of a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Start {
    /// In a new session: `session/new` and the first turn count as one.
    Cold,
    /// In an open session that has had turns.
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

/// The load of one point.
#[derive(Debug, Clone, Copy)]
struct Load {
    route: Route,
    start: Start,
    sessions: usize,
    model: Duration,
}

impl Benchmark for RoutePlan {
    const NAME: &'static str = "route";
    const MOCKED: &'static str = "the agent: the built-in demo agent (over ACP one process a session, over HTTP one a \
                                  turn); the model: a pause; the load: this process, on the same machine";
    type Report = RouteReport;

    fn common(&self) -> &CommonArgs {
        &self.common
    }

    async fn measure(&self, setup: &Setup) -> Result<RouteReport, BenchError> {
        let (mut found, mut unmeasured) = (Found::default(), Vec::new());
        for &sessions in &self.sessions {
            for &model in &self.models {
                if let Err(cause) = compare_at(self, sessions, model, setup, &mut found).await {
                    progress(&format!("{sessions} sessions: not measured: {cause}"));
                    unmeasured.push(Unmeasured::new(sessions, model, &cause));
                }
            }
        }
        Ok(RouteReport::new(self.prompt.clone(), found.points, unmeasured, found.errors_logged))
    }
}

/// Points of a run, and the number of errors that their processes logged.
#[derive(Default)]
struct Found {
    points: Vec<RoutePoint>,
    errors_logged: u64,
}

/// Measures both routes, cold and warm, one after the other with the same processes. Points that were measured before an
/// error are kept.
async fn compare_at(
    plan: &RoutePlan,
    sessions: usize,
    model: Duration,
    setup: &Setup,
    found: &mut Found,
) -> Result<(), BenchError> {
    setup.open_files.check(Holder::Supervisor, sessions)?;
    let folder = setup.workplace.folder(&format!("route-{sessions}-{}", model.as_millis()))?;
    let stage = Stage::start(&setup.workplace, &folder, &plan.settings(sessions)).await?;
    let mut measured = Ok(());
    'points: for start in Start::ALL {
        for route in Route::ALL {
            let load = Load { route, start, sessions, model };
            let (route, start, model) = (route.as_str(), start.as_str(), model.as_millis());
            progress(&format!("{route}, {start}, {sessions} concurrent, model {model} ms"));
            match stage.measure(plan, load).await {
                Ok(point) => found.points.push(point),
                Err(cause) => {
                    measured = Err(cause);
                    break 'points;
                }
            }
        }
    }
    let errors_logged = stage.stop().await;
    setup.workplace.clear(&folder);
    found.errors_logged += errors_logged?;
    measured
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn model_is_a_pause_before_the_prompt_and_extends_the_warm_up() {
        let arguments = ["route", "--seconds", "2", "--prompt", "echo hello", "--serve-arg", "limits.write_queue=9"];
        let plan = RoutePlan::parse_from(arguments);
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
