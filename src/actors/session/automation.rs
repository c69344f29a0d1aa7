//! Decision about a turn's changes: gathers the input of [`Automation::decide`].

use super::turn_ticket::TurnTicket;
use crate::{
    actors::{handles::session::SessionSpec, services::Services},
    domain::{
        automation::{
            skip::{Asked, Automation, Credential, SkipReason},
            wanted::Wanted,
        },
        routing::Route,
        session::lifecycle::SessionMode,
    },
    store::{Acceptance, NewTurn, StoreError},
};

/// Decides whether automation runs on the turn's changes. The tenant's blocked repositories are read only if no earlier
/// rule decides.
pub(crate) async fn decide(
    services: &Services,
    spec: &SessionSpec,
    wanted: &Wanted,
    protocol: Route,
) -> Result<Automation, StoreError> {
    if spec.repository.is_none() {
        return Ok(Automation::Nothing);
    }
    let (github, blocked) = (&services.settings.github, services.settings.blocked_repositories.get());
    let asked = Asked {
        mode: wanted.mode,
        enable_git_ops: spec.enable_git_ops,
        is_conversation: spec.mode == SessionMode::Conversation,
        repository: spec.repository.as_deref(),
        is_killed: github.kill_switch,
        is_enabled: github.enabled,
        blocked: &blocked,
        blocked_by_tenant: &[],
        credential: services.automate.as_ref().map_or(Credential::Missing(None), |automate| {
            automate.credential(&spec.workspace.installation_id, wanted.options.has_token)
        }),
        protocol,
        fallback_can_automate: true,
    };
    let decided = Automation::decide(&asked);
    let is_settled = match decided {
        Automation::Nothing => true,
        Automation::Skip { reason, .. } => {
            matches!(reason, SkipReason::AutomationDisabled | SkipReason::Other | SkipReason::RepoBlocked)
        }
        Automation::Run => false,
    };
    if is_settled {
        // The tenant's settings cannot override it.
        return Ok(decided);
    }
    let tenant = services.store.tenant_protocol(spec.workspace.installation_id.clone()).await?;
    let blocked_by_tenant = tenant.as_ref().map_or(&[][..], |tenant| &tenant.blocked_repositories);
    Ok(Automation::decide(&Asked { blocked_by_tenant, ..asked }))
}

/// Decides about the turn's changes, then persists the turn with the decision.
pub(crate) async fn accept(
    services: &Services,
    spec: &SessionSpec,
    mut new_turn: NewTurn,
    mut ticket: TurnTicket,
) -> (Result<Acceptance, StoreError>, TurnTicket) {
    let wanted = &new_turn.wanted;
    match decide(services, spec, wanted, new_turn.protocol).await {
        Ok(automation) => {
            ticket.automate(wanted.mode, automation);
            new_turn.decision = automation;
        }
        Err(cause) => return (Err(cause), ticket),
    }
    (services.store.accept_turn(new_turn).await, ticket)
}
