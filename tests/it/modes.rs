//! Mode, model and options of a session survive the process of its agent.

use std::{fs, path::Path};

use crate::harness::{
    DEADLINE, Program, Session, Value,
    database::{allow, refuse},
    demo_agent, json, lumilink,
    program::{Builder, PostgresDatabase},
    wait_for,
};

const PLANNING: &str = "mode=plan tone=loud model=large fast=true";

fn models() -> Builder {
    Program::builder().demo_agent(&["--models"])
}

/// Sets everything that the agent with `--models` offers. The model comes last: it resets the tone, which is set again.
fn set_all(session: &Session) {
    session.post("mode", json!({"modeId": "plan"})).expect(200);
    session.post("config", json!({"configId": "fast", "value": true})).expect(200);
    session.post("model", json!({"modelId": "large"})).expect(200);
    session.post("config", json!({"configId": "tone", "value": "loud"})).expect(200);
}

/// Fails the test unless the session is as [`set_all`] left it, and unable to write.
fn assert_planning(session: &Session) {
    assert_eq!(session.says("settings"), PLANNING);
    assert_eq!(session.says("write a.txt content"), "may only plan");
    assert!(!session.path().join("a.txt").exists(), "a session that may only plan wrote a file");
    assert_shown(session);
}

fn assert_shown(session: &Session) {
    let facts = session.state()["agentFacts"].clone();
    assert_eq!(shown(&facts), json!(["plan", "large", "loud", true]), "{facts}");
    let loaded = session.post("load", json!({})).expect(200);
    assert_eq!(shown(&loaded), json!(["plan", "large", "loud", true]), "{loaded}");
}

fn shown(facts: &Value) -> Value {
    let option = |id: &str| {
        let options = facts["configOptions"].as_array().expect("options");
        options.iter().find(|option| option["id"] == id).expect("the option")["currentValue"].clone()
    };
    json!([facts["modes"]["currentModeId"], facts["models"]["currentModelId"], option("tone"), option("fast")])
}

fn roll(session: &Session, to: &str) {
    let why = json!({"actor": "test", "reason": "test"});
    session.api.post(&format!("/acp/workspaces/ws/{to}"), why).expect(200);
}

/// The command of an agent that starts with the flag while the file exists.
fn agent_with(flag: &str, marker: &Path) -> [String; 3] {
    let (program, marker) = (lumilink(), marker.display());
    let script = format!("if [ -e {marker} ]; then exec {program} demo-agent {flag}; fi; exec {program} demo-agent");
    ["sh".into(), "-c".into(), script]
}

/// An agent that refuses `session/set_mode` while the file exists.
fn refusing_while(file: &Path) -> Builder {
    Program::builder().demo_agent(&["--refuse-modes", &file.display().to_string()])
}

#[test]
fn session_that_may_only_plan_cannot_write_after_crash_hibernation_and_kill_9() {
    let mut program = models().set("session.idle_timeout_s", 2).start();
    let session = program.api.open("ws");
    set_all(&session);
    assert_planning(&session);
    session.prompt("crash").problem(502, "agent_crashed");
    // Reported in the turn that waits for the fresh agent, or as a note ahead of it.
    let result = session.completes("settings");
    let conversation = session.conversation();
    let is_reported = |text: &str| text.contains("set again in the fresh agent");
    let noted = conversation.iter().any(|(_, text)| is_reported(text));
    assert!(noted || is_reported(&result["diagnostics"].to_string()), "{result}, {conversation:?}");
    assert_planning(&session);
    session.becomes("hibernated");
    let facts = session.state()["agentFacts"].clone();
    assert_eq!(shown(&facts), json!(["plan", "large", "loud", true]), "shown without an agent: {facts}");
    assert_planning(&session);
    program.kill_supervisor();
    program.start_supervisor_again();
    session.post("load", json!({})).expect(200);
    assert_planning(&session);
}

#[test]
fn session_that_may_only_plan_cannot_write_over_the_fallback_and_back() {
    let program = models().set("recovery.cooldown_s", 1800).start();
    let session = program.api.open("ws");
    set_all(&session);
    roll(&session, "rollback");
    let result = session.completes("settings");
    assert_eq!((&result["meta"]["protocol"], &result["meta"]["message"]), (&json!("http"), &json!(PLANNING)));
    assert_planning(&session);
    roll(&session, "restore");
    assert_planning(&session);
}

#[test]
fn mode_that_the_agent_chose_over_the_fallback_is_kept_on_the_way_back() {
    let program = models().set("recovery.cooldown_s", 1800).start();
    let session = program.api.open("ws");
    roll(&session, "rollback");
    session.completes("mode plan");
    assert!(session.says("settings").starts_with("mode=plan "), "each turn of the fallback has an agent of its own");
    assert_eq!(session.state()["agentFacts"]["modes"]["currentModeId"], "plan");
    roll(&session, "restore");
    assert!(session.says("settings").starts_with("mode=plan "));
}

#[test]
fn mode_that_the_agent_chose_survives_its_crash() {
    let program = Program::start();
    let session = program.api.open("ws");
    session.post("mode", json!({"modeId": "ask"})).expect(200);
    session.completes("mode plan");
    assert_eq!(session.state()["agentFacts"]["modes"]["currentModeId"], "plan");
    session.prompt("crash").problem(502, "agent_crashed");
    assert!(session.says("settings").starts_with("mode=plan "));
}

#[test]
fn adopted_agent_has_the_kept_mode_after_kill_9_of_the_supervisor() {
    let mut program = models().behind_proxy().start();
    let session = program.api.open("ws");
    set_all(&session);
    let pid = session.says("pid");
    program.kill_supervisor();
    program.start_supervisor_again();
    session.post("load", json!({})).expect(200);
    assert_eq!(session.says("pid"), pid, "the agent was adopted");
    assert_planning(&session);
    session.prompt("crash").problem(502, "agent_crashed");
    assert_planning(&session);
}

#[test]
fn turn_is_refused_while_the_agent_does_not_take_the_mode_of_the_user() {
    let folder = tempfile::tempdir().expect("a folder");
    let marker = folder.path().join("refuses");
    let program = refusing_while(&marker).start();
    let session = program.api.open("ws");
    session.post("mode", json!({"modeId": "plan"})).expect(200);
    let keyed = || session.call("settings").header("idempotency-key", "key").send().expect(200);
    let before = keyed();
    fs::write(&marker, "").expect("a file");
    session.prompt("crash").problem(502, "agent_crashed");
    wait_for(DEADLINE, "the refusal is shown", || session.state()["modeUnavailable"].as_str().map(str::to_owned));
    session.prompt("write a.txt content").problem(409, "mode_unavailable");
    assert!(!session.path().join("a.txt").exists());
    assert_eq!(keyed(), before, "a repeat needs no agent");
    assert_eq!(session.state()["agentFacts"]["modes"]["currentModeId"], "code", "the agent's own mode is shown");
    fs::remove_file(&marker).expect("a file");
    session.post("mode", json!({"modeId": "plan"})).expect(200);
    assert_eq!(session.says("write a.txt content"), "may only plan");
}

#[test]
fn turn_over_the_fallback_is_refused_if_its_agent_does_not_take_the_mode() {
    let folder = tempfile::tempdir().expect("a folder");
    let marker = folder.path().join("refuses");
    let program = refusing_while(&marker).set("recovery.cooldown_s", 1800).start();
    let session = program.api.open("ws");
    session.post("mode", json!({"modeId": "plan"})).expect(200);
    fs::write(&marker, "").expect("a file");
    roll(&session, "rollback");
    session.prompt("write a.txt content").problem(409, "mode_unavailable");
    assert!(!session.path().join("a.txt").exists());
}

#[test]
fn headless_command_gets_no_turn_of_a_session_with_a_mode_of_its_user() {
    let program = Program::builder()
        .set("agent.command", demo_agent(&[]))
        .set("agent.oneshot", demo_agent(&["--oneshot"]))
        .set("recovery.cooldown_s", 1800)
        .start();
    let (planning, plain) = (program.api.open("ws"), program.api.open("ws"));
    planning.post("mode", json!({"modeId": "plan"})).expect(200);
    roll(&planning, "rollback");
    planning.prompt("write a.txt content").problem(409, "mode_unavailable");
    assert!(!planning.path().join("a.txt").exists());
    assert_eq!(plain.says("echo a session without a choice"), "a session without a choice");
    roll(&planning, "restore");
    assert_eq!(planning.says("write a.txt content"), "may only plan");
}

#[test]
fn agent_that_confirms_a_mode_and_reports_another_gets_no_prompt_after_its_restart() {
    let folder = tempfile::tempdir().expect("a folder");
    let marker = folder.path().join("contradicts");
    let program = Program::builder().set("agent.command", json!(agent_with("--contradict-modes", &marker))).start();
    let session = program.api.open("ws");
    session.post("mode", json!({"modeId": "plan"})).expect(200);
    fs::write(&marker, "").expect("a file");
    session.prompt("crash").problem(502, "agent_crashed");
    wait_for(DEADLINE, "the refusal is shown", || session.state()["modeUnavailable"].as_str().map(str::to_owned));
    session.prompt("write a.txt content").problem(409, "mode_unavailable");
    assert!(!session.path().join("a.txt").exists());
}

#[test]
fn agent_that_never_answers_set_mode_after_its_restart_gets_no_prompt() {
    let folder = tempfile::tempdir().expect("a folder");
    let marker = folder.path().join("mute");
    let program = Program::builder()
        .set("agent.command", json!(agent_with("--mute-modes", &marker)))
        .set("runtime.handshake_timeout_s", 2)
        .start();
    let session = program.api.open("ws");
    session.post("mode", json!({"modeId": "plan"})).expect(200);
    fs::write(&marker, "").expect("a file");
    session.prompt("crash").problem(502, "agent_crashed");
    wait_for(DEADLINE, "the refusal is shown", || session.state()["modeUnavailable"].as_str().map(str::to_owned));
    session.prompt("write a.txt content").problem(409, "mode_unavailable");
}

#[test]
fn readers_learn_that_a_mode_was_set_and_set_again() {
    let program = Program::start();
    let session = program.api.open("ws");
    let mut events = session.api.events(&format!("/acp/session/{}/events", session.id));
    session.post("mode", json!({"modeId": "plan"})).expect(200);
    let cause = |events: &[crate::harness::sse::Event]| events.last().expect("an event").data["update"].clone();
    let set = cause(&events.until("the setting", |event| event.name == "settings"));
    assert_eq!((&set["cause"], &set["current"]["modeId"]), (&json!("user"), &json!("plan")), "{set}");
    session.prompt("crash").problem(502, "agent_crashed");
    let again = cause(&events.until("the re-application", |event| event.name == "settings"));
    assert_eq!((&again["cause"], &again["applied"]), (&json!("reapplied"), &json!(["mode \"plan\""])), "{again}");
}

#[test]
fn mode_whose_write_fails_is_not_confirmed() {
    for database in [None, Some(PostgresDatabase::create())] {
        let builder = Program::builder().set("database.patience_s", 1);
        let mut program = match &database {
            Some(database) => builder.set("database.url", database.url()).start(),
            None => builder.start(),
        };
        program.expect_error("the database did not take writes");
        let session = program.api.open("ws");
        session.post("mode", json!({"modeId": "ask"})).expect(200);
        refuse(&database, &program, "UPDATE OF choices ON sessions");
        session.post("mode", json!({"modeId": "plan"})).problem(503, "database_unavailable");
        program.kill_supervisor();
        allow(&database, &program, "sessions");
        program.start_supervisor_again();
        session.post("load", json!({})).expect(200);
        assert!(session.says("settings").starts_with("mode=ask "), "the last mode that was confirmed");
    }
}
