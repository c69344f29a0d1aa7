//! Audit lists and their summary, retention, and the routing settings of tenants.

use std::time::Duration;

use diesel::connection::SimpleConnection;
use serde_json::{Value, json};
use uuid::Uuid;

use super::fixture::*;
use crate::{
    contract::audit::{MigrationItem, TransitionItem},
    domain::{
        changes::ChangeKind,
        clock::Timestamp,
        ids::{InstallationId, WorkspaceKey},
        redaction::RedactedJson,
        routing::{Attribution, FlipTrigger, Initiator, Route, Routing, success_window::Sample},
        session::connection::ConnectionStatus,
        turn::{
            TurnState,
            outcome::{ErrorCode, Failure},
            transcript::TranscriptEntry,
        },
        words::{FollowUp, MigrationStatus, ReasonCode, RollbackKind},
    },
    store::{
        AuditDay, AuditFilter, AutomationFigures, Cursor, FlipRecord, Listed, NewChange, NewConnection,
        NewConnectionEvent, NewSession, NewTurn, OutcomeCount, Page, Retained, SaveRoute, Store, StoreError,
        TenantProtocol, TurnEnd, TurnFigures,
    },
};

const DAY_US: i64 = 86_400_000_000;

fn of(tenant: &str) -> AuditFilter {
    AuditFilter { installation_id: Some(tenant.parse().unwrap()), ..AuditFilter::default() }
}

/// The record of a change of a tenant's settings.
fn admin_change(tenant: &InstallationId, now: Timestamp) -> NewChange {
    let attribution = Attribution {
        initiator: Initiator::Operator,
        actor: "ada".into(),
        actor_note: None,
        reason: "a contract".into(),
    };
    NewChange::of_tenant(ChangeKind::TenantProtocol, tenant, &attribution, now)
}

fn all() -> Page {
    Page { limit: 1000, after: None }
}

/// Rolls a workspace back and restores it alternately, `count` times, a second apart.
async fn flips(store: &Store, key: &WorkspaceKey, first: i64, count: i64) {
    let mut routing = store.route(key.clone()).await.unwrap().map_or(Routing::new(Route::Acp), |row| row.routing);
    for n in first..first + count {
        let now = at(n * 1_000_000);
        let expected_epoch = routing.epoch();
        let attribution = Attribution {
            initiator: Initiator::Operator,
            actor: "ada".into(),
            actor_note: None,
            reason: format!("for {n}"),
        };
        let flip = match routing.route() {
            Route::Acp => routing.roll_back(attribution, now),
            Route::Http => routing.restore(attribution, now),
        };
        let flip = FlipRecord {
            migration_id: Uuid::now_v7(),
            event_id: Uuid::now_v7(),
            run_id: None,
            flip: flip.unwrap(),
            reason_code: ReasonCode::Manual,
            follow_up: Some(FollowUp::ScheduleReview),
            metrics: RedactedJson::of(&json!({})),
            notes: Vec::new(),
            note: TranscriptEntry::text("rollback", "note"),
            automatic: None,
        };
        let decision = SaveRoute {
            key: key.clone(),
            expected_epoch,
            routing: routing.clone(),
            migration_enabled: None,
            auto_rollout: None,
            flip: Some(flip),
            now,
        };
        store.save_route(decision).await.unwrap();
    }
}

pub(super) fn handshake(key: WorkspaceKey, us: i64) -> NewConnection {
    NewConnection {
        connection_row_id: Uuid::now_v7(),
        key,
        session_id: None,
        connection_id: None,
        protocol: Route::Acp,
        protocol_version: Some(1),
        agent_name: Some("demo".into()),
        agent_version: None,
        capabilities: Some(RedactedJson::of(&json!({"loadSession": true}))),
        failure: None,
        handshake: Duration::from_millis(12),
        is_probe: false,
        session_notice: None,
        now: at(us),
    }
}

pub(super) fn event(of: &NewConnection, status: ConnectionStatus, us: i64) -> NewConnectionEvent {
    NewConnectionEvent {
        event_id: Uuid::now_v7(),
        connection_row_id: of.connection_row_id,
        key: of.key.clone(),
        session_id: of.session_id,
        status,
        cause: format!("at {us}"),
        health: None,
        session_notice: None,
        now: at(us),
    }
}

async fn sql(store: &Store, statements: String) {
    store
        .write(move |tx| {
            tx.connection.batch_execute(&statements)?;
            Ok(())
        })
        .await
        .unwrap();
}

fn run(id: u32, tenant: &str, session: &str, us: i64) -> String {
    format!(
        "INSERT INTO automation_runs (run_id, installation_id, workspace_id, session_id, status, mode, skip_reason, \
         duration_ms, attempts, logs, created_us) VALUES ('{}', '{tenant}', 'web', '{session}', 'skipped', 'github', \
         'rateLimited', 5, 1, '[]', {});",
        Uuid::from_u128(id.into()),
        at(us).0
    )
}

fn notification(id: u32, tenant: &str, us: i64) -> String {
    format!(
        "INSERT INTO notifications (notification_id, stream, installation_id, workspace_id, seq, title, body, severity, \
         trigger, auto_dismiss_ms, cause_id, created_us) VALUES ('{}', 'tenant:{tenant}', '{tenant}', 'web', {id} + 101, \
         'Automation update', 'body', 'warning', 'automationSkipped', 10000, 'cause-{tenant}-{id}', {});",
        Uuid::from_u128(id.into()),
        at(us).0
    )
}

both_databases! {
    async fn flips_are_paged_and_filtered_by_workspace_time_and_session(database: TestDatabase) {
        let store = database.open();
        let (web, api) = (key("acme", "web"), key("acme", "api"));
        flips(&store, &web, 0, 5).await;
        flips(&store, &api, 2, 3).await;
        flips(&store, &key("other", "web"), 0, 2).await;
        for limit in [1, 3, 100] {
            let (mut migrations, mut after): (Vec<MigrationItem>, Option<Cursor>) = (Vec::new(), None);
            loop {
                let page = store.migrations(of("acme"), Page { limit, after }).await.unwrap();
                let Some(last) = page.last() else { break };
                after = Some(last.cursor().to_string().parse().unwrap());
                migrations.extend(page);
            }
            assert_eq!(migrations.len(), 8);
            assert!(migrations.is_sorted_by(|a, b| (a.started_at, a.migration_id) > (b.started_at, b.migration_id)));
        }
        let filter = AuditFilter { workspace_id: Some("web".parse().unwrap()), ..of("acme") };
        let rows = store.migrations(filter.clone(), all()).await.unwrap();
        let expected = MigrationItem {
            migration_id: rows[4].migration_id,
            run_id: None,
            installation_id: web.installation_id.clone(),
            workspace_id: web.workspace_id.clone(),
            from_protocol: Route::Acp,
            to_protocol: Route::Http,
            epoch: Some(1),
            initiated_by: Initiator::Operator,
            actor: "ada".into(),
            actor_note: None,
            trigger: FlipTrigger::ManualOperator,
            reason: "for 0".into(),
            status: MigrationStatus::Succeeded,
            metrics: json!({}),
            started_at: at(0),
            completed_at: Some(at(0)),
        };
        assert_eq!((rows.len(), &rows[4]), (5, &expected));
        let between = AuditFilter { from: Some(at(1_000_000)), until: Some(at(3_000_000)), ..filter };
        let events = store.rollback_events(between, all()).await.unwrap();
        let seen: Vec<_> = events.iter().map(|it| (it.epoch, it.kind, it.reason.as_str())).collect();
        assert_eq!(seen, [(3, RollbackKind::Rollback, "for 2"), (2, RollbackKind::Restore, "for 1")]);
        assert_eq!((events[0].reason_code, events[0].follow_up), (ReasonCode::Manual, Some(FollowUp::ScheduleReview)));

        let session = NewSession { key: api.clone(), workspace: Some(new_workspace(&api, 0)), ..new_session(3_000_000) };
        let filter = AuditFilter { session_id: Some(session.session_id), ..AuditFilter::default() };
        assert_eq!(store.migrations(filter.clone(), all()).await.unwrap(), []);
        store.create_session(session).await.unwrap();
        let events = store.rollback_events(filter.clone(), all()).await.unwrap();
        assert_eq!(events.iter().map(|it| it.reason.as_str()).collect::<Vec<_>>(), ["for 4", "for 3"]);
        let elsewhere = AuditFilter { installation_id: Some("other".parse().unwrap()), ..filter };
        assert_eq!(store.rollback_events(elsewhere, all()).await.unwrap(), []);
    }

    async fn migration_run_step_is_a_row_without_an_epoch(database: TestDatabase) {
        let store = database.open();
        flips(&store, &key("acme", "web"), 0, 1).await;
        let flip = store.migrations(of("acme"), all()).await.unwrap().remove(0);
        let step = MigrationItem {
            migration_id: Uuid::now_v7(),
            run_id: Some(Uuid::now_v7()),
            epoch: None,
            status: MigrationStatus::Scheduled,
            started_at: at(9),
            completed_at: None,
            ..flip.clone()
        };
        for _ in 0..2 {
            store.record_migration(step.clone()).await.unwrap();
        }
        assert_eq!(store.migrations(of("acme"), all()).await.unwrap(), [step, flip.clone()]);
        // The same flip with another id.
        let doubled = MigrationItem { migration_id: Uuid::now_v7(), ..flip };
        store.record_migration(doubled).await.unwrap();
        assert_eq!(store.migrations(of("acme"), all()).await.unwrap().len(), 2);
    }

    async fn connections_are_read_with_their_transitions(database: TestDatabase) {
        let store = database.open();
        let session = session(&store).await;
        let good = NewConnection { session_id: Some(session), ..handshake(key("acme", "web"), 1) };
        let failed = NewConnection {
            failure: Some(Failure::new(ErrorCode::AgentCrashed, "no answer")),
            is_probe: true,
            ..handshake(key("acme", "web"), 2)
        };
        for new in [&good, &failed, &handshake(key("other", "web"), 3)] {
            store.record_handshake(new.clone(), None).await.unwrap();
        }
        for (status, us) in [(ConnectionStatus::Connected, 4), (ConnectionStatus::Degraded, 5)] {
            store.record_connection_event(event(&good, status, us)).await.unwrap();
        }
        let rows = store.connections(of("acme"), all()).await.unwrap();
        assert_eq!(rows.len(), 2);
        assert_eq!((rows[0].is_probe, rows[0].session_id, rows[0].transitions.len()), (true, None, 0));
        assert_eq!((rows[0].error_code, rows[0].error_detail.as_deref()), (Some(ErrorCode::AgentCrashed.as_str()), Some("no answer")));
        let row = &rows[1];
        assert_eq!((row.connection_row_id, row.protocol_version, row.handshake_ms), (good.connection_row_id, Some(1), 12));
        assert_eq!((&row.capabilities, row.created_at), (&json!({"loadSession": true}), at(1)));
        let expected = TransitionItem { status: "degraded".into(), cause: "at 5".into(), health: Value::Null, at: at(5) };
        assert_eq!((row.transitions.len(), &row.transitions[1]), (2, &expected));
        let of_session = AuditFilter { session_id: Some(session), ..AuditFilter::default() };
        assert_eq!(store.connections(of_session, all()).await.unwrap(), std::slice::from_ref(row));
        let after = Page { limit: 1, after: Some(rows[0].cursor()) };
        assert_eq!(store.connections(of("acme"), after).await.unwrap(), std::slice::from_ref(row));
    }

    async fn automation_runs_and_notifications_are_paged(database: TestDatabase) {
        let store = database.open();
        let session = session(&store).await;
        let rows: String = (0..7).map(|n| run(n, "acme", &session.to_string(), 1) + &notification(n, "acme", 1)).collect();
        sql(&store, rows + &run(9, "other", &session.to_string(), 2) + &notification(9, "other", 2)).await;
        let first = store.automation_runs(of("acme"), Page { limit: 4, after: None }).await.unwrap();
        let second = Page { limit: 4, after: Some(first[3].cursor()) };
        let second = store.automation_runs(of("acme"), second).await.unwrap();
        let ids: Vec<_> = first.iter().chain(&second).map(|row| row.run_id.as_u128()).collect();
        assert_eq!(ids, [6, 5, 4, 3, 2, 1, 0]);
        assert_eq!((first[0].status.as_str(), first[0].skip_reason.as_deref()), ("skipped", Some("rateLimited")));
        let first = store.notifications(of("acme"), Page { limit: 4, after: None }).await.unwrap();
        let second = Page { limit: 4, after: Some(first[3].cursor()) };
        assert_eq!(store.notifications(of("acme"), second).await.unwrap().len(), 3);
        assert_eq!((first[0].seq, first[0].auto_dismiss_ms), (107, 10_000));
        let of_session = AuditFilter { session_id: Some(session), ..AuditFilter::default() };
        assert_eq!(store.automation_runs(of_session.clone(), all()).await.unwrap().len(), 8);
        assert_eq!(store.notifications(of_session, all()).await.unwrap().len(), 7, "those of its whole workspace");
    }

    async fn summary_groups_turns_and_flips_by_day_tenant_and_protocol(database: TestDatabase) {
        let store = database.open();
        let session = session(&store).await;
        let midnight = at(0).0.div_euclid(DAY_US) * DAY_US - at(0).0 + DAY_US;
        // Twenty completed turns for each protocol and day, which take 1 to 20 ms; over HTTP ten times as long.
        for (protocol, unit) in [(Route::Acp, 1000), (Route::Http, 10_000)] {
            for day in 0..2 {
                for n in 1..=20 {
                    let began = midnight + day * DAY_US + n;
                    let turn = NewTurn { protocol, ..new_turn(session, began) };
                    let end_of = TurnEnd { protocol, ..turn_end(session, turn.prompt_id, began + n * unit) };
                    store.accept_turn(turn).await.unwrap();
                    end(&store, end_of).await.unwrap();
                }
            }
        }
        for state in [TurnState::Failed, TurnState::Cancelled, TurnState::Interrupted] {
            let turn = new_turn(session, midnight);
            let end_of = TurnEnd { state, ..turn_end(session, turn.prompt_id, midnight + 1) };
            store.accept_turn(turn).await.unwrap();
            end(&store, end_of).await.unwrap();
        }
        let open = NewTurn { key: key("beta", "web"), ..new_turn(session, midnight + DAY_US - 1) };
        store.accept_turn(open).await.unwrap();
        flips(&store, &key("acme", "web"), midnight / 1_000_000 + 1, 3).await;

        let (from, until) = (at(midnight), at(midnight + 2 * DAY_US));
        let summary = store.audit_summary(None, from, until).await.unwrap();
        let ms = |ms| Some(Duration::from_millis(ms));
        let acp = TurnFigures { completed: 20, p50: ms(10), p95: ms(19), ..TurnFigures::default() };
        let http = TurnFigures { completed: 20, p50: ms(100), p95: ms(190), ..TurnFigures::default() };
        let second = AuditDay {
            day: at(midnight + DAY_US),
            installation_id: "acme".parse().unwrap(),
            acp,
            http,
            flips_to_http: 0,
            flips_to_acp: 0,
            automation: AutomationFigures::default(),
        };
        let first = AuditDay {
            day: from,
            acp: TurnFigures { failed: 1, cancelled: 1, interrupted: 1, ..acp },
            flips_to_http: 2,
            flips_to_acp: 1,
            ..second.clone()
        };
        let beta = AuditDay {
            day: from,
            installation_id: "beta".parse().unwrap(),
            acp: TurnFigures { open: 1, ..TurnFigures::default() },
            http: TurnFigures::default(),
            flips_to_http: 0,
            flips_to_acp: 0,
            automation: AutomationFigures::default(),
        };
        assert_eq!(first.acp.success_rate_bp(), Some(9090));
        assert_eq!(beta.acp.success_rate_bp(), None);
        assert_eq!(summary.from, from);
        assert_eq!(summary.days, [second.clone(), first, beta.clone()]);
        let of_beta = store.audit_summary(Some("beta".parse().unwrap()), from, until).await.unwrap();
        assert_eq!(of_beta.days, [beta]);
        let nothing = store.audit_summary(None, until, Timestamp(i64::MAX)).await.unwrap();
        assert_eq!(nothing.days, []);

        // More turns than the limit: the oldest are left out, and `from` is the start of the complete figures.
        let cut = store.read(move |connection| crate::store::audit::summary::summary(connection, None, from, until, 40));
        let cut = cut.await.unwrap();
        assert_eq!((cut.from, cut.days), (at(midnight + DAY_US), vec![second]));
    }

    async fn retention_deletes_the_oldest_rows_first_in_chunks(database: TestDatabase) {
        let store = database.open();
        let web = key("acme", "web");
        flips(&store, &web, 0, 4).await;
        let lasting = handshake(web.clone(), 1);
        for new in [lasting.clone(), handshake(web.clone(), 2), handshake(web.clone(), 9_000_000)] {
            let counts = OutcomeCount { epoch: 0, route: Route::Acp, bucket: new.now, sample: Sample::Success };
            store.record_handshake(new, Some(counts)).await.unwrap();
        }
        for us in [3, 9_000_000] {
            store.record_connection_event(event(&lasting, ConnectionStatus::Degraded, us)).await.unwrap();
        }
        let removal = |n: i32| {
            let at = at(i64::from(n) * 1_000_000).0;
            format!("INSERT INTO removals VALUES ('{n}', 'acme', NULL, 'turns', 'retention', 'a', 'r', 1, {at});")
        };
        let rows = (0..4).map(|n| run(n, "acme", "s", i64::from(n) * 1_000_000) + &notification(n, "acme", i64::from(n)));
        let token = |n: i32| {
            let at = at(i64::from(n) * 1_000_000).0;
            // Expired, revoked, and one that can be used.
            let ends = match n {
                4 => "NULL, NULL, NULL".to_owned(),
                n if n % 2 == 0 => format!("{at}, NULL, NULL"),
                _ => format!("NULL, {at}, 'a'"),
            };
            let id = uuid::Uuid::from_u128(u128::from(n.unsigned_abs()));
            format!("INSERT INTO client_tokens VALUES ('{id}', 'h{n}', 'acme', NULL, NULL, 'a', 'user', '{{}}', 'a', 0, {ends}, NULL);")
        };
        let change = |n: i32| {
            let (id, at) = (uuid::Uuid::from_u128(u128::from(n.unsigned_abs())), at(i64::from(n) * 1_000_000).0);
            format!("INSERT INTO admin_changes VALUES ('{id}', 'acme', NULL, 'tokenRevoked', 'o', 'a', NULL, NULL, 'null', '{{}}', {at});")
        };
        let delivery = |n: i32| {
            // One on which work remains is kept.
            let (at, due) = (at(i64::from(n) * 1_000_000).0, if n == 4 { "1" } else { "NULL" });
            let created = if n == 4 { 0 } else { at };
            format!("INSERT INTO github_deliveries VALUES ('{n}', 'acme', 'w', NULL, NULL, 'issues', 's', NULL, '{{}}', 0, 0, {due}, {created}, 0);")
        };
        let rows = rows.chain((0..4).map(removal)).chain((0..4).map(change)).chain((0..5).map(token)).chain((0..5).map(delivery));
        let session = new_session(0).session_id.to_string();
        let rows: String = rows.collect::<String>().replace("'s'", &format!("'{session}'"));
        sql(&store, "UPDATE notification_streams SET head = 1000;".to_owned() + &rows).await;

        let two_seconds = at(2_000_000);
        let mut pruned = Vec::new();
        for what in Retained::ALL {
            // One row, and then all the others.
            let first = store.prune(what, two_seconds, 1).await.unwrap();
            pruned.push((first, store.prune(what, two_seconds, 1000).await.unwrap()));
            assert_eq!(store.prune(what, two_seconds, 1000).await, Ok(0));
        }
        assert_eq!(pruned, [(1, 1), (1, 1), (1, 1), (1, 1), (1, 1), (1, 1), (1, 1), (1, 1), (1, 1), (1, 5)]);
        let left = store.connections(of("acme"), all()).await.unwrap();
        assert_eq!(left.iter().map(|row| (row.created_at, row.transitions.len())).collect::<Vec<_>>(), [(at(9_000_000), 0), (at(1), 1)]);
        assert_eq!(store.migrations(of("acme"), all()).await.unwrap().len(), 2);
        assert_eq!(store.rollback_events(of("acme"), all()).await.unwrap().len(), 2);
        assert_eq!(store.window(web, 0, Route::Acp, at(0)).await.unwrap().len(), 1);
        assert_eq!(store.automation_runs(of("acme"), all()).await.unwrap().len(), 2);
        assert_eq!(store.changes(of("acme"), all()).await.unwrap().len(), 2);
        assert_eq!(store.list_tokens(None, all()).await.unwrap().len(), 3, "two ended late, and one can be used");
    }

    async fn tenant_settings_are_stored_and_replaced(database: TestDatabase) {
        let store = database.open();
        let mut wanted = TenantProtocol {
            installation_id: "acme".parse().unwrap(),
            default_protocol: Route::Acp,
            enable_acp: true,
            allow_migration: true,
            auto_migration: false,
            blocked_repositories: vec!["octo/a".into(), "octo/ü\0".into()],
            updated: at(1),
        };
        assert_eq!(store.tenant_protocol(wanted.installation_id.clone()).await, Ok(None));
        for protocol in [Route::Acp, Route::Http] {
            wanted.default_protocol = protocol;
            wanted.enable_acp = protocol == Route::Acp;
            let change = admin_change(&wanted.installation_id, at(1));
            store.save_tenant_protocol(wanted.clone(), change).await.unwrap();
            assert_eq!(store.tenant_protocol(wanted.installation_id.clone()).await, Ok(Some(wanted.clone())));
        }
        assert_eq!(store.changes(of("acme"), all()).await.unwrap().len(), 2, "one record for each write");
        assert_eq!(store.tenant_protocol("other".parse().unwrap()).await, Ok::<_, StoreError>(None));
    }
}
