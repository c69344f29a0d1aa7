//! What an outcome counts as in the window of a workspace: for ACP, against it, or not at all.
//!
//! A table over every error code, without a rest: a new code does not compile until somebody decides about it. What
//! counts against ACP is what the fallback may cure; what no route can cure, and what is the caller's or our own
//! doing, is not counted (mission: "The window and the router, exactly").

use super::success_window::Sample;
use crate::{
    acp::schema::StopReason,
    domain::turn::{
        TurnOutcome,
        outcome::{ErrorCode, Failure},
    },
};

/// What the end of a turn over ACP counts as; none where it is not counted.
///
/// Any stop reason of the agent but `cancelled` is a success, a refusal too: ACP carried it. A cancel is counted only
/// where the agent did not confirm it.
pub(crate) fn sample_of(outcome: &TurnOutcome) -> Option<Sample> {
    match outcome {
        TurnOutcome::Completed(StopReason::Cancelled) | TurnOutcome::Cancelled { confirmed: true } => None,
        TurnOutcome::Completed(_) => Some(Sample::Success),
        TurnOutcome::Cancelled { confirmed: false } => Some(Sample::Failure),
        TurnOutcome::Failed(failure) => sample_of_failure(failure.code),
    }
}

/// What a handshake over ACP counts as: of a session that starts, is loaded or starts again, or of a probe. None where
/// it is not counted.
pub(crate) fn sample_of_handshake(result: Result<(), &Failure>) -> Option<Sample> {
    match result {
        Ok(()) => Some(Sample::Success),
        // Of a prompt it says that the caller asked for too much; but a handshake asks for nothing that an agent may
        // leave out, and who has no `session/new` does not speak ACP.
        Err(failure) if failure.code == ErrorCode::NotSupportedByAgent => Some(Sample::Failure),
        Err(failure) => sample_of_failure(failure.code),
    }
}

/// What an error over ACP counts as: a failure, or nothing.
fn sample_of_failure(code: ErrorCode) -> Option<Sample> {
    use ErrorCode::*;
    match code {
        // No agent, or no way to it.
        AgentStartFailed | AgentCrashed | ConnectionLost | RuntimeUnavailable | HandshakeTimeout
        | InactivityTimeout | CancelUnconfirmed => Some(Sample::Failure),
        // What came was not the protocol. AgentError stands for -32603 and for every code that the protocol does not
        // know: the turn brought no stop reason, the codes by which an agent says that the request was wrong are
        // known and not counted, and an agent that fails under a code of its own must not keep a workspace on a dead
        // route. A fault of the model provider was told from it before (`outcome::classify_agent_error`).
        ProtocolVersion | HandshakeFailed | ProtocolViolation | FrameTooLarge | AgentError => Some(Sample::Failure),
        // Only the fallback says so: it has nothing to run the turn with.
        FallbackUnavailable => Some(Sample::Failure),

        // The caller's: the request, also where the agent said so (-32602, -32002, -32601).
        InvalidRequest | PayloadTooLarge | UnsupportedMediaType | NotFound | MethodNotAllowed
        | AmbiguousWorkspace | RouteChanged | MigrationState | Unauthorized | ForbiddenOrigin | TurnInProgress
        | SessionClosed | SessionFailed | SessionNotLoaded | IdempotencyMismatch | PermissionNotPending
        | NotSupportedByAgent | UnknownAgent | AgentRejected => None,
        // Nothing that another route would do better: folder and git, credentials (-32000), the model's provider.
        PathNotAllowed | WorkspaceUnavailable | AgentAuthRequired | ModelProvider => None,
        // Our own: 429 and 503, a drain or a death during the turn, faults of ours.
        Interrupted | CapacityExhausted | Draining | DatabaseUnavailable | Stalled | Internal => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        acp::jsonrpc::{self, RpcError},
        domain::turn::outcome::classify_agent_error,
    };

    const AGAINST: [ErrorCode; 13] = [
        ErrorCode::AgentStartFailed,
        ErrorCode::AgentCrashed,
        ErrorCode::ConnectionLost,
        ErrorCode::RuntimeUnavailable,
        ErrorCode::HandshakeTimeout,
        ErrorCode::InactivityTimeout,
        ErrorCode::CancelUnconfirmed,
        ErrorCode::ProtocolVersion,
        ErrorCode::HandshakeFailed,
        ErrorCode::ProtocolViolation,
        ErrorCode::FrameTooLarge,
        ErrorCode::AgentError,
        ErrorCode::FallbackUnavailable,
    ];

    const NOT_COUNTED: [ErrorCode; 29] = [
        ErrorCode::InvalidRequest,
        ErrorCode::PayloadTooLarge,
        ErrorCode::UnsupportedMediaType,
        ErrorCode::NotFound,
        ErrorCode::MethodNotAllowed,
        ErrorCode::AmbiguousWorkspace,
        ErrorCode::MigrationState,
        ErrorCode::RouteChanged,
        ErrorCode::Unauthorized,
        ErrorCode::ForbiddenOrigin,
        ErrorCode::PathNotAllowed,
        ErrorCode::TurnInProgress,
        ErrorCode::SessionClosed,
        ErrorCode::SessionFailed,
        ErrorCode::SessionNotLoaded,
        ErrorCode::IdempotencyMismatch,
        ErrorCode::PermissionNotPending,
        ErrorCode::NotSupportedByAgent,
        ErrorCode::UnknownAgent,
        ErrorCode::WorkspaceUnavailable,
        ErrorCode::AgentAuthRequired,
        ErrorCode::AgentRejected,
        ErrorCode::ModelProvider,
        ErrorCode::Interrupted,
        ErrorCode::CapacityExhausted,
        ErrorCode::Draining,
        ErrorCode::DatabaseUnavailable,
        ErrorCode::Stalled,
        ErrorCode::Internal,
    ];

    #[test]
    fn fr_007_every_error_code_counts_or_not_for_turns_and_handshakes() {
        assert_eq!(AGAINST.len() + NOT_COUNTED.len(), ErrorCode::ALL.len());
        for code in ErrorCode::ALL {
            let expected = match (AGAINST.contains(code), NOT_COUNTED.contains(code)) {
                (true, false) => Some(Sample::Failure),
                (false, true) => None,
                _ => panic!("{code:?} stands in both lists or in none"),
            };
            let failure = Failure::new(*code, "it failed");
            let of_handshake = if *code == ErrorCode::NotSupportedByAgent { Some(Sample::Failure) } else { expected };
            assert_eq!(sample_of_handshake(Err(&failure)), of_handshake, "handshake: {code:?}");
            assert_eq!(sample_of(&TurnOutcome::Failed(failure)), expected, "turn: {code:?}");
        }
    }

    #[test]
    fn fr_007_any_stop_reason_is_a_success_and_a_cancel_counts_only_unconfirmed() {
        for reason in [StopReason::EndTurn, StopReason::MaxTokens, StopReason::MaxTurnRequests, StopReason::Refusal] {
            assert_eq!(sample_of(&TurnOutcome::Completed(reason)), Some(Sample::Success), "{reason:?}");
        }
        assert_eq!(sample_of(&TurnOutcome::Completed(StopReason::Cancelled)), None);
        assert_eq!(sample_of(&TurnOutcome::Cancelled { confirmed: true }), None);
        assert_eq!(sample_of(&TurnOutcome::Cancelled { confirmed: false }), Some(Sample::Failure));
        assert_eq!(sample_of_handshake(Ok(())), Some(Sample::Success));
    }

    #[test]
    fn fr_007_an_agents_answer_counts_by_its_json_rpc_code_and_by_whose_fault_it_is() {
        for (code, message, expected) in [
            (jsonrpc::INTERNAL_ERROR, "undefined is not a function", Some(Sample::Failure)),
            (jsonrpc::INTERNAL_ERROR, "API Error: 529 Overloaded", None),
            (jsonrpc::INVALID_PARAMS, "no such session", None),
            (jsonrpc::RESOURCE_NOT_FOUND, "no such file", None),
            (jsonrpc::AUTH_REQUIRED, "sign in", None),
            (jsonrpc::PARSE_ERROR, "what?", Some(Sample::Failure)),
            (jsonrpc::INVALID_REQUEST, "what?", Some(Sample::Failure)),
            (-32001, "a code of its own", Some(Sample::Failure)),
            (1, "a code of its own", Some(Sample::Failure)),
            (1, "rate limit reached", None),
        ] {
            let failure = classify_agent_error(&RpcError::new(code, message));
            assert_eq!(sample_of(&TurnOutcome::Failed(failure)), expected, "{code}: {message}");
        }
    }
}
