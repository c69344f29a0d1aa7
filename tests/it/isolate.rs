//! A session with a folder of its own: its changes are seen and delivered apart from those of others, and its folder ends with
//! it.

use std::fs;

use crate::harness::{
    DEADLINE, Program, Session, Value, eventually, github::GitHub, json, program::Builder, wait_for,
};

const REPOSITORY: &str = "octo/hello";

fn with(github: &GitHub) -> Builder {
    Program::builder()
        .set("workspaces.git_hosts", format!("[\"{}\"]", github.host()))
        .set("github.api_url", github.api_url())
        .set("turn.quiet_s", 1)
        .set("github.author_name", "lumi")
        .set("github.author_email", "lumi@users.noreply.github.com")
}

fn body(github: &GitHub, changes: Value) -> Value {
    let mut body = json!({
        "workspaceId": "ws", "installationId": "tenant-1", "repository": github.url(REPOSITORY),
        "githubToken": github.user_token("octocat"),
    });
    body.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    body
}

fn open(program: &Program, github: &GitHub, changes: Value) -> Session {
    program.api.open_with(body(github, changes))
}

fn has(session: &Session, name: &str) -> bool {
    session.path().join(name).exists()
}

fn changed(session: &Session) -> Vec<String> {
    let diff = session.get("/diff").expect(200);
    diff["files"].as_array().unwrap().iter().map(|it| it["path"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn pull_request_of_a_session_has_only_its_own_change() {
    let github = GitHub::start();
    let program = with(&github).start();
    let sessions = [open(&program, &github, json!({})), open(&program, &github, json!({}))];
    assert_ne!(sessions[0].path(), sessions[1].path());
    for session in &sessions {
        assert_eq!(session.opened["workspace"]["isIsolated"], true, "{}", session.opened);
        let state = session.state();
        assert_eq!(
            (&state["isIsolated"], &state["workspacePath"]),
            (&json!(true), &session.opened["workspace"]["path"])
        );
    }
    let prompts = [sessions[0].starts("write a.txt one"), sessions[1].starts("write b.txt two")];
    for (index, (session, prompt)) in sessions.iter().zip(&prompts).enumerate() {
        let result = &session.ends(prompt)["result"];
        let automation = &result["githubAutomation"];
        assert_eq!(automation["status"], "success", "{result:#}");
        let branch = automation["branch"].as_str().unwrap();
        let files = github.git(REPOSITORY, &["diff", "--name-only", "main", branch]);
        assert_eq!(files.trim(), ["a.txt", "b.txt"][index]);
    }
    assert_eq!(github.pulls(REPOSITORY).len(), 2);
    assert_eq!((changed(&sessions[0]), changed(&sessions[1])), (vec!["a.txt".to_owned()], vec!["b.txt".to_owned()]));
    // The agent of one cannot write into the folder of another.
    let other = sessions[1].path().join("stolen.txt");
    sessions[0].prompt(&format!("write {} x", other.display()));
    assert!(!other.exists());
    // The end of a session removes its folder, and no other.
    sessions[0].post("close", json!({})).expect(200);
    eventually("the folder of the closed session is removed", || !sessions[0].path().exists());
    let root = sessions[1].path().parent().unwrap().to_owned();
    for part in [".baselines", ".repositories"] {
        // They are removed behind the folder.
        eventually("what belongs to the folder is removed", || !root.join(part).join(&sessions[0].id).exists());
        assert!(root.join(part).join(&sessions[1].id).exists(), "{part}");
    }
    assert!(has(&sessions[1], "b.txt"));
    sessions[1].post("close", json!({})).expect(200);
    let erased = program.api.call("DELETE", "/acp/workspaces/ws?installationId=tenant-1").send();
    assert_eq!(erased.status, 200, "{}", erased.text);
    let left: Vec<_> = fs::read_dir(&root).unwrap().flatten().map(|it| it.file_name()).collect();
    assert!(left.iter().all(|name| name.to_string_lossy().starts_with('.')), "{left:?}");
}

#[test]
fn sessions_share_the_folder_unless_they_are_isolated() {
    let github = GitHub::start();
    let program = with(&github).start();
    let shared = open(&program, &github, json!({"isolate": false}));
    assert_eq!(shared.opened["workspace"]["isIsolated"], false);
    shared.completes("write shared.txt x");
    let alone = open(&program, &github, json!({}));
    assert!(!has(&alone, "shared.txt") && has(&alone, "README.md"));
    alone.completes("write alone.txt x");
    for changes in [json!({"isolate": false}), json!({"enableGitOps": false}), json!({"mode": "conversation"})] {
        let another = open(&program, &github, changes.clone());
        assert_eq!(another.path(), shared.path(), "{changes}");
        assert!(has(&another, "shared.txt") && !has(&another, "alone.txt"));
    }
    let asked = open(&program, &github, json!({"isolate": true, "enableGitOps": false}));
    assert!(asked.path() != shared.path() && !has(&asked, "shared.txt"));
    for wrong in
        [json!({"workspaceId": "plain", "isolate": true}), json!({"workspaceId": "p", "isolate": true, "path": "/x"})]
    {
        let mut body = wrong;
        body["installationId"] = json!("tenant-1");
        let problem = program.api.post("/acp/session/new", body).problem(400, "invalid_request");
        assert!(problem["detail"].as_str().unwrap().contains("`isolate` needs a `repository`"), "{problem}");
    }
    assert!(changed(&shared).contains(&"shared.txt".to_owned()));
    // The workspace was opened by sessions of both kinds; the disk use counts all folders.
    shared.post("close", json!({})).expect(200);
    assert!(has(&shared, "shared.txt"), "the folder of a kept workspace stays");
}

#[test]
fn folder_of_an_isolated_session_survives_kills_and_a_later_load() {
    let github = GitHub::start();
    let mut program = with(&github).start();
    let (session, other) = (open(&program, &github, json!({})), open(&program, &github, json!({})));
    let first = session.completes("write a.txt one");
    assert_eq!(first["githubAutomation"]["status"], "success", "{first:#}");
    program.kill_supervisor();
    program.start_supervisor_again();
    let loaded = session.post("load", json!({})).expect(200);
    assert_eq!(loaded["workspace"], session.opened["workspace"]);
    assert!(has(&session, "a.txt"));
    let body =
        json!({"sessionId": session.id, "prompt": "write b.txt two", "githubToken": github.user_token("octocat")});
    let second = program.api.post("/acp/session/prompt", body).expect(200);
    assert_eq!(second["githubAutomation"]["status"], "success", "{second:#}");
    assert_eq!(second["githubAutomation"]["branch"], first["githubAutomation"]["branch"]);
    // A folder that was deleted is cloned again, at the newest commit of the branch.
    github.commit(REPOSITORY, "main", &[("new.txt", "x")]);
    fs::remove_dir_all(other.path()).unwrap();
    other.post("load", json!({})).expect(200);
    assert!(has(&other, "new.txt"));
    let erased = program.api.call("DELETE", &format!("/acp/session/{}", other.id)).send();
    assert_eq!(erased.status, 200, "{}", erased.text);
    assert!(!other.path().exists() && has(&session, "a.txt"));
}

#[test]
fn commit_that_could_not_be_delivered_outlives_the_folder_of_its_session() {
    let github = GitHub::start();
    let program = with(&github).start();
    let session = open(&program, &github, json!({"githubToken": null}));
    let body =
        json!({"sessionId": session.id, "prompt": "write a.txt hello", "githubToken": "a-token-that-is-wrong"});
    let result = program.api.post("/acp/session/prompt", body).expect(200);
    let id = result["githubAutomation"]["rescue"]["id"].as_str().unwrap_or_else(|| panic!("{result:#}")).to_owned();
    session.post("close", json!({})).expect(200);
    eventually("the folder is removed", || !session.path().exists());
    let path = format!("/acp/automation/{id}");
    program.api.post(&format!("{path}/retry"), json!({"githubToken": github.user_token("octocat")})).expect(202);
    let run = wait_for(DEADLINE, "the attempt ends", || {
        let run = program.api.get(&path).expect(200);
        (!["running", "waiting"].contains(&run["status"].as_str().unwrap())).then_some(run)
    });
    assert_eq!((&run["status"], &run["attempt"]), (&json!("success"), &json!(2)), "{run:#}");
    let branch = run["branch"].as_str().unwrap();
    assert_eq!(github.git(REPOSITORY, &["show", &format!("{branch}:a.txt")]).trim(), "hello");
}
