//! What was measured, as values and as text.

use std::{collections::BTreeMap, fmt::Write};

use serde::Serialize;

use super::{
    CapacityPlan,
    trial::{Events, Measured, Phase},
};
use crate::bench::{facts::Facts, latency::LatencySummary, processes::Memory};

const MEGABYTE: f64 = 1024.0 * 1024.0;

/// A whole run.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CapacityReport {
    /// On what.
    pub facts: Facts,
    /// By what command.
    pub command: Vec<String>,
    /// What stands for something else.
    pub mocked: &'static str,
    /// What every prompt said.
    pub prompt: String,
    /// Seats, all of them taken.
    pub sessions: usize,
    /// How long each phase was measured.
    pub seconds: f64,
    /// The most turns a second that these sessions ask for; absent where they ask as fast as they are answered.
    pub offered_per_second: Option<f64>,
    /// How long it took to take all seats.
    pub opening_seconds: f64,
    /// Before anybody was refused.
    pub undisturbed: PhaseReport,
    /// Meanwhile.
    pub refusing: PhaseReport,
    /// Sessions that were refused as they should be, their latency, and those that were answered in another way.
    pub refusals: RefusalReport,
    /// Events of all sessions, by their ids.
    pub events: EventReport,
    /// The supervisor without sessions, with all of them before the first prompt, and at the end.
    pub server: [Memory; 3],
    /// All agents before the first prompt.
    pub agents: Memory,
    /// Lines of level ERROR in its log.
    pub errors_logged: u64,
}

/// A phase.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PhaseReport {
    /// Turns that completed in its time.
    pub turns: u64,
    /// The same by time.
    pub turns_per_second: f64,
    /// Their latency.
    pub latency: LatencySummary,
    /// Turns that failed, warm-up included.
    pub errors: u64,
    /// What the first different ones said, and how often.
    pub error_samples: BTreeMap<String, u64>,
    /// Sessions that were lost.
    pub sessions_lost: u64,
    /// Share of all processors that the supervisor with its embedded runtime took, 0 to 1.
    pub server_share: f64,
    /// That of all agents.
    pub agents_share: f64,
    /// That of the load client.
    pub client_share: f64,
}

/// Refusals.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RefusalReport {
    /// 503 `capacity_exhausted` with `Retry-After` and the figures.
    pub count: u64,
    /// Their latency.
    pub latency: LatencySummary,
    /// Other answers.
    pub wrong: u64,
    /// What the first of these said.
    pub sample: Option<String>,
}

/// Events.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EventReport {
    /// Sessions whose events were read as they happened.
    pub followed: usize,
    /// Events that sessions say they have published.
    pub published: u64,
    /// Those that no reader got.
    pub lost: u64,
    /// Those that came more than once.
    pub doubled: u64,
    /// Those that were not held any more when a session was read at the end.
    pub not_held: u64,
}

impl CapacityReport {
    pub(super) fn new(facts: Facts, command: Vec<String>, plan: &CapacityPlan, measured: Measured) -> Self {
        let Events { published, lost, doubled, not_held } = measured.events;
        let seconds = plan.measured.as_secs_f64();
        let offered = (!plan.think.is_zero()).then(|| count(plan.sessions) / plan.think.as_secs_f64());
        Self {
            undisturbed: PhaseReport::new(&measured.undisturbed, seconds, facts.cores),
            refusing: PhaseReport::new(&measured.refusing, seconds, facts.cores),
            facts,
            command,
            mocked: "the agent: the built-in demo agent; the load: this process, on the same machine",
            prompt: plan.prompt.clone(),
            sessions: plan.sessions,
            seconds,
            offered_per_second: offered,
            opening_seconds: measured.opening.as_secs_f64(),
            refusals: RefusalReport {
                count: measured.refusals.latencies.count(),
                latency: measured.refusals.latencies.summary(),
                wrong: measured.refusals.wrong,
                sample: measured.refusals.sample,
            },
            events: EventReport { followed: plan.followed.min(plan.sessions), published, lost, doubled, not_held },
            server: measured.memory,
            agents: measured.agents,
            errors_logged: measured.errors_logged,
        }
    }

    /// For programs.
    pub(crate) fn json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    /// For people. Writing to a string cannot fail.
    pub(crate) fn render(&self) -> String {
        let mut out = self.head();
        let _ = writeln!(
            out,
            "\n{:<26}{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}{:>8}",
            "", "count", "/s", "p50 ms", "p95 ms", "p99 ms", "max ms", "errors"
        );
        let mut row = |name: &str, number: u64, latency: &LatencySummary, errors: u64| {
            let LatencySummary { p50_ms, p95_ms, p99_ms, max_ms, .. } = latency;
            let rate = number_of(number) / self.seconds;
            let _ = writeln!(
                out,
                "{name:<26}{number:>9}{rate:>9.0}{p50_ms:>9.2}{p95_ms:>9.2}{p99_ms:>9.2}{max_ms:>9.1}{errors:>8}"
            );
        };
        let (before, meanwhile) = (&self.undisturbed, &self.refusing);
        row("turns, undisturbed", before.turns, &before.latency, before.errors);
        row("turns, others refused", meanwhile.turns, &meanwhile.latency, meanwhile.errors);
        row("refusals", self.refusals.count, &self.refusals.latency, self.refusals.wrong);
        self.processors_and_memory(&mut out);
        self.losses(&mut out);
        out
    }

    fn head(&self) -> String {
        let facts = &self.facts;
        let offered = self.offered_per_second.map_or_else(|| "as many as go".into(), |it| format!("{it:.0}"));
        let mut out = format!(
            "machine   {} cores ({}), Linux {}, load {:.2} before, database on {}\n\
             program   lumilink {}, commit {}, {} build\n\
             command   {}\n\
             mocked    {}\n\
             prompt    {}\n\
             load      {} live sessions, {offered} turns a second offered, {} s each, warm-up not counted\n",
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
            self.prompt,
            self.sessions,
            self.seconds
        );
        if facts.profile == "debug" {
            out.push_str("WARNING   built without optimisation: the figures say little\n");
        }
        out
    }

    fn processors_and_memory(&self, out: &mut String) {
        let _ = writeln!(out, "\n{:<26}{:>9}{:>9}{:>9}", "share of all processors, %", "server", "agents", "client");
        for (name, phase) in [("undisturbed", &self.undisturbed), ("others refused", &self.refusing)] {
            let [server, agents, client] =
                [phase.server_share, phase.agents_share, phase.client_share].map(|share| share * 100.0);
            let _ = writeln!(out, "{name:<26}{server:>9.0}{agents:>9.0}{client:>9.0}");
        }
        let megabytes = |memory: &Memory| number_of(memory.rss_bytes) / MEGABYTE;
        let [empty, idle, worked] = self.server.each_ref().map(megabytes);
        let agents = self
            .agents
            .pss_bytes
            .map_or_else(String::new, |pss| format!(", {:.1} proportional", number_of(pss) / MEGABYTE));
        let _ = writeln!(
            out,
            "\nMemory (resident), MB: server {empty:.1} without sessions, {idle:.1} with all of them, {worked:.1} at the \
             end; agents {:.1}{agents}\nAll seats were taken in {:.2} s",
            megabytes(&self.agents),
            self.opening_seconds
        );
    }

    fn losses(&self, out: &mut String) {
        let events = &self.events;
        let _ = writeln!(
            out,
            "Events: {} published, {} lost, {} doubled, {} not held any more; {} sessions were followed, the others read \
             at the end",
            events.published, events.lost, events.doubled, events.not_held, events.followed
        );
        let lost = self.undisturbed.sessions_lost + self.refusing.sessions_lost;
        let _ = writeln!(out, "Sessions lost: {lost}; lines of level ERROR logged: {}", self.errors_logged);
        let samples = [&self.undisturbed, &self.refusing].into_iter().flat_map(|phase| &phase.error_samples);
        for (said, times) in samples {
            let _ = writeln!(out, "  {times} times: {said}");
        }
        if let Some(sample) = &self.refusals.sample {
            let _ = writeln!(out, "  no refusal: {sample}");
        }
    }
}

impl PhaseReport {
    fn new(phase: &Phase, seconds: f64, cores: usize) -> Self {
        let Phase { tally, processors } = phase;
        let share = |used: std::time::Duration| used.as_secs_f64() / (seconds * count(cores.max(1)));
        Self {
            turns: tally.turns,
            turns_per_second: number_of(tally.turns) / seconds,
            latency: tally.latencies.summary(),
            errors: tally.errors,
            error_samples: tally.error_samples.clone(),
            sessions_lost: tally.sessions_lost,
            server_share: share(processors.server.unwrap_or_default()),
            agents_share: share(processors.agents),
            client_share: share(processors.client),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "shown with a few digits")]
fn number_of(number: u64) -> f64 {
    number as f64
}

fn count(number: usize) -> f64 {
    number_of(u64::try_from(number).unwrap_or(u64::MAX))
}
