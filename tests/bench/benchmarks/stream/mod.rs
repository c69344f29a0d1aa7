//! The cost of an event on its way from an agent to a reader, measured from outside.
//!
//! Every session has one reader of its events. All agents send chunks as fast as they can, in one turn each; the
//! measurement ends when every reader has the last event of its session. Events are counted by their ids.

use std::{
    fmt::Write,
    time::{Duration, Instant},
};

use clap::Parser;
use futures_util::{StreamExt, TryStreamExt, future::try_join_all, stream};
use serde::Serialize;

use crate::support::{
    api,
    cli::{self, Benchmark, CommonArgs, Setup, progress},
    conversation::{BenchError, TurnError},
    events::{self, Events, Follower},
    facts::Facts,
    open_files::Holder,
    processes::{self, Memory},
    program::Program,
    report::{Report, float, megabytes},
};

const MAX_CHUNKS: i64 = 10_000_000;
/// Sessions that are opened at the same time.
const AT_ONCE: usize = 8;

/// Measures streams of events.
///
/// Prints events a second, processor time per event, memory, and lost events.
#[derive(Debug, Parser)]
#[command(name = "stream", bin_name = "cargo bench --bench stream --")]
pub(crate) struct StreamPlan {
    /// Sessions, each with one reader.
    #[arg(long, value_name = "N", default_value = "10", value_parser = cli::parse_sessions)]
    sessions: usize,
    /// Chunks that each agent sends.
    #[arg(long, value_name = "N", default_value = "20000", value_parser = clap::value_parser!(u32).range(1..=MAX_CHUNKS))]
    chunks: u32,
    #[command(flatten)]
    common: CommonArgs,
}

/// Figures of a run.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct StreamReport {
    sessions: usize,
    /// Chunks of each agent.
    chunks: u32,
    /// From the first prompt until every reader has its last event.
    seconds: f64,
    events_per_second: f64,
    /// Processor time of the supervisor with its embedded runtime, in microseconds per event.
    server_us_per_event: f64,
    /// The same of the agents.
    agents_us_per_event: f64,
    /// The same of this process, which reads.
    client_us_per_event: f64,
    /// Events that sessions report as published.
    published: u64,
    /// Events that did not reach the reader.
    lost: u64,
    /// Events that arrived more than once.
    doubled: u64,
    /// The supervisor without sessions, with all sessions before the first prompt, and at the end.
    server: [Memory; 3],
    /// Lines of level ERROR in the log of the supervisor.
    errors_logged: u64,
}

impl Benchmark for StreamPlan {
    const NAME: &'static str = "stream";
    const MOCKED: &'static str = "the agent: the built-in demo agent; the readers: this process, on the same machine";
    type Report = StreamReport;

    fn common(&self) -> &CommonArgs {
        &self.common
    }

    async fn measure(&self, setup: &Setup) -> Result<StreamReport, BenchError> {
        setup.open_files.check(Holder::Supervisor, self.sessions * 2)?;
        let folder = setup.workplace.folder("stream")?;
        let program = Program::start(&setup.workplace, "serve", &folder, &self.common.settings).await?;
        let report = self.stream(&program).await?;
        let errors_logged = program.stop().await?;
        setup.workplace.clear(&folder);
        Ok(StreamReport { errors_logged, ..report })
    }
}

impl StreamPlan {
    async fn stream(&self, program: &Program) -> Result<StreamReport, BenchError> {
        let memory = || processes::memory(&[program.pid()]);
        let before = memory();
        let sessions = (0..self.sessions).map(|n| api::open_session(program, format!("bench-{n}")));
        let sessions: Vec<_> = stream::iter(sessions).buffered(AT_ONCE).try_collect().await?;
        let agents = processes::descendants(program.pid());
        let idle = memory();
        let followers: Vec<_> = sessions.iter().map(|session| Follower::start(program.address(), session)).collect();
        progress("all agents send");
        let processors =
            || [vec![program.pid()], agents.clone(), vec![std::process::id()]].map(|pids| processes::cpu_time(&pids));
        let (used, begin) = (processors(), Instant::now());
        let prompt = format!("flood {}", self.chunks);
        try_join_all(sessions.iter().map(|session| turn(program, session, &prompt))).await?;
        let mut counted = Events::default();
        for follower in followers {
            counted += events::count(program, follower, true).await?;
        }
        let seconds = begin.elapsed().as_secs_f64();
        let published = counted.published.max(1);
        let [server, agents, client] = processors();
        let us_per_event =
            |after: Duration, before: Duration| after.saturating_sub(before).as_secs_f64() * 1e6 / float(published);
        Ok(StreamReport {
            sessions: self.sessions,
            chunks: self.chunks,
            seconds,
            events_per_second: float(counted.published) / seconds,
            server_us_per_event: us_per_event(server, used[0]),
            agents_us_per_event: us_per_event(agents, used[1]),
            client_us_per_event: us_per_event(client, used[2]),
            published: counted.published,
            lost: counted.lost,
            doubled: counted.doubled,
            server: [before, idle, memory()],
            errors_logged: 0,
        })
    }
}

async fn turn(program: &Program, session: &str, prompt: &str) -> Result<(), BenchError> {
    let ended = api::converse(program, session, prompt).turn().await;
    ended.map(drop).map_err(|cause| match cause {
        TurnError::Failed(why) | TurnError::Gone(why) => BenchError::Trial(format!("a turn failed: {why}")),
    })
}

impl Report for StreamReport {
    fn text(&self, _: &Facts) -> String {
        let mut out = format!("\n{} sessions with one reader each, {} chunks each\n\n", self.sessions, self.chunks);
        let memory = self.server.map(|memory| megabytes(memory.rss_bytes));
        for (what, value) in [
            ("events a second", self.events_per_second),
            ("supervisor, µs per event", self.server_us_per_event),
            ("agents, µs per event", self.agents_us_per_event),
            ("readers, µs per event", self.client_us_per_event),
            ("supervisor's memory without sessions, MB", memory[0]),
            ("with idle sessions, MB", memory[1]),
            ("at the end, MB", memory[2]),
        ] {
            let _ = writeln!(out, "{what:<44}{value:>12.1}");
        }
        let _ = writeln!(
            out,
            "\n{} events in {:.2} s: {} lost, {} duplicated; {} errors logged",
            self.published, self.seconds, self.lost, self.doubled, self.errors_logged
        );
        out
    }

    fn is_complete(&self) -> bool {
        self.lost == 0 && self.doubled == 0
    }
}
