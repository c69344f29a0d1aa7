//! Parts of every report: the head, the figures of turns, and how numbers are printed.

use std::{collections::BTreeMap, fmt::Write, time::Duration};

use serde::Serialize;

use super::{closed_loop::Tally, facts::Facts, latency::LatencySummary};

/// Bytes.
pub(crate) const KILOBYTE: f64 = 1024.0;
/// Bytes.
const MEGABYTE: f64 = 1024.0 * 1024.0;

/// The figures of a benchmark.
pub(crate) trait Report: Serialize {
    /// Renders tables and notes for people; the head is printed before them.
    fn text(&self, facts: &Facts) -> String;

    /// False where a point was not measured or a delivery was wrong: the exit code is 1 then.
    fn is_complete(&self) -> bool {
        true
    }
}

/// Conditions of a run.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Head {
    /// The machine and the program.
    pub facts: Facts,
    /// The command that repeats the run.
    pub command: Vec<String>,
    /// Parts of the measured system that are not the real thing.
    pub mocked: &'static str,
    /// Reasons to distrust the figures.
    pub warnings: Vec<&'static str>,
}

impl Head {
    pub(crate) fn new(facts: Facts, command: Vec<String>, mocked: &'static str) -> Self {
        let mut warnings = Vec::new();
        if facts.profile == "debug" {
            warnings.push("built without optimisation (debug): the figures mean little; use the release profile");
        }
        if facts.file_system == "tmpfs" {
            warnings.push("the database is on tmpfs, where a commit costs next to nothing; set --folder");
        }
        Self { facts, command, mocked, warnings }
    }

    /// Renders the head for people.
    pub(crate) fn text(&self) -> String {
        let Self { facts, command, mocked, warnings } = self;
        let mut out = format!(
            "machine   {} cores ({}), {:.1} GiB, Linux {}, load {:.2} before, databases on {}\n\
             program   {}: lumilink {}, commit {}, {} build; open files {} (hard limit {})\n\
             command   {}\n\
             mocked    {mocked}\n",
            facts.cores,
            facts.processor,
            megabytes(facts.memory_bytes) / 1024.0,
            facts.kernel,
            facts.load_average,
            facts.file_system,
            facts.program,
            facts.version,
            facts.commit,
            facts.profile,
            facts.open_files.limit,
            facts.open_files.hard_limit,
            command.join(" "),
        );
        for warning in warnings {
            let _ = writeln!(out, "WARNING   {warning}");
        }
        out
    }

    /// Renders head and figures for programs.
    pub(crate) fn json<R: Report>(&self, figures: &R) -> String {
        #[derive(Serialize)]
        struct Whole<'a, R> {
            #[serde(flatten)]
            head: &'a Head,
            #[serde(flatten)]
            figures: &'a R,
        }
        serde_json::to_string_pretty(&Whole { head: self, figures })
            .unwrap_or_else(|cause| unreachable!("values of our own types serialise: {cause}"))
    }
}

/// Figures of the turns of one load.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TurnFigures {
    /// Turns that completed within the measured time.
    pub turns: u64,
    pub turns_per_second: f64,
    /// Latency of the turns that began within the measured time.
    pub latency: LatencySummary,
    /// Failed turns, warm-up included.
    pub errors: u64,
    /// Messages of the first different errors, with their counts.
    pub error_samples: BTreeMap<String, u64>,
    pub sessions_lost: u64,
}

impl TurnFigures {
    pub(crate) fn new(tally: &Tally, measured: Duration) -> Self {
        Self {
            turns: tally.turns,
            turns_per_second: float(tally.turns) / measured.as_secs_f64(),
            latency: tally.latencies.summary(),
            errors: tally.errors,
            error_samples: tally.error_samples.clone(),
            sessions_lost: tally.sessions_lost,
        }
    }

    /// Writes a line per error sample.
    pub(crate) fn write_samples(&self, out: &mut String) {
        for (error, times) in &self.error_samples {
            let _ = writeln!(out, "  {times} times: {error}");
        }
    }
}

/// Milliseconds per turn; 0 without turns.
pub(crate) fn ms_per_turn(time: Duration, turns: u64) -> f64 {
    if turns == 0 { 0.0 } else { time.as_secs_f64() * 1e3 / float(turns) }
}

/// Counts and bytes are far below the numbers at which a float loses the last digit.
pub(crate) fn float(number: impl TryInto<u64>) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "see above")]
    let float = number.try_into().unwrap_or(u64::MAX) as f64;
    float
}

pub(crate) fn megabytes(bytes: u64) -> f64 {
    float(bytes) / MEGABYTE
}

/// The number, or `-` where it is absent.
pub(crate) fn known(value: Option<f64>, decimals: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.decimals$}"))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Figures of 1,000 turns in 5 s whose latencies are multiples of `ms`.
    pub(crate) fn turns(ms: f64) -> TurnFigures {
        TurnFigures {
            turns: 1000,
            turns_per_second: 200.0,
            latency: LatencySummary { p50_ms: ms, p95_ms: ms * 2.0, p99_ms: ms * 3.0, max_ms: ms * 4.0, mean_ms: ms },
            errors: 1,
            error_samples: BTreeMap::from([("status 503".to_owned(), 1)]),
            sessions_lost: 0,
        }
    }

    #[derive(Serialize)]
    struct Nothing {
        points: [u8; 1],
    }

    impl Report for Nothing {
        fn text(&self, _: &Facts) -> String {
            String::new()
        }
    }

    #[test]
    fn head_names_machine_program_command_mocks_and_warnings() {
        let head = Head::new(Facts::sample(), vec!["cargo".into(), "bench".into()], "the agent");
        let text = head.text();
        for expected in [
            "machine   2 cores (Example), 8.0 GiB, Linux 6.1, load 0.50 before, databases on tmpfs",
            "commit abc, debug build; open files 1024 (hard limit 4096)",
            "command   cargo bench\nmocked    the agent\n",
            "WARNING   built without optimisation",
            "WARNING   the database is on tmpfs",
        ] {
            assert!(text.contains(expected), "{expected:?} is not in:\n{text}");
        }
        let json: serde_json::Value = serde_json::from_str(&head.json(&Nothing { points: [7] })).unwrap();
        assert_eq!((&json["mocked"], &json["facts"]["cores"]), (&"the agent".into(), &2.into()));
        assert_eq!((json["warnings"].as_array().map(Vec::len), &json["points"][0]), (Some(2), &7.into()));
    }

    #[test]
    fn optimised_build_on_a_disk_has_no_warning() {
        let facts = Facts { profile: "release", file_system: "ext4".into(), ..Facts::sample() };
        assert_eq!(Head::new(facts, Vec::new(), "").warnings, [""; 0]);
    }

    #[test]
    fn time_per_turn_is_a_share_of_the_whole() {
        assert_eq!([1000, 0].map(|turns| ms_per_turn(Duration::from_secs(3), turns)), [3.0, 0.0]);
    }
}
