//! What a request leaves in the log and in the metrics: one line for each refusal or failure, with the request's id.

use crate::harness::{Program, Value, eventually, hostile::RawRequest, json};

/// The log's lines with this request id.
fn lines_of(log: &str, id: &str) -> Vec<Value> {
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["request_id"] == id).collect()
}

fn errors(program: &Program, code: &str) -> f64 {
    program.metrics().sum("lumilink_errors_total", &[("code", code)])
}

#[test]
fn refused_request_leaves_one_line_with_its_id_and_counts_one_error() {
    let program = Program::start();
    let session = program.api.open("ws");
    let unknown = json!({"workspaceId": "ws2", "installationId": "tenant-1", "agent": "nobody"});
    let prompt = json!({"sessionId": session.id, "prompt": []});
    let refused = [
        (program.api.get("/no/such/route"), 404, "not_found", "unmatched"),
        (program.api.get("/acp/sessions?limit=0"), 400, "invalid_request", "/acp/sessions"),
        (program.api.get("/acp/session/00000000-0000-0000-0000-000000000000"), 404, "not_found", "/acp/session/{id}"),
        (program.api.call("DELETE", "/acp/sessions").send(), 405, "method_not_allowed", "/acp/sessions"),
        (
            program.api.call("POST", "/acp/session/new").body("x").send(),
            415,
            "unsupported_media_type",
            "/acp/session/new",
        ),
        (program.api.post("/acp/session/new", unknown), 422, "unknown_agent", "/acp/session/new"),
        (program.api.post("/acp/session/prompt", prompt), 400, "invalid_request", "/acp/session/prompt"),
    ];
    for (answer, status, code, route) in refused {
        let problem = answer.problem(status, code);
        let id = problem["requestId"].as_str().unwrap();
        let lines = lines_of(&program.log(), id);
        let lines: Vec<_> = lines.iter().filter(|line| line["message"] == "request refused").collect();
        assert_eq!(lines.len(), 1, "{code} {route}: {lines:?}");
        let line = lines[0];
        assert_eq!((&line["level"], &line["code"], &line["route"]), (&json!("INFO"), &json!(code), &json!(route)));
        assert_eq!((&line["status"], &line["class"]), (&json!(status), &problem["class"]), "{line}");
    }
    let counts = ["not_found", "invalid_request", "method_not_allowed", "unsupported_media_type", "unknown_agent"];
    assert_eq!(counts.map(|code| errors(&program, code)), [2.0, 2.0, 1.0, 1.0, 1.0]);
    let requests = |labels: &[_]| program.metrics().sum("lumilink_http_requests_total", labels);
    assert_eq!(requests(&[("route", "/acp/session/new"), ("method", "POST"), ("status", "2xx")]), 1.0);
    assert_eq!(requests(&[("route", "/acp/session/new"), ("method", "POST"), ("status", "4xx")]), 2.0);
}

#[test]
fn failed_turn_counts_one_error_and_every_line_has_its_request_id() {
    let program = Program::start();
    let session = program.api.open("ws");
    let failed = session.prompt("error -32603 boom").problem(502, "agent_error");
    let lines = lines_of(&program.log(), failed["requestId"].as_str().unwrap());
    let ended = lines.iter().filter(|line| line["message"] == "turn ended").count();
    let answered = lines.iter().filter(|line| line["message"] == "request failed").count();
    assert_eq!((ended, answered), (1, 1), "{lines:?}");
    assert_eq!(errors(&program, "agent_error"), 1.0, "the answer about the turn is not counted again");
    let ended = program.metrics().sum("lumilink_turns_ended_total", &[("agent", "default"), ("outcome", "failed")]);
    assert_eq!(ended, 1.0);
}

#[test]
fn turn_over_the_fallback_ends_with_one_line_and_one_id_in_both_logs() {
    let mut program = Program::builder().separate_runtime("runtime-token-0123456789").start();
    let session = program.api.open("ws");
    let why = json!({"actor": "ada", "reason": "drill"});
    program.api.post("/acp/workspaces/ws/rollback?installationId=tenant-1", why).expect(200);
    let answer = session.call("echo over http").header("x-request-id", "fallback-turn-7").send();
    assert_eq!(answer.header("x-request-id"), "fallback-turn-7");
    assert_eq!(answer.expect(200)["meta"]["protocol"], "http");
    let ended = |log: &str| log.lines().filter(|line| line.contains("\"turn ended\"")).count();
    let lines = lines_of(&program.log(), "fallback-turn-7");
    assert_eq!(lines.iter().filter(|line| line["message"] == "turn ended").count(), 1, "{lines:?}");
    let runtime_log = program.runtime().log();
    assert_eq!(ended(&runtime_log), 0, "the supervisor alone ends turns");
    let refused = json!({"workspaceId": "ws3", "installationId": "tenant-1", "path": "/etc"});
    let refused =
        program.api.call("POST", "/acp/session/new").header("x-request-id", "refused-8").json(&refused).send();
    refused.problem(403, "path_not_allowed");
    let lines = lines_of(&program.runtime().log(), "refused-8");
    assert_eq!(lines.len(), 1, "the runtime logs the supervisor's id: {lines:?}");
    assert_eq!(lines[0]["code"], "path_not_allowed");
}

#[test]
fn hostile_request_ids_reach_neither_log_nor_answer() {
    let program = Program::start();
    for id in [
        "x".repeat(129),
        "x".repeat(60_000),
        "qx zj".into(),
        "{\"level\":\"ERROR\"}".into(),
        "\u{1b}[31mred".into(),
        "%0a".into(),
    ] {
        let request =
            RawRequest::new("GET", "/no/such/route").header("Host", "localhost").header("X-Request-Id", &id);
        let answer = request.send(program.address);
        let given = answer.header("x-request-id").unwrap_or_default();
        assert!(answer.status >= 400 && given != id && given.len() <= 128, "{id:.40}: {answer:?}");
        assert!(!program.log().contains(&id), "{id:.40}");
    }
    let request = RawRequest::new("GET", "/no/such/route").header("Host", "localhost").header("X-Request-Id", "ok-1");
    let twice = request.header("X-Request-Id", "second").send(program.address);
    assert_eq!(twice.header("x-request-id"), Some("ok-1"));
    for line in program.log().lines() {
        assert!(serde_json::from_str::<Value>(line).is_ok(), "not JSON: {line}");
    }
}

#[test]
fn unknown_paths_and_methods_add_no_series() {
    let program = Program::start();
    let series = || program.metrics().samples().len();
    let send = |method: &str, path: &str| {
        RawRequest::new(method, path).header("Host", "localhost").send(program.address);
    };
    send("GET", "/nothing");
    send("BREW", "/nothing");
    program.api.get("/acp/session/00000000-0000-0000-0000-000000000000").problem(404, "not_found");
    program.metrics();
    let before = series();
    for number in 0..50 {
        send("GET", &format!("/nothing-{number}/{}", "x/".repeat(number)));
        send(&format!("BREW{number}"), &format!("/acp/sessions?a={number}"));
        send("GET", &format!("/acp/session/0190a1b2-0000-7000-8000-0000000000{number:02}"));
    }
    assert_eq!(series(), before, "labels are bounded by the route table");
    let text = program.metrics().text;
    assert!(!text.contains("nothing-") && !text.contains("BREW") && !text.contains("0190a1b2"), "{text}");
    let unmatched = program.metrics().sum("lumilink_http_requests_total", &[("route", "unmatched")]);
    assert_eq!(unmatched, 102.0);
}

#[test]
fn durations_are_by_route_with_buckets_that_fit_agents() {
    let program = Program::start();
    let session = program.api.open("ws");
    session.completes("echo a");
    session.cancel();
    eventually("the routes have durations", || {
        let scrape = program.metrics();
        let count = |route| scrape.sum("lumilink_http_request_duration_seconds_count", &[("route", route)]);
        (count("/acp/session/prompt"), count("/acp/session/cancel")) == (1.0, 1.0)
    });
    let scrape = program.metrics();
    for le in ["30", "120", "600"] {
        let labels = [("le", le), ("agent", "default"), ("route", "acp")];
        assert!(scrape.has("lumilink_turn_duration_seconds_bucket", &labels), "{le}");
        let labels = [("le", le), ("route", "/acp/session/prompt")];
        assert!(scrape.has("lumilink_http_request_duration_seconds_bucket", &labels), "{le}");
    }
}
