//! The report for people.

use std::fmt::Write;

use super::report::{Point, Report};

const MEGABYTE: f64 = 1024.0 * 1024.0;

/// Renders a report. Writing to a string cannot fail.
pub(crate) fn render(report: &Report) -> String {
    let mut out = String::new();
    head(&mut out, report);
    turns(&mut out, report);
    processors(&mut out, report);
    memory(&mut out, report);
    overhead(&mut out, report);
    errors(&mut out, report);
    out
}

fn head(out: &mut String, report: &Report) {
    let facts = &report.facts;
    let _ = writeln!(
        out,
        "machine   {} cores ({}), {:.1} GiB, Linux {}, load {:.2} before, database on {}",
        facts.cores,
        facts.processor,
        bytes(facts.memory_bytes) / 1024.0,
        facts.kernel,
        facts.load_average,
        facts.file_system
    );
    let _ = writeln!(
        out,
        "program   lumilink {}, commit {}, {} build; open files {} (hard limit {})",
        facts.version, facts.commit, facts.profile, facts.open_files.limit, facts.open_files.hard_limit
    );
    let _ = writeln!(out, "command   {}", report.command.join(" "));
    let _ = writeln!(out, "prompt    {}", report.prompt);
    let _ = writeln!(out, "mocked    {}", report.mocked);
    let _ = writeln!(out, "load      closed loop from one thread of this machine; warm-up not counted");
    for warning in &report.warnings {
        let _ = writeln!(out, "WARNING   {warning}");
    }
}

fn turns(out: &mut String, report: &Report) {
    let _ = writeln!(
        out,
        "\nA turn\n{:<11}{:>9}{:>11}{:>9}{:>9}{:>9}{:>9}{:>9}{:>8}",
        "path", "sessions", "offered/s", "turns/s", "p50 ms", "p95 ms", "p99 ms", "max ms", "errors"
    );
    for point in &report.points {
        let offered = point.offered_per_second.map_or_else(|| "max".to_owned(), |it| format!("{it:.0}"));
        let latency = &point.latency;
        let _ = writeln!(
            out,
            "{:<11}{:>9}{offered:>11}{:>9.0}{:>9.2}{:>9.2}{:>9.2}{:>9.1}{:>8}",
            point.path,
            point.sessions,
            point.turns_per_second,
            latency.p50_ms,
            latency.p95_ms,
            latency.p99_ms,
            latency.max_ms,
            point.errors
        );
    }
}

fn processors(out: &mut String, report: &Report) {
    let _ = writeln!(
        out,
        "\nProcessor time, ms a turn, and the share of all processors\n{:<11}{:>9}{:>9}{:>9}{:>9}{:>9}",
        "path", "sessions", "client", "server", "agents", "server %"
    );
    for point in &report.points {
        let cpu = &point.cpu;
        let all = point.seconds * f64::from(u32::try_from(report.facts.cores).unwrap_or(1).max(1));
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

fn memory(out: &mut String, report: &Report) {
    let _ = writeln!(
        out,
        "\nMemory (resident), MB; agents share their program, so their proportional set is told as well\n\
         {:<11}{:>9}{:>9}{:>9}{:>9}{:>12}{:>11}{:>11}{:>9}{:>9}",
        "path", "sessions", "server", "idle", "loaded", "KB/session", "agents", "agents PSS", "open s", "files"
    );
    for point in &report.points {
        let memory = &point.memory;
        let of = |it: Option<super::processes::Memory>| known(it.map(|it| bytes(it.rss_bytes)), 1);
        let _ = writeln!(
            out,
            "{:<11}{:>9}{:>9}{:>9}{:>9}{:>12}{:>11.1}{:>11}{:>9.2}{:>9}",
            point.path,
            point.sessions,
            of(memory.server_before),
            of(memory.server_idle),
            of(memory.server_after),
            known(memory.server_bytes_per_session.map(|it| it / 1024.0), 1),
            bytes(memory.agents_idle.rss_bytes),
            known(memory.agents_idle.pss_bytes.map(bytes), 1),
            point.opening_seconds,
            point.open_files.map_or_else(|| "-".to_owned(), |it| it.to_string()),
        );
    }
    let _ = writeln!(
        out,
        "server: before the first session; idle: all sessions open, no prompt yet; loaded: after the load"
    );
}

fn overhead(out: &mut String, report: &Report) {
    if report.overhead.is_empty() {
        return;
    }
    let _ = writeln!(
        out,
        "\nOverhead of the whole path: supervisor less stdio, of the quantiles\nsessions   p50 ms   p99 ms"
    );
    for overhead in &report.overhead {
        let _ = writeln!(out, "{:>8}{:>9.2}{:>9.2}", overhead.sessions, overhead.p50_ms, overhead.p99_ms);
    }
}

fn errors(out: &mut String, report: &Report) {
    let is_bad = |point: &&Point| point.errors + point.sessions_lost + point.errors_logged > 0;
    for point in report.points.iter().filter(is_bad) {
        let _ = writeln!(
            out,
            "\nErrors on {} at {}: {} turns failed, {} sessions lost, {} lines of level ERROR logged",
            point.path, point.sessions, point.errors, point.sessions_lost, point.errors_logged
        );
        for (said, times) in &point.error_samples {
            let _ = writeln!(out, "  {times} times: {said}");
        }
    }
    for point in &report.unmeasured {
        let _ = writeln!(out, "\nNot measured: {} at {}: {}", point.path, point.sessions, point.reason);
    }
}

#[expect(clippy::cast_precision_loss, reason = "megabytes with one decimal")]
fn bytes(bytes: u64) -> f64 {
    bytes as f64 / MEGABYTE
}

fn known(value: Option<f64>, decimals: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.decimals$}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_measured_is_told_also_what_is_bad() {
        let text = render(&crate::bench::report::tests::sample());
        for said in [
            "2 cores (Example), 8.0 GiB, Linux 6.1",
            "commit abc, debug build",
            "lumilink bench turn",
            "WARNING   built without optimisation",
            "tmpfs",
            "stdio             10        max      200     0.25",
            "Errors on supervisor at 100: 1 turns failed, 0 sessions lost, 2 lines of level ERROR logged",
            "1 times: status 503",
            "Not measured: runtime at 10: because",
            "      10     0.75     3.00",
        ] {
            assert!(text.contains(said), "{said:?} is not in:\n{text}");
        }
    }
}
