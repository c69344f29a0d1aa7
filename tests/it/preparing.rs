//! Sessions that are prepared after the answer: their clone has progress, and ends as ready, failed, closed or interrupted.

use std::{fs, path::Path};

use crate::harness::{
    Answer, DEADLINE, Program, Session, Value, eventually,
    github::{GitHub, faults::Fault},
    json,
    program::Builder,
    wait_for,
};

const REPOSITORY: &str = "octo/hello";
/// The first request of a clone.
const FETCH: (&str, &str) = ("GET", "/octo/hello.git/info/refs");

fn with(github: &GitHub) -> Builder {
    Program::builder()
        .set("workspaces.git_hosts", format!("[\"{}\"]", github.host()))
        .set("github.api_url", github.api_url())
}

fn body(github: &GitHub, workspace: &str) -> Value {
    json!({"workspaceId": workspace, "installationId": "tenant-1", "repository": github.url(REPOSITORY)})
}

fn later(program: &Program, body: &Value) -> Answer {
    program.api.call("POST", "/acp/session/new").header("prefer", "respond-async").json(body).send()
}

/// A session whose clone waits at the host.
fn held(program: &Program, github: &GitHub, body: &Value) -> Session {
    github.fault(FETCH.0, FETCH.1, Fault::Hold);
    let before = github.held();
    let accepted = later(program, body).expect(202);
    let id = accepted["sessionId"].as_str().expect("an id").to_owned();
    wait_for(DEADLINE, "the clone is held", || (github.held() > before).then_some(()));
    Session { api: program.api.clone(), id, opened: accepted }
}

/// Names of what the runtime keeps, and of clones in progress.
fn folders(program: &Program) -> (Vec<String>, usize) {
    let root = program.folder.path().join("data/workspaces");
    let names = |folder: &Path| -> Vec<String> {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    };
    let kept = names(&root).into_iter().filter(|name| !name.starts_with('.')).collect();
    (kept, names(&root.join(".incoming")).len())
}

#[test]
fn session_is_prepared_after_the_answer_and_its_events_show_the_clone() {
    let github = GitHub::start();
    let program = with(&github).set("capacity.max_sessions", 1).start();
    let mut wanted = body(&github, "ws");
    wanted["isolate"] = json!(true);
    github.fault(FETCH.0, FETCH.1, Fault::Hold);
    let open = || {
        let call = program.api.call("POST", "/acp/session/new").header("prefer", "respond-async");
        call.header("idempotency-key", "k-1").json(&wanted).send()
    };
    let answer = open();
    assert_eq!(answer.header("preference-applied"), "respond-async");
    let location = answer.header("location");
    let accepted = answer.expect(202);
    let id = accepted["sessionId"].as_str().unwrap().to_owned();
    assert_eq!((&accepted["state"], &accepted["workspace"]["isIsolated"]), (&json!("preparing"), &json!(true)));
    assert_eq!(location, format!("/acp/session/{id}"));
    let again = open();
    assert_eq!((again.status, again.header("idempotent-replayed")), (202, "true".to_owned()));
    assert_eq!(again.expect(202), accepted);
    wait_for(DEADLINE, "the clone is held", || (github.held() == 1).then_some(()));
    let session = Session { api: program.api.clone(), id, opened: accepted };
    let state = session.state();
    assert_eq!((&state["state"], &state["lastEventId"]), (&json!("preparing"), &json!(1)), "{state}");
    let listed = program.api.get("/acp/sessions?state=preparing").expect(200);
    assert_eq!(listed["items"][0]["sessionId"], json!(session.id));
    assert_eq!(program.api.get("/acp/sessions?state=idle").expect(200)["items"], json!([]));
    // It is not ready, and it holds the seat.
    session.prompt("echo early").problem(409, "session_preparing");
    session.post("load", json!({})).problem(409, "session_preparing");
    session.post("mode", json!({"modeId": "ask"})).problem(409, "session_preparing");
    assert_eq!(session.post("cancel", json!({})).expect(200)["cancelled"], false);
    later(&program, &body(&github, "other")).problem(503, "capacity_exhausted");
    let mut events = session.api.events(&format!("/acp/session/{}/events", session.id));
    github.release();
    let seen = events.until("the session is ready", |event| event.data["update"]["state"] == "idle");
    let states: Vec<_> = seen.iter().filter_map(|event| event.data["update"]["state"].as_str()).collect();
    assert_eq!(states.first(), Some(&"preparing"), "{states:?}");
    let progress: Vec<_> =
        seen.iter().filter(|event| event.name == "preparation").map(|it| &it.data["update"]).collect();
    assert!(progress.iter().any(|it| it["phase"] == "receiving" && it["percent"] == 100), "{progress:?}");
    let ready = session.becomes("idle");
    let folder = ready["workspacePath"].as_str().unwrap();
    assert!(Path::new(folder).join("README.md").exists() && folder.ends_with(&session.id));
    session.completes("write a.txt x");
    assert_eq!(program.metrics().sum("lumilink_clone_seconds_count", &[("result", "done")]), 1.0);
}

#[test]
fn preparation_that_fails_leaves_a_failed_session_that_a_load_prepares() {
    let github = GitHub::start();
    github.edit(REPOSITORY, |it| it.is_private = true);
    let program = with(&github).start();
    let accepted = later(&program, &body(&github, "ws")).expect(202);
    let id = accepted["sessionId"].as_str().unwrap().to_owned();
    let session = Session { api: program.api.clone(), id, opened: accepted };
    let failed = session.becomes("failed");
    let failure = &failed["failure"];
    assert_eq!(failure["code"], "workspace_unavailable", "{failed}");
    assert!(failure["detail"].as_str().unwrap().contains("give `githubToken`"), "{failed}");
    session.prompt("echo x").problem(409, "session_failed");
    // The synchronous answer is the same problem, and leaves no session.
    let refused = program.api.post("/acp/session/new", body(&github, "sync")).problem(422, "workspace_unavailable");
    assert!(refused["detail"].as_str().unwrap().starts_with(failure["detail"].as_str().unwrap()), "{refused}");
    assert_eq!(program.api.get("/acp/sessions?workspaceId=sync").expect(200)["items"], json!([]));
    // A workspace without a folder takes another repository.
    github.create("octo/other");
    github.commit("octo/other", "main", &[("other.txt", "x")]);
    let mut other = body(&github, "sync");
    other["repository"] = json!(github.url("octo/other"));
    assert!(program.api.open_with(other).path().join("other.txt").exists());
    github.edit(REPOSITORY, |it| it.is_private = false);
    let loaded = session.post("load", json!({})).expect(200);
    assert!(Path::new(loaded["workspace"]["path"].as_str().unwrap()).join("README.md").exists());
    session.completes("write a.txt x");
}

/// A session that is not live and whose folder is gone, as after the loss of a disk.
fn lost(program: &mut Program, github: &GitHub, workspace: &str) -> Session {
    let mut wanted = body(github, workspace);
    wanted["isolate"] = json!(true);
    let session = program.api.open_with(wanted);
    let folder = session.path();
    program.kill_supervisor();
    fs::remove_dir_all(folder).expect("it is there");
    program.start_supervisor_again();
    github.fault(FETCH.0, FETCH.1, Fault::Hold);
    session
}

#[test]
fn load_that_clones_again_publishes_its_progress_and_can_be_closed() {
    let github = GitHub::start();
    let mut program = with(&github).start();
    let session = lost(&mut program, &github, "ws");
    let before = session.state()["lastEventId"].as_u64().unwrap();
    let id = session.id.clone();
    let load = {
        let api = program.api.clone();
        move || api.post("/acp/session/load", json!({"sessionId": id}))
    };
    let loading = std::thread::spawn(load.clone());
    session.becomes("preparing");
    let mut events = session.api.events(&format!("/acp/session/{}/events", session.id));
    // Another load and a prompt wait for the first one.
    let second = std::thread::spawn(load.clone());
    github.release();
    let seen = events.until("the session is ready", |event| event.data["update"]["state"] == "idle");
    let progress: Vec<_> =
        seen.iter().filter(|event| event.name == "preparation").map(|it| &it.data["update"]).collect();
    assert!(progress.iter().any(|it| it["phase"] == "receiving" && it["percent"] == 100), "{progress:?}");
    assert!(seen.iter().all(|event| event.id.is_none_or(|id| id > before)));
    for loaded in [loading, second] {
        loaded.join().unwrap().expect(200);
    }
    session.completes("write a.txt x");
    // One that fails says so in the events, and the session can be loaded later.
    let other = lost(&mut program, &github, "other");
    github.edit(REPOSITORY, |it| it.is_private = true);
    let id = other.id.clone();
    let api = program.api.clone();
    let loading = std::thread::spawn(move || api.post("/acp/session/load", json!({"sessionId": id})));
    other.becomes("preparing");
    let mut events = other.api.events(&format!("/acp/session/{}/events", other.id));
    github.release();
    let seen = events.until("the failure", |event| event.data["update"]["failure"].is_object());
    assert_eq!(seen.last().unwrap().data["update"]["failure"]["code"], "workspace_unavailable");
    loading.join().unwrap().problem(422, "workspace_unavailable");
    assert_eq!(other.state()["state"], "hibernated");
    // A close ends the clone, and the load.
    github.edit(REPOSITORY, |it| it.is_private = false);
    github.fault(FETCH.0, FETCH.1, Fault::Hold);
    let id = other.id.clone();
    let api = program.api.clone();
    let loading = std::thread::spawn(move || api.post("/acp/session/load", json!({"sessionId": id})));
    other.becomes("preparing");
    assert_eq!(other.post("close", json!({})).expect(200)["state"], "closed");
    loading.join().unwrap().problem(409, "session_closed");
    github.release();
    eventually("the clone is removed", || folders(&program).1 == 0);
}

#[test]
fn close_of_a_session_that_is_prepared_ends_its_clone_and_leaves_no_folder() {
    let github = GitHub::start();
    let program = with(&github).set("capacity.max_sessions", 1).start();
    let session = held(&program, &github, &body(&github, "ws"));
    assert_eq!(session.post("close", json!({})).expect(200)["state"], "closed");
    assert_eq!(session.state()["state"], "closed");
    eventually("the clone is removed", || folders(&program) == (Vec::new(), 0));
    github.release();
    // Its seat is free.
    program.api.open("other");
    session.post("load", json!({})).problem(409, "session_closed");
}

#[test]
fn kill_of_the_service_leaves_no_session_that_is_prepared_for_ever() {
    let github = GitHub::start();
    let mut program = with(&github).start();
    let session = held(&program, &github, &body(&github, "ws"));
    program.kill_supervisor();
    github.release();
    program.start_supervisor_again();
    let state = session.state();
    assert_eq!((&state["state"], &state["failure"]["code"]), (&json!("failed"), &json!("interrupted")), "{state}");
    let loaded = session.post("load", json!({})).expect(200);
    assert!(Path::new(loaded["workspace"]["path"].as_str().unwrap()).join("README.md").exists());
    session.completes("echo ready");
    // An orderly stop ends a preparation with the same advice.
    let second = held(&program, &github, &body(&github, "two"));
    program.signal(libc::SIGTERM);
    program.ends(DEADLINE);
    github.release();
    program.start_supervisor_again();
    let state = second.state();
    assert_eq!((&state["state"], &state["failure"]["code"]), (&json!("failed"), &json!("draining")), "{state}");
}
