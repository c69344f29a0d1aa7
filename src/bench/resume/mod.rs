//! `lumilink bench resume`: what a broken connection and a killed supervisor cost, measured from outside.
//!
//! Three trials, each with a supervisor, a runtime and agents as processes of their own and a cable between the two
//! that can be cut ([`relay`]): messages a second through cuts, the time from `kill -9` of the supervisor until the
//! next prompt is accepted, and the time until a connection that went silent is noticed.

mod relay;
mod trials;

use std::{
    fmt::Write,
    path::PathBuf,
    time::{Duration, Instant},
};

use serde::Serialize;

use super::{
    conversation::BenchError,
    facts::{self, Facts},
    open_files::OpenFiles,
    program::Workplace,
    progress,
};

/// The most rounds of each trial.
pub(crate) const MAX_ROUNDS: u32 = 1000;
/// The most messages of a round.
pub(crate) const MAX_MESSAGES: u32 = 10_000_000;

/// What is to be measured.
#[derive(Debug, Clone)]
pub(crate) struct ResumePlan {
    /// Rounds of each trial.
    pub rounds: u32,
    /// Messages that the agent sends in a round of the first trial.
    pub messages: u32,
    /// Pause between two cuts.
    pub cut_every: Duration,
    /// `SECTION.KEY=VALUE` for the supervisor.
    pub settings: Vec<String>,
    /// Folder on the disk that databases and workspaces are to use.
    pub folder: Option<PathBuf>,
}

/// Least, middle and most of what several rounds gave.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Spread {
    /// The least.
    pub min: f64,
    /// The middle one; of an even number the lower.
    pub median: f64,
    /// The most.
    pub max: f64,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        Self { min: at(0), median: at(values.len().saturating_sub(1) / 2), max: at(values.len().saturating_sub(1)) }
    }
}

/// What was measured.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ResumeReport {
    /// On what.
    pub facts: Facts,
    /// By what command.
    pub command: Vec<String>,
    /// What stands for something else.
    pub mocked: &'static str,
    /// Rounds of each trial.
    pub rounds: u32,
    /// Messages of the agent a second, nothing cut.
    pub undisturbed_per_second: Spread,
    /// The same while the cable is cut again and again.
    pub through_cuts_per_second: Spread,
    /// Cuts of all rounds.
    pub cuts: u64,
    /// Messages that were sent and did not arrive, or arrived twice, in all rounds.
    pub lost_or_doubled: i64,
    /// From `kill -9` of the supervisor until a new one serves, in milliseconds.
    pub serves_again_ms: Spread,
    /// From `kill -9` until a prompt is accepted in a session that was there before, in milliseconds.
    pub next_prompt_ms: Spread,
    /// Turns in whose middle the supervisor was killed and that completed all the same.
    pub turns_picked_up: u32,
    /// From the moment a connection goes silent until it is shown as reconnecting, in milliseconds.
    pub half_open_noticed_ms: Spread,
}

/// Runs the trials. Dropping the future ends every process that it started.
///
/// # Errors
/// Where a trial cannot be run, or a turn did not end as it should.
pub(crate) async fn run(plan: ResumePlan, command: Vec<String>) -> Result<ResumeReport, BenchError> {
    let open_files = OpenFiles::raise();
    let workplace = Workplace::new(plan.folder.as_deref())?;
    let facts = facts::gather(workplace.program(), workplace.path(), open_files);
    progress("messages through a resume");
    let through = trials::messages_through_cuts(&workplace, &plan).await?;
    progress("kill -9 of the supervisor");
    let killed = trials::killed_supervisors(&workplace, &plan).await?;
    progress("a connection that goes silent");
    let noticed = trials::silent_connections(&workplace, &plan).await?;
    Ok(ResumeReport {
        facts,
        command,
        mocked: "the agent: the built-in demo agent; the cable: a relay of this process",
        rounds: plan.rounds,
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

fn ms_since(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}

impl ResumeReport {
    /// For programs.
    pub(crate) fn json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    /// For people. Writing to a string cannot fail.
    pub(crate) fn render(&self) -> String {
        let facts = &self.facts;
        let mut out = String::new();
        let _ = writeln!(
            out,
            "machine   {} cores ({}), Linux {}, load {:.2} before, database on {}\n\
             program   lumilink {}, commit {}, {} build\n\
             command   {}\n\
             mocked    {}\n\n\
             {:<58}{:>10}{:>10}{:>10}",
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
            format!("{} rounds each", self.rounds),
            "min",
            "median",
            "max"
        );
        for (what, spread) in [
            ("agent's messages a second, nothing cut", self.undisturbed_per_second),
            ("agent's messages a second, through cuts", self.through_cuts_per_second),
            ("kill -9 of the supervisor until a new one serves, ms", self.serves_again_ms),
            ("kill -9 until the next prompt is accepted, ms", self.next_prompt_ms),
            ("silent connection until it is noticed, ms", self.half_open_noticed_ms),
        ] {
            let _ = writeln!(out, "{what:<58}{:>10.0}{:>10.0}{:>10.0}", spread.min, spread.median, spread.max);
        }
        let _ = writeln!(
            out,
            "\n{} cuts, {} messages lost or doubled; {} of {} turns went on under the new supervisor",
            self.cuts, self.lost_or_doubled, self.turns_picked_up, self.rounds
        );
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_has_the_least_the_middle_and_the_most() {
        let spread = Spread::of(vec![3.0, 1.0, 2.0, 9.0]);
        assert_eq!((spread.min, spread.median, spread.max), (1.0, 2.0, 9.0));
        assert!(Spread::of(Vec::new()).median.is_nan());
    }
}
