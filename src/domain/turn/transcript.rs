//! The transcript: one entry for each message, thought, tool call or other update of a conversation.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::prompt::text_of_block;
use crate::domain::{redaction::Redacted, text};

/// One entry, redacted and ready to be persisted.
#[derive(Debug, Clone)]
pub(crate) struct TranscriptEntry {
    /// `user_message`, `agent_message`, `agent_thought`, `permission`, `info`, or the name of another ACP
    /// update kind.
    pub event_type: String,
    /// The text of a message; empty for an entry that has only a payload.
    pub text: Redacted,
    /// The raw update, if it is not just text.
    pub payload: Option<Redacted>,
}

impl TranscriptEntry {
    /// An entry without a payload.
    pub(crate) fn text(event_type: &str, text: &str) -> Self {
        Self { event_type: event_type.to_owned(), text: Redacted::new(text), payload: None }
    }

    pub(crate) fn with_text(self, text: &str) -> Self {
        Self { text: Redacted::new(text), ..self }
    }

    /// The size of text and payload.
    pub(crate) fn size_bytes(&self) -> usize {
        self.text.as_str().len() + self.payload.as_ref().map_or(0, |payload| payload.as_str().len())
    }

    pub(crate) fn with_payload(event_type: &str, text: &str, payload: &str) -> Self {
        Self { event_type: event_type.to_owned(), text: Redacted::new(text), payload: Some(Redacted::new(payload)) }
    }
}

/// The longest text of one entry, in bytes; a longer message becomes several entries. A page of 50 entries stays within a
/// few megabytes.
pub(crate) const MAX_ENTRY_BYTES: usize = 64 * 1024;
/// The most entries of one turn; one last entry counts those that were dropped. A long turn of a real agent makes some
/// hundreds.
pub(crate) const MAX_ENTRIES_PER_TURN: usize = 10_000;

/// The parts of an update that the transcript needs.
#[derive(Debug)]
pub(crate) struct UpdateView {
    /// The value of `sessionUpdate`.
    pub kind: String,
    /// The text of a chunk; `None` for other kinds.
    pub text: Option<String>,
}

/// Parses kind and text of an update; `None` if it has no `sessionUpdate`.
pub(crate) fn view_update(update: &RawValue) -> Option<UpdateView> {
    #[derive(Deserialize)]
    struct Update<'a> {
        #[serde(rename = "sessionUpdate")]
        kind: String,
        #[serde(borrow)]
        content: Option<&'a RawValue>,
    }
    let update: Update<'_> = serde_json::from_str(update.get()).ok()?;
    let text = update.kind.ends_with("_chunk").then_some(update.content).flatten().and_then(text_of_block);
    Some(UpdateView { kind: update.kind, text })
}

/// Converts the updates of one turn into entries; consecutive chunks of one message become one entry.
#[derive(Debug, Default)]
pub(crate) struct TranscriptBuilder {
    open: Option<(String, String)>,
    made: usize,
    omitted: u64,
}

impl TranscriptBuilder {
    /// Adds one update; entries that it completes are appended to `out`.
    pub(crate) fn on_update(&mut self, view: &UpdateView, raw: &RawValue, out: &mut Vec<TranscriptEntry>) {
        let Some(text) = &view.text else {
            self.close(out);
            // Agents send a list of commands with every session; it is no part of the conversation.
            if view.kind != "available_commands_update" {
                let payload = text::cut_bytes(raw.get(), MAX_ENTRY_BYTES);
                let entry = if payload.len() < raw.get().len() {
                    TranscriptEntry::text(&view.kind, payload)
                } else {
                    TranscriptEntry::with_payload(&view.kind, "", payload)
                };
                self.emit(entry, out);
            }
            return;
        };
        let event_type = view.kind.strip_suffix("_chunk").unwrap_or(&view.kind);
        if self.open.as_ref().is_some_and(|(open, _)| open != event_type) {
            self.close(out);
        }
        let mut rest = text.as_str();
        while !rest.is_empty() {
            let (_, joined) = self.open.get_or_insert_with(|| (event_type.to_owned(), String::new()));
            let part = text::cut_bytes(rest, MAX_ENTRY_BYTES - joined.len());
            joined.push_str(part);
            rest = &rest[part.len()..];
            if !rest.is_empty() {
                self.close(out);
            }
        }
    }

    /// Completes the open message, if any. Called at the end of the turn and before an entry of this service.
    pub(crate) fn close(&mut self, out: &mut Vec<TranscriptEntry>) {
        if let Some((event_type, text)) = self.open.take() {
            self.emit(TranscriptEntry::text(&event_type, &text), out);
        }
    }

    /// Completes the open message and reports dropped entries; called once, at the end of the turn.
    pub(crate) fn finish(&mut self, out: &mut Vec<TranscriptEntry>) {
        self.close(out);
        if self.omitted > 0 {
            let text = format!("{} more entries of this turn were left out", self.omitted);
            out.push(TranscriptEntry::text("info", &text));
        }
    }

    fn emit(&mut self, entry: TranscriptEntry, out: &mut Vec<TranscriptEntry>) {
        if self.made < MAX_ENTRIES_PER_TURN {
            self.made += 1;
            out.push(entry);
        } else {
            self.omitted += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(builder: &mut TranscriptBuilder, json: &str, out: &mut Vec<TranscriptEntry>) {
        let raw = RawValue::from_string(json.to_owned()).unwrap();
        builder.on_update(&view_update(&raw).unwrap(), &raw, out);
    }

    fn chunk(kind: &str, text: &str) -> String {
        format!(r#"{{"sessionUpdate":"{kind}","content":{{"type":"text","text":"{text}"}}}}"#)
    }

    #[test]
    fn consecutive_chunks_are_one_entry_and_other_updates_separate_them() {
        let (mut builder, mut out) = (TranscriptBuilder::default(), Vec::new());
        feed(&mut builder, &chunk("agent_message_chunk", "a"), &mut out);
        feed(&mut builder, &chunk("agent_message_chunk", "b"), &mut out);
        feed(&mut builder, &chunk("agent_thought_chunk", "hm"), &mut out);
        feed(&mut builder, r#"{"sessionUpdate":"tool_call","toolCallId":"1","title":"t"}"#, &mut out);
        feed(&mut builder, &chunk("agent_message_chunk", "c"), &mut out);
        builder.finish(&mut out);
        let seen: Vec<_> = out.iter().map(|entry| (entry.event_type.as_str(), entry.text.as_str())).collect();
        assert_eq!(
            seen,
            [("agent_message", "ab"), ("agent_thought", "hm"), ("tool_call", ""), ("agent_message", "c")]
        );
    }

    #[test]
    fn long_message_becomes_several_entries_without_loss() {
        let (mut builder, mut out) = (TranscriptBuilder::default(), Vec::new());
        let long = "é".repeat(MAX_ENTRY_BYTES);
        feed(&mut builder, &chunk("agent_message_chunk", &long), &mut out);
        builder.finish(&mut out);
        assert!(out.len() >= 2 && out.iter().all(|entry| entry.text.as_str().len() <= MAX_ENTRY_BYTES));
        assert_eq!(out.iter().map(|entry| entry.text.as_str()).collect::<String>(), long);
    }

    #[test]
    fn flood_of_updates_makes_a_bounded_number_of_entries() {
        let (mut builder, mut out) = (TranscriptBuilder::default(), Vec::new());
        for _ in 0..MAX_ENTRIES_PER_TURN + 5 {
            feed(&mut builder, r#"{"sessionUpdate":"unheard_of"}"#, &mut out);
        }
        builder.finish(&mut out);
        assert_eq!(out.len(), MAX_ENTRIES_PER_TURN + 1);
        assert!(out.last().unwrap().text.as_str().starts_with("5 more"));
    }
}
