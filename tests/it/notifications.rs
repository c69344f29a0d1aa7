//! Notifications: delivery once per subscriber in scope after the commit, replay of missed ones, and the inbox with
//! its read marks.

use std::fs;

use diesel::{Connection, SqliteConnection, connection::SimpleConnection};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::harness::{
    Api, DEADLINE, Program, Session, Value, eventually, json,
    notifications::{Closed, Refused, Subscriber},
    program::Builder,
    proxy::Mode,
    wait_for,
};

const TENANT: &str = "installationId=tenant-1";

/// A workspace that falls back stays there: the cooldown is longer than any test.
fn held() -> Builder {
    Program::builder().set("window.min_samples", 5).set("recovery.cooldown_s", 1800)
}

fn flip(api: &Api, workspace: &str, verb: &str) {
    let why = json!({"actor": "ada", "reason": "drill"});
    api.post(&format!("/acp/workspaces/{workspace}/{verb}"), why).expect(200);
}

/// Flips the workspace's route `count` times: one notification each.
fn flips(api: &Api, workspace: &str, count: usize) {
    for _ in 0..count {
        let route = api.get(&format!("/acp/workspaces/{workspace}/protocol?{TENANT}")).expect(200);
        flip(api, workspace, if route["route"] == "acp" { "rollback" } else { "restore" });
    }
}

fn notes(session: &Session, kind: &str) -> Vec<Value> {
    session.transcript().into_iter().filter(|entry| entry["eventType"] == kind).collect()
}

fn inbox(api: &Api, query: &str) -> Value {
    api.get(&format!("/acp/notifications?{query}")).expect(200)
}

#[test]
fn fr_007_rollback_and_restore_notify_only_subscribers_in_scope() {
    let program = held().start();
    let session = program.api.open("ws");
    let mut ours = Subscriber::of(&program.api, &format!("{TENANT}&workspaceId=ws"));
    let mut tenants = Subscriber::of(&program.api, TENANT);
    let mut of_session = Subscriber::of(&program.api, &format!("sessionId={}", session.id));
    let mut others = Subscriber::of(&program.api, &format!("{TENANT}&workspaceId=other"));
    let mut strangers = Subscriber::of(&program.api, "installationId=tenant-2");
    flip(&program.api, "ws", "rollback");
    let notification = ours.notification();
    assert_eq!(notification["title"], "Automation update", "{notification}");
    assert_eq!(
        (&notification["severity"], &notification["trigger"]),
        (&json!("error"), &json!("manualOperator")),
        "{notification}"
    );
    assert_eq!(
        (&notification["workspaceId"], &notification["autoDismissMs"]),
        (&json!("ws"), &json!(10_000)),
        "{notification}"
    );
    assert!(notification["body"].as_str().unwrap().contains("HTTP fallback"), "{notification}");
    flip(&program.api, "ws", "restore");
    let end = ours.notification();
    assert_eq!((&end["severity"], &end["seq"]), (&json!("info"), &json!(2)), "{end}");
    for reader in [&mut tenants, &mut of_session] {
        assert_eq!([reader.notification(), reader.notification()], [notification.clone(), end.clone()]);
    }
    // The first notification of the other subscribers is one of their own scope.
    program.api.open("other");
    flip(&program.api, "other", "rollback");
    assert_eq!(others.notification()["workspaceId"], "other");
    let elsewhere = json!({"workspaceId": "ws", "installationId": "tenant-2"});
    program.api.open_with(elsewhere);
    let why = json!({"actor": "ada", "reason": "drill"});
    program.api.post("/acp/workspaces/ws/rollback?installationId=tenant-2", why).expect(200);
    assert_eq!(strangers.notification()["seq"], 1, "each tenant has a sequence of its own");
    let rollback_notes = notes(&session, "rollback");
    assert_eq!(rollback_notes.len(), 2, "{rollback_notes:?}");
    assert_eq!(
        rollback_notes[0]["payload"]["summary"], notification["body"],
        "note and notification have the same text"
    );
    let migrations = program.api.get("/acp/audit/migrations?workspaceId=ws&installationId=tenant-1").expect(200);
    assert_eq!(migrations["items"][1]["migrationId"], notification["causeId"], "{migrations}");
}

#[test]
fn missed_notifications_are_replayed_in_order_before_live_ones() {
    let program = held().start();
    program.api.open("ws");
    let mut first = Subscriber::open(&program.api.base(), TENANT, &[]).unwrap();
    let welcome = first.hello(json!({}));
    assert_eq!((&welcome["cursor"], &welcome["head"]), (&json!(0), &json!(0)), "{welcome}");
    flips(&program.api, "ws", 3);
    let seen: Vec<_> = (0..3).map(|_| first.notification()).collect();
    drop(first);
    flips(&program.api, "ws", 2);
    // The cursor is older than the newest notification received, as if the client had not persisted it in time.
    let mut again = Subscriber::open(&program.api.base(), TENANT, &[]).unwrap();
    let hello = json!({"epoch": welcome["epoch"], "cursor": 1});
    let back = again.hello(hello);
    assert_eq!((&back["cursor"], &back["head"], &back["unread"]), (&json!(1), &json!(5), &json!(5)), "{back}");
    flips(&program.api, "ws", 2);
    let missed: Vec<_> = (0..6).map(|_| again.notification()).collect();
    assert_eq!(missed[..2], seen[1..], "the same notifications under the same ids");
    let seqs: Vec<_> = missed.iter().map(|notification| notification["seq"].as_u64().unwrap()).collect();
    assert_eq!(seqs, [2, 3, 4, 5, 6, 7]);
    again.say(&json!({"type": "ping"}));
    assert_eq!(again.next(), json!({"type": "pong", "cursor": 7}));
    assert!(program.metrics().sum("lumilink_toasts_replayed_total", &[]) >= 4.0);
}

#[test]
fn cursor_from_another_epoch_or_ahead_of_the_head_is_reset() {
    let program = held().start();
    program.api.open("ws");
    flips(&program.api, "ws", 3);
    let mut probe = Subscriber::open(&program.api.base(), TENANT, &[]).unwrap();
    let epoch = probe.hello(json!({}))["epoch"].clone();
    for (hello, reason) in [
        (json!({"epoch": "another", "cursor": 1}), "otherEpoch"),
        (json!({"cursor": 1}), "otherEpoch"),
        (json!({"epoch": epoch, "cursor": 4}), "ahead"),
    ] {
        let mut subscriber = Subscriber::open(&program.api.base(), TENANT, &[]).unwrap();
        let welcome = subscriber.hello(hello);
        assert_eq!(welcome["cursor"], 3, "{welcome}");
        let reset = subscriber.next();
        assert_eq!(
            (&reset["type"], &reset["reason"], &reset["cursor"]),
            (&json!("reset"), &json!(reason), &json!(3))
        );
        assert!(program.metrics().sum("lumilink_toast_resets_total", &[("reason", reason)]) > 0.0);
    }
}

#[test]
fn inbox_pages_counts_and_records_reads_per_user() {
    let program = held().start();
    program.api.open("ws");
    flips(&program.api, "ws", 4);
    let all = inbox(&program.api, TENANT);
    let seqs = |page: &Value| {
        page["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|item| item["toast"]["seq"].as_u64().unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!((seqs(&all), &all["unread"], &all["head"]), (vec![4, 3, 2, 1], &json!(4), &json!(4)), "{all}");
    let id = all["items"][1]["toast"]["id"].as_str().unwrap().to_owned();
    let ack = |body: Value| program.api.post(&format!("/acp/notifications/{id}/ack"), body);
    // For one user, then for all users.
    let ann = json!({"installationId": "tenant-1", "userId": "ann"});
    assert_eq!(ack(ann.clone()).expect(200)["unread"], 3);
    assert_eq!(ack(ann).expect(200)["unread"], 3, "a second ack changes nothing");
    let of_ann = inbox(&program.api, &format!("{TENANT}&userId=ann&unreadOnly=true"));
    assert_eq!((seqs(&of_ann), &of_ann["unread"]), (vec![4, 2, 1], &json!(3)), "{of_ann}");
    assert_eq!(inbox(&program.api, &format!("{TENANT}&userId=bob"))["unread"], 4);
    assert_eq!(ack(json!({"installationId": "tenant-1"})).expect(200)["unread"], 3);
    assert_eq!(inbox(&program.api, &format!("{TENANT}&userId=bob"))["items"][1]["read"], true);
    ack(json!({"installationId": "tenant-2"})).problem(404, "not_found");
    ack(json!({"installationid": "tenant-1"})).problem(400, "invalid_request");
    program.api.post("/acp/notifications/no-id/ack", json!({"installationId": "tenant-1"})).problem(404, "not_found");
    let first = inbox(&program.api, &format!("{TENANT}&limit=3"));
    let cursor = first["nextCursor"].as_str().unwrap();
    let second = inbox(&program.api, &format!("{TENANT}&limit=3&cursor={cursor}"));
    assert_eq!((seqs(&first), seqs(&second)), (vec![4, 3, 2], vec![1]));
    // Over the WebSocket too.
    let mut subscriber = Subscriber::open(&program.api.base(), &format!("{TENANT}&userId=bob"), &[]).unwrap();
    assert_eq!(subscriber.hello(json!({}))["unread"], 3);
    let id = &all["items"][0]["toast"]["id"];
    subscriber.say(&json!({"type": "ack", "id": id}));
    assert_eq!(subscriber.next(), json!({"type": "ack", "id": id, "found": true, "unread": 2}));
    subscriber.say(&json!({"type": "ack", "id": "01890a5d-ac96-774b-bcce-b302099a8057"}));
    assert_eq!(subscriber.next()["found"], false);
    // Many acks in a row, as from a page that marks everything as read.
    let ids: Vec<_> =
        (0..200).map(|_| uuid::Uuid::now_v7().to_string()).chain([id.as_str().unwrap().into()]).collect();
    for id in &ids {
        subscriber.say(&json!({"type": "ack", "id": id}));
    }
    for (n, id) in ids.iter().enumerate() {
        assert_eq!(subscriber.next(), json!({"type": "ack", "id": id, "found": n == 200, "unread": 2}));
    }
}

#[test]
fn ticket_refused_for_lack_of_capacity_stays_valid() {
    let program = held().set("notifications.max_subscribers", 1).start();
    let ticket = program.api.post("/acp/notifications/ticket", json!({"installationId": "tenant-1"})).expect(201);
    let query = format!("ticket={}", ticket["ticket"].as_str().unwrap());
    let mut first = Subscriber::open(&program.api.base(), TENANT, &[]).unwrap();
    first.hello(json!({}));
    let refused =
        Subscriber::open(&program.api.base(), &query, &[]).err().expect("the limit of subscribers is reached");
    assert_eq!(refused.status, 503);
    drop(first);
    eventually("the subscriber is gone", || program.metrics().sum("lumilink_toast_subscribers", &[]) == 0.0);
    Subscriber::open(&program.api.base(), &query, &[]).unwrap().hello(json!({}));
}

#[test]
fn ticket_admits_once_and_missing_or_wrong_credentials_are_refused() {
    let program = held().token("a-token-that-is-long-enough").start();
    let base = program.api.base();
    let open = |query: &str, headers: &[(&str, &str)]| Subscriber::open(&base, query, headers);
    let status = |refused: Result<Subscriber, Refused>| refused.err().map_or(101, |refused| refused.status);
    assert_eq!(status(open(TENANT, &[])), 401);
    assert_eq!(status(open(TENANT, &[("authorization", "Bearer wrong")])), 401);
    assert_eq!(status(open(&format!("{TENANT}&ticket=wrong"), &[])), 401);
    assert_eq!(status(open(&format!("{TENANT}&token=a-token-that-is-long-enough"), &[])), 401);
    let bearer = [("authorization", "Bearer a-token-that-is-long-enough")];
    assert_eq!(status(open(TENANT, &[bearer[0], ("origin", "https://evil.example")])), 403);
    assert_eq!(status(open("", &bearer)), 400);
    assert_eq!(
        status(open("installationId=tenant-1&workspaceid=ws", &bearer)),
        400,
        "a misspelt parameter is refused, not ignored"
    );
    assert_eq!(status(open("sessionId=01890a5d-ac96-774b-bcce-b302099a8057", &bearer)), 404);
    open(TENANT, &bearer).unwrap().hello(json!({}));

    let scope = json!({"installationId": "tenant-1", "workspaceId": "ws"});
    let ticket = |body: &Value| {
        let ticket = program.api.post("/acp/notifications/ticket", body.clone()).expect(201);
        ticket["ticket"].as_str().unwrap().to_owned()
    };
    let one = ticket(&scope);
    open(&format!("ticket={one}"), &[]).unwrap().hello(json!({}));
    assert_eq!(status(open(&format!("ticket={one}"), &[])), 401, "a ticket is valid once");
    let other = ticket(&scope);
    assert_eq!(
        status(open(&format!("installationId=tenant-2&ticket={other}"), &[])),
        401,
        "a ticket admits only its own scope"
    );
    let two = format!("lumilink.notifications.v1, lumilink.ticket.{}", ticket(&scope));
    let subscriber = open("", &[("sec-websocket-protocol", &two)]).unwrap();
    assert_eq!(subscriber.protocol.as_deref(), Some("lumilink.notifications.v1"));
    // `a-token-that-is-long-enough` in base64url.
    let token = "lumilink.notifications.v1, lumilink.bearer.YS10b2tlbi10aGF0LWlzLWxvbmctZW5vdWdo";
    open(TENANT, &[("sec-websocket-protocol", token)]).unwrap().hello(json!({}));
    assert!(!program.log().contains(&one), "no ticket is logged");
}

#[test]
fn ticket_expires_and_its_socket_closes_when_the_grant_expires() {
    let ticket = |program: &Program| {
        let ticket = program.api.post("/acp/notifications/ticket", json!({"installationId": "tenant-1"})).expect(201);
        let expires = OffsetDateTime::parse(ticket["expiresAt"].as_str().unwrap(), &Rfc3339).unwrap();
        (format!("ticket={}", ticket["ticket"].as_str().unwrap()), expires)
    };
    let short_ttl = held().set("notifications.ticket_ttl_s", 1).start();
    let (old, expires) = ticket(&short_ttl);
    let program = held().set("notifications.ticket_session_s", 1).start();
    let mut subscriber = Subscriber::open(&program.api.base(), &ticket(&program).0, &[]).unwrap();
    subscriber.hello(json!({}));
    let (frames, closed) = subscriber.until_closed();
    assert_eq!(
        (closed.code, &frames[0]["type"], &frames[0]["code"]),
        (Some(4001), &json!("bye"), &json!(4001)),
        "{frames:?}"
    );
    assert_eq!(program.metrics().sum("lumilink_toast_evictions_total", &[("reason", "expired")]), 1.0);
    eventually("the other ticket has expired", || OffsetDateTime::now_utc() > expires);
    let refused = Subscriber::open(&short_ttl.api.base(), &old, &[]).err().unwrap();
    assert_eq!((refused.status, &refused.problem["code"]), (401, &json!("unauthorized")), "{refused:?}");
}

#[test]
fn browser_socket_with_a_token_expires_and_server_socket_stays_open() {
    let program = held().token("a-token-that-is-long-enough").set("notifications.ticket_session_s", 1).start();
    let open = |header| {
        let mut subscriber = Subscriber::open(&program.api.base(), TENANT, &[header]).unwrap();
        subscriber.hello(json!({}));
        subscriber
    };
    let mut server = open(("authorization", "Bearer a-token-that-is-long-enough"));
    let token = "lumilink.notifications.v1, lumilink.bearer.YS10b2tlbi10aGF0LWlzLWxvbmctZW5vdWdo";
    let (_, closed) = open(("sec-websocket-protocol", token)).until_closed();
    assert_eq!(closed.code, Some(4001), "{closed:?}");
    server.say(&json!({"type": "ping"}));
    assert_eq!(server.next()["type"], "pong");
}

#[test]
fn malformed_frame_closes_the_socket_with_a_reason() {
    let program = held().start();
    let base = program.api.base();
    let long = json!({"type": "hello", "epoch": "x".repeat(5000)}).to_string();
    for (text, reason) in [
        ("nonsense", "not a frame"),
        (r#"{"type":"toast"}"#, "not a frame"),
        (r#"{"type":"ping"}"#, "send hello first"),
        (r#"{"type":"hello","version":2}"#, "version 1"),
        (long.as_str(), "4096 bytes"),
    ] {
        let mut subscriber = Subscriber::open(&base, TENANT, &[]).unwrap();
        subscriber.say_text(text);
        let (frames, closed) = subscriber.until_closed();
        assert_eq!(closed.code, Some(1008), "{text:.60}: {closed:?}");
        assert!(closed.reason.contains(reason), "{text:.60}: {closed:?}");
        assert!(frames.iter().all(|frame| frame["type"] == "bye"), "{frames:?}");
    }
    let mut twice = Subscriber::of(&program.api, TENANT);
    twice.say(&json!({"type": "hello"}));
    assert_eq!(twice.until_closed().1, Closed { code: Some(1008), reason: "hello may be sent once".into() });
    assert_eq!(program.metrics().sum("lumilink_toast_evictions_total", &[("reason", "badFrame")]), 6.0);
    eventually("no subscriber is left", || program.metrics().sum("lumilink_toast_subscribers", &[]) == 0.0);
}

#[test]
fn drain_sends_bye_and_its_cursor_resumes_after_a_restart() {
    let mut program = held().start();
    program.api.open("ws");
    let mut subscriber = Subscriber::open(&program.api.base(), TENANT, &[]).unwrap();
    let epoch = subscriber.hello(json!({}))["epoch"].clone();
    flips(&program.api, "ws", 1);
    let seen = subscriber.notification();
    assert_eq!(program.terminate(DEADLINE), Some(0));
    let (frames, closed) = subscriber.until_closed();
    assert_eq!(closed.code, Some(1001), "{closed:?}");
    assert_eq!((&frames[0]["type"], &frames[0]["cursor"]), (&json!("bye"), &seen["seq"]), "{frames:?}");
    program.start_supervisor_again();
    flips(&program.api, "ws", 1);
    let mut again = Subscriber::open(&program.api.base(), TENANT, &[]).unwrap();
    let welcome = again.hello(json!({"epoch": epoch, "cursor": frames[0]["cursor"]}));
    assert_eq!(welcome["epoch"], epoch, "the epoch identifies the database and survives the restart");
    assert!(again.next()["seq"].as_u64().unwrap() > seen["seq"].as_u64().unwrap());
}

#[test]
fn fr_010_capacity_alert_reaches_operators_and_no_tenant() {
    let program = Program::builder()
        .set("capacity.max_sessions", 4)
        .set("capacity.warn_bp", 5000)
        .set("capacity.critical_bp", 10_000)
        .set("capacity.resolve_bp", 4000)
        .set("capacity.resolve_after_s", 0)
        .start();
    let mut operators = Subscriber::of(&program.api, "stream=operators");
    let mut tenant = Subscriber::of(&program.api, TENANT);
    let sessions: Vec<_> = (0..2).map(|n| program.api.open(&format!("ws-{n}"))).collect();
    let warned = operators.notification();
    assert_eq!((&warned["severity"], &warned["trigger"]), (&json!("warning"), &json!("capacity")), "{warned}");
    assert_eq!(warned["workspaceId"], Value::Null, "{warned}");
    assert!(warned["body"].as_str().unwrap().contains("2 of 4"), "{warned}");
    for session in sessions {
        program.api.post("/acp/session/close", json!({"sessionId": session.id})).expect(200);
    }
    assert_eq!(operators.notification()["severity"], "info");
    program.api.open("ws");
    flip(&program.api, "ws", "rollback");
    assert_eq!(tenant.notification()["trigger"], "manualOperator", "the tenant's first notification");
    let alerts = program.api.get("/acp/audit/capacity-alerts").expect(200);
    assert_eq!(alerts["items"].as_array().unwrap().last().unwrap()["eventId"], warned["causeId"], "{alerts}");
    let refused = Subscriber::open(&program.api.base(), &format!("stream=operators&{TENANT}"), &[]).err().unwrap();
    assert_eq!(refused.status, 400);
}

#[test]
fn failed_session_raises_one_notification_and_one_note() {
    let program = Program::builder().set("supervision.max_restarts", 1).set("window.min_samples", 1000).start();
    let session = program.api.open_on_acp("ws");
    let mut of_user = Subscriber::of(&program.api, &format!("{TENANT}&workspaceId=ws"));
    while session.state()["state"] != "failed" {
        session.prompt("crash");
    }
    let notification = of_user.notification();
    assert_eq!(
        (&notification["severity"], &notification["trigger"]),
        (&json!("error"), &json!("sessionFailed")),
        "{notification}"
    );
    let suffix = &session.id[session.id.len() - 6..];
    assert_eq!(notification["sessionSuffix"], suffix, "{notification}");
    let matching: Vec<_> = notes(&session, "info")
        .into_iter()
        .filter(|note| note["payload"]["summary"] == notification["body"])
        .collect();
    assert_eq!(matching.len(), 1, "{matching:?}");
    assert_eq!(inbox(&program.api, TENANT)["unread"], 1, "there is no other notification");
}

/// Runs turns until the watcher receives telemetry of one. Telemetry from before the hub has registered the watcher
/// is not delivered to it.
fn first_telemetry(session: &Session, watcher: &mut Subscriber) -> Value {
    wait_for(DEADLINE, "telemetry of a running turn", || {
        session.completes("echo hello");
        watcher.say(&json!({"type": "ping"}));
        let mut frames = Vec::new();
        loop {
            let frame = watcher.next();
            if frame["type"] == "pong" {
                break;
            }
            frames.push(frame);
        }
        frames.into_iter().find(|frame| frame["state"] == "running")
    })
}

#[test]
fn fr_004_telemetry_reaches_only_subscribers_that_request_it() {
    let program = held().start();
    let session = program.api.open("ws");
    let mut watcher = Subscriber::open(&program.api.base(), &format!("{TENANT}&workspaceId=ws"), &[]).unwrap();
    watcher.hello(json!({"telemetry": true}));
    let mut reader = Subscriber::of(&program.api, TENANT);
    let running = first_telemetry(&session, &mut watcher);
    assert_eq!((&running["type"], &running["connection"]), (&json!("telemetry"), &json!("connected")), "{running}");
    assert_eq!((&running["workspaceId"], &running["sessionId"]), (&json!("ws"), &json!(session.id)), "{running}");
    assert!(running["promptId"].is_string(), "{running}");
    flip(&program.api, "ws", "rollback");
    assert_eq!(reader.next()["type"], "toast", "a subscriber without the option gets no telemetry");
    let mut connection = Value::Null;
    while connection != "rolledBack" {
        connection = watcher.next()["connection"].clone();
    }
    // A later subscriber gets the current state, although nothing changes any more.
    let mut later = Subscriber::open(&program.api.base(), TENANT, &[]).unwrap();
    later.hello(json!({"telemetry": true}));
    let seen = later.next();
    assert_eq!((&seen["type"], &seen["sessionId"]), (&json!("telemetry"), &json!(session.id)), "{seen}");
    assert_eq!((&seen["state"], &seen["connection"]), (&json!("idle"), &json!("rolledBack")), "{seen}");
}

#[test]
fn subscriber_that_ignores_bye_does_not_delay_shutdown() {
    let mut program = held().start();
    let silent = Subscriber::of(&program.api, TENANT);
    let mut before_hello = Subscriber::open(&program.api.base(), TENANT, &[]).unwrap();
    assert_eq!(program.terminate(DEADLINE), Some(0));
    // A subscriber that has not sent hello gets a bye as well.
    let (frames, closed) = before_hello.until_closed();
    assert_eq!((closed.code, &frames[0]["type"]), (Some(1001), &json!("bye")), "{frames:?}");
    drop(silent);
}

#[test]
fn broken_connection_raises_a_notification_while_the_turn_continues_on_both_routes() {
    for route in ["acp", "http"] {
        let program = held().behind_proxy().start();
        let session = program.api.open("ws");
        let mut subscriber = Subscriber::of(&program.api, TENANT);
        if route == "http" {
            flip(&program.api, "ws", "rollback");
            subscriber.notification();
        }
        let mut events = program.api.events(&format!("/acp/session/{}/events?from=live", session.id));
        // The command ends when the test creates the file.
        let prompt_id = session.starts("run until test -e heard; do sleep 0.05; done");
        events.until("the agent works", |event| event.name == "update");
        program.proxy().set_open(Mode::Reset);
        let notification = subscriber.notification();
        assert_eq!(
            (&notification["trigger"], &notification["severity"]),
            (&json!("reconnecting"), &json!("warning")),
            "{notification}"
        );
        fs::write(session.path().join("heard"), "").unwrap();
        let ended = session.ends(&prompt_id);
        assert_eq!((&ended["state"], &ended["result"]["meta"]["protocol"]), (&json!("completed"), &json!(route)));
        let matching: Vec<_> = notes(&session, "info")
            .into_iter()
            .filter(|note| note["payload"]["summary"] == notification["body"])
            .collect();
        assert_eq!(matching.len(), 1, "{route}: {matching:?}");
    }
}

#[test]
fn rollback_storm_is_one_operator_notification_and_one_note_per_workspace() {
    let mut program = held()
        .set("recovery.cooldown_s", 1)
        .set("recovery.jitter_bp", 0)
        .set("recovery.canary_steps_bp", "[10000]")
        .set("recovery.close_after_successes", 1)
        .start();
    program.expect_error("many workspaces fall back at once");
    let mut operators = Subscriber::of(&program.api, "stream=operators");
    let names: Vec<_> = (0..6).map(|n| format!("ws-{n}")).collect();
    let sessions: Vec<_> = names.iter().map(|name| program.api.open(name)).collect();
    let route = |name: &str| {
        let route = program.api.get(&format!("/acp/workspaces/{name}/protocol?{TENANT}")).expect(200);
        route["route"].as_str().unwrap().to_owned()
    };
    for (name, session) in names.iter().zip(&sessions) {
        for _ in 0..5 {
            session.prompt("crash").problem(502, "agent_crashed");
            eventually("the session is usable again", || session.state()["state"] == "idle");
            if route(name) == "http" {
                break;
            }
        }
        eventually(&format!("{name} is rolled back automatically"), || route(name) == "http");
    }
    let storm = operators.notification();
    assert_eq!((&storm["trigger"], &storm["severity"]), (&json!("systemicRollback"), &json!("error")), "{storm}");
    assert!(storm["body"].as_str().unwrap().starts_with("5 of 6 workspaces"), "{storm}");
    assert_eq!(
        inbox(&program.api, "stream=operators")["items"].as_array().unwrap().len(),
        1,
        "one for all workspaces"
    );
    // The first four rollbacks raised a notification each; the fifth started the storm.
    let notified = |trigger: &str| {
        let inbox = inbox(&program.api, TENANT);
        let notifications = inbox["items"].as_array().unwrap().iter().map(|item| &item["toast"]);
        let of_trigger = notifications.filter(|notification| notification["trigger"] == trigger);
        let mut names: Vec<_> =
            of_trigger.map(|notification| notification["workspaceId"].as_str().unwrap().to_owned()).collect();
        names.sort_unstable();
        names
    };
    assert_eq!(notified("autoThreshold"), names[..4]);
    for session in &sessions {
        assert_eq!(notes(session, "rollback").len(), 1);
    }
    // Only workspaces with a rollback notification get a recovery notification; the others have the note in their transcripts.
    for (name, session) in names.iter().zip(&sessions) {
        eventually("ACP is restored", || {
            session.completes("echo hello");
            route(name) == "acp"
        });
        assert_eq!(notes(session, "rollback").len(), 2, "{name}");
    }
    assert_eq!(notified("recovered"), names[..4]);
    assert_eq!(inbox(&program.api, TENANT)["head"], 8, "there is no other notification");
}

#[test]
fn fr_004_telemetry_estimates_when_a_turn_ends() {
    let program = held().start();
    let session = program.api.open("ws");
    let mut watcher = Subscriber::open(&program.api.base(), &format!("sessionId={}", session.id), &[]).unwrap();
    watcher.hello(json!({"telemetry": true}));
    first_telemetry(&session, &mut watcher);
    let prompt_id = session.starts("plan 10 200");
    let progress = loop {
        let frame = watcher.next();
        let progress = &frame["progress"];
        if frame["type"] == "telemetry" && progress["planDone"].as_u64().is_some_and(|done| (1..10).contains(&done)) {
            break progress.clone();
        }
    };
    let number = |name: &str| progress[name].as_f64().unwrap_or_else(|| panic!("{name}: {progress}"));
    let (done, total) = (number("planDone"), number("planTotal"));
    // Both are truncated to whole milliseconds; the truncation of the elapsed time is multiplied by the ratio of open
    // to done entries.
    let (open_per_done, elapsed, eta) = ((total - done) / done, number("elapsedMs"), number("etaMs"));
    let shortest = elapsed * open_per_done;
    let longest = (elapsed + 1.0) * open_per_done;
    assert!((shortest.floor()..=longest).contains(&eta), "{progress}");
    assert_eq!(session.ends(&prompt_id)["state"], "completed");
}

#[test]
fn unreadable_notification_resets_subscribers_and_is_skipped_by_list_and_stream() {
    let mut program = held().start();
    program.expect_error("a notification cannot be read and is left out");
    program.api.open("ws");
    let mut reader = Subscriber::open(&program.api.base(), TENANT, &[]).unwrap();
    let epoch = reader.hello(json!({}))["epoch"].clone();
    flips(&program.api, "ws", 3);
    let seqs: Vec<_> = (0..3).map(|_| reader.notification()["seq"].as_u64().unwrap()).collect();
    let database = program.folder.path().join("data/lumilink.db");
    let mut other = SqliteConnection::establish(database.to_str().unwrap()).unwrap();
    let broken = format!("UPDATE notifications SET trigger = 'ofALaterVersion' WHERE seq = {}", seqs[1]);
    other.batch_execute(&format!("PRAGMA busy_timeout = 5000; {broken}")).unwrap();
    let mut again = Subscriber::open(&program.api.base(), TENANT, &[]).unwrap();
    again.hello(json!({"epoch": epoch, "cursor": seqs[0] - 1}));
    assert_eq!(again.next()["seq"], seqs[0]);
    let reset = json!({"type": "reset", "reason": "unreadable", "epoch": epoch, "cursor": seqs[1]});
    assert_eq!(again.next(), reset);
    assert_eq!(again.next()["seq"], seqs[2]);
    flips(&program.api, "ws", 1);
    assert_eq!(again.next()["seq"], seqs[2] + 1);
    let list = inbox(&program.api, TENANT);
    let listed: Vec<_> = list["items"].as_array().unwrap().iter().map(|it| it["toast"]["seq"].clone()).collect();
    assert_eq!(json!(listed), json!([seqs[2] + 1, seqs[2], seqs[0]]), "{list}");
    assert_eq!(list["unreadable"], 1, "{list}");
    assert_eq!(program.metrics().sum("lumilink_toast_resets_total", &[("reason", "unreadable")]), 1.0);
}
