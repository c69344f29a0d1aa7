//! A minimal HTTP/1.1 client: one kept connection, one request at a time.
//!
//! The load client shares the processors with the processes under test, so it uses hyper's connection directly, without
//! a pool.

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Request,
    client::conn::http1::{SendRequest, handshake},
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, RETRY_AFTER},
    http::request::Builder,
};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::program::BEARER;

/// Largest body that is read; a result is under 32 KB.
const MAX_ANSWER_BYTES: usize = 1024 * 1024;
/// Media type of server-sent events.
const EVENT_STREAM: &[u8] = b"text/event-stream";

/// A kept connection, which is made again after the server closed it.
pub(crate) struct HttpLink {
    address: SocketAddr,
    host: String,
    sender: Option<SendRequest<Full<Bytes>>>,
}

#[derive(Debug)]
pub(crate) struct HttpAnswer {
    pub status: u16,
    /// True if the header `Retry-After` is present.
    pub has_retry_after: bool,
    pub body: Bytes,
}

impl HttpLink {
    /// Connects with the first request.
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self { address, host: address.to_string(), sender: None }
    }

    /// Posts a JSON body. After a dropped future, the link connects again.
    ///
    /// # Errors
    /// A sentence; the request may have been executed.
    pub(crate) async fn post(&mut self, path: &str, body: Bytes) -> Result<HttpAnswer, String> {
        self.send(self.to(Request::post(path)).header(CONTENT_TYPE, "application/json"), body).await
    }

    /// Posts a JSON body with `Prefer: respond-async`; otherwise as [`HttpLink::post`].
    pub(crate) async fn post_async(&mut self, path: &str, body: Bytes) -> Result<HttpAnswer, String> {
        let request = self.to(Request::post(path)).header(CONTENT_TYPE, "application/json");
        self.send(request.header("prefer", "respond-async"), body).await
    }

    /// Safe to retry; otherwise as [`HttpLink::post`].
    pub(crate) async fn get(&mut self, path: &str) -> Result<HttpAnswer, String> {
        self.send(self.to(Request::get(path)), Bytes::new()).await
    }

    /// Puts a JSON body. Safe to retry; otherwise as [`HttpLink::post`].
    pub(crate) async fn put(&mut self, path: &str, body: Bytes) -> Result<HttpAnswer, String> {
        self.send(self.to(Request::put(path)).header(CONTENT_TYPE, "application/json"), body).await
    }

    /// Posts a JSON body and passes the parts of a stream of events to `part` as they arrive; the returned answer has no
    /// body then. Otherwise as [`HttpLink::post`].
    pub(crate) async fn post_for_stream(
        &mut self,
        path: &str,
        body: Bytes,
        part: impl FnMut(&[u8]),
    ) -> Result<HttpAnswer, String> {
        let request = self.to(Request::post(path)).header(CONTENT_TYPE, "application/json");
        self.send_for(request.header(ACCEPT, EVENT_STREAM), body, part).await
    }

    /// Gets an endless stream and passes its parts to `part` as they arrive, until the server ends it. Dropping the future
    /// closes the connection.
    ///
    /// # Errors
    /// A sentence: a status other than success, or a broken connection.
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
        request.header(HOST, &self.host).header(AUTHORIZATION, BEARER)
    }

    async fn send(&mut self, request: Builder, body: Bytes) -> Result<HttpAnswer, String> {
        self.send_for(request, body, |_| {}).await
    }

    /// Passes the parts of a stream to `part`, and collects any other body.
    async fn send_for(
        &mut self,
        request: Builder,
        body: Bytes,
        mut part: impl FnMut(&[u8]),
    ) -> Result<HttpAnswer, String> {
        let mut sender = match self.sender.take() {
            Some(mut sender) => match sender.ready().await {
                Ok(()) => sender,
                // The server closed an idle connection.
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
        // Ends with the sender or with the server's end. The request gets the error, if any.
        tokio::spawn(async move { drop(connection.await) });
        Ok(sender)
    }
}
