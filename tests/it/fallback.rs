//! Turns over HTTP, requested from a runtime directly.

use std::{net::SocketAddr, time::Duration};

use crate::harness::{
    DEADLINE, Program, Value, block_on, demo_agent, eventually, hostile::RawRequest, json, program::Builder, wait_for,
};

const TOKEN: &str = "runtime-token-0123456789";

/// A program with a separate runtime, an HTTP client for it, and a prepared workspace.
struct Runtime {
    program: Program,
    base: String,
    client: reqwest::Client,
    prepared: Value,
}

/// The request body of a turn.
#[derive(Clone)]
struct Turn(Value);

impl Turn {
    fn with(mut self, member: &str, value: Value) -> Self {
        self.0[member] = value;
        self
    }

    fn id(&self) -> String {
        self.0["promptId"].as_str().unwrap().to_owned()
    }
}

impl Runtime {
    fn start() -> Self {
        Self::of(Program::builder())
    }

    fn of(builder: Builder) -> Self {
        let program = builder.separate_runtime(TOKEN).start();
        let base = program.runtime_url().replace("ws://", "http://").replace("/acp", "");
        let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(60)).build().unwrap();
        let mut runtime = Self { program, base, client, prepared: Value::Null };
        let body = json!({"workspace": {"folderId": uuid::Uuid::now_v7()}});
        let (status, prepared) = runtime.send("POST", "/workspace/prepare", Some(&body), "");
        assert_eq!(status, 200, "{prepared}");
        runtime.prepared = serde_json::from_str(&prepared).unwrap();
        runtime
    }

    fn address(&self) -> SocketAddr {
        self.base.strip_prefix("http://").unwrap().parse().unwrap()
    }

    fn file(&self, name: &str) -> String {
        let path = std::path::Path::new(self.prepared["path"].as_str().unwrap()).join(name);
        std::fs::read_to_string(path).unwrap_or_default()
    }

    fn turn(&self, prompt: &str) -> Turn {
        Turn(json!({
            "sessionId": uuid::Uuid::now_v7(),
            "promptId": uuid::Uuid::now_v7(),
            "prompt": prompt,
            "workspace": {"path": self.prepared["path"], "isEphemeral": false},
            "inactivityTimeoutMs": 30_000,
            "cancelGraceMs": 10_000,
            "handshakeTimeoutMs": 30_000,
        }))
    }

    fn request(&self, method: &str, path: &str, body: Option<&Value>, accept: &str) -> reqwest::RequestBuilder {
        let request = self.client.request(method.parse().unwrap(), format!("{}{path}", self.base)).bearer_auth(TOKEN);
        let request = if accept.is_empty() { request } else { request.header("accept", accept) };
        match body {
            Some(body) => request.json(body),
            None => request,
        }
    }

    fn send(&self, method: &str, path: &str, body: Option<&Value>, accept: &str) -> (u16, String) {
        let request = self.request(method, path, body, accept);
        block_on(async {
            let response = request.send().await.unwrap();
            (response.status().as_u16(), response.text().await.unwrap())
        })
    }

    /// Runs a turn and returns its result.
    fn result(&self, turn: &Turn) -> Value {
        let (status, text) = self.send("POST", "/process-prompt", Some(&turn.0), "");
        assert_eq!(status, 200, "{text}");
        serde_json::from_str(&text).unwrap()
    }

    fn fails(&self, turn: &Turn) -> (String, String) {
        let result = self.result(turn);
        assert_eq!(result["stopReason"], "error", "{result}");
        (result["meta"]["errorCode"].as_str().unwrap().to_owned(), result["diagnostics"].to_string())
    }

    fn refused(&self, turn: &Turn, status: u16, code: &str) {
        let (got, text) = self.send("POST", "/process-prompt", Some(&turn.0), "");
        let problem: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((got, problem["code"].as_str()), (status, Some(code)), "{text}");
    }

    fn lines(&self, method: &str, path: &str, turn: Option<&Turn>) -> Vec<Value> {
        let (status, text) = self.send(method, path, turn.map(|turn| &turn.0), "application/x-ndjson");
        assert_eq!(status, 200, "{text}");
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Requests a turn on a thread of its own and waits until its agent runs.
    fn begin(&self, turn: &Turn) -> std::thread::JoinHandle<Value> {
        let request = self.request("POST", "/process-prompt", Some(&turn.0), "");
        let request_thread = std::thread::spawn(move || {
            let answer = block_on(async { request.send().await.unwrap().text().await.unwrap() });
            serde_json::from_str(&answer).unwrap()
        });
        eventually("the agent runs", || self.agents() > 0);
        request_thread
    }

    fn status(&self) -> Value {
        serde_json::from_str(&self.send("GET", "/status", None, "").1).unwrap()
    }

    fn agents(&self) -> u64 {
        self.status()["agentProcesses"].as_u64().unwrap()
    }

    fn cancel(&self, id: &str) -> bool {
        let (status, text) = self.send("DELETE", &format!("/process-prompt/{id}"), None, "");
        assert_eq!(status, 200, "{text}");
        serde_json::from_str::<Value>(&text).unwrap()["cancelled"].as_bool().unwrap()
    }

    fn no_agent_is_left(&self) {
        eventually("no agent is left", || self.agents() == 0);
    }
}

/// True if a process ignores SIGTERM.
fn ignores_sigterm(pid: i32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default();
    ignored & (1 << (libc::SIGTERM - 1)) != 0
}

fn message(result: &Value) -> &str {
    result["meta"]["message"].as_str().unwrap()
}

fn text_of(lines: &[Value]) -> String {
    lines.iter().filter_map(|line| line["update"]["content"]["text"].as_str()).collect()
}

/// Configures a headless command.
fn oneshot(builder: Builder) -> Builder {
    builder.set("agent.oneshot", demo_agent(&["--oneshot"]))
}

#[test]
fn turn_over_http_returns_the_same_envelope_as_over_acp() {
    let runtime = Runtime::start();
    let turn = runtime.turn("write a.txt content ; echo  and more ; usage 3 4");
    let result = runtime.result(&turn);
    assert_eq!(result["stopReason"], "completed", "{result}");
    assert_eq!(result["usage"], json!({"inputTokens": 3, "outputTokens": 4}));
    let meta = &result["meta"];
    assert_eq!(
        (&meta["protocol"], &meta["route"], &meta["protocolVersion"]),
        (&json!("http"), &json!("http"), &json!(1))
    );
    assert_eq!((&meta["promptId"], &meta["sessionId"]), (&turn.0["promptId"], &turn.0["sessionId"]));
    assert_eq!(meta["acpStopReason"], "end_turn");
    assert_eq!(meta["workspace"], turn.0["workspace"]);
    assert_eq!((message(&result), runtime.file("a.txt").as_str()), ("wrote a.txtand more", "content"));
    runtime.no_agent_is_left();
}

#[test]
fn stream_carries_updates_and_diagnostics_and_ends_with_the_result() {
    let runtime = Runtime::start();
    let turn = runtime.turn("echo hello ; garbage 2 ; think ; unknown-notification ; unknown-update");
    let lines = runtime.lines("POST", "/process-prompt", Some(&turn));
    assert_eq!(text_of(&lines), "helloLet me think about that.");
    assert_eq!(lines.iter().filter(|line| line["diagnostic"]["severity"] == "warn").count(), 2, "{lines:?}");
    assert!(lines.iter().any(|line| line["notification"]["method"] == "_demo/news"));
    assert!(lines.iter().any(|line| line["update"]["_meta"]["kept"] == true));
    let result = &lines.last().unwrap()["result"];
    assert_eq!((&result["stopReason"], message(result)), (&json!("completed"), "hello"));
    assert_eq!(result["diagnostics"].as_array().unwrap().len(), 2);
    // A later reader gets the lines after its position, and the same end.
    let path = format!("/process-prompt/{}?after=3", turn.id());
    let rest = runtime.lines("GET", &path, None);
    assert_eq!(rest[..], lines[3..]);
    let now = runtime.lines("GET", &format!("/process-prompt/{}", turn.id()), None);
    assert_eq!(now[..], lines[lines.len() - 1..]);
}

#[test]
fn repeat_joins_the_turn_and_a_different_body_is_refused() {
    let runtime = Runtime::start();
    let turn = runtime.turn("run echo x >> ran.txt ; sleep 1 ; echo done");
    let first = runtime.begin(&turn);
    let second = runtime.result(&turn);
    let first = first.join().unwrap();
    assert_eq!(first, second);
    assert_eq!(runtime.result(&turn), first, "the result is available after the end, too");
    let (status, text) = runtime.send("GET", &format!("/process-prompt/{}", turn.id()), None, "");
    assert_eq!((status, serde_json::from_str::<Value>(&text).unwrap()), (200, first));
    assert_eq!(runtime.file("ran.txt"), "x\n", "the turn ran once");
    runtime.refused(&turn.clone().with("prompt", json!("echo other")), 422, "idempotency_mismatch");
    let (status, _) = runtime.send("GET", &format!("/process-prompt/{}", uuid::Uuid::now_v7()), None, "");
    assert_eq!(status, 404);
}

#[test]
fn cancel_is_confirmed_by_the_agent_or_by_its_exit() {
    let runtime = Runtime::start();
    let turn = runtime.turn("echo a ; sleep 60");
    let pending = runtime.begin(&turn);
    wait_for(DEADLINE, "the turn is cancelled", || runtime.cancel(&turn.id()).then_some(()));
    let result = pending.join().unwrap();
    assert_eq!(result["stopReason"], "cancelled", "{result}");
    assert!(!runtime.cancel(&turn.id()), "the turn is over");
    assert!(!runtime.cancel(&uuid::Uuid::now_v7().to_string()));
    let turn = runtime.turn("ignore-cancel").with("cancelGraceMs", json!(300));
    let path = format!("/process-prompt/{}", turn.id());
    let pending = runtime.begin(&turn);
    eventually("the agent ignores SIGTERM", || runtime.program.agents().into_iter().any(ignores_sigterm));
    assert!(runtime.cancel(&turn.id()));
    let result = pending.join().unwrap();
    assert_eq!((&result["stopReason"], &result["meta"]["acpStopReason"]), (&json!("cancelled"), &Value::Null));
    assert_eq!(runtime.send("GET", &path, None, "").0, 200);
    runtime.no_agent_is_left();
}

#[test]
fn agent_failures_end_the_turn_with_the_same_codes_as_over_acp() {
    let runtime = Runtime::start();
    let (code, said) = runtime.fails(&runtime.turn("crash"));
    assert!(code == "agent_crashed" && said.contains("exit code 42") && said.contains("as requested"), "{said}");
    let silent = runtime.turn("hang").with("inactivityTimeoutMs", json!(500));
    assert_eq!(runtime.fails(&silent).0, "inactivity_timeout");
    for (prompt, code) in [
        ("garbage 11", "protocol_violation"),
        ("bad-frame", "protocol_violation"),
        ("segv", "agent_crashed"),
        ("provider-error", "model_provider"),
        ("auth-error", "agent_auth_required"),
        ("error -32602 no", "agent_rejected"),
        ("huge 20000000", "frame_too_large"),
    ] {
        assert_eq!(runtime.fails(&runtime.turn(prompt)).0, code, "{prompt}");
    }
    let blocks = json!([{"type": "audio", "data": "AA==", "mimeType": "audio/wav"}]);
    assert_eq!(runtime.fails(&runtime.turn("").with("prompt", blocks)).0, "not_supported_by_agent");
    runtime.no_agent_is_left();
}

#[test]
fn flood_of_updates_is_streamed_completely_in_bounded_memory() {
    let mut runtime = Runtime::of(Program::builder().set("runtime.replay_frames", 256));
    let lines = runtime.lines("POST", "/process-prompt", Some(&runtime.turn("flood 30000")));
    assert_eq!(lines.iter().filter(|line| line["update"].is_object()).count(), 30_000);
    let result = runtime.result(&runtime.turn("flood 30000"));
    assert_eq!(
        (&result["meta"]["timings"]["updates"], &result["meta"]["messageTruncated"]),
        (&json!(30_000), &json!(true))
    );
    let pid = runtime.program.runtime().pid();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak_kib: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak_kib < 150 * 1024, "{peak_kib} KiB");
}

#[test]
fn conversation_precedes_the_prompt_as_context() {
    for builder in [Program::builder(), oneshot(Program::builder())] {
        let runtime = Runtime::of(builder);
        let turn = runtime.turn("context").with("conversation", json!("# The conversation so far\n\nKIWI\n"));
        let result = runtime.result(&turn);
        assert!(message(&result).starts_with("1 blocks ahead") && message(&result).contains("KIWI"), "{result}");
        assert_eq!(result["meta"]["contextInjected"], true);
    }
}

#[test]
fn configured_headless_command_runs_the_turn() {
    let broken = Program::builder().demo_agent(&["--refuse-handshake"]);
    let runtime = Runtime::of(oneshot(broken));
    assert_eq!(runtime.prepared["hasOneshot"], true);
    let lines = runtime.lines("POST", "/process-prompt", Some(&runtime.turn("ticks 3 10 ; echo täglich 🦀")));
    assert_eq!(text_of(&lines), "tick 1 tick 2 tick 3 täglich 🦀");
    let result = &lines.last().unwrap()["result"];
    assert_eq!((&result["stopReason"], &result["meta"]["acpStopReason"]), (&json!("completed"), &json!("end_turn")));
    assert_eq!(message(&runtime.result(&runtime.turn("cwd"))), runtime.prepared["path"]);
    let (code, said) = runtime.fails(&runtime.turn("crash"));
    assert!(code == "agent_crashed" && said.contains("as requested"), "{said}");
    assert_eq!(runtime.fails(&runtime.turn("huge 20000000")).0, "frame_too_large");
    let silent = runtime.turn("hang").with("inactivityTimeoutMs", json!(500));
    assert_eq!(runtime.fails(&silent).0, "inactivity_timeout");
    for (prompt, confirmed) in [("echo a ; hang", "cancelled"), ("ignore-cancel", "")] {
        let turn = runtime.turn(prompt).with("cancelGraceMs", json!(20_000));
        let pending = runtime.begin(&turn);
        let replay = || runtime.lines("GET", &format!("/process-prompt/{}?after=0", turn.id()), None);
        wait_for(DEADLINE, "the turn is cancelled", || runtime.cancel(&turn.id()).then_some(()));
        let result = pending.join().unwrap();
        assert_eq!(result["stopReason"], "cancelled");
        // An agent that does not ignore the signal yet exits without a confirmation.
        if !confirmed.is_empty() {
            assert_eq!(result["meta"]["acpStopReason"], confirmed);
        }
        assert_eq!(replay().last().unwrap()["result"]["stopReason"], "cancelled");
    }
    runtime.no_agent_is_left();
}

#[test]
fn agent_without_handshake_and_headless_command_has_no_fallback() {
    for flags in ["--refuse-handshake", "--exit-on-start", "--hang-on-start"] {
        let runtime = Runtime::of(Program::builder().demo_agent(&[flags]));
        assert_eq!(runtime.prepared["hasOneshot"], false);
        let (code, diagnostics) = runtime.fails(&runtime.turn("echo a").with("handshakeTimeoutMs", json!(1500)));
        assert_eq!(code, "fallback_unavailable", "{flags}: {diagnostics}");
        runtime.no_agent_is_left();
    }
}

#[test]
fn policy_answers_permission_requests_and_ask_rejects_them() {
    let runtime = Runtime::start();
    for (policy, expected) in [("allow-once", "allow"), ("allow-always", "allow-all"), ("reject", "reject")] {
        let result = runtime.result(&runtime.turn("ask").with("permissionPolicy", json!(policy)));
        assert_eq!(message(&result), expected);
        assert!(result["diagnostics"].is_null());
    }
    let result = runtime.result(&runtime.turn("ask").with("permissionPolicy", json!("ask")));
    assert_eq!(message(&result), "reject");
    assert!(result["diagnostics"].to_string().contains("nobody can be asked over HTTP"), "{result}");
}

#[test]
fn refused_turn_returns_a_problem_and_runs_nothing() {
    let frame_bytes = 4 * 1024 * 1024;
    let builder = Program::builder().set("runtime.max_agents", 1).set("limits.frame_bytes", frame_bytes);
    let runtime = Runtime::of(builder);
    for path in ["/", "/etc", "relative"] {
        let outside = runtime.turn("echo a").with("workspace", json!({"path": path, "isEphemeral": false}));
        runtime.refused(&outside, 403, "path_not_allowed");
    }
    runtime.refused(&runtime.turn("echo a").with("agent", json!("nobody")), 422, "unknown_agent");
    runtime.refused(&runtime.turn(""), 400, "invalid_request");
    runtime.refused(&runtime.turn("echo a").with("inactivityTimeoutMs", json!(0)), 400, "invalid_request");
    runtime.refused(&runtime.turn("echo a").with("unknown", json!(1)), 400, "invalid_request");
    let large = runtime.turn(&"x".repeat(frame_bytes + 1024 * 1024));
    runtime.refused(&large, 413, "payload_too_large");
    for (method, path) in [("POST", "/process-prompt"), ("GET", "/process-prompt/x"), ("DELETE", "/process-prompt/x")]
    {
        let request =
            RawRequest::new(method, path).header("Host", "runtime").header("Content-Type", "application/json");
        assert_eq!(request.body("{}").send(runtime.address()).status, 401, "{method}");
    }
    let turn = runtime.turn("sleep 60");
    let pending = runtime.begin(&turn);
    let refused = runtime.turn("echo a");
    runtime.refused(&refused, 503, "capacity_exhausted");
    assert!(runtime.cancel(&turn.id()));
    pending.join().unwrap();
    runtime.no_agent_is_left();
    assert_eq!(message(&runtime.result(&refused)), "a", "a refused turn can be requested again");
}

#[test]
fn abandoned_turn_is_ended_after_the_reconnect_grace_period() {
    let runtime = Runtime::of(Program::builder().set("runtime.reconnect_grace_s", 1));
    let turn = runtime.turn("ticks 100000 20");
    let request = runtime.request("POST", "/process-prompt", Some(&turn.0), "application/x-ndjson");
    block_on(async {
        let mut response = request.send().await.unwrap();
        assert!(response.chunk().await.unwrap().is_some());
    });
    runtime.no_agent_is_left();
    let (_, text) = runtime.send("GET", &format!("/process-prompt/{}", turn.id()), None, "");
    let result: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(result["meta"]["errorCode"], "connection_lost", "{result}");
}

#[test]
fn runtime_can_serve_http_without_acp() {
    let runtime = Runtime::of(Program::builder().set("runtime.acp", false));
    assert_eq!(runtime.status()["protocols"], json!(["http"]));
    let (status, text) = runtime.send("GET", "/acp", None, "");
    assert_eq!(status, 404, "{text}");
    assert_eq!(message(&runtime.result(&runtime.turn("echo a"))), "a");
    assert_eq!(Runtime::start().status()["protocols"], json!(["acp", "http"]));
}
