//! Cutting text without breaking it, and making it fit to be shown.

use unicode_segmentation::UnicodeSegmentation;

/// What stands at the end of a cut text.
pub(crate) const CUT_MARK: &str = "…";

/// At most `max_chars` characters, the mark included where something was cut.
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

/// [`one_line`], and at most `max_chars` characters (Unicode scalar values, the mark included), cut only between what
/// people take for characters: an emoji of several, or a letter and its accents, stays whole or is skipped.
pub(crate) fn plain(text: &str, max_chars: usize) -> String {
    let line = one_line(text);
    if line.chars().nth(max_chars).is_none() {
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

/// One line for people, from a text that may come from outside. It shows all that is in it, and nothing in it is
/// markup:
/// - control characters and line ends become blanks;
/// - what is not seen is dropped, since it can hide text or turn it round: marks of direction, characters without width,
///   tags, fillers. A joiner stays inside what it joins to one character, and so does the choice of an emoji's form.
/// - `<` and `>` become ‹ and ›, backticks are dropped, and `](`, `][` and `]:` get a blank in between: no tag, no code,
///   no link. Stars and underscores stay; what they can do is a bold word.
///
/// Done twice it changes nothing more.
pub(crate) fn one_line(text: &str) -> String {
    let mut seen = String::with_capacity(text.len());
    for cluster in text.graphemes(true) {
        let mut rest = cluster.chars().peekable();
        let mut before = None;
        while let Some(c) = rest.next() {
            let joins = c == JOINER && joins(before, rest.peek().copied());
            match c {
                c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') => seen.push(' '),
                '`' => {}
                c if is_unseen(c) && !joins => {}
                '<' => seen.push('‹'),
                '>' => seen.push('›'),
                '(' | '[' | ':' if seen.ends_with(']') => seen.extend([' ', c]),
                c => seen.push(c),
            }
            before = Some(c);
        }
    }
    seen.trim().to_owned()
}

/// Zero width joiner.
const JOINER: char = '\u{200D}';

/// Whether a joiner has something to join: what stands on its two sides is seen and no ASCII, which is never joined.
fn joins(before: Option<char>, after: Option<char>) -> bool {
    let is_joined = |c: Option<char>| c.is_some_and(|c| !c.is_ascii() && !c.is_control() && !is_unseen(c));
    is_joined(before) && is_joined(after)
}

/// What has no shape of its own (Unicode's `Default_Ignorable_Code_Point`, and marks of annotations), but for the two
/// that choose between an emoji's forms.
fn is_unseen(c: char) -> bool {
    matches!(c,
        '\u{AD}' | '\u{34F}' | '\u{61C}' | '\u{115F}'..='\u{1160}' | '\u{17B4}'..='\u{17B5}'
        | '\u{180B}'..='\u{180F}' | '\u{200B}'..='\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2060}'..='\u{206F}'
        | '\u{3164}' | '\u{FE00}'..='\u{FE0D}' | '\u{FEFF}' | '\u{FFA0}' | '\u{FFF0}'..='\u{FFFB}'
        | '\u{1BCA0}'..='\u{1BCA3}' | '\u{1D173}'..='\u{1D17A}' | '\u{E0000}'..='\u{E0FFF}')
}

/// At most `max_bytes` bytes, never inside a character; no mark.
pub(crate) fn cut_bytes(text: &str, max_bytes: usize) -> &str {
    &text[..text.floor_char_boundary(max_bytes)]
}

/// At most the last `max_bytes` bytes, never inside a character; no mark.
pub(crate) fn tail_bytes(text: &str, max_bytes: usize) -> &str {
    &text[text.ceil_char_boundary(text.len().saturating_sub(max_bytes))..]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_cut_counts_characters_and_says_so() {
        assert_eq!(cut("añb", 3), "añb");
        assert_eq!(cut("añbc", 3), "añ…");
        assert_eq!(cut("", 0), "");
        assert_eq!(cut_bytes("añ", 2), "a");
        assert_eq!(tail_bytes("ñb", 2), "b");
    }

    const FAMILY: &str = "👨\u{200D}👩\u{200D}👧\u{200D}👦";

    #[test]
    fn a_plain_text_is_cut_between_what_people_take_for_characters() {
        assert_eq!(plain(&format!("{FAMILY}!"), 8), format!("{FAMILY}!"));
        assert_eq!(plain(&format!("ab{FAMILY}!"), 9), "ab…", "a family is not torn apart");
        assert_eq!(plain("e\u{301}e\u{301}e\u{301}", 4), "e\u{301}…");
        assert_eq!(plain("🇩🇪🇫🇷🇪🇸", 4), "🇩🇪…");
        assert_eq!(plain("a b c", 3), "a…", "no blank before the mark");
        assert_eq!((plain("ab", 1), plain("ab", 0), plain("", 0)), ("…".into(), String::new(), String::new()));
        assert_eq!(plain(&format!("a{}", "\u{301}".repeat(500)), 20), "…", "a tower of accents is one character");
    }

    #[test]
    fn unseen_members_leave_and_joined_ones_stay() {
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
        assert_eq!(one_line("a\u{200D}b👨\u{200D} 👨\u{200D}\u{200D}👩"), "ab👨 👨👩", "nothing is joined there");
    }

    #[test]
    fn no_markup_is_left() {
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
        fn a_plain_text_keeps_its_bound_and_its_clusters(text in texts(), max in 0usize..60) {
            let (line, shown) = (one_line(&text), plain(&text, max));
            prop_assert!(shown.chars().count() <= max);
            prop_assert_eq!(&plain(&shown, max), &shown, "twice is once");
            prop_assert_eq!(&one_line(&line), &line, "twice is once");
            let kept = shown.strip_suffix(CUT_MARK).unwrap_or(&shown);
            prop_assert!(line.starts_with(kept));
            let mut ends = line.grapheme_indices(true).map(|(at, cluster)| at + cluster.len());
            prop_assert!(kept.is_empty() || ends.any(|end| end == kept.len()), "{:?} of {:?}", kept, line);
            let bad = |c: char| c.is_control() || is_unseen(c) && c != JOINER || "<>`".contains(c);
            prop_assert!(!line.contains(bad) && !["](", "][", "]:"].iter().any(|mark| line.contains(mark)));
        }
    }
}
