//! What was measured, as values; the JSON of `--json` is these.

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;

use super::{
    closed_loop::Tally,
    facts::Facts,
    latency::LatencySummary,
    plan::{PathKind, Plan},
    processes::Memory,
};

/// A whole run.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    /// On what.
    pub facts: Facts,
    /// How it was called.
    pub command: Vec<String>,
    /// What was not the real thing.
    pub mocked: &'static str,
    /// What every prompt said.
    pub prompt: String,
    /// What the figures need to be read with.
    pub warnings: Vec<String>,
    /// The points, in the order in which they were measured.
    pub points: Vec<Point>,
    /// The points that could not be measured.
    pub unmeasured: Vec<Unmeasured>,
    /// Whole path against bare agent.
    pub overhead: Vec<Overhead>,
}

/// A path at a number of sessions.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Point {
    /// The path.
    pub path: PathKind,
    /// Concurrent sessions.
    pub sessions: usize,
    /// How long was counted.
    pub seconds: f64,
    /// The pause between two prompts of one session.
    pub think_ms: f64,
    /// The most turns a second that sessions with such a pause ask for; absent where they ask as fast as they
    /// are answered.
    pub offered_per_second: Option<f64>,
    /// Turns that completed within that time.
    pub turns: u64,
    /// The same by time.
    pub turns_per_second: f64,
    /// Latency of the turns that began within that time.
    pub latency: LatencySummary,
    /// Turns that failed, warm-up included.
    pub errors: u64,
    /// What the first different ones said, and how often.
    pub error_samples: BTreeMap<String, u64>,
    /// Sessions that were lost.
    pub sessions_lost: u64,
    /// Lines of level ERROR in the log of the process under test.
    pub errors_logged: u64,
    /// How long it took to open all sessions.
    pub opening_seconds: f64,
    /// Processor time.
    pub cpu: CpuUse,
    /// Memory.
    pub memory: MemoryUse,
    /// Open files of the process that holds the sessions: the one under test, on stdio the load client.
    pub open_files: Option<usize>,
}

/// A point that could not be measured.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Unmeasured {
    /// The path.
    pub path: PathKind,
    /// Concurrent sessions.
    pub sessions: usize,
    /// Why.
    pub reason: String,
}

/// Latency of the whole path less that of the bare agent, at the same number of sessions and the same pause:
/// the difference of two quantiles, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Overhead {
    /// Concurrent sessions.
    pub sessions: usize,
    /// Of the p50s.
    pub p50_ms: f64,
    /// Of the p99s.
    pub p99_ms: f64,
}

/// Processor time, as it was read.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ProcessorUse {
    /// Of the load client.
    pub client: Duration,
    /// Of the process under test.
    pub server: Option<Duration>,
    /// Of all agents.
    pub agents: Duration,
}

impl ProcessorUse {
    /// What was used between two readings.
    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            client: self.client.saturating_sub(before.client),
            server: self.server.zip(before.server).map(|(after, before)| after.saturating_sub(before)),
            agents: self.agents.saturating_sub(before.agents),
        }
    }
}

/// Processor time, user and system.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CpuUse {
    /// Milliseconds of the load client for one turn.
    pub client_ms_per_turn: f64,
    /// Of the process under test.
    pub server_ms_per_turn: Option<f64>,
    /// Of the agents.
    pub agents_ms_per_turn: f64,
    /// Seconds of the load client in all.
    pub client_seconds: f64,
    /// Of the process under test.
    pub server_seconds: Option<f64>,
    /// Of the agents.
    pub agents_seconds: f64,
}

/// Memory at three moments.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct MemoryUse {
    /// The process under test before it had a session.
    pub server_before: Option<Memory>,
    /// With all sessions open and idle, before the first prompt.
    pub server_idle: Option<Memory>,
    /// After the load, all sessions still open.
    pub server_after: Option<Memory>,
    /// What one idle session added to the resident set of the process under test, in bytes.
    pub server_bytes_per_session: Option<f64>,
    /// The agents before the first prompt.
    pub agents_idle: Memory,
    /// The agents after the load.
    pub agents_after: Memory,
}

impl Report {
    /// Makes a report without points.
    pub(crate) fn new(facts: Facts, command: Vec<String>, plan: &Plan) -> Self {
        let mut warnings = Vec::new();
        if facts.profile == "debug" {
            warnings.push("built without optimisation (debug): these figures say little; use --release".to_owned());
        }
        if facts.file_system == "tmpfs" {
            warnings.push("the database is on tmpfs, where a commit costs next to nothing; see --folder".to_owned());
        }
        Self {
            facts,
            command,
            mocked: "the agent: the built-in demo agent, one process a session; no model, no thinking time",
            prompt: plan.prompt.clone(),
            warnings,
            points: Vec::new(),
            unmeasured: Vec::new(),
            overhead: Vec::new(),
        }
    }

    /// Compares the whole path with the bare agent where both were measured.
    pub(crate) fn compare(&mut self) {
        let of = |path: PathKind| self.points.iter().filter(move |point| point.path == path);
        self.overhead = of(PathKind::Supervisor)
            .filter_map(|whole| {
                let bare = of(PathKind::Stdio).find(|bare| bare.sessions == whole.sessions)?;
                Some(Overhead {
                    sessions: whole.sessions,
                    p50_ms: whole.latency.p50_ms - bare.latency.p50_ms,
                    p99_ms: whole.latency.p99_ms - bare.latency.p99_ms,
                })
            })
            .collect();
    }

    /// For programs.
    pub(crate) fn json(&self) -> String {
        serde_json::to_string_pretty(self)
            .unwrap_or_else(|cause| unreachable!("a value of our own types serialises: {cause}"))
    }
}

impl Point {
    /// Puts together what was read. The errors in the log come later, when it is closed.
    pub(crate) fn new(
        (path, sessions, measured, think): (PathKind, usize, Duration, Duration),
        opening: Duration,
        tally: &Tally,
        cpu: ProcessorUse,
        memory: MemoryUse,
        open_files: Option<usize>,
    ) -> Self {
        Self {
            path,
            sessions,
            seconds: measured.as_secs_f64(),
            think_ms: think.as_secs_f64() * 1e3,
            offered_per_second: (!think.is_zero()).then(|| float(sessions) / think.as_secs_f64()),
            turns: tally.turns,
            turns_per_second: float(tally.turns) / measured.as_secs_f64(),
            latency: tally.latencies.summary(),
            errors: tally.errors,
            error_samples: tally.error_samples.clone(),
            sessions_lost: tally.sessions_lost,
            errors_logged: 0,
            opening_seconds: opening.as_secs_f64(),
            cpu: CpuUse::new(cpu, tally.turns),
            memory,
            open_files,
        }
    }
}

impl CpuUse {
    fn new(cpu: ProcessorUse, turns: u64) -> Self {
        let per_turn = |time: Duration| if turns == 0 { 0.0 } else { time.as_secs_f64() * 1e3 / float(turns) };
        Self {
            client_ms_per_turn: per_turn(cpu.client),
            server_ms_per_turn: cpu.server.map(per_turn),
            agents_ms_per_turn: per_turn(cpu.agents),
            client_seconds: cpu.client.as_secs_f64(),
            server_seconds: cpu.server.map(|time| time.as_secs_f64()),
            agents_seconds: cpu.agents.as_secs_f64(),
        }
    }
}

impl MemoryUse {
    /// Puts together what was read: the server before, idle and after; the agents idle and after.
    pub(crate) fn new(sessions: usize, server: [Option<Memory>; 3], agents: [Memory; 2]) -> Self {
        let [server_before, server_idle, server_after] = server;
        let [agents_idle, agents_after] = agents;
        let added = server_before
            .zip(server_idle)
            .map(|(before, idle)| (float(idle.rss_bytes) - float(before.rss_bytes)) / float(sessions));
        Self { server_before, server_idle, server_after, server_bytes_per_session: added, agents_idle, agents_after }
    }
}

/// Counts and bytes are far below the numbers of which a float loses the last digit.
fn float(number: impl TryInto<u64>) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "see above")]
    let float = number.try_into().unwrap_or(u64::MAX) as f64;
    float
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::open_files::OpenFiles;
    use super::*;

    fn memory(megabytes: u64) -> Memory {
        Memory { processes: 1, rss_bytes: megabytes << 20, pss_bytes: None }
    }

    fn point(path: PathKind, sessions: usize, p50_ms: f64) -> Point {
        let latency = LatencySummary { p50_ms, p95_ms: 2.0, p99_ms: p50_ms * 4.0, max_ms: 9.0, mean_ms: 1.0 };
        let cpu = ProcessorUse {
            client: Duration::from_secs(1),
            server: (path != PathKind::Stdio).then_some(Duration::from_secs(3)),
            agents: Duration::from_secs(2),
        };
        let server = [20, 40, 50].map(|it| (path != PathKind::Stdio).then(|| memory(it)));
        Point {
            path,
            sessions,
            seconds: 5.0,
            think_ms: 0.0,
            offered_per_second: None,
            turns: 1000,
            turns_per_second: 200.0,
            latency,
            errors: 1,
            error_samples: BTreeMap::from([("status 503".to_owned(), 1)]),
            sessions_lost: 0,
            errors_logged: 2,
            opening_seconds: 0.5,
            cpu: CpuUse::new(cpu, 1000),
            memory: MemoryUse::new(sessions, server, [memory(5), memory(6)]),
            open_files: Some(100),
        }
    }

    /// A report with two paths at ten sessions and one point that was not measured.
    pub(crate) fn sample() -> Report {
        let facts = Facts {
            cores: 2,
            processor: "Example".into(),
            memory_bytes: 8 << 30,
            kernel: "6.1".into(),
            load_average: 0.5,
            file_system: "tmpfs".into(),
            open_files: OpenFiles { limit: 1024, hard_limit: 1024 },
            version: "0.1.0",
            commit: "abc".into(),
            profile: "debug",
        };
        let plan = Plan {
            paths: PathKind::ALL.into(),
            sessions: vec![10],
            measured: Duration::from_secs(5),
            think: None,
            prompt: "echo".into(),
            settings: Vec::new(),
            folder: None,
        };
        let mut report = Report::new(facts, vec!["lumilink".into(), "bench".into(), "turn".into()], &plan);
        report.points = vec![point(PathKind::Stdio, 10, 0.25), point(PathKind::Supervisor, 10, 1.0)];
        report.points.push(point(PathKind::Supervisor, 100, 3.0));
        report.unmeasured.push(Unmeasured { path: PathKind::Runtime, sessions: 10, reason: "because".into() });
        report.compare();
        report
    }

    #[test]
    fn the_overhead_is_told_where_both_paths_were_measured() {
        assert_eq!(sample().overhead, [Overhead { sessions: 10, p50_ms: 0.75, p99_ms: 3.0 }]);
    }

    #[test]
    fn figures_by_turn_and_by_session_are_shares_of_the_whole() {
        let report = sample();
        let cpu = report.points[1].cpu;
        assert_eq!((cpu.client_ms_per_turn, cpu.server_ms_per_turn, cpu.agents_ms_per_turn), (1.0, Some(3.0), 2.0));
        assert_eq!(report.points[1].memory.server_bytes_per_session, Some(2.0 * 1024.0 * 1024.0));
        assert_eq!(CpuUse::new(ProcessorUse::default(), 0).client_ms_per_turn, 0.0);
    }

    #[test]
    fn json_has_every_point_and_what_was_not_measured() {
        let json: serde_json::Value = serde_json::from_str(&sample().json()).unwrap();
        assert_eq!(json["points"].as_array().map(Vec::len), Some(3));
        assert_eq!(json["points"][0]["path"], "stdio");
        assert_eq!(json["points"][1]["latency"]["p99Ms"], 4.0);
        assert_eq!(json["unmeasured"][0]["reason"], "because");
        assert_eq!(json["warnings"].as_array().map(Vec::len), Some(2));
    }
}
