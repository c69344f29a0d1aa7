//! Third-party agents through the whole path, and a third-party client against the runtime.

use std::{
    fs,
    sync::{Arc, Mutex},
};

use crate::harness::{
    DEADLINE, Program, Session,
    acp_schema::{AcpSchema, Recorder},
    agents::{self, InteropAgent},
    api::result_of,
    block_on, demo_agent, json,
    program::Folder,
    sse::{Event, message_of},
    stdio_client::StdioClient,
    stub_model::{ANSWER, FILE_CONTENT, StubModel},
    wait_for,
};

fn client_capabilities() -> crate::harness::Value {
    json!({"protocolVersion": 1, "clientInfo": {"name": "it", "version": "0"},
           "clientCapabilities": {"fs": {"readTextFile": true, "writeTextFile": true}}})
}

/// Opens a session, writes a file, cancels a turn and runs another, over the agent's stdio without the program.
fn works_alone(agent: &InteropAgent, folder: &Folder) {
    let cwd = folder.path().join("alone");
    fs::create_dir_all(&cwd).unwrap();
    let recorder = Recorder::new(folder);
    let mut client = StdioClient::start(agent, &recorder.command(&agent.command), &cwd);
    assert_eq!(client.call("initialize", client_capabilities(), |_| None)["protocolVersion"], 1);
    let opened = client.call("session/new", json!({"cwd": cwd, "mcpServers": []}), |_| None);
    let id = opened["sessionId"].as_str().expect("a session id").to_owned();
    if let Some(mode) = agent.mode {
        client.call("session/set_mode", json!({"sessionId": id, "modeId": mode}), |_| None);
    }
    let file = cwd.join("hello.txt");
    let prompt = |text: String| json!({"sessionId": id, "prompt": [{"type": "text", "text": text}]});
    let text = format!("please write-file {} now", file.display());
    assert_eq!(client.call("session/prompt", prompt(text), |_| None)["stopReason"], "end_turn");
    assert!(!agent.writes_files || fs::read_to_string(&file).unwrap() == FILE_CONTENT);
    let mut cancelled = false;
    let ended = client.call("session/prompt", prompt("count slowly".into()), |update| {
        let begins = update["sessionUpdate"] == "agent_message_chunk" && !cancelled;
        cancelled |= begins;
        begins.then(|| id.clone())
    });
    assert_eq!(ended["stopReason"], "cancelled");
    let ended = client.call("session/prompt", prompt("and again".into()), |_| None);
    assert_eq!(ended["stopReason"], "end_turn");
    let methods = recorder.check(&AcpSchema::load());
    assert_eq!(methods.iter().filter(|method| *method == "session/prompt").count(), 3);
}

/// Runs the same script through supervisor and runtime, and checks the recorded frames against the official schema.
fn works_through_the_whole_path(agent: &InteropAgent, folder: &Folder) {
    let recorder = Recorder::new(folder);
    let toml = agent.as_toml(Some(recorder.command(&agent.command)));
    let program = Program::builder().folder(folder).config(&toml).agent_writes(recorder.folder()).start();
    let session = program.api.open("ws");
    if let Some(mode) = agent.mode {
        session.post("mode", json!({"modeId": mode})).expect(200);
    }
    let file = session.path().join("hello.txt");
    let events = session.streams(&format!("please write-file {} now", file.display())).rest();
    assert_eq!(result_of(&program.api, &events)["stopReason"], "completed", "{events:#?}");
    assert!(!message_of(&events).is_empty(), "the agent's message is not empty");
    if agent.writes_files {
        assert_eq!(fs::read_to_string(&file).unwrap(), FILE_CONTENT);
        assert!(session.get("/diff").expect(200)["files"].to_string().contains("hello.txt"));
    }
    session.completes("say something");
    let mut stream = session.streams("count slowly");
    stream.until("the first chunk", |event| event.data["update"]["sessionUpdate"] == "agent_message_chunk");
    assert!(session.cancel());
    assert_eq!(result_of(&program.api, &stream.rest())["stopReason"], "cancelled");
    session.completes("say something again");
    assert_eq!(session.conversation().iter().filter(|(kind, _)| kind == "user_message").count(), 4);
    if agent.loads {
        loads(&session);
    }
    session.post("close", json!({})).expect(200);
    assert_eq!(session.state()["state"], "closed");
    drop(program);
    let methods = recorder.check(&AcpSchema::load());
    for method in ["initialize", "session/new", "session/prompt", "session/cancel"] {
        assert!(methods.iter().any(|sent| sent == method), "{method} was sent: {methods:?}");
    }
}

fn loads(session: &Session) {
    let before = session.conversation().len();
    session.post("load", json!({})).expect(200);
    session.becomes("idle");
    assert_eq!(session.conversation().len(), before, "the replay of a load is not stored again");
    session.completes("say something after the load");
}

#[test]
fn sdk_example_works_alone() {
    works_alone(&agents::sdk_example(), &Folder::new());
}

#[test]
fn goose_works_alone_with_the_stub_model() {
    let (model, folder) = (StubModel::start(), Folder::new());
    works_alone(&agents::goose(model.url(), folder.path()), &folder);
}

#[test]
fn claude_works_alone_with_the_stub_model() {
    let (model, folder) = (StubModel::start(), Folder::new());
    works_alone(&agents::claude(model.url(), folder.path()), &folder);
}

#[test]
fn sdk_example_works_through_the_whole_path() {
    works_through_the_whole_path(&agents::sdk_example(), &Folder::new());
}

#[test]
fn goose_works_through_the_whole_path() {
    let (model, folder) = (StubModel::start(), Folder::new());
    works_through_the_whole_path(&agents::goose(model.url(), folder.path()), &folder);
}

#[test]
fn claude_works_through_the_whole_path() {
    let (model, folder) = (StubModel::start(), Folder::new());
    works_through_the_whole_path(&agents::claude(model.url(), folder.path()), &folder);
}

/// Uses the official Rust client over WebSocket, which knows none of our extensions.
#[test]
fn official_rust_client_drives_the_runtime() {
    use agent_client_protocol::{
        Agent, Client,
        schema::ProtocolVersion,
        v1::{
            ConnectionTo,
            schema::{
                ContentBlock, InitializeRequest, NewSessionRequest, PromptRequest, SessionNotification, StopReason,
                TextContent,
            },
        },
    };
    let program = Program::builder().separate_runtime("runtime-token-0123456789").start();
    let cwd = program.folder.path().join("runtime-workspaces").join("of-a-plain-client");
    fs::create_dir_all(&cwd).unwrap();
    let transport = agent_client_protocol_http::HttpClient::builder_with_endpoint(program.runtime_url())
        .configure_http(|http| {
            let mut headers = reqwest::header::HeaderMap::new();
            headers.insert("authorization", "Bearer runtime-token-0123456789".parse().expect("a header"));
            http.no_proxy().default_headers(headers)
        })
        .build()
        .expect("a client");
    let updates = Arc::new(Mutex::new(Vec::new()));
    let seen = updates.clone();
    let run = Client
        .v1()
        .on_receive_notification(
            async move |notification: SessionNotification, _| {
                seen.lock().expect("a lock").push(format!("{:?}", notification.update));
                Ok(())
            },
            agent_client_protocol::on_receive_notification!(),
        )
        .connect_with(transport, |connection: ConnectionTo<Agent>| async move {
            let request = InitializeRequest::new(ProtocolVersion::V1);
            let agent = connection.send_request(request).block_task().await?;
            assert_eq!(agent.protocol_version, ProtocolVersion::V1);
            let opened = connection.send_request(NewSessionRequest::new(cwd)).block_task().await?;
            for text in ["think", "context"] {
                let prompt = vec![ContentBlock::Text(TextContent::new(text))];
                let request = PromptRequest::new(opened.session_id.clone(), prompt);
                let ended = connection.send_request(request).block_task().await?;
                assert_eq!(ended.stop_reason, StopReason::EndTurn);
            }
            Ok(())
        });
    let ended = block_on(async { tokio::time::timeout(DEADLINE, run).await });
    ended.expect("the client ends in time").expect("the client succeeds");
    wait_for(DEADLINE, "both answers have arrived as updates", || {
        let seen = updates.lock().expect("a lock").join("\n");
        (seen.contains("Let me think") && seen.contains("0 blocks ahead")).then_some(())
    });
}

#[test]
fn runtime_uses_the_agent_named_by_the_session() {
    let folder = Folder::new();
    let toml = format!(
        "{}\n[agents.example]\ncommand = {}\n",
        "[agent]\nterminal = false",
        json!(agents::sdk_example().command)
    );
    let program = Program::builder().folder(&folder).config(&toml).set("agent.command", demo_agent(&[])).start();
    let body = json!({"workspaceId": "ws", "installationId": "tenant-1", "agent": "example"});
    let session = program.api.open_with(body);
    assert!(session.completes("anything")["meta"]["message"].as_str().is_some_and(|it| !it.is_empty()));
}

/// Claude Code answers while its shell runs on, and begins a turn by itself when the shell ends.
#[test]
fn claude_works_on_in_the_background_and_its_own_turn_is_recorded() {
    let (model, folder) = (StubModel::start(), Folder::new());
    let agent = agents::claude(model.url(), folder.path());
    let program = Program::builder()
        .folder(&folder)
        .config(&agent.as_toml(None))
        .set("session.idle_timeout_s", 1)
        .set("turn.quiet_max_s", 3600)
        .start();
    let session = program.api.open("ws");
    session.post("mode", json!({"modeId": "default"})).expect(200);
    let mut events = program.api.events(&format!("/acp/session/{}/events", session.id));
    let result = session.completes("please run-in-background 3 now");
    let prompt_id = result["meta"]["promptId"].as_str().unwrap();
    assert_eq!(session.state()["state"], "background");
    let of_agent = |event: &Event| event.name == "result" && event.data["promptId"] != prompt_id;
    let seen = events.until("the end of the agent's own turn, by its mark", of_agent);
    let result = &seen.last().unwrap().data["update"];
    assert_eq!(result["meta"]["message"], ANSWER.concat(), "{result}");
    let turn = program.api.get(&format!("/acp/prompt/{}", result["meta"]["promptId"].as_str().unwrap())).expect(200);
    assert_eq!(turn["initiator"], "agent", "{turn}");
    session.becomes("hibernated");
}

/// The agent as shipped in the jail, with nothing of the user's `HOME`: its state is in that of its tenant.
fn works_in_the_home_of_its_tenant(mut agent: InteropAgent, folder: &Folder) {
    agent.env.retain(|name, _| *name != "HOME" && !name.starts_with("XDG_"));
    let toml = agent.as_toml(None);
    let program = Program::builder().folder(folder).config(&toml).set("agent.home", "tenant").start();
    let session = program.api.open("ws");
    if let Some(mode) = agent.mode {
        session.post("mode", json!({"modeId": mode})).expect(200);
    }
    let file = session.path().join("hello.txt");
    session.completes(&format!("please write-file {} now", file.display()));
    assert_eq!(fs::read_to_string(&file).unwrap(), FILE_CONTENT);
    loads(&session);
    let homes = program.folder.path().join("data/workspaces/.homes");
    let home = fs::read_dir(&homes).unwrap().next().expect("a home").unwrap().path();
    assert!(fs::read_dir(&home).unwrap().next().is_some(), "{} keeps its state in {}", agent.name, home.display());
}

#[test]
fn goose_works_in_the_home_of_its_tenant() {
    let (model, folder) = (StubModel::start(), Folder::new());
    works_in_the_home_of_its_tenant(agents::goose(model.url(), folder.path()), &folder);
}

#[test]
fn claude_works_in_the_home_of_its_tenant() {
    let (model, folder) = (StubModel::start(), Folder::new());
    works_in_the_home_of_its_tenant(agents::claude(model.url(), folder.path()), &folder);
}
