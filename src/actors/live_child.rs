//! A session as its supervisor holds it.

use std::sync::Arc;

use actix::{Addr, Context};
use tokio::{sync::watch, task::JoinHandle};

use super::{
    handles::{capacity_guard::Permit, index::Mailbox, messages::Later, session::SessionShared},
    session::Session,
    workspaces::liveness::ProbeState,
};
use crate::{
    domain::{session::restart::RestartPolicy, turn::outcome::Failure},
    transport::AgentFacts,
};

/// What a start came to.
pub type Started = Result<Arc<AgentFacts>, Failure>;

/// A live session.
pub struct Child {
    /// What outlives its restarts.
    pub shared: Arc<SessionShared>,
    /// Its record of restarts.
    pub restarts: RestartPolicy,
    /// Which start of it this is.
    pub generation: u64,
    /// Tells callers about a fresh actor.
    pub mailbox: watch::Sender<Mailbox>,
    /// Its actor, which can be dropped from here.
    pub actor: JoinHandle<()>,
    /// Whether it answers.
    pub probe: ProbeState,
    /// Whether its actor was dropped because it did not.
    pub is_stuck: bool,
    /// Until the first start is known to have worked, its failure is the caller's and not restarted.
    pub proven: bool,
    /// Callers who asked for a start that is under way.
    pub waiting: Vec<Later<Started>>,
    /// Callers who asked for its end.
    pub closing: Vec<Later<()>>,
    /// Given back with it.
    pub _seat: Permit,
}

/// Starts an actor as `Actor::start` does, and keeps a hold of it: an actor that waits for something that never
/// ends can be dropped from outside.
pub fn spawn(session: Session) -> (Mailbox, JoinHandle<()>) {
    let running = Context::new().into_future(session);
    let address = running.address();
    (mailbox(&address), actix::spawn(running))
}

fn mailbox(actor: &Addr<Session>) -> Mailbox {
    Mailbox {
        run_prompt: actor.clone().recipient(),
        cancel_turn: actor.clone().recipient(),
        answer_permission: actor.clone().recipient(),
        set_mode: actor.clone().recipient(),
        set_config_option: actor.clone().recipient(),
        end: actor.clone().recipient(),
        probe: actor.clone().recipient(),
    }
}
