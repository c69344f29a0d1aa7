//! Automation with the GitHub App: installations are bound to tenants, tokens are minted for each run, and policies apply.

use std::{fs, path::Path, process::Command};

use crate::harness::{
    Api, DEADLINE, Program, Session, Value, eventually,
    github::{GitHub, faults::Fault, git::Rejection},
    json, lumilink,
    program::{Builder, Folder},
    tokens, wait_for,
};

/// Id of the installation on `octo`.
const OCTO: u64 = 77;
const MINTED: (&str, &str) = ("POST", "/api/v3/app/installations/*/access_tokens");

fn with(github: &GitHub) -> Builder {
    Program::builder()
        .set("workspaces.git_hosts", format!("[\"{}\"]", github.host()))
        .set("github.api_url", github.api_url())
        .set("turn.quiet_s", 1)
        .set("github.app_id", github.app_id())
        .set("github.author_name", "lumi-test[bot]")
        .set("github.author_email", "1+lumi-test[bot]@users.noreply.github.com")
        .env("LUMILINK_GITHUB__PRIVATE_KEY_FILE", &github.app_key_file().display().to_string())
}

fn set(api: &Api, tenant: &str, automation: Value) -> Value {
    let body = json!({"automation": automation, "actor": "ada", "reason": "test"});
    api.call("PUT", &format!("/acp/tenants/{tenant}")).json(&body).send().expect(200)
}

fn open(program: &Program, github: &GitHub, tenant: &str) -> Session {
    let repository = github.url("octo/hello");
    program.api.open_with(json!({"workspaceId": "ws", "installationId": tenant, "repository": repository}))
}

fn reasons(result: &Value) -> (&str, &str) {
    let automation = &result["githubAutomation"];
    assert_eq!(automation["status"], "skipped", "{result}");
    (automation["skipReason"].as_str().unwrap(), automation["skipDetail"].as_str().unwrap_or_default())
}

fn succeeds(result: &Value) -> &Value {
    assert_eq!(result["githubAutomation"]["status"], "success", "{result}");
    &result["githubAutomation"]
}

/// Names of files below a folder that contain a text.
fn files_with(folder: &Path, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(files_with(&path, text));
        } else if fs::read(&path).is_ok_and(|bytes| bytes.windows(text.len()).any(|it| it == text.as_bytes())) {
            found.push(path.display().to_string());
        }
    }
    found
}

#[test]
fn bound_installation_delivers_with_least_permissions_and_the_policy_of_the_tenant() {
    let github = GitHub::start();
    let program = with(&github).start();
    let policy = json!({
        "installations": [OCTO], "draft": true, "labels": ["bot"], "assignees": ["octocat"],
        "branchTemplate": "bots/{name}",
    });
    set(&program.api, "acme", policy);
    let session = open(&program, &github, "acme");
    let result = session.completes("write a.txt hello");
    let automation = succeeds(&result);
    assert!(automation["branch"].as_str().unwrap().starts_with("bots/issue-"), "{automation}");
    let pulls = github.pulls("octo/hello");
    assert_eq!(pulls.len(), 1);
    let pull = pulls[0].pull.as_ref().unwrap();
    assert!(pull.is_draft && pulls[0].labels == ["bot"] && pulls[0].assignees == ["octocat"], "{pulls:?}");
    let minted = github.requests_of(MINTED.0, MINTED.1);
    assert_eq!(minted.len(), 1, "one token for all steps");
    let permissions = json!({"contents": "write", "issues": "write", "metadata": "read", "pull_requests": "write"});
    assert_eq!(minted[0].body, json!({"permissions": permissions, "repositories": ["hello"]}));
    // Nothing that a token touched keeps it, and no part of the key is anywhere.
    let key = fs::read_to_string(github.app_key_file()).unwrap();
    let secrets = github.tokens().into_iter().chain(key.lines().nth(1).map(str::to_owned));
    for secret in secrets {
        assert!(!program.log().contains(&secret), "in the log");
        assert_eq!(files_with(&program.folder.path().join("data"), &secret), [""; 0]);
    }
}

#[test]
fn tenant_without_a_bound_installation_is_skipped_for_no_installation() {
    let github = GitHub::start();
    let program = with(&github).start();
    set(&program.api, "other", json!({"installations": [OCTO]}));
    let session = open(&program, &github, "acme");
    assert_eq!(reasons(&session.completes("write a.txt hello")), ("missingCredential", "no-installation"));
    assert_eq!(github.requests_of("*", "/api/v3/**").len(), 0, "GitHub is not asked");
    // A binding applies from the next turn on, and its removal too. An installation has one tenant.
    set(&program.api, "other", json!({}));
    set(&program.api, "acme", json!({"installations": [OCTO]}));
    succeeds(&session.completes("write b.txt hello"));
    set(&program.api, "acme", json!({}));
    assert_eq!(reasons(&session.completes("write c.txt hello")), ("missingCredential", "no-installation"));
}

#[test]
fn installation_that_is_bound_to_another_tenant_is_not_usable() {
    let github = GitHub::start();
    let program = with(&github).start();
    let own = github.install("evil");
    set(&program.api, "acme", json!({"installations": [OCTO]}));
    set(&program.api, "evil", json!({"installations": [own]}));
    // The token of `acme` is in the cache.
    succeeds(&open(&program, &github, "acme").completes("write a.txt hello"));
    let before = github.requests_of(MINTED.0, MINTED.1).len();
    let result = open(&program, &github, "evil").completes("write a.txt stolen");
    assert_eq!(reasons(&result), ("missingCredential", "no-installation"));
    assert_eq!(github.requests_of(MINTED.0, MINTED.1).len(), before);
    assert_eq!(github.pulls("octo/hello").len(), 1);
}

#[test]
fn token_that_expires_in_mid_run_is_minted_again() {
    let github = GitHub::start();
    let program = with(&github).start();
    set(&program.api, "acme", json!({"installations": [OCTO]}));
    let session = open(&program, &github, "acme");
    // The last request of the step before the issue.
    github.fault("GET", "/api/v3/repos/octo/hello", Fault::HoldAfter);
    let prompt = session.starts("write a.txt hello");
    wait_for(DEADLINE, "the request is held", || (github.held() == 1).then_some(()));
    github.expire_tokens();
    github.release();
    succeeds(&session.ends(&prompt)["result"]);
    assert_eq!(github.requests_of(MINTED.0, MINTED.1).len(), 2);
    assert_eq!((github.issues("octo/hello").len(), github.pulls("octo/hello").len()), (1, 1));
    assert_eq!(github.duplicates("octo/hello"), [""; 0]);
}

#[test]
fn token_that_is_refused_twice_ends_the_run_as_refused() {
    let github = GitHub::start();
    let program = with(&github).start();
    set(&program.api, "acme", json!({"installations": [OCTO]}));
    let session = open(&program, &github, "acme");
    for _ in 0..2 {
        github.fault("POST", "/api/v3/repos/octo/hello/issues", Fault::BadCredentials);
    }
    assert_eq!(reasons(&session.completes("write a.txt hello")), ("missingCredential", "token-refused"));
    assert_eq!(github.faults_left(), 0);
    assert_eq!(github.requests_of(MINTED.0, MINTED.1).len(), 2, "no third token");
}

#[test]
fn turn_with_a_token_of_its_own_never_uses_the_app() {
    let github = GitHub::start();
    let program = with(&github).start();
    set(&program.api, "acme", json!({"installations": [OCTO]}));
    let session = open(&program, &github, "acme");
    let token = github.user_token("octocat");
    let prompt = |text: &str| {
        let body = json!({"sessionId": session.id, "prompt": text, "githubToken": token});
        program.api.post("/acp/session/prompt", body).expect(200)
    };
    succeeds(&prompt("write a.txt hello"));
    github.revoke(&token);
    assert_eq!(reasons(&prompt("write b.txt hello")), ("missingCredential", "token-refused"));
    assert_eq!(github.requests_of("*", "/api/v3/app/**").len(), 0);
    assert_eq!(github.requests_of("*", "/api/v3/repos/*/*/installation").len(), 0);
    assert!(!program.log().contains(&token));
    assert_eq!(files_with(&program.folder.path().join("data"), &token), [""; 0]);
}

#[test]
fn protected_path_of_the_tenant_is_refused_and_that_of_the_service_is_not_used() {
    let github = GitHub::start();
    let program = with(&github).start();
    let policy = json!({"installations": [OCTO], "protectedPaths": ["secret/"], "protection": "refuse"});
    set(&program.api, "acme", policy);
    let session = open(&program, &github, "acme");
    assert_eq!(reasons(&session.completes("write secret/a.txt x")), ("other", "protected-path"));
    assert_eq!(github.issues("octo/hello").len(), 0);
    let free = program.api.open_with(json!({
        "workspaceId": "two", "installationId": "acme", "repository": github.url("octo/hello"),
    }));
    succeeds(&free.completes("write AGENTS.md x"));
    assert!(!github.pulls("octo/hello")[0].pull.as_ref().unwrap().is_draft);
}

#[test]
fn private_repository_is_cloned_with_a_token_of_the_app_only_where_it_is_bound() {
    let github = GitHub::start();
    github.edit("octo/hello", |it| it.is_private = true);
    let program = with(&github).start();
    set(&program.api, "acme", json!({"installations": [OCTO]}));
    set(&program.api, "evil", json!({"installations": [github.install("evil")]}));
    let body = |tenant: &str, workspace: &str| {
        let repository = github.url("octo/hello");
        json!({"workspaceId": workspace, "installationId": tenant, "repository": repository, "isolate": false})
    };
    let refused = |body: Value| {
        let problem = program.api.post("/acp/session/new", body).problem(422, "workspace_unavailable");
        problem["detail"].as_str().unwrap().to_owned()
    };
    for tenant in ["evil", "none"] {
        let detail = refused(body(tenant, "ws"));
        assert!(detail.contains("(no-installation)") && detail.contains("bind the installation"), "{detail}");
    }
    assert_eq!(github.requests_of(MINTED.0, MINTED.1).len(), 0);
    // A token that was given is used alone.
    let mut given = body("acme", "given");
    given["githubToken"] = json!("a-token-that-is-wrong");
    refused(given);
    assert_eq!(github.requests_of("*", "/api/v3/**/installation").len(), 1, "that of the tenant evil");
    let session = program.api.open_with(body("acme", "ws"));
    let minted = github.requests_of(MINTED.0, MINTED.1);
    let permissions = json!({"contents": "read", "metadata": "read"});
    assert_eq!(minted[0].body, json!({"permissions": permissions, "repositories": ["hello"]}));
    assert!(session.path().join("README.md").exists());
    // A folder that is there needs no token; one that was deleted is cloned again.
    program.api.open_with(body("acme", "ws"));
    assert_eq!(github.requests_of(MINTED.0, MINTED.1).len(), 1);
    session.post("close", json!({})).expect(200);
    fs::remove_dir_all(session.path()).unwrap();
    let again = program.api.open_with(body("acme", "ws"));
    assert!(again.path().join("README.md").exists());
    succeeds(&again.completes("write a.txt hello"));
    for secret in github.tokens() {
        assert!(!program.log().contains(&secret), "in the log");
        assert_eq!(files_with(&program.folder.path().join("data"), &secret), [""; 0]);
    }
}

#[test]
fn admin_of_a_tenant_cannot_bind_an_installation() {
    let program = Program::start();
    let made = json!({"installationId": "acme", "subject": "admin-of-acme", "role": "admin"});
    let token = program.api.post("/acp/tokens", made).expect(201)["token"].as_str().map(str::to_owned);
    let api = Api::new(&program.api.base(), token);
    let body = json!({"automation": {"installations": [OCTO]}, "actor": "eve", "reason": "test"});
    api.call("PUT", "/acp/tenants/acme").json(&body).send().problem(403, "forbidden");
    assert_eq!(program.api.get("/acp/tenants/acme").expect(200)["automation"]["installations"], json!([]));
}

#[test]
fn tenant_command_sets_automation_and_the_audit_keeps_the_difference() {
    let program = Program::start();
    let run = |arguments: &[&str]| {
        let output = Command::new(lumilink())
            .args(["tenant", "set", "acme", "--reason", "contract", "--json"])
            .args(arguments)
            .envs(tokens::variables(&program.api.base()))
            .env("HOME", program.folder.path())
            .current_dir(program.folder.path())
            .output()
            .expect("the program runs");
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let automation = || program.api.get("/acp/tenants/acme").expect(200)["automation"].clone();
    let first = run(&["--installations", "78,77", "--reviewers", "octocat,octo/core", "--protection", "refuse"]);
    assert!(first.0, "{}", first.1);
    let second = run(&["--draft", "true", "--protection", "default", "--branch-template", "bots/"]);
    assert!(second.0, "{}", second.1);
    let expected = json!({
        "installations": [77, 78], "draft": true, "labels": null, "assignees": null,
        "reviewers": ["octocat", "octo/core"], "branchTemplate": "bots/", "protectedPaths": null, "protection": null,
    });
    assert_eq!(automation(), expected);
    for bad in [["--branch-template", "a..b"], ["--reviewers", "a b"], ["--protection", "ignore"]] {
        let refused = run(&bad);
        assert!(!refused.0, "{bad:?}");
    }
    assert_eq!(automation(), expected);
    let changes = program.api.get("/acp/audit/changes?installationId=acme").expect(200);
    let newest = &changes["items"][0];
    assert_eq!(newest["before"]["automation"]["protection"], "refuse", "{newest}");
    assert_eq!(newest["after"]["automation"]["draft"], true, "{newest}");
    assert_eq!(newest["after"]["automation"].get("installations"), None, "{newest}");
}

#[test]
fn run_that_was_retried_with_a_token_never_uses_the_app_in_a_later_attempt() {
    let github = GitHub::start();
    let program = with(&github).set("github.max_wait_s", 1).start();
    set(&program.api, "acme", json!({"installations": [OCTO]}));
    let session = open(&program, &github, "acme");
    github.reject("octo/hello", &Rejection::creation_restricted("x").once());
    let result = session.completes("write a.txt hello");
    assert_eq!(reasons(&result).1, "ruleset");
    let minted = github.requests_of(MINTED.0, MINTED.1).len();
    assert!(minted > 0);
    // The attempt with the token is limited, and the service begins the next one by itself.
    github.fault("GET", "/api/v3/repos/*/*", Fault::PrimaryLimit(2));
    let run = result["githubAutomation"]["rescue"]["id"].as_str().unwrap();
    let retry = json!({"githubToken": github.user_token("octocat")});
    program.api.post(&format!("/acp/automation/{run}/retry"), retry).expect(202);
    eventually("the later attempt delivers the commit", || {
        program.api.get(&format!("/acp/automation/{run}")).expect(200)["status"] == "success"
    });
    let shown = program.api.get(&format!("/acp/automation/{run}")).expect(200);
    assert_eq!(shown["attempt"], 3, "{shown}");
    assert_eq!(github.requests_of(MINTED.0, MINTED.1).len(), minted, "no token of the App");
    assert_eq!(github.pulls("octo/hello")[0].author, "octocat");
}

#[test]
fn app_key_beside_agents_without_a_jail_is_refused_unless_it_is_allowed() {
    let (github, folder) = (GitHub::start(), Folder::new());
    let refused = |jail: &str, key: &Path| {
        let output = Command::new(lumilink())
            .args(["serve", "--listen", "127.0.0.1:0", "--set", "github.app_id=4711"])
            .args(["--set", &format!("agent.jail={jail}")])
            .env("LUMILINK_GITHUB__PRIVATE_KEY_FILE", key)
            .env("HOME", folder.path())
            .current_dir(folder.path())
            .output()
            .expect("the program runs");
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let text = refused("off", &github.app_key_file());
    assert!(text.contains("github.allow_embedded_key"), "{text}");
    let bad = folder.path().join("bad.pem");
    fs::write(&bad, "-----BEGIN RSA PRIVATE KEY-----\nAAAA\n-----END RSA PRIVATE KEY-----\n").unwrap();
    let text = refused("auto", &bad);
    assert!(text.contains("github: the private key"), "{text}");
    for builder in [
        with(&github).set("github.allow_embedded_key", true),
        with(&github).separate_runtime("a-token-of-a-runtime-0123456789"),
    ] {
        let program = builder.set("agent.jail", "off").start();
        program.api.get("/acp/health").expect(200);
    }
}
