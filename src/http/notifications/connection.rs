//! The connection under a WebSocket, for breaking it from outside.
//!
//! A socket's actor is run only while its client reads; who stops reading can be got rid of only by whoever holds the
//! connection.

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

/// A connection of the API, noted when it is made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ConnectionFd(RawFd);

impl ConnectionFd {
    /// Notes it.
    pub(crate) fn of(stream: &TcpStream) -> Self {
        Self(stream.as_raw_fd())
    }
}

/// The connection, as long as its socket lives.
#[derive(Debug, Clone)]
pub(crate) struct ClientConnection(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    descriptor: Option<RawFd>,
    /// Why it was broken; the first reason counts.
    broken_for: Option<Ending>,
}

/// Held by the socket's actor, which goes before its connection does: from then on the descriptor may be another's.
#[derive(Debug)]
pub(crate) struct Plug(ClientConnection);

impl ClientConnection {
    /// The connection of a request. What is sent over it has to be taken within `timeout`.
    pub(crate) fn plug(request: &HttpRequest, timeout: Duration) -> (Self, Plug) {
        let descriptor = request.conn_data::<ConnectionFd>().map(|wire| wire.0);
        if let Some(descriptor) = descriptor {
            websocket::set_user_timeout(descriptor, timeout);
        }
        let client_connection = Self(Arc::new(Mutex::new(State { descriptor, broken_for: None })));
        (client_connection.clone(), Plug(client_connection))
    }

    /// Breaks the connection, if the socket still lives.
    pub(crate) fn cut(self) -> Cut {
        Arc::new(move |why| {
            // Held through the call: the actor, and so the connection, cannot go meanwhile.
            let mut state = self.0.lock();
            state.broken_for.get_or_insert(why);
            if let Some(descriptor) = state.descriptor {
                websocket::break_off(descriptor);
            }
        })
    }
}

impl Plug {
    /// Why the subscriber was let go, whose connection ended without a word of it: the hub broke it, or the kernel gave it
    /// up. Nothing where the service stops, or the client went by itself.
    pub(crate) fn let_go(&self, pulse: &SubscriberPulse, now: Duration) -> Option<Eviction> {
        match self.0.0.lock().broken_for {
            Some(Ending::Evicted(why)) => Some(why),
            Some(Ending::Stopping | Ending::Broken) => None,
            None => pulse.is_stalled(now).then_some(Eviction::Stalled),
        }
    }
}

impl Drop for Plug {
    fn drop(&mut self) {
        self.0.0.lock().descriptor = None;
    }
}
