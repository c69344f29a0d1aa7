//! `lumilink bench`, as small as it gets: that it measures everything that it says, not what comes out.

use std::process::{Command, Output};

use crate::harness::{Value, eventually, lumilink, processes, program::Folder};

fn bench(folder: &Folder, arguments: &[&str]) -> Output {
    bench_of("turn", folder, arguments)
}

fn bench_of(what: &str, folder: &Folder, arguments: &[&str]) -> Output {
    Command::new(lumilink())
        .args(["bench", what, "--folder"])
        .arg(folder.path())
        .args(arguments)
        .current_dir(folder.path())
        .output()
        .expect("the program runs")
}

fn is_empty(folder: &Folder) -> bool {
    std::fs::read_dir(folder.path()).expect("a folder").next().is_none()
}

#[test]
fn all_three_paths_are_measured_without_an_error_and_nothing_is_left() {
    let folder = Folder::new();
    let output = bench(&folder, &["--sessions", "1,2", "--seconds", "0.3", "--json"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON alone on standard output");
    assert_eq!(report["unmeasured"], Value::Array(Vec::new()), "{report:#}");
    let points = report["points"].as_array().expect("points");
    let measured: Vec<_> = points.iter().map(|it| (it["path"].as_str(), it["sessions"].as_u64())).collect();
    let paths = ["stdio", "runtime", "supervisor"];
    let wanted: Vec<_> = [1, 2].into_iter().flat_map(|n| paths.map(|path| (Some(path), Some(n)))).collect();
    assert_eq!(measured, wanted);
    for point in points {
        for none in ["errors", "sessionsLost", "errorsLogged"] {
            assert_eq!(point[none], 0, "{none}: {point:#}");
        }
        assert!(point["turns"].as_u64().is_some_and(|turns| turns > 0), "{point:#}");
        let at = |quantile: &str| point["latency"][quantile].as_f64().expect("a latency");
        assert!(at("p50Ms") > 0.0 && at("p50Ms") <= at("p95Ms") && at("p95Ms") <= at("p99Ms"), "{point:#}");
        assert_eq!(point["memory"]["agentsIdle"]["processes"], point["sessions"], "{point:#}");
        let is_bare = point["path"] == "stdio";
        assert_eq!(point["memory"]["serverIdle"].is_null(), is_bare, "{point:#}");
        assert_eq!(point["cpu"]["serverMsPerTurn"].is_null(), is_bare, "{point:#}");
    }
    assert_eq!(report["overhead"].as_array().map(Vec::len), Some(2));
    eventually("no process is left", || processes::with_marker(folder.path()).is_empty());
    assert!(is_empty(&folder), "its folder is gone");
}

#[test]
fn a_point_that_cannot_be_measured_is_told_and_the_others_are_measured() {
    let folder = Folder::new();
    let arguments = ["--sessions", "2", "--seconds", "0.1", "--paths", "supervisor,stdio"];
    let output = bench(&folder, &[&arguments[..], &["--serve-arg", "capacity.max_sessions=1"]].concat());
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("Not measured: supervisor at 2: opening a session: status 503"), "{said}");
    assert!(said.lines().any(|line| line.starts_with("stdio ")), "{said}");
    eventually("no process is left", || processes::with_marker(folder.path()).is_empty());
    assert!(is_empty(&folder), "its folder is gone");
}

#[test]
fn what_is_out_of_bounds_is_refused_before_anything_starts() {
    let folder = Folder::new();
    for arguments in [
        ["--sessions", "0"],
        ["--sessions", "1,100000"],
        ["--seconds", "0"],
        ["--seconds", "NaN"],
        ["--paths", "carrier-pigeon"],
        ["--think-ms", "-1"],
        ["--serve-arg", "nonsense"],
    ] {
        assert_eq!(bench(&folder, &arguments).status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn what_breaks_cost_is_measured_and_nothing_is_lost_meanwhile() {
    let folder = Folder::new();
    let arguments = ["--rounds", "1", "--messages", "30000", "--cut-every-ms", "100", "--json"];
    let output = bench_of("resume", &folder, &arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON alone on standard output");
    assert!(report["cuts"].as_u64().is_some_and(|cuts| cuts > 0), "{report:#}");
    assert_eq!(
        (&report["lostOrDoubled"], &report["turnsPickedUp"]),
        (&Value::from(0), &Value::from(1)),
        "{report:#}"
    );
    for measured in ["undisturbedPerSecond", "throughCutsPerSecond", "servesAgainMs", "nextPromptMs"] {
        assert!(report[measured]["median"].as_f64().is_some_and(|it| it > 0.0), "{measured}: {report:#}");
    }
    let noticed = report["halfOpenNoticedMs"]["max"].as_f64().expect("a time");
    assert!(noticed < 15_000.0, "a half-open connection is noticed within 15 s: {noticed}");
    eventually("no process is left", || processes::with_marker(folder.path()).is_empty());
    assert!(is_empty(&folder), "its folder is gone");
}

#[test]
fn a_full_service_is_measured_and_loses_no_event_while_it_refuses() {
    let folder = Folder::new();
    let arguments = ["--sessions", "4", "--seconds", "0.5", "--think-ms", "50", "--followed", "2", "--json"];
    let output = bench_of("capacity", &folder, &arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON alone on standard output");
    for phase in ["undisturbed", "refusing"] {
        assert!(report[phase]["turns"].as_u64().is_some_and(|turns| turns > 0), "{phase}: {report:#}");
        assert_eq!((&report[phase]["errors"], &report[phase]["sessionsLost"]), (&0.into(), &0.into()), "{report:#}");
        assert!(report[phase]["serverShare"].as_f64().is_some_and(|share| share > 0.0), "{phase}: {report:#}");
    }
    let refusals = &report["refusals"];
    assert!(refusals["count"].as_u64().is_some_and(|count| count > 5) && refusals["wrong"] == 0, "{report:#}");
    assert!(refusals["latency"]["p50Ms"].as_f64().is_some_and(|median| median < 50.0), "{report:#}");
    let events = &report["events"];
    assert!(events["published"].as_u64().is_some_and(|count| count > 40), "{report:#}");
    for none in ["lost", "doubled"] {
        assert_eq!(events[none], 0, "{report:#}");
    }
    assert_eq!(report["agents"]["processes"], 4, "{report:#}");
    eventually("no process is left", || processes::with_marker(folder.path()).is_empty());
    assert!(is_empty(&folder), "its folder is gone");
}

#[test]
fn both_routes_are_measured_in_new_and_in_open_sessions_and_compared() {
    let folder = Folder::new();
    let arguments = ["--sessions", "2", "--model-ms", "0,20", "--seconds", "0.5", "--json"];
    let output = bench_of("route", &folder, &arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON alone on standard output");
    assert_eq!(
        (&report["unmeasured"], &report["errorsLogged"]),
        (&Value::Array(Vec::new()), &0.into()),
        "{report:#}"
    );
    let points = report["points"].as_array().expect("points");
    let load = |it: &Value| format!("{} {} {} {}", it["modelMs"], it["start"], it["route"], it["sessions"]);
    let measured: Vec<_> = points.iter().map(load).collect();
    let at = |model: &str| {
        ["cold", "warm"].map(|start| ["acp", "http"].map(|route| format!("{model} {start:?} {route:?} 2"))).concat()
    };
    assert_eq!(measured, [at("0.0"), at("20.0")].concat());
    for point in points {
        assert_eq!((&point["errors"], &point["sessionsLost"]), (&0.into(), &0.into()), "{point:#}");
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
    // An agent that is there already is faster than one that is started, whatever the machine does beside that.
    let warm = compared.iter().find(|it| it["start"] == "warm" && it["modelMs"] == 0.0).expect("a comparison");
    assert!(throughput(warm) > 0.0, "{report:#}");
    eventually("no process is left", || processes::with_marker(folder.path()).is_empty());
    assert!(is_empty(&folder), "its folder is gone");
}

#[test]
fn toasts_reach_every_reader_once_and_what_they_cost_is_measured() {
    let folder = Folder::new();
    let arguments = ["--subscribers", "3,40", "--toasts", "5", "--pause-ms", "5", "--json"];
    let output = bench_of("toasts", &folder, &arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON alone on standard output");
    assert_eq!(report["unmeasured"], Value::Array(Vec::new()), "{report:#}");
    let points = report["points"].as_array().expect("points");
    assert_eq!(points.len(), 2, "{report:#}");
    for (point, subscribers) in points.iter().zip([3u64, 40]) {
        // The two toasts of the warm-up are read, too.
        assert_eq!((&point["subscribers"], &point["delivered"]), (&subscribers.into(), &(subscribers * 7).into()));
        for none in ["missing", "doubled", "outOfOrder", "evictions", "lostConnections", "errorsLogged"] {
            assert_eq!(point[none], 0, "{none}: {point:#}");
        }
        for latency in ["fromCreated", "untilLast"] {
            let at = |quantile: &str| point[latency][quantile].as_f64().expect("a latency");
            assert!(
                at("p50Ms") > 0.0 && at("p50Ms") <= at("p99Ms") && at("p99Ms") <= at("maxMs") * 1.001,
                "{point:#}"
            );
        }
        assert!(point["tellingCpu"]["server"].as_f64().is_some_and(|it| it > 0.0), "{point:#}");
    }
    for arguments in [["--subscribers", "0"], ["--subscribers", "1,100000"], ["--toasts", "0"], ["--pause-ms", "-1"]]
    {
        assert_eq!(bench_of("toasts", &folder, &arguments).status.code(), Some(2), "{arguments:?}");
    }
    eventually("no process is left", || processes::with_marker(folder.path()).is_empty());
    assert!(is_empty(&folder), "its folder is gone");
}
