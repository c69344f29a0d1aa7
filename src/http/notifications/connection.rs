//! The connection under a WebSocket, for breaking it from outside.
//!
//! The actor of a socket runs only while its client reads. A client that stops reading can be disconnected only through
//! the file descriptor of its connection.

use std::{
    os::fd::{AsRawFd, RawFd},
    sync::Arc,
    time::Duration,
};

use actix_web::{HttpRequest, rt::net::TcpStream};
use parking_lot::Mutex;

use crate::{
    actors::handles::subscriber::{Cut, Ending},
    domain::{heartbeat::SubscriberPulse, notify::subscription::Eviction},
    transport::socket::websocket,
};

/// The file descriptor of a connection, stored when it is accepted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ConnectionFd(RawFd);

impl ConnectionFd {
    pub(crate) fn of(stream: &TcpStream) -> Self {
        Self(stream.as_raw_fd())
    }
}

/// The connection of a socket, while the socket lives.
#[derive(Debug, Clone)]
pub(crate) struct ClientConnection(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    descriptor: Option<RawFd>,
    /// Why the connection was broken; the first reason counts.
    broken_for: Option<Ending>,
}

/// Held by the actor of the socket, which is dropped before its connection: afterwards the descriptor may be reused.
#[derive(Debug)]
pub(crate) struct ConnectionGuard(ClientConnection);

impl ClientConnection {
    /// Takes the connection of a request and sets `timeout` for unacknowledged data.
    pub(crate) fn take(request: &HttpRequest, timeout: Duration) -> (Self, ConnectionGuard) {
        let descriptor = request.conn_data::<ConnectionFd>().map(|wire| wire.0);
        if let Some(descriptor) = descriptor {
            websocket::set_user_timeout(descriptor, timeout);
        }
        let client_connection = Self(Arc::new(Mutex::new(State { descriptor, broken_for: None })));
        (client_connection.clone(), ConnectionGuard(client_connection))
    }

    /// Breaks the connection, if the socket still lives.
    pub(crate) fn cut(self) -> Cut {
        Arc::new(move |why| {
            // The lock is held through the call, so the actor, and with it the connection, cannot be dropped meanwhile.
            let mut state = self.0.lock();
            state.broken_for.get_or_insert(why);
            if let Some(descriptor) = state.descriptor {
                websocket::break_off(descriptor);
            }
        })
    }
}

impl ConnectionGuard {
    /// The eviction behind a connection that ended without a closing frame: the hub broke it, or the kernel timed it out.
    /// `None` if the service is stopping or the client disconnected.
    pub(crate) fn eviction(&self, pulse: &SubscriberPulse, now: Duration) -> Option<Eviction> {
        match self.0.0.lock().broken_for {
            Some(Ending::Evicted(why)) => Some(why),
            Some(Ending::Stopping | Ending::Broken) => None,
            None => pulse.is_stalled(now).then_some(Eviction::Stalled),
        }
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.0.0.lock().descriptor = None;
    }
}
