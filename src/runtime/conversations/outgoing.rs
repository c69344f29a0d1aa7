//! Stream of an agent's messages for a socket, limited per poll, with the agent's exit as its end.

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

/// Bytes that a socket actor takes from the agent before it yields, so that the socket is written and other actors on
/// the thread run.
const BYTES_PER_POLL: usize = 64 * 1024;

/// Item that a socket sends to its client, or acts on.
#[derive(Debug)]
pub(crate) enum Outgoing {
    Text(String),
    /// The agent has exited and all its messages were sent; in a resumable conversation, the notice of its exit too.
    AgentEnded(Arc<AgentEnd>),
    /// This socket no longer belongs to the conversation: WebSocket close code and reason.
    Over(u16, &'static str),
    /// The client counts as dead. The socket closes without a close frame, so that a client that is alive reconnects.
    Detached,
}

#[derive(Debug)]
pub(crate) struct AgentEnd {
    /// Parameters of the notice to the client.
    pub exited: AgentExited,
    /// One sentence for the log and the close reason.
    pub why: String,
    /// Time at which the exit was detected.
    pub at: Instant,
}

impl AgentEnd {
    /// Converts the close reason of the agent's pipe; `None` if the pipe ended without one.
    pub(crate) fn new(reason: Option<CloseReason>) -> Self {
        let (exited, why) = match reason {
            Some(CloseReason::AgentExited(exited)) => (exited, "the agent exited".to_owned()),
            Some(CloseReason::FrameTooLarge { limit }) => {
                let code = Some(ErrorCode::FrameTooLarge.as_str().to_owned());
                let why = format!("a line of the agent is larger than {limit} bytes");
                (AgentExited { code, ..AgentExited::default() }, why)
            }
            Some(CloseReason::Lost(why) | CloseReason::RuntimeUnavailable(why)) => (AgentExited::default(), why),
            None => (AgentExited::default(), "the agent's pipe ended without a reason".to_owned()),
        };
        Self { exited, why, at: Instant::now() }
    }
}

/// Limits the bytes taken in one poll of a socket actor to [`BYTES_PER_POLL`]. The socket is written only between
/// polls, so without a limit a fast agent would make one poll, and the memory it fills, grow without bound.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    taken_bytes: usize,
}

impl Pace {
    /// True if this poll may take more. Otherwise the budget is reset and the task is scheduled to be polled again.
    pub(crate) fn may_continue(&mut self, cx: &Context<'_>) -> bool {
        if self.taken_bytes < BYTES_PER_POLL {
            return true;
        }
        self.rest();
        // Nothing else wakes the task: the source was ready when the budget ran out.
        cx.waker().wake_by_ref();
        false
    }

    /// Records bytes that were taken.
    pub(crate) fn took(&mut self, bytes: usize) {
        self.taken_bytes += bytes;
    }

    /// Resets the budget, because nothing is left to take and the poll ends.
    pub(crate) fn rest(&mut self) {
        self.taken_bytes = 0;
    }
}

/// Messages of an agent whose connection is not resumable, so that nothing is numbered or kept.
pub(crate) struct PlainMessages {
    from_agent: FrameReceiver,
    pace: Pace,
}

impl PlainMessages {
    pub(crate) fn new(from_agent: FrameReceiver) -> Self {
        Self { from_agent, pace: Pace::default() }
    }
}

impl Stream for PlainMessages {
    type Item = Outgoing;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Outgoing>> {
        if !self.pace.may_continue(cx) {
            return Poll::Pending;
        }
        let incoming = loop {
            match self.from_agent.poll_recv(cx) {
                // Reports that a connection was interrupted or resumed, which cannot happen to a local pipe.
                Poll::Ready(Some(Incoming::State(_))) => {}
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
            Some(Incoming::Closed(reason)) => Some(Outgoing::AgentEnded(Arc::new(AgentEnd::new(Some(reason))))),
            Some(Incoming::State(_)) | None => None,
        })
    }
}
