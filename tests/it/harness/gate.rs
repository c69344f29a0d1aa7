//! A gate in front of a TCP server: open, closed for good, or silent.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

/// Passes connections on to a server, as long as it is open.
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
    /// Which opening this is; connections of earlier ones are cut.
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

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Cuts every connection and refuses new ones, as a server does that is gone.
    pub(crate) fn shut(&self) {
        {
            let mut state = self.shared.state();
            state.is_open = false;
            for connection in state.connections.drain(..) {
                let _ = connection.shutdown(Shutdown::Both);
            }
        }
        self.shared.changed.notify_all();
        // Wakes the thread that accepts, which then lets go of the port.
        super::eventually("the gate is shut", || TcpStream::connect(self.address).is_err());
    }

    /// Passes nothing on and cuts nothing, as a server does that is stopped.
    pub(crate) fn silence(&self) {
        self.shared.state().is_silent = true;
    }

    /// Passes everything on again, also what was held back.
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
                    thread::spawn(move || shared.pass_on(from, to));
                }
                state.connections.extend([client, server]);
            }
        });
    }

    fn pass_on(&self, mut from: TcpStream, mut to: TcpStream) {
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
fn a_gate_passes_on_holds_back_and_refuses() {
    let server = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let gate = Gate::to(server.local_addr().expect("an address"));
    let mut client = TcpStream::connect(gate.address()).expect("it is open");
    let (mut seen, _) = server.accept().expect("it comes through");
    let mut byte = [0u8; 1];
    client.write_all(b"a").expect("it is taken");
    seen.read_exact(&mut byte).expect("it comes through");
    gate.silence();
    client.write_all(b"b").expect("it is taken");
    seen.set_read_timeout(Some(std::time::Duration::from_millis(50))).expect("a timeout");
    assert!(seen.read_exact(&mut byte).is_err(), "nothing comes through");
    gate.open();
    seen.set_read_timeout(Some(super::DEADLINE)).expect("a timeout");
    seen.read_exact(&mut byte).expect("what was held back");
    gate.shut();
    assert_eq!(client.read(&mut byte).unwrap_or(0), 0, "it is cut");
    gate.open();
    TcpStream::connect(gate.address()).expect("it is open again");
}
