//! How a turn gets on and when it will have ended, as events of its session.

use diesel::{Connection, RunQueryDsl, SqliteConnection};

use crate::harness::{Program, Session, Value, api::result_of, json, program::Folder, sse::Event};

const MINUTE_MS: f64 = 60_000.0;

/// A session in a workspace of its own that is pinned to a route.
fn pinned(program: &Program, route: &str) -> Session {
    let session = program.api.open(route);
    let pin = json!({"pin": {"protocol": route}, "actor": "a test", "reason": "for both routes"});
    program.api.call("PUT", &format!("/acp/workspaces/{route}/protocol")).json(&pin).send().expect(200);
    session
}

fn progress(events: &[Event]) -> Vec<&Value> {
    events.iter().filter(|event| event.name == "progress").map(|event| &event.data["update"]).collect()
}

/// The first estimate of a turn that would take a minute, which is cancelled then.
fn first_estimate(session: &Session) -> Value {
    let mut stream = session.streams("sleep 60");
    let seen = stream.until("an estimate", |event| event.name == "progress");
    assert!(session.cancel());
    stream.rest();
    seen.last().expect("an event").data["update"].clone()
}

#[test]
fn fr_004_each_plan_brings_an_estimate_on_both_routes() {
    let program = Program::start();
    for route in ["acp", "http"] {
        let session = pinned(&program, route);
        let events = session.streams("plan 4 100").rest();
        let told = progress(&events);
        assert_eq!(told.len(), 5, "{route}: {events:#?}");
        for (done, told) in told.iter().enumerate() {
            let keys: Vec<_> = told.as_object().expect("an object").keys().collect();
            assert_eq!(keys, ["elapsedMs", "etaMs", "planDone", "planTotal"], "{route}");
            assert_eq!((&told["planDone"], &told["planTotal"]), (&json!(done), &json!(4)), "{route}");
            let elapsed = told["elapsedMs"].as_u64().expect("a number");
            assert!(elapsed >= 100 * done as u64, "{route}: {told}");
            if done == 0 {
                assert_eq!(told["etaMs"], Value::Null, "nothing is known yet");
                continue;
            }
            let left = 4 - done as u64;
            let expected = elapsed * left / done as u64;
            let eta = told["etaMs"].as_u64().expect("a number");
            // What was cut off the milliseconds that have passed, for each entry.
            assert!((expected..=expected + left + 1).contains(&eta), "{route}: {told}");
        }
        let places = |name: &str, kind: &str| -> Vec<usize> {
            let is_it = |event: &Event| {
                event.name == name && (kind.is_empty() || event.data["update"]["sessionUpdate"] == kind)
            };
            events.iter().enumerate().filter(|(_, event)| is_it(event)).map(|(place, _)| place).collect()
        };
        let after_plans: Vec<_> = places("update", "plan").iter().map(|place| place + 1).collect();
        assert_eq!(places("progress", ""), after_plans, "{route}: each stands right behind its plan");
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

/// Lets every turn that has ended have begun a minute earlier.
fn took_a_minute_more(folder: &Folder) {
    let path = folder.path().join("data/lumilink.db");
    let mut connection = SqliteConnection::establish(path.to_str().expect("UTF-8")).expect("the database is there");
    let earlier = format!("UPDATE prompts SET accepted_us = accepted_us - {} WHERE ended_us > 0", MINUTE_MS * 1000.0);
    assert!(diesel::sql_query(earlier).execute(&mut connection).expect("the rows are changed") > 0);
}

fn took_ms(result: &Value) -> f64 {
    result["meta"]["timings"]["totalMs"].as_f64().expect("a number")
}

/// The estimate that a turn begins with says this, but for what is cut off the milliseconds.
fn is_estimated(session: &Session, expected_ms: f64) {
    let told = first_estimate(session);
    let sum = told["etaMs"].as_f64().expect("a number") + told["elapsedMs"].as_f64().expect("a number");
    assert!((sum - expected_ms).abs() < 3.0, "{told}, and it is {expected_ms} ms");
    assert_eq!((&told["planDone"], &told["planTotal"]), (&Value::Null, &Value::Null));
}

#[test]
fn fr_004_a_long_turn_is_estimated_by_those_before_it_on_both_routes_and_after_a_restart() {
    let routes = ["acp", "http"];
    let program = Program::start();
    let took = routes.map(|route| {
        let result = pinned(&program, route).completes("echo hello");
        assert_eq!(result["meta"]["protocol"], route);
        took_ms(&result)
    });
    let folder = program.stop();
    // A long turn that nobody has to wait for.
    took_a_minute_more(&folder);
    let program = Program::builder().folder(&folder).start();
    for (route, took) in routes.into_iter().zip(took) {
        let session = program.api.open(route);
        let long = MINUTE_MS + took;
        is_estimated(&session, long);
        // Those of this process count beside it, whosever they are.
        let result = session.completes("echo hello");
        assert_eq!(result["meta"]["protocol"], route);
        let median = f64::midpoint(long, took_ms(&result));
        is_estimated(&session, median);
        is_estimated(&program.api.open(route), median);
    }
}

#[test]
fn a_turn_that_takes_longer_than_usual_has_no_estimate_until_a_part_of_its_plan_is_done() {
    let program = Program::start();
    let session = program.api.open("ws");
    let usual_ms = took_ms(&session.completes("sleep 0.5"));
    let longer_s = usual_ms / 1000.0 + 0.1;
    let events = session.streams(&format!("plan 1 10 ; sleep {longer_s} ; plan 2 20")).rest();
    // Beside what may be told when it begins.
    let told: Vec<_> = progress(&events).into_iter().filter(|told| !told["planTotal"].is_null()).collect();
    let done: Vec<_> = told.iter().map(|told| told["planDone"].as_u64().expect("a number")).collect();
    assert_eq!(done, [0, 1, 0, 1, 2], "{events:#?}");
    let known: Vec<_> = told.iter().map(|told| !told["etaMs"].is_null()).collect();
    // The first one as long as the usual time has not passed, on a machine that is that slow.
    let is_usual = told[0]["elapsedMs"].as_f64().expect("a number") < usual_ms;
    assert_eq!(known, [is_usual, true, false, true, true], "{events:#?}");
}

#[test]
fn short_turns_and_those_of_which_nothing_is_known_tell_no_progress() {
    let program = Program::start();
    let session = program.api.open("ws");
    let mut longest_ms = 0.0_f64;
    for _ in 0..3 {
        let events = session.streams("echo a ; sleep 0.05").rest();
        // On a machine on which these were no short turns, something may be told.
        assert!(progress(&events).is_empty() || longest_ms > 1000.0, "{events:#?}");
        longest_ms = longest_ms.max(took_ms(result_of(&program.api, &events)));
    }
    let (_, mut stream) = program.api.open("other").is_busy_with("echo started ; sleep 1.2");
    assert!(progress(&stream.rest()).is_empty());
}
