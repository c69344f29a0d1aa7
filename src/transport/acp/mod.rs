//! The ACP transport: WebSocket connections to one runtime.

pub(crate) mod connection;
#[cfg(test)]
pub(crate) mod frame_fuzz;
pub(crate) mod handshake;
pub(crate) mod reapply;

use std::{collections::BTreeMap, time::Duration};

use futures_util::{FutureExt, future::BoxFuture};
use serde::{Deserialize, Serialize};
use serde_json::{Value, value::RawValue};

use self::{
    connection::{Events, Link},
    handshake::{Handshake, HandshakeLimit, Peer, abilities, read_capabilities},
    reapply::reapply,
};
use super::{
    AdoptRequest, AdoptedSession, AgentFacts, DeleteRequest, HandshakeTimeouts, OpenRequest, OpenedSession,
    Transport,
    pipe::Pipe,
    socket::{self, websocket::Endpoint},
};
use crate::{
    acp::schema::PROTOCOL_VERSION,
    domain::{
        redaction::RedactedJson,
        session::choices::{Offers, Reapplied},
        turn::{
            outcome::{ErrorCode, Failure},
            prompt::Kinds,
        },
    },
};

/// Opens conversations over ACP: one WebSocket connection per session, all to one runtime.
#[derive(Debug, Clone)]
pub(crate) struct AcpTransport {
    /// The address of the runtime.
    pub endpoint: Endpoint,
    /// The limit for connecting and the whole handshake together.
    pub handshake_timeouts: HandshakeTimeouts,
    /// The sign-in method of each agent that requires `authenticate`, by agent name (`""` is the default agent).
    pub auth_methods: BTreeMap<String, String>,
}

impl Transport for AcpTransport {
    fn open(&self, request: OpenRequest) -> BoxFuture<'static, Result<OpenedSession, Failure>> {
        let this = self.clone();
        async move {
            let limit = this.handshake_timeouts.of(request.agent.as_deref());
            let choices = request.choices.clone();
            let opened = this.connect_and_handshake(request, limit).await?;
            reapply(opened, choices, limit).await
        }
        .boxed()
    }

    fn delete(&self, request: DeleteRequest) -> BoxFuture<'static, Result<usize, Failure>> {
        let this = self.clone();
        async move {
            let agent = request.open.agent.as_deref();
            let limit = HandshakeLimit::start(this.handshake_timeouts.of(agent));
            let auth_method = this.auth_methods.get(agent.unwrap_or_default()).cloned();
            let connected = limit.keep(socket::connect(&this.endpoint, None)).await?;
            let peer = Peer::Runtime { resumable: false };
            let handshake = Handshake::new(connected.pipe, connected.delivered, peer);
            handshake.delete(&request.open, &request.conversations, auth_method.as_deref(), limit).await
        }
        .boxed()
    }

    fn adopt(&self, request: AdoptRequest) -> BoxFuture<'static, Result<AdoptedSession, Failure>> {
        let this = self.clone();
        async move {
            let limit = this.handshake_timeouts.default;
            tokio::time::timeout(limit, this.resume(request)).await.unwrap_or_else(|_| {
                let detail = format!("the runtime did not answer within {} s", limit.as_secs_f32());
                Err(Failure::new(ErrorCode::RuntimeUnavailable, detail))
            })
        }
        .boxed()
    }
}

/// The distance by which request ids jump after a resume, when the last used id is unknown: a session makes fewer
/// requests than this between two prompts.
const UNKNOWN_CALLS: u64 = 1000;

impl AcpTransport {
    async fn connect_and_handshake(self, request: OpenRequest, limit: Duration) -> Result<OpenedSession, Failure> {
        let limit = HandshakeLimit::start(limit);
        let auth_method = self.auth_methods.get(request.agent.as_deref().unwrap_or_default()).cloned();
        let connected = limit.keep(socket::connect(&self.endpoint, request.cookies.as_deref())).await?;
        let peer = Peer::Runtime { resumable: !self.endpoint.resume.grace.is_zero() };
        let handshake = Handshake::new(connected.pipe, connected.delivered, peer);
        let mut opened = handshake.run(&request, auth_method.as_deref(), limit).await?;
        opened.facts.connection_id = connected.connection_id;
        opened.facts.cookies = connected.cookies;
        Ok(opened)
    }

    async fn resume(self, request: AdoptRequest) -> Result<AdoptedSession, Failure> {
        let (connected, resumed) = socket::adopt(&self.endpoint, &request).await?;
        let Pipe { to_agent, from_agent } = connected.pipe;
        let last_call = resumed.prompt.as_ref().map_or(0, |prompt| prompt.call);
        Ok(AdoptedSession {
            // The agent knows the conversation, so no context precedes a prompt; every agent accepts text anyway.
            link: Box::new(Link::new(
                to_agent,
                request.agent_session_id,
                Kinds::default(),
                connected.delivered.clone(),
            )),
            events: Box::pin(Events::new(from_agent, connected.delivered)),
            next_call: last_call.saturating_add(UNKNOWN_CALLS),
            prompt: resumed.prompt,
        })
    }
}

impl AgentFacts {
    /// Restores the facts of an [adopted](Transport::adopt) conversation from the JSON object that was persisted with
    /// its handshake: `agentInfo`, `agentCapabilities`, `modes`, `models` and `configOptions`, each of
    /// which may be missing or null. Unreadable values count as missing: an agent may send anything there, and a session
    /// with fewer abilities is better than none.
    pub(crate) fn from_kept(kept: &str, request: &AdoptRequest) -> Self {
        #[derive(Default, Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Kept {
            agent_info: Option<Box<RawValue>>,
            agent_capabilities: Option<Box<RawValue>>,
        }
        let Kept { agent_info, agent_capabilities } = serde_json::from_str(kept).unwrap_or_default();
        let parsed = agent_capabilities.as_deref().map(read_capabilities).unwrap_or_default();
        let (takes, can_close) = abilities(&parsed);
        Self {
            connection_id: request.connection_id.clone(),
            protocol_version: Some(PROTOCOL_VERSION),
            agent_session_id: request.agent_session_id.clone(),
            remembers: true,
            takes,
            can_close,
            info: agent_info,
            capabilities: agent_capabilities,
            offers: Offers::of_facts(kept),
            reapplied: Reapplied::default(),
            cookies: request.cookies.clone(),
        }
    }

    /// Serialises the facts for the session's row, with what the agent offers now.
    pub(crate) fn for_row(&self, offers: &Offers) -> RedactedJson {
        /// Not a tree, which cannot hold every JSON text.
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Facts<'a> {
            agent_info: Option<&'a RawValue>,
            agent_capabilities: Option<&'a RawValue>,
            modes: &'a Option<Value>,
            models: &'a Option<Value>,
            config_options: &'a Option<Value>,
        }
        RedactedJson::of(&Facts {
            agent_info: self.info.as_deref(),
            agent_capabilities: self.capabilities.as_deref(),
            modes: &offers.modes,
            models: &offers.models,
            config_options: &offers.options,
        })
    }
}
