//! What can go wrong, under stable codes, and what recovers it.

use crate::{
    acp::jsonrpc::{self, RpcError},
    domain::{capacity::SeatFigures, words::words},
};

words! {
    /// What recovers an error: connection → reconnect; protocol → renegotiate or fall back; application →
    /// the caller; system → the operator.
    ErrorClass {
        /// The connection to the agent, or the agent's process.
        Connection = "connection",
        /// What the agent says is not the protocol.
        Protocol = "protocol",
        /// The request, or the agent's honest answer to it.
        Application = "application",
        /// This service, its database or its runtime.
        System = "system",
    }
}

macro_rules! error_codes {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $class:ident, $retryable:literal, $advice:literal;)*) => {
        /// A stable code: clients and dashboards may rely on it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub(crate) enum ErrorCode { $($(#[$doc])* $variant,)* }

        impl ErrorCode {
            /// Every code, for documentation and for metrics that start at 0.
            pub(crate) const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Its name in answers, rows and labels.
            pub(crate) fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            pub(crate) fn class(self) -> ErrorClass {
                match self { $(Self::$variant => ErrorClass::$class,)* }
            }

            /// Whether the same request may succeed later without a change.
            pub(crate) fn retryable(self) -> bool {
                match self { $(Self::$variant => $retryable,)* }
            }

            /// What the reader can do next.
            pub(crate) fn advice(self) -> &'static str {
                match self { $(Self::$variant => $advice,)* }
            }
        }
    };
}

error_codes! {
    /// The body or a parameter is wrong.
    InvalidRequest = "invalid_request", Application, false, "Correct the request; `detail` names what is wrong.";
    /// The body is larger than the limit.
    PayloadTooLarge = "payload_too_large", Application, false, "Send less, or raise the limit that `detail` names.";
    /// Another media type than JSON.
    UnsupportedMediaType = "unsupported_media_type", Application, false, "Send `Content-Type: application/json`.";
    /// No such route, session, prompt or workspace.
    NotFound = "not_found", Application, false, "Check the id; it is unknown here or not yours.";
    /// The route exists, the method does not.
    MethodNotAllowed = "method_not_allowed", Application, false, "Use one of the methods of the OpenAPI document.";
    /// The id fits more than one tenant's workspace.
    AmbiguousWorkspace = "ambiguous_workspace", Application, false, "Name the tenant with `installationId`.";
    /// No token, or a wrong one.
    Unauthorized = "unauthorized", Application, false, "Send `Authorization: Bearer <token>` with the configured token.";
    /// A browser page of another origin, or a host name that is not ours.
    ForbiddenOrigin = "forbidden_origin", Application, false,
        "Add the origin to `[server] allowed_origins`, or the host to `allowed_hosts`.";
    /// The path is outside what the configuration allows.
    PathNotAllowed = "path_not_allowed", Application, false, "Use a folder under one of `[workspaces] allow_paths`.";
    /// The session has a turn that is still running.
    TurnInProgress = "turn_in_progress", Application, true, "Wait for the running turn (`promptId`) or cancel it.";
    /// The workspace's route changed in the same moment.
    RouteChanged = "route_changed", Application, true, "Look at the route and ask again if it is still wanted.";
    /// A migration of a fleet does not stand where this is possible.
    MigrationState = "migration_state", Application, false, "Look at the migration; `detail` says where it stands.";
    /// The session was closed.
    SessionClosed = "session_closed", Application, false, "Open a new session.";
    /// The session failed too often.
    SessionFailed = "session_failed", Application, false, "Bring it back with `POST /acp/session/load`.";
    /// The session expired, or was interrupted by a restart of the service.
    SessionNotLoaded = "session_not_loaded", Application, false, "Bring it back with `POST /acp/session/load`.";
    /// The same idempotency key came with another body.
    IdempotencyMismatch = "idempotency_mismatch", Application, false, "Use a new `Idempotency-Key` for another request.";
    /// No permission request with this id waits.
    PermissionNotPending = "permission_not_pending", Application, false,
        "It was answered, timed out, or the option was not offered.";
    /// The agent does not offer what was asked for.
    NotSupportedByAgent = "not_supported_by_agent", Application, false,
        "Look at the session's `agentCapabilities`, modes and options.";
    /// The named agent is not configured.
    UnknownAgent = "unknown_agent", Application, false, "Use a name from `GET /acp/agents`.";
    /// The folder could not be prepared: clone failed, disk full, not a folder.
    WorkspaceUnavailable = "workspace_unavailable", Application, true, "See `detail`; check the repository and its access.";
    /// The agent wants to be signed in.
    AgentAuthRequired = "agent_auth_required", Application, false, "Give the agent its credentials in `[agent] env`.";
    /// The agent rejected the request's parameters.
    AgentRejected = "agent_rejected", Application, false, "Change the request; the agent said why.";
    /// The model provider behind the agent failed.
    ModelProvider = "model_provider", Application, true, "Try again later; the provider refused or is overloaded.";

    /// The agent's command could not be started.
    AgentStartFailed = "agent_start_failed", Connection, false, "Check `[agent] command` and that it is installed.";
    /// The agent's process ended in the middle of something.
    AgentCrashed = "agent_crashed", Connection, true, "Send the prompt again; the session has a fresh agent.";
    /// The way to the runtime broke.
    ConnectionLost = "connection_lost", Connection, true, "Send the prompt again.";
    /// The runtime does not answer, or refuses.
    RuntimeUnavailable = "runtime_unavailable", Connection, true, "Check `[runtime] url` and its token, and that it runs.";
    /// The agent did not finish its handshake in time.
    HandshakeTimeout = "handshake_timeout", Connection, true, "Check that the command speaks ACP on stdio.";
    /// Nothing came from the agent for too long.
    InactivityTimeout = "inactivity_timeout", Connection, true,
        "Send the prompt again, or raise `[turn] inactivity_timeout_s`.";
    /// The agent had to be killed because it did not confirm a cancel.
    CancelUnconfirmed = "cancel_unconfirmed", Connection, false, "Nothing: the turn is cancelled, the agent is a fresh one.";

    /// The agent offers another protocol version.
    ProtocolVersion = "protocol_version", Protocol, false, "Use an agent that speaks ACP version 1.";
    /// The agent's handshake was not what the protocol says.
    HandshakeFailed = "handshake_failed", Protocol, false, "Check that the command speaks ACP on stdio.";
    /// The agent printed something that is not the protocol.
    ProtocolViolation = "protocol_violation", Protocol, true, "Send the prompt again; report it to the agent's author.";
    /// A frame was larger than the limit.
    FrameTooLarge = "frame_too_large", Protocol, false, "Raise `[limits] frame_bytes` if the agent really needs it.";
    /// The agent failed inside (JSON-RPC -32603 or an unknown code).
    AgentError = "agent_error", Protocol, true, "Send the prompt again; `detail` is what the agent said.";

    /// The service was stopped during the turn.
    Interrupted = "interrupted", System, true, "Load the session and send the prompt again.";
    /// No seat or no agent process is free.
    CapacityExhausted = "capacity_exhausted", System, true, "Try again after `Retry-After`.";
    /// The service is shutting down.
    Draining = "draining", System, true, "Try again after `Retry-After`, at another replica.";
    /// The database does not take writes or reads.
    DatabaseUnavailable = "database_unavailable", System, true,
        "Try again after `Retry-After`; with the same `Idempotency-Key` nothing runs twice.";
    /// The fallback cannot run a turn: the agent does not speak ACP with it either, and has no headless command.
    FallbackUnavailable = "fallback_unavailable", System, false,
        "Configure `[agent] oneshot`, or make the agent's command speak ACP again; `detail` says what it did.";
    /// Threads of the service stand still; told to probes alone.
    Stalled = "stalled", System, true, "Start the service anew if this does not pass; the log names the thread.";
    /// A fault of ours.
    Internal = "internal", System, true, "Report it with `requestId`; the log has the cause.";
}

impl ErrorCode {
    /// Reads the name back.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|code| code.as_str() == name)
    }
}

/// Why something failed: a stable code and a sentence about this case.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub(crate) struct Failure {
    pub code: ErrorCode,
    /// One sentence about this case; it may quote the agent, so it is redacted before it is kept.
    pub detail: String,
    /// What is taken of what there is, where a seat was refused.
    pub seats: Option<Box<SeatFigures>>,
}

impl Failure {
    /// Makes a failure.
    pub(crate) fn new(code: ErrorCode, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into(), seats: None }
    }
}

/// Words by which a fault of the model provider behind the agent is known, in lower case. A closed
/// table: the fallback cannot cure these.
const PROVIDER_FAULTS: [&str; 14] = [
    "429",
    "500 internal server error",
    "502 bad gateway",
    "503 service unavailable",
    "504 gateway",
    "529",
    "too many requests",
    "rate limit",
    "rate_limit",
    "overloaded",
    "quota",
    "insufficient_quota",
    "credit balance",
    "api error: 5",
];

/// Classifies the error that an agent answered a prompt with.
pub(crate) fn classify_agent_error(error: &RpcError) -> Failure {
    let data = error.data.as_ref().map_or("", |data| data.get());
    let said = format!("{} {data}", error.message).to_lowercase();
    let code = match error.code {
        jsonrpc::AUTH_REQUIRED => ErrorCode::AgentAuthRequired,
        _ if PROVIDER_FAULTS.iter().any(|fault| said.contains(fault)) => ErrorCode::ModelProvider,
        jsonrpc::INVALID_PARAMS | jsonrpc::RESOURCE_NOT_FOUND => ErrorCode::AgentRejected,
        jsonrpc::METHOD_NOT_FOUND => ErrorCode::NotSupportedByAgent,
        jsonrpc::PARSE_ERROR | jsonrpc::INVALID_REQUEST => ErrorCode::ProtocolViolation,
        _ => ErrorCode::AgentError,
    };
    let data = if data.is_empty() { String::new() } else { format!(" {data}") };
    Failure::new(code, format!("the agent answered: {}{data} (JSON-RPC {})", error.message, error.code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_read_back() {
        for code in ErrorCode::ALL {
            assert_eq!(ErrorCode::from_name(code.as_str()), Some(*code));
        }
    }

    #[test]
    fn provider_fault_differs_from_agent_fault() {
        let overloaded = RpcError::new(jsonrpc::INTERNAL_ERROR, "Internal error: API Error: 529 Overloaded");
        assert_eq!(classify_agent_error(&overloaded).code, ErrorCode::ModelProvider);
        let bug = RpcError::new(jsonrpc::INTERNAL_ERROR, "Internal error: undefined is not a function");
        assert_eq!(classify_agent_error(&bug).code, ErrorCode::AgentError);
        let auth = RpcError::new(jsonrpc::AUTH_REQUIRED, "quota"); // the code is the stronger word
        assert_eq!(classify_agent_error(&auth).code, ErrorCode::AgentAuthRequired);
    }
}
