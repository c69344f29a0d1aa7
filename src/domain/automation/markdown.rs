//! Makes Markdown of prompts and agents safe to publish on GitHub.
//!
//! The text stays readable, but nothing in it is live: no mention, reference, closing keyword, link, image, HTML, heading or
//! command of a bot. A zero-width space breaks each pattern. It is inserted at the level of characters, without parsing, so
//! that a difference between two parsers of Markdown opens no gap: what is inert as text is inert in code, in links and in
//! comments as well.

use crate::domain::{
    redaction::Redacted,
    text::{CUT_MARK, plain, visible},
};

/// Breaks a pattern. No input contains it, since [`visible`] drops it.
pub(super) const BREAK: char = '\u{200B}';
/// Hexadecimal digits in a row, at most; GitHub links 7 and more to a commit of that hash.
const MAX_HEX: usize = 6;
/// The shortest code fence, in characters.
const FENCE: usize = 3;
/// Languages of code blocks that GitHub renders as something else.
const RENDERED: [&str; 6] = ["mermaid", "geojson", "topojson", "stl", "math", "suggestion"];

/// Redacts a text and drops its hidden characters. Redaction comes after that as well, since a hidden character can split
/// a secret.
pub(super) fn cleaned(text: &Redacted) -> String {
    Redacted::new(&visible(text.as_str())).into_string()
}

/// One inert line of at most `max_chars` characters, for titles and subjects.
pub(super) fn line(text: &str, max_chars: usize) -> String {
    let mut room = max_chars;
    loop {
        let line = broken(&plain(text, room), Fences::Broken);
        let excess = line.chars().count().saturating_sub(max_chars);
        if excess == 0 {
            return line;
        }
        room = room.saturating_sub(excess);
    }
}

/// Inert paragraphs without code blocks, which could take in what follows them; a text with a code fence is quoted, since a
/// fence ends with its quote.
pub(super) fn block(text: &str) -> String {
    let has_fence = ["```", "~~~"].iter().any(|fence| text.contains(fence));
    if has_fence { quote(text) } else { broken(text, Fences::Broken) }
}

/// Inert lines for a text that is no Markdown, such as the message of a commit.
pub(super) fn plain_lines(text: &str) -> String {
    broken(text, Fences::Broken)
}

/// An inert block quote.
pub(super) fn quote(text: &str) -> String {
    let lines = broken(text, Fences::Kept);
    let quoted = lines.split('\n').map(|line| if line.is_empty() { ">".to_owned() } else { format!("> {line}") });
    quoted.collect::<Vec<_>>().join("\n")
}

/// The length that GitHub limits, in UTF-16 code units; at least the number of characters.
pub(super) fn length(text: &str) -> usize {
    text.encode_utf16().count()
}

/// Keeps the first lines of a text, at most `max_length` in the unit of [`length`]; `None` if it fits whole. A first line
/// that is too long is cut at a character, with a mark.
pub(super) fn first_lines(text: &str, max_length: usize) -> Option<String> {
    if length(text) <= max_length {
        return None;
    }
    let mut room = max_length;
    let mut end = 0;
    for line in text.split_inclusive('\n') {
        let Some(left) = room.checked_sub(length(line)) else { break };
        (room, end) = (left, end + line.len());
    }
    if end > 0 {
        return Some(text[..end].trim_end().to_owned());
    }
    let mut room = max_length.saturating_sub(CUT_MARK.len());
    let fits = |c: &char| match room.checked_sub(c.len_utf16()) {
        Some(left) => {
            room = left;
            true
        }
        None => false,
    };
    let kept: String = text.chars().take_while(fits).collect();
    Some(format!("{kept}{CUT_MARK}"))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fences {
    /// Code fences stay, and end with the quote around them.
    Kept,
    /// No run of backticks or tildes is long enough for a fence.
    Broken,
}

fn broken(text: &str, fences: Fences) -> String {
    let mut inert = String::with_capacity(text.len() + text.len() / 8);
    for (number, line) in text.split('\n').enumerate() {
        if number > 0 {
            inert.push('\n');
        }
        let body = line.trim_start();
        inert.push_str(&line[..line.len() - body.len()]);
        if is_underline(body) {
            inert.push(BREAK);
        }
        break_line(body, fences, &mut inert);
    }
    inert
}

/// True for a line that makes the line above it a heading, or a line across the page.
fn is_underline(line: &str) -> bool {
    let mut marks = line.chars().filter(|c| !c.is_whitespace());
    let first = marks.next();
    first.is_some_and(|first| "-=*_".contains(first) && marks.all(|mark| mark == first))
}

fn break_line(line: &str, fences: Fences, inert: &mut String) {
    let (mut hex, mut run, mut before) = (0, 0, None);
    for (at, c) in line.char_indices() {
        hex = if c.is_ascii_hexdigit() { hex + 1 } else { 0 };
        if hex > MAX_HEX {
            inert.push(BREAK);
            hex = 1;
        }
        run = if before == Some(c) { run + 1 } else { 1 };
        before = Some(c);
        inert.push(c);
        let (upto, rest) = line.split_at(at + c.len_utf8());
        if ends_pattern(upto, c, rest) || matches!(c, '`' | '~') && ends_fence(c, run, rest, fences) {
            inert.push(BREAK);
        }
    }
}

/// True if a break is needed between `upto`, of which `c` is the last character, and `rest`. A backslash hides a character
/// from a parser and is absent from what is rendered, so it counts as the character behind it.
fn ends_pattern(upto: &str, c: char, rest: &str) -> bool {
    let next = rest.chars().next();
    let next_is = |chars: &[char]| next.is_some_and(|next| chars.contains(&next));
    match c {
        // Mentions, numbers of issues and headings, HTML and autolinks, entities, which may spell any of them.
        '@' | '#' | '<' | '&' => true,
        '!' => next_is(&['[', '\\']),
        ']' => next_is(&['(', '[', ':', '\\']),
        ':' => next_is(&['/', '\\']),
        // Commands of bots, such as `/approve`.
        '/' => upto.len() == 1 && next.is_some_and(char::is_alphanumeric),
        '-' => ends_with_ignoring_case(upto[..upto.len() - 1].trim_end_matches('\\'), "gh"),
        'w' | 'W' => ends_with_ignoring_case(upto, "www") && next_is(&['.', '\\']),
        // Our marker.
        'k' | 'K' => ends_with_ignoring_case(upto, "lumilink") && next_is(&[':', '\\']),
        _ => false,
    }
}

fn ends_fence(c: char, run: usize, rest: &str, fences: Fences) -> bool {
    let is_last = !rest.starts_with(c);
    match fences {
        Fences::Broken => run.is_multiple_of(FENCE - 1) && !is_last,
        Fences::Kept => {
            let info = rest.trim_start();
            let is_rendered = |word: &str| info.get(..word.len()).is_some_and(|it| it.eq_ignore_ascii_case(word));
            run >= FENCE && is_last && RENDERED.into_iter().any(is_rendered)
        }
    }
}

fn ends_with_ignoring_case(text: &str, end: &str) -> bool {
    let tail = text.len().checked_sub(end.len()).and_then(|from| text.get(from..));
    tail.is_some_and(|tail| tail.eq_ignore_ascii_case(end))
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;
    use regex::Regex;

    use super::*;

    /// Text as people see it: without breaks.
    fn seen(text: &str) -> String {
        text.replace(BREAK, "")
    }

    /// Patterns that GitHub acts on, written from its documentation and generous: a backslash may precede each sign.
    static LIVE: LazyLock<Regex> = LazyLock::new(|| {
        let patterns = [
            r"@\\?[a-z0-9]",
            r"#\\?[0-9]",
            r"gh\\?-[0-9]",
            r"&\\?#?[a-z0-9]+;",
            r"<[a-z/!?]",
            r"\\?:\\?/\\?/",
            r"www\\?\.",
            r"\]\\?[\[(:]",
            r"!\\?\[",
            r"(?:^|[^0-9a-f])[0-9a-f]{7,40}(?:$|[^0-9a-f])",
            r"lumilink\\?:",
            r"(?m)^[ \t]*#{1,6}(?:[ \t]|$)",
            r"(?m)^[ \t]*/[a-z]",
            r"(?m)^[ \t]*(?:-[ \t-]*|=[ \t=]*|\*[ \t*]*|_[ \t_]*)$",
            r"(?:`{3,}|~{3,})[ \t]*(?:mermaid|geojson|topojson|stl|math|suggestion)",
            r"\b(?:close[sd]?|fix(?:e[sd])?|resolve[sd]?):?[ \t]+(?:[\w.-]+/[\w.-]+)?(?:\\?#|gh\\?-)[0-9]",
        ];
        Regex::new(&format!("(?i){}", patterns.map(|it| format!("(?:{it})")).join("|"))).unwrap()
    });

    /// The first live pattern of a text.
    pub(crate) fn live(text: &str) -> Option<String> {
        LIVE.find(text).map(|found| found.as_str().to_owned())
    }

    #[test]
    fn live_patterns_of_github_are_broken_everywhere() {
        for text in [
            "@octocat",
            "@octo-org/team",
            "`@octocat`",
            "[x](@octocat)",
            "<!-- @octocat -->",
            "&#64;octocat",
            "&commat;octocat",
            "\\@octocat",
            "mail octo@example.com",
            "#1",
            "octo/hello#1",
            "GH-1",
            "gh\\-12",
            "fixes #1",
            "Closes: octo/hello#1",
            "resolved GH-7",
            "fixes https://github.com/octo/hello/issues/1",
            "https\\://github.com/octo/hello/pull/1",
            "https:\\//github.com/octo/hello/pull/1",
            "<https://example.com>",
            "www.example.com",
            "0123abc",
            "octo/hello@0123456789abcdef0123456789abcdef01234567",
            "![x](https://evil.example/a.png)",
            "[x](/octo/hello/issues/1)",
            "[x][y]\n\n[y]: https://evil.example",
            "<img src=x>",
            "</details>",
            "<!--",
            "# Heading",
            "Heading\n---",
            "Heading\n=",
            "a\n\n* * *",
            "/approve",
            "lumilink:run=1",
            "```mermaid\ngraph TD\n```",
        ] {
            assert!(live(text).is_some(), "the test knows {text:?}");
            for safe in [block(text), quote(text), line(text, 1000)] {
                assert_eq!(live(&safe), None, "{safe:?}");
            }
            assert_eq!(
                seen(&quote(text)).replace("\n> ", "\n").strip_prefix("> "),
                Some(text.replace("\n\n", "\n>\n").as_str())
            );
        }
    }

    #[test]
    fn plain_markdown_is_kept() {
        for text in [
            "- a\n- **b**\n  1. `c`",
            "a | b\n--|--\n1 | 2",
            "x < 3 is 5 % of 123456",
            "C: a/b, and/or, --",
            "a\n\nb",
        ] {
            assert_eq!(seen(&block(text)), text);
        }
        assert_eq!(block("- a `b`\n- 12"), "- a `b`\n- 12");
        assert_eq!(quote("a\n\n```rust\nb\n```"), "> a\n>\n> ```rust\n> b\n> ```");
        assert_eq!(block("a\n```\nb"), "> a\n> ```\n> b", "an open fence ends with its quote");
    }

    #[test]
    fn title_has_one_line_within_its_limit() {
        assert_eq!(line("Add a\nthing", 120), "Add a thing");
        assert_eq!(line("", 120), "");
        assert_eq!(line("@a", 0), "");
        assert!(line(&"@".repeat(500), 120).chars().count() <= 120);
    }

    #[test]
    fn secret_that_hidden_characters_split_is_redacted() {
        let split = format!("ghp_{}\u{200B}{}", "a1B2".repeat(4), "c3D4".repeat(5));
        assert_eq!(cleaned(&Redacted::new(&split)), "[redacted]");
    }

    #[test]
    fn long_text_is_cut_on_a_line() {
        assert_eq!(first_lines("a\nb", 3), None);
        assert_eq!(first_lines("aa\nbb\ncc", 6).as_deref(), Some("aa\nbb"));
        assert_eq!(first_lines("aaaaaaaa\nb", 5).as_deref(), Some("aa…"));
        assert_eq!(first_lines("😀😀😀", 5).as_deref(), Some("😀…"), "counted as GitHub counts");
    }

    /// Text with many of the patterns, and their parts.
    pub(crate) fn hostile() -> impl Strategy<Value = String> {
        let parts = prop::sample::select(vec![
            "@",
            "octocat",
            "@octo/team",
            "#",
            "1",
            "12",
            "GH",
            "gh",
            "-",
            "fixes",
            "closes ",
            "Resolves: ",
            "octo/hello",
            "&",
            "#64;",
            "commat;",
            "num;",
            "<",
            ">",
            "!--",
            "-->",
            "!",
            "[",
            "]",
            "(",
            ")",
            ":",
            "/",
            "//",
            "https",
            "http",
            "www",
            ".",
            "github.com/octo/hello/issues/1",
            "\\",
            "`",
            "```",
            "~~~",
            "mermaid",
            "\n",
            "\r",
            "\r\n",
            "\n\n",
            " ",
            "  ",
            "\t",
            "lumilink",
            "lumilink:run=",
            "kind=issue",
            "deadbeef",
            "0123456789",
            "abcdef",
            "---",
            "===",
            "* * *",
            "# ",
            "> ",
            "- ",
            "/approve",
            "img src=x",
            "\u{200B}",
            "\u{202E}",
            "\u{2028}",
            "😀",
            "ü",
            "\0",
        ]);
        let part = prop_oneof![6 => parts.prop_map(str::to_owned), 1 => "\\PC{0,6}"];
        prop::collection::vec(part, 0..60).prop_map(|parts| parts.concat())
    }

    proptest! {
        #[test]
        fn nothing_is_live_in_text_of_any_kind(text in hostile(), max in 0usize..200) {
            let clean = cleaned(&Redacted::new(&text));
            for safe in [block(&clean), quote(&clean), line(&clean, 500)] {
                prop_assert_eq!(live(&safe), None, "{:?}", safe);
            }
            prop_assert!(line(&clean, max).chars().count() <= max);
            prop_assert_eq!(seen(&broken(&clean, Fences::Kept)), clean.clone(), "only breaks are added");
            prop_assert!(quote(&clean).split('\n').all(|line| line.starts_with('>')));
            let has_fence = |text: &str| text.contains("```") || text.contains("~~~");
            prop_assert!(!has_fence(&block(&clean)) || block(&clean).starts_with('>'));
            if let Some(cut) = first_lines(&clean, max) {
                prop_assert!(length(&cut) <= max.max(1));
            }
        }
    }
}
