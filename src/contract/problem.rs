//! The one form of every error answer: RFC 9457 with our members, for both HTTP faces.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::domain::{
    capacity::SeatFigures,
    turn::outcome::{ErrorCode, Failure},
};

/// The media type of [`Problem`].
pub(crate) const PROBLEM_JSON: &str = "application/problem+json";

/// `application/problem+json` (RFC 9457).
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Problem {
    /// `urn:lumilink:problem:<code>`.
    #[serde(rename = "type")]
    pub kind: String,
    /// A short name for the code.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What happened in this case, and what to do about it.
    pub detail: String,
    /// The stable code.
    pub code: String,
    /// `connection`, `protocol`, `application` or `system`.
    #[schema(value_type = String)]
    pub class: String,
    /// Whether the same request may succeed later.
    pub retryable: bool,
    /// Also in the `X-Request-Id` header and in the log.
    pub request_id: String,
    /// The turn that this is about: the running one, or the one that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_id: Option<String>,
    /// The `ACPSessionResult` of a turn that began and failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<super::result::ACPSessionResult>)]
    pub result: Option<Box<RawValue>>,
    /// The figures, where a session got no seat.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<ProblemCapacity>,
}

/// Why a session got no seat.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ProblemCapacity {
    /// Sessions with a seat.
    pub taken: usize,
    /// The most that new ones may bring it to.
    pub limit: usize,
    /// Those of the tenant.
    pub tenant_taken: usize,
    /// The most that it may have.
    pub tenant_limit: usize,
}

impl ProblemCapacity {
    fn of(figures: &SeatFigures) -> Self {
        let SeatFigures { taken, limit, tenant_taken, tenant_limit } = *figures;
        Self { taken, limit, tenant_taken, tenant_limit }
    }
}

impl Problem {
    /// Describes a failure.
    pub(crate) fn new(failure: &Failure, request_id: impl Into<String>) -> Self {
        let code = failure.code;
        // A failure of the runtime comes with the advice already.
        let detail = failure.detail.trim_end().trim_end_matches(code.advice());
        let detail = detail.trim_end().trim_end_matches('.');
        let stop = if detail.ends_with(['?', '!']) { "" } else { "." };
        Self {
            kind: format!("urn:lumilink:problem:{}", code.as_str()),
            title: code.as_str().replace('_', " "),
            status: status_of(code),
            detail: format!("{detail}{stop} {}", code.advice()),
            code: code.as_str().to_owned(),
            class: code.class().as_str().to_owned(),
            retryable: code.retryable(),
            request_id: request_id.into(),
            prompt_id: None,
            result: None,
            capacity: failure.seats.as_deref().map(ProblemCapacity::of),
        }
    }
}

/// The HTTP status of each code: the only place where one is chosen.
pub(crate) fn status_of(code: ErrorCode) -> u16 {
    match code {
        ErrorCode::InvalidRequest => 400,
        ErrorCode::Unauthorized => 401,
        ErrorCode::ForbiddenOrigin | ErrorCode::PathNotAllowed => 403,
        ErrorCode::NotFound => 404,
        ErrorCode::MethodNotAllowed => 405,
        ErrorCode::AmbiguousWorkspace
        | ErrorCode::TurnInProgress
        | ErrorCode::RouteChanged
        | ErrorCode::MigrationState
        | ErrorCode::SessionClosed
        | ErrorCode::SessionFailed
        | ErrorCode::SessionNotLoaded
        | ErrorCode::PermissionNotPending => 409,
        ErrorCode::PayloadTooLarge => 413,
        ErrorCode::UnsupportedMediaType => 415,
        ErrorCode::IdempotencyMismatch
        | ErrorCode::NotSupportedByAgent
        | ErrorCode::UnknownAgent
        | ErrorCode::WorkspaceUnavailable
        | ErrorCode::AgentRejected => 422,
        ErrorCode::Internal => 500,
        ErrorCode::AgentAuthRequired
        | ErrorCode::ModelProvider
        | ErrorCode::AgentStartFailed
        | ErrorCode::AgentCrashed
        | ErrorCode::ConnectionLost
        | ErrorCode::CancelUnconfirmed
        | ErrorCode::ProtocolVersion
        | ErrorCode::HandshakeFailed
        | ErrorCode::ProtocolViolation
        | ErrorCode::FrameTooLarge
        | ErrorCode::AgentError
        | ErrorCode::FallbackUnavailable => 502,
        ErrorCode::RuntimeUnavailable
        | ErrorCode::Interrupted
        | ErrorCode::CapacityExhausted
        | ErrorCode::Draining
        | ErrorCode::Stalled
        | ErrorCode::DatabaseUnavailable => 503,
        ErrorCode::HandshakeTimeout | ErrorCode::InactivityTimeout => 504,
    }
}

/// Seconds for the `Retry-After` header, for the codes that carry one.
pub(crate) fn retry_after_s(code: ErrorCode) -> Option<u32> {
    match code {
        // A disk or a database comes back within seconds or not at all; a replica is replaced as fast.
        ErrorCode::DatabaseUnavailable | ErrorCode::Draining | ErrorCode::RuntimeUnavailable | ErrorCode::Stalled => {
            Some(5)
        }
        // Seats come free when sessions hibernate or are closed.
        ErrorCode::CapacityExhausted => Some(10),
        ErrorCode::Interrupted => Some(1),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_advice_stands_once_behind_what_happened() {
        let code = ErrorCode::UnknownAgent;
        let detail = |said: &str| Problem::new(&Failure::new(code, said), "r").detail;
        let once = format!("no agent `x`. {}", code.advice());
        assert_eq!(detail("no agent `x`"), once);
        assert_eq!(detail(&once), once);
        assert_eq!(detail("is it there?"), format!("is it there? {}", code.advice()));
    }
}
