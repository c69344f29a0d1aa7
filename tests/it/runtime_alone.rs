//! Supervisor and runtime as separate processes, as on two machines.

use crate::harness::{DEADLINE, Program, api::result_of, eventually, hostile::RawRequest, json, processes, wait_for};

#[test]
fn turn_runs_through_a_separate_runtime() {
    let program = Program::builder().separate_runtime("runtime-token-0123456789").start();
    let session = program.api.open("ws");
    assert_eq!(session.says("echo two processes"), "two processes");
    session.completes("write a.txt content");
    assert!(session.path().starts_with(program.folder.path().canonicalize().unwrap().join("runtime-workspaces")));
    assert!(session.path().join("a.txt").exists());
    session.prompt("crash").problem(502, "agent_crashed");
    session.becomes("idle");
    assert_eq!(session.says("echo again"), "again");
}

#[test]
fn cancel_and_diff_work_with_a_separate_runtime() {
    let program = Program::builder().separate_runtime("runtime-token-0123456789").start();
    let session = program.api.open("ws");
    let (_, mut stream) = session.is_busy_with("echo started ; sleep 60");
    assert!(session.cancel());
    assert_eq!(result_of(&program.api, &stream.rest())["stopReason"], "cancelled");
    session.completes("write new.txt x");
    assert!(session.get("/diff").expect(200)["files"].to_string().contains("new.txt"));
}

#[test]
fn runtime_http_routes_and_websocket_require_the_token() {
    let program = Program::builder().separate_runtime("runtime-token-0123456789").start();
    let log = program.log();
    let listen: std::net::SocketAddr = {
        let url = program.runtime_url();
        url.strip_prefix("ws://")
            .and_then(|it| it.strip_suffix("/acp"))
            .and_then(|it| it.parse().ok())
            .expect("a URL")
    };
    for token in [None, Some("Bearer wrong")] {
        for (method, path) in [("GET", "/status"), ("POST", "/workspace/prepare"), ("GET", "/acp")] {
            let mut request = RawRequest::new(method, path)
                .header("Host", &listen.to_string())
                .header("Content-Type", "application/json")
                .header("Upgrade", "websocket")
                .header("Sec-WebSocket-Version", "13")
                .header("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==");
            if let Some(token) = token {
                request = request.header("Authorization", token);
            }
            let answer = request.body("{}").send(listen);
            assert_eq!(answer.status, 401, "{method} {path} with {token:?}: {}", answer.body);
        }
    }
    assert!(!log.contains("runtime-token-0123456789"));
}

#[test]
fn wrong_runtime_token_is_reported_to_the_caller() {
    let first = Program::builder().separate_runtime("runtime-token-0123456789").start();
    let other = Program::builder().set("runtime.url", first.runtime_url()).set("runtime.token", "wrong").start();
    let body = json!({"workspaceId": "ws", "installationId": "tenant-1"});
    let problem = other.api.post("/acp/session/new", body).problem(503, "runtime_unavailable");
    assert!(problem["detail"].as_str().unwrap().contains("token"), "{problem}");
}

#[test]
fn unreachable_runtime_is_a_clear_problem_and_a_paused_one_is_used_again() {
    let mut program = Program::builder().separate_runtime("runtime-token-0123456789").start();
    let session = program.api.open("ws");
    session.completes("echo a");
    let pid = program.runtime().pid();
    processes::signal(pid, libc::SIGSTOP);
    processes::signal(pid, libc::SIGCONT);
    assert_eq!(session.says("echo after a pause"), "after a pause");
    let unreachable = format!("ws://127.0.0.1:{}/acp", crate::harness::free_port());
    let alone = Program::builder().set("runtime.url", unreachable).start();
    let body = json!({"workspaceId": "ws", "installationId": "tenant-1"});
    let answer = alone.api.post("/acp/session/new", body);
    assert!(!answer.header("retry-after").is_empty());
    answer.problem(503, "runtime_unavailable");
    wait_for(DEADLINE, "health reports the runtime", || {
        alone.api.get("/acp/health").text.contains("untime").then_some(())
    });
}

#[test]
fn restarted_runtime_ends_no_session_and_rolls_no_workspace_back() {
    let settings = Program::builder().set("window.min_samples", 5).set("recovery.cooldown_s", 1800);
    let mut program = settings.set("supervision.max_restarts", 1).behind_proxy().start();
    let sessions: Vec<_> = (0..6).map(|_| program.api.open("ws")).collect();
    let available = |program: &Program| program.metrics().sum("lumilink_runtime_available", &[]);
    for kills in [false, true] {
        let busy = sessions[0].starts("ticks 2000 50");
        if kills {
            program.kill_runtime();
        } else {
            program.stop_runtime();
            // Its close frame (1001) reports the stop at once.
            wait_for(DEADLINE, "the metric shows the stop", || (available(&program) == 0.0).then_some(()));
            for session in &sessions {
                session.becomes("starting");
                assert_eq!(session.state()["connectionStatus"], "reconnecting");
            }
            let health = program.api.get("/acp/health").expect(200);
            assert_eq!(
                (&health["status"], &health["runtime"]["status"]),
                (&json!("degraded"), &json!("unavailable"))
            );
            assert_eq!(program.api.get("/readyz").expect(200)["runtime"], "unavailable");
        }
        program.start_runtime_again();
        let ended = sessions[0].ends(&busy);
        assert_eq!(ended["failure"]["code"], "runtime_unavailable", "{ended}");
        for session in &sessions {
            if kills {
                // Until then the session tries to resume its conversation, which the new runtime does not know.
                eventually("the session has a fresh agent", || {
                    let state = session.state();
                    state["restarts"] == 2 && state["state"] == "idle"
                });
            }
            assert_eq!(session.says("echo again"), "again", "the next prompt waits for the runtime");
        }
        assert_eq!(available(&program), 1.0);
    }
    let route = program.api.get("/acp/workspaces/ws/protocol").expect(200);
    assert_eq!((&route["route"], &route["window"]["failures"]), (&json!("acp"), &json!(0)), "{route}");
    assert!(program.metrics().sum("lumilink_restarts_total", &[("cause", "runtime")]) >= 12.0);
    assert_eq!(program.metrics().sum("lumilink_restarts_total", &[("cause", "crash")]), 0.0);
}

#[test]
fn drain_counts_no_outcome_although_agents_end_with_it() {
    let mut program = Program::builder().set("drain.timeout_s", 1).set("turn.cancel_grace_s", 1).start();
    let session = program.api.open("ws");
    let prompt_id = {
        let (prompt_id, _stream) = session.is_busy_with("echo started ; ignore-cancel");
        prompt_id
    };
    program.terminate(DEADLINE);
    program.start_supervisor_again();
    let turn = session.ends(&prompt_id);
    assert_eq!(turn["state"], "cancelled", "{turn}");
    let route = program.api.get("/acp/workspaces/ws/protocol").expect(200);
    assert_eq!(route["window"]["failures"], 0, "{route}");
}

/// The address of the separate runtime.
fn runtime_address(program: &Program) -> std::net::SocketAddr {
    program.runtime_url().trim_start_matches("ws://").trim_end_matches("/acp").parse().expect("an address")
}

#[test]
fn runtime_has_probes_without_a_token_and_only_its_own_metrics() {
    let program = Program::builder().separate_runtime("runtime-token-0123456789").start();
    let session = program.api.open("ws");
    let listen = runtime_address(&program);
    for path in ["/livez", "/readyz"] {
        for method in ["GET", "HEAD"] {
            let answer = RawRequest::new(method, path).header("Host", "pod").send(listen);
            assert_eq!(answer.status, 200, "{method} {path}: {answer:?}");
            assert!(!answer.body.contains("token") && !answer.body.contains('/'), "{answer:?}");
        }
        let posted = RawRequest::new("POST", path).header("Host", "pod").send(listen);
        assert_eq!((posted.status, posted.header("allow")), (405, Some("GET, HEAD")), "{path}");
    }
    for path in ["/metrics", "/status", "/livez/"] {
        assert_eq!(RawRequest::new("GET", path).header("Host", "pod").send(listen).status, 401, "{path}");
    }
    let scrape = program.runtime_metrics();
    let ours = scrape.types.keys().filter(|name| name.starts_with("lumilink_"));
    let ours: Vec<_> = ours.map(String::as_str).collect();
    assert_eq!(
        ours,
        [
            "lumilink_agent_jail",
            "lumilink_agent_processes",
            "lumilink_agent_processes_left_total",
            "lumilink_arbiter_lag_seconds",
            "lumilink_arbiter_stalls_total",
            "lumilink_build_info",
            "lumilink_held_conversations"
        ]
    );
    assert_eq!(scrape.sum("lumilink_agent_processes", &[]), 1.0);
    session.post("close", json!({})).expect(200);
}

#[test]
fn readiness_names_a_runtime_that_does_not_answer_without_any_session() {
    let mut program = Program::builder().behind_proxy().start();
    let runtime = |program: &Program| program.api.get("/readyz").expect(200)["runtime"].clone();
    assert!(runtime(&program).is_null());
    program.kill_runtime();
    eventually("readiness names the runtime", || runtime(&program) == "unavailable");
    let health = program.api.get("/acp/health").expect(200);
    assert_eq!((&health["status"], &health["runtime"]["status"]), (&json!("degraded"), &json!("unavailable")));
    assert_eq!(program.metrics().sum("lumilink_runtime_available", &[]), 0.0);
    assert!(program.log().contains("runtime does not answer"));
    program.start_runtime_again();
    eventually("readiness sees the runtime", || runtime(&program).is_null());
    let with_wrong_token =
        Program::builder().set("runtime.url", program.runtime_url()).set("runtime.token", "wrong").start();
    eventually("a wrong token is visible too", || runtime(&with_wrong_token) == "unavailable");
}
