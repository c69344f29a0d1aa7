//! How a session gets its agent, and how it lets it go.

use std::{sync::Arc, time::Duration};

use actix::{ActorFutureExt, AsyncContext, Context, WrapFuture};

use super::{Call, Session, Start};
use crate::{
    actors::{messages::EndCause, session_shared::ConnectionStatus},
    domain::{context::conversation_context, lifecycle::SessionState, outcome::Failure, turn::TurnOutcome},
    store,
    transport::{OpenRequest, OpenedSession},
};

/// Messages of the conversation that are looked at for context; the context itself is bounded in bytes.
const CONTEXT_MESSAGES: usize = 200;
/// How long an agent may take to answer `session/close` before it is let go without.
const CLOSE_WAIT: Duration = Duration::from_secs(2);

impl Session {
    pub(super) fn connect(&mut self, ctx: &mut Context<Self>) {
        let Some(start) = self.start.take() else { return };
        let Start { delay, past, cookies, ready } = start;
        let spec = self.shared.spec.clone();
        let request = OpenRequest {
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
                if let (Some(ready), Some(facts)) = (ready, this.facts.clone()) {
                    let _ = ready.send(Ok(facts));
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
