//! Cuts texts to the sizes that GitHub takes: the last defence, since the texts are made shorter elsewhere.

use std::borrow::Cow;

use crate::domain::text;

/// The longest body of an issue, pull request or comment, in characters. GitHub refuses 65,537; the rest is a margin for
/// another way of counting.
pub(crate) const MAX_BODY: usize = 65_000;
/// The longest title that GitHub takes, in characters.
const MAX_TITLE: usize = 256;
/// The end of a body that was cut.
const CUT: &str = "\n\n… (cut, since GitHub takes no longer text)\n";

/// Cuts a body at the end of a line, or within a line that is longer than half of the bound. A marker in the part that is
/// cut is appended, so that the text is found again by it.
pub(crate) fn fit_body<'a>(body: &'a str, marker: &str) -> Cow<'a, str> {
    if body.chars().count() <= MAX_BODY {
        return Cow::Borrowed(body);
    }
    let room = MAX_BODY.saturating_sub(CUT.chars().count() + marker.chars().count() + 1);
    let end = body.char_indices().nth(room).map_or(body.len(), |(at, _)| at);
    let line = body[..end].rfind('\n').filter(|at| *at >= end / 2);
    let kept = &body[..line.unwrap_or(end)];
    let marker = if kept.contains(marker) { "" } else { marker };
    Cow::Owned(format!("{kept}{CUT}{marker}"))
}

/// Makes one line of a title and cuts it. An empty title, which GitHub refuses, is replaced. A title that fits stays as it is,
/// with the hidden characters that keep it from mentioning people and from closing issues.
pub(crate) fn fit_title(title: &str) -> String {
    let title = title.trim();
    if !title.is_empty() && !title.contains(char::is_control) && title.chars().count() <= MAX_TITLE {
        return title.to_owned();
    }
    match text::plain(title, MAX_TITLE) {
        title if title.is_empty() => "Automated changes".to_owned(),
        title => title,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn body_over_the_limit_of_github_is_cut_on_a_line_and_keeps_its_marker() {
        let marker = "<!-- lumilink:1 -->";
        assert_eq!(fit_body("short", marker), "short");
        for line in ["ä line of text\n".to_owned(), "ä".repeat(100_000), "\n".to_owned()] {
            let body = format!("{}{marker}", line.repeat(200_000 / line.chars().count()));
            let fitted = fit_body(&body, marker);
            assert!(fitted.chars().count() <= MAX_BODY, "{}", fitted.chars().count());
            assert_eq!(fitted.matches(marker).count(), 1);
            let (kept, _) = fitted.split_once(CUT).unwrap();
            assert!(body.starts_with(kept) && kept.chars().count() > MAX_BODY / 2 - 1000);
            assert!(line.starts_with("ää") || body[kept.len()..].starts_with('\n'), "whole lines");
        }
        let first = format!("{marker}{}", "x\n".repeat(100_000));
        assert_eq!(fit_body(&first, marker).matches(marker).count(), 1);
    }

    #[test]
    fn title_is_one_line_within_the_limit_of_github_and_never_empty() {
        assert_eq!(fit_title("Fix\nthis"), "Fix this");
        assert_eq!(fit_title("Closes #\u{200B}1 @\u{200B}victim"), "Closes #\u{200B}1 @\u{200B}victim");
        assert_eq!(fit_title(&"x".repeat(300)).chars().count(), 256);
        assert_eq!(fit_title(" \n"), "Automated changes");
    }
}
