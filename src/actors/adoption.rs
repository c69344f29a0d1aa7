//! Turns in whose middle the supervisor died, found again at a separate runtime, which kept their agents.
//!
//! A turn goes on only if the agent is known to have got its prompt: then its messages are there to the last one. A
//! turn whose prompt may not have been handed over is interrupted; none is ever sent a second time.

use std::time::Duration;

use futures_util::{StreamExt, stream};

use super::{messages::Adopted, parts::Parts};
use crate::{
    domain::{outcome::Failure, redaction::Redacted},
    store::{self, KeptConnection, SessionRow, StoreError, Unfinished},
    transport::{AdoptRequest, AgentFacts},
};

/// Agents that are asked for at the same time.
const AT_ONCE: usize = 32;
/// How long one agent is looked for: longer than a runtime that restarts on the same machine takes to listen.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pause before a runtime that is not there is asked again.
const RETRY: Duration = Duration::from_millis(250);

/// A turn that can go on.
pub struct Found {
    /// Its agent, and what is known about it.
    pub adopted: Adopted,
    /// Its session.
    pub session: SessionRow,
}

/// By what the agent of a connection is found again.
pub fn kept_connection(facts: &AgentFacts) -> KeptConnection {
    KeptConnection { id: facts.connection_id.clone(), cookies: facts.cookies.clone() }
}

/// Finds the agents of the turns that had not ended when the service last stopped. Those that are not found are
/// logged with the reason. To be called at start, before anything else. Takes at most about 10 s for each 32 of them.
pub async fn find_again(parts: &Parts) -> Result<Vec<Found>, StoreError> {
    let unfinished = parts.store.unfinished().await?;
    let asking = unfinished.into_iter().map(|one| async {
        let session_id = one.session.session_id;
        let limit = tokio::time::timeout(PATIENCE, ask(parts, one));
        let found = limit.await.unwrap_or_else(|_| Err("the runtime did not answer in time".to_owned()));
        match found {
            Ok(found) => Some(found),
            Err(cause) => {
                let cause = Redacted::new(&cause);
                tracing::warn!(marker = "[ACP]", %session_id, %cause, "a turn does not go on");
                None
            }
        }
    });
    Ok(stream::iter(asking).buffer_unordered(AT_ONCE).filter_map(std::future::ready).collect().await)
}

async fn ask(parts: &Parts, one: Unfinished) -> Result<Found, String> {
    let Unfinished { prompt, session } = one;
    let (Some(connection), Some(agent_session_id)) = (session.connection.clone(), session.agent_session_id.clone())
    else {
        return Err("nothing is known about its agent".into());
    };
    let request = AdoptRequest {
        connection_id: connection.id,
        agent_session_id,
        received: session.settled_seq,
        cookies: connection.cookies,
    };
    let facts = AgentFacts::from_kept(session.agent_facts.as_deref().unwrap_or("{}"), &request);
    let adopted = loop {
        match parts.transport.adopt(request.clone()).await {
            Ok(adopted) => break adopted,
            // It may be just starting; one that holds nothing says so.
            Err(Failure { code: crate::domain::outcome::ErrorCode::RuntimeUnavailable, .. }) => {
                tokio::time::sleep(RETRY).await;
            }
            Err(failure) => return Err(failure.to_string()),
        }
    };
    // Dropping what was adopted ends its agent: nobody wants it any more.
    let newest = adopted.prompt.clone().filter(|newest| newest.prompt_id == prompt.prompt_id);
    let newest = newest.ok_or("its prompt did not reach the agent")?;
    let slot = parts.store.reserve_end().map_err(|cause| store::failure(&cause).to_string())?;
    let said = parts.store.said_in_turn(session.session_id, prompt.prompt_id).await.map_err(|it| it.to_string())?;
    let adopted = Adopted { session: adopted, facts, prompt, call: newest.call, slot, said };
    Ok(Found { adopted, session })
}
