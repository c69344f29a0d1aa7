//! Prompts: ACP content blocks, validated and otherwise unchanged.

use serde::{Deserialize, Serialize};
use serde_json::{json, value::RawValue};

use super::outcome::{ErrorCode, Failure};
use crate::{acp::schema::ContentBlock, domain::text};

/// The most blocks of one prompt; no client is known to send more than a few dozen.
pub(crate) const MAX_BLOCKS: usize = 256;

/// A valid prompt. Its blocks are sent as the caller gave them, unknown fields and `_meta` included.
#[derive(Debug, Clone)]
pub(crate) struct Prompt {
    blocks: Vec<Box<RawValue>>,
    kinds: Kinds,
    text: String,
}

/// Optional kinds of content block: of a prompt, those it contains; of an agent, those it supports. Text and links are
/// missing, since every agent supports them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Kinds {
    pub image: bool,
    pub audio: bool,
    /// Blocks of type `resource`.
    pub embedded: bool,
}

impl Prompt {
    /// Parses the API's `prompt`: a string, or an array of 1 to [`MAX_BLOCKS`] content blocks.
    ///
    /// # Errors
    /// `invalid_request`, with the index of the offending block.
    pub(crate) fn parse(raw: &RawValue) -> Result<Self, Failure> {
        let bad = |detail: String| Failure::new(ErrorCode::InvalidRequest, detail);
        if raw.get().starts_with('"') {
            let text: String = serde_json::from_str(raw.get()).map_err(|cause| bad(format!("prompt: {cause}")))?;
            if text.trim().is_empty() {
                return Err(bad("prompt: must not be empty".into()));
            }
            return Ok(Self { blocks: vec![text_block(&text)], kinds: Kinds::default(), text });
        }
        let blocks: Vec<Box<RawValue>> = serde_json::from_str(raw.get())
            .map_err(|_| bad("prompt: must be a string or an array of ACP content blocks".into()))?;
        if blocks.is_empty() || blocks.len() > MAX_BLOCKS {
            return Err(bad(format!("prompt: must have 1 to {MAX_BLOCKS} content blocks, has {}", blocks.len())));
        }
        let mut prompt =
            Self { blocks: Vec::with_capacity(blocks.len()), kinds: Kinds::default(), text: String::new() };
        for (index, block) in blocks.into_iter().enumerate() {
            let parsed: ContentBlock = serde_json::from_str(block.get())
                .map_err(|cause| bad(format!("prompt[{index}]: not an ACP content block: {cause}")))?;
            match parsed {
                ContentBlock::Text(content) => {
                    // Model providers refuse the whole conversation from then on.
                    if content.text.trim().is_empty() {
                        return Err(bad(format!("prompt[{index}]: the text must not be empty")));
                    }
                    if !prompt.text.is_empty() {
                        prompt.text.push('\n');
                    }
                    prompt.text.push_str(&content.text);
                }
                ContentBlock::Image(_) => prompt.kinds.image = true,
                ContentBlock::Audio(_) => prompt.kinds.audio = true,
                ContentBlock::Resource(_) => prompt.kinds.embedded = true,
                ContentBlock::ResourceLink(_) => {}
                _ => return Err(bad(format!("prompt[{index}]: unknown kind of content block"))),
            }
            prompt.blocks.push(block);
        }
        Ok(prompt)
    }

    #[cfg(test)]
    pub(crate) fn of_text(text: &str) -> Self {
        Self { blocks: vec![text_block(text)], kinds: Kinds::default(), text: text.to_owned() }
    }

    /// The blocks as the caller gave them.
    #[cfg(test)]
    pub(crate) fn blocks(&self) -> &[Box<RawValue>] {
        &self.blocks
    }

    /// The text blocks, joined by line breaks; used for the transcript and for titles.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// The blocks as one JSON array; used for the transcript.
    pub(crate) fn as_json(&self) -> Box<RawValue> {
        to_raw(&self.blocks)
    }

    /// True if a `user_message_chunk` repeats a part of what was sent: of this prompt, or of `context` ahead of it.
    pub(crate) fn is_echoed_by(&self, text: Option<&str>, update: &RawValue, context: Option<&str>) -> bool {
        #[derive(Deserialize)]
        struct Update<'a> {
            #[serde(borrow)]
            content: &'a RawValue,
        }
        let Some(text) = text.map(str::trim) else {
            let Ok(Update { content }) = serde_json::from_str(update.get()) else { return false };
            let value = |block: &RawValue| serde_json::from_str::<serde_json::Value>(block.get()).ok();
            let is_block = self.blocks.iter().any(|block| value(block) == value(content));
            // The context travels as an embedded resource.
            let words = words_of_block(content);
            return is_block || context.zip(words).is_some_and(|(context, words)| context.contains(words.trim()));
        };
        !text.is_empty() && (self.text.contains(text) || context.is_some_and(|context| context.contains(text)))
    }

    /// Checks the prompt against the kinds that the agent supports.
    ///
    /// # Errors
    /// `not_supported_by_agent` for the first unsupported kind.
    pub(crate) fn check_taken_by(&self, takes: Kinds) -> Result<(), Failure> {
        let refused = [
            (self.kinds.image && !takes.image, "image"),
            (self.kinds.audio && !takes.audio, "audio"),
            (self.kinds.embedded && !takes.embedded, "resource"),
        ];
        match refused.iter().find(|(refused, _)| *refused) {
            Some((_, kind)) => Err(Failure::new(
                ErrorCode::NotSupportedByAgent,
                format!("the agent does not support content blocks of type `{kind}`"),
            )),
            None => Ok(()),
        }
    }

    /// The blocks to send: `context` as one block, an embedded resource if the agent supports those, else text; then the
    /// caller's blocks, unchanged.
    pub(crate) fn with_context(&self, context: Option<&str>, takes: Kinds) -> Vec<Box<RawValue>> {
        let ahead = context.map(|context| if takes.embedded { resource_block(context) } else { text_block(context) });
        ahead.into_iter().chain(self.blocks.iter().cloned()).collect()
    }

    /// The prompt as one text, for a command without content blocks: the conversation so far, then the prompt. Embedded
    /// resources become their text and links their address. Images and audio are dropped; callers refuse them before
    /// ([`Prompt::check_taken_by`]).
    pub(crate) fn as_text(&self, context: Option<&str>) -> String {
        let asked = self.blocks.iter().filter_map(|block| words_of_block(block)).collect::<Vec<_>>().join("\n\n");
        match context {
            Some(context) => format!("{context}\n{REQUEST_HEADING}\n\n{asked}"),
            None => asked,
        }
    }

    /// The first 120 characters of the text, for lists.
    pub(crate) fn preview(&self) -> String {
        text::cut(self.text.trim(), 120)
    }
}

/// The first line of the conversation so far, ahead of a prompt.
pub(crate) const CONTEXT_HEADING: &str = "# The conversation so far";
/// The heading between the conversation so far and the prompt in [`Prompt::as_text`].
pub(crate) const REQUEST_HEADING: &str = "# The current request";

/// The text of a block, or its address; `None` for images and audio.
fn words_of_block(block: &RawValue) -> Option<String> {
    #[derive(Deserialize)]
    struct Block {
        text: Option<String>,
        uri: Option<String>,
        resource: Option<Resource>,
    }
    #[derive(Deserialize)]
    struct Resource {
        text: Option<String>,
        uri: Option<String>,
    }
    let Block { text, uri, resource } = serde_json::from_str(block.get()).ok()?;
    let embedded = resource.and_then(|resource| resource.text.or(resource.uri));
    text.or(uri).or(embedded)
}

fn text_block(text: &str) -> Box<RawValue> {
    #[derive(Serialize)]
    #[serde(tag = "type", rename = "text")]
    struct TextBlock<'a> {
        text: &'a str,
    }
    to_raw(&TextBlock { text })
}

fn resource_block(text: &str) -> Box<RawValue> {
    to_raw(&json!({
        "type": "resource",
        "resource": {"uri": "lumilink:conversation", "mimeType": "text/markdown", "text": text}
    }))
}

fn to_raw(value: &impl Serialize) -> Box<RawValue> {
    serde_json::value::to_raw_value(value).unwrap_or_else(|_| RawValue::NULL.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<Prompt, Failure> {
        Prompt::parse(&RawValue::from_string(json.to_owned()).unwrap())
    }

    #[test]
    fn string_becomes_one_text_block() {
        let prompt = parse(r#""fix \"it\"""#).unwrap();
        assert_eq!(prompt.as_json().get(), r#"[{"type":"text","text":"fix \"it\""}]"#);
        assert_eq!(prompt.text(), "fix \"it\"");
    }

    #[test]
    fn blocks_are_kept_verbatim() {
        let json = r#"[{"type":"text","text":"a","_meta":{"k": 1},"unknown":[ 1 ]},{"type":"resource_link","uri":"file:///a","name":"a"}]"#;
        assert_eq!(parse(json).unwrap().as_json().get(), json);
    }

    #[test]
    fn malformed_prompt_is_refused_with_the_place() {
        for (json, place) in [
            ("\"  \"", "empty"),
            ("[]", "1 to 256"),
            ("{}", "array"),
            ("[{\"type\":\"text\"}]", "prompt[0]"),
            ("[{\"type\":\"text\",\"text\":\"\"}]", "prompt[0]: the text must not be empty"),
            (
                "[{\"type\":\"text\",\"text\":\"a\"},{\"type\":\"text\",\"text\":\" \\n\"}]",
                "prompt[1]: the text must not",
            ),
            ("[{\"type\":\"text\",\"text\":\"a\"},{\"type\":\"hologram\"}]", "prompt[1]"),
        ] {
            let failure = parse(json).unwrap_err();
            assert!(failure.detail.contains(place), "{json}: {}", failure.detail);
        }
    }

    #[test]
    fn context_is_one_block_before_the_unchanged_blocks_of_the_caller() {
        let prompt = parse(r#"[{"type":"text","text":"a","_meta":{"k": 1}}]"#).unwrap();
        let sent = prompt.with_context(Some("before"), Kinds { embedded: true, ..Kinds::default() });
        assert_eq!(sent.len(), 2);
        assert!(sent[0].get().contains("\"resource\""));
        assert_eq!(sent[1].get(), prompt.blocks()[0].get());
        assert!(prompt.with_context(Some("before"), Kinds::default())[0].get().contains("\"type\":\"text\""));
    }

    #[test]
    fn echo_is_any_part_of_what_was_sent() {
        let prompt =
            parse(r#"[{"type":"text","text":"fix the test"},{"type":"resource_link","uri":"file:///a","name":"a"}]"#);
        let prompt = prompt.unwrap();
        let update = |content: &str| RawValue::from_string(format!(r#"{{"content":{content}}}"#)).unwrap();
        let text = |text: &str| prompt.is_echoed_by(Some(text), &update("null"), Some("# The conversation so far"));
        assert!(text("fix the ") && text("test\n".trim_end_matches("\n")) && text("# The conversation"));
        assert!(!text("another") && !text(" "));
        let block = |content: &str| prompt.is_echoed_by(None, &update(content), Some("# So far"));
        assert!(block(resource_block("# So far").get()) && !block(resource_block("other").get()));
        assert!(block(r#"{"name":"a","uri":"file:///a","type":"resource_link"}"#));
        assert!(!block(r#"{"name":"b","uri":"file:///b","type":"resource_link"}"#));
    }

    #[test]
    fn images_are_refused_for_an_agent_without_image_support() {
        let prompt = parse(r#"[{"type":"image","data":"AA==","mimeType":"image/png"}]"#).unwrap();
        assert_eq!(prompt.check_taken_by(Kinds::default()).unwrap_err().code, ErrorCode::NotSupportedByAgent);
        assert!(prompt.check_taken_by(Kinds { image: true, ..Kinds::default() }).is_ok());
    }
}
