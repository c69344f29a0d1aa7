//! Clients that are generated from the document compile and run a session, and a fuzzer finds no answer that the document
//! does not declare.
//!
//! The generators, the linter and the fuzzer are pinned in `tests/clients`; `tests/run` installs them.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    time::{SystemTime, UNIX_EPOCH},
};

use crate::harness::{Program, Value, agents::node, json, program::Folder, repository, tokens};

/// Time for the fuzzer, in seconds. It repeats its phases until the time is over.
const FUZZING_S: u32 = 45;

/// A tool that `tests/run` installs.
fn installed(path: &str) -> PathBuf {
    let path = repository("tests/clients").join(path);
    assert!(path.exists(), "{} is missing: run tests/run, which installs it", path.display());
    path
}

/// A program of the npm packages.
fn npm(script: &str) -> Command {
    let mut command = Command::new(node());
    command.arg(installed("node_modules").join(script));
    command
}

/// A program of the Python packages.
fn python(program: &str) -> Command {
    let bin = installed("venv/bin");
    let mut command = Command::new(bin.join(program));
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{}:{path}", bin.display())).env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

/// Runs a command to its end and returns its output, or fails the test with it.
fn succeeds(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|cause| panic!("{command:?} does not start: {cause}"));
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?} failed: {}\n{text}", output.status);
    text
}

/// The token that the program made.
fn token(program: &Program) -> String {
    tokens::of(program.address).expect("a token")
}

/// Writes the document of the program into the folder.
fn write_document(program: &Program, folder: &Path) -> PathBuf {
    let file = folder.join("openapi.json");
    fs::write(&file, program.api.contract().document().to_string()).expect("the document is written");
    file
}

fn copy(name: &str, folder: &Path) {
    fs::copy(installed(name), folder.join(name)).expect("the file is copied");
}

#[test]
fn document_has_no_error_for_redocly_lint() {
    let (program, folder) = (Program::start(), Folder::new());
    let document = write_document(&program, folder.path());
    let config = installed("redocly.yaml");
    succeeds(
        npm("@redocly/cli/bin/cli.js")
            .args(["lint", "--format", "stylish", "--config"])
            .args([&config, &document])
            .env("REDOCLY_TELEMETRY", "off")
            .env("REDOCLY_SUPPRESS_UPDATE_NOTICE", "true")
            .current_dir(folder.path()),
    );
}

#[test]
fn generated_typescript_client_compiles_and_runs_a_session() {
    let (program, folder) = (Program::start(), Folder::new());
    let folder = folder.path();
    let document = write_document(&program, folder);
    symlink(installed("node_modules"), folder.join("node_modules")).expect("the packages are linked");
    copy("tsconfig.json", folder);
    copy("session.ts", folder);
    fs::write(folder.join("package.json"), r#"{"type": "module"}"#).expect("package.json is written");
    succeeds(npm("openapi-typescript/bin/cli.js").arg(&document).arg("-o").arg(folder.join("schema.d.ts")));
    succeeds(npm("typescript/bin/tsc").arg("-p").arg(folder));
    let session = folder.join("session.ts");
    let text =
        succeeds(Command::new(node()).arg("--no-warnings").arg(session).args([program.api.base(), token(&program)]));
    assert!(text.contains("session closed"), "{text}");
}

#[test]
fn generated_python_client_type_checks_and_runs_a_session() {
    let (program, folder) = (Program::start(), Folder::new());
    let folder = folder.path();
    let document = write_document(&program, folder);
    copy("session.py", folder);
    // A warning is an operation that the client lacks.
    succeeds(
        python("openapi-python-client")
            .args(["generate", "--meta", "none", "--fail-on-warning", "--config"])
            .arg(installed("generator.yaml"))
            .arg("--path")
            .arg(&document)
            .arg("--output-path")
            .arg(folder.join("lumilink_client"))
            .current_dir(folder),
    );
    succeeds(python("mypy").args(["--cache-dir", "mypy-cache", "session.py"]).current_dir(folder));
    let text =
        succeeds(python("python").arg("session.py").args([program.api.base(), token(&program)]).current_dir(folder));
    assert!(text.contains("session closed"), "{text}");
}

/// Describes single events in place of streams, as the fuzzer wants it before OpenAPI 3.2, from `x-event-data`.
fn with_single_events(document: &mut Value) {
    for name in ["SessionStream", "TurnStream"] {
        let stream = &mut document["components"]["schemas"][name];
        let events = stream["x-event-data"].as_object().expect("the schemas of the events");
        let event = |(name, schema): (&String, &Value)| {
            let data = json!({"type": "string", "contentMediaType": "application/json", "contentSchema": schema});
            json!({"properties": {"event": {"const": name}, "data": data}})
        };
        let events: Vec<_> = events.iter().map(event).collect();
        *stream = json!({"type": "object", "required": ["event", "data"], "oneOf": events});
    }
}

/// The document, with sessions and turns that exist as the only valid ids: a random id is never found, and the fuzzer
/// would not get further.
fn with_live_ids(program: &Program) -> Value {
    let mut document = program.api.contract().document().clone();
    with_single_events(&mut document);
    let sessions: Vec<_> = (0..6).map(|number| program.api.open(&format!("ws-{number}"))).collect();
    let prompts: Vec<_> =
        sessions.iter().map(|session| session.completes("echo a")["meta"]["promptId"].clone()).collect();
    let sessions: Vec<_> = sessions.iter().map(|session| json!(session.id)).collect();
    let live = [("SessionId", json!(sessions)), ("PromptId", json!(prompts))];
    let narrow = |value: &mut Value| {
        let name = value["$ref"].as_str().and_then(|it| it.strip_prefix("#/components/schemas/")).unwrap_or_default();
        if let Some((_, ids)) = live.iter().find(|(id, _)| *id == name) {
            *value = json!({"type": "string", "enum": ids});
        }
    };
    for (name, schema) in document["components"]["schemas"].as_object_mut().expect("schemas") {
        // Bodies of requests; answers also have ids that the fuzzer causes.
        if name.ends_with("Body") {
            let members = schema.get_mut("properties").and_then(Value::as_object_mut);
            members.into_iter().flatten().for_each(|(_, member)| narrow(member));
        }
    }
    for (path, item) in document["paths"].as_object_mut().expect("paths") {
        // The stream of a session that exists has no end.
        if path != "/acp/session/{id}/events" {
            let operations = item.as_object_mut().into_iter().flatten();
            let parameters = operations.filter_map(|(_, it)| it.get_mut("parameters")?.as_array_mut()).flatten();
            parameters.for_each(|parameter| narrow(&mut parameter["schema"]));
        }
    }
    document
}

/// `tests/clients/schemathesis.toml` states what the fuzzer does not demand, and why.
#[test]
fn fuzzer_finds_no_server_error_and_no_undeclared_answer() {
    let folder = Folder::new();
    let program = Program::builder()
        // The document has the largest page of any configuration.
        .set("limits.page_entries", 1000)
        .set("capacity.max_sessions", 2000)
        .set("runtime.max_agents", 2000)
        .set("session.idle_timeout_s", 60)
        .start();
    let seed = std::env::var("LUMILINK_FUZZ_SEED").unwrap_or_else(|_| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970");
        now.subsec_nanos().to_string()
    });
    println!("LUMILINK_FUZZ_SEED={seed} repeats this run");
    let document = folder.path().join("openapi.json");
    fs::write(&document, with_live_ids(&program).to_string()).expect("the document is written");
    let text = succeeds(
        python("schemathesis")
            .arg("--config-file")
            .arg(installed("schemathesis.toml"))
            .arg("run")
            .arg(&document)
            .args(["--header", &format!("Authorization: Bearer {}", token(&program))])
            .args(["--url", &program.api.base(), "--seed", &seed, "--max-time", &FUZZING_S.to_string()])
            .current_dir(folder.path()),
    );
    println!("{text}");
}
