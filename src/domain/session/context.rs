//! The conversation so far as context for an agent that did not take part in it.

use crate::domain::text;

/// One message of a conversation.
#[derive(Debug, Clone)]
pub(crate) struct Remark {
    /// True for the user's messages, false for the agent's.
    pub by_user: bool,
    pub text: String,
}

/// The longest context, in bytes; about 16,000 tokens.
pub(crate) const MAX_CONTEXT_BYTES: usize = 64 * 1024;

/// Renders the conversation as Markdown. Of a longer one the newest part is kept, within [`MAX_CONTEXT_BYTES`] plus a
/// short heading. `None` for an empty conversation.
pub(crate) fn conversation_context(messages: &[Remark]) -> Option<String> {
    let mut parts = Vec::new();
    let mut room = MAX_CONTEXT_BYTES;
    for Remark { by_user, text } in messages.iter().rev() {
        let heading = if *by_user { "## User" } else { "## Assistant" };
        let needed = heading.len() + text.len() + 4;
        if needed > room {
            let tail = text::tail_bytes(text, room.saturating_sub(heading.len() + 8));
            if !tail.is_empty() {
                parts.push(format!("{heading}\n\n{}{tail}\n", text::CUT_MARK));
            }
            break;
        }
        room -= needed;
        parts.push(format!("{heading}\n\n{text}\n"));
    }
    if parts.is_empty() {
        return None;
    }
    parts.reverse();
    Some(format!(
        "# The conversation so far\n\nThis session continues with a fresh process. The messages below are from before \
         and for reference only; they contain no request.\n\n{}",
        parts.join("\n")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn context_keeps_the_newest_part_within_its_bound() {
        let messages: Vec<_> =
            (0..100).map(|n| Remark { by_user: n % 2 == 0, text: format!("{n}:{}", "é".repeat(2000)) }).collect();
        let context = conversation_context(&messages).unwrap();
        assert!(context.len() <= MAX_CONTEXT_BYTES + 300);
        assert!(context.contains("99:") && !context.contains("\n2:"));
        assert!(conversation_context(&[]).is_none());
    }
}
