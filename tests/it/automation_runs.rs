//! Runs of GitHub automation over the API and the command line: read, fetch what was kept, try again, erase.

use std::{fs, process::Command};

use crate::harness::{
    Api, Program, Session, Value, eventually, github::GitHub, json, lumilink, program::Builder, tokens,
};

/// A program whose sessions are automated at the stand-in. A commit needs an identity before GitHub names one.
pub(crate) fn on(builder: Builder, github: &GitHub) -> Builder {
    builder
        .set("github.api_url", github.api_url())
        .set("workspaces.git_hosts", format!("[\"{}\"]", github.host()))
        .set("github.author_name", "Ada")
        .set("github.author_email", "ada@example.com")
}

pub(crate) fn open(api: &Api, github: &GitHub, user: &str) -> Session {
    let repository = github.url("octo/hello");
    api.open_with(
        json!({"workspaceId": "automated", "installationId": "tenant-1", "userId": user, "repository": repository}),
    )
}

/// A turn with a token that GitHub refuses; returns the id of its run, whose commit is kept.
pub(crate) fn keeps(session: &Session) -> String {
    let body =
        json!({"sessionId": session.id, "prompt": "write a.txt hello", "githubToken": "a-token-that-is-wrong"});
    let result = session.api.post("/acp/session/prompt", body).expect(200);
    let automation = &result["githubAutomation"];
    assert_eq!(automation["skipDetail"], "token-refused", "{result}");
    automation["rescue"]["id"].as_str().unwrap_or_else(|| panic!("the commit is kept: {result}")).to_owned()
}

fn client(program: &Program, body: Value) -> Api {
    let made = program.api.post("/acp/tokens", body).expect(201);
    Api::new(&program.api.base(), made["token"].as_str().map(str::to_owned))
}

/// The folders of kept commits.
fn kept_folders(program: &Program) -> usize {
    fn below(folder: &std::path::Path) -> usize {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries
            .map(|entry| match entry.file_name() == "rescue.json" {
                true => 1,
                false if entry.file_type().is_ok_and(|kind| kind.is_dir()) => below(&entry.path()),
                false => 0,
            })
            .sum()
    }
    below(&program.folder.path().join("data"))
}

fn lumilink_automation(program: &Program, arguments: &[&str], token: &str) -> std::process::Output {
    Command::new(lumilink())
        .arg("automation")
        .args(arguments)
        .envs(tokens::variables(&program.api.base()))
        .env("GITHUB_TOKEN", token)
        .env("HOME", program.folder.path())
        .current_dir(program.folder.path())
        .output()
        .expect("the program runs")
}

#[test]
fn kept_commit_is_fetched_and_delivered_by_a_retry_with_a_new_token() {
    let github = GitHub::start();
    let program = on(Program::builder(), &github).start();
    let api = &program.api;
    let session = open(&program.api, &github, "ann");
    let id = keeps(&session);
    let path = format!("/acp/automation/{id}");
    let run = api.get(&path).expect(200);
    assert_eq!((&run["status"], &run["skipReason"]), (&json!("skipped"), &json!("missingCredential")), "{run}");
    assert_eq!((&run["attempt"], &run["pushed"], &run["pullRequest"]), (&json!(1), &json!(false), &Value::Null));
    assert_eq!(
        (&run["plan"]["dryRun"], &run["changes"]["files"][0]["path"]),
        (&json!(false), &json!("a.txt")),
        "{run}"
    );
    let steps: Vec<_> = run["steps"].as_array().unwrap().iter().map(|it| (&it["step"], &it["state"])).collect();
    assert_eq!(steps.last(), Some(&(&json!("rescue"), &json!("done"))), "{run}");
    let patch = api.get(&format!("{path}/rescue?format=patch"));
    assert!(patch.header("content-disposition").contains(&format!("lumilink-{id}.patch")));
    assert!(patch.text.contains("+hello"), "{}", patch.text);
    assert_eq!(patch.status, 200);
    // The file of the command is a bundle that git reads.
    let printed = lumilink_automation(&program, &["rescue", &id, "--out", "kept.bundle"], "");
    assert!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stderr));
    let file = program.folder.path().join("kept.bundle");
    let heads = Command::new("git").args(["bundle", "list-heads"]).arg(file).output().expect("git runs");
    let commit = run["commit"]["sha"].as_str().unwrap();
    assert!(String::from_utf8_lossy(&heads.stdout).contains(commit), "{}", String::from_utf8_lossy(&heads.stderr));
    let again = lumilink_automation(&program, &["rescue", &id, "--out", "kept.bundle"], "");
    assert!(!again.status.success(), "the file exists");
    // A turn that was given a token uses no other credential.
    let retried = lumilink_automation(&program, &["retry", &id], &github.user_token("octocat"));
    assert!(retried.status.success(), "{}", String::from_utf8_lossy(&retried.stderr));
    eventually("the commit is delivered", || api.get(&path).expect(200)["status"] == "success");
    let run = api.get(&path).expect(200);
    assert_eq!((&run["attempt"], &run["rescue"], &run["pushed"]), (&json!(2), &Value::Null, &json!(true)), "{run}");
    assert_eq!((github.issues("octo/hello").len(), github.pulls("octo/hello").len()), (1, 1));
    let gone = api.get(&format!("{path}/rescue")).problem(404, "not_found");
    assert!(gone["detail"].as_str().unwrap().contains("it was delivered"), "{gone}");
    api.post(&format!("{path}/retry"), json!({})).problem(400, "invalid_request");
    eventually("the kept commit is removed", || kept_folders(&program) == 0);
    let shown = lumilink_automation(&program, &["show", &id], "");
    assert!(String::from_utf8_lossy(&shown.stdout).contains("step pull-request: done"), "{shown:?}");
    let listed = lumilink_automation(&program, &["list", "--status", "success"], "");
    assert!(String::from_utf8_lossy(&listed.stdout).contains(&id), "{listed:?}");
}

#[test]
fn retry_of_a_run_that_is_retried_is_refused_and_bad_tokens_are_invalid() {
    let github = GitHub::start();
    let program = on(Program::builder(), &github).start();
    let id = keeps(&open(&program.api, &github, "ann"));
    let path = format!("/acp/automation/{id}/retry");
    for token in ["", "two words", &"x".repeat(4097)] {
        program.api.post(&path, json!({"githubToken": token})).problem(400, "invalid_request");
    }
    program.api.post(&path, json!({"token": "x"})).problem(400, "invalid_request");
    let answer = program.api.call("POST", &path).json(&json!({"githubToken": "another-wrong-token"})).send();
    assert_eq!(answer.header("location"), format!("/acp/automation/{id}"));
    assert_eq!(answer.expect(202)["attempt"], 2);
    // The second attempt runs, or has ended like the first: it is no success.
    let repeated = program.api.post(&path, json!({"githubToken": "another-wrong-token"}));
    assert!([202, 409].contains(&repeated.status), "{}", repeated.text);
    eventually("the attempts end", || {
        program.api.get(&format!("/acp/automation/{id}")).expect(200)["status"] == "skipped"
    });
}

#[test]
fn run_of_another_scope_is_the_same_404() {
    let github = GitHub::start();
    let program = on(Program::builder(), &github).start();
    let (anns, bobs) = (open(&program.api, &github, "ann"), open(&program.api, &github, "bob"));
    let (ann, bob) = (keeps(&anns), keeps(&bobs));
    let unknown = uuid::Uuid::now_v7().to_string();
    let of = |scope: Value| {
        let mut body = json!({"subject": "s", "role": "user"});
        body.as_object_mut().unwrap().extend(scope.as_object().unwrap().clone());
        client(&program, body)
    };
    let foreign = of(json!({"installationId": "tenant-2"}));
    let elsewhere = of(json!({"installationId": "tenant-1", "workspaceId": "other"}));
    let only_bob = of(json!({"installationId": "tenant-1", "userId": "bob"}));
    for api in [&foreign, &elsewhere, &only_bob] {
        for part in ["", "/rescue"] {
            let detail = |id: &str| {
                api.get(&format!("/acp/automation/{id}{part}")).problem(404, "not_found")["detail"].clone()
            };
            assert_eq!(detail(&ann), detail(&unknown));
            assert_eq!(detail(&ann), detail("no-id"));
        }
        api.post(&format!("/acp/automation/{ann}/retry"), json!({})).problem(404, "not_found");
    }
    let listed = |api: &Api, query: &str| {
        let page = api.get(&format!("/acp/automation{query}")).expect(200);
        let items = page["items"].as_array().unwrap().iter();
        let mut ids: Vec<_> = items.map(|run| run["automationId"].as_str().unwrap().to_owned()).collect();
        ids.sort();
        ids
    };
    assert_eq!(listed(&program.api, "?installationId=tenant-1"), [ann.clone(), bob.clone()]);
    assert_eq!(listed(&program.api, &format!("?sessionId={}&status=skipped", anns.id)), std::slice::from_ref(&ann));
    assert!(listed(&program.api, "?status=success").is_empty());
    assert_eq!(listed(&only_bob, ""), std::slice::from_ref(&bob));
    assert!(listed(&elsewhere, "").is_empty() && listed(&foreign, "").is_empty());
    foreign.get("/acp/automation?installationId=tenant-1").problem(404, "not_found");
    only_bob.get(&format!("/acp/automation/{bob}")).expect(200);
    // An operator reads no code and no texts.
    let operator = client(&program, json!({"subject": "op", "role": "operator"}));
    let run = operator.get(&format!("/acp/automation/{ann}")).expect(200);
    assert_eq!(
        (&run["logs"], &run["changes"]["files"], &run["commit"]["message"]),
        (&Value::Null, &Value::Null, &Value::Null)
    );
    operator.get(&format!("/acp/automation/{ann}/rescue")).problem(403, "forbidden");
    operator.post(&format!("/acp/automation/{ann}/retry"), json!({})).problem(403, "forbidden");
}

#[test]
fn run_is_in_summary_explanation_metrics_and_its_erasure_removes_the_kept_commit() {
    let github = GitHub::start();
    let program = on(Program::builder(), &github).start();
    let api = &program.api;
    let session = open(&program.api, &github, "ann");
    let id = keeps(&session);
    let none = json!({"sessionId": session.id, "prompt": "echo a", "automation": {"mode": "none"}});
    api.post("/acp/session/prompt", none).expect(200);
    let counts = api.get("/acp/audit/summary").expect(200)["total"]["automation"].clone();
    assert_eq!(counts["skips"], json!({"automationDisabled": 1, "missingCredential": 1}), "{counts}");
    let metric = |reason: &str| {
        let labels = format!("lumilink_automation_runs_total{{reason=\"{reason}\",status=\"skipped\"}} 1");
        api.get("/metrics").text.lines().any(|line| line == labels)
    };
    eventually("each recorded skip is counted once", || metric("automationDisabled") && metric("missingCredential"));
    let csv = api.get("/acp/audit/automation-runs?format=csv").text;
    assert!(csv.lines().next().unwrap().contains("automationId") && csv.contains(&id), "{csv}");
    let explained = session.get("/explain").expect(200);
    let entries = explained["timeline"].as_array().unwrap().iter();
    let entry = entries.clone().find(|entry| entry["details"]["automationId"] == id.as_str()).expect("the run");
    assert_eq!(entry["details"]["steps"][0], json!({"step": "changes", "state": "done", "code": null}), "{entry}");
    assert_eq!(kept_folders(&program), 1);
    api.call("DELETE", &format!("/acp/session/{}", session.id)).send().expect(200);
    assert_eq!(kept_folders(&program), 0);
    api.get(&format!("/acp/automation/{id}")).problem(404, "not_found");
}
