//! The report for people.

use std::fmt::Write;

use super::{
    compare::{AIM, GOAL},
    point::RoutePoint,
    report::RouteReport,
};

impl RouteReport {
    /// Renders it. Writing to a string cannot fail.
    pub(crate) fn render(&self) -> String {
        let mut out = self.head();
        self.turns(&mut out);
        self.processors(&mut out);
        self.compared(&mut out);
        self.errors(&mut out);
        out
    }

    fn head(&self) -> String {
        let facts = &self.facts;
        let mut out = format!(
            "machine   {} cores ({}), Linux {}, load {:.2} before, databases on {}\n\
             program   lumilink {}, commit {}, {} build; supervisor and runtime are processes of their own\n\
             command   {}\n\
             mocked    {}\n\
             prompt    {}\n\
             load      closed loop from one thread of this machine, answers as streams of events; warm-up not counted\n\
             cold      a new session and its first turn count as one; the session is closed after it, uncounted\n\
             warm      a turn of a session that is open\n",
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
            self.prompt
        );
        for warning in &self.warnings {
            let _ = writeln!(out, "WARNING   {warning}");
        }
        out
    }

    fn turns(&self, out: &mut String) {
        let _ = writeln!(
            out,
            "\nA turn\n{:<5}{:<6}{:>9}{:>10}{:>7}{:>9}{:>9}{:>9}{:>9}{:>12}{:>8}",
            "", "", "sessions", "model ms", "turns", "turns/s", "p50 ms", "p95 ms", "p99 ms", "1st upd. ms", "errors"
        );
        for point in &self.points {
            let latency = &point.latency;
            let _ = writeln!(
                out,
                "{}{:>7}{:>9.1}{:>9.2}{:>9.2}{:>9.2}{:>12.2}{:>8}",
                load_of(point),
                point.turns,
                point.turns_per_second,
                latency.p50_ms,
                latency.p95_ms,
                latency.p99_ms,
                point.first_update.p50_ms,
                point.errors
            );
        }
    }

    fn processors(&self, out: &mut String) {
        let _ = writeln!(
            out,
            "\nProcessor time, ms a turn\n{:<11}{:>9}{:>10}{:>12}{:>9}{:>9}{:>9}",
            "", "sessions", "model ms", "supervisor", "runtime", "agents", "client"
        );
        for point in &self.points {
            let cpu = &point.cpu_ms_per_turn;
            let _ = writeln!(
                out,
                "{}{:>12.3}{:>9.3}{:>9.3}{:>9.3}",
                load_of(point),
                cpu.supervisor,
                cpu.runtime,
                cpu.agents,
                cpu.client
            );
        }
    }

    fn compared(&self, out: &mut String) {
        let _ = writeln!(
            out,
            "\nACP compared with HTTP, %; goal: p50 {:+.0}, turns/s {:+.0}; aim: {:+.0}, {:+.0}\n\
             {:<6}{:>9}{:>10}{:>9}{:>9}{:>9}{:>10}{:>9}  reached",
            GOAL.latency_percent,
            GOAL.throughput_percent,
            AIM.latency_percent,
            AIM.throughput_percent,
            "",
            "sessions",
            "model ms",
            "p50",
            "p95",
            "p99",
            "1st upd.",
            "turns/s"
        );
        for it in &self.comparisons {
            let _ = writeln!(
                out,
                "{:<6}{:>9}{:>10.0}{:>+9.1}{:>+9.1}{:>+9.1}{:>+10.1}{:>+9.1}  {}",
                it.start.as_str(),
                it.sessions,
                it.model_ms,
                it.p50_percent,
                it.p95_percent,
                it.p99_percent,
                it.first_update_percent,
                it.throughput_percent,
                it.reached.as_str()
            );
        }
    }

    fn errors(&self, out: &mut String) {
        for point in self.points.iter().filter(|point| point.errors + point.sessions_lost > 0) {
            let _ = writeln!(
                out,
                "\nErrors: {}: {} turns failed, {} sessions lost",
                load_of(point),
                point.errors,
                point.sessions_lost
            );
            for (said, times) in &point.error_samples {
                let _ = writeln!(out, "  {times} times: {said}");
            }
        }
        for it in &self.unmeasured {
            let _ = writeln!(
                out,
                "\nNot measured to the end: {} sessions, model {:.0} ms: {}",
                it.sessions, it.model_ms, it.reason
            );
        }
        let _ = writeln!(out, "\nLines of level ERROR logged: {}", self.errors_logged);
    }
}

fn load_of(point: &RoutePoint) -> String {
    format!("{:<5}{:<6}{:>9}{:>10.0}", point.route.as_str(), point.start.as_str(), point.sessions, point.model_ms)
}

#[cfg(test)]
mod tests {
    #[test]
    fn everything_measured_is_told_also_what_is_bad() {
        let text = crate::bench::route::report::tests::sample().render();
        for said in [
            "2 cores (Example), Linux 6.1",
            "commit abc, debug build",
            "lumilink bench route",
            "over HTTP one a turn",
            "WARNING   built without optimisation",
            "acp  warm         10         0   4000    800.0     1.00     2.00     3.00        0.50       1",
            "http warm         10         0       2.000    3.000    4.000    1.000",
            "goal: p50 -50, turns/s +30; aim: -80, +200",
            "warm         10         0    -87.5    -87.5    -87.5     -87.5   +300.0  aim",
            "1 turns failed, 0 sessions lost\n  1 times: status 503",
            "Not measured to the end: 100 sessions, model 0 ms: because",
            "Lines of level ERROR logged: 2",
        ] {
            assert!(text.contains(said), "{said:?} is not in:\n{text}");
        }
    }
}
