//! Migrations of fleets: optimistic locking, lists and retention.

use uuid::Uuid;

use super::fixture::*;
use crate::{
    domain::{
        clock::Timestamp,
        migration::{MigrationMode, MigrationPlan, MigrationRun, MigrationStatus, NextStep, WorkspaceFacts},
        redaction::Redacted,
        routing::{Attribution, Initiator, Route},
    },
    store::{
        MigrationRunFilter, MigrationRunRow, Page, Retained, SaveMigrationRun, SavedMigrationRun, Store, StoreOptions,
    },
};

const FINE: WorkspaceFacts = WorkspaceFacts {
    default_route: Some(Route::Http),
    is_pinned: false,
    migration_enabled: true,
    auto_rollout: false,
    tenant_allows: true,
    acp_enabled: true,
    is_blocked: false,
    supports_acp: true,
};

fn attribution(reason: &str) -> Attribution {
    Attribution { initiator: Initiator::Operator, actor: "ada".into(), actor_note: None, reason: reason.into() }
}

/// A migration of two workspaces, one of which has a name that looks like a secret.
fn planned(tenant: &str, us: i64) -> MigrationRun {
    let plan = MigrationPlan {
        installation_id: tenant.parse().unwrap(),
        target: Route::Acp,
        workspaces: vec!["desk-reservation-service-a".parse().unwrap(), "ws-2".parse().unwrap()],
        mode: MigrationMode::Now,
        batch_size: 2,
        max_failures: 1,
    };
    MigrationRun::new(plan, attribution("as ghp_abcdefghijklmnopqrstuvwxyz0123456789 asked"), at(us)).unwrap()
}

/// A run with both moves under way.
fn begun(mut run: MigrationRun) -> MigrationRun {
    let NextStep::Move(ids) = run.next_step(at(10), true) else { panic!("nothing to move") };
    for id in &ids {
        assert_eq!(run.begin_move(id, &FINE, at(10)), Some(Ok(())));
    }
    run
}

fn save(run_id: Uuid, expected_version: u64, run: &MigrationRun, us: i64) -> SaveMigrationRun {
    SaveMigrationRun { run_id, expected_version, run: run.clone(), now: at(us) }
}

async fn saved(store: &Store, save: SaveMigrationRun) -> u64 {
    match store.save_migration_run(save).await.unwrap() {
        SavedMigrationRun::Saved(version) => version,
        SavedMigrationRun::Stale(found) => panic!("stale: {found:?}"),
    }
}

async fn listed(store: &Store, filter: MigrationRunFilter) -> Vec<Uuid> {
    let page = Page { limit: 10, after: None };
    store.migration_runs(filter, page).await.unwrap().into_iter().map(|row| row.run_id).collect()
}

both_databases! {
    async fn fr_003_fleet_migration_is_read_back_as_it_was_written(database: TestDatabase) {
        let store = database.open();
        let run_id = Uuid::now_v7();
        assert_eq!(store.migration_run(run_id).await.unwrap(), None);
        let mut run = begun(planned("octo", 5));
        assert_eq!(saved(&store, save(run_id, 0, &run, 11)).await, 1);
        let names: Vec<_> = run.entries().iter().map(|entry| entry.workspace_id.clone()).collect();
        assert!(run.step_done(&names[0], at(12)));
        assert!(run.step_failed(&names[1], &Redacted::new("no \0 \"way\" 🦀"), at(13)));
        assert_eq!(saved(&store, save(run_id, 1, &run, 14)).await, 2);
        drop(store);
        let row = database.open().migration_run(run_id).await.unwrap().unwrap();
        let expected = MigrationRunRow { run_id, run: run.redacted(), version: 2, updated: at(14) };
        assert_eq!(row, expected);
        assert_eq!(row.run.entries(), run.entries(), "workspace ids are not redacted");
        assert_eq!(row.run.attribution().reason, "as [redacted] asked");
        assert_eq!(row.run.status(), MigrationStatus::Succeeded);
    }

    async fn one_of_two_concurrent_migration_writers_gets_stale(database: TestDatabase) {
        let store = database.open();
        let (run_id, planned) = (Uuid::now_v7(), planned("octo", 5));
        saved(&store, save(run_id, 0, &planned, 5)).await;
        let (moving, mut paused) = (begun(planned.clone()), planned.clone());
        paused.pause(attribution("wait")).unwrap();
        let (first, second) = tokio::join!(
            store.save_migration_run(save(run_id, 1, &moving, 11)),
            store.save_migration_run(save(run_id, 1, &paused, 11)),
        );
        let outcomes = [first.unwrap(), second.unwrap()];
        let winners = outcomes.iter().filter(|outcome| **outcome == SavedMigrationRun::Saved(2)).count();
        assert_eq!(winners, 1, "{outcomes:?}");
        let row = store.migration_run(run_id).await.unwrap().unwrap();
        let late = SavedMigrationRun::Stale(Some(Box::new(row.clone())));
        assert!(outcomes.contains(&late), "the late writer gets the current row");
        let mut cancelled = planned.clone();
        cancelled.cancel(attribution("enough"), at(12)).unwrap();
        for expected in [0, 1, 3, 9] {
            let outcome = store.save_migration_run(save(run_id, expected, &cancelled, 12)).await.unwrap();
            assert_eq!(outcome, late, "version {expected}");
        }
        assert_eq!(store.migration_run(run_id).await.unwrap(), Some(row));
        let unknown = store.save_migration_run(save(Uuid::now_v7(), 4, &cancelled, 12)).await.unwrap();
        assert_eq!(unknown, SavedMigrationRun::Stale(None));
    }

    async fn repeated_migration_write_takes_effect_once(database: TestDatabase) {
        let store = database.open();
        let (run_id, run) = (Uuid::now_v7(), planned("octo", 5));
        for _ in 0..3 {
            assert_eq!(saved(&store, save(run_id, 0, &run, 5)).await, 1);
        }
        let moving = begun(run);
        for _ in 0..3 {
            assert_eq!(saved(&store, save(run_id, 1, &moving, 11)).await, 2);
        }
        assert_eq!(store.migration_run(run_id).await.unwrap().unwrap().version, 2);
    }

    async fn open_migrations_are_found_and_lists_are_paged(database: TestDatabase) {
        let store = database.open();
        let ids: Vec<Uuid> = (0..5).map(|_| Uuid::now_v7()).collect();
        let mut runs: Vec<_> = (0..5).map(|n| planned(if n < 3 { "octo" } else { "hexa" }, n)).collect();
        runs[1].cancel(attribution("enough"), at(20)).unwrap();
        runs[2] = begun(runs[2].clone());
        runs[2].cancel(attribution("enough"), at(20)).unwrap();
        for (id, run) in ids.iter().zip(&runs) {
            saved(&store, save(*id, 0, run, 20)).await;
        }
        let octo = Some("octo".parse().unwrap());
        let all = MigrationRunFilter::default();
        assert_eq!(listed(&store, all.clone()).await, [ids[4], ids[3], ids[2], ids[1], ids[0]]);
        let open = MigrationRunFilter { open_only: true, ..all.clone() };
        assert_eq!(listed(&store, open.clone()).await, [ids[4], ids[3], ids[2], ids[0]], "moves under way keep it open");
        let of_octo = MigrationRunFilter { installation_id: octo, ..open };
        assert_eq!(listed(&store, of_octo).await, [ids[2], ids[0]]);
        let cancelled = MigrationRunFilter { status: Some(MigrationStatus::Cancelled), ..all.clone() };
        assert_eq!(listed(&store, cancelled).await, [ids[2], ids[1]]);
        let (mut after, mut seen) = (None, Vec::new());
        loop {
            let rows = store.migration_runs(all.clone(), Page { limit: 2, after }).await.unwrap();
            let Some(last) = rows.last() else { break };
            after = Some(last.cursor());
            seen.extend(rows.iter().map(|row| row.run_id));
        }
        assert_eq!(seen, [ids[4], ids[3], ids[2], ids[1], ids[0]]);
    }

    async fn retention_deletes_only_ended_migrations(database: TestDatabase) {
        let store = database.open();
        let ids: Vec<Uuid> = (0..3).map(|_| Uuid::now_v7()).collect();
        let ended = |created: i64| {
            let mut run = planned("octo", created);
            run.cancel(attribution("enough"), at(created)).unwrap();
            run
        };
        saved(&store, save(ids[0], 0, &ended(1), 50)).await;
        saved(&store, save(ids[1], 0, &planned("octo", 1), 50)).await;
        saved(&store, save(ids[2], 0, &ended(2), 150)).await;
        assert_eq!(store.prune(Retained::Migrations, Timestamp(at(100).0), 10).await, Ok(1));
        assert_eq!(listed(&store, MigrationRunFilter::default()).await, [ids[2], ids[1]]);
    }
}

#[test]
fn open_migrations_are_read_through_their_index() {
    use diesel::{RunQueryDsl, sql_types::Text};
    #[derive(diesel::QueryableByName)]
    struct Step {
        #[diesel(sql_type = Text)]
        detail: String,
    }
    run(TestDatabase::sqlite, |database| async move {
        let store = Store::open(StoreOptions { ..database.options() }, database.metrics.clone()).unwrap();
        let plan = store
            .read(|connection| {
                let sql = "EXPLAIN QUERY PLAN SELECT run FROM migration_runs WHERE is_open \
                           ORDER BY created_us DESC, run_id DESC LIMIT 50";
                let crate::store::AnyConnection::Sqlite(connection) = connection else { return Ok(String::new()) };
                let steps: Vec<Step> = diesel::sql_query(sql).load(connection)?;
                Ok(steps.into_iter().map(|step| step.detail).collect::<Vec<_>>().join("\n"))
            })
            .await
            .unwrap();
        assert!(plan.contains("migration_runs_open"), "{plan}");
    });
}
