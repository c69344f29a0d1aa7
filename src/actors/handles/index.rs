//! Index of the live sessions of this process, by session id.

use std::{collections::HashMap, sync::Arc};

use actix::Recipient;
use parking_lot::RwLock;
use tokio::sync::watch;

use super::{
    messages::{
        AnswerPermission, CancelTurn, ChangeServers, ChangeSetting, CloseSession, EndSession, Probe, RunPrompt,
    },
    session::SessionShared,
};
use crate::domain::ids::{SessionId, WorkspaceKey};

/// Recipients of a session's actor, one per message.
#[derive(Clone)]
pub(crate) struct Mailbox {
    pub run_prompt: Recipient<RunPrompt>,
    pub cancel_turn: Recipient<CancelTurn>,
    pub answer_permission: Recipient<AnswerPermission>,
    pub change_setting: Recipient<ChangeSetting>,
    pub change_servers: Recipient<ChangeServers>,
    pub end: Recipient<EndSession>,
    pub probe: Recipient<Probe>,
}

/// A live session, as its callers see it.
pub(crate) struct LiveSession {
    pub shared: Arc<SessionShared>,
    pub supervisor: Recipient<CloseSession>,
    /// Recipients of the current actor; replaced at each restart. The sender is dropped when the session ends.
    pub mailbox: watch::Receiver<Mailbox>,
}

/// Live sessions by id. Written by the supervisors, read by everyone; cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct SessionIndex(Arc<RwLock<HashMap<SessionId, Arc<LiveSession>>>>);

impl SessionIndex {
    pub(crate) fn get(&self, id: SessionId) -> Option<Arc<LiveSession>> {
        self.0.read().get(&id).cloned()
    }

    pub(crate) fn insert(&self, session: Arc<LiveSession>) {
        let id = session.shared.spec.session_id;
        self.0.write().insert(id, session);
    }

    pub(crate) fn remove(&self, id: SessionId) {
        self.0.write().remove(&id);
    }

    /// Live sessions of one workspace.
    pub(crate) fn of_workspace(&self, key: &WorkspaceKey) -> Vec<Arc<LiveSession>> {
        let sessions = self.0.read();
        sessions.values().filter(|live| live.shared.spec.workspace == *key).cloned().collect()
    }

    /// All live sessions, for drain and for figures.
    pub(crate) fn all(&self) -> Vec<Arc<LiveSession>> {
        self.0.read().values().cloned().collect()
    }
}
