//! Patterns of repositories: `owner/name`, where `*` stands for any characters.

/// Patterns that one tenant may have.
pub const MAX_PATTERNS: usize = 1000;
/// The longest owner and the longest name that GitHub gives, in characters.
const MAX_PART: usize = 100;

/// Whether text is a pattern: two parts of `A-Z a-z 0-9 . _ - *`, each of 1 to 100 characters, with one slash between
/// them.
pub fn is_pattern(text: &str) -> bool {
    let is_part = |part: &str| {
        let fits = (1..=MAX_PART).contains(&part.len()) && part != "." && part != "..";
        fits && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-*".contains(&byte))
    };
    text.split_once('/').is_some_and(|(owner, name)| is_part(owner) && is_part(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_has_an_owner_and_a_name() {
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
}
