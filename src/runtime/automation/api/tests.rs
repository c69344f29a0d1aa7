use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::{Value, json};

use super::*;
use crate::{
    contract::steps::AppInstallation,
    domain::automation::signing::{SigningMode, SigningWay},
    domain::automation::step::{Preflight, PullRequestFact, PullRequestState, StepFact},
    github::{
        GithubLimits,
        stub::{Answering, Received, Stub},
    },
};

/// A fault of the server, which happens once.
enum Fault {
    /// Carries the request out, and closes the connection.
    Lose,
    /// Carries the request out, and answers 500.
    Fail,
    /// Answers this, and does not carry the request out.
    Refuse(u16, Value),
}

/// A repository at GitHub.
struct World {
    repository: Value,
    /// Names of branches, each with a commit.
    branches: Vec<String>,
    /// Of all branches but `main`.
    rules: Value,
    /// Of `main`.
    base_rules: Value,
    bypass: &'static str,
    issues: Vec<Value>,
    pulls: Vec<Value>,
    comments: Vec<Value>,
    /// Method and start of the target.
    faults: Vec<(&'static str, &'static str, Fault)>,
    headers: Vec<String>,
}

const REPOSITORY: &str = "/repos/octo/hello";
const SHA: &str = "0123456789ABCDEF0123456789abcdef01234567";

const TREE: &str = "abcdef0123456789abcdef0123456789abcdef01";

impl World {
    fn new() -> Self {
        Self {
            repository: json!({"full_name": "octo/hello", "default_branch": "main", "has_issues": true,
                "permissions": {"push": true}}),
            branches: vec!["main".into()],
            rules: json!([]),
            base_rules: json!([]),
            bypass: "never",
            issues: Vec::new(),
            pulls: Vec::new(),
            comments: Vec::new(),
            faults: Vec::new(),
            headers: Vec::new(),
        }
    }

    fn answer(&mut self, request: &Received) -> Answering {
        let is_hit = |fault: &(&str, &str, Fault)| fault.0 == request.method && request.target.starts_with(fault.1);
        let fault = self.faults.iter().position(is_hit).map(|at| self.faults.remove(at).2);
        if let Some(Fault::Refuse(status, body)) = fault {
            return Answering::json(status, &body);
        }
        let (status, body) = self.carry_out(request).unwrap_or_else(|| (404, json!({"message": "Not Found"})));
        match fault {
            Some(Fault::Lose) => Answering::Lost,
            Some(Fault::Fail) => Answering::json(500, &json!({"message": "Server Error"})),
            _ => Answering::Whole(status, self.headers.clone(), body.to_string()),
        }
    }

    fn carry_out(&mut self, request: &Received) -> Option<(u16, Value)> {
        let path = request.target.split('?').next()?;
        match (request.method.as_str(), path) {
            ("GET", "/user") => return Some((200, json!({"id": 5, "login": "octocat"}))),
            ("GET", "/users/lumi[bot]" | "/users/lumi%5Bbot%5D") => {
                return Some((200, json!({"id": 9, "login": "lumi[bot]"})));
            }
            _ => {}
        }
        let tail = path.strip_prefix(REPOSITORY)?;
        let parts: Vec<_> = tail.split('/').skip(1).collect();
        match (request.method.as_str(), &parts[..]) {
            ("GET", []) => Some((200, self.repository.clone())),
            ("GET", ["git", "ref", name]) => {
                let name = name.replace("%2F", "/");
                let branch = self.branches.iter().find(|branch| format!("heads/{branch}") == name)?;
                Some((200, json!({"ref": branch, "object": {"sha": SHA, "type": "commit"}})))
            }
            ("GET", ["git", "commits", _]) => Some((200, json!({"sha": SHA, "tree": {"sha": TREE}}))),
            ("GET", ["rules", "branches", "main"]) => Some((200, self.base_rules.clone())),
            ("GET", ["rules", "branches", _]) => Some((200, self.rules.clone())),
            ("GET", ["rulesets", _]) => Some((200, json!({"current_user_can_bypass": self.bypass}))),
            ("GET", ["issues"]) => Some((200, newest_first(&self.issues))),
            ("GET", ["issues", number]) => Some((200, by_number(&self.issues, number)?.clone())),
            ("POST", ["issues"]) => Some((201, self.open_issue(request.json()))),
            ("GET", ["issues", _, "comments"]) => Some((200, json!(self.comments))),
            ("POST", ["issues", _, "comments"]) => {
                let body = request.json()["body"].clone();
                self.comments.push(json!({"html_url": "https://github.com/octo/hello/issues/1#c", "body": body}));
                Some((201, self.comments.last()?.clone()))
            }
            ("POST", [..]) if matches!(parts.last(), Some(&("labels" | "assignees" | "requested_reviewers"))) => {
                Some((200, json!([])))
            }
            ("GET", ["pulls"]) => Some((200, newest_first(&self.pulls))),
            ("GET", ["pulls", number]) => Some((200, by_number(&self.pulls, number)?.clone())),
            ("PATCH", ["pulls", number]) => {
                let at = self.pulls.iter().position(|it| has_number(it, number))?;
                let changes = request.json();
                changes.as_object()?.iter().for_each(|(name, value)| self.pulls[at][name] = value.clone());
                Some((200, self.pulls[at].clone()))
            }
            ("POST", ["pulls"]) => Some(self.open_pull(request.json())),
            _ => None,
        }
    }

    fn open_issue(&mut self, request: Value) -> Value {
        let number = self.issues.len() + 1;
        self.issues.push(issue(number, request["title"].as_str().unwrap(), request["body"].as_str().unwrap()));
        self.issues.last().unwrap().clone()
    }

    fn open_pull(&mut self, request: Value) -> (u16, Value) {
        let head = request["head"].as_str().unwrap();
        if self.pulls.iter().any(|it| it["state"] == "open" && it["head"]["ref"] == head) {
            let message = format!("A pull request already exists for octo:{head}.");
            return (422, invalid(&json!({"resource": "PullRequest", "code": "custom", "message": message})));
        }
        let mut pull = pull(self.pulls.len() + 11, head, request["body"].as_str().unwrap());
        pull["draft"] = request["draft"].clone();
        pull["title"] = request["title"].clone();
        self.pulls.push(pull.clone());
        (201, pull)
    }
}

fn newest_first(list: &[Value]) -> Value {
    list.iter().rev().cloned().collect()
}

fn by_number<'a>(list: &'a [Value], number: &str) -> Option<&'a Value> {
    list.iter().find(|it| has_number(it, number))
}

fn has_number(entry: &Value, number: &str) -> bool {
    number.parse().is_ok_and(|number: u64| entry["number"] == number)
}

fn invalid(error: &Value) -> Value {
    json!({"message": "Validation Failed", "errors": [error]})
}

fn issue(number: usize, title: &str, body: &str) -> Value {
    json!({"id": 100 + number, "number": number, "html_url": format!("https://github.com/octo/hello/issues/{number}"),
        "title": title, "body": body, "repository_url": "https://api.github.com/repos/Octo/hello"})
}

fn pull(number: usize, head: &str, body: &str) -> Value {
    json!({"number": number, "html_url": format!("https://github.com/octo/hello/pull/{number}"), "state": "open",
        "title": "Title", "body": body, "head": {"ref": head, "repo": {"full_name": "octo/hello"}},
        "base": {"ref": "main"}})
}

/// A server with its world, and the client's side.
struct Bench {
    world: Arc<Mutex<World>>,
    stub: Stub,
    github: Github,
    app: Option<AppInstallation>,
    logs: Mutex<Vec<String>>,
    since: Option<Timestamp>,
}

impl Bench {
    async fn new(world: World) -> Self {
        let world = Arc::new(Mutex::new(world));
        let shared = world.clone();
        let stub = Stub::start(move |request| shared.lock().answer(request)).await;
        let github = Github::new(GithubLimits::default());
        Self { world, stub, github, app: None, logs: Mutex::default(), since: None }
    }

    async fn run(&self, input: &StepInput) -> Made {
        let remote = Remote {
            repository: "octo/hello".into(),
            api_url: self.stub.url.clone(),
            token: format!("token of 520 characters {}", "x".repeat(496)).into(),
            max_wait_ms: 5000,
            app: self.app.clone(),
        };
        let mut api = Api::new(&self.github, &remote)?;
        api.since = self.since;
        let made = carry_out(&mut api, input).await;
        self.logs.lock().append(&mut api.logs);
        made
    }

    async fn preflight(&self, input: StepInput) -> Result<Preflight, StepFailure> {
        match self.run(&input).await? {
            StepFact::Preflight(fact) => Ok(*fact),
            other => panic!("{other:?}"),
        }
    }

    async fn pull(&self, input: &StepInput) -> Result<PullRequestFact, StepFailure> {
        match self.run(input).await? {
            StepFact::PullRequest(fact) => Ok(fact),
            other => panic!("{other:?}"),
        }
    }
}

const MARKER: &str = "<!-- lumilink:run:1 -->";
const BRANCH: &str = "claude-code/issue-1";

fn new_issue() -> StepInput {
    StepInput::Issue {
        number: None,
        marker: MARKER.into(),
        title: "Fix it".into(),
        body: format!("Body {MARKER}"),
        labels: vec!["automated".into()],
        assignees: vec!["octocat".into()],
    }
}

fn named_issue(number: u64) -> StepInput {
    let StepInput::Issue { marker, title, body, labels, assignees, .. } = new_issue() else { unreachable!() };
    StepInput::Issue { number: Some(number), marker, title, body, labels, assignees }
}

fn new_pull(number: Option<u64>, is_draft: bool) -> StepInput {
    StepInput::PullRequest {
        number,
        marker: MARKER.into(),
        head: BRANCH.into(),
        commit: SHA.to_ascii_lowercase(),
        base: "main".into(),
        title: "Fix it".into(),
        body: format!("New body {MARKER}"),
        is_draft,
        labels: vec!["automated".into()],
        assignees: Vec::new(),
        reviewers: vec!["octocat".into(), "octo/team".into()],
    }
}

fn preflight_of(branch: &str) -> StepInput {
    StepInput::Preflight {
        branch: branch.into(),
        base: None,
        wants_issue: true,
        wants_pull_request: true,
        touches_workflows: false,
        pull_request: None,
        signing: SigningMode::Auto,
        has_signing_key: false,
        api_obstacle: None,
        target: None,
        tree: None,
        requester: None,
    }
}

#[tokio::test]
async fn answer_lost_after_the_issue_was_opened_leaves_exactly_one_issue() {
    for fault in [Fault::Lose, Fault::Fail] {
        let mut world = World::new();
        world.faults.push(("POST", "/repos/octo/hello/issues", fault));
        let bench = Bench::new(world).await;
        let StepFact::Issue(fact) = bench.run(&new_issue()).await.unwrap() else { panic!() };
        assert_eq!((fact.number, fact.is_adopted), (1, false));
        let StepFact::Issue(again) = bench.run(&new_issue()).await.unwrap() else { panic!() };
        assert_eq!((again.number, again.is_adopted), (1, true));
        assert_eq!(bench.world.lock().issues.len(), 1);
        assert_eq!(fact.url, "https://github.com/octo/hello/issues/1");
    }
}

#[tokio::test]
async fn two_executions_of_one_step_at_once_open_one_issue() {
    let bench = Bench::new(World::new()).await;
    let execute = || async {
        let _run = bench.github.hold_run("1").await;
        bench.run(&new_issue()).await.unwrap()
    };
    let (one, two) = tokio::join!(execute(), execute());
    let number = |fact| if let StepFact::Issue(fact) = fact { fact.number } else { 0 };
    assert_eq!((number(one), number(two), bench.world.lock().issues.len()), (1, 1, 1));
}

#[tokio::test]
async fn disabled_issues_are_a_failure_with_a_code_and_no_skip() {
    let mut world = World::new();
    let body = json!({"message": "Issues are disabled for this repo"});
    world.faults.push(("GET", "/repos/octo/hello/issues", Fault::Refuse(410, body)));
    let failure = Bench::new(world).await.run(&new_issue()).await.unwrap_err();
    assert_eq!((failure.code.as_str(), failure.skip, failure.remedy), ("issues-disabled", None, Remedy::Never));
}

#[tokio::test]
async fn labels_and_assignees_that_may_not_be_set_do_not_prevent_the_issue() {
    let mut world = World::new();
    let assignee = json!({"value": "octocat", "resource": "Issue", "field": "assignees", "code": "invalid"});
    let forbidden = json!({"message": "Resource not accessible by personal access token"});
    world.faults.push(("POST", "/repos/octo/hello/issues", Fault::Refuse(422, invalid(&assignee))));
    world.faults.push(("POST", "/repos/octo/hello/issues", Fault::Refuse(403, forbidden)));
    let bench = Bench::new(world).await;
    bench.run(&new_issue()).await.unwrap();
    let sent: Vec<_> = bench.stub.received().into_iter().filter(|it| it.method == "POST").collect();
    assert_eq!(sent[1].json()["labels"], json!(["automated"]));
    assert!(sent[1].json().get("assignees").is_none() && sent[2].json().get("labels").is_none());
    let logs = bench.logs.lock();
    assert!(
        logs[0].starts_with("the issue is opened without assignees") && logs[1].contains("without labels"),
        "{logs:?}"
    );
}

#[tokio::test]
async fn named_issue_is_read_and_a_missing_or_transferred_one_is_refused() {
    let mut world = World::new();
    world.issues.push(issue(1, "Old <title>", "no marker"));
    world.issues.push(issue(2, "Moved", ""));
    world.issues[1]["repository_url"] = json!("https://api.github.com/repos/octo/other");
    let bench = Bench::new(world).await;
    let StepFact::Issue(fact) = bench.run(&named_issue(1)).await.unwrap() else { panic!() };
    assert_eq!((fact.id, fact.title.as_str(), fact.is_adopted), (101, "Old ‹title›", true));
    for number in [2, 3] {
        assert_eq!(bench.run(&named_issue(number)).await.unwrap_err().code, "issue-missing", "{number}");
    }
    assert_eq!(bench.stub.count("POST", "/"), 0);
}

#[tokio::test]
async fn secondary_limit_with_quota_left_is_waited_for_or_reported_with_its_time() {
    let limit = || json!({"message": "You have exceeded a secondary rate limit. Please wait."});
    let mut world = World::new();
    world.headers.push("x-ratelimit-remaining: 4711".into());
    world.faults.push(("POST", "/repos/octo/hello/issues", Fault::Refuse(403, limit())));
    let bench = Bench::new(world).await;
    let failure = bench.run(&new_issue()).await.unwrap_err();
    assert_eq!((failure.skip, failure.remedy), (Some(SkipDetail::SecondaryLimit), Remedy::Later));
    assert!(failure.retry_at.is_some());
    assert_eq!(bench.world.lock().issues.len(), 0, "60 s are more than the step waits");
}

#[tokio::test]
async fn pull_request_that_was_opened_before_a_500_is_adopted() {
    let mut world = World::new();
    world.faults.push(("POST", "/repos/octo/hello/pulls", Fault::Fail));
    let bench = Bench::new(world).await;
    let fact = bench.pull(&new_pull(None, true)).await.unwrap();
    assert_eq!((fact.number, fact.is_draft, fact.is_adopted, fact.branch.as_str()), (11, true, false, BRANCH));
    let received = bench.stub.received();
    let reviewers: Vec<_> = received.iter().filter(|it| it.target.ends_with("requested_reviewers")).collect();
    assert_eq!(bench.stub.count("POST", "/repos/octo/hello/pulls"), 1 + reviewers.len());
    assert_eq!(reviewers[0].json(), json!({"reviewers": ["octocat"]}));
    assert_eq!(reviewers[1].json(), json!({"team_reviewers": ["team"]}));
    assert_eq!(bench.world.lock().pulls.len(), 1);
}

#[tokio::test]
async fn pull_request_that_the_agent_opened_is_adopted_and_not_changed() {
    let mut world = World::new();
    let mut fork = pull(12, BRANCH, "from a fork");
    fork["head"]["repo"]["full_name"] = json!("stranger/hello");
    world.pulls = vec![pull(11, BRANCH, "by the agent"), fork, pull(13, "other", MARKER)];
    let bench = Bench::new(world).await;
    let fact = bench.pull(&new_pull(None, false)).await.unwrap();
    assert_eq!((fact.number, fact.is_adopted), (11, true));
    assert!(bench.stub.received().iter().all(|it| it.method == "GET"));
}

#[tokio::test]
async fn pull_request_that_exists_already_is_adopted_once_github_lists_it() {
    let mut world = World::new();
    world.pulls.push(pull(11, BRANCH, "by the agent"));
    world.faults.push(("GET", "/repos/octo/hello/pulls?", Fault::Refuse(200, json!([]))));
    let bench = Bench::new(world).await;
    assert_eq!(bench.pull(&new_pull(None, false)).await.unwrap().number, 11);
}

#[tokio::test]
async fn later_turn_updates_its_own_pull_request_without_asking_reviewers_again() {
    let mut world = World::new();
    world.pulls.push(pull(11, BRANCH, &format!("Old body {MARKER}")));
    let bench = Bench::new(world).await;
    assert_eq!(bench.pull(&new_pull(Some(11), false)).await.unwrap().number, 11);
    assert_eq!(bench.world.lock().pulls[0]["body"], format!("New body {MARKER}"));
    assert_eq!(bench.stub.count("POST", "/"), 0);
    bench.pull(&new_pull(Some(11), false)).await.unwrap();
    assert_eq!(bench.stub.count("PATCH", "/"), 1, "nothing differs any more");
}

#[tokio::test]
async fn closed_pull_request_is_not_opened_again_and_a_merged_one_is_followed_by_another() {
    for number in [Some(11), None] {
        let mut world = World::new();
        world.pulls.push(pull(11, BRANCH, MARKER));
        world.pulls[0]["state"] = json!("closed");
        let bench = Bench::new(world).await;
        let failure = bench.pull(&new_pull(number, false)).await.unwrap_err();
        assert_eq!(failure.skip, Some(SkipDetail::ClosedByPerson));
        bench.world.lock().pulls[0]["merged_at"] = json!("2026-11-30T00:00:00Z");
        assert_eq!(bench.pull(&new_pull(number, false)).await.unwrap().number, 12);
    }
}

#[tokio::test]
async fn refusals_of_a_pull_request_say_what_is_wrong() {
    let error = |field: &str, message: &str| invalid(&json!({"field": field, "code": "custom", "message": message}));
    for (body, code, sent) in [
        (error("", "No commits between main and claude-code/issue-1"), "no-changes", 1),
        (error("base", ""), "base-missing", 1),
        (error("head", ""), "branch-missing", 4),
    ] {
        let mut world = World::new();
        let refuse = || ("POST", "/repos/octo/hello/pulls", Fault::Refuse(422, body.clone()));
        world.faults.extend((0..sent).map(|_| refuse()));
        let bench = Bench::new(world).await;
        assert_eq!(bench.pull(&new_pull(None, false)).await.unwrap_err().code, code);
        assert_eq!(bench.stub.count("POST", "/"), sent);
    }
    let mut world = World::new();
    let draft = json!({"message": "Draft pull requests are not supported in this repository."});
    world.faults.push(("POST", "/repos/octo/hello/pulls", Fault::Refuse(422, draft)));
    assert!(!Bench::new(world).await.pull(&new_pull(None, true)).await.unwrap().is_draft);
}

#[tokio::test]
async fn comment_is_written_once_and_cut_to_the_size_that_github_takes() {
    let mut world = World::new();
    world.faults.push(("POST", "/repos/octo/hello/issues/1/comments", Fault::Lose));
    let bench = Bench::new(world).await;
    let body = format!("{}{MARKER}", "a line\n".repeat(20_000));
    let input = StepInput::Comment { issue: 1, marker: MARKER.into(), body };
    for _ in 0..2 {
        let StepFact::Comment { url } = bench.run(&input).await.unwrap() else { panic!() };
        assert_eq!(url, "https://github.com/octo/hello/issues/1#c");
    }
    let comments = &bench.world.lock().comments;
    let text = comments[0]["body"].as_str().unwrap();
    assert_eq!(comments.len(), 1);
    assert!(text.chars().count() < 65_536 && text.contains(MARKER));
}

#[tokio::test]
async fn preflight_reports_branches_rules_and_the_earlier_pull_request() {
    let mut world = World::new();
    world.branches.push(BRANCH.into());
    world.repository["fork"] = json!(true);
    world.repository["has_issues"] = json!(false);
    world.rules = json!([{"type": "creation"}, {"type": "required_linear_history"}]);
    world.pulls.push(pull(11, BRANCH, MARKER));
    let bench = Bench::new(world).await;
    let mut input = preflight_of(BRANCH);
    let StepInput::Preflight { pull_request, .. } = &mut input else { unreachable!() };
    *pull_request = Some(11);
    let fact = bench.preflight(input.clone()).await.unwrap();
    assert_eq!(fact.branch_head.as_deref(), Some(SHA.to_ascii_lowercase().as_str()));
    assert_eq!((fact.has_issues, fact.is_fork, fact.default_branch.as_str()), (false, true, "main"));
    assert_eq!((fact.pull_request, fact.identity), (Some(PullRequestState::Open), None), "no domain is made up");
    let targets: Vec<_> = bench.stub.received().into_iter().map(|it| it.target).collect();
    assert!(targets.iter().any(|it| it.ends_with("/git/ref/heads%2Fclaude-code%2Fissue-1")), "{targets:?}");
    bench.world.lock().pulls.clear();
    assert_eq!(bench.preflight(input).await.unwrap().pull_request, None);
}

#[tokio::test]
async fn preflight_refuses_what_cannot_succeed_before_something_exists() {
    type Change = fn(&mut World);
    let changes: [(Change, SkipDetail); 8] = [
        (|world| world.repository["archived"] = json!(true), SkipDetail::Archived),
        (|world| world.repository["permissions"]["push"] = json!(false), SkipDetail::TokenRefused),
        (|world| world.repository["default_branch"] = json!(null), SkipDetail::EmptyRepository),
        (|world| world.branches.clear(), SkipDetail::EmptyRepository),
        (
            |world| {
                let empty = json!({"message": "Git Repository is empty."});
                world.faults.push(("GET", "/repos/octo/hello/git/ref", Fault::Refuse(409, empty)));
            },
            SkipDetail::EmptyRepository,
        ),
        (|world| world.rules = json!([{"type": "creation", "ruleset_id": 42}]), SkipDetail::Ruleset),
        (|world| world.rules = json!([{"type": "required_signatures"}]), SkipDetail::SigningRequired),
        (
            |world| {
                let sso = json!({"message": "Resource protected by organization SAML enforcement."});
                world.faults.push(("GET", "/repos/octo/hello", Fault::Refuse(403, sso)));
            },
            SkipDetail::Sso,
        ),
    ];
    for (change, detail) in changes {
        let mut world = World::new();
        change(&mut world);
        let bench = Bench::new(world).await;
        let failure = bench.preflight(preflight_of("new")).await.unwrap_err();
        assert_eq!(failure.skip, Some(detail), "{failure:?}");
        assert!(bench.stub.received().iter().all(|it| it.method == "GET"));
    }
}

#[tokio::test]
async fn token_that_may_bypass_a_ruleset_is_not_refused_by_it() {
    let mut world = World::new();
    world.rules = json!([{"type": "creation", "ruleset_id": 42}, {"type": "required_signatures", "ruleset_id": 42}]);
    world.bypass = "always";
    let bench = Bench::new(world).await;
    bench.preflight(preflight_of("new")).await.unwrap();
    assert!(bench.logs.lock()[0].contains("from which the token is exempt"));
}

/// The signer of a commit, for the rules of the branch and of the base.
async fn signing_of(
    branch: Value,
    base: Value,
    app: bool,
    change: impl FnOnce(&mut StepInput),
) -> Result<Preflight, StepFailure> {
    let mut world = World::new();
    (world.rules, world.base_rules) = (branch, base);
    let mut bench = Bench::new(world).await;
    bench.app = app.then(|| AppInstallation { id: 7, slug: None, permissions: Default::default() });
    let mut input = preflight_of("new");
    change(&mut input);
    bench.preflight(input).await
}

#[tokio::test]
async fn demanded_signature_is_made_by_the_key_or_by_github_for_the_app() {
    let rule = || json!([{"type": "required_signatures"}]);
    let with_key = |input: &mut StepInput| {
        let StepInput::Preflight { has_signing_key, .. } = input else { unreachable!() };
        *has_signing_key = true;
    };
    let obstructed = |input: &mut StepInput| {
        let StepInput::Preflight { api_obstacle, .. } = input else { unreachable!() };
        *api_obstacle = Some("run.sh is executable".into());
    };
    let never = |input: &mut StepInput| {
        let StepInput::Preflight { signing, .. } = input else { unreachable!() };
        *signing = SigningMode::Never;
    };
    let key = signing_of(rule(), json!([]), true, with_key).await.unwrap();
    assert_eq!((key.signing, key.could_sign), (Some(SigningWay::Key), Some(SigningWay::Key)));
    let api = signing_of(rule(), json!([]), true, |_| {}).await.unwrap();
    assert_eq!((api.signing, api.could_sign), (Some(SigningWay::Api), Some(SigningWay::Api)));
    let none = signing_of(json!([]), json!([]), true, with_key).await.unwrap();
    assert_eq!((none.signing, none.could_sign), (None, Some(SigningWay::Key)));
    let refused = signing_of(rule(), json!([]), true, obstructed).await.unwrap_err();
    assert_eq!(refused.skip, Some(SkipDetail::SigningRequired));
    assert!(refused.message.contains("run.sh is executable"), "{}", refused.message);
    let never = signing_of(rule(), json!([]), true, never).await.unwrap_err();
    assert_eq!(never.skip, Some(SkipDetail::SigningRequired));
    let of_base = signing_of(json!([]), rule(), true, |_| {}).await.unwrap();
    assert_eq!(of_base.signing, Some(SigningWay::Api), "the pull request could not be merged otherwise");
    let token = signing_of(json!([]), rule(), false, |_| {}).await.unwrap();
    assert_eq!((token.signing, token.could_sign), (None, None), "the base demands it of a merge alone");
}

fn on_pull_request(number: u64) -> StepInput {
    let mut input = preflight_of("unused");
    let StepInput::Preflight { target, .. } = &mut input else { unreachable!() };
    *target = Some(number);
    input
}

fn pull_of_fork(number: usize, can_modify: bool) -> Value {
    let mut pull = pull(number, "idea", "by a stranger");
    pull["head"] = json!({"ref": "idea", "sha": SHA.to_ascii_lowercase(), "repo": {"full_name": "stranger/hello"}});
    pull["maintainer_can_modify"] = json!(can_modify);
    pull["base"]["ref"] = json!("main");
    pull
}

#[tokio::test]
async fn pull_request_of_a_fork_is_pushed_to_only_where_maintainers_may() {
    let mut world = World::new();
    let mut own = pull(11, "topic", "by a person");
    own["head"]["sha"] = json!(SHA.to_ascii_lowercase());
    let mut deleted = pull_of_fork(14, true);
    deleted["head"]["repo"] = Value::Null;
    world.pulls = vec![own, pull_of_fork(12, true), pull_of_fork(13, false), deleted];
    let mut bench = Bench::new(world).await;
    let same = bench.preflight(on_pull_request(11)).await.unwrap();
    let target = same.target.unwrap();
    assert_eq!((target.branch.as_str(), target.fork, same.target_base.as_deref()), ("topic", None, Some("main")));
    let fork = bench.preflight(on_pull_request(12)).await.unwrap();
    let target = fork.target.unwrap();
    assert_eq!((target.number, target.branch.as_str(), target.fork.as_deref()), (12, "idea", Some("stranger/hello")));
    for number in [13, 14] {
        let refused = bench.preflight(on_pull_request(number)).await.unwrap_err();
        assert_eq!(refused.skip, Some(SkipDetail::ForkReadOnly), "{refused:?}");
    }
    assert_eq!(bench.preflight(on_pull_request(15)).await.unwrap_err().code, "pull-request-missing");
    bench.app = Some(AppInstallation { id: 7, slug: None, permissions: Default::default() });
    let refused = bench.preflight(on_pull_request(12)).await.unwrap_err();
    assert_eq!(refused.skip, Some(SkipDetail::ForkReadOnly), "the App's token reaches the base alone");
    bench.world.lock().pulls[0]["merged_at"] = json!("2026-11-30T00:00:00Z");
    let merged = bench.preflight(on_pull_request(11)).await.unwrap();
    assert_eq!((merged.pull_request, merged.target), (Some(PullRequestState::Merged), None));
    assert!(bench.stub.received().iter().all(|it| it.method == "GET"));
}

#[tokio::test]
async fn open_pull_request_of_another_run_with_the_same_tree_is_found() {
    let ours = |number: usize, head: &str, base: &str| {
        let mut pull = pull(number, head, "x <!-- lumilink:run=2 kind=pull-request -->");
        pull["head"]["sha"] = json!(SHA.to_ascii_lowercase());
        pull["base"]["ref"] = json!(base);
        pull
    };
    let searched = |tree: &str| {
        let mut input = preflight_of("new");
        let StepInput::Preflight { tree: searched, .. } = &mut input else { unreachable!() };
        *searched = Some(tree.into());
        input
    };
    let mut fork = ours(12, "of-fork", "main");
    fork["head"]["repo"]["full_name"] = json!("stranger/hello");
    let mut by_person = ours(13, "by-person", "main");
    by_person["body"] = json!("<!-- a comment -->");
    let mut world = World::new();
    world.pulls = vec![ours(11, "twin", "main"), fork, by_person, ours(14, "other-base", "release")];
    let bench = Bench::new(world).await;
    let found = bench.preflight(searched(TREE)).await.unwrap().twin.unwrap();
    assert_eq!((found.number, found.branch.as_str(), found.head), (11, "twin", SHA.to_ascii_lowercase()));
    assert_eq!(bench.stub.count("GET", "/repos/octo/hello/git/commits/"), 1, "only its own are compared");
    assert_eq!(bench.preflight(searched(&"9".repeat(40))).await.unwrap().twin, None);
    bench.world.lock().pulls[0]["state"] = json!("closed");
    assert_eq!(bench.preflight(searched(TREE)).await.unwrap().twin, None);
    assert_eq!(bench.preflight(preflight_of("new")).await.unwrap().twin, None);
}

#[tokio::test]
async fn checks_that_wait_for_approval_are_reported_and_never_fail_the_step() {
    for (answer, waits) in [
        (Some((200, json!({"total_count": 2, "workflow_runs": []}))), true),
        (Some((200, json!({"total_count": 0, "workflow_runs": []}))), false),
        (Some((403, json!({"message": "Resource not accessible by integration"}))), false),
        (Some((200, json!([]))), false),
        (None, false),
    ] {
        let mut world = World::new();
        if let Some((status, body)) = answer {
            world.faults.push(("GET", "/repos/octo/hello/actions/runs", Fault::Refuse(status, body)));
        }
        let bench = Bench::new(world).await;
        assert_eq!(bench.pull(&new_pull(None, false)).await.unwrap().waits_for_approval, waits);
        let asked: Vec<_> = bench.stub.received().into_iter().filter(|it| it.target.contains("/actions/")).collect();
        assert_eq!(asked.len(), 1);
        let sha = SHA.to_ascii_lowercase();
        assert!(asked[0].target.ends_with(&format!("?head_sha={sha}&status=action_required&per_page=1")));
    }
}

#[tokio::test]
async fn rules_that_cannot_be_read_are_left_to_the_push() {
    let mut world = World::new();
    let plan = json!({"message": "Upgrade to GitHub Pro or make this repository public to enable this feature."});
    world.faults.push(("GET", "/repos/octo/hello/rules", Fault::Refuse(403, plan)));
    let bench = Bench::new(world).await;
    bench.preflight(preflight_of("new")).await.unwrap();
    assert!(bench.logs.lock()[0].starts_with("the rules of the branch are not known"));
}

#[tokio::test]
async fn missing_permission_of_the_app_is_found_before_the_push() {
    let mut bench = Bench::new(World::new()).await;
    let permissions = [("contents", "write"), ("issues", "read")];
    let permissions = permissions.map(|(name, level)| (name.to_owned(), level.to_owned())).into();
    bench.app = Some(AppInstallation { id: 7, slug: Some("lumi".into()), permissions });
    let failure = bench.preflight(preflight_of("new")).await.unwrap_err();
    assert_eq!(failure.skip, Some(SkipDetail::TokenRefused));
    assert!(failure.message.contains("issues=write") && failure.message.contains("accept"), "{}", failure.message);
}

#[tokio::test]
async fn issue_of_a_run_is_searched_from_the_time_in_its_id() {
    let mut bench = Bench::new(World::new()).await;
    bench.since = Some(Timestamp(1_688_096_058_123_456));
    bench.run(&new_issue()).await.unwrap();
    let target = &bench.stub.received()[0].target;
    assert!(target.contains("since=2023-06-30T03%3A34%3A18Z"), "{target}");
    let run = Uuid::parse_str("01890a5d-ac96-774b-bcce-b302099a8057").unwrap();
    assert_eq!(begin_of(run), Some(Timestamp(1_688_096_058_000_000)));
    assert_eq!(begin_of(Uuid::nil()), None);
}

#[tokio::test]
async fn repository_of_another_host_is_never_looked_up_by_its_name() {
    let github = Github::new(GithubLimits::default());
    let remote = Remote {
        repository: "https://gitlab.com/octo/hello".into(),
        api_url: "https://api.github.com".into(),
        token: "token".into(),
        max_wait_ms: 0,
        app: None,
    };
    let failure = Api::new(&github, &remote).err().unwrap();
    assert_eq!(failure.skip, Some(SkipDetail::MissingRepository));
}
