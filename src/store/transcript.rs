//! The table of what conversations left behind.

use diesel::{
    BoolExpressionMethods, ExpressionMethods, Insertable, JoinOnDsl, NullableExpressionMethods, OptionalExtension,
    QueryDsl, Queryable, RunQueryDsl,
};

use super::{
    Store, StoreError,
    engine::{
        columns::{self, clean, clean_option},
        connection::{AnyConnection, Cached, execute},
        writer::{Job, Outage, WriteTx},
    },
    schema::{prompts, transcript_entries},
    sessions,
};
use crate::domain::{
    clock::Timestamp,
    ids::{PromptId, SessionId, WorkspaceKey},
    redaction::Redacted,
    routing::Route,
    session::context::{MAX_CONTEXT_BYTES, Remark},
    turn::transcript::TranscriptEntry,
};

/// Entries to append to a session's transcript; they are numbered when they are written.
#[derive(Debug, Clone)]
pub(crate) struct TranscriptAppend {
    /// The session.
    pub session_id: SessionId,
    /// Its workspace.
    pub key: WorkspaceKey,
    /// The turn, where they belong to one.
    pub prompt_id: Option<PromptId>,
    /// In the order in which they happened. A NUL in their text becomes U+FFFD, because PostgreSQL takes
    /// none.
    pub entries: Vec<TranscriptEntry>,
    /// With these entries, everything is on disk that the session's agent said up to this message of its connection;
    /// 0 where nothing is known about that.
    pub settles: u64,
    /// The time.
    pub now: Timestamp,
}

/// An entry as it is kept.
#[derive(Debug, Clone)]
pub(crate) struct TranscriptRow {
    /// Counts up by one within the session, from 1.
    pub seq: u64,
    /// The turn, where it belongs to one.
    pub prompt_id: Option<PromptId>,
    /// The entry.
    pub entry: TranscriptEntry,
    /// When it was written.
    pub created: Timestamp,
}

#[derive(Queryable)]
pub(super) struct Record {
    seq: i64,
    prompt_id: Option<String>,
    event_type: String,
    text: String,
    payload: Option<String>,
    created_us: i64,
}

impl Record {
    pub(super) fn read(self) -> Result<TranscriptRow, StoreError> {
        let prompt_id = self.prompt_id.map(|id| columns::parse(&id, "transcript_entries.prompt_id")).transpose()?;
        Ok(TranscriptRow {
            seq: columns::unsigned(self.seq),
            prompt_id,
            entry: TranscriptEntry {
                event_type: self.event_type,
                text: Redacted::from_kept(self.text),
                payload: self.payload.map(Redacted::from_kept),
            },
            created: Timestamp(self.created_us),
        })
    }
}

#[derive(Insertable)]
#[diesel(table_name = transcript_entries, treat_none_as_default_value = false)]
struct NewRecord<'a> {
    session_id: &'a str,
    seq: i64,
    installation_id: &'a str,
    workspace_id: &'a str,
    prompt_id: Option<&'a str>,
    event_type: &'a str,
    text: &'a str,
    payload: Option<&'a str>,
    created_us: i64,
}

/// Entries of one session, ready for SQL.
pub(super) struct Entries {
    session: SessionId,
    session_id: String,
    key: WorkspaceKey,
    prompt_id: Option<String>,
    entries: Vec<(String, String, Option<String>)>,
    settles: u64,
    created: Timestamp,
    /// The number of the first one when they were written last, which may have been rolled back.
    first_seq: Option<i64>,
}

/// Names the insert of one entry.
struct InsertEntry;

/// From this many entries on, PostgreSQL gets one statement for many rows: below, prepared statements for
/// one row each are faster. SQLite has no round trip to save.
const MANY: usize = 8;
/// Rows of one such statement: 9 parameters a row, of 65,535.
const ROWS_PER_STATEMENT: usize = 500;

impl Entries {
    pub(super) fn new(append: TranscriptAppend) -> Self {
        let columns = |entry: TranscriptEntry| {
            let payload = clean_option(entry.payload.map(Redacted::into_string));
            (clean(entry.event_type), clean(entry.text.into_string()), payload)
        };
        Self {
            session: append.session_id,
            session_id: append.session_id.to_string(),
            key: append.key,
            prompt_id: append.prompt_id.map(|prompt| prompt.to_string()),
            entries: append.entries.into_iter().map(columns).collect(),
            settles: append.settles,
            created: append.now,
            first_seq: None,
        }
    }

    fn records(&self, first_seq: i64) -> impl Iterator<Item = NewRecord<'_>> {
        self.entries.iter().zip(first_seq..).map(|((event_type, text, payload), seq)| NewRecord {
            session_id: &self.session_id,
            seq,
            installation_id: self.key.installation_id.as_str(),
            workspace_id: self.key.workspace_id.as_str(),
            prompt_id: self.prompt_id.as_deref(),
            event_type,
            text,
            payload: payload.as_deref(),
            created_us: self.created.0,
        })
    }

    /// Numbers and writes them.
    pub(super) fn write(&mut self, tx: &mut WriteTx<'_>) -> Result<(), StoreError> {
        if self.settles > 0 {
            sessions::settle(tx, &self.session_id, self.settles)?;
        }
        if self.entries.is_empty() || (tx.in_doubt && self.is_written(tx.connection)?) {
            return Ok(());
        }
        let session_id = self.session_id.as_str();
        let first = tx.take_seqs(self.session, self.entries.len(), |connection| last_seq(connection, session_id))?;
        self.first_seq = Some(first);
        match &mut *tx.connection {
            AnyConnection::Postgres(connection) if self.entries.len() >= MANY => {
                let records: Vec<_> = self.records(first).collect();
                for part in records.chunks(ROWS_PER_STATEMENT) {
                    tx.rows += diesel::insert_into(transcript_entries::table).values(part).execute(connection)?;
                }
            }
            connection => {
                for record in self.records(first) {
                    let insert = diesel::insert_into(transcript_entries::table).values(&record);
                    let insert = Cached::<InsertEntry, _>::new(insert);
                    tx.rows += execute!(connection, insert)?;
                }
            }
        }
        Ok(())
    }

    /// Whether a commit of which nothing was heard did take place.
    fn is_written(&self, connection: &mut AnyConnection) -> diesel::QueryResult<bool> {
        let (Some(seq), Some((event_type, text, _))) = (self.first_seq, self.entries.first()) else {
            return Ok(false);
        };
        let found = transcript_entries::table
            .find((self.session_id.as_str(), seq))
            .select((transcript_entries::event_type, transcript_entries::text, transcript_entries::created_us))
            .first::<(String, String, i64)>(connection)
            .optional()?;
        Ok(found.is_some_and(|found| (&found.0, &found.1, found.2) == (event_type, text, self.created.0)))
    }
}

fn last_seq(connection: &mut AnyConnection, session_id: &str) -> diesel::QueryResult<Option<i64>> {
    transcript_entries::table
        .filter(transcript_entries::session_id.eq(session_id))
        .select(diesel::dsl::max(transcript_entries::seq))
        .first(connection)
}

/// Messages that are read at once for [`Store::last_said`].
const SAID_PER_READ: i64 = 16;

/// Which part of a conversation.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    /// All of it.
    All,
    /// The turns over HTTP since the last one over ACP.
    OverHttpSinceAcp,
}

/// The newest messages, oldest first: at most `most`, and no more than are needed for the largest
/// context. A turn that has begun and waits for its agent is not yet part of the conversation.
fn last_said(
    connection: &mut AnyConnection,
    session_id: &str,
    most: usize,
    part: Part,
) -> diesel::QueryResult<Vec<Remark>> {
    let mut said = Vec::new();
    let mut bytes = 0;
    let mut before = i64::MAX;
    'newest_first: while said.len() < most && bytes < MAX_CONTEXT_BYTES {
        let of_turns = prompts::table.on(prompts::prompt_id.nullable().eq(transcript_entries::prompt_id));
        let rows: Vec<(i64, String, String, String)> = transcript_entries::table
            .inner_join(of_turns)
            .filter(transcript_entries::session_id.eq(session_id))
            .filter(transcript_entries::seq.lt(before))
            .filter(prompts::ended_us.is_not_null())
            .filter(
                transcript_entries::event_type
                    .eq("user_message")
                    .or(transcript_entries::event_type.eq("agent_message")),
            )
            .order(transcript_entries::seq.desc())
            .limit(SAID_PER_READ)
            .select((
                transcript_entries::seq,
                transcript_entries::event_type,
                transcript_entries::text,
                prompts::protocol,
            ))
            .load(connection)?;
        let Some((last, ..)) = rows.last() else { break };
        before = *last;
        for (_, event_type, text, protocol) in rows {
            let by_user = event_type == "user_message";
            if part == Part::OverHttpSinceAcp && protocol != Route::Http.as_str() {
                // With what the user said a turn begins; what an agent said may also have come late.
                if by_user {
                    break 'newest_first;
                }
                continue;
            }
            if said.len() < most && bytes < MAX_CONTEXT_BYTES {
                bytes += text.len();
                said.push(Remark { by_user, text });
            }
        }
    }
    said.reverse();
    Ok(said)
}

fn append_to(mut entries: Entries) -> impl FnMut(&mut WriteTx<'_>) -> Result<(), StoreError> {
    move |tx| entries.write(tx)
}

impl Store {
    /// Appends to a transcript, without waiting for the outcome, which `done` is told on the writer's thread; it must
    /// not block. Full queue: [`StoreError::Busy`], or [`StoreError::Closed`]; the entries come back and the failure
    /// is observed. While the database is away they are kept and tried again for a minute.
    // What was not taken has to come back whole.
    #[allow(clippy::result_large_err)]
    pub(crate) fn try_append(
        &self,
        append: TranscriptAppend,
        done: impl FnOnce(Result<(), StoreError>) + Send + 'static,
    ) -> Result<(), (StoreError, TranscriptAppend)> {
        match self.place() {
            Ok(place) => {
                place.send(Job::new(Outage::Keep, append_to(Entries::new(append)), done));
                Ok(())
            }
            Err(error) => {
                self.observe_failure();
                Err((error, append))
            }
        }
    }

    /// Appends to a transcript: waits for room in the queue and for the commit, for about as long as
    /// [`StoreOptions::patience`](super::StoreOptions::patience) says. Without room in that time it is
    /// [`StoreError::Busy`] and nothing was done; after any other error it is still written when the database is
    /// back. A retry appends once more. A dropped future may have written.
    pub(crate) async fn append(&self, append: TranscriptAppend) -> Result<(), StoreError> {
        self.write_when_there_is_room(append_to(Entries::new(append))).await
    }

    /// A session's entries in order, after the number `after_seq` (0 for the first page). Cancel-safe.
    pub(crate) async fn transcript(
        &self,
        session_id: SessionId,
        after_seq: u64,
        limit: usize,
    ) -> Result<Vec<TranscriptRow>, StoreError> {
        self.read(move |connection| {
            let records: Vec<Record> = transcript_entries::table
                .filter(transcript_entries::session_id.eq(session_id.to_string()))
                .filter(transcript_entries::seq.gt(columns::signed(after_seq)))
                .order(transcript_entries::seq)
                .limit(columns::limit(limit))
                .select((
                    transcript_entries::seq,
                    transcript_entries::prompt_id,
                    transcript_entries::event_type,
                    transcript_entries::text,
                    transcript_entries::payload,
                    transcript_entries::created_us,
                ))
                .load(connection)?;
            records.into_iter().map(Record::read).collect()
        })
        .await
    }

    /// What the agent has said in a turn so far, as far as it is on disk. Cancel-safe.
    pub(crate) async fn said_in_turn(
        &self,
        session_id: SessionId,
        prompt_id: PromptId,
    ) -> Result<Vec<String>, StoreError> {
        self.read(move |connection| {
            let said = transcript_entries::table
                .filter(transcript_entries::session_id.eq(session_id.to_string()))
                .filter(transcript_entries::prompt_id.eq(prompt_id.to_string()))
                .filter(transcript_entries::event_type.eq("agent_message"))
                .order(transcript_entries::seq)
                .select(transcript_entries::text);
            Ok(said.load(connection)?)
        })
        .await
    }

    /// How many entries a session has. Cancel-safe.
    #[cfg(test)]
    pub(crate) async fn transcript_len(&self, session_id: SessionId) -> Result<u64, StoreError> {
        self.read(move |connection| {
            Ok(columns::unsigned(last_seq(connection, &session_id.to_string())?.unwrap_or(0)))
        })
        .await
    }

    /// What user and agent said last, oldest first: at most `most` messages, and no more than fill the
    /// largest context. Cancel-safe.
    pub(crate) async fn last_said(&self, session_id: SessionId, most: usize) -> Result<Vec<Remark>, StoreError> {
        self.read(move |connection| Ok(last_said(connection, &session_id.to_string(), most, Part::All)?)).await
    }

    /// What user and agent said in the turns over HTTP that followed the last turn over ACP: what a live ACP agent
    /// with a memory of its own did not see. Oldest first, bounded as [`Store::last_said`] is. Cancel-safe.
    pub(crate) async fn missed_by_agent(
        &self,
        session_id: SessionId,
        most: usize,
    ) -> Result<Vec<Remark>, StoreError> {
        self.read(move |connection| Ok(last_said(connection, &session_id.to_string(), most, Part::OverHttpSinceAcp)?))
            .await
    }
}
