//! ACP over WebSocket, the client's side: one text frame, one message.
//!
//! Spec: the ACP RFD "Streamable HTTP & WebSocket transport". One connection per session; the cookies of
//! the 101 are kept and sent on the session's next connection.

use std::time::Duration;

use futures_util::{
    SinkExt, StreamExt,
    future::{Either, select},
    stream::{SplitSink, SplitStream},
};
use secrecy::{ExposeSecret, SecretString};
use tokio::net::TcpStream;
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async_with_config,
    tungstenite::{
        self, Message,
        client::IntoClientRequest,
        error::CapacityError,
        http::{HeaderMap, HeaderValue, header},
        protocol::{CloseFrame, WebSocketConfig, frame::coding::CloseCode},
    },
};

use super::pipe::{self, CloseReason, FrameReceiver, FrameSender, Incoming, Pipe, PipeLimits};
use crate::domain::outcome::{ErrorCode, Failure};

/// Where a runtime is, and how much may wait on the way.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// `ws://host:port/acp` or `wss://…`.
    pub url: String,
    /// Bearer token.
    pub token: Option<SecretString>,
    /// Largest message, in bytes.
    pub frame_bytes: usize,
    /// What may wait in each direction.
    pub pipe: PipeLimits,
}

/// A connection that stands.
pub struct Connected {
    /// The messages.
    pub pipe: Pipe,
    /// `Acp-Connection-Id` of the 101; empty where the peer gives none.
    pub connection_id: String,
    /// Cookies for the session's next connection.
    pub cookies: Option<String>,
}

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// How long to wait for the peer's part of the closing handshake before the socket is dropped.
const CLOSE_WAIT: Duration = Duration::from_secs(2);
/// Initial read buffer; it grows with the message. Small, because a supervisor holds 1,000 of them.
const READ_BUFFER_BYTES: usize = 4 * 1024;

/// Connects. The socket lives in a task of the caller's thread until [`Pipe::to_agent`] is dropped (then it
/// closes with 1000) or the peer ends it.
pub async fn connect(endpoint: &Endpoint, cookies: Option<&str>) -> Result<Connected, Failure> {
    let unavailable = |cause: String| {
        Failure::new(
            ErrorCode::RuntimeUnavailable,
            format!("the runtime at {} cannot be reached: {cause}", endpoint.url),
        )
    };
    let request = request(endpoint, cookies).map_err(&unavailable)?;
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(0)
        .max_write_buffer_size(endpoint.frame_bytes.saturating_mul(2))
        .max_message_size(Some(endpoint.frame_bytes))
        .max_frame_size(Some(endpoint.frame_bytes));
    let (socket, response) = connect_async_with_config(request, Some(config), true)
        .await
        .map_err(|cause| unavailable(cause.to_string()))?;
    let (to_agent, outgoing) = pipe::bounded(endpoint.pipe);
    let (incoming, from_agent) = pipe::bounded(endpoint.pipe);
    tokio::spawn(carry(socket, outgoing, incoming, endpoint.frame_bytes));
    let headers = response.headers();
    Ok(Connected {
        pipe: Pipe { to_agent, from_agent },
        connection_id: text(headers, "acp-connection-id").unwrap_or_default(),
        cookies: cookies_of(headers).or_else(|| cookies.map(str::to_owned)),
    })
}

fn request(endpoint: &Endpoint, cookies: Option<&str>) -> Result<tungstenite::handshake::client::Request, String> {
    let mut request = endpoint.url.as_str().into_client_request().map_err(|cause| cause.to_string())?;
    let headers = request.headers_mut();
    if let Some(token) = &endpoint.token {
        let mut value = HeaderValue::try_from(format!("Bearer {}", token.expose_secret()))
            .map_err(|_| "the runtime's token is no header value".to_owned())?;
        value.set_sensitive(true);
        headers.insert(header::AUTHORIZATION, value);
    }
    if let Some(cookies) = cookies.and_then(|cookies| HeaderValue::try_from(cookies).ok()) {
        headers.insert(header::COOKIE, cookies);
    }
    Ok(request)
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

/// The name=value parts of all `Set-Cookie` headers, as a `Cookie` header wants them.
fn cookies_of(headers: &HeaderMap) -> Option<String> {
    let pairs: Vec<_> = headers
        .get_all(header::SET_COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok()?.split(';').next())
        .map(str::trim)
        .collect();
    (!pairs.is_empty()).then(|| pairs.join("; "))
}

async fn carry(socket: Socket, outgoing: FrameReceiver, incoming: FrameSender, limit: usize) {
    let (sink, stream) = socket.split();
    let reading = std::pin::pin!(read(stream, incoming.clone(), limit));
    let writing = std::pin::pin!(write(sink, outgoing));
    match select(reading, writing).await {
        Either::Left((reason, _)) => incoming.close(reason).await,
        // Our side ended the session; the peer's closing frame is waited for, its messages are not.
        Either::Right((Ok(()), reading)) => {
            let _ = tokio::time::timeout(CLOSE_WAIT, reading).await;
        }
        // A peer that closed while we wrote has said why in what it sent before.
        Either::Right((Err(cause), reading)) => {
            let reason = tokio::time::timeout(CLOSE_WAIT, reading).await;
            incoming.close(reason.unwrap_or_else(|_| CloseReason::Lost(cause.to_string()))).await;
        }
    }
}

async fn read(mut stream: SplitStream<Socket>, incoming: FrameSender, limit: usize) -> CloseReason {
    loop {
        match stream.next().await {
            Some(Ok(Message::Text(text))) => {
                if incoming.send(text.as_str().to_owned()).await.is_err() {
                    return CloseReason::Lost("nobody listens any more".into());
                }
            }
            Some(Ok(Message::Close(frame))) => return closed(frame),
            // Pings are answered by the library; binary frames are reserved by the spec and ignored.
            Some(Ok(_)) => {}
            Some(Err(tungstenite::Error::Capacity(CapacityError::MessageTooLong { .. }))) => {
                return CloseReason::FrameTooLarge { limit };
            }
            Some(Err(cause)) => return CloseReason::Lost(cause.to_string()),
            None => return CloseReason::Lost("the runtime closed the connection".into()),
        }
    }
}

fn closed(frame: Option<CloseFrame>) -> CloseReason {
    match frame {
        Some(frame) => {
            CloseReason::Lost(format!("the runtime closed the connection: {} {}", frame.code, frame.reason))
        }
        None => CloseReason::Lost("the runtime closed the connection".into()),
    }
}

async fn write(mut sink: SplitSink<Socket, Message>, mut outgoing: FrameReceiver) -> Result<(), tungstenite::Error> {
    while let Some(Incoming::Frame(frame)) = outgoing.recv().await {
        sink.send(Message::text(frame.into_text())).await?;
    }
    sink.send(Message::Close(Some(CloseFrame { code: CloseCode::Normal, reason: "".into() }))).await
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
