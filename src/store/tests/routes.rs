//! Routes and flips, outcome counts and handshakes: each is written once, however often it is retried.

use std::time::Duration;

use diesel::{QueryDsl, RunQueryDsl};
use serde_json::json;
use uuid::Uuid;

use super::fixture::*;
use crate::{
    domain::{
        ids::{PromptId, SessionId, WorkspaceKey},
        redaction::RedactedJson,
        routing::{
            Attribution, FlipTrigger, Initiator, Route, Routing,
            success_window::{Bucket, Sample},
        },
        session::connection::ConnectionStatus,
        turn::{
            TurnState,
            outcome::{ErrorCode, Failure},
            replay::PastTurn,
            transcript::TranscriptEntry,
        },
        words::{FollowUp, ReasonCode},
    },
    store::{
        FlipRecord, NewConnection, NewConnectionEvent, NewTurn, OutcomeCount, Page, RouteFilter, RouteRow, SaveRoute,
        SavedRoute, Store, StoreError, StoreOptions, TurnEnd, schema,
    },
};

fn attribution(who: Initiator) -> Attribution {
    Attribution {
        initiator: who,
        actor: "ada".into(),
        actor_note: None,
        reason: "with ghp_abcdefghijklmnopqrstuvwxyz0123456789".into(),
    }
}

/// A manual rollback of a workspace in the state `from`, with a note in `sessions`.
fn rollback(key: &WorkspaceKey, from: &Routing, sessions: &[SessionId]) -> SaveRoute {
    let mut routing = from.clone();
    let flip = routing.roll_back(attribution(Initiator::Operator), at(5)).unwrap();
    save(key, from, routing, Some(record(flip, sessions)))
}

fn record(flip: crate::domain::routing::Flip, sessions: &[SessionId]) -> FlipRecord {
    FlipRecord {
        migration_id: Uuid::now_v7(),
        event_id: Uuid::now_v7(),
        run_id: None,
        flip,
        reason_code: ReasonCode::Manual,
        follow_up: Some(FollowUp::NotifyUsers),
        metrics: RedactedJson::of(&json!({"samples": 20})),
        notes: sessions.to_vec(),
        note: TranscriptEntry::text("rollback", "over HTTP from now on"),
        automatic: None,
    }
}

fn save(key: &WorkspaceKey, from: &Routing, routing: Routing, flip: Option<FlipRecord>) -> SaveRoute {
    SaveRoute {
        key: key.clone(),
        expected_epoch: from.epoch(),
        routing,
        migration_enabled: None,
        auto_rollout: None,
        flip,
        now: at(5),
    }
}

/// Numbers of rows: migrations, rollback events, routes.
async fn rows(store: &Store) -> (i64, i64, i64) {
    store
        .read(|connection| {
            Ok((
                schema::protocol_migrations::table.count().get_result(connection)?,
                schema::rollback_events::table.count().get_result(connection)?,
                schema::workspace_routes::table.count().get_result(connection)?,
            ))
        })
        .await
        .unwrap()
}

async fn ended(store: &Store, session: SessionId, protocol: Route, user: &str, agent: &str, us: i64) -> PromptId {
    let turn =
        NewTurn { protocol, first_entry: TranscriptEntry::text("user_message", user), ..new_turn(session, us) };
    let prompt = turn.prompt_id;
    store.accept_turn(turn).await.unwrap();
    let entries = vec![TranscriptEntry::text("agent_message", agent)];
    let known_by = (protocol == Route::Acp).then(|| "agent-1".to_owned());
    end(store, TurnEnd { entries, protocol, known_by, ..turn_end(session, prompt, us) }).await.unwrap();
    prompt
}

fn handshake(us: i64) -> NewConnection {
    NewConnection {
        connection_row_id: Uuid::now_v7(),
        key: key("acme", "web"),
        session_id: None,
        connection_id: Some("c-1".into()),
        protocol: Route::Acp,
        protocol_version: Some(1),
        agent_name: Some("demo".into()),
        agent_version: Some("1.0".into()),
        capabilities: Some(RedactedJson::of(&json!({}))),
        failure: None,
        handshake: Duration::from_millis(12),
        is_probe: false,
        session_notice: None,
        now: at(us),
    }
}

fn count(epoch: u64, bucket: i64, sample: Sample) -> OutcomeCount {
    OutcomeCount { epoch, route: Route::Acp, bucket: at(bucket), sample }
}

both_databases! {
    async fn flip_is_written_completely_and_once(database: TestDatabase) {
        let store = database.open();
        let (one, two) = (session(&store).await, session(&store).await);
        store.append(append(two, &["before"])).await.unwrap();
        let web = key("acme", "web");
        assert_eq!(store.route(web.clone()).await.unwrap(), None);
        let unknown = new_session(0).session_id;
        let decision = rollback(&web, &Routing::new(Route::Acp), &[one, unknown, two]);
        // Each retry is a new job, as after a lost outcome.
        for _ in 0..3 {
            assert_eq!(store.save_route(decision.clone()).await, Ok(SavedRoute::Saved));
        }
        let row = store.route(web.clone()).await.unwrap().unwrap();
        let expected = RouteRow {
            key: web.clone(),
            routing: row.routing.clone(),
            migration_enabled: true,
            auto_rollout: false,
            created: at(5),
            updated: at(5),
        };
        assert_eq!(row, expected);
        assert_eq!((row.routing.route(), row.routing.epoch()), (Route::Http, 1));
        assert!(row.routing.pin().unwrap().attribution.reason.contains("[redacted]"));
        assert_eq!(rows(&store).await, (1, 1, 1));
        assert_eq!(texts(&store, one).await, ["over HTTP from now on"]);
        assert_eq!(texts(&store, two).await, ["before", "over HTTP from now on"]);
        assert_eq!(store.transcript_len(unknown).await.unwrap(), 0);
    }

    async fn flip_with_a_commit_in_doubt_is_written_once(database: TestDatabase) {
        let store = database.open();
        let one = session(&store).await;
        let web = key("acme", "web");
        let mut decision = crate::store::routing::Decision::new(rollback(&web, &Routing::new(Route::Acp), &[one])).unwrap();
        let saved = store
            .write(move |tx| {
                let first = decision.save(tx)?;
                tx.in_doubt = true;
                Ok((first, decision.save(tx)?))
            })
            .await;
        assert_eq!(saved, Ok((SavedRoute::Saved, SavedRoute::Saved)));
        assert_eq!((rows(&store).await, texts(&store, one).await.len()), ((1, 1, 1), 1));
    }

    async fn one_of_many_concurrent_flips_is_saved_and_the_rest_see_it(database: TestDatabase) {
        let store = database.open();
        let web = key("acme", "web");
        let tries: Vec<_> = (0..20)
            .map(|_| {
                let (store, decision) = (store.clone(), rollback(&web, &Routing::new(Route::Acp), &[]));
                tokio::spawn(async move { store.save_route(decision).await.unwrap() })
            })
            .collect();
        let mut saved = 0;
        for one in tries {
            match one.await.unwrap() {
                SavedRoute::Saved => saved += 1,
                SavedRoute::Stale(row) => assert_eq!(row.unwrap().routing.epoch(), 1),
            }
        }
        assert_eq!((saved, rows(&store).await), (1, (1, 1, 1)));
        let ahead = SaveRoute { expected_epoch: 3, ..rollback(&key("acme", "new"), &Routing::new(Route::Acp), &[]) };
        assert_eq!(store.save_route(ahead).await, Ok(SavedRoute::Stale(None)));
        assert_eq!(rows(&store).await, (1, 1, 1));
    }

    async fn concurrent_flips_of_two_processes_write_one_flip(database: TestDatabase) {
        let stores = [database.open(), database.open()];
        let web = key("acme", "web");
        for round in 0..20 {
            let from = stores[0].route(web.clone()).await.unwrap();
            let from = from.map_or(Routing::new(Route::Acp), |row| row.routing);
            let decisions = stores.clone().map(|store| {
                let mut routing = from.clone();
                let flip = if routing.route() == Route::Acp {
                    routing.roll_back(attribution(Initiator::User), at(round))
                } else {
                    routing.restore(attribution(Initiator::User), at(round))
                };
                let decision = save(&web, &from, routing, flip.map(|flip| record(flip, &[])));
                tokio::spawn(async move { store.save_route(decision).await.unwrap() })
            });
            let mut saved = 0;
            for one in decisions {
                saved += usize::from(one.await.unwrap() == SavedRoute::Saved);
            }
            assert_eq!((saved, rows(&stores[1]).await), (1, (round + 1, round + 1, 1)));
        }
    }

    async fn migration_flip_writes_no_rollback_event_and_keeps_settings(database: TestDatabase) {
        let store = database.open();
        let web = key("acme", "web");
        let from = Routing::new(Route::Acp);
        let settings = SaveRoute {
            migration_enabled: Some(false),
            auto_rollout: Some(true),
            ..save(&web, &from, from.clone(), None)
        };
        assert_eq!(store.save_route(settings).await, Ok(SavedRoute::Saved));
        let mut routing = from.clone();
        let flip = routing.set_default(Route::Http, Attribution::of_system("a test"), at(6)).unwrap();
        assert_eq!(flip.trigger, FlipTrigger::Migration);
        let migration = save(&web, &from, routing, Some(record(flip, &[])));
        assert_eq!(store.save_route(migration).await, Ok(SavedRoute::Saved));
        assert_eq!(rows(&store).await, (1, 0, 1));
        let row = store.route(web).await.unwrap().unwrap();
        assert_eq!((row.migration_enabled, row.auto_rollout), (false, true));
        assert_eq!((row.routing.default_route(), row.routing.epoch()), (Route::Http, 1));
    }

    async fn failed_flip_writes_nothing(database: TestDatabase) {
        let store = database.open();
        let one = session(&store).await;
        let first = rollback(&key("acme", "web"), &Routing::new(Route::Acp), &[one]);
        store.save_route(first.clone()).await.unwrap();
        let mut second = rollback(&key("acme", "api"), &Routing::new(Route::Acp), &[one]);
        second.flip.as_mut().unwrap().event_id = first.flip.unwrap().event_id;
        assert!(matches!(store.save_route(second).await, Err(StoreError::Conflict(_))));
        assert_eq!((rows(&store).await, texts(&store, one).await.len()), ((1, 1, 1), 1));
    }

    async fn flip_in_an_outage_is_refused_and_can_be_retried(database: TestDatabase) {
        let store = database.open();
        let decision = rollback(&key("acme", "web"), &Routing::new(Route::Acp), &[]);
        let outage = database.take_down();
        let refused = store.save_route(decision.clone()).await;
        assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
        drop(outage);
        assert_eq!(store.save_route(decision).await, Ok(SavedRoute::Saved));
        assert_eq!(rows(&store).await, (1, 1, 1));
    }

    async fn routes_are_paged_and_filtered_by_route_and_tenant(database: TestDatabase) {
        let store = database.open();
        let acp = Routing::new(Route::Acp);
        for n in 0..23 {
            let key = key(if n % 2 == 0 { "a" } else { "b" }, &format!("w{n}"));
            let mut decision = save(&key, &acp, acp.clone(), None);
            if n % 5 == 0 {
                decision = rollback(&key, &acp, &[]);
            } else if n % 7 == 0 {
                decision.routing = Routing::new(Route::Http);
            }
            store.save_route(SaveRoute { now: at(n / 4), ..decision }).await.unwrap();
        }
        let count = async |filter: RouteFilter, limit| {
            let (mut seen, mut after) = (Vec::new(), None);
            loop {
                let page = store.routes(filter.clone(), Page { limit, after }).await.unwrap();
                let Some(last) = page.last() else { break };
                after = Some(last.cursor().to_string().parse().unwrap());
                seen.extend(page.into_iter().map(|row| row.key.to_string()));
            }
            let all = seen.len();
            seen.sort();
            seen.dedup();
            assert_eq!(seen.len(), all, "no duplicates");
            all
        };
        for limit in [1, 4, 100] {
            assert_eq!(count(RouteFilter::default(), limit).await, 23);
            assert_eq!(count(RouteFilter { off_acp_only: true, ..RouteFilter::default() }, limit).await, 8);
        }
        let http = RouteFilter { route: Some(Route::Http), ..RouteFilter::default() };
        assert_eq!(count(http.clone(), 3).await, 8);
        assert_eq!(count(RouteFilter { default_protocol: Some(Route::Acp), ..http }, 3).await, 5);
        let of_a = RouteFilter { installation_id: Some("a".parse().unwrap()), ..RouteFilter::default() };
        assert_eq!(count(of_a, 3).await, 12);
    }

    async fn outcome_is_counted_once_with_the_end_of_its_turn(database: TestDatabase) {
        let store = database.open();
        let session = session(&store).await;
        let web = key("acme", "web");
        for n in 0..6 {
            let turn = NewTurn { epoch: 2, is_canary: n == 5, route: Route::Http, ..new_turn(session, n) };
            let prompt = turn.prompt_id;
            store.accept_turn(turn).await.unwrap();
            let sample = if n == 0 { Sample::Failure } else { Sample::Success };
            let ended = TurnEnd { counts: Some(count(2, n / 4 * 10, sample)), ..turn_end(session, prompt, n) };
            end(&store, ended.clone()).await.unwrap();
            end(&store, ended).await.unwrap();
            let row = store.prompt(prompt).await.unwrap().unwrap();
            assert_eq!((row.route, row.protocol, row.epoch, row.is_canary), (Route::Http, Route::Acp, 2, n == 5));
        }
        let window = async |epoch, since| store.window(web.clone(), epoch, Route::Acp, at(since)).await.unwrap();
        let first = Bucket { start: at(0), successes: 3, failures: 1 };
        let second = Bucket { start: at(10), successes: 2, failures: 0 };
        assert_eq!(window(2, 0).await, [first, second]);
        assert_eq!(window(2, 1).await, [second]);
        assert_eq!(window(3, 0).await, []);
        assert_eq!(store.window(key("acme", "api"), 2, Route::Acp, at(0)).await.unwrap(), []);
        assert_eq!(store.window(web.clone(), 2, Route::Http, at(0)).await.unwrap(), []);
    }

    async fn handshake_and_its_events_are_stored_once(database: TestDatabase) {
        let store = database.open();
        let failed = NewConnection {
            failure: Some(Failure::new(ErrorCode::AgentCrashed, "no answer\0")),
            is_probe: true,
            ..handshake(2)
        };
        for new in [handshake(1), failed] {
            let sample = if new.failure.is_some() { Sample::Failure } else { Sample::Success };
            for _ in 0..2 {
                store.record_handshake(new.clone(), Some(count(0, 0, sample))).await.unwrap();
            }
            let event = NewConnectionEvent {
                event_id: Uuid::now_v7(),
                connection_row_id: new.connection_row_id,
                key: new.key,
                session_id: None,
                status: ConnectionStatus::Degraded,
                cause: "slow".into(),
                health: Some(RedactedJson::of(&json!({}))),
                session_notice: None,
                now: at(3),
            };
            for _ in 0..2 {
                store.record_connection_event(event.clone()).await.unwrap();
            }
        }
        store.record_handshake(handshake(4), None).await.unwrap();
        let window = store.window(key("acme", "web"), 0, Route::Acp, at(0)).await.unwrap();
        assert_eq!(window, [Bucket { start: at(0), successes: 1, failures: 1 }]);
        let count = store.read(|connection| {
            let connections: i64 = schema::acp_connections::table.count().get_result(connection)?;
            let events: i64 = schema::connection_events::table.count().get_result(connection)?;
            Ok((connections, events))
        });
        assert_eq!(count.await.unwrap(), (3, 2));
    }

    async fn handshake_survives_an_outage(database: TestDatabase) {
        let store = Store::open(StoreOptions { write_queue: 8, ..database.options() }, database.metrics.clone()).unwrap();
        let outage = database.take_down();
        let writing = tokio::spawn({
            let store = store.clone();
            async move { store.record_handshake(handshake(1), Some(count(0, 0, Sample::Success))).await }
        });
        let refused = store.create_session(new_session(2)).await;
        assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
        drop(outage);
        writing.await.unwrap().unwrap();
        assert_eq!(store.window(key("acme", "web"), 0, Route::Acp, at(0)).await.unwrap().len(), 1);
    }

    async fn turns_that_an_agent_may_replay_are_read_with_their_tool_calls(database: TestDatabase) {
        let store = database.open();
        let session = session(&store).await;
        let turn = NewTurn { first_entry: TranscriptEntry::text("user_message", "one"), ..new_turn(session, 1) };
        let entries = vec![
            TranscriptEntry::text("agent_thought", "hm"),
            TranscriptEntry::with_payload("tool_call", "", RedactedJson::of(&json!({"sessionUpdate": "tool_call", "toolCallId": "t1"}))),
            TranscriptEntry::text("agent_message", "fir"),
            TranscriptEntry::text("agent_message", "st"),
        ];
        let known = TurnEnd { entries, known_by: Some("agent-1".into()), ..turn_end(session, turn.prompt_id, 2) };
        store.accept_turn(turn).await.unwrap();
        end(&store, known).await.unwrap();
        ended(&store, session, Route::Http, "over http", "not replayed", 3).await;
        let turn = NewTurn { first_entry: TranscriptEntry::text("user_message", "stopped"), ..new_turn(session, 5) };
        let cancelled = TurnEnd { state: TurnState::Cancelled, entries: vec![], ..turn_end(session, turn.prompt_id, 6) };
        store.accept_turn(turn).await.unwrap();
        end(&store, cancelled).await.unwrap();
        let (asked, answered, thought) = ("one".into(), "first".into(), "hm".into());
        let one = PastTurn { asked, answered, thought, tool_calls: vec!["t1".into()], is_known: true };
        let stopped = PastTurn { asked: "stopped".into(), ..PastTurn::default() };
        assert_eq!(store.replayable(session, "agent-1".into()).await.unwrap(), [one.clone(), stopped.clone()]);
        let unknown = PastTurn { is_known: false, ..one };
        assert_eq!(store.replayable(session, "agent-2".into()).await.unwrap(), [unknown, stopped]);
    }

    async fn nfr_004_agent_misses_what_its_own_conversation_did_not_complete(database: TestDatabase) {
        let store = database.open();
        let session = session(&store).await;
        let texts = async |most| -> Vec<String> {
            let said = store.unknown_to(Some("agent-1".into()), session, most).await.unwrap();
            said.into_iter().map(|said| said.text).collect()
        };
        assert_eq!(texts(50).await, [""; 0]);
        ended(&store, session, Route::Http, "first", "yes", 9).await;
        assert_eq!(texts(50).await, ["first", "yes"], "all turns, because none was over ACP");
        // The wall clock steps back between the turns.
        let acp = ended(&store, session, Route::Acp, "live", "seen", 5).await;
        assert_eq!(texts(50).await, [""; 0]);
        ended(&store, session, Route::Http, "second", "two", 3).await;
        // A late answer of the earlier turn.
        store.append(crate::store::TranscriptAppend { prompt_id: Some(acp), ..append(session, &["late"]) }).await.unwrap();
        for n in 0..20 {
            ended(&store, session, Route::Http, &format!("u{n}"), &format!("a{n}"), 4).await;
        }
        let begun = NewTurn { protocol: Route::Acp, ..new_turn(session, 4) };
        store.accept_turn(begun).await.unwrap();
        let all = texts(50).await;
        assert_eq!((all.len(), all[0].as_str(), all[1].as_str(), all[41].as_str()), (42, "second", "two", "a19"));
        assert_eq!(texts(3).await, ["a18", "u19", "a19"]);
        assert_eq!(store.last_messages(session, 100).await.unwrap().len(), 47);
        assert_eq!(store.unknown_to(Some("agent-2".into()), session, 100).await.unwrap().len(), 47, "a fresh conversation");
        // A turn over ACP that this conversation did not complete is missing too.
        let turn = NewTurn { first_entry: TranscriptEntry::text("user_message", "stopped"), ..new_turn(session, 5) };
        let cancelled = TurnEnd { state: TurnState::Cancelled, entries: vec![], ..turn_end(session, turn.prompt_id, 6) };
        store.accept_turn(turn).await.unwrap();
        end(&store, cancelled).await.unwrap();
        assert_eq!(texts(2).await, ["a19", "stopped"]);
    }
}
