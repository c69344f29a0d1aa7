//! The reference pages of the handbook, generated from code, and the test that the committed pages are current.
//!
//! `LUMILINK_UPDATE_PAGES=1 cargo test --lib reference` rewrites them.

use std::{collections::BTreeMap, fmt::Write};

use clap::{Args, Command, CommandFactory};
use serde_json::Value;

use super::{
    Cli,
    flags::{Attribution, CommonFlags, ServerFlags},
};
use crate::{
    config::{Config, SECRETS, render::toml_value, sections::Secret},
    contract::problem::status_of,
    domain::{
        access::{Privilege, Reach, Role},
        turn::outcome::ErrorCode,
    },
    http::{RouteTable, document},
    telemetry::Metrics,
};

const UPDATE_VARIABLE: &str = "LUMILINK_UPDATE_PAGES";
const HANDBOOK: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/handbook");

/// The sources whose doc comments describe the settings.
const SECTIONS: [&str; 17] = [
    include_str!("../config/sections/mod.rs"),
    include_str!("../config/sections/agent.rs"),
    include_str!("../config/sections/capacity.rs"),
    include_str!("../config/sections/ceilings.rs"),
    include_str!("../config/sections/database.rs"),
    include_str!("../config/sections/github.rs"),
    include_str!("../config/sections/limits.rs"),
    include_str!("../config/sections/notifications.rs"),
    include_str!("../config/sections/process.rs"),
    include_str!("../config/sections/routing.rs"),
    include_str!("../config/sections/runtime.rs"),
    include_str!("../config/sections/secrets.rs"),
    include_str!("../config/sections/server.rs"),
    include_str!("../config/sections/session.rs"),
    include_str!("../config/sections/triggers.rs"),
    include_str!("../config/sections/webhook.rs"),
    include_str!("../config/sections/workspaces.rs"),
];

#[test]
fn committed_reference_pages_are_current() {
    #[expect(clippy::disallowed_methods, reason = "it selects what the test does, not a setting")]
    let is_update = std::env::var_os(UPDATE_VARIABLE).is_some();
    for (name, page) in [
        ("configuration", configuration()),
        ("metrics", metrics()),
        ("errors", errors()),
        ("roles", roles()),
        ("cli", command_line()),
    ] {
        let file = format!("{HANDBOOK}/{name}.md");
        if is_update {
            std::fs::write(&file, &page).unwrap();
        }
        let committed = std::fs::read_to_string(&file).unwrap_or_default();
        assert!(committed == page, "{name}.md is not current: {UPDATE_VARIABLE}=1 cargo test --lib reference");
    }
}

/// Starts a page: its title, what it is, and how it is made.
fn page(title: &str, what: &str, source: &str) -> String {
    format!("# {title}\n\n{what} This page is generated from {source}; do not edit it.\n")
}

/// A table. Cells are one line each.
fn table(out: &mut String, columns: &[&str], rows: impl IntoIterator<Item = Vec<String>>) {
    let _ = writeln!(out, "\n| {} |\n|{}", columns.join(" | "), "---|".repeat(columns.len()));
    for row in rows {
        let cells: Vec<_> = row.iter().map(|cell| cell.replace('\n', " ").replace('|', "\\|")).collect();
        let _ = writeln!(out, "| {} |", cells.join(" | "));
    }
}

fn code(text: &str) -> String {
    format!("`{text}`")
}

/// A struct of the configuration: its description, and its fields with type and description.
#[derive(Default)]
struct Described {
    description: String,
    fields: Vec<(String, String, String)>,
}

/// Reads the doc comments of structs and of their public fields.
fn described(source: &str) -> BTreeMap<String, Described> {
    let mut structs: BTreeMap<String, Described> = BTreeMap::new();
    let (mut docs, mut open) = (Vec::new(), None);
    for line in source.lines().map(str::trim) {
        if let Some(doc) = line.strip_prefix("///") {
            docs.push(doc.trim());
        } else if let Some(name) = line.strip_prefix("pub(crate) struct ").and_then(|rest| rest.strip_suffix(" {")) {
            let description = std::mem::take(&mut docs).join(" ");
            structs.insert(name.to_owned(), Described { description, fields: Vec::new() });
            open = Some(name.to_owned());
        } else if let Some((name, kind)) = line.strip_prefix("pub ").and_then(|rest| rest.split_once(": ")) {
            let field = (name.to_owned(), kind.trim_end_matches(',').to_owned(), docs.join(" "));
            docs.clear();
            if let Some(described) = open.as_ref().and_then(|open| structs.get_mut(open)) {
                described.fields.push(field);
            }
        } else if line == "}" {
            open = None;
            docs.clear();
        } else if !line.starts_with("#[") {
            docs.clear();
        }
    }
    structs
}

/// The variable of a setting.
fn variable_of(setting: &str, suffix: &str) -> String {
    format!("LUMILINK_{}{suffix}", setting.to_uppercase().replace('.', "__"))
}

fn configuration() -> String {
    let what = "Every setting with its default. How settings are given: [operations](operations.md#configuration).";
    let mut out = page("Configuration reference", what, "the doc comments of `src/config/sections/`");
    let files: Vec<_> = SECRETS.iter().map(|it| code(&variable_of(it, "_FILE"))).collect();
    let _ = write!(
        out,
        "\nA secret may be in a file instead, whose path is the value of {}, or in TOML of the same setting with `_file` at its \
         end (`token_file`, `secret_file`, `url_file`, `value_file`). A line end at the end of the file is removed. It is an \
         error if the file cannot be read, is empty, or if the setting or variable without `_file` is given too.\n",
        files.join(", ")
    );
    let structs: BTreeMap<_, _> = SECTIONS.into_iter().flat_map(described).collect();
    let defaults = serde_json::to_value(Config::default()).unwrap();
    for (section, kind, _) in &structs["Config"].fields {
        if section == "agents" {
            continue;
        }
        // Secrets have names of their own, and no defaults.
        let is_named = section == "secrets";
        let Described { description, fields } = &structs[if is_named { "Secret" } else { kind.as_str() }];
        let section = if is_named { "secrets.<NAME>" } else { section.as_str() };
        let _ = write!(out, "\n## {section}\n\n{description}\n");
        let of_named = serde_json::to_value(Secret::default()).unwrap();
        let defaults = if is_named { &of_named } else { &defaults[section] }.as_object().unwrap();
        let names: Vec<_> = fields.iter().map(|(name, _, _)| name).collect();
        assert!(defaults.keys().all(|name| names.contains(&name)), "{section}: {names:?}");
        let (below, plain): (Vec<_>, Vec<_>) =
            fields.iter().partition(|(name, kind, _)| structs.contains_key(kind) && defaults[name].is_object());
        settings(&mut out, section, &plain, defaults);
        for (name, kind, _) in below {
            let Described { description, fields } = &structs[kind];
            let section = format!("{section}.{name}");
            let _ = write!(out, "\n## {section}\n\n{description}\n");
            settings(&mut out, &section, &fields.iter().collect::<Vec<_>>(), defaults[name].as_object().unwrap());
        }
    }
    out
}

/// The table of the settings of a section.
fn settings(
    out: &mut String,
    section: &str,
    fields: &[&(String, String, String)],
    defaults: &serde_json::Map<String, Value>,
) {
    let rows = fields.iter().map(|(name, _, description)| {
        assert!(!description.is_empty(), "{section}.{name} is not described");
        let default = match &defaults[name] {
            Value::Null => "not set".to_owned(),
            value => code(&toml_value(value)),
        };
        vec![code(&format!("{section}.{name}")), default, description.clone()]
    });
    table(out, &["setting", "default", "meaning"], rows);
}

/// The most values of a label that are listed.
const LISTED_VALUES: usize = 12;

fn metrics() -> String {
    let what = "Every metric at `/metrics`. Every combination of label values is exported from the start, counters as \
                0, except where a text says otherwise. Values of `agent` are names of the configuration, and values of \
                `route` of HTTP requests are templates of paths. No label value is an id. Times are in seconds, sizes in bytes.";
    let mut out = page("Metrics reference", what, "the metrics of the program");
    let metrics = Metrics::for_tests();
    metrics.configure_agents(["default"]).unwrap();
    metrics.set_http_operations(RouteTable::new(&document()).operations().to_vec());
    let text = metrics.render().unwrap();
    let of = |prefix: &str, name: &str| {
        let start = format!("# {prefix} {name} ");
        text.lines().find_map(|line| line.strip_prefix(start.as_str())).unwrap_or_default().to_owned()
    };
    let names = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    let mut names: Vec<_> = names.collect();
    names.sort_by_key(|name| (name.starts_with("process_"), *name));
    let rows = names.into_iter().map(|name| {
        let labels = labels_of(&text, name).into_iter().map(|(label, values)| match values.len() {
            _ if name == "lumilink_build_info" => code(&label),
            0..=LISTED_VALUES => format!("{}: {}", code(&label), values.join(", ")),
            _ => code(&label),
        });
        vec![code(name), of("TYPE", name), labels.collect::<Vec<_>>().join("; "), of("HELP", name)]
    });
    table(&mut out, &["metric", "type", "labels", "meaning"], rows);
    out
}

/// The labels of a metric with their values, in the order of the series.
fn labels_of(text: &str, name: &str) -> Vec<(String, Vec<String>)> {
    let mut labels: Vec<(String, Vec<String>)> = Vec::new();
    let series = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let rest = rest.strip_prefix("_bucket").unwrap_or(rest);
        rest.strip_prefix('{')?.rsplit_once('}').map(|(labels, _)| labels)
    });
    for pair in series.flat_map(|series| series.split(',')) {
        let Some((label, value)) = pair.split_once('=').filter(|(label, _)| *label != "le") else { continue };
        let value = value.trim_matches('"').to_owned();
        match labels.iter_mut().find(|(known, _)| known == label) {
            Some((_, values)) if values.contains(&value) => {}
            Some((_, values)) => values.push(value),
            None => labels.push((label.to_owned(), vec![value])),
        }
    }
    labels
}

fn roles() -> String {
    let what = "Every operation of the API with the roles that may call it. What roles and scopes are: \
                [access](access.md).";
    let mut out = page("Roles", what, "the routes and `src/domain/access/privilege.rs`");
    out.push_str(
        "\nThe last column is the least scope of the token: a part of a tenant, a tenant, or the service.\n",
    );
    let document = serde_json::to_value(document()).unwrap();
    let paths = document["paths"].as_object().unwrap().iter();
    let rows = paths.flat_map(|(path, item)| {
        item.as_object().unwrap().iter().filter_map(move |(method, operation)| {
            let privilege = Privilege::from_name(operation["x-privilege"].as_str()?).unwrap();
            let mark = |role: &Role| if privilege.roles().contains(role) { "yes" } else { "" }.to_owned();
            let scope = match privilege.reach() {
                Reach::Part => "part",
                Reach::Tenant => "tenant",
                Reach::Service => "service",
            };
            let operation = code(&format!("{} {path}", method.to_uppercase()));
            let roles = Role::ALL.iter().map(mark);
            Some([operation, code(privilege.as_str())].into_iter().chain(roles).chain([scope.to_owned()]).collect())
        })
    });
    let columns = Role::ALL.map(Role::as_str);
    let columns: Vec<_> = ["operation", "privilege"].into_iter().chain(columns).chain(["scope"]).collect();
    table(&mut out, &columns, rows);
    out
}

fn errors() -> String {
    let what = "Every error code of the API: member `code` of a problem document, and `meta.errorCode` of a failed \
                turn.";
    let mut out = page("Error codes", what, "the table of codes in `src/domain/turn/outcome.rs`");
    out.push_str(
        "\nThe class determines the recovery:\n\n\
         - `connection`: a new connection or agent, which LumiLink makes by itself.\n\
         - `protocol`: another agent, or the fallback.\n- `application`: another request of the caller.\n\
         - `system`: the operator.\n\nA retryable request can succeed later without a change.\n",
    );
    let rows = ErrorCode::ALL.iter().map(|it| {
        let retryable = if it.retryable() { "yes" } else { "no" };
        let class = it.class().as_str().to_owned();
        let status = status_of(*it).to_string();
        vec![code(it.as_str()), class, status, retryable.to_owned(), it.meaning().trim().to_owned()]
    });
    table(&mut out, &["code", "class", "HTTP status", "retryable", "meaning"], rows);
    out.push_str(
        "\n## What to do\n\nEach `detail` ends with the advice for API callers. The command line prints its own.\n",
    );
    let rows = ErrorCode::ALL.iter().map(|it| {
        let cli = if it.cli_advice() == it.advice() { "the same" } else { it.cli_advice() };
        vec![code(it.as_str()), it.advice().to_owned(), cli.to_owned()]
    });
    table(&mut out, &["code", "API", "command line"], rows);
    out
}

fn command_line() -> String {
    let what = "Every command of `lumilink` with its arguments.";
    let mut out = page("Command line reference", what, "the definitions of the commands");
    out.push_str(
        "\nExit codes: 0 done, 1 failed, 2 wrong usage, 78 invalid configuration, 130 ended by a second \
         signal. `--help` prints the same for one command.\n",
    );
    let common = CommonFlags::augment_args(Command::new("common"));
    let server = ServerFlags::augment_args(Command::new("server"));
    let attribution = Attribution::augment_args(Command::new("attribution"));
    out.push_str("\n## Flags of `serve`, `demo`, `runtime`, `migrate` and `config`\n");
    arguments(&mut out, &common, &[]);
    out.push_str("\n## Flags of commands that call a running server\n");
    arguments(&mut out, &server, &[]);
    out.push_str("\n## Flags of commands that change routes and migrations\n");
    arguments(&mut out, &attribution, &[]);
    let shared = [&common, &server, &attribution];
    for command in Cli::command().get_subcommands() {
        describe(&mut out, "lumilink", command, &shared);
    }
    out
}

fn describe(out: &mut String, above: &str, command: &Command, shared: &[&Command]) {
    if command.is_hide_set() {
        return;
    }
    let name = format!("{above} {}", command.get_name());
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    let about = about.trim_end_matches('.');
    let level = if above.contains(' ') { "###" } else { "##" };
    let mut usage = name.clone();
    for argument in command.get_positionals() {
        let id = argument.get_id().as_str().to_uppercase();
        usage += &if argument.is_required_set() { format!(" <{id}>") } else { format!(" [{id}]") };
    }
    if command.has_subcommands() {
        usage.push_str(" <COMMAND>");
    }
    let _ = write!(out, "\n{level} {name}\n\n`{usage}`: {about}.\n");
    arguments(out, command, shared);
    for command in command.get_subcommands() {
        describe(out, &name, command, shared);
    }
}

/// The arguments of a command but for those that `shared` describes.
fn arguments(out: &mut String, command: &Command, shared: &[&Command]) {
    let is_shared = |argument: &&clap::Arg| {
        !shared.iter().any(|shared| {
            shared.get_arguments().any(|it| it.get_long() == argument.get_long() && it.get_long().is_some())
        })
    };
    let rows: Vec<_> = command
        .get_arguments()
        .filter(|it| !it.is_hide_set() && it.get_id() != "help" && it.get_id() != "version")
        .filter(is_shared)
        .map(|argument| {
            let value =
                argument.get_value_names().and_then(<[_]>::first).filter(|_| argument.get_action().takes_values());
            let shown = match (argument.get_long(), value) {
                (Some(long), Some(value)) => format!("--{long} <{value}>"),
                (Some(long), None) => format!("--{long}"),
                (None, _) => format!("<{}>", argument.get_id().as_str().to_uppercase()),
            };
            let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
            let default = argument.get_default_values().first().and_then(|value| value.to_str());
            let is_flag = !argument.get_action().takes_values();
            let default = default.filter(|_| !is_flag).map_or_else(String::new, |it| format!(" Default: {it}."));
            let required =
                if argument.get_long().is_some() && argument.is_required_set() { " Required." } else { "" };
            vec![code(&shown), format!("{}.{default}{required}", help.trim_end_matches('.'))]
        })
        .collect();
    if !rows.is_empty() {
        table(out, &["argument", "meaning"], rows);
    }
}
