//! ACP over WebSocket to one runtime.

pub(crate) mod connection;
#[cfg(test)]
pub(crate) mod frame_fuzz;
pub(crate) mod handshake;

use std::{collections::BTreeMap, time::Duration};

use futures_util::{FutureExt, future::BoxFuture};
use serde::Deserialize;
use serde_json::value::RawValue;

use self::{
    connection::{Events, Link},
    handshake::{Hands, Peer, abilities},
};
use super::{
    AdoptRequest, AdoptedSession, AgentFacts, OpenRequest, OpenedSession, Transport,
    pipe::Pipe,
    socket::{self, websocket::Endpoint},
};
use crate::{
    acp::schema::PROTOCOL_VERSION,
    domain::turn::{
        outcome::{ErrorCode, Failure},
        prompt::Kinds,
    },
};

/// ACP over WebSocket: one connection per session, to one runtime.
#[derive(Debug, Clone)]
pub(crate) struct AcpTransport {
    pub endpoint: Endpoint,
    /// Limit for connecting and the whole handshake.
    pub handshake_timeout: Duration,
    /// For agents that want `authenticate`: the sign-in method, by agent name (`""` is the default agent).
    pub auth_methods: BTreeMap<String, String>,
}

impl Transport for AcpTransport {
    fn open(&self, request: OpenRequest) -> BoxFuture<'static, Result<OpenedSession, Failure>> {
        let this = self.clone();
        async move {
            let limit = this.handshake_timeout;
            tokio::time::timeout(limit, this.connect_and_shake_hands(request)).await.unwrap_or_else(|_| {
                let detail = format!("the agent did not finish its handshake within {} s", limit.as_secs_f32());
                Err(Failure::new(ErrorCode::HandshakeTimeout, detail))
            })
        }
        .boxed()
    }

    fn adopt(&self, request: AdoptRequest) -> BoxFuture<'static, Result<AdoptedSession, Failure>> {
        let this = self.clone();
        async move {
            let limit = this.handshake_timeout;
            tokio::time::timeout(limit, this.adopt_session(request)).await.unwrap_or_else(|_| {
                let detail = format!("the runtime did not answer within {} s", limit.as_secs_f32());
                Err(Failure::new(ErrorCode::RuntimeUnavailable, detail))
            })
        }
        .boxed()
    }
}

/// How far the ids of requests jump when nobody remembers which was the last: between two prompts a session makes
/// fewer than that.
const CALLS_FORGOTTEN: u64 = 1000;

impl AcpTransport {
    async fn connect_and_shake_hands(self, request: OpenRequest) -> Result<OpenedSession, Failure> {
        let auth_method = self.auth_methods.get(request.agent.as_deref().unwrap_or_default()).cloned();
        let connected = socket::connect(&self.endpoint, request.cookies.as_deref()).await?;
        let peer = Peer::Runtime { resumable: !self.endpoint.resume.grace.is_zero() };
        let hands = Hands::new(connected.pipe, connected.delivered, peer);
        let mut opened = hands.shake(&request, auth_method.as_deref()).await?;
        opened.facts.connection_id = connected.connection_id;
        opened.facts.cookies = connected.cookies;
        Ok(opened)
    }

    async fn adopt_session(self, request: AdoptRequest) -> Result<AdoptedSession, Failure> {
        let (connected, resumed) = socket::adopt(&self.endpoint, &request).await?;
        let Pipe { to_agent, from_agent } = connected.pipe;
        let last_call = resumed.prompt.as_ref().map_or(0, |prompt| prompt.call);
        Ok(AdoptedSession {
            // The agent has the conversation, so nothing goes ahead of a prompt; text would do for any agent.
            link: Box::new(Link::new(
                to_agent,
                request.agent_session_id,
                Kinds::default(),
                connected.delivered.clone(),
            )),
            events: Box::pin(Events::new(from_agent, connected.delivered)),
            next_call: last_call.saturating_add(CALLS_FORGOTTEN),
            prompt: resumed.prompt,
        })
    }
}

impl AgentFacts {
    /// The facts of a conversation that is [adopted](Transport::adopt), from the JSON object that was kept of its
    /// handshake: `agentInfo`, `agentCapabilities`, `modes` and `configOptions`, each of which may be missing or
    /// null. What cannot be read counts as missing: an agent may say anything there, and a session that may do less
    /// is better than none.
    pub(crate) fn from_kept(kept: &str, request: &AdoptRequest) -> Self {
        #[derive(Default, Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Kept {
            agent_info: Option<Box<RawValue>>,
            agent_capabilities: Option<Box<RawValue>>,
            modes: Option<Box<RawValue>>,
            config_options: Option<Box<RawValue>>,
        }
        let Kept { agent_info, agent_capabilities, modes, config_options } =
            serde_json::from_str(kept).unwrap_or_default();
        let parsed = agent_capabilities.as_ref().and_then(|raw| serde_json::from_str(raw.get()).ok());
        let (takes, can_close) = abilities(&parsed.unwrap_or_default());
        Self {
            connection_id: request.connection_id.clone(),
            protocol_version: Some(PROTOCOL_VERSION),
            agent_session_id: request.agent_session_id.clone(),
            remembers: true,
            takes,
            can_close,
            info: agent_info,
            capabilities: agent_capabilities,
            modes,
            config_options,
            cookies: request.cookies.clone(),
        }
    }
}
