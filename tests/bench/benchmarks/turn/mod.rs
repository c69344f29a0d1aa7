//! The cost of a turn along three paths, measured from outside in one run.
//!
//! | path | between the load client and the agent |
//! |---|---|
//! | `stdio` | nothing: the agent's pipes ([`acp`]) |
//! | `runtime` | ACP over WebSocket, `lumilink runtime` in a process of its own ([`acp`]) |
//! | `supervisor` | HTTP, session actor, SQLite, WebSocket, runtime: `lumilink serve` in a process of its own |

mod acp;
mod point;
mod report;

use std::{fmt, str::FromStr, time::Duration};

use clap::Parser;
use serde::Serialize;

use self::{
    point::{Stage, measure},
    report::{Point, TurnReport, Unmeasured},
};
use crate::support::{
    cli::{self, Benchmark, CommonArgs, Setup, progress},
    conversation::BenchError,
    open_files::Holder,
};

/// From this number of sessions on, sessions pause between prompts by default: without a pause they only measure the
/// length of the queue at the processors.
const MANY_SESSIONS: usize = 1000;
/// Default pause of many sessions: 1,000 sessions then offer at most 1,000 turns a second.
const PAUSE_OF_MANY: Duration = Duration::from_secs(1);

/// A path from the load client to the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum PathKind {
    /// The agent's pipes.
    Stdio,
    /// A runtime, by ACP over WebSocket.
    Runtime,
    /// A supervisor with an embedded runtime, by HTTP.
    Supervisor,
}

impl PathKind {
    /// From the shortest to the longest.
    const ALL: [Self; 3] = [Self::Stdio, Self::Runtime, Self::Supervisor];

    fn name(self) -> &'static str {
        match self {
            Self::Stdio => "stdio",
            Self::Runtime => "runtime",
            Self::Supervisor => "supervisor",
        }
    }

    /// The process that holds the sessions.
    fn holder(self) -> Holder {
        match self {
            Self::Stdio => Holder::Client,
            Self::Runtime => Holder::Runtime,
            Self::Supervisor => Holder::Supervisor,
        }
    }
}

impl fmt::Display for PathKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for PathKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|path| path.name() == text)
            .ok_or_else(|| "must be stdio, runtime or supervisor".to_owned())
    }
}

/// Measures the cost of a turn: with the bare agent, through the runtime, and through the whole supervisor.
///
/// Prints latency, throughput, memory and processor time.
#[derive(Debug, Parser)]
#[command(name = "turn", bin_name = "cargo bench --bench turn --")]
pub(crate) struct TurnPlan {
    /// Numbers of concurrent sessions.
    #[arg(long, value_name = "N,N,…", value_delimiter = ',', default_value = "1,10,100,1000", value_parser = cli::parse_sessions)]
    sessions: Vec<usize>,
    /// Duration of each measurement, after a warm-up.
    #[arg(long = "seconds", value_name = "SECONDS", default_value = "5", value_parser = cli::parse_seconds)]
    measured: Duration,
    /// Paths to measure.
    #[arg(long, value_name = "PATH,PATH,…", value_delimiter = ',', default_value = "stdio,runtime,supervisor")]
    paths: Vec<PathKind>,
    /// Pause between two prompts of one session [default: 0; 1000 from 1,000 sessions on].
    #[arg(long = "think-ms", value_name = "MS", value_parser = cli::parse_pause)]
    think: Option<Duration>,
    /// Prompt to the demo agent.
    #[arg(long, value_name = "TEXT", default_value = "echo a turn is measured")]
    prompt: String,
    #[command(flatten)]
    common: CommonArgs,
}

impl TurnPlan {
    /// Pause between two prompts of one session.
    fn think(&self, sessions: usize) -> Duration {
        let by_default = if sessions >= MANY_SESSIONS { PAUSE_OF_MANY } else { Duration::ZERO };
        self.think.unwrap_or(by_default)
    }
}

impl Benchmark for TurnPlan {
    const NAME: &'static str = "turn";
    const MOCKED: &'static str =
        "the agent: the built-in demo agent, one process a session; no model, no thinking time";
    type Report = TurnReport;

    fn common(&self) -> &CommonArgs {
        &self.common
    }

    async fn measure(&self, setup: &Setup) -> Result<TurnReport, BenchError> {
        let (mut points, mut unmeasured) = (Vec::new(), Vec::new());
        for &sessions in &self.sessions {
            for &path in &self.paths {
                progress(&format!("{path}, {sessions} concurrent"));
                match point_of(self, path, sessions, setup).await {
                    Ok(point) => points.push(point),
                    Err(cause) => {
                        progress(&format!("{path}, {sessions} concurrent: not measured: {cause}"));
                        unmeasured.push(Unmeasured { path, sessions, reason: cause.to_string() });
                    }
                }
            }
        }
        Ok(TurnReport::new(self.prompt.clone(), points, unmeasured))
    }
}

async fn point_of(plan: &TurnPlan, path: PathKind, sessions: usize, setup: &Setup) -> Result<Point, BenchError> {
    setup.open_files.check(path.holder(), sessions)?;
    let folder = setup.workplace.folder(&format!("{path}-{sessions}"))?;
    let stage = Stage::start(path, plan, &setup.workplace, &folder).await?;
    let measured = measure(&stage, plan, path, sessions).await;
    let errors_logged = stage.stop().await;
    setup.workplace.clear(&folder);
    let mut point = measured?;
    point.errors_logged = errors_logged?;
    Ok(point)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn think(arguments: &[&str], sessions: usize) -> Duration {
        TurnPlan::parse_from(["turn"].iter().chain(arguments)).think(sessions)
    }

    #[test]
    fn many_sessions_pause_by_default() {
        assert_eq!(think(&[], 999), Duration::ZERO);
        assert_eq!(think(&[], 1000), Duration::from_secs(1));
        assert_eq!(think(&["--think-ms", "0"], 1000), Duration::ZERO);
        assert_eq!(think(&["--think-ms", "3000"], 1), Duration::from_secs(3));
    }

    #[test]
    fn path_is_parsed_from_its_printed_name() {
        for path in PathKind::ALL {
            assert_eq!(path.to_string().parse(), Ok(path));
        }
        assert!("http".parse::<PathKind>().is_err());
    }
}
