//! Redaction of a text that arrives in parts: a value that the parts split is found too.

use std::ops::Range;

use super::{REDACTED, known};

/// Bytes of the shortest end of a part that is held back. Shorter ones end every tenth text, and show nothing of a value.
const HELD_FROM: usize = 3;

/// Redacts known values in the parts of one text. An end that may begin a value is held back until the next part, or until it
/// is flushed; it has at most the length of the longest value. Nothing is lost or reordered.
#[derive(Debug, Default)]
pub(crate) struct StreamRedaction {
    /// The newest bytes, with which a value may begin: first those that were flushed, then those that are held back.
    begun: Vec<u8>,
    /// The number of flushed bytes in `begun`.
    shown: usize,
}

impl StreamRedaction {
    /// The number of bytes that are held back.
    pub(crate) fn held(&self) -> usize {
        self.begun.len() - self.shown
    }

    /// True if the next part may complete a value.
    pub(crate) fn is_open(&self) -> bool {
        !self.begun.is_empty()
    }

    /// True if [`Self::push`] would return the part itself.
    pub(crate) fn leaves(&self, part: &[u8]) -> bool {
        let Some(known) = known::values() else { return self.begun.is_empty() };
        self.begun.is_empty() && known.begun_in(part) == part.len() && known.places_in(part).is_empty()
    }

    /// Adds a part, and returns what may be shown now.
    pub(crate) fn push(&mut self, part: &[u8]) -> Vec<u8> {
        let mut text = std::mem::take(&mut self.begun);
        let shown = std::mem::take(&mut self.shown);
        text.extend_from_slice(part);
        let Some(known) = known::values() else { return text.split_off(shown) };
        let places = known.places_in(&text);
        // The rest of a value that ends here may begin another one.
        let begun = known.begun_in(&text);
        let last = places.last().map_or(0, |place| place.end);
        let is_short = text.len() - begun < HELD_FROM;
        let to = if is_short { text.len() } else { begun.max(shown) };
        let out = replaced(&text, shown, to, &places);
        // The bytes up to `last` are redacted already.
        let shown_to = to.max(if begun < last { last } else { shown });
        self.shown = shown_to.saturating_sub(begun);
        self.begun = text.split_off(begun);
        self.shown = self.shown.min(self.begun.len());
        out
    }

    /// Returns what is held back, because the text goes no further for now. If the next part completes a value, the rest of
    /// it is redacted.
    pub(crate) fn flush(&mut self) -> Vec<u8> {
        let held = self.begun[self.shown..].to_vec();
        self.shown = self.begun.len();
        held
    }

    /// Ends the text, and returns what is held back.
    pub(crate) fn finish(&mut self) -> Vec<u8> {
        let held = self.flush();
        *self = Self::default();
        held
    }
}

/// The bytes from `from` to `to`, with places replaced. A place that begins earlier is replaced from `from` on, and one that
/// reaches beyond `to` as a whole.
fn replaced(text: &[u8], from: usize, to: usize, places: &[Range<usize>]) -> Vec<u8> {
    let (mut out, mut at) = (Vec::with_capacity(to - from), from);
    for place in places.iter().filter(|place| place.end > from) {
        if place.start > at {
            out.extend_from_slice(&text[at..place.start]);
        }
        out.extend_from_slice(REDACTED.as_bytes());
        at = place.end;
    }
    if at < to {
        out.extend_from_slice(&text[at..to]);
    }
    out
}
