//! How a turn gets on and when it will have ended, as events of its session.

use crate::harness::{Program, Session, Value, json, sse::Event};

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

#[test]
fn fr_004_a_long_turn_is_estimated_by_those_before_it_on_both_routes_and_after_a_restart() {
    let program = Program::start();
    let mut longest = Vec::new();
    for route in ["acp", "http"] {
        let session = pinned(&program, route);
        let result = session.completes("sleep 1.5");
        assert_eq!(result["meta"]["protocol"], route);
        longest.push(result["meta"]["timings"]["totalMs"].as_f64().expect("a number"));
        let estimates = [first_estimate(&session), first_estimate(&program.api.open(route))];
        for told in estimates {
            let sum = told["etaMs"].as_f64().expect("a number") + told["elapsedMs"].as_f64().expect("a number");
            let took = longest.last().expect("a time");
            assert!((sum - took).abs() < 3.0, "{route}: {told}, and one took {took} ms");
            assert_eq!((&told["planDone"], &told["planTotal"]), (&Value::Null, &Value::Null), "{route}");
        }
    }
    let folder = program.stop();
    let program = Program::builder().folder(&folder).start();
    for (route, took) in ["acp", "http"].into_iter().zip(longest) {
        let told = first_estimate(&program.api.open(route));
        let sum = told["etaMs"].as_f64().expect("a number") + told["elapsedMs"].as_f64().expect("a number");
        assert!((sum - took).abs() < 3.0, "{route}: {told}, and one took {took} ms");
    }
}

#[test]
fn a_turn_that_takes_longer_than_usual_has_no_estimate_until_a_part_of_its_plan_is_done() {
    let program = Program::start();
    let session = program.api.open("ws");
    session.completes("sleep 1.2");
    let events = session.streams("sleep 2.4 ; plan 2 20").rest();
    let known: Vec<_> =
        progress(&events).iter().map(|told| (told["planDone"].as_u64(), !told["etaMs"].is_null())).collect();
    assert_eq!(known, [(None, true), (Some(0), false), (Some(1), true), (Some(2), true)], "{events:#?}");
}

#[test]
fn short_turns_and_those_of_which_nothing_is_known_tell_no_progress() {
    let program = Program::start();
    let session = program.api.open("ws");
    for _ in 0..3 {
        let events = session.streams("echo a ; sleep 0.05").rest();
        assert!(progress(&events).is_empty(), "{events:#?}");
    }
    let (_, mut stream) = program.api.open("other").is_busy_with("echo started ; sleep 1.2");
    assert!(progress(&stream.rest()).is_empty());
}
