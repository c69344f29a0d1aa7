//! What can go wrong between a client and the server.

use super::sse::SseError;
use crate::{contract::problem::Problem, domain::turn::outcome::ErrorCode};

/// A call failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// The server answered with a problem.
    #[error("{} [{}, request {}]", detail_for_cli(.0), .0.code, .0.request_id)]
    Problem(Box<Problem>),
    /// Something answered that is not our server: another status without a problem document.
    #[error("{url} answered {status}: {body}")]
    Unexpected {
        /// What was asked.
        url: String,
        /// The HTTP status.
        status: u16,
        /// The beginning of the body, cleaned.
        body: String,
    },
    /// The server could not be reached; nothing was started.
    #[error("cannot reach {url}: {cause}; does a server run there?")]
    Unreachable {
        /// What was asked.
        url: String,
        /// Why.
        cause: String,
    },
    /// The connection broke after the request was sent: the server may have done what was asked.
    #[error("the connection to {url} was lost: {cause}")]
    Lost {
        /// What was asked.
        url: String,
        /// Why.
        cause: String,
    },
    /// The event stream is not what the API says.
    #[error("the event stream is not readable: {0}")]
    Stream(#[from] SseError),
    /// The body is not what the API says.
    #[error("the answer is not what the API says: {0}")]
    Decode(#[from] serde_json::Error),
    /// The client could not be set up: TLS roots, or a token that no header can carry.
    #[error("the client cannot be set up: {0}")]
    Setup(String),
    /// Nothing could be read from or written to the terminal.
    #[error("terminal: {0}")]
    Terminal(#[from] std::io::Error),
    /// The server does not let us read any longer.
    #[error("the server ended the subscription: {0}")]
    Ended(String),
    /// The user does not want to wait for the end.
    #[error("interrupted; the turn goes on in the server until it is cancelled")]
    Interrupted,
}

impl ClientError {
    /// Whether a call that may be repeated is worth repeating.
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

/// The whole chain of causes on one line: the outermost sentence of the HTTP client says little.
pub(super) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut inner = error.source();
    while let Some(cause) = inner {
        let said = cause.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        inner = cause.source();
    }
    super::clean::clean_line(&text)
}

/// The innermost cause: where nothing was reached, the layers above have nothing to add.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    super::clean::clean_line(&cause.to_string())
}

/// What became of a request that got no answer.
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
