//! Names of GitHub repositories and patterns for them: `owner/name`, where `*` matches any characters.

use std::fmt;

use url::Url;

/// The most patterns of one tenant.
pub(crate) const MAX_PATTERNS: usize = 1000;
/// The longest owner and the longest name on GitHub, in characters.
const MAX_PART: usize = 100;

/// True for a well-formed pattern: two parts of 1 to 100 characters of `A-Z a-z 0-9 . _ - *`, separated by one slash.
pub(crate) fn is_pattern(text: &str) -> bool {
    text.split_once('/').is_some_and(|(owner, name)| is_part(owner, b"._-*") && is_part(name, b"._-*"))
}

fn is_part(part: &str, beside_letters: &[u8]) -> bool {
    let fits = (1..=MAX_PART).contains(&part.len()) && part != "." && part != "..";
    fits && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || beside_letters.contains(&byte))
}

/// A repository's `owner/name`: at most 201 characters of `A-Z a-z 0-9 . _ -`, which are safe to show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RepositoryName {
    owner: String,
    name: String,
}

impl fmt::Display for RepositoryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.owner, self.name)
    }
}

impl RepositoryName {
    /// Parses `owner/name`, `https://host/owner/name`, `ssh://git@host/owner/name` or `git@host:owner/name`, of any host,
    /// with or without `.git` or a slash at the end. `None` for anything else, which names no repository on GitHub.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let url;
        let path = if text.contains("://") {
            url = Url::parse(text).ok()?;
            url.path().strip_prefix('/')?
        } else {
            text.strip_prefix("git@").and_then(|rest| rest.split_once(':')).map_or(text, |(_, path)| path)
        };
        let (owner, name) = path.strip_suffix('/').unwrap_or(path).split_once('/')?;
        let bare = name.len().checked_sub(4).and_then(|at| name.split_at_checked(at));
        let name = bare.filter(|(_, end)| end.eq_ignore_ascii_case(".git")).map_or(name, |(name, _)| name);
        let is_name = is_part(owner, b"._-") && is_part(name, b"._-");
        is_name.then(|| Self { owner: owner.to_owned(), name: name.to_owned() })
    }

    pub(crate) fn owner(&self) -> &str {
        &self.owner
    }

    /// The part behind the owner.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// True if the pattern matches the name, ignoring case as GitHub does; `*` matches any number of characters within
    /// one part. A malformed pattern matches nothing. Linear time for every pattern.
    pub(crate) fn matches(&self, pattern: &str) -> bool {
        let parts = pattern.split_once('/').filter(|_| is_pattern(pattern));
        parts.is_some_and(|(owner, name)| part_matches(owner, &self.owner) && part_matches(name, &self.name))
    }
}

/// Matches the pieces between stars from left to right, each at its first occurrence. A later occurrence would only leave
/// less for the pieces after it, so there is no backtracking.
fn part_matches(pattern: &str, part: &str) -> bool {
    let (pattern, part) = (pattern.to_ascii_lowercase(), part.to_ascii_lowercase());
    let mut pieces = pattern.split('*');
    let first = pieces.next().unwrap_or_default();
    let Some(mut rest) = part.strip_prefix(first) else { return false };
    let Some(last) = pieces.next_back() else { return rest.is_empty() };
    for piece in pieces {
        match rest.split_once(piece) {
            Some((_, after)) => rest = after,
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pattern_has_an_owner_and_a_name() {
        for good in ["octo/repo", "octo/*", "*/secret-*", "o_1/a.b"] {
            assert!(is_pattern(good), "{good}");
        }
        for bad in [
            "",
            "octo",
            "octo/",
            "/repo",
            "a/b/c",
            "a/..",
            "a b/c",
            "a/b\n",
            "ü/x",
            &format!("a/{}", "b".repeat(101)),
        ] {
            assert!(!is_pattern(bad), "{bad:?}");
        }
    }

    #[test]
    fn repository_name_is_parsed_from_every_form_of_an_address() {
        for text in [
            "octo/hello",
            "octo/hello.git",
            "https://github.com/octo/hello",
            "https://github.com/octo/hello.git",
            "https://github.com/octo/hello/",
            "https://x:secret@github.com/octo/hello.GIT",
            "http://127.0.0.1:3000/octo/hello.git",
            "ssh://git@github.com/octo/hello.git",
            "git@github.com:octo/hello.git",
        ] {
            assert_eq!(RepositoryName::parse(text).map(|it| it.to_string()).as_deref(), Some("octo/hello"), "{text}");
        }
        for text in [
            "",
            "octo",
            "octo/",
            "/hello",
            "a/b/c",
            "octo/..",
            "octo/.git",
            "o/h<b>",
            "https://github.com/octo",
            "o/*",
        ] {
            assert_eq!(RepositoryName::parse(text), None, "{text}");
        }
    }

    #[test]
    fn pattern_matches_case_insensitively_and_within_one_part() {
        let is_match = |pattern: &str, name: &str| RepositoryName::parse(name).unwrap().matches(pattern);
        for (pattern, name) in [
            ("octo/hello", "Octo/HELLO"),
            ("OCTO/*", "octo/hello"),
            ("*/secret-*", "anyone/secret-"),
            ("*/*", "a/b"),
            ("o*o/h*l*o", "octo/hello"),
            ("octo/*.js", "octo/a.js.js"),
            ("octo/**", "octo/x"),
            ("octo/a*a", "octo/aa"),
        ] {
            assert!(is_match(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("octo/hello", "octo/hello2"),
            ("octo/*", "octocat/hello"),
            ("*", "octo/hello"),
            ("*/secret-*", "a/my-secret-x"),
            ("octo/a*a", "octo/a"),
            ("octo/*ab*ba", "octo/aba"),
            ("octo/h.llo", "octo/hello"),
            ("", "octo/hello"),
        ] {
            assert!(!is_match(pattern, name), "{pattern} {name}");
        }
    }

    #[test]
    fn worst_pattern_matches_in_linear_time() {
        let name = RepositoryName::parse(&format!("o/{}b", "a".repeat(99))).unwrap();
        let pattern = format!("o/{}c", "a*".repeat(49));
        assert!((0..10_000).all(|_| !name.matches(&pattern)), "with backtracking one match would not end");
    }

    fn matches_regex(pattern: &str, name: &str) -> bool {
        let inner = regex::escape(pattern).replace(r"\*", "[^/]*");
        regex::Regex::new(&format!("(?i)^{inner}$")).unwrap().is_match(name)
    }

    proptest! {
        #[test]
        fn patterns_match_like_a_regular_expression(pattern in "[abA*.]{1,8}/[abA*.]{1,8}", name in "[abB.]{1,8}/[abB.]{1,8}") {
            prop_assume!(is_pattern(&pattern));
            let Some(read) = RepositoryName::parse(&name) else { return Ok(()) };
            prop_assert_eq!(read.matches(&pattern), matches_regex(&pattern, &name));
        }
    }
}
