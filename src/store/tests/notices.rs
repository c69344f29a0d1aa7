//! What befalls many sessions of a workspace at once: one toast for those that come together, and a note for each.

use uuid::Uuid;

use super::fixture::*;
use crate::{
    domain::{
        ids::{SessionId, WorkspaceKey},
        notify::{
            notice,
            toast::{Addressee, NewNotification, Scope, SessionNotice, Stream},
        },
        turn::transcript::TranscriptEntry,
    },
    store::{NewSession, Store, notifications::notes::SessionNoticeRows},
};

const SECOND: i64 = 1_000_000;

fn of_break(key: &WorkspaceKey) -> SessionNotice {
    let toast = NewNotification::new(
        Uuid::now_v7(),
        Addressee::Workspace(key.clone()),
        notice::of_reconnecting(),
        Uuid::now_v7(),
    );
    SessionNotice { toast, note: TranscriptEntry::text("info", "a break") }
}

/// The connection of a session breaks.
async fn breaks(store: &Store, key: &WorkspaceKey, session: SessionId, us: i64) {
    store.tell_session(key.clone(), session, of_break(key), at(us)).await.unwrap();
}

/// When the toasts of a workspace were written, after [`at`], in seconds.
async fn told(store: &Store, key: &WorkspaceKey) -> Vec<i64> {
    let scope = Scope {
        workspace: Some(key.workspace_id.clone()),
        ..Scope::all(Stream::Tenant(key.installation_id.clone()))
    };
    let rows = store.notifications_after(scope, 0, 100).await.unwrap().rows;
    rows.iter().flatten().map(|row| (row.created.0 - at(0).0) / SECOND).collect()
}

both_databases! {
    async fn breaks_within_a_minute_are_one_toast_also_across_the_mark_of_the_clock(database: TestDatabase) {
        let store = database.open();
        let (web, api) = (key("acme", "web"), key("acme", "api"));
        let (one, two) = (session(&store).await, session(&store).await);
        let of_api = NewSession { key: api.clone(), workspace: Some(new_workspace(&api, 0)), ..new_session(0) };
        let elsewhere = of_api.session_id;
        store.create_session(of_api).await.unwrap();
        // A minute of the clock begins at 60 s.
        assert_eq!(at(0).0 % (60 * SECOND), 0);
        for (second, session) in [(55, one), (64, two), (114, one), (50, two)] {
            breaks(&store, &web, session, second * SECOND).await;
        }
        assert_eq!(told(&store, &web).await, [55]);
        breaks(&store, &api, elsewhere, 60 * SECOND).await;
        assert_eq!(told(&store, &api).await, [60], "each workspace is told");
        breaks(&store, &web, one, 115 * SECOND).await;
        assert_eq!(told(&store, &web).await, [55, 115], "after a minute it is news");
        assert_eq!((texts(&store, one).await.len(), texts(&store, two).await.len()), (3, 2), "a note for each");
    }

    async fn breaks_that_two_processes_tell_at_once_are_one_toast(database: TestDatabase) {
        let stores = [database.open(), database.open()];
        let web = key("acme", "web");
        let sessions = [session(&stores[0]).await, session(&stores[0]).await];
        // Each round is far from the others.
        const ROUNDS: i64 = 10;
        for round in 0..ROUNDS {
            let tellers = stores.iter().cloned().zip(sessions).map(|(store, session)| {
                let web = web.clone();
                tokio::spawn(async move { breaks(&store, &web, session, round * 600 * SECOND).await })
            });
            for teller in tellers.collect::<Vec<_>>() {
                teller.await.unwrap();
            }
        }
        let expected: Vec<_> = (0..ROUNDS).map(|round| round * 600).collect();
        assert_eq!(told(&stores[1], &web).await, expected);
        for session in sessions {
            assert_eq!(texts(&stores[0], session).await.len(), ROUNDS as usize);
        }
    }

    async fn a_break_whose_commit_was_in_doubt_is_not_told_twice_and_is_told(database: TestDatabase) {
        let store = database.open();
        let web = key("acme", "web");
        let session = session(&store).await;
        let mut rows = SessionNoticeRows::new(web.clone(), session, None, of_break(&web), at(0));
        let woken = store.write(move |tx| {
            rows.write_for_each(tx)?;
            tx.grown.clear();
            tx.in_doubt = true;
            rows.write_for_each(tx)?;
            Ok(tx.grown.clone())
        });
        assert_eq!(woken.await.unwrap(), [Stream::Tenant(web.installation_id.clone())], "nobody was woken before");
        assert_eq!(told(&store, &web).await, [0]);
    }
}
