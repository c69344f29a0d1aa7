//! Turns that a label or a mention at GitHub starts: once for each delivery, for people with write permission, whatever is
//! killed in between.

use std::{io::Write, net::TcpStream, process::Command, thread, time::Instant};

use crate::harness::{
    Api, DEADLINE, Program, Value,
    api::{Answer, Call},
    eventually,
    github::{
        GitHub,
        faults::Fault,
        http::Response,
        next_second,
        state::{Issue, Pull},
        webhook_headers,
    },
    hostile::RawRequest,
    json, lumilink,
    program::{Builder, Folder},
    wait_for,
};

/// Id of the installation on `octo`.
const OCTO: u64 = 77;
const REPOSITORY: &str = "octo/hello";
const SECRET: &str = "a-webhook-secret-of-32-characters";
const HOOK: &str = "/github/webhook";
/// Path of the collaborators' permissions.
const PERMISSION: &str = "/api/v3/repos/octo/hello/collaborators/*/permission";

/// Adds the App and the triggers to a program whose sessions are automated at the stand-in.
pub(crate) fn on(builder: Builder, github: &GitHub) -> Builder {
    builder
        .set("github.app_id", github.app_id())
        .env("LUMILINK_GITHUB__PRIVATE_KEY_FILE", &github.app_key_file().display().to_string())
        .set("github.triggers.enabled", true)
        .set("github.triggers.webhook_secret", SECRET)
}

fn with(github: &GitHub) -> Builder {
    with_builder(Program::builder(), github)
}

fn with_builder(builder: Builder, github: &GitHub) -> Builder {
    let builder = builder
        .set("workspaces.git_hosts", format!("[\"{}\"]", github.host()))
        .set("github.api_url", github.api_url())
        .set("github.author_name", "lumi-test[bot]")
        .set("github.author_email", "1+lumi-test[bot]@users.noreply.github.com")
        .set("turn.quiet_s", 1);
    on(builder, github)
}

fn bind(api: &Api, tenant: &str, installations: &[u64]) -> Answer {
    let body = json!({"automation": {"installations": installations}, "actor": "ada", "reason": "test"});
    api.call("PUT", &format!("/acp/tenants/{tenant}")).json(&body).send()
}

fn call(api: &Api, event: &str, id: &str, body: &str) -> Call {
    let headers = webhook_headers(SECRET, event, id, body.as_bytes());
    headers.iter().fold(api.call("POST", HOOK).body(body), |call, (name, value)| call.header(name, value))
}

fn deliver(api: &Api, event: &str, payload: &Value) -> Answer {
    call(api, event, &uuid::Uuid::new_v4().to_string(), &payload.to_string()).send()
}

/// The test that GitHub sends to a new webhook.
pub(crate) fn ping(api: &Api) -> Answer {
    ping_signed_with(SECRET, api)
}

/// As [`ping`], from a webhook with this secret.
pub(crate) fn ping_signed_with(secret: &str, api: &Api) -> Answer {
    let body = json!({"zen": "Keep it logically awesome.", "hook_id": 1}).to_string();
    let headers = webhook_headers(secret, "ping", &uuid::Uuid::new_v4().to_string(), body.as_bytes());
    headers.iter().fold(api.call("POST", HOOK).body(&body), |call, (name, value)| call.header(name, value)).send()
}

fn queued(answer: Answer) {
    assert_eq!(answer.expect(202), json!({"result": "queued"}));
}

fn ignored(answer: Answer, reason: &str) {
    assert_eq!(answer.expect(202), json!({"result": "ignored", "reason": reason}));
}

/// Opens an issue, or a pull request, as a person does; returns its number.
fn open(github: &GitHub, author: &str, body: &str, pull: Option<Pull>) -> u64 {
    let mut number = 0;
    github.edit(REPOSITORY, |it| {
        number = it.issues.len() as u64 + 1;
        it.issues.push(Issue {
            id: 500 + number,
            number,
            title: format!("Request {number}"),
            body: body.to_owned(),
            state: "open".into(),
            labels: Vec::new(),
            assignees: Vec::new(),
            author: author.to_owned(),
            created_at: 0,
            pull,
        });
    });
    number
}

fn person(github: &GitHub, login: &str) -> Value {
    json!({"login": login, "id": github.person(login), "type": "User"})
}

/// The payload of an event about an issue, as the stand-in has it now; no other one has its time.
fn payload(github: &GitHub, action: &str, number: u64, sender: &str) -> Value {
    let repository = github.repository(REPOSITORY);
    let issue = &repository.issues[usize::try_from(number).unwrap() - 1];
    let mut subject = json!({
        "id": issue.id, "number": number, "title": issue.title, "body": issue.body, "state": issue.state,
        "user": person(github, &issue.author), "labels": [], "created_at": next_second(), "updated_at": next_second(),
    });
    if issue.pull.is_some() {
        subject["pull_request"] = json!({"url": "x"});
    }
    json!({
        "action": action,
        "installation": {"id": OCTO},
        "repository": {"id": repository.id, "full_name": REPOSITORY},
        "sender": person(github, sender),
        "issue": subject,
        "label": {"name": "lumilink"},
    })
}

fn comment(github: &GitHub, number: u64, sender: &str, body: &str) -> Value {
    let mut payload = payload(github, "created", number, sender);
    payload["comment"] =
        json!({"id": 9001, "body": body, "user": person(github, sender), "created_at": next_second()});
    payload
}

fn triggers(api: &Api) -> Vec<Value> {
    api.get("/acp/automation/triggers").expect(200)["items"].as_array().unwrap().clone()
}

/// Waits until no work remains on the newest of `count` deliveries; returns it.
fn ends(api: &Api, count: usize, state: &str) -> Value {
    let is_open = |it: &Value| ["queued", "checked", "opened", "prompted"].contains(&it["state"].as_str().unwrap());
    let all = wait_for(DEADLINE, "the end of the work", || {
        let all = triggers(api);
        (all.len() == count && !all.iter().any(is_open)).then_some(all)
    });
    assert_eq!(all[0]["state"], state, "{all:#?}");
    all[0].clone()
}

fn sessions(api: &Api) -> usize {
    api.get("/acp/sessions").expect(200)["items"].as_array().unwrap().len()
}

fn comments(github: &GitHub, number: u64) -> Vec<String> {
    github.comments(REPOSITORY).into_iter().filter(|it| it.issue == number).map(|it| it.body).collect()
}

#[test]
fn label_and_mention_by_a_writer_start_turns_of_one_session_with_one_comment_each() {
    let github = GitHub::start();
    let program = with(&github).start();
    let api = &program.api;
    bind(api, "acme", &[OCTO]).expect(200);
    let number = open(&github, "ann", "please ; write a.txt hello ; done", None);
    let labelled = payload(&github, "labeled", number, "octocat").to_string();
    let id = uuid::Uuid::new_v4().to_string();
    queued(call(api, "issues", &id, &labelled).send());
    let ended = ends(api, 1, "answered");
    assert_eq!(
        (&ended["cause"], &ended["sender"], &ended["number"], &ended["reason"]),
        (&json!("label"), &json!("octocat"), &json!(number), &Value::Null)
    );
    assert_eq!((github.issues(REPOSITORY).len(), github.pulls(REPOSITORY).len()), (1, 1), "the issue is adopted");
    let written = comments(&github, number);
    assert!(written.len() == 1 && written[0].contains("pull request"), "the run's comment alone: {written:?}");
    assert_eq!(github.repository(REPOSITORY).reactions, [(format!("{number}"), "eyes".to_owned())]);
    // The same delivery again, also at the same time, has no effect; in upper case it is the same id.
    let repeats: Vec<_> = [id.clone(), id.to_uppercase(), id]
        .into_iter()
        .map(|id| {
            let (api, labelled) = (api.clone(), labelled.clone());
            thread::spawn(move || call(&api, "issues", &id, &labelled).send().expect(200))
        })
        .collect();
    for repeat in repeats {
        assert_eq!(repeat.join().unwrap(), json!({"result": "duplicate"}));
    }
    queued(deliver(api, "issue_comment", &comment(&github, number, "octocat", "@lumi-test ; echo nothing")));
    let second = ends(api, 2, "answered");
    assert_eq!(second["sessionId"], ended["sessionId"], "the session continues");
    let written = comments(&github, number);
    assert!(written.len() == 2 && written[1].contains("changed no file"), "{written:?}");
    assert_eq!(github.duplicates(REPOSITORY), Vec::<String>::new());
    assert_eq!(github.repository(REPOSITORY).reactions[1].0, "comments/9001");
    let transcript = api.get(&format!("/acp/session/{}/transcript", ended["sessionId"].as_str().unwrap())).text;
    assert!(
        transcript.contains("octocat labelled this issue") && transcript.contains("opened by ann"),
        "{transcript}"
    );
    let listed = Command::new(lumilink())
        .args(["automation", "triggers", "--state", "answered"])
        .envs(crate::harness::tokens::variables(&api.base()))
        .env("HOME", program.folder.path())
        .current_dir(program.folder.path())
        .output()
        .expect("the program runs");
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert_eq!(listed.lines().filter(|line| line.contains("octo/hello#1")).count(), 2, "{listed}");
    let counted = |result: &str| program.metrics().sum("lumilink_github_deliveries_total", &[("result", result)]);
    assert_eq!((counted("queued"), counted("duplicate")), (2.0, 3.0));
    assert!(!program.log().contains(SECRET));
}

#[test]
fn strangers_bots_foreign_tenants_and_wrong_signatures_start_nothing() {
    let github = GitHub::start();
    let own = github.install("evil");
    let program = with(&github).set("github.triggers.mention", "lumi-test").start();
    let api = &program.api;
    let number = open(&github, "ann", "please ; write a.txt hello", None);
    let labelled = payload(&github, "labeled", number, "octocat");
    ignored(deliver(api, "issues", &labelled), "no-installation");
    bind(api, "acme", &[OCTO]).expect(200);
    bind(api, "evil", &[own]).expect(200);
    let mention = |text: &str| comment(&github, number, "octocat", text);
    ignored(deliver(api, "issue_comment", &mention("`@lumi-test` and ada@lumi-test")), "no-mention");
    let mut edited = mention("@lumi-test go");
    edited["action"] = json!("edited");
    ignored(deliver(api, "issue_comment", &edited), "event");
    ignored(deliver(api, "push", &json!({"installation": {"id": OCTO}})), "event");
    let mut of_bot = mention("@lumi-test go");
    of_bot["sender"] = json!({"login": "lumi-test[bot]", "id": 1, "type": "Bot"});
    of_bot["comment"]["user"] = of_bot["sender"].clone();
    ignored(deliver(api, "issue_comment", &of_bot), "not-a-person");
    of_bot["sender"] = Value::Null;
    ignored(deliver(api, "issue_comment", &of_bot), "not-a-person");
    assert_eq!((triggers(api).len(), github.requests_of("*", "/**").len()), (0, 0), "GitHub is not asked");
    ping(api).expect(200);
    refuses_what_is_not_signed(&program, &labelled);
    // A suspended installation, of which no token is in the cache.
    github.edit_installation(|it| it.is_suspended = true);
    queued(deliver(api, "issues", &labelled));
    assert_eq!(ends(api, 1, "ignored")["reason"], "no-installation");
    github.edit_installation(|it| it.is_suspended = false);
    // A stranger, and a login that belongs to another account by now.
    queued(deliver(api, "issues", &payload(&github, "labeled", number, "mallory")));
    assert_eq!(ends(api, 2, "ignored")["reason"], "no-permission");
    let mut renamed = labelled.clone();
    renamed["sender"]["id"] = json!(4242);
    queued(deliver(api, "issues", &renamed));
    assert_eq!(ends(api, 3, "ignored")["reason"], "no-permission");
    // A signed payload of another installation that names this repository, and a repository that was replaced.
    let mut foreign = labelled.clone();
    foreign["installation"]["id"] = json!(own);
    queued(deliver(api, "issues", &foreign));
    let ended = ends(api, 4, "ignored");
    assert_eq!((&ended["installationId"], &ended["reason"]), (&json!("evil"), &json!("no-installation")));
    let mut replaced = labelled;
    replaced["repository"]["id"] = json!(1);
    queued(deliver(api, "issues", &replaced));
    assert_eq!(ends(api, 5, "ignored")["reason"], "no-repository");
    assert_eq!((sessions(api), comments(&github, number).len()), (0, 0));
    let path = "/acp/automation/triggers?installationId=evil";
    assert_eq!(api.get(path).expect(200)["items"].as_array().unwrap().len(), 1);
}

fn refuses_what_is_not_signed(program: &Program, payload: &Value) {
    let (api, body) = (&program.api, payload.to_string());
    let id = uuid::Uuid::new_v4().to_string();
    let send = |headers: &[(&str, String)], body: &str| {
        let raw = RawRequest::new("POST", HOOK).header("Host", &program.address.to_string()).body(body);
        headers.iter().fold(raw, |raw, (name, value)| raw.header(name, value)).send(program.address)
    };
    let good = webhook_headers(SECRET, "issues", &id, body.as_bytes());
    let without = |name: &str| good.iter().filter(|it| it.0 != name).cloned().collect::<Vec<_>>();
    let mut wrong = vec![without("X-Hub-Signature-256"), webhook_headers("other", "issues", &id, body.as_bytes())];
    wrong.push([without("X-Hub-Signature-256"), vec![("X-Hub-Signature", "sha1=0123".into())]].concat());
    let twice = good.iter().find(|it| it.0 == "X-Hub-Signature-256").unwrap().clone();
    wrong.push([good.clone(), vec![twice]].concat());
    // Of the right form.
    wrong.push([without("X-Hub-Signature-256"), vec![("X-Hub-Signature-256", format!("sha256={:064}", 0))]].concat());
    for headers in &wrong {
        let answer = send(headers, &body);
        assert_eq!(answer.status, 401, "{headers:?}");
        assert!(answer.body.contains("\"code\":\"signature_invalid\""), "{}", answer.body);
    }
    assert_eq!(send(&good, &format!("{body} ")).status, 401, "another body");
    for odd in
        ["", "1", "{0f9619ff-8b86-d011-b42d-00cf4fc964ff}", &id.replace('-', ""), &format!("{id}'--"), "../../x"]
    {
        assert_eq!(send(&webhook_headers(SECRET, "issues", odd, body.as_bytes()), &body).status, 400, "{odd}");
    }
    let twice = [good.clone(), vec![("X-GitHub-Delivery", id.clone())]].concat();
    assert_eq!(send(&twice, &body).status, 400, "two ids");
    let deep = format!("{{\"issue\":{}{}}}", "[".repeat(10_000), "]".repeat(10_000));
    let twice = body.replacen('{', "{\"installation\": {\"id\": 1}, ", 1);
    let changed = |from: &str, to: &str| body.replacen(from, to, 1);
    let (huge, null) = (changed("\"number\":1", "\"number\":1e999"), changed("\"labeled\"", "\"labeled\0\""));
    let (half, negative) = (changed("Request 1", "\\ud800"), changed("\"number\":1", "\"number\":-1"));
    let missing = changed("\"full_name\"", "\"fullName\"");
    let odd = [&deep, &twice, &huge, &null, &half, &negative, &missing];
    for malformed in odd.map(String::as_str).into_iter().chain(["", "[]", "{\"installation\": 7}"]) {
        assert_ne!(malformed, body);
        assert_eq!(call(api, "issues", &id, malformed).send().status, 400, "{malformed:.200}");
    }
    let large = format!("{{\"a\":\"{}\"}}", "x".repeat(2 << 20));
    call(api, "issues", &id, &large).send().problem(413, "payload_too_large");
    let form = without("Content-Type");
    assert_eq!(
        send(&[form, vec![("Content-Type", "application/x-www-form-urlencoded".into())]].concat(), &body).status,
        415
    );
    assert!(program.metrics().sum("lumilink_github_deliveries_total", &[("result", "refused")]) >= 3.0);
    assert!(!program.log().contains(SECRET));
}

#[test]
fn own_pull_request_gets_the_commit_and_one_of_a_fork_an_explanation() {
    let github = GitHub::start();
    let program = with(&github).start();
    let api = &program.api;
    bind(api, "acme", &[OCTO]).expect(200);
    let base = github.commit(REPOSITORY, "topic", &[("topic.txt", "x\n")]);
    let pull = |head_repository: &str| Pull {
        head_repository: head_repository.to_owned(),
        head: "topic".into(),
        base: "main".into(),
        is_draft: false,
        is_merged: false,
        maintainer_can_modify: true,
        reviewers: Vec::new(),
    };
    let own = open(&github, "octocat", "A change", Some(pull(REPOSITORY)));
    github.fork(REPOSITORY, "ann/hello");
    let of_fork = open(&github, "ann", "A change of a fork", Some(pull("ann/hello")));
    queued(deliver(
        api,
        "issue_comment",
        &comment(&github, own, "octocat", "@lumi-test ; write more.txt hello ; end"),
    ));
    ends(api, 1, "answered");
    let written = comments(&github, own);
    assert!(written.len() == 1 && written[0].contains(&format!("/pull/{own}")), "{written:?}");
    let log = github.git(REPOSITORY, &["log", "--format=%H", "topic"]);
    assert_eq!((log.lines().count(), log.lines().nth(1)), (2, Some(base.as_str())), "{log}");
    assert_eq!((github.pulls(REPOSITORY).len(), github.issues(REPOSITORY).len()), (2, 0));
    queued(deliver(
        api,
        "issue_comment",
        &comment(&github, of_fork, "octocat", "@lumi-test ; write more.txt hello ; end"),
    ));
    // The installation does not reach the fork.
    ends(api, 2, "answered");
    let written = comments(&github, of_fork);
    assert!(written.len() == 1 && written[0].contains("fork"), "{written:?}");
    assert_eq!(sessions(api), 2);
}

#[test]
fn full_queue_is_503_and_a_repetition_is_accepted_later() {
    let github = GitHub::start();
    let program =
        with(&github).set("github.triggers.max_queued", 1).set("github.triggers.max_queued_of_tenant", 1).start();
    let api = &program.api;
    bind(api, "acme", &[OCTO]).expect(200);
    let number = open(&github, "ann", "please", None);
    github.fault("GET", PERMISSION, Fault::Hold);
    queued(deliver(api, "issues", &payload(&github, "labeled", number, "mallory")));
    wait_for(DEADLINE, "the request is held", || (github.held() == 1).then_some(()));
    let (body, id) = (payload(&github, "labeled", number, "mallory").to_string(), uuid::Uuid::new_v4().to_string());
    let refused = call(api, "issues", &id, &body).send();
    assert!(!refused.header("retry-after").is_empty());
    refused.problem(503, "queue_full");
    github.release();
    ends(api, 1, "ignored");
    queued(call(api, "issues", &id, &body).send());
    ends(api, 2, "ignored");
}

#[test]
fn kills_between_the_steps_leave_one_session_one_turn_and_one_comment() {
    let github = GitHub::start();
    kills_between_the_steps(&github, with(&github));
}

#[test]
fn kills_between_the_steps_leave_one_of_each_on_postgresql() {
    let github = GitHub::start();
    kills_between_the_steps(&github, with(&github).postgres());
}

fn kills_between_the_steps(github: &GitHub, builder: Builder) {
    let mut program = builder.behind_proxy().start();
    bind(&program.api, "acme", &[OCTO]).expect(200);
    let number = open(github, "ann", "please ; sleep 3 ; echo done", None);
    let labelled = payload(github, "labeled", number, "octocat").to_string();
    let id = uuid::Uuid::new_v4().to_string();
    let held = || wait_for(DEADLINE, "a request is held", || (github.held() == 1).then_some(()));
    // Before the check, in the clone, in the turn, and after the comment was written.
    github.fault("GET", PERMISSION, Fault::Hold);
    queued(call(&program.api, "issues", &id, &labelled).send());
    held();
    kill(&mut program, github);
    github.fault("GET", "/octo/hello.git/info/refs", Fault::Hold);
    held();
    kill(&mut program, github);
    let running = |program: &Program| triggers(&program.api)[0]["state"] == "prompted";
    eventually("the turn runs", || running(&program));
    github.fault("POST", "/api/v3/repos/octo/hello/issues/*/comments", Fault::HoldAfter);
    program.kill_supervisor();
    program.start_supervisor_again();
    assert_eq!(call(&program.api, "issues", &id, &labelled).send().expect(200), json!({"result": "duplicate"}));
    held();
    kill(&mut program, github);
    let ended = ends(&program.api, 1, "answered");
    let written = comments(github, number);
    assert!(written.len() == 1 && written[0].contains(&id), "{written:?}");
    assert_eq!(sessions(&program.api), 1);
    let path = format!("/acp/session/{}/prompts", ended["sessionId"].as_str().unwrap());
    let turns = program.api.get(&path).expect(200);
    assert_eq!(turns["items"].as_array().unwrap().len(), 1, "{turns:#}");
    assert_eq!(turns["items"][0]["promptId"], ended["promptId"]);
}

/// Kills the supervisor while a request is held, and starts it again.
fn kill(program: &mut Program, github: &GitHub) {
    program.kill_supervisor();
    github.release();
    eventually("the request is released", || github.held() == 0);
    program.start_supervisor_again();
}

#[test]
fn replay_under_other_ids_and_headers_starts_no_second_turn() {
    for builder in [Program::builder(), Program::builder().postgres()] {
        let github = GitHub::start();
        let program = with_builder(builder, &github).start();
        let api = &program.api;
        bind(api, "acme", &[OCTO]).expect(200);
        let number = open(&github, "ann", "please ; echo done", None);
        let labelled = payload(&github, "labeled", number, "octocat").to_string();
        // Only the body is signed: the id and the name of the event are the sender's to choose.
        let replay = |event: &'static str| {
            let (api, labelled) = (api.clone(), labelled.clone());
            let id = uuid::Uuid::new_v4().to_string();
            thread::spawn(move || call(&api, event, &id, &labelled).send())
        };
        let racing: Vec<_> = (0..6).map(|_| replay("issues")).collect();
        let mut results: Vec<_> =
            racing.into_iter().map(|it| it.join().unwrap().body["result"].as_str().unwrap().to_owned()).collect();
        results.sort();
        assert_eq!(results, ["duplicate", "duplicate", "duplicate", "duplicate", "duplicate", "queued"]);
        ends(api, 1, "answered");
        assert_eq!(replay("issues").join().unwrap().expect(200), json!({"result": "duplicate"}));
        // There it lacks the member with the pull request.
        assert_eq!(replay("pull_request").join().unwrap().status, 400);
        ignored(replay("push").join().unwrap(), "event");
        let mut old: Value = serde_json::from_str(&labelled).unwrap();
        old["issue"]["updated_at"] = json!("2024-01-01T00:00:00Z");
        ignored(deliver(api, "issues", &old), "expired");
        // The label was removed and applied again.
        queued(deliver(api, "issues", &payload(&github, "labeled", number, "octocat")));
        ends(api, 2, "answered");
        assert_eq!(sessions(api), 1);
    }
}

#[test]
fn slow_connections_of_strangers_keep_no_delivery_out() {
    let github = GitHub::start();
    let program = with(&github).start();
    let address = program.address;
    let id = uuid::Uuid::new_v4().to_string();
    // Headers as GitHub's, and a body that does not arrive.
    let stranger = |length: usize| {
        let mut stream = TcpStream::connect(address).expect("the server listens");
        let headers = webhook_headers("not the secret", "issues", &id, b"{}");
        let headers: Vec<_> = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let head = format!("POST {HOOK} HTTP/1.1\r\nHost: {address}\r\nContent-Length: {length}\r\n");
        stream.write_all(format!("{head}{}\r\n{{", headers.concat()).as_bytes()).expect("it is read");
        stream.set_nonblocking(true).expect("a socket");
        stream
    };
    for (places, length) in [(512, 60_000), (48, 1_000_000)] {
        let began = Instant::now();
        let strangers: Vec<_> = (0..places + 30).map(|_| stranger(length)).collect();
        // All places were taken: those beyond were answered, or others for them.
        let answered = || strangers.iter().filter(|it| it.peek(&mut [0; 1]).is_ok()).count();
        eventually("all places are taken", || answered() >= 30);
        let large = json!({"zen": "x".repeat(if length > 100_000 { 100_000 } else { 10 })});
        assert_eq!(deliver(&program.api, "ping", &large).expect(200), json!({"result": "pong"}));
        assert!(answered() < places, "the others still wait, after {:?}", began.elapsed());
    }
    assert!(program.metrics().sum("lumilink_github_deliveries_total", &[("result", "refused")]) >= 30.0);
}

#[test]
fn workspace_of_an_issue_is_opened_by_its_delivery_alone_and_continued_by_anybody() {
    let github = GitHub::start();
    let program = with(&github).start();
    let api = &program.api;
    bind(api, "acme", &[OCTO]).expect(200);
    github.create("octo/other");
    github.commit("octo/other", "main", &[("other.txt", "x")]);
    let number = open(&github, "ann", "please ; echo done", None);
    let name = format!("gh{}:octo:hello:{number}", github.repository(REPOSITORY).id);
    let new = |workspace: &str, repository: Option<&str>| {
        let mut body = json!({"workspaceId": workspace, "installationId": "acme"});
        if let Some(repository) = repository {
            body["repository"] = json!(github.url(repository));
        }
        api.call("POST", "/acp/session/new").json(&body).send()
    };
    for repository in [Some("octo/other"), Some(REPOSITORY), None] {
        let problem = new(&name, repository).problem(400, "invalid_request");
        assert!(problem["detail"].as_str().unwrap().contains("comment at GitHub"), "{problem}");
    }
    queued(deliver(api, "issues", &payload(&github, "labeled", number, "octocat")));
    let ended = ends(api, 1, "answered");
    assert_eq!(ended["workspaceId"], json!(name));
    new(&name, Some("octo/other")).problem(400, "invalid_request");
    // By its id, and by its workspace.
    let id = ended["sessionId"].as_str().unwrap().to_owned();
    let session = crate::harness::Session { api: api.clone(), id: id.clone(), opened: Value::Null };
    session.completes("echo again");
    let found = api.get(&format!("/acp/sessions?installationId=acme&workspaceId={name}")).expect(200);
    assert_eq!(found["items"][0]["sessionId"], json!(id));
    for repository in [Some(REPOSITORY), None] {
        let opened = new(&name, repository).expect(201);
        let folder = std::path::PathBuf::from(opened["workspace"]["path"].as_str().unwrap());
        assert!(folder.join("README.md").exists() && !folder.join("other.txt").exists());
    }
    // The next delivery finds its session.
    queued(deliver(api, "issues", &payload(&github, "labeled", number, "octocat")));
    assert_eq!(ends(api, 2, "answered")["sessionId"], json!(id));
}

#[test]
fn renamed_repository_and_closed_moved_and_deleted_issues_are_noticed_before_a_turn() {
    let github = GitHub::start();
    let program = with(&github).start();
    let api = &program.api;
    bind(api, "acme", &[OCTO]).expect(200);
    let number = open(&github, "ann", "please ; echo done", None);
    let closed = open(&github, "ann", "please ; echo done", None);
    let labelled = |number: u64| payload(&github, "labeled", number, "octocat");
    // Closed, deleted and moved after the event.
    let event = labelled(closed);
    github.close(REPOSITORY, closed);
    queued(deliver(api, "issues", &event));
    assert_eq!(ends(api, 1, "ignored")["reason"], "closed");
    let path = format!("/api/v3/repos/octo/hello/issues/{number}");
    for (nth, answer) in [
        Response::json(410, &json!({"message": "This issue was deleted"})),
        Response::json(404, &json!({"message": "Not Found"})),
        Response::json(
            200,
            &json!({"number": number, "state": "open", "repository_url": "https://x/repos/octo/other"}),
        ),
    ]
    .into_iter()
    .enumerate()
    {
        github.fault("GET", &path, Fault::Answer(answer));
        queued(deliver(api, "issues", &labelled(number)));
        assert_eq!(ends(api, 2 + nth, "ignored")["reason"], "no-issue");
    }
    assert_eq!(sessions(api), 0);
    queued(deliver(api, "issues", &labelled(number)));
    let first = ends(api, 5, "answered");
    // The event has the name of before a rename, which GitHub redirects: the agent works in another workspace.
    github.renamed_from(REPOSITORY, "octo/earlier");
    let mut earlier = labelled(number);
    earlier["repository"]["full_name"] = json!("octo/earlier");
    queued(deliver(api, "issues", &earlier));
    let ended = ends(api, 6, "answered");
    assert_eq!((&ended["repository"], sessions(api)), (&json!(REPOSITORY), 2));
    // Renamed to the same name in other letters: the workspace has the one of before.
    let id = first["sessionId"].as_str().unwrap();
    api.post("/acp/session/close", json!({"sessionId": id})).expect(200);
    github.renamed_from(REPOSITORY, "Octo/Hello");
    let of_id = format!("/api/v3/repositories/{}", github.repository(REPOSITORY).id);
    let facts = json!({"id": github.repository(REPOSITORY).id, "full_name": "Octo/Hello", "default_branch": "main"});
    github.fault("GET", &of_id, Fault::Answer(Response::json(200, &facts)));
    let mut upper = labelled(number);
    upper["repository"]["full_name"] = json!("Octo/Hello");
    queued(deliver(api, "issues", &upper));
    assert_ne!(ends(api, 7, "answered")["sessionId"], json!(id));
    assert_eq!(comments(&github, number).len(), 3);
    // A transfer to an account without a bound installation.
    let own = github.install("evil");
    github.create("evil/hello");
    github.renamed_from("evil/hello", "octo/given");
    let mut given = labelled(number);
    given["repository"] = json!({"id": github.repository("evil/hello").id, "full_name": "octo/given"});
    queued(deliver(api, "issues", &given));
    assert_eq!(ends(api, 8, "ignored")["reason"], "no-installation");
    assert!(own > 0 && github.comments("evil/hello").is_empty());
}

#[test]
fn installation_suspended_with_a_cached_token_and_a_locked_issue_end_the_work() {
    let github = GitHub::start();
    let program = with(&github).start();
    let api = &program.api;
    bind(api, "acme", &[OCTO]).expect(200);
    let number = open(&github, "ann", "please ; echo done", None);
    let labelled = || payload(&github, "labeled", number, "octocat");
    let locked = json!({"message": "Unable to create comment because issue is locked."});
    github.fault("POST", "/api/v3/repos/octo/hello/issues/*/comments", Fault::Answer(Response::json(403, &locked)));
    queued(deliver(api, "issues", &labelled()));
    assert_eq!(ends(api, 1, "failed")["reason"], "issue-locked");
    assert_eq!((sessions(api), comments(&github, number).len()), (1, 0));
    github.edit_installation(|it| it.is_suspended = true);
    queued(deliver(api, "issues", &labelled()));
    assert_eq!(ends(api, 2, "ignored")["reason"], "no-installation");
    // The binding is removed while the event waits, or before it.
    github.edit_installation(|it| it.is_suspended = false);
    bind(api, "acme", &[]).expect(200);
    ignored(deliver(api, "issues", &labelled()), "no-installation");
}

#[test]
fn installation_is_bound_to_one_tenant_also_in_a_race() {
    let program = Program::start();
    let api = &program.api;
    let racing: Vec<_> = ["one", "two", "three"]
        .map(|tenant| {
            let api = api.clone();
            thread::spawn(move || bind(&api, tenant, &[OCTO]).status)
        })
        .into_iter()
        .collect();
    let mut statuses: Vec<_> = racing.into_iter().map(|it| it.join().unwrap()).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 409, 409]);
    bind(api, "four", &[78, OCTO]).problem(409, "installation_bound");
    assert_eq!(api.get("/acp/tenants/four").expect(200)["automation"]["installations"], json!([]));
    bind(api, "four", &[78]).expect(200);
}

#[test]
fn webhook_is_404_unless_it_is_switched_on_and_incomplete_settings_end_the_start() {
    let (program, folder) = (Program::start(), Folder::new());
    ping(&program.api).problem(404, "not_found");
    let refused = |arguments: &[&str], secret: &str| {
        let output = Command::new(lumilink())
            .args(["serve", "--listen", "127.0.0.1:0", "--set", "github.triggers.enabled=true"])
            .args(arguments)
            .env("LUMILINK_GITHUB__TRIGGERS__WEBHOOK_SECRET", secret)
            .env("HOME", folder.path())
            .current_dir(folder.path())
            .output()
            .expect("the program runs");
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let text = refused(&[], SECRET);
    assert!(text.contains("github.triggers.enabled") && text.contains("github.app_id"), "{text}");
    let text = refused(&["--set", "github.triggers.mention=@bot"], "short");
    assert!(text.contains("github.triggers.webhook_secret") && !text.contains("\"short\""), "{text}");
    assert!(text.contains("github.triggers.mention"), "{text}");
}
