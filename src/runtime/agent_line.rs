//! The way between one socket and its agent: plain, or with numbers and an agent that waits for its client.

use std::borrow::Cow;

use super::conversations::attachment::{Arrived, Attachment};
use crate::{
    domain::ids::PromptId,
    transport::pipe::{FrameSender, SendError},
};

/// To the agent.
pub enum AgentLine {
    /// Dropped, the agent ends.
    Plain(FrameSender),
    /// Dropped, the agent waits for its client.
    Numbered(Attachment),
}

/// The number of a client's message, where it has one.
pub type Seq = Option<u64>;

impl AgentLine {
    /// Takes a message of the client in.
    pub fn arrive<'a>(&self, text: &'a str) -> Result<Option<(Seq, Cow<'a, str>)>, &'static str> {
        match self {
            Self::Plain(_) => Ok(Some((None, Cow::Borrowed(text)))),
            Self::Numbered(attachment) => match attachment.arrive(text) {
                Arrived::Message(seq, message) => Ok(Some((Some(seq), message))),
                Arrived::Nothing => Ok(None),
                Arrived::Violation(why) => Err(why),
            },
        }
    }

    /// Hands a message on to the agent. One that is gone says so by its own way.
    pub fn deliver(&self, seq: Seq, message: String, prompt: Option<(PromptId, u64)>) -> Result<(), SendError> {
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
    pub fn answer(&self, seq: Seq, answer: String) -> Result<Option<String>, SendError> {
        match (self, seq) {
            (Self::Numbered(attachment), Some(seq)) => attachment.answer(seq, answer).map(|()| None),
            _ => Ok(Some(answer)),
        }
    }

    /// Something came that is no message.
    pub fn hear(&self) {
        if let Self::Numbered(attachment) = self {
            attachment.hear();
        }
    }

    /// The client is away; a plain one comes not back, so its line is dropped for that.
    pub fn detach(&self) {
        if let Self::Numbered(attachment) = self {
            attachment.detach();
        }
    }

    /// The client has read everything that an agent said before its end.
    pub fn confirm_parting(&self) {
        if let Self::Numbered(attachment) = self {
            attachment.confirm_parting();
        }
    }

    /// The client wants nothing more of the agent; a plain line is dropped for that.
    pub fn end(&self) {
        if let Self::Numbered(attachment) = self {
            attachment.end();
        }
    }
}
