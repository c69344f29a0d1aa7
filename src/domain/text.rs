//! Cuts text without breaking characters, and makes untrusted text safe to show.

use unicode_segmentation::UnicodeSegmentation;

/// The end of a text that was cut.
pub(crate) const CUT_MARK: &str = "…";

/// Cuts to at most `max_chars` characters (Unicode scalar values), the mark included.
pub(crate) fn cut(text: &str, max_chars: usize) -> String {
    let mut ends = text.char_indices().map(|(at, _)| at);
    match ends.nth(max_chars) {
        None => text.to_owned(),
        Some(_) => {
            let keep = text.char_indices().nth(max_chars.saturating_sub(1)).map_or(0, |(at, _)| at);
            format!("{}{CUT_MARK}", &text[..keep])
        }
    }
}

/// Applies [`one_line`] and cuts to at most `max_chars` characters (Unicode scalar values), the mark included. The cut is
/// between grapheme clusters: an emoji of several characters, or a letter with its accents, is kept or dropped whole.
pub(crate) fn plain(text: &str, max_chars: usize) -> String {
    let line = one_line(text);
    if line.len() <= max_chars || line.chars().nth(max_chars).is_none() {
        return line;
    }
    let Some(mut room) = max_chars.checked_sub(1) else { return String::new() };
    let mut end = 0;
    for cluster in line.graphemes(true) {
        let Some(left) = room.checked_sub(cluster.chars().count()) else { break };
        (room, end) = (left, end + cluster.len());
    }
    format!("{}{CUT_MARK}", line[..end].trim_end())
}

/// Makes one line without hidden characters and markup from an untrusted text:
/// - control characters and line breaks become spaces;
/// - invisible characters are dropped, since they can hide or reorder text: direction marks, zero-width characters, tags,
///   fillers. A joiner between two characters that it joins is kept, and so are the variation selectors of emoji.
/// - `<` and `>` become ‹ and ›, backticks are dropped, and `](`, `][` and `]:` get a space in between: no tag, no code,
///   no link. Stars and underscores are kept; the worst that they can cause is a bold word.
///
/// Idempotent.
pub(crate) fn one_line(text: &str) -> String {
    // Most texts are like this, and finding grapheme clusters is slow.
    let is_kept = |byte: u8| matches!(byte, b' '..=b'~') && !matches!(byte, b'`' | b'<' | b'>' | b']');
    if text.bytes().all(is_kept) { text.trim().to_owned() } else { line_of_clusters(text) }
}

fn line_of_clusters(text: &str) -> String {
    let mut seen = String::with_capacity(text.len());
    each_seen(text, |c| match c {
        c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') => seen.push(' '),
        '`' => {}
        '<' => seen.push('‹'),
        '>' => seen.push('›'),
        '(' | '[' | ':' if seen.ends_with(']') => seen.extend([' ', c]),
        c => seen.push(c),
    });
    seen.trim().to_owned()
}

/// Drops invisible characters as [`one_line`] does, and control characters except tabs, from a text of several lines. Every
/// kind of line break becomes `\n`. Markup is kept. Idempotent.
pub(crate) fn visible(text: &str) -> String {
    let mut seen = String::with_capacity(text.len());
    each_seen(&text.replace("\r\n", "\n"), |c| match c {
        '\n' | '\r' | '\u{85}' | '\u{2028}' | '\u{2029}' => seen.push('\n'),
        c if c.is_control() && c != '\t' => {}
        c => seen.push(c),
    });
    seen
}

/// Visits all characters except invisible ones that join nothing.
fn each_seen(text: &str, mut visit: impl FnMut(char)) {
    for cluster in text.graphemes(true) {
        let mut rest = cluster.chars().peekable();
        let mut before = None;
        while let Some(c) = rest.next() {
            if !is_unseen(c) || c == JOINER && joins(before, rest.peek().copied()) {
                visit(c);
            }
            before = Some(c);
        }
    }
}

/// Zero width joiner.
const JOINER: char = '\u{200D}';

/// True if a joiner has visible characters on both sides. ASCII is never joined.
fn joins(before: Option<char>, after: Option<char>) -> bool {
    let is_joined = |c: Option<char>| c.is_some_and(|c| !c.is_ascii() && !c.is_control() && !is_unseen(c));
    is_joined(before) && is_joined(after)
}

/// True for invisible characters: Unicode's `Default_Ignorable_Code_Point` and interlinear annotation marks, without the
/// two variation selectors that choose an emoji's presentation.
pub(crate) fn is_unseen(c: char) -> bool {
    matches!(c,
        '\u{AD}' | '\u{34F}' | '\u{61C}' | '\u{115F}'..='\u{1160}' | '\u{17B4}'..='\u{17B5}'
        | '\u{180B}'..='\u{180F}' | '\u{200B}'..='\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2060}'..='\u{206F}'
        | '\u{3164}' | '\u{FE00}'..='\u{FE0D}' | '\u{FEFF}' | '\u{FFA0}' | '\u{FFF0}'..='\u{FFFB}'
        | '\u{1BCA0}'..='\u{1BCA3}' | '\u{1D173}'..='\u{1D17A}' | '\u{E0000}'..='\u{E0FFF}')
}

/// Cuts to at most `max_bytes` bytes, at a character boundary, without a mark.
pub(crate) fn cut_bytes(text: &str, max_bytes: usize) -> &str {
    &text[..text.floor_char_boundary(max_bytes)]
}

/// The longest line that [`last_line`] returns, in bytes. Tokens have some hundreds of bytes, and few lines are longer.
pub(crate) const MAX_LINE_BYTES: usize = 4096;

/// The line that a cut at the end of `text` interrupts, or the word if the line is longer than [`MAX_LINE_BYTES`]; empty
/// if that is longer too. A text that is cut ahead of it holds no half of a secret.
pub(crate) fn last_line(text: &str) -> &str {
    let tail = tail_bytes(text, MAX_LINE_BYTES);
    tail.rfind('\n').or_else(|| tail.rfind(' ')).map_or("", |end| &tail[end + 1..])
}

/// The length of the part of `more` that completes the last line of `text`; of its last word, if the line is longer than
/// [`MAX_LINE_BYTES`]. `None` if neither ends in `more`.
pub(crate) fn line_end(text: &str, more: &str) -> Option<usize> {
    let is_short = text.len() < MAX_LINE_BYTES || tail_bytes(text, MAX_LINE_BYTES).contains('\n');
    let end = more.find('\n');
    let end = if is_short { end } else { end.or_else(|| more.find(' ')) };
    end.map(|end| end + 1)
}

/// Keeps at most the last `max_bytes` bytes, from a character boundary, without a mark.
pub(crate) fn tail_bytes(text: &str, max_bytes: usize) -> &str {
    &text[text.ceil_char_boundary(text.len().saturating_sub(max_bytes))..]
}

/// Cuts to at most `max_bytes` bytes, at character boundaries: keeps head and tail, with a mark between them that has the
/// number of bytes left out. Below the length of the mark, only the tail stays.
pub(crate) fn middle_cut(text: &str, max_bytes: usize) -> String {
    if text.len() <= max_bytes {
        return text.to_owned();
    }
    // The mark is longest if everything is left out.
    let mark = |bytes: usize| format!("\n{CUT_MARK} {bytes} bytes left out {CUT_MARK}\n");
    let Some(room) = max_bytes.checked_sub(mark(text.len()).len()) else {
        return tail_bytes(text, max_bytes).to_owned();
    };
    let (head, tail) = (cut_bytes(text, room.div_ceil(2)), tail_bytes(text, room / 2));
    format!("{head}{}{tail}", mark(text.len() - head.len() - tail.len()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn middle_cut_keeps_head_and_tail_within_its_bound() {
        assert_eq!(middle_cut("short", 5), "short");
        let cut = middle_cut(&format!("head{}tail", "é".repeat(500)), 100);
        assert!(cut.len() <= 100 && cut.starts_with("head") && cut.ends_with("tail"), "{cut}");
        assert!(cut.contains("bytes left out"), "{cut}");
        assert_eq!(middle_cut("0123456789", 4), "6789");
    }

    #[test]
    fn cut_counts_characters_and_appends_the_mark() {
        assert_eq!(cut("añb", 3), "añb");
        assert_eq!(cut("añbc", 3), "añ…");
        assert_eq!(cut("", 0), "");
        assert_eq!(cut_bytes("añ", 2), "a");
        assert_eq!(tail_bytes("ñb", 2), "b");
    }

    const FAMILY: &str = "👨\u{200D}👩\u{200D}👧\u{200D}👦";

    #[test]
    fn plain_text_is_cut_between_grapheme_clusters() {
        assert_eq!(plain(&format!("{FAMILY}!"), 8), format!("{FAMILY}!"));
        assert_eq!(plain(&format!("ab{FAMILY}!"), 9), "ab…", "a family emoji is not split");
        assert_eq!(plain("e\u{301}e\u{301}e\u{301}", 4), "e\u{301}…");
        assert_eq!(plain("🇩🇪🇫🇷🇪🇸", 4), "🇩🇪…");
        assert_eq!(plain("a b c", 3), "a…", "no space before the mark");
        assert_eq!((plain("ab", 1), plain("ab", 0), plain("", 0)), ("…".into(), String::new(), String::new()));
        assert_eq!(
            plain(&format!("a{}", "\u{301}".repeat(500)), 20),
            "…",
            "a letter with 500 accents is one cluster"
        );
    }

    #[test]
    fn invisible_characters_are_dropped_and_effective_joiners_kept() {
        assert_eq!(one_line("a\nb\tc\u{0}d\u{85}e\u{2028}f\u{1b}[31m"), "a b c d e f [31m");
        for hidden in
            "\u{202A}\u{202E}\u{2066}\u{2069}\u{200B}\u{200E}\u{FEFF}\u{AD}\u{2060}\u{E0041}\u{3164}".chars()
        {
            assert_eq!(one_line(&format!("pay{hidden}load")), "payload", "{hidden:?}");
        }
        for kept in [FAMILY, "👩🏽\u{200D}🚒", "❤\u{FE0F}\u{200D}🔥", "क\u{94D}\u{200D}ष", "naïve", "日本語", "שלום"]
        {
            assert_eq!(one_line(kept), kept);
        }
        assert_eq!(
            one_line("a\u{200D}b👨\u{200D} 👨\u{200D}\u{200D}👩"),
            "ab👨 👨👩",
            "joiners without a visible neighbour"
        );
    }

    #[test]
    fn visible_text_keeps_its_lines_and_markup() {
        assert_eq!(visible("# a\r\n\tb\rc\u{2028}d\u{85}e"), "# a\n\tb\nc\nd\ne");
        assert_eq!(visible(&format!("p\u{200B}ay\u{202E}load\u{1b}[31m {FAMILY}")), format!("payload[31m {FAMILY}"));
    }

    #[test]
    fn markup_is_neutralised() {
        for (text, shown) in [
            ("<img src=x onerror=y>", "‹img src=x onerror=y›"),
            ("[free](https://evil.example)", "[free] (https://evil.example)"),
            ("![x][y] and [y]: https://evil.example", "![x] [y] and [y] : https://evil.example"),
            ("[a]`(b)", "[a] (b)"),
            ("[a]\u{200B}(b)", "[a] (b)"),
            ("`rm -rf` and *bold*", "rm -rf and *bold*"),
        ] {
            assert_eq!(one_line(text), shown);
        }
    }

    fn texts() -> impl Strategy<Value = String> {
        let parts = prop_oneof![
            4 => any::<char>().prop_map(String::from),
            3 => "[a-z<>`\\[\\](): \n]{1,4}",
            2 => prop::sample::select(vec![FAMILY, "e\u{301}", "\u{200D}", "\u{202E}", "🇩🇪", "\u{FE0F}", "\u{1F3FD}"])
                .prop_map(String::from),
        ];
        prop::collection::vec(parts, 0..40).prop_map(|parts| parts.concat())
    }

    proptest! {
        #[test]
        fn ascii_is_cleaned_in_the_same_way_with_and_without_clusters(text in "[ -~]{0,40}", more in "[a-z \r\n\t`<\\](]{0,8}") {
            for text in [text.clone(), format!("{text}{more}"), format!("{more}{text}")] {
                prop_assert_eq!(one_line(&text), line_of_clusters(&text));
            }
        }

        #[test]
        fn plain_text_stays_within_its_bound_and_keeps_clusters_whole(text in texts(), max in 0usize..60) {
            let (line, shown) = (one_line(&text), plain(&text, max));
            prop_assert!(shown.chars().count() <= max);
            prop_assert_eq!(&plain(&shown, max), &shown, "idempotent");
            prop_assert_eq!(&one_line(&line), &line, "idempotent");
            prop_assert_eq!(&visible(&visible(&text)), &visible(&text), "idempotent");
            let kept = shown.strip_suffix(CUT_MARK).unwrap_or(&shown);
            prop_assert!(line.starts_with(kept));
            let mut ends = line.grapheme_indices(true).map(|(at, cluster)| at + cluster.len());
            prop_assert!(kept.is_empty() || ends.any(|end| end == kept.len()), "{:?} of {:?}", kept, line);
            let bad = |c: char| c.is_control() || is_unseen(c) && c != JOINER || "<>`".contains(c);
            prop_assert!(!line.contains(bad) && !["](", "][", "]:"].iter().any(|mark| line.contains(mark)));
        }
    }
}
