//! The alerts for Prometheus in `deploy/prometheus`: they are valid, fire when they should, name metrics that exist, and each
//! has a runbook.

use std::{collections::BTreeSet, fs, path::PathBuf, process::Command};

use crate::harness::Program;

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

#[test]
fn rules_name_metrics_that_exist() {
    let exported: BTreeSet<String> = Program::start().metrics().types.into_keys().collect();
    let rules = text("prometheus/rules.yaml");
    let is_part = |it: char| it.is_ascii_alphanumeric() || it == '_' || it == ':';
    for expression in values(&rules, "expr:") {
        let names = expression.split(|it: char| !is_part(it));
        for name in names.filter(|name| ["lumilink_", "process_"].iter().any(|start| name.starts_with(start))) {
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
            assert!(exported.contains(family), "{name} of `{expression}` is no metric");
        }
        for name in expression.split(|it: char| !is_part(it)).filter(|name| name.starts_with("lumilink:")) {
            assert!(values(&rules, "- record:").contains(&name), "{name} of `{expression}` is not recorded");
        }
    }
}

#[test]
fn each_alert_has_a_severity_and_a_runbook() {
    let (rules, page) = (text("prometheus/rules.yaml"), text("README.md"));
    let sections: Vec<_> = values(&page, "### ").iter().map(|it| it.to_lowercase().replace(' ', "-")).collect();
    let alerts = values(&rules, "- alert:").len();
    assert_eq!(values(&rules, "severity:").len(), alerts);
    let runbooks = values(&rules, "runbook:");
    assert_eq!(runbooks.len(), alerts);
    for runbook in runbooks {
        let section = runbook.strip_prefix("deploy/README.md#").expect("a section of the operators' page");
        assert!(sections.iter().any(|it| it == section), "deploy/README.md has no section {section}");
    }
}
