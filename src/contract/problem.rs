//! The form of every error answer of API and runtime: RFC 9457 with additional members.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::domain::{
    capacity::SeatFigures,
    ids::PromptId,
    limits::{LimitFigures, LimitKind},
    turn::outcome::{ErrorClass, ErrorCode, Failure},
};

/// The media type of [`Problem`].
pub(crate) const PROBLEM_JSON: &str = "application/problem+json";

/// Body of every error answer, as `application/problem+json` (RFC 9457).
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Problem {
    /// A URN that ends with the error code: `urn:lumilink:problem:<code>`.
    #[serde(rename = "type")]
    pub kind: String,
    /// A short name for the code.
    pub title: String,
    /// The HTTP status of the answer.
    pub status: u16,
    /// Description of the failure, and what to do about it.
    pub detail: String,
    /// The stable error code, for programs to branch on.
    #[schema(value_type = ErrorCode)]
    pub code: String,
    /// `connection`, `protocol`, `application` or `system`.
    #[schema(value_type = ErrorClass)]
    pub class: String,
    /// True if the same request can succeed later without a change.
    pub retryable: bool,
    /// Id of the request, as in the header `X-Request-Id` and in the log.
    pub request_id: String,
    /// Id of the turn that runs or failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<PromptId>)]
    pub prompt_id: Option<String>,
    /// The result of a turn that started and failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<super::result::ACPSessionResult>)]
    pub result: Option<Box<RawValue>>,
    /// The seats, if a session was refused for lack of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<ProblemCapacity>,
    /// The limit that refused the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<ProblemLimit>,
}

/// A limit at the time of a refusal.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ProblemLimit {
    /// `sessions`, `turns`, `promptsPerMinute` or `workspaceBytes`.
    #[schema(value_type = LimitKind)]
    pub name: String,
    /// Use when the request was refused.
    pub used: u64,
    /// The limit.
    pub limit: u64,
}

impl ProblemLimit {
    fn of(figures: &LimitFigures) -> Self {
        Self { name: figures.kind.as_str().to_owned(), used: figures.used, limit: figures.limit }
    }
}

/// Seats at the time of a refusal.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ProblemCapacity {
    /// Seats that sessions of all tenants take.
    pub taken: usize,
    /// Seats up to which new sessions are admitted.
    pub limit: usize,
    /// Taken seats of the tenant.
    pub tenant_taken: usize,
    /// Seats that the tenant may take.
    pub tenant_limit: usize,
}

impl ProblemCapacity {
    fn of(figures: &SeatFigures) -> Self {
        let SeatFigures { taken, limit, tenant_taken, tenant_limit } = *figures;
        Self { taken, limit, tenant_taken, tenant_limit }
    }
}

impl Problem {
    /// The problem document of a failure: its detail ends with the advice of its code.
    pub(crate) fn new(failure: &Failure, request_id: impl Into<String>) -> Self {
        let code = failure.code;
        // The detail of a failure of the runtime already ends with the advice.
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
            capacity: failure.seats().map(ProblemCapacity::of),
            limit: failure.limit().map(ProblemLimit::of),
        }
    }
}

/// The HTTP status of each code.
pub(crate) fn status_of(code: ErrorCode) -> u16 {
    match code {
        ErrorCode::InvalidRequest => 400,
        ErrorCode::Unauthorized | ErrorCode::SignatureInvalid => 401,
        ErrorCode::Forbidden
        | ErrorCode::CeilingExceeded
        | ErrorCode::ForbiddenOrigin
        | ErrorCode::PathNotAllowed => 403,
        ErrorCode::NotFound => 404,
        ErrorCode::MethodNotAllowed => 405,
        ErrorCode::AmbiguousWorkspace
        | ErrorCode::TurnRunning
        | ErrorCode::RouteChanged
        | ErrorCode::MigrationState
        | ErrorCode::TooManyTokens
        | ErrorCode::SessionPreparing
        | ErrorCode::InstallationBound
        | ErrorCode::SessionClosed
        | ErrorCode::SessionFailed
        | ErrorCode::SessionNotLoaded
        | ErrorCode::FolderMissing
        | ErrorCode::WorkspaceOwner
        | ErrorCode::PermissionNotPending
        | ErrorCode::ModeUnavailable
        | ErrorCode::Erasing
        | ErrorCode::Fenced => 409,
        ErrorCode::PayloadTooLarge => 413,
        ErrorCode::UnsupportedMediaType => 415,
        ErrorCode::IdempotencyMismatch
        | ErrorCode::NotSupportedByAgent
        | ErrorCode::UnknownAgent
        | ErrorCode::UnknownSecret
        | ErrorCode::WorkspaceUnavailable
        | ErrorCode::WorkspaceUnreadable
        | ErrorCode::AgentRejected => 422,
        ErrorCode::LimitReached => 429,
        ErrorCode::Internal => 500,
        ErrorCode::AgentAuthRequired
        | ErrorCode::Authentication
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
        | ErrorCode::QueueFull
        | ErrorCode::Draining
        | ErrorCode::Stalled
        | ErrorCode::DatabaseUnavailable => 503,
        ErrorCode::HandshakeTimeout | ErrorCode::InactivityTimeout => 504,
        ErrorCode::WorkspaceFull => 507,
    }
}

/// The code of an error that the HTTP server or a static page answered with a status alone.
pub(crate) fn code_of_status(status: u16) -> ErrorCode {
    match status {
        404 => ErrorCode::NotFound,
        405 => ErrorCode::MethodNotAllowed,
        413 => ErrorCode::PayloadTooLarge,
        415 => ErrorCode::UnsupportedMediaType,
        400..500 => ErrorCode::InvalidRequest,
        _ => ErrorCode::Internal,
    }
}

/// Seconds for the header `Retry-After`, for codes that have one.
pub(crate) fn retry_after_s(code: ErrorCode) -> Option<u32> {
    match code {
        // A database or runtime usually returns within seconds, and a replica is replaced as fast.
        ErrorCode::DatabaseUnavailable | ErrorCode::Draining | ErrorCode::RuntimeUnavailable | ErrorCode::Stalled => {
            Some(5)
        }
        // Seats become free when sessions hibernate or are closed.
        ErrorCode::CapacityExhausted | ErrorCode::QueueFull => Some(10),
        // Unless the figures of the limit name another time.
        ErrorCode::LimitReached => Some(10),
        ErrorCode::Interrupted => Some(1),
        // A clone takes seconds to minutes.
        ErrorCode::SessionPreparing => Some(5),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn detail_ends_with_the_advice_once() {
        let code = ErrorCode::UnknownAgent;
        let detail = |text: &str| Problem::new(&Failure::new(code, text), "r").detail;
        let once = format!("no agent `x`. {}", code.advice());
        assert_eq!(detail("no agent `x`"), once);
        assert_eq!(detail(&once), once);
        assert_eq!(detail("is it there?"), format!("is it there? {}", code.advice()));
    }
}
