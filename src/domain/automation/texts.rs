//! The texts of a run on GitHub: issue, pull request, comment and commit; and the texts about a failed run.
//!
//! Inputs are redacted, and inert where they are Markdown (see `markdown`). Every text fits GitHub's limit of 65,536
//! characters; it is cut on a line, and says where the rest is.

use std::{fmt::Write, time::Duration};

use url::Url;

use super::{markdown, repository_pattern::RepositoryName, step::Identity};
use crate::domain::{
    clock::Timestamp,
    redaction::Redacted,
    routing::{FlipTrigger, Route},
    text::{one_line, plain},
    words::words,
};

/// The longest title, and the longest subject of a commit, in characters.
pub(crate) const MAX_TITLE_CHARS: usize = 120;
/// The longest summary, in characters.
pub(crate) const MAX_SUMMARY_CHARS: usize = 2000;
/// The longest body of an issue, a pull request or a comment, in UTF-16 code units; GitHub's limit is 65,535.
pub(crate) const MAX_BODY_LENGTH: usize = 65_000;
/// The longest message of a commit, in UTF-16 code units.
const MAX_MESSAGE_LENGTH: usize = 8192;
/// Room in a body for everything but the texts of prompt and agent.
const FRAME_LENGTH: usize = 16_000;
/// The most notes in a body, and the longest, in characters.
const MAX_NOTES: usize = 20;
const MAX_NOTE_LINE_CHARS: usize = 300;
/// The longest run id and the longest web address in a text, in characters.
const MAX_RUN_CHARS: usize = 64;
const MAX_URL_CHARS: usize = 1000;
/// The longest texts of a result, in characters.
const MAX_NOTIFICATION_CHARS: usize = 140;
const MAX_NOTE_CHARS: usize = 512;
/// Characters of a repository's name in a notification and in a note, so that the reason after it is not cut.
const REPOSITORY_CHARS: usize = 32;
const REPOSITORY_CHARS_OF_NOTE: usize = 80;
/// Characters of an error code in a notification.
const CODE_CHARS: usize = 32;

/// The longest name and the longest address of a person, in characters.
const MAX_PERSON_CHARS: usize = 100;
const MAX_EMAIL_CHARS: usize = 200;

/// The title if there is nothing better.
const NO_TITLE: &str = "Automated changes";

words! {
    /// The object that a marker identifies.
    MarkerKind {
        Issue = "issue",
        PullRequest = "pull-request",
        Comment = "comment",
    }
}

/// The hidden text by which an object of a run is found again. Letters, digits and dashes of `run` are used, at most 64.
pub(crate) fn marker(run: &str, kind: MarkerKind) -> String {
    let is_safe = |c: &char| c.is_ascii_alphanumeric() || *c == '-';
    let run: String = run.chars().filter(is_safe).take(MAX_RUN_CHARS).collect();
    // Older parsers end a comment at two dashes.
    let run = run.split('-').filter(|part| !part.is_empty()).collect::<Vec<_>>().join("-");
    format!("<!-- lumilink:run={run} kind={} -->", kind.as_str())
}

/// True if a text has the marker of any run.
pub(crate) fn is_marked(text: &str, kind: MarkerKind) -> bool {
    let end = format!(" kind={} -->", kind.as_str());
    let mut markers = text.split("<!-- lumilink:run=").skip(1);
    markers.any(|rest| rest.split('\n').next().is_some_and(|line| line.contains(&end)))
}

/// The run of which a text is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Origin<'a> {
    /// Id of the run.
    pub run: &'a str,
    /// Last characters of the session's id, by which people find the transcript.
    pub session_suffix: &'a str,
}

/// The inputs of an issue's title and body.
#[derive(Debug, Clone, Copy)]
pub(crate) struct IssueText<'a> {
    pub origin: Origin<'a>,
    /// The title that the caller chose.
    pub title: Option<&'a Redacted>,
    /// The summary that the agent left.
    pub summary: Option<&'a Redacted>,
    pub prompt: &'a Redacted,
}

impl IssueText<'_> {
    /// The caller's title, else the first line of the prompt.
    pub(crate) fn title(&self) -> String {
        let prompt = first_line(self.prompt);
        title([self.title.and_then(first_line), prompt])
    }

    /// `### Summary`, `### Original Request`, a footer and the marker.
    pub(crate) fn body(&self) -> String {
        let summary = summary_of(self.summary, &self.origin);
        let rest = self.origin.pointer();
        let prompt = markdown::quote(markdown::cleaned(self.prompt).trim());
        let prompt = within(&prompt, MAX_BODY_LENGTH - FRAME_LENGTH, &rest);
        format!(
            "### Summary\n\n{summary}\n\n### Original Request\n\n{prompt}\n\n---\n\n{}\n\n{}\n",
            self.origin.footer("Opened"),
            marker(self.origin.run, MarkerKind::Issue)
        )
    }
}

/// Figures of a turn for the diagnostics section.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct TurnFigures<'a> {
    /// The carrier of the turn.
    pub route: Route,
    /// The agent's stop reason, such as `end_turn`.
    pub stop_reason: &'a str,
    pub duration: Duration,
    /// Updates that the agent sent.
    pub updates: u64,
    /// Input and output tokens, if the agent reported them.
    pub tokens: Option<(u64, u64)>,
    /// The trigger of the workspace's rollback, if it is active.
    pub rollback: Option<FlipTrigger>,
}

/// The inputs of a pull request's title and body.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PullRequestText<'a> {
    pub origin: Origin<'a>,
    pub title: Option<&'a Redacted>,
    pub summary: Option<&'a Redacted>,
    pub prompt: &'a Redacted,
    pub figures: TurnFigures<'a>,
    /// Diagnostics of the run, such as `not-quiet`: at most 20 lines of at most 300 characters are used.
    pub notes: &'a [Redacted],
    /// The issue that merging closes.
    pub issue: Option<u64>,
}

impl PullRequestText<'_> {
    /// The caller's title, else the first line of the summary that names an action, else the first line of the prompt.
    pub(crate) fn title(&self) -> String {
        title([self.title.and_then(first_line), self.summary.and_then(action_line), first_line(self.prompt)])
    }

    /// Summary, diagnostics, `---`, `Fixes #<n>` and the marker.
    pub(crate) fn body(&self) -> String {
        let summary = summary_of(self.summary, &self.origin);
        let figures = diagnostics(&self.figures, self.notes);
        let fixes = self.issue.map(|issue| format!("Fixes #{issue}\n\n")).unwrap_or_default();
        format!(
            "### Summary\n\n{summary}\n\n### Diagnostics\n\n{figures}\n---\n\n{fixes}{}\n\n{}\n",
            self.origin.footer("Opened"),
            marker(self.origin.run, MarkerKind::PullRequest)
        )
    }
}

/// The inputs of the comment on the issue.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CommentText<'a> {
    pub origin: Origin<'a>,
    /// Number of the pull request.
    pub number: u64,
    /// Web address of the pull request, as GitHub returned it.
    pub url: &'a str,
    /// True if the pull request existed before the run.
    pub is_update: bool,
    /// True if its checks wait for the approval of a person.
    pub waits_for_approval: bool,
}

impl CommentText<'_> {
    /// One sentence with the address of the pull request, and the marker.
    pub(crate) fn body(&self) -> String {
        let place = safe_url(self.url).unwrap_or_else(|| format!("#{}", self.number));
        let what = if self.is_update { "New changes are in" } else { "The changes are in" };
        let suffix = plain_id(self.origin.session_suffix);
        let marker = marker(self.origin.run, MarkerKind::Comment);
        let checks = match self.waits_for_approval {
            true => " Its checks wait for the approval of a person with write permission.",
            false => "",
        };
        format!("{what} the pull request of session …{suffix}: {place}{checks}\n\n{marker}\n")
    }
}

/// The inputs of a commit's message.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CommitText<'a> {
    /// The message that the caller chose.
    pub explicit: Option<&'a Redacted>,
    pub issue: Option<u64>,
    pub title: Option<&'a Redacted>,
    pub summary: Option<&'a Redacted>,
    pub prompt: &'a Redacted,
    /// The person who requested the change, credited in a trailer.
    pub requester: Option<&'a Identity>,
}

impl CommitText<'_> {
    /// The explicit message, else `Fix issue #<n>[: title]`, else the title, else the first line of the summary that names
    /// an action, else the prompt, else `Automated changes`; then the trailer. Ends without a line break.
    pub(crate) fn message(&self) -> String {
        let mut message = self.explicit.and_then(explicit_message).unwrap_or_else(|| self.subject());
        if let Some(trailer) = self.requester.and_then(trailer) {
            let _ = write!(message, "\n\n{trailer}");
        }
        message
    }

    fn subject(&self) -> String {
        let given = self.title.and_then(first_line);
        if let Some(issue) = self.issue {
            let start = format!("Fix issue #{issue}");
            let Some(given) = given else { return start };
            let room = MAX_TITLE_CHARS - start.chars().count() - 2;
            return format!("{start}: {}", inert_subject(&given, room));
        }
        let found = given.or_else(|| self.summary.and_then(action_line)).or_else(|| first_line(self.prompt));
        found.map_or_else(|| NO_TITLE.to_owned(), |found| inert_subject(&found, MAX_TITLE_CHARS))
    }
}

/// The end of a run for which `error` is reported.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FailedRun<'a> {
    /// The session's repository in any form; a malformed one is not shown.
    pub repository: Option<&'a str>,
    /// The stable code of the failure.
    pub code: &'a str,
    /// The sentence about the failure.
    pub message: &'a Redacted,
    /// Id of the run, if its commit is kept for a later delivery.
    pub rescued_as: Option<&'a str>,
    /// The time at which the run is repeated by itself.
    pub retry_at: Option<Timestamp>,
}

impl FailedRun<'_> {
    /// The text of the notification: 1 to 140 characters.
    pub(crate) fn notification(&self) -> String {
        let text = format!("{} {}", self.event(REPOSITORY_CHARS, CODE_CHARS, "."), self.consequence());
        plain(&text, MAX_NOTIFICATION_CHARS)
    }

    /// The text of the transcript's note: 1 to 512 characters.
    pub(crate) fn note(&self) -> String {
        let event = self.event(REPOSITORY_CHARS_OF_NOTE, CODE_CHARS, ":");
        let end = format!("{}{}", self.consequence(), self.advice());
        let room = MAX_NOTE_CHARS - event.chars().count() - end.chars().count() - 3;
        let message = plain(Redacted::new(&one_line(self.message.as_str())).as_str(), room);
        let message = if message.is_empty() { "no further details" } else { &message };
        let stop = if message.ends_with(['.', '!', '?', '…']) { "" } else { "." };
        format!("{event} {message}{stop} {end}")
    }

    fn event(&self, repository_chars: usize, code_chars: usize, end: &str) -> String {
        let name = self.repository.and_then(RepositoryName::parse).map(|it| Redacted::new(&it.to_string()));
        let of = name.map(|it| format!(" for {}", plain(it.as_str(), repository_chars))).unwrap_or_default();
        let is_code = |c: &char| c.is_ascii_alphanumeric() || *c == '-';
        let code: String = self.code.chars().filter(is_code).take(code_chars).collect();
        format!("GitHub automation{of} failed ({code}){end}")
    }

    fn consequence(&self) -> String {
        match (self.rescued_as, self.retry_at) {
            (_, Some(at)) => format!("It is tried again at {} UTC.", minute(at)),
            (Some(_), None) => "The commit is kept for a retry.".to_owned(),
            (None, None) => "The changes stay in the workspace.".to_owned(),
        }
    }

    fn advice(&self) -> String {
        match (self.rescued_as.map(plain_id), self.retry_at) {
            (Some(run), None) => format!(" Deliver it with: lumilink automation retry {run}"),
            (Some(run), Some(_)) => format!(" The commit is kept as run {run}."),
            (None, _) => String::new(),
        }
    }
}

impl Origin<'_> {
    fn footer(&self, verb: &str) -> String {
        format!("{verb} by LumiLink for session …{}.", plain_id(self.session_suffix))
    }

    /// The line at the end of a text that was cut.
    fn pointer(&self) -> String {
        let suffix = plain_id(self.session_suffix);
        format!("*The text is cut here. The transcript of session …{suffix} has the rest.*")
    }
}

/// Letters, digits and dashes, at most 64.
fn plain_id(id: &str) -> String {
    id.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(MAX_RUN_CHARS).collect()
}

fn within(text: &str, max_length: usize, pointer: &str) -> String {
    match markdown::first_lines(text, max_length) {
        Some(lines) => format!("{lines}\n\n{pointer}"),
        None => text.to_owned(),
    }
}

fn summary_of(summary: Option<&Redacted>, origin: &Origin<'_>) -> String {
    let summary = summary.map(markdown::cleaned).unwrap_or_default();
    let summary = summary.trim();
    if summary.is_empty() {
        return "The agent left no summary.".to_owned();
    }
    match markdown::first_lines(summary, MAX_SUMMARY_CHARS) {
        Some(lines) => format!("{}\n\n{}", markdown::block(&lines), origin.pointer()),
        None => markdown::block(summary),
    }
}

fn title<const N: usize>(candidates: [Option<String>; N]) -> String {
    let found = candidates.into_iter().flatten().next();
    found.map_or_else(|| NO_TITLE.to_owned(), |found| inert_subject(&found, MAX_TITLE_CHARS))
}

/// The first line with a letter or digit, without the marks of Markdown at its start.
fn first_line(text: &Redacted) -> Option<String> {
    let text = markdown::cleaned(text);
    text.lines().map(without_marks).find(|line| line.contains(char::is_alphanumeric)).map(str::to_owned)
}

/// Verbs that begin the description of a change, in the imperative.
const ACTIONS: [&str; 48] = [
    "add",
    "adjust",
    "allow",
    "apply",
    "avoid",
    "bump",
    "change",
    "clean",
    "clarify",
    "configure",
    "convert",
    "correct",
    "create",
    "delete",
    "disable",
    "document",
    "drop",
    "enable",
    "ensure",
    "expose",
    "extend",
    "extract",
    "fix",
    "handle",
    "implement",
    "improve",
    "introduce",
    "make",
    "merge",
    "migrate",
    "move",
    "optimize",
    "prevent",
    "refactor",
    "remove",
    "rename",
    "replace",
    "resolve",
    "restore",
    "revert",
    "rewrite",
    "set",
    "simplify",
    "speed",
    "support",
    "test",
    "update",
    "use",
];

/// The first line that begins with a verb of [`ACTIONS`], as `Add`, `Adds` or `Added`.
fn action_line(summary: &Redacted) -> Option<String> {
    let text = markdown::cleaned(summary);
    let is_action = |line: &&str| {
        let word: String =
            line.chars().take_while(char::is_ascii_alphabetic).collect::<String>().to_ascii_lowercase();
        ACTIONS.iter().any(|verb| is_form_of(&word, verb)) && line.contains(' ')
    };
    text.lines().map(without_marks).find(is_action).map(str::to_owned)
}

fn is_form_of(word: &str, verb: &str) -> bool {
    let stem = verb.strip_suffix('e').or_else(|| verb.strip_suffix('y')).unwrap_or(verb);
    let Some(ending) = word.strip_prefix(stem) else { return false };
    let doubled = stem.chars().last().map(|last| format!("{last}ed")).unwrap_or_default();
    let is_regular = ["", "s", "es", "ed"].contains(&ending) && stem == verb;
    word == verb || is_regular || ending == doubled || stem != verb && ["es", "ed", "ies", "ied"].contains(&ending)
}

/// A line without the marks of headings, lists, quotes and emphasis at its start, and of emphasis at its end.
fn without_marks(line: &str) -> &str {
    let is_mark = |c: char| c.is_whitespace() || "#>*-+_`".contains(c);
    let line = line.trim_start_matches(is_mark);
    let item = line.trim_start_matches(|c: char| c.is_ascii_digit()).strip_prefix(". ");
    item.unwrap_or(line)
        .trim_start_matches(is_mark)
        .trim_end_matches(|c: char| c.is_whitespace() || "*_`".contains(c))
}

fn diagnostics(figures: &TurnFigures<'_>, notes: &[Redacted]) -> String {
    let tokens = figures.tokens.map_or_else(
        || "not reported".to_owned(),
        |(input, output)| format!("{} in, {} out", thousands(input), thousands(output)),
    );
    let stop_reason: String = figures.stop_reason.chars().filter(|c| c.is_ascii_alphabetic() || *c == '_').collect();
    let mut lines = format!(
        "- Route: {}\n- Stop reason: {stop_reason}\n- Duration: {}\n- Updates: {}\n- Tokens: {tokens}\n",
        figures.route.as_str(),
        seconds(figures.duration),
        thousands(figures.updates),
    );
    if let Some(trigger) = figures.rollback {
        let _ = writeln!(lines, "- Rollback: active, by {}", trigger.as_str());
    }
    for note in notes.iter().take(MAX_NOTES) {
        let _ = writeln!(lines, "- Note: {}", markdown::line(&markdown::cleaned(note), MAX_NOTE_LINE_CHARS));
    }
    lines
}

/// Seconds with one decimal; minutes as well from one minute.
fn seconds(duration: Duration) -> String {
    let tenths = duration.as_millis() / 100;
    let (minutes, tenths) = (tenths / 600, tenths % 600);
    let seconds = format!("{}.{} s", tenths / 10, tenths % 10);
    if minutes == 0 {
        seconds
    } else {
        format!("{} min {seconds}", thousands(u64::try_from(minutes).unwrap_or(u64::MAX)))
    }
}

/// Digits in groups of three, which are no hash of a commit.
fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// The time of day to the minute, in UTC, with the date.
fn minute(at: Timestamp) -> String {
    let text = at.to_string();
    text.get(..16).unwrap_or(&text).replace('T', " ")
}

/// An address that is safe to write: `http` or `https`, of characters without a meaning in Markdown.
fn safe_url(url: &str) -> Option<String> {
    let is_safe = |c: char| c.is_ascii_alphanumeric() || "/:.-_~%".contains(c);
    let is_web = Url::parse(url).is_ok_and(|url| matches!(url.scheme(), "http" | "https"));
    (is_web && url.len() <= MAX_URL_CHARS && url.chars().all(is_safe)).then(|| url.to_owned())
}

/// A title or subject in which nothing makes GitHub skip its checks.
fn inert_subject(text: &str, max_chars: usize) -> String {
    markdown::line(&broken_skips(&one_line(text)), max_chars)
}

/// Texts in a message for which GitHub or a CI service runs no checks.
const SKIPS: [&str; 8] = [
    "[skip ci]",
    "[ci skip]",
    "[no ci]",
    "[skip actions]",
    "[actions skip]",
    "***NO_CI***",
    "skip-checks:",
    "[skip-ci]",
];

/// Replaces the first space, dash or underscore of each of [`SKIPS`] by another sign.
fn broken_skips(text: &str) -> String {
    let mut text = text.to_owned();
    for skip in SKIPS {
        while let Some(at) = find_ignoring_case(&text, skip) {
            let inner = skip.find([' ', '-', '_']).unwrap_or(0);
            text.replace_range(at + inner..=at + inner, "·");
        }
    }
    text
}

fn find_ignoring_case(text: &str, part: &str) -> Option<usize> {
    text.to_ascii_lowercase().find(&part.to_ascii_lowercase())
}

/// A message that the caller chose: its subject is one line of at most 120 characters; the rest is a body without trailers.
fn explicit_message(text: &Redacted) -> Option<String> {
    let text = broken_skips(&markdown::cleaned(text));
    let (subject, body) = text.trim().split_once('\n').unwrap_or((text.trim(), ""));
    let subject = inert_subject(subject, MAX_TITLE_CHARS);
    if subject.is_empty() {
        return None;
    }
    let lines = body.trim().lines().map(without_trailer).collect::<Vec<_>>().join("\n");
    let body = markdown::plain_lines(&lines);
    let body = markdown::first_lines(&body, MAX_MESSAGE_LENGTH).unwrap_or(body);
    Some(if body.is_empty() { subject } else { format!("{subject}\n\n{body}") })
}

/// Trailers credit people and certify origins, which no text of a prompt may do.
fn without_trailer(line: &str) -> String {
    let is_token = |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    match line.split_once(':') {
        Some((name, value)) if is_token(name.trim()) && name.contains('-') => format!("{name} ·{value}"),
        _ => line.to_owned(),
    }
}

/// The trailer that credits a person; `None` if name or address is malformed.
fn trailer(person: &Identity) -> Option<String> {
    let (user, host) = person.email.split_once('@')?;
    let is_part =
        |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || "._+-[]".contains(c));
    let name = markdown::line(&markdown::cleaned(&Redacted::new(&person.name)), MAX_PERSON_CHARS);
    let is_complete = !name.is_empty() && is_part(user) && is_part(host) && person.email.len() <= MAX_EMAIL_CHARS;
    is_complete.then(|| format!("Co-authored-by: {name} <{}>", person.email))
}

#[cfg(test)]
mod tests;
