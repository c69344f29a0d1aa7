//! `GET /acp`: one WebSocket, one agent. Text passes in both directions as it is, or with numbers for a client that
//! asks for them.
//!
//! The actor is polled only while the client reads, and it takes the agent's messages from a bounded pipe:
//! a client that does not read makes the agent wait, not this process grow.

pub(crate) mod handshake;
pub(crate) mod heartbeat;

use std::{sync::Arc, time::Duration};

use actix::{Actor, ActorContext, ActorFutureExt, AsyncContext, SpawnHandle, StreamHandler, WrapFuture};
use actix_web::{
    HttpRequest, HttpResponse,
    http::header::{HeaderName, HeaderValue},
    web,
};
use actix_web_actors::ws::{self, CloseCode, ProtocolError, WebsocketContext};
use bytes::BytesMut;
use serde_json::value::RawValue;
use tokio::sync::watch;
use uuid::Uuid;

use self::{handshake::Opening, heartbeat::SocketPulse};
use super::{
    agents::{Agents, StartedAgent, Workplace},
    conversations::{
        Conversations,
        attachment::{Attachment, Seq, ToAgent},
        outgoing::{AgentEnd, Outgoing, PlainMessages},
    },
};
use crate::{
    acp::{
        jsonrpc::{self, Message, RpcError},
        schema::{RequestId, agent_method},
    },
    contract::runtime::{AGENT_EXITED, CONNECTION_ID_HEADER, RESUMED, Resumed, close_code},
    domain::{
        heartbeat::{Due, Heartbeat},
        ids::PromptId,
        turn::outcome::{ErrorCode, Failure},
    },
};

/// Maximum time for the client to answer our closing frame before the connection is dropped.
const CLOSE_WAIT: Duration = Duration::from_secs(2);

/// Upgrades the connection, to a new one or to `returning`, one whose client has everything up to that number or does
/// not know; the answer names it in `Acp-Connection-Id`.
///
/// # Errors
/// `not_found` where the connection that the client names is not held; `invalid_request` where this is no upgrade.
pub(crate) fn accept(
    request: &HttpRequest,
    body: web::Payload,
    settings: SocketSettings,
    returning: Option<(Uuid, Option<u64>)>,
) -> Result<HttpResponse, Failure> {
    let no_upgrade =
        |cause: actix_web::Error| Failure::new(ErrorCode::InvalidRequest, format!("no WebSocket upgrade: {cause}"));
    // First, so that a request that is no upgrade takes no connection away from an open socket.
    ws::handshake(request).map_err(|cause| no_upgrade(cause.into()))?;
    let (connection, state) = match returning {
        None => (Uuid::now_v7(), State::Waiting),
        Some((id, received)) => {
            let (attachment, resumed) = settings.conversations.resume(id, received)?;
            (id, State::Returning(attachment, resumed))
        }
    };
    let (frame_bytes, pulse) = (settings.frame_bytes, SocketPulse::new(settings.heartbeat));
    let body = pulse.watch(body);
    let socket = AcpSocket { settings, connection, state, fragments: Fragments::default(), pulse };
    let response = ws::WsResponseBuilder::new(socket, request, body).frame_size(frame_bytes).start();
    let mut response = response.map_err(no_upgrade)?;
    let id = HeaderValue::try_from(connection.to_string())
        .map_err(|cause| Failure::new(ErrorCode::Internal, cause.to_string()))?;
    response.headers_mut().insert(HeaderName::from_static(CONNECTION_ID_HEADER), id);
    Ok(response)
}

/// The actor of one connection.
struct AcpSocket {
    settings: SocketSettings,
    connection: Uuid,
    state: State,
    fragments: Fragments,
    pulse: SocketPulse,
}

enum State {
    /// Waits for the client's `initialize`.
    Waiting,
    /// Resumes a conversation; holds the first answer to its client.
    Returning(Attachment, Resumed),
    Connected(Connected),
    /// The closing frame was sent. A client of a connection with numbers can still acknowledge or end the
    /// conversation.
    Closing(Option<ToAgent>),
}

struct Connected {
    line: ToAgent,
    workplace: Workplace,
    agent_stream: SpawnHandle,
}

/// Outcome of the agent when its socket closes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Agent {
    Ends,
    /// The agent waits for its client for the grace, on a connection with numbers.
    Waits,
}

type Ctx = WebsocketContext<AcpSocket>;

impl Actor for AcpSocket {
    type Context = Ctx;

    fn started(&mut self, ctx: &mut Ctx) {
        let mut stopping = self.settings.stopping.clone();
        let stopped = async move {
            // An error means that the runtime has been dropped, which has the same effect.
            let _ = stopping.wait_for(|stopping| *stopping).await;
        };
        let goodbye = stopped.into_actor(self).map(|(), socket, ctx| {
            socket.close(close_code::GOING_AWAY, "the runtime is stopping", Agent::Ends, ctx);
        });
        ctx.spawn(goodbye);
        self.beat(ctx);
        match std::mem::replace(&mut self.state, State::Waiting) {
            State::Returning(attachment, resumed) => {
                let after = resumed.after;
                ctx.text(jsonrpc::notification(RESUMED, resumed));
                self.connect(attachment, after, ctx);
            }
            state => self.state = state,
        }
    }
}

/// From the client.
impl StreamHandler<Result<ws::Message, ProtocolError>> for AcpSocket {
    fn handle(&mut self, message: Result<ws::Message, ProtocolError>, ctx: &mut Ctx) {
        self.pulse.receive();
        match message {
            Ok(ws::Message::Text(text)) => self.on_text(&text, ctx),
            Ok(ws::Message::Continuation(part)) => self.on_part(part, ctx),
            Ok(ws::Message::Binary(_)) => self.close(close_code::POLICY, "messages are text", Agent::Ends, ctx),
            Ok(ws::Message::Ping(payload)) => {
                self.touch();
                ctx.pong(&payload);
            }
            Ok(ws::Message::Pong(_) | ws::Message::Nop) => self.touch(),
            Ok(ws::Message::Close(reason)) => self.on_close(reason, ctx),
            Err(ProtocolError::Overflow) => self.close_too_big(ctx),
            Err(cause) => {
                tracing::debug!(connection = %self.connection, %cause, "socket broke");
                self.leave(ctx);
            }
        }
    }
}

/// For the client.
impl StreamHandler<Outgoing> for AcpSocket {
    fn handle(&mut self, said: Outgoing, ctx: &mut Ctx) {
        match said {
            Outgoing::Text(text) => ctx.text(text),
            Outgoing::AgentEnded(agent_end) => self.on_agent_exit(&agent_end, ctx),
            Outgoing::Over(code, why) => self.close(code, why, Agent::Waits, ctx),
            Outgoing::Detached => self.leave(ctx),
        }
    }

    /// The closing frame was sent; the socket closes by itself.
    fn finished(&mut self, _: &mut Ctx) {}
}

impl AcpSocket {
    fn close(&mut self, code: u16, why: &str, agent: Agent, ctx: &mut Ctx) {
        if let State::Closing(_) = self.state {
            return;
        }
        // A stopping runtime ends its agents too; the client must see the cause and not the consequence.
        let code = if *self.settings.stopping.borrow() { close_code::GOING_AWAY } else { code };
        if let State::Connected(connected) = std::mem::replace(&mut self.state, State::Closing(None)) {
            ctx.cancel_future(connected.agent_stream);
            match agent {
                Agent::Ends => connected.line.end(),
                Agent::Waits => connected.line.detach(),
            }
            // Dropping the connection of a client without numbers ends its agent.
            if let ToAgent::Numbered(_) = connected.line {
                self.state = State::Closing(Some(connected.line));
            }
        }
        ctx.close(Some(ws::CloseReason { code: CloseCode::from(code), description: Some(why.to_owned()) }));
        ctx.run_later(CLOSE_WAIT, |_, ctx| ctx.stop());
    }

    fn close_too_big(&mut self, ctx: &mut Ctx) {
        let why = format!("a message has at most {} bytes", self.settings.frame_bytes);
        self.close(close_code::TOO_BIG, &why, Agent::Ends, ctx);
    }

    /// Stops without a closing frame, because the client is not reachable.
    fn leave(&mut self, ctx: &mut Ctx) {
        // Dropping the attachment marks the client as away.
        if let State::Connected(connected) = std::mem::replace(&mut self.state, State::Closing(None)) {
            ctx.cancel_future(connected.agent_stream);
        }
        ctx.stop();
    }

    fn on_close(&mut self, reason: Option<ws::CloseReason>, ctx: &mut Ctx) {
        // Only a normal close ends the conversation; proxies in between close with other codes.
        let is_over = reason.as_ref().is_some_and(|reason| reason.code == CloseCode::Normal);
        match &self.state {
            State::Connected(Connected { line, .. }) | State::Closing(Some(line)) if is_over => line.end(),
            State::Closing(Some(line)) => line.confirm_agent_end(),
            _ => {}
        }
        if !matches!(self.state, State::Closing(_)) {
            ctx.close(reason);
        }
        self.leave(ctx);
    }

    /// Records a sign of life that is not a message.
    fn touch(&self) {
        if let State::Connected(connected) = &self.state {
            connected.line.touch();
        }
    }

    fn beat(&mut self, ctx: &mut Ctx) {
        if let State::Closing(_) = self.state {
            return;
        }
        if self.pulse.receive_bytes() {
            self.touch();
        }
        let next = loop {
            match self.pulse.due() {
                Due::Nothing(wait) => break wait,
                Due::Ping => ctx.ping(b""),
                Due::End => {
                    tracing::debug!(connection = %self.connection, "client is silent");
                    return self.leave(ctx);
                }
            }
        };
        ctx.run_later(next, Self::beat);
    }

    fn on_part(&mut self, part: actix_http::ws::Item, ctx: &mut Ctx) {
        use actix_http::ws::Item;
        self.touch();
        let limit = self.settings.frame_bytes;
        let joined = match part {
            Item::FirstText(bytes) => self.fragments.begin(&bytes, limit),
            Item::FirstBinary(_) => Joined::NoText("messages are text"),
            Item::Continue(bytes) => self.fragments.add(&bytes, limit, false),
            Item::Last(bytes) => self.fragments.add(&bytes, limit, true),
        };
        match joined {
            Joined::Nothing => {}
            Joined::Whole(text) => self.on_text(&text, ctx),
            Joined::TooBig => self.close_too_big(ctx),
            Joined::NoText(why) => self.close(close_code::POLICY, why, Agent::Ends, ctx),
        }
    }

    fn on_text(&mut self, text: &str, ctx: &mut Ctx) {
        let (seq, text) = match &self.state {
            State::Closing(Some(line)) => return drop(line.arrive(text)),
            State::Closing(None) | State::Returning(..) => return,
            State::Waiting => return self.on_first(text, ctx),
            State::Connected(connected) => match connected.line.arrive(text) {
                Ok(Some(arrived)) => arrived,
                Ok(None) => return,
                Err(why) => return self.close(close_code::POLICY, why, Agent::Ends, ctx),
            },
        };
        let prompt = match jsonrpc::parse(&text) {
            Err(cause) => return self.refuse(seq, &RequestId::Null, &handshake::unreadable(&cause), ctx),
            Ok(Message::Request { id, method, .. }) if method == agent_method::INITIALIZE => {
                return self.refuse(seq, &id, &handshake::already(), ctx);
            }
            Ok(Message::Request { id, method, params }) if handshake::begins_session(&method) => {
                return self.on_session(seq, id, params, text.clone().into_owned(), ctx);
            }
            Ok(message) if seq.is_some() => handshake::prompt_of(&message),
            Ok(_) => None,
        };
        self.deliver(seq, text.into_owned(), prompt, ctx);
    }

    fn deliver(&mut self, seq: Seq, text: String, prompt: Option<(PromptId, u64)>, ctx: &mut Ctx) {
        let State::Connected(connected) = &self.state else { return };
        if connected.line.deliver(seq, text, prompt).is_err() {
            self.close(close_code::POLICY, "more than the agent reads", Agent::Ends, ctx);
        }
    }

    fn on_first(&mut self, text: &str, ctx: &mut Ctx) {
        match handshake::first(text) {
            Ok((id, Ok(opening))) => self.on_initialize(id, opening, ctx),
            Ok((id, Err(error))) => self.refuse(None, &id, &error, ctx),
            Err((id, error)) => {
                self.refuse(None, &id, &error, ctx);
                self.close(close_code::POLICY, handshake::FIRST_MESSAGE, Agent::Ends, ctx);
            }
        }
    }

    /// Answers a request in the agent's place.
    fn refuse(&mut self, seq: Seq, id: &RequestId, error: &RpcError, ctx: &mut Ctx) {
        let answer = jsonrpc::response(id, Err::<(), _>(error));
        let answered = match &self.state {
            State::Connected(connected) => connected.line.answer(seq, answer),
            _ => Ok(Some(answer)),
        };
        match answered {
            Ok(Some(answer)) => ctx.text(answer),
            Ok(None) => {}
            Err(_) => self.close(close_code::POLICY, "more than is acknowledged", Agent::Ends, ctx),
        }
    }

    fn on_initialize(&mut self, id: RequestId, opening: Opening, ctx: &mut Ctx) {
        let agents = self.settings.agents.clone();
        let start = async move {
            let started = agents.start(opening.meta()).await;
            (id, opening, started)
        };
        // Nothing else is read from the client until the agent has started.
        ctx.wait(start.into_actor(self).map(|(id, opening, started), socket, ctx| {
            // Nothing was read during the start, so that time is not counted as the client's silence.
            socket.pulse.receive();
            match started {
                Ok(agent) => socket.on_started(&id, opening, agent, ctx),
                Err(failure) => {
                    tracing::warn!(connection = %socket.connection, code = failure.code.as_str(), %failure, "agent was not started");
                    socket.refuse(None, &id, &handshake::refusal(&failure), ctx);
                }
            }
        }));
    }

    fn on_started(&mut self, id: &RequestId, opening: Opening, agent: StartedAgent, ctx: &mut Ctx) {
        if !matches!(self.state, State::Waiting) {
            // The socket was closed during the start: dropping the pipe ends the agent.
            return;
        }
        let serves = agent.serves;
        if opening.meta().resumable && self.settings.conversations.are_kept() {
            let attachment = self.settings.conversations.begin(self.connection, agent);
            self.connect(attachment, 0, ctx);
        } else {
            let StartedAgent { pipe, workplace, .. } = agent;
            let agent_stream = ctx.add_stream(PlainMessages::new(pipe.from_agent));
            let line = ToAgent::Plain(pipe.to_agent);
            self.state = State::Connected(Connected { line, workplace, agent_stream });
        }
        self.deliver(None, opening.for_agent(id, serves), None, ctx);
    }

    fn connect(&mut self, attachment: Attachment, received: u64, ctx: &mut Ctx) {
        let agent_stream = ctx.add_stream(attachment.feed_after(received));
        let (workplace, line) = (attachment.workplace().clone(), ToAgent::Numbered(attachment));
        self.state = State::Connected(Connected { line, workplace, agent_stream });
    }

    /// Passes the request for a session to the agent if its folder is allowed.
    fn on_session(&mut self, seq: Seq, id: RequestId, params: &RawValue, text: String, ctx: &mut Ctx) {
        let State::Connected(connected) = &self.state else { return };
        let cwd = match handshake::cwd_of(params) {
            Ok(cwd) => cwd,
            Err(error) => return self.refuse(seq, &id, &error, ctx),
        };
        let (agents, workplace) = (self.settings.agents.clone(), connected.workplace.clone());
        let text = match handshake::with_servers(text, |servers| agents.with_secrets(servers, &workplace.tenant)) {
            Ok(text) => text,
            Err(failure) => return self.refuse(seq, &id, &handshake::refusal(&failure), ctx),
        };
        let check = async move { agents.admit(cwd, workplace).await };
        // `wait` stops the reading, so that messages keep their order.
        ctx.wait(check.into_actor(self).map(move |checked: Result<(), Failure>, socket, ctx| {
            socket.pulse.receive();
            match checked {
                Ok(()) => socket.deliver(seq, text, None, ctx),
                Err(failure) => socket.refuse(seq, &id, &handshake::refusal(&failure), ctx),
            }
        }));
    }

    fn on_agent_exit(&mut self, agent_end: &AgentEnd, ctx: &mut Ctx) {
        let AgentEnd { exited, why, .. } = agent_end;
        tracing::debug!(connection = %self.connection, exit_code = exited.exit_code, signal = exited.signal, why, "agent ended");
        if let State::Connected(Connected { line: ToAgent::Plain(_), .. }) = self.state {
            ctx.text(jsonrpc::notification(AGENT_EXITED, exited));
        }
        // The messages that the client has not persisted yet are held for the grace, although no more follow.
        self.close(close_code::AGENT_ENDED, why, Agent::Waits, ctx);
    }
}

#[derive(Clone)]
pub(crate) struct SocketSettings {
    pub agents: Arc<Agents>,
    /// Holds the conversations whose client is away.
    pub conversations: Arc<Conversations>,
    /// Becomes true when the runtime stops.
    pub stopping: watch::Receiver<bool>,
    /// The largest message, in bytes.
    pub frame_bytes: usize,
    pub heartbeat: Heartbeat,
}

/// The fragments of a message that have arrived.
#[derive(Debug, Default)]
pub(crate) struct Fragments {
    parts: Option<BytesMut>,
}

/// Result of adding one part.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Joined {
    /// More fragments follow.
    Nothing,
    Whole(String),
    /// The message exceeds the limit.
    TooBig,
    /// The message is not text, with the reason.
    NoText(&'static str),
}

impl Fragments {
    /// Begins a message with its first fragment; an unfinished one is dropped.
    pub(crate) fn begin(&mut self, part: &[u8], limit: usize) -> Joined {
        self.parts = Some(BytesMut::new());
        self.add(part, limit, false)
    }

    /// Adds a fragment; a message has at most `limit` bytes in total. A fragment without a begun message is ignored.
    pub(crate) fn add(&mut self, part: &[u8], limit: usize, is_last: bool) -> Joined {
        let Some(parts) = &mut self.parts else { return Joined::Nothing };
        if parts.len() + part.len() > limit {
            self.parts = None;
            return Joined::TooBig;
        }
        parts.extend_from_slice(part);
        match self.parts.take_if(|_| is_last) {
            None => Joined::Nothing,
            Some(whole) => {
                String::from_utf8(whole.into()).map_or(Joined::NoText("a text is not UTF-8"), Joined::Whole)
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
