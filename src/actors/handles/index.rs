//! Where live sessions are found.

use std::{collections::HashMap, sync::Arc};

use actix::Recipient;
use parking_lot::RwLock;
use tokio::sync::watch;

use super::{
    messages::{AnswerPermission, CancelTurn, CloseSession, EndSession, Probe, RunPrompt, SetConfigOption, SetMode},
    session::SessionShared,
};
use crate::domain::ids::{SessionId, WorkspaceKey};

/// What a session's actor takes.
#[derive(Clone)]
pub(crate) struct Mailbox {
    /// Runs a turn.
    pub run_prompt: Recipient<RunPrompt>,
    /// Cancels it.
    pub cancel_turn: Recipient<CancelTurn>,
    /// Answers a permission request.
    pub answer_permission: Recipient<AnswerPermission>,
    /// Selects a mode.
    pub set_mode: Recipient<SetMode>,
    /// Sets an option.
    pub set_config_option: Recipient<SetConfigOption>,
    pub end: Recipient<EndSession>,
    /// Asks for a sign of life.
    pub probe: Recipient<Probe>,
}

/// A live session as callers find it.
pub(crate) struct LiveSession {
    pub shared: Arc<SessionShared>,
    pub supervisor: Recipient<CloseSession>,
    /// Its actor now; another one after a restart. The sender is gone when the session is.
    pub mailbox: watch::Receiver<Mailbox>,
}

/// The live sessions by id. Kept by the supervisors, read by everyone; cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct SessionIndex(Arc<RwLock<HashMap<SessionId, Arc<LiveSession>>>>);

impl SessionIndex {
    /// Finds a live session.
    pub(crate) fn get(&self, id: SessionId) -> Option<Arc<LiveSession>> {
        self.0.read().get(&id).cloned()
    }

    /// Adds one.
    pub(crate) fn insert(&self, session: Arc<LiveSession>) {
        let id = session.shared.spec.session_id;
        self.0.write().insert(id, session);
    }

    /// Takes one out.
    pub(crate) fn remove(&self, id: SessionId) {
        self.0.write().remove(&id);
    }

    /// Those of one workspace.
    pub(crate) fn of_workspace(&self, key: &WorkspaceKey) -> Vec<Arc<LiveSession>> {
        let sessions = self.0.read();
        sessions.values().filter(|live| live.shared.spec.workspace == *key).cloned().collect()
    }

    /// All of them, for drain and for figures.
    pub(crate) fn all(&self) -> Vec<Arc<LiveSession>> {
        self.0.read().values().cloned().collect()
    }
}
