//! Cutting text without breaking it.

/// What stands at the end of a cut text.
pub const CUT_MARK: &str = "…";

/// At most `max_chars` characters, the mark included where something was cut.
pub fn cut(text: &str, max_chars: usize) -> String {
    let mut ends = text.char_indices().map(|(at, _)| at);
    match ends.nth(max_chars) {
        None => text.to_owned(),
        Some(_) => {
            let keep = text.char_indices().nth(max_chars.saturating_sub(1)).map_or(0, |(at, _)| at);
            format!("{}{CUT_MARK}", &text[..keep])
        }
    }
}

/// One line for people: control characters and line ends become blanks, and it is [`cut`].
pub fn plain(text: &str, max_chars: usize) -> String {
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    cut(line.trim(), max_chars)
}

/// At most `max_bytes` bytes, never inside a character; no mark.
pub fn cut_bytes(text: &str, max_bytes: usize) -> &str {
    &text[..text.floor_char_boundary(max_bytes)]
}

/// At most the last `max_bytes` bytes, never inside a character; no mark.
pub fn tail_bytes(text: &str, max_bytes: usize) -> &str {
    &text[text.ceil_char_boundary(text.len().saturating_sub(max_bytes))..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_counts_characters_and_says_so() {
        assert_eq!(cut("añb", 3), "añb");
        assert_eq!(cut("añbc", 3), "añ…");
        assert_eq!(cut("", 0), "");
        assert_eq!(cut_bytes("añ", 2), "a");
        assert_eq!(tail_bytes("ñb", 2), "b");
    }
}
