//! ACP over WebSocket, the client's side: how a socket to a runtime is made, and what its end means.
//!
//! Spec: the ACP RFD "Streamable HTTP & WebSocket transport". One connection per session; the cookies of
//! the 101 are kept and sent on the session's next connection.

use std::{
    io,
    os::fd::RawFd,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use secrecy::ExposeSecret;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::Instant,
};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, client_async_tls_with_config,
    tungstenite::{
        self,
        client::IntoClientRequest,
        error::{ProtocolError, UrlError},
        handshake::client::{Request, Response},
        http::{HeaderMap, HeaderName, HeaderValue, header},
        protocol::{CloseFrame, WebSocketConfig},
    },
};

use crate::{
    config::ReloadableSecret,
    contract::runtime::{CONNECTION_ID_HEADER, RECEIVED_HEADER, close_code},
    domain::heartbeat::Heartbeat,
    transport::{
        pipe::{CloseReason, PipeLimits},
        request_id::{self, X_REQUEST_ID},
    },
};

/// Where a runtime is, how much may wait on the way, and how long its silence is borne.
#[derive(Debug, Clone)]
pub(crate) struct Endpoint {
    /// `ws://host:port/acp` or `wss://…`.
    pub url: String,
    pub token: ReloadableSecret,
    /// Largest message, in bytes.
    pub frame_bytes: usize,
    /// Bounds of the queue in each direction.
    pub pipe: PipeLimits,
    pub resume: ResumeLimits,
    /// When a peer that numbers its messages counts as dead: nothing arrived, or nothing that waits could be written,
    /// for its silence. Also bounds an attempt to reconnect.
    pub heartbeat: Heartbeat,
}

/// `[runtime]` `reconnect_grace_s`, `replay_frames` and `replay_bytes`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ResumeLimits {
    /// Maximum duration of attempts to resume after a break; zero: a break is the end.
    pub grace: Duration,
    /// Messages that either end keeps until the other has acknowledged them.
    pub frames: usize,
    /// The same in bytes.
    pub bytes: usize,
}

/// A socket to a runtime. Boxed: it is more than a kilobyte, and is handed on.
pub(crate) type Socket = Box<WebSocketStream<MaybeTlsStream<Watched<TcpStream>>>>;

pub(crate) struct Upgraded {
    /// For frames.
    pub socket: Socket,
    /// `Acp-Connection-Id` of the 101, where the peer gives one.
    pub connection_id: Option<String>,
    /// Cookies for the session's next connection.
    pub cookies: Option<String>,
}

/// Identifies the connection that the new socket continues.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Earlier<'a> {
    pub connection_id: &'a str,
    /// Number of the last message that arrived on the connection, if known.
    pub received: Option<u64>,
}

/// A failed connect.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    /// The peer does not hold the connection that was to be resumed, so a retry does not help.
    #[error("the runtime does not hold the conversation any more")]
    NotHeld,
    /// The runtime is not up: the address refuses or resets connections, or a proxy has no runtime behind it.
    #[error("{0}")]
    Unreachable(String),
    /// Any other failure; a retry may succeed.
    #[error("{0}")]
    Failed(String),
}

/// Initial read buffer; it grows with the message. Small, because a supervisor holds 1,000 of them.
const READ_BUFFER_BYTES: usize = 4 * 1024;

/// Connects, for a new connection or to resume an `earlier` one. There is no time limit. Dropping the future leaves
/// nothing behind, and a retry is safe.
pub(crate) async fn upgrade(
    endpoint: &Endpoint,
    cookies: Option<&str>,
    earlier: Option<Earlier<'_>>,
) -> Result<Upgraded, ConnectError> {
    let request = request(endpoint, cookies, earlier).map_err(ConnectError::Failed)?;
    let (socket, response) = connect(request, endpoint.frame_bytes).await.map_err(|cause| match cause {
        tungstenite::Error::Http(response) if earlier.is_some() && is_not_held(response.status().as_u16()) => {
            ConnectError::NotHeld
        }
        other if is_unreachable(&other) => ConnectError::Unreachable(other.to_string()),
        other => ConnectError::Failed(other.to_string()),
    })?;
    let headers = response.headers();
    Ok(Upgraded {
        socket,
        connection_id: text(headers, CONNECTION_ID_HEADER),
        cookies: cookies_of(headers).or_else(|| cookies.map(str::to_owned)),
    })
}

async fn connect(request: Request, frame_bytes: usize) -> Result<(Socket, Response), tungstenite::Error> {
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(0)
        .max_write_buffer_size(frame_bytes.saturating_mul(2))
        .max_message_size(Some(frame_bytes))
        .max_frame_size(Some(frame_bytes));
    let uri = request.uri();
    let host = uri.host().ok_or(UrlError::NoHostName)?;
    let default_port = if uri.scheme_str() == Some("wss") { 443 } else { 80 };
    let address = format!("{host}:{}", uri.port_u16().unwrap_or(default_port));
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (socket, response) = client_async_tls_with_config(request, Watched::new(stream), Some(config), None).await?;
    Ok((Box::new(socket), response))
}

/// True if no runtime answered. 502, 503 and 504 are the answers of a proxy without a runtime, and of one that stops.
fn is_unreachable(cause: &tungstenite::Error) -> bool {
    match cause {
        tungstenite::Error::Io(_) | tungstenite::Error::ConnectionClosed => true,
        tungstenite::Error::Protocol(
            ProtocolError::HandshakeIncomplete | ProtocolError::ResetWithoutClosingHandshake,
        ) => true,
        tungstenite::Error::Http(response) => matches!(response.status().as_u16(), 502..=504),
        _ => false,
    }
}

/// True for 404, and for the statuses of runtimes whose replay does not reach back far enough.
fn is_not_held(status: u16) -> bool {
    matches!(status, 404 | 409 | 410)
}

fn request(endpoint: &Endpoint, cookies: Option<&str>, earlier: Option<Earlier<'_>>) -> Result<Request, String> {
    let mut request = endpoint.url.as_str().into_client_request().map_err(|cause| cause.to_string())?;
    let headers = request.headers_mut();
    if let Some(token) = endpoint.token.get().as_ref() {
        let mut value = HeaderValue::try_from(format!("Bearer {}", token.expose_secret()))
            .map_err(|_| "the runtime's token is no header value".to_owned())?;
        value.set_sensitive(true);
        headers.insert(header::AUTHORIZATION, value);
    }
    if let Some(id) = request_id::current().and_then(|id| HeaderValue::try_from(id).ok()) {
        headers.insert(HeaderName::from_static(X_REQUEST_ID), id);
    }
    if let Some(cookies) = cookies.and_then(|cookies| HeaderValue::try_from(cookies).ok()) {
        headers.insert(header::COOKIE, cookies);
    }
    if let Some(Earlier { connection_id, received }) = earlier {
        let id = HeaderValue::try_from(connection_id).map_err(|_| "the connection's id is no header value")?;
        headers.insert(CONNECTION_ID_HEADER, id);
        if let Some(received) = received {
            headers.insert(RECEIVED_HEADER, HeaderValue::from(received));
        }
    }
    Ok(request)
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

/// The `name=value` parts of all `Set-Cookie` headers, in the format of a `Cookie` header.
fn cookies_of(headers: &HeaderMap) -> Option<String> {
    let pairs: Vec<_> = headers
        .get_all(header::SET_COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok()?.split(';').next())
        .map(str::trim)
        .collect();
    (!pairs.is_empty()).then(|| pairs.join("; "))
}

/// Reads a closing frame. True if it ends the conversation and not only the socket: only the codes of [`close_code`]
/// do; other codes come from proxies in between.
pub(crate) fn closed(frame: Option<CloseFrame>) -> (bool, CloseReason) {
    let Some(frame) = frame else {
        return (false, CloseReason::Lost("the runtime closed the connection".into()));
    };
    let code = u16::from(frame.code);
    let is_end = matches!(
        code,
        close_code::NORMAL
            | close_code::GOING_AWAY
            | close_code::POLICY
            | close_code::TOO_BIG
            | close_code::AGENT_ENDED
            | close_code::REPLACED
    );
    let cause = format!("the runtime closed the connection: {code} {}", frame.reason);
    let stops = code == close_code::GOING_AWAY;
    (is_end, if stops { CloseReason::RuntimeUnavailable(cause) } else { CloseReason::Lost(cause) })
}

/// A stream that records the times of its last read and write.
#[derive(Debug)]
pub(crate) struct Watched<S> {
    stream: S,
    last_read: Instant,
    last_written: Instant,
}

impl<S> Watched<S> {
    pub(crate) fn new(stream: S) -> Self {
        let now = Instant::now();
        Self { stream, last_read: now, last_written: now }
    }

    /// Time of the last read that returned bytes.
    pub(crate) fn last_read(&self) -> Instant {
        self.last_read
    }

    /// Time of the last write that the peer, or a buffer before it, accepted.
    pub(crate) fn last_written(&self) -> Instant {
        self.last_written
    }

    fn note_written(&mut self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(1..)) = written {
            self.last_written = Instant::now();
        }
        written
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.last_read = Instant::now();
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.note_written(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.note_written(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Sets the time after which the kernel breaks the connection if the peer does not acknowledge data or keeps its
/// window closed. An invalid descriptor is ignored.
pub(crate) fn set_user_timeout(descriptor: RawFd, timeout: Duration) {
    let timeout_ms = libc::c_uint::try_from(timeout.as_millis()).unwrap_or(libc::c_uint::MAX);
    // SAFETY: the value is valid for the whole call and has the given length; the kernel checks the descriptor.
    unsafe {
        libc::setsockopt(
            descriptor,
            libc::IPPROTO_TCP,
            libc::TCP_USER_TIMEOUT,
            (&raw const timeout_ms).cast(),
            size_of_val(&timeout_ms) as libc::socklen_t,
        );
    }
}

/// Shuts a connection down in both directions, so that its owner reads the end of the stream. The caller guarantees
/// that the descriptor still belongs to this connection.
pub(crate) fn break_off(descriptor: RawFd) {
    // SAFETY: no memory is passed; the kernel checks the descriptor.
    unsafe {
        libc::shutdown(descriptor, libc::SHUT_RDWR);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookies_are_kept_without_their_attributes() {
        let mut headers = HeaderMap::new();
        headers.append(header::SET_COOKIE, HeaderValue::from_static("route=a1; Path=/; HttpOnly"));
        headers.append(header::SET_COOKIE, HeaderValue::from_static("b=2"));
        assert_eq!(cookies_of(&headers).as_deref(), Some("route=a1; b=2"));
        assert_eq!(cookies_of(&HeaderMap::new()), None);
    }
}
