//! Requests of the demo agent with the odd ids of real agents.

use std::io;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Agent, lines::Read, script::Command, turn::Turn};

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
