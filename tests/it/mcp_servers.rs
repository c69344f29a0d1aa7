//! MCP servers of a session survive its agent with their secrets, and are never written to disk with them.

use std::{fs, path::Path};

use sha2::{Digest, Sha256};

use crate::harness::{Program, Session, Value, eventually, json, process::Folder, program::Builder};

const SECRET: &str = "open-sesame-for-tests";

fn servers() -> Value {
    json!([
        {"name": "tracker", "command": "true", "args": ["--stdio"], "env": [{"name": "KEY", "value": SECRET}]},
        {"name": "files", "command": "true", "args": ["--root", "/srv"], "env": []},
    ])
}

fn opened_with(program: &Program, servers: &Value) -> Session {
    program.api.open_with(json!({"workspaceId": "ws", "installationId": "tenant-1", "mcpServers": servers}))
}

/// The servers that the agent got, as it says.
fn servers_of_agent(session: &Session) -> Value {
    serde_json::from_str(&session.says("mcp")).expect("the agent says JSON")
}

fn diagnostic_code(result: &Value) -> Option<&str> {
    result["diagnostics"].as_array()?.iter().find_map(|it| it["context"]["code"].as_str())
}

/// Fails the test if a file below the folder contains the secret.
fn assert_not_in_files(folder: &Path) {
    assert_absent_in_files(folder, SECRET);
}

fn assert_absent_in_files(folder: &Path, secret: &str) {
    for entry in fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()) {
        if entry.is_dir() {
            assert_absent_in_files(&entry, secret);
            continue;
        }
        let bytes = fs::read(&entry).unwrap_or_default();
        let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
        assert!(!found, "{} has the secret", entry.display());
    }
}

#[test]
fn mcp_secrets_survive_hibernation_crash_and_fallback_and_are_not_on_disk() {
    let program = Program::builder().set("session.idle_timeout_s", 1).set("recovery.cooldown_s", 1800).start();
    let session = opened_with(&program, &servers());
    // Ahead of the first turn, whose text has the secret: the agent says it.
    session.becomes("hibernated");
    assert_not_in_files(&program.folder.path().join("data"));
    assert_eq!(servers_of_agent(&session), servers());
    session.prompt("crash").problem(502, "agent_crashed");
    assert_eq!(servers_of_agent(&session), servers());
    let why = json!({"actor": "test", "reason": "test"});
    program.api.post("/acp/workspaces/ws/rollback", why).expect(200);
    assert_eq!(servers_of_agent(&session), servers());
    session.becomes("hibernated");
    let result = session.completes("mcp");
    assert_eq!(diagnostic_code(&result), None, "{result}");
}

#[test]
fn removed_mcp_secrets_are_marked_where_a_session_is_shown() {
    let program = Program::start();
    let session = opened_with(&program, &servers());
    let loaded = session.post("load", json!({})).expect(200);
    for shown in [&session.opened, &session.state(), &loaded] {
        let removed = &shown["mcpServers"][0]["_meta"]["lumilink"]["secretsRemoved"];
        assert_eq!(removed, &json!(["env.KEY"]), "{shown}");
        assert_eq!(shown["mcpServers"][1], servers()[1]);
        assert!(shown.get("mcpSecretsLost").is_none() && !shown.to_string().contains(SECRET), "{shown}");
    }
    // What is shown is no list of servers to give.
    let refused =
        session.post("load", json!({"mcpServers": session.opened["mcpServers"]})).problem(400, "invalid_request");
    assert!(refused["detail"].as_str().unwrap().contains("mcpServers[0]"), "{refused}");
}

#[test]
fn lost_mcp_secrets_are_reported_in_the_turn_and_a_load_gives_them_again() {
    let mut program = Program::start();
    let session = opened_with(&program, &servers());
    session.completes("echo hello");
    program.kill_supervisor();
    program.start_supervisor_again();
    let result = session.completes("mcp");
    let left: Value = serde_json::from_str(result["meta"]["message"].as_str().unwrap()).unwrap();
    assert_eq!(left, json!([servers()[1]]), "a server without its secrets is left out");
    assert_eq!(diagnostic_code(&result), Some("mcp_secrets_lost"), "{result}");
    assert_eq!(session.state()["mcpSecretsLost"], json!(["tracker"]));
    let next = session.completes("echo again");
    assert_eq!(diagnostic_code(&next), None, "reported once for each agent: {next}");
    // The session is live, and idle.
    let loaded = session.post("load", json!({"mcpServers": servers()})).expect(200);
    assert!(loaded.get("mcpSecretsLost").is_none(), "{loaded}");
    assert!(session.state().get("mcpSecretsLost").is_none());
    let result = session.completes("mcp");
    assert_eq!(result["meta"]["message"].as_str().unwrap(), servers().to_string());
    assert_eq!(diagnostic_code(&result), None, "{result}");
}

#[test]
fn load_replaces_the_mcp_servers_of_a_session() {
    let program = Program::builder().set("session.idle_timeout_s", 1).start();
    let session = opened_with(&program, &servers());
    let others = |value: &str| {
        let env = json!([{"name": "KEY", "value": value}]);
        json!([{"name": "other", "command": "true", "args": [], "env": env}])
    };
    let pid = session.says("pid");
    session.post("load", json!({"mcpServers": servers()})).expect(200);
    assert_eq!(session.says("pid"), pid, "the same servers start no other agent");
    // While a turn runs, its agent stays; the next one has the others.
    let (turn, stream) = session.is_busy_with("ticks 20 50");
    session.post("load", json!({"mcpServers": others("first")})).expect(200);
    drop(stream);
    assert_eq!(session.ends(&turn)["state"], "completed");
    assert_eq!(servers_of_agent(&session), others("first"));
    session.becomes("hibernated");
    session.post("load", json!({"mcpServers": others("second")})).expect(200);
    assert_eq!(servers_of_agent(&session), others("second"));
    session.becomes("hibernated");
    assert_eq!(servers_of_agent(&session), others("second"), "they are the session's from now on");
    assert_eq!(session.state()["mcpServers"][0]["name"], "other");
    // A server that the agent cannot use changes nothing.
    let remote = json!([{"type": "http", "name": "r", "url": "https://mcp.example.com", "headers": []}]);
    session.post("load", json!({"mcpServers": remote})).problem(422, "not_supported_by_agent");
    assert_eq!(servers_of_agent(&session), others("second"));
}

/// The value of the named secret of these tests.
const NAMED: &str = "quiet-harbour-of-no-known-shape";
/// A real MCP server, as far as `initialize`: its answer has a hash of the variable KEY.
const SERVER: &str = r#"read -r call; printf '{"jsonrpc":"2.0","id":1,"result":{"key":"%s"}}\n' "$(printf %s "$KEY" | sha256sum | cut -c1-64)""#;

fn with_named_secret(builder: Builder) -> Builder {
    builder
        .runtime_env("LUMILINK_SECRETS__TRACKER__VALUE", NAMED)
        .runtime_env("LUMILINK_SECRETS__TRACKER__TENANTS", r#"["tenant-1"]"#)
        .runtime_env("LUMILINK_SECRETS__TRACKER__MCP_COMMAND", &json!(["/bin/sh", "-c", SERVER]).to_string())
}

fn named_server(name: &str, command: &str) -> Value {
    let env = json!([{"name": "KEY", "value": {"secret": name}}]);
    json!([{"name": "tracker", "command": command, "args": ["-c", SERVER], "env": env}])
}

/// The answer of the MCP server that got the secret.
fn answer_with_secret(secret: &str) -> Value {
    let hash: String = Sha256::digest(secret).iter().map(|byte| format!("{byte:02x}")).collect();
    json!({"jsonrpc": "2.0", "id": 1, "result": {"key": hash}})
}

fn is_in_a_command_line(text: &str) -> bool {
    let processes = fs::read_dir("/proc").expect("/proc").flatten();
    let lines = processes.filter_map(|process| fs::read(process.path().join("cmdline")).ok());
    lines.into_iter().any(|line| String::from_utf8_lossy(&line).contains(text))
}

#[test]
fn named_secret_reaches_its_mcp_server_and_nothing_else_and_survives_everything() {
    let settings = Program::builder().set("session.idle_timeout_s", 1).set("recovery.cooldown_s", 1800);
    let mut program = with_named_secret(settings.separate_runtime("runtime-token-0123456789")).start();
    let session = opened_with(&program, &named_server("tracker", "/bin/sh"));
    let starts = |session: &Session| {
        let result = session.completes("mcp-start");
        assert_eq!(diagnostic_code(&result), None, "{result}");
        let said = result["meta"]["message"].as_str().unwrap().parse::<Value>().unwrap();
        assert_eq!(said, answer_with_secret(NAMED));
    };
    starts(&session);
    assert!(
        session.says("mcp").contains("[redacted]"),
        "the agent has the value, and what it says of it is redacted"
    );
    assert!(!is_in_a_command_line(NAMED));
    session.becomes("hibernated");
    starts(&session);
    let why = json!({"actor": "test", "reason": "test"});
    program.api.post("/acp/workspaces/ws/rollback", why.clone()).expect(200);
    starts(&session);
    program.api.post("/acp/workspaces/ws/restore", why).expect(200);
    program.kill_supervisor();
    program.start_supervisor_again();
    starts(&session);
    assert_eq!(session.state()["mcpServers"], named_server("tracker", "/bin/sh"), "the row has the name");
    assert!(session.state().get("mcpSecretsLost").is_none());
    let seen = format!("{:?} {} {}", session.transcript(), program.log(), program.runtime().log());
    assert!(!seen.contains(NAMED), "{seen}");
    assert_absent_in_files(&program.folder.path().join("data"), NAMED);
    assert_absent_in_files(&session.path(), NAMED);
}

#[test]
fn named_secret_in_a_file_is_read_again_on_sighup() {
    let folder = Folder::new();
    let file = folder.path().join("secret");
    fs::write(&file, "first-value-of-a-secret").unwrap();
    let program = Program::builder()
        .folder(&folder)
        .env("LUMILINK_SECRETS__TRACKER__VALUE_FILE", &file.display().to_string())
        .env("LUMILINK_SECRETS__TRACKER__TENANTS", r#"["tenant-1"]"#)
        .env("LUMILINK_SECRETS__TRACKER__MCP_COMMAND", r#"["/bin/sh"]"#)
        .start();
    let session = opened_with(&program, &named_server("tracker", "/bin/sh"));
    assert_eq!(session.says("mcp-start").parse::<Value>().unwrap(), answer_with_secret("first-value-of-a-secret"));
    fs::write(&file, "second-value-of-a-secret").unwrap();
    program.signal(libc::SIGHUP);
    eventually("the secret is reloaded", || program.log().contains("secrets.tracker.value"));
    session.prompt("crash").problem(502, "agent_crashed");
    session.becomes("idle");
    assert_eq!(session.says("mcp-start").parse::<Value>().unwrap(), answer_with_secret("second-value-of-a-secret"));
    assert!(!session.says("mcp").contains("second-value"), "the new value is redacted");
}

#[test]
fn named_secret_is_refused_for_other_tenants_and_servers_as_an_unknown_one_is() {
    let program = with_named_secret(Program::builder()).start();
    let refused = |tenant: &str, servers: Value| {
        let body = json!({"workspaceId": "ws", "installationId": tenant, "mcpServers": servers});
        program.api.post("/acp/session/new", body).problem(422, "unknown_secret")["detail"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let unknown = refused("tenant-1", named_server("unknown", "/bin/sh"));
    for detail in [
        refused("tenant-2", named_server("tracker", "/bin/sh")),
        refused("tenant-1", named_server("tracker", "/bin/bash")),
    ] {
        assert_eq!(detail.replace("tracker", "unknown"), unknown);
    }
}

#[test]
fn credential_in_arguments_or_url_of_an_mcp_server_is_refused_with_advice() {
    let program = Program::start();
    for server in [
        json!({"name": "a", "command": "true", "args": ["--token", SECRET], "env": []}),
        json!({"type": "http", "name": "a", "url": format!("https://u:{SECRET}@mcp.example.com/"), "headers": []}),
        json!({"type": "http", "name": "a", "url": format!("https://mcp.example.com/?token={SECRET}"), "headers": []}),
    ] {
        let body = json!({"workspaceId": "ws", "installationId": "tenant-1", "mcpServers": [server]});
        let problem = program.api.post("/acp/session/new", body).problem(400, "invalid_request");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains("named secret") && !detail.contains(SECRET), "{detail}");
    }
}
