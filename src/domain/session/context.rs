//! The conversation so far as context for an agent that did not take part in it.

use crate::domain::{text, turn::prompt::CONTEXT_HEADING};

/// One message of a conversation.
#[derive(Debug, Clone)]
pub(crate) struct Remark {
    /// True for the user's messages, false for the agent's.
    pub by_user: bool,
    pub text: String,
}

/// The part of the conversation that the agent of a connection lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Missing {
    Nothing,
    /// The text to send ahead of the next prompt.
    Text(String),
    /// Unknown; to be read ahead of the next prompt.
    Unread,
}

impl Missing {
    /// Returns the part that the agent lacks after a turn. The text ahead of a prompt counts as delivered only if its turn completed; a
    /// turn that never reached the agent is missing itself. An agent that ends with its turn (`is_lasting` is false)
    /// leaves no memory.
    pub(crate) fn after_turn(&self, is_completed: bool, was_sent: bool, is_lasting: bool) -> Self {
        match self {
            _ if !is_lasting => Self::Unread,
            _ if is_completed => Self::Nothing,
            Self::Nothing if was_sent => Self::Nothing,
            _ => Self::Unread,
        }
    }

    /// The text to send ahead of a prompt; `None` if there is none, or it was not read.
    pub(crate) fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Nothing | Self::Unread => None,
        }
    }
}

impl From<Vec<Remark>> for Missing {
    /// Renders messages that the agent does not know.
    fn from(messages: Vec<Remark>) -> Self {
        conversation_context(&messages).map_or(Self::Nothing, Self::Text)
    }
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
        "{CONTEXT_HEADING}\n\nThis session continues with a fresh process. The messages below are from before \
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

    #[test]
    fn text_ahead_of_a_prompt_is_delivered_only_by_a_completed_turn() {
        let text = Missing::Text("before".into());
        for (missing, is_completed, was_sent, after) in [
            (&text, true, true, Missing::Nothing),
            (&text, false, true, Missing::Unread),
            (&text, false, false, Missing::Unread),
            (&Missing::Nothing, true, true, Missing::Nothing),
            (&Missing::Nothing, false, true, Missing::Nothing),
            (&Missing::Nothing, false, false, Missing::Unread),
            (&Missing::Unread, false, false, Missing::Unread),
        ] {
            assert_eq!(missing.after_turn(is_completed, was_sent, true), after, "{missing:?}");
            assert_eq!(missing.after_turn(is_completed, was_sent, false), Missing::Unread, "{missing:?}");
        }
    }
}
