use std::{collections::BTreeMap, time::Duration};

use proptest::{prelude::*, test_runner::RngAlgorithm};

use super::*;
use crate::domain::{redaction::Redacted, routing::Initiator};

fn at(seconds: u64) -> Timestamp {
    Timestamp(1_800_000_000_000_000).plus(Duration::from_secs(seconds))
}

fn ws(n: usize) -> WorkspaceId {
    format!("ws-{n}").parse().unwrap()
}

fn attribution() -> Attribution {
    Attribution { initiator: Initiator::Operator, actor: "ann".into(), actor_note: None, reason: "a test".into() }
}

fn no() -> Redacted {
    Redacted::new("no")
}

fn plan(count: usize, batch_size: u32, max_failures: u32) -> MigrationPlan {
    MigrationPlan {
        installation_id: "octo".parse().unwrap(),
        target: Route::Acp,
        workspaces: (0..count).map(ws).collect(),
        mode: MigrationMode::Now,
        batch_size,
        max_failures,
    }
}

const FINE: WorkspaceFacts = WorkspaceFacts {
    default_route: Some(Route::Http),
    is_pinned: false,
    migration_enabled: true,
    auto_rollout: true,
    tenant_allows: true,
    acp_enabled: true,
    is_blocked: false,
    supports_acp: true,
};

fn run(plan: MigrationPlan) -> MigrationRun {
    MigrationRun::new(plan, attribution(), at(0)).unwrap()
}

/// Makes one step in which every move succeeds; returns its workspaces.
fn step(run: &mut MigrationRun, now: Timestamp) -> Vec<WorkspaceId> {
    let (NextStep::Move(ids) | NextStep::MoveBack(ids)) = run.next_step(now, true) else { return Vec::new() };
    for id in &ids {
        assert!(run.is_going_back() || run.begin_move(id, &FINE, now) == Some(Ok(())));
        assert!(run.step_done(id, now));
    }
    ids
}

#[test]
fn fr_003_fleet_moves_in_steps_and_back() {
    let mut run = run(plan(5, 2, 0));
    assert_eq!((run.status(), run.started()), (MigrationStatus::Scheduled, None));
    assert_eq!(step(&mut run, at(1)), [ws(0), ws(1)]);
    assert_eq!((run.status(), run.started()), (MigrationStatus::InProgress, Some(at(1))));
    assert_eq!(step(&mut run, at(2)), [ws(2), ws(3)]);
    assert_eq!(step(&mut run, at(3)), [ws(4)]);
    assert_eq!((run.status(), run.completed()), (MigrationStatus::Succeeded, Some(at(3))));
    assert_eq!(run.next_step(at(4), true), NextStep::Over);
    run.roll_back(attribution(), at(5)).unwrap();
    assert_eq!((run.status(), run.completed()), (MigrationStatus::InProgress, None));
    assert_eq!(step(&mut run, at(6)), [ws(0), ws(1)]);
    assert_eq!(run.progress(), MigrationProgress { total: 5, moved: 3, moved_back: 2, ..Default::default() });
    step(&mut run, at(7));
    step(&mut run, at(8));
    assert_eq!((run.status(), run.completed()), (MigrationStatus::RolledBack, Some(at(8))));
    assert_eq!(
        run.roll_back(attribution(), at(9)).unwrap_err().to_string(),
        "a migration that is rolledBack cannot be rolled back"
    );
}

#[test]
fn fr_003_scheduled_migration_waits_for_its_time_or_a_start() {
    let at_100 = MigrationPlan { mode: MigrationMode::At { at: at(100) }, ..plan(1, 1, 0) };
    let mut timed = run(at_100.clone());
    assert_eq!(timed.next_step(at(99), true), NextStep::Wait(Some(at(100))));
    assert_eq!(timed.next_step(at(100), true), NextStep::Move(vec![ws(0)]));
    let mut started = run(at_100);
    started.pause(attribution()).unwrap();
    assert_eq!(started.next_step(at(200), true), NextStep::Wait(None), "paused before it began");
    started.resume(attribution(), at(50)).unwrap();
    assert_eq!(
        started.next_step(at(50), true),
        NextStep::Wait(Some(at(100))),
        "resumed, it waits for its time again"
    );
    started.start(attribution(), at(60)).unwrap();
    assert_eq!(started.next_step(at(60), true), NextStep::Move(vec![ws(0)]));
}

#[test]
fn fr_003_automatic_migration_waits_for_healthy_acp_and_its_rollback_does_not() {
    let mut automatic = run(MigrationPlan { mode: MigrationMode::Automatic, ..plan(3, 1, 0) });
    assert_eq!(automatic.next_step(at(1), false), NextStep::Wait(None));
    assert_eq!(step(&mut automatic, at(2)), [ws(0)]);
    assert_eq!(automatic.next_step(at(3), false), NextStep::Wait(None));
    automatic.roll_back(attribution(), at(4)).unwrap();
    assert_eq!(automatic.next_step(at(5), false), NextStep::MoveBack(vec![ws(0)]));
    let to_http = MigrationPlan { target: Route::Http, mode: MigrationMode::Automatic, ..plan(1, 1, 0) };
    assert_eq!(run(to_http).next_step(at(1), false), NextStep::Move(vec![ws(0)]));
    assert_eq!(run(plan(1, 1, 0)).next_step(at(1), false), NextStep::Move(vec![ws(0)]), "mode `now` does not wait");
}

#[test]
fn fr_003_workspace_that_may_not_be_moved_is_skipped_with_the_reason() {
    use MigrationSkip::*;
    let cases = [
        (WorkspaceFacts { default_route: None, ..FINE }, Some(UnknownWorkspace), Some(UnknownWorkspace)),
        (WorkspaceFacts { default_route: Some(Route::Acp), ..FINE }, Some(AlreadyThere), None),
        (FINE, None, Some(AlreadyThere)),
        (WorkspaceFacts { is_pinned: true, ..FINE }, Some(Pinned), Some(AlreadyThere)),
        (WorkspaceFacts { tenant_allows: false, ..FINE }, Some(TenantForbids), Some(AlreadyThere)),
        (WorkspaceFacts { acp_enabled: false, ..FINE }, Some(AcpDisabled), Some(AlreadyThere)),
        (WorkspaceFacts { is_blocked: true, ..FINE }, Some(Blocked), Some(AlreadyThere)),
        (WorkspaceFacts { migration_enabled: false, ..FINE }, Some(MigrationDisabled), Some(AlreadyThere)),
        (WorkspaceFacts { supports_acp: false, ..FINE }, Some(HttpOnly), Some(AlreadyThere)),
    ];
    for (facts, to_acp, to_http) in cases {
        for mode in [MigrationMode::Now, MigrationMode::At { at: at(0) }, MigrationMode::Automatic] {
            assert_eq!(facts.skips(Route::Acp, mode), to_acp, "{facts:?}");
            assert_eq!(facts.skips(Route::Http, mode), to_http, "{facts:?}");
        }
        let mut run = run(plan(2, 2, 0));
        run.next_step(at(0), true);
        let admitted = run.begin_move(&ws(0), &facts, at(0));
        assert_eq!(admitted, Some(to_acp.map_or(Ok(()), Err)));
        assert_eq!(run.progress().skipped, usize::from(to_acp.is_some()));
    }
    // A workspace on ACP may be moved to HTTP even if its runtime does not speak ACP and a move to ACP is forbidden.
    let leaves = WorkspaceFacts {
        default_route: Some(Route::Acp),
        migration_enabled: false,
        acp_enabled: false,
        supports_acp: false,
        ..FINE
    };
    assert_eq!(leaves.skips(Route::Http, MigrationMode::Now), None);
    let by_hand = WorkspaceFacts { auto_rollout: false, ..FINE };
    assert_eq!(by_hand.skips(Route::Acp, MigrationMode::Now), None);
    assert_eq!(by_hand.skips(Route::Acp, MigrationMode::Automatic), Some(AutoRolloutOff));
}

#[test]
fn too_many_failures_end_a_migration_and_begun_moves_still_count() {
    let mut run = run(plan(6, 3, 1));
    assert_eq!(run.next_step(at(0), true), NextStep::Move(vec![ws(0), ws(1), ws(2)]));
    for n in 0..3 {
        assert_eq!(run.begin_move(&ws(n), &FINE, at(0)), Some(Ok(())));
    }
    assert_eq!(run.begin_move(&ws(3), &FINE, at(0)), None, "not part of this step");
    assert!(run.step_failed(&ws(0), &no(), at(1)));
    assert!(!run.step_failed(&ws(0), &no(), at(1)), "a result counts once");
    assert_eq!(run.status(), MigrationStatus::InProgress, "one failure is tolerated");
    assert!(run.step_failed(&ws(1), &Redacted::new(&"x".repeat(4000)), at(2)));
    assert_eq!((run.status(), run.completed()), (MigrationStatus::Failed, Some(at(2))));
    assert!(run.is_open(), "one move has no result yet");
    assert!(run.step_done(&ws(2), at(3)));
    assert!(!run.is_open());
    assert_eq!(run.next_step(at(4), true), NextStep::Over);
    let expected = MigrationProgress { total: 6, untouched: 3, moved: 1, failed: 2, ..Default::default() };
    assert_eq!(run.progress(), expected);
    assert!(matches!(&run.entries()[1].place, Place::Failed { detail } if detail.chars().count() == 300));
}

#[test]
fn failed_move_back_stays_moved_and_the_next_rollback_repeats_it() {
    let mut run = run(plan(2, 2, 0));
    step(&mut run, at(1));
    run.roll_back(attribution(), at(2)).unwrap();
    assert_eq!(run.next_step(at(2), true), NextStep::MoveBack(vec![ws(0), ws(1)]));
    run.step_failed(&ws(0), &no(), at(3));
    run.step_done(&ws(1), at(3));
    assert_eq!(run.status(), MigrationStatus::Failed);
    assert_eq!(run.progress(), MigrationProgress { total: 2, moved: 1, moved_back: 1, ..Default::default() });
    run.roll_back(attribution(), at(4)).unwrap();
    assert_eq!(step(&mut run, at(5)), [ws(0)]);
    assert_eq!(run.status(), MigrationStatus::RolledBack);
}

#[test]
fn move_without_a_result_is_settled_by_the_current_route() {
    let mut run = run(plan(2, 2, 0));
    run.next_step(at(0), true);
    run.begin_move(&ws(0), &FINE, at(0));
    run.begin_move(&ws(1), &FINE, at(0));
    let mut run: MigrationRun = serde_json::from_str(&serde_json::to_string(&run).unwrap()).unwrap();
    assert_eq!(run.next_step(at(1), true), NextStep::Unsettled(vec![ws(0), ws(1)]));
    assert!(run.settle(&ws(0), Route::Acp, at(1)), "moved before the process died");
    assert!(run.settle(&ws(1), Route::Http, at(1)), "not moved");
    assert_eq!(run.next_step(at(1), true), NextStep::Move(vec![ws(1)]));
}

#[test]
fn changes_are_allowed_only_in_their_statuses() {
    use MigrationStatus::*;
    type Change = fn(&mut MigrationRun) -> Result<(), IllegalChange>;
    let changes: [(&str, Change, &[MigrationStatus]); 5] = [
        ("start", |run| run.start(attribution(), at(9)), &[Scheduled]),
        ("pause", |run| run.pause(attribution()), &[Scheduled, InProgress]),
        ("resume", |run| run.resume(attribution(), at(9)), &[Paused]),
        ("cancel", |run| run.cancel(attribution(), at(9)), &[Scheduled, InProgress, Paused]),
        ("roll back", |run| run.roll_back(attribution(), at(9)), &[InProgress, Paused, Succeeded, Cancelled, Failed]),
    ];
    for status in MigrationStatus::ALL {
        assert_eq!(MigrationStatus::from_name(status.as_str()), Some(status));
        assert_eq!(serde_json::to_value(status).unwrap(), status.as_str());
        for (name, change, allowed) in changes {
            let mut run = run(plan(2, 1, 0));
            run.status = status;
            let before = run.clone();
            assert_eq!(change(&mut run).is_ok(), allowed.contains(&status), "{name} of {status:?}");
            assert!(allowed.contains(&status) || run == before, "a refusal changes nothing");
        }
    }
}

#[test]
fn plan_outside_its_bounds_is_refused() {
    assert_eq!(plan(0, 1, 0).check(), Err(BadPlan::Workspaces(0)));
    assert_eq!(plan(MAX_WORKSPACES + 1, 1, 0).check(), Err(BadPlan::Workspaces(MAX_WORKSPACES + 1)));
    assert_eq!(plan(MAX_WORKSPACES, MAX_BATCH, 0).check(), Ok(()));
    assert_eq!(plan(1, 0, 0).check(), Err(BadPlan::Batch(0)));
    assert_eq!(plan(1, MAX_BATCH + 1, 0).check(), Err(BadPlan::Batch(MAX_BATCH + 1)));
    let twice = MigrationPlan { workspaces: vec![ws(1), ws(2), ws(1)], ..plan(1, 1, 0) };
    assert_eq!(MigrationRun::new(twice, attribution(), at(0)), Err(BadPlan::Twice(ws(1))));
}

#[test]
fn run_serialises_under_the_names_of_the_contract() {
    let plan = MigrationPlan { mode: MigrationMode::At { at: at(0) }, ..plan(2, 2, 0) };
    let kept = serde_json::to_value(run(plan)).unwrap();
    assert_eq!(kept["mode"], serde_json::json!({"kind": "at", "at": "2027-01-15T08:00:00.000000Z"}));
    assert_eq!(kept["workspaces"][0], serde_json::json!({"workspaceId": "ws-0", "state": "untouched"}));
    assert_eq!(kept["status"], "scheduled");
}

/// An event of a migration.
#[derive(Debug, Clone, Copy)]
enum Event {
    /// The next step; true if ACP is healthy.
    Next(bool),
    /// One of the begun moves ends; true if it succeeds.
    Ends(prop::sample::Index, bool),
    Pause,
    Resume,
    Cancel,
    RollBack,
    /// The process dies during moves; a set bit means that the move of that index had taken effect.
    Dies(u16),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        8 => prop_oneof![4 => Just(true), 1 => Just(false)].prop_map(Event::Next),
        12 => (any::<prop::sample::Index>(), prop_oneof![6 => Just(true), 1 => Just(false)])
            .prop_map(|(index, succeeds)| Event::Ends(index, succeeds)),
        1 => Just(Event::Pause),
        2 => Just(Event::Resume),
        1 => prop_oneof![1 => Just(Event::Cancel), 3 => Just(Event::Next(true))],
        1 => prop_oneof![1 => Just(Event::RollBack), 2 => Just(Event::Next(true))],
        1 => any::<u16>().prop_map(Event::Dies),
    ]
}

fn facts() -> impl Strategy<Value = WorkspaceFacts> {
    let often = || prop_oneof![9 => Just(true), 1 => Just(false)];
    let route = prop_oneof![8 => Just(Some(Route::Http)), 1 => Just(Some(Route::Acp)), 1 => Just(None)];
    (route, often(), often(), often(), often(), often(), often(), often()).prop_map(
        |(default_route, free, migration_enabled, auto_rollout, tenant_allows, acp_enabled, open, supports_acp)| {
            WorkspaceFacts {
                default_route,
                is_pinned: !free,
                migration_enabled,
                auto_rollout,
                tenant_allows,
                acp_enabled,
                is_blocked: !open,
                supports_acp,
            }
        },
    )
}

/// The environment of a migration: the route of each workspace, and the begun moves.
struct World {
    facts: Vec<WorkspaceFacts>,
    routes: BTreeMap<WorkspaceId, Route>,
    under_way: Vec<(WorkspaceId, Route)>,
    run: MigrationRun,
    batch: usize,
    now: Timestamp,
}

impl World {
    fn other(&self) -> Route {
        if self.run.target() == Route::Acp { Route::Http } else { Route::Acp }
    }

    fn index(id: &WorkspaceId) -> usize {
        id.as_str()[3..].parse().unwrap()
    }

    fn next(&mut self, healthy: bool) -> Result<(), TestCaseError> {
        let status = self.run.status();
        let moves = matches!(status, MigrationStatus::Scheduled | MigrationStatus::InProgress);
        match self.run.next_step(self.now, healthy) {
            NextStep::Move(ids) => {
                prop_assert!(moves && self.under_way.is_empty() && ids.len() <= self.batch && !ids.is_empty());
                prop_assert!(
                    healthy || self.run.mode() != MigrationMode::Automatic || self.run.target() == Route::Http
                );
                for id in ids {
                    let facts = self.facts[Self::index(&id)];
                    if self.run.begin_move(&id, &facts, self.now) == Some(Ok(())) {
                        prop_assert_eq!(self.routes.get(&id), Some(&self.other()));
                        self.under_way.push((id, self.run.target()));
                    }
                }
            }
            NextStep::MoveBack(ids) => {
                prop_assert!(moves && self.under_way.is_empty() && ids.len() <= self.batch && !ids.is_empty());
                for id in ids {
                    prop_assert_eq!(self.routes[&id], self.run.target(), "only moved workspaces");
                    self.under_way.push((id, self.other()));
                }
            }
            NextStep::Unsettled(ids) => {
                let known: Vec<_> = self.under_way.iter().map(|(id, _)| id.clone()).collect();
                let both = (ids.iter().collect::<std::collections::BTreeSet<_>>(), known.iter().collect());
                prop_assert_eq!(both.0, both.1);
            }
            NextStep::Wait(_) => prop_assert!(!status.is_final()),
            NextStep::Over => prop_assert!(status.is_final()),
        }
        Ok(())
    }

    fn take(&mut self, event: Event) -> Result<(), TestCaseError> {
        match event {
            Event::Next(healthy) => self.next(healthy)?,
            Event::Ends(index, succeeds) => {
                if !self.under_way.is_empty() {
                    let (id, route) = self.under_way.swap_remove(index.index(self.under_way.len()));
                    if succeeds {
                        self.routes.insert(id.clone(), route);
                        prop_assert!(self.run.step_done(&id, self.now));
                    } else {
                        prop_assert!(self.run.step_failed(&id, &no(), self.now));
                    }
                }
            }
            Event::Pause => drop(self.run.pause(attribution())),
            Event::Resume => drop(self.run.resume(attribution(), self.now)),
            Event::Cancel => drop(self.run.cancel(attribution(), self.now)),
            Event::RollBack => drop(self.run.roll_back(attribution(), self.now)),
            Event::Dies(took_effect) => {
                self.restart()?;
                for (n, (id, route)) in std::mem::take(&mut self.under_way).into_iter().enumerate() {
                    if took_effect >> (n % 16) & 1 == 1 {
                        self.routes.insert(id, route);
                    }
                }
                for entry in self.run.entries().to_vec() {
                    let is_under_way = matches!(entry.place, Place::Moving | Place::MovingBack);
                    let route = self.routes.get(&entry.workspace_id).copied().unwrap_or(Route::Http);
                    prop_assert_eq!(self.run.settle(&entry.workspace_id, route, self.now), is_under_way);
                }
            }
        }
        self.check()
    }

    /// Replaces the migration by a persisted copy, as a restart does.
    fn restart(&mut self) -> Result<(), TestCaseError> {
        let kept = serde_json::to_string(&self.run).unwrap();
        let read: MigrationRun = serde_json::from_str(&kept).unwrap();
        prop_assert_eq!(&read, &self.run);
        self.run = read;
        Ok(())
    }

    fn check(&mut self) -> Result<(), TestCaseError> {
        let MigrationProgress { total, untouched, moving, moved, skipped, failed, moved_back } = self.run.progress();
        prop_assert_eq!(total, untouched + moving + moved + skipped + failed + moved_back);
        prop_assert_eq!((total, moving), (self.facts.len(), self.under_way.len()));
        for entry in self.run.entries() {
            let facts = &self.facts[Self::index(&entry.workspace_id)];
            let is = self.routes.get(&entry.workspace_id).copied();
            let expected = match &entry.place {
                Place::Moved { .. } | Place::MovingBack => Some(self.run.target()),
                Place::Untouched
                | Place::Moving
                | Place::Skipped { .. }
                | Place::Failed { .. }
                | Place::MovedBack => facts.default_route,
            };
            prop_assert_eq!(is, expected, "{:?}", entry);
            let may_move = facts.skips(self.run.target(), self.run.mode()).is_none();
            let is_skipped = matches!(entry.place, Place::Skipped { .. });
            let is_right = if may_move { !is_skipped } else { is_skipped || entry.place == Place::Untouched };
            prop_assert!(is_right);
        }
        prop_assert_eq!(self.run.status().is_final(), self.run.completed().is_some());
        let tolerated = failed <= self.run.max_failures() as usize;
        prop_assert!(tolerated || self.run.is_going_back() || self.run.status() != MigrationStatus::InProgress);
        if self.run.status() == MigrationStatus::RolledBack {
            prop_assert_eq!(moved, 0);
        }
        if self.run.status() == MigrationStatus::Succeeded {
            prop_assert_eq!((untouched, moving), (0, 0));
        }
        Ok(())
    }

    /// Lets all further moves succeed until the migration ends; returns its final status.
    fn finish(&mut self) -> Result<MigrationStatus, TestCaseError> {
        for _ in 0..200 {
            let _ = self.run.resume(attribution(), self.now);
            while let Some((id, route)) = self.under_way.pop() {
                self.routes.insert(id.clone(), route);
                self.run.step_done(&id, self.now);
            }
            if self.run.status().is_final() {
                return Ok(self.run.status());
            }
            self.next(true)?;
        }
        Err(TestCaseError::fail("the migration does not end"))
    }
}

proptest! {
    // XorShift instead of ChaCha: in a debug build the default generator takes most of the test's time.
    #![proptest_config(ProptestConfig { cases: 10_000, rng_algorithm: RngAlgorithm::XorShift, ..ProptestConfig::default() })]

    #[test]
    fn fr_003_migration_keeps_its_counts_and_its_rollback_restores_every_route(
        facts in prop::collection::vec(facts(), 1..10),
        batch in 1u32..5,
        max_failures in 0u32..4,
        to_acp in prop_oneof![3 => Just(true), 1 => Just(false)],
        mode in prop_oneof![Just(MigrationMode::Now), Just(MigrationMode::Automatic), Just(MigrationMode::At { at: at(0) })],
        events in prop::collection::vec(event(), 1..40),
        restarts_at in 0..40usize,
    ) {
        let target = if to_acp { Route::Acp } else { Route::Http };
        let plan = MigrationPlan { target, mode, ..plan(facts.len(), batch, max_failures) };
        let routes: BTreeMap<_, _> =
            facts.iter().enumerate().filter_map(|(n, facts)| Some((ws(n), facts.default_route?))).collect();
        let before = routes.clone();
        let (run, under_way) = (run(plan), Vec::new());
        let mut world = World { facts, routes, under_way, run, batch: batch as usize, now: at(0) };
        for (n, event) in events.into_iter().enumerate() {
            world.now = at(n as u64);
            let was_paused = world.run.status() == MigrationStatus::Paused;
            let given_out = world.under_way.len();
            world.take(event)?;
            if n == restarts_at {
                world.restart()?;
            }
            prop_assert!(!was_paused || matches!(event, Event::Resume | Event::RollBack) || world.under_way.len() <= given_out);
        }
        world.finish()?;
        world.check()?;
        world.restart()?;
        prop_assert_eq!(world.run.progress().moving, 0);
        if world.run.status() != MigrationStatus::RolledBack {
            let begun = world.run.roll_back(attribution(), world.now);
            prop_assert!(begun.is_ok());
            prop_assert_eq!(world.finish()?, MigrationStatus::RolledBack);
            world.check()?;
            world.restart()?;
        }
        prop_assert_eq!(world.routes, before, "every workspace has its old route");
    }
}

#[test]
fn fr_003_acp_is_healthy_with_at_most_a_tenth_rolled_back() {
    for (in_use, rolled_back, expected) in
        [(0, 0, true), (1, 0, true), (1, 1, false), (10, 1, true), (19, 2, false), (20, 2, true), (100, 11, false)]
    {
        let calm = FleetHealth { is_storm: false, in_use, rolled_back };
        assert_eq!(calm.is_healthy(), expected, "{calm:?}");
        assert!(!FleetHealth { is_storm: true, ..calm }.is_healthy(), "unhealthy during a storm");
    }
}
