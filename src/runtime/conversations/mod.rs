//! Resumable conversations of a runtime. Each has a task that enforces its deadlines.

pub(crate) mod attachment;
pub(crate) mod conversation;
pub(crate) mod outgoing;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use parking_lot::{Mutex, MutexGuard};
use tokio::{
    sync::watch,
    time::{Duration, sleep_until},
};
use uuid::Uuid;

use self::{
    attachment::Attachment,
    conversation::{Conversation, FIRST_SOCKET, Retention},
};
use super::agents::StartedAgent;
use crate::{
    contract::runtime::Resumed,
    domain::turn::outcome::{ErrorCode, Failure},
};
use crate::{process::members::Members, telemetry::Metrics};

/// All conversations of a runtime whose messages are numbered, by connection id.
///
/// Conversations with a running agent are limited by the permits for agent processes. Conversations whose agent has
/// exited only keep messages for their client; beyond the limit, the one whose agent exited first is ended.
pub(crate) struct Conversations {
    held: Mutex<HashMap<Uuid, Arc<Conversation>>>,
    /// Number of conversations whose client is disconnected.
    away: Arc<AtomicUsize>,
    retention: Retention,
    silence: Duration,
    max: usize,
    metrics: Metrics,
    stopping: watch::Receiver<bool>,
}

impl Conversations {
    /// Creates an empty set that holds about `max` conversations. A client that sends nothing for `silence` counts as
    /// disconnected. When `stopping` becomes true, every conversation ends.
    pub(crate) fn new(
        retention: Retention,
        silence: Duration,
        max: usize,
        metrics: Metrics,
        stopping: watch::Receiver<bool>,
    ) -> Self {
        Self { held: Mutex::default(), away: Arc::default(), retention, silence, max, metrics, stopping }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, Arc<Conversation>>> {
        self.held.lock()
    }

    /// True if connections can be resumed, which a grace of zero disables.
    pub(crate) fn are_kept(&self) -> bool {
        !self.retention.grace.is_zero()
    }

    /// Number of conversations that are kept for a disconnected client.
    pub(crate) fn away(&self) -> usize {
        self.away.load(Ordering::Relaxed)
    }

    /// Starts a conversation under its connection's id. Spawns a task on the caller's tokio runtime, which ends with
    /// the conversation.
    pub(crate) fn begin(self: &Arc<Self>, id: Uuid, agent: StartedAgent) -> Attachment {
        let (away, metrics) = (self.away.clone(), self.metrics.clone());
        let on_away = move |is_away: bool| {
            if is_away {
                away.fetch_add(1, Ordering::Relaxed);
                metrics.conversation_held();
            } else {
                away.fetch_sub(1, Ordering::Relaxed);
                metrics.conversation_released();
            }
        };
        let conversation = Arc::new(Conversation::begin(agent, self.retention, self.silence, on_away));
        self.make_room();
        self.lock().insert(id, conversation.clone());
        tokio::spawn(self.clone().look_after(id, conversation.clone()));
        Attachment::new(conversation, FIRST_SOCKET)
    }

    /// At the limit, ends the conversation whose agent exited first, if there is one without an agent.
    fn make_room(&self) {
        // A conversation with an agent is never ended here: the permits for agents limit those.
        let held = self.lock();
        if held.len() < self.max {
            return;
        }
        let oldest = held
            .values()
            .filter_map(|conversation| Some((conversation.lost_its_agent()?, conversation)))
            .min_by_key(|(since, _)| *since)
            .map(|(_, conversation)| conversation.clone());
        // `end` locks the conversation, and its task locks this map when it ends.
        drop(held);
        if let Some(conversation) = oldest {
            conversation.end();
        }
    }

    /// Resumes a conversation for a client that has received everything up to message `received`; `None` if the
    /// client does not know, and then it gets everything that is held. Returns the socket's part of the conversation
    /// and the first message for the client.
    ///
    /// # Errors
    /// `not_found` if the connection is not held, or messages that the client needs are not held. A retry cannot
    /// succeed.
    pub(crate) fn resume(&self, id: Uuid, received: Option<u64>) -> Result<(Attachment, Resumed), Failure> {
        let not_found = |why: String| Failure::new(ErrorCode::NotFound, format!("connection {id}: {why}"));
        // The map's lock is released before the conversation is locked.
        let conversation = self.lock().get(&id).cloned();
        let conversation = conversation.ok_or_else(|| not_found("is not held by this runtime".into()))?;
        match conversation.attach(received) {
            Ok(Some((socket, resumed))) => Ok((Attachment::new(conversation, socket), resumed)),
            Ok(None) => Err(not_found("has ended".into())),
            Err(cause) => Err(not_found(cause.to_string())),
        }
    }

    /// The processes of a conversation's agent; `None` if the conversation is not held.
    pub(crate) fn members(&self, id: Uuid) -> Option<Members> {
        self.lock().get(&id).map(|conversation| conversation.members())
    }

    async fn look_after(self: Arc<Self>, id: Uuid, conversation: Arc<Conversation>) {
        let mut stopping = self.stopping.clone();
        while let Some(due) = conversation.due() {
            tokio::select! {
                () = conversation.changed() => {}
                () = sleep_until(due) => conversation.look_after(),
                // An error means that the runtime was dropped, which also ends the conversation.
                _ = stopping.wait_for(|stopping| *stopping) => conversation.end(),
            }
        }
        self.lock().remove(&id);
        tracing::debug!(connection = %id, "conversation ended");
    }
}

#[cfg(test)]
pub(crate) mod tests;
