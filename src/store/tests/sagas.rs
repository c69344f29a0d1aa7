//! Runs of automation: one writer advances each, and they are found by time, scope and kept commit.

use serde_json::json;
use uuid::Uuid;

use super::fixture::*;
use crate::{
    contract::audit::AutomationRunItem,
    domain::{
        automation::{
            saga::{
                Saga, SagaStatus,
                tests::{fact_of, plan},
            },
            step::{StepName, StepOutcome, StepReport},
        },
        clock::Timestamp,
        erasure::EraseTarget,
        ids::{SessionId, WorkspaceKey},
        session::lifecycle::SessionState,
    },
    store::{
        AuditFilter, EndStep, Listed, NewSession, NewTurn, OwnFolder, Page, Retained, RunEnd, SagaFilter, SagaRow,
        SagaUpdate, SessionChange, Store, StoreError, TurnEnd, UnusedFolders,
    },
};

/// A session of a user in a workspace.
async fn session_of(store: &Store, key: &WorkspaceKey, user: &str) -> SessionId {
    let workspace = Some(new_workspace(key, 0));
    let new = NewSession { key: key.clone(), workspace, user_id: Some(user.parse().unwrap()), ..new_session(0) };
    let id = new.session_id;
    store.create_session(new).await.unwrap();
    id
}

/// The run of a turn whose agent ended at `us`.
async fn begun(store: &Store, key: &WorkspaceKey, session: SessionId, us: i64) -> SagaRow {
    let turn = NewTurn { key: key.clone(), ..new_turn(session, us) };
    let prompt = turn.prompt_id;
    store.accept_turn(turn).await.unwrap();
    let end =
        TurnEnd { step: EndStep::Agent, key: key.clone(), entries: Vec::new(), ..turn_end(session, prompt, us) };
    store.end_agent(end).await.unwrap();
    store.saga_of_prompt(prompt).await.unwrap().unwrap()
}

fn saga_with(steps: &[StepName]) -> Saga {
    let mut saga = Saga::new(plan(), at(0));
    for step in steps {
        let outcome = StepOutcome::Done(fact_of(*step));
        saga.apply(*step, StepReport { outcome, logs: Vec::new(), rate_remaining: None }, at(0));
    }
    saga
}

fn update(row: &SagaRow, status: SagaStatus, steps: &[StepName], us: i64) -> SagaUpdate {
    let (run_id, version) = (row.run_id, row.version);
    SagaUpdate { run_id, version, status, saga: saga_with(steps), retry_at: None, is_repeated: false, now: at(us) }
}

fn record(row: &SagaRow) -> AutomationRunItem {
    AutomationRunItem {
        run_id: Uuid::now_v7(),
        automation_id: Some(row.run_id),
        installation_id: row.key.installation_id.clone(),
        workspace_id: row.key.workspace_id.clone(),
        session_id: row.session_id,
        prompt_id: Some(row.prompt_id),
        status: "error".into(),
        mode: "github".into(),
        issue_number: None,
        issue_url: None,
        pull_request_number: None,
        pull_request_url: None,
        branch: None,
        commit_sha: None,
        skip_reason: None,
        skip_detail: None,
        duration_ms: 1,
        attempts: 1,
        error_code: Some("behind".into()),
        logs: json!([]),
        created_at: at(9),
    }
}

fn page(limit: usize) -> Page {
    Page { limit, after: None }
}

fn ids(rows: &[SagaRow]) -> Vec<Uuid> {
    rows.iter().map(|row| row.run_id).collect()
}

both_databases! {
    async fn run_is_advanced_by_one_of_two_writers(database: TestDatabase) {
        let store = database.open();
        let session = session(&store).await;
        let row = begun(&store, &key("acme", "web"), session, 1).await;
        assert_eq!((row.version, row.status, row.saga.as_ref()), (0, SagaStatus::Running, None));
        let other = database.open();
        let change = |steps: &[StepName]| update(&row, SagaStatus::Running, steps, 2);
        let (one, two) =
            tokio::join!(store.save_saga(change(&[])), other.save_saga(change(&[StepName::Changes])));
        assert!([&one, &two].contains(&&Ok(())) && [&one, &two].contains(&&Err(StoreError::Fenced)), "{one:?} {two:?}");
        let stored = store.saga(row.run_id).await.unwrap().unwrap();
        let expected = if one.is_ok() { saga_with(&[]) } else { saga_with(&[StepName::Changes]) };
        assert_eq!((stored.version, stored.saga.as_ref()), (1, Some(&expected)));
        // An end by the writer that lost writes nothing.
        let end = |row: &SagaRow| {
            let saga = Some(update(row, SagaStatus::Error, &[StepName::Changes], 3));
            RunEnd { run: record(row), notice: None, saga }
        };
        let late = store.end_attempt(&row, end(&row), at(3)).await;
        assert_eq!(late, Err(StoreError::Fenced));
        assert_eq!(store.automation_runs(AuditFilter::default(), page(9)).await.unwrap(), []);
        store.end_attempt(&stored, end(&stored), at(3)).await.unwrap();
        let runs = store.automation_runs(AuditFilter::default(), page(9)).await.unwrap();
        assert_eq!(runs.iter().map(|run| run.automation_id).collect::<Vec<_>>(), [Some(row.run_id)]);
        assert_eq!(store.saga(row.run_id).await.unwrap().unwrap().status, SagaStatus::Error);
        // The writer got an error, and repeats the end that is stored: its own, and no other.
        let mut again = end(&stored);
        again.saga.as_mut().unwrap().is_repeated = true;
        assert_eq!(store.end_attempt(&stored, again.clone(), at(4)).await, Ok(()));
        again.saga = Some(SagaUpdate { is_repeated: true, ..update(&stored, SagaStatus::Error, &[], 4) });
        assert_eq!(store.end_attempt(&stored, again, at(4)).await, Err(StoreError::Fenced));
        assert_eq!(store.automation_runs(AuditFilter::default(), page(9)).await.unwrap().len(), 1);
    }

    async fn due_runs_are_those_whose_time_has_come_and_the_longest_wait_is_first(database: TestDatabase) {
        let store = database.open();
        let (session, web) = (session(&store).await, key("acme", "web"));
        let mut runs = Vec::new();
        for (us, retry_at) in [(1, Some(at(30))), (2, Some(at(10))), (3, Some(at(31))), (4, None)] {
            let row = begun(&store, &web, session, us).await;
            store.save_saga(SagaUpdate { retry_at, ..update(&row, SagaStatus::Waiting, &[], us) }).await.unwrap();
            runs.push(row.run_id);
        }
        assert_eq!(ids(&store.due_sagas(at(30), 9).await.unwrap()), [runs[1], runs[0]]);
        assert_eq!(ids(&store.due_sagas(at(30), 1).await.unwrap()), [runs[1]]);
        assert!(store.due_sagas(at(9), 9).await.unwrap().is_empty());
        // An attempt that a crash cut off does not wait for the end of its lease.
        let session = session_of(&store, &key("acme", "web"), "ann").await;
        let row = begun(&store, &key("acme", "web"), session, 5).await;
        let leased = SagaUpdate { retry_at: Some(at(1000)), ..update(&row, SagaStatus::Running, &[], 5) };
        store.save_saga(leased).await.unwrap();
        store.take_up_attempts(at(30)).await.unwrap();
        assert!(ids(&store.due_sagas(at(30), 9).await.unwrap()).contains(&row.run_id));
    }

    async fn runs_are_listed_by_scope_status_and_time_in_pages(database: TestDatabase) {
        let store = database.open();
        let (web, api, foreign) = (key("acme", "web"), key("acme", "api"), key("other", "web"));
        let mut runs = Vec::new();
        for (place, user, us, status) in [
            (&web, "ann", 1, SagaStatus::Success),
            (&web, "bob", 2, SagaStatus::Error),
            (&api, "ann", 3, SagaStatus::Error),
            (&foreign, "ann", 4, SagaStatus::Error),
            (&web, "ann", 4, SagaStatus::Waiting),
        ] {
            let session = session_of(&store, place, user).await;
            let row = begun(&store, place, session, us).await;
            store.save_saga(update(&row, status, &[], us)).await.unwrap();
            runs.push(row);
        }
        let listed = async |filter: SagaFilter| {
            let mut found = ids(&store.sagas(filter, page(9)).await.unwrap());
            let mut numbers: Vec<_> =
                found.drain(..).map(|id| runs.iter().position(|row| row.run_id == id).unwrap()).collect();
            numbers.sort_unstable();
            numbers
        };
        let acme = || AuditFilter { installation_id: Some("acme".parse().unwrap()), ..AuditFilter::default() };
        let of = |records| SagaFilter { records, ..SagaFilter::default() };
        assert_eq!(listed(SagaFilter::default()).await, [0, 1, 2, 3, 4]);
        assert_eq!(listed(of(acme())).await, [0, 1, 2, 4]);
        let web_only = AuditFilter { workspace_id: Some("web".parse().unwrap()), ..acme() };
        assert_eq!(listed(of(web_only.clone())).await, [0, 1, 4]);
        let anns = SagaFilter { user_id: Some("ann".parse().unwrap()), ..of(web_only) };
        assert_eq!(listed(anns.clone()).await, [0, 4]);
        assert_eq!(listed(SagaFilter { status: Some(SagaStatus::Waiting), ..anns }).await, [4]);
        assert_eq!(listed(of(AuditFilter { from: Some(at(2)), until: Some(at(4)), ..acme() })).await, [1, 2]);
        let session_id = Some(runs[1].session_id);
        assert_eq!(listed(of(AuditFilter { session_id, ..AuditFilter::default() })).await, [1]);
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let rows = store.sagas(of(acme()), Page { limit: 1, after }).await.unwrap();
            let Some(row) = rows.first() else { break };
            (seen, after) = ([seen, vec![row.run_id]].concat(), Some(row.cursor()));
        }
        assert_eq!(seen, [4, 2, 1, 0].map(|n: usize| runs[n].run_id), "newest first");
    }

    async fn kept_commit_is_found_by_its_age_and_by_the_target_of_an_erasure(database: TestDatabase) {
        let store = database.open();
        let (web, foreign) = (key("acme", "web"), key("other", "web"));
        let (one, two) = (session_of(&store, &web, "ann").await, session_of(&store, &foreign, "ann").await);
        let kept = [StepName::Changes, StepName::Commit, StepName::Rescue];
        let mut runs = Vec::new();
        for (place, session, us, status, steps) in [
            (&web, one, 1, SagaStatus::Error, &kept[..]),
            (&web, one, 2, SagaStatus::Waiting, &kept),
            (&web, one, 3, SagaStatus::Error, &[]),
            (&web, one, 4, SagaStatus::Running, &[]),
            (&foreign, two, 5, SagaStatus::Skipped, &kept),
        ] {
            let row = begun(&store, place, session, us).await;
            store.save_saga(update(&row, status, steps, us)).await.unwrap();
            runs.push(row.run_id);
        }
        assert_eq!(ids(&store.sagas_with_rescue(at(5), 9).await.unwrap()), [runs[0]], "waiting runs keep theirs");
        assert_eq!(ids(&store.sagas_with_rescue(at(6), 9).await.unwrap()), [runs[0], runs[4]]);
        let tenant = EraseTarget::Tenant("acme".parse().unwrap());
        let workspace = EraseTarget::Workspace(web.clone());
        let session = EraseTarget::Session(web.clone(), one);
        for target in [&tenant, &workspace, &session] {
            let found = store.rescues_of(target.clone(), None, 9).await.unwrap();
            assert_eq!(found, [runs[0], runs[1], runs[3]], "{target:?}");
            assert_eq!(store.rescues_of(target.clone(), Some(runs[0]), 1).await.unwrap(), [runs[1]]);
            let before = store.saga(runs[3]).await.unwrap().unwrap();
            store.stop_sagas(target.clone()).await.unwrap();
            let late = store.save_saga(update(&before, SagaStatus::Running, &kept, 9)).await;
            assert_eq!(late, Err(StoreError::Fenced), "{target:?}");
        }
        let others = store.saga(runs[4]).await.unwrap().unwrap();
        assert_eq!(others.version, 1);
    }

    async fn old_run_is_removed_only_after_its_kept_commit(database: TestDatabase) {
        let store = database.open();
        let (session, web) = (session(&store).await, key("acme", "web"));
        let row = begun(&store, &web, session, 1).await;
        store.save_saga(update(&row, SagaStatus::Error, &[StepName::Commit, StepName::Rescue], 2)).await.unwrap();
        let later = Timestamp(at(0).0 + 1_000_000);
        assert_eq!(store.prune(Retained::AutomationRuns, later, 9).await, Ok(0));
        let mut stored = store.saga(row.run_id).await.unwrap().unwrap();
        let saga = stored.saga.as_mut().unwrap();
        saga.remove_rescue(at(9));
        let removed = SagaUpdate { version: stored.version, saga: saga.clone(), ..update(&row, SagaStatus::Error, &[], 2) };
        store.save_saga(removed).await.unwrap();
        assert!(store.sagas_with_rescue(later, 9).await.unwrap().is_empty());
        assert_eq!(store.prune(Retained::AutomationRuns, later, 9).await, Ok(1));
        assert_eq!(store.saga(row.run_id).await.unwrap(), None);
    }

    async fn folder_of_a_session_is_kept_while_a_run_waits_without_a_kept_commit(database: TestDatabase) {
        let store = database.open();
        let new = NewSession { own_folder: Some(OwnFolder::default()), ..new_session(0) };
        let id = new.session_id;
        store.create_session(new).await.unwrap();
        let row = begun(&store, &key("acme", "web"), id, 1).await;
        let of_turn = TurnEnd { step: EndStep::Turn, entries: Vec::new(), ..turn_end(id, row.prompt_id, 2) };
        end(&store, of_turn).await.unwrap();
        let row = store.saga(row.run_id).await.unwrap().unwrap();
        let closed = SessionChange { state: Some(SessionState::Closed), ..SessionChange::new(id) };
        store.update_session(closed).await.unwrap();
        let found = async || store.unused_session_folders(UnusedFolders::Ephemeral, 10).await.unwrap().len();
        assert_eq!(found().await, 0, "an attempt runs");
        store.save_saga(update(&row, SagaStatus::Waiting, &[StepName::Changes], 3)).await.unwrap();
        assert_eq!(found().await, 0, "the folder alone has the changes");
        let row = SagaRow { version: row.version + 1, ..row };
        store.save_saga(update(&row, SagaStatus::Error, &[StepName::Changes], 3)).await.unwrap();
        assert_eq!(found().await, 0, "they were not delivered");
        let row = SagaRow { version: row.version + 1, ..row };
        let steps = [StepName::Changes, StepName::Commit, StepName::Rescue];
        store.save_saga(update(&row, SagaStatus::Waiting, &steps, 4)).await.unwrap();
        assert_eq!(found().await, 1, "the commit is kept");
    }
}
