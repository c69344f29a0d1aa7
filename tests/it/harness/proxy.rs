//! A TCP proxy that stands between supervisor and runtime, or between a client and the supervisor, and misbehaves as cables
//! do.
//!
//! Each connection has a [`Mode`] that can be switched while it is open. What the proxy itself does is as little as a
//! cable does: it never answers, never retries, and holds one piece of at most 16 KiB for each direction.

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

use super::{RUNTIME, block_on};

/// Connections at the same time; more are reset. The tests have some tens.
const MAX_CONNECTIONS: usize = 1024;
/// What one read takes at most.
const PIECE: usize = 16 * 1024;

/// A direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// From the client to the server: between supervisor and runtime, that is the runtime.
    ToServer,
    /// From the server to the client: between supervisor and runtime, that is the supervisor.
    ToClient,
}

/// What is done to a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Everything passes.
    Pass,
    /// Each piece passes after this time.
    Delay(Duration),
    /// Both sides get a reset at once.
    Reset,
    /// Both sides get an orderly end at once, wherever in a message they are.
    Cut,
    /// So many more bytes pass this way, then both sides get a reset: the last message is a part of one.
    CutAfter(Way, usize),
    /// Half-open: everything is taken and thrown away, also the end of a side; nobody is told.
    Swallow,
    /// Zero window: nothing is read any more of what goes this way, so the sender's buffers fill.
    Stall(Way),
}

/// What has gone through.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Connections that were taken.
    pub connections: u64,
    /// Bytes that reached the server.
    pub to_server: u64,
    /// Bytes that reached the client.
    pub to_client: u64,
}

/// The proxy. Dropping it ends all of its connections.
#[derive(Debug)]
pub(crate) struct Proxy {
    shared: Arc<Shared>,
    address: SocketAddr,
    /// Holds the port while nobody listens on it, so that nobody else gets it.
    _holder: TcpSocket,
    listening: Mutex<Option<tokio::task::JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    target: Mutex<SocketAddr>,
    /// The mode of connections to come.
    next: Mutex<Mode>,
    open: Mutex<Vec<watch::Sender<Mode>>>,
    closed: AtomicBool,
    connections: AtomicU64,
    to_server: AtomicU64,
    to_client: AtomicU64,
}

impl Proxy {
    /// Listens on a free loopback port for connections to `target`.
    pub(crate) fn start(target: SocketAddr) -> Self {
        let holder = bound(SocketAddr::from(([127, 0, 0, 1], 0)));
        let address = holder.local_addr().expect("an address");
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

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sends connections to come to another place: the server is started again elsewhere.
    pub(crate) fn target(&self, target: SocketAddr) {
        *self.shared.target.lock().expect("a lock") = target;
    }

    /// Switches the connections that are open now; the ones to come pass, or do what [`Self::set`] said.
    pub(crate) fn set_open(&self, mode: Mode) {
        let mut open = self.shared.open.lock().expect("a lock");
        // A connection that has ended listens to nobody.
        open.retain(|connection| connection.send(mode).is_ok());
    }

    /// Switches the connections that are open now and those to come.
    pub(crate) fn set(&self, mode: Mode) {
        *self.shared.next.lock().expect("a lock") = mode;
        self.set_open(mode);
    }

    /// Stops listening: whoever connects gets `connection refused`, as from a machine whose service is down.
    pub(crate) fn refuse(&self) {
        let listening = self.listening.lock().expect("a lock").take();
        if let Some(listening) = listening {
            listening.abort();
            // Only then is the port closed.
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

    /// What has gone through until now.
    pub(crate) fn counts(&self) -> Counts {
        Counts {
            connections: self.shared.connections.load(Ordering::Relaxed),
            to_server: self.shared.to_server.load(Ordering::Relaxed),
            to_client: self.shared.to_client.load(Ordering::Relaxed),
        }
    }

    /// How many connections are open now.
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
        // Without its sender each connection ends.
        self.shared.open.lock().expect("a lock").clear();
    }
}

impl Shared {
    fn open_now(&self) -> usize {
        let mut open = self.open.lock().expect("a lock");
        open.retain(|connection| !connection.is_closed());
        open.len()
    }

    /// Registers a connection; none where there are too many, or where the proxy has ended.
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

/// A socket on an address that others of this process may have too, as long as only one listens.
fn bound(address: SocketAddr) -> TcpSocket {
    let _context = RUNTIME.enter();
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_reuseaddr(true).expect("an option");
    socket.bind(address).expect("an address of its own");
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
    // Pieces are written as they come: a cable does not wait for more.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let end = {
        let (client_read, client_write) = client.split();
        let (server_read, server_write) = server.split();
        let there = pump(client_read, server_write, Way::ToServer, mode.clone(), &shared);
        let back = pump(server_read, client_write, Way::ToClient, mode, &shared);
        tokio::pin!(there, back);
        // One side's end leaves the other side to say what it still has to say.
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

/// Carries one direction until the connection is ended from outside (how), or until its sender has ended (none).
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
            // Nobody is told of the end of a side that is half-open.
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

/// Writes a piece, however long its receiver takes, unless the connection is ended meanwhile.
async fn write(to: &mut WriteHalf<'_>, mut piece: &[u8], mode: &mut watch::Receiver<Mode>) -> Option<End> {
    // The mode is looked at again by the caller: this has to see a change that it waits for, and no other.
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
        eventually("they are counted", || {
            pair.proxy.counts() == Counts { connections: 1, to_server: 5, to_client: 5 }
        });
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(server.read(&mut [0; 8]).unwrap(), 0, "an end passes");
        passes(&mut server, &mut client);
        drop(server);
        eventually("a connection that has ended is forgotten", || pair.proxy.open() == 0);
    }

    #[test]
    fn a_reset_is_a_reset_and_a_cut_an_orderly_end() {
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
    fn a_cut_in_the_middle_passes_so_many_bytes_first() {
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
    fn what_is_swallowed_is_lost_and_nobody_is_told() {
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
    fn a_side_that_is_not_read_fills_its_buffers_and_goes_on_later() {
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
    fn a_delay_delays_and_what_is_refused_is_refused_until_it_is_admitted() {
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
