//! What is told of one session beside its conversation, and routes that are written down for good.

use super::fixture::*;
use crate::{
    domain::{routing::Route, transcript::TranscriptEntry},
    store::{RouteFilter, SaveRoute, TranscriptAppend, TurnEnd},
};

both_databases! {
    async fn the_newest_turns_and_notes_of_a_session_are_its_own(database: TestDatabase) {
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

    async fn workspaces_without_a_route_get_one_and_the_others_keep_theirs(database: TestDatabase) {
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
        assert_eq!(store.settle_routes(tenant(), Route::Http, at(3), 10).await, Ok(0), "all have one");
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
