//! State of a conversation that outlives its sockets: the messages that may be replayed, the last number that arrived
//! from the peer, and the session's side of both.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::{FutureExt, future::BoxFuture};
use tokio_tungstenite::tungstenite::Utf8Bytes;

use super::websocket::ResumeLimits;
use crate::{
    acp::numbered::{self, Numbers},
    contract::runtime::ACKNOWLEDGED,
    domain::delivery::{Arrival, Inbox, OutOfRange, Outbox, PendingAck},
    transport::{
        Delivered, SendError,
        pipe::{CloseReason, ConnectionState, FrameReceiver, FrameSender, Incoming, Refused},
    },
};

/// The session's end of a conversation, and the numbers.
pub(crate) struct Carrier {
    outgoing: FrameReceiver,
    listener: Listener,
    delivered: Arc<Delivered>,
    outbox: Outbox<Utf8Bytes>,
    inbox: Inbox,
    pending_ack: PendingAck,
    /// Wakes when more is settled; there only while that may be worth a message.
    settled_more: Option<BoxFuture<'static, ()>>,
    /// Messages up to this one are not for the session, which knows them.
    known: u64,
    /// True if the peer was asked for numbers.
    asked: bool,
    numbered: bool,
}

/// Outcome of a message that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taken {
    /// The message is on its way, or was not for the session.
    Done,
    /// An earlier message is missing.
    Gap,
    /// The session does not listen any more.
    ReceiverDropped,
}

/// Next item to write.
pub(crate) enum Outgoing {
    /// A message that is not kept.
    Once(Utf8Bytes),
    /// The outbox has a new one.
    Kept,
    /// The session is over.
    End,
}

impl Carrier {
    /// Begins a conversation. Numbers are looked for only where there is a grace, so that the peer is asked for them.
    pub(crate) fn new(
        outgoing: FrameReceiver,
        incoming: FrameSender,
        delivered: Arc<Delivered>,
        limits: ResumeLimits,
    ) -> Self {
        Self {
            outgoing,
            listener: Listener { incoming, waiting: None, next_state: None },
            delivered,
            // The peer acknowledges by the same limits; smaller ones of our own could wait for it for ever.
            outbox: Outbox::new(limits.frames, limits.bytes, 0),
            inbox: Inbox::default(),
            pending_ack: PendingAck::new(limits.frames, limits.bytes, 0),
            settled_more: None,
            known: 0,
            asked: !limits.grace.is_zero(),
            numbered: false,
        }
    }

    /// Resumes the conversation of a client that died: messages `after` that number come again, of which those up
    /// to `known` are known already; `sent` is what the peer got from that client.
    pub(crate) fn adopt(mut self, limits: ResumeLimits, after: u64, known: u64, sent: u64) -> Self {
        self.delivered.handle(after.max(known));
        self.delivered.settle(after.max(known));
        self.known = known;
        self.outbox = Outbox::new(limits.frames, limits.bytes, sent);
        self.inbox = Inbox::new(after);
        self.pending_ack = PendingAck::new(limits.frames, limits.bytes, after);
        self.numbered = true;
        self
    }

    /// True if the peer numbers its messages.
    pub(crate) fn is_numbered(&self) -> bool {
        self.numbered
    }

    /// The last message that arrived.
    pub(crate) fn received(&self) -> u64 {
        self.inbox.last()
    }

    /// The last message that the peer acknowledged.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.outbox.acknowledged()
    }

    /// The peer has everything up to `received`; gives the number of the first message to send again.
    pub(crate) fn resume(&mut self, received: u64) -> Result<u64, OutOfRange> {
        let from = self.outbox.resume(received)?;
        self.outbox.acknowledge(received);
        self.pending_ack.repeat();
        Ok(from)
    }

    /// The next kept message from number `next` on, which moves past it.
    pub(crate) fn kept(&self, next: &mut u64) -> Option<Utf8Bytes> {
        while *next <= self.outbox.last() {
            let message = self.outbox.get(*next).cloned();
            *next += 1;
            // One that was acknowledged meanwhile need not go again.
            if message.is_some() {
                return message;
            }
        }
        None
    }

    /// The next thing that the session says, or an acknowledgement that cannot wait for that.
    pub(crate) fn poll_outgoing(&mut self, cx: &mut Context<'_>) -> Poll<Outgoing> {
        if !self.numbered {
            return self.outgoing.poll_recv(cx).map(|incoming| match incoming {
                Some(Incoming::Frame(frame)) => Outgoing::Once(frame.into_text().into()),
                _ => Outgoing::End,
            });
        }
        if !self.outbox.is_full()
            && let Poll::Ready(incoming) = self.outgoing.poll_recv(cx)
        {
            let Some(Incoming::Frame(frame)) = incoming else { return Poll::Ready(Outgoing::End) };
            self.keep(&frame.into_text());
            return Poll::Ready(Outgoing::Kept);
        }
        self.poll_acknowledgement(cx).map(Outgoing::Once)
    }

    fn keep(&mut self, text: &str) {
        let numbers = Numbers { seq: self.outbox.last() + 1, ack: self.acknowledge() };
        let message = numbered::put(numbers, text);
        let bytes = message.len();
        self.outbox.push(message.into(), bytes);
    }

    fn acknowledge(&mut self) -> u64 {
        self.pending_ack.settle(self.delivered.settled());
        self.pending_ack.acknowledge()
    }

    fn poll_acknowledgement(&mut self, cx: &mut Context<'_>) -> Poll<Utf8Bytes> {
        while self.pending_ack.may_come_due() {
            self.pending_ack.settle(self.delivered.settled());
            if self.pending_ack.is_due() {
                let text = format!(r#"{{"jsonrpc":"2.0","method":"{ACKNOWLEDGED}"}}"#);
                let numbers = Numbers { seq: 0, ack: self.pending_ack.acknowledge() };
                return Poll::Ready(numbered::put(numbers, &text).into());
            }
            let delivered = self.delivered.clone();
            let more = self.settled_more.get_or_insert_with(|| async move { delivered.settled_more().await }.boxed());
            std::task::ready!(more.poll_unpin(cx));
            self.settled_more = None;
        }
        Poll::Pending
    }

    /// Takes a message that was read. The pipe may have no room for it: then [`Carrier::poll_room`] has to be ready
    /// before the next one is read.
    pub(crate) fn take(&mut self, text: &str) -> Taken {
        let numbers = if self.asked { numbered::peek(text) } else { None };
        let Some(Numbers { seq, ack }) = numbers else { return self.deliver(text, 0) };
        self.numbered = true;
        self.outbox.acknowledge(ack);
        if seq == 0 {
            return Taken::Done;
        }
        match self.inbox.arrive(seq) {
            Arrival::New => {
                self.pending_ack.receive(seq, text.len());
                if seq > self.known { self.deliver(text, seq) } else { Taken::Done }
            }
            Arrival::Again => Taken::Done,
            Arrival::Gap => Taken::Gap,
        }
    }

    fn deliver(&mut self, text: &str, seq: u64) -> Taken {
        self.listener.offer(text, seq)
    }

    /// Says what the line does, after everything that came before.
    pub(crate) fn send_state(&mut self, state: ConnectionState) {
        self.listener.queue_state(state);
    }

    /// True if a message waits for room in the pipe; nothing is read meanwhile.
    pub(crate) fn is_waiting(&self) -> bool {
        self.listener.waiting.is_some()
    }

    /// Ready when the pipe has taken everything; an error when the session does not listen any more.
    pub(crate) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        self.listener.poll_room(cx)
    }

    /// True if the session has ended and its last messages cannot be taken, since the peer acknowledges nothing.
    pub(crate) fn is_blocked_after_end(&self) -> bool {
        self.outgoing.is_abandoned() && self.outbox.is_full()
    }

    /// Ends when the session is gone; meanwhile it gets what waits. Cancel-safe.
    pub(crate) async fn abandoned(&mut self) {
        let Self { outgoing, listener, .. } = self;
        let incoming = listener.incoming.clone();
        let session_notice = async {
            if std::future::poll_fn(|cx| listener.poll_room(cx)).await.is_ok() {
                incoming.reader_dropped().await;
            }
        };
        tokio::select! {
            () = session_notice => {}
            () = outgoing.writers_dropped() => {}
        }
    }

    /// Says the end after everything else, and is done.
    pub(crate) async fn close(mut self, reason: CloseReason) {
        if std::future::poll_fn(|cx| self.listener.poll_room(cx)).await.is_ok() {
            self.listener.incoming.close(reason).await;
        }
    }
}

struct Listener {
    incoming: FrameSender,
    /// Message for which the pipe had no room; nothing is read while it waits.
    waiting: Option<BoxFuture<'static, Result<(), SendError>>>,
    /// State change of the connection to report next. At most one: an unreported break and its recovery cancel out.
    next_state: Option<ConnectionState>,
}

impl Listener {
    fn offer(&mut self, text: &str, seq: u64) -> Taken {
        match self.incoming.offer(text.to_owned(), seq) {
            Ok(()) => {}
            Err(Refused::Full(text)) => {
                let incoming = self.incoming.clone();
                self.waiting = Some(async move { incoming.send_numbered(text, seq).await }.boxed());
            }
            Err(Refused::Closed) => return Taken::ReceiverDropped,
        }
        Taken::Done
    }

    fn queue_state(&mut self, state: ConnectionState) {
        if self.next_state.take().is_none() {
            self.next_state = Some(state);
        }
        self.send_next();
    }

    fn send_next(&mut self) {
        if self.waiting.is_none()
            && let Some(state) = self.next_state.take()
        {
            let incoming = self.incoming.clone();
            self.waiting = Some(async move { incoming.send_state(state).await }.boxed());
        }
    }

    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        while let Some(waiting) = &mut self.waiting {
            let sent = std::task::ready!(waiting.poll_unpin(cx));
            self.waiting = None;
            sent?;
            self.send_next();
        }
        Poll::Ready(Ok(()))
    }
}
