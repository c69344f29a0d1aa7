//! FR-013: skipped automation raises exactly one notification immediately, and exactly one note with the reason.

use crate::harness::{
    DEADLINE, Program, Session, Value, git_server::GitServer, json, notifications::Subscriber, program::Builder,
    wait_for,
};

const TENANT: &str = "installationId=tenant-1";

fn with(server: &GitServer) -> Builder {
    Program::builder().set("workspaces.git_hosts", format!("[\"{}\"]", server.host))
}

fn open(program: &Program, server: &GitServer, more: Value) -> Session {
    let mut body = json!({"workspaceId": "ws", "installationId": "tenant-1", "repository": server.repository()});
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    program.api.open_with(body)
}

fn prompt(session: &Session, mode: Option<&str>) -> Value {
    let mut body = json!({"sessionId": session.id, "prompt": "write a.txt hello"});
    if let Some(mode) = mode {
        body["automation"] = json!({ "mode": mode });
    }
    session.api.post("/acp/session/prompt", body).expect(200)
}

fn notes(session: &Session) -> Vec<Value> {
    session.transcript().into_iter().filter(|entry| entry["eventType"] == "automation").collect()
}

/// All notifications of the tenant, oldest first.
fn notifications(program: &Program) -> Vec<Value> {
    let inbox = program.api.get(&format!("/acp/notifications?{TENANT}")).expect(200);
    let items = inbox["items"].as_array().unwrap().iter().rev();
    items.map(|item| item["toast"].clone()).collect()
}

fn reasons(result: &Value) -> (&str, &str) {
    let automation = &result["githubAutomation"];
    assert_eq!(automation["status"], "skipped", "{result}");
    (automation["skipReason"].as_str().unwrap(), automation["skipDetail"].as_str().unwrap_or_default())
}

#[test]
fn fr_013_missing_credential_yields_one_notification_note_run_and_result() {
    let server = GitServer::start();
    let program = with(&server).start();
    let session = open(&program, &server, json!({}));
    let mut subscriber = Subscriber::of(&program.api, TENANT);
    let result = prompt(&session, None);
    assert_eq!(reasons(&result), ("missingCredential", ""));
    assert_eq!(result["meta"]["githubAutomationVersion"], "1.2.0", "{result}");
    let notification = subscriber.notification();
    assert_eq!(
        (&notification["severity"], &notification["trigger"]),
        (&json!("warning"), &json!("automationSkipped")),
        "{notification}"
    );
    assert_eq!(notification["body"], result["githubAutomation"]["toastMessage"], "{notification}");
    assert!(notification["body"].as_str().unwrap().contains("octo/hello"), "{notification}");
    assert!(!notification.to_string().contains(&session.id), "other users of the tenant may see it: {notification}");
    let notes = notes(&session);
    assert_eq!(notes.len(), 1, "{notes:?}");
    assert_eq!(notes[0]["text"], result["githubAutomation"]["transcriptNote"], "{notes:?}");
    let note = &notes[0]["payload"];
    assert_eq!((&note["summary"], &note["status"]), (&notification["body"], &json!("skipped")), "{note}");
    assert_eq!(note["details"]["skipReason"], "missingCredential", "{note}");
    assert_eq!(notes[0]["promptId"], result["meta"]["promptId"]);
    let runs = program.api.get("/acp/audit/automation-runs").expect(200);
    assert_eq!(runs["items"].as_array().unwrap().len(), 1, "{runs}");
    assert_eq!(
        (&runs["items"][0]["status"], &runs["items"][0]["skipReason"]),
        (&json!("skipped"), &json!("missingCredential"))
    );
    // Each turn raises its own notification.
    prompt(&session, None);
    assert_eq!(notifications(&program).len(), 2);
    let line = wait_for(DEADLINE, "the log line", || {
        program.log().lines().find(|line| line.contains("[GITHUB-AUTO]")).map(str::to_owned)
    });
    assert!(line.contains("missingCredential"), "{line}");
}

#[test]
fn fr_013_automation_disabled_by_the_caller_is_reported_once_per_session() {
    let server = GitServer::start();
    let program = with(&server).start();
    let session = open(&program, &server, json!({}));
    for _ in 0..3 {
        assert_eq!(reasons(&prompt(&session, Some("none"))), ("automationDisabled", "caller-skip"));
    }
    assert_eq!((notifications(&program).len(), notes(&session).len()), (1, 1));
    let off = open(&program, &server, json!({"enableGitOps": false}));
    for _ in 0..2 {
        assert_eq!(reasons(&prompt(&off, None)), ("automationDisabled", "gitops-off"));
    }
    assert_eq!((notifications(&program).len(), notes(&off).len()), (2, 1));
    let runs = program.api.get("/acp/audit/automation-runs").expect(200);
    assert_eq!(runs["items"].as_array().unwrap().len(), 5, "each turn has an audit record");
}

#[test]
fn fr_013_blocked_repository_disabled_setting_and_kill_switch_are_reported() {
    let server = GitServer::start();
    let program = with(&server).start();
    let session = open(&program, &server, json!({}));
    let block = json!({"blockedRepositories": ["octo/*"], "actor": "ada", "reason": "not this one"});
    program.api.call("PUT", "/acp/tenants/tenant-1/protocol").json(&block).send().expect(200);
    assert_eq!(reasons(&prompt(&session, None)), ("repoBlocked", "blocked-by-pattern"));
    for (builder, detail) in [
        (with(&server).set("github.enabled", false), "config-disabled"),
        (with(&server).env("GITHUB_AUTOMATION_DISABLED", "1"), "env-disabled"),
    ] {
        let program = builder.start();
        let session = open(&program, &server, json!({}));
        assert_eq!(reasons(&prompt(&session, Some("commit-only"))), ("automationDisabled", detail));
        assert_eq!(notifications(&program).len(), 1);
    }
    let program = with(&server).set("github.blocked_repositories", "[\"*/hello\"]").start();
    let session = open(&program, &server, json!({}));
    assert_eq!(reasons(&prompt(&session, None)), ("repoBlocked", "blocked-by-pattern"));
}

#[test]
fn fr_013_skip_on_the_fallback_route_is_reported_the_same_way() {
    let server = GitServer::start();
    let program = with(&server).start();
    let session = open(&program, &server, json!({}));
    program.api.post("/acp/workspaces/ws/rollback", json!({"actor": "ada", "reason": "drill"})).expect(200);
    let result = prompt(&session, None);
    assert_eq!((result["meta"]["protocol"].as_str().unwrap(), reasons(&result).0), ("http", "missingCredential"));
    let triggers: Vec<_> = notifications(&program)
        .iter()
        .map(|notification| notification["trigger"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(triggers, ["manualOperator", "automationSkipped"]);
}

#[test]
fn fr_013_session_without_repository_and_failed_turn_report_no_skip() {
    let server = GitServer::start();
    let program = with(&server).start();
    let plain = program.api.open("plain");
    let result = plain.completes("write a.txt hello");
    assert_eq!(result["githubAutomation"], Value::Null, "{result}");
    let session = open(&program, &server, json!({}));
    session.prompt("crash").problem(502, "agent_crashed");
    assert_eq!(notifications(&program), Vec::<Value>::new(), "neither turn raises a notification");
    let unknown = json!({"sessionId": session.id, "prompt": "echo a", "automation": {"mode": "all"}});
    program.api.post("/acp/session/prompt", unknown).problem(400, "invalid_request");
}

#[test]
fn fr_013_turn_that_outlives_its_supervisor_keeps_its_automation_mode() {
    let server = GitServer::start();
    let mut program = with(&server).separate_runtime("a-token-between-the-two-sides").start();
    let session = open(&program, &server, json!({}));
    let mut events = session.api.events(&format!("/acp/session/{}/events?from=live", session.id));
    let body = json!({"sessionId": session.id, "prompt": "ticks 40 50", "automation": {"mode": "none"}});
    let call = program.api.call("POST", "/acp/session/prompt").header("prefer", "respond-async").json(&body);
    let prompt_id = call.send().expect(202)["promptId"].as_str().unwrap().to_owned();
    events.until("the agent works", |event| event.name == "update");
    program.kill_supervisor();
    program.start_supervisor_again();
    let ended = session.ends(&prompt_id);
    assert_eq!(ended["state"], "completed", "{ended}");
    assert_eq!(reasons(&ended["result"]), ("automationDisabled", "caller-skip"));
    assert_eq!((notifications(&program).len(), notes(&session).len()), (1, 1));
}
