//! A service that is filled to its limit and refuses further sessions, measured from outside.
//!
//! The sessions take every seat and work at a given load: first undisturbed, then while further sessions are requested
//! and refused. All events of all sessions are read and counted by their ids.

mod report;
mod trial;

use std::time::Duration;

use clap::Parser;

use self::report::CapacityReport;
use crate::support::{
    cli::{self, Benchmark, CommonArgs, Setup, progress},
    conversation::BenchError,
    open_files::Holder,
};

const MAX_REFUSALS: i64 = 10_000;

/// Measures a full service.
///
/// Prints the latency of its sessions before and while further sessions are refused, the latency of the refusals, memory,
/// processor time, and lost events.
#[derive(Debug, Parser)]
#[command(name = "capacity", bin_name = "cargo bench --bench capacity --")]
pub(crate) struct CapacityPlan {
    /// Seats, all of which are taken.
    #[arg(long, value_name = "N", default_value = "1000", value_parser = cli::parse_sessions)]
    sessions: usize,
    /// Duration of each of the two phases, after a warm-up.
    #[arg(long = "seconds", value_name = "SECONDS", default_value = "10", value_parser = cli::parse_seconds)]
    measured: Duration,
    /// Pause between two prompts of one session: 1,000 sessions with 2000 offer 500 turns a second.
    #[arg(long = "think-ms", value_name = "MS", default_value = "2000", value_parser = cli::parse_pause)]
    think: Duration,
    /// Sessions that are requested beyond the limit, per second of the second phase.
    #[arg(long, value_name = "N", default_value = "100", value_parser = clap::value_parser!(u32).range(1..=MAX_REFUSALS))]
    refusals_per_second: u32,
    /// Sessions whose events are read as they happen; the events of the others are read at the end.
    #[arg(long, value_name = "N", default_value = "100")]
    followed: usize,
    /// Prompt to the demo agent.
    #[arg(long, value_name = "TEXT", default_value = "echo a full service is measured")]
    prompt: String,
    #[command(flatten)]
    common: CommonArgs,
}

impl CapacityPlan {
    /// Sessions whose events are read as they happen.
    fn followed(&self) -> usize {
        self.followed.min(self.sessions)
    }

    /// Settings of the supervisor: as many seats as are taken, and the resources for them. The settings of the command line
    /// come last.
    fn settings(&self) -> Vec<String> {
        let mut settings = vec![
            format!("capacity.max_sessions={}", self.sessions),
            // The default has 100 more agents than sessions too, for restarts that overlap.
            format!("runtime.max_agents={}", self.sessions + 100),
            format!("limits.write_queue={}", (self.sessions * 2).max(4096)),
        ];
        settings.extend(self.common.settings.iter().cloned());
        settings
    }
}

impl Benchmark for CapacityPlan {
    const NAME: &'static str = "capacity";
    const MOCKED: &'static str = "the agent: the built-in demo agent; the load: this process, on the same machine";
    type Report = CapacityReport;

    fn common(&self) -> &CommonArgs {
        &self.common
    }

    async fn measure(&self, setup: &Setup) -> Result<CapacityReport, BenchError> {
        setup.open_files.check(Holder::Supervisor, self.sessions + self.followed())?;
        progress(&format!("taking {} seats", self.sessions));
        let folder = setup.workplace.folder("capacity")?;
        let measured = trial::measure(&setup.workplace, &folder, self).await;
        setup.workplace.clear(&folder);
        Ok(CapacityReport::new(self, measured?))
    }
}
