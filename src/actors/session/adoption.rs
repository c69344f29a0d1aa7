//! Adopts turns that a crashed supervisor left running: a separate runtime kept their agents.
//!
//! A turn continues only if the agent is known to have received its prompt: then the runtime holds all of its messages.
//! A turn whose prompt may not have been delivered is interrupted; a prompt is never sent twice.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use futures_util::{StreamExt, stream};
use tokio::time::Instant;

use crate::{
    actors::{
        handles::messages::{Adopted, AdoptedTurn},
        services::Services,
    },
    contract::result::{ACPSessionResult, ResultRollback, ResultWorkspace, TurnFacts},
    domain::{
        ids::PromptId,
        redaction::{Redacted, RedactedJson},
        session::lifecycle::SessionState,
        turn::{
            TurnOutcome, TurnProgress,
            outcome::{ErrorCode, Failure},
            transcript::MAX_TRACKED,
        },
    },
    store::{self, KeptConnection, SessionRow, StoreError, Unfinished},
    transport::{AdoptRequest, AgentFacts},
};

/// Adoption requests that run concurrently.
const AT_ONCE: usize = 32;
/// Time limit for finding one agent: longer than a runtime that restarts on the same machine needs to listen.
const ADOPTION_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause before an unreachable runtime is tried again.
const RETRY: Duration = Duration::from_millis(250);

/// A turn that can continue.
pub(crate) struct Found {
    /// The agent and its pending turn.
    pub adopted: Adopted,
    pub session: SessionRow,
}

/// Returns the data that identifies the agent of a connection after a restart.
pub(crate) fn kept_connection(facts: &AgentFacts) -> KeptConnection {
    KeptConnection { id: facts.connection_id.clone(), cookies: facts.cookies.clone() }
}

/// Finds the agents of the turns that had not ended when the service last stopped, and logs the reason for each that is
/// missing. Called at start, before the service accepts requests. All turns share one wait for an unreachable runtime,
/// because nothing is served meanwhile: about 10 s if no runtime answers.
pub(crate) async fn find_again(services: &Services, unfinished: Vec<Unfinished>) -> Vec<Found> {
    let held = unfinished.into_iter().filter(|one| one.session.state.is_live() && one.session.connection.is_some());
    let until = Instant::now() + ADOPTION_TIMEOUT;
    let answered = AtomicBool::new(false);
    let asking = held.map(|one| async {
        let session_id = one.session.session_id;
        let limit = async {
            // Turns that wait for a place do not repeat the wait for a runtime that has not answered any of them.
            if Instant::now() >= until && !answered.load(Ordering::Relaxed) {
                return Ok(Err("no runtime answered".to_owned()));
            }
            tokio::time::timeout(ADOPTION_TIMEOUT, adopt_agent(services, one, until, &answered)).await
        };
        let found = limit.await.unwrap_or_else(|_| Err("the runtime did not answer in time".to_owned()));
        match found {
            Ok(found) => Some(found),
            Err(cause) => {
                let cause = Redacted::new(&cause);
                tracing::warn!(marker = "[ACP]", %session_id, %cause, "turn could not be resumed");
                None
            }
        }
    });
    stream::iter(asking).buffer_unordered(AT_ONCE).filter_map(std::future::ready).collect().await
}

/// Time limit for the adoption of an agent without a turn; afterwards its session gets a fresh agent.
const IDLE_ADOPTION_TIMEOUT: Duration = Duration::from_secs(5);

/// Finds the agent of a session that had no running turn when the service last stopped. `None` if the runtime does not
/// hold it, or if it has a prompt that this service does not know to have ended: such an agent is ended.
pub(crate) async fn find_idle(services: &Services, session: &SessionRow) -> Option<Adopted> {
    let (connection, agent_session_id) = (session.connection.clone()?, session.agent_session_id.clone()?);
    let found = tokio::time::timeout(IDLE_ADOPTION_TIMEOUT, async {
        let newest = services.store.newest_prompt(session.session_id).await.map_err(|cause| cause.to_string())?;
        let newest = newest.map(|row| (row.prompt_id, row.settled_seq));
        let request = AdoptRequest {
            connection_id: connection.id,
            agent_session_id,
            received: session.settled_seq,
            ended: newest,
            cookies: connection.cookies,
        };
        let facts = AgentFacts::from_kept(session.agent_facts.as_deref().unwrap_or("{}"), &request);
        let adopted = services.acp.adopt(request).await.map_err(|failure| failure.to_string())?;
        match (&adopted.prompt, newest) {
            (None, _) => {}
            (Some(held), Some((id, settled))) if held.prompt_id == id && settled > 0 => {}
            // Dropping the connection ends the agent.
            (Some(_), _) => return Err("its newest prompt is not known to have ended".to_owned()),
        }
        let in_background = session.state == SessionState::Background;
        Ok(Adopted { session: adopted, facts, turn: None, in_background })
    });
    let session_id = session.session_id;
    let found = found.await.unwrap_or_else(|_| Err("the runtime did not answer in time".to_owned()));
    match found {
        Ok(adopted) => {
            tracing::info!(marker = "[ACP]", %session_id, "agent of an earlier process was adopted");
            Some(adopted)
        }
        Err(cause) => {
            tracing::debug!(marker = "[ACP]", %session_id, cause = %Redacted::new(&cause), "agent was not adopted");
            None
        }
    }
}

/// Builds the results of interrupted turns, with the agent output that is on disk.
///
/// # Errors
/// Those of the database reads; safe to retry.
pub(crate) async fn results_of_interrupted(
    services: &Services,
    turns: &[Unfinished],
) -> Result<Vec<(PromptId, RedactedJson)>, StoreError> {
    let mut results = Vec::new();
    for Unfinished { prompt, session } in turns {
        let path = match &session.own_folder {
            Some(own) => own.path.clone(),
            None => services.store.workspace(session.key.clone()).await?.and_then(|it| it.workspace_path),
        };
        let said = services.store.messages_of_turn(session.session_id, prompt.prompt_id).await?;
        let mut progress = TurnProgress::new(prompt.accepted);
        said.iter().for_each(|text| progress.on_message_text(text));
        let facts = TurnFacts {
            session_id: session.session_id,
            prompt_id: prompt.prompt_id,
            protocol: prompt.protocol,
            route: prompt.route,
            protocol_version: session.protocol_version,
            workspace: ResultWorkspace { path: path.unwrap_or_default(), is_ephemeral: false },
            rollback: ResultRollback::default(),
            context_injected: false,
            automation: None,
        };
        let interrupted = Failure::new(ErrorCode::Interrupted, "the service stopped in the middle of the turn");
        let outcome = TurnOutcome::of_failure(interrupted, prompt.cancel_asked);
        let result = ACPSessionResult::of_turn(&mut progress, &outcome, facts, services.clock.now());
        results.push((prompt.prompt_id, result.into_redacted_json()));
    }
    Ok(results)
}

/// Adopts the agent of one turn. An unreachable runtime is retried until `until`; any answer of a runtime sets
/// `answered`.
async fn adopt_agent(
    services: &Services,
    one: Unfinished,
    until: Instant,
    answered: &AtomicBool,
) -> Result<Found, String> {
    let Unfinished { prompt, session } = one;
    let (Some(connection), Some(agent_session_id)) = (session.connection.clone(), session.agent_session_id.clone())
    else {
        return Err("the connection of its agent is unknown".into());
    };
    let request = AdoptRequest {
        connection_id: connection.id,
        agent_session_id,
        received: session.settled_seq,
        ended: None,
        cookies: connection.cookies,
    };
    let facts = AgentFacts::from_kept(session.agent_facts.as_deref().unwrap_or("{}"), &request);
    let adopted = loop {
        match services.acp.adopt(request.clone()).await {
            Ok(adopted) => break adopted,
            // The runtime may still be starting; one that is up and holds no agent answers with another failure.
            Err(Failure { code: ErrorCode::RuntimeUnavailable, .. }) if Instant::now() < until => {
                tokio::time::sleep(RETRY).await;
            }
            Err(failure) => {
                answered.fetch_or(failure.code != ErrorCode::RuntimeUnavailable, Ordering::Relaxed);
                return Err(failure.to_string());
            }
        }
    };
    answered.store(true, Ordering::Relaxed);
    // Dropping an adopted connection ends its agent, which no turn uses.
    let newest = adopted.prompt.clone().filter(|newest| newest.prompt_id == prompt.prompt_id);
    let newest = newest.ok_or("its prompt did not reach the agent")?;
    // As for a new turn, the end must always be recordable.
    let slot = services.store.reserve_end().map_err(|cause| store::failure(&cause).to_string())?;
    let said =
        services.store.messages_of_turn(session.session_id, prompt.prompt_id).await.map_err(|it| it.to_string())?;
    let kept = services.store.changeable_entries(session.session_id, prompt.prompt_id, MAX_TRACKED);
    let kept = kept.await.map_err(|cause| cause.to_string())?;
    let turn = AdoptedTurn { prompt, call: newest.call, slot, said, kept };
    Ok(Found { adopted: Adopted { session: adopted, facts, turn: Some(turn), in_background: false }, session })
}
