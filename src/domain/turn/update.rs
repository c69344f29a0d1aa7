//! Session updates: the parts that a turn's result and the transcript need.

use std::{borrow::Cow, fmt, ops::Deref};

use serde::{
    Deserialize, Deserializer,
    de::{Error, Visitor},
};
use serde_json::value::RawValue;

/// The parts of an update that the transcript needs.
#[derive(Debug, Default)]
pub(crate) struct UpdateView {
    /// The value of `sessionUpdate`.
    pub kind: String,
    /// The text of a chunk; `None` for other kinds.
    pub text: Option<ChunkText>,
    /// `messageId` of a chunk.
    pub message_id: Option<String>,
    /// `toolCallId` of a tool call.
    pub call_id: Option<String>,
    /// True if the `status` of a tool call is final; `None` if the update has none.
    pub call_ended: Option<bool>,
}

/// Parses an update; `None` if it has no `sessionUpdate`.
pub(crate) fn view_update(update: &RawValue) -> Option<UpdateView> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Update<'a> {
        session_update: String,
        #[serde(borrow)]
        content: Option<&'a RawValue>,
        #[serde(borrow)]
        message_id: Option<&'a RawValue>,
        #[serde(borrow)]
        tool_call_id: Option<&'a RawValue>,
        #[serde(borrow)]
        status: Option<&'a RawValue>,
    }
    let update: Update<'_> = serde_json::from_str(update.get()).ok()?;
    let kind = update.session_update;
    let (is_chunk, is_call) = (kind.ends_with("_chunk"), kind.starts_with("tool_call"));
    let id = |raw: &RawValue| serde_json::from_str(raw.get()).unwrap_or_else(|_| raw.get().to_owned());
    Some(UpdateView {
        text: is_chunk.then_some(update.content).flatten().and_then(text_of_block),
        message_id: update.message_id.filter(|_| is_chunk).map(id),
        call_id: update.tool_call_id.filter(|_| is_call).map(id),
        call_ended: update.status.filter(|_| is_call).map(|it| matches!(it.get(), r#""completed""# | r#""failed""#)),
        kind,
    })
}

/// The text of a content block of type `text`; `None` for any other value.
fn text_of_block(block: &RawValue) -> Option<ChunkText> {
    #[derive(Deserialize)]
    struct TextBlock {
        #[serde(rename = "type")]
        kind: String,
        text: Option<ChunkText>,
    }
    let block: TextBlock = serde_json::from_str(block.get()).ok()?;
    if block.kind == "text" { block.text } else { None }
}

/// The text of one chunk. Agents that cut their output by UTF-16 units split a character outside the Basic Multilingual
/// Plane, such as an emoji, over two chunks: one ends with its first half and the next one begins with the second.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ChunkText {
    /// A low surrogate before `text`.
    low: Option<u16>,
    /// The text between the halves; a half inside it is U+FFFD.
    text: String,
    /// A high surrogate after `text`.
    high: Option<u16>,
}

impl Deref for ChunkText {
    type Target = str;

    /// The text without halves of characters at its ends.
    fn deref(&self) -> &str {
        &self.text
    }
}

impl From<&str> for ChunkText {
    fn from(text: &str) -> Self {
        Self { low: None, text: text.to_owned(), high: None }
    }
}

impl ChunkText {
    /// Reads text in WTF-8, which is UTF-8 that may contain surrogates.
    fn from_wtf8(bytes: &[u8]) -> Self {
        let (mut chunk, mut rest) = (Self::default(), bytes);
        loop {
            match std::str::from_utf8(rest) {
                Ok(text) => {
                    chunk.push_text(text);
                    return chunk;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    chunk.push_text(std::str::from_utf8(valid).unwrap_or_default());
                    let (unit, length) = surrogate(after).map_or((0xFFFD, 1), |unit| (unit, 3));
                    chunk.push_unit(unit);
                    rest = after.get(length..).unwrap_or_default();
                }
            }
        }
    }

    fn push_text(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        if self.high.take().is_some() {
            self.text.push(char::REPLACEMENT_CHARACTER);
        }
        self.text.push_str(text);
    }

    fn push_unit(&mut self, unit: u16) {
        match (unit, self.high.take()) {
            (0xDC00..=0xDFFF, Some(high)) => self.text.push(joined(high, unit)),
            (0xDC00..=0xDFFF, None) if self.text.is_empty() && self.low.is_none() => self.low = Some(unit),
            (_, high) => {
                if high.is_some() {
                    self.text.push(char::REPLACEMENT_CHARACTER);
                }
                match unit {
                    0xD800..=0xDBFF => self.high = Some(unit),
                    _ => self.text.push(char::REPLACEMENT_CHARACTER),
                }
            }
        }
    }

    /// The text, unless the chunk has a half of a character at one of its ends.
    pub(crate) fn whole(&self) -> Option<&str> {
        (self.low.is_none() && self.high.is_none()).then_some(self.text.as_str())
    }

    /// The text that this chunk adds to its message. `half` is the first half of a character at the end of the previous
    /// chunks, and becomes the one at the end of this chunk. A half without its other one is U+FFFD.
    pub(crate) fn after(&self, half: &mut Option<u16>) -> Cow<'_, str> {
        if self.low.is_none() && half.is_none() {
            *half = self.high;
            return Cow::Borrowed(&self.text);
        }
        if *self == Self::default() {
            return Cow::Borrowed("");
        }
        let first = match (half.take(), self.low) {
            (Some(high), Some(low)) => joined(high, low),
            _ => char::REPLACEMENT_CHARACTER,
        };
        *half = self.high;
        Cow::Owned(format!("{first}{}", self.text))
    }
}

/// The surrogate at the start of `bytes`.
fn surrogate(bytes: &[u8]) -> Option<u16> {
    match *bytes {
        [0xED, second @ 0xA0..=0xBF, third @ 0x80..=0xBF, ..] => {
            Some(0xD000 | (u16::from(second & 0x3F) << 6) | u16::from(third & 0x3F))
        }
        _ => None,
    }
}

fn joined(high: u16, low: u16) -> char {
    char::decode_utf16([high, low]).next().and_then(Result::ok).unwrap_or(char::REPLACEMENT_CHARACTER)
}

impl<'de> Deserialize<'de> for ChunkText {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = ChunkText;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a string")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<ChunkText, E> {
                Ok(ChunkText::from(text))
            }

            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<ChunkText, E> {
                Ok(ChunkText::from_wtf8(bytes))
            }
        }
        // Read as bytes, a JSON string may contain halves of surrogate pairs.
        from.deserialize_bytes(Text)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn view(json: &str) -> UpdateView {
        view_update(&RawValue::from_string(json.to_owned()).unwrap()).unwrap()
    }

    fn joined_text(chunks: &[&str]) -> (String, Option<u16>) {
        let (mut text, mut half) = (String::new(), None);
        for chunk in chunks {
            let json =
                format!(r#"{{"sessionUpdate":"agent_message_chunk","content":{{"type":"text","text":"{chunk}"}}}}"#);
            text.push_str(&view(&json).text.unwrap().after(&mut half));
        }
        (text, half)
    }

    #[test]
    fn emoji_cut_into_surrogate_halves_is_joined_over_two_chunks() {
        assert_eq!(joined_text(&[r"a\ud83d", r"\ude00b"]), ("a😀b".into(), None));
        assert_eq!(joined_text(&[r"a\ud83d", "", r"\ude00"]), ("a😀".into(), None), "an empty chunk between them");
        assert_eq!(joined_text(&[r"a\ud83d\ude00\ud83d", r"\ude00\ud83d"]), ("a😀😀".into(), Some(0xD83D)));
    }

    #[test]
    fn half_without_its_other_half_is_the_replacement_character() {
        assert_eq!(joined_text(&[r"a\ud83d", "b"]).0, "a\u{FFFD}b");
        assert_eq!(joined_text(&["a", r"\ude00b"]).0, "a\u{FFFD}b");
        assert_eq!(joined_text(&[r"\ud83d\ud83d\ude00x\ude00y"]).0, "\u{FFFD}😀x\u{FFFD}y");
    }

    #[test]
    fn ids_of_messages_and_tool_calls_are_read_whatever_their_type() {
        let chunk = view(r#"{"sessionUpdate":"agent_message_chunk","messageId":"m","content":{"type":"image"}}"#);
        assert_eq!((chunk.message_id.as_deref(), chunk.text), (Some("m"), None));
        assert_eq!(view(r#"{"sessionUpdate":"tool_call_update","toolCallId":7}"#).call_id.as_deref(), Some("7"));
        assert_eq!(view(r#"{"sessionUpdate":"plan","toolCallId":"x","messageId":"m"}"#).call_id, None);
    }

    proptest! {
        /// Any text, cut between UTF-16 units anywhere, is whole again.
        #[test]
        fn text_cut_between_utf16_units_is_joined_without_loss(text in "\\PC{0,12}", every in 1usize..4) {
            let units: Vec<u16> = text.encode_utf16().collect();
            let chunks: Vec<String> =
                units.chunks(every).map(|part| part.iter().map(|unit| format!("\\u{unit:04x}")).collect()).collect();
            let chunks: Vec<&str> = chunks.iter().map(String::as_str).collect();
            prop_assert_eq!(joined_text(&chunks), (text, None));
        }
    }
}
