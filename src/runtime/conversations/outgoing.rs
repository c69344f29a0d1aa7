//! What an agent says, as a socket takes it: in portions, and with its end.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::Stream;
use tokio::time::Instant;

use crate::{
    contract::runtime::AgentExited,
    domain::turn::outcome::ErrorCode,
    transport::pipe::{CloseReason, FrameReceiver, Incoming},
};

/// Bytes that one poll takes from the agent before it lets others run and the socket be written.
const BYTES_PER_POLL: usize = 64 * 1024;

/// What is for the client.
#[derive(Debug)]
pub(crate) enum Outgoing {
    /// A message.
    Text(String),
    /// The agent is gone, and everything that it said is told, on a line with numbers that it is gone too.
    Parted(Arc<Parting>),
    /// This socket has no more part in the conversation: close code and reason.
    Over(u16, &'static str),
    /// The client is considered dead. It is told nothing: an end without a closing frame brings it back, if it lives.
    LetGo,
}

/// How an agent ended.
#[derive(Debug)]
pub(crate) struct Parting {
    /// As its client hears it.
    pub exited: AgentExited,
    /// A sentence.
    pub why: String,
    /// When it was noticed.
    pub at: Instant,
}

impl Parting {
    /// Reads what the agent's pipe said; nothing, if it broke off.
    pub(crate) fn new(reason: Option<CloseReason>) -> Self {
        let (exited, why) = match reason {
            Some(CloseReason::AgentExited(exited)) => (exited, "the agent ended".to_owned()),
            Some(CloseReason::FrameTooLarge { limit }) => {
                let code = Some(ErrorCode::FrameTooLarge.as_str().to_owned());
                let why = format!("the agent wrote a line of more than {limit} bytes");
                (AgentExited { code, ..AgentExited::default() }, why)
            }
            Some(CloseReason::Lost(why)) => (AgentExited::default(), why),
            None => (AgentExited::default(), "the agent's pipe broke off".to_owned()),
        };
        Self { exited, why, at: Instant::now() }
    }
}

/// Pauses: a flooding agent must not make one poll of the actor grow without bound, because the socket is written
/// only between polls.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    taken_bytes: usize,
}

impl Pace {
    /// Whether this poll may take more; if not, there is another one soon.
    pub(crate) fn may_continue(&mut self, cx: &Context<'_>) -> bool {
        if self.taken_bytes < BYTES_PER_POLL {
            return true;
        }
        self.rest();
        cx.waker().wake_by_ref();
        false
    }

    /// So much was taken.
    pub(crate) fn took(&mut self, bytes: usize) {
        self.taken_bytes += bytes;
    }

    /// There is nothing to take.
    pub(crate) fn rest(&mut self) {
        self.taken_bytes = 0;
    }
}

/// What the agent of a plain client says.
pub(crate) struct PlainWords {
    from_agent: FrameReceiver,
    pace: Pace,
}

impl PlainWords {
    /// Reads the agent's pipe.
    pub(crate) fn new(from_agent: FrameReceiver) -> Self {
        Self { from_agent, pace: Pace::default() }
    }
}

impl Stream for PlainWords {
    type Item = Outgoing;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Outgoing>> {
        if !self.pace.may_continue(cx) {
            return Poll::Pending;
        }
        let incoming = loop {
            match self.from_agent.poll_recv(cx) {
                // An agent's pipes do not come back.
                Poll::Ready(Some(Incoming::Line(_))) => {}
                Poll::Ready(incoming) => break incoming,
                Poll::Pending => {
                    self.pace.rest();
                    return Poll::Pending;
                }
            }
        };
        Poll::Ready(match incoming {
            Some(Incoming::Frame(frame)) => {
                let text = frame.into_text();
                self.pace.took(text.len());
                Some(Outgoing::Text(text))
            }
            Some(Incoming::Closed(reason)) => Some(Outgoing::Parted(Arc::new(Parting::new(Some(reason))))),
            Some(Incoming::Line(_)) | None => None,
        })
    }
}
