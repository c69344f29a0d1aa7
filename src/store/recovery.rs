//! What a start finds that the last stop did not finish.

use diesel::{ExpressionMethods, QueryDsl, RunQueryDsl};

use super::{
    Store, StoreError,
    schema::{prompts, sessions},
    sessions::EVENT_ID_JUMP,
    writer::WriteTx,
};
use crate::domain::{clock::Timestamp, lifecycle::SessionState, outcome::ErrorCode, turn::TurnState};

/// What [`Store::recover`] changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Recovered {
    /// Turns that had not ended and are now `interrupted`.
    pub interrupted_turns: usize,
    /// Sessions that were live and are not any more.
    pub sessions: usize,
}

fn recover(tx: &mut WriteTx<'_>, now: Timestamp) -> Result<Recovered, StoreError> {
    let live = SessionState::ALL.into_iter().filter(|state| state.is_live()).map(SessionState::as_str);
    let unfinished = prompts::table.filter(prompts::ended_us.is_null()).select(prompts::session_id);
    // A session with an open turn was in the middle of it, whatever its row had time to say.
    let mut sessions = diesel::update(sessions::table)
        .filter(sessions::session_id.eq_any(unfinished))
        .filter(sessions::state.eq_any(live))
        .set((
            sessions::state.eq(SessionState::Running.after_restart().as_str()),
            sessions::last_event_id.eq(sessions::last_event_id + EVENT_ID_JUMP),
            // It was live until then; its row does not know when it was last used.
            sessions::last_used_us.eq(now.0),
        ))
        .execute(tx.connection)?;
    for state in SessionState::ALL.into_iter().filter(|state| state.after_restart() != *state) {
        sessions += diesel::update(sessions::table.filter(sessions::state.eq(state.as_str())))
            .set((
                sessions::state.eq(state.after_restart().as_str()),
                sessions::last_event_id.eq(sessions::last_event_id + EVENT_ID_JUMP),
                sessions::last_used_us.eq(now.0),
            ))
            .execute(tx.connection)?;
    }
    let interrupted_turns = diesel::update(prompts::table.filter(prompts::ended_us.is_null()))
        .set((
            prompts::state.eq(TurnState::Interrupted.as_str()),
            prompts::error_code.eq(ErrorCode::Interrupted.as_str()),
            prompts::error_detail.eq("the service stopped in the middle of the turn"),
            prompts::ended_us.eq(now.0),
        ))
        .execute(tx.connection)?;
    tx.rows += sessions + interrupted_turns;
    Ok(Recovered { interrupted_turns, sessions })
}

impl Store {
    /// Ends what was running when the service last stopped: open turns become `interrupted`, without a
    /// result, and sessions move to where a restart leaves them. To be called once, at start, before
    /// anything else writes, by the only replica that uses the database. Safe to retry.
    pub async fn recover(&self, now: Timestamp) -> Result<Recovered, StoreError> {
        self.write(move |tx| recover(tx, now)).await
    }
}
