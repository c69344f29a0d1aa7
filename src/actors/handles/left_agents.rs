//! Agents that an earlier process left idle in a separate runtime: a load adopts the agent of its session, so that the
//! agent's seat in the runtime is not taken twice.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;

use crate::{domain::ids::SessionId, store::SessionRow};

/// The sessions whose agents may be found, with their rows of before the restart. Filled once, at start; as many as the
/// earlier process had live sessions. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct LeftAgents(Arc<Mutex<HashMap<SessionId, SessionRow>>>);

impl LeftAgents {
    /// Records the sessions of the earlier process.
    pub(crate) fn record(&self, sessions: Vec<SessionRow>) {
        self.0.lock().extend(sessions.into_iter().map(|row| (row.session_id, row)));
    }

    /// Takes the rows for which `is_wanted` holds.
    pub(crate) fn take_all(&self, is_wanted: impl Fn(&SessionRow) -> bool) -> Vec<SessionRow> {
        self.0.lock().extract_if(|_, row| is_wanted(row)).map(|(_, row)| row).collect()
    }

    /// Takes the row of a session, for one attempt to adopt its agent.
    pub(crate) fn take(&self, session_id: SessionId) -> Option<SessionRow> {
        self.0.lock().remove(&session_id)
    }
}
