//! Notifications: numbered in commit order without gaps, once for each cause, paged by scope, read marks, and pruning
//! that readers can detect; tickets, and the database's epoch.

use std::{
    collections::{BTreeSet, HashSet},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use diesel::RunQueryDsl;
use uuid::Uuid;

use super::fixture::*;
use crate::store::{
    engine::connection::{AnyConnection, Purpose},
    notifications::{inbox::MAX_UNREAD, lock_streams},
};
use crate::{
    domain::{
        ids::{SessionId, WorkspaceKey},
        notify::{
            notice,
            notification::{Addressee, NewNotification, Scope, SessionNotice, Stream},
            subscription::{self, ResetReason},
        },
        session::lifecycle::SessionState,
        turn::{outcome::ErrorCode, transcript::TranscriptEntry},
    },
    store::{
        InboxRows, NewSession, NotificationRow, Page, Retained, SessionChange, Store, StoreOptions, StreamEnds,
        StreamPage, UnreadableNotification,
    },
};

fn notification(to: Addressee, cause: &str) -> NewNotification {
    NewNotification::new(
        Uuid::now_v7(),
        to,
        notice::of_failed_session(SessionId(Uuid::nil()), ErrorCode::AgentCrashed),
        cause,
    )
}

fn of_workspace(tenant: &str, workspace: &str) -> Addressee {
    Addressee::Workspace(key(tenant, workspace))
}

fn tenant(name: &str) -> Stream {
    Stream::Tenant(name.parse().unwrap())
}

/// Adds a notification with a new cause.
async fn notify(store: &Store, to: Addressee, us: i64) {
    assert!(store.add_notification(notification(to, &Uuid::now_v7().to_string()), at(us)).await.unwrap());
}

async fn ends(store: &Store, stream: &Stream) -> (u64, u64) {
    let StreamEnds { head, tail } = store.stream_ends(stream.clone()).await.unwrap();
    (head, tail)
}

/// All notifications in a scope after a sequence number, page by page.
async fn after(store: &Store, scope: &Scope, mut after: u64, limit: usize) -> Vec<NotificationRow> {
    let mut seen = Vec::new();
    loop {
        let StreamPage { rows, until, is_last } =
            store.notifications_after(scope.clone(), after, limit).await.unwrap();
        let rows: Vec<_> = rows.into_iter().map(Result::unwrap).collect();
        assert!(rows.len() <= limit && rows.iter().all(|row| after < row.seq && row.seq <= until));
        seen.extend(rows);
        after = until;
        if is_last {
            return seen;
        }
    }
}

async fn mark(store: &Store, scope: &Scope, id: Uuid) -> bool {
    let found = store.mark_read(scope.clone(), vec![id], at(9)).await.unwrap();
    assert_eq!(found.len(), 1);
    found[0]
}

async fn inbox(store: &Store, scope: &Scope, unread_only: bool, limit: usize) -> Vec<(NotificationRow, bool)> {
    let (mut seen, mut after) = (Vec::new(), None);
    loop {
        let InboxRows { rows, unreadable, next } =
            store.inbox(scope.clone(), unread_only, Page { limit, after }).await.unwrap();
        assert_eq!(unreadable, 0);
        seen.extend(rows);
        let Some(next) = next else { return seen };
        // A round trip through the text form that callers get.
        after = Some(next.to_string().parse().unwrap());
    }
}

fn seqs(rows: &[(NotificationRow, bool)]) -> Vec<u64> {
    rows.iter().map(|(row, _)| row.seq).collect()
}

/// A session of a user in a workspace of the tenant `acme`.
async fn session_of(store: &Store, workspace: &str, user: Option<&str>) -> (WorkspaceKey, SessionId) {
    let key = key("acme", workspace);
    let new = NewSession {
        key: key.clone(),
        workspace: Some(new_workspace(&key, 0)),
        user_id: user.map(|user| user.parse().unwrap()),
        ..new_session(0)
    };
    let id = new.session_id;
    store.create_session(new).await.unwrap();
    (key, id)
}

/// Adds notifications to all kinds of addressees in the stream of `acme`, and some elsewhere. Returns all kinds of
/// scopes.
async fn of_all_kinds(store: &Store) -> Vec<Scope> {
    let of_ada = session_of(store, "web", Some("ada")).await;
    let of_bob = session_of(store, "web", Some("bob")).await;
    let without_user = session_of(store, "api", None).await;
    let sessions = [&of_ada, &of_bob, &without_user];
    for n in 0..40 {
        let to = match n % 7 {
            0 => of_workspace("acme", "web"),
            1 => of_workspace("acme", "api"),
            2 => of_workspace("other", "web"),
            3 => Addressee::Operators,
            index => Addressee::Session(sessions[index - 4].0.clone(), sessions[index - 4].1),
        };
        // Many notifications share a microsecond.
        notify(store, to, i64::try_from(n / 10).unwrap()).await;
    }
    let mut scopes = vec![Scope::all(Stream::Operators), Scope::all(tenant("other")), Scope::all(tenant("nobody"))];
    for workspace in [None, Some("web"), Some("api"), Some("none")] {
        for user in [None, Some("ada"), Some("bob"), Some("eve")] {
            for session in [None, Some(of_ada.1), Some(of_bob.1), Some(without_user.1)] {
                let scope = Scope {
                    stream: tenant("acme"),
                    workspace: workspace.map(|it| it.parse().unwrap()),
                    user: user.map(|it| it.parse().unwrap()),
                    session,
                    sessions_only: false,
                };
                scopes.extend([Scope { sessions_only: true, ..scope.clone() }, scope]);
            }
        }
    }
    scopes
}

/// The notifications that a scope takes, by the rule of the hub.
fn taken<'a>(scope: &Scope, all: &'a [NotificationRow]) -> Vec<&'a NotificationRow> {
    let takes = |row: &&NotificationRow| {
        let workspace = row.key.as_ref().map(|key| &key.workspace_id);
        row.stream == scope.stream && scope.takes(workspace, row.session_id, row.user_id.as_ref())
    };
    all.iter().filter(takes).collect()
}

both_databases! {
    async fn locked_stream_of_another_process_delays_no_other_stream(database: TestDatabase) {
        let store = database.open();
        for name in ["a", "b"] {
            notify(&store, of_workspace(name, "web"), 0).await;
        }
        let mut other = database.url().connect(Purpose::Write).unwrap();
        if matches!(other, AnyConnection::Sqlite(_)) {
            return; // A single writer at a time.
        }
        other.begin_write().unwrap();
        lock_streams(&mut other, &[tenant("a")]).unwrap();
        let waiting = tokio::spawn({
            let store = database.open();
            async move { notify(&store, of_workspace("a", "web"), 1).await }
        });
        notify(&store, of_workspace("b", "web"), 1).await;
        assert!(!waiting.is_finished() && ends(&store, &tenant("b")).await.0 == 2);
        other.commit().unwrap();
        waiting.await.unwrap();
        assert_eq!(ends(&store, &tenant("a")).await.0, 2);
    }

    async fn sequence_numbers_of_concurrent_writers_appear_in_order_without_gaps(database: TestDatabase) {
        const CAUSES: u64 = 200;
        // As two processes, each with its own writer.
        let stores = [database.open(), database.open()];
        let duplicates = Arc::new(AtomicUsize::new(0));
        let mut tasks = Vec::new();
        for writer in 0..8 {
            let (store, duplicates) = (stores[writer % 2].clone(), duplicates.clone());
            tasks.push(tokio::spawn(async move {
                for n in 0..CAUSES / 4 {
                    // Two streams, so that transactions append to both; each cause is written by one task of each
                    // store.
                    for tenant in ["a", "b"] {
                        let cause = format!("{tenant} {} {n}", writer / 2);
                        let new = store.add_notification(notification(of_workspace(tenant, "web"), &cause), at(0)).await.unwrap();
                        duplicates.fetch_add(usize::from(!new), Ordering::SeqCst);
                    }
                }
            }));
        }
        let mut readers = Vec::new();
        for name in ["a", "b"] {
            let store = stores[0].clone();
            readers.push(tokio::spawn(async move {
                let (mut next, mut ids) = (1, HashSet::new());
                while next <= CAUSES {
                    let page = store.notifications_after(Scope::all(tenant(name)), next - 1, 100).await.unwrap();
                    let StreamPage { rows, until, .. } = page;
                    for row in rows.iter().flatten() {
                        assert_eq!(row.seq, next, "a sequence number appeared after a greater one");
                        assert!(ids.insert(row.cause_id.clone()), "duplicate: {}", row.cause_id);
                        next += 1;
                    }
                    assert_eq!(until, next - 1);
                    tokio::task::yield_now().await;
                }
            }));
        }
        for task in tasks.into_iter().chain(readers) {
            task.await.unwrap();
        }
        assert_eq!(duplicates.load(Ordering::SeqCst) as u64, 2 * CAUSES, "one of the two stores adds each cause");
        for name in ["a", "b"] {
            assert_eq!(ends(&stores[1], &tenant(name)).await, (CAUSES, 0));
        }
        assert_eq!(database.failures(), 0);
        drop(stores);
        assert_eq!(database.deadlocks(), 0, "concurrent writers must not deadlock");
    }

    async fn one_cause_writes_one_notification_and_one_note_atomically(database: TestDatabase) {
        let store = database.open();
        let (key, session) = session_of(&store, "web", Some("ada")).await;
        let session_notice = || SessionNotice {
            notification: notification(Addressee::Session(key.clone(), session), "a crash"),
            note: TranscriptEntry::text("info", "it failed"),
        };
        let failed = || SessionChange { state: Some(SessionState::Failed), ..SessionChange::new(session) };
        for _ in 0..2 {
            store.settle_session_with_notice(failed(), key.clone(), session_notice(), at(5)).await.unwrap();
        }
        // The same cause is also rejected in another stream.
        assert!(!store.add_notification(notification(Addressee::Operators, "a crash"), at(6)).await.unwrap());
        let rows = after(&store, &Scope::all(tenant("acme")), 0, 9).await;
        assert_eq!(rows.len(), 1);
        let row = &rows[0];
        assert_eq!((row.seq, row.session_id, row.created), (1, Some(session), at(5)));
        assert_eq!(row.user_id.as_ref().map(|user| user.as_str()), Some("ada"), "the user of the session");
        assert_eq!(texts(&store, session).await, ["it failed"]);
        assert_eq!(ends(&store, &Stream::Operators).await, (0, 0), "a duplicate takes no sequence number");
        // If the note cannot be written, the notification must not be written either.
        let unknown = SessionId(Uuid::now_v7());
        let lost = SessionNotice {
            notification: notification(Addressee::Session(key.clone(), unknown), "another"),
            note: TranscriptEntry::text("info", "it failed"),
        };
        let change = SessionChange { last_used: Some(at(7)), ..SessionChange::new(session) };
        let change = SessionChange { session_id: unknown, ..change };
        assert!(store.settle_session_with_notice(change, key.clone(), lost, at(7)).await.is_err());
        assert_eq!(ends(&store, &tenant("acme")).await, (1, 0));
        notify(&store, of_workspace("acme", "web"), 8).await;
        assert_eq!(ends(&store, &tenant("acme")).await, (2, 0), "a rollback leaves no gap");
    }

    async fn pages_of_every_scope_match_what_the_hub_delivers(database: TestDatabase) {
        let store = database.open();
        let scopes = of_all_kinds(&store).await;
        let mut all = Vec::new();
        for stream in [tenant("acme"), tenant("other"), Stream::Operators] {
            let rows = after(&store, &Scope::all(stream.clone()), 0, 100).await;
            assert!(rows.iter().map(|row| row.seq).eq(1..=rows.len() as u64));
            assert_eq!(ends(&store, &stream).await, (rows.len() as u64, 0));
            all.extend(rows);
        }
        assert_eq!(all.len(), 40);
        for scope in scopes {
            let expected = taken(&scope, &all);
            let head = ends(&store, &scope.stream).await.0;
            for limit in [1, 4, 100] {
                let rows = after(&store, &scope, 0, limit).await;
                assert!(rows.iter().eq(expected.iter().copied()), "{scope:?} in pages of {limit}");
            }
            // Notifications outside the scope are skipped.
            let page = store.notifications_after(scope.clone(), 0, 100).await.unwrap();
            assert_eq!((page.rows.len(), page.until, page.is_last), (expected.len(), head, true), "{scope:?}");
            let half = head / 2;
            assert!(after(&store, &scope, half, 3).await.iter().eq(expected.iter().copied().filter(|row| row.seq > half)));
            let listed = inbox(&store, &scope, false, 4).await;
            let ids: BTreeSet<_> = listed.iter().map(|(row, _)| row.notification_id).collect();
            assert!(ids.iter().eq(&expected.iter().map(|row| row.notification_id).collect::<BTreeSet<_>>()), "{scope:?}");
            assert_eq!(ids.len(), listed.len(), "no duplicates");
            assert!(listed.is_sorted_by(|(a, _), (b, _)| (a.created, a.notification_id) > (b.created, b.notification_id)));
            assert_eq!(store.unread(scope.clone()).await.unwrap(), expected.len() as u64);
        }
    }

    async fn read_mark_of_one_user_leaves_others_unread_until_read_for_all(database: TestDatabase) {
        let store = database.open();
        for us in 0..6 {
            notify(&store, of_workspace("acme", "web"), us).await;
        }
        notify(&store, of_workspace("acme", "api"), 6).await;
        let all = Scope::all(tenant("acme"));
        let of = |user: &str| Scope { user: Some(user.parse().unwrap()), ..all.clone() };
        let (ada, bob) = (of("ada"), of("bob"));
        let ids: Vec<_> = after(&store, &all, 0, 9).await.iter().map(|row| row.notification_id).collect();
        for _ in 0..2 {
            assert!(mark(&store, &ada, ids[1]).await);
        }
        assert!(mark(&store, &all, ids[3]).await);
        let of_api = Scope { workspace: Some("api".parse().unwrap()), ..bob.clone() };
        assert!(!mark(&store, &of_api, ids[0]).await, "the notification is outside the scope");
        assert!(!mark(&store, &Scope::all(tenant("other")), ids[0]).await);
        assert!(!mark(&store, &all, Uuid::now_v7()).await);
        for (scope, unread) in [(&ada, vec![7, 6, 5, 3, 1]), (&bob, vec![7, 6, 5, 3, 2, 1]), (&all, vec![7, 6, 5, 3, 2, 1])] {
            assert_eq!(store.unread(scope.clone()).await.unwrap(), unread.len() as u64);
            for limit in [2, 9] {
                assert_eq!(seqs(&inbox(&store, scope, true, limit).await), unread);
                let listed = inbox(&store, scope, false, limit).await;
                assert_eq!(seqs(&listed), [7, 6, 5, 4, 3, 2, 1]);
                assert!(listed.iter().all(|(row, read)| *read != unread.contains(&row.seq)), "{scope:?}");
            }
        }
        assert_eq!(seqs(&inbox(&store, &of_api, true, 9).await), [7]);
    }

    async fn page_searches_a_bounded_part_of_a_long_stream(database: TestDatabase) {
        let store = database.open();
        notify(&store, of_workspace("acme", "web"), 0).await;
        // As if many notifications outside the scope had followed.
        let grow = "UPDATE notification_streams SET head = 12000";
        let growing = store.write(move |tx| Ok(diesel::sql_query(grow).execute(tx.connection)?)).await;
        assert_eq!(growing, Ok(1));
        notify(&store, of_workspace("acme", "web"), 1).await;
        notify(&store, of_workspace("acme", "api"), 2).await;
        let scope = Scope { workspace: Some("web".parse().unwrap()), ..Scope::all(tenant("acme")) };
        let mut pages = Vec::new();
        let mut after = 0;
        loop {
            let page = store.notifications_after(scope.clone(), after, 1).await.unwrap();
            pages.push((page.rows.iter().flatten().map(|row| row.seq).collect::<Vec<_>>(), page.until));
            after = page.until;
            if page.is_last {
                break;
            }
        }
        let expected = [(vec![1], 1), (vec![], 5001), (vec![], 10_001), (vec![12_001], 12_001), (vec![], 12_002)];
        assert_eq!(pages, expected);
        assert_eq!(seqs(&inbox(&store, &scope, false, 9).await), [12_001, 1]);
        assert_eq!(seqs(&inbox(&store, &scope, true, 9).await), [12_001], "searched as far as it is counted");
        assert_eq!(store.unread(scope).await, Ok(1));
    }

    async fn unread_count_stops_at_its_maximum(database: TestDatabase) {
        let store = database.open();
        let tasks: Vec<_> = (0..=MAX_UNREAD as i64)
            .map(|us| {
                let store = store.clone();
                tokio::spawn(async move { notify(&store, of_workspace("acme", "web"), us).await })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        let all = Scope::all(tenant("acme"));
        assert_eq!(ends(&store, &all.stream).await, (MAX_UNREAD + 1, 0));
        assert_eq!(store.unread(all.clone()).await.unwrap(), MAX_UNREAD);
        let newest = inbox(&store, &all, false, 500).await;
        assert_eq!(newest.len() as u64, MAX_UNREAD + 1);
        for (row, _) in &newest[..2] {
            assert!(mark(&store, &all, row.notification_id).await);
        }
        assert_eq!(store.unread(all).await.unwrap(), MAX_UNREAD - 1);
    }

    async fn pruning_moves_the_tail_and_keeps_pending_deliveries(database: TestDatabase) {
        let store = database.open();
        for us in 0..5 {
            notify(&store, of_workspace("acme", "web"), us).await;
        }
        notify(&store, Addressee::Operators, 0).await;
        drop(store);
        let posting = StoreOptions { webhook: Some("https://hooks.example.com".into()), ..database.options() };
        let store = Store::open(posting, database.metrics.clone()).unwrap();
        notify(&store, Addressee::Operators, 1).await;
        drop(store);
        let store = database.open();
        notify(&store, Addressee::Operators, 2).await;
        let all = Scope::all(tenant("acme"));
        let ids: Vec<_> = after(&store, &all, 0, 9).await.iter().map(|row| row.notification_id).collect();
        for id in &ids {
            assert!(mark(&store, &all, *id).await);
        }
        // Oldest first, in chunks; the first has two of the tenant and one of operators.
        assert_eq!(store.prune(Retained::Notifications, at(3), 3).await, Ok(3));
        assert_eq!(store.prune(Retained::Notifications, at(3), 3).await, Ok(2));
        assert_eq!(store.prune(Retained::Notifications, at(3), 3).await, Ok(0));
        assert_eq!((ends(&store, &all.stream).await, ends(&store, &Stream::Operators).await), ((5, 3), (3, 3)));
        assert_eq!(after(&store, &all, 0, 9).await.iter().map(|row| row.seq).collect::<Vec<_>>(), [4, 5]);
        let to_be_posted = after(&store, &Scope::all(Stream::Operators), 0, 9).await;
        assert_eq!(to_be_posted.iter().map(|row| row.seq).collect::<Vec<_>>(), [2]);
        // Cursors from the tail on are resumed, and older ones are reset.
        for (cursor, reset) in [(2, Some(ResetReason::TooOld)), (3, None), (5, None)] {
            let StreamEnds { head, tail } = store.stream_ends(all.stream.clone()).await.unwrap();
            let start = subscription::start(Some((cursor, Some(store.epoch()))), store.epoch(), head, tail);
            assert_eq!((start.reset, start.after), (reset, if reset.is_some() { 5 } else { cursor }));
        }
        assert!(!mark(&store, &all, ids[0]).await, "a pruned notification cannot be marked");
        assert_eq!(store.unread(all.clone()).await.unwrap(), 0, "the marks of the remaining notifications are kept");
        notify(&store, of_workspace("acme", "web"), 9).await;
        assert_eq!(ends(&store, &all.stream).await, (6, 3), "no sequence number is reused");
        assert_eq!(store.prune(Retained::Notifications, at(100), 9).await, Ok(3));
        assert_eq!(ends(&store, &all.stream).await, (6, 6));
        let nothing = StreamPage { rows: Vec::new(), until: 6, is_last: true };
        assert_eq!(store.notifications_after(all, 6, 9).await.unwrap(), nothing);
    }

    async fn unreadable_notification_is_reported_and_the_others_are_read(database: TestDatabase) {
        let store = database.open();
        for us in 1..=4 {
            notify(&store, of_workspace("acme", "web"), us).await;
        }
        database.execute("UPDATE notifications SET trigger = 'ofALaterVersion' WHERE seq IN (2, 4)");
        let scope = Scope::all(tenant("acme"));
        let StreamPage { rows: notifications, until, .. } = store.notifications_after(scope.clone(), 0, 9).await.unwrap();
        let seqs: Vec<_> =
            notifications.iter().map(|it| it.as_ref().map(|row| row.seq).map_err(|UnreadableNotification { seq }| *seq)).collect();
        assert_eq!((seqs, until), (vec![Ok(1), Err(2), Ok(3), Err(4)], 4));
        let second = StreamPage { rows: vec![Err(UnreadableNotification { seq: 2 })], until: 2, is_last: false };
        assert_eq!(store.notifications_after(scope.clone(), 1, 1).await.unwrap(), second);
        // Pages of the inbox continue past unreadable rows.
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let page = store.inbox(scope.clone(), false, Page { limit: 1, after }).await.unwrap();
            seen.push((page.rows.first().map(|(row, _)| row.seq), page.unreadable));
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(seen, [(None, 1), (Some(3), 0), (None, 1), (Some(1), 0), (None, 0)]);
    }

    async fn ticket_is_taken_once_and_only_before_it_expires(database: TestDatabase) {
        let stores = [database.open(), database.open()];
        let add = async |name: &str, expires| {
            stores[0].add_ticket(name.into(), format!("of {name}"), at(expires), at(0)).await.unwrap();
        };
        add("one", 100).await;
        let takers: Vec<_> = (0..6)
            .map(|n| {
                let store = stores[n % 2].clone();
                tokio::spawn(async move { store.take_ticket("one".into(), at(50)).await.unwrap() })
            })
            .collect();
        let mut got = Vec::new();
        for taker in takers {
            got.extend(taker.await.unwrap());
        }
        assert_eq!(got, ["of one"]);
        assert_eq!(stores[0].take_ticket("none".into(), at(0)).await, Ok(None));
        for (taken, expected) in [(99, Some("of late".to_owned())), (100, None), (101, None)] {
            add("late", 100).await;
            assert_eq!(stores[1].take_ticket("late".into(), at(taken)).await, Ok(expected));
            assert_eq!(stores[1].take_ticket("late".into(), at(0)).await, Ok(None), "deleted by its first use");
        }
        // Adding a ticket deletes expired ones.
        add("old", 100).await;
        add("new", 1000).await;
        stores[0].add_ticket("newer".into(), "of newer".into(), at(1000), at(100)).await.unwrap();
        assert_eq!(stores[0].take_ticket("old".into(), at(0)).await, Ok(None));
        assert_eq!(stores[0].take_ticket("new".into(), at(100)).await, Ok(Some("of new".into())));
    }

    async fn all_stores_of_a_database_see_one_epoch(database: TestDatabase) {
        let options: Vec<_> = (0..4).map(|_| (database.options(), database.metrics.clone())).collect();
        let opening = options.into_iter().map(|(options, metrics)| {
            std::thread::spawn(|| Store::open(options, metrics).unwrap())
        });
        let stores: Vec<_> = opening.collect::<Vec<_>>().into_iter().map(|thread| thread.join().unwrap()).collect();
        let epoch = stores[0].epoch().to_owned();
        assert_eq!(epoch.len(), 32);
        assert!(stores.iter().all(|store| store.epoch() == epoch));
        drop(stores);
        assert_eq!(database.open().epoch(), epoch);
        assert_ne!(TestDatabase::sqlite().open().epoch(), epoch);
    }
}
