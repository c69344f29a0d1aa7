//! The table of sagas: the state of each run of automation, from the end of its turn's agent on.
//!
//! A saga is written in the transaction of that end, so no run is lost; later writes name the version that they replace,
//! so that one writer advances a run.

use diesel::{
    BoolExpressionMethods, ExpressionMethods, Insertable, OptionalExtension, QueryDsl, Queryable, RunQueryDsl,
};
use uuid::Uuid;

use super::runs;
use crate::{
    contract::audit::AutomationRunItem,
    domain::{
        automation::saga::{Saga, SagaStatus},
        clock::Timestamp,
        erasure::EraseTarget,
        ids::{PromptId, SessionId, WorkspaceKey},
        notify::notification::SessionNotice,
        redaction::RedactedJson,
    },
    store::{
        Store, StoreError,
        engine::{
            columns::{self, Cursor, Listed},
            writer::WriteTx,
        },
        notifications::notes::SessionNoticeRows,
        schema::automation_sagas,
    },
};

/// A run of automation.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SagaRow {
    pub run_id: Uuid,
    pub prompt_id: PromptId,
    pub session_id: SessionId,
    pub key: WorkspaceKey,
    /// Number of writes after the first one.
    pub version: u64,
    pub status: SagaStatus,
    /// Absent until the run has a plan.
    pub saga: Option<Saga>,
    /// Time of the next attempt, if the service begins it.
    pub retry_at: Option<Timestamp>,
    pub created: Timestamp,
    pub updated: Timestamp,
}

/// A change of a run.
#[derive(Debug, Clone)]
pub(crate) struct SagaUpdate {
    pub run_id: Uuid,
    /// The version that this change replaces.
    pub version: u64,
    pub status: SagaStatus,
    pub saga: Saga,
    pub retry_at: Option<Timestamp>,
    /// True if an earlier write of this change reported an error: it may have taken effect nevertheless.
    pub is_repeated: bool,
    pub now: Timestamp,
}

/// The end of an attempt: the record for the audit, and the notice to the session's user, if there is one.
#[derive(Debug, Clone)]
pub(crate) struct RunEnd {
    pub run: AutomationRunItem,
    pub notice: Option<SessionNotice>,
    /// Absent for a run that never began.
    pub saga: Option<SagaUpdate>,
}

/// [`RunEnd`] as rows; may be written again after a rollback.
pub(crate) struct RunEndRows {
    run: runs::Record,
    notice: Option<SessionNoticeRows>,
    saga: Option<Changed>,
}

impl RunEndRows {
    pub(crate) fn new(key: &WorkspaceKey, session: SessionId, prompt: PromptId, end: RunEnd, now: Timestamp) -> Self {
        let notice = end.notice.map(|it| SessionNoticeRows::new(key.clone(), session, Some(prompt), it, now));
        Self { run: runs::Record::new(end.run), notice, saga: end.saga.map(Changed::new) }
    }

    /// Writes the rows. Returns false, and writes nothing, if another writer has advanced the run.
    pub(crate) fn write(&mut self, tx: &mut WriteTx<'_>) -> Result<bool, StoreError> {
        match self.saga.as_ref().map_or(Ok(Effect::Written), |saga| saga.write(tx))? {
            Effect::Fenced => return Ok(false),
            // The rows of the same transaction, too.
            Effect::Stored => return Ok(true),
            Effect::Written => {}
        }
        self.run.insert(tx)?;
        if let Some(notice) = &mut self.notice {
            notice.write(tx)?;
        }
        Ok(true)
    }
}

impl Listed for SagaRow {
    fn cursor(&self) -> Cursor {
        Cursor { created: self.created, id: self.run_id.to_string() }
    }
}

#[derive(Queryable, Insertable)]
#[diesel(table_name = automation_sagas)]
pub(crate) struct Record {
    run_id: String,
    prompt_id: String,
    session_id: String,
    installation_id: String,
    workspace_id: String,
    version: i64,
    status: String,
    state: Option<String>,
    retry_us: Option<i64>,
    created_us: i64,
    updated_us: i64,
    kept_us: Option<i64>,
}

const STATE: &str = "automation_sagas.state";
/// Runs that an attempt advances, now or later.
const OPEN: [SagaStatus; 2] = [SagaStatus::Running, SagaStatus::Waiting];

impl Record {
    pub(crate) fn read(self) -> Result<SagaRow, StoreError> {
        Ok(SagaRow {
            run_id: columns::parse(&self.run_id, "automation_sagas.run_id")?,
            prompt_id: columns::parse(&self.prompt_id, "automation_sagas.prompt_id")?,
            session_id: columns::parse(&self.session_id, "automation_sagas.session_id")?,
            key: columns::workspace_key(self.installation_id, self.workspace_id)?,
            version: columns::unsigned(self.version),
            status: SagaStatus::tolerant(&self.status),
            saga: self.state.as_deref().map(|state| columns::json(state, STATE)).transpose()?,
            retry_at: self.retry_us.map(Timestamp),
            created: Timestamp(self.created_us),
            updated: Timestamp(self.updated_us),
        })
    }
}

/// Begins the run of a turn, in the transaction in which the turn leaves the phase of its agent, and so once.
pub(crate) fn begin(
    tx: &mut WriteTx<'_>,
    run_id: Uuid,
    prompt_id: PromptId,
    (session_id, key): (SessionId, &WorkspaceKey),
    now: Timestamp,
) -> Result<(), StoreError> {
    let record = Record {
        run_id: run_id.to_string(),
        prompt_id: prompt_id.to_string(),
        session_id: session_id.to_string(),
        installation_id: key.installation_id.to_string(),
        workspace_id: key.workspace_id.to_string(),
        version: 0,
        status: SagaStatus::Running.as_str().to_owned(),
        state: None,
        retry_us: None,
        created_us: now.0,
        updated_us: now.0,
        kept_us: None,
    };
    tx.rows += diesel::insert_into(automation_sagas::table).values(record).execute(tx.connection)?;
    Ok(())
}

/// A [`SagaUpdate`] as values of columns.
struct Changed {
    run_id: String,
    version: i64,
    status: &'static str,
    state: String,
    retry_us: Option<i64>,
    updated_us: i64,
    kept_us: Option<i64>,
    is_repeated: bool,
}

/// The effect of a [`Changed`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    Written,
    /// An earlier attempt reported an error, and has written the change nevertheless.
    Stored,
    /// The run has another version.
    Fenced,
}

impl Changed {
    fn new(update: SagaUpdate) -> Self {
        Self {
            run_id: update.run_id.to_string(),
            version: columns::signed(update.version),
            status: update.status.as_str(),
            state: columns::clean(RedactedJson::of(&update.saga).into_string()),
            retry_us: update.retry_at.map(|at| at.0),
            updated_us: update.now.0,
            kept_us: update.saga.facts.rescue.is_some().then_some(update.now.0),
            is_repeated: update.is_repeated,
        }
    }

    /// Writes the change.
    fn write(&self, tx: &mut WriteTx<'_>) -> Result<Effect, StoreError> {
        let row =
            automation_sagas::table.find(self.run_id.as_str()).filter(automation_sagas::version.eq(self.version));
        let changed = diesel::update(row)
            .set((
                automation_sagas::version.eq(self.version + 1),
                automation_sagas::status.eq(self.status),
                automation_sagas::state.eq(Some(self.state.as_str())),
                automation_sagas::retry_us.eq(self.retry_us),
                automation_sagas::updated_us.eq(self.updated_us),
                automation_sagas::kept_us.eq(self.kept_us),
            ))
            .execute(tx.connection)?;
        tx.rows += changed;
        if changed == 0 && (tx.in_doubt || self.is_repeated) {
            // The commit of an earlier attempt reported an error and took effect nevertheless.
            let stored: Option<(i64, Option<String>)> = automation_sagas::table
                .find(self.run_id.as_str())
                .select((automation_sagas::version, automation_sagas::state))
                .first(tx.connection)
                .optional()?;
            if stored == Some((self.version + 1, Some(self.state.clone()))) {
                return Ok(Effect::Stored);
            }
        }
        Ok(if changed > 0 { Effect::Written } else { Effect::Fenced })
    }
}

impl Store {
    /// The run of a turn. Cancel-safe.
    pub(crate) async fn saga_of_prompt(&self, prompt_id: PromptId) -> Result<Option<SagaRow>, StoreError> {
        self.read(move |connection| {
            let row = automation_sagas::table.filter(automation_sagas::prompt_id.eq(prompt_id.to_string()));
            let record: Option<Record> = row.first(connection).optional()?;
            record.map(Record::read).transpose()
        })
        .await
    }

    /// A run. Cancel-safe.
    pub(crate) async fn saga(&self, run_id: Uuid) -> Result<Option<SagaRow>, StoreError> {
        self.read(move |connection| {
            let record: Option<Record> =
                automation_sagas::table.find(run_id.to_string()).first(connection).optional()?;
            record.map(Record::read).transpose()
        })
        .await
    }

    /// The newest runs of a session that began before `before`, the newest first, at most `most`. Cancel-safe.
    pub(crate) async fn sagas_of_session(
        &self,
        session_id: SessionId,
        before: Timestamp,
        most: usize,
    ) -> Result<Vec<SagaRow>, StoreError> {
        self.read(move |connection| {
            let records: Vec<Record> = automation_sagas::table
                .filter(automation_sagas::session_id.eq(session_id.to_string()))
                .filter(automation_sagas::created_us.lt(before.0))
                .order((automation_sagas::created_us.desc(), automation_sagas::run_id.desc()))
                .limit(columns::limit(most))
                .load(connection)?;
            records.into_iter().map(Record::read).collect()
        })
        .await
    }

    /// Runs whose next attempt is due, those that waited longest first, at most `most`. Cancel-safe.
    pub(crate) async fn due_sagas(&self, now: Timestamp, most: usize) -> Result<Vec<SagaRow>, StoreError> {
        self.read(move |connection| {
            let records: Vec<Record> = automation_sagas::table
                .filter(automation_sagas::retry_us.le(now.0))
                .order(automation_sagas::retry_us)
                .limit(columns::limit(most))
                .load(connection)?;
            records.into_iter().map(Record::read).collect()
        })
        .await
    }

    /// Runs without an attempt now or later whose commit has been kept since before `before`, the oldest first, at most
    /// `most`. Cancel-safe.
    pub(crate) async fn sagas_with_rescue(&self, before: Timestamp, most: usize) -> Result<Vec<SagaRow>, StoreError> {
        self.read(move |connection| {
            let records: Vec<Record> = automation_sagas::table
                .filter(automation_sagas::kept_us.lt(before.0))
                .filter(automation_sagas::status.ne_all(OPEN.map(SagaStatus::as_str)))
                .order(automation_sagas::kept_us)
                .limit(columns::limit(most))
                .load(connection)?;
            records.into_iter().map(Record::read).collect()
        })
        .await
    }

    /// Makes the attempts of an earlier process due, whose leases have not ended. Only for a process that has the database
    /// alone. Safe to retry.
    ///
    /// # Cancel safety
    /// A dropped future may have written.
    pub(crate) async fn take_up_attempts(&self, now: Timestamp) -> Result<(), StoreError> {
        self.write(move |tx| {
            let leased = automation_sagas::table
                .filter(automation_sagas::status.eq(SagaStatus::Running.as_str()))
                .filter(automation_sagas::retry_us.gt(now.0));
            tx.rows += diesel::update(leased).set(automation_sagas::retry_us.eq(now.0)).execute(tx.connection)?;
            Ok(())
        })
        .await
    }

    /// Stops the attempts of a target that is being erased: no writer that advances one of its runs can store a further
    /// step. Safe to retry.
    ///
    /// # Cancel safety
    /// A dropped future may have written.
    pub(crate) async fn stop_sagas(&self, target: EraseTarget) -> Result<(), StoreError> {
        self.write(move |tx| {
            let is_open = automation_sagas::status.eq_any(OPEN.map(SagaStatus::as_str));
            let rows = automation_sagas::table.filter(automation_sagas::installation_id.eq(target.tenant().as_str()));
            let next = (
                automation_sagas::version.eq(automation_sagas::version + 1),
                automation_sagas::retry_us.eq(None::<i64>),
            );
            tx.rows += match (&target, target.workspace().map(|key| key.workspace_id.as_str())) {
                (EraseTarget::Session(_, id), _) => {
                    let rows = rows.filter(automation_sagas::session_id.eq(id.to_string())).filter(is_open);
                    diesel::update(rows).set(next).execute(tx.connection)?
                }
                (_, Some(workspace)) => {
                    let rows = rows.filter(automation_sagas::workspace_id.eq(workspace)).filter(is_open);
                    diesel::update(rows).set(next).execute(tx.connection)?
                }
                (_, None) => diesel::update(rows.filter(is_open)).set(next).execute(tx.connection)?,
            };
            Ok(())
        })
        .await
    }

    /// Runs of a target whose commit is kept, or that may be keeping it, by id and after the run `after`: at most `most`.
    /// Cancel-safe.
    pub(crate) async fn rescues_of(
        &self,
        target: EraseTarget,
        after: Option<Uuid>,
        most: usize,
    ) -> Result<Vec<Uuid>, StoreError> {
        self.read(move |connection| {
            let is_open = automation_sagas::status.eq_any(OPEN.map(SagaStatus::as_str));
            let mut rows = automation_sagas::table
                .filter(automation_sagas::installation_id.eq(target.tenant().as_str()))
                .filter(automation_sagas::kept_us.is_not_null().or(is_open))
                .into_boxed();
            if let Some(key) = target.workspace() {
                rows = rows.filter(automation_sagas::workspace_id.eq(key.workspace_id.as_str()));
            }
            if let Some(id) = target.session() {
                rows = rows.filter(automation_sagas::session_id.eq(id.to_string()));
            }
            if let Some(after) = after {
                rows = rows.filter(automation_sagas::run_id.gt(after.to_string()));
            }
            let ids = rows.order(automation_sagas::run_id).limit(columns::limit(most));
            let ids: Vec<String> = ids.select(automation_sagas::run_id).load(connection)?;
            ids.iter().map(|id| columns::parse(id, "automation_sagas.run_id")).collect()
        })
        .await
    }

    /// Writes a change of a run.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] if the run has another version: another writer advances it.
    ///
    /// # Cancel safety
    /// A dropped future may have written.
    pub(crate) async fn save_saga(&self, update: SagaUpdate) -> Result<(), StoreError> {
        let changed = Changed::new(update);
        match self.write(move |tx| changed.write(tx)).await? {
            Effect::Written | Effect::Stored => Ok(()),
            Effect::Fenced => Err(StoreError::Fenced),
        }
    }

    /// Writes the end of an attempt that began after the turn was closed.
    ///
    /// # Errors
    /// As [`Store::save_saga`].
    ///
    /// # Cancel safety
    /// A dropped future may have written.
    pub(crate) async fn end_attempt(&self, of: &SagaRow, end: RunEnd, now: Timestamp) -> Result<(), StoreError> {
        let mut rows = RunEndRows::new(&of.key, of.session_id, of.prompt_id, end, now);
        let written = self.write(move |tx| rows.write(tx)).await?;
        if written { Ok(()) } else { Err(StoreError::Fenced) }
    }
}
