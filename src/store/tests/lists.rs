//! Lists of sessions and workspaces: pages without gaps or duplicates while rows are added.

use std::collections::HashSet;

use super::fixture::*;
use crate::{
    domain::session::lifecycle::SessionState,
    store::{Cursor, NewSession, Page, SessionFilter, Store, WorkspaceFilter},
};

async fn sessions_in_pages(store: &Store, filter: &SessionFilter, limit: usize) -> Vec<String> {
    let mut seen = Vec::new();
    let mut after: Option<Cursor> = None;
    loop {
        let page = store.list_sessions(filter.clone(), Page { limit, after }).await.unwrap();
        let Some(last) = page.last() else { return seen };
        // A round trip through the text form that callers get.
        after = Some(last.cursor().to_string().parse().unwrap());
        seen.extend(page.iter().map(|row| row.session_id.to_string()));
        store.create_session(new_session(1_000_000)).await.unwrap();
    }
}

both_databases! {
    async fn session_pages_have_no_gaps_and_no_duplicates(database: TestDatabase) {
        let store = database.open();
        let mut expected = Vec::new();
        for n in 0..57 {
            // Many sessions share a microsecond.
            let new = NewSession {
                state: if n % 3 == 0 { SessionState::Closed } else { SessionState::Idle },
                user_id: Some(if n % 2 == 0 { "ada" } else { "bob" }.parse().unwrap()),
                ..new_session(n / 10)
            };
            expected.push((new.now, new.session_id.to_string(), new.state, new.user_id.clone()));
            store.create_session(new).await.unwrap();
        }
        expected.sort_by(|a, b| (b.0, &b.1).cmp(&(a.0, &a.1)));
        let all: Vec<_> = expected.iter().map(|row| row.1.clone()).collect();
        for limit in [1, 7, 10, 100] {
            let seen = sessions_in_pages(&store, &SessionFilter::default(), limit).await;
            let new_ones = seen.len() - all.len();
            assert_eq!(seen[new_ones..], all, "limit {limit}");
            assert_eq!(seen.iter().collect::<HashSet<_>>().len(), seen.len());
        }
        let filter = SessionFilter {
            installation_id: Some("acme".parse().unwrap()),
            workspace_id: Some("web".parse().unwrap()),
            user_id: Some("bob".parse().unwrap()),
            states: vec![SessionState::Closed],
        };
        let wanted: Vec<_> = expected
            .iter()
            .filter(|row| row.2 == SessionState::Closed && row.3 == filter.user_id)
            .map(|row| row.1.clone())
            .collect();
        assert_eq!(sessions_in_pages(&store, &filter, 4).await, wanted);
        let elsewhere = SessionFilter { installation_id: Some("other".parse().unwrap()), ..SessionFilter::default() };
        assert!(store.list_sessions(elsewhere, Page { limit: 9, after: None }).await.unwrap().is_empty());
    }

    async fn workspace_pages_have_no_gaps_and_no_duplicates(database: TestDatabase) {
        let store = database.open();
        let mut expected = HashSet::new();
        for tenant in ["a", "b", "b.c", "B"] {
            for n in 0..11 {
                let key = key(tenant, &format!("w{}-{n}", n % 3));
                store.find_or_create_workspace(new_workspace(&key, n / 4)).await.unwrap();
                expected.insert(key.to_string());
            }
        }
        for limit in [1, 5, 100] {
            let mut seen = Vec::new();
            let mut after: Option<Cursor> = None;
            loop {
                let page = store.list_workspaces(WorkspaceFilter::default(), Page { limit, after }).await.unwrap();
                let Some(last) = page.last() else { break };
                after = Some(last.cursor().to_string().parse().unwrap());
                assert!(page.is_sorted_by(|a, b| a.created >= b.created));
                seen.extend(page.iter().map(|row| row.key.to_string()));
            }
            assert_eq!(seen.len(), expected.len());
            assert_eq!(seen.into_iter().collect::<HashSet<_>>(), expected);
        }
        let filter = WorkspaceFilter { installation_id: Some("b".parse().unwrap()), ..WorkspaceFilter::default() };
        let page = store.list_workspaces(filter, Page { limit: 100, after: None }).await.unwrap();
        assert_eq!(page.len(), 11);
    }

    async fn workspaces_of_a_user_are_those_with_its_sessions(database: TestDatabase) {
        let store = database.open();
        for (name, user, state) in [
            ("anns", Some("ann"), SessionState::Closed),
            ("both", Some("ann"), SessionState::Idle),
            ("both", Some("bob"), SessionState::Idle),
            ("bobs", Some("bob"), SessionState::Idle),
            ("nobodys", None, SessionState::Idle),
        ] {
            let (key, user_id) = (key("acme", name), user.map(|user| user.parse().unwrap()));
            let workspace = Some(new_workspace(&key, 0));
            store.create_session(NewSession { key, workspace, user_id, state, ..new_session(0) }).await.unwrap();
        }
        let of = async |user: &str| {
            let filter = WorkspaceFilter { user_id: Some(user.parse().unwrap()), ..WorkspaceFilter::default() };
            let rows = store.list_workspaces(filter, Page { limit: 9, after: None }).await.unwrap();
            let mut names: Vec<_> = rows.into_iter().map(|row| row.key.workspace_id.to_string()).collect();
            names.sort();
            names
        };
        assert_eq!(of("ann").await, ["anns", "both"]);
        assert_eq!(of("bob").await, ["bobs", "both"]);
        assert!(of("eve").await.is_empty());
    }
}
