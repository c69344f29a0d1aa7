//! Smoke runs: every benchmark runs with the smallest load and reports every figure; the figures themselves do not matter.

#![expect(clippy::disallowed_methods, reason = "the rules are for the program: tests may block their own threads")]

mod benchmarks {
    pub(crate) mod capacity;
    pub(crate) mod notifications;
    pub(crate) mod resume;
    pub(crate) mod route;
    pub(crate) mod stream;
    pub(crate) mod turn;
}
mod support;

use std::{
    ffi::OsString,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

use crate::{
    benchmarks::{
        capacity::CapacityPlan, notifications::NotificationsPlan, resume::ResumePlan, route::RoutePlan,
        stream::StreamPlan, turn::TurnPlan,
    },
    support::cli::{self, Benchmark, Outcome},
};

/// Time limit for the end of processes that were killed.
const DEADLINE: Duration = Duration::from_secs(30);

/// Runs a benchmark in a folder; checks that no process and no file is left.
fn run<B: Benchmark>(arguments: &[&str]) -> Outcome {
    let folder = TempDir::new().expect("a folder");
    let given = ["--bench", "--folder"].map(OsString::from).into_iter().chain([folder.path().into()]);
    let outcome = cli::run::<B>(given.chain(arguments.iter().map(OsString::from)));
    let limit = Instant::now() + DEADLINE;
    while let Some(process) = process_in(folder.path()) {
        assert!(Instant::now() < limit, "a process is left: {process}");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(fs::read_dir(folder.path()).expect("a folder").next().is_none(), "the folder of the run is removed");
    outcome
}

/// Runs a benchmark that must measure everything; returns its JSON report.
fn json<B: Benchmark>(arguments: &[&str]) -> Value {
    match run::<B>(&[arguments, &["--json"]].concat()) {
        Outcome::Measured { report, is_complete: true } => serde_json::from_str(&report).expect("JSON"),
        other => panic!("{other:#?}"),
    }
}

/// The command line of a process that works in a folder or below it, zombies excluded.
fn process_in(folder: &Path) -> Option<String> {
    let processes = fs::read_dir("/proc").expect("a folder").flatten().map(|entry| entry.path());
    let mut within =
        processes.filter(|process| fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd.starts_with(folder)));
    within.find_map(|process| {
        let command = fs::read_to_string(process.join("cmdline")).ok().filter(|command| !command.is_empty())?;
        Some(command.replace('\0', " "))
    })
}

fn assert_none(figures: &Value, names: &[&str]) {
    for name in names {
        assert_eq!(figures[name], 0, "{name}: {figures:#}");
    }
}

#[test]
fn turn_measures_all_paths_without_errors() {
    let report = json::<TurnPlan>(&["--sessions", "1,2", "--seconds", "0.3"]);
    assert_eq!(report["unmeasured"], Value::Array(Vec::new()), "{report:#}");
    let points = report["points"].as_array().expect("points");
    let measured: Vec<_> = points.iter().map(|it| (it["path"].as_str(), it["sessions"].as_u64())).collect();
    let paths = ["stdio", "runtime", "supervisor"];
    let expected: Vec<_> = [1, 2].into_iter().flat_map(|n| paths.map(|path| (Some(path), Some(n)))).collect();
    assert_eq!(measured, expected);
    for point in points {
        assert_none(point, &["errors", "sessionsLost", "errorsLogged"]);
        assert!(point["turns"].as_u64().is_some_and(|turns| turns > 0), "{point:#}");
        let at = |quantile: &str| point["latency"][quantile].as_f64().expect("a latency");
        assert!(at("p50Ms") > 0.0 && at("p50Ms") <= at("p95Ms") && at("p95Ms") <= at("p99Ms"), "{point:#}");
        assert_eq!(point["memory"]["agentsIdle"]["processes"], point["sessions"], "{point:#}");
        let is_bare = point["path"] == "stdio";
        assert_eq!(point["memory"]["serverIdle"].is_null(), is_bare, "{point:#}");
        assert_eq!(point["cpu"]["serverMsPerTurn"].is_null(), is_bare, "{point:#}");
    }
    assert_eq!(report["overhead"].as_array().map(Vec::len), Some(2));
    let command = report["command"].as_array().expect("a command");
    assert!(command.iter().any(|it| it == "--sessions"), "{command:?}");
}

#[test]
fn turn_reports_a_point_that_cannot_be_measured_and_measures_the_others() {
    let arguments = ["--sessions", "2", "--seconds", "0.1", "--paths", "supervisor,stdio"];
    let outcome = run::<TurnPlan>(&[&arguments[..], &["--serve-arg", "capacity.max_sessions=1"]].concat());
    assert_eq!(outcome.code(), 1);
    let Outcome::Measured { report, .. } = outcome else { panic!("{outcome:#?}") };
    assert!(report.contains("Not measured: supervisor at 2: opening a session: status 503"), "{report}");
    assert!(report.lines().any(|line| line.starts_with("stdio ")), "{report}");
}

#[test]
fn turn_survives_messages_that_need_acknowledgements_of_their_own() {
    let arguments = ["--sessions", "1", "--seconds", "0.1", "--paths", "runtime", "--prompt", "flood 5000"];
    let report = json::<TurnPlan>(&arguments);
    assert_none(&report["points"][0], &["errors", "sessionsLost", "errorsLogged"]);
}

#[test]
fn arguments_out_of_bounds_are_refused() {
    for arguments in [
        ["--sessions", "0"],
        ["--sessions", "1,100000"],
        ["--seconds", "0"],
        ["--seconds", "NaN"],
        ["--paths", "carrier-pigeon"],
        ["--think-ms", "-1"],
        ["--serve-arg", "nonsense"],
    ] {
        assert_eq!(run::<TurnPlan>(&arguments).code(), 2, "{arguments:?}");
    }
    for arguments in [["--subscribers", "0"], ["--subscribers", "1,100000"], ["--toasts", "0"], ["--pause-ms", "-1"]]
    {
        assert_eq!(run::<NotificationsPlan>(&arguments).code(), 2, "{arguments:?}");
    }
    assert_eq!(run::<ResumePlan>(&["--cut-every-ms", "0"]).code(), 2);
    assert_eq!(run::<RoutePlan>(&["--model-ms", "10001"]).code(), 2);
    assert_eq!(run::<CapacityPlan>(&["--refusals-per-second", "0"]).code(), 2);
}

#[test]
fn help_names_the_command_and_its_flags() {
    let outcome = run::<TurnPlan>(&["--help"]);
    assert_eq!(outcome.code(), 0);
    let Outcome::Usage(help) = outcome else { panic!("{outcome:#?}") };
    let help = help.to_string();
    assert!(help.contains("cargo bench --bench turn -- [OPTIONS]") && help.contains("--sessions"), "{help}");
    assert!(!help.lines().any(|line| line.trim() == "--bench"), "{help}");
}

#[test]
fn resume_measures_breaks_and_loses_no_message() {
    let report = json::<ResumePlan>(&["--rounds", "1", "--messages", "30000", "--cut-every-ms", "100"]);
    assert!(report["cuts"].as_u64().is_some_and(|cuts| cuts > 0), "{report:#}");
    assert_none(&report, &["lostOrDoubled"]);
    assert_eq!(report["turnsPickedUp"], 1, "{report:#}");
    for measured in ["undisturbedPerSecond", "throughCutsPerSecond", "servesAgainMs", "nextPromptMs"] {
        assert!(report[measured]["median"].as_f64().is_some_and(|it| it > 0.0), "{measured}: {report:#}");
    }
    let noticed = report["halfOpenNoticedMs"]["max"].as_f64().expect("a time");
    assert!(noticed < 15_000.0, "a half-open connection is detected within 15 s: {noticed}");
}

#[test]
fn capacity_measures_a_full_service_that_refuses_and_loses_no_event() {
    let arguments = ["--sessions", "4", "--seconds", "0.5", "--think-ms", "50", "--followed", "2"];
    let report = json::<CapacityPlan>(&arguments);
    for phase in ["undisturbed", "refusing"] {
        let phase = &report[phase];
        assert!(phase["turns"].as_u64().is_some_and(|turns| turns > 0), "{report:#}");
        assert_none(phase, &["errors", "sessionsLost"]);
        assert!(phase["serverShare"].as_f64().is_some_and(|share| share > 0.0), "{report:#}");
    }
    let refusals = &report["refusals"];
    assert!(refusals["count"].as_u64().is_some_and(|count| count > 5) && refusals["wrong"] == 0, "{report:#}");
    assert!(refusals["latency"]["p50Ms"].as_f64().is_some_and(|median| median < 50.0), "{report:#}");
    assert!(report["events"]["published"].as_u64().is_some_and(|count| count > 40), "{report:#}");
    assert_none(&report["events"], &["lost", "doubled"]);
    assert_eq!(report["agents"]["processes"], 4, "{report:#}");
}

#[test]
fn stream_delivers_every_event_to_its_reader_once() {
    let report = json::<StreamPlan>(&["--sessions", "2", "--chunks", "300"]);
    assert!(report["published"].as_u64().is_some_and(|count| count >= 600), "{report:#}");
    assert!(report["eventsPerSecond"].as_f64().is_some_and(|rate| rate > 0.0), "{report:#}");
    assert!(report["serverUsPerEvent"].as_f64().is_some_and(|time| time > 0.0), "{report:#}");
    assert_none(&report, &["lost", "doubled", "errorsLogged"]);
}

#[test]
fn route_measures_and_compares_both_routes_in_new_and_open_sessions() {
    let report = json::<RoutePlan>(&["--sessions", "2", "--model-ms", "0,20", "--seconds", "1"]);
    assert_eq!(report["unmeasured"], Value::Array(Vec::new()), "{report:#}");
    assert_none(&report, &["errorsLogged"]);
    let points = report["points"].as_array().expect("points");
    let load = |it: &Value| format!("{} {} {} {}", it["modelMs"], it["start"], it["route"], it["sessions"]);
    let measured: Vec<_> = points.iter().map(load).collect();
    let at = |model: &str| {
        ["cold", "warm"].map(|start| ["acp", "http"].map(|route| format!("{model} {start:?} {route:?} 2"))).concat()
    };
    assert_eq!(measured, [at("0.0"), at("20.0")].concat());
    for point in points {
        assert_none(point, &["errors", "sessionsLost"]);
        assert!(point["turns"].as_u64().is_some_and(|turns| turns > 0), "{point:#}");
        let first = |figures: &str| point[figures]["p50Ms"].as_f64().expect("a latency");
        assert!(first("firstUpdate") > 0.0 && first("firstUpdate") <= first("latency"), "{point:#}");
        assert!(first("latency") >= point["modelMs"].as_f64().expect("a pause"), "{point:#}");
        for process in ["client", "supervisor", "runtime", "agents"] {
            assert!(point["cpuMsPerTurn"][process].as_f64().is_some_and(|it| it > 0.0), "{process}: {point:#}");
        }
    }
    let compared = report["comparisons"].as_array().expect("comparisons");
    let throughput = |it: &Value| it["throughputPercent"].as_f64().expect("a change");
    assert_eq!(compared.len(), 4, "{report:#}");
    // A running agent is faster than one that has to start, whatever else the machine does.
    let warm = compared.iter().find(|it| it["start"] == "warm" && it["modelMs"] == 0.0).expect("a comparison");
    assert!(throughput(warm) > 0.0, "{report:#}");
}

#[test]
fn notifications_reach_every_subscriber_once_and_their_cost_is_measured() {
    let report = json::<NotificationsPlan>(&["--subscribers", "3,40", "--toasts", "5", "--pause-ms", "5"]);
    assert_eq!(report["unmeasured"], Value::Array(Vec::new()), "{report:#}");
    let points = report["points"].as_array().expect("points");
    assert_eq!(points.len(), 2, "{report:#}");
    for (point, subscribers) in points.iter().zip([3u64, 40]) {
        // Includes the two notifications of the warm-up.
        assert_eq!((&point["subscribers"], &point["delivered"]), (&subscribers.into(), &(subscribers * 7).into()));
        assert_none(point, &["missing", "doubled", "outOfOrder", "evictions", "lostConnections", "errorsLogged"]);
        for latency in ["fromCreated", "untilLast"] {
            let at = |quantile: &str| point[latency][quantile].as_f64().expect("a latency");
            assert!(
                at("p50Ms") > 0.0 && at("p50Ms") <= at("p99Ms") && at("p99Ms") <= at("maxMs") * 1.001,
                "{point:#}"
            );
        }
        assert!(point["tellingCpu"]["server"].as_f64().is_some_and(|it| it > 0.0), "{point:#}");
    }
}
