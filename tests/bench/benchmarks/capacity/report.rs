//! The figures of a full service, as values and as text.

use std::fmt::Write;

use serde::Serialize;

use super::{
    CapacityPlan,
    trial::{Measured, Phase},
};
use crate::support::{
    events::Events,
    facts::{Facts, cores},
    latency::LatencySummary,
    processes::Memory,
    report::{Report, TurnFigures, float, megabytes},
};

/// Figures of a run.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CapacityReport {
    prompt: String,
    /// Seats, all of which were taken.
    sessions: usize,
    /// Duration of each phase.
    seconds: f64,
    /// Highest rate at which these sessions send prompts; absent without a pause.
    offered_per_second: Option<f64>,
    /// Time to take all seats.
    opening_seconds: f64,
    undisturbed: PhaseReport,
    /// The phase in which further sessions were refused.
    refusing: PhaseReport,
    refusals: RefusalReport,
    events: EventReport,
    /// The supervisor without sessions, with all sessions before the first prompt, and at the end.
    server: [Memory; 3],
    /// All agents before the first prompt.
    agents: Memory,
    /// Lines of level ERROR in the log of the supervisor.
    errors_logged: u64,
}

/// Figures of a phase. Shares are of all processors, from 0 to 1.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct PhaseReport {
    #[serde(flatten)]
    turns: TurnFigures,
    /// Share of the supervisor with its embedded runtime.
    server_share: f64,
    agents_share: f64,
    client_share: f64,
}

/// Requests for sessions beyond the limit.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct RefusalReport {
    /// Answers 503 `capacity_exhausted` with `Retry-After` and the figures of the capacity.
    count: u64,
    latency: LatencySummary,
    /// Other answers.
    wrong: u64,
    /// The first of the other answers.
    sample: Option<String>,
}

/// Events of all sessions, counted by their ids.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct EventReport {
    /// Sessions whose events were read as they happened.
    followed: usize,
    /// Events that sessions report as published.
    published: u64,
    /// Events that did not reach the reader.
    lost: u64,
    /// Events that arrived more than once.
    doubled: u64,
    /// Events that were no longer held when the session was read at the end.
    not_held: u64,
}

impl CapacityReport {
    pub(crate) fn new(plan: &CapacityPlan, measured: Measured) -> Self {
        let Events { published, lost, doubled, not_held } = measured.events;
        let offered = (!plan.think.is_zero()).then(|| float(plan.sessions) / plan.think.as_secs_f64());
        Self {
            prompt: plan.prompt.clone(),
            sessions: plan.sessions,
            seconds: plan.measured.as_secs_f64(),
            offered_per_second: offered,
            opening_seconds: measured.opening.as_secs_f64(),
            undisturbed: PhaseReport::new(&measured.undisturbed, plan),
            refusing: PhaseReport::new(&measured.refusing, plan),
            refusals: RefusalReport {
                count: measured.refusals.latencies.count(),
                latency: measured.refusals.latencies.summary(),
                wrong: measured.refusals.wrong,
                sample: measured.refusals.sample,
            },
            events: EventReport { followed: plan.followed(), published, lost, doubled, not_held },
            server: measured.memory,
            agents: measured.agents,
            errors_logged: measured.errors_logged,
        }
    }

    fn turns(&self, out: &mut String) {
        let _ = writeln!(out, "\n{:<26}{:>9}{:>9}{}{:>8}", "", "count", "/s", LatencySummary::COLUMNS, "errors");
        let mut row = |name: &str, count: u64, latency: &LatencySummary, errors: u64| {
            let (rate, latency) = (float(count) / self.seconds, latency.columns());
            let _ = writeln!(out, "{name:<26}{count:>9}{rate:>9.0}{latency}{errors:>8}");
        };
        for (name, phase) in [("turns, undisturbed", &self.undisturbed), ("turns, others refused", &self.refusing)] {
            row(name, phase.turns.turns, &phase.turns.latency, phase.turns.errors);
        }
        row("refusals", self.refusals.count, &self.refusals.latency, self.refusals.wrong);
    }

    fn processors_and_memory(&self, out: &mut String) {
        let _ = writeln!(out, "\n{:<26}{:>9}{:>9}{:>9}", "share of all processors, %", "server", "agents", "client");
        for (name, phase) in [("undisturbed", &self.undisturbed), ("others refused", &self.refusing)] {
            let [server, agents, client] =
                [phase.server_share, phase.agents_share, phase.client_share].map(|share| share * 100.0);
            let _ = writeln!(out, "{name:<26}{server:>9.0}{agents:>9.0}{client:>9.0}");
        }
        let [empty, idle, worked] = self.server.map(|memory| megabytes(memory.rss_bytes));
        let proportional = self.agents.pss_bytes.map(megabytes);
        let proportional = proportional.map_or_else(String::new, |pss| format!(", {pss:.1} proportional"));
        let _ = writeln!(
            out,
            "\nMemory (resident), MB: server {empty:.1} without sessions, {idle:.1} with all of them, {worked:.1} at the \
             end; agents {:.1}{proportional}\nAll seats were taken in {:.2} s",
            megabytes(self.agents.rss_bytes),
            self.opening_seconds
        );
    }

    fn losses(&self, out: &mut String) {
        let EventReport { followed, published, lost, doubled, not_held } = &self.events;
        let _ = writeln!(
            out,
            "Events: {published} published, {lost} lost, {doubled} duplicated, {not_held} no longer held; {followed} \
             sessions were followed, the others read at the end"
        );
        let lost = self.undisturbed.turns.sessions_lost + self.refusing.turns.sessions_lost;
        let _ = writeln!(out, "Sessions lost: {lost}; lines of level ERROR logged: {}", self.errors_logged);
        self.undisturbed.turns.write_samples(out);
        self.refusing.turns.write_samples(out);
        if let Some(sample) = &self.refusals.sample {
            let _ = writeln!(out, "  not a refusal: {sample}");
        }
    }
}

impl Report for CapacityReport {
    fn text(&self, _: &Facts) -> String {
        let Self { prompt, sessions, seconds, .. } = self;
        let offered = self.offered_per_second.map_or_else(|| "as many as possible".into(), |it| format!("{it:.0}"));
        let mut out = format!(
            "prompt    {prompt}\n\
             load      {sessions} live sessions, {offered} turns a second offered, {seconds} s each, warm-up not counted\n"
        );
        self.turns(&mut out);
        self.processors_and_memory(&mut out);
        self.losses(&mut out);
        out
    }
}

impl PhaseReport {
    fn new(Phase { tally, processors }: &Phase, plan: &CapacityPlan) -> Self {
        let all = plan.measured.as_secs_f64() * float(cores().max(1));
        let [server, agents, client] = processors.map(|used| used.as_secs_f64() / all);
        Self {
            turns: TurnFigures::new(tally, plan.measured),
            server_share: server,
            agents_share: agents,
            client_share: client,
        }
    }
}
