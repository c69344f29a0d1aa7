//! One WebSocket to `GET /ws/notifications`.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use tokio::{
    net::TcpStream,
    time::{Instant, sleep, timeout},
};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, client_async_tls_with_config,
    tungstenite::{
        self, Message,
        client::IntoClientRequest,
        error::UrlError,
        handshake::client::Request,
        protocol::{CloseFrame, WebSocketConfig, frame::coding::CloseCode},
    },
};

use super::{frames::Incoming, inbox::NotificationScope};
use crate::{
    client::{ApiClient, ClientError, api::unexpected, clean::clean_line},
    contract::{notifications::frames::ClientFrame, problem::Problem},
    domain::heartbeat::{Due, Heartbeat, Pulse},
};

/// The largest accepted frame, in bytes; a notification has some hundred.
const MAX_FRAME_BYTES: usize = 64 * 1024;
/// The initial read buffer, which grows with a frame.
const READ_BUFFER_BYTES: usize = 4 * 1024;
/// Time limit for connecting, including `hello`.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// Time limit for sending a frame before the connection counts as broken.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// Time limit for sending the closing frame.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Why a connection ended, or could not be made.
#[derive(Debug)]
pub(crate) enum End {
    /// The server closed it, with a code or without.
    Closed(Option<u16>, String),
    /// The server answered this status instead of an upgrade.
    Refused(u16, ClientError),
    /// The connection broke, or could not be made.
    Broke(String),
    /// The request cannot be built.
    Impossible(ClientError),
}

pub(crate) struct OpenConnection {
    socket: Box<WebSocketStream<MaybeTlsStream<TcpStream>>>,
    heartbeat: Heartbeat,
    pulse: Pulse,
    opened: Instant,
}

impl OpenConnection {
    /// Connects and sends `hello`. Safe to repeat.
    ///
    /// # Cancel safety
    /// A dropped future closes the connection.
    pub(crate) async fn open(
        client: &ApiClient,
        scope: &NotificationScope,
        hello: &ClientFrame,
        heartbeat: Heartbeat,
    ) -> Result<Self, End> {
        let request = request(client, scope).map_err(End::Impossible)?;
        let url = request.uri().to_string();
        let opening = async {
            let mut socket = connect(request).await.map_err(|cause| not_connected(cause, &url))?;
            send(&mut socket, hello).await?;
            Ok(socket)
        };
        let late = |_| Err(End::Broke(format!("{url} does not answer within {} s", OPEN_TIMEOUT.as_secs())));
        let socket = timeout(OPEN_TIMEOUT, opening).await.unwrap_or_else(late)?;
        Ok(Self { socket, heartbeat, pulse: Pulse::new(heartbeat), opened: Instant::now() })
    }

    /// Time since the connection was opened.
    pub(crate) fn age(&self) -> Duration {
        self.opened.elapsed()
    }

    /// The next frame.
    ///
    /// # Errors
    /// The connection ended.
    ///
    /// # Cancel safety
    /// No frame is lost.
    pub(crate) async fn next(&mut self) -> Result<Incoming, End> {
        loop {
            let wait = self.pulse.wait(self.opened.elapsed());
            let message = tokio::select! {
                // Frames that arrived before the deadline count as a sign of life.
                biased;
                message = self.socket.next() => message,
                () = sleep(wait) => match self.pulse.due(self.opened.elapsed()) {
                    Due::Nothing(_) => continue,
                    Due::Ping => {
                        timeout(SEND_TIMEOUT, send(&mut self.socket, &ClientFrame::Ping)).await.unwrap_or_else(too_slow)?;
                        continue;
                    }
                    Due::End => {
                        let silence = self.heartbeat.silence.as_secs_f32();
                        return Err(End::Broke(format!("no message for {silence} s")));
                    }
                },
            };
            self.pulse.receive(self.opened.elapsed());
            match message {
                Some(Ok(Message::Text(text))) => {
                    return serde_json::from_str(&text)
                        .map_err(|cause| End::Broke(format!("malformed frame: {cause}")));
                }
                Some(Ok(Message::Close(frame))) => return Err(closed(frame)),
                // Pings are answered by the socket itself.
                Some(Ok(_)) => {}
                Some(Err(cause)) => return Err(End::Broke(clean_line(&cause.to_string()))),
                None => return Err(End::Closed(None, "the connection was closed".into())),
            }
        }
    }

    pub(crate) async fn close(mut self) {
        let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        // The result does not matter: the connection is dropped anyway.
        let _ = timeout(CLOSE_TIMEOUT, WebSocketStream::close(&mut self.socket, Some(frame))).await;
    }
}

fn too_slow(_: tokio::time::error::Elapsed) -> Result<(), End> {
    Err(End::Broke("the server does not read".into()))
}

fn closed(frame: Option<CloseFrame>) -> End {
    match frame {
        Some(frame) => End::Closed(Some(frame.code.into()), clean_line(&frame.reason)),
        None => End::Closed(None, "the server closed the connection without a reason".into()),
    }
}

async fn send(socket: &mut WebSocketStream<MaybeTlsStream<TcpStream>>, frame: &ClientFrame) -> Result<(), End> {
    let text = serde_json::to_string(frame).map_err(|cause| End::Impossible(cause.into()))?;
    socket.send(Message::text(text)).await.map_err(|cause| End::Broke(clean_line(&cause.to_string())))
}

fn request(client: &ApiClient, scope: &NotificationScope) -> Result<Request, ClientError> {
    let mut url = client.address(&["ws", "notifications"]);
    let setup = |what: &str| ClientError::Setup(what.to_owned());
    let scheme = if url.scheme() == "https" { "wss" } else { "ws" };
    url.set_scheme(scheme).map_err(|()| setup("the address of the server cannot be that of a WebSocket"))?;
    url.query_pairs_mut().extend_pairs(scope.query()?);
    let mut request = url.as_str().into_client_request().map_err(|cause| setup(&cause.to_string()))?;
    request.headers_mut().extend(client.headers().clone());
    Ok(request)
}

async fn connect(request: Request) -> Result<Box<WebSocketStream<MaybeTlsStream<TcpStream>>>, tungstenite::Error> {
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(0)
        .max_write_buffer_size(MAX_FRAME_BYTES)
        .max_message_size(Some(MAX_FRAME_BYTES))
        .max_frame_size(Some(MAX_FRAME_BYTES));
    let uri = request.uri();
    let host = uri.host().ok_or(UrlError::NoHostName)?;
    let default_port = if uri.scheme_str() == Some("wss") { 443 } else { 80 };
    let stream = TcpStream::connect(format!("{host}:{}", uri.port_u16().unwrap_or(default_port))).await?;
    stream.set_nodelay(true)?;
    let (socket, _) = client_async_tls_with_config(request, stream, Some(config), None).await?;
    Ok(Box::new(socket))
}

fn not_connected(cause: tungstenite::Error, url: &str) -> End {
    match cause {
        tungstenite::Error::Http(response) => {
            let (status, body) = (response.status(), response.body().as_deref().unwrap_or_default());
            let error = match serde_json::from_slice::<Problem>(body) {
                Ok(problem) => ClientError::Problem(Box::new(problem)),
                Err(_) => unexpected(status, url.to_owned(), body),
            };
            End::Refused(status.as_u16(), error)
        }
        other => End::Broke(format!("cannot reach {}: {}", clean_line(url), clean_line(&other.to_string()))),
    }
}
