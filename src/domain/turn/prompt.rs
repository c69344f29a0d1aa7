//! What a caller asks: ACP content blocks, checked and otherwise untouched.

use serde::Deserialize;
use serde_json::{json, value::RawValue};

use super::outcome::{ErrorCode, Failure};
use crate::{acp::schema::ContentBlock, domain::text};

/// The most blocks of one prompt; no client is known to send more than a few dozen.
pub(crate) const MAX_BLOCKS: usize = 256;

/// A checked prompt. Its blocks are sent as they were given, unknown fields and `_meta` included.
#[derive(Debug, Clone)]
pub(crate) struct Prompt {
    blocks: Vec<Box<RawValue>>,
    kinds: Kinds,
    text: String,
}

/// Which kinds of block a prompt contains beyond text and links, which every agent has to take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Kinds {
    /// `image`.
    pub image: bool,
    /// `audio`.
    pub audio: bool,
    /// `resource` (embedded context).
    pub embedded: bool,
}

impl Prompt {
    /// Reads `prompt` as the API takes it: a string, or an array of content blocks.
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
                    if !prompt.text.is_empty() {
                        prompt.text.push('\n');
                    }
                    prompt.text.push_str(&content.text);
                }
                ContentBlock::Image(_) => prompt.kinds.image = true,
                ContentBlock::Audio(_) => prompt.kinds.audio = true,
                ContentBlock::Resource(_) => prompt.kinds.embedded = true,
                ContentBlock::ResourceLink(_) => {}
                _ => return Err(bad(format!("prompt[{index}]: a kind of content block that is not known here"))),
            }
            prompt.blocks.push(block);
        }
        Ok(prompt)
    }

    /// A prompt of one text.
    pub(crate) fn of_text(text: &str) -> Self {
        Self { blocks: vec![text_block(text)], kinds: Kinds::default(), text: text.to_owned() }
    }

    /// The blocks, as they were given.
    #[cfg(test)]
    pub(crate) fn blocks(&self) -> &[Box<RawValue>] {
        &self.blocks
    }

    /// Its text blocks, joined by line ends: what the transcript keeps and titles are made from.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// The blocks as one JSON array, as the transcript keeps them.
    pub(crate) fn as_json(&self) -> String {
        let size = self.blocks.iter().map(|block| block.get().len() + 1).sum::<usize>();
        let mut json = String::with_capacity(size + 2);
        json.push('[');
        for (index, block) in self.blocks.iter().enumerate() {
            if index > 0 {
                json.push(',');
            }
            json.push_str(block.get());
        }
        json.push(']');
        json
    }

    /// Refuses what the agent did not say it takes.
    pub(crate) fn check_taken_by(&self, takes: Kinds) -> Result<(), Failure> {
        let refused = [
            (self.kinds.image && !takes.image, "image"),
            (self.kinds.audio && !takes.audio, "audio"),
            (self.kinds.embedded && !takes.embedded, "resource"),
        ];
        match refused.iter().find(|(refused, _)| *refused) {
            Some((_, kind)) => Err(Failure::new(
                ErrorCode::NotSupportedByAgent,
                format!("the agent does not take content blocks of type `{kind}`"),
            )),
            None => Ok(()),
        }
    }

    /// The blocks to send, with `context` as one separate block ahead of them: an embedded resource where
    /// the agent takes those, else text. The caller's own blocks stay unchanged and last.
    pub(crate) fn with_context(&self, context: Option<&str>, takes: Kinds) -> Vec<Box<RawValue>> {
        let ahead = context.map(|context| if takes.embedded { resource_block(context) } else { text_block(context) });
        ahead.into_iter().chain(self.blocks.iter().cloned()).collect()
    }

    /// The whole as text, for a command that takes nothing else: the conversation so far, and what is asked now.
    /// Embedded resources are their text, links their address; images and audio are skipped, so they are to be
    /// refused before ([`Prompt::check_taken_by`]).
    pub(crate) fn as_text(&self, context: Option<&str>) -> String {
        let asked = self.blocks.iter().filter_map(|block| words_of_block(block)).collect::<Vec<_>>().join("\n\n");
        match context {
            Some(context) => format!("{context}\n{ASKED_NOW}\n\n{asked}"),
            None => asked,
        }
    }

    /// The first characters of its text, for lists.
    pub(crate) fn preview(&self) -> String {
        text::cut(self.text.trim(), 120)
    }
}

/// Stands between the conversation so far and the prompt where both are one text.
pub(crate) const ASKED_NOW: &str = "# What is asked now";

/// What a block says in words.
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

/// Reads the text of a content block (or of anything else with a text of its own); `None` where it has
/// none.
pub(crate) fn text_of_block(block: &RawValue) -> Option<String> {
    #[derive(Deserialize)]
    struct TextBlock {
        #[serde(rename = "type")]
        kind: String,
        text: Option<String>,
    }
    let block: TextBlock = serde_json::from_str(block.get()).ok()?;
    if block.kind == "text" { block.text } else { None }
}

fn text_block(text: &str) -> Box<RawValue> {
    to_raw(&json!({"type": "text", "text": text}))
}

fn resource_block(text: &str) -> Box<RawValue> {
    to_raw(&json!({
        "type": "resource",
        "resource": {"uri": "lumilink:conversation", "mimeType": "text/markdown", "text": text}
    }))
}

fn to_raw(value: &serde_json::Value) -> Box<RawValue> {
    RawValue::from_string(value.to_string()).unwrap_or_else(|_| RawValue::NULL.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<Prompt, Failure> {
        Prompt::parse(&RawValue::from_string(json.to_owned()).unwrap())
    }

    #[test]
    fn a_string_becomes_one_text_block() {
        let prompt = parse(r#""fix \"it\"""#).unwrap();
        assert_eq!(prompt.as_json(), r#"[{"type":"text","text":"fix \"it\""}]"#);
        assert_eq!(prompt.text(), "fix \"it\"");
    }

    #[test]
    fn blocks_stay_as_they_were_given() {
        let json = r#"[{"type":"text","text":"a","_meta":{"k": 1},"unknown":[ 1 ]},{"type":"resource_link","uri":"file:///a","name":"a"}]"#;
        assert_eq!(parse(json).unwrap().as_json(), json);
    }

    #[test]
    fn malformed_prompt_error_names_the_place() {
        for (json, place) in [
            ("\"  \"", "empty"),
            ("[]", "1 to 256"),
            ("{}", "array"),
            ("[{\"type\":\"text\"}]", "prompt[0]"),
            ("[{\"type\":\"text\",\"text\":\"a\"},{\"type\":\"hologram\"}]", "prompt[1]"),
        ] {
            let failure = parse(json).unwrap_err();
            assert!(failure.detail.contains(place), "{json}: {}", failure.detail);
        }
    }

    #[test]
    fn context_is_one_block_ahead_and_the_callers_blocks_are_unchanged() {
        let prompt = parse(r#"[{"type":"text","text":"a","_meta":{"k": 1}}]"#).unwrap();
        let sent = prompt.with_context(Some("before"), Kinds { embedded: true, ..Kinds::default() });
        assert_eq!(sent.len(), 2);
        assert!(sent[0].get().contains("\"resource\""));
        assert_eq!(sent[1].get(), prompt.blocks()[0].get());
        assert!(prompt.with_context(Some("before"), Kinds::default())[0].get().contains("\"type\":\"text\""));
    }

    #[test]
    fn an_agent_without_images_gets_none() {
        let prompt = parse(r#"[{"type":"image","data":"AA==","mimeType":"image/png"}]"#).unwrap();
        assert_eq!(prompt.check_taken_by(Kinds::default()).unwrap_err().code, ErrorCode::NotSupportedByAgent);
        assert!(prompt.check_taken_by(Kinds { image: true, ..Kinds::default() }).is_ok());
    }
}
