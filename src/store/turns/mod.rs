//! The table of prompts: a turn is accepted once and ends once.

pub(crate) mod outcomes;
pub(crate) mod recovery;
mod replayable;

use diesel::{BoolExpressionMethods, ExpressionMethods, OptionalExtension, QueryDsl, Queryable, RunQueryDsl};
use uuid::Uuid;

use self::outcomes::OutcomeCount;
use super::{
    Store, StoreError,
    automation::sagas::{self, RunEnd, RunEndRows},
    engine::{
        columns::{self, Cursor, Page, clean, clean_option, page_of},
        connection::{AnyConnection, Cached, Update, execute, insert_of_row},
        room::Room,
        writer::{Job, Outage, WriteTx},
    },
    schema::{self, prompts, transcript_entries},
    transcript::{self, Entries, TranscriptAppend, TranscriptRow},
};
use crate::domain::{
    automation::{skip::Automation, wanted::Wanted},
    clock::Timestamp,
    ids::{PromptId, SessionId, WorkspaceKey},
    redaction::{Redacted, RedactedJson},
    retention::IDEMPOTENCY_PERIOD,
    routing::Route,
    turn::{TurnInitiator, TurnPhase, TurnState, outcome::Failure, transcript::TranscriptEntry},
};

/// An idempotency key with the digest of its request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Idempotency {
    /// The key; unique within the session.
    pub key: String,
    /// A digest of the request's body, as text.
    pub body_hash: String,
}

#[derive(Debug, Clone)]
pub(crate) struct NewTurn {
    pub prompt_id: PromptId,
    pub session_id: SessionId,
    pub key: WorkspaceKey,
    pub initiator: TurnInitiator,
    /// The caller's key, where one was sent.
    pub idempotency: Option<Idempotency>,
    /// The beginning of the prompt, for lists.
    pub preview: Redacted,
    /// The first entry of its transcript: the user's message, or the note that the agent began the turn.
    pub first_entry: TranscriptEntry,
    /// True if an earlier attempt may have written the turn; if it did, that row is returned.
    pub again: bool,
    /// The workspace's route when it began.
    pub route: Route,
    /// The protocol that carries it: `route`, except for a canary.
    pub protocol: Route,
    /// The epoch of the route.
    pub epoch: u64,
    /// True for a canary: a turn over ACP in a workspace that is rolled back.
    pub is_canary: bool,
    /// The automation requested for its changes.
    pub wanted: Wanted,
    pub decision: Automation,
    pub now: Timestamp,
}

/// The result of accepting a turn.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Acceptance {
    /// The turn and the user's transcript entry are on disk.
    Accepted,
    /// The earlier turn of the same key and body. Nothing was written.
    Existing(PromptRow),
    /// The earlier turn of the same key with another body. Nothing was written.
    Mismatch(PromptRow),
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PromptRow {
    pub prompt_id: PromptId,
    pub session_id: SessionId,
    pub key: WorkspaceKey,
    /// The caller's key, until it expires.
    pub idempotency: Option<Idempotency>,
    pub state: TurnState,
    /// The beginning of the prompt.
    pub preview: String,
    /// The result as JSON; `None` while the turn runs and if it was interrupted.
    pub result: Option<String>,
    pub error: Option<Failure>,
    pub accepted: Timestamp,
    pub ended: Option<Timestamp>,
    /// The workspace's route when it began.
    pub route: Route,
    pub protocol: Route,
    /// The epoch of the route.
    pub epoch: u64,
    /// True if the turn tried ACP for a workspace that was rolled back.
    pub is_canary: bool,
    /// The automation requested for its changes.
    pub wanted: Wanted,
    /// The decision about that automation.
    pub decision: Automation,
    /// The agent's own conversation that completed the turn.
    pub known_by: Option<String>,
    /// True if a caller was promised that the turn ends cancelled.
    pub cancel_asked: bool,
    pub initiator: TurnInitiator,
    /// The number of the agent's last message that the end of the turn covers; 0 if it is unknown.
    pub settled_seq: u64,
}

impl PromptRow {
    /// The position of this row in [`Store::list_turns`].
    pub(crate) fn cursor(&self) -> Cursor {
        Cursor { created: self.accepted, id: self.prompt_id.to_string() }
    }
}

/// The part of a turn's end that a write records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EndStep {
    /// The end of the agent and of the turn, without automation between them.
    Whole,
    /// The end of the agent alone: the turn stays open for automation, with the agent's part of the result.
    Agent,
    /// The end of a turn whose agent has ended.
    Turn,
}

impl EndStep {
    /// The phases before and after it.
    fn phases(self) -> (TurnPhase, TurnPhase) {
        match self {
            Self::Whole => (TurnPhase::Agent, TurnPhase::Closed),
            Self::Agent => (TurnPhase::Agent, TurnPhase::Automation),
            Self::Turn => (TurnPhase::Automation, TurnPhase::Closed),
        }
    }
}

/// The end of a turn, with everything that is recorded about it. The session's row is not updated: that would double the
/// cost of a turn's end, and the row is written when the session opens, hibernates and ends.
#[derive(Debug, Clone)]
pub(crate) struct TurnEnd {
    /// The part that this write records.
    pub step: EndStep,
    pub prompt_id: PromptId,
    /// Route that carried the turn.
    pub protocol: Route,
    /// The agent's id of its own conversation, which now knows the session up to this turn; only for a turn that an
    /// agent with a memory of its own completed.
    pub known_by: Option<String>,
    pub session_id: SessionId,
    pub key: WorkspaceKey,
    /// A final state; any other one is stored as `failed`. Not stored with the end of the agent alone.
    pub state: TurnState,
    pub result: Option<RedactedJson>,
    /// Redacted when it is stored.
    pub error: Option<Failure>,
    /// The rest of its transcript.
    pub entries: Vec<TranscriptEntry>,
    /// The end of its automation, if it was skipped or ran.
    pub run: Option<RunEnd>,
    /// The outcome for the workspace's success window; counted only if this write ends the turn.
    pub counts: Option<OutcomeCount>,
    /// The number of the agent's last message that this end covers; 0 if it is unknown.
    pub settles: u64,
    pub now: Timestamp,
}

impl TurnEnd {
    /// The size of entries and result; the rest is small.
    fn size_bytes(&self) -> usize {
        let result = self.result.as_ref().map_or(0, |result| result.as_str().len());
        transcript::size_of_entries(&self.entries) + result
    }
}

#[derive(Queryable)]
pub(crate) struct Record {
    prompt_id: String,
    session_id: String,
    installation_id: String,
    workspace_id: String,
    idempotency_key: Option<String>,
    body_hash: Option<String>,
    state: String,
    preview: String,
    result: Option<String>,
    error_code: Option<String>,
    error_detail: Option<String>,
    accepted_us: i64,
    ended_us: Option<i64>,
    route: String,
    protocol: String,
    epoch: i64,
    is_canary: bool,
    automation: String,
    known_by: Option<String>,
    phase: String,
    decision: String,
    cancel_asked: bool,
    initiator: String,
    settled_seq: i64,
    automation_options: Option<String>,
}

insert_of_row!(AcceptTurn(Record) => prompts (
    prompt_id, session_id, installation_id, workspace_id, idempotency_key, body_hash, state, preview, result,
    error_code, error_detail, accepted_us, ended_us, route, protocol, epoch, is_canary, automation, known_by,
    phase, decision, cancel_asked, initiator, settled_seq, automation_options,
));

impl Record {
    pub(crate) fn read(self) -> Result<PromptRow, StoreError> {
        let idempotency = self.idempotency_key.zip(self.body_hash);
        Ok(PromptRow {
            prompt_id: columns::parse(&self.prompt_id, "prompts.prompt_id")?,
            session_id: columns::parse(&self.session_id, "prompts.session_id")?,
            key: columns::workspace_key(self.installation_id, self.workspace_id)?,
            idempotency: idempotency.map(|(key, body_hash)| Idempotency { key, body_hash }),
            state: TurnState::tolerant(&self.state, self.ended_us.is_some()),
            preview: self.preview,
            result: self.result,
            error: columns::failure(self.error_code, self.error_detail),
            accepted: Timestamp(self.accepted_us),
            ended: self.ended_us.map(Timestamp),
            route: Route::tolerant(&self.route),
            protocol: Route::tolerant(&self.protocol),
            epoch: columns::unsigned(self.epoch),
            is_canary: self.is_canary,
            wanted: Wanted::from_stored(&self.automation, self.automation_options.as_deref()),
            // Automation that this version cannot name is left to the version that stored it.
            decision: Automation::from_stored(&self.decision).unwrap_or(Automation::Nothing),
            known_by: self.known_by,
            cancel_asked: self.cancel_asked,
            initiator: TurnInitiator::tolerant(&self.initiator),
            settled_seq: columns::unsigned(self.settled_seq),
        })
    }
}

fn find(connection: &mut AnyConnection, prompt_id: &str) -> diesel::QueryResult<Option<Record>> {
    prompts::table.find(prompt_id).first(connection).optional()
}

/// The turns of users that have not ended and are in this phase.
pub(crate) fn open_turns(connection: &mut AnyConnection, phase: TurnPhase) -> Result<Vec<PromptRow>, StoreError> {
    let open: Vec<Record> = prompts::table
        .filter(prompts::ended_us.is_null())
        .filter(prompts::phase.eq(phase.as_str()))
        .filter(prompts::initiator.eq(TurnInitiator::User.as_str()))
        .load(connection)?;
    open.into_iter().map(Record::read).collect()
}

/// The turn that holds this key. An expired key is removed from its turn.
fn holder(tx: &mut WriteTx<'_>, record: &Record, key: &str) -> Result<Option<Record>, StoreError> {
    let holder: Option<Record> = prompts::table
        .filter(prompts::session_id.eq(record.session_id.as_str()))
        .filter(prompts::idempotency_key.eq(key))
        .first(tx.connection)
        .optional()?;
    let Some(holder) = holder else { return Ok(None) };
    if Timestamp(record.accepted_us).since(Timestamp(holder.accepted_us)) < IDEMPOTENCY_PERIOD {
        return Ok(Some(holder));
    }
    // The unique index admits one turn for each key, so the expired holder must give it up.
    tx.rows += diesel::update(prompts::table.find(holder.prompt_id.as_str()))
        .set((prompts::idempotency_key.eq(None::<&str>), prompts::body_hash.eq(None::<&str>)))
        .execute(tx.connection)?;
    Ok(None)
}

fn accept(tx: &mut WriteTx<'_>, record: &Record, again: bool, said: &mut Entries) -> Result<Acceptance, StoreError> {
    if again && let Some(earlier) = find(tx.connection, &record.prompt_id)? {
        return Ok(Acceptance::Existing(earlier.read()?));
    }
    // The commit of an earlier attempt reported an error and took effect nevertheless.
    if tx.in_doubt && find(tx.connection, &record.prompt_id)?.is_some() {
        return Ok(Acceptance::Accepted);
    }
    if let Some(key) = &record.idempotency_key
        && let Some(holder) = holder(tx, record, key)?
    {
        let same = holder.body_hash == record.body_hash;
        let holder = holder.read()?;
        return Ok(if same { Acceptance::Existing(holder) } else { Acceptance::Mismatch(holder) });
    }
    tx.rows += execute!(tx.connection, AcceptTurn(record))?;
    said.write(tx)?;
    Ok(Acceptance::Accepted)
}

/// Accepts a turn; may be called again after a rollback.
pub(crate) fn acceptance(turn: NewTurn) -> impl FnMut(&mut WriteTx<'_>) -> Result<Acceptance, StoreError> {
    let (key, hash) = turn.idempotency.map(|given| (clean(given.key), clean(given.body_hash))).unzip();
    let record = Record {
        prompt_id: turn.prompt_id.to_string(),
        session_id: turn.session_id.to_string(),
        installation_id: turn.key.installation_id.to_string(),
        workspace_id: turn.key.workspace_id.to_string(),
        idempotency_key: key,
        body_hash: hash,
        state: TurnState::Accepted.as_str().to_owned(),
        preview: clean(turn.preview.into_string()),
        result: None,
        error_code: None,
        error_detail: None,
        accepted_us: turn.now.0,
        ended_us: None,
        route: turn.route.as_str().to_owned(),
        protocol: turn.protocol.as_str().to_owned(),
        epoch: columns::signed(turn.epoch),
        is_canary: turn.is_canary,
        automation: turn.wanted.mode.as_str().to_owned(),
        known_by: None,
        phase: TurnPhase::Agent.as_str().to_owned(),
        decision: turn.decision.to_stored(),
        cancel_asked: false,
        initiator: turn.initiator.as_str().to_owned(),
        settled_seq: 0,
        automation_options: turn.wanted.options_to_stored(),
    };
    let mut said = Entries::new(TranscriptAppend {
        session_id: turn.session_id,
        key: turn.key,
        prompt_id: Some(turn.prompt_id),
        entries: vec![turn.first_entry],
        settles: 0,
        now: turn.now,
    });
    move |tx| accept(tx, &record, turn.again, &mut said)
}

/// A place in the writer's queue, reserved before a turn is accepted, so that its end can always be queued. Dropping it
/// frees the place.
#[derive(Debug)]
pub(crate) struct EndSlot {
    place: super::Place,
    room: Room,
}

/// Identifies the update that ends a turn.
struct EndTurn;

impl EndSlot {
    /// Queues the end of a turn. Never blocks, so it may be called from `Drop`. `done` gets the outcome on the writer's
    /// thread, after the commit, and must not block; a panic in it is not propagated. A turn that has another end or was
    /// never accepted stays unchanged: [`StoreError::Fenced`]. While the database is unavailable the end is retained and
    /// retried; `done` gets an error after `[database] patience_s`. Its bytes count among those that may wait, and it is
    /// queued even if there is no room: then no turn is accepted, and appends wait, until there is.
    pub(crate) fn end_turn(self, end: TurnEnd, done: Box<dyn FnOnce(Result<(), StoreError>) + Send>) {
        let share = self.room.owe(end.size_bytes());
        let job = Job::new(Outage::Keep, ending(end), move |stored| done(stored.and_then(EndStored::fence)));
        self.place.send(job.with_share(share));
    }
}

/// The end of a turn that the database has after a write of an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EndStored {
    /// The written one, which an earlier attempt may have written.
    ThisOne,
    /// A different one, or the turn is unknown. Nothing was written.
    AnotherOne,
}

impl EndStored {
    /// # Errors
    /// [`StoreError::Fenced`] for another end.
    fn fence(self) -> Result<(), StoreError> {
        match self {
            Self::ThisOne => Ok(()),
            Self::AnotherOne => Err(StoreError::Fenced),
        }
    }
}

/// True if the stored turn has exactly this end.
fn is_stored(stored: Option<&Record>, state: TurnState, result: Option<&str>, ended: Option<i64>) -> bool {
    stored.is_some_and(|row| {
        (row.state.as_str(), row.result.as_deref(), row.ended_us) == (state.as_str(), result, ended)
    })
}

/// Writes the end of a turn; may be called again after a rollback. The answer is no error, so that one turn that was
/// ended elsewhere does not fail the writes that share its transaction.
pub(crate) fn ending(end: TurnEnd) -> impl FnMut(&mut WriteTx<'_>) -> Result<EndStored, StoreError> {
    let (before, after) = end.step.phases();
    let (state, ended_at) = match (end.step, end.state) {
        (EndStep::Agent, _) => (TurnState::Running, None),
        (_, state) if state.is_final() => (state, Some(end.now.0)),
        _ => (TurnState::Failed, Some(end.now.0)),
    };
    let prompt_id = end.prompt_id.to_string();
    let known_by = clean_option(end.known_by);
    let result = clean_option(end.result.map(RedactedJson::into_string));
    let detail = end.error.as_ref().map(columns::clean_detail);
    let code = end.error.as_ref().map(|error| error.code.as_str());
    let key = end.key.clone();
    let mut run = end.run.map(|run| RunEndRows::new(&key, end.session_id, end.prompt_id, run, end.now));
    // The agent's end begins a run, and the run is in the same transaction.
    let begins = (end.step == EndStep::Agent).then(Uuid::now_v7);
    let (of_run, session_id) = (end.prompt_id, end.session_id);
    let mut entries = Entries::new(TranscriptAppend {
        session_id: end.session_id,
        key: end.key,
        prompt_id: Some(end.prompt_id),
        entries: end.entries,
        settles: 0,
        now: end.now,
    });
    move |tx| {
        let is_open = prompts::prompt_id
            .eq(prompt_id.as_str())
            .and(prompts::ended_us.is_null())
            .and(prompts::phase.eq(before.as_str()));
        let changes = (
            prompts::state.eq(state.as_str()),
            prompts::result.eq(result.as_deref()),
            prompts::error_code.eq(code),
            prompts::error_detail.eq(detail.as_deref()),
            prompts::ended_us.eq(ended_at),
            prompts::phase.eq(after.as_str()),
            prompts::protocol.eq(end.protocol.as_str()),
            prompts::known_by.eq(known_by.as_deref()),
            // The second step of an end covers no further message.
            prompts::settled_seq.eq(prompts::settled_seq + columns::signed(end.settles)),
        );
        let ended = Cached::<EndTurn, _>::new(Update::new(prompts::table, is_open, changes));
        let ended = execute!(tx.connection, ended)?;
        // The turn has ended already or was never accepted; its counts and entries must not be written twice.
        if ended == 0 {
            let stored = find(tx.connection, &prompt_id)?;
            let is_this_one = is_stored(stored.as_ref(), state, result.as_deref(), ended_at);
            return Ok(if is_this_one { EndStored::ThisOne } else { EndStored::AnotherOne });
        }
        tx.rows += ended;
        if let Some(counts) = end.counts {
            outcomes::count(tx, &key, counts)?;
        }
        entries.write(tx)?;
        if let Some(run_id) = begins {
            sagas::begin(tx, run_id, of_run, (session_id, &key), end.now)?;
        }
        if let Some(run) = &mut run
            && !run.write(tx)?
        {
            tracing::error!(marker = "[GITHUB-AUTO]", prompt_id, "run of automation was advanced by another writer");
        }
        Ok(EndStored::ThisOne)
    }
}

impl Store {
    /// Takes a place in the writer's queue for the end of a turn. Full queue: [`StoreError::Busy`].
    pub(crate) fn reserve_end(&self) -> Result<EndSlot, StoreError> {
        self.place().map(|place| EndSlot { place, room: self.inner.room.clone() })
    }

    /// Writes the end of a turn's agent, after which automation runs; waits for room in the queue and for the commit.
    ///
    /// # Errors
    /// [`StoreError::Busy`] if there was no room, and nothing was written; [`StoreError::Fenced`] if the turn has another
    /// end. After any other error the end is still written when the database is available again.
    ///
    /// # Cancel safety
    /// A dropped future may have written.
    pub(crate) async fn end_agent(&self, end: TurnEnd) -> Result<(), StoreError> {
        let share = self.inner.room.owe(end.size_bytes());
        self.keep(Some(share), ending(end)).await?.fence()
    }

    /// Records that a caller asked for the cancel of a turn; does nothing if the turn has ended. Safe to retry.
    ///
    /// # Cancel safety
    /// A dropped future may have written.
    pub(crate) async fn ask_cancel(&self, prompt_id: PromptId) -> Result<(), StoreError> {
        let prompt_id = prompt_id.to_string();
        self.write(move |tx| {
            let open = prompts::table.find(prompt_id.as_str()).filter(prompts::ended_us.is_null());
            tx.rows += diesel::update(open).set(prompts::cancel_asked.eq(true)).execute(tx.connection)?;
            Ok(())
        })
        .await
    }

    /// Accepts a turn: its row and the user's transcript entry, in one transaction; or
    /// finds the turn that has the same idempotency key. An unknown session or an id that exists is a
    /// [`StoreError::Conflict`]; no room for the prompt's bytes is [`StoreError::Busy`]. A dropped future may have written.
    pub(crate) async fn accept_turn(&self, turn: NewTurn) -> Result<Acceptance, StoreError> {
        let share = self.share(turn.first_entry.size_bytes())?;
        self.write_with_share(Some(share), acceptance(turn)).await
    }

    /// Queues the row of a turn that an agent began by itself, and reserves the place of its end. While the database is
    /// unavailable the row is retained and retried, so that it is always written before the turn's entries and its end.
    ///
    /// # Errors
    /// [`StoreError::Busy`] if the queue is full; nothing was queued.
    pub(crate) fn begin_woken(&self, turn: NewTurn) -> Result<EndSlot, StoreError> {
        let (place, slot) = (self.place()?, self.reserve_end()?);
        let (prompt_id, share) = (turn.prompt_id, self.inner.room.owe(turn.first_entry.size_bytes()));
        let job = Job::new(Outage::Keep, acceptance(turn), move |stored| {
            if let Err(cause) = stored {
                tracing::error!(marker = "[ACP]", %prompt_id, %cause, "turn of the agent was not written");
            }
        });
        place.send(job.with_share(share));
        Ok(slot)
    }

    /// One turn. Cancel-safe.
    pub(crate) async fn prompt(&self, prompt_id: PromptId) -> Result<Option<PromptRow>, StoreError> {
        self.read(move |connection| find(connection, &prompt_id.to_string())?.map(Record::read).transpose()).await
    }

    /// The newest turn of a session that a user began. Cancel-safe.
    pub(crate) async fn newest_prompt(&self, session_id: SessionId) -> Result<Option<PromptRow>, StoreError> {
        self.read(move |connection| {
            let newest: Option<Record> = prompts::table
                .filter(prompts::session_id.eq(session_id.to_string()))
                .filter(prompts::initiator.eq(TurnInitiator::User.as_str()))
                // Ids begin with their time.
                .order(prompts::prompt_id.desc())
                .first(connection)
                .optional()?;
            newest.map(Record::read).transpose()
        })
        .await
    }

    /// Reads a page of the turns of a session, newest first. Cancel-safe.
    pub(crate) async fn list_turns(&self, session_id: SessionId, page: Page) -> Result<Vec<PromptRow>, StoreError> {
        self.read(move |connection| {
            let rows = prompts::table.filter(prompts::session_id.eq(session_id.to_string())).into_boxed();
            let records: Vec<Record> =
                page_of!(rows, page, prompts::accepted_us, prompts::prompt_id).load(connection)?;
            records.into_iter().map(Record::read).collect()
        })
        .await
    }

    /// The turn of a session that holds this `Idempotency-Key` at `now`. Cancel-safe.
    pub(crate) async fn prompt_with_key(
        &self,
        session_id: SessionId,
        key: String,
        now: Timestamp,
    ) -> Result<Option<PromptRow>, StoreError> {
        self.read(move |connection| {
            let holder: Option<Record> = prompts::table
                .filter(prompts::session_id.eq(session_id.to_string()))
                .filter(prompts::idempotency_key.eq(key))
                .filter(prompts::accepted_us.gt(now.minus(IDEMPOTENCY_PERIOD).0))
                .first(connection)
                .optional()?;
            holder.map(Record::read).transpose()
        })
        .await
    }
}

/// Type of the first transcript entry of a turn that the agent began by itself.
pub(crate) const AGENT_TURN: &str = "agent_turn";

/// Types of transcript entries that are not part of the conversation.
const NOTES: [&str; 4] = ["rollback", "toast", "automation", "info"];

impl Store {
    /// The newest turns of a session, the newest first, at most `most` and [`MAX_PAGE`](crate::store::MAX_PAGE). The
    /// turns are found by their first entry in the transcript, which has them in order. Cancel-safe.
    pub(crate) async fn newest_turns(
        &self,
        session_id: SessionId,
        most: usize,
    ) -> Result<Vec<PromptRow>, StoreError> {
        use schema::prompts::dsl;
        self.read(move |connection| {
            let said: Vec<Option<String>> = transcript_entries::table
                .filter(transcript_entries::session_id.eq(session_id.to_string()))
                .filter(transcript_entries::event_type.eq_any(["user_message", AGENT_TURN]))
                .order(transcript_entries::seq.desc())
                .limit(columns::limit(most))
                .select(transcript_entries::prompt_id)
                .load(connection)?;
            let ids = said.into_iter().flatten();
            let records: Vec<Record> = dsl::prompts
                .filter(dsl::prompt_id.eq_any(ids))
                .order((dsl::accepted_us.desc(), dsl::prompt_id.desc()))
                .load(connection)?;
            records.into_iter().map(Record::read).collect()
        })
        .await
    }

    /// The newest notes in a session's transcript, the newest first, at most `most` and
    /// [`MAX_PAGE`](crate::store::MAX_PAGE). Cancel-safe.
    pub(crate) async fn newest_notes(
        &self,
        session_id: SessionId,
        most: usize,
    ) -> Result<Vec<TranscriptRow>, StoreError> {
        self.read(move |connection| {
            let records: Vec<transcript::Record> = transcript_entries::table
                .filter(transcript_entries::session_id.eq(session_id.to_string()))
                .filter(transcript_entries::event_type.eq_any(NOTES))
                .order(transcript_entries::seq.desc())
                .limit(columns::limit(most))
                .select(transcript::COLUMNS)
                .load(connection)?;
            records.into_iter().map(transcript::Record::read).collect()
        })
        .await
    }
}
