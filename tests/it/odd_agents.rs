//! Agents that write JSON-RPC in unusual forms: what is recognisably a message is one, everything else is noise.

use crate::harness::{Program, Session, Value, demo_agent, json};

/// Opens a session whose turns use this route.
fn open_over(program: &Program, route: &str) -> Session {
    let session = program.api.open(&format!("ws-{route}"));
    let pin = json!({"pin": {"protocol": route}, "actor": "test", "reason": "both routes"});
    program.api.call("PUT", &format!("/acp/workspaces/ws-{route}/protocol")).json(&pin).send().expect(200);
    session
}

/// Runs a check on a session over each route. The agent of ACP must survive it.
fn over_both_routes(check: impl Fn(&Session)) {
    // Failures of these turns must not move the workspaces.
    let mut program = Program::builder().set("window.min_samples", 100).start();
    program.expect_error("fallback fails as well");
    for route in ["acp", "http"] {
        let session = open_over(&program, route);
        let agent = (route == "acp").then(|| session.says("pid"));
        check(&session);
        if let Some(agent) = agent {
            assert_eq!(session.says("pid"), agent, "the agent was not replaced");
        }
    }
}

fn new_session(agent: &str) -> Value {
    json!({"workspaceId": "ws", "installationId": "tenant-1", "agent": agent})
}

fn warnings(result: &Value) -> Vec<String> {
    let diagnostics = result["diagnostics"].as_array().cloned().unwrap_or_default();
    let text = |it: &Value| it["message"].as_str().expect("a message").to_owned();
    diagnostics.iter().filter(|it| it["severity"] == "warn").map(text).collect()
}

#[test]
fn answer_with_an_odd_error_ends_its_turn_and_keeps_the_agent() {
    over_both_routes(|session| {
        for (answer, code, detail) in [
            (r#"{"jsonrpc":"2.0","id":$ID,"error":"it broke"}"#, "agent_error", "it broke"),
            (r#"{"jsonrpc":"2.0","id":$ID,"error":{"message":"no code"}}"#, "agent_error", "no code"),
            (r#"{"id":$ID,"error":{"code":"rate_limit_error","message":"wait"}}"#, "model_provider", "wait"),
            (r#"{"id":$ID,"error":{"code":"-32602","message":"too odd"}}"#, "agent_rejected", "too odd"),
            (r#"{"id":$ID,"error":{"code":-32603.0,"message":null}}"#, "agent_error", ""),
            (r#"{"id":$ID.0,"error":7}"#, "agent_error", "7"),
            (r#"{"id":"$ID","error":{}}"#, "agent_error", ""),
            (
                r#"{"id":$ID,"result":{"stopReason":"end_turn"},"error":{"code":1,"message":"both"}}"#,
                "agent_error",
                "both",
            ),
            (r#"{"id":$ID,"method":"session/prompt","error":"with a method"}"#, "agent_error", "with a method"),
            (r#"[{"jsonrpc":"2.0","id":$ID,"error":"in a batch"}]"#, "agent_error", "in a batch"),
            (r#"$BOM$ESC]0;title$BEL{"id":$ID,"error":"decorated"}$ESC[0m"#, "agent_error", "decorated"),
            (r#"{"id":$ID,"error":{"code":-32603,"message":"deep","data":$DEEP}}"#, "agent_error", "deep"),
            (r#"{"id":$ID,"result":{"stopReason":"error","message":"disk full"}}"#, "agent_error", "disk full"),
        ] {
            let body = session.prompt(&format!("echo a ; answer {answer}")).body;
            assert_eq!(body["code"], code, "{answer}: {body}");
            assert!(body["detail"].as_str().is_some_and(|it| it.contains(detail)), "{answer}: {body}");
        }
    });
}

#[test]
fn completed_turn_completes_whatever_its_usage_and_extensions_are() {
    over_both_routes(|session| {
        for (extension, known, is_odd) in [
            (r#""usage":{"inputTokens":null,"outputTokens":null}"#, false, false),
            (r#""usage":{"inputTokens":3.0,"outputTokens":4.2}"#, true, false),
            (r#""usage":{"inputTokens":-3,"outputTokens":4}"#, false, true),
            (r#""usage":"3 tokens""#, false, true),
            (r#""_meta":$DEEP,"cost":{"amount":1e400},"x":"\ud800""#, false, false),
            (r#""stopReason":"endTurn""#, false, false),
        ] {
            let answer = format!(
                r#"{{"id":7,"id":$ID,"error":null,"result":{{"stopReason":"end_turn",{extension}}},"extra":1}}"#
            );
            let result = session.completes(&format!("echo a ; answer {answer}"));
            assert_eq!(result["meta"]["usageKnown"] == true, known, "{extension}: {result}");
            assert_eq!(warnings(&result).len(), usize::from(is_odd), "{extension}: {result}");
            assert_eq!(result["meta"]["acpStopReason"], "end_turn");
        }
    });
}

#[test]
fn request_with_an_odd_id_is_answered_with_the_same_id() {
    over_both_routes(|session| {
        for method in ["_demo/unknown", "fs/read_text_file"] {
            for id in
                ["18446744073709551615", "7.5", "-0", "1e400", r#""\u0041\ud800""#, "[1,2]", "9".repeat(500).as_str()]
            {
                assert_eq!(session.says(&format!("ask-as {method} {id}")), id, "{method}");
            }
        }
    });
}

#[test]
fn update_that_is_sent_as_a_request_is_an_update_and_is_answered() {
    over_both_routes(|session| {
        let result = session.completes("update-as-request hello");
        assert_eq!(result["meta"]["message"], "hello{}", "{result}");
        assert_eq!(warnings(&result), [""; 0], "{result}");
    });
}

#[test]
fn log_line_with_an_id_and_an_answer_to_nothing_are_noise() {
    over_both_routes(|session| {
        let result = session.completes(
            r#"print {"id":"evt_1","msg":"x"} ; print {"id":5,"level":"info"} ; print {"id":"evt","error":"x"} ; print {"id":9999,"result":1} ; print {"id":null,"error":{"code":-32601,"message":"no such method"}} ; print {"jsonrpc":"2.0","method":"session/update","params":{}} ; print [] ; echo on"#,
        );
        assert_eq!(result["meta"]["message"], "on", "{result}");
        let warnings = warnings(&result);
        assert_eq!(warnings.len(), 7, "{result}");
        assert!(warnings.iter().any(|it| it.contains("evt_1")), "the line is quoted: {warnings:?}");
    });
    let program = Program::start();
    let session = program.api.open("ws");
    let noise = [r#"print {"id":"evt_1","msg":"x"}"#; 11].join(" ; ");
    session.prompt(&noise).problem(502, "protocol_violation");
    session.completes("echo usable again");
}

#[test]
fn agent_that_could_not_read_a_message_fails_the_turn_at_once() {
    let program = Program::start();
    let session = program.api.open("ws");
    let unread = r#"answer {"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"Parse error"}}"#;
    let problem = session.prompt(unread).problem(502, "protocol_violation");
    assert!(problem["detail"].as_str().is_some_and(|it| it.contains("Parse error")), "{problem}");
    session.completes("echo usable again");
}

#[test]
fn message_that_no_tree_of_values_can_hold_is_passed_on_and_harms_nothing() {
    over_both_routes(|session| {
        let result = session.completes(
            r#"print {"method":"_demo/deep","params":{"a":$DEEP}} ; print {"method":"_demo/half","params":"\ud800"} ; print {"method":"_demo/large","params":1e400} ; print {"id":null,"method":"_demo/null","params":{}} ; print {"jsonrpc":"2.0","method":"session/update","params":{"sessionId":"s","update":{"sessionUpdate":"tool_call","toolCallId":"c","title":"\ud800","rawInput":$DEEP,"n":1e400}}} ; print $NUL$NUL{"method":"_demo/padded"} ; echo on"#,
        );
        assert_eq!((&result["meta"]["message"], warnings(&result).len()), (&json!("on"), 0), "{result}");
        let path = format!("/acp/session/{}/events", session.id);
        let mut events = session.api.call("GET", &path).header("last-event-id", "0").stream();
        let of_turn = |data: &Value| data["promptId"] == result["meta"]["promptId"];
        // Their data is JSON, although this test cannot hold all of it in a tree.
        let all = events.until("the result", |event| event.name == "result" && of_turn(&event.data));
        assert_eq!(all.iter().filter(|event| event.name == "notification").count(), 5, "{all:?}");
        let odd = r#"ask-as session/request_permission "p""#;
        assert_eq!(session.says(odd), r#""p""#, "a request that cannot be read is refused");
    });
}

#[test]
fn decorated_first_line_costs_no_handshake() {
    let answer = r#"$BOM$ESC]0;agent$BEL{"jsonrpc":"2.0","id":$ID,"result":{"protocolVersion":"1","agentCapabilities":{"loadSession":"yes","promptCapabilities":7},"authMethods":[{"id":7},3],"agentInfo":"me"}}"#;
    let program = Program::builder().demo_agent(&["--answer", "initialize", answer]).start();
    let session = program.api.open("ws");
    assert_eq!(session.says("echo up"), "up");
    assert_eq!(session.state()["protocol"], "acp");
}

#[test]
fn odd_error_to_session_new_fails_the_handshake_at_once() {
    let toml = [
        ("text", r#"{"id":$ID,"error":"no room"}"#),
        ("nothing", r#"{"id":null,"error":{"code":-32603,"message":"no room"}}"#),
    ]
    .map(|(name, answer)| {
        format!("[agents.{name}]\ncommand = {}\n", demo_agent(&["--answer", "session/new", answer]))
    });
    let program = Program::builder().config(&toml.concat()).start();
    for agent in ["text", "nothing"] {
        let problem = program.api.post("/acp/session/new", new_session(agent)).problem(502, "handshake_failed");
        assert!(problem["detail"].as_str().is_some_and(|it| it.contains("no room")), "{agent}: {problem}");
    }
}

#[test]
fn failed_handshake_quotes_what_the_agent_printed() {
    let agent = |name: &str, flags: &[&str]| format!("[agents.{name}]\ncommand = {}\n", demo_agent(flags));
    let toml = [
        agent("hangs", &["--banner", "5", "--hang-on-start"]) + "handshake_timeout_s = 1\n",
        agent("prints", &["--banner", "200", "--hang-on-start"]),
        agent("banner", &["--banner", "12"]),
    ];
    let program = Program::builder().config(&toml.concat()).start();
    for (name, status, code, rest) in [
        ("hangs", 504, "handshake_timeout", "(and 2 more lines)"),
        ("prints", 502, "handshake_failed", "more lines)"),
    ] {
        let problem = program.api.post("/acp/session/new", new_session(name)).problem(status, code);
        let detail = problem["detail"].as_str().expect("a detail");
        assert!(detail.contains("This banner is not JSON, line 1") && detail.contains(rest), "{name}: {detail}");
    }
    assert_eq!(program.api.open_with(new_session("banner")).says("echo up"), "up", "12 lines are a banner");
}

#[test]
fn agent_with_a_handshake_timeout_of_its_own_may_start_slowly() {
    let command = demo_agent(&["--start-delay-ms", "2500"]);
    let toml = format!(
        "[agents.slow]\ncommand = {command}\n[agents.patient]\ncommand = {command}\nhandshake_timeout_s = 60\n"
    );
    let program = Program::builder().config(&toml).set("runtime.handshake_timeout_s", 1).start();
    let problem = program.api.post("/acp/session/new", new_session("slow")).problem(504, "handshake_timeout");
    assert!(problem["detail"].as_str().is_some_and(|it| it.contains("within 1 s")), "{problem}");
    let session = program.api.open_with(new_session("patient"));
    assert_eq!(session.says("echo up"), "up");
    let pin = json!({"pin": {"protocol": "http"}, "actor": "test", "reason": "the other route"});
    program.api.call("PUT", "/acp/workspaces/ws/protocol").json(&pin).send().expect(200);
    assert_eq!(session.says("echo up"), "up", "the limit holds over the fallback as well");
}

#[test]
fn last_words_of_an_agent_are_those_of_its_last_turn() {
    let program = Program::start();
    let session = program.api.open("ws");
    session.completes("complain an old worry");
    session.completes("echo on");
    let problem = session.prompt("segv").problem(502, "agent_crashed");
    let detail = problem["detail"].as_str().expect("a detail");
    assert!(detail.contains("signal 11") && !detail.contains("an old worry"), "{detail}");
    let problem = session.prompt("complain the reason ; segv").problem(502, "agent_crashed");
    assert!(problem["detail"].as_str().is_some_and(|it| it.contains("the reason")), "{problem}");
}

#[test]
fn explain_shows_a_crash_when_it_happened() {
    let program = Program::start();
    let session = program.api.open("ws");
    session.prompt("ticks 3 50 ; crash").problem(502, "agent_crashed");
    let story = session.get("/explain").expect(200);
    let turn =
        story["timeline"].as_array().expect("a timeline").iter().find(|it| it["kind"] == "turn").expect("a turn");
    assert_eq!(turn["at"], turn["details"]["endedAt"], "{turn}");
    assert!(turn["details"]["acceptedAt"].as_str() < turn["at"].as_str(), "{turn}");
}
