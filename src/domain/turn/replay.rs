//! Recognises history that an agent replays after its answer to `session/load`, so that it never becomes part of a
//! turn.
//!
//! A replay is recognised by its content, not by time: it begins with a stored prompt that is not the running one, and
//! ends with the first output that does not continue the stored conversation. Older turns are recognised by their place:
//! until the newest turn that the agent completed has been replayed, everything is history.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{prompt::CONTEXT_HEADING, update::UpdateView};
use crate::domain::{redaction::Redacted, text};

/// The end of a user's message that is compared with stored prompts, in bytes; longer prompts are not recognised, and
/// their turns count as older than the stored part.
const MAX_ASKED_BYTES: usize = 256 * 1024;

/// A turn that the agent may replay, from the stored transcript.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PastTurn {
    /// The text of the prompt.
    pub asked: String,
    /// The text of all messages of the agent.
    pub answered: String,
    /// The text of all thoughts of the agent.
    pub thought: String,
    /// The ids of the tool calls.
    pub tool_calls: Vec<String>,
    /// True if the agent's own conversation completed the turn; then a replay contains it.
    pub is_known: bool,
}

/// The replay that may follow a load, from the start of the connection to the end of its first turn.
#[derive(Debug)]
pub(crate) struct Replay {
    /// The first turn of the session and the newest ones, oldest first.
    turns: Vec<PastTurn>,
    /// Index of the newest turn that a replay is certain to contain.
    newest_known: Option<usize>,
    /// Index of the turn that is being replayed; `None` before the first that was recognised.
    place: Option<usize>,
    /// The text of the user's message that is being replayed; empty after anything else.
    asked: String,
    /// Bytes of `answered` and of `thought` of the turn in `place` that were replayed.
    replayed: (usize, usize),
    /// True between the first message of the replay and the first output that is not part of it.
    is_open: bool,
}

impl Replay {
    pub(crate) fn new(turns: Vec<PastTurn>) -> Self {
        let newest_known = turns.iter().rposition(|turn| turn.is_known);
        Self { turns, newest_known, place: None, asked: String::new(), replayed: (0, 0), is_open: false }
    }

    /// True if the update is part of the replay. `is_echo` is true for a message of the user that repeats the running
    /// prompt.
    pub(crate) fn contains(&mut self, view: &UpdateView, update: &RawValue, is_echo: bool) -> bool {
        if view.kind == "user_message_chunk" {
            return self.contains_prompt(view.text.as_deref().unwrap_or_default(), is_echo);
        }
        self.asked.clear();
        if !self.is_open {
            return false;
        }
        let is_over = self.place >= self.newest_known;
        let continues = match view.kind.as_str() {
            "agent_message_chunk" => self.continues(view.text.as_deref(), |turn| &turn.answered, |it| &mut it.0),
            "agent_thought_chunk" => self.continues(view.text.as_deref(), |turn| &turn.thought, |it| &mut it.1),
            "tool_call" | "tool_call_update" => {
                let id = tool_call_id(update.get()).unwrap_or_default();
                self.turns.iter().any(|turn| turn.tool_calls.contains(&id))
            }
            // Anything else has no identity: it belongs to what precedes it.
            _ => self.turn().is_none_or(|turn| self.replayed.0 < turn.answered.len()),
        };
        self.is_open = continues || !is_over;
        self.is_open
    }

    fn contains_prompt(&mut self, text: &str, is_echo: bool) -> bool {
        self.asked.push_str(text);
        self.asked.drain(..self.asked.len() - text::tail_bytes(&self.asked, MAX_ASKED_BYTES).len());
        let asked = Redacted::new(self.asked.trim());
        let next = self.place.map_or(0, |place| place + 1);
        // A context block may precede the prompt in the same message.
        let is_asked = |turn: &PastTurn| !turn.asked.is_empty() && asked.as_str().ends_with(turn.asked.trim());
        let found = self.turns.iter().skip(next).position(is_asked);
        let begins = |turn: &PastTurn| !asked.as_str().is_empty() && turn.asked.trim().starts_with(asked.as_str());
        let is_stored = found.is_some()
            || self.turns.iter().skip(next).any(begins)
            || asked.as_str().starts_with(CONTEXT_HEADING);
        let is_over = self.place >= self.newest_known;
        // Some agents change the prompt that they echo, so an unknown message neither begins a replay nor prolongs one
        // that is complete.
        let is_own = if self.is_open { !is_stored && (is_echo || is_over) } else { is_echo || !is_stored };
        if is_own {
            self.is_open = false;
            return false;
        }
        self.is_open = true;
        if let Some(place) = found {
            (self.place, self.replayed) = (Some(next + place), (0, 0));
        }
        true
    }

    fn turn(&self) -> Option<&PastTurn> {
        self.turns.get(self.place?)
    }

    /// True if a chunk continues the stored text of the turn in `place`; then it counts as replayed.
    fn continues(
        &mut self,
        chunk: Option<&str>,
        stored: impl Fn(&PastTurn) -> &String,
        replayed: impl Fn(&mut (usize, usize)) -> &mut usize,
    ) -> bool {
        let (Some(chunk), Some(turn)) = (chunk, self.place.and_then(|place| self.turns.get(place))) else {
            return false;
        };
        let chunk = Redacted::new(chunk);
        let replayed = replayed(&mut self.replayed);
        let rest = stored(turn).get(*replayed..).unwrap_or_default();
        let continues = rest.starts_with(chunk.as_str()) && !rest.is_empty();
        if continues {
            *replayed += chunk.as_str().len();
        }
        continues
    }
}

/// The `toolCallId` of an update, raw or stored; `None` if it has none.
pub(crate) fn tool_call_id(update: &str) -> Option<String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Call {
        tool_call_id: String,
    }
    serde_json::from_str::<Call>(update).ok().map(|call| call.tool_call_id)
}

#[cfg(test)]
mod tests {
    use super::{super::update::view_update, *};

    fn turn(asked: &str, answered: &str, is_known: bool) -> PastTurn {
        PastTurn { asked: asked.into(), answered: answered.into(), is_known, ..PastTurn::default() }
    }

    /// Tests each chunk of `said`: true if it is part of the replay. `u:` and `a:` name the speaker, and `prompt` is the
    /// running one.
    fn replayed(turns: &[PastTurn], prompt: &str, said: &[&str]) -> Vec<bool> {
        let mut replay = Replay::new(turns.to_vec());
        let of_chunk = |said: &&str| {
            let (speaker, text) = said.split_once(':').unwrap();
            let kind = if speaker == "u" { "user_message_chunk" } else { "agent_message_chunk" };
            let json = serde_json::json!({"sessionUpdate": kind, "content": {"type": "text", "text": text}});
            let raw = serde_json::value::to_raw_value(&json).unwrap();
            let is_echo = speaker == "u" && !prompt.is_empty() && prompt.contains(text);
            replay.contains(&view_update(&raw).unwrap(), &raw, is_echo)
        };
        said.iter().map(of_chunk).collect()
    }

    #[test]
    fn replay_ends_where_the_stored_conversation_ends() {
        let turns = [turn("one", "first", true), turn("two", "second answer", true)];
        let said = ["u:one", "a:fir", "a:st", "u:two", "a:second ", "a:answer", "a:second again", "a:more"];
        assert_eq!(replayed(&turns, "three", &said), [true, true, true, true, true, true, false, false]);
        assert_eq!(replayed(&turns, "", &said[..6]), [true; 6], "also before the prompt was sent");
    }

    #[test]
    fn agent_that_replays_nothing_keeps_an_answer_that_repeats_an_earlier_one() {
        let turns = [turn("again", "done", true)];
        assert_eq!(replayed(&turns, "again", &["a:done"]), [false]);
        assert_eq!(replayed(&turns, "again", &["u:again", "a:done"]), [false, false], "it echoes the prompt");
    }

    #[test]
    fn turns_older_than_the_stored_part_are_history_until_the_newest_known_turn() {
        let turns = [turn("one", "1", true), turn("eight", "8", true), turn("stopped", "", false)];
        let said = ["u:one", "a:whatever", "u:seven", "a:7", "u:eight", "a:8", "u:stopped", "a:own"];
        assert_eq!(replayed(&turns, "nine", &said), [true, true, true, true, true, true, true, false]);
        // The turn that was cancelled need not be replayed.
        assert_eq!(replayed(&turns, "nine", &["u:eight", "a:8", "a:own"]), [true, true, false]);
    }

    #[test]
    fn agent_that_changes_the_prompt_it_echoes_keeps_its_answer() {
        let turns = [turn("one", "first", true)];
        assert_eq!(replayed(&turns, "/init", &["u:expanded", "a:own"]), [false, false]);
        let said = ["u:o", "u:ne", "a:first", "u:expanded", "a:own"];
        assert_eq!(replayed(&turns, "/init", &said), [true, true, true, false, false], "also after a replay");
        let context = format!("u:{CONTEXT_HEADING} and more");
        let said = [context.as_str(), "a:old", "u:one", "a:first", "a:own"];
        assert_eq!(replayed(&turns, "two", &said), [true, true, true, true, false], "it began with a context");
    }

    #[test]
    fn prompt_that_repeats_an_earlier_one_is_recognised_by_its_place() {
        let turns = [turn("go", "1", true), turn("go", "2", true)];
        let said = ["u:go", "a:1", "u:go", "a:2", "u:go", "a:1"];
        let expected = [true, true, true, true, false, false];
        assert_eq!(replayed(&turns, "more", &said[..4]), expected[..4]);
        // While a replay is open, the prompt of a stored turn is history, and the third `go` is the running prompt.
        let said = ["u:start", "u:go", "a:1", "u:go", "a:2", "u:go", "a:1"];
        let turns = [turn("start", "", true), turn("go", "1", true), turn("go", "2", true)];
        assert_eq!(replayed(&turns, "go", &said), [true, true, true, true, true, false, false]);
    }

    #[test]
    fn tool_calls_of_a_replay_are_known_by_their_ids() {
        let turns = vec![PastTurn { tool_calls: vec!["old".into()], ..turn("one", "first", true) }];
        let mut replay = Replay::new(turns);
        let mut contains = |json: serde_json::Value| {
            let raw = serde_json::value::to_raw_value(&json).unwrap();
            replay.contains(&view_update(&raw).unwrap(), &raw, false)
        };
        let call = |id| serde_json::json!({"sessionUpdate": "tool_call", "toolCallId": id, "title": "t"});
        assert!(!contains(call("old")), "nothing is replayed yet");
        let text = serde_json::json!({"type": "text", "text": "one"});
        assert!(contains(serde_json::json!({"sessionUpdate": "user_message_chunk", "content": text})));
        assert!(contains(call("old")));
        assert!(!contains(call("new")));
    }
}
