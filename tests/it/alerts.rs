//! The rules for Prometheus and the boards for Grafana in `deploy`: they are valid, alerts fire when they should, every metric
//! exists, and so does every runbook.

use std::{collections::BTreeSet, fs, path::PathBuf, process::Command};

use crate::harness::{Program, Value, program::Folder};

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("deploy").join(name)
}

fn text(name: &str) -> String {
    fs::read_to_string(file(name)).expect("a file of the repository")
}

/// The values of the lines that begin with this key.
fn values<'a>(text: &'a str, key: &str) -> Vec<&'a str> {
    text.lines().filter_map(|line| line.trim().strip_prefix(key)).map(str::trim).collect()
}

fn promtool(arguments: &[&str]) {
    let output = Command::new("promtool").args(arguments).current_dir(file("prometheus")).output();
    let output = output.expect("promtool is missing: run tests/run, which installs it");
    let report = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{report}");
}

#[test]
fn rules_are_valid_and_each_alert_fires_and_is_silent_when_it_should() {
    promtool(&["check", "rules", "rules.yaml"]);
    promtool(&["test", "rules", "rules_test.yaml"]);
    let (rules, tests) = (text("prometheus/rules.yaml"), text("prometheus/rules_test.yaml"));
    let names = values(&tests, "- name:");
    for alert in values(&rules, "- alert:") {
        for case in ["fires", "is silent"] {
            assert!(names.contains(&format!("{alert} {case}").as_str()), "no test that {alert} {case}");
        }
    }
}

/// Checks that an expression names metrics of `exported`, and recorded series of the rules.
fn check_names(expression: &str, exported: &BTreeSet<String>, rules: &str) {
    let names = expression.split(|it: char| !(it.is_ascii_alphanumeric() || it == '_' || it == ':'));
    for name in names {
        if ["lumilink_", "process_"].iter().any(|start| name.starts_with(start)) {
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
            assert!(exported.contains(family), "{name} of `{expression}` is no metric");
        } else if name.starts_with("lumilink:") {
            assert!(values(rules, "- record:").contains(&name), "{name} of `{expression}` is not recorded");
        }
    }
}

fn exported() -> BTreeSet<String> {
    Program::start().metrics().types.into_keys().collect()
}

#[test]
fn rules_name_metrics_that_exist() {
    let (exported, rules) = (exported(), text("prometheus/rules.yaml"));
    values(&rules, "expr:").iter().for_each(|expression| check_names(expression, &exported, &rules));
}

/// The anchors of the page with the runbooks.
fn sections() -> Vec<String> {
    let page = text("handbook/alerts.md");
    values(&page, "## ").iter().map(|it| it.to_lowercase().replace(' ', "-")).collect()
}

#[test]
fn each_alert_has_a_severity_and_a_runbook() {
    let rules = text("prometheus/rules.yaml");
    let sections = sections();
    let alerts = values(&rules, "- alert:").len();
    assert_eq!(values(&rules, "severity:").len(), alerts);
    let runbooks = values(&rules, "runbook:");
    assert_eq!(runbooks.len(), alerts);
    for runbook in runbooks {
        let section = runbook.strip_prefix("/docs/handbook/alerts.md#").expect("a section of the page");
        assert!(sections.iter().any(|it| it == section), "alerts.md has no section {section}");
    }
}

/// The boards, by the names of their files.
fn boards() -> Vec<(String, Value)> {
    let files = fs::read_dir(file("grafana/boards")).expect("the boards");
    let board = |path: PathBuf| {
        let text = fs::read_to_string(&path).expect("a board");
        (path.display().to_string(), serde_json::from_str(&text).expect("JSON"))
    };
    files.map(|entry| board(entry.expect("a file").path())).collect()
}

fn list<'a>(value: &'a Value, member: &str) -> &'a [Value] {
    value[member].as_array().map_or(&[], Vec::as_slice)
}

#[test]
fn boards_are_those_of_their_description() {
    let made = Command::new("python3").arg(file("grafana/make-boards")).arg("--check").output();
    let made = made.expect("python3 runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

#[test]
fn panels_of_boards_have_valid_expressions_of_metrics_that_exist() {
    let (exported, rules, folder) = (exported(), text("prometheus/rules.yaml"), Folder::new());
    let mut checked = String::from("groups:\n  - name: boards\n    rules:\n");
    let mut panels = 0;
    for (name, board) in boards() {
        let mut ids = BTreeSet::new();
        for panel in list(&board, "panels") {
            panels += 1;
            assert!(ids.insert(panel["id"].as_u64()), "{name}: two panels have the id {}", panel["id"]);
            for target in list(panel, "targets") {
                let expression = target["expr"].as_str().expect("an expression");
                check_names(expression, &exported, &rules);
                let filled =
                    expression.replace("$__rate_interval", "5m").replace("$job", "a").replace("$instance", "b");
                assert!(!filled.contains('$'), "{name}: an unknown variable in {expression}");
                checked += &format!("      - record: panel\n        expr: '{filled}'\n");
            }
        }
    }
    assert!(panels > 30, "{panels} panels");
    let path = folder.path().join("boards.yaml");
    fs::write(&path, checked).expect("a file");
    promtool(&["check", "rules", "--lint=none", &path.display().to_string()]);
}

#[test]
fn runbooks_of_boards_exist() {
    let sections = sections();
    for (name, board) in boards() {
        let links = list(&board, "panels").iter().flat_map(|panel| list(panel, "links"));
        for link in links {
            let url = link["url"].as_str().expect("an address");
            let section = url.strip_prefix("${runbooks}#").expect("a section of the runbooks");
            assert!(sections.iter().any(|it| it == section), "{name}: alerts.md has no section {section}");
        }
    }
}
