//! `lumilink bench …`

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::{Args, Subcommand};

use super::flags::{CommandError, print};
use crate::{
    bench::{
        self, BenchError, CapacityPlan, MAX_MESSAGES, MAX_MODEL_MS, MAX_NOTIFICATIONS, MAX_REFUSALS, MAX_ROUNDS,
        MAX_SECONDS, MAX_SESSIONS, MAX_SUBSCRIBERS, PathKind, Plan, ResumePlan, RoutePlan, ToastsPlan,
    },
    config::Flag,
};

/// What to measure.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Latency, throughput, memory and processor time of a turn: the bare agent, through the runtime, through
    /// the whole supervisor.
    Turn(TurnArgs),
    /// Messages a second through a resume, the time from `kill -9` of the supervisor to the next accepted prompt, the
    /// time to notice a silent connection.
    Resume(ResumeArgs),
    /// A full service: latency of its sessions before and while new ones are refused, latency of the refusals,
    /// memory, processor time, lost events.
    Capacity(CapacityArgs),
    /// The same turns over ACP and over the HTTP fallback, in new sessions and in open ones: latency, throughput, time
    /// to the first update, processor time, and how they compare.
    Route(RouteArgs),
    /// Toasts to many readers of one workspace: latency from the cause to each of them, memory and processor time,
    /// evictions; every toast of every reader is counted by its id.
    Toasts(NotificationsArgs),
}

/// What every measurement takes.
#[derive(Debug, Args)]
struct CommonArgs {
    /// A setting for the processes that are measured; may be repeated.
    #[arg(long = "serve-arg", value_name = "SECTION.KEY=VALUE", value_parser = parse_setting)]
    settings: Vec<String>,
    /// Folder on the disk that databases and workspaces are to use [default: the system's temporary folder].
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct TurnArgs {
    /// Numbers of concurrent sessions.
    #[arg(long, value_name = "N,N,…", value_delimiter = ',', default_value = "1,10,100,1000", value_parser = parse_sessions)]
    sessions: Vec<usize>,
    /// How long each point is measured, after a warm-up that is not counted.
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = parse_seconds)]
    seconds: Duration,
    /// Paths to measure.
    #[arg(long, value_name = "PATH,PATH,…", value_delimiter = ',', default_value = "stdio,runtime,supervisor")]
    paths: Vec<PathKind>,
    /// Pause between two prompts of one session [default: 0, as fast as it can; 1000 from 1,000 sessions on].
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(..=60_000))]
    think_ms: Option<u64>,
    /// What every prompt says to the demo agent.
    #[arg(long, value_name = "TEXT", default_value = "echo a turn is measured")]
    prompt: String,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Debug, Args)]
struct ResumeArgs {
    /// Rounds of each trial.
    #[arg(long, value_name = "N", default_value = "5", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_ROUNDS)))]
    rounds: u32,
    /// Messages that the agent sends in a turn whose connection is cut.
    #[arg(long, value_name = "N", default_value = "500000", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_MESSAGES)))]
    messages: u32,
    /// Pause between two cuts.
    #[arg(long, value_name = "MS", default_value = "250", value_parser = clap::value_parser!(u64).range(1..=60_000))]
    cut_every_ms: u64,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Debug, Args)]
struct CapacityArgs {
    /// Seats; all of them are taken.
    #[arg(long, value_name = "N", default_value = "1000", value_parser = parse_sessions)]
    sessions: usize,
    /// How long each of the two phases is measured, after a warm-up that is not counted.
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = parse_seconds)]
    seconds: Duration,
    /// Pause between two prompts of one session: 1,000 sessions with 2000 offer 500 turns a second.
    #[arg(long, value_name = "MS", default_value = "2000", value_parser = clap::value_parser!(u64).range(..=60_000))]
    think_ms: u64,
    /// New sessions a second that are asked for beyond the limit.
    #[arg(long, value_name = "N", default_value = "100", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_REFUSALS)))]
    refusals_per_second: u32,
    /// Sessions whose events are read as they happen; those of the others are read at the end.
    #[arg(long, value_name = "N", default_value = "100")]
    followed: usize,
    /// What every prompt says to the demo agent.
    #[arg(long, value_name = "TEXT", default_value = "echo a full service is measured")]
    prompt: String,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Debug, Args)]
struct RouteArgs {
    /// Numbers of concurrent sessions.
    #[arg(long, value_name = "N,N,…", value_delimiter = ',', default_value = "1,10,100", value_parser = parse_sessions)]
    sessions: Vec<usize>,
    /// How long the agent pretends that a model thinks in each turn.
    #[arg(long, value_name = "MS,MS,…", value_delimiter = ',', default_value = "0,50,500", value_parser = clap::value_parser!(u64).range(..=MAX_MODEL_MS))]
    model_ms: Vec<u64>,
    /// How long each point is measured, after a warm-up that is not counted.
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = parse_seconds)]
    seconds: Duration,
    /// What every prompt says to the demo agent.
    #[arg(long, value_name = "TEXT", default_value = "echo a route is measured")]
    prompt: String,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Debug, Args)]
struct NotificationsArgs {
    /// Numbers of subscribers, each a WebSocket.
    #[arg(long, value_name = "N,N,…", value_delimiter = ',', default_value = "1000,10000", value_parser = parse_subscribers)]
    subscribers: Vec<usize>,
    /// Toasts whose latency counts, at each point.
    #[arg(long, value_name = "N", default_value = "40", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_NOTIFICATIONS)))]
    toasts: u32,
    /// Pause between the last reader of a toast and the next one.
    #[arg(long, value_name = "MS", default_value = "250", value_parser = clap::value_parser!(u64).range(..=60_000))]
    pause_ms: u64,
    #[command(flatten)]
    common: CommonArgs,
}

/// Measures and prints. Exit code 0 where everything was measured, however bad; 1 where something was not,
/// and where a toast was lost or came twice.
pub(crate) fn run(arguments: BenchArgs) -> Result<ExitCode, CommandError> {
    match arguments.what {
        What::Turn(arguments) => turn(arguments),
        What::Resume(arguments) => resume(arguments),
        What::Capacity(arguments) => capacity(arguments),
        What::Route(arguments) => route(arguments),
        What::Toasts(arguments) => toasts(arguments),
    }
}

fn toasts(arguments: NotificationsArgs) -> Result<ExitCode, CommandError> {
    let plan = ToastsPlan {
        subscribers: arguments.subscribers,
        toasts: arguments.toasts,
        pause: Duration::from_millis(arguments.pause_ms),
        settings: arguments.common.settings,
        folder: arguments.common.folder,
    };
    let report = to_the_end(bench::run_toasts(plan, std::env::args().collect()))?;
    print(if arguments.common.json { report.json() } else { report.render() }.trim_end())?;
    Ok(if report.is_whole() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn route(arguments: RouteArgs) -> Result<ExitCode, CommandError> {
    let plan = RoutePlan {
        sessions: arguments.sessions,
        models: arguments.model_ms.into_iter().map(Duration::from_millis).collect(),
        measured: arguments.seconds,
        prompt: arguments.prompt,
        settings: arguments.common.settings,
        folder: arguments.common.folder,
    };
    let report = to_the_end(bench::run_route(plan, std::env::args().collect()))?;
    print(if arguments.common.json { report.json() } else { report.render() }.trim_end())?;
    Ok(if report.unmeasured.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn capacity(arguments: CapacityArgs) -> Result<ExitCode, CommandError> {
    let plan = CapacityPlan {
        sessions: arguments.sessions,
        measured: arguments.seconds,
        think: Duration::from_millis(arguments.think_ms),
        refusals_per_second: arguments.refusals_per_second,
        followed: arguments.followed.min(arguments.sessions),
        prompt: arguments.prompt,
        settings: arguments.common.settings,
        folder: arguments.common.folder,
    };
    let report = to_the_end(bench::run_capacity(plan, std::env::args().collect()))?;
    print(if arguments.common.json { report.json() } else { report.render() }.trim_end())?;
    Ok(ExitCode::SUCCESS)
}

fn resume(arguments: ResumeArgs) -> Result<ExitCode, CommandError> {
    let plan = ResumePlan {
        rounds: arguments.rounds,
        messages: arguments.messages,
        cut_every: Duration::from_millis(arguments.cut_every_ms),
        settings: arguments.common.settings,
        folder: arguments.common.folder,
    };
    let report = to_the_end(bench::run_resume(plan, std::env::args().collect()))?;
    print(if arguments.common.json { report.json() } else { report.render() }.trim_end())?;
    Ok(ExitCode::SUCCESS)
}

fn turn(arguments: TurnArgs) -> Result<ExitCode, CommandError> {
    let plan = Plan {
        paths: arguments.paths,
        sessions: arguments.sessions,
        measured: arguments.seconds,
        think: arguments.think_ms.map(Duration::from_millis),
        prompt: arguments.prompt,
        settings: arguments.common.settings,
        folder: arguments.common.folder,
    };
    let report = to_the_end(bench::run(plan, std::env::args().collect()))?;
    print(if arguments.common.json { report.json() } else { bench::render(&report) }.trim_end())?;
    Ok(if report.unmeasured.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Measures until it is done or interrupted.
fn to_the_end<T>(measuring: impl Future<Output = Result<T, BenchError>>) -> Result<T, CommandError> {
    // One thread: the load must leave the other processors to what is measured.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|cause| CommandError::failed("the event loop", &cause))?;
    runtime.block_on(async {
        tokio::select! {
            report = measuring => report.map_err(|cause| CommandError::failed("bench", &cause)),
            _ = tokio::signal::ctrl_c() => Err(CommandError::Failed("bench: interrupted".to_owned())),
        }
    })
}

fn parse_sessions(text: &str) -> Result<usize, String> {
    let sessions = text.trim().parse().ok().filter(|sessions| (1..=MAX_SESSIONS).contains(sessions));
    sessions.ok_or_else(|| format!("must be 1 to {MAX_SESSIONS}"))
}

fn parse_subscribers(text: &str) -> Result<usize, String> {
    let subscribers = text.trim().parse().ok().filter(|subscribers| (1..=MAX_SUBSCRIBERS).contains(subscribers));
    subscribers.ok_or_else(|| format!("must be 1 to {MAX_SUBSCRIBERS}"))
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|seconds| (0.1..=MAX_SECONDS).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| format!("must be 0.1 to {MAX_SECONDS} seconds"))
}

/// Checks the form and keeps the text: the processes that get it check the rest.
fn parse_setting(text: &str) -> Result<String, String> {
    Flag::parse_set(text).map(|_| text.to_owned())
}
