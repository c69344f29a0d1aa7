//! What the store knows of one session beside its conversation: its turns and its notes, the newest first.

use diesel::{ExpressionMethods, QueryDsl, RunQueryDsl};

use super::{
    Store, StoreError,
    engine::columns,
    schema::{self, transcript_entries},
    transcript::{self, TranscriptRow},
    turns::{self, PromptRow},
};
use crate::domain::ids::SessionId;

/// Entries of transcripts that are no part of the conversation.
const NOTES: [&str; 4] = ["rollback", "toast", "automation", "info"];

impl Store {
    /// The newest turns of a session, the newest first, at most `most` and [`MAX_PAGE`](super::MAX_PAGE). Found by what
    /// the user said, which is written with each turn: turns have no index by session, which each of them would pay
    /// for. Cancel-safe.
    pub async fn newest_turns(&self, session_id: SessionId, most: usize) -> Result<Vec<PromptRow>, StoreError> {
        use schema::prompts::dsl;
        self.read(move |connection| {
            let said: Vec<Option<String>> = transcript_entries::table
                .filter(transcript_entries::session_id.eq(session_id.to_string()))
                .filter(transcript_entries::event_type.eq("user_message"))
                .order(transcript_entries::seq.desc())
                .limit(columns::limit(most))
                .select(transcript_entries::prompt_id)
                .load(connection)?;
            let ids = said.into_iter().flatten();
            let records: Vec<turns::Record> = dsl::prompts
                .filter(dsl::prompt_id.eq_any(ids))
                .order((dsl::accepted_us.desc(), dsl::prompt_id.desc()))
                .load(connection)?;
            records.into_iter().map(turns::Record::read).collect()
        })
        .await
    }

    /// The newest notes in a session's transcript, the newest first, at most `most` and
    /// [`MAX_PAGE`](super::MAX_PAGE). Cancel-safe.
    pub async fn newest_notes(&self, session_id: SessionId, most: usize) -> Result<Vec<TranscriptRow>, StoreError> {
        self.read(move |connection| {
            let records: Vec<transcript::Record> = transcript_entries::table
                .filter(transcript_entries::session_id.eq(session_id.to_string()))
                .filter(transcript_entries::event_type.eq_any(NOTES))
                .order(transcript_entries::seq.desc())
                .limit(columns::limit(most))
                .select((
                    transcript_entries::seq,
                    transcript_entries::prompt_id,
                    transcript_entries::event_type,
                    transcript_entries::text,
                    transcript_entries::payload,
                    transcript_entries::created_us,
                ))
                .load(connection)?;
            records.into_iter().map(transcript::Record::read).collect()
        })
        .await
    }
}
