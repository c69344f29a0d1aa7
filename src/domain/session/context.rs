//! The conversation so far, as context for an agent that did not see it.

use crate::domain::text;

/// One thing that was said.
#[derive(Debug, Clone)]
pub(crate) struct Remark {
    /// Whether the user said it; else the agent.
    pub by_user: bool,
    pub text: String,
}

/// The longest context, in bytes. The newest part is kept: about 16,000 tokens.
pub(crate) const MAX_CONTEXT_BYTES: usize = 64 * 1024;

/// Writes the conversation as Markdown, the newest part where it does not fit; `None` where nothing was
/// said.
pub(crate) fn conversation_context(said: &[Remark]) -> Option<String> {
    let mut parts = Vec::new();
    let mut room = MAX_CONTEXT_BYTES;
    for Remark { by_user, text } in said.iter().rev() {
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
        "# The conversation so far\n\nThis session goes on with a fresh process. What follows was said before; \
         it is for reference and asks for nothing.\n\n{}",
        parts.join("\n")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_part_is_kept_and_the_size_is_bounded() {
        let said: Vec<_> =
            (0..100).map(|n| Remark { by_user: n % 2 == 0, text: format!("{n}:{}", "é".repeat(2000)) }).collect();
        let context = conversation_context(&said).unwrap();
        assert!(context.len() <= MAX_CONTEXT_BYTES + 300);
        assert!(context.contains("99:") && !context.contains("\n2:"));
        assert!(conversation_context(&[]).is_none());
    }
}
