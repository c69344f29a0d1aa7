//! How long the turns of a workspace took.

use std::time::Duration;

use diesel::{ExpressionMethods, QueryDsl, RunQueryDsl, dsl::max};

use super::{
    Store, StoreError,
    engine::columns,
    schema::{prompts, sessions, transcript_entries},
};
use crate::domain::{clock::Timestamp, ids::WorkspaceKey, turn::TurnState};

/// The newest sessions that are looked at: estimates are of the work of now, and a read has to end.
const MAX_SESSIONS: i64 = 10;
/// The newest entries of each transcript that are looked at, where what users said is found.
const MAX_ENTRIES: i64 = 1000;

impl Store {
    /// How long the newest completed turns of a workspace's newest sessions took, the newest first; at most `most` and
    /// [`MAX_PAGE`](super::MAX_PAGE). Turns are found by what the user said, as in
    /// [`newest_turns`](Self::newest_turns), so that they need no index by workspace; what lies further back is left
    /// out. Cancel-safe.
    pub async fn turn_durations(&self, key: WorkspaceKey, most: usize) -> Result<Vec<Duration>, StoreError> {
        let most = columns::limit(most);
        self.read(move |connection| {
            let newest: Vec<String> = sessions::table
                .filter(sessions::installation_id.eq(key.installation_id.as_str()))
                .filter(sessions::workspace_id.eq(key.workspace_id.as_str()))
                .order((sessions::created_us.desc(), sessions::session_id.desc()))
                .limit(MAX_SESSIONS)
                .select(sessions::session_id)
                .load(connection)?;
            let most_turns = usize::try_from(most).unwrap_or_default();
            let mut turns: Vec<(i64, Option<i64>)> = Vec::new();
            for session in newest {
                if turns.len() >= most_turns {
                    break;
                }
                let entries = transcript_entries::table.filter(transcript_entries::session_id.eq(session.as_str()));
                let last: Option<i64> = entries.select(max(transcript_entries::seq)).first(connection)?;
                let Some(last) = last else { continue };
                let said: Vec<Option<String>> = entries
                    .filter(transcript_entries::seq.gt(last.saturating_sub(MAX_ENTRIES)))
                    .filter(transcript_entries::event_type.eq("user_message"))
                    .order(transcript_entries::seq.desc())
                    .limit(most)
                    .select(transcript_entries::prompt_id)
                    .load(connection)?;
                let of_session: Vec<(i64, Option<i64>)> = prompts::table
                    .filter(prompts::prompt_id.eq_any(said.into_iter().flatten()))
                    .filter(prompts::state.eq(TurnState::Completed.as_str()))
                    .select((prompts::accepted_us, prompts::ended_us))
                    .load(connection)?;
                turns.extend(of_session);
            }
            turns.sort_unstable_by(|one, other| other.cmp(one));
            turns.truncate(most_turns);
            let took = |(accepted, ended): (i64, Option<i64>)| Some(Timestamp(ended?).since(Timestamp(accepted)));
            Ok(turns.into_iter().filter_map(took).collect())
        })
        .await
    }
}
