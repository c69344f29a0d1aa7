//! The stand-in of GitHub itself: real git works through it, its checks are those of GitHub, and faults do what they say.

use std::{
    path::Path,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

use crate::harness::{
    DEADLINE, Value, block_on,
    dice::Dice,
    eventually,
    github::{
        GitHub,
        faults::{Fault, passing_faults},
        git::{Rejection, When},
        http::Response,
        webhook_headers,
    },
    json,
    program::Folder,
};

/// An answer; `None` if there was none.
type Reply = Option<(u16, reqwest::header::HeaderMap, Value)>;

fn call(github: &GitHub, token: &str, method: &str, path: &str, body: &Value) -> Reply {
    let url = format!("{}{path}", github.api_url());
    let client = reqwest::Client::builder().user_agent("it").timeout(DEADLINE).build().expect("a client");
    let request = client.request(method.parse().expect("a method"), url).bearer_auth(token);
    let request = if body.is_null() { request } else { request.json(body) };
    block_on(async {
        let response = request.send().await.ok()?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let bytes = response.bytes().await.ok()?;
        Some((status, headers, serde_json::from_slice(&bytes).unwrap_or_default()))
    })
}

fn answer(github: &GitHub, token: &str, method: &str, path: &str, body: &Value) -> (u16, Value) {
    let (status, _, body) = call(github, token, method, path, body).expect("an answer");
    (status, body)
}

fn get(github: &GitHub, token: &str, path: &str) -> (u16, Value) {
    answer(github, token, "GET", path, &Value::Null)
}

fn git(folder: &Path, args: &[&str]) -> Output {
    let identity = ["-c", "user.name=Test", "-c", "user.email=test@example.com", "-c", "init.defaultBranch=main"];
    let command = Command::new("git")
        .current_dir(folder)
        .args(identity)
        .args(args)
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .output();
    command.expect("git runs")
}

fn succeeds(folder: &Path, args: &[&str]) -> String {
    let output = git(folder, args);
    assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn fails(folder: &Path, args: &[&str]) -> String {
    let output = git(folder, args);
    assert!(!output.status.success(), "git {args:?} succeeded");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The address of a repository with a token.
fn address(github: &GitHub, token: &str, full_name: &str) -> String {
    format!("http://x-access-token:{token}@{}/{full_name}.git", github.host())
}

/// A clone of `octo/hello` with one more commit on a branch `work`.
fn changed_clone(github: &GitHub, token: &str, folder: &Folder) -> std::path::PathBuf {
    succeeds(folder.path(), &["clone", "-q", "--depth", "1", &address(github, token, "octo/hello"), "clone"]);
    let clone = folder.path().join("clone");
    succeeds(&clone, &["checkout", "-q", "-b", "work"]);
    std::fs::write(clone.join("new.txt"), "new\n").expect("a file");
    succeeds(&clone, &["add", "."]);
    succeeds(&clone, &["commit", "-q", "-m", "A change"]);
    clone
}

const PUSH: [&str; 4] = ["push", "-q", "origin", "work"];
const ISSUES: &str = "/repos/octo/hello/issues";
const PULLS: &str = "/repos/octo/hello/pulls";

#[test]
fn pushed_branch_gets_one_pull_request_that_people_merge_or_close() {
    let (github, folder) = (GitHub::start(), Folder::new());
    let token = github.installation_token();
    assert_eq!(token.len(), 520);
    let clone = changed_clone(&github, &token, &folder);
    let pull = json!({"title": "A change", "head": "work", "base": "main", "draft": true});
    let (status, refusal) = answer(&github, &token, "POST", PULLS, &pull);
    assert_eq!((status, &refusal["errors"][0]["field"]), (422, &json!("head")), "the branch is not there yet");
    succeeds(&clone, &PUSH);
    let head = succeeds(&clone, &["rev-parse", "HEAD"]);
    assert_eq!(github.branch("octo/hello", "work").as_ref(), Some(&head));
    let (status, made) = answer(&github, &token, "POST", PULLS, &pull);
    assert_eq!((status, &made["head"]["sha"], &made["draft"]), (201, &json!(head), &json!(true)), "{made}");
    assert_eq!(made["user"]["login"], "lumi-test[bot]");
    assert_eq!(github.git("octo/hello", &["rev-parse", "refs/pull/1/head"]), head);
    let (status, refusal) = answer(&github, &token, "POST", PULLS, &pull);
    assert_eq!(status, 422);
    assert_eq!(refusal["errors"][0]["message"], "A pull request already exists for octo:work.");
    assert_eq!(get(&github, &token, &format!("{PULLS}?head=octo:work")).1.as_array().map(Vec::len), Some(1));
    assert_eq!(get(&github, &token, &format!("{PULLS}?head=octo:other")).1, json!([]));
    github.merge("octo/hello", 1);
    assert_eq!(get(&github, &token, &format!("{PULLS}/1")).1["merged"], true);
    assert_eq!(github.git("octo/hello", &["show", "main:new.txt"]), "new");
    let (status, refusal) = answer(&github, &token, "POST", PULLS, &pull);
    assert_eq!((status, &refusal["errors"][0]["message"]), (422, &json!("No commits between main and work")));
    assert_eq!(github.pulls("octo/hello").len(), 1);
}

#[test]
fn pull_request_of_a_fork_is_read_by_its_ref() {
    let (github, folder) = (GitHub::start(), Folder::new());
    let token = github.user_token("stranger");
    github.fork("octo/hello", "stranger/hello");
    let head = github.commit("stranger/hello", "idea", &[("a/b.txt", "x")]);
    let pull = json!({"title": "An idea", "head": "stranger:idea", "base": "main"});
    assert_eq!(answer(&github, &token, "POST", PULLS, &pull).0, 403, "a stranger is no collaborator");
    github.edit("octo/hello", |it| drop(it.people.insert("stranger".into(), "write".into())));
    let (status, made) = answer(&github, &token, "POST", PULLS, &pull);
    assert_eq!((status, &made["head"]["repo"]["fork"]), (201, &json!(true)), "{made}");
    succeeds(folder.path(), &["clone", "-q", &github.url("octo/hello"), "clone"]);
    let clone = folder.path().join("clone");
    succeeds(&clone, &["fetch", "-q", "origin", "refs/pull/1/head"]);
    assert_eq!(succeeds(&clone, &["rev-parse", "FETCH_HEAD"]), head);
}

#[test]
fn token_opens_what_it_may_until_it_is_revoked_or_expires() {
    let (github, folder) = (GitHub::start(), Folder::new());
    let token = github.installation_token();
    let clone = changed_clone(&github, &token, &folder);
    github.edit("octo/hello", |it| it.is_private = true);
    assert!(
        fails(folder.path(), &["clone", "-q", &github.url("octo/hello"), "x"]).contains("could not read Username")
    );
    assert_eq!(get(&github, &github.user_token("stranger"), "/repos/octo/hello").0, 404);
    github.edit_installation(|it| drop(it.permissions.insert("contents".into(), "read".into())));
    let read_only = github.installation_token();
    assert!(fails(&clone, &["push", "-q", &address(&github, &read_only, "octo/hello"), "work"]).contains("403"));
    github.edit_installation(|it| drop(it.permissions.remove("issues")));
    let (status, refusal) = answer(&github, &github.installation_token(), "POST", ISSUES, &json!({"title": "x"}));
    assert_eq!((status, &refusal["message"]), (403, &json!("Resource not accessible by integration")));
    assert_eq!(get(&github, &token, "/repos/octo/hello").0, 200);
    github.advance(Duration::from_secs(61 * 60));
    assert_eq!(get(&github, &token, "/repos/octo/hello"), (401, get(&github, "nonsense", "/user").1));
    assert!(fails(&clone, &PUSH).contains("Authentication failed"));
    let person = github.user_token("octocat");
    assert_eq!(get(&github, &person, "/user").1["login"], "octocat");
    github.revoke(&person);
    assert_eq!(get(&github, &person, "/user").0, 401);
}

/// A JSON Web Token with an RS256 signature.
fn signed(key: &Path, claims: Value) -> String {
    let part = |it: Value| URL_SAFE_NO_PAD.encode(it.to_string());
    let message = format!("{}.{}", part(json!({"alg": "RS256", "typ": "JWT"})), part(claims));
    let mut openssl = Command::new("openssl")
        .args(["dgst", "-sha256", "-sign"])
        .arg(key)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("openssl runs");
    std::io::Write::write_all(&mut openssl.stdin.take().expect("piped"), message.as_bytes()).expect("it reads");
    let signature = openssl.wait_with_output().expect("it ends").stdout;
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
}

#[test]
fn emulated_api_and_git_share_one_origin_tokens_and_faults() {
    let (github, folder) = (GitHub::start_with_emulator(), Folder::new());
    let now = time::OffsetDateTime::now_utc().unix_timestamp();
    let jwt = signed(&github.app_key_file(), json!({"iat": now - 60, "exp": now + 540, "iss": github.app_id()}));
    let (status, installation) = get(&github, &jwt, "/repos/octo/hello/installation");
    assert_eq!((status, &installation["id"]), (200, &json!(77)), "{installation}");
    let (status, minted) = answer(&github, &jwt, "POST", "/app/installations/77/access_tokens", &json!({}));
    assert_eq!(status, 201, "{minted}");
    let token = minted["token"].as_str().expect("a token");
    let clone = changed_clone(&github, token, &folder);
    succeeds(&clone, &PUSH);
    github.fault("POST", "/api/v3/repos/*/*/issues", Fault::DropAfter);
    assert!(call(&github, token, "POST", ISSUES, &json!({"title": "One"})).is_none());
    let (_, issues) = get(&github, token, &format!("{ISSUES}?state=all"));
    assert_eq!((issues.as_array().map(Vec::len), &issues[0]["title"]), (Some(1), &json!("One")), "{issues}");
    let pull = json!({"title": "A change", "head": "work", "base": "main"});
    let (status, made) = answer(&github, token, "POST", PULLS, &pull);
    assert_eq!(status, 201, "{made}");
    let origin = format!("http://{}", github.host());
    assert!(made["html_url"].as_str().is_some_and(|url| url.starts_with(&origin)), "{made}");
}

#[test]
fn app_gets_tokens_only_with_its_key_and_for_what_was_granted() {
    let (github, folder) = (GitHub::start(), Folder::new());
    let key = github.app_key_file();
    let now = time::OffsetDateTime::now_utc().unix_timestamp();
    let claims = |iss: u64, exp: i64| json!({"iat": now - 60, "exp": now + exp, "iss": iss});
    let jwt = signed(&key, claims(github.app_id(), 540));
    assert_eq!(get(&github, &jwt, "/app").1["slug"], "lumi-test");
    let (status, installation) = get(&github, &jwt, "/repos/octo/hello/installation");
    assert_eq!(status, 200, "{installation}");
    assert_eq!(get(&github, &jwt, "/repos/other/hello/installation").0, 404);
    let other_key = folder.path().join("other.pem");
    std::fs::copy(GitHub::start().app_key_file(), &other_key).expect("a copy");
    for bad in [
        signed(&other_key, claims(github.app_id(), 540)),
        signed(&key, claims(1, 540)),
        signed(&key, claims(github.app_id(), 3600)),
        signed(&key, claims(github.app_id(), -1)),
        format!("{jwt}A"),
    ] {
        assert_eq!(get(&github, &bad, "/app").0, 401);
    }
    let path = format!("/app/installations/{}/access_tokens", installation["id"]);
    let wanted = json!({"repositories": ["hello"], "permissions": {"contents": "write", "issues": "write"}});
    let (status, minted) = answer(&github, &jwt, "POST", &path, &wanted);
    assert_eq!((status, &minted["permissions"]["contents"]), (201, &json!("write")), "{minted}");
    let token = minted["token"].as_str().expect("a token");
    assert_eq!(get(&github, token, "/installation/repositories").1["total_count"], 1);
    assert_eq!(answer(&github, token, "POST", ISSUES, &json!({"title": "x"})).0, 201);
    assert_eq!(answer(&github, token, "POST", PULLS, &json!({"title": "x"})).0, 403, "not requested");
    assert_eq!(get(&github, token, "/user").0, 403, "an installation is no user");
    for refused in [json!({"permissions": {"administration": "write"}}), json!({"repositories": ["other"]})] {
        assert_eq!(answer(&github, &jwt, "POST", &path, &refused).0, 422);
    }
}

#[test]
fn issues_labels_and_comments_obey_the_limits_of_github() {
    let github = GitHub::start();
    let token = github.installation_token();
    let post = |path: &str, body: Value| answer(&github, &token, "POST", path, &body);
    let (status, made) = post(
        ISSUES,
        json!({"title": "One", "body": "<!-- a -->", "labels": ["automated"], "assignees": ["octocat"]}),
    );
    assert_eq!((status, &made["number"]), (201, &json!(1)), "{made}");
    assert_eq!(post(ISSUES, json!({"title": "x", "body": "y".repeat(65_537)})).0, 422);
    assert_eq!(post(ISSUES, json!({"title": "y".repeat(257)})).0, 422);
    assert_eq!(post(ISSUES, json!({"title": "x", "assignees": ["stranger"]})).0, 422);
    assert_eq!(post(&format!("{ISSUES}/1/comments"), json!({"body": "<!-- a -->"})).0, 201);
    assert_eq!(github.duplicates("octo/hello"), ["<!-- a -->"], "exactly once is countable");
    for number in 2..=45 {
        assert_eq!(post(ISSUES, json!({"title": number.to_string()})).0, 201);
    }
    let (_, headers, page) =
        call(&github, &token, "GET", &format!("{ISSUES}?per_page=20&state=all"), &Value::Null).expect("an answer");
    let link = headers["link"].to_str().expect("text");
    assert!(
        link.contains("per_page=20&state=all&page=2>; rel=\"next\"") && link.contains("page=3>; rel=\"last\""),
        "{link}"
    );
    assert_eq!((page.as_array().map(Vec::len), &page[0]["number"]), (Some(20), &json!(45)));
    assert_eq!(get(&github, &token, &format!("{ISSUES}?labels=automated")).1[0]["number"], 1);
    assert_eq!(
        get(&github, &token, "/search/issues?q=repo:octo/hello+One").1["total_count"],
        0,
        "the index lags behind"
    );
    let remaining: u64 = headers["x-ratelimit-remaining"].to_str().expect("text").parse().expect("a number");
    assert!((4900..5000).contains(&remaining));
    github.edit("octo/hello", |it| it.has_issues = false);
    assert_eq!(post(ISSUES, json!({"title": "x"})).0, 410);
    github.edit("octo/hello", |it| (it.has_issues, it.is_archived) = (true, true));
    assert_eq!(post(ISSUES, json!({"title": "x"})).0, 403);
    github.add_rule("octo/hello", "claude-code/*", "creation");
    assert_eq!(get(&github, &token, "/repos/octo/hello/rules/branches/claude-code/x").1[0]["type"], "creation");
    assert_eq!(get(&github, &token, "/repos/octo/hello/rules/branches/main").1, json!([]));
    github.create("octo/empty");
    assert_eq!(get(&github, &token, "/repos/octo/empty/git/ref/heads/main").0, 409);
}

#[test]
fn commit_of_the_graphql_api_is_signed_and_needs_the_head_of_its_branch() {
    let github = GitHub::start();
    let token = github.installation_token();
    let head = github.branch("octo/hello", "main").expect("a commit");
    let input = json!({
        "branch": {"repositoryNameWithOwner": "octo/hello", "branchName": "main"},
        "message": {"headline": "Add a file", "body": "Because."}, "expectedHeadOid": head,
        "fileChanges": {"additions": [{"path": "a/b.txt", "contents": "aGk="}], "deletions": [{"path": "README.md"}]},
    });
    let query =
        "mutation($input: CreateCommitOnBranchInput!) { createCommitOnBranch(input: $input) { commit { oid } } }";
    let body = json!({"query": query, "variables": {"input": input}});
    let (status, made) = answer(&github, &token, "POST", "/../graphql", &body);
    let sha = made["data"]["createCommitOnBranch"]["commit"]["oid"].as_str().expect("a commit").to_owned();
    assert_eq!((status, Some(&sha)), (200, github.branch("octo/hello", "main").as_ref()));
    assert_eq!(
        get(&github, &token, &format!("/repos/octo/hello/commits/{sha}")).1["commit"]["verification"]["verified"],
        true
    );
    assert_eq!(github.git("octo/hello", &["ls-tree", "-r", "--name-only", "main"]), "a/b.txt");
    let (status, refusal) = answer(&github, &token, "POST", "/../graphql", &body);
    assert_eq!((status, &refusal["errors"][0]["type"]), (200, &json!("STALE_DATA")), "the branch has moved");
}

#[test]
fn webhook_is_signed_as_in_the_documentation_of_github() {
    let headers = webhook_headers("It's a Secret to Everybody", "push", "1", b"Hello, World!");
    let expected = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
    assert!(headers.contains(&("X-Hub-Signature-256", expected.to_owned())));
}

#[test]
fn lost_answer_leaves_the_issue_and_a_lost_request_none() {
    let github = GitHub::start();
    let token = github.installation_token();
    let create = |fault: Fault| {
        github.fault("POST", "/api/v3/repos/*/*/issues", fault);
        let before = github.issues("octo/hello").len();
        let reply = call(&github, &token, "POST", ISSUES, &json!({"title": "x", "body": "y".repeat(10_000)}));
        assert_eq!(github.faults_left(), 0);
        (reply.map(|it| it.0), github.issues("octo/hello").len() - before)
    };
    assert_eq!(create(Fault::DropBefore), (None, 0));
    assert_eq!(create(Fault::DropAfter), (None, 1));
    assert_eq!(create(Fault::Truncate), (None, 1));
    assert_eq!(create(Fault::StatusAfter(500)), (Some(500), 1));
    for status in [401, 403, 404, 409, 410, 422, 429, 500, 502, 503] {
        assert_eq!(create(Fault::Status(status)), (Some(status), 0));
    }
    let begin = Instant::now();
    assert_eq!(create(Fault::Slow(Duration::from_millis(20))), (Some(201), 1));
    assert!(begin.elapsed() >= Duration::from_millis(200));
    let statuses: Vec<_> = github.requests_of("POST", "/api/v3/**").iter().map(|it| it.status).take(3).collect();
    assert_eq!(statuses, [0, 0, 0]);
    assert_eq!(github.most_creating(), 1);
}

#[test]
fn limits_and_organisation_rules_answer_as_github_does() {
    let github = GitHub::start();
    let token = github.installation_token();
    let reply = |fault: Fault| {
        github.fault("GET", "/api/v3/user", fault);
        call(&github, &token, "GET", "/user", &Value::Null).expect("an answer")
    };
    let text = |body: &Value| body["message"].as_str().expect("a message").to_owned();
    let (status, headers, body) = reply(Fault::SecondaryLimit(None));
    assert_eq!((status, headers.get("retry-after")), (403, None));
    assert!(headers["x-ratelimit-remaining"] != "0" && text(&body).contains("secondary rate limit"));
    assert_eq!(reply(Fault::SecondaryLimit(Some(7))).1["retry-after"], "7");
    let (status, headers, body) = reply(Fault::PrimaryLimit(90));
    assert_eq!((status, &headers["x-ratelimit-remaining"]), (403, &"0".parse().expect("a value")));
    assert!(text(&body).starts_with("API rate limit exceeded"));
    let reset: i64 = headers["x-ratelimit-reset"].to_str().expect("text").parse().expect("a number");
    assert!((0..=90).contains(&(reset - time::OffsetDateTime::now_utc().unix_timestamp())));
    assert!(reply(Fault::Sso).1["x-github-sso"].to_str().expect("text").starts_with("required; url="));
    assert!(text(&reply(Fault::IpAllowList).2).contains("IP allow list enabled"));
    assert_eq!(reply(Fault::BadCredentials).0, 401);
}

#[test]
fn rejected_push_shows_the_text_and_the_reason_of_github() {
    let (github, folder) = (GitHub::start(), Folder::new());
    let clone = changed_clone(&github, &github.installation_token(), &folder);
    for (rejection, parts) in [
        (Rejection::large_file("big.bin"), ["remote: error: GH001", "(pre-receive hook declined)"]),
        (Rejection::protected_branch("work"), ["remote: error: GH006", "(protected branch hook declined)"]),
        (Rejection::private_email(), ["remote: error: GH007", "email privacy restrictions)"]),
        (Rejection::creation_restricted("work"), ["creations being restricted", "repository rule violations)"]),
        (Rejection::unsigned("work"), ["must have verified signatures", "repository rule violations)"]),
        (Rejection::secret("work", "a.txt", 3), ["path: a.txt:3", "repository rule violations)"]),
        (Rejection::unknown(), ["unexpected failure", "(internal server error)"]),
    ] {
        github.reject("octo/hello", &rejection.once());
        let shown = fails(&clone, &PUSH);
        assert!(parts.iter().all(|part| shown.contains(part)), "{shown}");
        assert_eq!(github.branch("octo/hello", "work"), None);
    }
    github.reject("octo/hello", &Rejection::workflow());
    github.reject("octo/hello", &Rejection::unsigned("main").on("main"));
    succeeds(&clone, &PUSH);
    std::fs::create_dir_all(clone.join(".github/workflows")).expect("a folder");
    std::fs::write(clone.join(".github/workflows/ci.yml"), "on: push\n").expect("a file");
    succeeds(&clone, &["add", "."]);
    succeeds(&clone, &["commit", "-q", "-m", "CI"]);
    assert!(fails(&clone, &PUSH).contains("without `workflows` permission"));
    github.permit("octo/hello");
    succeeds(&clone, &PUSH);
    assert_eq!(github.branch("octo/hello", "work"), Some(succeeds(&clone, &["rev-parse", "HEAD"])));
}

#[test]
fn push_with_a_lost_answer_has_moved_the_branch() {
    let (github, folder) = (GitHub::start(), Folder::new());
    let clone = changed_clone(&github, &github.installation_token(), &folder);
    let drop_twice = |fault: Fault| {
        // Git repeats a request once that gets no answer on a connection that was used before.
        github.fault("POST", "/octo/hello.git/git-receive-pack", fault);
        github.fault("POST", "/octo/hello.git/git-receive-pack", Fault::DropBefore);
        fails(&clone, &PUSH);
        github.calm();
    };
    drop_twice(Fault::DropBefore);
    assert_eq!(github.branch("octo/hello", "work"), None);
    drop_twice(Fault::DropAfter);
    assert_eq!(github.branch("octo/hello", "work"), Some(succeeds(&clone, &["rev-parse", "HEAD"])));
    github.commit("octo/hello", "work", &[("theirs.txt", "x")]);
    succeeds(&clone, &["commit", "-q", "--allow-empty", "-m", "Another"]);
    assert!(fails(&clone, &PUSH).contains("[rejected]"), "not a fast-forward");
}

#[test]
fn held_request_is_answered_after_its_release() {
    let github = GitHub::start();
    let token = github.installation_token();
    github.fault("POST", "/api/v3/repos/**", Fault::HoldAfter);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| answer(&github, &token, "POST", ISSUES, &json!({"title": "x"})).0);
        eventually("the request is held", || github.held() == 1);
        assert_eq!(github.issues("octo/hello").len(), 1, "it took effect");
        assert!(!waiting.is_finished());
        github.release();
        assert_eq!(waiting.join().expect("no panic"), 201);
    });
}

#[test]
fn random_faults_are_the_same_for_a_seed() {
    let run = || {
        let github = GitHub::start();
        let token = github.installation_token();
        github.chaos(Dice::of_seed(7), 3, passing_faults());
        for _ in 0..40 {
            let _ = call(&github, &token, "POST", ISSUES, &json!({"title": "x"}));
        }
        github.calm();
        let requests = github.requests_of("POST", "/api/v3/repos/octo/hello/issues");
        (requests.iter().map(|it| it.status).collect::<Vec<_>>(), github.issues("octo/hello").len())
    };
    let (statuses, issues) = run();
    let faults = statuses.iter().filter(|status| **status != 201).count();
    assert!((5..30).contains(&faults) && issues > 40 - faults, "{statuses:?} {issues}");
    assert_eq!(run(), (statuses, issues));
}

#[test]
fn request_log_names_callers_and_what_they_sent_and_no_token() {
    let github = GitHub::start();
    let (token, person) = (github.installation_token(), github.user_token("octocat"));
    let created = answer(&github, &token, "POST", ISSUES, &json!({"title": "x"})).0;
    let comment = answer(&github, &person, "POST", &format!("{ISSUES}/1/comments"), &json!({"body": "hello"})).0;
    assert_eq!((created, comment), (201, 201));
    assert_eq!(github.comments("octo/hello")[0].author, "octocat");
    get(&github, "nonsense", "/user?page=2");
    let log = github.requests();
    let callers: Vec<_> = log.iter().map(|it| it.caller.as_str()).collect();
    assert_eq!(callers, ["installation 77", "octocat", "unknown"]);
    assert_eq!(
        (&log[0].body["title"], log[0].user_agent.as_str(), log[0].api_version.as_str()),
        (&json!("x"), "it", "")
    );
    assert_eq!(log[2].query, "page=2");
    assert_eq!(github.tokens(), [token.clone(), person]);
    assert!(!format!("{log:?}").contains(&token));
}

#[test]
fn installations_are_separate_and_their_tokens_live_as_long_as_set() {
    let github = GitHub::start();
    github.create("acme/tool");
    github.edit("acme/tool", |it| it.is_private = true);
    let token = github.installation_token();
    assert_eq!(get(&github, &token, "/repos/acme/tool").0, 404, "not installed there");
    github.install("acme");
    assert_eq!(get(&github, &token, "/repos/acme/tool").0, 404, "a token is of one installation");
    github.expire_tokens();
    assert_eq!(get(&github, &token, "/repos/octo/hello").0, 401);
    github.token_lifetime(Duration::from_secs(10));
    let token = github.installation_token();
    assert_eq!(get(&github, &token, "/repos/octo/hello").0, 200);
    github.advance(Duration::from_secs(11));
    assert_eq!(get(&github, &token, "/repos/octo/hello").0, 401);
}

#[test]
fn closed_pull_request_and_refused_update_of_a_branch_are_seen() {
    let (github, folder) = (GitHub::start(), Folder::new());
    let token = github.installation_token();
    let clone = changed_clone(&github, &token, &folder);
    github.reject("octo/hello", &Rejection::protected_branch("work").when(When::Update));
    succeeds(&clone, &PUSH);
    succeeds(&clone, &["commit", "-q", "--allow-empty", "-m", "Another"]);
    assert!(fails(&clone, &PUSH).contains("GH006"));
    assert_eq!(answer(&github, &token, "POST", PULLS, &json!({"title": "x", "head": "work", "base": "main"})).0, 201);
    github.close("octo/hello", 1);
    let pull = get(&github, &token, &format!("{PULLS}/1")).1;
    assert_eq!((&pull["state"], &pull["merged"]), (&json!("closed"), &json!(false)));
    assert_eq!(get(&github, &token, PULLS).1, json!([]), "only open ones are listed by default");
    github.commit_bytes("octo/hello", "data", "a.bin", &[0, 255]);
    let branches: Vec<_> = github.branches("octo/hello").into_iter().map(|it| it.0).collect();
    assert_eq!(branches, ["data", "main", "work"]);
    let bare = github.bare("octo/hello");
    assert_eq!(succeeds(&bare, &["cat-file", "-s", "data:a.bin"]), "2");
}

#[test]
fn held_request_has_no_effect_before_its_release_and_any_answer_can_be_given() {
    let github = GitHub::start();
    let token = github.installation_token();
    github.fault("*", "/api/v3/repos/**", Fault::Hold);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| answer(&github, &token, "POST", ISSUES, &json!({"title": "x"})).0);
        eventually("the request is held", || github.held() == 1);
        assert_eq!(github.issues("octo/hello").len(), 0);
        github.release();
        assert_eq!(waiting.join().expect("no panic"), 201);
    });
    let moved = Response::json(301, &json!({"message": "Moved Permanently"})).with("X-Test", 1);
    github.fault("GET", "/api/v3/user", Fault::Answer(moved));
    let (status, headers, _) = call(&github, &token, "GET", "/user", &Value::Null).expect("an answer");
    assert_eq!((status, headers["x-test"].to_str().ok()), (301, Some("1")));
}

/// Creates one issue in spite of faults; a careful client looks for it before it repeats.
fn create_once(github: &GitHub, token: &str, marker: &str, is_careful: bool) {
    for _ in 0..100 {
        if is_careful {
            let found = call(github, token, "GET", &format!("{ISSUES}?per_page=100&state=all"), &Value::Null);
            let Some((200, _, issues)) = found else { continue };
            if issues.as_array().expect("a list").iter().any(|it| it["body"] == marker) {
                return;
            }
        }
        let made = call(github, token, "POST", ISSUES, &json!({"title": "x", "body": marker}));
        if made.is_some_and(|(status, ..)| status == 201) {
            return;
        }
    }
    panic!("no issue after 100 attempts");
}

#[test]
fn careless_client_makes_duplicates_under_random_faults_and_a_careful_one_none() {
    for is_careful in [true, false] {
        let github = GitHub::start();
        let token = github.installation_token();
        github.fault("POST", "/api/v3/repos/*/*/issues", Fault::DropAfter);
        github.chaos(Dice::of_seed(11), 3, passing_faults());
        std::thread::scope(|scope| {
            for client in 0..4 {
                let (github, token) = (&github, &token);
                scope.spawn(move || {
                    for issue in 0..6 {
                        create_once(github, token, &format!("<!-- {client}-{issue} -->"), is_careful);
                    }
                });
            }
        });
        github.calm();
        let markers: std::collections::BTreeSet<_> =
            github.issues("octo/hello").into_iter().map(|it| it.body).collect();
        assert_eq!(markers.len(), 24, "every issue was made");
        assert_eq!(github.duplicates("octo/hello").is_empty(), is_careful);
    }
}
