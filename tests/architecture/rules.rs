//! The invariants of the house that a program can check.

use std::collections::{BTreeMap, BTreeSet};

use regex::Regex;

use crate::source::{File, Tree, end_of_block};

const MAX_FILE_LINES: usize = 400;
const MAX_FUNCTION_LINES: usize = 70;

/// Everything that breaks a rule, as sentences that name the file.
pub fn violations(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    floors(tree, &mut found);
    crates(tree, &mut found);
    circles(tree, &mut found);
    purity(tree, &mut found);
    places(tree, &mut found);
    words(tree, &mut found);
    sizes(tree, &mut found);
    if Regex::new(r#"(?m)^\s*panic\s*=\s*"abort""#).unwrap().is_match(&tree.manifest) {
        found.push("Cargo.toml: panic = \"abort\" disables supervision: a panic has to unwind".into());
    }
    found
}

/// The floor of a folder (or file) of `src/`.
fn floor_of(unit: &str) -> Option<u8> {
    Some(match unit {
        "acp" => 0,
        "domain" => 1,
        "contract" | "config" | "telemetry" => 2,
        "transport" | "store" | "github" | "webhook" => 3,
        "actors" | "cluster" => 4,
        "http" | "runtime" | "demo_agent" | "bench" | "client" => 5,
        "app" => 6,
        "commands" => 7,
        "main" => 8,
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
            let Some(below) = floor_of(target) else { continue };
            let how = match below.cmp(&floor) {
                std::cmp::Ordering::Less => continue,
                std::cmp::Ordering::Equal => "sideways",
                std::cmp::Ordering::Greater => "up",
            };
            let place = format!("{}:{}", file.path, path.line);
            found.push(format!(
                "{place}: imports {how}: `{unit}` (floor {floor}) names `{}` (floor {below})",
                path.text()
            ));
        }
    }
}

/// Where an outside crate may be named.
enum Allowed {
    /// On this floor and above.
    From(u8),
    /// In these folders or files alone.
    Only(&'static [&'static str]),
}

fn allowed(outside: &str) -> Option<Allowed> {
    use Allowed::{From, Only};
    Some(match outside {
        "serde" | "serde_json" | "thiserror" => From(0),
        "agent_client_protocol_schema" => Only(&["acp/schema.rs"]),
        "uuid" | "time" | "regex" | "base64" | "url" | "sha2" | "unicode_segmentation" => From(1),
        "tracing" | "secrecy" | "subtle" | "bytes" | "bytestring" | "futures_util" | "utoipa" => From(2),
        "figment" | "toml" => Only(&["config/"]),
        "prometheus" => Only(&["telemetry/"]),
        "tracing_subscriber" => Only(&["telemetry/", "config/validate.rs"]),
        "diesel" | "diesel_migrations" | "r2d2" | "libsqlite3_sys" | "pq_sys" => Only(&["store/"]),
        "tokio" | "libc" | "memchr" | "reqwest" | "tokio_tungstenite" => From(3),
        "actix" => From(4),
        "hmac" => Only(&["webhook/"]),
        "cap_std" => Only(&["runtime/"]),
        "actix_http" => Only(&["runtime/acp_socket.rs"]),
        "actix_web_actors" => Only(&["http/toast_socket.rs", "runtime/acp_socket.rs"]),
        "actix_web" | "utoipa_actix_web" | "utoipa_swagger_ui" => From(5),
        "hyper" | "hyper_util" | "http_body_util" | "hdrhistogram" | "tempfile" => Only(&["bench/"]),
        "clap" => From(7),
        _ => return None,
    })
}

fn crates(tree: &Tree, found: &mut Vec<String>) {
    let outside = outside_crates(&tree.manifest);
    for file in &tree.files {
        let floor = floor_of(file.unit()).unwrap_or(8);
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

/// The module that a path leads into. A name that a `mod.rs` only passes on leads to where it is.
fn target_module(tree: &BTreeMap<Vec<String>, &File>, parts: &[String], depth: u8) -> Option<Vec<String>> {
    let length = (1..=parts.len()).rev().find(|length| tree.contains_key(&parts[..*length]))?;
    let (module, name) = (&parts[..length], parts.get(length));
    if let Some(name) = name.filter(|_| depth < 8) {
        let file = tree[module];
        let named = |path: &crate::source::NamedPath| path.reexport && path.parts.last() == Some(name);
        let index = file.paths.iter().find(|path| named(path));
        if let Some(path) = index {
            let mut whole = match path.parts[0].as_str() {
                "crate" | "super" | "self" => return Some(module.to_vec()),
                _ => module.to_vec(),
            };
            whole.extend(path.parts.iter().cloned());
            return target_module(tree, &whole, depth + 1);
        }
    }
    Some(module.to_vec())
}

/// A module and the `mod.rs` above it are one thing: the folder's face may use its parts, and they may use
/// what it defines. Between parts, and between folders, there is no circle.
fn circles(tree: &Tree, found: &mut Vec<String>) {
    let modules: BTreeMap<_, _> =
        tree.files.iter().filter(|it| !it.code.trim().is_empty()).map(|it| (it.module(), it)).collect();
    let mut edges: BTreeMap<Vec<String>, BTreeSet<Vec<String>>> = BTreeMap::new();
    for (module, file) in &modules {
        for path in file.inner_paths().filter(|path| !path.reexport) {
            if let Some(target) = target_module(&modules, &path.parts, 0).filter(|target| !module.starts_with(target))
            {
                edges.entry(module.clone()).or_default().insert(target);
            }
        }
    }
    let mut seen = BTreeSet::new();
    for start in edges.keys() {
        let mut way = Vec::new();
        if let Some(circle) = circle_from(start, &edges, &mut seen, &mut way) {
            let names: Vec<_> = circle.iter().map(|module| module.join("::")).collect();
            found.push(format!("{}: modules in a circle: {}", names[0], names.join(" -> ")));
        }
    }
}

fn circle_from(
    at: &Vec<String>,
    edges: &BTreeMap<Vec<String>, BTreeSet<Vec<String>>>,
    seen: &mut BTreeSet<Vec<String>>,
    way: &mut Vec<Vec<String>>,
) -> Option<Vec<Vec<String>>> {
    if let Some(from) = way.iter().position(|before| before == at) {
        return Some(way[from..].iter().chain([at]).cloned().collect());
    }
    if !seen.insert(at.clone()) {
        return None;
    }
    way.push(at.clone());
    let circle = edges.get(at).into_iter().flatten().find_map(|next| circle_from(next, edges, seen, way));
    way.pop();
    circle
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

/// Things that have one place.
fn places(tree: &Tree, found: &mut Vec<String>) {
    const READS: [&str; 8] = ["var", "var_os", "vars", "vars_os", "set_var", "remove_var", "temp_dir", "home_dir"];
    let statuses = Regex::new(
        "^(BAD_REQUEST|UNAUTHORIZED|FORBIDDEN|NOT_FOUND|METHOD_NOT_ALLOWED|CONFLICT|GONE|PAYLOAD_TOO_LARGE\
         |UNSUPPORTED_MEDIA_TYPE|UNPROCESSABLE_ENTITY|TOO_MANY_REQUESTS|INTERNAL_SERVER_ERROR|NOT_IMPLEMENTED\
         |BAD_GATEWAY|SERVICE_UNAVAILABLE|GATEWAY_TIMEOUT|BadRequest|Unauthorized|Forbidden|NotFound\
         |MethodNotAllowed|Conflict|Gone|PayloadTooLarge|UnsupportedMediaType|UnprocessableEntity|TooManyRequests\
         |InternalServerError|NotImplemented|BadGateway|ServiceUnavailable|GatewayTimeout)$",
    )
    .unwrap();
    let sql = Regex::new(
        r"\b(SELECT\s.*\sFROM|INSERT\s+INTO|UPDATE\s+\w+\s+SET|DELETE\s+FROM|(CREATE|ALTER|DROP)\s+(TABLE|INDEX))\b|\b(insert into|delete from|create table) ",
    )
    .unwrap();
    for file in &tree.files {
        let mut say = |line: usize, what: String| found.push(format!("{}:{line}: {what}", file.path));
        for path in &file.paths {
            let (text, last) = (path.text(), path.parts.last().map_or("", String::as_str));
            let owner = path.parts.len().checked_sub(2).map_or("", |at| path.parts[at].as_str());
            if file.unit() != "config" && (text == "std::env" || (owner == "env" && READS.contains(&last))) {
                say(path.line, format!("`{text}`: the environment is read only in config/"));
            }
            let chooses = matches!(owner, "StatusCode" | "HttpResponse") && statuses.is_match(last);
            if chooses && file.path != "contract/problem.rs" {
                say(path.line, format!("`{text}`: the status of an error is chosen only in contract/problem.rs"));
            }
        }
        for (line, literal) in &file.literals {
            if file.unit() != "store" && sql.is_match(literal) {
                say(*line, format!("SQL stands only in store/: {literal}"));
            }
        }
    }
}

/// Things that have no place at all.
fn words(tree: &Tree, found: &mut Vec<String>) {
    let production = [
        (r"\bdo_send\b", "do_send ignores the mailbox's capacity"),
        (
            r"\bunbounded_channel\b|\bmpsc::unbounded\b|\bUnboundedSender\b|\bmpsc::channel\(\)",
            "an unbounded channel",
        ),
        (r"\.unwrap\(\)|\.expect\(|\bpanic!", "production code answers with an error instead"),
    ];
    let anywhere =
        [(r"\btodo!|\bunimplemented!", "unfinished code"), (r"#\[\s*ignore\b", "a test that does not run")];
    for file in &tree.files {
        let rules =
            production.iter().map(|rule| (rule, &file.code)).chain(anywhere.iter().map(|rule| (rule, &file.all)));
        for ((pattern, why), code) in rules {
            for hit in Regex::new(pattern).unwrap().find_iter(code) {
                let line = code[..hit.start()].matches('\n').count() + 1;
                found.push(format!("{}:{line}: `{}`: {why}", file.path, hit.as_str()));
            }
        }
    }
}

fn sizes(tree: &Tree, found: &mut Vec<String>) {
    for file in &tree.files {
        if file.lines > MAX_FILE_LINES {
            found.push(format!("{}: {} lines without tests, at most {MAX_FILE_LINES}", file.path, file.lines));
        }
        for (line, name, length) in functions(&file.code) {
            if length > MAX_FUNCTION_LINES {
                let place = format!("{}:{line}", file.path);
                found.push(format!("{place}: fn {name} has {length} lines, at most {MAX_FUNCTION_LINES}"));
            }
        }
    }
}

/// Line, name and length of each function with a body.
fn functions(code: &str) -> Vec<(usize, String, usize)> {
    let heads = Regex::new(r"\bfn\s+(\w+)").unwrap();
    let mut all = Vec::new();
    for head in heads.captures_iter(code) {
        let start = head.get(0).unwrap().start();
        // The body opens at the first brace outside of parentheses; a semicolon there means there is none.
        let mut depth = 0i32;
        let open = code[start..].bytes().position(|byte| {
            match byte {
                b'(' | b'[' => depth += 1,
                b')' | b']' => depth -= 1,
                _ => {}
            }
            depth == 0 && matches!(byte, b'{' | b';')
        });
        let Some(open) = open.map(|at| start + at).filter(|at| code.as_bytes()[*at] == b'{') else { continue };
        let body = &code[start..end_of_block(code, open)];
        all.push((code[..start].matches('\n').count() + 1, head[1].to_owned(), body.matches('\n').count() + 1));
    }
    all
}
