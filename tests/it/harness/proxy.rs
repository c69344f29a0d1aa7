//! A TCP proxy that injects network faults between supervisor and runtime, or between a client and the supervisor.
//!
//! Each connection has a [`Mode`] that can change while it is open. The proxy adds no behaviour of its own: it never
//! replies or retries, and buffers at most 16 KiB per direction.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpSocket, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::watch,
};

use super::tokens;

use super::{RUNTIME, block_on};

/// Limit of concurrent connections; further ones are reset. Tests open a few tens.
const MAX_CONNECTIONS: usize = 1024;
/// Maximum bytes of one read.
const PIECE: usize = 16 * 1024;

/// A direction of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// From the client to the server, for instance from supervisor to runtime.
    ToServer,
    /// From the server to the client, for instance from runtime to supervisor.
    ToClient,
}

/// The treatment of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Forwards everything.
    Pass,
    /// Forwards each piece after this delay.
    Delay(Duration),
    /// Resets both sides immediately.
    Reset,
    /// Closes both sides in order immediately, even in the middle of a message.
    Cut,
    /// Forwards this many more bytes in this direction, then resets both sides, which truncates the last message.
    CutAfter(Way, usize),
    /// Half-open: discards all bytes, and the end of either side, without notice to the other.
    Swallow,
    /// Zero window: stops reading in this direction, so that the sender's buffers fill.
    Stall(Way),
}

/// Totals since the start of the proxy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Accepted connections.
    pub connections: u64,
    /// Bytes forwarded to the server.
    pub to_server: u64,
    /// Bytes forwarded to the client.
    pub to_client: u64,
}

/// A running proxy. Dropping it ends all of its connections.
#[derive(Debug)]
pub(crate) struct Proxy {
    shared: Arc<Shared>,
    address: SocketAddr,
    /// Reserves the port while the proxy does not listen.
    _holder: TcpSocket,
    listening: Mutex<Option<tokio::task::JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    target: Mutex<SocketAddr>,
    /// The mode of future connections.
    next: Mutex<Mode>,
    open: Mutex<Vec<watch::Sender<Mode>>>,
    closed: AtomicBool,
    connections: AtomicU64,
    to_server: AtomicU64,
    to_client: AtomicU64,
}

impl Proxy {
    /// Listens on a free loopback port and forwards to `target`.
    pub(crate) fn start(target: SocketAddr) -> Self {
        let holder = bound(SocketAddr::from(([127, 0, 0, 1], 0)));
        let address = holder.local_addr().expect("an address");
        tokens::forward(address, target);
        let proxy = Self {
            shared: Arc::new(Shared {
                target: Mutex::new(target),
                next: Mutex::new(Mode::Pass),
                open: Mutex::default(),
                closed: AtomicBool::new(false),
                connections: AtomicU64::new(0),
                to_server: AtomicU64::new(0),
                to_client: AtomicU64::new(0),
            }),
            address,
            _holder: holder,
            listening: Mutex::new(None),
        };
        proxy.admit();
        proxy
    }

    /// The address that it listens on.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes the target of future connections, after a restart of the server.
    pub(crate) fn target(&self, target: SocketAddr) {
        tokens::forward(self.address, target);
        *self.shared.target.lock().expect("a lock") = target;
    }

    /// Changes the mode of open connections; future ones keep the mode of the last [`Self::set`].
    pub(crate) fn set_open(&self, mode: Mode) {
        let mut open = self.shared.open.lock().expect("a lock");
        // Sending fails for a connection that has ended.
        open.retain(|connection| connection.send(mode).is_ok());
    }

    /// Changes the mode of open and future connections.
    pub(crate) fn set(&self, mode: Mode) {
        *self.shared.next.lock().expect("a lock") = mode;
        self.set_open(mode);
    }

    /// Stops listening: new connections are refused, as if the service were down.
    pub(crate) fn refuse(&self) {
        let listening = self.listening.lock().expect("a lock").take();
        if let Some(listening) = listening {
            listening.abort();
            // The port is closed only when the task has ended.
            let _ = block_on(listening);
        }
    }

    /// Listens again.
    pub(crate) fn admit(&self) {
        let mut listening = self.listening.lock().expect("a lock");
        if listening.is_none() {
            let socket = bound(self.address);
            let listener = {
                let _context = RUNTIME.enter();
                socket.listen(64).expect("the proxy listens")
            };
            *listening = Some(RUNTIME.spawn(listen(listener, self.shared.clone())));
        }
    }

    /// The totals so far.
    pub(crate) fn counts(&self) -> Counts {
        Counts {
            connections: self.shared.connections.load(Ordering::Relaxed),
            to_server: self.shared.to_server.load(Ordering::Relaxed),
            to_client: self.shared.to_client.load(Ordering::Relaxed),
        }
    }

    /// The number of open connections.
    pub(crate) fn open(&self) -> usize {
        self.shared.open_now()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(listening) = self.listening.lock().expect("a lock").take() {
            listening.abort();
        }
        self.shared.closed.store(true, Ordering::Relaxed);
        // Dropping its sender ends a connection.
        self.shared.open.lock().expect("a lock").clear();
    }
}

impl Shared {
    fn open_now(&self) -> usize {
        let mut open = self.open.lock().expect("a lock");
        open.retain(|connection| !connection.is_closed());
        open.len()
    }

    /// Registers a connection; `None` at the limit or after the end of the proxy.
    fn admit(&self) -> Option<watch::Receiver<Mode>> {
        if self.open_now() >= MAX_CONNECTIONS || self.closed.load(Ordering::Relaxed) {
            return None;
        }
        self.connections.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = watch::channel(*self.next.lock().expect("a lock"));
        self.open.lock().expect("a lock").push(sender);
        Some(receiver)
    }

    fn passed(&self, way: Way) -> &AtomicU64 {
        match way {
            Way::ToServer => &self.to_server,
            Way::ToClient => &self.to_client,
        }
    }
}

/// A socket bound to an address that several sockets of this process may share, as long as only one listens.
fn bound(address: SocketAddr) -> TcpSocket {
    let _context = RUNTIME.enter();
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_reuseaddr(true).expect("an option");
    socket.bind(address).expect("the address is free");
    socket
}

async fn listen(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((client, _)) = listener.accept().await {
        tokio::spawn(connection(client, shared.clone()));
    }
}

/// How a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Orderly,
    Reset,
}

async fn connection(mut client: TcpStream, shared: Arc<Shared>) {
    let Some(mode) = shared.admit() else { return reset(&client) };
    let target = *shared.target.lock().expect("a lock");
    let Ok(mut server) = TcpStream::connect(target).await else { return reset(&client) };
    // Nagle's algorithm would delay small pieces.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let end = {
        let (client_read, client_write) = client.split();
        let (server_read, server_write) = server.split();
        let there = pump(client_read, server_write, Way::ToServer, mode.clone(), &shared);
        let back = pump(server_read, client_write, Way::ToClient, mode, &shared);
        tokio::pin!(there, back);
        // When one direction ends, the other one continues until its own end.
        tokio::select! {
            Some(end) = &mut there => end,
            Some(end) = &mut back => end,
            else => End::Orderly,
        }
    };
    if end == End::Reset {
        reset(&client);
        reset(&server);
    }
}

fn reset(stream: &TcpStream) {
    let _ = stream.set_zero_linger();
}

/// Forwards one direction. Returns the kind of end if the whole connection has to end, `None` if only this direction
/// ended.
async fn pump(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    way: Way,
    mut mode: watch::Receiver<Mode>,
    shared: &Shared,
) -> Option<End> {
    let mut piece = vec![0; PIECE];
    let mut left = None;
    loop {
        let now = *mode.borrow_and_update();
        match now {
            Mode::Reset => return Some(End::Reset),
            Mode::Cut => return Some(End::Orderly),
            Mode::CutAfter(which, bytes) if which == way => left = Some(left.unwrap_or(bytes)),
            _ => left = None,
        }
        if left == Some(0) {
            return Some(End::Reset);
        }
        let most = left.map_or(PIECE, |left| left.min(PIECE));
        let read = tokio::select! {
            biased;
            changed = mode.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return Some(End::Orderly),
            },
            read = from.read(&mut piece[..most]), if now != Mode::Stall(way) => read,
        };
        let now = *mode.borrow();
        let count = match read {
            Ok(count @ 1..) => count,
            // A half-open connection does not propagate the end of a side.
            Ok(0) | Err(_) if now == Mode::Swallow => match mode.changed().await {
                Ok(()) => continue,
                Err(_) => return Some(End::Orderly),
            },
            Ok(_) => {
                let _ = to.shutdown().await;
                return None;
            }
            Err(_) => return Some(End::Reset),
        };
        match now {
            Mode::Swallow => continue,
            Mode::Delay(time) => tokio::time::sleep(time).await,
            _ => {}
        }
        if let Some(end) = write(&mut to, &piece[..count], &mut mode).await {
            return Some(end);
        }
        shared.passed(way).fetch_add(count as u64, Ordering::Relaxed);
        left = left.map(|left| left - count);
    }
}

/// Writes a piece without a time limit; a change of mode to an end or to [`Mode::Swallow`] interrupts it.
async fn write(to: &mut WriteHalf<'_>, mut piece: &[u8], mode: &mut watch::Receiver<Mode>) -> Option<End> {
    // A clone, so that the caller's receiver still reports a change that is observed here.
    let mut watched = mode.clone();
    while !piece.is_empty() {
        tokio::select! {
            biased;
            changed = watched.changed() => match (changed, *watched.borrow_and_update()) {
                (Err(_), _) | (_, Mode::Cut) => return Some(End::Orderly),
                (_, Mode::Reset) => return Some(End::Reset),
                (_, Mode::Swallow) => return None,
                _ => {}
            },
            written = to.write(piece) => match written {
                Ok(count @ 1..) => piece = &piece[count..],
                _ => return Some(End::Reset),
            },
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::{
        io::{ErrorKind, Read, Write},
        net::{Shutdown, TcpListener as Listener, TcpStream as Stream},
    };

    use super::*;
    use crate::harness::eventually;

    struct Pair {
        proxy: Proxy,
        server: Listener,
    }

    impl Pair {
        fn new() -> Self {
            let server = Listener::bind(("127.0.0.1", 0)).unwrap();
            Self { proxy: Proxy::start(server.local_addr().unwrap()), server }
        }

        fn connect(&self) -> (Stream, Stream) {
            let client = Stream::connect(self.proxy.address()).unwrap();
            let (server, _) = self.server.accept().unwrap();
            for stream in [&client, &server] {
                stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
            }
            (client, server)
        }
    }

    fn passes(from: &mut Stream, to: &mut Stream) {
        from.write_all(b"hello").unwrap();
        let mut read = [0; 5];
        to.read_exact(&mut read).unwrap();
        assert_eq!(&read, b"hello");
    }

    fn read_error(stream: &mut Stream) -> Option<ErrorKind> {
        stream.read(&mut [0; 64]).err().map(|error| error.kind())
    }

    #[test]
    fn bytes_pass_both_ways_and_are_counted() {
        let pair = Pair::new();
        let (mut client, mut server) = pair.connect();
        passes(&mut client, &mut server);
        passes(&mut server, &mut client);
        eventually("the bytes are counted", || {
            pair.proxy.counts() == Counts { connections: 1, to_server: 5, to_client: 5 }
        });
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(server.read(&mut [0; 8]).unwrap(), 0, "the end of a side is forwarded");
        passes(&mut server, &mut client);
        drop(server);
        eventually("the ended connection is removed", || pair.proxy.open() == 0);
    }

    #[test]
    fn reset_resets_both_sides_and_cut_ends_them_in_order() {
        let pair = Pair::new();
        for (mode, wanted) in [(Mode::Reset, Some(ErrorKind::ConnectionReset)), (Mode::Cut, None)] {
            let (mut client, mut server) = pair.connect();
            passes(&mut client, &mut server);
            pair.proxy.set_open(mode);
            assert_eq!(read_error(&mut client), wanted);
            assert_eq!(read_error(&mut server), wanted);
        }
    }

    #[test]
    fn cut_after_passes_the_given_number_of_bytes_first() {
        let pair = Pair::new();
        let (mut client, mut server) = pair.connect();
        passes(&mut client, &mut server);
        pair.proxy.set_open(Mode::CutAfter(Way::ToClient, 3));
        passes(&mut client, &mut server);
        server.write_all(b"hello").unwrap();
        let mut read = [0; 3];
        client.read_exact(&mut read).unwrap();
        assert_eq!(read_error(&mut client), Some(ErrorKind::ConnectionReset));
    }

    #[test]
    fn swallowed_bytes_are_lost_without_notice_to_either_side() {
        let pair = Pair::new();
        let (mut client, mut server) = pair.connect();
        pair.proxy.set_open(Mode::Swallow);
        client.write_all(b"hello").unwrap();
        client.shutdown(Shutdown::Both).unwrap();
        assert_eq!(read_error(&mut server), Some(ErrorKind::WouldBlock));
        let (mut client, mut server) = pair.connect();
        passes(&mut client, &mut server);
    }

    #[test]
    fn stalled_side_fills_its_buffers_and_resumes_later() {
        let pair = Pair::new();
        let (mut client, mut server) = pair.connect();
        passes(&mut client, &mut server);
        pair.proxy.set_open(Mode::Stall(Way::ToClient));
        passes(&mut client, &mut server);
        server.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
        let full = std::iter::repeat_with(|| server.write(&[7; PIECE])).find_map(Result::err);
        assert_eq!(full.map(|error| error.kind()), Some(ErrorKind::WouldBlock));
        pair.proxy.set_open(Mode::Pass);
        let mut read = [0; 64];
        client.read_exact(&mut read).unwrap();
        assert_eq!(read, [7; 64]);
    }

    #[test]
    fn delay_slows_bytes_and_refuse_rejects_connections_until_admit() {
        let pair = Pair::new();
        pair.proxy.set(Mode::Delay(Duration::from_millis(100)));
        let (mut client, mut server) = pair.connect();
        let begin = std::time::Instant::now();
        passes(&mut client, &mut server);
        assert!(begin.elapsed() >= Duration::from_millis(100));
        pair.proxy.refuse();
        let refused = Stream::connect(pair.proxy.address()).map(drop).map_err(|error| error.kind());
        assert_eq!(refused, Err(ErrorKind::ConnectionRefused));
        passes(&mut client, &mut server);
        pair.proxy.admit();
        let (mut client, mut server) = pair.connect();
        passes(&mut client, &mut server);
    }
}
