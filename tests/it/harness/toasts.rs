//! A subscriber of toasts: a real WebSocket client that says no more than it is told to.

use std::{
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

use futures_util::{SinkExt, StreamExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, client_async, connect_async,
    tungstenite::{
        Error, Message,
        client::IntoClientRequest,
        http::{HeaderName, HeaderValue, Response},
    },
};

use super::{Api, DEADLINE, Value, block_on, json};

/// One open WebSocket.
pub(crate) struct Subscriber {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    /// What the server answered to the upgrade.
    pub protocol: Option<String>,
}

/// Why a WebSocket was not opened.
#[derive(Debug)]
pub(crate) struct Refused {
    /// The status.
    pub status: u16,
    /// The problem document.
    pub problem: Value,
}

/// How a WebSocket ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Closed {
    /// The code of the closing frame; none where the connection broke.
    pub code: Option<u16>,
    /// Its reason.
    pub reason: String,
}

fn refused(response: Response<Option<Vec<u8>>>) -> Refused {
    let status = response.status().as_u16();
    let body = response.into_body().unwrap_or_default();
    Refused { status, problem: serde_json::from_slice(&body).unwrap_or_default() }
}

fn url(base: &str, query: &str) -> String {
    format!("{}/ws/notifications?{query}", base.replacen("http", "ws", 1))
}

impl Subscriber {
    /// Opens one at `base` (`http://ADDR:PORT`), with header lines of one's own.
    pub(crate) fn open(base: &str, query: &str, headers: &[(&str, &str)]) -> Result<Self, Refused> {
        block_on(Self::connect(base, query, headers))
    }

    /// One whose receive buffer takes no more than about so many bytes. Its segments are short, since a sender's buffer has
    /// room for a number of them: those of the loopback would make megabytes.
    pub(crate) fn open_small(base: &str, query: &str, buffer_bytes: u32) -> Self {
        let opening = async {
            let address = base.strip_prefix("http://").and_then(|it| it.parse().ok()).expect("http://ADDR:PORT");
            let stream = TcpSocket::new_v4().expect("a socket");
            stream.set_recv_buffer_size(buffer_bytes).expect("an option");
            let longest: libc::c_int = 536;
            // SAFETY: the value lives through the call and has the length that is said.
            let set = unsafe {
                let size = size_of_val(&longest) as libc::socklen_t;
                libc::setsockopt(
                    stream.as_raw_fd(),
                    libc::IPPROTO_TCP,
                    libc::TCP_MAXSEG,
                    (&raw const longest).cast(),
                    size,
                )
            };
            assert_eq!(set, 0, "an option");
            let stream = stream.connect(address).await.expect("the server listens");
            let request = url(base, query).into_client_request().expect("a URL");
            client_async(request, MaybeTlsStream::Plain(stream)).await.expect("a WebSocket").0
        };
        Self { socket: block_on(opening), protocol: None }
    }

    /// The same, for a task.
    pub(crate) async fn connect(base: &str, query: &str, headers: &[(&str, &str)]) -> Result<Self, Refused> {
        let url = url(base, query);
        let mut request = url.into_client_request().expect("a URL");
        for (name, value) in headers {
            let name = HeaderName::try_from(*name).expect("a header's name");
            request.headers_mut().insert(name, HeaderValue::try_from(*value).expect("a header's value"));
        }
        match tokio::time::timeout(DEADLINE, connect_async(request)).await.expect("an answer in time") {
            Ok((socket, response)) => {
                let protocol = response.headers().get("sec-websocket-protocol");
                let protocol = protocol.map(|value| value.to_str().expect("text").to_owned());
                Ok(Self { socket, protocol })
            }
            Err(Error::Http(response)) => Err(refused(*response)),
            Err(cause) => Err(Refused { status: 0, problem: json!({ "detail": cause.to_string() }) }),
        }
    }

    /// One of a tenant, which is welcome and wants only what comes.
    pub(crate) fn of(api: &Api, query: &str) -> Self {
        let mut subscriber = Self::open(&api.base(), query, &[]).expect("a WebSocket");
        subscriber.hello(json!({}));
        subscriber
    }

    /// Says hello with these members, and gives the welcome.
    pub(crate) fn hello(&mut self, mut members: Value) -> Value {
        members["type"] = "hello".into();
        self.say(&members);
        let welcome = self.next();
        assert_eq!(welcome["type"], "welcome", "{welcome}");
        welcome
    }

    /// Sends a frame.
    pub(crate) fn say(&mut self, frame: &Value) {
        self.say_text(&frame.to_string());
    }

    /// Sends a text.
    pub(crate) fn say_text(&mut self, text: &str) {
        block_on(self.socket.send(Message::text(text.to_owned()))).expect("the frame is sent");
    }

    /// Sends a frame, from a task; the other end may be gone.
    pub(crate) async fn tell(&mut self, frame: &Value) -> Result<(), Closed> {
        let sent = self.socket.send(Message::text(frame.to_string())).await;
        sent.map_err(|_| Closed { code: None, reason: String::new() })
    }

    /// Closes it in order: says so, and hears the answer, unless the other end is gone.
    pub(crate) async fn leave(mut self) {
        if self.socket.close(None).await.is_ok() {
            // Not until the connection ends too, for which the server takes another second.
            while let Some(Ok(message)) = self.socket.next().await
                && !message.is_close()
            {}
        }
    }

    /// Ends it with a reset, as a machine does that lost its memory.
    pub(crate) fn reset(self) {
        if let MaybeTlsStream::Plain(stream) = self.socket.get_ref() {
            stream.set_zero_linger().expect("an option");
        }
    }

    /// The next frame.
    pub(crate) fn next(&mut self) -> Value {
        match block_on(self.read()) {
            Ok(frame) => frame,
            Err(closed) => panic!("closed instead of a frame: {closed:?}"),
        }
    }

    /// The next toast; other frames are passed over.
    pub(crate) fn toast(&mut self) -> Value {
        loop {
            let frame = self.next();
            if frame["type"] == "toast" {
                return frame;
            }
        }
    }

    /// Sends pings without reading what is answered, until nobody takes any more: the other end can send nothing, and so
    /// reads nothing. `is_served` comes back when the thread that serves this socket has run: a server that had no time is
    /// not taken for one that is full.
    pub(crate) fn fill(&mut self, is_served: impl Fn()) {
        /// So often it has to take nothing, one after the other.
        const LOOKS: usize = 3;
        let end = Instant::now() + DEADLINE;
        let mut looks = 0;
        while looks < LOOKS {
            assert!(Instant::now() < end, "buffers have an end");
            let ping = Message::Ping(vec![0; 125].into());
            let sending = async { tokio::time::timeout(Duration::from_millis(20), self.socket.send(ping)).await };
            match block_on(sending) {
                Ok(sent) => {
                    sent.expect("the other end lives");
                    looks = 0;
                }
                Err(_) => {
                    looks += 1;
                    is_served();
                }
            }
        }
    }

    /// The next frame, or how it ended. Answers pings.
    pub(crate) async fn read(&mut self) -> Result<Value, Closed> {
        loop {
            let message = tokio::time::timeout(DEADLINE, self.socket.next()).await.expect("a frame in time");
            match message {
                Some(Ok(Message::Text(text))) => return Ok(serde_json::from_str(&text).expect("a frame is JSON")),
                Some(Ok(Message::Close(frame))) => {
                    let code = frame.as_ref().map(|frame| frame.code.into());
                    return Err(Closed {
                        code,
                        reason: frame.map(|frame| frame.reason.to_string()).unwrap_or_default(),
                    });
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Err(Closed { code: None, reason: String::new() }),
            }
        }
    }

    /// Frames until it ended, and how.
    pub(crate) fn until_closed(&mut self) -> (Vec<Value>, Closed) {
        let mut frames = Vec::new();
        loop {
            match block_on(self.read()) {
                Ok(frame) => frames.push(frame),
                Err(closed) => return (frames, closed),
            }
        }
    }
}
