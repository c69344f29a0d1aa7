//! The closed sets that metrics are told apart by.

use crate::domain::{
    capacity::{AlertKind, AlertLevel, SeatBound},
    routing::Route,
    session::lifecycle::SessionState,
    turn::{TurnOutcome, outcome::ErrorCode},
};

/// A closed set of label values.
pub(crate) trait Label: Copy + PartialEq + 'static {
    /// Every member, in the order in which it is shown.
    fn all() -> Vec<Self>;

    /// The values of its labels, one for each label name.
    fn values(&self) -> Vec<&'static str>;
}

macro_rules! labels {
    ($(#[$doc:meta])* $name:ident { $($(#[$member_doc:meta])* $member:ident = $value:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub(crate) enum $name { $($(#[$member_doc])* $member,)* }

        impl $name {
            /// Every member.
            pub(crate) const ALL: &'static [Self] = &[$(Self::$member,)*];

            /// Its label.
            pub(crate) fn as_str(self) -> &'static str {
                match self { $(Self::$member => $value,)* }
            }
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
    /// The kinds of update that ACP version 1 knows; what it does not know yet is `other`.
    UpdateKind {
        /// `user_message_chunk`
        UserMessageChunk = "user_message_chunk",
        /// `agent_message_chunk`
        AgentMessageChunk = "agent_message_chunk",
        /// `agent_thought_chunk`
        AgentThoughtChunk = "agent_thought_chunk",
        /// `tool_call`
        ToolCall = "tool_call",
        /// `tool_call_update`
        ToolCallUpdate = "tool_call_update",
        /// `plan`
        Plan = "plan",
        /// `available_commands_update`
        AvailableCommandsUpdate = "available_commands_update",
        /// `current_mode_update`
        CurrentModeUpdate = "current_mode_update",
        /// `config_option_update`
        ConfigOptionUpdate = "config_option_update",
        /// `session_info_update`
        SessionInfoUpdate = "session_info_update",
        /// `usage_update`
        UsageUpdate = "usage_update",
        /// Any other.
        Other = "other",
    }
}

impl UpdateKind {
    /// The member for the value of `sessionUpdate`.
    pub(crate) fn of(session_update: &str) -> Self {
        Self::ALL.iter().copied().find(|kind| kind.as_str() == session_update).unwrap_or(Self::Other)
    }
}

labels! {
    /// Why a session got a fresh agent, or a part of the service was started again.
    RestartCause {
        /// The agent's process ended, or the connection to it broke.
        Crash = "crash",
        /// A part of this program panicked.
        Panic = "panic",
        /// The agent broke the protocol.
        Protocol = "protocol",
        /// The agent said nothing for too long.
        Timeout = "timeout",
        /// The agent did not finish its handshake.
        Handshake = "handshake",
        /// The agent did not confirm a cancel.
        Cancel = "cancel",
        /// The session's actor did not answer any more.
        Stuck = "stuck",
    }
}

impl RestartCause {
    /// The cause behind an error that cost the agent its process.
    pub(crate) fn of(code: ErrorCode) -> Self {
        match code {
            ErrorCode::ProtocolViolation | ErrorCode::FrameTooLarge | ErrorCode::AgentError => Self::Protocol,
            ErrorCode::InactivityTimeout => Self::Timeout,
            ErrorCode::CancelUnconfirmed => Self::Cancel,
            ErrorCode::HandshakeFailed
            | ErrorCode::HandshakeTimeout
            | ErrorCode::ProtocolVersion
            | ErrorCode::AgentStartFailed
            | ErrorCode::AgentAuthRequired => Self::Handshake,
            ErrorCode::Internal => Self::Panic,
            _ => Self::Crash,
        }
    }
}

labels! {
    /// The bounded queues whose depth is watched.
    Queue {
        /// Writes that wait for the database; bounded by `[limits] write_queue`.
        Writes = "writes",
    }
}

labels! {
    /// Seats of sessions.
    Seats {
        /// Those that are taken.
        Taken = "taken",
        /// Those that there are.
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

/// A level of an alert and what became of it.
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
    /// What a permission request got.
    PermissionAnswer {
        /// One of the options that allow.
        Allowed = "allowed",
        /// One of the options that reject.
        Rejected = "rejected",
        /// Cancelled with its turn, or because no option fitted the policy.
        Cancelled = "cancelled",
        /// Nobody answered in time.
        TimedOut = "timed_out",
    }
}

labels! {
    /// Methods of HTTP.
    HttpMethod {
        /// `GET`
        Get = "GET",
        /// `POST`
        Post = "POST",
        /// `PUT`
        Put = "PUT",
        /// `DELETE`
        Delete = "DELETE",
        /// `OPTIONS`
        Options = "OPTIONS",
        /// Any other.
        Other = "other",
    }
}

impl HttpMethod {
    /// The member for a method's name.
    pub(crate) fn of(name: &str) -> Self {
        Self::ALL.iter().copied().find(|method| method.as_str() == name).unwrap_or(Self::Other)
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

/// Only the live states: the others hold no seat, and their number only grows.
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

impl Label for RouteOutcome {
    fn all() -> Vec<Self> {
        let of = |route| TurnOutcome::LABELS.map(|outcome| Self { route, outcome });
        Route::ALL.into_iter().flat_map(of).collect()
    }

    fn values(&self) -> Vec<&'static str> {
        vec![self.route.as_str(), self.outcome]
    }
}

/// A method and a class of status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HttpAnswer {
    pub method: HttpMethod,
    pub status: StatusClass,
}

impl Label for HttpAnswer {
    fn all() -> Vec<Self> {
        let of = |method: &HttpMethod| {
            StatusClass::ALL.iter().map(|status| Self { method: *method, status: *status }).collect::<Vec<_>>()
        };
        HttpMethod::ALL.iter().flat_map(of).collect()
    }

    fn values(&self) -> Vec<&'static str> {
        vec![self.method.as_str(), self.status.as_str()]
    }
}
