//! A server for tests, whose answers a closure chooses: whole, lost, or slow.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// A request as it arrived.
#[derive(Debug, Clone, Default)]
pub(crate) struct Received {
    pub method: String,
    /// Path and query.
    pub target: String,
    /// Request line and headers.
    pub head: String,
    pub body: String,
}

impl Received {
    /// The value of a header; empty without it.
    pub(crate) fn header(&self, name: &str) -> &str {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.filter(|line| line.0.eq_ignore_ascii_case(name)).map(|line| line.1).next().unwrap_or_default()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_default()
    }
}

pub(crate) enum Answering {
    /// Status, lines of headers, body.
    Whole(u16, Vec<String>, String),
    /// The connection is closed without an answer.
    Lost,
    /// The head and the beginning of the body, then nothing.
    Slow,
}

impl Answering {
    pub(crate) fn json(status: u16, body: &serde_json::Value) -> Self {
        Self::Whole(status, Vec::new(), body.to_string())
    }
}

/// A server on loopback; it ends when it is dropped.
pub(crate) struct Stub {
    pub url: String,
    received: Arc<Mutex<Vec<Received>>>,
    task: JoinHandle<()>,
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Stub {
    pub(crate) async fn start(answer: impl FnMut(&Received) -> Answering + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let received: Arc<Mutex<Vec<_>>> = Arc::default();
        let (answer, log) = (Arc::new(Mutex::new(answer)), received.clone());
        let task = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (answer, log) = (answer.clone(), log.clone());
                tokio::spawn(async move {
                    let Some((socket, request)) = read(socket).await else { return };
                    log.lock().push(request.clone());
                    let answering = (*answer.lock())(&request);
                    write(socket, answering).await;
                });
            }
        });
        Self { url, received, task }
    }

    /// Everything that arrived until now.
    pub(crate) fn received(&self) -> Vec<Received> {
        self.received.lock().clone()
    }

    /// Number of requests with this method whose target begins with `start`.
    pub(crate) fn count(&self, method: &str, start: &str) -> usize {
        self.received().iter().filter(|it| it.method == method && it.target.starts_with(start)).count()
    }
}

async fn read(mut socket: TcpStream) -> Option<(TcpStream, Received)> {
    let mut bytes = Vec::new();
    let (head, start) = loop {
        if socket.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some(end) = text.find("\r\n\r\n") {
            break (text[..end].to_owned(), end + 4);
        }
    };
    let mut words = head.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut received = Received { method, target, head, body: String::new() };
    let length: usize = received.header("content-length").parse().unwrap_or(0);
    while bytes.len() < start + length {
        if socket.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
    received.body = String::from_utf8_lossy(&bytes[start..]).into_owned();
    Some((socket, received))
}

async fn write(mut socket: TcpStream, answering: Answering) {
    match answering {
        Answering::Lost => {}
        Answering::Slow => {
            let _ = socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{").await;
            std::future::pending().await
        }
        Answering::Whole(status, headers, body) => {
            let headers: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
            let length = body.len();
            let head =
                format!("HTTP/1.1 {status} x\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n");
            let _ = socket.write_all(format!("{head}{body}").as_bytes()).await;
            let _ = socket.shutdown().await;
        }
    }
}
