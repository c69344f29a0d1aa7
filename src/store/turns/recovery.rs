//! Recovery at start: turns and sessions that the last stop left unfinished.

use std::time::Duration;

use diesel::{BoolExpressionMethods, ExpressionMethods, QueryDsl, RunQueryDsl, dsl::max};

use super::PromptRow;
use crate::{
    domain::{
        clock::Timestamp,
        ids::{PromptId, SessionId, WorkspaceKey},
        redaction::RedactedJson,
        session::{background::cut_off_note, lifecycle::SessionState},
        turn::{TurnInitiator, TurnPhase, TurnState, outcome::ErrorCode, transcript::TranscriptEntry},
    },
    store::{
        Store, StoreError,
        engine::{
            columns::{self, clean},
            writer::WriteTx,
        },
        schema::{prompts, prompts as prompts_table, sessions, transcript_entries},
        sessions::{EVENT_ID_JUMP, SessionRow, live_rows, rows_with_open_turn},
        transcript::{Entries, TranscriptAppend},
        turns,
    },
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Recovered {
    /// Number of turns that had not ended and are now `interrupted`.
    pub interrupted_turns: usize,
    /// Number of sessions that were live and no longer are.
    pub sessions: usize,
}

/// A turn that was open when the service died, and its session.
#[derive(Debug, Clone)]
pub(crate) struct Unfinished {
    pub prompt: PromptRow,
    pub session: SessionRow,
}

/// Ends the turns of these initiators whose agents are lost, except those of the sessions that are kept; returns the
/// numbers of those that end as cancelled and as interrupted.
fn end_turns(
    tx: &mut WriteTx<'_>,
    now: Timestamp,
    initiators: &[TurnInitiator],
    kept: &[String],
) -> Result<(usize, usize), StoreError> {
    let initiators: Vec<_> = initiators.iter().map(|it| it.as_str()).collect();
    let with_agent = || prompts_table::phase.eq(TurnPhase::Agent.as_str());
    let is_lost = || prompts_table::session_id.ne_all(kept).and(prompts_table::initiator.eq_any(&initiators));
    let open = || prompts_table::ended_us.is_null().and(is_lost()).and(with_agent());
    let cancelled_turns = diesel::update(prompts_table::table.filter(open()).filter(prompts_table::cancel_asked))
        .set((
            prompts_table::phase.eq(TurnPhase::Closed.as_str()),
            prompts_table::state.eq(TurnState::Cancelled.as_str()),
            prompts_table::ended_us.eq(now.0),
        ))
        .execute(tx.connection)?;
    let interrupted_turns = diesel::update(prompts_table::table.filter(open()))
        .set((
            prompts_table::phase.eq(TurnPhase::Closed.as_str()),
            prompts_table::state.eq(TurnState::Interrupted.as_str()),
            prompts_table::error_code.eq(ErrorCode::Interrupted.as_str()),
            prompts_table::error_detail.eq("the service stopped in the middle of the turn"),
            prompts_table::ended_us.eq(now.0),
        ))
        .execute(tx.connection)?;
    Ok((cancelled_turns, interrupted_turns))
}

fn recover(
    tx: &mut WriteTx<'_>,
    now: Timestamp,
    kept: &[String],
    results: &[(String, String)],
) -> Result<Recovered, StoreError> {
    let live = SessionState::ALL.into_iter().filter(|state| state.is_live()).map(SessionState::as_str);
    // A turn whose agent has ended is resumed, not interrupted.
    let with_agent = || prompts_table::phase.eq(TurnPhase::Agent.as_str());
    note_cut_off(tx, now, kept)?;
    let unfinished = prompts_table::table
        .filter(prompts_table::ended_us.is_null())
        .filter(with_agent())
        .filter(prompts_table::initiator.eq(TurnInitiator::User.as_str()))
        .filter(prompts_table::session_id.ne_all(kept))
        .select(prompts_table::session_id);
    // A session with an open turn was running, even if its row was not updated in time. The sessions are updated
    // before the turns, because they are found by their open turns.
    let mut recovered = diesel::update(sessions::table)
        .filter(sessions::session_id.eq_any(unfinished))
        .filter(sessions::state.eq_any(live))
        .set((
            sessions::state.eq(SessionState::Running.after_restart().as_str()),
            sessions::last_event_id.eq(sessions::last_event_id + EVENT_ID_JUMP),
            // The row of a live session does not hold its last use; the restart is the closest known time.
            sessions::last_used_us.eq(now.0),
        ))
        .execute(tx.connection)?;
    let preparing = sessions::table.filter(sessions::state.eq(SessionState::Preparing.as_str()));
    diesel::update(preparing)
        .set((
            sessions::failure_code.eq(ErrorCode::Interrupted.as_str()),
            sessions::failure_detail.eq("the service stopped while the session was being prepared"),
        ))
        .execute(tx.connection)?;
    for state in SessionState::ALL.into_iter().filter(|state| state.after_restart() != *state) {
        let gone = sessions::state.eq(state.as_str()).and(sessions::session_id.ne_all(kept));
        recovered += diesel::update(sessions::table.filter(gone))
            .set((
                sessions::state.eq(state.after_restart().as_str()),
                sessions::last_event_id.eq(sessions::last_event_id + EVENT_ID_JUMP),
                sessions::last_used_us.eq(now.0),
            ))
            .execute(tx.connection)?;
    }
    // Kept sessions also jump, or another crash would make them reuse the same event ids.
    diesel::update(sessions::table.filter(sessions::session_id.eq_any(kept)))
        .set(sessions::last_event_id.eq(sessions::last_event_id + EVENT_ID_JUMP))
        .execute(tx.connection)?;
    let (cancelled_turns, interrupted_turns) = end_turns(tx, now, &TurnInitiator::ALL, kept)?;
    for (prompt_id, result) in results {
        // A turn that is not interrupted has its own result, which stays.
        let states = [TurnState::Interrupted, TurnState::Cancelled].map(TurnState::as_str);
        let ended = prompts_table::table
            .find(prompt_id.as_str())
            .filter(prompts_table::state.eq_any(states))
            .filter(prompts_table::ended_us.eq(now.0));
        diesel::update(ended).set(prompts_table::result.eq(result.as_str())).execute(tx.connection)?;
    }
    tx.rows += recovered + cancelled_turns + interrupted_turns;
    Ok(Recovered { interrupted_turns, sessions: recovered })
}

/// Notes in the transcripts of sessions that background work of their agents was cut off.
fn note_cut_off(tx: &mut WriteTx<'_>, now: Timestamp, kept: &[String]) -> Result<(), StoreError> {
    let cut_off: Vec<(String, String, String)> = sessions::table
        .filter(sessions::state.eq(SessionState::Background.as_str()))
        .filter(sessions::session_id.ne_all(kept))
        .select((sessions::session_id, sessions::installation_id, sessions::workspace_id))
        .load(tx.connection)?;
    for (session_id, installation_id, workspace_id) in cut_off {
        let mut note = Entries::new(TranscriptAppend {
            session_id: columns::parse(&session_id, "sessions.session_id")?,
            key: columns::workspace_key(installation_id, workspace_id)?,
            prompt_id: None,
            entries: vec![TranscriptEntry::text("info", &cut_off_note("the service stopped", None))],
            settles: 0,
            now,
        });
        note.write(tx)?;
    }
    Ok(())
}

impl Store {
    /// Reads the turns of users that had not ended when the service last stopped and were in `phase`, at most one for each
    /// session. Must be called at start, before anything else writes. Cancel-safe.
    pub(crate) async fn unfinished(&self, phase: TurnPhase) -> Result<Vec<Unfinished>, StoreError> {
        self.read(move |connection| {
            let sessions = rows_with_open_turn(connection, phase)?;
            let turns = turns::open_turns(connection, phase)?;
            let with_turn = |session: SessionRow| {
                let prompt = turns.iter().find(|turn| turn.session_id == session.session_id)?.clone();
                Some(Unfinished { prompt, session })
            };
            Ok(sessions.into_iter().filter_map(with_turn).collect())
        })
        .await
    }

    /// Interrupts the turns that agents began by themselves under the last process, and returns their number. An agent
    /// that is found again begins what follows anew. Must be called at start, before any agent is found. Safe to retry.
    ///
    /// # Cancel safety
    /// A dropped future may have written.
    pub(crate) async fn end_woken_turns(&self, now: Timestamp) -> Result<usize, StoreError> {
        self.write(move |tx| {
            let (cancelled, interrupted) = end_turns(tx, now, &[TurnInitiator::Agent], &[])?;
            tx.rows += cancelled + interrupted;
            Ok(cancelled + interrupted)
        })
        .await
    }

    /// Reads the sessions that were live when the service last stopped, with the connections to their agents. Must be
    /// called at start, before [`recover`](Self::recover). Cancel-safe.
    pub(crate) async fn live_sessions(&self) -> Result<Vec<SessionRow>, StoreError> {
        self.read(live_rows).await
    }

    /// Ends the turns and sessions that were live when the service last stopped, except the sessions that continue
    /// (`kept`): open turns become `interrupted`, or `cancelled` if a caller asked for that, with the given result as
    /// JSON, and sessions move to
    /// [`SessionState::after_restart`]. Must be called once, at start, before anything else writes, by the only
    /// replica that uses the database. Safe to retry.
    ///
    /// # Cancel safety
    /// A dropped future may have written.
    pub(crate) async fn recover(
        &self,
        now: Timestamp,
        kept: &[SessionId],
        results: Vec<(PromptId, RedactedJson)>,
    ) -> Result<Recovered, StoreError> {
        let kept: Vec<_> = kept.iter().map(ToString::to_string).collect();
        let results: Vec<_> =
            results.into_iter().map(|(id, result)| (id.to_string(), clean(result.into_string()))).collect();
        self.write(move |tx| recover(tx, now, &kept, &results)).await
    }
}

/// Maximum number of sessions in a read, newest first: estimates describe recent work, and the read must be bounded.
const MAX_SESSIONS: i64 = 10;
/// Maximum number of transcript entries of each session, newest first, that are searched for user messages.
const MAX_ENTRIES: i64 = 1000;

impl Store {
    /// Reads the durations of the newest completed turns of a workspace's newest sessions, newest first; at most
    /// `most` and [`MAX_PAGE`](crate::store::MAX_PAGE). Turns are found by their user message, as in
    /// [`newest_turns`](Self::newest_turns), so that no index by workspace is needed; turns beyond the newest 10
    /// sessions and the newest 1,000 entries of each are left out. Cancel-safe.
    pub(crate) async fn turn_durations(&self, key: WorkspaceKey, most: usize) -> Result<Vec<Duration>, StoreError> {
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
