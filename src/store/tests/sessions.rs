//! Sessions and workspaces, and their recovery after a restart.

use serde_json::json;

use super::fixture::*;
use crate::store::turns::recovery::Recovered;
use crate::{
    domain::{
        ids::FolderId,
        redaction::RedactedJson,
        routing::Route,
        session::{
            choices::Choices,
            lifecycle::{SessionMode, SessionState},
            permission::PermissionPolicy,
        },
        turn::{
            TurnState,
            outcome::{ErrorCode, Failure},
        },
    },
    store::{NewSession, NewWorkspace, SessionChange, SessionRow, StoreError},
};

both_databases! {
    async fn only_hibernated_sessions_expire_once_at_their_age(database: TestDatabase) {
        let store = database.open();
        let (age, second) = (std::time::Duration::from_secs(60), 1_000_000);
        let mut ids = Vec::new();
        for state in SessionState::ALL {
            for used in [0, 1, 30 * second] {
                let new = NewSession { state, ..new_session(used) };
                ids.push((new.session_id, state, used));
                store.create_session(new).await.unwrap();
            }
        }
        // One at a time, the least recently used first; the second is due a microsecond later.
        let expired = store.expire_sessions(at(60 * second), age, 1).await.unwrap();
        assert_eq!(expired.iter().map(|it| it.last_used).collect::<Vec<_>>(), [at(0)]);
        assert_eq!(store.expire_sessions(at(60 * second), age, 9).await.unwrap(), []);
        assert_eq!(store.expire_sessions(at(60 * second + 1), age, 9).await.unwrap().len(), 1);
        assert_eq!(store.expire_sessions(at(60 * second + 1), age, 9).await.unwrap(), []);
        for (id, state, used) in ids {
            let row = store.session(id).await.unwrap().unwrap();
            let expires = state == SessionState::Hibernated && used < second;
            assert_eq!(row.state, if expires { SessionState::Expired } else { state });
            assert_eq!(row.last_used, at(used), "expiry does not count as use");
        }
    }

    async fn session_is_read_back_as_it_was_created(database: TestDatabase) {
        let store = database.open();
        let new = new_session(5);
        store.create_session(new.clone()).await.unwrap();
        let row = store.session(new.session_id).await.unwrap().unwrap();
        assert_eq!((row.session_id, &row.key, &row.user_id), (new.session_id, &new.key, &new.user_id));
        assert_eq!((row.mode, row.enable_git_ops, row.state), (SessionMode::Development, true, SessionState::Idle));
        assert_eq!((row.protocol, row.protocol_version), (Route::Acp, Some(1)));
        assert_eq!((row.agent.as_str(), row.mcp_servers.as_str(), row.failure), ("demo", "[]", None));
        assert_eq!(row.agent_facts.as_deref(), new.agent_facts.as_ref().map(RedactedJson::as_str));
        assert_eq!((row.restarts, row.last_event_id, row.created, row.last_used), (0, 0, at(5), at(5)));
        assert!(matches!(store.create_session(new).await, Err(StoreError::Conflict(_))));
        assert!(store.session(new_session(0).session_id).await.unwrap().is_none());
        let homeless = NewSession { workspace: None, key: key("acme", "nowhere"), ..new_session(0) };
        assert!(matches!(store.create_session(homeless).await, Err(StoreError::Conflict(_))));
    }

    async fn update_changes_only_named_fields_and_no_closed_session(database: TestDatabase) {
        let store = database.open();
        let id = session(&store).await;
        let failed = SessionChange {
            state: Some(SessionState::Failed),
            failure: Some(Failure::new(ErrorCode::AgentCrashed, "five times")),
            restarts: Some(5),
            ..SessionChange::new(id)
        };
        store.update_session(failed).await.unwrap();
        let row = store.session(id).await.unwrap().unwrap();
        assert_eq!((row.state, row.restarts, row.last_used), (SessionState::Failed, 5, at(0)));
        assert_eq!(row.failure, Some(Failure::new(ErrorCode::AgentCrashed, "five times")));
        assert_eq!(row.agent_session_id.as_deref(), Some("agent-1"), "an absent field stays unchanged");

        let loaded = SessionChange {
            state: Some(SessionState::Idle),
            agent_session_id: Some("agent-9".into()),
            protocol: Some(Route::Http),
            protocol_version: Some(2),
            agent_facts: Some(RedactedJson::of(&json!({}))),
            last_event_id: Some(99),
            last_used: Some(at(20)),
            ..SessionChange::new(id)
        };
        store.update_session(loaded).await.unwrap();
        let row = store.session(id).await.unwrap().unwrap();
        assert_eq!((row.state, row.failure, row.last_used), (SessionState::Idle, None, at(20)));
        assert_eq!((row.agent_session_id.as_deref(), row.last_event_id), (Some("agent-9"), 99));
        assert_eq!((row.protocol, row.protocol_version, row.restarts), (Route::Http, Some(2), 5));

        let settled = SessionChange { last_used: Some(at(21)), ..SessionChange::new(id) };
        store.settle_session(settled).await.unwrap();
        assert_eq!(store.session(id).await.unwrap().unwrap().last_used, at(21));
        for state in [SessionState::Closed, SessionState::Idle] {
            store.update_session(SessionChange { state: Some(state), ..SessionChange::new(id) }).await.unwrap();
        }
        assert_eq!(store.session(id).await.unwrap().unwrap().state, SessionState::Closed);
        store.append(append(id, &["late"])).await.unwrap();
        assert_eq!(store.session(id).await.unwrap().unwrap().state, SessionState::Closed);
        let unknown = SessionChange { restarts: Some(1), ..SessionChange::new(new_session(0).session_id) };
        store.update_session(unknown).await.unwrap();
    }

    async fn mode_of_a_user_survives_changes_of_other_fields(database: TestDatabase) {
        let store = database.open();
        let choices = Choices::of_row(Some(r#"{"mode":{"value":"plan","by":"user"}}"#));
        let new = NewSession { choices: choices.clone(), ..new_session(0) };
        let id = new.session_id;
        store.create_session(new).await.unwrap();
        store.update_session(SessionChange { restarts: Some(1), ..SessionChange::new(id) }).await.unwrap();
        assert_eq!(store.session(id).await.unwrap().unwrap().choices, choices);
        let (done, written) = tokio::sync::oneshot::channel();
        let change = SessionChange { choices: Some(Choices::default()), ..SessionChange::new(id) };
        store.try_update_session(change, move |outcome| done.send(outcome.is_ok()).unwrap()).unwrap();
        assert!(written.await.unwrap());
        assert_eq!(store.session(id).await.unwrap().unwrap().choices, Choices::default());
    }

    async fn workspace_is_created_once_and_existing_fields_are_kept(database: TestDatabase) {
        let store = database.open();
        let web = key("acme", "web");
        let tries: Vec<_> = (0..10)
            .map(|n| {
                let (store, new) = (store.clone(), new_workspace(&web, n));
                tokio::spawn(async move { store.find_or_create_workspace(new).await.unwrap() })
            })
            .collect();
        let mut folders = Vec::new();
        for one in tries {
            folders.push(one.await.unwrap().folder_id);
        }
        folders.dedup();
        assert_eq!(folders.len(), 1);

        store.set_workspace_path(web.clone(), "/data/w".into()).await.unwrap();
        let again = NewWorkspace {
            folder_id: FolderId(uuid::Uuid::nil()),
            repository: Some("other/repo".into()),
            path: Some("/elsewhere".into()),
            permission_policy: Some(PermissionPolicy::Ask),
            ..new_workspace(&web, 100)
        };
        let row = store.find_or_create_workspace(again).await.unwrap();
        assert_eq!(row, store.workspace(web.clone()).await.unwrap().unwrap());
        assert_eq!((row.folder_id, row.repository.as_deref()), (folders[0], Some("octo/repo")));
        assert_eq!((row.path.as_deref(), row.workspace_path.as_deref()), (None, Some("/data/w")));
        assert_eq!((row.permission_policy, row.last_used), (Some(PermissionPolicy::Ask), at(100)));
        let row = store.find_or_create_workspace(new_workspace(&web, 101)).await.unwrap();
        assert_eq!(row.permission_policy, Some(PermissionPolicy::Ask), "an absent policy stays unchanged");

        let unknown = store.set_workspace_path(key("acme", "none"), "/x".into()).await;
        assert!(matches!(unknown, Err(StoreError::Conflict(_))));
    }

    async fn restart_interrupts_running_sessions_and_hibernates_idle_ones(database: TestDatabase) {
        let store = database.open();
        let mut expected = Vec::new();
        for state in SessionState::ALL {
            let new = NewSession { state, ..new_session(0) };
            expected.push((new.session_id, state.after_restart()));
            store.create_session(new).await.unwrap();
        }
        let (done, open) = (session(&store).await, session(&store).await);
        expected.extend([(done, SessionState::Hibernated), (open, SessionState::Interrupted)]);
        let (ended, left) = (new_turn(done, 1), new_turn(open, 2));
        let (ended_id, left_id) = (ended.prompt_id, left.prompt_id);
        store.accept_turn(ended).await.unwrap();
        end(&store, turn_end(done, ended_id, 3)).await.unwrap();
        store.accept_turn(left).await.unwrap();
        // As after a crash between two writes.
        let stale = SessionChange { state: Some(SessionState::Idle), ..SessionChange::new(open) };
        store.update_session(stale).await.unwrap();
        assert!(store.close().await);

        let store = database.open();
        let results = vec![(left_id, RedactedJson::of(&json!([1]))), (ended_id, RedactedJson::of(&json!([2])))];
        assert_eq!(store.recover(at(50), &[], results).await.unwrap(), Recovered { interrupted_turns: 1, sessions: 7 });
        for (id, state) in expected {
            assert_eq!(store.session(id).await.unwrap().unwrap().state, state);
        }
        let turn = store.prompt(left_id).await.unwrap().unwrap();
        assert_eq!((turn.state, turn.ended), (TurnState::Interrupted, Some(at(50))));
        assert_eq!(turn.result.as_deref(), Some("[1]"));
        assert_eq!(turn.error.map(|error| error.code), Some(ErrorCode::Interrupted));
        assert_eq!(store.prompt(ended_id).await.unwrap().unwrap().state, TurnState::Completed);
        assert_eq!(store.recover(at(51), &[], Vec::new()).await.unwrap(), Recovered::default());
        // The last event id and the last use were not written before the stop.
        let row = store.session(done).await.unwrap().unwrap();
        assert!(row.last_event_id >= 1_000_000_000, "{}", row.last_event_id);
        assert_eq!((row.last_used, row.next_event_after()), (at(50), row.last_event_id));
        assert!(SessionRow { state: SessionState::Idle, ..row.clone() }.next_event_after() > row.last_event_id);
    }
}
