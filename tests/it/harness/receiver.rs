//! Receives webhooks on loopback, and misbehaves as it is told: a script of replies, one for each post, then 200.

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

/// What is done with a post.
#[derive(Debug, Clone)]
pub(crate) enum Reply {
    /// An answer without a body.
    Status(u16),
    /// An answer with one more header line.
    With(u16, String),
    /// It is read, and the connection closed without an answer.
    Lost,
    /// 200, but only when the sender has gone away.
    Late,
    /// 200 as soon as [`Receiver::release`] is called.
    Held,
    /// 200 and a body that comes byte by byte and does not end.
    Drip,
    /// 200 and a body that does not end.
    Huge,
}

/// A post as it came.
#[derive(Debug, Clone)]
pub(crate) struct Post {
    /// When it was read.
    pub at: Instant,
    /// `POST /path HTTP/1.1`.
    pub line: String,
    /// Its header lines.
    pub headers: HeaderMap,
    /// The bytes of its body.
    pub body: Vec<u8>,
}

impl Post {
    /// A header.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no header {name}")).to_str().expect("text")
    }

    /// The body as JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }
}

/// A running receiver. It ends with the test.
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
    /// Bytes of the largest body that was taken from us.
    taken: usize,
}

impl Receiver {
    /// Starts one on a free port.
    pub(crate) fn start(script: impl IntoIterator<Item = Reply>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared::default());
        shared.state().script.extend(script);
        let theirs = shared.clone();
        thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                if theirs.state().is_over {
                    return;
                }
                let theirs = theirs.clone();
                thread::spawn(move || theirs.serve(socket));
            }
        });
        Self { address, shared }
    }

    /// Where it listens.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What it got so far.
    pub(crate) fn posts(&self) -> Vec<Post> {
        self.shared.state().posts.clone()
    }

    /// Waits for so many posts, and gives them.
    pub(crate) fn gets(&self, posts: usize) -> Vec<Post> {
        wait_for(Duration::from_secs(60), &format!("{posts} posts"), || {
            Some(self.posts()).filter(|got| got.len() >= posts)
        })
    }

    /// Lets what is held go.
    pub(crate) fn release(&self) {
        self.shared.state().is_released = true;
        self.shared.changed.notify_all();
    }

    /// Bytes of the largest body that a sender has taken, buffers between included.
    pub(crate) fn taken(&self) -> usize {
        self.shared.state().taken
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.shared.state().is_over = true;
        self.shared.changed.notify_all();
        // Wakes the thread that accepts.
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
        let mut say = |text: &str| socket.write_all(text.as_bytes()).is_ok();
        match reply {
            Reply::Status(status) => drop(say(&head(status, ""))),
            Reply::With(status, header) => drop(say(&head(status, &format!("{header}\r\n")))),
            Reply::Lost => {}
            Reply::Late => {
                let _ = socket.read(&mut [0]);
                let _ = socket.write_all(head(200, "").as_bytes());
            }
            Reply::Held => {
                let state = self.state();
                let waits = |state: &mut State| !state.is_released && !state.is_over;
                drop(self.changed.wait_while(state, waits));
                say(&head(200, ""));
            }
            Reply::Drip => {
                say("HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n");
                while say("x") && !self.state().is_over {
                    let pace = Duration::from_millis(20);
                    drop(self.changed.wait_timeout_while(self.state(), pace, |state| !state.is_over));
                }
            }
            Reply::Huge => {
                say("HTTP/1.1 200 OK\r\nContent-Length: 10000000000\r\n\r\n");
                let piece = "x".repeat(64 * 1024);
                while say(&piece) && !self.state().is_over {
                    self.state().taken += piece.len();
                }
            }
        }
    }
}

fn head(status: u16, header: &str) -> String {
    format!("HTTP/1.1 {status} X\r\n{header}Content-Length: 0\r\nConnection: close\r\n\r\n")
}

/// What comes next; nothing at the end.
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
