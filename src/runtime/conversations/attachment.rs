//! One socket's hold of a conversation: the messages from its client and the messages to it.

use std::{
    borrow::Cow,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::Stream;

use super::conversation::{Client, Conversation, State};
use crate::{
    acp::numbered::{self, Numbers},
    contract::runtime::{ACKNOWLEDGED, ResumedPrompt, close_code},
    domain::{delivery::Arrival, ids::PromptId},
    runtime::{
        agents::Workplace,
        conversations::outgoing::{Outgoing, Pace},
    },
    transport::pipe::{FrameSender, SendError},
};

/// A message of the client.
#[derive(Debug)]
pub(crate) enum Arrived<'a> {
    /// To be answered or delivered, under this number.
    Message(u64, Cow<'a, str>),
    /// Was here before, only brought an acknowledgement, or came through a socket that was replaced.
    Nothing,
    /// The client cannot be trusted.
    Violation(&'static str),
}

/// One socket's hold of a conversation. Dropped, its client is away.
pub(crate) struct Attachment {
    conversation: Arc<Conversation>,
    generation: u64,
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.detach();
    }
}

impl Attachment {
    /// Holds it as its socket of this generation.
    pub(crate) fn new(conversation: Arc<Conversation>, generation: u64) -> Self {
        Self { conversation, generation }
    }

    /// Where the agent's sessions may work.
    pub(crate) fn workplace(&self) -> &Workplace {
        &self.conversation.workplace
    }

    /// The client is away, if this is still its newest socket.
    pub(crate) fn detach(&self) {
        let mut state = self.conversation.lock();
        if state.is_attached(self.generation) {
            self.conversation.detach_locked(&mut state);
        }
    }

    /// Ends the conversation, if this is still its newest socket.
    pub(crate) fn end(&self) {
        let state = self.conversation.lock();
        if state.generation == self.generation {
            self.conversation.end_locked(state);
        }
    }

    /// The client has read everything that an agent said before its end, if this is still its newest socket.
    pub(crate) fn confirm_agent_end(&self) {
        let mut state = self.conversation.lock();
        if state.generation == self.generation && state.agent_end.is_some() {
            self.conversation.shorten_wait_locked(&mut state);
        }
    }

    /// Something came that is no message.
    pub(crate) fn touch(&self) {
        let mut state = self.conversation.lock();
        if state.is_attached(self.generation) {
            state.touch();
        }
    }

    /// Takes the numbers off a message. It has arrived only when it was delivered or answered: if the socket breaks
    /// before that, the client sends it again.
    pub(crate) fn arrive<'a>(&self, text: &'a str) -> Arrived<'a> {
        let Some((Numbers { seq, ack }, message)) = numbered::take(text) else {
            return Arrived::Violation("a message without a number on a connection with numbers");
        };
        let mut state = self.conversation.lock();
        if state.generation != self.generation {
            return Arrived::Nothing;
        }
        let was_full = state.outbox.is_full();
        state.outbox.acknowledge(ack);
        if state.agent_end.is_some() && state.outbox.is_empty() {
            self.conversation.end_locked(state);
            return Arrived::Nothing;
        }
        if !state.is_attached(self.generation) {
            // It came after the end of the agent, or of our patience; the acknowledgement counts.
            return Arrived::Nothing;
        }
        state.touch();
        if was_full && !state.outbox.is_full() {
            state.wake();
        }
        // Only seen: the number counts when the message is delivered.
        let mut inbox = state.inbox;
        match inbox.arrive(seq) {
            Arrival::New => Arrived::Message(seq, message),
            Arrival::Again => Arrived::Nothing,
            Arrival::Gap => Arrived::Violation("a message is missing"),
        }
    }

    /// Hands a message on to the agent; `prompt` is the turn that it begins and its call.
    pub(crate) fn deliver(
        &self,
        seq: u64,
        message: String,
        prompt: Option<(PromptId, u64)>,
    ) -> Result<(), SendError> {
        let mut state = self.conversation.lock();
        if !state.is_attached(self.generation) {
            return Ok(());
        }
        let bytes = message.len();
        if let Some(pipe) = &state.pipe {
            match pipe.to_agent.try_send(message) {
                // The exit of an agent is reported separately.
                Ok(()) | Err(SendError::Closed) => {}
                Err(SendError::Full) => return Err(SendError::Full),
            }
        }
        state.take_in(seq, bytes);
        if let Some((prompt_id, call)) = prompt {
            state.prompt = Some(ResumedPrompt { prompt_id, call, after: state.outbox.last() });
        }
        Ok(())
    }

    /// Gives a message to the agent that its client did not number: `initialize`.
    pub(crate) fn open(&self, message: String) -> Result<(), SendError> {
        self.conversation.lock().pipe.as_ref().map_or(Ok(()), |pipe| pipe.to_agent.try_send(message))
    }

    /// Answers a message here. There has to be room for the answer: the client acknowledges before it asks more.
    pub(crate) fn answer(&self, seq: u64, answer: String) -> Result<(), SendError> {
        let mut state = self.conversation.lock();
        if !state.is_attached(self.generation) {
            return Ok(());
        }
        if state.outbox.is_full() {
            return Err(SendError::Full);
        }
        state.take_in(seq, 0);
        state.keep(answer);
        state.wake();
        Ok(())
    }

    /// Returns the messages for a client that has everything up to `received`.
    pub(crate) fn feed_after(&self, received: u64) -> ClientFeed {
        ClientFeed {
            conversation: self.conversation.clone(),
            generation: self.generation,
            sent: received,
            over: false,
            pace: Pace::default(),
        }
    }
}

/// Messages of one socket to its client: first the held ones, then the new ones.
pub(crate) struct ClientFeed {
    conversation: Arc<Conversation>,
    generation: u64,
    sent: u64,
    over: bool,
    pace: Pace,
}

impl Stream for ClientFeed {
    type Item = Outgoing;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Outgoing>> {
        let Self { conversation, generation, sent, over, pace } = &mut *self;
        if *over {
            return Poll::Ready(None);
        }
        if !pace.may_continue(cx) {
            return Poll::Pending;
        }
        let mut guard = conversation.lock();
        let state = &mut *guard;
        if let Some(end) = end_of(state, *generation) {
            *over = true;
            return Poll::Ready(Some(end));
        }
        if let Client::Here { waker, .. } = &mut state.client
            && !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker()))
        {
            *waker = Some(cx.waker().clone());
        }
        loop {
            while *sent < state.outbox.last() {
                *sent += 1;
                // A message that was acknowledged meanwhile is skipped.
                let Some(message) = state.outbox.get(*sent) else { continue };
                let ack = state.pending_ack.acknowledge();
                let text = numbered::put(Numbers { seq: *sent, ack }, message);
                pace.took(text.len());
                return Poll::Ready(Some(Outgoing::Text(text)));
            }
            if state.pending_ack.is_due() {
                let numbers = Numbers { seq: 0, ack: state.pending_ack.acknowledge() };
                let nothing = format!(r#"{{"jsonrpc":"2.0","method":"{ACKNOWLEDGED}"}}"#);
                return Poll::Ready(Some(Outgoing::Text(numbered::put(numbers, &nothing))));
            }
            if let Some(agent_end) = &state.agent_end {
                *over = true;
                return Poll::Ready(Some(Outgoing::AgentEnded(agent_end.clone())));
            }
            if state.poll_agent(cx).is_pending() {
                pace.rest();
                return Poll::Pending;
            }
        }
    }
}

/// Reason for which a socket has nothing more to send; `None` while it continues.
fn end_of(state: &State, generation: u64) -> Option<Outgoing> {
    if state.generation != generation {
        return Some(Outgoing::Over(close_code::REPLACED, "another socket has taken over this connection"));
    }
    if state.pipe.is_none() {
        return Some(Outgoing::Over(close_code::AGENT_ENDED, "conversation ended"));
    }
    match state.client {
        Client::Here { .. } => None,
        Client::Away { .. } => Some(Outgoing::Detached),
    }
}

/// To the agent.
pub(crate) enum ToAgent {
    /// Dropped, the agent ends.
    Plain(FrameSender),
    /// Dropped, the agent waits for its client.
    Numbered(Attachment),
}

/// The number of a client's message, where it has one.
pub(crate) type Seq = Option<u64>;

impl ToAgent {
    /// Takes a message of the client in.
    pub(crate) fn arrive<'a>(&self, text: &'a str) -> Result<Option<(Seq, Cow<'a, str>)>, &'static str> {
        match self {
            Self::Plain(_) => Ok(Some((None, Cow::Borrowed(text)))),
            Self::Numbered(attachment) => match attachment.arrive(text) {
                Arrived::Message(seq, message) => Ok(Some((Some(seq), message))),
                Arrived::Nothing => Ok(None),
                Arrived::Violation(why) => Err(why),
            },
        }
    }

    /// Passes a message to the agent. The exit of an agent is reported separately.
    pub(crate) fn deliver(
        &self,
        seq: Seq,
        message: String,
        prompt: Option<(PromptId, u64)>,
    ) -> Result<(), SendError> {
        let sent = match (self, seq) {
            (Self::Plain(to_agent), _) => to_agent.try_send(message),
            (Self::Numbered(attachment), Some(seq)) => attachment.deliver(seq, message, prompt),
            (Self::Numbered(attachment), None) => attachment.open(message),
        };
        match sent {
            Err(SendError::Closed) => Ok(()),
            sent => sent,
        }
    }

    /// Answers a message in the agent's place; gives the answer back where the socket sends it itself.
    pub(crate) fn answer(&self, seq: Seq, answer: String) -> Result<Option<String>, SendError> {
        match (self, seq) {
            (Self::Numbered(attachment), Some(seq)) => attachment.answer(seq, answer).map(|()| None),
            _ => Ok(Some(answer)),
        }
    }

    /// Something came that is no message.
    pub(crate) fn touch(&self) {
        if let Self::Numbered(attachment) = self {
            attachment.touch();
        }
    }

    /// The client is away; a plain one comes not back, so its line is dropped for that.
    pub(crate) fn detach(&self) {
        if let Self::Numbered(attachment) = self {
            attachment.detach();
        }
    }

    /// The client has read everything that an agent said before its end.
    pub(crate) fn confirm_agent_end(&self) {
        if let Self::Numbered(attachment) = self {
            attachment.confirm_agent_end();
        }
    }

    /// The client wants nothing more of the agent; a plain line is dropped for that.
    pub(crate) fn end(&self) {
        if let Self::Numbered(attachment) = self {
            attachment.end();
        }
    }
}
