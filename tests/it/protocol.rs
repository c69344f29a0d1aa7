//! Every ACP message to and from the built-in agent conforms to the official JSON schema.

use std::collections::BTreeSet;

use crate::harness::{
    Program,
    acp_schema::{AcpSchema, Recorder},
    json, lumilink,
    program::Folder,
};

fn recorded(folder: &Folder, flags: &[&str], idle_timeout_s: u64) -> (Program, Recorder) {
    let recorder = Recorder::new(folder);
    let mut agent = vec![lumilink().to_owned(), "demo-agent".into()];
    agent.extend(flags.iter().map(|flag| (*flag).to_owned()));
    let command = json!(recorder.command(&agent));
    let program = Program::builder().folder(folder).set("agent.command", command).set("permission.policy", "ask");
    let program = program.agent_writes(recorder.folder());
    let program = program.set("session.idle_timeout_s", idle_timeout_s);
    (program.start(), recorder)
}

#[test]
fn every_message_to_an_agent_conforms_to_the_official_schema() {
    let folder = Folder::new();
    let (program, recorder) = recorded(&folder, &[], 1800);
    let session = program.api.open("ws");
    session.completes("echo a ; think ; plan");
    session.completes("write a.txt content ; read a.txt");
    session.prompt("read no-such-file.txt");
    session.prompt("read ../../outside");
    session.completes("run echo from a terminal");
    session.completes("unknown-request ; unknown-update");
    let blocks = json!([
        {"type": "resource_link", "uri": "file:///a.txt", "name": "a.txt"}, {"type": "text", "text": "echo b"}
    ]);
    session.call(blocks).send().expect(200);
    for cancelled in [true, false] {
        let mut stream = session.streams("ask");
        let seen = stream.until("the request", |event| event.name == "permission_request");
        let request = &seen.last().unwrap().data["update"];
        let answer = if cancelled {
            json!({"requestId": request["requestId"], "cancelled": true})
        } else {
            json!({"requestId": request["requestId"], "optionId": request["options"][0]["optionId"]})
        };
        session.post("permission", answer).expect(200);
        stream.rest();
    }
    let (_, mut stream) = session.is_busy_with("echo started ; sleep 60");
    assert!(session.cancel());
    stream.rest();
    let mode = &session.opened["modes"]["availableModes"][0]["id"];
    if mode.is_string() {
        session.post("mode", json!({"modeId": mode})).expect(200);
    }
    let option = &session.opened["configOptions"][0];
    if option.is_object() {
        let body = json!({"configId": option["id"], "value": option["currentValue"]});
        session.post("config", body).expect(200);
    }
    session.post("close", json!({})).expect(200);
    drop(program);
    let schema = AcpSchema::load();
    let sent: BTreeSet<_> = recorder.check(&schema).into_iter().collect();
    for method in ["initialize", "session/new", "session/prompt", "session/cancel"] {
        assert!(sent.contains(method), "{method} was not sent: {sent:?}");
    }
    let asked: BTreeSet<_> =
        recorder.answered().iter().filter_map(|line| Some(line["method"].as_str()?.to_owned())).collect();
    for method in ["fs/read_text_file", "fs/write_text_file", "terminal/create", "session/request_permission"] {
        assert!(asked.contains(method), "the agent did not request {method}: {asked:?}");
    }
}

#[test]
fn demo_agent_messages_conform_to_the_official_schema() {
    let folder = Folder::new();
    let (program, recorder) = recorded(&folder, &[], 1800);
    let session = program.api.open("ws");
    session.completes("echo a ; think ; plan ; write a.txt x ; read a.txt ; usage 1 2");
    session.completes("run echo b");
    session.completes("max-tokens");
    session.post("close", json!({})).expect(200);
    drop(program);
    recorder.check_agent(&AcpSchema::load());
}

#[test]
fn context_for_a_fresh_agent_conforms_to_the_official_schema() {
    for flags in [["--no-load", "--no-resume"].as_slice(), &[], &["--no-resume"]] {
        let folder = Folder::new();
        let (program, recorder) = recorded(&folder, flags, 1);
        let session = program.api.open("ws");
        session.completes("echo something to remember");
        session.becomes("hibernated");
        session.completes("echo next");
        session.post("close", json!({})).expect(200);
        drop(program);
        recorder.check(&AcpSchema::load());
    }
}

#[test]
fn caller_blocks_reach_the_agent_unchanged_and_last() {
    let folder = Folder::new();
    let (program, recorder) = recorded(&folder, &["--no-load", "--no-resume"], 1);
    let session = program.api.open("ws");
    session.completes("echo before");
    session.becomes("hibernated");
    let block = json!({"type": "text", "text": "echo mine", "_meta": {"k": [1, 2.5]}});
    session.call(json!([block])).send().expect(200);
    drop(program);
    let prompts: Vec<_> = recorder.sent().into_iter().filter(|line| line["method"] == "session/prompt").collect();
    let last = prompts.last().expect("a prompt")["params"]["prompt"].as_array().expect("blocks").clone();
    assert_eq!(last.last(), Some(&block), "{last:?}");
    assert_eq!(last.len(), 2, "one block of context precedes it: {last:?}");
}
