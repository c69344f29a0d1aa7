//! The rules that the source must follow, apart from those about words.

use std::{collections::BTreeSet, sync::LazyLock};

use regex::Regex;

use crate::{
    imports::Imports,
    lexer::{Token, tokens},
    source::{File, Tree, Visibility},
};

const MAX_FUNCTION_LINES: usize = 70;

/// Module of the library that the binary, the tests and the benchmarks may name.
const PUBLIC_MODULE: &str = "commands";

/// Everything that breaks a rule, as sentences that start with the file.
pub(crate) fn violations(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    floors(tree, &mut found);
    public_face(tree, &mut found);
    crates(tree, &mut found);
    cycles(tree, &mut found);
    purity(tree, &mut found);
    places(tree, &mut found);
    forbidden_code(tree, &mut found);
    long_functions(tree, &mut found);
    path_attributes(tree, &mut found);
    if Regex::new(r#"(?m)^\s*panic\s*=\s*"abort""#).unwrap().is_match(&tree.manifest) {
        found.push("Cargo.toml: panic = \"abort\" disables supervision: a panic has to unwind".into());
    }
    found
}

/// The floor of a folder (or file) of `src/`. An import goes down, never up, never sideways.
fn floor_of(unit: &str) -> Option<u8> {
    Some(match unit {
        "acp" => 0,
        "domain" => 1,
        "contract" | "config" | "telemetry" => 2,
        "transport" | "store" | "github" | "webhook" => 3,
        "process" | "cluster" => 4,
        "actors" => 5,
        "http" | "runtime" | "demo_agent" | "client" => 6,
        "app" => 7,
        "commands" => 8,
        "main" => 9,
        _ => return None,
    })
}

fn floors(tree: &Tree, found: &mut Vec<String>) {
    for file in tree.files.iter().filter(|file| file.path != "lib.rs") {
        let unit = file.unit();
        let Some(floor) = floor_of(unit) else {
            found.push(format!("{}: `{unit}` has no floor; give it one in tests/architecture/rules.rs", file.path));
            continue;
        };
        for path in file.inner_paths() {
            let Some(target) = path.parts.first().filter(|target| *target != unit) else { continue };
            let Some(other) = floor_of(target) else { continue };
            let direction = match other.cmp(&floor) {
                std::cmp::Ordering::Less => continue,
                std::cmp::Ordering::Equal => "sideways",
                std::cmp::Ordering::Greater => "up",
            };
            let place = format!("{}:{}", file.path, path.line);
            found.push(format!(
                "{place}: imports {direction}: `{unit}` (floor {floor}) names `{}` (floor {other})",
                path.text()
            ));
        }
    }
}

/// The library shows `commands` to the binary and nothing else.
fn public_face(tree: &Tree, found: &mut Vec<String>) {
    for file in &tree.files {
        if file.path == "lib.rs" {
            let public = file.items.iter().filter(|item| item.visibility == Visibility::Public && item.kind == "mod");
            for item in public.filter(|item| item.name != PUBLIC_MODULE) {
                let (line, name) = (item.line, &item.name);
                found.push(format!("lib.rs:{line}: `pub mod {name}`: only `{PUBLIC_MODULE}` is public"));
            }
        }
    }
    for file in tree.files.iter().filter(|file| file.path == "main.rs") {
        for path in file.inner_paths().filter(|path| path.parts.first().is_some_and(|first| first != PUBLIC_MODULE)) {
            let (line, path) = (path.line, path.text());
            found.push(format!("main.rs:{line}: `lumilink::{path}`: main.rs names `lumilink::commands` only"));
        }
    }
    for file in &tree.tests {
        let words = tokens(&file.all);
        for window in words.windows(3) {
            if let [(at, Token::Word("lumilink")), (_, Token::Separator), (_, Token::Word(module))] = window
                && *module != PUBLIC_MODULE
            {
                let (path, line) = (&file.path, file.line_of(*at));
                found.push(format!("{path}:{line}: `lumilink::{module}` is private to the library"));
            }
        }
    }
}

/// Where an outside crate may be named.
enum Allowed {
    /// On this floor and above.
    From(u8),
    /// Only in these folders or files.
    Only(&'static [&'static str]),
}

fn allowed(outside: &str) -> Option<Allowed> {
    use Allowed::{From, Only};
    Some(match outside {
        "serde" | "serde_json" | "thiserror" | "strum" => From(0),
        "agent_client_protocol_schema" => Only(&["acp/schema.rs"]),
        "uuid"
        | "time"
        | "regex"
        | "aho_corasick"
        | "base64"
        | "url"
        | "sha2"
        | "unicode_segmentation"
        | "icu_normalizer" => From(1),
        // Not in `acp` and `domain`: pure code holds no locks.
        "parking_lot" => From(2),
        "tracing" | "secrecy" | "subtle" | "bytes" | "bytestring" | "futures_util" | "utoipa" => From(2),
        "figment" | "toml" => Only(&["config/"]),
        "prometheus" => Only(&["telemetry/"]),
        "tracing_subscriber" => Only(&["telemetry/", "config/sections/"]),
        "diesel" | "diesel_migrations" | "r2d2" | "libsqlite3_sys" | "pq_sys" => Only(&["store/"]),
        "tokio" | "libc" | "memchr" | "reqwest" | "tokio_tungstenite" => From(3),
        "hmac" => Only(&["webhook/"]),
        "aws_lc_rs" => Only(&["domain/automation/ssh_key.rs"]),
        "jsonwebtoken" => Only(&["github/"]),
        "actix" => From(5),
        "actix_web" | "utoipa_actix_web" | "utoipa_swagger_ui" | "flate2" => From(6),
        "cap_std" => Only(&["runtime/"]),
        "landlock" => Only(&["process/sandbox/"]),
        "rustix" => Only(&["process/"]),
        "actix_http" => Only(&["runtime/socket/mod.rs"]),
        "actix_web_actors" => Only(&["http/notifications/socket.rs", "runtime/socket/mod.rs"]),
        "clap" => From(8),
        "mimalloc" => Only(&["main.rs"]),
        _ => return None,
    })
}

fn crates(tree: &Tree, found: &mut Vec<String>) {
    let outside = outside_crates(&tree.manifest);
    for file in &tree.files {
        let floor = floor_of(file.unit()).unwrap_or(9);
        for path in &file.paths {
            let name = path.parts[0].as_str();
            if !outside.contains(name) {
                continue;
            }
            let place = format!("{}:{}", file.path, path.line);
            match allowed(name) {
                None => found.push(format!("{place}: crate `{name}` has no place in tests/architecture/rules.rs")),
                Some(Allowed::From(least)) if floor < least => {
                    found.push(format!("{place}: crate `{name}` may be used from floor {least} on, here is {floor}"));
                }
                Some(Allowed::Only(places)) if !places.iter().any(|it| file.path.starts_with(it)) => {
                    found.push(format!("{place}: crate `{name}` may be used only in {}", places.join(", ")));
                }
                Some(_) => {}
            }
        }
    }
}

fn outside_crates(manifest: &str) -> BTreeSet<String> {
    let manifest: toml::Table = toml::from_str(manifest).unwrap();
    let dependencies = manifest.get("dependencies").and_then(toml::Value::as_table);
    dependencies.into_iter().flatten().map(|(name, _)| name.replace('-', "_")).collect()
}

/// No cycle between files, and none between the rooms of a folder.
fn cycles(tree: &Tree, found: &mut Vec<String>) {
    let imports = Imports::of(tree);
    for cycle in imports.file_cycles() {
        found.push(format!("{}: imports form a cycle: {}", cycle[0], cycle.join(" -> ")));
    }
    for folder in imports.folders() {
        let rooms = imports.rooms(&folder);
        for cycle in rooms.cycles() {
            let example = |pair: &[String]| {
                let (from, to) = rooms.examples[&(pair[0].clone(), pair[1].clone())];
                format!("{} names {}", imports.files[from].path, imports.files[to].path)
            };
            let examples: Vec<_> = cycle.windows(2).map(example).collect();
            let (folder, cycle, examples) = (folder.join("/"), cycle.join(" -> "), examples.join(", "));
            found.push(format!("{folder}: folders import each other: {cycle} ({examples})"));
        }
    }
}

fn purity(tree: &Tree, found: &mut Vec<String>) {
    for file in tree.files.iter().filter(|file| matches!(file.unit(), "domain" | "acp")) {
        for path in &file.paths {
            let text = path.text();
            let impure = ["std::env", "std::fs", "std::net", "std::process", "std::thread", "std::io"]
                .iter()
                .any(|it| text == *it || text.starts_with(&format!("{it}::")))
                || path
                    .parts
                    .iter()
                    .any(|part| matches!(part.as_str(), "Instant" | "SystemTime" | "now_utc" | "now_v7" | "new_v4"));
            if impure {
                found.push(format!("{}:{}: `{text}`: {} is pure", file.path, path.line, file.unit()));
            }
        }
    }
}

static STATUSES: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(
        "^(BAD_REQUEST|UNAUTHORIZED|FORBIDDEN|NOT_FOUND|METHOD_NOT_ALLOWED|CONFLICT|GONE|PAYLOAD_TOO_LARGE\
         |UNSUPPORTED_MEDIA_TYPE|UNPROCESSABLE_ENTITY|TOO_MANY_REQUESTS|INTERNAL_SERVER_ERROR|NOT_IMPLEMENTED\
         |BAD_GATEWAY|SERVICE_UNAVAILABLE|GATEWAY_TIMEOUT|BadRequest|Unauthorized|Forbidden|NotFound\
         |MethodNotAllowed|Conflict|Gone|PayloadTooLarge|UnsupportedMediaType|UnprocessableEntity|TooManyRequests\
         |InternalServerError|NotImplemented|BadGateway|ServiceUnavailable|GatewayTimeout)$",
    )
    .unwrap()
});

static SQL: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(
        r"\b(SELECT\s(?s:.*)\sFROM|INSERT\s+INTO|UPDATE\s+\w+\s+SET|DELETE\s+FROM|(CREATE|ALTER|DROP)\s+(TABLE|INDEX))\b|\b(insert into|delete from|create table) ",
    )
    .unwrap()
});

/// Whether a literal is a statement for the database.
pub(crate) fn is_sql(literal: &str) -> bool {
    const VERBS: [&str; 9] = ["SELECT", "INSERT", "UPDATE", "DELETE", "CREATE", "ALTER", "DROP", "insert", "delete"];
    (VERBS.iter().any(|verb| literal.contains(verb)) || literal.contains("create table")) && SQL.is_match(literal)
}

/// Lookups by id in `http/`, which take the caller: otherwise a handler would reach rows of another tenant.
static LOOKUPS: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"store\)?\s*\.(session|prompt|token|migration_run)\(|workspaces\s*\.live\(").unwrap()
});

/// The handler of a route, with its parameters.
static HANDLERS: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"#\[(?:get|post|put|delete)\([^\]]*\)\]\s*pub\(crate\) async fn (\w+)\(([^{]*?)\)\s*->").unwrap()
});

/// Handlers that need no token: of probes, and of the deliveries of GitHub, which are signed.
const OPEN_HANDLERS: [&str; 3] = ["livez", "readyz", "receive_delivery"];

/// Things that have one place: reads of the environment, statuses of errors, SQL, lookups of a caller.
fn places(tree: &Tree, found: &mut Vec<String>) {
    const READS: [&str; 8] = ["var", "var_os", "vars", "vars_os", "set_var", "remove_var", "temp_dir", "home_dir"];
    for file in &tree.files {
        let mut report = |line: usize, what: String| found.push(format!("{}:{line}: {what}", file.path));
        for path in &file.paths {
            let (text, last) = (path.text(), path.parts.last().map_or("", String::as_str));
            let owner = path.parts.len().checked_sub(2).map_or("", |at| path.parts[at].as_str());
            if file.unit() != "config" && (text == "std::env" || (owner == "env" && READS.contains(&last))) {
                report(path.line, format!("`{text}`: the environment is read only in config/"));
            }
            let chooses = matches!(owner, "StatusCode" | "HttpResponse") && STATUSES.is_match(last);
            if chooses && file.path != "contract/problem.rs" {
                report(path.line, format!("`{text}`: the status of an error is chosen only in contract/problem.rs"));
            }
        }
        if file.unit() == "http" {
            for handler in HANDLERS.captures_iter(&file.code) {
                let (name, line) = (&handler[1], file.line_of(handler.get(0).map_or(0, |it| it.start())));
                if !handler[2].contains("Caller") && !OPEN_HANDLERS.contains(&name) {
                    report(line, format!("`{name}`: a handler takes the `Caller`, which only a checked request has"));
                }
            }
        }
        if file.unit() == "http" && file.path != "http/rows.rs" {
            for hit in LOOKUPS.find_iter(&file.code) {
                report(file.line_of(hit.start()), format!("`{}`: rows are looked up in http/rows.rs", hit.as_str()));
            }
        }
        for literal in file.literals.iter().filter(|literal| !literal.in_test) {
            if file.unit() != "store" && is_sql(&literal.text) {
                report(literal.line, format!("SQL belongs in store/: {}", literal.text));
            }
        }
    }
}

/// Calls and attributes that have no place at all.
fn forbidden_code(tree: &Tree, found: &mut Vec<String>) {
    static PRODUCTION: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
        [
            (r"\bdo_send\b", "do_send ignores the mailbox's capacity"),
            (
                r"\bunbounded_channel\b|\bmpsc::unbounded\b|\bUnboundedSender\b|\bmpsc::channel\(\)",
                "an unbounded channel",
            ),
            (r"\.unwrap\(\)|\.expect\(|\bpanic!", "production code answers with an error instead"),
        ]
        .map(|(pattern, why)| (Regex::new(pattern).unwrap(), why))
        .into()
    });
    static ANYWHERE: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
        [(r"\btodo!|\bunimplemented!", "unfinished code"), (r"#\[\s*ignore\b", "a test that does not run")]
            .map(|(pattern, why)| (Regex::new(pattern).unwrap(), why))
            .into()
    });
    for file in &tree.files {
        let production = PRODUCTION.iter().map(|rule| (rule, &file.code));
        for ((pattern, why), code) in production.chain(ANYWHERE.iter().map(|rule| (rule, &file.all))) {
            for hit in pattern.find_iter(code) {
                found.push(format!("{}:{}: `{}`: {why}", file.path, file.line_of(hit.start()), hit.as_str()));
            }
        }
    }
}

fn long_functions(tree: &Tree, found: &mut Vec<String>) {
    for file in &tree.files {
        for item in file.items.iter().filter(|item| item.kind == "fn" && item.length > MAX_FUNCTION_LINES) {
            let (path, line, name, length) = (&file.path, item.line, &item.name, item.length);
            found.push(format!("{path}:{line}: fn {name} has {length} lines, at most {MAX_FUNCTION_LINES}"));
        }
    }
}

/// A module is where its name says: `#[path]` hides it.
/// Files that no module declares, so that the compiler never reads them: code and tests that only look as if they run.
pub(crate) fn undeclared_files(tree: &Tree) -> Vec<String> {
    let files: Vec<_> = tree.files.iter().chain(&tree.tests).collect();
    let declares = |parent: &str, module: &str| {
        let declaration = Regex::new(&format!(r"\bmod\s+{module}\s*;")).unwrap();
        files.iter().any(|file| file.path == parent && declaration.is_match(&file.all))
    };
    let is_declared = |path: &str| {
        let (folder, name) = path.rsplit_once('/').map_or(("", path), |(folder, name)| (folder, name));
        let name = name.trim_end_matches(".rs");
        // `a/mod.rs` is the module `a` of the folder above.
        let (folder, module) = match (name, folder.rsplit_once('/')) {
            ("mod", Some((above, module))) => (above, module),
            ("mod", None) => ("", folder),
            _ => (folder, name),
        };
        let at = |file: &str| if folder.is_empty() { file.to_owned() } else { format!("{folder}/{file}") };
        let parents = [at("mod.rs"), at("main.rs"), at("lib.rs"), format!("{folder}.rs")];
        // A root may declare the files of a folder in a block: `mod a { mod b; }`.
        let block = folder.rsplit_once('/').unwrap_or(("", folder));
        let opens_block = |file: &File| {
            let is_above = file.path.rsplit_once('/').map_or("", |(folder, _)| folder) == block.0;
            let opening = Regex::new(&format!(r"\bmod\s+{}\s*\{{", block.1)).unwrap();
            is_above && opening.is_match(&file.all) && declares(&file.path, module)
        };
        parents.iter().any(|parent| declares(parent, module)) || files.iter().any(|file| opens_block(file))
    };
    let is_root = |path: &str| {
        let name = path.rsplit('/').next().unwrap_or_default();
        ["lib.rs", "main.rs"].contains(&name) || tree.manifest.contains(&format!("\"{path}\""))
    };
    let paths = files.iter().map(|file| file.path.as_str());
    paths.filter(|path| !is_root(path) && !is_declared(path)).map(str::to_owned).collect()
}

fn path_attributes(tree: &Tree, found: &mut Vec<String>) {
    for file in tree.files.iter().chain(&tree.tests) {
        for (at, _) in file.all.match_indices("path") {
            let before = file.all[..at].trim_end();
            let in_attribute = before.ends_with('[') || (before.ends_with(',') && opens_cfg_attr(before));
            if in_attribute && file.all[at + "path".len()..].trim_start().starts_with('=') {
                let (path, line) = (&file.path, file.line_of(at));
                found.push(format!("{path}:{line}: `#[path]`: put the file where the module's name says"));
            }
        }
    }
}

fn opens_cfg_attr(before: &str) -> bool {
    before.rfind("#[").is_some_and(|open| before[open..].starts_with("#[cfg_attr("))
}
