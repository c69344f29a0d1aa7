//! Messages of the demo agent in the odd forms of real agents: raw text with placeholders.

use std::io;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Agent, lines::Read, script::Command, turn::Turn};

/// Fills in a template: `$ID` is the id of the request, `$ESC`, `$BEL`, `$NUL` and `$BOM` are characters, and `$DEEP` is
/// an array that contains 200 others, one in the other.
pub(super) fn filled(template: &str, id: &str) -> String {
    let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
    let characters = [("$ESC", "\u{1b}"), ("$BEL", "\u{7}"), ("$NUL", "\0"), ("$BOM", "\u{feff}"), ("$DEEP", &deep)];
    characters.iter().fold(template.replace("$ID", id), |text, (name, value)| text.replace(name, value))
}

impl Agent {
    /// Sends a request whose id is the given JSON, and says the id of the answer as it was received.
    pub(super) fn ask_as(&mut self, command: &Command, turn: &mut Turn) -> io::Result<()> {
        #[derive(Deserialize)]
        struct Message<'a> {
            #[serde(borrow)]
            id: &'a RawValue,
            method: Option<String>,
        }
        let (method, id) = command.name_and_text();
        self.lines.write_raw(&format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"{method}","params":{{}}}}"#))?;
        loop {
            match self.lines.read(None)? {
                Read::Text(line) => match serde_json::from_str::<Message<'_>>(&line) {
                    Ok(Message { id, method: None }) => return self.say(turn, id.get()),
                    _ => self.meanwhile(turn, &line)?,
                },
                Read::Silence => {}
                Read::End => std::process::exit(0),
            }
        }
    }
}
