//! A message that comes in several frames.

use bytes::BytesMut;

/// The parts that have come.
#[derive(Debug, Default)]
pub struct Fragments {
    parts: Option<BytesMut>,
}

/// What one part makes.
#[derive(Debug, PartialEq, Eq)]
pub enum Joined {
    /// More has to come.
    Nothing,
    /// The message.
    Whole(String),
    /// More than the limit.
    TooBig,
    /// Bytes that are no text.
    NoText(&'static str),
}

impl Fragments {
    /// The first part; what was left of another message is dropped.
    pub fn begin(&mut self, part: &[u8], limit: usize) -> Joined {
        self.parts = Some(BytesMut::new());
        self.add(part, limit, false)
    }

    /// Adds a part; all of them have at most `limit` bytes. A part of nothing is ignored.
    pub fn add(&mut self, part: &[u8], limit: usize, is_last: bool) -> Joined {
        let Some(parts) = &mut self.parts else { return Joined::Nothing };
        if parts.len() + part.len() > limit {
            self.parts = None;
            return Joined::TooBig;
        }
        parts.extend_from_slice(part);
        match self.parts.take_if(|_| is_last) {
            None => Joined::Nothing,
            Some(whole) => {
                String::from_utf8(whole.into()).map_or(Joined::NoText("a text is not UTF-8"), Joined::Whole)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_become_one_text_within_the_limit() {
        let mut fragments = Fragments::default();
        assert_eq!(fragments.add(b"a stray end", 5, true), Joined::Nothing);
        assert_eq!(fragments.begin(b"ab", 5), Joined::Nothing);
        assert_eq!(fragments.add(b"cd", 5, false), Joined::Nothing);
        assert_eq!(fragments.add(b"e", 5, true), Joined::Whole("abcde".into()));
        fragments.begin(b"abc", 5);
        assert_eq!(fragments.add(b"def", 5, false), Joined::TooBig);
        assert_eq!(fragments.add(b"", 5, true), Joined::Nothing, "nothing is left of it");
        fragments.begin(b"\xff", 5);
        assert!(matches!(fragments.add(b"", 5, true), Joined::NoText(_)));
    }
}
