//! Erasure of sessions, workspaces and tenants: nothing of them is left, and nothing of others is touched.

use std::{fs, path::Path, process::Command};

use crate::harness::{
    Api, Program, Session, Value, eventually, json, lumilink,
    program::{Builder, PostgresDatabase},
    tokens,
};

const CANARY: &str = "canary-7c1e5a90d2";

/// The files below a folder whose bytes contain a text.
fn files_with(folder: &Path, part: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(files_with(&path, part));
        } else if fs::read(&path).is_ok_and(|bytes| bytes.windows(part.len()).any(|it| it == part.as_bytes())) {
            found.push(path.display().to_string());
        }
    }
    found
}

fn open(api: &Api, tenant: &str, workspace: &str) -> Session {
    api.open_with(json!({"installationId": tenant, "workspaceId": workspace}))
}

fn delete(api: &Api, path: &str) -> Value {
    api.call("DELETE", path).send().expect(200)
}

fn erasures(api: &Api) -> Vec<Value> {
    api.get("/acp/audit/erasures").expect(200)["items"].as_array().expect("a list").clone()
}

/// Everything that the API shows of a tenant.
fn shown(api: &Api, tenant: &str, sessions: &[&Session]) -> Vec<Value> {
    let mut all: Vec<_> = ["/acp/sessions", "/acp/workspaces", "/acp/audit/connections", "/acp/notifications"]
        .iter()
        .map(|path| api.get(&format!("{path}?installationId={tenant}")).expect(200))
        .collect();
    all.push(api.get(&format!("/acp/tenants/{tenant}/protocol")).expect(200));
    all.extend(sessions.iter().map(|session| json!([session.transcript(), session.get("/prompts").expect(200)])));
    all
}

fn erased_session_leaves_no_text(builder: Builder, database: Option<&PostgresDatabase>) {
    let program = builder.start();
    let api = &program.api;
    let (session, other) = (open(api, "acme", "ws"), open(api, "acme", "ws"));
    other.completes("echo kept");
    session.completes(&format!("echo {CANARY}"));
    session.completes("plan");
    session.prompt("crash").problem(502, "agent_crashed");
    session.becomes("idle");
    session.completes(&format!("echo {}", format!("{CANARY} ").repeat(2000)));
    let before = shown(api, "other", &[]);
    let erased = delete(api, &format!("/acp/session/{}", session.id));
    assert_eq!((&erased["scope"], &erased["sessions"], &erased["turns"]), (&json!("session"), &json!(1), &json!(4)));
    assert!(erased["transcriptEntries"].as_u64().unwrap() >= 8 && erased["endedAt"].is_string(), "{erased}");
    api.call("DELETE", &format!("/acp/session/{}", session.id)).send().problem(404, "not_found");
    for path in ["", "/transcript", "/prompts", "/explain", "/events"] {
        session.get(path).problem(404, "not_found");
    }
    session.prompt("echo a").problem(404, "not_found");
    session.post("load", json!({})).problem(404, "not_found");
    assert_eq!(other.says("echo still here"), "still here");
    assert_eq!(shown(api, "other", &[]), before);
    let records = erasures(api);
    assert_eq!(records, [erased]);
    assert_eq!(api.get(&format!("/acp/audit/connections?sessionId={}", session.id)).expect(200)["items"], json!([]));
    match database {
        Some(database) => assert_eq!(database.rows_with(CANARY), [""; 0]),
        None => assert_eq!(files_with(&program.folder.path().join("data"), CANARY), [""; 0]),
    }
}

#[test]
fn erased_session_leaves_no_text_on_sqlite() {
    erased_session_leaves_no_text(Program::builder(), None);
}

#[test]
fn erased_session_leaves_no_text_on_postgresql() {
    let database = PostgresDatabase::create();
    erased_session_leaves_no_text(Program::builder().set("database.url", database.url()), Some(&database));
}

#[test]
fn erased_workspace_leaves_no_file_and_a_new_one_of_its_name_is_empty() {
    let program = Program::start();
    let api = &program.api;
    let session = open(api, "acme", "ws");
    session.completes(&format!(
        "write {CANARY}.txt {CANARY} ; run mkdir closed && touch closed/file && chmod 500 closed"
    ));
    assert_eq!(session.get("/diff").expect(200)["files"].as_array().unwrap().len(), 2);
    let (_, mut busy) = session.is_busy_with("echo started ; sleep 60");
    let erased = delete(api, "/acp/workspaces/ws?installationId=acme");
    busy.rest();
    assert_eq!((&erased["workspaces"], &erased["folders"], &erased["sessions"]), (&json!(1), &json!(1), &json!(1)));
    api.call("DELETE", "/acp/workspaces/ws?installationId=acme").send().problem(404, "not_found");
    session.get("").problem(404, "not_found");
    assert_eq!(files_with(&program.folder.path().join("data"), CANARY), [""; 0]);
    eventually("the agent ends", || program.agents().is_empty());
    assert_eq!(api.get("/acp/tenants/acme").expect(200)["liveSessions"], 0);
    let again = open(api, "acme", "ws");
    assert_eq!(again.get("/diff").expect(200)["files"], json!([]));
    assert!(again.transcript().is_empty());
    again.completes("echo a");
}

#[test]
fn erased_tenant_leaves_nothing_and_another_tenant_is_unchanged() {
    let program = Program::builder().set("agent.home", "tenant").start();
    let api = &program.api;
    let other = open(api, "other", "ws");
    other.completes("write b.txt theirs ; echo theirs");
    for workspace in ["one", "two"] {
        let session = open(api, "acme", workspace);
        session.completes(&format!("write a.txt {CANARY} ; run echo {CANARY} > $HOME/kept"));
        api.post(
            &format!("/acp/workspaces/{workspace}/rollback?installationId=acme"),
            json!({"actor": "ada", "reason": CANARY}),
        )
        .expect(200);
    }
    let settings = json!({"limits": {"turns": 9}, "actor": "ada", "reason": "test"});
    api.call("PUT", "/acp/tenants/acme").json(&settings).send().expect(200);
    let before = shown(api, "other", &[&other]);
    let erased = delete(api, "/acp/tenants/acme");
    assert_eq!((&erased["workspaces"], &erased["sessions"], &erased["homes"]), (&json!(2), &json!(2), &json!(1)));
    assert!(erased["notifications"].as_u64().unwrap() >= 2, "{erased}");
    api.call("DELETE", "/acp/tenants/acme").send().problem(404, "not_found");
    assert_eq!(files_with(&program.folder.path().join("data"), CANARY), [""; 0]);
    assert_eq!(api.get("/acp/tenants/acme").expect(200)["limits"]["turns"], Value::Null);
    assert_eq!(shown(api, "other", &[&other]), before);
    assert_eq!(other.says("read b.txt"), "theirs");
    let records = api.get("/acp/audit/rollback-events?installationId=acme").expect(200);
    assert_eq!(records["items"], json!([]));
}

#[test]
fn folder_that_was_given_by_path_is_never_erased() {
    let given = tempfile::tempdir().unwrap();
    fs::write(given.path().join("mine.txt"), "mine").unwrap();
    let program = Program::builder().set("workspaces.allow_paths", json!([given.path()])).start();
    let api = &program.api;
    let session = api.open_with(json!({"installationId": "acme", "workspaceId": "ws", "path": given.path()}));
    session.completes("write new.txt new");
    let erased = delete(api, "/acp/workspaces/ws?installationId=acme");
    assert_eq!((&erased["workspaces"], &erased["folders"]), (&json!(1), &json!(0)));
    assert_eq!(fs::read_to_string(given.path().join("mine.txt")).unwrap(), "mine");
    assert!(given.path().join("new.txt").exists());
    let baselines = program.folder.path().join("data/workspaces/.baselines");
    assert_eq!(fs::read_dir(baselines).into_iter().flatten().count(), 0, "the copy of the folder is ours");
}

#[test]
fn history_of_the_agent_is_removed_with_its_session() {
    let builder = Program::builder();
    let builder = builder.agent_writes_below("history");
    let history = builder.path().join("history");
    let program = builder.demo_agent(&["--persist", history.to_str().unwrap()]).start();
    let session = open(&program.api, "acme", "ws");
    session.completes(&format!("echo {CANARY}"));
    assert_eq!(files_with(&history, CANARY).len(), 1);
    let erased = delete(&program.api, &format!("/acp/session/{}", session.id));
    assert_eq!((&erased["agentHistories"], &erased["agentHistoriesLeft"]), (&json!(1), &json!(0)));
    assert_eq!(files_with(&history, CANARY), [""; 0]);
}

#[test]
fn killed_erasure_is_finished_after_a_restart() {
    let mut program = Program::builder().behind_proxy().start();
    program.turns_may_run();
    let session = open(&program.api, "acme", "ws");
    session.completes(&format!("write a.txt {CANARY} ; echo {CANARY}"));
    let root = program.folder.path().join("runtime-workspaces");
    assert_eq!(files_with(&root, CANARY).len(), 1);
    program.kill_runtime();
    // The rows are removed, and the folder cannot be.
    let begun = program.api.call("DELETE", "/acp/workspaces/ws?installationId=acme").send();
    let problem = begun.problem(503, "runtime_unavailable");
    assert!(problem["detail"].as_str().unwrap().contains("is continued later"), "{problem}");
    program.kill_supervisor();
    program.start_runtime_again();
    program.start_supervisor_again();
    session.get("").problem(404, "not_found");
    eventually("the erasure is finished", || erasures(&program.api).iter().all(|it| it["endedAt"].is_string()));
    let record = erasures(&program.api).remove(0);
    assert_eq!((&record["folders"], &record["workspaces"], &record["sessions"]), (&json!(1), &json!(1), &json!(1)));
    assert_eq!(files_with(&root, CANARY), [""; 0]);
    assert_eq!(files_with(&program.folder.path().join("data"), CANARY), [""; 0]);
    open(&program.api, "acme", "ws").completes("echo a");
}

#[test]
fn session_cannot_be_opened_in_a_workspace_that_is_being_erased() {
    let mut program = Program::builder().behind_proxy().start();
    let session = open(&program.api, "acme", "ws");
    session.completes("echo a");
    session.post("close", json!({})).expect(200);
    program.kill_runtime();
    program.api.call("DELETE", "/acp/workspaces/ws?installationId=acme").send().problem(503, "runtime_unavailable");
    let new = json!({"installationId": "acme", "workspaceId": "ws"});
    program.api.post("/acp/session/new", new).problem(409, "erasing");
    program.api.get("/acp/workspaces/ws?installationId=acme").problem(404, "not_found");
    program.start_runtime_again();
}

#[test]
fn tenant_being_erased_takes_no_settings_and_is_finished_after_a_restart() {
    let mut program = Program::builder().behind_proxy().start();
    let api = program.api.clone();
    let session = open(&api, "acme", "ws");
    session.completes("echo a");
    session.post("close", json!({})).expect(200);
    program.kill_runtime();
    api.call("DELETE", "/acp/tenants/acme").send().problem(503, "runtime_unavailable");
    api.call("DELETE", "/acp/tenants/acme").send().problem(404, "not_found");
    let why = json!({"actor": "a", "reason": "r"});
    for (path, part) in [("", "limits"), ("/protocol", "allowMigration")] {
        let mut body = why.clone();
        body[part] = if path.is_empty() { json!({"turns": 1}) } else { json!(true) };
        api.call("PUT", &format!("/acp/tenants/acme{path}")).json(&body).send().problem(409, "erasing");
    }
    let new = json!({"installationId": "acme", "workspaceId": "new"});
    api.post("/acp/session/new", new.clone()).problem(409, "erasing");
    program.kill_supervisor();
    program.start_runtime_again();
    program.start_supervisor_again();
    eventually("the erasure is finished", || erasures(&program.api).iter().all(|it| it["endedAt"].is_string()));
    program.api.post("/acp/session/new", new).expect(201);
}

#[test]
fn commands_erase_only_with_a_confirmation() {
    let program = Program::start();
    let session = open(&program.api, "acme", "ws");
    let run = |arguments: &[&str]| {
        Command::new(lumilink())
            .args(arguments)
            .envs(tokens::variables(&program.api.base()))
            .env("HOME", program.folder.path())
            .current_dir(program.folder.path())
            .stdin(std::process::Stdio::null())
            .output()
            .expect("the program runs")
    };
    let refused = run(&["session", "delete", &session.id]);
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("--yes"));
    session.get("").expect(200);
    for arguments in [
        &["session", "delete", &session.id, "--yes"][..],
        &["workspace", "delete", "ws", "--installation", "acme", "--yes"],
    ] {
        let erased = run(arguments);
        assert!(erased.status.success(), "{}", String::from_utf8_lossy(&erased.stderr));
        assert!(String::from_utf8_lossy(&erased.stdout).contains("erasureId: "));
    }
    let set = ["tenant", "set", "acme", "--turns", "3", "--agents", "default", "--actor", "a", "--reason", "r"];
    assert!(run(&set).status.success());
    let kept = program.api.get("/acp/tenants/acme").expect(200);
    assert_eq!((&kept["limits"]["turns"], &kept["ceilings"]["agents"]), (&json!(3), &json!(["default"])));
    assert!(run(&["tenant", "delete", "acme", "--yes"]).status.success());
    let listed = run(&["audit", "erasures", "--csv"]);
    assert_eq!(String::from_utf8_lossy(&listed.stdout).lines().count(), 4, "a header and three erasures");
}
