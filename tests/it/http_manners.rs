//! Manners of HTTP: HEAD, Allow, Location, compression, probes, and errors that name their cause.

use std::io::Read;

use crate::harness::{
    Program, Value, block_on, eventually,
    hostile::{RawAnswer, RawRequest, exchange},
    json, tokens,
};

fn raw(program: &Program, method: &str, path: &str) -> RawAnswer {
    RawRequest::new(method, path).header("Host", &program.address.to_string()).send(program.address)
}

#[test]
fn head_is_answered_as_get_without_the_body() {
    let program = Program::start();
    let session = program.api.open("ws");
    let document = program.api.contract().document().clone();
    let paths = document["paths"].as_object().unwrap().iter().filter(|(_, item)| item.get("get").is_some());
    let mut paths: Vec<_> = paths.map(|(path, _)| path.clone()).collect();
    paths.extend(["/", "/docs", "/docs/", "/docs/handbook/", "/openapi.json"].map(str::to_owned));
    for template in paths {
        // A stream as well: its body is left out, so the connection is free at once.
        let path = template.replace("{id}", if template.contains("/session/") { &session.id } else { "ws" });
        let path = path.replace("{installationId}", "tenant-1");
        let head = raw(&program, "HEAD", &path);
        assert!(head.body.is_empty(), "HEAD {path}: {head:?}");
        if template.ends_with("/events") {
            assert_eq!(head.status, 200, "HEAD {path}: {head:?}");
            continue;
        }
        let get = raw(&program, "GET", &path);
        assert_eq!(head.status, get.status, "HEAD {path}: {head:?}");
        assert_eq!(head.header("content-type"), get.header("content-type"), "HEAD {path}");
        assert_ne!(head.status, 405, "HEAD {path}");
        if path != "/metrics" && path != "/acp/health" && get.status == 200 {
            assert_eq!(head.header("content-length"), get.header("content-length"), "HEAD {path}");
        }
    }
    let requests =
        |route| program.metrics().sum("lumilink_http_requests_total", &[("method", "HEAD"), ("route", route)]);
    assert_eq!((requests("/livez"), requests("/acp/session/{id}")), (1.0, 1.0));
    // The connection of a HEAD to a stream takes the next request.
    let token = tokens::of(program.address).expect("the program made a token");
    let events = format!(
        "HEAD /acp/session/{}/events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n",
        session.id
    );
    let both = exchange(
        program.address,
        format!("{events}GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes(),
    );
    assert!(
        both.status == 200 && both.body.contains("HTTP/1.1 200") && both.body.contains(r#""status":"ok""#),
        "{both:?}"
    );
}

#[test]
fn method_not_allowed_names_the_allowed_methods() {
    let program = Program::start();
    for (method, path, allow) in [
        ("DELETE", "/acp/sessions", "GET, HEAD"),
        ("OPTIONS", "/livez", "GET, HEAD"),
        ("GET", "/acp/session/new", "POST"),
        ("PUT", "/acp/session/prompt", "POST"),
        ("PATCH", "/acp/workspaces/ws/protocol", "GET, HEAD, PUT"),
        ("POST", "/docs/", "GET, HEAD"),
        ("BREW", "/metrics", "GET, HEAD"),
    ] {
        let answer = raw(&program, method, path);
        assert_eq!((answer.status, answer.header("allow")), (405, Some(allow)), "{method} {path}: {answer:?}");
    }
}

#[test]
fn unknown_path_is_404_before_a_wrong_method_is_405_and_a_media_type_415() {
    let program = Program::start();
    for method in ["PUT", "PATCH", "POST", "GET", "DELETE", "HEAD"] {
        let answer = raw(&program, method, "/no/such/path");
        assert_eq!((answer.status, answer.header("allow")), (404, None), "{method}: {answer:?}");
    }
    assert_eq!(raw(&program, "PUT", "/acp/sessions").status, 405);
    assert_eq!(raw(&program, "POST", "/acp/session/new").status, 415);
    assert_eq!(raw(&program, "PUT", "/acp/workspaces/ws/protocol").status, 415);
    assert_eq!(raw(&program, "GET", "/acp/session/not-an-id").status, 404);
    let problem = program.api.get("/no/such/path").problem(404, "not_found");
    assert_eq!(problem["detail"], "no route /no/such/path. See /docs/ for the routes.");
}

#[test]
fn bearer_in_lower_case_is_accepted_by_both_processes() {
    let program =
        Program::builder().token("a-token-of-some-length").separate_runtime("runtime-token-0123456789").start();
    let runtime = program.runtime_url();
    let runtime = runtime.trim_start_matches("ws://").trim_end_matches("/acp").parse().expect("an address");
    for (address, path, token) in [
        (program.address, "/acp/sessions", "a-token-of-some-length"),
        (runtime, "/status", "runtime-token-0123456789"),
    ] {
        for (scheme, status) in [("bearer", 200), ("BEARER", 200), ("Basic", 401)] {
            let request = RawRequest::new("GET", path).header("Host", "localhost");
            let answer = request.header("Authorization", &format!("{scheme} {token}")).send(address);
            assert_eq!(answer.status, status, "{scheme} {path}: {answer:?}");
        }
    }
}

#[test]
fn probe_is_answered_with_any_host_and_without_one() {
    let program = Program::start();
    for path in ["/livez", "/readyz"] {
        for host in ["Host: lumilink.svc.cluster.local\r\n", "Host: evil.example\r\n", ""] {
            let version = if host.is_empty() { "1.0" } else { "1.1" };
            let request = format!("GET {path} HTTP/{version}\r\n{host}Connection: close\r\n\r\n");
            assert_eq!(exchange(program.address, request.as_bytes()).status, 200, "{path} {host}");
        }
    }
    let request = "GET /acp/health HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n";
    assert_eq!(exchange(program.address, request.as_bytes()).status, 403);
}

#[test]
fn root_and_docs_lead_to_the_documentation() {
    let program = Program::builder().token("a-token-of-some-length").start();
    let index = raw(&program, "GET", "/");
    let addresses: Value = serde_json::from_str(&index.body).expect("JSON");
    for name in ["docs", "handbook", "openapi"] {
        let path = addresses[name].as_str().expect("an address");
        assert_eq!(raw(&program, "GET", path).status, 200, "{name}");
    }
    let page = RawRequest::new("GET", "/").header("Host", "localhost").header("Accept", "text/html,*/*");
    let page = page.send(program.address);
    assert_eq!((page.status, page.header("location")), (302, Some("/docs/")));
    let docs = raw(&program, "GET", "/docs");
    assert_eq!((docs.status, docs.header("location")), (307, Some("/docs/")));
}

#[test]
fn malformed_query_is_refused_by_the_name_of_its_parameter() {
    let program = Program::start();
    for (query, named) in [
        ("/acp/sessions?limit=abc", "limit: "),
        ("/acp/sessions?installationId=t&limit=-1", "limit: "),
        ("/acp/audit/migrations?from=yesterday", "from: "),
        ("/acp/workspaces?limit=1.5", "limit: "),
        ("/acp/webhooks/deliveries?state=lost", "state: "),
        ("/acp/notifications?installationId=t&limit=", "limit: "),
    ] {
        let problem = program.api.get(query).problem(400, "invalid_request");
        assert!(problem["detail"].as_str().unwrap().starts_with(named), "{query}: {problem}");
    }
}

/// A `GET` with this `Accept-Encoding`; the coding of the answer and its bytes.
fn encoded(program: &Program, path: &str, accept: &str) -> (Option<String>, Vec<u8>, String) {
    let url = format!("{}{path}", program.api.base());
    block_on(async {
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        let token = tokens::of(program.address).expect("the program made a token");
        let answer =
            client.get(url).bearer_auth(token).header("accept-encoding", accept).send().await.expect("an answer");
        assert_eq!(answer.status().as_u16(), 200);
        let text = |name| answer.headers().get(name).map(|value| value.to_str().expect("text").to_owned());
        let (coding, vary) = (text("content-encoding"), text("vary").unwrap_or_default());
        (coding, answer.bytes().await.expect("a body").to_vec(), vary)
    })
}

#[test]
fn long_answers_are_compressed_for_clients_that_accept_it() {
    let program = Program::start();
    for path in ["/openapi.json", "/metrics", "/docs/handbook/api.md"] {
        let (coding, plain, vary) = encoded(&program, path, "identity");
        assert_eq!((coding, vary.as_str()), (None, "accept-encoding"), "{path}");
        for accept in ["gzip", "br;q=1, gzip;q=0.5", "*"] {
            let (coding, bytes, vary) = encoded(&program, path, accept);
            assert_eq!((coding.as_deref(), vary.as_str()), (Some("gzip"), "accept-encoding"), "{path} {accept}");
            assert!(bytes.len() * 4 < plain.len() * 3, "{path}: {} of {}", bytes.len(), plain.len());
            let mut text = Vec::new();
            flate2::read::GzDecoder::new(bytes.as_slice()).read_to_end(&mut text).expect("gzip");
            assert!(path == "/metrics" || text == plain, "{path}");
        }
        for refused in ["gzip;q=0", "deflate", ";;,q=", &"x,".repeat(2000)] {
            assert_eq!(encoded(&program, path, refused).0, None, "{path} {refused:.20}");
        }
    }
    assert_eq!(encoded(&program, "/livez", "gzip").0, None, "a short answer");
}

#[test]
fn event_stream_is_never_compressed() {
    let program = Program::start();
    let session = program.api.open("ws");
    let call = session.call(format!("echo {}", "long ".repeat(2000)));
    let mut stream = call.header("accept", "text/event-stream").header("accept-encoding", "gzip").stream();
    assert!(stream.rest().len() > 1, "events can be read as they are");
}

#[test]
fn created_session_has_a_location() {
    let program = Program::start();
    let answer = program.api.post("/acp/session/new", json!({"workspaceId": "ws", "installationId": "tenant-1"}));
    let location = answer.header("location");
    let body = answer.expect(201);
    assert_eq!(location, format!("/acp/session/{}", body["sessionId"].as_str().unwrap()));
    assert_eq!(program.api.get(&location).expect(200)["sessionId"], body["sessionId"]);
}

#[test]
fn timestamps_have_one_width_everywhere() {
    fn collect(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(members) => members.values().for_each(|member| collect(member, found)),
            Value::Array(items) => items.iter().for_each(|item| collect(item, found)),
            Value::String(text) if text.starts_with("20") && text.contains('T') && text.ends_with('Z') => {
                found.push(text.clone());
            }
            _ => {}
        }
    }
    let program = Program::start();
    let session = program.api.open("ws");
    session.completes("echo a");
    let why = json!({"actor": "ada", "reason": "drill"});
    program.api.post("/acp/workspaces/ws/rollback?installationId=tenant-1", why).expect(200);
    let mut found = Vec::new();
    for path in [
        "/acp/sessions",
        "/acp/workspaces",
        "/acp/workspaces/ws/protocol",
        "/acp/audit/migrations",
        "/acp/audit/connections",
        "/acp/audit/rollback-events",
        "/acp/notifications?installationId=tenant-1",
        &format!("/acp/session/{}/transcript", session.id),
        &format!("/acp/session/{}/explain", session.id),
    ] {
        collect(&program.api.get(path).expect(200), &mut found);
    }
    assert!(found.len() > 10, "{found:?}");
    let width = "2026-11-25T09:00:00.000000Z".len();
    assert!(found.iter().all(|text| text.len() == width), "{found:?}");
}

#[test]
fn every_error_is_a_problem_document() {
    let program = Program::start();
    for (method, path) in [("GET", "/docs/no-such-file.js"), ("GET", "/docs/handbook/none.md"), ("POST", "/docs/x")] {
        let answer = raw(&program, method, path);
        assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{method} {path}: {answer:?}");
    }
    eventually("the answers are counted", || {
        program.metrics().sum("lumilink_errors_total", &[("code", "not_found")]) == 2.0
    });
}
