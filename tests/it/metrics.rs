//! `/metrics`: every metric is present from the start and follows the program's state. Log lines are JSON.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use crate::harness::{
    Program, json,
    program::{TURNS_ENDED, TURNS_STARTED},
};

#[test]
fn every_counter_is_present_from_the_start_at_0() {
    let program = Program::start();
    let scrape = program.metrics();
    let counters: Vec<_> = scrape.types.iter().filter(|(_, kind)| *kind == "counter").map(|(name, _)| name).collect();
    for counter in &counters {
        assert!(scrape.has(counter, &[]), "{counter} has no sample");
    }
    assert_eq!((scrape.sum(TURNS_STARTED, &[]), scrape.sum(TURNS_ENDED, &[])), (0.0, 0.0));
    for outcome in ["completed", "cancelled", "failed", "interrupted"] {
        for route in ["acp", "http"] {
            assert!(scrape.has(TURNS_ENDED, &[("route", route), ("outcome", outcome)]), "{route} {outcome}");
        }
    }
}

#[test]
fn required_metrics_are_present() {
    let text = Program::start().metrics().text;
    for part in [
        "sessions",
        "turn",
        "first_update",
        "updates",
        "errors",
        "restarts",
        "agent_processes",
        "queue",
        "writer",
        "build_info",
    ] {
        let found = text.lines().any(|line| line.starts_with("# TYPE lumilink_") && line.contains(part));
        assert!(found, "no metric for `{part}` in:\n{text}");
    }
    assert!(text.contains("process_resident_memory_bytes"), "process figures");
}

#[test]
fn names_use_base_units_and_labels_hold_no_id() {
    let program = Program::start();
    let session = program.api.open("ws-with-a-name");
    session.completes("echo a");
    session.prompt("crash");
    session.becomes("idle");
    let scrape = program.metrics();
    for (name, kind) in scrape.types.iter().filter(|(name, _)| name.starts_with("lumilink_")) {
        assert_eq!(name.ends_with("_total"), kind == "counter", "{name} is a {kind}");
        assert!(!name.contains("_ms") && !name.contains("millis"), "{name} is not in base units");
    }
    for id in [session.id.as_str(), "ws-with-a-name", "tenant-1"] {
        assert!(!scrape.text.contains(id), "an id in a label: {id}");
    }
}

#[test]
fn turns_errors_and_restarts_are_counted() {
    let program = Program::start();
    let session = program.api.open("ws");
    session.completes("echo a");
    session.prompt("error -32603 boom").problem(502, "agent_error");
    session.prompt("crash").problem(502, "agent_crashed");
    session.becomes("idle");
    let (_, mut stream) = session.is_busy_with("echo started ; sleep 60");
    session.cancel();
    stream.rest();
    let scrape = program.metrics();
    let turns = |outcome| scrape.sum(TURNS_ENDED, &[("route", "acp"), ("outcome", outcome)]);
    assert_eq!((turns("completed"), turns("failed"), turns("cancelled")), (1.0, 2.0, 1.0));
    assert_eq!(scrape.sum(TURNS_STARTED, &[]), 4.0);
    let errors = |code| {
        let matching = scrape.samples().iter().filter(|it| it.name.contains("errors_total"));
        matching.filter(|it| it.labels.get("code").is_some_and(|it| it == code)).map(|it| it.value).sum::<f64>()
    };
    assert_eq!((errors("agent_error"), errors("agent_crashed")), (1.0, 1.0));
    let restarts = scrape.samples().iter().filter(|it| it.name.contains("restarts_total")).map(|it| it.value);
    assert_eq!(restarts.sum::<f64>(), 1.0);
}

#[test]
fn active_sessions_gauge_follows_open_and_close() {
    let program = Program::start();
    let active = || {
        let scrape = program.metrics();
        let gauges = scrape.samples().iter().filter(|it| it.name.contains("sessions") && it.name.contains("active"));
        gauges.map(|it| it.value).sum::<f64>()
    };
    assert_eq!(active(), 0.0);
    let session = program.api.open("ws");
    assert_eq!(active(), 1.0);
    session.post("close", json!({})).expect(200);
    crate::harness::eventually("the gauge is back at 0", || active() == 0.0);
}

#[test]
fn promtool_reports_no_problem_in_our_metrics() {
    let program = Program::start();
    program.api.open("ws").completes("echo a");
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is missing: run tests/run, which installs it");
    promtool.stdin.take().unwrap().write_all(program.metrics().text.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let report = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    // promtool also reports names chosen by the library for process metrics; only our own names count.
    let ours: Vec<_> = report.lines().filter(|line| line.contains("lumilink_")).collect();
    assert!(ours.is_empty(), "{ours:#?}");
    assert!(output.status.success() || !report.contains("error"), "{report}");
}

#[test]
fn log_lines_are_json_and_carry_markers() {
    let program = Program::start();
    let session = program.api.open("ws");
    session.prompt("crash").problem(502, "agent_crashed");
    session.becomes("idle");
    let log = program.log();
    for line in log.lines() {
        let parsed: crate::harness::Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}"));
        assert!(parsed["level"].is_string() && line.len() < 32_768, "{line}");
    }
    assert!(log.contains("[ACP]"), "no marker in:\n{log}");
}
