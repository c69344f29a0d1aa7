//! The `lumilink session` commands against a running server.

use std::process::{Command, Output};

use crate::harness::{Program, Value, json, lumilink, program::Folder, tokens};

fn run(program: &Program, arguments: &[&str]) -> Output {
    Command::new(lumilink())
        .arg("session")
        .args(arguments)
        .envs(tokens::variables(&program.api.base()))
        .env("HOME", program.folder.path())
        .current_dir(program.folder.path())
        .output()
        .expect("the program runs")
}

fn stdout(output: &Output) -> String {
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{stdout}\n{}", String::from_utf8_lossy(&output.stderr));
    stdout
}

fn open(program: &Program) -> String {
    let output = run(program, &["new", "--workspace", "ws", "--installation", "tenant-1", "--json"]);
    let opened: Value = serde_json::from_str(&stdout(&output)).expect("JSON");
    opened["sessionId"].as_str().expect("a session id").to_owned()
}

#[test]
fn session_commands_open_prompt_and_read_a_session() {
    let program = Program::start();
    let id = open(&program);
    let printed = stdout(&run(&program, &["prompt", &id, "write a.txt x ; echo from the command line"]));
    assert!(printed.contains("from the command line") && printed.contains("completed"), "{printed}");
    let transcript = stdout(&run(&program, &["transcript", &id]));
    assert!(transcript.contains("from the command line"), "{transcript}");
    let cancelled = stdout(&run(&program, &["cancel", &id]));
    assert!(!cancelled.is_empty());
}

#[test]
fn json_output_is_one_object_per_line_and_ends_with_the_result() {
    let program = Program::start();
    let id = open(&program);
    let printed = stdout(&run(&program, &["prompt", &id, "echo one", "--json"]));
    let lines: Vec<Value> = printed.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    let last = lines.last().expect("a line").to_string();
    assert!(last.contains("\"stopReason\":\"completed\""), "{last}");
}

#[test]
fn failed_turn_and_unknown_session_exit_non_zero_with_the_reason() {
    let program = Program::start();
    let id = open(&program);
    let failed = run(&program, &["prompt", &id, "error -32603 boom"]);
    assert!(!failed.status.success());
    let printed = format!("{}{}", String::from_utf8_lossy(&failed.stdout), String::from_utf8_lossy(&failed.stderr));
    assert!(printed.contains("boom"), "{printed}");
    let unknown = uuid::Uuid::now_v7().to_string();
    let unknown = run(&program, &["prompt", &unknown, "echo a"]);
    assert!(!unknown.status.success());
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("not_found"));
}

#[test]
fn unreachable_server_is_reported_with_its_address() {
    let folder = Folder::new();
    let url = format!("http://127.0.0.1:{}", crate::harness::free_port());
    let output = Command::new(lumilink())
        .args(["session", "new", "--workspace", "w", "--installation", "t"])
        .env("LUMILINK_URL", &url)
        .current_dir(folder.path())
        .output()
        .expect("the program runs");
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("127.0.0.1"), "the error names the address");
}

#[test]
fn cancel_command_cancels_a_turn_of_another_client() {
    let program = Program::start();
    let session = program.api.open("ws");
    let (_, mut stream) = session.is_busy_with("echo started ; sleep 60");
    stdout(&run(&program, &["cancel", &session.id]));
    let events = stream.rest();
    assert_eq!(crate::harness::api::result_of(&program.api, &events)["stopReason"], json!("cancelled"));
}
