//! Classifies the refusals of GitHub's REST API by status, headers and text, and decides what may help.

use std::{fmt, time::Duration};

use serde_json::Value;

use super::{
    skip::SkipDetail,
    step::{Remedy, StepFailure},
};
use crate::domain::{clock::Timestamp, redaction::Redacted, text};

/// The longest message of GitHub that is kept, in characters.
const MAX_MESSAGE: usize = 200;
/// The longest message of a failure, in characters.
const MAX_FAILURE: usize = 300;
/// The most entries of a 422 that are read.
const MAX_ERRORS: usize = 20;
/// The longest link for single sign-on that is passed on, in characters.
const MAX_LINK: usize = 160;
/// The wait after a secondary limit without a time, as GitHub asks.
const SECONDARY_WAIT: Duration = Duration::from_secs(60);
/// The longest time that an answer can demand. The quota is renewed every hour.
const MAX_LIMIT: Duration = Duration::from_secs(24 * 3600);

/// The parts of an answer with a status other than success.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Answer<'a> {
    pub status: u16,
    /// `Retry-After`, in seconds.
    pub retry_after: Option<&'a str>,
    /// `x-ratelimit-remaining`.
    pub rate_remaining: Option<&'a str>,
    /// `x-ratelimit-reset`, in seconds since 1970.
    pub rate_reset: Option<&'a str>,
    /// `x-github-sso`, such as `required; url=https://github.com/orgs/octo/sso?authorization_request=A`.
    pub sso: Option<&'a str>,
    /// `x-accepted-github-permissions`, such as `issues=write; pull_requests=write`: one of them suffices.
    pub accepted_permissions: Option<&'a str>,
    pub body: &'a str,
}

/// The reason of a refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The token is invalid, expired or revoked.
    Unauthorised,
    /// The organisation forbids this kind of token, or an account is suspended.
    TokenPolicy,
    /// The token must be authorised for single sign-on, at the link if GitHub sent one.
    Sso {
        link: Option<String>,
    },
    /// The organisation permits only some network addresses.
    IpAllowList,
    /// The token lacks a permission, by name if GitHub sent it.
    Permission {
        needed: Option<String>,
    },
    /// The repository is archived.
    Archived,
    /// Conversation on the issue or pull request is locked.
    Locked,
    /// GitHub blocked the repository, for instance after a legal notice.
    Blocked,
    /// The hourly quota is used up.
    PrimaryLimit {
        until: Timestamp,
    },
    /// Too many requests, or too much new content, in a short time; the quota may not be used up.
    SecondaryLimit {
        until: Timestamp,
    },
    /// Missing, or invisible for the token.
    NotFound,
    /// At another address, which is not followed.
    Moved,
    /// The repository has no commit.
    EmptyRepository,
    /// The branch has another commit than the request expects.
    Stale,
    /// The state has changed meanwhile.
    Conflict,
    /// The repository has no issues.
    IssuesDisabled,
    /// Deleted.
    Gone,
    /// A field of the request is refused; see [`Refusal::errors`].
    Invalid,
    /// The request may have been carried out: no answer, an unreadable one, or an error of the server.
    Unavailable,
    /// The answer is larger than this service reads; the request was carried out.
    TooLarge,
    /// The address of the API, or the token, is malformed; nothing was sent.
    Unusable,
    Other,
}

/// An entry of a 422.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct FieldError {
    /// The field, such as `head`; may be empty.
    pub field: String,
    /// `missing`, `missing_field`, `invalid`, `already_exists`, `unprocessable` or `custom`; may be empty.
    pub code: String,
    /// A sentence; may be empty.
    pub message: String,
}

/// A request that did not succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// `None` without an answer.
    pub status: Option<u16>,
    pub cause: Cause,
    /// GitHub's message, or a description of the failure: one line, redacted, at most 200 characters.
    pub message: String,
    pub errors: Vec<FieldError>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.status {
            Some(status) => write!(f, "GitHub answered {status}: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

/// One line of an untrusted text, redacted and cut.
fn line(text: &str, max_chars: usize) -> String {
    text::plain(Redacted::new(text).as_str(), max_chars)
}

impl Refusal {
    /// A request without a readable answer. `message` is a sentence without a full stop, and without the path of an
    /// address.
    pub(crate) fn unavailable(status: Option<u16>, message: &str) -> Self {
        Self { status, cause: Cause::Unavailable, message: line(message, MAX_MESSAGE), errors: Vec::new() }
    }

    /// A request whose answer is too large to be read.
    pub(crate) fn too_large(status: u16, message: &str) -> Self {
        Self { cause: Cause::TooLarge, ..Self::unavailable(Some(status), message) }
    }

    /// A request that was not sent, because it cannot be.
    pub(crate) fn unusable(message: &str) -> Self {
        Self { status: None, cause: Cause::Unusable, message: line(message, MAX_MESSAGE), errors: Vec::new() }
    }

    /// Classifies an answer. A time that it demands counts from `now`.
    pub(crate) fn of(answer: &Answer<'_>, now: Timestamp) -> Self {
        let body = Body::of(answer.body);
        let cause = cause_of(answer, &body, now);
        let message = match body.detail() {
            detail if detail.is_empty() => "without a message".to_owned(),
            detail => line(&detail, MAX_MESSAGE),
        };
        Self { status: Some(answer.status), cause, message, errors: body.errors }
    }

    /// Classifies the errors of an answer of the GraphQL API, which has status 200 with them. `None` without errors.
    pub(crate) fn of_graphql(answer: &Answer<'_>, now: Timestamp) -> Option<Self> {
        let json: Value = serde_json::from_str(answer.body).ok()?;
        let errors = json["errors"].as_array().filter(|errors| !errors.is_empty())?;
        let errors = &errors[..errors.len().min(MAX_ERRORS)];
        let texts: Vec<_> = errors.iter().filter_map(|error| error["message"].as_str()).collect();
        let message = texts.join("; ");
        let body = Body { lower: message.to_ascii_lowercase(), message, errors: Vec::new() };
        let is =
            |kinds: &[&str]| errors.iter().any(|error| kinds.contains(&error["type"].as_str().unwrap_or_default()));
        let cause = match () {
            () if is(&["RATE_LIMITED"]) && !body.has_any(&SECONDARY) => primary(answer, now),
            () if body.has_any(&SECONDARY) => secondary(answer, now),
            () if is(&["STALE_DATA"]) || body.has_any(&["expected branch to point to"]) => Cause::Stale,
            () if is(&["NOT_FOUND"]) => Cause::NotFound,
            () if is(&["FORBIDDEN", "INSUFFICIENT_SCOPES"]) => forbidden(answer, &body, now),
            () if is(&["SERVICE_UNAVAILABLE", "INTERNAL", "INTERNAL_SERVER_ERROR"]) => Cause::Unavailable,
            // Without a type; the mutation may have been carried out.
            () if body.has_any(&["something went wrong", "timedout", "timed out"]) => Cause::Unavailable,
            () => Cause::Invalid,
        };
        let message =
            if body.message.is_empty() { "without a message".to_owned() } else { line(&body.message, MAX_MESSAGE) };
        Some(Self { status: Some(answer.status), cause, message, errors: Vec::new() })
    }

    /// True if the request may have been carried out.
    pub(crate) fn is_uncertain(&self) -> bool {
        matches!(self.cause, Cause::Unavailable | Cause::TooLarge)
    }

    /// The time until which GitHub refuses requests, if it limits their rate.
    pub(crate) fn limited_until(&self) -> Option<Timestamp> {
        match self.cause {
            Cause::PrimaryLimit { until } | Cause::SecondaryLimit { until } => Some(until),
            _ => None,
        }
    }

    /// True if an entry of a 422 names this field.
    pub(crate) fn is_about(&self, field: &str) -> bool {
        self.cause == Cause::Invalid && self.errors.iter().any(|error| error.field.eq_ignore_ascii_case(field))
    }

    /// True if the message or an entry of a 422 contains these words, which are in lower case.
    pub(crate) fn mentions(&self, words: &str) -> bool {
        let texts = self.errors.iter().map(|error| &error.message).chain([&self.message]);
        texts.into_iter().any(|text| text.to_ascii_lowercase().contains(words))
    }

    /// The failure of a step that cannot continue. `is_app` is true for a token of an App, false for one of a user.
    pub(crate) fn failure(&self, is_app: bool) -> StepFailure {
        let (code, skip, remedy, advice) = self.verdict(is_app);
        let code = skip.map_or(code, SkipDetail::as_str).to_owned();
        // The advice is kept whole, the message of GitHub is cut.
        let room = MAX_FAILURE.saturating_sub(advice.chars().count() + 2);
        let message = format!("{}. {advice}", text::cut(self.to_string().trim_end_matches('.'), room));
        let message = text::cut(Redacted::new(&message).as_str(), MAX_FAILURE);
        StepFailure { code, message, skip, remedy, retry_at: self.limited_until() }
    }

    fn verdict(&self, is_app: bool) -> (&'static str, Option<SkipDetail>, Remedy, String) {
        use SkipDetail as Detail;
        let skip = |detail: Detail, remedy, advice: &str| ("", Some(detail), remedy, advice.to_owned());
        let fail = |code, remedy, advice: &str| (code, None, remedy, advice.to_owned());
        let (never, later) = (Remedy::Never, Remedy::Later);
        match &self.cause {
            Cause::Unauthorised => skip(Detail::TokenRefused, Remedy::NewToken, "Send a valid token"),
            Cause::TokenPolicy => skip(Detail::TokenRefused, never, "Use a token that the organisation permits"),
            Cause::Sso { link } => {
                let advice = match link {
                    Some(link) => format!("Authorise the token for single sign-on: {link}"),
                    None => "Authorise the token for single sign-on of the organisation".to_owned(),
                };
                ("", Some(Detail::Sso), never, advice)
            }
            Cause::IpAllowList => {
                skip(Detail::IpAllowList, never, "Ask the organisation to allow the address of this service")
            }
            Cause::Permission { needed } => permission_verdict(needed.as_deref(), is_app),
            Cause::NotFound if is_app => {
                skip(Detail::NoInstallation, never, "Install the GitHub App on this repository")
            }
            Cause::NotFound => skip(Detail::TokenRefused, never, "Check its name, and that the token may read it"),
            Cause::Archived => skip(Detail::Archived, never, "Unarchive the repository"),
            Cause::EmptyRepository => skip(Detail::EmptyRepository, never, "Push a first commit"),
            Cause::PrimaryLimit { .. } => skip(Detail::PrimaryLimit, later, "The run is tried again after the pause"),
            Cause::SecondaryLimit { .. } => {
                skip(Detail::SecondaryLimit, later, "The run is tried again after the pause")
            }
            Cause::Blocked => fail("repository-blocked", never, "Ask the owner of the repository"),
            Cause::Locked => fail("issue-locked", never, "Unlock the conversation"),
            Cause::IssuesDisabled => fail("issues-disabled", never, "Enable issues in the repository's settings"),
            Cause::Gone => fail("github-gone", never, "It was deleted"),
            Cause::Moved => fail("repository-moved", later, "The repository may have been renamed"),
            Cause::Stale | Cause::Conflict => fail("github-conflict", later, "Try again"),
            Cause::Unavailable | Cause::TooLarge => fail("github-unavailable", later, "Try again later"),
            Cause::Unusable => fail("github-unusable", never, "Check the address of the API and the token"),
            Cause::Invalid | Cause::Other => fail("github-refused", never, "The request is not repeated"),
        }
    }
}

fn permission_verdict(needed: Option<&str>, is_app: bool) -> (&'static str, Option<SkipDetail>, Remedy, String) {
    let detail = match needed {
        Some(needed) if needed.contains("workflows") => SkipDetail::WorkflowPermission,
        _ => SkipDetail::TokenRefused,
    };
    let needed = needed.map(|it| format!(" {it}")).unwrap_or_default();
    let advice = if is_app {
        format!("Grant the GitHub App the permission{needed}, and accept it in the installation")
    } else {
        format!("Use a token with the permission{needed}")
    };
    ("", Some(detail), Remedy::Never, advice)
}

/// The message of an answer and its entries, in lower case for comparisons.
struct Body {
    message: String,
    lower: String,
    errors: Vec<FieldError>,
}

impl Body {
    /// Reads any text: JSON of GitHub, or a page of a proxy, of which the beginning counts as the message.
    fn of(body: &str) -> Self {
        let json: Value = serde_json::from_str(body).unwrap_or_default();
        let message = match json["message"].as_str() {
            Some(message) => message,
            None if json.is_null() => text::cut_bytes(body, 1024),
            None => "",
        };
        let errors = match &json["errors"] {
            Value::Array(errors) => errors.iter().take(MAX_ERRORS).map(field_error).collect(),
            Value::Null => Vec::new(),
            other => vec![field_error(other)],
        };
        let address = json["documentation_url"].as_str().unwrap_or_default();
        let reason = json["block"]["reason"].as_str().unwrap_or_default();
        let entries = errors.iter().map(|error: &FieldError| error.message.as_str());
        let lower: Vec<_> = [message, address, reason].into_iter().chain(entries).collect();
        Self { message: message.to_owned(), lower: lower.join("\n").to_ascii_lowercase(), errors }
    }

    fn has_any(&self, words: &[&str]) -> bool {
        words.iter().any(|words| self.lower.contains(words))
    }

    /// The message with the entries.
    fn detail(&self) -> String {
        let mut detail = self.message.clone();
        for error in &self.errors {
            let text = match error.message.as_str() {
                "" => format!("{} {}", error.field, error.code),
                message => message.to_owned(),
            };
            let separator = if detail.is_empty() { "" } else { "; " };
            detail = format!("{detail}{separator}{}", text.trim());
        }
        detail
    }
}

fn field_error(error: &Value) -> FieldError {
    let word = |name: &str| line(error[name].as_str().unwrap_or_default(), MAX_MESSAGE);
    match error.as_str() {
        Some(message) => FieldError { message: line(message, MAX_MESSAGE), ..FieldError::default() },
        None => FieldError { field: word("field"), code: word("code"), message: word("message") },
    }
}

fn cause_of(answer: &Answer<'_>, body: &Body, now: Timestamp) -> Cause {
    match answer.status {
        300..=399 => Cause::Moved,
        401 => Cause::Unauthorised,
        403 | 429 => forbidden(answer, body, now),
        404 => Cause::NotFound,
        409 if body.has_any(&["repository is empty"]) => Cause::EmptyRepository,
        409 => Cause::Conflict,
        // Two texts of GitHub: `Issues are disabled for this repo`, `Issues has been disabled in this repository.`
        410 if body.has_any(&["issues are disabled", "issues has been disabled", "issues have been disabled"]) => {
            Cause::IssuesDisabled
        }
        410 => Cause::Gone,
        // Content that is created too fast is refused as invalid, too.
        422 if body.has_any(&["submitted too quickly", "secondary rate limit"]) => secondary(answer, now),
        422 => Cause::Invalid,
        451 => Cause::Blocked,
        408 | 425 | 500..=599 => Cause::Unavailable,
        _ => Cause::Other,
    }
}

/// Texts of a secondary limit, in lower case.
const SECONDARY: [&str; 5] = [
    "secondary rate limit",
    "secondary-rate-limits",
    "abuse detection",
    "abuse-rate-limits",
    "maximum number of login attempts",
];

/// Distinguishes the meanings of 403 and 429. A message that names its cause decides before the headers: the quota may be
/// used up by the very request that lacked a permission.
fn forbidden(answer: &Answer<'_>, body: &Body, now: Timestamp) -> Cause {
    const POLICY: [&str; 4] = [
        "forbids access via",
        "oauth app access restrictions",
        "account was suspended",
        "installation has been suspended",
    ];
    let is_used_up = answer.rate_remaining.map(str::trim) == Some("0");
    if let Some(sso) = answer.sso.filter(|sso| sso.trim_start().starts_with("required")) {
        return Cause::Sso { link: sso_link(sso) };
    }
    if body.has_any(&SECONDARY) {
        return secondary(answer, now);
    }
    if body.has_any(&["rate limit exceeded"]) {
        return primary(answer, now);
    }
    if body.has_any(&["ip allow list"]) {
        return Cause::IpAllowList;
    }
    if body.has_any(&["saml enforcement", "single sign-on"]) {
        return Cause::Sso { link: None };
    }
    if body.has_any(&POLICY) {
        return Cause::TokenPolicy;
    }
    if body.has_any(&["was archived", "is archived"]) {
        return Cause::Archived;
    }
    if body.has_any(&["issue is locked", "conversation is locked"]) {
        return Cause::Locked;
    }
    if body.has_any(&["access blocked", "dmca"]) {
        return Cause::Blocked;
    }
    if body.has_any(&["not accessible by", "must have"]) {
        return Cause::Permission { needed: needed(answer) };
    }
    match (is_used_up, answer.status) {
        (true, _) => primary(answer, now),
        (_, 429) => secondary(answer, now),
        _ if answer.retry_after.is_some() => secondary(answer, now),
        _ => Cause::Permission { needed: needed(answer) },
    }
}

/// The permissions of which one suffices, as `issues=write or pull_requests=write`.
fn needed(answer: &Answer<'_>) -> Option<String> {
    let sets = answer.accepted_permissions?.split(';').map(str::trim).filter(|set| !set.is_empty());
    let sets: Vec<_> = sets.map(|set| set.replace(',', ", ")).collect();
    (!sets.is_empty()).then(|| line(&sets.join(" or "), 100))
}

/// The link of `x-github-sso`, if it is one. A link that is too long, or that redaction would change, is cut to the page
/// of the organisation.
fn sso_link(header: &str) -> Option<String> {
    let (_, link) = header.split_once("url=")?;
    let link = link.split([';', ' ', ',']).next().unwrap_or_default();
    let is_plain = link.bytes().all(|byte| byte.is_ascii_graphic() && !b"<>\"'`\\".contains(&byte));
    if !link.starts_with("https://") || !is_plain {
        return None;
    }
    let is_whole = link.len() <= MAX_LINK && Redacted::new(link).as_str() == link;
    let page = link.split(['?', '#']).next().unwrap_or_default();
    if is_whole { Some(link.to_owned()) } else { (page.len() <= MAX_LINK).then(|| page.to_owned()) }
}

fn primary(answer: &Answer<'_>, now: Timestamp) -> Cause {
    let until = after_seconds(answer, now).or_else(|| reset(answer, now));
    Cause::PrimaryLimit { until: until.unwrap_or_else(|| now.plus(SECONDARY_WAIT)) }
}

fn secondary(answer: &Answer<'_>, now: Timestamp) -> Cause {
    let is_used_up = answer.rate_remaining.map(str::trim) == Some("0");
    // With quota left, the reset is that of the hourly quota and means nothing here.
    let reset = || reset(answer, now).filter(|_| is_used_up);
    let until = after_seconds(answer, now).or_else(reset);
    Cause::SecondaryLimit { until: until.unwrap_or_else(|| now.plus(SECONDARY_WAIT)) }
}

fn after_seconds(answer: &Answer<'_>, now: Timestamp) -> Option<Timestamp> {
    let seconds = answer.retry_after?.trim().parse().ok()?;
    Some(now.plus(Duration::from_secs(seconds).min(MAX_LIMIT)))
}

/// The time of the reset, with a second for the difference of clocks.
fn reset(answer: &Answer<'_>, now: Timestamp) -> Option<Timestamp> {
    let seconds: i64 = answer.rate_reset?.trim().parse().ok()?;
    let at = Timestamp(seconds.saturating_add(1).saturating_mul(1_000_000));
    Some(at.max(now.plus(Duration::from_secs(1))).min(now.plus(MAX_LIMIT)))
}

#[cfg(test)]
mod tests;
