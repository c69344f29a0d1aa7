//! A TCP relay between two processes that can reset its connections or silently drop their bytes.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

use crate::support::conversation::BenchError;

/// Treatment of connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Connections of this generation and later ones pass everything; older connections are reset.
    Passing(u64),
    /// Open connections pass nothing and stay open; new connections wait.
    Silent,
}

/// The relay. Dropping it closes all connections and accepts no new ones.
pub(crate) struct Relay {
    address: SocketAddr,
    state: watch::Sender<State>,
    generation: AtomicU64,
    accepting: JoinHandle<()>,
}

impl Relay {
    /// Starts a relay from a free loopback port to `to`.
    pub(crate) async fn to(to: SocketAddr) -> Result<Self, BenchError> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.map_err(BenchError::io("the relay"))?;
        let address = listener.local_addr().map_err(BenchError::io("the relay"))?;
        let (state, watched) = watch::channel(State::Passing(0));
        let accepting = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                tokio::spawn(carry(near, to, watched.clone()));
            }
        });
        Ok(Self { address, state, generation: AtomicU64::new(0), accepting })
    }

    /// The address to connect to.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Resets every open connection; new connections pass.
    pub(crate) fn cut(&self) {
        let next = self.generation.fetch_add(1, Ordering::Relaxed) + 1;
        self.state.send_replace(State::Passing(next));
    }

    /// Passes nothing from now on and keeps connections open, like a network cable that is unplugged between two switches.
    pub(crate) fn silence(&self) {
        self.state.send_replace(State::Silent);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Carries one connection until either end closes it or it is reset.
async fn carry(near: TcpStream, to: SocketAddr, mut state: watch::Receiver<State>) {
    let Ok(born) = state.wait_for(|state| matches!(state, State::Passing(_))).await.map(|state| *state) else {
        return;
    };
    let Ok(far) = TcpStream::connect(to).await else { return };
    // A delay of the relay would be measured as one of the processes.
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    let (near_in, near_out) = near.into_split();
    let (far_in, far_out) = far.into_split();
    let reset = state.clone();
    tokio::select! {
        () = pass(near_in, far_out, state.clone()) => {}
        () = pass(far_in, near_out, state) => {}
        () = was_reset(reset, born) => {}
    }
}

/// Completes when the connection must be reset: a later generation passes.
async fn was_reset(mut state: watch::Receiver<State>, born: State) {
    // An error means that the relay was dropped, which closes connections too.
    let _ = state.wait_for(|state| matches!(state, State::Passing(_)) && *state != born).await;
}

async fn pass(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, mut state: watch::Receiver<State>) {
    let mut bytes = vec![0; 64 * 1024];
    loop {
        let Ok(read @ 1..) = from.read(&mut bytes).await else { return };
        if state.wait_for(|state| matches!(state, State::Passing(_))).await.is_err() {
            return;
        }
        if to.write_all(&bytes[..read]).await.is_err() {
            return;
        }
    }
}
