//! `GET /acp`: one WebSocket, one agent. Text passes in both directions as it is.
//!
//! The actor is polled only while the client reads, and it takes the agent's messages from a bounded pipe:
//! a client that does not read makes the agent wait, not this process grow.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use actix::{Actor, ActorContext, ActorFutureExt, AsyncContext, SpawnHandle, StreamHandler, WrapFuture};
use actix_web::{
    HttpRequest, HttpResponse,
    http::header::{HeaderName, HeaderValue},
    web,
};
use actix_web_actors::ws::{self, CloseCode, ProtocolError, WebsocketContext};
use bytes::BytesMut;
use futures_util::Stream;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::watch;
use uuid::Uuid;

use super::{
    agents::{Agents, StartedAgent},
    folders::{Folder, SessionFolders},
    handshake::{self, Opening},
};
use crate::{
    acp::{
        jsonrpc::{self, FrameError, Message, RpcError},
        schema::{RequestId, agent_method},
    },
    contract::runtime::{AGENT_EXITED, AgentExited, close_code},
    domain::outcome::{ErrorCode, Failure},
    transport::pipe::{CloseReason, FrameReceiver, FrameSender, Incoming, SendError},
};

/// How long the client may take to answer our closing frame before the connection is dropped.
const CLOSE_WAIT: Duration = Duration::from_secs(2);
/// Bytes that one poll takes from the agent before it lets others run and the socket be written.
const BYTES_PER_POLL: usize = 64 * 1024;
/// The header of the 101 (ACP RFD "Streamable HTTP & WebSocket transport").
const CONNECTION_ID: HeaderName = HeaderName::from_static("acp-connection-id");

/// What every socket is given.
#[derive(Clone)]
pub struct SocketSettings {
    /// Starts agents.
    pub agents: Arc<Agents>,
    /// Turns true when the runtime stops.
    pub stopping: watch::Receiver<bool>,
    /// The largest message, in bytes.
    pub frame_bytes: usize,
}

/// Upgrades the connection; the answer names it in `Acp-Connection-Id`.
pub fn accept(
    request: &HttpRequest,
    body: web::Payload,
    settings: SocketSettings,
) -> actix_web::Result<HttpResponse> {
    let connection = Uuid::now_v7();
    let frame_bytes = settings.frame_bytes;
    let socket = AcpSocket { settings, connection, state: State::Waiting, fragments: None };
    let mut response = ws::WsResponseBuilder::new(socket, request, body).frame_size(frame_bytes).start()?;
    let id = HeaderValue::try_from(connection.to_string()).map_err(actix_web::error::ErrorInternalServerError)?;
    response.headers_mut().insert(CONNECTION_ID, id);
    Ok(response)
}

/// The actor of one connection.
struct AcpSocket {
    settings: SocketSettings,
    connection: Uuid,
    state: State,
    /// The parts of a message that comes in several frames.
    fragments: Option<BytesMut>,
}

enum State {
    /// For `initialize`.
    Waiting,
    Connected(Connected),
    /// The closing frame is out.
    Closing,
}

struct Connected {
    to_agent: FrameSender,
    folders: SessionFolders,
    home: Option<Folder>,
    agent_stream: SpawnHandle,
}

type Ctx = WebsocketContext<AcpSocket>;

impl Actor for AcpSocket {
    type Context = Ctx;

    fn started(&mut self, ctx: &mut Ctx) {
        let mut stopping = self.settings.stopping.clone();
        let stopped = async move {
            // An error means that the runtime is gone, which is the same.
            let _ = stopping.wait_for(|stopping| *stopping).await;
        };
        let goodbye = stopped.into_actor(self).map(|(), socket, ctx| {
            socket.close(close_code::GOING_AWAY, "the runtime is stopping", ctx);
        });
        ctx.spawn(goodbye);
    }
}

/// From the client.
impl StreamHandler<Result<ws::Message, ProtocolError>> for AcpSocket {
    fn handle(&mut self, message: Result<ws::Message, ProtocolError>, ctx: &mut Ctx) {
        match message {
            Ok(ws::Message::Text(text)) => self.on_text(&text, ctx),
            Ok(ws::Message::Ping(payload)) => ctx.pong(&payload),
            Ok(ws::Message::Continuation(part)) => self.on_part(part, ctx),
            Ok(ws::Message::Binary(_)) => self.close(close_code::POLICY, "messages are text", ctx),
            Ok(ws::Message::Close(reason)) => {
                if !matches!(self.state, State::Closing) {
                    ctx.close(reason);
                }
                ctx.stop();
            }
            Ok(ws::Message::Pong(_) | ws::Message::Nop) => {}
            Err(ProtocolError::Overflow) => self.close_too_big(ctx),
            Err(cause) => {
                tracing::debug!(connection = %self.connection, %cause, "the socket broke");
                ctx.stop();
            }
        }
    }
}

/// From the agent.
impl StreamHandler<Incoming> for AcpSocket {
    fn handle(&mut self, incoming: Incoming, ctx: &mut Ctx) {
        match incoming {
            Incoming::Frame(frame) => ctx.text(frame.into_text()),
            Incoming::Closed(reason) => self.on_agent_gone(reason, ctx),
            // An agent's pipes do not come back.
            Incoming::Line(_) => {}
        }
    }

    fn finished(&mut self, _: &mut Ctx) {
        // The end has been said with `Closed`; the socket closes in its own time.
    }
}

impl AcpSocket {
    fn close(&mut self, code: u16, why: &str, ctx: &mut Ctx) {
        if let State::Closing = self.state {
            return;
        }
        // Dropping the sender ends the agent.
        if let State::Connected(connected) = std::mem::replace(&mut self.state, State::Closing) {
            ctx.cancel_future(connected.agent_stream);
        }
        ctx.close(Some(ws::CloseReason { code: CloseCode::from(code), description: Some(why.to_owned()) }));
        ctx.run_later(CLOSE_WAIT, |_, ctx| ctx.stop());
    }

    fn close_too_big(&mut self, ctx: &mut Ctx) {
        self.close(close_code::TOO_BIG, &format!("a message has at most {} bytes", self.settings.frame_bytes), ctx);
    }

    fn refuse(id: &RequestId, error: &RpcError, ctx: &mut Ctx) {
        ctx.text(jsonrpc::response(id, Err::<(), _>(error)));
    }

    fn on_part(&mut self, part: actix_http::ws::Item, ctx: &mut Ctx) {
        use actix_http::ws::Item;
        let (bytes, last) = match part {
            Item::FirstText(bytes) => {
                self.fragments = Some(BytesMut::new());
                (bytes, false)
            }
            Item::FirstBinary(_) => return self.close(close_code::POLICY, "messages are text", ctx),
            Item::Continue(bytes) => (bytes, false),
            Item::Last(bytes) => (bytes, true),
        };
        let Some(fragments) = &mut self.fragments else { return };
        if fragments.len() + bytes.len() > self.settings.frame_bytes {
            self.fragments = None;
            return self.close_too_big(ctx);
        }
        fragments.extend_from_slice(&bytes);
        if last && let Some(whole) = self.fragments.take() {
            match std::str::from_utf8(&whole) {
                Ok(text) => self.on_text(text, ctx),
                Err(_) => self.close(close_code::POLICY, "a text is not UTF-8", ctx),
            }
        }
    }

    fn on_text(&mut self, text: &str, ctx: &mut Ctx) {
        if let State::Closing = self.state {
            return;
        }
        let waiting = matches!(self.state, State::Waiting);
        match jsonrpc::parse(text) {
            Err(cause) => {
                let code = match cause {
                    FrameError::NotJson(_) => jsonrpc::PARSE_ERROR,
                    FrameError::NotAMessage => jsonrpc::INVALID_REQUEST,
                };
                Self::refuse(&RequestId::Null, &RpcError::new(code, cause.to_string()), ctx);
                if waiting {
                    self.close(close_code::POLICY, "the first message has to be `initialize`", ctx);
                }
            }
            Ok(Message::Request { id, method, params }) if method == agent_method::INITIALIZE => {
                if waiting {
                    self.on_initialize(id, params, ctx);
                } else {
                    let error = RpcError::new(jsonrpc::INVALID_REQUEST, "the connection is initialized already");
                    Self::refuse(&id, &error, ctx);
                }
            }
            Ok(message) if waiting => {
                let id = match message {
                    Message::Request { id, .. } => id,
                    _ => RequestId::Null,
                };
                let error = RpcError::new(jsonrpc::INVALID_REQUEST, "the first message has to be `initialize`");
                Self::refuse(&id, &error, ctx);
                self.close(close_code::POLICY, "the first message has to be `initialize`", ctx);
            }
            Ok(Message::Request { id, method, params }) if begins_session(&method) => {
                self.on_session(id, params, text.to_owned(), ctx);
            }
            Ok(_) => self.forward(text.to_owned(), ctx),
        }
    }

    fn forward(&mut self, text: String, ctx: &mut Ctx) {
        let State::Connected(connected) = &self.state else { return };
        match connected.to_agent.try_send(text) {
            // An agent that is gone says so by its own way.
            Ok(()) | Err(SendError::Closed) => {}
            Err(SendError::Full) => self.close(close_code::POLICY, "more than the agent reads", ctx),
        }
    }

    fn on_initialize(&mut self, id: RequestId, params: &RawValue, ctx: &mut Ctx) {
        let opening = match Opening::read(params) {
            Ok(opening) => opening,
            Err(error) => return Self::refuse(&id, &error, ctx),
        };
        let agents = self.settings.agents.clone();
        let start = async move {
            let started = agents.start(opening.meta()).await;
            (id, opening, started)
        };
        // Nothing else is read from the client until the agent is there.
        ctx.wait(start.into_actor(self).map(|(id, opening, started), socket, ctx| match started {
            Ok(agent) => socket.on_started(&id, opening, agent, ctx),
            Err(failure) => {
                tracing::warn!(connection = %socket.connection, code = failure.code.as_str(), %failure, "no agent");
                Self::refuse(&id, &handshake::refusal(&failure), ctx);
            }
        }));
    }

    fn on_started(&mut self, id: &RequestId, opening: Opening, agent: StartedAgent, ctx: &mut Ctx) {
        if !matches!(self.state, State::Waiting) {
            // Closed meanwhile: dropping the pipe ends the agent.
            return;
        }
        let StartedAgent { pipe, serves, folders, home } = agent;
        let agent_stream = ctx.add_stream(AgentStream { from_agent: pipe.from_agent, taken_bytes: 0 });
        self.state = State::Connected(Connected { to_agent: pipe.to_agent, folders, home, agent_stream });
        self.forward(opening.for_agent(id, serves), ctx);
    }

    /// Passes a session's beginning on when its folder is allowed.
    fn on_session(&mut self, id: RequestId, params: &RawValue, text: String, ctx: &mut Ctx) {
        #[derive(Deserialize)]
        struct WithCwd {
            cwd: String,
        }
        let State::Connected(connected) = &self.state else { return };
        let WithCwd { cwd } = match serde_json::from_str(params.get()) {
            Ok(params) => params,
            Err(cause) => {
                return Self::refuse(&id, &RpcError::new(jsonrpc::INVALID_PARAMS, cause.to_string()), ctx);
            }
        };
        let (agents, home, folders) =
            (self.settings.agents.clone(), connected.home.clone(), connected.folders.clone());
        let check = async move { agents.open_folder(cwd, home).await.and_then(|folder| folders.add(folder)) };
        // Waited for, so that messages stay in their order.
        ctx.wait(check.into_actor(self).map(move |checked: Result<(), Failure>, socket, ctx| match checked {
            Ok(()) => socket.forward(text, ctx),
            Err(failure) => Self::refuse(&id, &handshake::refusal(&failure), ctx),
        }));
    }

    fn on_agent_gone(&mut self, reason: CloseReason, ctx: &mut Ctx) {
        let (exited, why) = match reason {
            CloseReason::AgentExited(exited) => (exited, "the agent ended".to_owned()),
            CloseReason::FrameTooLarge { limit } => {
                let code = Some(ErrorCode::FrameTooLarge.as_str().to_owned());
                let why = format!("the agent wrote a line of more than {limit} bytes");
                (AgentExited { code, ..AgentExited::default() }, why)
            }
            CloseReason::Lost(why) => (AgentExited::default(), why),
        };
        tracing::debug!(connection = %self.connection, exit_code = exited.exit_code, signal = exited.signal, why, "agent gone");
        ctx.text(jsonrpc::notification(AGENT_EXITED, exited));
        let code = if *self.settings.stopping.borrow() { close_code::GOING_AWAY } else { close_code::AGENT_ENDED };
        self.close(code, &why, ctx);
    }
}

fn begins_session(method: &str) -> bool {
    matches!(method, agent_method::SESSION_NEW | agent_method::SESSION_LOAD | agent_method::SESSION_RESUME)
}

/// The agent's messages, with pauses: a flooding agent must not make one poll of the actor grow without
/// bound, because the socket is written only between polls.
struct AgentStream {
    from_agent: FrameReceiver,
    taken_bytes: usize,
}

impl Stream for AgentStream {
    type Item = Incoming;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Incoming>> {
        if self.taken_bytes >= BYTES_PER_POLL {
            self.taken_bytes = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let Poll::Ready(incoming) = self.from_agent.poll_recv(cx) else {
            self.taken_bytes = 0;
            return Poll::Pending;
        };
        if let Some(Incoming::Frame(frame)) = &incoming {
            self.taken_bytes += frame.text().len();
        }
        Poll::Ready(incoming)
    }
}
