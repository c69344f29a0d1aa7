//! One subscriber: a WebSocket of its own, whose frames are read as they arrive.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
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
use crate::support::program::BEARER;

/// Time limit for an upgrade and a welcome while thousands of subscribers connect.
const OPEN_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest accepted answer to an upgrade, in bytes.
const MAX_HEAD_BYTES: usize = 8 * 1024;
/// Bytes of one read: several notifications.
const READ_BYTES: usize = 4 * 1024;

/// Any key will do, since the server's answer to it is not checked.
const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: bHVtaWxpbmsgYmVuY2htYQ==\r\n\r\n";

/// Arrival of a notification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Arrival {
    pub id: Uuid,
    pub at: Instant,
}

/// Notifications of a subscriber, and the end of its connection.
#[derive(Debug, Clone, Default)]
pub(super) struct Log {
    /// In the order of arrival.
    pub arrivals: Vec<Arrival>,
    /// Reason why the connection ended, if it did.
    pub ended: Option<String>,
}

/// Counts the arrivals at all subscribers together.
#[derive(Debug, Default)]
pub(super) struct Counter {
    count: AtomicU64,
    awaited: AtomicU64,
    reached: Notify,
}

impl Counter {
    /// Waits for a total number of arrivals; returns false after `limit`.
    pub(super) async fn until(&self, awaited: u64, limit: Duration) -> bool {
        self.awaited.store(awaited, Ordering::SeqCst);
        let waiting = async {
            while self.count.load(Ordering::SeqCst) < awaited {
                self.reached.notified().await;
            }
        };
        timeout(limit, waiting).await.is_ok()
    }

    fn add(&self) {
        if self.count.fetch_add(1, Ordering::SeqCst) + 1 >= self.awaited.load(Ordering::SeqCst) {
            // The permit is kept if nothing waits yet.
            self.reached.notify_one();
        }
    }
}

/// A connected subscriber. Dropping it breaks its connection.
pub(super) struct Subscriber {
    log: Arc<Mutex<Log>>,
    task: JoinHandle<()>,
}

impl Subscriber {
    /// Connects, sends `hello` and waits for `welcome`.
    pub(super) async fn open(address: SocketAddr, path: &str, counter: Arc<Counter>) -> Result<Self, String> {
        let late = |_| Err("a subscriber was not welcomed in time".to_owned());
        let (stream, frames) = timeout(OPEN_TIMEOUT, welcomed(address, path)).await.unwrap_or_else(late)?;
        let log = Arc::new(Mutex::new(Log::default()));
        let shared = log.clone();
        let task = tokio::spawn(async move {
            let ended = read(stream, frames, &shared, &counter).await;
            shared.lock().ended = Some(ended.err().unwrap_or_else(|| "the server closed the connection".to_owned()));
        });
        Ok(Self { log, task })
    }

    /// Notifications up to now.
    pub(super) fn log(&self) -> Log {
        self.log.lock().clone()
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn welcomed(address: SocketAddr, path: &str) -> Result<(TcpStream, Frames), String> {
    let broken = |cause: io::Error| format!("a subscriber's connection: {cause}");
    let mut stream = TcpStream::connect(address).await.map_err(broken)?;
    stream.set_nodelay(true).map_err(broken)?;
    stream
        .write_all(
            format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: {BEARER}\r\n{UPGRADE}").as_bytes(),
        )
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
            return if is_welcome {
                Ok((stream, frames))
            } else {
                Err(format!("received in place of a welcome: {text}"))
            };
        }
        stream.readable().await.map_err(broken)?;
        if !fill(&stream, &mut frames).map_err(broken)? {
            return Err("the server closed the connection before the welcome".into());
        }
    }
}

/// Reads until the server closes the connection. A closing frame is an error.
async fn read(stream: TcpStream, mut frames: Frames, log: &Mutex<Log>, counter: &Counter) -> Result<(), String> {
    let broken = |cause: io::Error| format!("the connection broke: {cause}");
    loop {
        while let Some((kind, payload)) = frames.next()? {
            match kind {
                Kind::Text => take(payload, log, counter)?,
                Kind::Ping => {
                    // A few bytes; a full send buffer means that the server does not read.
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

/// Reads the bytes that have arrived; returns false at the end. The buffer is on the stack, so that ten thousand waiting
/// subscribers have none.
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
    let frame: Frame<'_> = serde_json::from_slice(text).map_err(|cause| format!("a frame is malformed: {cause}"))?;
    match (frame.kind, frame.id) {
        ("toast", Some(id)) => {
            log.lock().arrivals.push(Arrival { id, at });
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
    async fn counter_wakes_the_waiting_task_at_its_number() {
        let counter = Arc::new(Counter::default());
        assert!(!counter.until(1, Duration::from_millis(1)).await);
        let adding = counter.clone();
        tokio::spawn(async move { (0..100).for_each(|_| adding.add()) });
        assert!(counter.until(100, Duration::from_secs(10)).await);
        assert!(counter.until(100, Duration::ZERO).await, "it is reached");
    }

    #[test]
    fn notification_is_noted_and_any_other_frame_is_an_error() {
        let (log, counter) = (Mutex::new(Log::default()), Counter::default());
        let id = Uuid::from_u128(7);
        take(format!(r#"{{"type":"toast","id":"{id}","seq":4,"body":"b"}}"#).as_bytes(), &log, &counter).unwrap();
        assert_eq!(log.lock().arrivals.iter().map(|arrival| arrival.id).collect::<Vec<_>>(), [id]);
        for other in [r#"{"type":"reset","reason":"ahead"}"#, r#"{"type":"toast"}"#, "oops"] {
            assert!(take(other.as_bytes(), &log, &counter).is_err(), "{other}");
        }
    }
}
