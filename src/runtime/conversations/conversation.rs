//! State of one agent that outlives its sockets: its pipe, and the messages that its client has not acknowledged.
//!
//! A lock instead of an actor or a task: a message goes from the agent to the socket without a hop more than on a
//! plain connection, and another socket can take over without asking the one before, which may never run again.

use std::{
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

use parking_lot::{Mutex, MutexGuard};
use tokio::{
    sync::Notify,
    time::{Duration, Instant},
};

use crate::{
    acp::jsonrpc,
    contract::runtime::{AGENT_EXITED, Resumed, ResumedPrompt},
    domain::delivery::{Inbox, OutOfRange, Outbox, PendingAck},
    process::members::Members,
    runtime::{
        agents::{StartedAgent, Workplace},
        conversations::outgoing::AgentEnd,
    },
    transport::pipe::{Incoming, Pipe},
};

/// Limits of the wait for a conversation's client, in time, messages and bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Retention {
    /// Maximum time that an agent is kept while its client is away; zero: no connection can be resumed.
    pub grace: Duration,
    /// Messages of an agent that are kept until they are acknowledged; more make the agent wait.
    pub frames: usize,
    /// The same in bytes.
    pub bytes: usize,
}

/// Maximum time that the last messages of a dead agent are kept for a client that has read them. The client persists
/// them within moments; a client that is killed meanwhile is back within seconds.
const PERSIST_WAIT: Duration = Duration::from_secs(10);

/// The number of the socket with which a conversation begins.
pub(crate) const FIRST_SOCKET: u64 = 0;

/// One agent and its client, attached or not.
pub(crate) struct Conversation {
    state: Mutex<State>,
    /// Wakes the keeper of the conversation: a client attached or left, or the conversation has ended.
    changed: Notify,
    pub(crate) workplace: Workplace,
    /// The processes of the agent.
    members: Members,
    pub(crate) retention: Retention,
    silence: Duration,
    /// Called with `true` when the client leaves, and with `false` when it is back or no longer awaited.
    on_away: Box<dyn Fn(bool) + Send + Sync>,
}

pub(crate) struct State {
    /// `None` once the conversation has ended. Dropping the pipe ends the agent.
    pub(crate) pipe: Option<Pipe>,
    /// Reason for which the agent has exited, if it has; its last messages are still to be sent.
    pub(crate) agent_end: Option<Arc<AgentEnd>>,
    pub(crate) outbox: Outbox<String>,
    pub(crate) inbox: Inbox,
    /// Acknowledgement that the client has not received yet.
    pub(crate) pending_ack: PendingAck,
    pub(crate) prompt: Option<ResumedPrompt>,
    /// Number of the newest socket.
    pub(crate) generation: u64,
    pub(crate) client: Client,
}

pub(crate) enum Client {
    Here {
        /// Time of the client's last message or ping.
        heard: Instant,
        /// Waker of the socket while it waits.
        waker: Option<Waker>,
    },
    Away {
        /// End of the wait for the client.
        until: Instant,
    },
}

impl State {
    pub(crate) fn is_attached(&self, generation: u64) -> bool {
        self.pipe.is_some() && self.generation == generation && matches!(self.client, Client::Here { .. })
    }

    pub(crate) fn wake(&self) {
        if let Client::Here { waker: Some(waker), .. } = &self.client {
            waker.wake_by_ref();
        }
    }

    pub(crate) fn touch(&mut self) {
        if let Client::Here { heard, .. } = &mut self.client {
            *heard = Instant::now();
        }
    }

    pub(crate) fn keep(&mut self, message: String) {
        let bytes = message.len();
        self.outbox.push(message, bytes);
    }

    pub(crate) fn take_in(&mut self, seq: u64, bytes: usize) {
        self.inbox.arrive(seq);
        // The runtime promises delivery to the agent only, so a delivered message is settled.
        self.pending_ack.receive(seq, bytes);
        self.pending_ack.settle(seq);
        if self.pending_ack.is_due() {
            self.wake();
        }
    }

    /// Keeps one more message of the agent, if there is room for it.
    pub(crate) fn poll_agent(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(pipe) = &mut self.pipe else { return Poll::Pending };
        // A full outbox stops the reading: the agent blocks on its pipe instead of filling the memory.
        if self.agent_end.is_some() || self.outbox.is_full() {
            return Poll::Pending;
        }
        let reason = match ready!(pipe.from_agent.poll_recv(cx)) {
            Some(Incoming::Frame(frame)) => {
                self.keep(frame.into_text());
                return Poll::Ready(());
            }
            // The pipes of an agent do not reconnect.
            Some(Incoming::State(_)) => return Poll::Ready(()),
            Some(Incoming::Closed(reason)) => Some(reason),
            None => None,
        };
        let agent_end = AgentEnd::new(reason);
        self.keep(jsonrpc::notification(AGENT_EXITED, &agent_end.exited));
        self.agent_end = Some(Arc::new(agent_end));
        Poll::Ready(())
    }
}

impl Conversation {
    /// Begins with an attached client, on [`FIRST_SOCKET`].
    pub(crate) fn begin(
        agent: StartedAgent,
        retention: Retention,
        silence: Duration,
        on_away: impl Fn(bool) + Send + Sync + 'static,
    ) -> Self {
        let state = State {
            pipe: Some(agent.pipe),
            agent_end: None,
            outbox: Outbox::new(retention.frames, retention.bytes, 0),
            inbox: Inbox::default(),
            pending_ack: PendingAck::of_unknown_limits(),
            prompt: None,
            generation: FIRST_SOCKET,
            client: Client::Here { heard: Instant::now(), waker: None },
        };
        Self {
            state: Mutex::new(state),
            changed: Notify::new(),
            workplace: agent.workplace,
            members: agent.members,
            retention,
            silence,
            on_away: Box::new(on_away),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// The processes of the agent.
    pub(crate) fn members(&self) -> Members {
        self.members.clone()
    }

    /// Attaches a socket whose client has everything up to `received`; without a number, all that is held is replayed.
    /// Replaces an open socket. Returns the socket's number and the first answer to its client; `None` when the
    /// conversation has ended.
    pub(crate) fn attach(&self, received: Option<u64>) -> Result<Option<(u64, Resumed)>, OutOfRange> {
        let mut state = self.lock();
        if state.pipe.is_none() {
            return Ok(None);
        }
        let after = received.unwrap_or_else(|| state.outbox.acknowledged());
        // Checked before anything changes: a client with an impossible number must not displace the current one.
        state.outbox.resume(after)?;
        state.generation += 1;
        let here = Client::Here { heard: Instant::now(), waker: None };
        match std::mem::replace(&mut state.client, here) {
            // The previous socket may not run for long, so it is only woken.
            Client::Here { waker, .. } => waker.into_iter().for_each(Waker::wake),
            Client::Away { .. } => (self.on_away)(false),
        }
        let resumed = Resumed { received: state.inbox.last(), after, prompt: state.prompt.clone() };
        let generation = state.generation;
        drop(state);
        self.changed.notify_one();
        Ok(Some((generation, resumed)))
    }

    /// Ends the conversation even if a client is attached: the agent loses its client, and held messages are dropped.
    pub(crate) fn end(&self) {
        self.end_locked(self.lock());
    }

    pub(crate) fn end_locked(&self, mut state: MutexGuard<'_, State>) {
        let Some(pipe) = state.pipe.take() else { return };
        let outbox = std::mem::replace(&mut state.outbox, Outbox::new(0, 0, 0));
        state.wake();
        if let Client::Away { .. } = state.client {
            (self.on_away)(false);
        }
        drop(state);
        self.changed.notify_one();
        // After the lock is released, because freeing the messages and ending the agent may take long.
        drop((pipe, outbox));
    }

    pub(crate) fn detach_locked(&self, state: &mut MutexGuard<'_, State>) {
        if let Client::Here { waker, .. } = &mut state.client {
            let waker = waker.take();
            // A client that has sent nothing since `initialize` may not know yet that it can reconnect. If it does,
            // it reconnects within moments; until then it holds a seat.
            let is_begun = state.inbox.last() > 0;
            let grace = if is_begun { self.retention.grace } else { self.retention.grace.min(PERSIST_WAIT) };
            state.client = Client::Away { until: Instant::now() + grace };
            (self.on_away)(true);
            waker.into_iter().for_each(Waker::wake);
            self.changed.notify_one();
        }
    }

    /// Shortens the wait for a client that has read the last messages of a dead agent and has only to persist them.
    pub(crate) fn shorten_wait_locked(&self, state: &mut MutexGuard<'_, State>) {
        if let Client::Away { until } = &mut state.client {
            *until = (*until).min(Instant::now() + PERSIST_WAIT);
            self.changed.notify_one();
        }
    }

    /// Time at which the agent exited, while its last messages are held; `None` if the agent runs or the conversation
    /// has ended.
    pub(crate) fn lost_its_agent(&self) -> Option<Instant> {
        let state = self.lock();
        state.pipe.as_ref()?;
        state.agent_end.as_ref().map(|agent_end| agent_end.at)
    }

    /// Time of the next [`Self::look_after`]; `None` once the conversation has ended.
    pub(crate) fn due(&self) -> Option<Instant> {
        let state = self.lock();
        state.pipe.as_ref()?;
        Some(match state.client {
            Client::Here { heard, .. } => heard + self.silence,
            Client::Away { until } => until,
        })
    }

    /// Detaches a client that has been silent for too long, and ends a conversation whose client was away for too
    /// long. The socket cannot do this itself, because it does not run while its client does not read.
    pub(crate) fn look_after(&self) {
        let now = Instant::now();
        let mut state = self.lock();
        match state.client {
            Client::Here { heard, .. } if now >= heard + self.silence => self.detach_locked(&mut state),
            Client::Away { until } if now >= until => self.end_locked(state),
            _ => {}
        }
    }

    /// Resolves when a client attached or left, or the conversation has ended. Until then it reads the agent of an
    /// absent client, as far as the outbox has room. Cancel-safe.
    pub(crate) async fn changed(&self) {
        let listening = std::future::poll_fn(|cx| {
            let mut state = self.lock();
            while let Client::Away { .. } = state.client {
                ready!(state.poll_agent(cx));
            }
            Poll::<()>::Pending
        });
        tokio::select! {
            () = self.changed.notified() => {}
            () = listening => {}
        }
    }
}
