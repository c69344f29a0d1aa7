//! Security of the HTTP API with default settings: hostile browsers, malformed requests, and the bearer token.

use std::{
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use crate::harness::{
    DEADLINE, Program,
    browser::Browser,
    free_port,
    hostile::{RawAnswer, RawRequest, exchange},
    json,
    process::{Folder, Process},
    sse::message_of,
    wait_for,
};

const ROUTES: [(&str, &str); 8] = [
    ("GET", "/acp/sessions"),
    ("GET", "/acp/health"),
    ("GET", "/metrics"),
    ("GET", "/openapi.json"),
    ("GET", "/docs/"),
    ("POST", "/acp/session/new"),
    ("GET", "/ws/notifications?installationId=tenant-1"),
    ("GET", "/no/such/route"),
];

fn to(program: &Program, method: &str, path: &str) -> RawRequest {
    RawRequest::new(method, path).header("Host", &program.address.to_string())
}

fn new_session() -> String {
    json!({"workspaceId": "ws", "installationId": "tenant-1"}).to_string()
}

#[test]
fn a_foreign_host_name_is_refused_on_every_route() {
    let program = Program::start();
    for (method, path) in ROUTES {
        for host in ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil.example"] {
            let answer = RawRequest::new(method, path)
                .header("Host", host)
                .header("Content-Type", "application/json")
                .body(&new_session())
                .send(program.address);
            assert_eq!(answer.status, 403, "{method} {path} with Host {host}: {}", answer.body);
            assert!(answer.body.contains("forbidden_origin"), "{}", answer.body);
        }
    }
    assert_eq!(program.api.get("/acp/sessions").expect(200)["items"], json!([]), "nothing was created");
}

#[test]
fn a_request_without_a_host_is_refused() {
    let program = Program::start();
    let answer = exchange(program.address, b"GET /acp/sessions HTTP/1.1\r\nConnection: close\r\n\r\n");
    assert!([400, 403].contains(&answer.status), "{answer:?}");
}

#[test]
fn loopback_host_names_are_accepted() {
    let program = Program::start();
    let port = program.address.port();
    for host in [format!("localhost:{port}"), format!("127.0.0.1:{port}"), format!("[::1]:{port}")] {
        let answer = RawRequest::new("GET", "/acp/sessions").header("Host", &host).send(program.address);
        assert_eq!(answer.status, 200, "{host}: {}", answer.body);
    }
}

#[test]
fn a_foreign_origin_is_refused_on_every_route() {
    let program = Program::builder().set("server.allowed_origins", json!(["https://app.example"])).start();
    for (method, path) in ROUTES {
        let origins = [
            "https://evil.example",
            "null",
            "https://app.example.evil",
            "http://app.example",
            "https://app.example:8443",
        ];
        for origin in origins {
            let answer = to(&program, method, path)
                .header("Origin", origin)
                .header("Content-Type", "application/json")
                .body(&new_session())
                .send(program.address);
            assert_eq!(answer.status, 403, "{method} {path} from {origin}: {}", answer.body);
            assert_eq!(answer.header("access-control-allow-origin"), None);
        }
    }
    let both = to(&program, "GET", "/acp/sessions").header("Origin", "https://app.example");
    assert_eq!(
        both.header("Origin", "https://evil.example").send(program.address).status,
        403,
        "a second `Origin` header is refused"
    );
    let allowed = to(&program, "GET", "/acp/sessions").header("Origin", "https://app.example").send(program.address);
    assert_eq!((allowed.status, allowed.header("access-control-allow-origin")), (200, Some("https://app.example")));
}

#[test]
fn a_preflight_is_answered_for_allowed_origins_only() {
    let program = Program::builder().set("server.allowed_origins", json!(["https://app.example"])).start();
    let preflight = |origin: &str| {
        to(&program, "OPTIONS", "/acp/session/new")
            .header("Origin", origin)
            .header("Access-Control-Request-Method", "POST")
            .header("Access-Control-Request-Headers", "content-type")
            .send(program.address)
    };
    let allowed = preflight("https://app.example");
    assert!([200, 204].contains(&allowed.status), "{allowed:?}");
    assert_eq!(allowed.header("access-control-allow-origin"), Some("https://app.example"));
    let refused = preflight("https://evil.example");
    assert_eq!(refused.header("access-control-allow-origin"), None);
    assert_eq!(refused.status, 403);
}

#[test]
fn form_or_plain_text_body_is_415_and_creates_nothing() {
    let program = Program::start();
    for media_type in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""] {
        let mut request = to(&program, "POST", "/acp/session/new");
        if !media_type.is_empty() {
            request = request.header("Content-Type", media_type);
        }
        let answer = request.body(&new_session()).send(program.address);
        assert_eq!(answer.status, 415, "{media_type}: {}", answer.body);
        assert!(answer.body.contains("unsupported_media_type"));
    }
    assert_eq!(program.api.get("/acp/sessions").expect(200)["items"], json!([]));
}

#[test]
fn a_body_over_the_limit_is_413() {
    let program = Program::builder().set("limits.body_bytes", 10_000).start();
    let session = program.api.open("ws");
    session.prompt(&"x".repeat(20_000)).problem(413, "payload_too_large");
    assert_eq!(session.says("echo small"), "small");
}

#[test]
fn every_route_but_the_probes_requires_the_configured_token() {
    let program = Program::builder().token("a-token-of-some-length").start();
    assert_eq!(program.api.open("ws").says("echo in"), "in");
    for (method, path) in ROUTES.into_iter().filter(|(_, path)| !["/docs/", "/openapi.json"].contains(path)) {
        for token in [None, Some("Bearer wrong"), Some("Bearer "), Some("Basic YTpi"), Some("a-token-of-some-length")]
        {
            let mut request = to(&program, method, path).header("Content-Type", "application/json");
            if let Some(token) = token {
                request = request.header("Authorization", token);
            }
            let answer = request.body(&new_session()).send(program.address);
            assert_eq!(answer.status, 401, "{method} {path} with {token:?}: {}", answer.body);
        }
    }
    for probe in ["/livez", "/readyz"] {
        assert_eq!(to(&program, "GET", probe).send(program.address).status, 200, "{probe}");
    }
    assert!(!program.log().contains("a-token-of-some-length"));
}

#[test]
fn neither_process_listens_beyond_loopback_without_a_token() {
    let short = ("LUMILINK_SERVER__TOKEN", "of-23-characters-------");
    for (arguments, env) in [
        (["serve", "--listen", "0.0.0.0:0", "--set", "server.token=none"].as_slice(), None),
        (&["serve", "--set", "server.listen=[::]:0"], Some(short)),
        (&["runtime", "--set", "runtime.listen=0.0.0.0:0"], None),
    ] {
        let folder = Folder::new();
        let arguments: Vec<_> = arguments.iter().map(|it| (*it).to_owned()).collect();
        let env: Vec<_> = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let mut process = Process::start("refused", &folder, &arguments, &env);
        let status = process.wait(Duration::from_secs(20));
        assert_eq!(status.code(), Some(78), "{arguments:?}: {}", process.log());
        assert!(process.log().contains("token"), "the error names the token: {}", process.log());
    }
}

#[test]
fn unknown_route_and_wrong_method_are_problem_documents() {
    let program = Program::start();
    program.api.get("/no/such/route").problem(404, "not_found");
    program.api.get("/acp/session/prompt").problem(405, "method_not_allowed");
    program.api.call("DELETE", "/acp/sessions").send().problem(405, "method_not_allowed");
}

#[test]
fn malformed_bytes_on_the_socket_do_not_harm_the_server() {
    let program = Program::start();
    for bytes in [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".as_slice(),
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /acp/session/new HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /acp/session/new HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ] {
        let answer = exchange(program.address, bytes);
        assert!(answer.status == 0 || answer.status >= 400, "{answer:?}");
    }
    program.api.get("/livez").expect(200);
}

#[test]
fn responses_carry_a_request_id_and_never_an_oversized_one_of_the_caller() {
    let program = Program::start();
    let mine = program.api.call("GET", "/acp/sessions").header("x-request-id", "trace-0123456789").send();
    assert!(!mine.header("x-request-id").is_empty());
    let long = program.api.call("GET", "/acp/sessions").header("x-request-id", &"x".repeat(5000)).send();
    assert!(long.header("x-request-id").len() < 200);
}

#[test]
fn credential_of_an_agent_that_has_no_known_shape_is_redacted_wherever_it_is_said() {
    let value = "no-shape-at-all-but-secret";
    let config = format!("[agent.env]\nMY_SERVICE_KEY = \"{value}\"\nMY_TOOL_PATH = \"a-place-to-work\"\n");
    let program = Program::builder().config(&config).start();
    let session = program.api.open("ws");
    let said = session.says("env MY_SERVICE_KEY ; echo  ; env MY_TOOL_PATH");
    assert!(said.contains("[redacted]") && said.contains("a-place-to-work"), "{said}");
    assert!(!session.transcript().iter().any(|entry| entry.to_string().contains(value)));
    let failed = session.prompt(&format!("error -32603 refused-{value}"));
    assert!(failed.text.contains("refused-[redacted]") && !failed.text.contains(value), "{}", failed.text);
    assert!(!program.log().contains(value));
}

#[test]
fn value_that_an_agent_says_in_pieces_or_leaves_on_stderr_reaches_no_reader() {
    let value = "quiet-harbour-of-no-known-shape";
    for is_separate in [false, true] {
        let builder = Program::builder().runtime_env("LUMILINK_AGENT__ENV__MOORING", value);
        let builder = if is_separate { builder.separate_runtime("runtime-token-0123456789") } else { builder };
        let program = builder.start();
        let session = program.api.open("ws");
        let events = session.streams("env MOORING ; think ; spell MOORING ; plan").rest();
        assert!(!format!("{events:?}").contains(value), "{events:?}");
        let said = message_of(&events);
        assert_eq!(said.matches("[redacted]").count(), 2, "{said}");
        let crashed = session.prompt("complain part one ; complain-env MOORING ; crash");
        assert!(crashed.text.contains("[redacted]"), "{}", crashed.text);
        session.becomes("idle");
        let seen = format!("{:?} {} {}", session.transcript(), session.get("/explain").text, program.log());
        assert!(!seen.contains(value) && !crashed.text.contains(value), "{seen}");
    }
}

/// A runtime without a supervisor.
struct RuntimeAlone {
    process: Process,
    address: SocketAddr,
    _folder: Folder,
}

impl RuntimeAlone {
    fn start(env: &[(&str, &str)]) -> Self {
        let (folder, address) = (Folder::new(), SocketAddr::from(([127, 0, 0, 1], free_port())));
        let listen = format!("runtime.listen={address}");
        let arguments = ["runtime", "--set", &listen, "--data-dir", "data"].map(str::to_owned);
        let env: Vec<_> = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let mut process = Process::start("runtime", &folder, &arguments, &env);
        wait_for(DEADLINE, "the runtime listens", || {
            process.assert_running();
            TcpStream::connect(address).ok()
        });
        Self { process, address, _folder: folder }
    }
}

impl Drop for RuntimeAlone {
    fn drop(&mut self) {
        self.process.kill();
    }
}

/// The headers that an answer must have whatever it answers.
fn unprotected(answer: &RawAnswer) -> Vec<&'static str> {
    let has = |name: &str, part: &str| answer.header(name).is_some_and(|value| value.contains(part));
    [
        ("x-content-type-options", "nosniff"),
        ("cross-origin-resource-policy", "same-origin"),
        ("x-frame-options", "DENY"),
        ("content-security-policy", "frame-ancestors 'none'"),
    ]
    .into_iter()
    .filter(|(name, part)| !has(name, part))
    .map(|(name, _)| name)
    .collect()
}

#[test]
fn every_answer_has_the_headers_that_protect_it_in_a_browser() {
    let program = Program::builder().separate_runtime("runtime-token-0123456789").start();
    let runtime = program.runtime_address();
    let bare = |path: &str| RawRequest::new("GET", path).header("Host", "localhost");
    for (method, path) in ROUTES {
        for (name, value) in [("X-None", ""), ("Origin", "https://evil.example"), ("Sec-Fetch-Site", "cross-site")] {
            let answer = to(&program, method, path).header(name, value).send(program.address);
            assert_eq!(unprotected(&answer), [""; 0], "{method} {path} {name}: {answer:?}");
            let is_page = answer.status == 200 && (path.starts_with("/docs") || path == "/openapi.json");
            assert_eq!(answer.header("cache-control") == Some("no-store"), !is_page, "{path}: {answer:?}");
            assert_eq!(answer.status == 403, name != "X-None", "{path} {name}: {answer:?}");
        }
    }
    let missing = bare("/docs/no-such-file.js").send(program.address);
    assert_eq!((missing.status, unprotected(&missing)), (404, Vec::new()));
    for path in ["/livez", "/status", "/none"] {
        let answer = bare(path).send(runtime);
        assert_eq!(unprotected(&answer), [""; 0], "{path} of the runtime: {answer:?}");
        assert_eq!(answer.header("cache-control"), Some("no-store"), "{path}");
    }
}

#[test]
fn swagger_page_works_under_its_content_security_policy() {
    let program = Program::start();
    let mut browser = Browser::start();
    let mut page = browser.open(&format!("http://{}/docs/", program.address));
    page.becomes("document.querySelectorAll('.opblock').length > 30");
    page.evaluate("document.querySelector('.opblock-summary-control').click()");
    page.becomes("document.querySelector('.opblock.is-open')");
    assert_eq!(page.evaluate("getComputedStyle(document.body).margin"), "0px", "the styles of the page apply");
    let run = "(() => { const s = document.createElement('script'); s.text = 'window.ran = 1'; \
               document.body.append(s); return window.ran === 1 })()";
    assert_eq!(page.evaluate(run), false, "inline scripts do not run");
}

#[test]
fn runtime_without_a_token_refuses_a_rebound_host_name() {
    let runtime = RuntimeAlone::start(&[]);
    for host in ["evil.example", "evil.example:8090", "[::1]evil.com", "localhost:evil.com", ""] {
        for path in ["/status", "/metrics", "/acp"] {
            let answer = RawRequest::new("GET", path).header("Host", host).send(runtime.address);
            assert!([400, 403].contains(&answer.status), "{path} {host}: {answer:?}");
        }
    }
    for host in ["localhost", "127.0.0.1:8090", "[::1]:1"] {
        assert_eq!(
            RawRequest::new("GET", "/status").header("Host", host).send(runtime.address).status,
            200,
            "{host}"
        );
    }
    let probe = RawRequest::new("GET", "/livez").header("Host", "evil.example").send(runtime.address);
    assert_eq!(probe.status, 200, "a probe has no secret");
}

#[test]
fn refused_strangers_at_the_runtime_do_not_fill_its_log() {
    let runtime = RuntimeAlone::start(&[("LUMILINK_RUNTIME__TOKEN", "runtime-token-0123456789")]);
    for _ in 0..200 {
        assert_eq!(RawRequest::new("GET", "/status").header("Host", "localhost").send(runtime.address).status, 401);
    }
    // Generous: the requests may take more than one interval on a busy machine.
    let lines = runtime.process.log().matches("request refused by the runtime").count();
    assert!((1..=20).contains(&lines), "{lines} lines: {}", runtime.process.log());
}
