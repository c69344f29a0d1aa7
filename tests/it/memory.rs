//! Knowledge of agents: each prompt reaches an agent that knows the conversation, and the history that an agent replays
//! is no part of a turn.

use std::{fs, path::Path};

use crate::harness::{DEADLINE, Program, Session, Value, api::result_of, demo_agent, json, lumilink, wait_for};

/// The message of a turn, and whether the conversation preceded its prompt.
fn context_of(result: &Value) -> (String, bool) {
    let meta = &result["meta"];
    (meta["message"].as_str().expect("a message").to_owned(), meta["contextInjected"] == true)
}

/// Fails the test unless the next prompt brings the conversation with it, and the one after it does not.
fn gets_context_once(session: &Session, words: &[&str]) {
    let (message, is_injected) = context_of(&session.completes("context"));
    assert!(is_injected && words.iter().all(|word| message.contains(word)), "{words:?} in {message}");
    let (message, is_injected) = context_of(&session.completes("context"));
    assert!(!is_injected && message.starts_with("0 blocks"), "{message}");
}

/// A session whose agent was replaced by a fresh one without a memory.
fn with_fresh_agent(program: &Program) -> Session {
    let session = program.api.open_on_acp("ws");
    session.completes("echo the word is maple");
    session.prompt("crash").problem(502, "agent_crashed");
    session
}

#[test]
fn nfr_004_context_of_a_cancelled_turn_is_sent_again() {
    let program = Program::builder().demo_agent(&["--no-load", "--no-resume"]).start();
    let session = with_fresh_agent(&program);
    let (prompt_id, mut stream) = session.is_busy_with("echo started ; sleep 60");
    assert!(session.cancel());
    stream.rest();
    assert_eq!(session.ends(&prompt_id)["state"], "cancelled");
    gets_context_once(&session, &["maple", "started"]);
}

#[test]
fn nfr_004_context_of_a_failed_turn_is_sent_again() {
    let program = Program::builder().demo_agent(&["--no-load", "--no-resume"]).start();
    let session = with_fresh_agent(&program);
    session.prompt("error -32603 boom").problem(502, "agent_error");
    gets_context_once(&session, &["maple", "boom"]);
}

#[test]
fn nfr_004_turn_that_was_never_sent_is_part_of_the_next_context() {
    let flags = ["--no-load", "--no-resume", "--start-delay-ms", "1000"];
    let program = Program::builder().demo_agent(&flags).start();
    let session = with_fresh_agent(&program);
    let prompt_id = session.starts("echo birch");
    assert!(session.cancel(), "its agent is still starting");
    assert_eq!(session.ends(&prompt_id)["state"], "cancelled");
    gets_context_once(&session, &["maple", "birch"]);
}

#[test]
fn nfr_004_agent_with_a_memory_gets_the_turns_that_it_did_not_complete() {
    let memory = tempfile::tempdir().expect("a folder");
    let flags = ["--persist", memory.path().to_str().unwrap()];
    let program =
        Program::builder().agent_writes(memory.path()).demo_agent(&flags).set("session.idle_timeout_s", 1).start();
    let session = program.api.open("ws");
    session.completes("echo the word is maple");
    let (_, mut stream) = session.is_busy_with("echo birch ; sleep 60");
    assert!(session.cancel());
    stream.rest();
    session.becomes("hibernated");
    let (message, is_injected) = context_of(&session.completes("context"));
    assert!(is_injected && message.contains("birch") && !message.contains("maple"), "{message}");
}

/// Starts the agent with a memory in `folder`; while `folder/ill` exists, its handshake fails after a second.
fn failing_while_ill(folder: &Path) -> Program {
    let (program, shown) = (lumilink(), folder.display());
    let script = format!(
        "if [ -e {shown}/ill ]; then exec {program} demo-agent --start-delay-ms 1000 --refuse-handshake; fi; \
         exec {program} demo-agent --persist {shown}"
    );
    Program::builder()
        .agent_writes(folder)
        .set("agent.command", json!(["sh", "-c", script]))
        .set("agent.oneshot", demo_agent(&["--oneshot"]))
        .set("window.min_samples", 1000)
        .set("recovery.jitter_bp", 0)
        .set("recovery.cooldown_s", 1)
        .start()
}

#[test]
fn nfr_004_turn_that_fell_back_is_named_after_its_route_and_reaches_the_agent_later() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = failing_while_ill(folder.path());
    let session = program.api.open("ws");
    assert_eq!(session.completes("echo the word is maple")["meta"]["protocol"], "acp");
    fs::write(folder.path().join("ill"), "").expect("a file");
    session.prompt("crash").problem(502, "agent_crashed");
    // Accepted while the agent starts, so its carrier changes when the handshake fails.
    let fell_back = session.completes("echo birch");
    assert_eq!(fell_back["meta"]["protocol"], "http", "{fell_back}");
    let explained = session.get("/explain").expect(200);
    let of_turn = |entry: &&Value| entry["details"]["promptId"] == fell_back["meta"]["promptId"];
    let turn = explained["timeline"].as_array().unwrap().iter().find(of_turn).expect("the turn");
    assert_eq!((&turn["details"]["protocol"], &turn["details"]["route"]), (&json!("http"), &json!("acp")), "{turn}");
    fs::remove_file(folder.path().join("ill")).expect("the file exists");
    let back = wait_for(DEADLINE, "a turn over ACP", || {
        let result = session.completes("context");
        (result["meta"]["protocol"] == "acp").then_some(result)
    });
    assert!(context_of(&back).0.contains("birch"), "the agent gets the turn that fell back: {back}");
}

#[test]
fn history_that_an_agent_replays_after_its_answer_to_a_load_joins_no_turn() {
    let memory = tempfile::tempdir().expect("a folder");
    let flags = ["--no-resume", "--late-replay", "--persist", memory.path().to_str().unwrap()];
    let program =
        Program::builder().agent_writes(memory.path()).demo_agent(&flags).set("session.idle_timeout_s", 1).start();
    let session = program.api.open("ws");
    session.completes("echo first answer");
    session.completes("write a.txt x ; echo second answer");
    for (round, prompt) in ["echo third answer", "echo first answer"].into_iter().enumerate() {
        session.becomes("hibernated");
        let before = session.transcript().len();
        let mut stream = session.streams(prompt);
        let events = stream.rest();
        let result = result_of(&program.api, &events);
        let own = prompt.strip_prefix("echo ").unwrap();
        assert_eq!(context_of(result), (own.to_owned(), false), "round {round}: {result}");
        let updates = events.iter().filter(|event| event.name == "update").count();
        assert!(updates <= 3, "only own updates are events of the turn: {events:#?}");
        assert_eq!(session.transcript().len(), before + 2, "{:#?}", session.conversation());
        assert!(result["diagnostics"].to_string().contains("replayed its history"), "{result}");
    }
}
