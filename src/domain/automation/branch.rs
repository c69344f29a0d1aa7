//! Names of branches: made for a turn, or checked if a caller chose one.

use std::fmt;

use time::{OffsetDateTime, format_description::FormatItem, macros::format_description};

use crate::domain::clock::Timestamp;

/// The longest name, in characters.
pub(crate) const MAX_BRANCH_CHARS: usize = 200;
/// The longest name in bytes: GitHub permits 255 with `refs/heads/`.
const MAX_BRANCH_BYTES: usize = 244;
/// The prefix of names, unless another template is configured.
pub(crate) const DEFAULT_TEMPLATE: &str = "claude-code/";
/// The longest id of a session in a name, in characters.
const MAX_SESSION_CHARS: usize = 32;
/// The longest suffix of [`BranchName::alternative`], in characters.
const MAX_SUFFIX_CHARS: usize = 16;
/// Length of a commit's hash in hexadecimal digits.
const SHA_CHARS: usize = 40;

/// The time of a name, in UTC.
const STAMP: &[FormatItem<'_>] = format_description!("[year]-[month]-[day]-[hour][minute][second]");

/// The name of a branch that git and GitHub accept, without `refs/heads/`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct BranchName(String);

/// A name that git or GitHub refuses, with the broken rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a branch name: it {0}")]
pub(crate) struct BadBranch(&'static str);

/// A template that makes no usable names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadTemplate {
    #[error("the template makes no branch name: with its longest values it {0}")]
    Name(&'static str),
    #[error("the template needs {{name}}, or {{timestamp}}, so that no two sessions share a branch")]
    Shared,
}

/// The facts of a new name.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NewBranch<'a> {
    /// A prefix such as `claude-code/`, or text with the placeholders `{name}`, `{issue}` (`none` without one), `{session}`
    /// and `{timestamp}`. `{name}` is `issue-<n>-<timestamp>` or `session-<session>-<timestamp>`.
    pub template: &'a str,
    /// Number of the issue, if there is one.
    pub issue: Option<u64>,
    /// The session's id.
    pub session: &'a str,
    /// The time of the name.
    pub at: Timestamp,
}

impl BranchName {
    /// Checks a name by the rules of `git check-ref-format --branch` and GitHub.
    ///
    /// # Errors
    /// Names the first broken rule.
    pub(crate) fn parse(name: &str) -> Result<Self, BadBranch> {
        let fault = fault_of_length(name).or_else(|| fault_of_text(name)).or_else(|| fault_of_parts(name));
        match fault {
            Some(fault) => Err(BadBranch(fault)),
            None => Ok(Self(name.to_owned())),
        }
    }

    /// The name of a new branch. A template that makes no valid name is replaced by [`DEFAULT_TEMPLATE`].
    pub(crate) fn new(of: &NewBranch<'_>) -> Self {
        Self::parse(&rendered(of))
            .or_else(|_| Self::parse(&rendered(&NewBranch { template: DEFAULT_TEMPLATE, ..*of })))
            .unwrap_or_else(|_| unreachable!("the default template, a number, letters and a time make a valid name"))
    }

    /// Another name for a branch that cannot be created, because `blocker` exists. If `foo` blocks `foo/bar`, or the
    /// blocker is unknown, slashes become dashes, since no suffix helps below `foo`; otherwise the suffix is enough.
    /// Letters and digits of `suffix` are used, at most 16.
    pub(crate) fn alternative(&self, blocker: Option<&str>, suffix: &str) -> Self {
        let is_above = |blocker: &str| self.0.strip_prefix(blocker).is_some_and(|rest| rest.starts_with('/'));
        let base = if blocker.is_none_or(is_above) { self.0.replace('/', "-") } else { self.0.clone() };
        let suffix: String = letters(suffix).take(MAX_SUFFIX_CHARS).collect();
        let suffix = if suffix.is_empty() { "2" } else { &suffix };
        let room = MAX_BRANCH_CHARS.min(MAX_BRANCH_BYTES) - MAX_SUFFIX_CHARS - 1;
        let kept = base[..base.floor_char_boundary(room)].trim_end_matches(['/', '.', '-']);
        Self(format!("{kept}-{suffix}"))
    }

    #[cfg(test)]
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    pub(crate) fn into_string(self) -> String {
        self.0
    }
}

impl fmt::Display for BranchName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Checks a template, as settings have it.
///
/// # Errors
/// The template makes an invalid or too long name, or the same name for several sessions.
pub(crate) fn check_template(template: &str) -> Result<(), BadTemplate> {
    let longest = "f".repeat(MAX_SESSION_CHARS);
    for issue in [None, Some(u64::MAX)] {
        let of = NewBranch { template, issue, session: &longest, at: Timestamp(0) };
        BranchName::parse(&rendered(&of)).map_err(|BadBranch(fault)| BadTemplate::Name(fault))?;
    }
    let is_unique = !has_placeholder(template) || template.contains("{name}") || template.contains("{timestamp}");
    if is_unique { Ok(()) } else { Err(BadTemplate::Shared) }
}

/// The ref of the head of a pull request, which a session on that pull request checks out.
pub(crate) fn ref_of_pull_request(number: u64) -> String {
    format!("refs/pull/{number}/head")
}

/// The number of the pull request of such a ref.
pub(crate) fn pull_request_of(name: &str) -> Option<u64> {
    name.strip_prefix("refs/pull/")?.strip_suffix("/head")?.parse().ok()
}

const PLACEHOLDERS: [&str; 4] = ["{name}", "{issue}", "{session}", "{timestamp}"];

fn has_placeholder(template: &str) -> bool {
    PLACEHOLDERS.iter().any(|placeholder| template.contains(placeholder))
}

fn rendered(of: &NewBranch<'_>) -> String {
    let stamp = stamp(of.at);
    let session: String = letters(of.session).take(MAX_SESSION_CHARS).collect();
    let session = if session.is_empty() { "unnamed".to_owned() } else { session };
    let name = match of.issue {
        Some(number) => format!("issue-{number}-{stamp}"),
        None => format!("session-{session}-{stamp}"),
    };
    if !has_placeholder(of.template) {
        return format!("{}{name}", of.template);
    }
    let issue = of.issue.map_or_else(|| "none".to_owned(), |number| number.to_string());
    let values = [name, issue, session, stamp];
    PLACEHOLDERS.iter().zip(&values).fold(of.template.to_owned(), |text, (it, value)| text.replace(it, value))
}

fn letters(text: &str) -> impl Iterator<Item = char> {
    text.chars().filter(char::is_ascii_alphanumeric)
}

fn stamp(at: Timestamp) -> String {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(at.0) * 1000)
        .ok()
        .filter(|time| (0..=9999).contains(&time.year()))
        .and_then(|time| time.format(STAMP).ok())
        .unwrap_or_else(|| "0000-00-00-000000".to_owned())
}

fn fault_of_length(name: &str) -> Option<&'static str> {
    match name {
        "" => Some("is empty"),
        _ if name.chars().count() > MAX_BRANCH_CHARS => Some("has more than 200 characters"),
        _ if name.len() > MAX_BRANCH_BYTES => Some("has more than 244 bytes"),
        _ => None,
    }
}

fn fault_of_text(name: &str) -> Option<&'static str> {
    let is_hidden =
        |c: char| c.is_control() || crate::domain::text::is_unseen(c) || matches!(c, '\u{2028}' | '\u{2029}');
    match name {
        _ if name.contains(is_hidden) => Some("contains a control character or an invisible character"),
        _ if name.contains(char::is_whitespace) => Some("contains a space"),
        _ if name.contains(['~', '^', ':', '?', '*', '[', '\\']) => Some("contains one of ~ ^ : ? * [ \\"),
        _ if name.contains("..") => Some("contains two dots in a row"),
        _ if name.contains("@{") => Some("contains @{"),
        _ if name.starts_with('-') => Some("begins with a dash"),
        "@" | "HEAD" => Some("is a name that git reserves"),
        _ if name.starts_with("refs/") => Some("begins with refs/; leave out refs/heads/"),
        _ if name.len() == SHA_CHARS && name.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
            Some("looks like the hash of a commit")
        }
        _ => None,
    }
}

fn fault_of_parts(name: &str) -> Option<&'static str> {
    if name.starts_with('/') || name.ends_with('/') || name.contains("//") {
        return Some("has an empty part: a slash at the start or the end, or two in a row");
    }
    if name.ends_with('.') {
        return Some("ends with a dot");
    }
    let mut parts = name.split('/');
    parts.find_map(|part| match part {
        _ if part.starts_with('.') => Some("has a part that begins with a dot"),
        _ if part.len() >= 5 && part[part.floor_char_boundary(part.len() - 5)..].eq_ignore_ascii_case(".lock") => {
            Some("has a part that ends with .lock")
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// 2023-11-14 22:13:20 UTC.
    const AT: Timestamp = Timestamp(1_700_000_000_000_000);
    const SESSION: &str = "0190f3a2-7c1b-7def-8123-456789abcdef";

    fn named(template: &str, issue: Option<u64>) -> String {
        BranchName::new(&NewBranch { template, issue, session: SESSION, at: AT }).into_string()
    }

    #[test]
    fn branch_is_named_after_its_issue_or_else_its_session() {
        assert_eq!(named(DEFAULT_TEMPLATE, Some(12)), "claude-code/issue-12-2023-11-14-221320");
        assert_eq!(
            named(DEFAULT_TEMPLATE, None),
            "claude-code/session-0190f3a27c1b7def8123456789abcdef-2023-11-14-221320"
        );
        assert_eq!(named("bots/", Some(1)), "bots/issue-1-2023-11-14-221320");
        assert_eq!(named("", Some(1)), "issue-1-2023-11-14-221320");
        assert_eq!(named("ai/{issue}/{timestamp}", Some(1)), "ai/1/2023-11-14-221320");
        assert_eq!(named("ai/{issue}/{name}-x", None), format!("ai/none/{}-x", named("", None)));
        for useless in ["-", "a b/", ".x/", "{timestamp}.lock", "{", &"x".repeat(300)] {
            let expected =
                if useless == "{" { "{issue-7-2023-11-14-221320" } else { "claude-code/issue-7-2023-11-14-221320" };
            assert_eq!(named(useless, Some(7)), expected, "{useless:?}");
        }
    }

    #[test]
    fn template_that_makes_bad_or_shared_names_is_refused() {
        for good in [DEFAULT_TEMPLATE, "", "bots/", "x-{name}", "ai/{session}/{timestamp}"] {
            assert_eq!(check_template(good), Ok(()), "{good}");
        }
        assert_eq!(check_template("ai/{session}"), Err(BadTemplate::Shared));
        assert_eq!(check_template("ai/{issue}"), Err(BadTemplate::Shared));
        for bad in ["/x", "-x", "a..b/", "{name}.lock", "{name}/", &"x".repeat(150)] {
            assert!(matches!(check_template(bad), Err(BadTemplate::Name(_))), "{bad:?}");
        }
    }

    #[test]
    fn bad_branch_name_is_refused_with_its_rule() {
        let long = format!("{}/{}", "a".repeat(100), "ü".repeat(100));
        let wide = "日".repeat(100);
        for (name, rule) in [
            ("", "empty"),
            (&*long, "200 characters"),
            (&*wide, "244 bytes"),
            ("a\u{202E}b", "invisible"),
            ("a\nb", "control"),
            ("a b", "space"),
            ("a~1", "one of"),
            ("a\\b", "one of"),
            ("a..b", "two dots"),
            ("a@{b", "@{"),
            ("-f", "dash"),
            ("@", "reserves"),
            ("HEAD", "reserves"),
            ("refs/heads/main", "leave out"),
            ("0123456789abcdef0123456789abcdef01234567", "hash"),
            ("a//b", "empty part"),
            ("/a", "empty part"),
            ("a/", "empty part"),
            ("a.", "ends with a dot"),
            ("a/.b", "begins with a dot"),
            ("a.lock/b", ".lock"),
            ("a.LOCK", ".lock"),
        ] {
            let fault = BranchName::parse(name).expect_err(name).to_string();
            assert!(fault.contains(rule), "{name:?}: {fault}");
        }
        for name in ["main", "feature/x", "ünïcode", "a.b", "x@y", "release-1.2", "@/x", "a-", "lock"] {
            assert!(BranchName::parse(name).is_ok(), "{name}");
        }
    }

    #[test]
    fn alternative_does_not_collide_with_its_blocker() {
        let name = |text: &str| BranchName::parse(text).unwrap();
        assert_eq!(name("foo/bar").alternative(Some("foo"), "2").as_str(), "foo-bar-2");
        assert_eq!(name("foo/bar").alternative(None, "2").as_str(), "foo-bar-2");
        assert_eq!(name("foo/bar").alternative(Some("foo/bar"), "2").as_str(), "foo/bar-2");
        assert_eq!(name("foo/bar").alternative(Some("foo/bar/baz"), "2").as_str(), "foo/bar-2");
        assert_eq!(name("foo/bar").alternative(Some("fo"), " /.~").as_str(), "foo/bar-2");
        let long = name(&"ü".repeat(100)).alternative(None, &"x".repeat(90));
        assert!(BranchName::parse(long.as_str()).is_ok(), "{long}");
    }

    /// The rules of `git check-ref-format`, written from its manual.
    fn is_ref(name: &str) -> bool {
        let is_bad = |c: char| c < ' ' || " ~^:?*[\\\u{7f}".contains(c);
        let parts_fit = name.split('/').all(|it| !it.is_empty() && !it.starts_with('.') && !it.ends_with(".lock"));
        parts_fit
            && !name.contains(is_bad)
            && !name.contains("..")
            && !name.contains("@{")
            && !name.ends_with('.')
            && !name.starts_with('-')
            && name != "@"
    }

    proptest! {
        #[test]
        fn every_accepted_name_is_a_valid_ref(name in "([a-c/.@{~\\-ü\\\\ ]|\\.lock|\\PC){0,12}") {
            prop_assert!(BranchName::parse(&name).is_err() || is_ref(&name), "{}", name);
        }

        #[test]
        fn made_names_are_valid_for_every_input(
            template in "([a-z{}/.\\-]|\\{name\\}|\\{issue\\}|\\{session\\}|\\PC){0,12}",
            issue in prop::option::of(any::<u64>()),
            session in "\\PC{0,60}",
            at in any::<i64>(),
            suffix in "\\PC{0,30}",
            blocker in prop::option::of("[a-z/]{0,8}"),
        ) {
            let name = BranchName::new(&NewBranch { template: &template, issue, session: &session, at: Timestamp(at) });
            prop_assert!(is_ref(name.as_str()) && BranchName::parse(name.as_str()).is_ok(), "{}", name);
            let other = name.alternative(blocker.as_deref(), &suffix);
            prop_assert!(is_ref(other.as_str()) && BranchName::parse(other.as_str()).is_ok(), "{}", other);
            prop_assert_ne!(&name, &other);
        }
    }
}
