//! The conversations that can be resumed, each looked after by a task of its own.

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
use crate::telemetry::Metrics;
use crate::{
    contract::runtime::Resumed,
    domain::turn::outcome::{ErrorCode, Failure},
};

/// All conversations of a runtime with numbers. Those with an agent hold its seat, so there are no more of them
/// than agents may run; of those that keep only their agent's last words, the oldest make room.
pub(crate) struct Conversations {
    held: Mutex<HashMap<Uuid, Arc<Conversation>>>,
    away: Arc<AtomicUsize>,
    retention: Retention,
    silence: Duration,
    most: usize,
    metrics: Metrics,
    stopping: watch::Receiver<bool>,
}

impl Conversations {
    /// Holds at most `most`. A client from which nothing comes for `silence` is away; `stopping` turning true ends
    /// every conversation.
    pub(crate) fn new(
        retention: Retention,
        silence: Duration,
        most: usize,
        metrics: Metrics,
        stopping: watch::Receiver<bool>,
    ) -> Self {
        Self { held: Mutex::default(), away: Arc::default(), retention, silence, most, metrics, stopping }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, Arc<Conversation>>> {
        self.held.lock()
    }

    /// Whether a connection can be resumed at all.
    pub(crate) fn are_kept(&self) -> bool {
        !self.retention.grace.is_zero()
    }

    /// How many are kept for a client that is away.
    pub(crate) fn away(&self) -> usize {
        self.away.load(Ordering::Relaxed)
    }

    /// Begins a conversation under its connection's id. Starts a task on the calling task's runtime.
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

    /// Ends the one whose agent is gone for longest, if there are as many as may be.
    fn make_room(&self) {
        let held = self.lock();
        if held.len() < self.most {
            return;
        }
        let oldest = held
            .values()
            .filter_map(|conversation| Some((conversation.lost_its_agent()?, conversation)))
            .min_by_key(|(since, _)| *since)
            .map(|(_, conversation)| conversation.clone());
        drop(held);
        if let Some(conversation) = oldest {
            conversation.end();
        }
    }

    /// Lets a client continue that has everything up to `received`, or has forgotten what it has, and gives what it is
    /// to be told first.
    ///
    /// # Errors
    /// `not_found` where the connection is not held, or not what the client wants of it. Asking again is no use.
    pub(crate) fn resume(&self, id: Uuid, received: Option<u64>) -> Result<(Attachment, Resumed), Failure> {
        let gone = |why: String| Failure::new(ErrorCode::NotFound, format!("connection {id}: {why}"));
        let conversation = self.lock().get(&id).cloned();
        let conversation = conversation.ok_or_else(|| gone("is not held here".into()))?;
        match conversation.attach(received) {
            Ok(Some((socket, resumed))) => Ok((Attachment::new(conversation, socket), resumed)),
            Ok(None) => Err(gone("is over".into())),
            Err(cause) => Err(gone(cause.to_string())),
        }
    }

    async fn look_after(self: Arc<Self>, id: Uuid, conversation: Arc<Conversation>) {
        let mut stopping = self.stopping.clone();
        while let Some(due) = conversation.due() {
            tokio::select! {
                () = conversation.changed() => {}
                () = sleep_until(due) => conversation.look_after(),
                // An error means that the runtime is gone, which is the same.
                _ = stopping.wait_for(|stopping| *stopping) => conversation.end(),
            }
        }
        self.lock().remove(&id);
        tracing::debug!(connection = %id, "conversation ended");
    }
}

#[cfg(test)]
pub(crate) mod tests;
