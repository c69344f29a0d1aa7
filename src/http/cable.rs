//! The connection under a WebSocket, for breaking it from outside.
//!
//! A socket's actor is run only while its client reads; who stops reading can be got rid of only by whoever holds the
//! connection.

use std::{
    os::fd::{AsRawFd, RawFd},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use actix_web::{HttpRequest, rt::net::TcpStream};

use crate::{actors::toast_pipe::Cut, transport::tcp};

/// A connection of the API, noted when it is made.
#[derive(Debug, Clone, Copy)]
pub struct Wire(RawFd);

impl Wire {
    /// Notes it.
    pub fn of(stream: &TcpStream) -> Self {
        Self(stream.as_raw_fd())
    }
}

/// The connection, as long as its socket lives.
#[derive(Debug, Clone)]
pub struct Cable(Arc<Mutex<Option<RawFd>>>);

/// Held by the socket's actor, which goes before its connection does: from then on the descriptor may be another's.
#[derive(Debug)]
pub struct Plug(Cable);

impl Cable {
    /// The connection of a request. What is sent over it has to be taken within `timeout`.
    pub fn plug(request: &HttpRequest, timeout: Duration) -> (Self, Plug) {
        let descriptor = request.conn_data::<Wire>().map(|wire| wire.0);
        if let Some(descriptor) = descriptor {
            tcp::set_user_timeout(descriptor, timeout);
        }
        let cable = Self(Arc::new(Mutex::new(descriptor)));
        (cable.clone(), Plug(cable))
    }

    /// Breaks the connection, if the socket still lives.
    pub fn cut(self) -> Cut {
        Arc::new(move || {
            // Held through the call: the actor, and so the connection, cannot go meanwhile.
            let descriptor = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(descriptor) = *descriptor {
                tcp::break_off(descriptor);
            }
        })
    }
}

impl Drop for Plug {
    fn drop(&mut self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
