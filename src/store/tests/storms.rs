//! Many rollbacks at once: who is told that a workspace fell is told that it is back, and an alarm without an end is found.

use std::time::Duration;

use diesel::{ExpressionMethods, QueryDsl, RunQueryDsl};
use uuid::Uuid;

use super::fixture::*;
use crate::{
    domain::{
        clock::Timestamp,
        ids::{SessionId, WorkspaceKey},
        notify::{
            notice,
            toast::{Addressee, NewNotification, Scope, Stream},
        },
        redaction::Redacted,
        routing::{
            Attribution, Flip, Initiator, RecoveryRules, Route, Routing,
            success_window::{Sample, WindowFigures, WindowState},
        },
        turn::transcript::TranscriptEntry,
        words::{FollowUp, ReasonCode},
    },
    store::{FlipRecord, Retained, SaveRoute, SavedRoute, Store, StoreOptions},
};

const SECOND: i64 = 1_000_000;

fn rules() -> RecoveryRules {
    RecoveryRules {
        cooldown: Duration::from_secs(60),
        max_cooldown: Duration::from_secs(60),
        jitter_bp: 0,
        probe_timeout: Duration::from_secs(10),
        canary_steps_bp: vec![10_000],
        close_after_successes: 1,
        reopen_failures: 2,
        reopen_within: 100,
    }
}

fn attribution() -> Attribution {
    Attribution { initiator: Initiator::Operator, actor: "ada".into(), reason: "a drill".into() }
}

fn falls(routing: &mut Routing, now: Timestamp) -> Flip {
    let figures = WindowFigures { state: WindowState::Breached, samples: 20, failures: 1, length_seconds: 3600 };
    routing.on_breach(figures, now, 0.5, &rules()).unwrap()
}

fn recovers(routing: &mut Routing, now: Timestamp) -> Flip {
    let probe = routing.on_tick(now, 0.5, &rules()).unwrap();
    routing.on_probe(probe, Sample::Success, now, 0.5, &rules());
    routing.on_canary(routing.trial(), Some(Sample::Success), now, 0.5, &rules()).unwrap()
}

/// What operators are told of a storm.
fn alarm(cause: &str) -> NewNotification {
    NewNotification::new(Uuid::now_v7(), Addressee::Operators, notice::of_storm(5, 5), cause)
}

/// Flips a workspace, with a note in a session, as it stands on the disk.
async fn flips(
    store: &Store,
    key: &WorkspaceKey,
    session: Option<SessionId>,
    systemic: Option<NewNotification>,
    seconds: i64,
    flip: impl FnOnce(&mut Routing, Timestamp) -> Flip,
) {
    let now = at(seconds * SECOND);
    let mut routing = store.route(key.clone()).await.unwrap().map_or(Routing::new(Route::Acp), |row| row.routing);
    let expected_epoch = routing.epoch();
    let flip = flip(&mut routing, now);
    let record = FlipRecord {
        migration_id: Uuid::now_v7(),
        event_id: Uuid::now_v7(),
        run_id: None,
        note: TranscriptEntry::text("rollback", notice::of_flip(&flip).body.as_str()),
        flip,
        reason_code: ReasonCode::Threshold,
        follow_up: Some(FollowUp::NotifyUsers),
        metrics: Redacted::new("{}"),
        notes: session.into_iter().collect(),
        systemic,
    };
    let (migration_enabled, auto_rollout, key) = (None, None, key.clone());
    let save = SaveRoute { key, expected_epoch, routing, migration_enabled, auto_rollout, flip: Some(record), now };
    assert_eq!(store.save_route(save).await, Ok(SavedRoute::Saved));
}

/// What a sequence told, by its trigger.
async fn told(store: &Store, stream: Stream) -> Vec<&'static str> {
    let rows = store.notifications_after(Scope::all(stream), 0, 100).await.unwrap().rows;
    rows.iter().flatten().map(|row| row.trigger.as_str()).collect()
}

both_databases! {
    async fn a_workspace_whose_fall_was_told_to_operators_alone_comes_back_without_a_toast(database: TestDatabase) {
        let store = database.open();
        let web = key("acme", "web");
        let session = session(&store).await;
        let users = || Stream::Tenant(web.installation_id.clone());
        flips(&store, &web, Some(session), Some(alarm("a storm")), 0, falls).await;
        // Whoever started last reads the same.
        drop(store);
        let store = database.open();
        flips(&store, &web, Some(session), None, 60, recovers).await;
        assert_eq!(told(&store, users()).await, [""; 0]);
        assert_eq!(told(&store, Stream::Operators).await, ["systemicRollback"]);
        assert_eq!(texts(&store, session).await.len(), 2, "a note of each");
        let alarms = store.read(|connection| {
            use crate::store::schema::rollback_events::{alarm_id, epoch, table};
            Ok(table.order(epoch.desc()).select((epoch, alarm_id)).load::<(i64, Option<String>)>(connection)?)
        });
        assert_eq!(alarms.await.unwrap(), [(2, None), (1, Some("a storm".to_owned()))]);
        // Its next fall is its own, and so is that return.
        flips(&store, &web, Some(session), None, 200, falls).await;
        flips(&store, &web, Some(session), None, 260, recovers).await;
        assert_eq!(told(&store, users()).await, ["autoThreshold", "recovered"]);
    }

    async fn what_somebody_does_after_a_storm_is_told_and_so_is_a_return_from_it(database: TestDatabase) {
        let store = database.open();
        let (web, api) = (key("acme", "web"), key("other", "api"));
        for workspace in [&web, &api] {
            flips(&store, workspace, None, Some(alarm("a storm")), 0, falls).await;
        }
        flips(&store, &web, None, None, 1, |routing, now| routing.restore(attribution(), now).unwrap()).await;
        assert_eq!(told(&store, Stream::Tenant(web.installation_id)).await, ["manualOperator"]);
        // A pin that is released puts it back on the fallback: that is told, and so its end.
        flips(&store, &api, None, None, 1, |routing, now| routing.set_pin(Route::Acp, attribution(), now).unwrap()).await;
        flips(&store, &api, None, None, 2, |routing, now| routing.release_pin(attribution(), now).unwrap()).await;
        flips(&store, &api, None, None, 60, recovers).await;
        let all = ["manualOperator", "manualOperator", "recovered"];
        assert_eq!(told(&store, Stream::Tenant(api.installation_id)).await, all);
        assert_eq!(told(&store, Stream::Operators).await, ["systemicRollback"], "one for both");
    }

    async fn a_return_is_told_also_where_the_toast_of_the_fall_is_gone(database: TestDatabase) {
        let store = database.open();
        let web = key("acme", "web");
        flips(&store, &web, None, None, 0, falls).await;
        assert_eq!(store.prune(Retained::Notifications, at(SECOND), 10).await, Ok(1));
        flips(&store, &web, None, None, 60, recovers).await;
        assert_eq!(told(&store, Stream::Tenant(web.installation_id)).await, ["recovered"]);
    }

    async fn an_alarm_is_found_until_its_end_is_told_with_the_flips_around_it(database: TestDatabase) {
        let store = database.open();
        let names = ["a", "b", "c", "d"].map(|name| key("acme", name));
        let [a, b, c, d] = &names;
        let unended = async |max| store.unended_storm(Duration::from_secs(300), max).await.unwrap();
        flips(&store, a, None, None, 99, falls).await;
        flips(&store, b, None, None, 100, falls).await;
        assert_eq!(unended(10).await, None, "nothing was told yet");
        flips(&store, c, None, Some(alarm("one")), 400, falls).await;
        flips(&store, d, None, None, 401, |routing, now| routing.roll_back(attribution(), now).unwrap()).await;
        flips(&store, b, None, None, 402, recovers).await;
        flips(&store, b, None, Some(alarm("one")), 500, falls).await;
        let found = unended(10).await.unwrap();
        let known = |us: i64, key: &WorkspaceKey| (at(us * SECOND), key.clone());
        let expected = [known(100, b), known(400, c), known(500, b)];
        assert_eq!((found.since, found.flips.as_slice()), (at(400 * SECOND), &expected[..]));
        assert_eq!(found.alarms.iter().map(|alarm| alarm.cause_id.as_str()).collect::<Vec<_>>(), ["one"]);
        assert_eq!(unended(2).await.unwrap().flips, expected[1..], "the newest");
        // Another one, and what else operators are told.
        assert!(store.tell(alarm("two"), at(600 * SECOND)).await.unwrap());
        assert_eq!(unended(10).await.unwrap().alarms.len(), 2);
        for cause in ["one:resolved", "two:resolved"] {
            assert!(unended(10).await.is_some());
            assert!(store.tell(alarm(cause), at(700 * SECOND)).await.unwrap());
        }
        assert_eq!(unended(10).await, None);
    }

    async fn an_alarm_whose_end_was_removed_by_its_age_has_one(database: TestDatabase) {
        let posting = StoreOptions { webhook: Some("https://hooks.example.com".into()), ..database.options() };
        let store = Store::open(posting, database.metrics.clone()).unwrap();
        store.tell(alarm("one"), at(0)).await.unwrap();
        drop(store);
        // Still to be posted, it is not removed; its end, with which nothing is to be done, is.
        let store = database.open();
        store.tell(alarm("one:resolved"), at(1)).await.unwrap();
        assert_eq!(store.prune(Retained::Notifications, at(2), 10).await, Ok(1));
        assert_eq!(told(&store, Stream::Operators).await.len(), 1);
        assert_eq!(store.unended_storm(Duration::from_secs(300), 10).await, Ok(None));
    }
}
