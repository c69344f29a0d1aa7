//! Redaction of an agent's messages: by the runtime before they leave its machine, and by the supervisor, which knows other
//! values. They are found in every text, and also where the chunks of a message split them.

use std::{collections::VecDeque, ops::Range, time::Duration};

use serde::Deserialize;
use serde_json::value::RawValue;

use super::update::ChunkText;
use crate::domain::redaction::{self, stream::StreamRedaction};

/// The most texts that grow at the same time, such as a message and a thought; more end the oldest.
const MAX_TEXTS: usize = 8;
/// A held text under this length, in bytes, is most likely innocent. It is shown before the next message of another kind, so
/// that the order stays; a longer one waits for the next chunk of its text.
const LIKELY: usize = 6;
/// Time without a message after which such a short text is shown.
const SHORT_WAIT: Duration = Duration::from_millis(250);
/// Time without a message after which every held text is shown: the agent may have ended a turn that it began by itself.
const LONG_WAIT: Duration = Duration::from_secs(10);

/// A chunk of a text, in a message of the agent.
#[derive(Debug)]
pub(crate) struct Chunk {
    /// Session, kind and id of the message.
    key: (String, String, String),
    text: ChunkText,
    /// The place of the text's JSON in the message.
    at: Range<usize>,
}

/// Reads the chunk in a `session/update` with these `params`, which are a part of `message`.
pub(crate) fn chunk_of(message: &str, params: &RawValue) -> Option<Chunk> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Params<'a> {
        #[serde(borrow)]
        session_id: Option<&'a RawValue>,
        #[serde(borrow)]
        update: &'a RawValue,
    }
    if !params.get().contains("_chunk\"") {
        return None;
    }
    let Params { session_id, update } = serde_json::from_str(params.get()).ok()?;
    chunk_in(message, update, session_id)
}

/// Reads the chunk in an `update`, the member of a `session/update`.
pub(crate) fn chunk_of_update(update: &RawValue) -> Option<Chunk> {
    if update.get().contains("_chunk\"") { chunk_in(update.get(), update, None) } else { None }
}

fn chunk_in(message: &str, update: &RawValue, session_id: Option<&RawValue>) -> Option<Chunk> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Update<'a> {
        session_update: String,
        #[serde(borrow)]
        message_id: Option<&'a RawValue>,
        #[serde(borrow)]
        content: &'a RawValue,
    }
    #[derive(Deserialize)]
    struct Content<'a> {
        #[serde(borrow)]
        text: &'a RawValue,
    }
    let update: Update<'_> = serde_json::from_str(update.get()).ok()?;
    let content: Content<'_> = serde_json::from_str(update.content.get()).ok()?;
    if !update.session_update.ends_with("_chunk") {
        return None;
    }
    let id = |raw: Option<&RawValue>| raw.map(|raw| raw.get().to_owned()).unwrap_or_default();
    let start = (content.text.get().as_ptr() as usize).checked_sub(message.as_ptr() as usize)?;
    Some(Chunk {
        key: (id(session_id), update.session_update, id(update.message_id)),
        text: serde_json::from_str(content.text.get()).ok()?,
        at: start..start + content.text.get().len(),
    })
}

impl Chunk {
    /// True if the text alone has no value, and no beginning of one.
    fn is_left(&self) -> bool {
        self.text.whole().is_none_or(|text| StreamRedaction::default().leaves(text.as_bytes()))
    }
}

/// A text whose end is held back, or whose beginning of a value was shown.
#[derive(Debug)]
struct OpenText {
    key: (String, String, String),
    redaction: StreamRedaction,
    /// The newest message of the text, and the place of the text in it.
    message: String,
    at: Range<usize>,
}

/// Redacts the messages of one agent.
#[derive(Debug, Default)]
pub(crate) struct FrameRedaction {
    open: VecDeque<OpenText>,
}

impl FrameRedaction {
    /// Passes a message, and appends it to `out` behind the texts that must be shown before it. `chunk` is that of
    /// [`chunk_of`]; `is_answer` is true for an answer to a request, with which a turn ends.
    pub(crate) fn pass(&mut self, message: String, chunk: Option<Chunk>, is_answer: bool, out: &mut Vec<String>) {
        let message = match chunk {
            Some(chunk) => self.pass_chunk(message, chunk, out),
            None => {
                self.pass_other(is_answer, out);
                message
            }
        };
        out.push(redacted(message));
    }

    /// Shows what must be shown before an event without a text. `is_answer` is as in [`Self::pass`].
    pub(crate) fn pass_other(&mut self, is_answer: bool, out: &mut Vec<String>) {
        if is_answer {
            self.finish(out);
        } else {
            self.show(|held| held < LIKELY, out);
        }
    }

    /// True if [`Self::pass`] would keep the text of `chunk`, and show nothing before it.
    pub(crate) fn leaves(&self, chunk: Option<&Chunk>) -> bool {
        self.open.is_empty() && chunk.is_none_or(|chunk| chunk.is_left())
    }

    fn pass_chunk(&mut self, message: String, Chunk { key, text, at }: Chunk, out: &mut Vec<String>) -> String {
        let known = self.open.iter().position(|open| open.key == key);
        let mut open = known.and_then(|index| self.open.remove(index));
        self.show(|held| held < LIKELY, out);
        // A character that the agent divides cannot be a part of a value.
        let Some(text) = text.whole() else {
            out.extend(open.and_then(|mut open| open.finish()));
            return message;
        };
        if open.is_none() && StreamRedaction::default().leaves(text.as_bytes()) {
            return message;
        }
        let mut redaction = open.take().map(|open| open.redaction).unwrap_or_default();
        let shown = redaction.push(text.as_bytes());
        let changed = if shown == text.as_bytes() { None } else { Some(with_text(&message, &at, &shown)) };
        if redaction.is_open() {
            if self.open.len() >= MAX_TEXTS {
                out.extend(self.open.pop_front().and_then(|mut oldest| oldest.finish()));
            }
            self.open.push_back(OpenText { key, redaction, message: message.clone(), at });
        }
        changed.unwrap_or(message)
    }

    /// Ends all texts: the turn or the agent has ended.
    pub(crate) fn finish(&mut self, out: &mut Vec<String>) {
        out.extend(self.open.drain(..).filter_map(|mut open| open.finish()));
    }

    /// Shows held texts of these lengths.
    fn show(&mut self, is_due: impl Fn(usize) -> bool, out: &mut Vec<String>) {
        out.extend(self.open.iter_mut().filter(|open| is_due(open.redaction.held())).filter_map(OpenText::flush));
    }

    /// The time without a message after which [`Self::on_silence`] shows something; `None` if nothing is held.
    pub(crate) fn patience(&self) -> Option<Duration> {
        let held = self.open.iter().map(|open| open.redaction.held()).filter(|held| *held > 0);
        held.map(|held| if held < LIKELY { SHORT_WAIT } else { LONG_WAIT }).min()
    }

    /// Shows what is due after a time without a message.
    pub(crate) fn on_silence(&mut self, silence: Duration, out: &mut Vec<String>) {
        self.show(|held| held < LIKELY || silence >= LONG_WAIT, out);
    }
}

impl OpenText {
    /// The message with what is held back; `None` if nothing is.
    fn flush(&mut self) -> Option<String> {
        let held = self.redaction.flush();
        (!held.is_empty()).then(|| redacted(with_text(&self.message, &self.at, &held)))
    }

    fn finish(&mut self) -> Option<String> {
        let held = self.redaction.finish();
        (!held.is_empty()).then(|| redacted(with_text(&self.message, &self.at, &held)))
    }
}

/// A message with another text.
fn with_text(message: &str, at: &Range<usize>, text: &[u8]) -> String {
    let text = serde_json::Value::from(String::from_utf8_lossy(text)).to_string();
    format!("{}{text}{}", &message[..at.start], &message[at.end..])
}

/// A message without known values in its other texts.
fn redacted(message: String) -> String {
    let changed = match redaction::known_of_json(&message) {
        std::borrow::Cow::Borrowed(_) => None,
        std::borrow::Cow::Owned(changed) => Some(changed),
    };
    changed.unwrap_or(message)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        acp::jsonrpc::{self, Message},
        domain::redaction::{REDACTED, known},
    };

    const VALUES: [&str; 3] = ["alpha-beta-gamma-1", "alpha-betz-delta-2", "gamma-1-epsilon-33"];

    fn redaction() -> FrameRedaction {
        known::hide(VALUES.map(str::to_owned));
        FrameRedaction::default()
    }

    fn update(kind: &str, text: &str) -> String {
        let content = serde_json::json!({"type": "text", "text": text});
        let update = serde_json::json!({"sessionUpdate": kind, "content": content, "_meta": {"n": 1}});
        jsonrpc::notification("session/update", serde_json::json!({"sessionId": "s", "update": update}))
    }

    fn pass(redaction: &mut FrameRedaction, message: &str) -> Vec<String> {
        let (chunk, is_answer) = match jsonrpc::parse(message).unwrap() {
            Message::Notification { params, .. } => (chunk_of(message, params), false),
            Message::Response { .. } => (None, true),
            Message::Request { .. } => (None, false),
        };
        let mut out = Vec::new();
        redaction.pass(message.to_owned(), chunk, is_answer, &mut out);
        out
    }

    /// The texts of the messages of a kind, joined.
    fn text_of(messages: &[String], kind: &str) -> String {
        let texts = messages.iter().filter_map(|message| {
            let message: serde_json::Value = serde_json::from_str(message).unwrap();
            let update = &message["params"]["update"];
            (update["sessionUpdate"] == kind).then(|| update["content"]["text"].as_str().unwrap().to_owned())
        });
        texts.collect()
    }

    const ANSWER: &str = r#"{"jsonrpc":"2.0","id":1,"result":{"stopReason":"end_turn"}}"#;
    const CALL: &str = r#"{"jsonrpc":"2.0","method":"session/update","params":{"sessionId":"s","update":{"sessionUpdate":"tool_call","toolCallId":"c"}}}"#;

    #[test]
    fn value_that_chunks_split_anywhere_is_redacted() {
        for cut in 0..=VALUES[0].len() {
            for other in [None, Some(CALL), Some("thought")] {
                let mut redaction = redaction();
                let (first, second) = VALUES[0].split_at(cut);
                let mut out = pass(&mut redaction, &update("agent_message_chunk", &format!("say {first}")));
                match other {
                    Some("thought") => out.extend(pass(&mut redaction, &update("agent_thought_chunk", "hm"))),
                    Some(call) => out.extend(pass(&mut redaction, call)),
                    None => {}
                }
                out.extend(pass(&mut redaction, &update("agent_message_chunk", &format!("{second}, done a"))));
                out.extend(pass(&mut redaction, ANSWER));
                let text = text_of(&out, "agent_message_chunk");
                let shown = text.strip_prefix("say ").and_then(|text| text.strip_suffix("[redacted], done a"));
                let shown = shown.unwrap_or_else(|| panic!("{cut} {other:?}: {text}"));
                assert!(shown.len() < LIKELY && first.starts_with(shown), "{cut} {other:?}: {text}");
                assert_eq!(out.last().unwrap(), ANSWER, "the held end comes before the answer");
            }
        }
    }

    #[test]
    fn message_without_the_beginning_of_a_value_passes_at_once_and_unchanged() {
        let mut redaction = redaction();
        let messages = [update("agent_message_chunk", "nothing here."), CALL.to_owned(), ANSWER.to_owned()];
        for message in messages {
            assert_eq!(pass(&mut redaction, &message), [message]);
        }
        assert_eq!(redaction.patience(), None);
        let nested = jsonrpc::notification("x", serde_json::json!({"a": [{"b": format!("x{}", VALUES[1])}]}));
        let escaped = nested.replace("alpha", "\\u0061lpha");
        for message in [nested, escaped] {
            assert!(pass(&mut redaction, &message)[0].contains("\"x[redacted]\""));
        }
    }

    #[test]
    fn end_of_a_text_that_may_begin_a_value_is_shown_after_a_while() {
        let mut redaction = redaction();
        let mut out = pass(&mut redaction, &update("agent_message_chunk", "see alp"));
        assert_eq!(redaction.patience(), Some(SHORT_WAIT));
        redaction.on_silence(SHORT_WAIT, &mut out);
        assert_eq!((text_of(&out, "agent_message_chunk").as_str(), redaction.patience()), ("see alp", None));
        out.extend(pass(&mut redaction, &update("agent_message_chunk", "ha-beta")));
        assert_eq!(redaction.patience(), Some(LONG_WAIT));
        redaction.on_silence(SHORT_WAIT, &mut out);
        assert_eq!(text_of(&out, "agent_message_chunk"), "see alp");
        redaction.on_silence(LONG_WAIT, &mut out);
        out.extend(pass(&mut redaction, &update("agent_message_chunk", "-gamma-1.")));
        assert_eq!(text_of(&out, "agent_message_chunk"), "see alpha-beta[redacted].");
    }

    #[test]
    fn texts_that_grow_at_the_same_time_are_bounded() {
        let mut redaction = redaction();
        let mut out = Vec::new();
        for number in 0..100 {
            out.extend(pass(&mut redaction, &update(&format!("k{number}_chunk"), "alpha-beta")));
        }
        assert_eq!(redaction.open.len(), MAX_TEXTS);
        redaction.finish(&mut out);
        assert!((0..100).all(|number| text_of(&out, &format!("k{number}_chunk")) == "alpha-beta"));
    }

    proptest! {
        /// Any text in any chunks shows what it would show as a whole: nothing is lost, added or reordered.
        #[test]
        fn chunked_text_shows_the_same_as_the_whole(
            parts in prop::collection::vec(prop::sample::select(vec![
                "alpha-", "beta-", "betz-", "gamma-1", "delta-2", "-epsilon-33", "é", " ", "\"\n", "a", "alpha-beta-gamma-1",
            ]), 0..12),
            cuts in prop::collection::vec(0usize..9, 1..30),
        ) {
            let mut redaction = redaction();
            let text: String = parts.concat();
            let (mut rest, mut out) = (text.as_str(), Vec::new());
            for cut in cuts.iter().cycle().take(200) {
                let mut cut = (*cut).min(rest.len());
                while !rest.is_char_boundary(cut) { cut += 1; }
                let (chunk, after) = rest.split_at(cut);
                out.extend(pass(&mut redaction, &update("agent_message_chunk", chunk)));
                rest = after;
            }
            out.extend(pass(&mut redaction, &update("agent_message_chunk", rest)));
            out.extend(pass(&mut redaction, ANSWER));
            // Values that overlap across chunks leave one mark each, and up to two bytes of a value are shown before its mark.
            let once = |mut text: String| loop {
                let mut shorter = text.replace("[redacted][redacted]", REDACTED);
                for begun in ["a", "al", "g", "ga"] {
                    shorter = shorter.replace(&format!("{begun}[redacted]"), REDACTED);
                }
                if shorter == text { break text; }
                text = shorter;
            };
            let shown = text_of(&out, "agent_message_chunk");
            prop_assert!(VALUES.iter().all(|value| !shown.contains(value)), "{}", shown);
            let whole = crate::domain::redaction::known_of_text(&text).into_owned();
            prop_assert_eq!(once(shown), once(whole));
        }
    }
}
