//! What was measured, as values and as text.

use std::{fmt::Write, time::Duration};

use serde::Serialize;

use super::{ToastsPlan, trial::Measured};
use crate::bench::{facts::Facts, latency::LatencySummary, processes::Memory};

const KILOBYTE: f64 = 1024.0;
const MEGABYTE: f64 = 1024.0 * 1024.0;

/// What is aimed at: up to so many subscribers, that p99 in milliseconds.
pub(crate) const LATENCY_GOALS: [(usize, f64); 2] = [(1000, 50.0), (10_000, 250.0)];
/// What is aimed at for each subscriber, in bytes of the server's memory.
pub(crate) const MEMORY_GOAL_BYTES: f64 = 20.0 * KILOBYTE;

/// A whole run.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ToastsReport {
    /// On what.
    pub facts: Facts,
    /// By what command.
    pub command: Vec<String>,
    /// What stands for something else.
    pub mocked: &'static str,
    /// Toasts whose latency counts, at each point.
    pub toasts: u32,
    /// Between the last reader of a toast and the next one.
    pub pause_ms: f64,
    /// The points.
    pub points: Vec<PointReport>,
    /// Points that could not be measured.
    pub unmeasured: Vec<Unmeasured>,
}

/// A point that was not measured.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Unmeasured {
    /// Subscribers.
    pub subscribers: usize,
    /// Why.
    pub reason: String,
}

/// A number of subscribers.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PointReport {
    /// WebSockets on one workspace.
    pub subscribers: usize,
    /// From `createdAt`, which is before the commit, until a subscriber had read it.
    pub from_created: LatencySummary,
    /// From the answer to the call that caused it; what was read before it counts as 0.
    pub from_answer: LatencySummary,
    /// From `createdAt` until the last subscriber had read it, for each toast.
    pub until_last: LatencySummary,
    /// The p99 that is aimed at, from `createdAt`; absent where there is no goal.
    pub goal_p99_ms: Option<f64>,
    /// Toasts that were read, of all subscribers, warm-up included.
    pub delivered: u64,
    /// Toasts that a subscriber did not get.
    pub missing: u64,
    /// Toasts that one got more than once.
    pub doubled: u64,
    /// Toasts out of their order, or that nobody was to get.
    pub out_of_order: u64,
    /// Subscribers that the server let go.
    pub evictions: u64,
    /// Subscribers whose connection ended.
    pub lost_connections: u64,
    /// Why the first of these did.
    pub lost_sample: Option<String>,
    /// Until all subscribers were welcome.
    pub connecting_seconds: f64,
    /// Resident memory of the server for each subscriber, once all are connected.
    pub bytes_per_subscriber: f64,
    /// The same after the last toast.
    pub bytes_per_subscriber_at_end: f64,
    /// What is aimed at.
    pub goal_bytes_per_subscriber: f64,
    /// The server before the first subscriber, with all of them, and after the last toast.
    pub server: [Memory; 3],
    /// Processor time until all were connected.
    pub connecting_cpu: CpuSeconds,
    /// From the first toast that counts to the last, pauses included.
    pub telling_seconds: f64,
    /// Processor time meanwhile.
    pub telling_cpu: CpuSeconds,
    /// Lines of level ERROR in the server's log.
    pub errors_logged: u64,
}

/// Processor time, in seconds.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CpuSeconds {
    /// Of the server.
    pub server: f64,
    /// Of the subscribers: this process.
    pub client: f64,
}

impl From<[Duration; 2]> for CpuSeconds {
    fn from([server, client]: [Duration; 2]) -> Self {
        Self { server: server.as_secs_f64(), client: client.as_secs_f64() }
    }
}

impl PointReport {
    pub(super) fn new(subscribers: usize, measured: Measured) -> Self {
        let Measured { tally, memory, .. } = measured;
        let more = |now: Memory| number_of(now.rss_bytes.saturating_sub(memory[0].rss_bytes)) / count(subscribers);
        Self {
            subscribers,
            from_created: tally.from_created.summary(),
            from_answer: tally.from_answer.summary(),
            until_last: tally.until_last.summary(),
            goal_p99_ms: LATENCY_GOALS.iter().find(|(most, _)| subscribers <= *most).map(|(_, goal)| *goal),
            delivered: tally.delivered,
            missing: tally.missing,
            doubled: tally.doubled,
            out_of_order: tally.out_of_order,
            evictions: measured.evictions,
            lost_connections: measured.lost,
            lost_sample: measured.lost_sample,
            connecting_seconds: measured.connecting.as_secs_f64(),
            bytes_per_subscriber: more(memory[1]),
            bytes_per_subscriber_at_end: more(memory[2]),
            goal_bytes_per_subscriber: MEMORY_GOAL_BYTES,
            server: memory,
            connecting_cpu: measured.connecting_cpu.into(),
            telling_seconds: measured.session_notice.as_secs_f64(),
            telling_cpu: measured.telling_cpu.into(),
            errors_logged: measured.errors_logged,
        }
    }

    /// Whether every subscriber got every toast once and in order.
    pub(crate) fn is_whole(&self) -> bool {
        self.missing + self.doubled + self.out_of_order == 0
    }
}

impl ToastsReport {
    pub(super) fn new(facts: Facts, command: Vec<String>, plan: &ToastsPlan) -> Self {
        Self {
            facts,
            command,
            mocked: "the subscribers: one thread of this process, with a socket for each, on the same machine; the cause: \
                     rollbacks and restores by hand",
            toasts: plan.toasts,
            pause_ms: plan.pause.as_secs_f64() * 1e3,
            points: Vec::new(),
            unmeasured: Vec::new(),
        }
    }

    /// Whether everything was measured, and nothing was lost or came twice.
    pub(crate) fn is_whole(&self) -> bool {
        self.unmeasured.is_empty() && self.points.iter().all(PointReport::is_whole)
    }

    /// For programs.
    pub(crate) fn json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    /// For people. Writing to a string cannot fail.
    pub(crate) fn render(&self) -> String {
        let mut out = self.head();
        self.latencies(&mut out);
        self.costs(&mut out);
        self.losses(&mut out);
        out
    }

    fn head(&self) -> String {
        let facts = &self.facts;
        let mut out = format!(
            "machine   {} cores ({}), Linux {}, load {:.2} before, database on {}\n\
             program   lumilink {}, commit {}, {} build\n\
             command   {}\n\
             mocked    {}\n\
             load      {} toasts one after the other, {} ms after the last reader of the one before; warm-up not counted\n",
            facts.cores,
            facts.processor,
            facts.kernel,
            facts.load_average,
            facts.file_system,
            facts.version,
            facts.commit,
            facts.profile,
            self.command.join(" "),
            self.mocked,
            self.toasts,
            self.pause_ms
        );
        if facts.profile == "debug" {
            out.push_str("WARNING   built without optimisation: the figures say little\n");
        }
        out
    }

    fn latencies(&self, out: &mut String) {
        let _ = writeln!(
            out,
            "\n{:<12}{:<34}{:>9}{:>9}{:>9}{:>9}{:>12}",
            "subscribers", "until a subscriber has read it", "p50 ms", "p95 ms", "p99 ms", "max ms", "p99 goal"
        );
        for point in &self.points {
            let goal = point.goal_p99_ms.map_or_else(String::new, |goal| format!("< {goal} ms"));
            for (what, latency, goal) in [
                ("from createdAt, before the commit", &point.from_created, goal.as_str()),
                ("from the answer to its cause", &point.from_answer, ""),
                ("the last one, from createdAt", &point.until_last, ""),
            ] {
                let LatencySummary { p50_ms, p95_ms, p99_ms, max_ms, .. } = latency;
                let _ = writeln!(
                    out,
                    "{:<12}{what:<34}{p50_ms:>9.2}{p95_ms:>9.2}{p99_ms:>9.2}{max_ms:>9.1}{goal:>12}",
                    point.subscribers
                );
            }
        }
    }

    fn costs(&self, out: &mut String) {
        let _ = writeln!(
            out,
            "\n{:<12}{:>16}{:>8}{:>9}{:>10}{:>9}{:>10}{:>11}{:>9}",
            "subscribers",
            "KB each (at end)",
            "goal",
            "MB all",
            "connect s",
            "server",
            "telling s",
            "server",
            "client"
        );
        for point in &self.points {
            let kilobytes = |bytes: f64| bytes / KILOBYTE;
            let each = format!(
                "{:.1} ({:.1})",
                kilobytes(point.bytes_per_subscriber),
                kilobytes(point.bytes_per_subscriber_at_end)
            );
            let _ = writeln!(
                out,
                "{:<12}{each:>16}{:>8}{:>9.1}{:>10.2}{:>9.2}{:>10.2}{:>11.2}{:>9.2}",
                point.subscribers,
                format!("< {:.0}", kilobytes(point.goal_bytes_per_subscriber)),
                number_of(point.server[2].rss_bytes) / MEGABYTE,
                point.connecting_seconds,
                point.connecting_cpu.server,
                point.telling_seconds,
                point.telling_cpu.server,
                point.telling_cpu.client
            );
        }
        out.push_str("server, client: processor time, in seconds, while they connect and while they are told\n");
        out.push_str("Memory is resident memory of the server; buffers of the kernel are not in it.\n");
    }

    fn losses(&self, out: &mut String) {
        out.push('\n');
        for point in &self.points {
            let verdict = if point.is_whole() { "" } else { "WRONG: " };
            let _ = writeln!(
                out,
                "{verdict}{} subscribers: {} toasts read, {} missing, {} doubled, {} out of order; {} evictions, {} \
                 connections lost, {} errors logged",
                point.subscribers,
                point.delivered,
                point.missing,
                point.doubled,
                point.out_of_order,
                point.evictions,
                point.lost_connections,
                point.errors_logged
            );
            if let Some(sample) = &point.lost_sample {
                let _ = writeln!(out, "  the first lost one: {sample}");
            }
        }
        for Unmeasured { subscribers, reason } in &self.unmeasured {
            let _ = writeln!(out, "Not measured: {subscribers} subscribers: {reason}");
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
fn number_of(number: u64) -> f64 {
    number as f64
}

#[expect(clippy::cast_precision_loss, reason = "a number of subscribers")]
fn count(number: usize) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::{super::tally::Tally, *};
    use crate::bench::open_files::OpenFiles;

    fn measured(missing: u64) -> Measured {
        let memory = |megabytes: u64| Memory { processes: 1, rss_bytes: megabytes << 20, pss_bytes: None };
        let mut tally = Tally::new(&[], []);
        tally.missing = missing;
        tally.from_created.record(Duration::from_millis(40));
        Measured {
            tally,
            connecting: Duration::from_secs(1),
            connecting_cpu: [Duration::from_millis(500); 2],
            session_notice: Duration::from_secs(2),
            telling_cpu: [Duration::from_millis(700), Duration::from_millis(300)],
            memory: [memory(50), memory(60), memory(62)],
            evictions: 3,
            lost: 3,
            lost_sample: Some("closed: too slow".into()),
            errors_logged: 0,
        }
    }

    fn report() -> ToastsReport {
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
            profile: "release",
        };
        let plan = ToastsPlan {
            subscribers: vec![1024],
            toasts: 40,
            pause: Duration::from_millis(250),
            settings: Vec::new(),
            folder: None,
        };
        ToastsReport::new(facts, vec!["lumilink".into(), "bench".into(), "toasts".into()], &plan)
    }

    #[test]
    fn goals_stand_beside_the_figures_and_memory_is_what_subscribers_added() {
        let mut report = report();
        report.points.push(PointReport::new(1024, measured(0)));
        assert!(report.is_whole());
        let point = &report.points[0];
        assert_eq!((point.bytes_per_subscriber, point.bytes_per_subscriber_at_end), (10_240.0, 12_288.0));
        let text = report.render();
        for said in
            ["40 toasts one after the other, 250 ms", "< 250 ms", "10.0 (12.0)", "< 20", "0 missing", "too slow"]
        {
            assert!(text.contains(said), "{said} is not in:\n{text}");
        }
        assert!(!text.contains("WRONG") && !text.contains("WARNING"), "{text}");
        let goal = |subscribers| PointReport::new(subscribers, measured(0)).goal_p99_ms;
        assert_eq!([1000, 1001, 10_000, 10_001].map(goal), [Some(50.0), Some(250.0), Some(250.0), None]);
    }

    #[test]
    fn a_toast_that_is_missing_and_a_point_that_is_not_there_are_said() {
        let mut report = report();
        report.points.push(PointReport::new(1024, measured(1)));
        assert!(!report.is_whole());
        assert!(report.render().contains("WRONG: 1024 subscribers: 0 toasts read, 1 missing"));
        report.points.clear();
        report.unmeasured.push(Unmeasured { subscribers: 9, reason: "because".into() });
        assert!(!report.is_whole() && report.render().contains("Not measured: 9 subscribers: because"));
    }
}
