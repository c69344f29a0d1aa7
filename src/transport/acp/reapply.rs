//! Sets the kept mode, model and options in a fresh agent, before its first prompt.

use std::{collections::VecDeque, time::Duration};

use futures_util::{StreamExt, stream};
use tokio::time::{Instant, timeout_at};

use super::handshake::closed_in_handshake;
use crate::{
    domain::{
        session::choices::{Choices, Reapplication, Setting},
        turn::outcome::{ErrorCode, Failure},
    },
    transport::{AgentEvent, CloseReason, OpenedSession},
};

/// Time limit for the answer to one call, unless that of a handshake is shorter. Agents answer within milliseconds.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// Events that are kept until the agent has answered, at most; further ones are discarded.
const MAX_EVENTS: usize = 1024;

/// Brings the agent of a conversation that has just begun to `choices`. `limit` is the time limit of a handshake; calls
/// that come later are left out, except the one for the mode. A choice that the agent does not take is no failure:
/// [`AgentFacts::reapplied`](crate::transport::AgentFacts::reapplied) names it. Updates of mode and options that the agent
/// sends meanwhile are part of the result and no events.
///
/// # Errors
/// The connection breaks, or the agent exits or violates the protocol.
pub(crate) async fn reapply(
    mut opened: OpenedSession,
    choices: Choices,
    limit: Duration,
) -> Result<OpenedSession, Failure> {
    let mut plan = Reapplication::new(choices, std::mem::take(&mut opened.facts.offers));
    let mut later = VecDeque::new();
    let deadline = Instant::now() + limit;
    while let Some(setting) = plan.next_call() {
        let is_mode = matches!(setting, Setting::Mode(_));
        if Instant::now() > deadline && !is_mode {
            plan.unanswered(setting);
            continue;
        }
        set(&mut opened, &mut plan, setting, limit.min(CALL_TIMEOUT), &mut later).await?;
    }
    (opened.facts.offers, opened.facts.reapplied) = plan.finish();
    opened.events = Box::pin(stream::iter(later).chain(opened.events));
    Ok(opened)
}

/// Makes one call and waits for its answer.
async fn set(
    opened: &mut OpenedSession,
    plan: &mut Reapplication,
    setting: Setting,
    limit: Duration,
    later: &mut VecDeque<AgentEvent>,
) -> Result<(), Failure> {
    let call = opened.next_call;
    opened.next_call += 1;
    let lost = || Failure::new(ErrorCode::ConnectionLost, "the connection broke while the mode and options were set");
    opened.link.set(call, &setting).map_err(|_| lost())?;
    let until = Instant::now() + limit;
    loop {
        let Ok(event) = timeout_at(until, opened.events.next()).await else {
            plan.unanswered(setting);
            return Ok(());
        };
        match event {
            Some(AgentEvent::Answered { call: answered, result }) if answered == call => {
                match result {
                    Ok(answer) => plan.confirmed(setting, &answer),
                    Err(error) => plan.refused(setting, &error.message),
                }
                return Ok(());
            }
            // The late answer to an earlier call that was given up.
            Some(AgentEvent::Answered { .. }) => {}
            Some(AgentEvent::Update { update, meta }) => {
                if !plan.on_update(&update) {
                    keep(later, AgentEvent::Update { update, meta });
                }
            }
            Some(AgentEvent::Violation(detail)) => return Err(Failure::new(ErrorCode::HandshakeFailed, detail)),
            Some(AgentEvent::Closed(reason)) => return Err(closed_in_handshake(&reason)),
            None => return Err(closed_in_handshake(&CloseReason::Lost("no reason was given".into()))),
            Some(event) => keep(later, event),
        }
    }
}

fn keep(later: &mut VecDeque<AgentEvent>, event: AgentEvent) {
    if later.len() < MAX_EVENTS {
        later.push_back(event);
    }
}
