//! Faults of the stand-in: scripted ones for the next requests of a kind, and random ones.

use std::time::Duration;

use super::http::Response;
use crate::harness::{Value, dice::Dice, json};

/// The treatment of one request.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// Closes the connection; the request has no effect. Clients such as git repeat a request once that gets no answer on a
    /// connection that was used before.
    DropBefore,
    /// The request takes effect; then the connection closes without an answer.
    DropAfter,
    /// Answers with this status, as GitHub words it; the request has no effect.
    Status(u16),
    /// The request takes effect; then the answer is this status.
    StatusAfter(u16),
    /// The request takes effect; its answer is cut off in the middle of the body.
    Truncate,
    /// The request takes effect; the body of its answer comes in ten pieces with this pause before each.
    Slow(Duration),
    /// Waits for [`GitHub::release`](super::GitHub::release), then handles the request.
    Hold,
    /// The request takes effect; then waits for [`GitHub::release`](super::GitHub::release) before it answers.
    HoldAfter,
    /// 403 with quota left, with or without `Retry-After` in seconds; the request has no effect.
    SecondaryLimit(Option<u64>),
    /// 403 without quota, which is renewed after these seconds.
    PrimaryLimit(u64),
    /// 401 as for an expired or revoked token.
    BadCredentials,
    /// 403 with `X-GitHub-SSO`, since the organisation demands single sign-on.
    Sso,
    /// 403 by the organisation's list of addresses.
    IpAllowList,
    /// Any answer; the request has no effect.
    Answer(Response),
}

/// The faults of [`Chaos`], unless others are given: each of them leaves a request that may be repeated.
pub(crate) fn passing_faults() -> Vec<Fault> {
    vec![
        Fault::DropBefore,
        Fault::DropAfter,
        Fault::Status(502),
        Fault::StatusAfter(500),
        Fault::Truncate,
        Fault::SecondaryLimit(Some(1)),
    ]
}

/// Random faults.
#[derive(Debug)]
pub(super) struct Chaos {
    pub dice: Dice,
    /// One request in this many has a fault.
    pub one_in: usize,
    pub faults: Vec<Fault>,
}

impl Chaos {
    fn roll(&mut self) -> Option<Fault> {
        (self.dice.below(self.one_in) == 0).then(|| self.faults[self.dice.below(self.faults.len())].clone())
    }
}

/// A fault for the next request of a kind.
#[derive(Debug)]
pub(super) struct Scripted {
    pub method: String,
    pub pattern: String,
    pub fault: Fault,
}

/// All faults to come.
#[derive(Debug, Default)]
pub(super) struct Faults {
    pub scripted: Vec<Scripted>,
    pub chaos: Option<Chaos>,
}

impl Faults {
    pub(super) fn take(&mut self, method: &str, path: &str) -> Option<Fault> {
        let is_meant = |it: &Scripted| (it.method == "*" || it.method == method) && matches(&it.pattern, path);
        match self.scripted.iter().position(is_meant) {
            Some(at) => Some(self.scripted.remove(at).fault),
            None => self.chaos.as_mut().and_then(Chaos::roll),
        }
    }
}

/// `*` is any one part of a path, `**` at the end all further ones.
pub(super) fn matches(pattern: &str, path: &str) -> bool {
    let (mut pattern, mut path) = (pattern.split('/'), path.split('/'));
    loop {
        match (pattern.next(), path.next()) {
            (Some("**"), _) | (None, None) => return true,
            (Some("*"), Some(_)) => {}
            (Some(expected), Some(part)) if expected == part => {}
            _ => return false,
        }
    }
}

/// An error in GitHub's form.
pub(super) fn error(status: u16, message: &str) -> Response {
    let documentation = "https://docs.github.com/rest";
    let body = json!({"message": message, "documentation_url": documentation, "status": status.to_string()});
    Response::json(status, &body)
}

/// A refusal of members of the body: 422.
pub(super) fn invalid(errors: Value) -> Response {
    let documentation = "https://docs.github.com/rest";
    Response::json(
        422,
        &json!({"message": "Validation Failed", "errors": errors, "documentation_url": documentation, "status": "422"}),
    )
}

/// The answer for a status, as GitHub words it.
fn of_status(status: u16) -> Response {
    match status {
        401 => error(401, "Bad credentials"),
        403 => error(403, "Resource not accessible by integration"),
        404 => error(404, "Not Found"),
        409 => error(409, "Git Repository is empty."),
        410 => error(410, "Issues has been disabled in this repository."),
        422 => invalid(json!([{"resource": "Issue", "code": "custom", "message": "is invalid"}])),
        429 => error(429, "You have exceeded a secondary rate limit.").with("Retry-After", 1),
        _ => {
            let page =
                "<html><head><title>Unicorn!</title></head><body>We had issues producing the response.</body></html>";
            Response::text(status, page).with("X-Page", "unicorn")
        }
    }
}

impl Fault {
    /// The answer that replaces that of the request, with the time of the stand-in in seconds since 1970.
    pub(super) fn answer(&self, now: i64) -> Option<Response> {
        let secondary = "You have exceeded a secondary rate limit. Please wait a few minutes before you try again. \
                         For more on scraping GitHub and how it may affect your rights, please review our Terms of \
                         Service.";
        Some(match self {
            Self::Status(status) | Self::StatusAfter(status) => of_status(*status),
            Self::SecondaryLimit(None) => error(403, secondary),
            Self::SecondaryLimit(Some(seconds)) => error(403, secondary).with("Retry-After", seconds),
            Self::PrimaryLimit(seconds) => {
                error(403, "API rate limit exceeded for installation ID 1. If you reach out to GitHub Support for help, please include the request ID.")
                    .with("x-ratelimit-remaining", 0)
                    .with("x-ratelimit-reset", now + i64::try_from(*seconds).expect("few seconds"))
            }
            Self::BadCredentials => of_status(401),
            Self::Sso => error(
                403,
                "Resource protected by organization SAML enforcement. You must grant your OAuth token access to this \
                 organization.",
            )
            .with("X-GitHub-SSO", "required; url=https://github.com/orgs/octo/sso?authorization_request=A1B2"),
            Self::IpAllowList => error(
                403,
                "Although you appear to have the correct authorization credentials, the `octo` organization has an IP \
                 allow list enabled, and your IP address is not permitted to access this resource.",
            ),
            Self::Answer(response) => response.clone(),
            Self::DropBefore | Self::DropAfter | Self::Truncate | Self::Slow(_) | Self::Hold | Self::HoldAfter => {
                return None;
            }
        })
    }

    /// True if the request takes effect.
    pub(super) fn takes_effect(&self) -> bool {
        matches!(
            self,
            Self::DropAfter | Self::StatusAfter(_) | Self::Truncate | Self::Slow(_) | Self::Hold | Self::HoldAfter
        )
    }
}
