//! Errors of calls to the server.

use super::sse::SseError;
use crate::{contract::problem::Problem, domain::turn::outcome::ErrorCode};

#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// The server answered with a problem.
    #[error("{} [{}, request {}]", detail_for_cli(.0), .0.code, .0.request_id)]
    Problem(Box<Problem>),
    /// An error without a problem document: the answer is not from our server.
    #[error("{url} answered {status}: {body}")]
    Unexpected {
        url: String,
        status: u16,
        /// The start of the body, cleaned.
        body: String,
    },
    /// No connection could be made; nothing was started.
    #[error("cannot reach {url}: {cause}; is a server running there?")]
    Unreachable { url: String, cause: String },
    /// The connection broke after the request was sent: the server may have executed it.
    #[error("the connection to {url} was lost: {cause}")]
    Lost { url: String, cause: String },
    /// The event stream is malformed.
    #[error("malformed event stream: {0}")]
    Stream(#[from] SseError),
    /// The body of an answer is malformed.
    #[error("malformed answer: {0}")]
    Decode(#[from] serde_json::Error),
    /// The client could not be set up: no TLS roots, or a malformed token.
    #[error("the client cannot be set up: {0}")]
    Setup(String),
    /// The terminal could not be read or written.
    #[error("terminal: {0}")]
    Terminal(#[from] std::io::Error),
    /// The authorisation of the subscription ended.
    #[error("the server ended the subscription: {0}")]
    Ended(String),
    /// The user interrupted the command.
    #[error("interrupted; the turn continues in the server")]
    Interrupted,
}

impl ClientError {
    /// True if repeating an idempotent call can succeed.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Lost { .. } => true,
            Self::Problem(problem) => problem.status == 503,
            Self::Unexpected { status, .. } => matches!(status, 502..=504),
            _ => false,
        }
    }
}

/// The detail of a problem with the advice for users of the command line in place of that for callers of the API. An
/// unknown code, or the other advice of another version, stays as the server sent it.
pub(super) fn detail_for_cli(problem: &Problem) -> String {
    let Some(code) = ErrorCode::from_name(&problem.code) else { return problem.detail.clone() };
    match problem.detail.strip_suffix(code.advice()) {
        Some(detail) => format!("{detail}{}", code.cli_advice()),
        None => problem.detail.clone(),
    }
}

/// The chain of causes on one line, because the outermost message of the HTTP client is vague.
pub(super) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut inner = error.source();
    while let Some(cause) = inner {
        let message = cause.to_string();
        if !text.contains(&message) {
            text = format!("{text}: {message}");
        }
        inner = cause.source();
    }
    super::clean::clean_line(&text)
}

/// The innermost cause, which suffices if no connection could be made.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    super::clean::clean_line(&cause.to_string())
}

/// Classifies a request without an answer.
pub(super) fn lost_or_unreachable(error: &reqwest::Error, base: &url::Url) -> ClientError {
    let url = base.to_string();
    if error.is_connect() {
        ClientError::Unreachable { url, cause: root_cause(error) }
    } else {
        ClientError::Lost { url, cause: causes(error) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::turn::outcome::Failure;

    #[test]
    fn problems_advise_the_command_instead_of_the_api_call() {
        let mut problem = Problem::new(&Failure::new(ErrorCode::SessionNotLoaded, "the session expired"), "r");
        assert!(problem.detail.ends_with("`POST /acp/session/load`."));
        assert_eq!(detail_for_cli(&problem), "the session expired. Load it with `lumilink session load`.");
        problem.detail = "advice of another version".into();
        assert_eq!(detail_for_cli(&problem), "advice of another version");
    }

    #[test]
    fn advice_for_the_command_line_names_no_http() {
        for code in ErrorCode::ALL {
            let advice = code.cli_advice();
            assert!(
                !["/acp/", "Retry-After`", "requestId", "`promptId`"].iter().any(|it| advice.contains(it)),
                "{advice}"
            );
        }
    }
}
