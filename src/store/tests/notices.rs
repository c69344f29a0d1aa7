//! Events that affect many sessions of a workspace at once: one notification within a minute, and a note in each
//! session.

use std::sync::Arc;

use parking_lot::Mutex;
use uuid::Uuid;

use super::fixture::*;
use crate::{
    domain::{
        ids::{SessionId, WorkspaceKey},
        notify::{
            notice,
            notification::{Addressee, NewNotification, Scope, SessionNotice, Stream},
        },
        turn::transcript::TranscriptEntry,
    },
    store::{NewSession, Store, notifications::notes::SessionNoticeRows},
};

const SECOND: i64 = 1_000_000;

fn of_break(key: &WorkspaceKey) -> SessionNotice {
    let notification = NewNotification::new(
        Uuid::now_v7(),
        Addressee::Workspace(key.clone()),
        notice::of_reconnecting(),
        Uuid::now_v7(),
    );
    SessionNotice { notification, note: TranscriptEntry::text("info", "a break") }
}

/// Reports that the connection of a session broke.
async fn report_break(store: &Store, key: &WorkspaceKey, session: SessionId, us: i64) {
    store.add_session_notice(key.clone(), session, of_break(key), at(us)).await.unwrap();
}

/// Creation times of a workspace's notifications, in seconds after `at(0)`.
async fn notified_at(store: &Store, key: &WorkspaceKey) -> Vec<i64> {
    let scope = Scope {
        workspace: Some(key.workspace_id.clone()),
        ..Scope::all(Stream::Tenant(key.installation_id.clone()))
    };
    let rows = store.notifications_after(scope, 0, 100).await.unwrap().rows;
    rows.iter().flatten().map(|row| (row.created.0 - at(0).0) / SECOND).collect()
}

both_databases! {
    async fn breaks_within_a_minute_are_one_notification_across_clock_minutes(database: TestDatabase) {
        let store = database.open();
        let (web, api) = (key("acme", "web"), key("acme", "api"));
        let (one, two) = (session(&store).await, session(&store).await);
        let of_api = NewSession { key: api.clone(), workspace: Some(new_workspace(&api, 0)), ..new_session(0) };
        let elsewhere = of_api.session_id;
        store.create_session(of_api).await.unwrap();
        // A clock minute begins at 60 s.
        assert_eq!(at(0).0 % (60 * SECOND), 0);
        for (second, session) in [(55, one), (64, two), (114, one), (50, two)] {
            report_break(&store, &web, session, second * SECOND).await;
        }
        assert_eq!(notified_at(&store, &web).await, [55]);
        report_break(&store, &api, elsewhere, 60 * SECOND).await;
        assert_eq!(notified_at(&store, &api).await, [60], "each workspace gets a notification");
        report_break(&store, &web, one, 115 * SECOND).await;
        assert_eq!(notified_at(&store, &web).await, [55, 115], "a break after a minute is a new notification");
        assert_eq!((texts(&store, one).await.len(), texts(&store, two).await.len()), (3, 2), "a note for each break");
    }

    async fn concurrent_breaks_in_two_processes_are_one_notification(database: TestDatabase) {
        let stores = [database.open(), database.open()];
        let web = key("acme", "web");
        let sessions = [session(&stores[0]).await, session(&stores[0]).await];
        // Rounds are 10 minutes apart, so that each is a new notification.
        const ROUNDS: i64 = 10;
        for round in 0..ROUNDS {
            let reporters = stores.iter().cloned().zip(sessions).map(|(store, session)| {
                let web = web.clone();
                tokio::spawn(async move { report_break(&store, &web, session, round * 600 * SECOND).await })
            });
            for reporter in reporters.collect::<Vec<_>>() {
                reporter.await.unwrap();
            }
        }
        let expected: Vec<_> = (0..ROUNDS).map(|round| round * 600).collect();
        assert_eq!(notified_at(&stores[1], &web).await, expected);
        for session in sessions {
            assert_eq!(texts(&stores[0], session).await.len(), ROUNDS as usize);
        }
    }

    async fn break_with_a_commit_in_doubt_is_notified_exactly_once(database: TestDatabase) {
        let store = database.open();
        let web = key("acme", "web");
        let session = session(&store).await;
        let mut rows = SessionNoticeRows::new(web.clone(), session, None, of_break(&web), at(0));
        let woken = Arc::new(Mutex::new(Vec::new()));
        let seen = woken.clone();
        let writing = store.write(move |tx| {
            rows.write_for_each(tx)?;
            tx.later(Vec::new(), |tx| {
                tx.grown.clear();
                Ok(())
            });
            tx.in_doubt = true;
            rows.write_for_each(tx)?;
            let seen = seen.clone();
            tx.later(Vec::new(), move |tx| {
                tx.grown.clone_into(&mut seen.lock());
                Ok(())
            });
            Ok(())
        });
        writing.await.unwrap();
        // The second attempt wakes the subscribers, because the first may have woken none.
        assert_eq!(*woken.lock(), [Stream::Tenant(web.installation_id.clone())]);
        assert_eq!(notified_at(&store, &web).await, [0]);
    }
}
