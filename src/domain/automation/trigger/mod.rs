//! Turns that a label or a mention at GitHub starts: which deliveries of the webhook do, and for whom.
//!
//! A delivery is decided twice. The request of GitHub is decided from its payload alone; what passes is stored, and its
//! sender's permission is checked with GitHub before anything is opened. Texts are those of the payload, so an edit in between
//! changes nothing.

pub(crate) mod mention;
pub(crate) mod payload;
pub(crate) mod progress;
pub(crate) mod reading;
pub(crate) mod texts;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use self::{
    mention::{mentions, names},
    payload::{Account, Comment, Payload, Subject},
};
use super::{policy::MAX_INSTALLATION, repository_pattern::RepositoryName};
use crate::domain::{clock::Timestamp, ids::WorkspaceId, text, words::words};

/// The longest title of a request, in characters, as at GitHub.
const MAX_TITLE_CHARS: usize = 256;
/// The longest text of an issue and of a comment in a request, in characters. GitHub allows 65,536; the rest rarely says more,
/// and an agent reads the issue itself if it has to.
pub(crate) const MAX_TEXT_CHARS: usize = 20_000;
/// The longest login that is kept, in characters; GitHub's have up to 39.
const MAX_LOGIN_CHARS: usize = 100;
/// Days for which GitHub repeats a delivery on request.
pub(crate) const REDELIVERY_DAYS: u64 = 3;
/// Age at which an event starts nothing: GitHub does not repeat it any more. Records of deliveries are kept for 4 days and more,
/// so a replay that finds no record is too old; the rest of the fourth day covers clocks that differ.
const MAX_EVENT_AGE: Duration = Duration::from_secs(REDELIVERY_DAYS * 24 * 3600 + 12 * 3600);
/// Names that are kept of a text while that of the App is not known. Few texts mention more people.
const MAX_NAMES: usize = 50;
/// The beginning of the names of workspaces, before the id of the repository.
const PREFIX: &str = "gh";
/// The beginning of every hidden mark in texts of this service.
const OWN_MARK: &str = "<!-- lumilink:";

words! {
    /// An event of GitHub's webhook, by its header.
    EventKind {
        /// The test of a new webhook.
        Ping = "ping",
        Issues = "issues",
        IssueComment = "issue_comment",
        PullRequest = "pull_request",
        /// Any other.
        Other = "other",
    }
}

words! {
    /// State of a queued delivery: the last step that is on disk.
    DeliveryState {
        /// Nothing was done yet.
        Queued = "queued",
        /// The sender has write permission.
        Checked = "checked",
        /// A session is open.
        Opened = "opened",
        /// The turn runs.
        Prompted = "prompted",
        /// The answer is at GitHub.
        Answered = "answered",
        /// No turn was started.
        Ignored = "ignored",
        /// The turn could not be started, or the answer could not be written.
        Failed = "failed",
    }
}

impl DeliveryState {
    /// True for a delivery on which work remains.
    pub(crate) fn is_open(self) -> bool {
        matches!(self, Self::Queued | Self::Checked | Self::Opened | Self::Prompted)
    }
}

words! {
    /// Why a delivery starts no turn.
    IgnoreReason {
        /// Neither the event nor its action starts turns.
        Event = "event",
        /// The installation is not bound to a tenant, does not reach the repository, or is suspended.
        NoInstallation = "no-installation",
        /// Automation is switched off.
        AutomationOff = "automation-off",
        /// The label is another one.
        OtherLabel = "other-label",
        /// The text does not mention the App outside of code, quotes and links.
        NoMention = "no-mention",
        /// The sender is missing, a bot, or not the author of the text.
        NotAPerson = "not-a-person",
        /// The text was written by this service.
        OwnText = "own-text",
        /// The issue or the pull request is closed.
        Closed = "closed",
        /// The issue was opened with the label, whose own event follows.
        LabelFollows = "label-follows",
        /// The issue was moved here from another repository.
        Moved = "moved",
        /// The event is older than GitHub repeats.
        Expired = "expired",
        /// The sender has no write permission.
        NoPermission = "no-permission",
        /// The repository is another one by now.
        NoRepository = "no-repository",
        /// The issue or the pull request was deleted, or moved to another repository.
        NoIssue = "no-issue",
    }
}

words! {
    /// The act that starts a turn.
    TriggerCause {
        /// A label was applied.
        Label = "label",
        /// A comment mentions the App.
        Comment = "comment",
        /// The text of a new issue or pull request mentions the App.
        Opened = "opened",
    }
}

/// The rules of the configuration.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules<'a> {
    pub label: &'a str,
    /// The name to mention, without `@`; `None` while the name of the App is not known.
    pub mention: Option<&'a str>,
}

/// A delivery that may start a turn. Stored as JSON; unknown members are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Request {
    /// Id of the installation by which GitHub sent the delivery.
    pub github_installation: u64,
    pub repository_id: u64,
    /// `owner/name` at the time of the event, and after the check the name of then.
    pub repository: String,
    /// Number of the issue or pull request.
    pub number: u64,
    pub is_pull_request: bool,
    pub cause: TriggerCause,
    /// Id of the comment that is the cause.
    #[serde(default)]
    pub comment_id: Option<u64>,
    /// The person who applied the label or wrote the text.
    pub sender: Person,
    /// Names that the text mentions, if that of the App was not known; else empty.
    #[serde(default)]
    pub mentioned: Vec<String>,
    /// Removed at the end.
    #[serde(default)]
    pub text: Option<RequestText>,
}

/// A person at GitHub.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Person {
    pub id: u64,
    pub login: String,
}

/// The texts of an event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RequestText {
    pub title: String,
    /// Login of the author of the issue or pull request; empty if the account was deleted.
    pub author: String,
    pub body: String,
    #[serde(default)]
    pub comment: Option<String>,
}

/// Why a payload starts no turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Rejection {
    Ignored(IgnoreReason),
    /// A member is missing or out of its range.
    Malformed(&'static str),
}

impl From<IgnoreReason> for Rejection {
    fn from(reason: IgnoreReason) -> Self {
        Self::Ignored(reason)
    }
}

/// Decides about a payload.
///
/// # Errors
/// The reason for which it starts no turn.
pub(crate) fn decide(
    kind: EventKind,
    payload: Payload,
    rules: Rules<'_>,
    now: Timestamp,
) -> Result<Request, Rejection> {
    let cause = cause_of(kind, payload.action.as_deref()).ok_or(IgnoreReason::Event)?;
    if cause == TriggerCause::Opened && payload.is_moved() {
        // Its text is of another time, and may have been edited since.
        return Err(IgnoreReason::Moved.into());
    }
    let malformed = Rejection::Malformed;
    let installation = payload.installation_id().ok_or(malformed("installation.id"))?;
    let repository = payload.repository.ok_or(malformed("repository"))?;
    let subject = match kind {
        EventKind::PullRequest => payload.pull_request,
        _ => payload.issue,
    };
    let subject = subject.ok_or(malformed("issue or pull_request"))?;
    let full_name = RepositoryName::parse(&repository.full_name).map(|name| name.to_string());
    let full_name = full_name.filter(|name| *name == repository.full_name);
    let full_name = full_name.ok_or(malformed("repository.full_name"))?;
    let is_id = |id: u64| (1..=MAX_INSTALLATION).contains(&id);
    if !is_id(installation) || !is_id(repository.id) || !is_id(subject.number) {
        return Err(malformed("an id or number is out of range"));
    }
    let comment = payload.comment.filter(|_| cause == TriggerCause::Comment);
    if comment.is_none() && cause == TriggerCause::Comment {
        return Err(malformed("comment"));
    }
    let Origin { author, is_by_program, time } = origin(cause, &subject, comment.as_ref());
    if is_by_program {
        return Err(IgnoreReason::NotAPerson.into());
    }
    let sender = person(payload.sender.as_ref(), author).ok_or(IgnoreReason::NotAPerson)?;
    let text = comment.as_ref().map_or(&subject.body, |comment| &comment.body).as_deref().unwrap_or_default();
    let mentioned = match cause {
        TriggerCause::Label => {
            let name = payload.label.as_ref().map(|label| label.name.as_str()).unwrap_or_default();
            is_label(name, rules.label).then(Vec::new).ok_or(IgnoreReason::OtherLabel)?
        }
        TriggerCause::Comment | TriggerCause::Opened => mentioned(text, rules)?,
    };
    if text.contains(OWN_MARK) {
        return Err(IgnoreReason::OwnText.into());
    }
    if subject.is_closed() {
        return Err(IgnoreReason::Closed.into());
    }
    if cause == TriggerCause::Opened && subject.has_label(rules.label) {
        return Err(IgnoreReason::LabelFollows.into());
    }
    if time.is_some_and(|time| now.since(time) > MAX_EVENT_AGE) {
        return Err(IgnoreReason::Expired.into());
    }
    Ok(Request {
        github_installation: installation,
        repository_id: repository.id,
        repository: full_name,
        number: subject.number,
        is_pull_request: kind == EventKind::PullRequest || subject.is_pull_request(),
        cause,
        comment_id: comment.as_ref().map(|comment| comment.id),
        sender,
        mentioned,
        text: Some(texts_of(subject, comment.and_then(|comment| comment.body))),
    })
}

fn cause_of(kind: EventKind, action: Option<&str>) -> Option<TriggerCause> {
    match (kind, action?) {
        (EventKind::Issues | EventKind::PullRequest, "labeled") => Some(TriggerCause::Label),
        (EventKind::Issues | EventKind::PullRequest, "opened") => Some(TriggerCause::Opened),
        (EventKind::IssueComment, "created") => Some(TriggerCause::Comment),
        _ => None,
    }
}

/// The origin of an event.
struct Origin<'a> {
    /// The author of the text, `None` inside for a deleted account; `None` for an act without a text of its own.
    author: Option<Option<&'a Account>>,
    /// True if a program wrote the text with the token of a person.
    is_by_program: bool,
    time: Option<Timestamp>,
}

fn origin<'a>(cause: TriggerCause, subject: &'a Subject, comment: Option<&'a Comment>) -> Origin<'a> {
    match (comment, cause) {
        (Some(comment), _) => Origin {
            author: Some(comment.user.as_ref()),
            is_by_program: comment.performed_via_github_app.is_some(),
            time: comment.created(),
        },
        (None, TriggerCause::Opened) => Origin {
            author: Some(subject.user.as_ref()),
            is_by_program: subject.performed_via_github_app.is_some(),
            time: subject.created(),
        },
        (None, _) => Origin { author: None, is_by_program: false, time: subject.updated() },
    }
}

/// The sender, if it is a person and wrote the text. `author` is `None` without a text of the sender.
fn person(sender: Option<&Account>, author: Option<Option<&Account>>) -> Option<Person> {
    let sender = sender.filter(|sender| sender.is_person())?;
    let wrote = author.is_none_or(|author| author.is_some_and(|author| author.id == sender.id));
    let login = sender.login.as_str();
    let is_login = (1..=MAX_LOGIN_CHARS).contains(&login.len())
        && login.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    let is_sound = wrote && is_login && (1..=MAX_INSTALLATION).contains(&sender.id);
    is_sound.then(|| Person { id: sender.id, login: login.to_owned() })
}

/// The names that a text mentions, if that of the App is not known; else none.
///
/// # Errors
/// `no-mention`.
fn mentioned(text: &str, rules: Rules<'_>) -> Result<Vec<String>, IgnoreReason> {
    let (is_mentioned, names) = match rules.mention {
        Some(name) => (mentions(text, name), Vec::new()),
        None => {
            let names = names(text, MAX_NAMES);
            (!names.is_empty(), names)
        }
    };
    if is_mentioned { Ok(names) } else { Err(IgnoreReason::NoMention) }
}

/// True for the same label: GitHub ignores the case of letters.
fn is_label(given: &str, wanted: &str) -> bool {
    // Other cases of letters beyond ASCII are look-alikes: the Kelvin sign is a `k`.
    given.eq_ignore_ascii_case(wanted)
}

impl Subject {
    fn has_label(&self, wanted: &str) -> bool {
        self.labels.iter().flatten().any(|label| is_label(&label.name, wanted))
    }
}

fn texts_of(subject: Subject, comment: Option<String>) -> RequestText {
    let kept = |text: &str| text::cut(&text::visible(text), MAX_TEXT_CHARS);
    RequestText {
        title: text::plain(&subject.title.unwrap_or_default(), MAX_TITLE_CHARS),
        author: text::plain(
            subject.user.as_ref().map(|user| user.login.as_str()).unwrap_or_default(),
            MAX_LOGIN_CHARS,
        ),
        body: kept(&subject.body.unwrap_or_default()),
        comment: comment.as_deref().map(kept),
    }
}

impl Request {
    /// Decides about a mention once the name of the App is known.
    ///
    /// # Errors
    /// `no-mention`.
    pub(crate) fn resolve(&mut self, name: &str) -> Result<(), IgnoreReason> {
        let mentioned = std::mem::take(&mut self.mentioned);
        let is_mentioned = mentioned.is_empty() || mentioned.iter().any(|it| it.eq_ignore_ascii_case(name));
        if is_mentioned { Ok(()) } else { Err(IgnoreReason::NoMention) }
    }

    /// Name of the workspace: one for each issue and pull request, also after a repository was replaced by another of its
    /// name. `gh<repository id>:<owner>:<name>:<number>`, at most 128 characters, the name cut if necessary.
    pub(crate) fn workspace(&self) -> String {
        let (owner, name) = self.repository.split_once('/').unwrap_or(("", &self.repository));
        let (start, end) = (format!("{PREFIX}{}:{owner}:", self.repository_id), format!(":{}", self.number));
        let room = crate::domain::ids::MAX_NAME_LENGTH.saturating_sub(start.len() + end.len());
        let name: String = name.chars().take(room).collect();
        format!("{start}{name}{end}").to_ascii_lowercase()
    }
}

/// True for a name that [`Request::workspace`] can make. No caller gives it to a new workspace, so that the one of an issue has
/// its repository.
pub(crate) fn is_reserved(name: &WorkspaceId) -> bool {
    let id = name.as_str().strip_prefix(PREFIX).and_then(|rest| rest.split_once(':')).map(|(id, _)| id);
    id.is_some_and(|id| !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests;
