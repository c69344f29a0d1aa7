//! The cost of broken connections and of a killed supervisor, measured from outside.
//!
//! Three trials, each with a supervisor, a runtime and agents in processes of their own, and a relay between supervisor
//! and runtime that can break connections ([`relay`]): messages a second across breaks, the time from `kill -9` of the
//! supervisor until the next prompt is accepted, and the time until a silent connection is detected.

mod relay;
mod trials;

use std::{
    fmt::Write,
    time::{Duration, Instant},
};

use clap::Parser;
use serde::Serialize;

use crate::support::{
    cli::{self, Benchmark, CommonArgs, Setup, progress},
    conversation::BenchError,
    facts::Facts,
    report::Report,
};

const MAX_ROUNDS: i64 = 1000;
const MAX_MESSAGES: i64 = 10_000_000;

fn parse_cut_every(text: &str) -> Result<Duration, String> {
    cli::parse_ms(text, 1, 60_000)
}

/// Measures broken connections and killed supervisors.
///
/// Prints messages a second across breaks, the time from `kill -9` of the supervisor to the next accepted prompt, and the
/// time until a silent connection is detected.
#[derive(Debug, Parser)]
#[command(name = "resume", bin_name = "cargo bench --bench resume --")]
pub(crate) struct ResumePlan {
    /// Rounds of each trial.
    #[arg(long, value_name = "N", default_value = "5", value_parser = clap::value_parser!(u32).range(1..=MAX_ROUNDS))]
    rounds: u32,
    /// Messages that the agent sends in a turn whose connection is broken.
    #[arg(long, value_name = "N", default_value = "500000", value_parser = clap::value_parser!(u32).range(1..=MAX_MESSAGES))]
    messages: u32,
    /// Pause between two breaks.
    #[arg(long = "cut-every-ms", value_name = "MS", default_value = "250", value_parser = parse_cut_every)]
    cut_every: Duration,
    #[command(flatten)]
    common: CommonArgs,
}

/// Minimum, median and maximum of several rounds.
#[derive(Debug, Clone, Copy, Serialize)]
struct Spread {
    min: f64,
    /// Of an even number of values, the lower one of the middle.
    median: f64,
    max: f64,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        Self { min: at(0), median: at(values.len().saturating_sub(1) / 2), max: at(values.len().saturating_sub(1)) }
    }
}

/// Figures of a run.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ResumeReport {
    /// Of each trial.
    rounds: u32,
    /// Messages of the agent a second over a stable connection.
    undisturbed_per_second: Spread,
    /// Messages of the agent a second while the connection breaks repeatedly.
    through_cuts_per_second: Spread,
    /// Breaks in all rounds.
    cuts: u64,
    /// Messages that were lost or duplicated in all rounds.
    lost_or_doubled: i64,
    /// From `kill -9` of the supervisor until its successor serves.
    serves_again_ms: Spread,
    /// From `kill -9` until a prompt is accepted in an earlier session.
    next_prompt_ms: Spread,
    /// Turns that completed although the supervisor was killed during them.
    turns_picked_up: u32,
    /// From the moment a connection falls silent until the session shows it as reconnecting.
    half_open_noticed_ms: Spread,
}

impl Benchmark for ResumePlan {
    const NAME: &'static str = "resume";
    const MOCKED: &'static str = "the agent: the built-in demo agent; the network: a relay in this process";
    type Report = ResumeReport;

    fn common(&self) -> &CommonArgs {
        &self.common
    }

    async fn measure(&self, setup: &Setup) -> Result<ResumeReport, BenchError> {
        let workplace = &setup.workplace;
        progress("messages across breaks");
        let through = trials::messages_through_cuts(workplace, self).await?;
        progress("kill -9 of the supervisor");
        let killed = trials::killed_supervisors(workplace, self).await?;
        progress("silent connections");
        let noticed = trials::silent_connections(workplace, self).await?;
        Ok(ResumeReport {
            rounds: self.rounds,
            undisturbed_per_second: Spread::of(through.undisturbed),
            through_cuts_per_second: Spread::of(through.with_cuts),
            cuts: through.cuts,
            lost_or_doubled: through.lost_or_doubled,
            serves_again_ms: Spread::of(killed.serves),
            next_prompt_ms: Spread::of(killed.accepted),
            turns_picked_up: killed.picked_up,
            half_open_noticed_ms: Spread::of(noticed),
        })
    }
}

fn ms_since(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}

impl Report for ResumeReport {
    fn text(&self, _: &Facts) -> String {
        let rounds = format!("{} rounds each", self.rounds);
        let mut out = format!("\n{rounds:<58}{:>10}{:>10}{:>10}\n", "min", "median", "max");
        for (what, Spread { min, median, max }) in [
            ("agent's messages a second, stable connection", self.undisturbed_per_second),
            ("agent's messages a second, across breaks", self.through_cuts_per_second),
            ("kill -9 of the supervisor until a new one serves, ms", self.serves_again_ms),
            ("kill -9 until the next prompt is accepted, ms", self.next_prompt_ms),
            ("silent connection until it is detected, ms", self.half_open_noticed_ms),
        ] {
            let _ = writeln!(out, "{what:<58}{min:>10.0}{median:>10.0}{max:>10.0}");
        }
        let _ = writeln!(
            out,
            "\n{} breaks, {} messages lost or duplicated; {} of {} turns continued under the new supervisor",
            self.cuts, self.lost_or_doubled, self.turns_picked_up, self.rounds
        );
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spread_has_minimum_median_and_maximum() {
        let spread = Spread::of(vec![3.0, 1.0, 2.0, 9.0]);
        assert_eq!((spread.min, spread.median, spread.max), (1.0, 2.0, 9.0));
        assert!(Spread::of(Vec::new()).median.is_nan());
    }
}
