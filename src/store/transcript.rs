//! The `transcript_entries` table: prompts, answers and notes of each session, in order.

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
    session::context::{MAX_CONTEXT_BYTES, Remark},
    turn::transcript::TranscriptEntry,
};

/// Entries to append to a session's transcript. Sequence numbers are assigned by the write.
#[derive(Debug, Clone)]
pub(crate) struct TranscriptAppend {
    pub session_id: SessionId,
    pub key: WorkspaceKey,
    /// The turn to which the entries belong, if any.
    pub prompt_id: Option<PromptId>,
    /// In the order in which they happened. A NUL in a text becomes U+FFFD, because `PostgreSQL` does not store NUL.
    pub entries: Vec<TranscriptEntry>,
    /// Sequence number of a message of the agent's connection: with these entries, all output of the agent up to that
    /// message is on disk. 0 if unknown.
    pub settles: u64,
    pub now: Timestamp,
}

#[derive(Debug, Clone)]
pub(crate) struct TranscriptRow {
    /// Sequence number within the session, from 1 without gaps.
    pub seq: u64,
    /// The turn to which the entry belongs, if any.
    pub prompt_id: Option<PromptId>,
    pub entry: TranscriptEntry,
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
    /// The number of the first entry in the last attempt to write, which may have been rolled back.
    first_seq: Option<i64>,
}

/// Identifies the insert of one entry in the cache of prepared statements.
struct InsertEntry;

/// Minimum number of entries for which `PostgreSQL` gets one statement for many rows: below it, one prepared statement
/// for each row is faster. SQLite has no round trip to save.
const MANY: usize = 8;
/// Rows of one such statement: each has 9 parameters, of the 65,535 that `PostgreSQL` allows in a statement.
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

    /// Assigns sequence numbers and writes the entries.
    pub(super) fn write(&mut self, tx: &mut WriteTx<'_>) -> Result<(), StoreError> {
        // In the transaction of the entries: the number promises that they are on disk.
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

    /// True if an earlier commit whose outcome is unknown took place.
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

/// Messages in each read for [`Store::last_messages`].
const MESSAGES_PER_READ: i64 = 16;

/// The newest messages, oldest first: at most `most`, and no more than the largest context can hold. Turns that have
/// not ended are excluded, and so is everything up to the newest turn that `conversation`, an agent's own one, completed.
fn last_messages(
    connection: &mut AnyConnection,
    session_id: &str,
    conversation: Option<&str>,
    most: usize,
) -> diesel::QueryResult<Vec<Remark>> {
    let mut said = Vec::new();
    let mut bytes = 0;
    let mut before = i64::MAX;
    'newest_first: while said.len() < most && bytes < MAX_CONTEXT_BYTES {
        let of_turns = prompts::table.on(prompts::prompt_id.nullable().eq(transcript_entries::prompt_id));
        let rows: Vec<(i64, String, String, Option<String>)> = transcript_entries::table
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
            .limit(MESSAGES_PER_READ)
            .select((
                transcript_entries::seq,
                transcript_entries::event_type,
                transcript_entries::text,
                prompts::known_by,
            ))
            .load(connection)?;
        let Some((last, ..)) = rows.last() else { break };
        // Pages by number and not by offset, because each page reads on from where the last ended.
        before = *last;
        for (_, event_type, text, known_by) in rows {
            let by_user = event_type == "user_message";
            if conversation.is_some() && known_by.as_deref() == conversation {
                // Only a user message marks the start of a turn: an agent message may belong to an earlier turn and
                // be late.
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

fn size_of_entries(append: &TranscriptAppend) -> usize {
    append.entries.iter().map(TranscriptEntry::size_bytes).sum()
}

fn append_to(mut entries: Entries) -> impl FnMut(&mut WriteTx<'_>) -> Result<(), StoreError> {
    move |tx| entries.write(tx)
}

impl Store {
    /// Queues an append to a transcript and returns at once. `done` gets the outcome on the writer's thread and must
    /// not block. While the database is unavailable, the entries stay queued and are retried for a minute.
    ///
    /// # Errors
    /// [`StoreError::Busy`] if the queue is full or holds its 64 MiB of entries, [`StoreError::Closed`] after close: the entries are returned, and
    /// the failure is counted.
    // The error holds the whole append, so that the caller loses no entry.
    #[allow(clippy::result_large_err)]
    pub(crate) fn try_append(
        &self,
        append: TranscriptAppend,
        done: impl FnOnce(Result<(), StoreError>) + Send + 'static,
    ) -> Result<(), (StoreError, TranscriptAppend)> {
        let room = self.share(size_of_entries(&append)).and_then(|share| Ok((self.place()?, share)));
        match room {
            Ok((place, share)) => {
                place.send(Job::new(Outage::Keep, append_to(Entries::new(append)), done).with_share(share));
                Ok(())
            }
            Err(error) => {
                self.observe_failure();
                Err((error, append))
            }
        }
    }

    /// Appends to a transcript: waits for room in the queue and for the commit, for about
    /// [`StoreOptions::patience`](super::StoreOptions::patience). A retry appends the entries once more.
    ///
    /// # Errors
    /// [`StoreError::Busy`] if there was no room in that time, and nothing was written. After any other error, the
    /// entries are still written when the database is available again.
    ///
    /// # Cancel safety
    /// A dropped future may have written.
    pub(crate) async fn append(&self, append: TranscriptAppend) -> Result<(), StoreError> {
        let _share = self.share_when_there_is_room(size_of_entries(&append)).await?;
        self.write_when_there_is_room(append_to(Entries::new(append))).await
    }

    /// Reads a session's entries in order, from the one after `after_seq` (0 for the first page). Cancel-safe.
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

    /// Reads the agent's messages of a turn that are on disk, in order. Cancel-safe.
    pub(crate) async fn messages_of_turn(
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

    /// Number of entries of a session. Cancel-safe.
    #[cfg(test)]
    pub(crate) async fn transcript_len(&self, session_id: SessionId) -> Result<u64, StoreError> {
        self.read(move |connection| {
            Ok(columns::unsigned(last_seq(connection, &session_id.to_string())?.unwrap_or(0)))
        })
        .await
    }

    /// Reads the newest messages of user and agent, oldest first: at most `most`, and no more than the largest
    /// context can hold. Cancel-safe.
    #[cfg(test)]
    pub(crate) async fn last_messages(&self, session_id: SessionId, most: usize) -> Result<Vec<Remark>, StoreError> {
        self.unknown_to(None, session_id, most).await
    }

    /// Reads the messages of user and agent after the newest turn that `conversation` completed, by the agent's own id;
    /// `None` for an agent that knows nothing. Oldest first, bounded as [`Store::last_messages`] is. Cancel-safe.
    pub(crate) async fn unknown_to(
        &self,
        conversation: Option<String>,
        session_id: SessionId,
        most: usize,
    ) -> Result<Vec<Remark>, StoreError> {
        self.read(move |connection| {
            Ok(last_messages(connection, &session_id.to_string(), conversation.as_deref(), most)?)
        })
        .await
    }
}
