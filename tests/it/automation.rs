//! What an agent changed arrives at GitHub as a branch, an issue and a pull request, exactly once, and is never lost.

use std::time::{Duration, Instant};

use diesel::{Connection, QueryableByName, RunQueryDsl, SqliteConnection, sql_types};

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
    with_settings(Program::builder(), github)
}

fn with_settings(builder: Builder, github: &GitHub) -> Builder {
    builder
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

/// Sets the number of sessions of both fault tests together.
const SESSIONS_VARIABLE: &str = "LUMILINK_AUTOMATION_SESSIONS";
/// Time for faults, kills, and the attempts after them, of ten sessions.
const FAULT_DEADLINE: Duration = Duration::from_secs(180);

/// Sessions on each database: half of `LUMILINK_AUTOMATION_SESSIONS`, which is 20 unless it is set.
fn sessions_of_a_database() -> usize {
    let both = std::env::var(SESSIONS_VARIABLE).map_or(20, |it| it.parse().expect("a number of sessions"));
    both / 2
}

/// A program with the App, bound to the tenant, and a runtime that can be restarted by itself.
fn with_app(builder: Builder, github: &GitHub) -> Program {
    let program = builder
        .set("github.app_id", github.app_id())
        .env("LUMILINK_GITHUB__PRIVATE_KEY_FILE", &github.app_key_file().display().to_string())
        .behind_proxy()
        .start();
    let automation = json!({"automation": {"installations": [77]}, "actor": "ada", "reason": "test"});
    program.api.call("PUT", &format!("/acp/tenants/{TENANT}")).json(&automation).send().expect(200);
    program
}

/// A session of the fault tests: it has a repository and a workspace of its own.
struct Faulty {
    repository: String,
    session: Session,
    /// Each turn, with the file that it writes.
    turns: Vec<(String, String)>,
}

impl Faulty {
    /// Opens session `number`; every second one is on the HTTP route.
    fn open(program: &Program, github: &GitHub, number: usize) -> Self {
        let repository = format!("octo/r{number}");
        github.create(&repository);
        github.commit(&repository, "main", &[("README.md", "hello\n")]);
        let workspace = format!("ws-{number}");
        let body = json!({
            "workspaceId": workspace, "installationId": TENANT, "repository": github.url(&repository),
        });
        let session = program.api.open_with(body);
        let route = ["acp", "http"][number % 2];
        let pin = json!({"pin": {"protocol": route}, "actor": "ada", "reason": "for faults on both routes"});
        let path = format!("/acp/workspaces/{workspace}/protocol?installationId={TENANT}");
        program.api.call("PUT", &path).json(&pin).send().expect(200);
        Self { repository, session, turns: Vec::new() }
    }

    fn begin(&mut self) {
        let file = format!("turn-{}.txt", self.turns.len());
        let prompt = self.session.starts(&format!("write {file} hello"));
        self.turns.push((prompt, file));
    }

    /// Waits for the end of the newest turn, and returns it.
    fn end(&self, deadline: Duration) -> Value {
        let (prompt, _) = self.turns.last().expect("a turn");
        wait_for(deadline, "the end of the turn", || {
            let read = self.session.api.get(&format!("/acp/prompt/{prompt}")).expect(200);
            (!read["endedAt"].is_null()).then_some(read)
        })
    }

    /// The session's runs, newest first.
    fn runs(&self) -> Vec<Value> {
        let runs = self.session.api.get(&format!("/acp/automation?sessionId={}", self.session.id)).expect(200);
        runs["items"].as_array().expect("a list").clone()
    }

    /// Retries the newest run, as an operator would, unless it has an end that is final; true if it has.
    fn is_delivered(&self) -> bool {
        let runs = self.runs();
        let Some(newest) = runs.first() else { return false };
        match newest["status"].as_str() {
            Some("success") => return true,
            Some("running") => return false,
            _ => {}
        }
        let path = format!("/acp/automation/{}/retry", newest["automationId"].as_str().expect("an id"));
        let answer = self.session.api.post(&path, json!({}));
        // 409 for a run whose attempt just began; 400 for one that succeeded meanwhile, or whose agent changed nothing.
        assert!(matches!(answer.status, 202 | 400 | 409), "{}: {newest:#}", answer.text);
        answer.status == 400
    }

    /// Checks that there is one issue and one pull request, and that each commit is delivered or can be rescued.
    fn check(&self, github: &GitHub) {
        let (repository, runs) = (self.repository.as_str(), self.runs());
        assert_eq!(github.issues(repository).len(), 1, "{repository}: {runs:#?}");
        assert_eq!(github.pulls(repository).len(), 1, "{repository}: {runs:#?}");
        assert_eq!(github.duplicates(repository), Vec::<String>::new());
        let branches = github.branches(repository);
        let [(branch, _)] = &branches.iter().filter(|(name, _)| name != "main").collect::<Vec<_>>()[..] else {
            panic!("{repository}: {branches:?}")
        };
        let files = github.git(repository, &["ls-tree", "-r", "--name-only", branch]);
        for (prompt, file) in &self.turns {
            let turn = self.session.api.get(&format!("/acp/prompt/{prompt}")).expect(200);
            let is_there = files.lines().any(|it| it == file);
            assert!(turn["state"] != "completed" || is_there, "{repository}: {file} of {turn:#} is not in {files}");
        }
        for run in &runs {
            let Some(commit) = run["commit"]["sha"].as_str() else { continue };
            let commits = github.git(repository, &["rev-list", "--all"]);
            let is_superseded = run["status"] == "superseded";
            if commits.lines().any(|it| it == commit) || is_superseded {
                // The files of a superseded run are on the branch, as seen above.
                continue;
            }
            let id = run["automationId"].as_str().expect("an id");
            let rescued = self.session.api.get(&format!("/acp/automation/{id}/rescue?format=patch"));
            assert_eq!(rescued.status, 200, "{repository}: {commit} is lost: {run:#}");
        }
    }
}

/// Kills one side or both, and starts them again.
fn kill(program: &mut Program, which: usize) {
    match which % 3 {
        0 => program.kill_supervisor(),
        1 => program.kill_runtime(),
        _ => {
            program.kill_supervisor();
            program.kill_runtime();
        }
    }
    if !which.is_multiple_of(3) {
        program.start_runtime_again();
    }
    if which % 3 != 1 {
        program.start_supervisor_again();
    }
}

/// Runs one to three turns in each session, while GitHub fails at random and supervisor, runtime or both are killed.
fn kills_and_lost_answers(builder: Builder) {
    let begin = Instant::now();
    let github = GitHub::start();
    let mut program = with_app(with_settings(builder, &github), &github);
    let count = sessions_of_a_database();
    let deadline = FAULT_DEADLINE * u32::try_from(count.div_ceil(10)).expect("a small number");
    let mut sessions: Vec<_> = (0..count).map(|number| Faulty::open(&program, &github, number)).collect();
    github.chaos(Dice::of_seed(15), 8, passing_faults());
    for turn in 0..3 {
        let mut started: Vec<_> =
            sessions.iter_mut().enumerate().filter(|(number, _)| number % 3 >= turn).map(|(_, it)| it).collect();
        let created = || github.requests_of("POST", "/**").len();
        let before = created();
        started.iter_mut().for_each(|it| it.begin());
        wait_for(deadline, "automation runs", || (created() > before + 2 * turn).then_some(()));
        kill(&mut program, turn);
        for it in &started {
            it.end(deadline);
        }
    }
    github.calm();
    for it in &mut sessions {
        // Each session has at least one turn whose agent was not killed.
        if it.runs().is_empty() {
            it.begin();
            it.end(deadline);
        }
    }
    let mut open: Vec<_> = sessions.iter().collect();
    wait_for(deadline, "the delivery of every run", || {
        open.retain(|it| !it.is_delivered());
        open.is_empty().then_some(())
    });
    sessions.iter().for_each(|it| it.check(&github));
    let turns: usize = sessions.iter().map(|it| it.turns.len()).sum();
    println!("{count} sessions with {turns} turns: {:?}", begin.elapsed());
}

#[test]
fn kills_and_lost_answers_leave_one_pull_request_for_each_session_on_sqlite() {
    kills_and_lost_answers(Program::builder());
}

#[test]
fn kills_and_lost_answers_leave_one_pull_request_for_each_session_on_postgresql() {
    kills_and_lost_answers(Program::builder().postgres());
}

/// The most that automation adds to a turn in a small repository, beside GitHub's own time and the wait for quiet.
const OVERHEAD: Duration = Duration::from_secs(2);

#[test]
fn automation_of_a_small_repository_adds_less_than_two_seconds() {
    let github = GitHub::start();
    let program = with(&github).start();
    let session = open(&program, &github);
    prompt(&session, "write first.txt x", json!({}));
    // The quickest of three turns: other tests use the same processors.
    let added = (0..3).map(|number| {
        let before = github.time();
        let result = prompt(&session, &format!("write {number}.txt x"), json!({}));
        let automation = &result["githubAutomation"];
        assert_eq!(automation["status"], "success", "{result:#}");
        let whole = Duration::from_millis(automation["diagnostics"]["durationMs"].as_u64().expect("a duration"));
        let of_github = github.time().saturating_sub(before);
        println!("automation: {whole:?}, of which GitHub {of_github:?}");
        whole.saturating_sub(of_github)
    });
    let least = added.min().expect("three turns");
    assert!(least < OVERHEAD, "{least:?}");
}

#[derive(Debug, QueryableByName)]
struct Count {
    #[diesel(sql_type = sql_types::BigInt)]
    rows: i64,
}

/// Steps of automation, each of which is a request to the runtime, and rows of runs.
fn automation_work(program: &Program) -> (f64, i64) {
    let requests = program.metrics().sum("lumilink_automation_step_seconds_count", &[]);
    let path = program.folder.path().join("data/lumilink.db");
    let mut database = SqliteConnection::establish(path.to_str().expect("UTF-8")).expect("the database is there");
    let counted = diesel::sql_query("SELECT count(*) AS rows FROM automation_sagas").load::<Count>(&mut database);
    (requests, counted.expect("a count")[0].rows)
}

#[test]
fn turn_without_a_repository_makes_no_request_and_no_row_for_automation() {
    let github = GitHub::start();
    let program = with(&github).start();
    let plain = program.api.open("plain");
    let result = plain.completes("write a.txt hello");
    assert!(result.get("githubAutomation").is_none(), "{result:#}");
    let none = automation_work(&program);
    assert!(none.0.abs() < 0.5 && none.1 == 0, "{none:?}");
    assert_eq!(github.requests().len(), 0);
    // A turn with a repository is counted.
    prompt(&open(&program, &github), "write a.txt hello", json!({}));
    let (requests, rows) = automation_work(&program);
    assert!(requests >= 6.0 && rows == 1, "{requests} {rows}");
    plain.completes("write b.txt hello");
    let after = automation_work(&program);
    assert!((after.0 - requests).abs() < 0.5 && after.1 == rows, "{after:?}");
}
