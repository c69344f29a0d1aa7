//! The command line of a benchmark: arguments in, a report on standard output and an exit code out.

use std::{
    ffi::OsString,
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use clap::{Args, Parser};

use super::{
    conversation::BenchError,
    facts,
    open_files::OpenFiles,
    program::Workplace,
    report::{Head, Report},
};

/// Largest number of sessions of one point.
pub(crate) const MAX_SESSIONS: usize = 5000;
/// Longest measurement of one point, in seconds.
const MAX_SECONDS: f64 = 600.0;

/// Arguments of every benchmark.
#[derive(Debug, Clone, Args)]
pub(crate) struct CommonArgs {
    /// A setting for the processes under test; may be repeated.
    #[arg(long = "serve-arg", value_name = "SECTION.KEY=VALUE", value_parser = parse_setting)]
    pub settings: Vec<String>,
    /// Folder for databases and workspaces [default: the system's temporary folder].
    #[arg(long, value_name = "DIR")]
    pub folder: Option<PathBuf>,
    /// Prints JSON.
    #[arg(long)]
    pub json: bool,
    /// Passed by `cargo bench`; ignored.
    #[arg(long, hide = true)]
    bench: bool,
}

/// A benchmark: its arguments, and how it measures.
pub(crate) trait Benchmark: Parser {
    /// Name of the bench target.
    const NAME: &'static str;
    /// Parts of the measured system that are not the real thing.
    const MOCKED: &'static str;
    /// The figures.
    type Report: Report;

    fn common(&self) -> &CommonArgs;

    /// Measures every point. Dropping the future kills every process that it started.
    ///
    /// # Errors
    /// Where nothing can be measured. A single point that cannot be measured is part of the report.
    async fn measure(&self, setup: &Setup) -> Result<Self::Report, BenchError>;
}

/// Resources of one run of a benchmark.
pub(crate) struct Setup {
    /// Limits of open files, raised as far as permitted.
    pub open_files: OpenFiles,
    /// The program, and a folder that is removed at the end of the run.
    pub workplace: Workplace,
}

/// Result of a run.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The arguments are invalid, or help was requested.
    Usage(clap::Error),
    /// Nothing was measured.
    Failed(String),
    /// The report was made.
    Measured {
        /// Text or JSON.
        report: String,
        /// False where a point is missing or a delivery was wrong.
        is_complete: bool,
    },
}

impl Outcome {
    /// Exit code: 0 if everything was measured, however bad; 1 if something was not; 2 for invalid arguments.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Usage(error) => u8::try_from(error.exit_code()).unwrap_or(2),
            Self::Measured { is_complete: true, .. } => 0,
            Self::Measured { .. } | Self::Failed(_) => 1,
        }
    }
}

/// Entry point of a bench target.
#[allow(dead_code, reason = "the smoke runs have an entry point of their own")]
pub(crate) fn main<B: Benchmark>() -> ExitCode {
    let outcome = run::<B>(std::env::args_os().skip(1));
    // A reader that closed the pipe has seen enough.
    let _ = match &outcome {
        Outcome::Usage(error) => error.print(),
        Outcome::Failed(cause) => writeln!(io::stderr(), "bench: {cause}"),
        Outcome::Measured { report, .. } => writeln!(io::stdout(), "{}", report.trim_end()),
    };
    outcome.code().into()
}

/// Runs a benchmark until it is done or interrupted. The arguments are those after `--`.
pub(crate) fn run<B: Benchmark>(arguments: impl IntoIterator<Item = OsString>) -> Outcome {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let parsed = B::try_parse_from([OsString::from(B::NAME)].iter().chain(&arguments));
    let benchmark = match parsed {
        Ok(benchmark) => benchmark,
        Err(error) => return Outcome::Usage(error),
    };
    // One thread: the load leaves the other processors to the processes under test.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(cause) => return Outcome::Failed(format!("the event loop: {cause}")),
    };
    let report = runtime.block_on(async {
        tokio::select! {
            report = report_of(&benchmark, &arguments) => report.map_err(|cause| cause.to_string()),
            _ = tokio::signal::ctrl_c() => Err("interrupted".to_owned()),
        }
    });
    report.unwrap_or_else(Outcome::Failed)
}

async fn report_of<B: Benchmark>(benchmark: &B, arguments: &[OsString]) -> Result<Outcome, BenchError> {
    let CommonArgs { folder, json, .. } = benchmark.common();
    let open_files = OpenFiles::raise();
    let workplace = Workplace::new(folder.as_deref())?;
    let facts = facts::gather(workplace.program(), workplace.path(), open_files);
    let head = Head::new(facts, command(B::NAME, arguments), B::MOCKED);
    let report = benchmark.measure(&Setup { open_files, workplace }).await?;
    let is_complete = report.is_complete();
    let report = if *json { head.json(&report) } else { head.text() + &report.text(&head.facts) };
    Ok(Outcome::Measured { report, is_complete })
}

/// The command that repeats the run.
fn command(name: &str, arguments: &[OsString]) -> Vec<String> {
    let given = arguments.iter().map(|argument| argument.to_string_lossy().into_owned());
    let given = given.filter(|argument| argument != "--bench");
    ["cargo", "bench", "--bench", name, "--"].into_iter().map(str::to_owned).chain(given).collect()
}

/// Reports progress on standard error; standard output is for the report.
pub(crate) fn progress(what: &str) {
    let _ = writeln!(io::stderr(), "bench: {what}");
}

/// Warm-up of a point: a fifth of the measurement, from 0.1 to 2 s, and at least `least`, in which every session takes
/// its first turn.
pub(crate) fn warm_up(measured: Duration, least: Duration) -> Duration {
    (measured / 5).clamp(Duration::from_millis(100), Duration::from_secs(2)).max(least)
}

pub(crate) fn parse_sessions(text: &str) -> Result<usize, String> {
    parse_count(text, MAX_SESSIONS)
}

/// Parses a number from 1 to `most`.
pub(crate) fn parse_count(text: &str, most: usize) -> Result<usize, String> {
    let count = text.trim().parse().ok().filter(|count| (1..=most).contains(count));
    count.ok_or_else(|| format!("must be 1 to {most}"))
}

pub(crate) fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|seconds| (0.1..=MAX_SECONDS).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| format!("must be 0.1 to {MAX_SECONDS} seconds"))
}

/// Parses milliseconds from 0 to one minute: a pause.
pub(crate) fn parse_pause(text: &str) -> Result<Duration, String> {
    parse_ms(text, 0, 60_000)
}

/// Parses milliseconds from `least` to `most`.
pub(crate) fn parse_ms(text: &str, least: u64, most: u64) -> Result<Duration, String> {
    let ms = text.trim().parse().ok().filter(|ms| (least..=most).contains(ms));
    ms.map(Duration::from_millis).ok_or_else(|| format!("must be {least} to {most} milliseconds"))
}

/// Checks the form and keeps the text: the process that gets the setting checks its name and value.
fn parse_setting(text: &str) -> Result<String, String> {
    let is_setting = text.split_once('=').is_some_and(|(setting, _)| setting.contains('.'));
    if is_setting {
        Ok(text.to_owned())
    } else {
        Err("must be section.key=value, such as turn.inactivity_timeout_s=60".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_repeats_the_arguments_without_the_flag_of_cargo() {
        let given = ["--sessions", "1", "--bench"].map(OsString::from);
        assert_eq!(command("turn", &given).join(" "), "cargo bench --bench turn -- --sessions 1");
    }

    #[test]
    fn warm_up_is_a_bounded_fifth_and_at_least_the_given_time() {
        let of = |measured, least| warm_up(Duration::from_millis(measured), Duration::from_millis(least)).as_millis();
        assert_eq!([of(100, 0), of(5000, 0), of(60_000, 0), of(5000, 3000)], [100, 1000, 2000, 3000]);
    }
}
