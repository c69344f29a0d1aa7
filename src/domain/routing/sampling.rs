//! Classifies outcomes for the success window: a success of ACP, a failure of ACP, or not counted.
//!
//! The table covers every error code without a catch-all: a new code does not compile until it is classified. Errors
//! that the fallback may avoid count against ACP. Errors that no route can avoid, and those caused by the caller or by
//! this service, are not counted (FR-007).

use super::success_window::Sample;
use crate::{
    acp::schema::StopReason,
    domain::turn::{
        TurnOutcome,
        outcome::{ErrorCode, Failure},
    },
};

/// Classifies the end of a turn over ACP; `None` if it is not counted.
///
/// Any stop reason of the agent but `cancelled` is a success, a refusal too: ACP carried the turn. A cancel counts, as a
/// failure, only if the agent did not confirm it.
pub(crate) fn sample_of(outcome: &TurnOutcome) -> Option<Sample> {
    match outcome {
        TurnOutcome::Completed(StopReason::Cancelled) | TurnOutcome::Cancelled { confirmed: true } => None,
        TurnOutcome::Completed(_) => Some(Sample::Success),
        TurnOutcome::Cancelled { confirmed: false } => Some(Sample::Failure),
        TurnOutcome::Failed(failure) => sample_of_failure(failure.code),
    }
}

/// Classifies a handshake over ACP, of a session that is opened, loaded or restarted, or of a probe; `None` if it is not
/// counted.
pub(crate) fn sample_of_handshake(result: Result<(), &Failure>) -> Option<Sample> {
    match result {
        Ok(()) => Some(Sample::Success),
        Err(failure) => sample_of_failure(failure.code),
    }
}

/// Classifies an error over ACP: a failure, or not counted.
fn sample_of_failure(code: ErrorCode) -> Option<Sample> {
    use ErrorCode::*;
    match code {
        // No agent, or no connection to it.
        AgentStartFailed | AgentCrashed | ConnectionLost | HandshakeTimeout | InactivityTimeout
        | CancelUnconfirmed => Some(Sample::Failure),
        // Protocol errors. AgentError covers -32603 and every code outside the protocol: the turn ended without a stop
        // reason, the codes for a wrong request are known and not counted, and an agent that fails under a code of its
        // own must not keep a workspace on a dead route. Faults of the model provider were separated before
        // (`turn::agent_error`).
        ProtocolVersion | HandshakeFailed | ProtocolViolation | FrameTooLarge | AgentError => Some(Sample::Failure),
        // Only the fallback reports this: it has no command to run the turn with.
        FallbackUnavailable => Some(Sample::Failure),

        // Caused by the caller's request, also where the agent reports it (-32602, -32002, -32601).
        InvalidRequest | PayloadTooLarge | UnsupportedMediaType | NotFound | MethodNotAllowed
        | AmbiguousWorkspace | RouteChanged | MigrationState | Unauthorized | Forbidden | ForbiddenOrigin
        | TurnRunning | SessionPreparing | SessionClosed | SessionFailed | SessionNotLoaded | IdempotencyMismatch
        | PermissionNotPending | LimitReached | WorkspaceFull | Erasing | TooManyTokens | CeilingExceeded
        | SignatureInvalid | InstallationBound | QueueFull | ModeUnavailable | NotSupportedByAgent | UnknownAgent
        | UnknownSecret | AgentRejected => None,
        // The same on every route: folder and git, credentials, the model's provider.
        PathNotAllowed | FolderMissing | WorkspaceUnavailable | WorkspaceUnreadable | WorkspaceOwner
        | AgentAuthRequired | Authentication | ModelProvider => None,
        // The runtime is stopped or cannot be reached: both routes need it.
        RuntimeUnavailable => None,
        // Caused by this service: 429 and 503, a drain or a crash during the turn, internal errors.
        Interrupted | CapacityExhausted | Draining | Fenced | DatabaseUnavailable | Stalled | Internal => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        acp::jsonrpc::{self, RpcError},
        domain::turn::agent_error::classify_agent_error,
    };

    const AGAINST: [ErrorCode; 12] = [
        ErrorCode::AgentStartFailed,
        ErrorCode::AgentCrashed,
        ErrorCode::ConnectionLost,
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

    const NOT_COUNTED: &[ErrorCode] = &[
        ErrorCode::InvalidRequest,
        ErrorCode::PayloadTooLarge,
        ErrorCode::UnsupportedMediaType,
        ErrorCode::NotFound,
        ErrorCode::MethodNotAllowed,
        ErrorCode::AmbiguousWorkspace,
        ErrorCode::MigrationState,
        ErrorCode::RouteChanged,
        ErrorCode::LimitReached,
        ErrorCode::WorkspaceFull,
        ErrorCode::Erasing,
        ErrorCode::Unauthorized,
        ErrorCode::Forbidden,
        ErrorCode::TooManyTokens,
        ErrorCode::SignatureInvalid,
        ErrorCode::InstallationBound,
        ErrorCode::QueueFull,
        ErrorCode::CeilingExceeded,
        ErrorCode::ForbiddenOrigin,
        ErrorCode::PathNotAllowed,
        ErrorCode::FolderMissing,
        ErrorCode::TurnRunning,
        ErrorCode::SessionPreparing,
        ErrorCode::SessionClosed,
        ErrorCode::SessionFailed,
        ErrorCode::SessionNotLoaded,
        ErrorCode::IdempotencyMismatch,
        ErrorCode::PermissionNotPending,
        ErrorCode::ModeUnavailable,
        ErrorCode::NotSupportedByAgent,
        ErrorCode::UnknownAgent,
        ErrorCode::UnknownSecret,
        ErrorCode::WorkspaceUnavailable,
        ErrorCode::WorkspaceUnreadable,
        ErrorCode::WorkspaceOwner,
        ErrorCode::AgentAuthRequired,
        ErrorCode::Authentication,
        ErrorCode::AgentRejected,
        ErrorCode::ModelProvider,
        ErrorCode::RuntimeUnavailable,
        ErrorCode::Interrupted,
        ErrorCode::CapacityExhausted,
        ErrorCode::Draining,
        ErrorCode::Fenced,
        ErrorCode::DatabaseUnavailable,
        ErrorCode::Stalled,
        ErrorCode::Internal,
    ];

    #[test]
    fn fr_007_every_error_code_is_classified_for_turns_and_handshakes() {
        assert_eq!(AGAINST.len() + NOT_COUNTED.len(), ErrorCode::ALL.len());
        for code in ErrorCode::ALL {
            let expected = match (AGAINST.contains(code), NOT_COUNTED.contains(code)) {
                (true, false) => Some(Sample::Failure),
                (false, true) => None,
                _ => panic!("{code:?} is in both lists or in neither"),
            };
            let failure = Failure::new(*code, "it failed");
            assert_eq!(sample_of_handshake(Err(&failure)), expected, "handshake: {code:?}");
            assert_eq!(sample_of(&TurnOutcome::Failed(failure)), expected, "turn: {code:?}");
        }
    }

    #[test]
    fn fr_007_stop_reasons_are_successes_and_cancels_count_only_unconfirmed() {
        for reason in [StopReason::EndTurn, StopReason::MaxTokens, StopReason::MaxTurnRequests, StopReason::Refusal] {
            assert_eq!(sample_of(&TurnOutcome::Completed(reason)), Some(Sample::Success), "{reason:?}");
        }
        assert_eq!(sample_of(&TurnOutcome::Completed(StopReason::Cancelled)), None);
        assert_eq!(sample_of(&TurnOutcome::Cancelled { confirmed: true }), None);
        assert_eq!(sample_of(&TurnOutcome::Cancelled { confirmed: false }), Some(Sample::Failure));
        assert_eq!(sample_of_handshake(Ok(())), Some(Sample::Success));
    }

    #[test]
    fn fr_007_agent_error_counts_by_json_rpc_code_and_message() {
        for (code, message, expected) in [
            (jsonrpc::INTERNAL_ERROR, "undefined is not a function", Some(Sample::Failure)),
            (jsonrpc::INTERNAL_ERROR, "API Error: 529 Overloaded", None),
            (jsonrpc::INVALID_PARAMS, "no such session", None),
            (jsonrpc::RESOURCE_NOT_FOUND, "no such file", None),
            (jsonrpc::AUTH_REQUIRED, "sign in", None),
            (jsonrpc::PARSE_ERROR, "what?", Some(Sample::Failure)),
            (jsonrpc::INVALID_REQUEST, "what?", Some(Sample::Failure)),
            (-32001, "an agent's own code", Some(Sample::Failure)),
            (1, "an agent's own code", Some(Sample::Failure)),
            (1, "rate limit reached", None),
            (401, "no", None),
            (500, "no", None),
            (jsonrpc::INTERNAL_ERROR, "TypeError at turn.js:429:12", Some(Sample::Failure)),
            (-32800, "cancelled, although no cancel was sent", Some(Sample::Failure)),
        ] {
            let failure = classify_agent_error(&RpcError::new(code, message));
            assert_eq!(sample_of(&TurnOutcome::Failed(failure)), expected, "{code}: {message}");
        }
    }
}
