//! Before a turn begins: what is to become of its changes, and its row.

use super::{automation, turn_ticket::TurnTicket};
use crate::{
    actors::{handles::session::SessionSpec, services::Parts},
    domain::{
        automation::skip::WantedMode,
        turn::outcome::{ErrorCode, Failure},
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
    match automation::decide(parts, spec, wanted, new_turn.protocol).await {
        Ok(automation) => ticket.automate(wanted, automation),
        Err(cause) => return (Err(cause), ticket),
    }
    (parts.store.accept_turn(new_turn).await, ticket)
}

/// The same key came with another body.
pub(super) fn mismatch() -> Failure {
    Failure::new(ErrorCode::IdempotencyMismatch, "this Idempotency-Key came before with another body")
}
