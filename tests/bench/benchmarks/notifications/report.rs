//! The figures of all points, as values and as text.

use std::{fmt::Write, time::Duration};

use serde::Serialize;

use super::{NotificationsPlan, trial::Measured};
use crate::support::{
    facts::Facts,
    latency::LatencySummary,
    processes::Memory,
    report::{KILOBYTE, Report, float, megabytes},
};

/// Targets: up to a number of subscribers, the p99 in milliseconds.
const LATENCY_GOALS: [(usize, f64); 2] = [(1000, 50.0), (10_000, 250.0)];
/// Target: memory of the server for each subscriber, in bytes.
const MEMORY_GOAL_BYTES: f64 = 20.0 * KILOBYTE;

/// Figures of a run.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NotificationsReport {
    /// Notifications whose latency counts, at each point.
    #[serde(rename = "toasts")]
    notifications: u32,
    /// Pause between the last delivery of a notification and the next one.
    pause_ms: f64,
    points: Vec<PointReport>,
    unmeasured: Vec<Unmeasured>,
}

/// A point that could not be measured.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Unmeasured {
    pub subscribers: usize,
    pub reason: String,
}

/// Figures of a number of subscribers.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PointReport {
    /// WebSockets on one workspace.
    subscribers: usize,
    /// From `createdAt`, which precedes the commit, to the arrival at a subscriber.
    from_created: LatencySummary,
    /// From the answer to the call that caused the notification to the arrival; an arrival before the answer counts as 0.
    from_answer: LatencySummary,
    /// From `createdAt` to the arrival at the last subscriber, for each notification.
    until_last: LatencySummary,
    /// Target of the p99 from `createdAt`; absent where there is no target.
    goal_p99_ms: Option<f64>,
    /// Notifications that arrived at all subscribers together, warm-up included.
    delivered: u64,
    /// Notifications that did not arrive at a subscriber.
    missing: u64,
    /// Notifications that arrived at a subscriber more than once.
    doubled: u64,
    /// Notifications that arrived out of order, or that are not in the server's list.
    out_of_order: u64,
    /// Subscribers that the server evicted.
    evictions: u64,
    /// Subscribers whose connection ended.
    lost_connections: u64,
    /// Reason of the first ended connection.
    lost_sample: Option<String>,
    /// Time until all subscribers were welcomed.
    connecting_seconds: f64,
    /// Resident memory of the server for each subscriber, with all connected.
    bytes_per_subscriber: f64,
    /// Resident memory of the server for each subscriber, after the last notification.
    bytes_per_subscriber_at_end: f64,
    goal_bytes_per_subscriber: f64,
    /// The server before the first subscriber, with all subscribers, and after the last notification.
    server: [Memory; 3],
    connecting_cpu: CpuSeconds,
    /// From the first notification that counts to the last, pauses included.
    #[serde(rename = "tellingSeconds")]
    notifying_seconds: f64,
    #[serde(rename = "tellingCpu")]
    notifying_cpu: CpuSeconds,
    /// Lines of level ERROR in the log of the server.
    errors_logged: u64,
}

/// Processor time.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
struct CpuSeconds {
    server: f64,
    /// Of this process: the subscribers.
    client: f64,
}

impl From<[Duration; 2]> for CpuSeconds {
    fn from([server, client]: [Duration; 2]) -> Self {
        Self { server: server.as_secs_f64(), client: client.as_secs_f64() }
    }
}

impl PointReport {
    pub(super) fn new(subscribers: usize, measured: Measured) -> Self {
        let Measured { tally, memory, .. } = measured;
        let added = |now: Memory| float(now.rss_bytes.saturating_sub(memory[0].rss_bytes)) / float(subscribers);
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
            bytes_per_subscriber: added(memory[1]),
            bytes_per_subscriber_at_end: added(memory[2]),
            goal_bytes_per_subscriber: MEMORY_GOAL_BYTES,
            server: memory,
            connecting_cpu: measured.connecting_cpu.into(),
            notifying_seconds: measured.notifying.as_secs_f64(),
            notifying_cpu: measured.notifying_cpu.into(),
            errors_logged: measured.errors_logged,
        }
    }

    /// True if every subscriber received every notification once and in order.
    fn is_correct(&self) -> bool {
        self.missing + self.doubled + self.out_of_order == 0
    }
}

impl NotificationsReport {
    pub(super) fn new(plan: &NotificationsPlan, points: Vec<PointReport>, unmeasured: Vec<Unmeasured>) -> Self {
        let pause_ms = plan.pause.as_secs_f64() * 1e3;
        Self { notifications: plan.notifications, pause_ms, points, unmeasured }
    }

    fn latencies(&self, out: &mut String) {
        let _ = writeln!(
            out,
            "\n{:<12}{:<34}{}{:>12}",
            "subscribers",
            "until arrival at a subscriber",
            LatencySummary::COLUMNS,
            "p99 goal"
        );
        for point in &self.points {
            let goal = point.goal_p99_ms.map_or_else(String::new, |goal| format!("< {goal} ms"));
            for (what, latency, goal) in [
                ("from createdAt, before the commit", &point.from_created, goal.as_str()),
                ("from the answer to its cause", &point.from_answer, ""),
                ("the last one, from createdAt", &point.until_last, ""),
            ] {
                let _ = writeln!(out, "{:<12}{what:<34}{}{goal:>12}", point.subscribers, latency.columns());
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
            "notify s",
            "server",
            "client"
        );
        for point in &self.points {
            let each = format!(
                "{:.1} ({:.1})",
                point.bytes_per_subscriber / KILOBYTE,
                point.bytes_per_subscriber_at_end / KILOBYTE
            );
            let _ = writeln!(
                out,
                "{:<12}{each:>16}{:>8}{:>9.1}{:>10.2}{:>9.2}{:>10.2}{:>11.2}{:>9.2}",
                point.subscribers,
                format!("< {:.0}", point.goal_bytes_per_subscriber / KILOBYTE),
                megabytes(point.server[2].rss_bytes),
                point.connecting_seconds,
                point.connecting_cpu.server,
                point.notifying_seconds,
                point.notifying_cpu.server,
                point.notifying_cpu.client
            );
        }
        out.push_str("server, client: processor time, in seconds, while connecting and while notifying\n");
        out.push_str("Memory is resident memory of the server, without the buffers of the kernel.\n");
    }

    fn losses(&self, out: &mut String) {
        out.push('\n');
        for point in &self.points {
            let verdict = if point.is_correct() { "" } else { "WRONG: " };
            let _ = writeln!(
                out,
                "{verdict}{} subscribers: {} notifications received, {} missing, {} duplicated, {} out of order; {} \
                 evictions, {} connections lost, {} errors logged",
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
                let _ = writeln!(out, "  the first lost connection: {sample}");
            }
        }
        for Unmeasured { subscribers, reason } in &self.unmeasured {
            let _ = writeln!(out, "Not measured: {subscribers} subscribers: {reason}");
        }
    }
}

impl Report for NotificationsReport {
    fn text(&self, _: &Facts) -> String {
        let mut out = format!(
            "load      {} notifications one after the other, {} ms after the last delivery; warm-up not counted\n",
            self.notifications, self.pause_ms
        );
        self.latencies(&mut out);
        self.costs(&mut out);
        self.losses(&mut out);
        out
    }

    fn is_complete(&self) -> bool {
        self.unmeasured.is_empty() && self.points.iter().all(PointReport::is_correct)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::{super::tally::Tally, *};

    fn point(subscribers: usize, missing: u64) -> PointReport {
        let memory = |megabytes: u64| Memory { processes: 1, rss_bytes: megabytes << 20, pss_bytes: None };
        let mut tally = Tally::new(&[], []);
        tally.missing = missing;
        tally.from_created.record(Duration::from_millis(40));
        let measured = Measured {
            tally,
            connecting: Duration::from_secs(1),
            connecting_cpu: [Duration::from_millis(500); 2],
            notifying: Duration::from_secs(2),
            notifying_cpu: [Duration::from_millis(700), Duration::from_millis(300)],
            memory: [memory(50), memory(60), memory(62)],
            evictions: 3,
            lost: 3,
            lost_sample: Some("closed: too slow".into()),
            errors_logged: 0,
        };
        PointReport::new(subscribers, measured)
    }

    fn report(points: Vec<PointReport>, unmeasured: Vec<Unmeasured>) -> NotificationsReport {
        NotificationsReport::new(&NotificationsPlan::parse_from(["notifications"]), points, unmeasured)
    }

    #[test]
    fn goals_are_beside_the_figures_and_memory_is_what_subscribers_added() {
        let report = report(vec![point(1024, 0)], Vec::new());
        assert!(report.is_complete());
        let figures = &report.points[0];
        assert_eq!((figures.bytes_per_subscriber, figures.bytes_per_subscriber_at_end), (10_240.0, 12_288.0));
        let text = report.text(&Facts::sample());
        for expected in [
            "40 notifications one after the other, 250 ms",
            "< 250 ms",
            "10.0 (12.0)",
            "< 20",
            "62.0      1.00     0.50      2.00       0.70     0.30",
            "0 missing",
            "too slow",
        ] {
            assert!(text.contains(expected), "{expected} is not in:\n{text}");
        }
        assert!(!text.contains("WRONG"), "{text}");
        let goal = |subscribers| point(subscribers, 0).goal_p99_ms;
        assert_eq!([1000, 1001, 10_000, 10_001].map(goal), [Some(50.0), Some(250.0), Some(250.0), None]);
    }

    #[test]
    fn missing_notifications_and_unmeasured_points_are_reported() {
        let incorrect = report(vec![point(1024, 1)], Vec::new());
        assert!(!incorrect.is_complete());
        let text = incorrect.text(&Facts::sample());
        assert!(text.contains("WRONG: 1024 subscribers: 0 notifications received, 1 missing"), "{text}");
        let incomplete = report(Vec::new(), vec![Unmeasured { subscribers: 9, reason: "because".into() }]);
        let text = incomplete.text(&Facts::sample());
        assert!(!incomplete.is_complete() && text.contains("Not measured: 9 subscribers: because"), "{text}");
    }
}
