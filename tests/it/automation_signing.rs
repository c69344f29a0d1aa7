//! Branches whose rules demand signed commits: GitHub signs for the App, and a key signs for everybody.

use std::{process::Command, time::Duration};

use crate::harness::{
    Program, Session, Value,
    github::{GitHub, faults::Fault},
    json,
    program::{Builder, Folder},
};

const REPOSITORY: &str = "octo/hello";
const BRANCHES: &str = "claude-code/*";
const EMAIL: &str = "1+lumi-test[bot]@users.noreply.github.com";

fn with(github: &GitHub) -> Builder {
    Program::builder()
        .set("workspaces.git_hosts", format!("[\"{}\"]", github.host()))
        .set("github.api_url", github.api_url())
        .set("turn.quiet_s", 1)
        .set("github.author_name", "lumi-test[bot]")
        .set("github.author_email", EMAIL)
}

fn open(program: &Program, github: &GitHub, workspace: &str, token: Option<String>) -> Session {
    let mut body = json!({"workspaceId": workspace, "installationId": "acme", "repository": github.url(REPOSITORY)});
    if let Some(token) = token {
        body["githubToken"] = token.into();
    }
    program.api.open_with(body)
}

fn delivered(result: &Value) -> (String, String) {
    let automation = &result["githubAutomation"];
    assert_eq!(automation["status"], "success", "{result:#}");
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    (text(&automation["branch"]), text(&automation["commit"]["sha"]))
}

#[test]
fn branch_that_demands_signatures_gets_commits_that_github_makes_for_the_app() {
    let github = GitHub::start();
    let program = with(&github)
        .set("github.app_id", github.app_id())
        .env("LUMILINK_GITHUB__PRIVATE_KEY_FILE", &github.app_key_file().display().to_string())
        .start();
    let bound = json!({"automation": {"installations": [77]}, "actor": "ada", "reason": "test"});
    program.api.call("PUT", "/acp/tenants/acme").json(&bound).send().expect(200);
    github.demand_signatures(REPOSITORY, BRANCHES);
    let session = open(&program, &github, "one", None);
    // GitHub creates the branch and makes the commit, and neither answer arrives.
    github.fault("POST", "/api/v3/repos/*/*/git/refs", Fault::DropAfter);
    github.fault("POST", "/api/graphql", Fault::DropAfter);
    let first = session.completes("write a.txt hello");
    let (branch, sha) = delivered(&first);
    assert_eq!(github.faults_left(), 0);
    assert!(github.has_signed(&sha) && github.branch(REPOSITORY, &branch).as_ref() == Some(&sha));
    assert_eq!(github.git(REPOSITORY, &["rev-list", "--count", &format!("main..{branch}")]), "1", "one commit");
    // A person commits between two turns: the next commit is made on top.
    github.commit(REPOSITORY, &branch, &[("person.txt", "by a person\n")]);
    let second = session.completes("write a.txt again");
    let (again, sha) = delivered(&second);
    assert!(again == branch && github.has_signed(&sha), "{second:#}");
    assert_eq!(github.git(REPOSITORY, &["show", &format!("{branch}:a.txt")]).trim(), "again");
    assert_eq!(github.git(REPOSITORY, &["show", &format!("{branch}:person.txt")]).trim(), "by a person");
    assert_eq!((github.issues(REPOSITORY).len(), github.pulls(REPOSITORY).len()), (1, 1));
    // A token without a key cannot sign.
    let other = open(&program, &github, "two", Some(github.user_token("octocat")));
    let skipped = other.completes("write b.txt hello");
    assert_eq!(skipped["githubAutomation"]["skipDetail"], "signing-required", "{skipped:#}");
    assert!(skipped["githubAutomation"]["rescue"].is_object(), "the commit is kept");
    assert_eq!(github.issues(REPOSITORY).len(), 1, "nothing is opened for it");
}

#[test]
fn turn_after_a_commit_of_github_without_an_answer_follows_it_on_its_branch() {
    let github = GitHub::start();
    let program = with(&github)
        .set("github.app_id", github.app_id())
        .env("LUMILINK_GITHUB__PRIVATE_KEY_FILE", &github.app_key_file().display().to_string())
        .start();
    let bound = json!({"automation": {"installations": [77]}, "actor": "ada", "reason": "test"});
    program.api.call("PUT", "/acp/tenants/acme").json(&bound).send().expect(200);
    github.demand_signatures(REPOSITORY, BRANCHES);
    let session = open(&program, &github, "one", None);
    // GitHub makes the commit, the answer is lost, and in all three executions of the step the branch cannot be read.
    github.fault("POST", "/api/graphql", Fault::DropAfter);
    let refs = "/octo/hello.git/info/refs";
    github.fault("GET", refs, Fault::Slow(Duration::ZERO));
    for _ in 0..3 {
        github.fault("GET", refs, Fault::Status(502));
    }
    let first = session.completes("write a.txt one");
    assert_eq!(github.faults_left(), 0);
    let first = &first["githubAutomation"];
    assert_eq!(
        (&first["status"], &first["error"]["code"]),
        (&json!("error"), &json!("github-unavailable")),
        "{first:#}"
    );
    let ours: Vec<_> = github.branches(REPOSITORY).into_iter().filter(|(name, _)| name != "main").collect();
    let [(branch, made)] = &ours[..] else { panic!("{ours:?}") };
    let second = session.completes("write b.txt two");
    let (again, sha) = delivered(&second);
    assert!(&again == branch && github.has_signed(&sha), "{second:#}");
    assert_eq!(github.git(REPOSITORY, &["rev-parse", &format!("{branch}^")]).trim(), made, "nothing is overwritten");
    assert_eq!(github.git(REPOSITORY, &["show", &format!("{branch}:a.txt")]).trim(), "one");
    assert_eq!((github.branches(REPOSITORY).len(), github.issues(REPOSITORY).len()), (2, 1));
    assert_eq!(github.pulls(REPOSITORY).len(), 1);
}

#[test]
fn branch_that_demands_signatures_gets_commits_that_the_key_signed() {
    let (github, folder) = (GitHub::start(), Folder::new());
    let key = folder.path().join("signing");
    let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key).status();
    assert!(made.expect("ssh-keygen runs").success());
    let public = std::fs::read_to_string(key.with_extension("pub")).unwrap();
    github.trust(REPOSITORY, EMAIL, &public);
    let program = with(&github).env("LUMILINK_GITHUB__SIGNING_KEY_FILE", &key.display().to_string()).start();
    // No rule shows it before the push, as with the protection of a branch that is no ruleset.
    github.demand_signatures(REPOSITORY, BRANCHES);
    github.edit(REPOSITORY, |it| it.rules.clear());
    let session = open(&program, &github, "one", Some(github.user_token("octocat")));
    let first = session.completes("write a.txt hello");
    let (branch, sha) = delivered(&first);
    assert_eq!(github.branch(REPOSITORY, &branch), Some(sha));
    github.add_rule(REPOSITORY, BRANCHES, "required_signatures");
    let (again, _) = delivered(&session.completes("write b.txt hello"));
    assert_eq!(again, branch);
}
