//! A webhook receiver on loopback that replies from a script, one reply per post, and with 200 after its end.

use std::{
    collections::VecDeque,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use reqwest::header::{HeaderMap, HeaderName};

use super::{Value, wait_for};

/// The reply to a post.
#[derive(Debug, Clone)]
pub(crate) enum Reply {
    /// A status without a body.
    Status(u16),
    /// A status with one more header line.
    With(u16, String),
    /// The connection is closed without a response after the post was read.
    Lost,
    /// 200, but only after the sender has disconnected.
    Late,
    /// 200 after a call of [`Receiver::release`].
    Held,
    /// 200 with a body of one byte every 20 ms that does not end.
    Drip,
    /// 200 with a fast body that does not end.
    Huge,
}

/// A received post.
#[derive(Debug, Clone)]
pub(crate) struct Post {
    /// The time at which it had been read.
    pub at: Instant,
    /// `POST /path HTTP/1.1`.
    pub line: String,
    /// Its header lines.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Vec<u8>,
}

impl Post {
    /// The value of a header; fails the test if it is absent.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no header {name}")).to_str().expect("text")
    }

    /// The body as JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }
}

/// A running receiver. Dropping it stops it.
#[derive(Debug)]
pub(crate) struct Receiver {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    script: VecDeque<Reply>,
    posts: Vec<Post>,
    is_released: bool,
    is_over: bool,
    /// Bytes sent of [`Reply::Huge`] bodies.
    taken: usize,
}

impl Receiver {
    /// Starts a receiver on a free port.
    pub(crate) fn start(script: impl IntoIterator<Item = Reply>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared::default());
        shared.state().script.extend(script);
        let server_shared = shared.clone();
        thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                if server_shared.state().is_over {
                    return;
                }
                let server_shared = server_shared.clone();
                thread::spawn(move || server_shared.serve(socket));
            }
        });
        Self { address, shared }
    }

    /// Its base URL.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The posts received so far.
    pub(crate) fn posts(&self) -> Vec<Post> {
        self.shared.state().posts.clone()
    }

    /// Waits up to 60 s for this many posts, and returns all of them.
    pub(crate) fn gets(&self, posts: usize) -> Vec<Post> {
        wait_for(Duration::from_secs(60), &format!("{posts} posts"), || {
            Some(self.posts()).filter(|got| got.len() >= posts)
        })
    }

    /// Sends the held replies.
    pub(crate) fn release(&self) {
        self.shared.state().is_released = true;
        self.shared.changed.notify_all();
    }

    /// Bytes sent of [`Reply::Huge`] bodies, including those in socket buffers.
    pub(crate) fn taken(&self) -> usize {
        self.shared.state().taken
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.shared.state().is_over = true;
        self.shared.changed.notify_all();
        // Wakes the accepting thread.
        let _ = TcpStream::connect(self.address);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, mut socket: TcpStream) {
        let Some(post) = read(&mut socket) else { return };
        let reply = {
            let mut state = self.state();
            state.posts.push(post);
            state.script.pop_front().unwrap_or(Reply::Status(200))
        };
        let mut send = |text: &str| socket.write_all(text.as_bytes()).is_ok();
        match reply {
            Reply::Status(status) => drop(send(&head(status, ""))),
            Reply::With(status, header) => drop(send(&head(status, &format!("{header}\r\n")))),
            Reply::Lost => {}
            Reply::Late => {
                let _ = socket.read(&mut [0]);
                let _ = socket.write_all(head(200, "").as_bytes());
            }
            Reply::Held => {
                let state = self.state();
                let waits = |state: &mut State| !state.is_released && !state.is_over;
                drop(self.changed.wait_while(state, waits));
                send(&head(200, ""));
            }
            Reply::Drip => {
                send("HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n");
                while send("x") && !self.state().is_over {
                    let pace = Duration::from_millis(20);
                    drop(self.changed.wait_timeout_while(self.state(), pace, |state| !state.is_over));
                }
            }
            Reply::Huge => {
                send("HTTP/1.1 200 OK\r\nContent-Length: 10000000000\r\n\r\n");
                let piece = "x".repeat(64 * 1024);
                while send(&piece) && !self.state().is_over {
                    self.state().taken += piece.len();
                }
            }
        }
    }
}

fn head(status: u16, header: &str) -> String {
    format!("HTTP/1.1 {status} X\r\n{header}Content-Length: 0\r\nConnection: close\r\n\r\n")
}

/// The next bytes; `None` at the end.
fn more(socket: &mut TcpStream) -> Option<Vec<u8>> {
    let mut buffer = [0; 4096];
    let read = socket.read(&mut buffer).ok().filter(|read| *read > 0)?;
    Some(buffer[..read].to_vec())
}

fn read(socket: &mut TcpStream) -> Option<Post> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        bytes.extend(more(socket)?);
    };
    let text = String::from_utf8(bytes[..end].to_vec()).expect("a head is text");
    let mut lines = text.lines();
    let line = lines.next().expect("a line").to_owned();
    let header = |line: &str| {
        let (name, value) = line.split_once(": ")?;
        Some((name.parse::<HeaderName>().expect("a name"), value.parse().expect("a value")))
    };
    let headers: HeaderMap = lines.filter_map(header).collect();
    let length: usize = headers.get("content-length")?.to_str().ok()?.parse().ok()?;
    let mut body = bytes[end..].to_vec();
    while body.len() < length {
        body.extend(more(socket)?);
    }
    Some(Post { at: Instant::now(), line, headers, body })
}
