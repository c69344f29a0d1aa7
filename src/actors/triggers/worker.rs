//! Works the queue off: some deliveries at once, those of one issue one after another.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use uuid::Uuid;

use super::{Triggers, github::Setback};
use crate::{
    domain::{
        automation::trigger::{
            DeliveryState, IgnoreReason,
            progress::{BUSY_PAUSE, is_expired, next_attempt},
            texts::{self, Outcome},
        },
        clock::Timestamp,
        ids::{InstallationId, WorkspaceKey},
        turn::outcome::ErrorCode,
    },
    store::{DeliveryRow, StoreError},
};

/// Time between two looks for deliveries that are due; one that was just queued is taken up at once.
const LOOK: Duration = Duration::from_secs(2);
/// Time between two looks for the end of a preparation, or of a turn.
const TURN_LOOK: Duration = Duration::from_millis(500);
/// Pause after a failure of the database.
const STORE_PAUSE: Duration = Duration::from_secs(1);
/// Reason of a delivery that waited too long.
const EXPIRED: &str = "expired";
/// Code of a refusal after which another token is minted.
const TOKEN_REFUSED: &str = "token-refused";

/// The continuation of the work on a delivery.
enum Next {
    /// The next step can follow at once.
    Step,
    /// The work is over, or continues when it is due again.
    Leave,
}

impl Triggers {
    /// Works until the service stops.
    ///
    /// # Cancel safety
    /// Work that is dropped is taken up by the next start.
    pub(crate) async fn run(self) {
        let mut stopping = self.0.stopping.clone();
        let mut running = FuturesUnordered::new();
        let mut at_work: HashSet<Uuid> = HashSet::new();
        loop {
            match self.startable(&at_work).await {
                Ok(ids) => {
                    for id in ids {
                        at_work.insert(id);
                        running.push(self.spawn(id));
                    }
                }
                Err(cause) => {
                    tracing::warn!(marker = "[GITHUB-AUTO]", %cause, "deliveries of GitHub could not be read");
                }
            }
            tokio::select! {
                Some(id) = running.next() => drop(at_work.remove(&id)),
                () = self.0.queued.notified() => {}
                () = tokio::time::sleep(LOOK) => {}
                _ = stopping.wait_for(|stopping| *stopping) => return,
            }
        }
    }

    /// Works on a delivery in a task of its own, and returns its id at the end.
    fn spawn(&self, id: Uuid) -> impl Future<Output = Uuid> + use<> {
        let this = self.clone();
        let task = actix::spawn(async move {
            if let Err(cause) = this.work(id).await {
                tracing::warn!(marker = "[GITHUB-AUTO]", delivery_id = %id, %cause, "delivery of GitHub was left");
                tokio::time::sleep(STORE_PAUSE).await;
            }
        });
        async move {
            if task.await.is_err() {
                tracing::error!(marker = "[GITHUB-AUTO]", delivery_id = %id, "the work on a delivery of GitHub panicked");
                tokio::time::sleep(LOOK).await;
            }
            id
        }
    }

    /// Deliveries that are due, as many as may be worked on beside `at_work`; of one issue the oldest alone, and of one tenant at
    /// most half of the places, so that its turns do not stop those of others.
    async fn startable(&self, at_work: &HashSet<Uuid>) -> Result<Vec<Uuid>, StoreError> {
        let services = self.0.workspaces.services();
        let room = self.0.settings.triggers.max_turns.saturating_sub(at_work.len());
        if room == 0 {
            return Ok(Vec::new());
        }
        let now = services.clock.now();
        let mut issues: HashSet<WorkspaceKey> = HashSet::new();
        let mut open = services.store.open_deliveries().await?;
        let share = self.0.settings.triggers.max_turns.div_ceil(2);
        let mut taken: HashMap<InstallationId, usize> = HashMap::new();
        for (_, key, _) in open.iter().filter(|(id, ..)| at_work.contains(id)) {
            *taken.entry(key.installation_id.clone()).or_default() += 1;
        }
        open.retain(|(id, key, due)| issues.insert(key.clone()) && !at_work.contains(id) && *due <= now);
        open.retain(|(_, key, _)| {
            let of_tenant = taken.entry(key.installation_id.clone()).or_default();
            *of_tenant += 1;
            *of_tenant <= share
        });
        Ok(open.into_iter().map(|(id, ..)| id).take(room).collect())
    }

    /// Works on one delivery as far as possible.
    async fn work(&self, id: Uuid) -> Result<(), StoreError> {
        let Some(mut row) = self.0.workspaces.services().store.delivery(id).await? else { return Ok(()) };
        loop {
            let next = match self.step(&mut row).await {
                Ok(next) => next,
                Err(Setback::Store(StoreError::Fenced)) => return Ok(()),
                Err(Setback::Store(cause)) => return Err(cause),
                Err(setback) => self.set_back(&mut row, setback).await?,
            };
            if matches!(next, Next::Leave) || *self.0.stopping.borrow() {
                return Ok(());
            }
        }
    }

    /// Carries out the step that follows the state of a delivery, and stores it.
    async fn step(&self, row: &mut DeliveryRow) -> Result<Next, Setback> {
        let now = self.now();
        let is_unprompted = row.prompt_id.is_none();
        if is_unprompted && is_expired(row.created, now) {
            self.end(row, DeliveryState::Failed, Some(EXPIRED)).await?;
            return Ok(Next::Leave);
        }
        if is_unprompted && !self.is_on() {
            return Err(Setback::Ignored(IgnoreReason::AutomationOff));
        }
        match (row.state, row.session_id, row.prompt_id) {
            (DeliveryState::Queued, ..) => {
                self.check(row).await?;
                row.state = DeliveryState::Checked;
            }
            (DeliveryState::Checked, ..) => {
                row.session_id = Some(self.session(row).await?);
                row.state = DeliveryState::Opened;
            }
            (DeliveryState::Opened, Some(session_id), _) => {
                let Some(prompt_id) = self.prompt(row, session_id).await? else {
                    self.wait(TURN_LOOK).await;
                    return Ok(Next::Step);
                };
                row.prompt_id = Some(prompt_id);
                row.state = DeliveryState::Prompted;
            }
            (DeliveryState::Prompted, _, Some(prompt_id)) => {
                let Some((outcome, has_comment)) = self.outcome(prompt_id).await? else {
                    self.wait(TURN_LOOK).await;
                    return Ok(Next::Step);
                };
                if !has_comment {
                    self.answer(row, &outcome).await?;
                }
                self.end(row, DeliveryState::Answered, None).await?;
                return Ok(Next::Leave);
            }
            _ => return Err(Setback::Refused { code: ErrorCode::Internal.as_str().to_owned() }),
        }
        (row.attempts, row.due) = (0, Some(now));
        self.save(row).await?;
        Ok(Next::Step)
    }

    async fn check(&self, row: &mut DeliveryRow) -> Result<(), Setback> {
        let mut connection = self.connect(row).await?;
        if !row.request.mentioned.is_empty() {
            let unknown = || Setback::Refused { code: "no-mention-name".to_owned() };
            let name = self.mention().or(connection.name.clone()).ok_or_else(unknown)?;
            row.request.resolve(&name).map_err(Setback::Ignored)?;
        }
        connection.check(&mut row.request).await?;
        connection.react(&row.request).await;
        Ok(())
    }

    async fn answer(&self, row: &DeliveryRow, outcome: &Outcome) -> Result<(), Setback> {
        let mut connection = self.connect(row).await?;
        let id = row.delivery_id.to_string();
        connection.comment(row.request.number, &texts::marker(&id), &outcome.body(&id)).await
    }

    /// Ends a delivery, or plans its next execution.
    async fn set_back(&self, row: &mut DeliveryRow, setback: Setback) -> Result<Next, StoreError> {
        match setback {
            Setback::Store(cause) => return Err(cause),
            Setback::Busy => {
                row.due = Some(self.now().plus(BUSY_PAUSE));
                self.save(row).await?;
            }
            Setback::Ignored(reason) if row.prompt_id.is_some() => {
                return self.give_up(row, reason.as_str(), None).await;
            }
            Setback::Ignored(reason) => self.end(row, DeliveryState::Ignored, Some(reason.as_str())).await?,
            Setback::Later { code, at } => return self.try_later(row, code, at).await,
            // Once with a new token, whose refusal says more: the installation was suspended, for instance.
            Setback::Refused { code } if code == TOKEN_REFUSED && row.attempts == 0 => {
                return self.try_later(row, code, None).await;
            }
            Setback::Failed(code) => return self.give_up(row, code.as_str(), Some(code)).await,
            Setback::Refused { code } => return self.give_up(row, &code, None).await,
        }
        Ok(Next::Leave)
    }

    /// Plans the next execution of a step, unless it was the last one.
    async fn try_later(
        &self,
        row: &mut DeliveryRow,
        code: String,
        at: Option<Timestamp>,
    ) -> Result<Next, StoreError> {
        row.attempts += 1;
        if code == TOKEN_REFUSED {
            self.forget_token(row).await;
        }
        let Some(next) = next_attempt(row.attempts, at, self.now()) else {
            return self.give_up(row, &code, ErrorCode::from_name(&code)).await;
        };
        let (delivery_id, attempts) = (row.delivery_id, row.attempts);
        tracing::warn!(marker = "[GITHUB-AUTO]", %delivery_id, code, attempts, "delivery of GitHub is tried again");
        (row.due, row.reason) = (Some(next), Some(code));
        self.save(row).await?;
        Ok(Next::Leave)
    }

    /// Ends a delivery that cannot be completed. A sender who has been admitted gets a comment with the failure, if GitHub
    /// takes it.
    async fn give_up(
        &self,
        row: &mut DeliveryRow,
        code: &str,
        failure: Option<ErrorCode>,
    ) -> Result<Next, StoreError> {
        let is_admitted = !matches!(row.state, DeliveryState::Queued | DeliveryState::Prompted);
        if let Some(failure) = failure.filter(|_| is_admitted) {
            let outcome = Outcome { failure: Some(failure), ..Outcome::default() };
            if let Err(Setback::Store(cause)) = self.answer(row, &outcome).await {
                return Err(cause);
            }
        }
        self.end(row, DeliveryState::Failed, Some(code)).await?;
        Ok(Next::Leave)
    }

    /// Stores the end of the work; the texts are not needed any more.
    async fn end(&self, row: &mut DeliveryRow, state: DeliveryState, reason: Option<&str>) -> Result<(), StoreError> {
        (row.state, row.reason, row.due) = (state, reason.map(str::to_owned), None);
        row.request.text = None;
        self.save(row).await?;
        self.0.workspaces.services().metrics.github_trigger(state);
        let (delivery_id, key, state) = (row.delivery_id, &row.key, state.as_str());
        let reason = reason.unwrap_or_default();
        tracing::info!(marker = "[GITHUB-AUTO]", %delivery_id, workspace = %key, state, reason, "delivery of GitHub ended");
        Ok(())
    }

    async fn save(&self, row: &mut DeliveryRow) -> Result<(), StoreError> {
        row.updated = self.now();
        self.0.workspaces.services().store.save_delivery(row).await?;
        row.version += 1;
        Ok(())
    }

    /// Waits, at most until the service stops.
    async fn wait(&self, pause: Duration) {
        let mut stopping = self.0.stopping.clone();
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = stopping.wait_for(|stopping| *stopping) => {}
        }
    }

    fn now(&self) -> Timestamp {
        self.0.workspaces.services().clock.now()
    }
}
