//! One socket's life under a conversation: frames in, frames out, and whether the other end is still there.
//!
//! Reading, writing and the clock are one hand-written future, so that none of them waits for another: a session that
//! is slow stops the reading alone, a peer that does not read stops the writing alone.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{FutureExt, SinkExt, StreamExt};
use tokio::time::{Instant, Sleep};
use tokio_tungstenite::tungstenite::{
    Bytes, Message, Utf8Bytes,
    error::{CapacityError, Error},
    protocol::{CloseFrame, frame::coding::CloseCode},
};

use super::{
    outbox::{Carrier, Outgoing, Taken},
    websocket::{Socket, closed},
};
use crate::{domain::heartbeat::Heartbeat, transport::pipe::CloseReason};

/// Maximum wait for the peer's part of the closing handshake, or for messages that it sent before a write failed.
const CLOSE_WAIT: Duration = Duration::from_secs(2);

/// End of a socket.
#[derive(Debug)]
pub(crate) enum End {
    /// The session ended the conversation; whether the peer has confirmed it.
    Closed {
        /// The peer's closing frame came.
        confirmed: bool,
    },
    /// The peer ended the conversation.
    Over(CloseReason),
    /// The conversation cannot continue, and the peer does not know it yet.
    Refused(CloseReason),
    /// The socket alone ended; the cause.
    Broken(String),
}

/// Carries a conversation over one socket until it ends. After a break `resend` is the number of the first message
/// to send again. Not to be called again after it was dropped, for the same socket.
pub(crate) async fn carry(
    carrier: &mut Carrier,
    socket: &mut Socket,
    heartbeat: Heartbeat,
    frame_bytes: usize,
    resend: u64,
) -> End {
    let now = Instant::now();
    let mut line = Pump {
        carrier,
        socket,
        heartbeat,
        frame_bytes,
        next: resend,
        is_flushing: None,
        write_failed: None,
        closing: None,
        close_sent: false,
        ping_is_due: false,
        is_beating: false,
        next_ping: now + heartbeat.every,
        reading_since: now,
        timer: None,
    };
    std::future::poll_fn(|cx| line.poll(cx)).await
}

/// Says that our side ends the conversation, and waits for the peer to confirm it, for 2 s in all.
pub(crate) async fn close_gracefully(socket: &mut Socket) {
    let goodbye = async {
        if socket.send(normal_close()).await.is_ok() {
            while let Some(Ok(_)) = socket.next().await {}
        }
    };
    let _ = tokio::time::timeout(CLOSE_WAIT, goodbye).await;
}

fn normal_close() -> Message {
    Message::Close(Some(CloseFrame { code: CloseCode::Normal, reason: Utf8Bytes::from_static("") }))
}

struct Pump<'a> {
    carrier: &'a mut Carrier,
    socket: &'a mut Socket,
    heartbeat: Heartbeat,
    frame_bytes: usize,
    /// The number of the kept message that goes next.
    next: u64,
    /// Since when something is not written out.
    is_flushing: Option<Instant>,
    /// Nothing is written any more; what the peer said before is read until the time.
    write_failed: Option<(String, Instant)>,
    /// Our side ended the conversation; the peer has until the time to confirm it.
    closing: Option<Instant>,
    close_sent: bool,
    ping_is_due: bool,
    is_beating: bool,
    next_ping: Instant,
    /// Silence before this was not the peer's.
    reading_since: Instant,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Pump<'_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        loop {
            while let Poll::Ready(end) = self.read_one(cx) {
                if let Some(end) = end {
                    return Poll::Ready(end);
                }
            }
            if self.carrier.is_numbered() && !self.is_beating {
                self.is_beating = true;
                self.next_ping = Instant::now() + self.heartbeat.every;
                self.arm();
            }
            match self.write_all(cx) {
                Err(end) => return Poll::Ready(end),
                // An ending session reads on without it being listened to.
                Ok(true) => continue,
                Ok(false) => {}
            }
            match self.check_timers(cx) {
                Poll::Ready(Some(end)) => return Poll::Ready(end),
                Poll::Ready(None) => {}
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Reads one frame; `None` is: continue.
    fn read_one(&mut self, cx: &mut Context<'_>) -> Poll<Option<End>> {
        if self.closing.is_none() && self.carrier.is_waiting() {
            match std::task::ready!(self.carrier.poll_room(cx)) {
                Ok(()) => self.reading_since = Instant::now(),
                Err(_) => self.begin_close(),
            }
        }
        let read = std::task::ready!(self.socket.poll_next_unpin(cx));
        Poll::Ready(match read {
            Some(Ok(Message::Text(text))) if self.closing.is_none() => self.on_text(&text),
            Some(Ok(Message::Close(frame))) => {
                // Our part of the closing handshake, as far as it goes without waiting.
                let _ = self.socket.poll_flush_unpin(cx);
                Some(match closed(frame) {
                    _ if self.closing.is_some() => End::Closed { confirmed: self.close_sent },
                    (true, reason) => End::Over(reason),
                    (false, reason) => self.broken(lost_cause(reason)),
                })
            }
            // Pings are answered by the library; binary frames are reserved by the spec and ignored.
            Some(Ok(_)) => None,
            Some(Err(Error::Capacity(CapacityError::MessageTooLong { .. }))) => {
                Some(End::Refused(CloseReason::FrameTooLarge { limit: self.frame_bytes }))
            }
            Some(Err(cause)) => Some(self.broken(cause.to_string())),
            None => Some(self.broken("the runtime closed the connection".into())),
        })
    }

    fn on_text(&mut self, text: &Utf8Bytes) -> Option<End> {
        match self.carrier.take(text) {
            Taken::Done => {}
            Taken::Gap => return Some(End::Refused(CloseReason::Lost("the runtime left messages out".into()))),
            Taken::ReceiverDropped => self.begin_close(),
        }
        None
    }

    fn broken(&mut self, cause: String) -> End {
        if self.closing.is_some() {
            return End::Closed { confirmed: false };
        }
        End::Broken(self.write_failed.take().map_or(cause, |(first, _)| first))
    }

    fn begin_close(&mut self) {
        if self.closing.is_none() {
            self.closing = Some(Instant::now() + CLOSE_WAIT);
            self.arm();
        }
    }

    fn fail_write(&mut self, cause: &Error) {
        // A peer that closed while we wrote has said why in what it sent before.
        self.write_failed = Some((cause.to_string(), Instant::now() + CLOSE_WAIT));
        self.is_flushing = None;
        self.arm();
    }

    /// Writes until the socket takes no more or there is nothing; whether the session ended meanwhile.
    fn write_all(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        let was_closing = self.closing.is_some();
        while self.write_failed.is_none() {
            if self.is_flushing.is_some() {
                match self.socket.poll_flush_unpin(cx) {
                    Poll::Pending => break,
                    Poll::Ready(Ok(())) => self.is_flushing = None,
                    Poll::Ready(Err(cause)) => {
                        self.fail_write(&cause);
                        break;
                    }
                }
            }
            let Some(message) = self.next_message(cx) else { break };
            let written = match self.socket.poll_ready_unpin(cx) {
                Poll::Pending | Poll::Ready(Ok(())) => self.socket.start_send_unpin(message),
                Poll::Ready(Err(cause)) => Err(cause),
            };
            match written {
                Ok(()) => self.is_flushing = Some(Instant::now()),
                // It would be too large on the next socket as well.
                Err(Error::WriteBufferFull(_) | Error::Capacity(_)) => {
                    return Err(End::Refused(CloseReason::FrameTooLarge { limit: self.frame_bytes }));
                }
                Err(cause) => self.fail_write(&cause),
            }
        }
        Ok(self.closing.is_some() && !was_closing)
    }

    fn next_message(&mut self, cx: &mut Context<'_>) -> Option<Message> {
        if std::mem::take(&mut self.ping_is_due) {
            return Some(Message::Ping(Bytes::new()));
        }
        loop {
            if self.closing.is_some() {
                return (!std::mem::replace(&mut self.close_sent, true)).then(normal_close);
            }
            if let Some(kept) = self.carrier.kept(&mut self.next) {
                return Some(Message::Text(kept));
            }
            match self.carrier.poll_outgoing(cx) {
                Poll::Ready(Outgoing::Once(text)) => return Some(Message::Text(text)),
                Poll::Ready(Outgoing::Kept) => {}
                Poll::Ready(Outgoing::End) => self.begin_close(),
                Poll::Pending => return None,
            }
        }
    }

    /// `None` is: there is something to write, or to look at again.
    fn check_timers(&mut self, cx: &mut Context<'_>) -> Poll<Option<End>> {
        let Some(timer) = &mut self.timer else { return Poll::Pending };
        std::task::ready!(timer.poll_unpin(cx));
        let now = Instant::now();
        if self.closing.is_some_and(|until| until <= now) {
            return Poll::Ready(Some(End::Closed { confirmed: false }));
        }
        if self.write_failed.as_ref().is_some_and(|(_, until)| *until <= now) {
            return Poll::Ready(Some(self.broken("writing failed".into())));
        }
        if self.is_beating {
            let patience = self.heartbeat.silence.as_secs_f32();
            if self.silent_since().is_some_and(|since| since + self.heartbeat.silence <= now) {
                return Poll::Ready(Some(self.broken(format!("nothing was heard of the runtime for {patience} s"))));
            }
            if self.stuck_since().is_some_and(|since| since + self.heartbeat.silence <= now) {
                return Poll::Ready(Some(self.broken(format!("the runtime took nothing for {patience} s"))));
            }
            if self.next_ping <= now {
                self.next_ping = now + self.heartbeat.every;
                // Behind what does not go out it would say nothing.
                self.ping_is_due = self.is_flushing.is_none();
                if self.carrier.is_blocked_after_end() {
                    self.begin_close();
                }
            }
        }
        self.arm();
        Poll::Ready(None)
    }

    /// Since when the peer might have said something and did not.
    fn silent_since(&self) -> Option<Instant> {
        let listens = !self.carrier.is_waiting() || self.closing.is_some();
        listens.then(|| self.socket.get_ref().get_ref().last_read().max(self.reading_since))
    }

    /// Since when nothing goes out of what is to go.
    fn stuck_since(&self) -> Option<Instant> {
        Some(self.socket.get_ref().get_ref().last_written().max(self.is_flushing?))
    }

    fn arm(&mut self) {
        let patience = self.heartbeat.silence;
        let beats = self.is_beating.then_some(());
        let times = [
            self.closing,
            self.write_failed.as_ref().map(|(_, until)| *until),
            beats.map(|()| self.next_ping),
            beats.and_then(|()| self.silent_since()).map(|since| since + patience),
            beats.and_then(|()| self.stuck_since()).map(|since| since + patience),
        ];
        match (times.into_iter().flatten().min(), &mut self.timer) {
            (Some(at), Some(timer)) => timer.as_mut().reset(at),
            (Some(at), None) => self.timer = Some(Box::pin(tokio::time::sleep_until(at))),
            (None, _) => self.timer = None,
        }
    }
}

fn lost_cause(reason: CloseReason) -> String {
    match reason {
        CloseReason::Lost(cause) => cause,
        other => format!("{other:?}"),
    }
}
