//! `lumilink session …` against a running server.

use std::process::{Command, Output};

use crate::harness::{Program, Value, json, lumilink, program::Folder};

fn run(program: &Program, arguments: &[&str]) -> Output {
    Command::new(lumilink())
        .arg("session")
        .args(arguments)
        .env("LUMILINK_URL", program.api.base())
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
fn a_session_is_opened_prompted_and_read_from_the_command_line() {
    let program = Program::start();
    let id = open(&program);
    let said = stdout(&run(&program, &["prompt", &id, "write a.txt x ; echo from the command line"]));
    assert!(said.contains("from the command line") && said.contains("completed"), "{said}");
    let transcript = stdout(&run(&program, &["transcript", &id]));
    assert!(transcript.contains("from the command line"), "{transcript}");
    let nothing = stdout(&run(&program, &["cancel", &id]));
    assert!(!nothing.is_empty());
}

#[test]
fn json_output_is_one_object_a_line_and_ends_with_the_result() {
    let program = Program::start();
    let id = open(&program);
    let said = stdout(&run(&program, &["prompt", &id, "echo one", "--json"]));
    let lines: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    let last = lines.last().expect("a line").to_string();
    assert!(last.contains("\"stopReason\":\"completed\""), "{last}");
}

#[test]
fn a_failed_turn_and_an_unknown_session_exit_non_zero_and_say_why() {
    let program = Program::start();
    let id = open(&program);
    let failed = run(&program, &["prompt", &id, "error -32603 boom"]);
    assert!(!failed.status.success());
    let said = format!("{}{}", String::from_utf8_lossy(&failed.stdout), String::from_utf8_lossy(&failed.stderr));
    assert!(said.contains("boom"), "{said}");
    let unknown = uuid::Uuid::now_v7().to_string();
    let unknown = run(&program, &["prompt", &unknown, "echo a"]);
    assert!(!unknown.status.success());
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("not_found"));
}

#[test]
fn a_server_that_is_not_there_is_said_to_be_not_there() {
    let folder = Folder::new();
    let url = format!("http://127.0.0.1:{}", crate::harness::free_port());
    let output = Command::new(lumilink())
        .args(["session", "new", "--workspace", "w", "--installation", "t"])
        .env("LUMILINK_URL", &url)
        .current_dir(folder.path())
        .output()
        .expect("the program runs");
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("127.0.0.1"), "it names the address");
}

#[test]
fn cancel_reaches_a_turn_of_another_client() {
    let program = Program::start();
    let session = program.api.open("ws");
    let (_, mut stream) = session.is_busy_with("echo started ; sleep 60");
    stdout(&run(&program, &["cancel", &session.id]));
    let events = stream.rest();
    assert_eq!(crate::harness::api::result_of(&program.api, &events)["stopReason"], json!("cancelled"));
}
