//! Retention of sessions, turns and transcripts, and removal of folders, at chosen times.

use uuid::Uuid;

use super::fixture::*;
use crate::{
    domain::{
        clock::Timestamp,
        ids::SessionId,
        retention::{RemovalCause, Removed, Tenants},
        session::lifecycle::SessionState,
    },
    store::{NewSession, NewTurn, OwnFolder, PruneHistory, Removal, SessionChange, Store, TurnEnd, UnusedFolders},
};

fn day(days: i64) -> i64 {
    days * 24 * 3600 * 1_000_000
}

fn removal(now: Timestamp) -> Removal {
    let cause = RemovalCause::Retention;
    Removal { run: Uuid::now_v7(), cause, actor: "test".into(), reason: "old".into(), now }
}

/// Removes everything of a kind from before `before` and returns the number of rows.
async fn prune(store: &Store, kind: Removed, tenants: &Tenants, before: Timestamp, now: Timestamp) -> usize {
    let (mut rows, mut after, removal) = (0, None, removal(now));
    loop {
        let (tenants, removal) = (tenants.clone(), removal.clone());
        let pruned =
            store.prune_history(PruneHistory { kind, tenants, before, limit: 2, after, removal }).await.unwrap();
        rows += pruned.rows;
        after = pruned.next;
        if after.is_none() {
            return rows;
        }
    }
}

/// A session of a tenant, opened and last used at a time.
async fn session_of(store: &Store, tenant: &str, us: i64, state: SessionState) -> SessionId {
    let key = key(tenant, "web");
    let id = SessionId(prompt_at(at(us)).0);
    let workspace = Some(new_workspace(&key, us));
    store.create_session(NewSession { session_id: id, key, workspace, state, ..new_session(us) }).await.unwrap();
    id
}

/// A turn with two entries.
async fn turn_of(store: &Store, tenant: &str, session: SessionId, us: i64, ends: bool) {
    let turn = NewTurn { key: key(tenant, "web"), ..new_turn(session, us) };
    let prompt = turn.prompt_id;
    store.accept_turn(turn).await.unwrap();
    if ends {
        end(store, TurnEnd { key: key(tenant, "web"), ..turn_end(session, prompt, us + 1) }).await.unwrap();
    }
}

both_databases! {
    async fn old_history_is_removed_with_a_record_and_open_turns_are_kept(database: TestDatabase) {
        let store = database.open();
        let everyone = Tenants::Except(Vec::new());
        let old = session_of(&store, "acme", 0, SessionState::Closed).await;
        let open = session_of(&store, "acme", 1, SessionState::Interrupted).await;
        for us in [10, 20, 30] {
            turn_of(&store, "acme", old, us, true).await;
        }
        turn_of(&store, "acme", open, 40, false).await;
        let (now, before) = (at(day(100)), at(day(10)));
        // A session is removed after its entries and turns, whatever the order of the calls.
        assert_eq!(prune(&store, Removed::Sessions, &everyone, before, now).await, 0);
        assert_eq!(prune(&store, Removed::Transcripts, &everyone, before, now).await, 6);
        assert_eq!(prune(&store, Removed::Turns, &everyone, before, now).await, 3);
        assert_eq!(prune(&store, Removed::Sessions, &everyone, before, now).await, 1);
        assert_eq!(store.session(old).await.unwrap(), None);
        assert_eq!(texts(&store, open).await, ["fix it"], "the open turn and its prompt");
        let removals = store.removals("acme".parse().unwrap()).await.unwrap();
        let mut removals: Vec<_> = removals.iter().map(|it| (it.0.as_str(), it.1.as_str(), it.2)).collect();
        removals.sort_unstable();
        assert_eq!(removals, [("sessions", "retention", 1), ("transcripts", "retention", 6), ("turns", "retention", 3)]);
    }

    async fn turn_is_kept_for_the_24_hours_of_its_key_whatever_the_age(database: TestDatabase) {
        let store = database.open();
        let session = session_of(&store, "acme", 0, SessionState::Closed).await;
        turn_of(&store, "acme", session, 0, true).await;
        let everyone = Tenants::Except(Vec::new());
        for (now, rows) in [(at(day(1) - 1), 0), (at(day(1) + 2), 1)] {
            assert_eq!(prune(&store, Removed::Turns, &everyone, now, now).await, rows, "{now}");
        }
        assert!(store.newest_prompt(session).await.unwrap().is_none());
    }

    async fn recent_entries_and_those_of_other_tenants_are_kept(database: TestDatabase) {
        let store = database.open();
        for tenant in ["acme", "other"] {
            let session = session_of(&store, tenant, 0, SessionState::Idle).await;
            for days in [0, 50, 99] {
                turn_of(&store, tenant, session, day(days), true).await;
            }
        }
        let (now, acme) = (at(day(100)), "acme".parse().unwrap());
        let only = Tenants::Only("acme".parse().unwrap());
        assert_eq!(prune(&store, Removed::Transcripts, &only, at(day(60)), now).await, 4);
        assert_eq!(prune(&store, Removed::Turns, &Tenants::Except(vec![acme]), at(day(60)), now).await, 2);
        assert_eq!(prune(&store, Removed::Sessions, &only, now, now).await, 0, "a live session");
    }

    async fn workspace_row_is_removed_after_its_sessions_and_its_folder(database: TestDatabase) {
        let store = database.open();
        let session = session_of(&store, "acme", 0, SessionState::Closed).await;
        let (key, everyone) = (key("acme", "web"), Tenants::Except(Vec::new()));
        let (now, before) = (at(day(100)), at(day(90)));
        assert_eq!(prune(&store, Removed::Workspaces, &everyone, before, now).await, 0, "it has a session");
        assert_eq!(prune(&store, Removed::Sessions, &everyone, before, now).await, 1);
        assert_eq!(prune(&store, Removed::Workspaces, &everyone, before, now).await, 0, "it has a folder");
        store.folder_removed(key.clone(), removal(now)).await.unwrap();
        assert_eq!(prune(&store, Removed::Workspaces, &everyone, before, now).await, 1);
        assert_eq!(store.workspace(key).await.unwrap(), None);
        assert_eq!(store.session(session).await.unwrap(), None);
    }

    async fn unused_folder_is_found_unless_it_is_live_or_was_given_by_path(database: TestDatabase) {
        let store = database.open();
        let since = UnusedFolders::Since(at(day(70)));
        let found = async |unused| -> Vec<String> {
            let rows = store.unused_folders(unused, 10).await.unwrap();
            rows.into_iter().map(|row| row.key.installation_id.to_string()).collect()
        };
        session_of(&store, "closed", 0, SessionState::Closed).await;
        session_of(&store, "hibernated", 1, SessionState::Hibernated).await;
        session_of(&store, "live", 2, SessionState::Idle).await;
        let open = session_of(&store, "open-turn", 3, SessionState::Interrupted).await;
        turn_of(&store, "open-turn", open, 4, false).await;
        let given = key("given", "web");
        let mut workspace = new_workspace(&given, 5);
        workspace.path = Some("/srv/repo".into());
        store.find_or_create_workspace(workspace).await.unwrap();
        let used = session_of(&store, "used", 6, SessionState::Hibernated).await;
        let change = SessionChange { last_used: Some(at(day(80))), ..SessionChange::new(used) };
        store.update_session(change).await.unwrap();
        assert_eq!(found(since).await, ["closed", "hibernated"]);
        assert!(found(UnusedFolders::Ephemeral).await.is_empty());
        store.folder_removed(key("closed", "web"), removal(at(day(100)))).await.unwrap();
        assert_eq!(found(since).await, ["hibernated"]);
        let folders = store.removals("closed".parse().unwrap()).await.unwrap();
        assert_eq!(folders, [("folders".to_owned(), "retention".to_owned(), 1, Some("web".to_owned()))]);
        // The next session makes the folder again.
        let again = store.find_or_create_workspace(new_workspace(&key("closed", "web"), day(101))).await.unwrap();
        assert_eq!(again.removed, None);
    }

    async fn ephemeral_folder_ends_with_the_last_session_of_its_workspace(database: TestDatabase) {
        let store = database.open();
        let key = key("acme", "web");
        let mut workspace = new_workspace(&key, 0);
        workspace.is_ephemeral = true;
        store.find_or_create_workspace(workspace).await.unwrap();
        let first = session_of(&store, "acme", 1, SessionState::Idle).await;
        let second = session_of(&store, "acme", 2, SessionState::Hibernated).await;
        for (session, state, count) in
            [(first, SessionState::Closed, 0), (second, SessionState::Running, 0), (second, SessionState::Expired, 1)]
        {
            let change = SessionChange { state: Some(state), ..SessionChange::new(session) };
            store.update_session(change).await.unwrap();
            assert_eq!(store.unused_folders(UnusedFolders::Ephemeral, 10).await.unwrap().len(), count, "{state:?}");
        }
        assert!(store.is_folder_unused(key, UnusedFolders::Ephemeral).await.unwrap());
    }

    async fn folder_of_a_closed_session_is_found_once_no_turn_and_no_run_needs_it(database: TestDatabase) {
        let store = database.open();
        let key = key("acme", "web");
        let found = async |unused| -> Vec<SessionId> {
            let rows = store.unused_session_folders(unused, 10).await.unwrap();
            rows.into_iter().map(|row| row.session_id).collect()
        };
        let (ended, since) = (UnusedFolders::Ephemeral, UnusedFolders::Since(at(day(70))));
        let own_folder = Some(OwnFolder { branch: Some("main".into()), path: Some("/w/1".into()), removed: None });
        let new = NewSession { state: SessionState::Hibernated, own_folder: own_folder.clone(), ..new_session(1) };
        let id = new.session_id;
        store.create_session(new).await.unwrap();
        session_of(&store, "acme", 2, SessionState::Closed).await;
        assert_eq!(store.session(id).await.unwrap().unwrap().own_folder, own_folder);
        assert_eq!(store.folder_of_workspace(key.clone()).await.unwrap().as_deref(), Some("/w/1"));
        assert_eq!((found(ended).await, found(since).await), (vec![], vec![id]), "it can be loaded");
        let turn = new_turn(id, 3);
        let prompt = turn.prompt_id;
        store.accept_turn(turn).await.unwrap();
        let closed = SessionChange { state: Some(SessionState::Closed), ..SessionChange::new(id) };
        store.update_session(closed).await.unwrap();
        assert_eq!((found(ended).await, found(since).await), (vec![], vec![]), "a turn is open");
        end(&store, turn_end(id, prompt, 4)).await.unwrap();
        assert_eq!(found(ended).await, [id]);
        assert!(store.is_session_folder_unused(id, ended).await.unwrap());
        // The row has to name the folder until it is removed.
        let everyone = Tenants::Except(Vec::new());
        let (now, before) = (at(day(100)), at(day(90)));
        for kind in [Removed::Transcripts, Removed::Turns] {
            prune(&store, kind, &everyone, before, now).await;
        }
        assert_eq!(prune(&store, Removed::Sessions, &everyone, before, now).await, 1, "the shared one");
        store.session_folder_removed(id, key.clone(), removal(now)).await.unwrap();
        assert_eq!((found(ended).await, found(since).await), (vec![], vec![]));
        let row = store.session(id).await.unwrap().unwrap();
        assert_eq!(row.own_folder.map(|own| (own.path, own.removed)), Some((None, Some(now))));
        assert_eq!(store.folder_of_workspace(key).await.unwrap(), None);
        let folders = store.removals("acme".parse().unwrap()).await.unwrap();
        assert!(folders.iter().any(|(kind, _, amount, of)| kind == "folders" && *amount == 1 && of.is_some()));
        assert_eq!(prune(&store, Removed::Sessions, &everyone, before, now).await, 1);
    }
}
