//! One subscriber: a WebSocket of its own, whose frames are read as they come.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::{Mutex, MutexGuard};
use serde::Deserialize;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Notify,
    task::JoinHandle,
    time::timeout,
};
use uuid::Uuid;

use super::frames::{Frames, Kind, client_frame};

/// How long an upgrade and a welcome may take while thousands are asked for.
const OPEN_TIMEOUT: Duration = Duration::from_secs(60);
/// The longest answer to an upgrade that is read, in bytes.
const MAX_HEAD_BYTES: usize = 8 * 1024;
/// How much is read at once: some toasts.
const READ_BYTES: usize = 4 * 1024;

/// Any key will do: what the server makes of it is not looked at, since it is ours.
const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: bHVtaWxpbmsgYmVuY2htYQ==\r\n\r\n";

/// A toast that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Read {
    /// Its id.
    pub id: Uuid,
    /// When.
    pub at: Instant,
}

/// What a subscriber has read, and how it ended where it did.
#[derive(Debug, Clone, Default)]
pub(crate) struct Log {
    /// Toasts, in the order in which they came.
    pub toasts: Vec<Read>,
    /// Why nothing more comes.
    pub ended: Option<String>,
}

/// Toasts that all subscribers together have read.
#[derive(Debug, Default)]
pub(crate) struct Counter {
    read: AtomicU64,
    wanted: AtomicU64,
    reached: Notify,
}

impl Counter {
    /// Waits until so many were read in all; `false` where that takes too long.
    pub(crate) async fn until(&self, wanted: u64, patience: Duration) -> bool {
        self.wanted.store(wanted, Ordering::SeqCst);
        let waiting = async {
            while self.read.load(Ordering::SeqCst) < wanted {
                self.reached.notified().await;
            }
        };
        timeout(patience, waiting).await.is_ok()
    }

    fn add(&self) {
        if self.read.fetch_add(1, Ordering::SeqCst) + 1 >= self.wanted.load(Ordering::SeqCst) {
            // Kept for the one that waits, if it does not yet.
            self.reached.notify_one();
        }
    }
}

/// A subscriber that is welcome. Dropping it breaks its connection.
pub(crate) struct Subscriber {
    log: Arc<Mutex<Log>>,
    task: JoinHandle<()>,
}

impl Subscriber {
    /// Connects, says hello and waits for the welcome. Errors are sentences.
    pub(crate) async fn open(address: SocketAddr, path: &str, counter: Arc<Counter>) -> Result<Self, String> {
        let late = |_| Err("a subscriber was not welcomed in time".to_owned());
        let (stream, frames) = timeout(OPEN_TIMEOUT, welcomed(address, path)).await.unwrap_or_else(late)?;
        let log = Arc::new(Mutex::new(Log::default()));
        let notes = log.clone();
        let task = tokio::spawn(async move {
            let ended = read_on(stream, frames, &notes, &counter).await;
            lock(&notes).ended = Some(ended.err().unwrap_or_else(|| "the server closed the connection".to_owned()));
        });
        Ok(Self { log, task })
    }

    /// What it has read so far.
    pub(crate) fn log(&self) -> Log {
        lock(&self.log).clone()
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock(log: &Mutex<Log>) -> MutexGuard<'_, Log> {
    log.lock()
}

async fn welcomed(address: SocketAddr, path: &str) -> Result<(TcpStream, Frames), String> {
    let broken = |cause: io::Error| format!("a subscriber's connection: {cause}");
    let mut stream = TcpStream::connect(address).await.map_err(broken)?;
    stream.set_nodelay(true).map_err(broken)?;
    stream
        .write_all(format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n{UPGRADE}").as_bytes())
        .await
        .map_err(broken)?;
    let mut answer = Vec::new();
    let end = loop {
        if let Some(end) = memchr::memmem::find(&answer, b"\r\n\r\n") {
            break end + 4;
        }
        if answer.len() > MAX_HEAD_BYTES || stream.read_buf(&mut answer).await.map_err(broken)? == 0 {
            return Err(format!("an upgrade was answered with: {}", String::from_utf8_lossy(&answer)));
        }
    };
    if !answer.starts_with(b"HTTP/1.1 101 ") {
        return Err(format!("an upgrade was answered with: {}", String::from_utf8_lossy(&answer)));
    }
    let mut frames = Frames::default();
    frames.push(&answer[end..]);
    let hello = client_frame(Kind::Text, br#"{"type":"hello","version":1,"telemetry":false}"#);
    stream.write_all(&hello).await.map_err(broken)?;
    loop {
        if let Some((kind, payload)) = frames.next()? {
            let text = String::from_utf8_lossy(payload);
            let is_welcome = kind == Kind::Text && text.contains(r#""type":"welcome""#);
            return if is_welcome { Ok((stream, frames)) } else { Err(format!("instead of a welcome came: {text}")) };
        }
        stream.readable().await.map_err(broken)?;
        if !fill(&stream, &mut frames).map_err(broken)? {
            return Err("the server closed the connection before its welcome".into());
        }
    }
}

/// Reads until the server closes; errors are sentences, and its closing frame is one.
async fn read_on(stream: TcpStream, mut frames: Frames, log: &Mutex<Log>, counter: &Counter) -> Result<(), String> {
    let broken = |cause: io::Error| format!("the connection broke: {cause}");
    loop {
        while let Some((kind, payload)) = frames.next()? {
            match kind {
                Kind::Text => take(payload, log, counter)?,
                Kind::Ping => {
                    // Some bytes: a socket that has no room for them is not one that keeps up.
                    let pong = client_frame(Kind::Pong, payload);
                    let written = stream.try_write(&pong).map_err(broken)?;
                    if written < pong.len() {
                        return Err("a pong could not be sent".into());
                    }
                }
                Kind::Pong => {}
                Kind::Close => {
                    return Err(format!("closed: {}", String::from_utf8_lossy(payload.get(2..).unwrap_or_default())));
                }
            }
        }
        stream.readable().await.map_err(broken)?;
        if !fill(&stream, &mut frames).map_err(broken)? {
            return Ok(());
        }
    }
}

/// Takes what has come; `false` at the end. The buffer is on the stack of this call alone: ten thousand subscribers wait
/// without one.
fn fill(stream: &TcpStream, frames: &mut Frames) -> io::Result<bool> {
    let mut buffer = [0; READ_BYTES];
    match stream.try_read(&mut buffer) {
        Ok(count) => {
            frames.push(&buffer[..count]);
            Ok(count > 0)
        }
        Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => Ok(true),
        Err(cause) => Err(cause),
    }
}

fn take(text: &[u8], log: &Mutex<Log>, counter: &Counter) -> Result<(), String> {
    #[derive(Deserialize)]
    struct Frame<'a> {
        #[serde(rename = "type")]
        kind: &'a str,
        id: Option<Uuid>,
    }
    let at = Instant::now();
    let frame: Frame<'_> =
        serde_json::from_slice(text).map_err(|cause| format!("a frame is not readable: {cause}"))?;
    match (frame.kind, frame.id) {
        ("toast", Some(id)) => {
            lock(log).toasts.push(Read { id, at });
            counter.add();
            Ok(())
        }
        _ => Err(format!("an unexpected frame: {}", String::from_utf8_lossy(text))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_counter_wakes_whoever_waits_for_its_number() {
        let counter = Arc::new(Counter::default());
        assert!(!counter.until(1, Duration::from_millis(1)).await);
        let adding = counter.clone();
        tokio::spawn(async move { (0..100).for_each(|_| adding.add()) });
        assert!(counter.until(100, Duration::from_secs(10)).await);
        assert!(counter.until(100, Duration::ZERO).await, "it is reached");
    }

    #[test]
    fn a_toast_is_noted_and_anything_else_is_the_end() {
        let (log, counter) = (Mutex::new(Log::default()), Counter::default());
        let id = Uuid::from_u128(7);
        take(format!(r#"{{"type":"toast","id":"{id}","seq":4,"body":"b"}}"#).as_bytes(), &log, &counter).unwrap();
        assert_eq!(lock(&log).toasts.iter().map(|read| read.id).collect::<Vec<_>>(), [id]);
        for other in [r#"{"type":"reset","reason":"ahead"}"#, r#"{"type":"toast"}"#, "oops"] {
            assert!(take(other.as_bytes(), &log, &counter).is_err(), "{other}");
        }
    }
}
