//! Goes on with the runs that are open.

use std::{collections::HashMap, time::Duration};

use tokio::{
    task::{Id, JoinError, JoinSet},
    time::{Instant, sleep_until},
};
use uuid::Uuid;

use super::{
    Migrations,
    pass::{After, Pass},
    rollout,
};
use crate::{
    domain::turn::outcome::Failure,
    store::{self, MigrationRunFilter, MigrationRunRow, Page},
};

/// Runs that are gone on with at the same time; the others wait, the oldest goes first.
const RUNS_AT_ONCE: usize = 4;
/// After so long the open runs are looked at again, whatever is expected: another supervisor may have left one, and ACP
/// may be healthy again.
const LOOK: Duration = Duration::from_secs(5);
/// The shortest pause between two looks where nothing has happened.
const SHORTEST: Duration = Duration::from_millis(10);
/// Where other supervisors use the database too, a step counts as left by one that died when nothing of it was written
/// for so long; while it is made it is written every 2 s.
const ABANDONED: Duration = Duration::from_secs(30);
/// Runs that are read at once.
const PAGE: usize = 50;

/// What the driver knows beside the rows.
struct Driver {
    migrations: Migrations,
    passes: JoinSet<Result<After, Failure>>,
    running: HashMap<Id, Uuid>,
    /// Nothing is to be done before.
    waiting: HashMap<Uuid, Instant>,
    /// The version of each open run, and since when it is that.
    seen: HashMap<Uuid, (u64, Instant)>,
    next_rollout: Instant,
}

impl Migrations {
    /// Runs them, for ever. Dropped, it leaves what is under way to the next start.
    pub async fn run(self) {
        let mut driver = Driver {
            migrations: self,
            passes: JoinSet::new(),
            running: HashMap::new(),
            waiting: HashMap::new(),
            seen: HashMap::new(),
            next_rollout: Instant::now(),
        };
        loop {
            let wakes_at = driver.look().await.unwrap_or_else(|cause| {
                tracing::warn!(marker = "[MIGRATION]", %cause, "migrations wait");
                Instant::now() + LOOK
            });
            let changed = driver.migrations.clone();
            tokio::select! {
                Some(ended) = driver.passes.join_next_with_id() => driver.on_end(ended),
                () = changed.0.changed.notified() => driver.waiting.clear(),
                () = sleep_until(wakes_at) => {}
            }
        }
    }
}

impl Driver {
    /// Goes on with what can be gone on with. Says when to look again.
    async fn look(&mut self) -> Result<Instant, Failure> {
        let mut open = self.open().await?;
        if Instant::now() >= self.next_rollout {
            if rollout::begin(&self.migrations.0.workspaces, &open).await? {
                open = self.open().await?;
            }
            self.next_rollout = Instant::now() + self.migrations.0.auto_look;
        }
        let now = Instant::now();
        self.notice(&open, now);
        let mut wakes_at = self.next_rollout.min(now + LOOK);
        for row in open {
            let is_running = self.running.values().any(|running| *running == row.run_id);
            match self.waiting.get(&row.run_id) {
                _ if is_running => {}
                Some(until) if *until > now => wakes_at = wakes_at.min(*until),
                _ if self.passes.len() < RUNS_AT_ONCE => self.go_on(row, now),
                _ => {}
            }
        }
        Ok(wakes_at.max(now + SHORTEST))
    }

    fn go_on(&mut self, row: MigrationRunRow, now: Instant) {
        let since = self.seen.get(&row.run_id).map_or(now, |(_, since)| *since);
        let is_abandoned = self.migrations.0.is_alone || now.saturating_duration_since(since) >= ABANDONED;
        let run_id = row.run_id;
        let pass = Pass::new(self.migrations.0.workspaces.clone(), row);
        let task = self.passes.spawn_local(pass.run(is_abandoned));
        self.running.insert(task.id(), run_id);
    }

    fn on_end(&mut self, ended: Result<(Id, Result<After, Failure>), JoinError>) {
        let now = Instant::now();
        let (id, wait) = match ended {
            Ok((id, Ok(After::Again))) => (id, None),
            Ok((id, Ok(After::Wait(until)))) => (id, Some(until)),
            Ok((id, Err(cause))) => {
                tracing::warn!(marker = "[MIGRATION]", %cause, "a migration waits");
                (id, Some(None))
            }
            Err(cause) => {
                tracing::error!(marker = "[MIGRATION]", %cause, "a step of a migration died");
                (cause.id(), Some(None))
            }
        };
        let Some(run_id) = self.running.remove(&id) else { return };
        match wait {
            None => self.waiting.remove(&run_id),
            Some(until) => {
                let clock = &self.migrations.0.workspaces.parts().clock;
                let wait = until.map_or(LOOK, |until| until.since(clock.now()).min(LOOK));
                self.waiting.insert(run_id, now + wait)
            }
        };
    }

    /// Every open run, the oldest first.
    async fn open(&self) -> Result<Vec<MigrationRunRow>, Failure> {
        let store = &self.migrations.0.workspaces.parts().store;
        let filter = MigrationRunFilter { open_only: true, ..MigrationRunFilter::default() };
        let (mut open, mut after) = (Vec::new(), None);
        loop {
            let page = Page { limit: PAGE, after };
            let rows = store.migration_runs(filter.clone(), page).await.map_err(|cause| store::failure(&cause))?;
            after = rows.last().filter(|_| rows.len() == PAGE).map(MigrationRunRow::cursor);
            open.extend(rows);
            if after.is_none() {
                break;
            }
        }
        open.reverse();
        Ok(open)
    }

    fn notice(&mut self, open: &[MigrationRunRow], now: Instant) {
        let mut seen = HashMap::with_capacity(open.len());
        for row in open {
            let known = self.seen.get(&row.run_id).filter(|(version, _)| *version == row.version);
            seen.insert(row.run_id, known.copied().unwrap_or((row.version, now)));
        }
        self.waiting.retain(|run_id, _| seen.contains_key(run_id));
        self.seen = seen;
    }
}
