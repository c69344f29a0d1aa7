//! A TCP forwarder that can refuse connections or hold their bytes back.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

/// Forwards connections to a server while it is open.
#[derive(Debug)]
pub(crate) struct Gate {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    target: SocketAddr,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The number of times it was opened; a listener thread of an earlier opening ends.
    opening: u64,
    is_open: bool,
    is_silent: bool,
    connections: Vec<TcpStream>,
}

impl Gate {
    /// Opens a gate to `target`.
    pub(crate) fn to(target: SocketAddr) -> Self {
        let state = Mutex::default();
        let shared = Arc::new(Shared { target, state, changed: Condvar::new() });
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let address = listener.local_addr().expect("an address");
        shared.open(listener);
        Self { address, shared }
    }

    /// The address that it listens on.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes all connections and refuses new ones, like a server that is down.
    pub(crate) fn shut(&self) {
        {
            let mut state = self.shared.state();
            state.is_open = false;
            for connection in state.connections.drain(..) {
                let _ = connection.shutdown(Shutdown::Both);
            }
        }
        self.shared.changed.notify_all();
        // The connection attempt wakes the accepting thread, which then releases the port.
        super::eventually("the gate is shut", || TcpStream::connect(self.address).is_err());
    }

    /// Holds all bytes back without closing a connection, like a stopped server.
    pub(crate) fn silence(&self) {
        self.shared.state().is_silent = true;
    }

    /// Forwards again, including the bytes that were held back.
    pub(crate) fn open(&self) {
        let was_open = {
            let mut state = self.shared.state();
            state.is_silent = false;
            state.is_open
        };
        self.shared.changed.notify_all();
        if !was_open {
            let listener =
                super::wait_for(super::DEADLINE, "the port is free again", || TcpListener::bind(self.address).ok());
            self.shared.open(listener);
        }
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        (state.is_open, state.is_silent) = (false, false);
        for connection in state.connections.drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
        drop(state);
        self.shared.changed.notify_all();
        // Wakes the accepting thread.
        let _ = TcpStream::connect(self.address);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(self: &Arc<Self>, listener: TcpListener) {
        let opening = {
            let mut state = self.state();
            state.is_open = true;
            state.opening += 1;
            state.opening
        };
        let shared = self.clone();
        thread::spawn(move || {
            while let Ok((client, _)) = listener.accept() {
                let mut state = shared.state();
                if !state.is_open || state.opening != opening {
                    return;
                }
                let Ok(server) = TcpStream::connect(shared.target) else { continue };
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let (from, to) = (from.try_clone().expect("a handle"), to.try_clone().expect("a handle"));
                    let shared = shared.clone();
                    thread::spawn(move || shared.forward(from, to));
                }
                state.connections.extend([client, server]);
            }
        });
    }

    fn forward(&self, mut from: TcpStream, mut to: TcpStream) {
        let mut buffer = [0u8; 16 * 1024];
        while let Ok(read @ 1..) = from.read(&mut buffer) {
            let state = self.state();
            drop(self.changed.wait_while(state, |state| state.is_silent).unwrap_or_else(PoisonError::into_inner));
            if to.write_all(&buffer[..read]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
        let _ = from.shutdown(Shutdown::Both);
    }
}

#[test]
fn gate_forwards_holds_back_and_refuses() {
    let server = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let gate = Gate::to(server.local_addr().expect("an address"));
    let mut client = TcpStream::connect(gate.address()).expect("the gate is open");
    let (mut seen, _) = server.accept().expect("the connection is forwarded");
    let mut byte = [0u8; 1];
    client.write_all(b"a").expect("the byte is sent");
    seen.read_exact(&mut byte).expect("the byte is forwarded");
    gate.silence();
    client.write_all(b"b").expect("the byte is sent");
    seen.set_read_timeout(Some(std::time::Duration::from_millis(50))).expect("a timeout");
    assert!(seen.read_exact(&mut byte).is_err(), "the byte is held back");
    gate.open();
    seen.set_read_timeout(Some(super::DEADLINE)).expect("a timeout");
    seen.read_exact(&mut byte).expect("the held byte is forwarded");
    gate.shut();
    assert_eq!(client.read(&mut byte).unwrap_or(0), 0, "the connection is closed");
    gate.open();
    TcpStream::connect(gate.address()).expect("the gate is open again");
}
