//! Before a turn begins: what is to become of its changes, and its row.

use crate::{
    actors::{parts::Parts, session_shared::SessionSpec, turn_ticket::TurnTicket},
    domain::{
        lifecycle::SessionMode,
        outcome::{ErrorCode, Failure},
        routing::Route,
        skip::{Asked, Automation, Credential, WantedMode},
    },
    store::{Acceptance, NewTurn, StoreError},
};

/// Decides what is to become of the turn's changes, and writes the turn down.
pub(super) async fn accept(
    parts: &Parts,
    spec: &SessionSpec,
    wanted: WantedMode,
    new_turn: NewTurn,
    mut ticket: TurnTicket,
) -> (Result<Acceptance, StoreError>, TurnTicket) {
    match automation(parts, spec, wanted, new_turn.protocol).await {
        Ok(automation) => ticket.automate(wanted, automation),
        Err(cause) => return (Err(cause), ticket),
    }
    (parts.store.accept_turn(new_turn).await, ticket)
}

async fn automation(
    parts: &Parts,
    spec: &SessionSpec,
    mode: WantedMode,
    protocol: Route,
) -> Result<Automation, StoreError> {
    if spec.repository.is_none() {
        return Ok(Automation::Nothing);
    }
    let tenant = parts.store.tenant_protocol(spec.workspace.installation_id.clone()).await?;
    let github = &parts.settings.github;
    Ok(Automation::decide(&Asked {
        mode,
        enable_git_ops: spec.enable_git_ops,
        is_conversation: spec.mode == SessionMode::Conversation,
        repository: spec.repository.as_deref(),
        is_killed: github.kill_switch,
        is_enabled: github.enabled,
        blocked: &github.blocked_repositories,
        blocked_by_tenant: tenant.as_ref().map_or(&[], |tenant| &tenant.blocked_repositories),
        // This version can be given none: no app can be configured, and no token comes with a prompt.
        credential: Credential::Missing(None),
        protocol,
        fallback_can_automate: true,
    }))
}

/// The same key came with another body.
pub(super) fn mismatch() -> Failure {
    Failure::new(ErrorCode::IdempotencyMismatch, "this Idempotency-Key came before with another body")
}
