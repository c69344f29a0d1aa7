//! Errors under stable codes, and their recovery.

use crate::domain::{
    capacity::SeatFigures,
    limits::{LimitFigures, LimitKind},
    words::words,
};

words! {
    /// Kind of recovery from an error: connection → reconnect; protocol → renegotiate or fall back; application → the
    /// caller; system → the operator.
    ErrorClass {
        /// The connection to the agent, or the agent's process.
        Connection = "connection",
        /// The agent sent messages that violate the protocol.
        Protocol = "protocol",
        /// The request, or the agent's honest answer to it.
        Application = "application",
        /// This service, its database or its runtime.
        System = "system",
    }
}

macro_rules! error_codes {
    ($($(#[doc = $doc:literal])* $variant:ident = $name:literal, $class:ident, $retryable:literal, $advice:literal $(| $cli_advice:literal)?;)*) => {
        /// A stable code: clients and dashboards may rely on it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub(crate) enum ErrorCode { $($(#[doc = $doc])* $variant,)* }

        impl ErrorCode {
            /// Every code, for documentation and for metrics that start at 0.
            pub(crate) const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Its name in answers, rows and labels.
            pub(crate) fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// The class, which determines the kind of recovery.
            pub(crate) fn class(self) -> ErrorClass {
                match self { $(Self::$variant => ErrorClass::$class,)* }
            }

            /// True if the same request may succeed later without a change.
            pub(crate) fn retryable(self) -> bool {
                match self { $(Self::$variant => $retryable,)* }
            }

            /// Meaning of the code, for the reference of error codes.
            #[cfg(test)]
            pub(crate) fn meaning(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),*),)* }
            }

            /// Advice for a caller of the API.
            pub(crate) fn advice(self) -> &'static str {
                match self { $(Self::$variant => $advice,)* }
            }

            /// The same for a user of the command line: the advice after `|`, else that of the API.
            pub(crate) fn cli_advice(self) -> &'static str {
                match self { $(Self::$variant => [$($cli_advice,)? $advice][0],)* }
            }
        }
    };
}

error_codes! {
    /// The body or a parameter is invalid.
    InvalidRequest = "invalid_request", Application, false, "Correct the request and send it again."
        | "Correct the arguments.";
    /// The body is larger than the limit.
    PayloadTooLarge = "payload_too_large", Application, false, "Send less, or raise the limit that the error names.";
    /// The body is not JSON by its `Content-Type`.
    UnsupportedMediaType = "unsupported_media_type", Application, false, "Send `Content-Type: application/json`."
        | "Use a command line of the same version as the server.";
    /// No such route, session, prompt, workspace or other object.
    NotFound = "not_found", Application, false, "Check the id: it is unknown, or belongs to another tenant."
        | "Check the id or name: it is unknown, or belongs to another tenant.";
    /// The path exists, but not with this method.
    MethodNotAllowed = "method_not_allowed", Application, false, "Use one of the methods in `/openapi.json`."
        | "Use a command line of the same version as the server.";
    /// Several tenants have a workspace of this name.
    AmbiguousWorkspace = "ambiguous_workspace", Application, false, "Name the tenant with `installationId`."
        | "Name the tenant with `--installation`.";
    /// The token or ticket is missing, wrong or expired.
    Unauthorized = "unauthorized", Application, false,
        "Send `Authorization: Bearer <token>`: `server.token`, or the text of the file `token` in the server's data folder."
        | "Set LUMILINK_TOKEN to the token of the server, or LUMILINK_DATA_DIR to its data folder.";
    /// The role or the scope of the token does not allow the operation.
    Forbidden = "forbidden", Application, false,
        "Use a token with a role and a scope that `/openapi.json` names for the operation."
        | "Use a token with a role that allows the command: see `lumilink token create --help`.";
    /// The request chooses more than the ceilings of the tenant admit.
    CeilingExceeded = "ceiling_exceeded", Application, false,
        "Choose what `GET /acp/tenants/{installationId}` and `[ceilings]` admit, or have the ceiling raised."
        | "Choose what `lumilink tenant show` admits, or have the ceiling raised with `lumilink tenant set`.";
    /// The service has as many tokens as it can use.
    TooManyTokens = "too_many_tokens", Application, false, "Revoke tokens that are not used: `GET /acp/tokens`."
        | "Revoke tokens that are not used: `lumilink token list`.";
    /// The signature of a delivery of GitHub is missing or wrong.
    SignatureInvalid = "signature_invalid", Application, false,
        "Sign the body with `github.triggers.webhook_secret` in `X-Hub-Signature-256`, as GitHub does with the secret of its webhook.";
    /// An installation of the GitHub App is bound to another tenant.
    InstallationBound = "installation_bound", Application, false,
        "Remove the installation from the other tenant first: `PUT /acp/tenants/{installationId}`."
        | "Remove the installation from the other tenant first: `lumilink tenant set`.";
    /// The `Origin` is not allowed, or the `Host` is not a name of this service.
    ForbiddenOrigin = "forbidden_origin", Application, false,
        "Add the origin to `server.allowed_origins`, or the host to `server.allowed_hosts`."
        | "Reach the server by IP address, or add its host name to `server.allowed_hosts`.";
    /// The path is outside what the configuration allows.
    PathNotAllowed = "path_not_allowed", Application, false, "Use a folder under one of `workspaces.allow_paths`.";
    /// The tenant, or the token, has reached one of its limits: sessions, running turns, or prompts a minute.
    LimitReached = "limit_reached", Application, true,
        "Try again after `Retry-After`, or have the limit raised: `PUT /acp/tenants/{installationId}`."
        | "Try again later, or have the limit raised with `lumilink tenant set`.";
    /// The files of the workspace take more than `workspaces.max_bytes`.
    WorkspaceFull = "workspace_full", Application, false,
        "Remove files of the workspace, or raise `workspaces.max_bytes`.";
    /// The session, the workspace or the tenant is being erased.
    Erasing = "erasing", Application, true, "Wait until `GET /acp/audit/erasures` shows the end of the erasure."
        | "Wait until `lumilink audit erasures` shows the end of the erasure.";
    /// The session is running another turn.
    TurnRunning = "turn_running", Application, true, "Wait for the running turn (`promptId`), or cancel it."
        | "Wait for the running turn, or cancel it with `lumilink session cancel`.";
    /// Another request changed the route of the workspace at the same time.
    RouteChanged = "route_changed", Application, true, "Read the route, and repeat the request if it still applies."
        | "Look at `lumilink workspace show`, and repeat the command if it still applies.";
    /// The status of the migration does not allow this change.
    MigrationState = "migration_state", Application, false,
        "Read the status with `GET /acp/migrations/{id}`: it does not allow this change."
        | "Look at `lumilink migration show`: the status does not allow this change.";
    /// The folder of the session is being prepared.
    SessionPreparing = "session_preparing", Application, true,
        "Wait until `GET /acp/session/{id}` shows another state, or follow the session's events."
        | "Wait until `lumilink session show` shows another state.";
    /// The session was closed.
    SessionClosed = "session_closed", Application, false, "Open a new session."
        | "Open a new session with `lumilink session new`.";
    /// The session failed: its agent was restarted too often.
    SessionFailed = "session_failed", Application, false, "Load it with `POST /acp/session/load`."
        | "Load it with `lumilink session load`.";
    /// The session expired, or was interrupted by a restart of the service.
    SessionNotLoaded = "session_not_loaded", Application, false, "Load it with `POST /acp/session/load`."
        | "Load it with `lumilink session load`.";
    /// The `Idempotency-Key` was used before with another body.
    IdempotencyMismatch = "idempotency_mismatch", Application, false,
        "Use a new `Idempotency-Key` for another request."
        | "Run the command again: each run uses a new key.";
    /// No permission request with this id and option is pending.
    PermissionNotPending = "permission_not_pending", Application, false,
        "Check `requestId` and `optionId`: it was answered or timed out, or the option was not offered."
        | "It was answered or timed out, or the option was not offered.";
    /// The mode that a user set cannot be set in the agent that would run the turn.
    ModeUnavailable = "mode_unavailable", Application, false,
        "Set a mode that the agent offers with `POST /acp/session/mode`, or wait until turns use ACP again."
        | "Set a mode that the agent offers, or wait until turns use ACP again.";
    /// The agent does not support the request.
    NotSupportedByAgent = "not_supported_by_agent", Application, false,
        "Look at `agentCapabilities`, `modes` and `configOptions` of the session."
        | "Look at what the agent offers: `lumilink session show`.";
    /// The named agent is not configured.
    UnknownAgent = "unknown_agent", Application, false, "Use a name from `GET /acp/agents`."
        | "Use the name of a configured agent: `lumilink config` prints `[agents.<name>]`.";
    /// The named secret does not exist, or the tenant may not use it for this MCP server.
    UnknownSecret = "unknown_secret", Application, false,
        "Name a secret of `[secrets]` that is bound to your tenant and to the command or URL of this MCP server.";
    /// The folder of the workspace was deleted or moved.
    FolderMissing = "folder_missing", Application, false,
        "Restore the folder, or load the session with `POST /acp/session/load`: a folder that was not given by `path` is created again."
        | "Restore the folder, or run `lumilink session load`: a folder that was not given by path is created again.";
    /// The workspace could not be prepared: the clone failed, the disk is full, or the path is not a folder.
    WorkspaceUnavailable = "workspace_unavailable", Application, true, "Check the repository and the access to it.";
    /// Git refuses the files of the workspace, or they exceed its limits; a repeat meets the same.
    WorkspaceUnreadable = "workspace_unreadable", Application, false,
        "Remove or change what the error names in the folder of the workspace.";
    /// The folder of the workspace belongs to another user than the one that runs the agent.
    WorkspaceOwner = "workspace_owner", Application, false,
        "Use another workspace, or the agent that worked in it before: an administrator decides who owns the folder.";
    /// The agent requires credentials.
    AgentAuthRequired = "agent_auth_required", Application, false,
        "Give the agent its credentials with `agent.env` or `agent.inherit_env`.";
    /// The model provider behind the agent refused the credentials, or they are missing.
    Authentication = "authentication", Application, false,
        "Correct the key that the error names, in `agent.env` or `agent.inherit_env`.";
    /// The agent, or the model provider behind it, rejected the parameters of the request.
    AgentRejected = "agent_rejected", Application, false,
        "The error quotes the agent: correct the request accordingly.";
    /// The model provider behind the agent failed.
    ModelProvider = "model_provider", Application, true,
        "Try again later: the model provider refused the request or is overloaded.";

    /// The command of the agent could not be started.
    AgentStartFailed = "agent_start_failed", Connection, false,
        "Check that the program of `agent.command` is installed and can be executed.";
    /// The process of the agent ended unexpectedly.
    AgentCrashed = "agent_crashed", Connection, true, "Send the prompt again: the session has a fresh agent.";
    /// The connection to the runtime was lost.
    ConnectionLost = "connection_lost", Connection, true, "Send the prompt again.";
    /// The runtime does not answer, or refused the connection.
    RuntimeUnavailable = "runtime_unavailable", Connection, true,
        "Check `runtime.url` and `runtime.token`, and that the runtime is running.";
    /// The agent did not complete its handshake within `runtime.handshake_timeout_s`, or its own limit.
    HandshakeTimeout = "handshake_timeout", Connection, true,
        "Check that the command speaks ACP on standard input and output.";
    /// The agent was silent for `turn.inactivity_timeout_s`.
    InactivityTimeout = "inactivity_timeout", Connection, true,
        "Send the prompt again, or raise `turn.inactivity_timeout_s`.";
    /// The agent did not confirm a cancel within `turn.cancel_grace_s` and was killed.
    CancelUnconfirmed = "cancel_unconfirmed", Connection, false,
        "Nothing to do: the turn is cancelled, and the session has a fresh agent.";

    /// The agent offers another protocol version.
    ProtocolVersion = "protocol_version", Protocol, false, "Use an agent that speaks ACP version 1.";
    /// The handshake of the agent did not follow the protocol.
    HandshakeFailed = "handshake_failed", Protocol, false,
        "Check that the command speaks ACP on standard input and output.";
    /// The agent sent a message that does not follow the protocol.
    ProtocolViolation = "protocol_violation", Protocol, true,
        "Send the prompt again, and report it to the author of the agent.";
    /// A message was larger than `limits.frame_bytes`.
    FrameTooLarge = "frame_too_large", Protocol, false,
        "Raise `limits.frame_bytes` if the agent needs larger messages.";
    /// The agent reported an internal error (JSON-RPC -32603 or an unknown code).
    AgentError = "agent_error", Protocol, true, "Send the prompt again; the error quotes the agent.";

    /// The service ended during the turn.
    Interrupted = "interrupted", System, true, "Load the session and send the prompt again."
        | "Load the session with `lumilink session load` and send the prompt again.";
    /// All seats are taken, the runtime runs `runtime.max_agents` agents, or `notifications.max_subscribers` WebSockets
    /// are open.
    CapacityExhausted = "capacity_exhausted", System, true, "Try again after `Retry-After`."
        | "Try again later, or close sessions that are not needed.";
    /// As many deliveries of GitHub are queued as `[github.triggers]` allows.
    QueueFull = "queue_full", System, true, "Have GitHub repeat the delivery later.";
    /// The service is shutting down.
    Draining = "draining", System, true, "Try again after `Retry-After`."
        | "Try again in some seconds.";
    /// Another process of the service took over the turn and stored a different end.
    Fenced = "fenced", System, false, "Read the turn with `GET /acp/prompt/{promptId}`: the stored end is valid."
        | "Look at `lumilink session show` and the transcript: the stored end is valid.";
    /// The database does not accept reads or writes.
    DatabaseUnavailable = "database_unavailable", System, true,
        "Try again after `Retry-After`; with the same `Idempotency-Key` nothing runs twice."
        | "Try again in some seconds.";
    /// The fallback cannot run a turn: the agent does not speak ACP, and no headless command is configured.
    FallbackUnavailable = "fallback_unavailable", System, false,
        "Configure `agent.oneshot`, or an `agent.command` that speaks ACP.";
    /// The threads that run sessions are stalled. Only `/livez` returns this code.
    Stalled = "stalled", System, true, "Restart the service if this does not pass; the log names the thread.";
    /// A bug of the service.
    Internal = "internal", System, true, "Report it with `requestId`; the log has the cause."
        | "Report it with the request id; the log of the server has the cause.";
}

impl ErrorCode {
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
    /// The figures of a refusal.
    pub figures: Option<Box<Figures>>,
}

/// The figures of a refusal for lack of a seat, or by a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Figures {
    Seats(SeatFigures),
    Limit(LimitFigures),
}

impl Failure {
    pub(crate) fn new(code: ErrorCode, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into(), figures: None }
    }

    /// Taken and available seats, if a seat was refused.
    pub(crate) fn seats(&self) -> Option<&SeatFigures> {
        match self.figures.as_deref() {
            Some(Figures::Seats(seats)) => Some(seats),
            _ => None,
        }
    }

    /// The limit that was reached, if one refused the request.
    pub(crate) fn limit(&self) -> Option<&LimitFigures> {
        match self.figures.as_deref() {
            Some(Figures::Limit(limit)) => Some(limit),
            _ => None,
        }
    }

    /// The refusal by a limit of `of`, such as `the tenant`.
    pub(crate) fn limit_reached(of: &str, figures: LimitFigures) -> Self {
        let LimitFigures { kind, used, limit, .. } = figures;
        let detail = match kind {
            LimitKind::Sessions => format!("{of} has {used} live sessions, its limit is {limit}"),
            LimitKind::Turns => format!("{used} turns of {of} run, its limit is {limit}"),
            LimitKind::PromptsPerMinute => format!("{of} sent {used} prompts within a minute, its limit is {limit}"),
            LimitKind::WorkspaceBytes => format!("the files of {of} take {used} bytes, the limit is {limit}"),
        };
        let code = match kind {
            LimitKind::WorkspaceBytes => ErrorCode::WorkspaceFull,
            LimitKind::Sessions | LimitKind::Turns | LimitKind::PromptsPerMinute => ErrorCode::LimitReached,
        };
        Self { figures: Some(Box::new(Figures::Limit(figures))), ..Self::new(code, detail) }
    }

    /// The refusal of an `Idempotency-Key` that was used before with another body.
    pub(crate) fn idempotency_mismatch() -> Self {
        Self::new(ErrorCode::IdempotencyMismatch, "this Idempotency-Key was used before with another body")
    }
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
}
