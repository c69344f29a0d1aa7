//! A handshake with an agent of a workspace, to see whether ACP is well there.

use uuid::Uuid;

use super::{services::Parts, session::connection_log};
use crate::{
    domain::{
        ids::{SessionId, WorkspaceKey},
        session::mcp,
        turn::outcome::{ErrorCode, Failure},
    },
    store,
    transport::OpenRequest,
};

/// Starts an agent, shakes hands and lets it go; the agent is that of a live session, else the default one. Ends within
/// `[recovery] probe_timeout_s`. What came of it is written down and counts in no window.
pub async fn shake_hands(parts: &Parts, key: &WorkspaceKey) -> Result<(), Failure> {
    let live = parts.index.of_workspace(key).into_iter().next();
    let (session_id, agent, folder) = match live {
        Some(live) => {
            let spec = &live.shared.spec;
            (Some(spec.session_id), spec.agent.clone(), Some((spec.cwd.clone(), spec.is_ephemeral)))
        }
        None => {
            let row = parts.store.workspace(key.clone()).await.map_err(|cause| store::failure(&cause))?;
            (None, None, row.and_then(|row| row.workspace_path).map(|path| (path, false)))
        }
    };
    let no_folder = || Failure::new(ErrorCode::NotFound, "the workspace has no folder yet");
    let (cwd, is_ephemeral) = folder.ok_or_else(no_folder)?;
    let request = OpenRequest {
        // A probe without a session has none; the runtime's ACP door does not look at it.
        session_id: session_id.unwrap_or(SessionId(Uuid::nil())),
        is_ephemeral,
        agent,
        cwd,
        mcp_servers: mcp::none(),
        previous: None,
        cookies: None,
    };
    let begun = parts.clock.steady();
    let limit = parts.settings.recovery.probe_timeout;
    let opened = tokio::time::timeout(limit, parts.acp.open(request)).await.unwrap_or_else(|_| {
        Err(Failure::new(
            ErrorCode::HandshakeTimeout,
            format!("the probe took longer than {} s", limit.as_secs_f32()),
        ))
    });
    let took = parts.clock.steady().since(begun);
    let facts = opened.as_ref().map(|opened| &opened.facts);
    connection_log::probe(parts, key, session_id, facts, took).await;
    // Dropping what was opened ends the agent.
    opened.map(|_| ())
}
