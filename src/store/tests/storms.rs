//! Many rollbacks at once: operators are notified once in place of the workspaces' users, only recipients of a rollback's
//! notification are notified of the recovery, and a storm ends once.

use std::time::Duration;

use diesel::{ExpressionMethods, QueryDsl, RunQueryDsl};
use serde_json::json;
use uuid::Uuid;

use super::fixture::*;
use crate::{
    domain::{
        clock::Timestamp,
        ids::{SessionId, WorkspaceKey},
        notify::{
            notice,
            notification::{Scope, Stream},
        },
        redaction::RedactedJson,
        routing::{
            Attribution, Flip, Initiator, RecoveryRules, Route, Routing,
            storm::AutomaticRollback,
            success_window::{Sample, WindowFigures, WindowState},
        },
        turn::transcript::TranscriptEntry,
        words::{FollowUp, ReasonCode},
    },
    store::{FlipRecord, Retained, SaveRoute, SavedRoute, Store, routing::storms::FLIPPED},
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
    Attribution { initiator: Initiator::Operator, actor: "ada".into(), actor_note: None, reason: "a drill".into() }
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

/// Workspaces in use, of which five make a storm.
const LIVE: usize = 8;

/// Flips a workspace from its stored state, with a note in a session.
async fn flip_workspace(
    store: &Store,
    key: &WorkspaceKey,
    session: Option<SessionId>,
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
        automatic: flip.is_automatic_rollback().then_some(AutomaticRollback { at: now, live: LIVE, started: at(0) }),
        flip,
        reason_code: ReasonCode::Threshold,
        follow_up: Some(FollowUp::NotifyUsers),
        metrics: RedactedJson::of(&json!({})),
        notes: session.into_iter().collect(),
    };
    let (migration_enabled, auto_rollout, key) = (None, None, key.clone());
    let save = SaveRoute { key, expected_epoch, routing, migration_enabled, auto_rollout, flip: Some(record), now };
    assert_eq!(store.save_route(save).await, Ok(SavedRoute::Saved));
}

/// Rolls four workspaces back, each of a tenant of its own: the next rollback begins a storm.
async fn four_rollbacks(store: &Store, seconds: i64) {
    for tenant in ["one", "two", "three", "four"] {
        flip_workspace(store, &key(tenant, "web"), None, seconds, roll_back).await;
    }
}

/// Ends the storm if it is over; returns its highest number of workspaces.
async fn end_storm(store: &Store, seconds: i64) -> Option<usize> {
    let now = at(seconds * SECOND);
    store.end_rollback_storm(LIVE, now, now).await.unwrap().map(|storm| storm.most_flipped)
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
        four_rollbacks(&store, 0).await;
        flip_workspace(&store, &web, Some(session), 0, roll_back).await;
        // The alarm must be read back after a restart.
        drop(store);
        let store = database.open();
        flip_workspace(&store, &web, Some(session), 60, recover).await;
        assert_eq!(triggers(&store, users()).await, [""; 0]);
        assert_eq!(triggers(&store, Stream::Operators).await, ["systemicRollback"]);
        assert_eq!(texts(&store, session).await.len(), 2, "a note for each flip");
        let alarms = store.read(|connection| {
            use crate::store::schema::rollback_events::{alarm_id, epoch, event_id, installation_id, table};
            let events = table.filter(installation_id.eq("acme")).order(epoch.desc());
            Ok(events.select((event_id, alarm_id)).load::<(String, Option<String>)>(connection)?)
        });
        let alarms = alarms.await.unwrap();
        assert!(alarms.len() == 2 && alarms[0].1.is_none() && alarms[1].1.as_ref() == Some(&alarms[1].0), "{alarms:?}");
        // The next rollback is announced to users, and so is its recovery.
        flip_workspace(&store, &web, Some(session), 400, roll_back).await;
        flip_workspace(&store, &web, Some(session), 460, recover).await;
        assert_eq!(triggers(&store, users()).await, ["autoThreshold", "recovered"]);
    }

    async fn manual_flips_after_a_storm_and_their_recoveries_are_notified(database: TestDatabase) {
        let store = database.open();
        let (web, api) = (key("acme", "web"), key("other", "api"));
        four_rollbacks(&store, 0).await;
        for workspace in [&web, &api] {
            flip_workspace(&store, workspace, None, 0, roll_back).await;
        }
        let restore = |routing: &mut Routing, now| routing.restore(attribution(), now).unwrap();
        flip_workspace(&store, &web, None, 1, restore).await;
        assert_eq!(triggers(&store, Stream::Tenant(web.installation_id)).await, ["manualOperator"]);
        // Releasing the pin puts the workspace back on the fallback: users are notified of that and of the recovery.
        let pin = |routing: &mut Routing, now| routing.set_pin(Route::Acp, attribution(), now).unwrap();
        let release = |routing: &mut Routing, now| routing.release_pin(attribution(), now).unwrap();
        flip_workspace(&store, &api, None, 1, pin).await;
        flip_workspace(&store, &api, None, 2, release).await;
        flip_workspace(&store, &api, None, 60, recover).await;
        let all = ["manualOperator", "manualOperator", "recovered"];
        assert_eq!(triggers(&store, Stream::Tenant(api.installation_id)).await, all);
        assert_eq!(triggers(&store, Stream::Operators).await, ["systemicRollback"], "one alarm for both workspaces");
    }

    async fn recovery_is_notified_after_the_rollback_notification_is_pruned(database: TestDatabase) {
        let store = database.open();
        let web = key("acme", "web");
        flip_workspace(&store, &web, None, 0, roll_back).await;
        assert_eq!(store.prune(Retained::Notifications, at(SECOND), 10).await, Ok(1));
        flip_workspace(&store, &web, None, 60, recover).await;
        assert_eq!(triggers(&store, Stream::Tenant(web.installation_id)).await, ["recovered"]);
    }

    async fn storm_counts_each_workspace_once_and_automatic_rollbacks_alone(database: TestDatabase) {
        let store = database.open();
        let (web, api) = (key("acme", "web"), key("acme", "api"));
        let storm = async |seconds| store.rollback_storm(at(seconds * SECOND)).await.unwrap();
        four_rollbacks(&store, 0).await;
        let by_hand = |routing: &mut Routing, now| routing.roll_back(attribution(), now).unwrap();
        flip_workspace(&store, &web, None, 1, by_hand).await;
        flip_workspace(&store, &key("one", "web"), None, 60, recover).await;
        flip_workspace(&store, &key("one", "web"), None, 100, roll_back).await;
        assert_eq!((storm(100).await, end_storm(&store, 100).await), (None, None), "four workspaces");
        flip_workspace(&store, &api, None, 200, roll_back).await;
        let (begun, flipped) = storm(200).await.unwrap();
        assert_eq!((begun.since, begun.most_flipped, flipped), (at(200 * SECOND), 5, 5));
        flip_workspace(&store, &key("acme", "cli"), None, 250, roll_back).await;
        let (joined, flipped) = storm(299).await.unwrap();
        assert_eq!((joined.id, joined.most_flipped, flipped), (begun.id, 6, 6));
        assert_eq!(storm(300).await.unwrap().1, 3, "three rollbacks of the last five minutes");
        assert_eq!(triggers(&store, Stream::Tenant(web.installation_id)).await, ["manualOperator"]);
    }

    async fn end_of_a_storm_is_announced_once(database: TestDatabase) {
        let (store, other) = (database.open(), database.open());
        assert_eq!(end_storm(&store, 0).await, None, "there is no storm");
        four_rollbacks(&store, 0).await;
        flip_workspace(&store, &key("acme", "web"), None, 10, roll_back).await;
        assert_eq!(end_storm(&store, 299).await, None, "five rollbacks within five minutes");
        // The storm outlives its alarm.
        assert_eq!(store.prune(Retained::Notifications, at(20 * SECOND), 10).await, Ok(5));
        let ended = tokio::join!(end_storm(&store, 300), end_storm(&other, 300));
        assert!(matches!(ended, (Some(5), None) | (None, Some(5))), "{ended:?}");
        assert_eq!(end_storm(&store, 301).await, None);
        assert_eq!(triggers(&store, Stream::Operators).await, ["systemicRollback"], "the end alone");
        assert_eq!(store.rollback_storm(at(0)).await, Ok(None));
    }

    async fn two_processes_raise_one_alarm_for_rollbacks_at_the_same_time(database: TestDatabase) {
        let (store, other) = (database.open(), database.open());
        for round in 0..10 {
            let seconds = round * 1000;
            // Of tenants whose streams are not locked together.
            let workspaces: Vec<_> = (0..5).map(|n| key(&format!("t{n}"), &format!("w{round}"))).collect();
            for workspace in &workspaces[..3] {
                flip_workspace(&store, workspace, None, seconds, roll_back).await;
            }
            // The fourth and the fifth: one of the two is alone, the other one begins the storm.
            tokio::join!(
                flip_workspace(&store, &workspaces[3], None, seconds, roll_back),
                flip_workspace(&other, &workspaces[4], None, seconds, roll_back),
            );
            assert_eq!(end_storm(&other, seconds + 300).await, Some(5), "round {round}");
        }
        let mut own = 0;
        for n in 0..5 {
            own += triggers(&store, Stream::Tenant(format!("t{n}").parse().unwrap())).await.len();
        }
        assert_eq!(own, 4 * 10);
        assert_eq!(triggers(&store, Stream::Operators).await.len(), 2 * 10, "an alarm and an end in each round");
        drop((store, other));
        assert_eq!(database.deadlocks(), 0);
    }
}

/// The count of a storm, as a statement without parameters.
fn count_statement() -> String {
    FLIPPED.replace("$1", "1").replace("$2", "2")
}

#[test]
fn rollbacks_of_a_storm_are_counted_through_their_index_on_sqlite() {
    #[derive(diesel::QueryableByName)]
    struct Step {
        #[diesel(sql_type = diesel::sql_types::Text)]
        detail: String,
    }
    run(TestDatabase::sqlite, |database| async move {
        let store = database.open();
        let plan = store.read(|connection| {
            let steps = diesel::sql_query(format!("EXPLAIN QUERY PLAN {}", count_statement()));
            Ok(steps.load::<Step>(connection)?.into_iter().map(|step| step.detail).collect::<Vec<_>>().join("\n"))
        });
        let plan = plan.await.unwrap();
        assert!(plan.contains("SEARCH rollback_events USING INDEX rollback_events_counted"), "{plan}");
    });
}

#[test]
fn rollbacks_of_a_storm_are_counted_through_their_index_on_postgres() {
    run(TestDatabase::postgres, |database| async move {
        drop(database.open());
        // The table is empty, so that a scan of it would be cheaper.
        database.execute(
            "CREATE FUNCTION plan(query text) RETURNS SETOF text LANGUAGE plpgsql SET enable_seqscan = off \
             AS $$ BEGIN RETURN QUERY EXECUTE 'EXPLAIN ' || query; END $$",
        );
        let plan = database.texts(&format!("SELECT plan AS text FROM plan('{}')", count_statement())).join("\n");
        assert!(plan.contains("rollback_events_counted"), "{plan}");
    });
}
