//! The leanest HTTP client that still checks what it gets: one kept connection, one request at a time.
//!
//! The load client shares the processors with what it measures, so what it costs itself counts.

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Request,
    client::conn::http1::{SendRequest, handshake},
    header::{ACCEPT, CONTENT_TYPE, HOST, RETRY_AFTER},
    http::request::Builder,
};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// The largest answer that is read; a result is under 32 KB.
const MAX_ANSWER_BYTES: usize = 1024 * 1024;
/// Server-sent events.
const EVENT_STREAM: &[u8] = b"text/event-stream";

/// A kept HTTP/1.1 connection; it is made again when the server closed it.
pub(crate) struct HttpLink {
    address: SocketAddr,
    host: String,
    sender: Option<SendRequest<Full<Bytes>>>,
}

/// An answer.
#[derive(Debug)]
pub(crate) struct HttpAnswer {
    /// The status.
    pub status: u16,
    /// Whether it says when to try again.
    pub has_retry_after: bool,
    /// The body.
    pub body: Bytes,
}

impl HttpLink {
    /// Makes a link; connects with the first request.
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self { address, host: address.to_string(), sender: None }
    }

    /// Posts a JSON body. A link whose future was dropped connects again. Errors are sentences; the request may
    /// have been executed then.
    pub(crate) async fn post(&mut self, path: &str, body: Bytes) -> Result<HttpAnswer, String> {
        self.send(self.to(Request::post(path)).header(CONTENT_TYPE, "application/json"), body).await
    }

    /// Posts a JSON body that is to be accepted and not waited for; else as [`HttpLink::post`].
    pub(crate) async fn post_async(&mut self, path: &str, body: Bytes) -> Result<HttpAnswer, String> {
        let request = self.to(Request::post(path)).header(CONTENT_TYPE, "application/json");
        self.send(request.header("prefer", "respond-async"), body).await
    }

    /// Gets; safe to repeat. Else as [`HttpLink::post`].
    pub(crate) async fn get(&mut self, path: &str) -> Result<HttpAnswer, String> {
        self.send(self.to(Request::get(path)), Bytes::new()).await
    }

    /// Puts a JSON body; safe to repeat. Else as [`HttpLink::post`].
    pub(crate) async fn put(&mut self, path: &str, body: Bytes) -> Result<HttpAnswer, String> {
        self.send(self.to(Request::put(path)).header(CONTENT_TYPE, "application/json"), body).await
    }

    /// Posts a JSON body and hands the parts of the answer on as they come, if it is a success and a stream; what it
    /// gives back has no body then. Else as [`HttpLink::post`].
    pub(crate) async fn post_for_stream(
        &mut self,
        path: &str,
        body: Bytes,
        part: impl FnMut(&[u8]),
    ) -> Result<HttpAnswer, String> {
        let request = self.to(Request::post(path)).header(CONTENT_TYPE, "application/json");
        self.send_for(request.header(ACCEPT, EVENT_STREAM), body, part).await
    }

    /// Gets an answer that has no end, and hands its parts on as they come. Ends when it does, or with a sentence.
    /// Dropping the future closes the connection.
    pub(crate) async fn stream(self, path: &str, mut part: impl FnMut(&[u8])) -> Result<(), String> {
        let mut sender = self.connect().await?;
        let request = self.to(Request::get(path)).body(Full::new(Bytes::new())).map_err(|cause| cause.to_string())?;
        let answer = sender.send_request(request).await.map_err(|cause| format!("HTTP: {cause}"))?;
        let status = answer.status();
        if !status.is_success() {
            return Err(format!("{path} answered {}", status.as_u16()));
        }
        let mut body = answer.into_body();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|cause| format!("HTTP: {cause}"))?;
            frame.data_ref().into_iter().for_each(|data| part(data));
        }
        Ok(())
    }

    fn to(&self, request: Builder) -> Builder {
        request.header(HOST, &self.host)
    }

    async fn send(&mut self, request: Builder, body: Bytes) -> Result<HttpAnswer, String> {
        self.send_for(request, body, |_| {}).await
    }

    /// Hands the parts of a stream on, and collects any other answer.
    async fn send_for(
        &mut self,
        request: Builder,
        body: Bytes,
        mut part: impl FnMut(&[u8]),
    ) -> Result<HttpAnswer, String> {
        let mut sender = match self.sender.take() {
            Some(mut sender) => match sender.ready().await {
                Ok(()) => sender,
                // The server closed a connection that was idle for long.
                Err(_) => self.connect().await?,
            },
            None => self.connect().await?,
        };
        let request = request.body(Full::new(body)).map_err(|cause| cause.to_string())?;
        let answer = sender.send_request(request).await.map_err(|cause| format!("HTTP: {cause}"))?;
        let status = answer.status().as_u16();
        let has_retry_after = answer.headers().contains_key(RETRY_AFTER);
        let is_stream = answer.headers().get(CONTENT_TYPE).is_some_and(|it| it.as_bytes().starts_with(EVENT_STREAM));
        let mut body = answer.into_body();
        while is_stream && let Some(frame) = body.frame().await {
            let frame = frame.map_err(|cause| format!("HTTP: {cause}"))?;
            frame.data_ref().into_iter().for_each(|data| part(data));
        }
        let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await;
        let body = body.map_err(|cause| format!("HTTP: {cause}"))?.to_bytes();
        self.sender = Some(sender);
        Ok(HttpAnswer { status, has_retry_after, body })
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, String> {
        let failed = |cause: &dyn std::error::Error| format!("connecting to {}: {cause}", self.address);
        let socket = TcpStream::connect(self.address).await.map_err(|cause| failed(&cause))?;
        socket.set_nodelay(true).map_err(|cause| failed(&cause))?;
        let (sender, connection) = handshake(TokioIo::new(socket)).await.map_err(|cause| failed(&cause))?;
        // Ends with the sender or with the server's end; what went wrong is told to the request.
        tokio::spawn(async move { drop(connection.await) });
        Ok(sender)
    }
}
