//! What an agent changed arrives at GitHub as a branch, an issue and a pull request, exactly once, and is never lost.

use std::{collections::BTreeMap, time::Duration};

use crate::harness::{
    DEADLINE, Program, Session, Value,
    dice::Dice,
    github::{
        GitHub,
        faults::{Fault, passing_faults},
        git::Rejection,
    },
    json,
    program::Builder,
    wait_for,
};

const REPOSITORY: &str = "octo/hello";
const TENANT: &str = "tenant-1";

/// A program that may clone from a GitHub, and delivers changes to it.
pub(crate) fn with(github: &GitHub) -> Builder {
    Program::builder()
        .set("workspaces.git_hosts", format!("[\"{}\"]", github.host()))
        .set("github.api_url", github.api_url())
        .set("turn.quiet_s", 1)
        .set("github.author_name", "lumi")
        .set("github.author_email", "lumi@users.noreply.github.com")
}

fn open(program: &Program, github: &GitHub) -> Session {
    program.api.open_with(json!({
        "workspaceId": "ws", "installationId": TENANT, "repository": github.url(REPOSITORY),
        "githubToken": github.user_token("octocat"),
    }))
}

fn prompt(session: &Session, text: &str, automation: Value) -> Value {
    let body = json!({"sessionId": session.id, "prompt": text, "automation": automation});
    session.api.post("/acp/session/prompt", body).expect(200)
}

fn runs(program: &Program) -> Vec<Value> {
    program.api.get("/acp/audit/automation-runs").expect(200)["items"].as_array().unwrap().clone()
}

#[test]
fn changes_of_a_turn_become_an_issue_a_branch_and_a_pull_request_on_both_routes() {
    let github = GitHub::start();
    for route in ["acp", "http"] {
        let program = with(&github).start();
        let session = open(&program, &github);
        let pin = json!({"pin": {"protocol": route}, "actor": "ada", "reason": "to compare the routes"});
        let path = format!("/acp/workspaces/ws/protocol?installationId={TENANT}");
        program.api.call("PUT", &path).json(&pin).send().expect(200);
        let (issues, pulls) = (github.issues(REPOSITORY).len(), github.pulls(REPOSITORY).len());
        // Equal changes would be one pull request.
        let result = prompt(&session, &format!("write a.txt {route}"), json!({}));
        assert_eq!(result["meta"]["protocol"], route, "{result}");
        let automation = &result["githubAutomation"];
        assert_eq!(automation["status"], "success", "{result:#}");
        let branch = automation["branch"].as_str().unwrap();
        assert!(branch.starts_with("claude-code/issue-"), "{branch}");
        assert_eq!(automation["commit"]["sha"], github.branch(REPOSITORY, branch).unwrap(), "{automation}");
        assert_eq!(github.git(REPOSITORY, &["show", &format!("{branch}:a.txt")]).trim(), route);
        assert_eq!((github.issues(REPOSITORY).len(), github.pulls(REPOSITORY).len()), (issues + 1, pulls + 1));
        let pull = github.pulls(REPOSITORY).pop().unwrap();
        let issue = automation["issue"]["number"].as_u64().unwrap();
        assert!(pull.body.contains(&format!("Fixes #{issue}")), "{}", pull.body);
        assert!(github.comments(REPOSITORY).iter().any(|it| it.body.contains("pull request")));
        let recorded = &runs(&program)[0];
        assert_eq!((&recorded["status"], &recorded["branch"]), (&json!("success"), &json!(branch)), "{recorded}");
    }
    assert_eq!(github.duplicates(REPOSITORY), Vec::<String>::new());
}

#[test]
fn later_turns_of_a_session_push_to_its_branch_and_open_nothing_new() {
    let github = GitHub::start();
    let program = with(&github).start();
    let session = open(&program, &github);
    let first = prompt(&session, "write a.txt one", json!({}));
    let second = prompt(&session, "write b.txt two", json!({}));
    let (first, second) = (&first["githubAutomation"], &second["githubAutomation"]);
    assert_eq!(second["status"], "success", "{second:#}");
    assert_eq!(
        (&first["branch"], &first["pullRequest"]["number"]),
        (&second["branch"], &second["pullRequest"]["number"])
    );
    assert_eq!((github.issues(REPOSITORY).len(), github.pulls(REPOSITORY).len()), (1, 1));
    let log = github.git(REPOSITORY, &["log", "--format=%H", second["branch"].as_str().unwrap()]);
    assert_eq!(log.lines().count(), 3, "the base and two commits: {log}");
    let third = prompt(&session, "echo nothing", json!({}));
    assert_eq!(third["githubAutomation"]["skipDetail"], "no-changes", "{third:#}");
}

#[test]
fn dry_run_and_commit_only_create_no_issue_and_no_pull_request() {
    let github = GitHub::start();
    let program = with(&github).start();
    let session = open(&program, &github);
    let dry = prompt(&session, "write a.txt one", json!({"dryRun": true}));
    let dry = &dry["githubAutomation"];
    assert_eq!((&dry["status"], &dry["dryRun"]), (&json!("success"), &json!(true)), "{dry:#}");
    assert_eq!(github.branches(REPOSITORY).len(), 1, "only main");
    let pushed = prompt(&session, "write b.txt two", json!({"mode": "commit-only", "branchName": "topic/mine"}));
    assert_eq!(pushed["githubAutomation"]["branch"], "topic/mine", "{pushed:#}");
    assert!(github.branch(REPOSITORY, "topic/mine").is_some());
    assert_eq!((github.issues(REPOSITORY).len(), github.pulls(REPOSITORY).len()), (0, 0));
}

#[test]
fn lost_answers_make_no_second_issue_and_no_second_pull_request() {
    let github = GitHub::start();
    let program = with(&github).start();
    let session = open(&program, &github);
    github.fault("POST", "/api/v3/repos/*/*/issues", Fault::DropAfter);
    github.fault("POST", "/api/v3/repos/*/*/pulls", Fault::DropAfter);
    github.fault("POST", "/octo/hello.git/git-receive-pack", Fault::DropAfter);
    let result = prompt(&session, "write a.txt hello", json!({}));
    assert_eq!(result["githubAutomation"]["status"], "success", "{result:#}");
    assert_eq!(github.faults_left(), 0);
    assert_eq!((github.issues(REPOSITORY).len(), github.pulls(REPOSITORY).len()), (1, 1));
}

#[test]
fn refused_push_keeps_the_commit_and_a_retry_delivers_it() {
    let github = GitHub::start();
    let program = with(&github).start();
    let session = open(&program, &github);
    github.reject(REPOSITORY, &Rejection::creation_restricted("claude-code/x"));
    let result = prompt(&session, "write a.txt hello", json!({}));
    let automation = &result["githubAutomation"];
    assert_eq!(
        (&automation["status"], &automation["skipDetail"]),
        (&json!("skipped"), &json!("ruleset")),
        "{result:#}"
    );
    let run = automation["rescue"]["id"].as_str().expect("the commit is kept").to_owned();
    assert_eq!(github.pulls(REPOSITORY).len(), 0);
    github.permit(REPOSITORY);
    let retry = program.api.post(&format!("/acp/automation/{run}/retry"), json!({}));
    retry.expect(202);
    let delivered = wait_for(DEADLINE, "the delivery", || {
        runs(&program).into_iter().find(|run| run["attempts"] == 2 && run["status"] == "success")
    });
    assert_eq!(delivered["automationId"], run, "{delivered}");
    assert_eq!((github.issues(REPOSITORY).len(), github.pulls(REPOSITORY).len()), (1, 1));
    let prompt_id = result["meta"]["promptId"].as_str().unwrap();
    let kept = program.api.get(&format!("/acp/prompt/{prompt_id}")).expect(200);
    assert_eq!(kept["result"]["githubAutomation"]["status"], "skipped", "the turn's result does not change: {kept}");
}

/// Sessions of the fault test; each has one to three turns.
const SESSIONS: usize = 6;

/// A program with the App, bound to the tenant, and a runtime that can be restarted by itself.
fn with_app(github: &GitHub) -> Program {
    let program = with(github)
        .set("github.app_id", github.app_id())
        .env("LUMILINK_GITHUB__PRIVATE_KEY_FILE", &github.app_key_file().display().to_string())
        .behind_proxy()
        .start();
    let automation = json!({"automation": {"installations": [77]}, "actor": "ada", "reason": "test"});
    program.api.call("PUT", &format!("/acp/tenants/{TENANT}")).json(&automation).send().expect(200);
    program
}

/// Ends everything that is open, as an operator would: the newest run of each session is retried until it has succeeded.
fn deliver_all(program: &Program) {
    wait_for(FAULT_DEADLINE, "the delivery of every run", || {
        let listed = program.api.get("/acp/automation?limit=200").expect(200);
        let mut newest = BTreeMap::new();
        for run in listed["items"].as_array().unwrap() {
            newest.entry(run["sessionId"].as_str().unwrap()).or_insert(run);
        }
        let open: Vec<_> = newest.into_values().filter(|run| run["status"] != "success").collect();
        for run in open.iter().filter(|run| run["status"] != "running") {
            let path = format!("/acp/automation/{}/retry", run["automationId"].as_str().unwrap());
            // 409 for a run whose attempt just began.
            let answer = program.api.post(&path, json!({}));
            assert!(matches!(answer.status, 202 | 409), "{}", answer.status);
        }
        open.is_empty().then_some(())
    });
}

/// Time for faults, kills, and the attempts after them.
const FAULT_DEADLINE: Duration = Duration::from_secs(180);

#[test]
fn kills_and_lost_answers_leave_one_issue_and_one_pull_request_for_each_session() {
    let github = GitHub::start();
    let mut program = with_app(&github);
    let sessions: Vec<_> = (0..SESSIONS)
        .map(|number| {
            let repository = format!("octo/r{number}");
            github.create(&repository);
            github.commit(&repository, "main", &[("README.md", "hello\n")]);
            let body = json!({
                "workspaceId": format!("ws-{number}"), "installationId": TENANT, "repository": github.url(&repository),
            });
            (repository, program.api.open_with(body))
        })
        .collect();
    github.chaos(Dice::of_seed(15), 8, passing_faults());
    for turn in 0..3 {
        let started: Vec<_> = sessions.iter().take(SESSIONS - 2 * turn).collect();
        let prompts: Vec<_> =
            started.iter().map(|(_, session)| session.starts(&format!("write turn-{turn}.txt hello"))).collect();
        let pushed = || github.requests_of("POST", "/**").len();
        let before = pushed();
        wait_for(DEADLINE, "automation runs", || (pushed() > before + turn).then_some(()));
        match turn {
            0 => program.kill_supervisor(),
            1 => program.kill_runtime(),
            _ => {
                program.kill_supervisor();
                program.kill_runtime();
            }
        }
        if turn != 0 {
            program.start_runtime_again();
        }
        if turn != 1 {
            program.start_supervisor_again();
        }
        for prompt in &prompts {
            wait_for(FAULT_DEADLINE, "the end of the turn", || {
                let read = program.api.get(&format!("/acp/prompt/{prompt}")).expect(200);
                (!read["endedAt"].is_null()).then_some(())
            });
        }
    }
    github.calm();
    deliver_all(&program);
    for (repository, session) in &sessions {
        let runs = program.api.get(&format!("/acp/automation?sessionId={}", session.id)).expect(200);
        assert_eq!(github.issues(repository).len(), 1, "{repository}: {runs:#}");
        assert_eq!(github.pulls(repository).len(), 1, "{repository}: {runs:#}");
        assert_eq!(github.duplicates(repository), Vec::<String>::new());
        let branches = github.branches(repository);
        assert_eq!(branches.len(), 2, "{repository}: {branches:?}");
    }
}
