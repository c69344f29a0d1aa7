//! MCP servers of a session survive its agent with their secrets, and are never written to disk with them.

use std::{fs, path::Path};

use crate::harness::{Program, Session, Value, json};

const SECRET: &str = "open-sesame-for-tests";

fn servers() -> Value {
    json!([
        {"name": "tracker", "command": "true", "args": ["--token", SECRET], "env": [{"name": "KEY", "value": SECRET}]},
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
    for entry in fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()) {
        if entry.is_dir() {
            assert_not_in_files(&entry);
            continue;
        }
        let bytes = fs::read(&entry).unwrap_or_default();
        let found = bytes.windows(SECRET.len()).any(|window| window == SECRET.as_bytes());
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
        assert_eq!(removed, &json!(["env.KEY", "args[1]"]), "{shown}");
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
