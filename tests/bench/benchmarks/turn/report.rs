//! The figures of all points, as values and as text.

use std::{fmt::Write, time::Duration};

use serde::Serialize;

use super::PathKind;
use crate::support::{
    facts::Facts,
    latency::LatencySummary,
    processes::Memory,
    report::{KILOBYTE, Report, TurnFigures, float, known, megabytes, ms_per_turn},
};

/// Figures of a run.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TurnReport {
    prompt: String,
    /// In the order in which they were measured.
    points: Vec<Point>,
    unmeasured: Vec<Unmeasured>,
    /// The whole path compared with the bare agent, where both were measured.
    overhead: Vec<Overhead>,
}

/// A path at a number of sessions.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Point {
    pub path: PathKind,
    pub sessions: usize,
    /// Measured time.
    pub seconds: f64,
    /// Pause between two prompts of one session.
    pub think_ms: f64,
    /// Highest rate at which sessions with this pause send prompts; absent without a pause.
    pub offered_per_second: Option<f64>,
    #[serde(flatten)]
    pub turns: TurnFigures,
    /// Lines of level ERROR in the log of the process under test.
    pub errors_logged: u64,
    /// Time to open all sessions.
    pub opening_seconds: f64,
    pub cpu: CpuUse,
    pub memory: MemoryUse,
    /// Open files of the process that holds the sessions: the process under test, on stdio the load client.
    pub open_files: Option<usize>,
}

/// A point that could not be measured.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Unmeasured {
    pub path: PathKind,
    pub sessions: usize,
    pub reason: String,
}

/// Latency of the whole path minus that of the bare agent, at the same number of sessions: differences of quantiles.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Overhead {
    sessions: usize,
    p50_ms: f64,
    p99_ms: f64,
}

/// Processor time, user and system. The values of the server are absent on stdio.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CpuUse {
    client_ms_per_turn: f64,
    server_ms_per_turn: Option<f64>,
    agents_ms_per_turn: f64,
    client_seconds: f64,
    server_seconds: Option<f64>,
    agents_seconds: f64,
}

/// Memory at three moments. The values of the server are absent on stdio.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct MemoryUse {
    /// Before the first session.
    server_before: Option<Memory>,
    /// With all sessions open, before the first prompt.
    server_idle: Option<Memory>,
    /// After the load, with all sessions open.
    server_after: Option<Memory>,
    /// Resident memory that an idle session added.
    server_bytes_per_session: Option<f64>,
    /// Before the first prompt.
    agents_idle: Memory,
    /// After the load.
    agents_after: Memory,
}

impl TurnReport {
    pub(crate) fn new(prompt: String, points: Vec<Point>, unmeasured: Vec<Unmeasured>) -> Self {
        let overhead = overhead_of(&points);
        Self { prompt, points, unmeasured, overhead }
    }
}

fn overhead_of(points: &[Point]) -> Vec<Overhead> {
    let of = |path: PathKind| points.iter().filter(move |point| point.path == path);
    of(PathKind::Supervisor)
        .filter_map(|whole| {
            let bare = &of(PathKind::Stdio).find(|bare| bare.sessions == whole.sessions)?.turns.latency;
            let whole_path = &whole.turns.latency;
            Some(Overhead {
                sessions: whole.sessions,
                p50_ms: whole_path.p50_ms - bare.p50_ms,
                p99_ms: whole_path.p99_ms - bare.p99_ms,
            })
        })
        .collect()
}

impl CpuUse {
    pub(crate) fn new([client, agents]: [Duration; 2], server: Option<Duration>, turns: u64) -> Self {
        Self {
            client_ms_per_turn: ms_per_turn(client, turns),
            server_ms_per_turn: server.map(|time| ms_per_turn(time, turns)),
            agents_ms_per_turn: ms_per_turn(agents, turns),
            client_seconds: client.as_secs_f64(),
            server_seconds: server.map(|time| time.as_secs_f64()),
            agents_seconds: agents.as_secs_f64(),
        }
    }
}

impl MemoryUse {
    /// From the server before, idle and after; and the agents idle and after.
    pub(crate) fn new(sessions: usize, server: [Option<Memory>; 3], agents: [Memory; 2]) -> Self {
        let [server_before, server_idle, server_after] = server;
        let [agents_idle, agents_after] = agents;
        let added = server_before
            .zip(server_idle)
            .map(|(before, idle)| (float(idle.rss_bytes) - float(before.rss_bytes)) / float(sessions));
        Self { server_before, server_idle, server_after, server_bytes_per_session: added, agents_idle, agents_after }
    }
}

impl Report for TurnReport {
    fn text(&self, facts: &Facts) -> String {
        let mut out = format!(
            "prompt    {}\nload      closed loop from one thread of this machine; warm-up not counted\n",
            self.prompt
        );
        self.turns(&mut out);
        self.processors(&mut out, facts.cores);
        self.memory(&mut out);
        self.overhead(&mut out);
        self.errors(&mut out);
        out
    }

    fn is_complete(&self) -> bool {
        self.unmeasured.is_empty()
    }
}

impl TurnReport {
    fn turns(&self, out: &mut String) {
        let _ = writeln!(
            out,
            "\nA turn\n{:<11}{:>9}{:>11}{:>9}{}{:>8}",
            "path",
            "sessions",
            "offered/s",
            "turns/s",
            LatencySummary::COLUMNS,
            "errors"
        );
        for point in &self.points {
            let offered = point.offered_per_second.map_or_else(|| "max".to_owned(), |it| format!("{it:.0}"));
            let TurnFigures { turns_per_second, latency, errors, .. } = &point.turns;
            let _ = writeln!(
                out,
                "{:<11}{:>9}{offered:>11}{turns_per_second:>9.0}{}{errors:>8}",
                point.path,
                point.sessions,
                latency.columns(),
            );
        }
    }

    fn processors(&self, out: &mut String, cores: usize) {
        let _ = writeln!(
            out,
            "\nProcessor time, ms a turn, and the share of all processors\n{:<11}{:>9}{:>9}{:>9}{:>9}{:>9}",
            "path", "sessions", "client", "server", "agents", "server %"
        );
        for point in &self.points {
            let cpu = &point.cpu;
            let all = point.seconds * float(cores.max(1));
            let _ = writeln!(
                out,
                "{:<11}{:>9}{:>9.3}{:>9}{:>9.3}{:>9}",
                point.path,
                point.sessions,
                cpu.client_ms_per_turn,
                known(cpu.server_ms_per_turn, 3),
                cpu.agents_ms_per_turn,
                known(cpu.server_seconds.map(|seconds| seconds * 100.0 / all), 0),
            );
        }
    }

    fn memory(&self, out: &mut String) {
        let _ = writeln!(
            out,
            "\nMemory (resident), MB; the proportional set (PSS) of the agents counts their shared program once\n\
             {:<11}{:>9}{:>9}{:>9}{:>9}{:>12}{:>11}{:>11}{:>9}{:>9}",
            "path", "sessions", "server", "idle", "loaded", "KB/session", "agents", "agents PSS", "open s", "files"
        );
        for point in &self.points {
            let memory = &point.memory;
            let of = |it: Option<Memory>| known(it.map(|it| megabytes(it.rss_bytes)), 1);
            let _ = writeln!(
                out,
                "{:<11}{:>9}{:>9}{:>9}{:>9}{:>12}{:>11.1}{:>11}{:>9.2}{:>9}",
                point.path,
                point.sessions,
                of(memory.server_before),
                of(memory.server_idle),
                of(memory.server_after),
                known(memory.server_bytes_per_session.map(|it| it / KILOBYTE), 1),
                megabytes(memory.agents_idle.rss_bytes),
                known(memory.agents_idle.pss_bytes.map(megabytes), 1),
                point.opening_seconds,
                point.open_files.map_or_else(|| "-".to_owned(), |it| it.to_string()),
            );
        }
        out.push_str(
            "server: before the first session; idle: all sessions open, before the first prompt; loaded: after the load\n",
        );
    }

    fn overhead(&self, out: &mut String) {
        if self.overhead.is_empty() {
            return;
        }
        out.push_str(
            "\nOverhead of the whole path: quantiles of supervisor minus stdio\nsessions   p50 ms   p99 ms\n",
        );
        for Overhead { sessions, p50_ms, p99_ms } in &self.overhead {
            let _ = writeln!(out, "{sessions:>8}{p50_ms:>9.2}{p99_ms:>9.2}");
        }
    }

    fn errors(&self, out: &mut String) {
        for Point { path, sessions, turns, errors_logged, .. } in &self.points {
            let TurnFigures { errors, sessions_lost, .. } = turns;
            if errors + sessions_lost + errors_logged > 0 {
                let _ = writeln!(
                    out,
                    "\nErrors on {path} at {sessions}: {errors} turns failed, {sessions_lost} sessions lost, \
                     {errors_logged} lines of level ERROR logged"
                );
                turns.write_samples(out);
            }
        }
        for Unmeasured { path, sessions, reason } in &self.unmeasured {
            let _ = writeln!(out, "\nNot measured: {path} at {sessions}: {reason}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::support::report::tests::turns;

    fn point(path: PathKind, sessions: usize, ms: f64) -> Point {
        let memory = |megabytes: u64| Memory { processes: 1, rss_bytes: megabytes << 20, pss_bytes: None };
        let has_server = path != PathKind::Stdio;
        let server = [20, 40, 50].map(|it| has_server.then(|| memory(it)));
        Point {
            path,
            sessions,
            seconds: 5.0,
            think_ms: 0.0,
            offered_per_second: None,
            turns: turns(ms),
            errors_logged: 2,
            opening_seconds: 0.5,
            cpu: CpuUse::new([1, 2].map(Duration::from_secs), has_server.then_some(Duration::from_secs(3)), 1000),
            memory: MemoryUse::new(sessions, server, [memory(5), memory(6)]),
            open_files: Some(100),
        }
    }

    /// Two paths at ten sessions, one at a hundred, and a point that was not measured.
    fn sample() -> TurnReport {
        let points = [(PathKind::Stdio, 10, 0.25), (PathKind::Supervisor, 10, 1.0), (PathKind::Supervisor, 100, 3.0)];
        let points = points.map(|(path, sessions, ms)| point(path, sessions, ms)).into();
        let missing = Unmeasured { path: PathKind::Runtime, sessions: 10, reason: "because".into() };
        TurnReport::new("echo".into(), points, vec![missing])
    }

    #[test]
    fn overhead_is_reported_where_both_paths_were_measured() {
        assert_eq!(sample().overhead, [Overhead { sessions: 10, p50_ms: 0.75, p99_ms: 2.25 }]);
    }

    #[test]
    fn figures_per_turn_and_per_session_are_shares_of_the_whole() {
        let report = sample();
        let cpu = report.points[1].cpu;
        assert_eq!((cpu.client_ms_per_turn, cpu.server_ms_per_turn, cpu.agents_ms_per_turn), (1.0, Some(3.0), 2.0));
        assert_eq!(report.points[1].memory.server_bytes_per_session, Some(2.0 * 1024.0 * 1024.0));
    }

    #[test]
    fn json_has_every_point_and_the_unmeasured_ones() {
        let json = serde_json::to_value(sample()).unwrap();
        assert_eq!(json["points"].as_array().map(Vec::len), Some(3));
        assert_eq!(json["points"][0]["path"], "stdio");
        assert_eq!(json["points"][1]["latency"]["p99Ms"], 3.0);
        assert_eq!((&json["points"][1]["turns"], &json["points"][1]["errors"]), (&1000.into(), &1.into()));
        assert_eq!(json["unmeasured"][0]["reason"], "because");
    }

    #[test]
    fn text_has_all_figures_and_all_errors() {
        let text = sample().text(&Facts::sample());
        for expected in [
            "stdio             10        max      200     0.25     0.50     0.75      1.0       1",
            "supervisor        10    1.000    3.000    2.000       30",
            "Errors on supervisor at 100: 1 turns failed, 0 sessions lost, 2 lines of level ERROR logged",
            "1 times: status 503",
            "Not measured: runtime at 10: because",
            "      10     0.75     2.25",
        ] {
            assert!(text.contains(expected), "{expected:?} is not in:\n{text}");
        }
        assert!(!sample().is_complete());
    }
}
