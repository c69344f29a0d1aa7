//! Filters text of agents for the terminal.

/// Removes characters that a terminal would act on: control characters, and marks that reorder or hide text. Keeps line
/// ends and tabs.
pub(crate) fn clean(text: &str) -> String {
    text.chars().filter(|character| matches!(character, '\n' | '\t') || !is_active(*character)).collect()
}

/// Like [`clean`], on one line: line ends and tabs become spaces.
pub(crate) fn clean_line(text: &str) -> String {
    let spaced = text.chars().map(|character| if character.is_whitespace() { ' ' } else { character });
    spaced.filter(|character| !is_active(*character)).collect()
}

/// Escapes characters in JSON that a terminal would act on; they occur only inside strings.
pub(crate) fn escape_json(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for character in json.chars() {
        if is_active(character) {
            let mut units = [0; 2];
            for unit in character.encode_utf16(&mut units) {
                out.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            out.push(character);
        }
    }
    out
}

fn is_active(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_and_reordering_marks_are_removed() {
        assert_eq!(clean("a\u{1b}]0;title\u{7}b\r\n\tc\u{9b}2J\u{202e}d\u{7f}é"), "a]0;titleb\n\tc2Jdé");
        assert_eq!(clean_line("a\n\u{1b}[31mb\tc"), "a [31mb c");
    }

    #[test]
    fn escaped_json_has_the_same_value() {
        let value = serde_json::json!({"a": "x\u{9b}31m\u{7f}\u{202e}\u{e0041}é\n"});
        let json = escape_json(&value.to_string());
        assert!(!json.chars().any(is_active));
        assert_eq!(serde_json::from_str::<serde_json::Value>(&json).unwrap(), value);
    }
}
