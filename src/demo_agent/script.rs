//! Parses the text of a prompt into commands.

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Command {
    pub word: String,
    /// The text after the first word, without surrounding whitespace.
    pub rest: String,
}

/// Splits a script at ` ; ` into its commands.
pub(super) fn commands(script: &str) -> Vec<Command> {
    script
        .split(" ; ")
        .map(|command| {
            let command = command.trim();
            let (word, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
            Command { word: word.to_owned(), rest: rest.trim().to_owned() }
        })
        .collect()
}

impl Command {
    /// Returns the argument at `place`, counted from 0, as a number; `otherwise` if it is missing or not a number.
    pub(crate) fn number(&self, place: usize, otherwise: u64) -> u64 {
        self.rest.split_whitespace().nth(place).and_then(|word| word.parse().ok()).unwrap_or(otherwise)
    }

    /// Splits the arguments into the first word and the text after it.
    pub(crate) fn name_and_text(&self) -> (&str, &str) {
        self.rest.split_once(char::is_whitespace).unwrap_or((&self.rest, ""))
    }

    /// Returns the command as text.
    pub(crate) fn whole(&self) -> String {
        format!("{} {}", self.word, self.rest).trim().to_owned()
    }
}

/// Splits a text into at most three chunks.
pub(super) fn chunks(text: &str) -> Vec<&str> {
    let third = text.len().div_ceil(3).max(1);
    let mut rest = text;
    let mut chunks = Vec::new();
    while !rest.is_empty() {
        let (chunk, more) = rest.split_at(rest.ceil_char_boundary(third.min(rest.len())));
        chunks.push(chunk);
        rest = more;
    }
    chunks
}

/// Fills in a template: `$ID` is the id of the request, `$ESC`, `$BEL`, `$NUL` and `$BOM` are characters, and `$DEEP` is
/// an array that contains 200 others, one in the other.
pub(super) fn filled(template: &str, id: &str) -> String {
    let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
    let characters = [("$ESC", "\u{1b}"), ("$BEL", "\u{7}"), ("$NUL", "\0"), ("$BOM", "\u{feff}"), ("$DEEP", &deep)];
    characters.iter().fold(template.replace("$ID", id), |text, (name, value)| text.replace(name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn script_is_split_into_commands_and_chunks_rebuild_the_text() {
        let script = commands("write a.txt hello  world ; sleep 2 ; crash");
        assert_eq!(script[0].name_and_text(), ("a.txt", "hello  world"));
        assert_eq!(script[1].number(0, 9), 2);
        assert_eq!(script[2], Command { word: "crash".into(), rest: String::new() });
        for text in ["", "a", "ä", "hello wörld", "äöü"] {
            assert_eq!(chunks(text).concat(), text);
            assert!(chunks(text).len() <= 3);
        }
    }
}
