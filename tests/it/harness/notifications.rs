//! A WebSocket client of the notification stream that sends only what a test requests.

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
        http::{HeaderName, HeaderValue, Request, Response, header::AUTHORIZATION},
    },
};

use super::{Api, DEADLINE, Value, block_on, json, tokens};

/// An open WebSocket.
pub(crate) struct Subscriber {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    /// The subprotocol that the server selected.
    pub protocol: Option<String>,
}

/// The refusal of a WebSocket upgrade.
#[derive(Debug)]
pub(crate) struct Refused {
    /// The status; 0 if there was no HTTP response.
    pub status: u16,
    /// The problem document.
    pub problem: Value,
}

/// The end of a WebSocket.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Closed {
    /// The code of the close frame; `None` if the connection broke.
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

/// Adds the token that the server made, unless the test sends its own.
fn authorize(request: &mut Request<()>, base: &str) {
    if let (Some(token), None) = (tokens::of_base(base), request.headers().get(AUTHORIZATION)) {
        let value = HeaderValue::try_from(format!("Bearer {token}")).expect("a header's value");
        request.headers_mut().insert(AUTHORIZATION, value);
    }
}

impl Subscriber {
    /// Opens a WebSocket at `base` (`http://ADDR:PORT`) with these header lines.
    pub(crate) fn open(base: &str, query: &str, headers: &[(&str, &str)]) -> Result<Self, Refused> {
        block_on(Self::connect(base, query, headers))
    }

    /// Opens a WebSocket with a receive buffer of about this many bytes. The segment size is small too, because the
    /// sender's buffer is sized in segments and loopback segments would make it several megabytes.
    pub(crate) fn open_small(base: &str, query: &str, buffer_bytes: u32) -> Self {
        let opening = async {
            let address = base.strip_prefix("http://").and_then(|it| it.parse().ok()).expect("http://ADDR:PORT");
            let stream = TcpSocket::new_v4().expect("a socket");
            stream.set_recv_buffer_size(buffer_bytes).expect("an option");
            let longest: libc::c_int = 536;
            // SAFETY: the value outlives the call, and `size` is its size.
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
            let mut request = url(base, query).into_client_request().expect("a URL");
            authorize(&mut request, base);
            client_async(request, MaybeTlsStream::Plain(stream)).await.expect("a WebSocket").0
        };
        Self { socket: block_on(opening), protocol: None }
    }

    /// [`Self::open`] for use in a task.
    pub(crate) async fn connect(base: &str, query: &str, headers: &[(&str, &str)]) -> Result<Self, Refused> {
        let url = url(base, query);
        let mut request = url.into_client_request().expect("a URL");
        for (name, value) in headers {
            let name = HeaderName::try_from(*name).expect("a header's name");
            request.headers_mut().insert(name, HeaderValue::try_from(*value).expect("a header's value"));
        }
        authorize(&mut request, base);
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

    /// Opens a WebSocket and sends hello without a cursor, so that only new notifications arrive.
    pub(crate) fn of(api: &Api, query: &str) -> Self {
        let mut subscriber = Self::open(&api.base(), query, &[]).expect("a WebSocket");
        subscriber.hello(json!({}));
        subscriber
    }

    /// Sends hello with these members, and returns the welcome.
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

    /// Sends a text message.
    pub(crate) fn say_text(&mut self, text: &str) {
        block_on(self.socket.send(Message::text(text.to_owned()))).expect("the frame is sent");
    }

    /// Sends a frame from a task. Returns [`Closed`] if the connection has ended.
    pub(crate) async fn try_send(&mut self, frame: &Value) -> Result<(), Closed> {
        let sent = self.socket.send(Message::text(frame.to_string())).await;
        sent.map_err(|_| Closed { code: None, reason: String::new() })
    }

    /// Closes it in order: sends a close frame and reads the peer's, if the connection still works.
    pub(crate) async fn leave(mut self) {
        if self.socket.close(None).await.is_ok() {
            // Does not wait for the end of the TCP connection, for which the server takes another second.
            while let Some(Ok(message)) = self.socket.next().await
                && !message.is_close()
            {}
        }
    }

    /// Ends it with a TCP reset, like a rebooted machine.
    pub(crate) fn reset(self) {
        if let MaybeTlsStream::Plain(stream) = self.socket.get_ref() {
            stream.set_zero_linger().expect("an option");
        }
    }

    /// The next frame; fails the test if the WebSocket ends.
    pub(crate) fn next(&mut self) -> Value {
        match block_on(self.read()) {
            Ok(frame) => frame,
            Err(closed) => panic!("closed instead of a frame: {closed:?}"),
        }
    }

    /// The next notification; skips other frames.
    pub(crate) fn notification(&mut self) -> Value {
        loop {
            let frame = self.next();
            if frame["type"] == "toast" {
                return frame;
            }
        }
    }

    /// Sends pings without reading the pongs until all buffers are full: the server can no longer send, and therefore
    /// stops reading. `is_served` returns after the server thread of this socket has run, so that a busy server does
    /// not count as a full one.
    pub(crate) fn fill(&mut self, is_served: impl Fn()) {
        /// Consecutive failed attempts after which the buffers count as full.
        const ATTEMPTS: usize = 3;
        let end = Instant::now() + DEADLINE;
        let mut attempts = 0;
        while attempts < ATTEMPTS {
            assert!(Instant::now() < end, "the buffers fill");
            let ping = Message::Ping(vec![0; 125].into());
            let sending = async { tokio::time::timeout(Duration::from_millis(20), self.socket.send(ping)).await };
            match block_on(sending) {
                Ok(sent) => {
                    sent.expect("the connection is open");
                    attempts = 0;
                }
                Err(_) => {
                    attempts += 1;
                    is_served();
                }
            }
        }
    }

    /// The next frame, or the end of the WebSocket. Answers pings.
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

    /// Reads until the WebSocket ends; returns the frames and the end.
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
