//! An incremental parser of server-sent events with a size limit.

use std::collections::VecDeque;

/// The largest event, in bytes: twice the largest ACP message that a server accepts by default (16 MiB).
pub(crate) const MAX_EVENT_BYTES: usize = 32 * 1024 * 1024;

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct SseEvent {
    /// `event:`, `message` by default.
    pub kind: String,
    /// The most recent `id:`.
    pub id: Option<String>,
    /// All `data:` lines, joined by line ends.
    pub data: String,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SseError {
    /// An event is larger than the limit.
    #[error("an event is larger than {limit} bytes")]
    TooLarge { limit: usize },
    /// The data of an event is malformed.
    #[error("an event of type {kind:?} has malformed data: {cause}")]
    BadData {
        /// Type of the event, cleaned.
        kind: String,
        cause: String,
    },
}

/// Turns chunks of bytes into complete events. Format:
/// <https://html.spec.whatwg.org/multipage/server-sent-events.html>.
#[derive(Debug)]
pub(crate) struct SseParser {
    limit: usize,
    line: Vec<u8>,
    after_return: bool,
    kind: String,
    data: String,
    has_data: bool,
    last_id: Option<String>,
    ready: VecDeque<SseEvent>,
}

impl SseParser {
    /// Refuses events over `limit` bytes.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            limit,
            line: Vec::new(),
            after_return: false,
            kind: String::new(),
            data: String::new(),
            has_data: false,
            last_id: None,
            ready: VecDeque::new(),
        }
    }

    /// Parses the next bytes.
    ///
    /// # Errors
    /// An event exceeds the limit; the stream cannot be read further.
    pub(crate) fn push(&mut self, mut bytes: &[u8]) -> Result<(), SseError> {
        if self.after_return && !bytes.is_empty() {
            self.after_return = false;
            bytes = bytes.strip_prefix(b"\n").unwrap_or(bytes);
        }
        while let Some(end) = bytes.iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
            self.grow(&bytes[..end])?;
            let ended_by_return = bytes[end] == b'\r';
            bytes = &bytes[end + 1..];
            if ended_by_return {
                self.after_return = bytes.is_empty();
                bytes = bytes.strip_prefix(b"\n").unwrap_or(bytes);
            }
            self.end_of_line();
        }
        self.grow(bytes)
    }

    pub(crate) fn next_event(&mut self) -> Option<SseEvent> {
        self.ready.pop_front()
    }

    fn grow(&mut self, bytes: &[u8]) -> Result<(), SseError> {
        if self.line.len() + self.data.len() + bytes.len() > self.limit {
            return Err(SseError::TooLarge { limit: self.limit });
        }
        self.line.extend_from_slice(bytes);
        Ok(())
    }

    fn end_of_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        let line = String::from_utf8_lossy(&line);
        if line.is_empty() {
            self.end_of_event();
            return;
        }
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.kind),
            "data" => {
                if self.has_data {
                    self.data.push('\n');
                }
                self.data.push_str(value);
                self.has_data = true;
            }
            "id" if !value.contains('\0') => self.last_id = Some(value.to_owned()),
            // `retry`, comments (an empty name) and unknown fields.
            _ => {}
        }
    }

    fn end_of_event(&mut self) {
        let kind = std::mem::take(&mut self.kind);
        let data = std::mem::take(&mut self.data);
        if std::mem::take(&mut self.has_data) {
            let kind = if kind.is_empty() { "message".to_owned() } else { kind };
            self.ready.push_back(SseEvent { kind, id: self.last_id.clone(), data });
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn events(parser: &mut SseParser) -> Vec<(String, Option<String>, String)> {
        std::iter::from_fn(|| parser.next_event()).map(|event| (event.kind, event.id, event.data)).collect()
    }

    #[test]
    fn fields_comments_and_joined_data_are_read() {
        let mut parser = SseParser::new(1000);
        parser.push(b": hello\n\nevent: update\nid: 7\ndata: {\"a\":\ndata: 1}\nretry: 5\n\ndata:x\n\n").unwrap();
        let seven = Some("7".to_owned());
        assert_eq!(
            events(&mut parser),
            [("update".into(), seven.clone(), "{\"a\":\n1}".into()), ("message".into(), seven, "x".into())]
        );
    }

    #[test]
    fn an_event_needs_its_empty_line() {
        let mut parser = SseParser::new(1000);
        parser.push(b"data: half\n").unwrap();
        assert_eq!(parser.next_event(), None);
    }

    #[test]
    fn an_event_over_the_limit_is_refused_on_one_or_many_lines() {
        let mut one_line = SseParser::new(100);
        assert_eq!(one_line.push(&[b'x'; 101]), Err(SseError::TooLarge { limit: 100 }));
        let mut many = SseParser::new(100);
        let refused = (0..20).try_for_each(|_| many.push(b"data: 12345678\n"));
        assert_eq!(refused, Err(SseError::TooLarge { limit: 100 }));
        let mut small_ones = SseParser::new(100);
        (0..50).try_for_each(|_| small_ones.push(b"data: 12345678\n\n")).unwrap();
    }

    proptest! {
        #[test]
        fn chunk_boundaries_do_not_matter(
            lines in proptest::collection::vec("(data|id|event|x)(: ?[a-zé]{0,4})?", 0..12),
            end in "(\n|\r\n|\r)",
            cuts in proptest::collection::vec(0usize..200, 0..6),
        ) {
            let text: String = lines.iter().map(|line| format!("{line}{end}{}", if line.starts_with('x') { end.as_str() } else { "" })).collect();
            let mut whole = SseParser::new(10_000);
            whole.push(text.as_bytes()).unwrap();
            let mut parts = SseParser::new(10_000);
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut % (text.len() + 1)).collect();
            cuts.sort_unstable();
            let mut from = 0;
            for cut in cuts {
                parts.push(&text.as_bytes()[from..cut]).unwrap();
                from = cut;
            }
            parts.push(&text.as_bytes()[from..]).unwrap();
            prop_assert_eq!(events(&mut whole), events(&mut parts));
        }
    }
}
