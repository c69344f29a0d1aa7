//! Conversations over sockets that may break: one task for each carries it over one socket after the other.
//!
//! Both ends number their messages and keep what is not acknowledged, so that nothing is lost and nothing comes twice.
//! With a peer that does not number, a break is the end.

pub(crate) mod outbox;
pub(crate) mod pump;
pub(crate) mod websocket;

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt;
use tokio::time::{Instant, sleep, timeout};
use tokio_tungstenite::tungstenite::Message;
use uuid::Uuid;

use self::{
    outbox::Carrier,
    pump::End,
    websocket::{ConnectError, Earlier, Endpoint, Socket, Upgraded},
};
use super::{
    AdoptRequest, Delivered,
    pipe::{self, CloseReason, ConnectionState, Pipe},
};
use crate::{
    acp::jsonrpc,
    contract::runtime::{RESUMED, Resumed},
    domain::{
        session::restart::reconnect_delay,
        turn::outcome::{ErrorCode, Failure},
    },
};

/// Maximum time that a session which ends while its connection is broken tries to notify the runtime, which would
/// otherwise keep the agent for its grace.
const REPORT_CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

pub(crate) struct Connected {
    pub pipe: Pipe,
    /// Progress of the connection: the messages that the session has handled and settled.
    pub delivered: Arc<Delivered>,
    /// `Acp-Connection-Id` of the 101; empty where the peer gives none.
    pub connection_id: String,
    /// Cookies for the session's next connection.
    pub cookies: Option<String>,
}

/// Connects. The conversation runs in a task on the caller's thread until [`Pipe::to_agent`] is dropped, which closes
/// the socket with 1000, or until the peer ends it. There is no time limit. Dropping the future leaves nothing
/// behind, and a retry is safe.
pub(crate) async fn connect(endpoint: &Endpoint, cookies: Option<&str>) -> Result<Connected, Failure> {
    let Upgraded { socket, connection_id, cookies } =
        websocket::upgrade(endpoint, cookies, None).await.map_err(|cause| not_connected(endpoint, &cause))?;
    let connection_id = connection_id.unwrap_or_default();
    let (pipe, carrier, delivered) = ends(endpoint);
    let peer = Peer { endpoint: endpoint.clone(), connection_id: connection_id.clone(), cookies: cookies.clone() };
    tokio::spawn(Conversation { carrier, peer, attempts: 0 }.run(socket, 1));
    Ok(Connected { pipe, delivered, connection_id, cookies })
}

/// Resumes a conversation whose client died. Tries once, and is safe to retry.
pub(crate) async fn adopt(endpoint: &Endpoint, request: &AdoptRequest) -> Result<(Connected, Resumed), Failure> {
    let mut peer = Peer {
        endpoint: endpoint.clone(),
        connection_id: request.connection_id.clone(),
        cookies: request.cookies.clone(),
    };
    let (socket, resumed) = peer.resume(None).await.map_err(|cause| match cause {
        ConnectError::NotHeld => Failure::new(ErrorCode::ConnectionLost, cause.to_string()),
        // Until the grace is over the runtime may come back, whatever it answers meanwhile.
        ConnectError::Unreachable(_) | ConnectError::Failed(_) => unavailable(endpoint, &cause),
    })?;
    // Numbers count messages, so a number near the end of the range is malformed.
    if resumed.received.max(resumed.after) > u64::MAX / 2 {
        let detail = "the runtime's message numbers are out of range";
        return Err(Failure::new(ErrorCode::ConnectionLost, detail));
    }
    let (pipe, carrier, delivered) = ends(endpoint);
    // The runtime replays messages that are on disk but whose acknowledgement it never received; messages from before
    // the turn belong to ended turns.
    let newest = resumed.prompt.as_ref();
    let ended = request.ended.filter(|(id, _)| newest.is_some_and(|newest| newest.prompt_id == *id));
    let known = request.received.max(newest.map_or(0, |prompt| prompt.after)).max(ended.map_or(0, |(_, seq)| seq));
    let carrier = carrier.adopt(endpoint.resume, resumed.after, known, resumed.received);
    let (connection_id, cookies) = (peer.connection_id.clone(), peer.cookies.clone());
    tokio::spawn(Conversation { carrier, peer, attempts: 0 }.run(socket, resumed.received + 1));
    Ok((Connected { pipe, delivered, connection_id, cookies }, resumed))
}

/// A runtime that answers and refuses the connection is a failure of ACP; one that does not answer is not.
fn not_connected(endpoint: &Endpoint, cause: &ConnectError) -> Failure {
    match cause {
        ConnectError::Unreachable(_) => unavailable(endpoint, cause),
        ConnectError::NotHeld | ConnectError::Failed(_) => {
            let detail = format!("the runtime at {} refused the connection: {cause}", endpoint.url);
            Failure::new(ErrorCode::ConnectionLost, detail)
        }
    }
}

fn unavailable(endpoint: &Endpoint, cause: &ConnectError) -> Failure {
    let detail = format!("the runtime at {} cannot be reached: {cause}", endpoint.url);
    Failure::new(ErrorCode::RuntimeUnavailable, detail)
}

fn ends(endpoint: &Endpoint) -> (Pipe, Carrier, Arc<Delivered>) {
    let (to_agent, outgoing) = pipe::bounded(endpoint.pipe);
    let (incoming, from_agent) = pipe::bounded(endpoint.pipe);
    let delivered = Arc::<Delivered>::default();
    let carrier = Carrier::new(outgoing, incoming, delivered.clone(), endpoint.resume);
    (Pipe { to_agent, from_agent }, carrier, delivered)
}

/// Runtime to which a broken connection is resumed.
struct Peer {
    endpoint: Endpoint,
    connection_id: String,
    cookies: Option<String>,
}

impl Peer {
    /// Opens a socket that continues after message `received`, or with all messages that the runtime holds, and reads
    /// the number of the last message that the runtime received from this client.
    async fn resume(&mut self, received: Option<u64>) -> Result<(Socket, Resumed), ConnectError> {
        let earlier = Earlier { connection_id: &self.connection_id, received };
        let upgraded = websocket::upgrade(&self.endpoint, self.cookies.as_deref(), Some(earlier)).await?;
        // A peer that names another connection has begun a new one instead.
        if upgraded.connection_id.is_some_and(|id| id != self.connection_id) {
            return Err(ConnectError::NotHeld);
        }
        self.cookies = upgraded.cookies;
        let mut socket = upgraded.socket;
        loop {
            match socket.next().await {
                // A peer that resumes sends its position first; any other message shows that it began anew.
                Some(Ok(Message::Text(text))) => match resumed(&text) {
                    Some(resumed) => return Ok((socket, resumed)),
                    None => return Err(ConnectError::NotHeld),
                },
                Some(Ok(Message::Close(frame))) => {
                    let (is_end, reason) = websocket::closed(frame);
                    return Err(match (is_end, reason) {
                        (_, CloseReason::RuntimeUnavailable(cause)) => ConnectError::Unreachable(cause),
                        (true, _) => ConnectError::NotHeld,
                        (false, reason) => ConnectError::Failed(format!("{reason:?}")),
                    });
                }
                Some(Ok(_)) => {}
                Some(Err(cause)) => return Err(ConnectError::Failed(cause.to_string())),
                None => return Err(ConnectError::Failed("the runtime closed the connection".into())),
            }
        }
    }

    /// Retries with backoff until the connection is resumed or the grace is over.
    async fn reconnect(&mut self, received: u64, attempts: &mut u32) -> Result<(Socket, Resumed), CloseReason> {
        let (grace, patience) = (self.endpoint.resume.grace, self.endpoint.heartbeat.silence);
        let until = Instant::now() + grace;
        let (mut why, mut is_unreachable) = ("no try was made".to_owned(), false);
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let delay = reconnect_delay(*attempts, random_fraction());
            *attempts = attempts.saturating_add(1);
            sleep(delay.min(left)).await;
            let left = left.saturating_sub(delay);
            if left.is_zero() {
                let cause = format!("the runtime did not come back within {} s: {why}", grace.as_secs_f32());
                return Err(if is_unreachable {
                    CloseReason::RuntimeUnavailable(cause)
                } else {
                    CloseReason::Lost(cause)
                });
            }
            (why, is_unreachable) = match timeout(patience.min(left), self.resume(Some(received))).await {
                Ok(Ok(reconnected)) => return Ok(reconnected),
                // Within the grace, only a restart makes the runtime forget a conversation.
                Ok(Err(cause @ ConnectError::NotHeld)) => {
                    return Err(CloseReason::RuntimeUnavailable(format!("the runtime restarted: {cause}")));
                }
                Ok(Err(ConnectError::Unreachable(cause))) => (cause, true),
                Ok(Err(ConnectError::Failed(cause))) => (cause, false),
                Err(_) => ("it does not answer".to_owned(), false),
            };
            tracing::debug!(marker = "[ACP]", connection = self.connection_id, why, "not reconnected");
        }
    }

    /// Notifies the runtime that a conversation ended while its connection was broken.
    async fn report_close(&mut self, received: u64) {
        let closing = async {
            if let Ok((mut socket, _)) = self.resume(Some(received)).await {
                pump::close_gracefully(&mut socket).await;
            }
        };
        if timeout(REPORT_CLOSE_TIMEOUT, closing).await.is_err() {
            tracing::debug!(
                marker = "[ACP]",
                connection = self.connection_id,
                "end of the conversation did not reach the runtime"
            );
        }
    }
}

fn resumed(text: &str) -> Option<Resumed> {
    match jsonrpc::parse(text) {
        Ok(jsonrpc::Message::Notification { method, params }) if method == RESUMED => {
            serde_json::from_str(params.get()).ok()
        }
        _ => None,
    }
}

/// From 0 to 1, for jitter.
pub(crate) fn random_fraction() -> f64 {
    let (_, low) = Uuid::new_v4().as_u64_pair();
    f64::from(low as u32) / f64::from(u32::MAX)
}

/// A conversation, which outlives its sockets.
struct Conversation {
    carrier: Carrier,
    peer: Peer,
    /// Attempts to reconnect since a message or an acknowledgement last arrived.
    attempts: u32,
}

/// Reason for which a broken connection is not resumed.
enum ReconnectError {
    /// The connection cannot be resumed.
    Over(CloseReason),
    /// The session ended during the break.
    Abandoned,
}

impl Conversation {
    async fn run(mut self, mut socket: Socket, mut resend: u64) {
        let Endpoint { heartbeat, frame_bytes, .. } = self.peer.endpoint;
        loop {
            let before = (self.carrier.received(), self.carrier.acknowledged());
            let end = pump::carry(&mut self.carrier, &mut socket, heartbeat, frame_bytes, resend).await;
            if before != (self.carrier.received(), self.carrier.acknowledged()) {
                // Only progress resets the backoff: a connection that breaks after each handshake is retried ever
                // more slowly.
                self.attempts = 0;
            }
            let is_resumable = self.carrier.is_numbered() && !self.peer.connection_id.is_empty();
            let cause = match end {
                End::Closed { confirmed } => {
                    if is_resumable && !confirmed {
                        Box::pin(self.peer.report_close(self.carrier.received())).await;
                    }
                    return;
                }
                End::Over(reason) => return self.carrier.close(reason).await,
                End::Refused(reason) => {
                    // Together: the session need not wait for the runtime, nor the runtime for the session.
                    let closing = pump::close_gracefully(&mut socket);
                    futures_util::future::join(closing, self.carrier.close(reason)).await;
                    return;
                }
                End::Broken(cause) if is_resumable => cause,
                End::Broken(cause) => return self.carrier.close(CloseReason::Lost(cause)).await,
            };
            // Releases the descriptor before a wait that may last for the whole grace.
            drop(socket);
            match self.reconnect(cause).await {
                Ok(again) => (socket, resend) = again,
                Err(ReconnectError::Over(reason)) => return self.carrier.close(reason).await,
                Err(ReconnectError::Abandoned) => {
                    return Box::pin(self.peer.report_close(self.carrier.received())).await;
                }
            }
        }
    }

    async fn reconnect(&mut self, cause: String) -> Result<(Socket, u64), ReconnectError> {
        let connection = self.peer.connection_id.clone();
        tracing::info!(marker = "[ACP]", connection, cause, "connection broke; reconnecting");
        self.carrier.send_state(ConnectionState::Interrupted(cause));
        // Boxed, as `report_close` is: the future of a connect is large, and every session has a task of this type.
        let reconnecting = Box::pin(self.peer.reconnect(self.carrier.received(), &mut self.attempts));
        let (mut socket, resumed) = tokio::select! {
            reconnected = reconnecting => match reconnected {
                Ok(reconnected) => reconnected,
                Err(reason) => return Err(ReconnectError::Over(reason)),
            },
            // A session that ends during the break must not wait for the grace.
            () = self.carrier.abandoned() => return Err(ReconnectError::Abandoned),
        };
        match self.carrier.resume(resumed.received) {
            Ok(from) => {
                tracing::info!(marker = "[ACP]", connection, "connection resumed");
                self.carrier.send_state(ConnectionState::Resumed);
                Ok((socket, from))
            }
            Err(out_of_range) => {
                pump::close_gracefully(&mut socket).await;
                Err(ReconnectError::Over(CloseReason::Lost(out_of_range.to_string())))
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
