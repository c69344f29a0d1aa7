//! A cable between two processes that can be cut and that can swallow everything.

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

use crate::bench::conversation::BenchError;

/// What is done to connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Everything passes on connections of this generation and later; older ones are reset.
    Passing(u64),
    /// Nothing passes any more on connections that are open, and nobody is told; new ones wait.
    Swallowing,
}

/// The cable. Dropped, it takes no more connections and cuts those that are open.
pub(crate) struct Relay {
    address: SocketAddr,
    state: watch::Sender<State>,
    generation: AtomicU64,
    accepting: JoinHandle<()>,
}

impl Relay {
    /// Lays a cable from a free loopback port to `to`.
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

    /// Where to connect.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Resets every connection that is open; new ones pass.
    pub(crate) fn cut(&self) {
        let next = self.generation.fetch_add(1, Ordering::Relaxed) + 1;
        self.state.send_replace(State::Passing(next));
    }

    /// Lets nothing pass any more and tells nobody, as a cable does that is pulled between two switches.
    pub(crate) fn swallow(&self) {
        self.state.send_replace(State::Swallowing);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Carries one connection until either end closes it or it is cut.
async fn carry(near: TcpStream, to: SocketAddr, mut state: watch::Receiver<State>) {
    let Ok(born) = state.wait_for(|state| matches!(state, State::Passing(_))).await.map(|state| *state) else {
        return;
    };
    let Ok(far) = TcpStream::connect(to).await else { return };
    // A delay of ours would be measured as one of theirs.
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    let (near_in, near_out) = near.into_split();
    let (far_in, far_out) = far.into_split();
    let cut = state.clone();
    tokio::select! {
        () = pass(near_in, far_out, state.clone()) => {}
        () = pass(far_in, near_out, state) => {}
        () = was_cut(cut, born) => {}
    }
}

/// Ends when the connection is to be cut: a later generation passes.
async fn was_cut(mut state: watch::Receiver<State>, born: State) {
    // An error means that the relay is gone, which cuts as well.
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
