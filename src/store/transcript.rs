//! The `transcript_entries` table: prompts, answers and notes of each session, in order.

use diesel::{
    BoolExpressionMethods, ExpressionMethods, Insertable, JoinOnDsl, NullableExpressionMethods, OptionalExtension,
    QueryDsl, Queryable, QueryableByName, RunQueryDsl,
    dsl::max,
    sql_types::{BigInt, Bool, Text},
};

use super::{
    Store, StoreError,
    engine::{
        columns::{self, clean, clean_option},
        connection::{AnyConnection, Cached, Update, execute, insert_of_row},
        writer::{Job, Outage, WriteTx},
    },
    schema::{prompts, transcript_entries},
    sessions,
};
use crate::domain::{
    clock::Timestamp,
    ids::{PromptId, SessionId, WorkspaceKey},
    redaction::{Redacted, RedactedJson},
    session::context::{MAX_CONTEXT_BYTES, Remark},
    turn::transcript::{EntryPlace, KeptEntry, TranscriptEntry},
};

/// Entries to append to a session's transcript. Sequence numbers are assigned by the write.
#[derive(Debug, Clone)]
pub(crate) struct TranscriptAppend {
    pub session_id: SessionId,
    pub key: WorkspaceKey,
    /// The turn to which the entries belong, if any.
    pub prompt_id: Option<PromptId>,
    /// In the order in which they happened. One with a [place](TranscriptEntry::place) may change the row of an earlier
    /// write. A NUL in a text becomes U+FFFD, because `PostgreSQL` does not store NUL.
    pub entries: Vec<TranscriptEntry>,
    /// Number of a message of the agent's connection: with these entries, all output of the agent up to that message is on
    /// disk, so that a replay starts behind it. 0 if unknown. Marks and acknowledgements use numbers of messages, never
    /// those of entries.
    pub settles: u64,
    pub now: Timestamp,
}

#[derive(Debug, Clone)]
pub(crate) struct TranscriptRow {
    /// Number within the session: entries are in its order. Changes of entries take numbers too, so there are gaps.
    pub seq: u64,
    /// 1 for an entry that has not changed, incremented by each change.
    pub revision: u64,
    /// Number of the newest change; of the same sequence as `seq`, and equal to it while the entry has not changed.
    pub changed: u64,
    /// The turn to which the entry belongs, if any.
    pub prompt_id: Option<PromptId>,
    pub entry: TranscriptEntry,
    pub created: Timestamp,
}

/// The columns of a [`Record`].
pub(super) const COLUMNS: Columns = (
    transcript_entries::seq,
    transcript_entries::revision,
    transcript_entries::changed,
    transcript_entries::prompt_id,
    transcript_entries::event_type,
    transcript_entries::text,
    transcript_entries::payload,
    transcript_entries::message_id,
    transcript_entries::created_us,
);

type Columns = (
    transcript_entries::seq,
    transcript_entries::revision,
    transcript_entries::changed,
    transcript_entries::prompt_id,
    transcript_entries::event_type,
    transcript_entries::text,
    transcript_entries::payload,
    transcript_entries::message_id,
    transcript_entries::created_us,
);

#[derive(Queryable, QueryableByName)]
#[diesel(table_name = transcript_entries)]
pub(super) struct Record {
    seq: i64,
    revision: i64,
    changed: i64,
    prompt_id: Option<String>,
    event_type: String,
    text: String,
    payload: Option<String>,
    message_id: Option<String>,
    created_us: i64,
}

impl Record {
    pub(super) fn read(self) -> Result<TranscriptRow, StoreError> {
        let prompt_id = self.prompt_id.map(|id| columns::parse(&id, "transcript_entries.prompt_id")).transpose()?;
        Ok(TranscriptRow {
            seq: columns::unsigned(self.seq),
            revision: columns::unsigned(self.revision),
            changed: columns::unsigned(self.changed),
            prompt_id,
            entry: TranscriptEntry {
                event_type: self.event_type,
                text: Redacted::from_kept(self.text),
                payload: self.payload.and_then(RedactedJson::from_kept),
                message_id: self.message_id,
                place: None,
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
    changed: i64,
    message_id: Option<&'a str>,
}

/// An entry, ready for SQL.
struct Row {
    event_type: String,
    text: String,
    payload: Option<String>,
    message_id: Option<String>,
    place: Option<EntryPlace>,
}

impl Row {
    fn new(entry: TranscriptEntry) -> Self {
        Self {
            event_type: clean(entry.event_type),
            text: clean(entry.text.into_string()),
            payload: clean_option(entry.payload.map(RedactedJson::into_string)),
            message_id: clean_option(entry.message_id),
            place: entry.place,
        }
    }

    fn is_new(&self) -> bool {
        !self.place.as_ref().is_some_and(|place| place.revises)
    }
}

/// Entries of one session, ready for SQL.
pub(super) struct Entries {
    session: SessionId,
    session_id: String,
    key: WorkspaceKey,
    prompt_id: Option<String>,
    entries: Vec<Row>,
    settles: u64,
    created: Timestamp,
    /// The number of the first entry or change in the last attempt to write, which may have been rolled back.
    first_seq: Option<i64>,
}

insert_of_row!(InsertEntry(NewRecord<'a>) => transcript_entries (
    session_id, seq, installation_id, workspace_id, prompt_id, event_type, text, payload, created_us, changed, message_id,
));
/// Identifies the change of one entry in the cache of prepared statements.
struct ChangeEntry;

/// Minimum number of entries for which `PostgreSQL` gets one statement for many rows: below it, one prepared statement
/// for each row is faster. SQLite has no round trip to save.
const MANY: usize = 8;
/// Rows of one such statement: each has 11 parameters, of the 65,535 that `PostgreSQL` allows in a statement.
const ROWS_PER_STATEMENT: usize = 500;

impl Entries {
    pub(super) fn new(append: TranscriptAppend) -> Self {
        Self {
            session: append.session_id,
            session_id: append.session_id.to_string(),
            key: append.key,
            prompt_id: append.prompt_id.map(|prompt| prompt.to_string()),
            entries: append.entries.into_iter().map(Row::new).collect(),
            settles: append.settles,
            created: append.now,
            first_seq: None,
        }
    }

    fn record<'a>(&'a self, row: &'a Row, seq: i64) -> NewRecord<'a> {
        NewRecord {
            session_id: &self.session_id,
            seq,
            installation_id: self.key.installation_id.as_str(),
            workspace_id: self.key.workspace_id.as_str(),
            prompt_id: self.prompt_id.as_deref(),
            event_type: &row.event_type,
            text: &row.text,
            payload: row.payload.as_deref(),
            created_us: self.created.0,
            changed: seq,
            message_id: row.message_id.as_deref(),
        }
    }

    /// Assigns numbers and writes the entries: new rows, and changes of earlier ones.
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
        let mut new = Vec::with_capacity(self.entries.len());
        for (row, number) in self.entries.iter().zip(first..) {
            let changed = if row.is_new() { 0 } else { self.change(tx, row, number)? };
            tx.rows += changed;
            if changed == 0 {
                if let Some(place) = &row.place {
                    place.assign(number);
                }
                new.push(self.record(row, number));
            }
        }
        match &mut *tx.connection {
            AnyConnection::Postgres(connection) if new.len() >= MANY => {
                for part in new.chunks(ROWS_PER_STATEMENT) {
                    tx.rows += diesel::insert_into(transcript_entries::table).values(part).execute(connection)?;
                }
            }
            connection => {
                for record in new {
                    tx.rows += execute!(connection, InsertEntry(&record))?;
                }
            }
        }
        Ok(())
    }

    /// Changes the row of an earlier write; returns 0 if that write failed or the row was removed.
    fn change(&self, tx: &mut WriteTx<'_>, row: &Row, number: i64) -> diesel::QueryResult<usize> {
        use transcript_entries::{changed, event_type, payload, revision, seq, session_id, text};
        let place = row.place.as_ref().map_or(0, EntryPlace::seq);
        // The kind is that of the row, unless a write that failed for good gave its number to another one.
        let is_row =
            session_id.eq(self.session_id.as_str()).and(seq.eq(place)).and(event_type.eq(row.event_type.as_str()));
        let changes = (
            text.eq(row.text.as_str()),
            payload.eq(row.payload.as_deref()),
            revision.eq(revision + 1),
            changed.eq(number),
        );
        let change = Cached::<ChangeEntry, _>::new(Update::new(transcript_entries::table, is_row, changes));
        execute!(tx.connection, change)
    }

    /// True if an earlier commit whose outcome is unknown took place. Changes alone can be written again.
    fn is_written(&self, connection: &mut AnyConnection) -> diesel::QueryResult<bool> {
        let first_new = self.entries.iter().zip(self.first_seq.unwrap_or(0)..).find(|(row, _)| row.is_new());
        let (Some(_), Some((row, seq))) = (self.first_seq, first_new) else { return Ok(false) };
        let found = transcript_entries::table
            .find((self.session_id.as_str(), seq))
            .select((transcript_entries::event_type, transcript_entries::text, transcript_entries::created_us))
            .first::<(String, String, i64)>(connection)
            .optional()?;
        Ok(found.is_some_and(|found| (&found.0, &found.1, found.2) == (&row.event_type, &row.text, self.created.0)))
    }
}

/// The condition of the index of changed entries; a literal, because both databases use a partial index only if they see
/// its condition.
fn has_changed() -> diesel::expression::SqlLiteral<Bool> {
    diesel::dsl::sql::<Bool>("revision > 1")
}

/// Entries of `$1` with a change after `$2`, at most `$3`: each part by its own index.
const CHANGES: &str = "SELECT * FROM ( \
     SELECT * FROM (SELECT seq, revision, changed, prompt_id, event_type, text, payload, message_id, created_us \
     FROM transcript_entries WHERE session_id = $1 AND changed > $2 AND revision > 1 \
     ORDER BY changed LIMIT $3) AS changes \
     UNION ALL \
     SELECT * FROM (SELECT seq, revision, changed, prompt_id, event_type, text, payload, message_id, created_us \
     FROM transcript_entries WHERE session_id = $1 AND seq > $2 AND revision = 1 \
     ORDER BY seq LIMIT $3) AS additions) AS found ORDER BY changed LIMIT $3";

/// The newest number of a session's entries and changes.
fn last_seq(connection: &mut AnyConnection, session_id: &str) -> diesel::QueryResult<Option<i64>> {
    let of_session = || transcript_entries::table.filter(transcript_entries::session_id.eq(session_id));
    let entry: Option<i64> = of_session().select(max(transcript_entries::seq)).first(connection)?;
    let change: Option<i64> =
        of_session().filter(has_changed()).select(max(transcript_entries::changed)).first(connection)?;
    Ok(entry.max(change))
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

pub(super) fn size_of_entries(entries: &[TranscriptEntry]) -> usize {
    entries.iter().map(TranscriptEntry::size_bytes).sum()
}

fn append_to(mut entries: Entries) -> impl FnMut(&mut WriteTx<'_>) -> Result<(), StoreError> {
    move |tx| entries.write(tx)
}

impl Store {
    /// Queues an append to a transcript and returns at once. `done` gets the outcome on the writer's thread and must
    /// not block. While the database is unavailable, the entries stay queued and are retried for a minute.
    ///
    /// # Errors
    /// [`StoreError::Busy`] if the queue is full or holds its 64 MiB, [`StoreError::Closed`] after close: the entries
    /// are returned, and the failure is counted.
    // The error holds the whole append, so that the caller loses no entry.
    #[allow(clippy::result_large_err)]
    pub(crate) fn try_append(
        &self,
        append: TranscriptAppend,
        done: impl FnOnce(Result<(), StoreError>) + Send + 'static,
    ) -> Result<(), (StoreError, TranscriptAppend)> {
        let room = self.share(size_of_entries(&append.entries)).and_then(|share| Ok((self.place()?, share)));
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
        let share = self.share_when_there_is_room(size_of_entries(&append.entries)).await?;
        self.keep(Some(share), append_to(Entries::new(append))).await
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
                .select(COLUMNS)
                .load(connection)?;
            records.into_iter().map(Record::read).collect()
        })
        .await
    }

    /// Reads a session's entries that were added or changed after the change `after` (0: all), in the order of their
    /// newest change. An entry that changes while a reader reads page by page is read again, with a larger number; none
    /// is missed, because changes take their numbers in the order of their commits. Cancel-safe.
    pub(crate) async fn transcript_changes(
        &self,
        session_id: SessionId,
        after: u64,
        limit: usize,
    ) -> Result<Vec<TranscriptRow>, StoreError> {
        self.read(move |connection| {
            let (after, limit) = (columns::signed(after), columns::limit(limit));
            let session_id = session_id.to_string();
            // One statement, which sees one state of the database: between two of them, an entry could change unseen
            // and get a smaller number than one that is found.
            macro_rules! load {
                ($connection:expr) => {
                    diesel::sql_query(CHANGES)
                        .bind::<Text, _>(session_id)
                        .bind::<BigInt, _>(after)
                        .bind::<BigInt, _>(limit)
                        .load::<Record>($connection)?
                };
            }
            let records = match connection {
                AnyConnection::Sqlite(connection) => load!(connection),
                AnyConnection::Postgres(connection) => load!(connection),
            };
            records.into_iter().map(Record::read).collect()
        })
        .await
    }

    /// Reads the entries of a turn that its later updates may change, the oldest first: the newest `most` with a payload,
    /// and the newest entry. Cancel-safe.
    pub(crate) async fn changeable_entries(
        &self,
        session_id: SessionId,
        prompt_id: PromptId,
        most: usize,
    ) -> Result<Vec<KeptEntry>, StoreError> {
        self.read(move |connection| {
            let of_turn = || {
                transcript_entries::table
                    .filter(transcript_entries::session_id.eq(session_id.to_string()))
                    .filter(transcript_entries::prompt_id.eq(prompt_id.to_string()))
                    .order(transcript_entries::seq.desc())
                    .select(COLUMNS)
            };
            let newest: Option<Record> = of_turn().first(connection).optional()?;
            let mut kept: Vec<Record> = of_turn()
                .filter(transcript_entries::payload.is_not_null())
                .limit(columns::limit(most))
                .load(connection)?;
            kept.reverse();
            let last = kept.last().map_or(0, |record| record.seq);
            kept.extend(newest.filter(|newest| newest.seq > last));
            let entry = |record: Record| KeptEntry {
                seq: record.seq,
                event_type: record.event_type,
                text: record.text,
                payload: record.payload,
                message_id: record.message_id,
            };
            Ok(kept.into_iter().map(entry).collect())
        })
        .await
    }

    /// Reads the agent's messages of a turn that are on disk, in order. Cancel-safe.
    pub(crate) async fn text_of_prompt(
        &self,
        session_id: SessionId,
        prompt_id: PromptId,
    ) -> Result<Option<String>, StoreError> {
        self.read(move |connection| {
            Ok(transcript_entries::table
                .filter(transcript_entries::session_id.eq(session_id.to_string()))
                .filter(transcript_entries::prompt_id.eq(prompt_id.to_string()))
                .filter(transcript_entries::event_type.eq("user_message"))
                .order(transcript_entries::seq)
                .select(transcript_entries::text)
                .first(connection)
                .optional()?)
        })
        .await
    }

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

    /// Bytes of the texts and payloads of a session's transcript. Reads no content, only its lengths. Cancel-safe.
    pub(crate) async fn transcript_bytes(&self, session_id: SessionId) -> Result<u64, StoreError> {
        #[derive(QueryableByName)]
        struct Sum {
            #[diesel(sql_type = BigInt)]
            bytes: i64,
        }
        const SUM: &str = "SELECT CAST(coalesce(sum(octet_length(text) + coalesce(octet_length(payload), 0)), 0) AS BIGINT) \
             AS bytes FROM transcript_entries WHERE session_id = $1";
        self.read(move |connection| {
            let query = diesel::sql_query(SUM).bind::<Text, _>(session_id.to_string());
            let sum: Sum = match connection {
                AnyConnection::Sqlite(connection) => query.get_result(connection)?,
                AnyConnection::Postgres(connection) => query.get_result(connection)?,
            };
            Ok(columns::unsigned(sum.bytes))
        })
        .await
    }

    /// Number of entries of a session. Cancel-safe.
    #[cfg(test)]
    pub(crate) async fn transcript_len(&self, session_id: SessionId) -> Result<u64, StoreError> {
        self.read(move |connection| {
            let entries = transcript_entries::table.filter(transcript_entries::session_id.eq(session_id.to_string()));
            Ok(columns::unsigned(entries.count().first(connection)?))
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
