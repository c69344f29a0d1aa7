//! Compares turns over both routes field by field: responses, events, transcripts, rows and metrics may differ only
//! in what [`ALLOWED`] lists.

use std::{cell::RefCell, collections::BTreeSet, fmt::Write, thread};

use regex::Regex;

use crate::{
    automation,
    harness::{
        Answer, Program, Session, Value, api::result_of, eventually, github::GitHub, json, lumilink, metrics::Scrape,
        program::TURNS_ENDED,
    },
};

/// An intended difference between the routes.
struct Allowed {
    /// The scenario, or `*` for all.
    scenario: &'static str,
    /// The path of the field, with parts separated by `.`. `*` matches one part, `**` any number of parts; fields
    /// below the path match too.
    path: &'static str,
    /// The reason, for the failure message.
    why: &'static str,
}

const fn allowed(scenario: &'static str, path: &'static str, why: &'static str) -> Allowed {
    Allowed { scenario, path, why }
}

/// All intended differences. An entry that no longer occurs fails the test as well.
const ALLOWED: &[Allowed] = &[
    allowed("*", "**.meta.protocol", "names the carrier of the turn"),
    allowed("*", "**.meta.route", "names the route that the router chose"),
    allowed("*", "**.meta.rollback", "describes the rollback of a workspace on the fallback"),
    allowed("*", "**.meta.protocolVersion", "a session on the fallback has negotiated nothing"),
    allowed("*", "**.meta.timings.*", "times differ"),
    allowed("*", "**.elapsedMs", "times differ"),
    allowed("*", "**.etaMs", "times differ"),
    allowed("*", "**.createdAt", "times differ"),
    allowed("*", "**.acceptedAt", "times differ"),
    allowed("*", "**.endedAt", "times differ"),
    allowed("session", "protocol", "names the carrier of turns"),
    allowed("session", "protocolVersion", "there was no handshake"),
    allowed("session", "connectionId", "there is no connection"),
    allowed("session", "agentInfo", "there was no handshake"),
    allowed("session", "agentCapabilities", "there was no handshake"),
    allowed("session", "modes", "an agent of a single turn offers none"),
    allowed("session", "configOptions", "an agent of a single turn offers none"),
    allowed(
        "conversation",
        "turns.*.**.meta.contextInjected",
        "an agent of a single turn gets the context, one over ACP remembers it",
    ),
    allowed("conversation", "turns.*.**.meta.message", "the agent repeats its context"),
    allowed("conversation", "turns.*.trace.events.update", "the agent repeats its context"),
    allowed("conversation", "turns.*.trace.transcript.*.text", "the agent repeats its context"),
    allowed("conversation", "conversation", "the agent repeats its context"),
    allowed(
        "audio block",
        "body.promptId",
        "only a running agent declares what it accepts, so over HTTP the turn starts and fails",
    ),
    allowed("audio block", "body.result", "as above"),
    allowed("audio block", "trace", "as above"),
    allowed("figures", "failed", "the audio block's turn"),
    allowed("figures", "successes", "a completed handshake counts as well, and only ACP has one"),
    allowed("too large a frame", "body.detail", "over ACP the runtime detects it and reports the code alone"),
    allowed("too large a frame", "**.diagnostics.0.message", "as above"),
    allowed("too large a frame", "trace.row.failure.detail", "as above"),
    allowed("too large a frame", "trace.transcript.1.text", "as above"),
    allowed(
        "asked",
        "trace.events.permission_request",
        "over HTTP the fallback rejects the request, with a diagnostic",
    ),
    allowed("asked", "trace.events.permission_resolved", "as above: by the fallback"),
    allowed("asked", "trace.transcript.2", "as above: by the fallback"),
    allowed("asked", "trace.events.order", "as above"),
    allowed("asked", "trace.events.diagnostic", "as above: the diagnostic"),
    allowed("asked", "**.diagnostics", "as above: the diagnostic"),
    allowed("automated", "**.durationMs", "times differ"),
    allowed("automated", "runs.*.updatedAt", "times differ"),
    allowed("automated", "**.issue.id", "GitHub numbers the objects of both sides together"),
    allowed("automated", "runs.*.commentUrl", "as above"),
    allowed("automated", "items.1.body", "names the carrier, the rollback and the number of updates"),
];

/// One of the two routes, with a workspace pinned to it.
struct Side<'a> {
    program: &'a Program,
    route: &'static str,
    /// The working directory of the workspace's agents.
    folder: String,
    /// The GitHub of the program.
    github: Option<&'a GitHub>,
}

impl<'a> Side<'a> {
    fn pinned(program: &'a Program, route: &'static str, github: Option<&'a GitHub>) -> Self {
        let mut side = Self { program, route, folder: String::new(), github };
        let first = side.session();
        side.folder = first.path().display().to_string();
        first.post("close", json!({})).expect(200);
        side.pin(&side.workspace());
        side
    }

    fn pin(&self, workspace: &str) {
        let pin = json!({"pin": {"protocol": self.route}, "actor": "parity", "reason": "to compare the routes"});
        let path = format!("/acp/workspaces/{workspace}/protocol");
        let pinned = self.program.api.call("PUT", &path).json(&pin).send().expect(200);
        assert_eq!(pinned["route"], self.route, "{pinned}");
    }

    /// The repository of this side at its GitHub.
    fn repository(&self) -> String {
        format!("octo/{}", self.route)
    }

    fn workspace(&self) -> String {
        format!("ws-{}", self.route)
    }

    fn open(&self, mut body: Value) -> Session {
        (body["workspaceId"], body["installationId"]) = (json!(self.workspace()), json!("tenant-1"));
        self.program.api.open_with(body)
    }

    fn session(&self) -> Session {
        self.open(json!({}))
    }

    /// Whether this is the fallback.
    fn is_http(&self) -> bool {
        self.route == "http"
    }

    fn scrape(&self) -> Scrape {
        self.program.metrics()
    }
}

/// Runs a turn of an otherwise idle session; returns its response and trace.
fn turn(session: &Session, prompt: impl Into<Value>) -> Value {
    let after = last_event(session);
    let answer = session.call(prompt).send();
    outcome(session, &answer, after)
}

fn last_event(session: &Session) -> u64 {
    session.state()["lastEventId"].as_u64().expect("`lastEventId` is a number")
}

/// The response to a turn, and its trace after the event `after`.
fn outcome(session: &Session, answer: &Answer, after: u64) -> Value {
    let mut body = answer.body.clone();
    let prompt_id = [&body["meta"]["promptId"], &body["promptId"]].into_iter().find_map(|id| id.as_str());
    let trace = prompt_id.map(|id| trace(session, id, after));
    body["contentType"] = json!(answer.header("content-type"));
    json!({"status": answer.status, "body": body, "trace": trace})
}

/// The row, the transcript and the events of an ended turn.
fn trace(session: &Session, prompt_id: &str, after: u64) -> Value {
    let row = session.ends(prompt_id);
    let entries = session.transcript();
    let entries = merged(entries.into_iter().filter(|entry| entry["promptId"] == prompt_id));
    eventually("the session is ready for the next", || session.state()["state"] == "idle");
    json!({"row": row, "transcript": entries, "events": events(session, prompt_id, after)})
}

/// A transcript with consecutive agent messages merged into one entry and without its numbers, because a long turn over
/// ACP is written in parts, and each change of an entry takes a number. The order of the entries is compared.
fn merged(entries: impl Iterator<Item = Value>) -> Vec<Value> {
    let mut merged: Vec<Value> = Vec::new();
    for mut entry in entries {
        for number in ["seq", "revision", "changed"] {
            entry.as_object_mut().and_then(|entry| entry.remove(number)).expect("a number");
        }
        match merged.last_mut() {
            Some(last) if entry["eventType"] == "agent_message" && last["eventType"] == "agent_message" => {
                let text =
                    [&last["text"], &entry["text"]].map(|text| text.as_str().expect("`text` is a string")).concat();
                last["text"] = json!(text);
            }
            _ => merged.push(entry),
        }
    }
    merged
}

/// The events of a turn by kind, and their order. Events beyond the replay buffer are not compared.
fn events(session: &Session, prompt_id: &str, after: u64) -> Value {
    let path = format!("/acp/session/{}/events", session.id);
    let mut stream = session.api.call("GET", &path).header("last-event-id", &after.to_string()).stream();
    let of_turn = |data: &Value| data["promptId"] == prompt_id;
    let all = stream.until("the result", |event| event.name == "result" && of_turn(&event.data));
    if all.iter().any(|event| event.name == "gap") {
        return json!("more than the replay buffer");
    }
    let mut events = json!({"order": []});
    for event in all.into_iter().filter(|event| of_turn(&event.data)) {
        let name = event.name.as_str();
        events["order"].as_array_mut().expect("a list").push(json!(name));
        if events[name].is_null() {
            events[name] = json!([]);
        }
        events[name].as_array_mut().expect("a list").push(event.data["update"].clone());
    }
    events
}

type Scenario = (&'static str, fn(&Side<'_>) -> Value);

/// A scenario of one turn.
macro_rules! turns {
    ($($name:literal: $prompt:expr),* $(,)?) => { [$(($name, (|side| turn(&side.session(), $prompt)) as fn(&Side<'_>) -> Value)),*] };
}

/// The output, the actions and the failures of an agent in one turn.
fn single_turns() -> Vec<Scenario> {
    turns! {
        "echo": "echo hello wörld 🦀",
        "nothing": "think",
        "write": "write a.txt content ; echo done",
        "write again": "write a.txt other ; write folder/b.txt new",
        "read": "read a.txt",
        "read what is not there": "read nothing.txt",
        "terminal": "run echo out; echo err >&2; exit 3",
        "plan and thought": "plan ; think ; echo done",
        "working": "sleep 0 ; ticks 3 1",
        "mode": "mode ask",
        "refusal": "echo no ; refuse",
        "max_tokens": "echo cut ; max-tokens",
        "usage": "echo a ; usage 3 4",
        "crash": "crash",
        "signal": "segv",
        "few lines that are not JSON": "garbage 3 ; echo on",
        "many lines that are not JSON": "garbage 11 ; echo never",
        "illegal stop reason": "echo a ; bad-frame",
        "stop reason error": r#"echo a ; answer {"id":$ID,"result":{"stopReason":"error","message":"it broke"}}"#,
        "error that is text": r#"echo a ; answer {"id":$ID.0,"error":"it broke"}"#,
        "usage that is text": r#"echo a ; answer {"id":$ID,"result":{"stopReason":"end_turn","usage":"some"}}"#,
        "entry of a log": r#"print {"id":"evt_1","msg":"x"} ; print {"id":9999,"error":"x"} ; echo on"#,
        "error of no request": r#"print {"id":null,"error":{"code":-32601,"message":"x"}} ; echo on"#,
        "agent error": "echo a ; error -32603 undefined is not a function",
        "rejected": "error -32602 no such thing",
        "not found": "error -32002 no such resource",
        "sign-in": "auth-error",
        "provider": "provider-error",
        "provider 429": "error -32603 429 Too Many Requests",
        "flood": "flood 3000",
        "huge": "huge 100000",
        "too large a frame": "huge 20000000",
        "what no client knows": "unknown-update ; unknown-request ; unknown-notification ; echo on",
        "big prompt": format!("echo {}", "long ".repeat(40_000)),
        "text block": json!([{"type": "text", "text": "echo one"}]),
        "image block": json!([{"type": "image", "data": "AA==", "mimeType": "image/png"}, {"type": "text", "text": "context"}]),
        "audio block": json!([{"type": "audio", "data": "AA==", "mimeType": "audio/wav"}, {"type": "text", "text": "echo a"}]),
        "link": json!([{"type": "resource_link", "name": "a.txt", "uri": "file:///a.txt"}, {"type": "text", "text": "context"}]),
        "empty prompt": "",
        "no block": json!([]),
        "environment": "env HOME ; cwd",
    }
    .into()
}

fn opened(side: &Side<'_>) -> Value {
    side.session().opened
}

fn conversation(side: &Side<'_>) -> Value {
    let session = side.session();
    let turns = ["echo the word is maple", "echo and the number is seven", "context", "crash", "context"];
    let outcomes: Vec<_> = turns.into_iter().map(|prompt| turn(&session, prompt)).collect();
    let context = outcomes[2]["body"]["meta"]["message"].as_str().expect("text");
    let is_complete = context.contains("maple") && context.contains("seven");
    assert_eq!(is_complete, side.is_http(), "only an agent over HTTP gets the context: {context}");
    let context = outcomes[4]["body"]["meta"]["message"].as_str().expect("text");
    assert!(context.contains("maple") || !side.is_http(), "{context}");
    json!({"turns": outcomes, "conversation": session.conversation()})
}

fn repeat(side: &Side<'_>) -> Value {
    let session = side.session();
    let after = last_event(&session);
    let call = |prompt: &str| session.call(prompt).header("idempotency-key", "key").send();
    let first = call("run echo x >> ran.txt");
    let again = call("run echo x >> ran.txt");
    assert_eq!(first.body, again.body, "a repeat gets the same response");
    let other = call("echo other");
    let ran = session.path().join("ran.txt");
    let runs = std::fs::read_to_string(ran).expect("the prompt ran");
    assert_eq!(runs, "x\n", "the prompt ran once");
    json!({"first": outcome(&session, &first, after), "other": other.body})
}

fn repeat_that_joins(side: &Side<'_>) -> Value {
    let session = side.session();
    let after = last_event(&session);
    let call = |way: &str| session.call("ticks 10 20").header("idempotency-key", "k").header("prefer", way).send();
    let promised = call("respond-async").expect(202)["promptId"].clone();
    let joined = call("wait");
    assert_eq!(joined.body["meta"]["promptId"], promised, "{}", joined.text);
    outcome(&session, &joined, after)
}

fn promised(side: &Side<'_>) -> Value {
    let session = side.session();
    let after = last_event(&session);
    let id = session.starts("echo promised ; write promised.txt a");
    trace(&session, &id, after)
}

fn streamed(side: &Side<'_>) -> Value {
    let session = side.session();
    let events = session.streams("echo a ; plan ; usage 1 2").rest();
    let result = result_of(&session.api, &events).clone();
    let updates: Vec<_> =
        events.iter().map(|event| json!({"name": event.name, "update": event.data["update"]})).collect();
    json!({"result": result, "events": updates})
}

fn second_prompt(side: &Side<'_>) -> Value {
    let session = side.session();
    let (_, mut stream) = session.is_busy_with("echo started ; sleep 60");
    let refused = session.prompt("echo too early").body;
    let cancelled = session.cancel();
    stream.rest();
    json!({"refused": refused, "cancelled": cancelled})
}

/// Cancels a turn after the agent's first update.
fn cancelled(side: &Side<'_>, prompt: &str) -> Value {
    let session = side.session();
    let after = last_event(&session);
    let (id, mut stream) = session.is_busy_with(prompt);
    let cancel = session.post("cancel", json!({"promptId": id})).body;
    let result = result_of(&session.api, &stream.rest()).clone();
    let later = session.cancel();
    json!({"cancel": cancel, "result": result, "later": later, "trace": trace(&session, &id, after)})
}

fn policies(side: &Side<'_>) -> Value {
    let policies = ["reject", "allow-once", "allow-always"];
    let asked = policies.map(|policy| turn(&side.open(json!({"permissionPolicy": policy})), "ask"));
    json!(asked)
}

/// Rejects the permission request of a session with the policy `ask`.
fn asked(side: &Side<'_>) -> Value {
    let session = side.open(json!({"permissionPolicy": "ask"}));
    let after = last_event(&session);
    let mut stream = session.streams("ask");
    let (mut id, mut end) = (String::new(), Vec::new());
    while let Some(event) = stream.next() {
        if let Some(prompt) = event.data["promptId"].as_str() {
            prompt.clone_into(&mut id);
        }
        if event.name == "permission_request" {
            let no = json!({"requestId": event.data["update"]["requestId"], "optionId": "reject"});
            session.post("permission", no).expect(200);
        }
        end.push(event);
    }
    json!({"result": result_of(&session.api, &end), "trace": trace(&session, &id, after)})
}

/// The choices of a session reach the agent of each route before its prompt.
fn chosen(side: &Side<'_>) -> Value {
    let session = side.session();
    let pin = |route: &str| {
        let pin = json!({"pin": {"protocol": route}, "actor": "parity", "reason": "to set the mode"});
        side.program.api.call("PUT", &format!("/acp/workspaces/{}/protocol", side.workspace())).json(&pin).send()
    };
    // A mode is set in an agent over ACP; then the route of this side is used again.
    pin("acp").expect(200);
    session.completes("silent");
    session.post("mode", json!({"modeId": "plan"})).expect(200);
    session.post("model", json!({"modelId": "large"})).expect(200);
    session.post("config", json!({"configId": "tone", "value": "loud"})).expect(200);
    session.post("config", json!({"configId": "fast", "value": true})).expect(200);
    pin(side.route).expect(200);
    let said = session.says("settings");
    assert_eq!(said, "mode=plan tone=loud model=large fast=true", "over {}", side.route);
    let own = session.says("mode ask ; settings");
    assert_eq!(own, "mode=ask tone=loud model=large fast=true", "over {}", side.route);
    let facts = session.state()["agentFacts"].clone();
    let next = session.says("settings");
    session.post("close", json!({})).expect(200);
    json!({"said": said, "own": own, "next": next, "facts": facts})
}

/// Turns whose changes are delivered, would be in a dry run, are none, or may not be; with what is at GitHub afterwards.
fn automated(side: &Side<'_>) -> Value {
    let (github, repository) = (side.github.expect("a GitHub"), side.repository());
    github.create(&repository);
    github.commit(&repository, "main", &[("README.md", "hello\n")]);
    let workspace = format!("{}-github", side.workspace());
    let session = side.program.api.open_with(json!({
        "workspaceId": workspace, "installationId": "tenant-1", "repository": github.url(&repository),
        "githubToken": github.user_token("octocat"),
    }));
    side.pin(&workspace);
    let with = |prompt: &str, more: Value| {
        let after = last_event(&session);
        let mut body = json!({"sessionId": session.id, "prompt": prompt});
        more.as_object().expect("members").iter().for_each(|(name, value)| body[name] = value.clone());
        let ended = outcome(&session, &session.api.post("/acp/session/prompt", body), after);
        // A failed turn is a problem, which has its result in the row.
        let result = &ended["trace"]["row"]["result"];
        json!({
            "automation": result["githubAutomation"], "version": result["meta"]["githubAutomationVersion"],
            "events": ended["trace"]["events"]["automation"], "answered": ended["body"]["githubAutomation"],
        })
    };
    let turns = [
        with("write a.txt one", json!({"automation": {"dryRun": true}})),
        with("write b.txt two", json!({"automation": {"labels": ["agent"], "issueTitle": "Two"}})),
        with("write c.txt three", json!({})),
        with("echo nothing", json!({})),
        with("write d.txt four", json!({"githubToken": "ghp_of_nobody"})),
        with("write e.txt five", json!({"automation": {"mode": "none"}})),
        with("crash", json!({})),
    ];
    let items = [github.issues(&repository), github.pulls(&repository)].concat();
    let items: Vec<_> = items.into_iter().map(|item| json!({"title": item.title, "body": item.body})).collect();
    let comments: Vec<_> = github.comments(&repository).into_iter().map(|comment| comment.body).collect();
    let mut runs = side.program.api.get(&format!("/acp/automation?sessionId={}", session.id)).expect(200);
    for run in runs["items"].as_array_mut().expect("runs") {
        // Compression makes other sizes of other hashes.
        run["rescue"].as_object_mut().map(|rescue| rescue.remove("bundleBytes"));
    }
    let all = json!({"turns": turns, "items": items, "comments": comments, "runs": runs["items"]}).to_string();
    let id = session.id.replace('-', "");
    let all = all.replace(&session.id, "ID").replace(&id, "SESSION").replace(&id[id.len() - 6..], "SUFFIX");
    serde_json::from_str(&all).expect("JSON")
}

fn signed_in(side: &Side<'_>) -> Value {
    turn(&side.open(json!({"agent": "signed-in"})), "echo signed in")
}

fn diff(side: &Side<'_>) -> Value {
    side.session().get("/diff").expect(200)
}

fn figures(side: &Side<'_>) -> Value {
    let scrape = side.scrape();
    let ended = |outcome: &str| scrape.sum(TURNS_ENDED, &[("route", side.route), ("outcome", outcome)]);
    let counted =
        |sample: &str| scrape.sum("lumilink_outcomes_total", &[("protocol", side.route), ("outcome", sample)]);
    json!({
        "completed": ended("completed"), "cancelled": ended("cancelled"), "failed": ended("failed"),
        "successes": counted("success"), "failures": counted("failure"),
    })
}

/// Collects the differences of two JSON values as (path, over ACP, over HTTP).
fn differences(path: &str, acp: &Value, http: &Value, found: &mut Vec<(String, Value, Value)>) {
    let below = |part: &str| if path.is_empty() { part.to_owned() } else { format!("{path}.{part}") };
    match (acp, http) {
        (Value::Object(a), Value::Object(h)) => {
            for name in a.keys().chain(h.keys()).collect::<BTreeSet<_>>() {
                let (a, h) = (a.get(name).unwrap_or(&Value::Null), h.get(name).unwrap_or(&Value::Null));
                differences(&below(name), a, h, found);
            }
        }
        (Value::Array(a), Value::Array(h)) => {
            for place in 0..a.len().max(h.len()) {
                let (a, h) = (a.get(place).unwrap_or(&Value::Null), h.get(place).unwrap_or(&Value::Null));
                differences(&below(&place.to_string()), a, h, found);
            }
        }
        _ if acp == http => {}
        _ => found.push((path.to_owned(), acp.clone(), http.clone())),
    }
}

impl Allowed {
    fn takes(&self, scenario: &str, path: &str) -> bool {
        let (wanted, parts): (Vec<_>, Vec<_>) = (self.path.split('.').collect(), path.split('.').collect());
        (self.scenario == "*" || self.scenario == scenario) && fits(&wanted, &parts)
    }
}

fn fits(wanted: &[&str], parts: &[&str]) -> bool {
    match (wanted, parts) {
        ([], _) => true,
        (["**", rest @ ..], _) => (0..=parts.len()).any(|skipped| fits(rest, &parts[skipped..])),
        ([first, rest @ ..], [part, parts @ ..]) => (*first == "*" || first == part) && fits(rest, parts),
        (_, []) => false,
    }
}

/// Replaces values that always differ (ids, hashes, times in names, the names of workspace and repository, and the folder) by
/// placeholders.
fn without_ids(value: &Value, side: &Side<'_>) -> Value {
    let mut text = value.to_string().replace(&side.folder, "FOLDER").replace(&side.repository(), "REPOSITORY");
    let hash = Regex::new(r"\b[0-9a-f]{40}\b").expect("a pattern");
    let hashes: Vec<_> = hash.find_iter(&text).map(|found| found.as_str().to_owned()).collect();
    for (n, hash) in hashes.iter().enumerate() {
        text = text.replace(hash, &format!("HASH-{n}"));
    }
    let stamp = Regex::new(r"-\d{4}-\d\d-\d\d-\d{6}\b").expect("a pattern");
    text = stamp.replace_all(&text, "-STAMP").into_owned();
    let ids = ids_in(&text);
    for (n, id) in ids.iter().enumerate() {
        text = text.replace(id, &format!("ID-{n}"));
    }
    text = text.replace(&side.workspace(), "WORKSPACE");
    serde_json::from_str(&text).expect("JSON")
}

/// The distinct UUIDs in a text, in order of first occurrence.
fn ids_in(text: &str) -> Vec<String> {
    const LENGTH: usize = 36;
    let is_id = |part: &[u8]| {
        part.iter().enumerate().all(|(place, byte)| match place {
            8 | 13 | 18 | 23 => *byte == b'-',
            _ => byte.is_ascii_digit() || (b'a'..=b'f').contains(byte),
        })
    };
    let mut found: Vec<String> = Vec::new();
    for part in text.as_bytes().windows(LENGTH).filter(|part| is_id(part)) {
        let id = String::from_utf8_lossy(part).into_owned();
        if !found.contains(&id) {
            found.push(id);
        }
    }
    found
}

thread_local! {
    /// The indices of the entries of [`ALLOWED`] that occurred.
    static OCCURRED: RefCell<BTreeSet<usize>> = const { RefCell::new(BTreeSet::new()) };
}

/// Runs scenarios over both routes of a program concurrently; returns a report of the differences that are not
/// allowed.
fn compare(program: &Program, github: Option<&GitHub>, scenarios: &[Scenario]) -> String {
    let run = |route: &'static str| {
        let side = Side::pinned(program, route, github);
        scenarios.iter().map(|(_, scenario)| without_ids(&scenario(&side), &side)).collect::<Vec<_>>()
    };
    let (acp, http) = thread::scope(|scope| {
        let http = scope.spawn(|| run("http"));
        (run("acp"), http.join().expect("the scenarios work over HTTP"))
    });
    let mut report = String::new();
    for (((name, _), acp), http) in scenarios.iter().zip(&acp).zip(&http) {
        let mut found = Vec::new();
        differences("", acp, http, &mut found);
        for (path, acp, http) in found {
            let rows = ALLOWED.iter().enumerate().filter(|(_, row)| row.takes(name, &path));
            let rows: Vec<_> = rows.map(|(place, _)| place).collect();
            OCCURRED.with_borrow_mut(|occurred| occurred.extend(&rows));
            if rows.is_empty() {
                let short = |value: &Value| value.to_string().chars().take(300).collect::<String>();
                let _ = writeln!(report, "{name}: {path}\n    acp:  {}\n    http: {}", short(&acp), short(&http));
            }
        }
    }
    report
}

#[test]
fn fr_002_turn_is_identical_over_both_routes_except_listed_differences() {
    let signed_in_agent = format!(
        "[agents.signed-in]\ncommand = [{:?}, \"demo-agent\", \"--require-auth\"]\nauth_method = \"demo\"\n",
        lumilink()
    );
    let mut program = Program::builder().config(&signed_in_agent).start();
    // Half of the scenarios fail, which raises this alarm.
    program.expect_error("fallback fails as well");
    let mut scenarios = single_turns();
    scenarios.extend([
        ("session" as &str, opened as fn(&Side<'_>) -> Value),
        ("conversation", conversation),
        ("repeat", repeat),
        ("repeat that joins", repeat_that_joins),
        ("promised", promised),
        ("streamed", streamed),
        ("second prompt", second_prompt),
        ("cancel", |side| cancelled(side, "echo started ; sleep 60")),
        ("cancel of nothing", |side| json!(side.session().cancel())),
        ("policies", policies),
        ("asked", asked),
        ("signed in", signed_in),
        ("diff", diff),
        ("figures", figures),
    ]);
    let mut report = compare(&program, None, &scenarios);
    let mut short_timeout =
        Program::builder().set("turn.inactivity_timeout_s", 1).set("turn.cancel_grace_s", 1).start();
    short_timeout.expect_error("fallback fails as well");
    report += &compare(
        &short_timeout,
        None,
        &[
            ("hang", |side| turn(&side.session(), "echo a ; hang")),
            ("cancel that is not confirmed", |side| cancelled(side, "echo a ; ignore-cancel")),
        ],
    );
    // In a program of its own: the scenario has turns over both routes, which the figures count.
    let with_models = Program::builder().demo_agent(&["--models"]).start();
    report += &compare(&with_models, None, &[("chosen", chosen)]);
    let github = GitHub::start();
    let with_github = automation::with(&github).start();
    report += &compare(&with_github, Some(&github), &[("automated", automated)]);
    let obsolete =
        ALLOWED.iter().enumerate().filter(|(place, _)| OCCURRED.with_borrow(|occurred| !occurred.contains(place)));
    for (_, row) in obsolete {
        let _ = writeln!(report, "{}: {} no longer differs, though: {}", row.scenario, row.path, row.why);
    }
    assert!(report.is_empty(), "the routes differ:\n{report}");
}
