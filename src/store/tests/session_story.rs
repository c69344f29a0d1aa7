//! Reads about one session or workspace: newest turns and notes, durations of turns; and the settling of routes.

use std::time::Duration;

use uuid::Uuid;

use super::fixture::*;
use crate::{
    domain::{
        ids::SessionId,
        routing::Route,
        turn::{TurnState, transcript::TranscriptEntry},
    },
    store::{NewSession, NewTurn, RouteFilter, SaveRoute, TranscriptAppend, TurnEnd},
};

both_databases! {
    async fn newest_turns_and_notes_are_those_of_the_session(database: TestDatabase) {
        let store = database.open();
        let (mine, other) = (session(&store).await, session(&store).await);
        let mut turns = Vec::new();
        for n in 0..4 {
            for id in [mine, other] {
                let turn = new_turn(id, n);
                if id == mine {
                    turns.push(turn.prompt_id);
                }
                let prompt_id = turn.prompt_id;
                store.accept_turn(turn).await.unwrap();
                end(&store, TurnEnd { ..turn_end(id, prompt_id, n) }).await.unwrap();
            }
        }
        let entries = ["rollback", "agent_message", "info"].map(|kind| TranscriptEntry::text(kind, kind)).to_vec();
        store.append(TranscriptAppend { entries, ..append(mine, &[]) }).await.unwrap();
        let of = |rows: Vec<crate::store::PromptRow>| rows.into_iter().map(|row| row.prompt_id).collect::<Vec<_>>();
        turns.reverse();
        assert_eq!(of(store.newest_turns(mine, 100).await.unwrap()), turns);
        assert_eq!(of(store.newest_turns(mine, 2).await.unwrap()), turns[..2]);
        let notes = store.newest_notes(mine, 100).await.unwrap();
        assert_eq!(notes.iter().map(|note| note.entry.text.as_str()).collect::<Vec<_>>(), ["info", "rollback"]);
        assert!(store.newest_notes(other, 100).await.unwrap().is_empty());
    }

    async fn turn_durations_cover_the_newest_completed_turns_of_a_workspace(database: TestDatabase) {
        let store = database.open();
        let web = || key("acme", "web");
        assert_eq!(store.turn_durations(web(), 50).await, Ok(vec![]), "there is no such workspace");
        let mut sessions = Vec::new();
        for n in 0..12 {
            let new = NewSession { session_id: SessionId(Uuid::now_v7()), ..new_session(n) };
            sessions.push(new.session_id);
            store.create_session(new).await.unwrap();
        }
        let elsewhere = NewSession {
            key: key("acme", "other"),
            workspace: Some(new_workspace(&key("acme", "other"), 0)),
            ..new_session(99)
        };
        let other = elsewhere.session_id;
        store.create_session(elsewhere).await.unwrap();
        assert_eq!(store.turn_durations(web(), 50).await, Ok(vec![]), "there are no turns");
        let ends = async |id, accepted: i64, took: i64, state| {
            let turn = NewTurn { key: if id == other { key("acme", "other") } else { web() }, ..new_turn(id, accepted) };
            let prompt_id = turn.prompt_id;
            store.accept_turn(turn).await.unwrap();
            if let Some(state) = state {
                end(&store, TurnEnd { state, ..turn_end(id, prompt_id, accepted + took) }).await.unwrap();
            }
        };
        let (first, last) = (sessions[0], sessions[11]);
        ends(first, 100, 1, Some(TurnState::Completed)).await;
        ends(sessions[5], 200, 20, Some(TurnState::Completed)).await;
        ends(last, 300, 30, Some(TurnState::Completed)).await;
        ends(sessions[5], 400, 40, Some(TurnState::Completed)).await;
        ends(last, 500, 50, Some(TurnState::Cancelled)).await;
        ends(last, 600, 60, Some(TurnState::Failed)).await;
        ends(last, 700, 0, None).await;
        ends(other, 800, 80, Some(TurnState::Completed)).await;
        let micros = |all: &[u64]| Ok(all.iter().map(|us| Duration::from_micros(*us)).collect::<Vec<_>>());
        assert_eq!(store.turn_durations(web(), 50).await, micros(&[40, 30, 20]), "the first session is too old");
        assert_eq!(store.turn_durations(key("acme", "other"), 50).await, micros(&[80]));
        let many = (0..1000).map(|_| TranscriptEntry::text("agent_message", "x")).collect();
        store.append(TranscriptAppend { entries: many, ..append(sessions[5], &[]) }).await.unwrap();
        assert_eq!(store.turn_durations(web(), 50).await, micros(&[30]), "the search is bounded");
        assert_eq!(store.turn_durations(web(), 0).await, micros(&[]));
    }

    async fn settling_routes_leaves_existing_routes_unchanged(database: TestDatabase) {
        let store = database.open();
        for (tenant, name) in [("acme", "a"), ("acme", "b"), ("acme", "c"), ("other", "a")] {
            store.find_or_create_workspace(new_workspace(&key(tenant, name), 0)).await.unwrap();
        }
        let save = SaveRoute {
            key: key("acme", "b"),
            expected_epoch: 0,
            routing: crate::domain::routing::Routing::new(Route::Http),
            migration_enabled: None,
            auto_rollout: Some(true),
            flip: None,
            now: at(1),
        };
        store.save_route(save).await.unwrap();
        let tenant = || "acme".parse().unwrap();
        assert_eq!(store.settle_routes(tenant(), Route::Acp, at(2), 1).await, Ok(1));
        assert_eq!(store.settle_routes(tenant(), Route::Acp, at(2), 10).await, Ok(1));
        assert_eq!(store.settle_routes(tenant(), Route::Http, at(3), 10).await, Ok(0), "every workspace has a route");
        for (name, route) in [("a", Route::Acp), ("b", Route::Http), ("c", Route::Acp)] {
            let row = store.route(key("acme", name)).await.unwrap().unwrap();
            assert_eq!((row.routing.route(), row.auto_rollout), (route, name == "b"), "{name}");
        }
        assert_eq!(store.route(key("other", "a")).await.unwrap(), None);
        let on_acp = RouteFilter { default_protocol: Some(Route::Acp), ..RouteFilter::default() };
        let page = crate::store::Page { limit: 10, after: None };
        assert_eq!(store.routes(on_acp, page).await.unwrap().len(), 2);
    }
}
