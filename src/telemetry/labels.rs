//! The closed sets of label values.

use crate::domain::{
    automation::{
        skip::SkipReason,
        step::StepName,
        trigger::{DeliveryState, EventKind},
    },
    capacity::{AlertKind, AlertLevel, SeatBound},
    jail::Right,
    routing::Route,
    session::lifecycle::SessionState,
    turn::{TurnOutcome, outcome::ErrorCode},
    words::words,
};

/// A closed set of label values.
pub(crate) trait Label: Copy + PartialEq + 'static {
    /// Every member.
    fn all() -> Vec<Self>;

    /// The value of each label, in the order of the label names.
    fn values(&self) -> Vec<&'static str>;
}

impl Label for Right {
    fn all() -> Vec<Self> {
        Self::ALL.to_vec()
    }

    fn values(&self) -> Vec<&'static str> {
        vec![self.as_str()]
    }
}

macro_rules! labels {
    ($(#[$doc:meta])* $name:ident { $($(#[$member_doc:meta])* $member:ident = $value:literal,)* }) => {
        words! {
            $(#[$doc])*
            $name { $($(#[$member_doc])* $member = $value,)* }
        }

        impl Label for $name {
            fn all() -> Vec<Self> {
                Self::ALL.to_vec()
            }

            fn values(&self) -> Vec<&'static str> {
                vec![self.as_str()]
            }
        }
    };
}

labels! {
    /// The kinds of update of ACP version 1; any other kind is `other`.
    UpdateKind {
        UserMessageChunk = "user_message_chunk",
        AgentMessageChunk = "agent_message_chunk",
        AgentThoughtChunk = "agent_thought_chunk",
        ToolCall = "tool_call",
        ToolCallUpdate = "tool_call_update",
        Plan = "plan",
        AvailableCommandsUpdate = "available_commands_update",
        CurrentModeUpdate = "current_mode_update",
        ConfigOptionUpdate = "config_option_update",
        SessionInfoUpdate = "session_info_update",
        UsageUpdate = "usage_update",
        /// Any other.
        Other = "other",
    }
}

impl UpdateKind {
    /// The member for the value of `sessionUpdate`.
    pub(crate) fn of(session_update: &str) -> Self {
        Self::from_name(session_update).unwrap_or(Self::Other)
    }
}

labels! {
    /// Why an agent, or a part of the service, was restarted.
    RestartCause {
        /// The agent's process ended, or the connection to it broke.
        Crash = "crash",
        /// A part of this program panicked.
        Panic = "panic",
        /// The agent broke the protocol.
        Protocol = "protocol",
        /// The agent was silent for `turn.inactivity_timeout_s`.
        Timeout = "timeout",
        /// The handshake of the agent failed.
        Handshake = "handshake",
        /// The agent did not confirm a cancel.
        Cancel = "cancel",
        /// The actor of the session stopped answering.
        Stuck = "stuck",
        /// The runtime was unavailable; spends no restart.
        Runtime = "runtime",
        /// The database was unavailable; spends no restart.
        Database = "database",
    }
}

impl RestartCause {
    /// The cause of a restart after an error.
    pub(crate) fn of(code: ErrorCode) -> Self {
        match code {
            ErrorCode::ProtocolViolation | ErrorCode::FrameTooLarge | ErrorCode::AgentError => Self::Protocol,
            ErrorCode::InactivityTimeout => Self::Timeout,
            ErrorCode::CancelUnconfirmed => Self::Cancel,
            ErrorCode::HandshakeFailed
            | ErrorCode::HandshakeTimeout
            | ErrorCode::ProtocolVersion
            | ErrorCode::AgentStartFailed
            | ErrorCode::AgentAuthRequired
            | ErrorCode::Authentication => Self::Handshake,
            ErrorCode::Internal => Self::Panic,
            ErrorCode::RuntimeUnavailable => Self::Runtime,
            ErrorCode::DatabaseUnavailable => Self::Database,
            _ => Self::Crash,
        }
    }
}

labels! {
    /// The bounded queues with a depth metric.
    Queue {
        /// Writes that wait for the database; bounded by `limits.write_queue`.
        Writes = "writes",
    }
}

labels! {
    /// Seats of sessions.
    Seats {
        Taken = "taken",
        /// The limit for new sessions.
        Limit = "limit",
    }
}

impl Label for SeatBound {
    fn all() -> Vec<Self> {
        vec![Self::Service, Self::Tenant]
    }

    fn values(&self) -> Vec<&'static str> {
        vec![match self {
            Self::Service => "service",
            Self::Tenant => "tenant",
        }]
    }
}

impl Label for AlertLevel {
    fn all() -> Vec<Self> {
        Self::ALL.to_vec()
    }

    fn values(&self) -> Vec<&'static str> {
        vec![self.as_str()]
    }
}

/// The level of an alert, and whether it was raised or resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct AlertChange {
    pub level: AlertLevel,
    pub kind: AlertKind,
}

impl Label for AlertChange {
    fn all() -> Vec<Self> {
        let of = |level| AlertKind::ALL.map(|kind| Self { level, kind });
        AlertLevel::ALL.into_iter().flat_map(of).collect()
    }

    fn values(&self) -> Vec<&'static str> {
        vec![self.level.as_str(), self.kind.as_str()]
    }
}

labels! {
    /// Answers to permission requests.
    PermissionAnswer {
        /// One of the options that allow.
        Allowed = "allowed",
        /// One of the options that reject.
        Rejected = "rejected",
        /// Cancelled with its turn, or because no option matched the policy.
        Cancelled = "cancelled",
        /// Not answered within `permission.timeout_s`.
        TimedOut = "timed_out",
    }
}

labels! {
    /// HTTP methods.
    HttpMethod {
        Get = "GET",
        Head = "HEAD",
        Post = "POST",
        Put = "PUT",
        Patch = "PATCH",
        Delete = "DELETE",
        Options = "OPTIONS",
        /// Any other.
        Other = "other",
    }
}

impl HttpMethod {
    /// The member for a method's name.
    pub(crate) fn of(name: &str) -> Self {
        Self::from_name(name).unwrap_or(Self::Other)
    }
}

labels! {
    /// Classes of HTTP status.
    StatusClass {
        /// 100 to 199.
        Informational = "1xx",
        /// 200 to 299.
        Success = "2xx",
        /// 300 to 399.
        Redirection = "3xx",
        /// 400 to 499.
        ClientError = "4xx",
        /// 500 and above.
        ServerError = "5xx",
    }
}

impl StatusClass {
    /// The class of a status.
    pub(crate) fn of(status: u16) -> Self {
        match status {
            0..200 => Self::Informational,
            200..300 => Self::Success,
            300..400 => Self::Redirection,
            400..500 => Self::ClientError,
            _ => Self::ServerError,
        }
    }
}

impl Label for Route {
    fn all() -> Vec<Self> {
        Self::ALL.to_vec()
    }

    fn values(&self) -> Vec<&'static str> {
        vec![self.as_str()]
    }
}

/// Only the states that hold a seat: the number of other sessions only grows.
impl Label for SessionState {
    fn all() -> Vec<Self> {
        Self::ALL.into_iter().filter(|state| state.is_live()).collect()
    }

    fn values(&self) -> Vec<&'static str> {
        vec![self.as_str()]
    }
}

impl Label for ErrorCode {
    fn all() -> Vec<Self> {
        Self::ALL.to_vec()
    }

    /// The class, then the code.
    fn values(&self) -> Vec<&'static str> {
        vec![self.class().as_str(), self.as_str()]
    }
}

/// A route and how a turn on it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RouteOutcome {
    pub route: Route,
    pub outcome: &'static str,
}

/// The end of an attempt of automation: its status and, for a skip, its reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RunOutcome {
    status: &'static str,
    reason: &'static str,
}

impl RunOutcome {
    /// The label of these words; `None` if one is unknown.
    pub(crate) fn of(status: &str, reason: Option<&str>) -> Option<Self> {
        let reason = reason.unwrap_or_default();
        Self::all().into_iter().find(|label| label.status == status && label.reason == reason)
    }
}

impl Label for RunOutcome {
    fn all() -> Vec<Self> {
        let ended = ["success", "error"].map(|status| Self { status, reason: "" });
        let skips = SkipReason::ALL.map(|reason| Self { status: "skipped", reason: reason.as_str() });
        ended.into_iter().chain(skips).collect()
    }

    fn values(&self) -> Vec<&'static str> {
        vec![self.status, self.reason]
    }
}

labels! {
    /// The end of a clone.
    CloneResult {
        Done = "done",
        Failed = "failed",
        /// The caller went away.
        Cancelled = "cancelled",
    }
}

labels! {
    /// Result of a delivery of GitHub that arrived.
    DeliveryResult {
        Pong = "pong",
        Queued = "queued",
        Duplicate = "duplicate",
        Ignored = "ignored",
        /// The signature is wrong.
        Refused = "refused",
        Malformed = "malformed",
        /// The queue is full.
        Full = "full",
        /// The service is stopping, or the database does not answer.
        Failed = "failed",
    }
}

/// An event of GitHub's webhook, and what became of its delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DeliveryOutcome {
    pub event: EventKind,
    pub result: DeliveryResult,
}

impl Label for DeliveryOutcome {
    fn all() -> Vec<Self> {
        let of = |event| DeliveryResult::ALL.map(|result| Self { event, result });
        EventKind::ALL.into_iter().flat_map(of).collect()
    }

    fn values(&self) -> Vec<&'static str> {
        vec![self.event.as_str(), self.result.as_str()]
    }
}

/// The end of the work on a queued delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TriggerEnd(pub DeliveryState);

impl Label for TriggerEnd {
    fn all() -> Vec<Self> {
        DeliveryState::ALL.into_iter().filter(|state| !state.is_open()).map(Self).collect()
    }

    fn values(&self) -> Vec<&'static str> {
        vec![self.0.as_str()]
    }
}

/// The end of a step of automation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StepResult {
    pub step: StepName,
    pub is_done: bool,
}

impl Label for StepResult {
    fn all() -> Vec<Self> {
        StepName::ALL.into_iter().flat_map(|step| [true, false].map(|is_done| Self { step, is_done })).collect()
    }

    fn values(&self) -> Vec<&'static str> {
        vec![self.step.as_str(), if self.is_done { "done" } else { "failed" }]
    }
}

impl Label for RouteOutcome {
    fn all() -> Vec<Self> {
        let of = |route| TurnOutcome::LABELS.map(|outcome| Self { route, outcome });
        Route::ALL.into_iter().flat_map(of).collect()
    }

    fn values(&self) -> Vec<&'static str> {
        vec![self.route.as_str(), self.outcome]
    }
}
