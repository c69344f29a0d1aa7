//! Finds mentions in Markdown: as words of the author's own text, outside of code, quotes, links, HTML and addresses.
//!
//! Where Markdown is ambiguous the text counts as code or quote: a mention that is missed can be written again, and a turn
//! that was not meant cannot be taken back.

use crate::domain::text;

/// Takes the place of what is removed. No mention begins behind it.
const REMOVED: char = '\u{FFFD}';
/// Columns of a tab, and of the indentation that makes code.
const INDENT: usize = 4;
/// The shortest fence, in characters.
const FENCE: usize = 3;
/// The longest link and the longest tag, in bytes, so that a text of brackets is read in time linear in its length.
const MAX_SPAN_BYTES: usize = 1024;
/// The longest name, in bytes; GitHub's have up to 39 characters.
const MAX_NAME_BYTES: usize = 100;
/// Elements of HTML whose content is no text of the author.
const OPAQUE: [&str; 6] = ["a", "blockquote", "code", "kbd", "pre", "samp"];

/// True if a Markdown text mentions `name`, written as `@name` or `@name[bot]`; ignores the case of ASCII letters.
pub(crate) fn mentions(text: &str, name: &str) -> bool {
    let is_name = |rest: &str| {
        let given = rest.get(..name.len()).filter(|given| given.eq_ignore_ascii_case(name));
        given.is_some_and(|_| is_end(&rest[name.len()..]))
    };
    !name.is_empty() && any_mention(text, is_name)
}

/// Names that a Markdown text mentions, in lower case, each once, at most `most`. Those of Apps are among them: letters and digits of
/// ASCII, and hyphens.
pub(crate) fn names(text: &str, most: usize) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    any_mention(text, |rest| {
        let after = rest.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '-');
        let name = &rest[..rest.len() - after.len()];
        if (1..=MAX_NAME_BYTES).contains(&name.len()) && is_end(after) {
            let name = name.to_ascii_lowercase();
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names.len() >= most
    });
    names
}

/// Calls `is_meant` with what follows each `@` that can begin a mention, until it returns true.
fn any_mention(text: &str, mut is_meant: impl FnMut(&str) -> bool) -> bool {
    let own = without_spans(&without_blocks(text));
    own.split_whitespace().filter(|word| !is_address(word)).any(|word| {
        word.char_indices().filter(|(_, c)| *c == '@').any(|(at, _)| {
            let before = word[..at].chars().next_back();
            before.is_none_or(can_precede) && is_meant(&word[at + 1..])
        })
    })
}

fn is_address(word: &str) -> bool {
    let word = word.to_ascii_lowercase();
    word.contains("://") || word.contains("www.") || word.contains("mailto:")
}

fn can_precede(c: char) -> bool {
    "(,;:!?\"'*~{—–…“‘«、。，：；！？（".contains(c)
}

/// True if no name continues in `rest`.
fn is_end(rest: &str) -> bool {
    let mut chars = rest.chars();
    match chars.next() {
        None => true,
        Some('-' | '_' | '/' | '@' | '\\') | Some(REMOVED) => false,
        Some('.') => chars.find(|c| *c != '.').is_none_or(|c| !c.is_alphanumeric()),
        Some(c) => !c.is_alphanumeric() && !is_joined(c),
    }
}

/// True for characters that change the one before them, or are not seen.
fn is_joined(c: char) -> bool {
    matches!(c, '\u{300}'..='\u{36F}' | '\u{200B}'..='\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2060}'..='\u{206F}'
        | '\u{FE00}'..='\u{FE0F}' | '\u{FEFF}' | '\u{E0000}'..='\u{E01EF}')
}

/// An open code fence: its character, its length, and true if it was indented.
struct Fence(char, usize, bool);

/// The paragraphs of a text, without code blocks and block quotes.
fn without_blocks(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let (mut fence, mut is_quote, mut is_code, mut after_blank) = (None, false, false, true);
    for line in text.lines() {
        let body = line.trim_start();
        let indent = indent_of(line);
        if let Some(open) = &fence {
            if closes(open, body, indent) {
                fence = None;
            }
            after_blank = false;
            continue;
        }
        if body.is_empty() {
            (is_quote, after_blank) = (false, true);
            kept.push('\n');
            continue;
        }
        is_code = indent >= INDENT && (is_code || after_blank);
        after_blank = false;
        if is_code {
            continue;
        }
        let content = without_markers(body);
        if let Some((mark, length)) = opens(content) {
            fence = Some(Fence(mark, length, indent > 0 || content.len() != body.len()));
            continue;
        }
        // A paragraph continues in the lines below the mark of a quote.
        is_quote = is_quote || content.starts_with('>');
        if !is_quote {
            kept.push_str(content);
        }
        kept.push('\n');
    }
    kept
}

fn indent_of(line: &str) -> usize {
    line.chars().take_while(|c| c.is_whitespace()).map(|c| if c == '\t' { INDENT } else { 1 }).sum()
}

/// A line without the markers of lists.
fn without_markers(line: &str) -> &str {
    let mut rest = line;
    loop {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let after = match digits {
            0 => rest.strip_prefix(['-', '*', '+']),
            1..=9 => rest[digits..].strip_prefix(['.', ')']),
            _ => None,
        };
        match after.filter(|after| after.starts_with([' ', '\t'])) {
            Some(after) => rest = after.trim_start(),
            None => return rest,
        }
    }
}

/// The character and the length of the fence that a line opens.
fn opens(line: &str) -> Option<(char, usize)> {
    let mark = line.chars().next().filter(|c| ['`', '~'].contains(c))?;
    let length = line.chars().take_while(|c| *c == mark).count();
    let is_fence = length >= FENCE && (mark == '~' || !line[length..].contains('`'));
    is_fence.then_some((mark, length))
}

fn closes(&Fence(mark, length, is_indented): &Fence, body: &str, indent: usize) -> bool {
    let body = body.trim_end();
    let is_run = body.chars().all(|c| c == mark) && body.len() >= length;
    is_run && (is_indented || indent < INDENT)
}

/// A text without code spans, links, HTML and escaped characters.
fn without_spans(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(['`', '[', '<', '\\']) {
        kept.push_str(&rest[..at]);
        rest = &rest[at..];
        let removed = match rest.as_bytes()[0] {
            b'`' => code_span(rest),
            b'[' => link(rest),
            b'<' => element(rest),
            _ => rest.chars().nth(1).map(|c| 1 + c.len_utf8()),
        };
        match removed {
            Some(length) => {
                kept.push(REMOVED);
                rest = &rest[length..];
            }
            None => {
                // A bracket without a link, or a sign by itself.
                let run = rest.len() - rest.trim_start_matches('`').len();
                let length = run.max(1);
                kept.push_str(&rest[..length]);
                rest = &rest[length..];
            }
        }
    }
    kept.push_str(rest);
    kept
}

/// The length of a code span at the begin of a text.
fn code_span(text: &str) -> Option<usize> {
    let length = text.len() - text.trim_start_matches('`').len();
    let mut at = length;
    while let Some(next) = text[at..].find('`') {
        let begin = at + next;
        let run = text[begin..].len() - text[begin..].trim_start_matches('`').len();
        if run == length {
            return Some(begin + run);
        }
        at = begin + run;
    }
    None
}

/// The length of a link `[text](address)` or `[text][name]`, or of the definition of a name, at the begin of a text.
fn link(text: &str) -> Option<usize> {
    let near = text::cut_bytes(text, MAX_SPAN_BYTES);
    let mut depth = 0_usize;
    let close = near.char_indices().find_map(|(at, c)| {
        match c {
            '[' => depth += 1,
            ']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        (c == ']' && depth == 0).then_some(at)
    })?;
    let after = &near[close + 1..];
    let length = match after.chars().next()? {
        '(' => after.find(')')? + 1,
        '[' => after.find(']')? + 1,
        ':' => after.find('\n').unwrap_or(after.len()),
        _ => return None,
    };
    Some(close + 1 + length)
}

/// The length of an HTML comment, a tag, an element whose content is no text, or an address in angle brackets, at the begin of
/// a text.
fn element(text: &str) -> Option<usize> {
    if text.starts_with("<!--") {
        return Some(text.find("-->").map_or(text.len(), |end| end + 3));
    }
    let first = text[1..].chars().next()?;
    if !first.is_ascii_alphabetic() && !['/', '!', '?'].contains(&first) {
        return None;
    }
    let end = text::cut_bytes(text, MAX_SPAN_BYTES).find('>')? + 1;
    let name: String = text[1..].chars().take_while(char::is_ascii_alphanumeric).collect();
    let name = name.to_ascii_lowercase();
    if !OPAQUE.contains(&name.as_str()) || text[..end].ends_with("/>") {
        return Some(end);
    }
    let is_close = |at: usize| text[at + 2..].get(..name.len()).is_some_and(|it| it.eq_ignore_ascii_case(&name));
    let close = text.match_indices("</").map(|(at, _)| at).find(|at| is_close(*at));
    let end_of = |close: usize| text[close..].find('>').map_or(text.len(), |end| close + end + 1);
    Some(close.map_or(text.len(), end_of))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn mention_is_a_word_of_the_own_text() {
        for text in [
            "@lumi-test",
            "@Lumi-Test please fix this",
            "please (@lumi-test) fix",
            "fix this, @lumi-test!",
            "@lumi-test[bot] go",
            "**@lumi-test**",
            "> quoted\n\nand now @lumi-test",
            "```\ncode\n```\n@lumi-test",
            "- a list\n- @lumi-test",
            "a [link](https://example.com) and @lumi-test",
            "done. @lumi-test.",
            "hey @lumi-test...",
            "a `span` and @lumi-test",
            "one ` backtick and @lumi-test",
            "1 < 2 @lumi-test",
            "line\n    @lumi-test continues the paragraph",
        ] {
            assert!(mentions(text, "lumi-test"), "{text:?}");
        }
    }

    #[test]
    fn code_quotes_links_and_addresses_are_no_mention() {
        for text in [
            "",
            "lumi-test",
            "@lumi-tester",
            "@lumi-test-2",
            "@lumi_test",
            "@lumi-test/team",
            "ada@lumi-test",
            "ada@lumi-test.example.com",
            "@lumi-test.example.com",
            "@lumi-test@example.com",
            "https://example.com/@lumi-test",
            "https://example.com/?a,@lumi-test",
            "mailto:@lumi-test",
            "`@lumi-test`",
            "`` a ` @lumi-test ``",
            "```\n@lumi-test\n```",
            "```\ncode\n\n@lumi-test\n```",
            "~~~ sh\n@lumi-test",
            "- ```\n  @lumi-test\n  ```",
            "    @lumi-test",
            "\t@lumi-test",
            "> @lumi-test",
            "> quoted\n@lumi-test is still quoted",
            "- > @lumi-test",
            "[@lumi-test](https://example.com)",
            "[x](https://example.com/@lumi-test)",
            "<https://example.com/@lumi-test>",
            "<a href=\"x\">@lumi-test</a>",
            "<pre>\n@lumi-test\n</pre>",
            "<!-- @lumi-test -->",
            "<!-- @lumi-test",
            "\\@lumi-test",
            "@lumi\u{200b}-test",
            "@lumi-test\u{301}",
            "@lumі-test", // a Cyrillic letter
            "＠lumi-test",
            "@lumi-testé",
        ] {
            assert!(!mentions(text, "lumi-test"), "{text:?}");
        }
    }

    #[test]
    fn names_are_those_of_mentions_each_once() {
        let found = names("hello @Octocat, @lumi-test[bot] and (@octocat) @a", 10);
        assert_eq!(found, ["octocat", "lumi-test", "a"]);
        assert_eq!(names("@a @b @c", 2), ["a", "b"]);
        assert!(names("a@b.c `@octocat` @ @lumi\u{200b}-test @lumi_test @lumi-testé @lumі-test", 10).is_empty());
        assert!(names(&format!("@{}", "a".repeat(101)), 10).is_empty() && names("", 10).is_empty());
    }

    #[test]
    fn text_of_brackets_is_read_in_time_linear_in_its_length() {
        let time = |text: &str| {
            let began = std::time::Instant::now();
            assert!(!mentions(text, "lumi"));
            began.elapsed()
        };
        for part in ["[", "<a", "<a>", "<a></a>", "`", "[]", "\\", "> ", "@"] {
            let [small, large] = [4096, 65_536].map(|bytes| part.repeat(bytes / part.len()));
            // A quadratic one takes 256 times as long in every try; a linear one only if other processes take the time.
            let least = std::time::Duration::from_micros(200);
            let is_linear = || time(&large) < time(&small).max(least) * 64;
            assert!((0..10).any(|_| is_linear()), "{part}");
        }
    }

    proptest! {
        #[test]
        fn every_text_is_read(text in r"[@a`~<>/\[\]()!\\ \n\t-]{0,60}|\PC{0,60}") {
            let names = names(&text, 100);
            prop_assert!(names.iter().all(|name| mentions(&text, name)), "{names:?}");
            let marked = format!("{text}\n\n```\n@lumi\n```\n");
            prop_assert!(!mentions(&marked, "lumi") || text.contains(['`', '~']));
        }
    }
}
