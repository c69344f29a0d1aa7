//! Many rollbacks at once: only recipients of a rollback's notification are notified of the recovery, and a storm
//! without an announced end is found.

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
            notification::{Addressee, NewNotification, Scope, Stream},
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

fn roll_back(routing: &mut Routing, now: Timestamp) -> Flip {
    let figures = WindowFigures { state: WindowState::Breached, samples: 20, failures: 1, length_seconds: 3600 };
    routing.on_breach(figures, now, 0.5, &rules()).unwrap()
}

fn recover(routing: &mut Routing, now: Timestamp) -> Flip {
    let probe = routing.on_tick(now, 0.5, &rules()).unwrap();
    routing.on_probe(probe, Sample::Success, now, 0.5, &rules());
    routing.on_canary(routing.trial(), Some(Sample::Success), now, 0.5, &rules()).unwrap()
}

/// The notification to operators about a storm.
fn alarm(cause: &str) -> NewNotification {
    NewNotification::new(Uuid::now_v7(), Addressee::Operators, notice::of_storm(5, 5), cause)
}

/// Flips a workspace from its stored state, with a note in a session.
async fn flip_workspace(
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

/// Triggers of a stream's notifications, in order.
async fn triggers(store: &Store, stream: Stream) -> Vec<&'static str> {
    let rows = store.notifications_after(Scope::all(stream), 0, 100).await.unwrap().rows;
    rows.iter().flatten().map(|row| row.trigger.as_str()).collect()
}

both_databases! {
    async fn recovery_from_a_rollback_announced_only_to_operators_is_silent(database: TestDatabase) {
        let store = database.open();
        let web = key("acme", "web");
        let session = session(&store).await;
        let users = || Stream::Tenant(web.installation_id.clone());
        flip_workspace(&store, &web, Some(session), Some(alarm("a storm")), 0, roll_back).await;
        // The alarm must be read back after a restart.
        drop(store);
        let store = database.open();
        flip_workspace(&store, &web, Some(session), None, 60, recover).await;
        assert_eq!(triggers(&store, users()).await, [""; 0]);
        assert_eq!(triggers(&store, Stream::Operators).await, ["systemicRollback"]);
        assert_eq!(texts(&store, session).await.len(), 2, "a note for each flip");
        let alarms = store.read(|connection| {
            use crate::store::schema::rollback_events::{alarm_id, epoch, table};
            Ok(table.order(epoch.desc()).select((epoch, alarm_id)).load::<(i64, Option<String>)>(connection)?)
        });
        assert_eq!(alarms.await.unwrap(), [(2, None), (1, Some("a storm".to_owned()))]);
        // The next rollback is announced to users, and so is its recovery.
        flip_workspace(&store, &web, Some(session), None, 200, roll_back).await;
        flip_workspace(&store, &web, Some(session), None, 260, recover).await;
        assert_eq!(triggers(&store, users()).await, ["autoThreshold", "recovered"]);
    }

    async fn manual_flips_after_a_storm_and_their_recoveries_are_notified(database: TestDatabase) {
        let store = database.open();
        let (web, api) = (key("acme", "web"), key("other", "api"));
        for workspace in [&web, &api] {
            flip_workspace(&store, workspace, None, Some(alarm("a storm")), 0, roll_back).await;
        }
        let restore = |routing: &mut Routing, now| routing.restore(attribution(), now).unwrap();
        flip_workspace(&store, &web, None, None, 1, restore).await;
        assert_eq!(triggers(&store, Stream::Tenant(web.installation_id)).await, ["manualOperator"]);
        // Releasing the pin puts the workspace back on the fallback: users are notified of that and of the recovery.
        let pin = |routing: &mut Routing, now| routing.set_pin(Route::Acp, attribution(), now).unwrap();
        let release = |routing: &mut Routing, now| routing.release_pin(attribution(), now).unwrap();
        flip_workspace(&store, &api, None, None, 1, pin).await;
        flip_workspace(&store, &api, None, None, 2, release).await;
        flip_workspace(&store, &api, None, None, 60, recover).await;
        let all = ["manualOperator", "manualOperator", "recovered"];
        assert_eq!(triggers(&store, Stream::Tenant(api.installation_id)).await, all);
        assert_eq!(triggers(&store, Stream::Operators).await, ["systemicRollback"], "one alarm for both workspaces");
    }

    async fn recovery_is_notified_after_the_rollback_notification_is_pruned(database: TestDatabase) {
        let store = database.open();
        let web = key("acme", "web");
        flip_workspace(&store, &web, None, None, 0, roll_back).await;
        assert_eq!(store.prune(Retained::Notifications, at(SECOND), 10).await, Ok(1));
        flip_workspace(&store, &web, None, None, 60, recover).await;
        assert_eq!(triggers(&store, Stream::Tenant(web.installation_id)).await, ["recovered"]);
    }

    async fn unended_storm_is_found_with_its_flips_until_its_end_is_announced(database: TestDatabase) {
        let store = database.open();
        let names = ["a", "b", "c", "d"].map(|name| key("acme", name));
        let [a, b, c, d] = &names;
        let unended = async |max| store.unended_storm(Duration::from_secs(300), max).await.unwrap();
        flip_workspace(&store, a, None, None, 99, roll_back).await;
        flip_workspace(&store, b, None, None, 100, roll_back).await;
        assert_eq!(unended(10).await, None, "no alarm has been raised yet");
        flip_workspace(&store, c, None, Some(alarm("one")), 400, roll_back).await;
        let by_hand = |routing: &mut Routing, now| routing.roll_back(attribution(), now).unwrap();
        flip_workspace(&store, d, None, None, 401, by_hand).await;
        flip_workspace(&store, b, None, None, 402, recover).await;
        flip_workspace(&store, b, None, Some(alarm("one")), 500, roll_back).await;
        let found = unended(10).await.unwrap();
        let known = |us: i64, key: &WorkspaceKey| (at(us * SECOND), key.clone());
        let expected = [known(100, b), known(400, c), known(500, b)];
        assert_eq!((found.since, found.flips.as_slice()), (at(400 * SECOND), &expected[..]));
        assert_eq!(found.alarms.iter().map(|alarm| alarm.cause_id.as_str()).collect::<Vec<_>>(), ["one"]);
        assert_eq!(unended(2).await.unwrap().flips, expected[1..], "the newest flips");
        // A second alarm, whose end is missing too.
        assert!(store.add_notification(alarm("two"), at(600 * SECOND)).await.unwrap());
        assert_eq!(unended(10).await.unwrap().alarms.len(), 2);
        for cause in ["one:resolved", "two:resolved"] {
            assert!(unended(10).await.is_some());
            assert!(store.add_notification(alarm(cause), at(700 * SECOND)).await.unwrap());
        }
        assert_eq!(unended(10).await, None);
    }

    async fn alarm_with_a_pruned_end_counts_as_ended(database: TestDatabase) {
        let posting = StoreOptions { webhook: Some("https://hooks.example.com".into()), ..database.options() };
        let store = Store::open(posting, database.metrics.clone()).unwrap();
        store.add_notification(alarm("one"), at(0)).await.unwrap();
        drop(store);
        // The alarm is kept because its delivery is pending; its end has no delivery and is pruned.
        let store = database.open();
        store.add_notification(alarm("one:resolved"), at(1)).await.unwrap();
        assert_eq!(store.prune(Retained::Notifications, at(2), 10).await, Ok(1));
        assert_eq!(triggers(&store, Stream::Operators).await.len(), 1);
        assert_eq!(store.unended_storm(Duration::from_secs(300), 10).await, Ok(None));
    }
}
