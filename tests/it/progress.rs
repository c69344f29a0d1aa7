//! Progress events: the completed part of a turn's plan and its estimated end.

use diesel::{Connection, RunQueryDsl, SqliteConnection};

use crate::harness::{Program, Session, Value, api::result_of, json, program::Folder, sse::Event};

const MINUTE_MS: f64 = 60_000.0;

/// A session in a new workspace that is pinned to `route`.
fn pinned(program: &Program, route: &str) -> Session {
    let session = program.api.open(route);
    let pin = json!({"pin": {"protocol": route}, "actor": "a test", "reason": "for both routes"});
    program.api.call("PUT", &format!("/acp/workspaces/{route}/protocol")).json(&pin).send().expect(200);
    session
}

fn progress(events: &[Event]) -> Vec<&Value> {
    events.iter().filter(|event| event.name == "progress").map(|event| &event.data["update"]).collect()
}

/// The first estimate of a turn of 60 s, which is then cancelled.
fn first_estimate(session: &Session) -> Value {
    let mut stream = session.streams("sleep 60");
    let seen = stream.until("an estimate", |event| event.name == "progress");
    assert!(session.cancel());
    stream.rest();
    seen.last().expect("an event").data["update"].clone()
}

#[test]
fn fr_004_each_plan_update_yields_an_estimate_on_both_routes() {
    let program = Program::start();
    for route in ["acp", "http"] {
        let session = pinned(&program, route);
        let events = session.streams("plan 4 100").rest();
        let updates = progress(&events);
        assert_eq!(updates.len(), 5, "{route}: {events:#?}");
        for (done, update) in updates.iter().enumerate() {
            let keys: Vec<_> = update.as_object().expect("an object").keys().collect();
            assert_eq!(keys, ["elapsedMs", "etaMs", "planDone", "planTotal"], "{route}");
            assert_eq!((&update["planDone"], &update["planTotal"]), (&json!(done), &json!(4)), "{route}");
            let elapsed = update["elapsedMs"].as_u64().expect("a number");
            assert!(elapsed >= 100 * done as u64, "{route}: {update}");
            if done == 0 {
                assert_eq!(update["etaMs"], Value::Null, "no estimate before the first entry is done");
                continue;
            }
            let left = 4 - done as u64;
            let expected = elapsed * left / done as u64;
            let eta = update["etaMs"].as_u64().expect("a number");
            // The elapsed time is truncated to milliseconds, which is multiplied by the open entries.
            assert!((expected..=expected + left + 1).contains(&eta), "{route}: {update}");
        }
        let places = |name: &str, kind: &str| -> Vec<usize> {
            let is_it = |event: &Event| {
                event.name == name && (kind.is_empty() || event.data["update"]["sessionUpdate"] == kind)
            };
            events.iter().enumerate().filter(|(_, event)| is_it(event)).map(|(place, _)| place).collect()
        };
        let after_plans: Vec<_> = places("update", "plan").iter().map(|place| place + 1).collect();
        assert_eq!(places("progress", ""), after_plans, "{route}: each estimate follows its plan directly");
        let of_turn = |event: &&Event| event.name == "progress";
        let prompt_id = &events[0].data["promptId"];
        assert!(
            events
                .iter()
                .filter(of_turn)
                .all(|it| &it.data["promptId"] == prompt_id && it.data["type"] == "progress")
        );
    }
}

/// Makes every ended turn in the database one minute longer.
fn lengthen_ended_turns(folder: &Folder) {
    let path = folder.path().join("data/lumilink.db");
    let mut connection = SqliteConnection::establish(path.to_str().expect("UTF-8")).expect("the database is there");
    let earlier = format!("UPDATE prompts SET accepted_us = accepted_us - {} WHERE ended_us > 0", MINUTE_MS * 1000.0);
    assert!(diesel::sql_query(earlier).execute(&mut connection).expect("the rows are changed") > 0);
}

fn took_ms(result: &Value) -> f64 {
    result["meta"]["timings"]["totalMs"].as_f64().expect("a number")
}

/// Fails unless the first estimate of a turn is `expected_ms`, up to the truncation to milliseconds.
fn assert_first_estimate(session: &Session, expected_ms: f64) {
    let estimate = first_estimate(session);
    let sum = estimate["etaMs"].as_f64().expect("a number") + estimate["elapsedMs"].as_f64().expect("a number");
    assert!((sum - expected_ms).abs() < 3.0, "{estimate}, expected {expected_ms} ms");
    assert_eq!((&estimate["planDone"], &estimate["planTotal"]), (&Value::Null, &Value::Null));
}

#[test]
fn fr_004_long_turn_is_estimated_from_history_on_both_routes_and_after_restart() {
    let routes = ["acp", "http"];
    let program = Program::start();
    let took = routes.map(|route| {
        let result = pinned(&program, route).completes("echo hello");
        assert_eq!(result["meta"]["protocol"], route);
        took_ms(&result)
    });
    let folder = program.stop();
    // A long turn without the wait for one.
    lengthen_ended_turns(&folder);
    let program = Program::builder().folder(&folder).start();
    for (route, took) in routes.into_iter().zip(took) {
        let session = program.api.open(route);
        let long = MINUTE_MS + took;
        assert_first_estimate(&session, long);
        // Turns since the restart count as well, also those of other sessions.
        let result = session.completes("echo hello");
        assert_eq!(result["meta"]["protocol"], route);
        let median = f64::midpoint(long, took_ms(&result));
        assert_first_estimate(&session, median);
        assert_first_estimate(&program.api.open(route), median);
    }
}

#[test]
fn overdue_turn_has_no_estimate_until_part_of_its_plan_is_done() {
    let program = Program::start();
    let session = program.api.open("ws");
    let usual_ms = took_ms(&session.completes("sleep 0.5"));
    let longer_s = usual_ms / 1000.0 + 0.1;
    let events = session.streams(&format!("plan 1 10 ; sleep {longer_s} ; plan 2 20")).rest();
    // Without the estimate that may come at the start, before there is a plan.
    let updates: Vec<_> = progress(&events).into_iter().filter(|update| !update["planTotal"].is_null()).collect();
    let done: Vec<_> = updates.iter().map(|update| update["planDone"].as_u64().expect("a number")).collect();
    assert_eq!(done, [0, 1, 0, 1, 2], "{events:#?}");
    let known: Vec<_> = updates.iter().map(|update| !update["etaMs"].is_null()).collect();
    // The first update has an estimate only if the usual time has not passed yet, which depends on the machine.
    let is_usual = updates[0]["elapsedMs"].as_f64().expect("a number") < usual_ms;
    assert_eq!(known, [is_usual, true, false, true, true], "{events:#?}");
}

#[test]
fn short_turns_and_turns_without_history_emit_no_progress() {
    let program = Program::start();
    let session = program.api.open("ws");
    let mut longest_ms = 0.0_f64;
    for _ in 0..3 {
        let events = session.streams("echo a ; sleep 0.05").rest();
        // A busy machine may have made an earlier turn long, which permits an estimate.
        assert!(progress(&events).is_empty() || longest_ms > 1000.0, "{events:#?}");
        longest_ms = longest_ms.max(took_ms(result_of(&program.api, &events)));
    }
    let (_, mut stream) = program.api.open("other").is_busy_with("echo started ; sleep 1.2");
    assert!(progress(&stream.rest()).is_empty());
}
