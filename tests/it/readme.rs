//! The README says what the program does, as far as a program can tell.

use std::{collections::BTreeMap, fs, process::Command};

use crate::harness::{Program, lumilink, program::Folder, repository};

fn readme() -> String {
    fs::read_to_string(repository("README.md")).expect("the README")
}

/// The part between two headings.
fn section<'a>(readme: &'a str, heading: &str) -> &'a str {
    let from = readme.split_once(&format!("\n## {heading}\n")).unwrap_or_else(|| panic!("no section {heading}")).1;
    from.split("\n## ").next().unwrap_or(from)
}

/// The cells of a table's rows, without the head.
fn rows(text: &str) -> impl Iterator<Item = Vec<&str>> {
    let row = |line: &'_ str| line.starts_with("| `");
    text.lines()
        .filter(move |line| row(line))
        .map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect())
}

fn code(cell: &str) -> &str {
    cell.trim_matches('`')
}

/// Every setting with its default, as `lumilink config` prints them in an empty folder.
fn defaults(folder: &Folder) -> BTreeMap<String, String> {
    let output = Command::new(lumilink())
        .arg("config")
        .env_clear()
        .env("HOME", folder.path())
        .current_dir(folder.path())
        .output()
        .expect("the program runs");
    let printed = String::from_utf8(output.stdout).expect("text");
    assert!(output.status.success(), "{printed}");
    let here = format!("{}/", folder.path().canonicalize().expect("the folder").display());
    let (mut settings, mut section) = (BTreeMap::new(), "");
    for line in printed.lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']');
        } else if let Some((key, _)) = line.strip_prefix("# ").and_then(|line| line.split_once(" is not set")) {
            settings.insert(format!("{section}.{key}"), "not set".to_owned());
        } else if let Some((key, value)) = line.split_once(" = ") {
            let value = value.rsplit_once("  # ").map_or(value, |(value, _)| value);
            settings.insert(format!("{section}.{key}"), value.replace(&here, ""));
        }
    }
    settings
}

#[test]
fn the_first_screen_has_the_two_commands() {
    let first: Vec<_> = readme().lines().take(24).map(str::to_owned).collect();
    for command in ["cargo run -- demo", "tests/run"] {
        assert!(
            first.iter().any(|line| line == command),
            "`{command}` on a line of its own in:\n{}",
            first.join("\n")
        );
    }
}

#[test]
fn the_table_of_settings_is_the_configuration() {
    let folder = Folder::new();
    let readme = readme();
    let told: BTreeMap<_, _> = rows(section(&readme, "Configuration"))
        .map(|cells| {
            assert!(cells.len() == 3 && !cells[2].is_empty(), "setting, default and meaning: {cells:?}");
            (code(cells[0]).to_owned(), code(cells[1]).to_owned())
        })
        .collect();
    let defaults = defaults(&folder);
    assert!(defaults.len() > 40, "the configuration is read: {defaults:?}");
    for (setting, value) in &defaults {
        assert_eq!(told.get(setting), Some(value), "{setting} in the README");
    }
    for setting in told.keys() {
        assert!(defaults.contains_key(setting), "the README has `{setting}`, the program has not");
    }
}

#[test]
fn the_metrics_are_the_ones_that_are_served() {
    let program = Program::start();
    let scrape = program.metrics();
    let readme = readme();
    let told: Vec<_> = rows(section(&readme, "Operations")).map(|cells| code(cells[0]).to_owned()).collect();
    let served: Vec<_> = scrape.types.keys().cloned().collect();
    for name in &told {
        assert!(served.contains(name), "the README has `{name}`, /metrics has not");
    }
    for name in served.iter().filter(|name| name.starts_with("lumilink_")) {
        assert!(told.contains(name), "/metrics has `{name}`, the README has not");
    }
}

#[test]
fn the_agents_of_the_readme_can_be_configured() {
    let folder = Folder::new();
    let readme = readme();
    let toml = section(&readme, "A real agent").split("```toml\n").nth(1).and_then(|it| it.split("```").next());
    let file = folder.path().join("lumilink.toml");
    fs::write(&file, toml.expect("a TOML block")).expect("the file can be written");
    let output = Command::new(lumilink())
        .args(["config", "--config"])
        .arg(&file)
        .current_dir(folder.path())
        .output()
        .expect("the program runs");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for agent in ["claude-agent-acp", "codex-acp", "gemini", "opencode", "goose"] {
        assert!(printed.contains(&format!("command = [\"{agent}\"")), "{agent} in:\n{printed}");
    }
}

#[test]
fn every_path_of_the_examples_is_served() {
    let program = Program::start();
    let document = program.api.get("/openapi.json").expect(200);
    let readme = readme();
    let mut seen = 0;
    for rest in section(&readme, "The API by example").split("$API/").skip(1) {
        let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || "/$_-".contains(c))).unwrap_or(rest.len());
        let path = format!("/acp/{}", &rest[..end]).replace("$S", "{id}").replace("$P", "{id}");
        assert!(document["paths"].get(&path).is_some(), "the README calls {path}");
        seen += 1;
    }
    assert!(seen > 15, "the examples are found");
}
