//! MCP servers that a load gives to a session that is live, and servers whose secrets are lost.

use actix::{ActorFutureExt, Context, Handler, ResponseActFuture, WrapFuture};
use tokio::sync::oneshot;

use super::{Session, agent_events::not_ready, connect::Opening, turn_ticket::TurnTicket};
use crate::{
    actors::handles::messages::{ChangeServers, ChangedServers},
    domain::{
        routing::Route,
        session::mcp::{self, McpServers, RemoteTransports},
        turn::{
            Severity,
            outcome::{ErrorCode, Failure},
        },
    },
    transport::{AgentFacts, acp::handshake::read_capabilities},
};

/// The MCP servers of the agent.
#[derive(Default)]
pub(super) struct AgentServers {
    /// True if the agent has other servers than the session, so that the next prompt needs a fresh one.
    pub(super) is_outdated: bool,
    /// Names of the servers that the agent lacks because their secrets are lost; reported in its first turn.
    lost: Vec<String>,
}

impl AgentServers {
    /// Begins with an agent that gets these servers.
    pub(super) fn begin(&mut self, servers: &McpServers) {
        *self = Self { is_outdated: false, lost: servers.lost().to_vec() };
    }

    /// Reports in a turn, once, that the agent lacks servers.
    pub(super) fn report_lost(&mut self, ticket: &mut TurnTicket) {
        if let Some((message, context)) = mcp::secrets_lost(&std::mem::take(&mut self.lost)) {
            ticket.remark_with(Severity::Warn, &message, Some(context));
        }
    }
}

impl Handler<ChangeServers> for Session {
    type Result = ResponseActFuture<Self, Result<ChangedServers, Failure>>;

    fn handle(&mut self, ChangeServers(servers): ChangeServers, ctx: &mut Self::Context) -> Self::Result {
        let ready = match self.change_servers(servers, ctx) {
            Ok(None) => {
                let facts = self.facts.clone().ok_or_else(|| not_ready(None));
                return Box::pin(actix::fut::ready(Ok(ChangedServers { facts, is_fresh: false })));
            }
            Ok(Some(ready)) => ready,
            Err(failure) => return Box::pin(actix::fut::ready(Err(failure))),
        };
        let waiting = async move {
            let gone = |_| Failure::new(ErrorCode::ConnectionLost, "the session ended before its agent was ready");
            let facts = ready.await.map_err(gone).and_then(std::convert::identity);
            Ok(ChangedServers { facts, is_fresh: true })
        };
        Box::pin(waiting.into_actor(self).map(|changed, _, _| changed))
    }
}

type Ready = oneshot::Receiver<Result<std::sync::Arc<AgentFacts>, Failure>>;

impl Session {
    /// Changes the servers. An idle session gets a fresh agent now, and the receiver its facts.
    fn change_servers(&mut self, servers: McpServers, ctx: &mut Context<Self>) -> Result<Option<Ready>, Failure> {
        if let Some(ending) = &self.ending {
            return Err(not_ready(Some(ending)));
        }
        let spec = self.shared.spec.clone();
        if spec.mcp_servers.get().is_same_as(&servers) {
            return Ok(None);
        }
        let facts = self.facts.as_ref().filter(|_| self.connection_route == Route::Acp);
        if let Some(capabilities) = facts.and_then(|facts| facts.capabilities.as_deref()) {
            let remote = read_capabilities(capabilities).mcp_capabilities;
            mcp::check_taken_by(servers.expose(), RemoteTransports { http: remote.http, sse: remote.sse })?;
        }
        self.services.given_servers.keep(spec.session_id, &servers);
        spec.mcp_servers.set(servers);
        // An agent that is being started has the earlier servers.
        self.servers.is_outdated = true;
        let works = self.turn.is_some() || self.outside.is_working() || self.link.is_none();
        if works {
            return Ok(None);
        }
        let (later, ready) = oneshot::channel();
        self.disarm_idle_timer(ctx);
        let route = self.connection_route;
        self.replace_connection(Opening { ready: Some(later), ..Opening::over(route) }, ctx);
        Ok(Some(ready))
    }
}
