//! How a session gets its agent, and how it lets it go.

use std::{sync::Arc, time::Duration};

use actix::{ActorFutureExt, AsyncContext, Context, WrapFuture};

use super::{Call, Session, Start};
use crate::{
    actors::{
        adoption::kept_connection,
        messages::{Adopted, EndCause},
    },
    domain::{
        connection::ConnectionStatus, context::conversation_context, lifecycle::SessionState, outcome::Failure,
        turn::TurnOutcome,
    },
    store::{self, SessionChange},
    transport::{AdoptedSession, AgentFacts, OpenRequest, OpenedSession},
};

/// Messages of the conversation that are looked at for context; the context itself is bounded in bytes.
const CONTEXT_MESSAGES: usize = 200;
/// How long an agent may take to answer `session/close` before it is let go without.
const CLOSE_WAIT: Duration = Duration::from_secs(2);

impl Session {
    pub(super) fn connect(&mut self, ctx: &mut Context<Self>) {
        let Some(start) = self.start.take() else { return };
        let Start { delay, past, cookies, ready, adopted } = start;
        if let Some(adopted) = adopted {
            self.take_over(*adopted, ctx);
            if let (Some(ready), Some(facts)) = (ready, self.facts.clone()) {
                let _ = ready.send(Ok(facts));
            }
            return;
        }
        let spec = self.shared.spec.clone();
        let request = OpenRequest {
            session_id: spec.session_id,
            is_ephemeral: spec.is_ephemeral,
            agent: spec.agent.clone(),
            cwd: spec.cwd.clone(),
            mcp_servers: spec.mcp_servers.clone(),
            previous: past.agent_session_id.clone(),
            cookies,
        };
        let parts = self.parts.clone();
        let has_past = past.agent_session_id.is_some();
        let opening = async move {
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            let opened = parts.transport.open(request).await?;
            let context = if has_past && !opened.facts.remembers {
                let said = parts.store.last_said(spec.session_id, CONTEXT_MESSAGES).await;
                conversation_context(&said.map_err(|cause| store::failure(&cause))?)
            } else {
                None
            };
            Ok((opened, context))
        };
        ctx.spawn(opening.into_actor(self).map(move |opened: Result<_, Failure>, this, ctx| match opened {
            Ok((opened, context)) => {
                this.context = context;
                this.connected(opened, ctx);
                match (ready, this.facts.clone()) {
                    (Some(ready), Some(facts)) => drop(ready.send(Ok(facts))),
                    (None, Some(facts)) => this.write_down_connection(&facts, ctx),
                    (_, None) => {}
                }
            }
            Err(failure) => {
                this.end_turn(TurnOutcome::Failed(failure.clone()), None, ctx);
                if let Some(ready) = ready {
                    let _ = ready.send(Err(failure.clone()));
                }
                let cause = this.ending.take().unwrap_or(EndCause::StartFailed(failure));
                this.stop(cause, ctx);
            }
        }));
    }

    /// Notes by what the agent of a restart is found again; whoever waits for a first start writes it down himself.
    fn write_down_connection(&self, facts: &AgentFacts, ctx: &mut Context<Self>) {
        let change = SessionChange {
            agent_session_id: Some(facts.agent_session_id.clone()),
            connection: Some(kept_connection(facts)),
            ..SessionChange::new(self.shared.spec.session_id)
        };
        let parts = self.parts.clone();
        let writing = async move {
            if let Err(cause) = parts.store.update_session(change).await {
                // The next start would not find the agent and interrupt its turn, no more.
                tracing::warn!(marker = "[ACP]", %cause, "a connection was not written down");
            }
        };
        ctx.spawn(writing.into_actor(self));
    }

    /// Goes on with an agent that an earlier life of the service left in the middle of a turn.
    fn take_over(&mut self, adopted: Adopted, ctx: &mut Context<Self>) {
        let Adopted { session, facts, prompt, call, slot, said } = adopted;
        let AdoptedSession { link, events, next_call, prompt: _ } = session;
        self.calls.reopen(call, Call::Prompt);
        self.parts.metrics.turn_adopted();
        self.go_on_with(&prompt, slot, &said);
        let known = link.delivered().handled();
        if let Some(turn) = &mut self.turn {
            turn.settled_seq = known;
        }
        self.connected(OpenedSession { link, events, next_call, facts }, ctx);
        self.watch_inactivity(self.parts.settings.inactivity_timeout, ctx);
    }

    fn connected(&mut self, opened: OpenedSession, ctx: &mut Context<Self>) {
        self.calls.start_at(opened.next_call);
        self.link = Some(opened.link);
        let facts = Arc::new(opened.facts);
        self.facts = Some(facts.clone());
        {
            let mut view = self.shared.view();
            view.facts = Some(facts);
            view.last_heard = Some(self.parts.clock.now());
        }
        ctx.add_stream(opened.events);
        let state = if self.turn.is_some() { SessionState::Running } else { SessionState::Idle };
        self.announce(state, ConnectionStatus::Connected);
        if self.turn.is_some() {
            self.dispatch(ctx);
        } else {
            self.arm_idle_timer(ctx);
        }
    }

    /// Ends a session that has no turn: `session/close` where the agent offers it, then the agent is let go.
    pub(super) fn let_go(&mut self, cause: EndCause, ctx: &mut Context<Self>) {
        let closes = matches!(cause, EndCause::Closed) && self.facts.as_ref().is_some_and(|facts| facts.can_close);
        if let (true, Some(link)) = (closes, &mut self.link)
            && let Ok(call) = self.calls.open(Call::Close)
            && link.close(call).is_ok()
        {
            self.ending = Some(cause.clone());
            ctx.run_later(CLOSE_WAIT, move |this, ctx| this.stop(cause, ctx));
            return;
        }
        self.stop(cause, ctx);
    }
}
