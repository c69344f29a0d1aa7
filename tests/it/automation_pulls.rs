//! Pull requests that a run did not open: those of people and forks, merged ones, and those of other runs.

use crate::harness::{Program, Session, Value, github::GitHub, json, program::Builder};

const REPOSITORY: &str = "octo/hello";

fn with(github: &GitHub) -> Builder {
    Program::builder()
        .set("workspaces.git_hosts", format!("[\"{}\"]", github.host()))
        .set("github.api_url", github.api_url())
        .set("turn.quiet_s", 1)
        .set("github.author_name", "lumi")
        .set("github.author_email", "lumi@users.noreply.github.com")
}

fn open(program: &Program, github: &GitHub, workspace: &str, of: Value) -> Session {
    let mut body = json!({
        "workspaceId": workspace, "installationId": "acme", "repository": github.url(REPOSITORY),
        "githubToken": github.user_token("octocat"),
    });
    body.as_object_mut().unwrap().extend(of.as_object().unwrap().clone());
    program.api.open_with(body)
}

fn delivered(result: &Value) -> &Value {
    assert_eq!(result["githubAutomation"]["status"], "success", "{result:#}");
    &result["githubAutomation"]
}

fn counts(github: &GitHub, repository: &str) -> (usize, usize, usize) {
    (github.issues(repository).len(), github.pulls(repository).len(), github.branches(repository).len())
}

#[test]
fn session_on_a_pull_request_pushes_to_its_branch_or_fork_where_maintainers_may() {
    let github = GitHub::start();
    let program = with(&github).start();
    github.commit(REPOSITORY, "topic", &[("README.md", "hello\n"), ("topic.txt", "one\n")]);
    let own = github.open_pull(REPOSITORY, (REPOSITORY, "topic"), "main");
    github.fork(REPOSITORY, "stranger/hello");
    github.commit("stranger/hello", "idea", &[("idea.txt", "one\n")]);
    github.edit("stranger/hello", |it| drop(it.people.insert("octocat".into(), "write".into())));
    let fork = github.open_pull(REPOSITORY, ("stranger/hello", "idea"), "main");
    let before = counts(&github, REPOSITORY);
    for (number, repository, branch) in [(own, REPOSITORY, "topic"), (fork, "stranger/hello", "idea")] {
        let session = open(&program, &github, branch, json!({"pullRequest": number}));
        let result = session.completes(&format!("write {branch}.txt two"));
        let automation = delivered(&result);
        assert_eq!((&automation["branch"], &automation["pullRequest"]["number"]), (&json!(branch), &json!(number)));
        assert_eq!(github.git(repository, &["show", &format!("{branch}:{branch}.txt")]).trim(), "two");
        assert_eq!(github.branch(repository, branch).unwrap(), automation["commit"]["sha"].as_str().unwrap());
    }
    assert_eq!(counts(&github, REPOSITORY), before, "nothing is opened");
    github.edit(REPOSITORY, |it| it.issues[1].pull.as_mut().unwrap().maintainer_can_modify = false);
    let session = open(&program, &github, "refused", json!({"pullRequest": fork}));
    let result = session.completes("write idea.txt three");
    assert_eq!(result["githubAutomation"]["skipDetail"], "fork-read-only", "{result:#}");
    assert!(result["githubAutomation"]["rescue"].is_object(), "{result:#}");
    assert_eq!(counts(&github, REPOSITORY), before);
    for bad in [json!({"pullRequest": 0}), json!({"pullRequest": 1, "branch": "main"})] {
        let mut body = json!({"workspaceId": "bad", "installationId": "acme", "repository": github.url(REPOSITORY)});
        body.as_object_mut().unwrap().extend(bad.as_object().unwrap().clone());
        program.api.post("/acp/session/new", body).problem(400, "invalid_request");
    }
}

#[test]
fn same_change_of_two_sessions_is_one_pull_request_and_merges_are_followed() {
    let github = GitHub::start();
    let program = with(&github).start();
    let one = open(&program, &github, "one", json!({}));
    github.edit(REPOSITORY, |it| it.waiting_runs = 1);
    let first = one.completes("write a.txt hello");
    let first = delivered(&first);
    assert_eq!(first["checks"], "waitingForApproval", "{first:#}");
    assert!(github.comments(REPOSITORY)[0].body.contains("wait for the approval"));
    let two = open(&program, &github, "two", json!({}));
    let second = two.completes("write a.txt hello");
    let second = delivered(&second);
    assert_eq!((&second["branch"], &second["pullRequest"]), (&first["branch"], &first["pullRequest"]));
    assert_eq!(counts(&github, REPOSITORY), (1, 1, 2));
    let number = first["pullRequest"]["number"].as_u64().unwrap();
    github.squash(REPOSITORY, number);
    let third = one.completes("write b.txt hello");
    let third = delivered(&third);
    let branch = third["branch"].as_str().unwrap();
    assert_ne!(&third["branch"], &first["branch"]);
    assert_eq!(github.git(REPOSITORY, &["diff", "--name-only", "main", branch]), "b.txt");
    assert_eq!(github.git(REPOSITORY, &["rev-list", "--count", &format!("main..{branch}")]), "1");
    assert_eq!(github.pulls(REPOSITORY).len(), 2);
}

#[test]
fn session_in_a_fork_opens_its_pull_request_in_the_fork_alone() {
    let github = GitHub::start();
    let program = with(&github).start();
    github.fork(REPOSITORY, "octocat/hello");
    github.edit("octocat/hello", |it| it.has_issues = false);
    let before = counts(&github, REPOSITORY);
    let session = open(&program, &github, "fork", json!({"repository": github.url("octocat/hello")}));
    let result = session.completes("write a.txt hello");
    let automation = delivered(&result);
    assert!(automation["issue"].is_null(), "forks have no issues: {automation:#}");
    assert_eq!(github.pulls("octocat/hello").len(), 1);
    assert_eq!(counts(&github, REPOSITORY), before);
}
