//! Secrets that the process knows by value: those of its configuration. They are redacted wherever they occur.
//!
//! The only state of this module, because every text passes it: a handle would have to reach each of them.

use std::{
    borrow::Cow,
    collections::BTreeSet,
    ops::{Bound, Range},
    sync::{Arc, PoisonError, RwLock},
};

use aho_corasick::AhoCorasick;

use super::REDACTED;

/// The shortest value that is hidden, in bytes; a shorter one would hide parts of innocent text.
const SHORTEST: usize = 8;
/// The longest value that is searched as a whole, in bytes; a longer one, such as a file, is hidden piece by piece. Bounds
/// what a stream holds back.
const LONGEST: usize = 4096;
/// Ends of the names of variables whose values are credentials. Names such as `TOKEN_PATH` have places as values.
const CREDENTIALS: [&str; 5] = ["KEY", "TOKEN", "SECRET", "PASSWORD", "PASSWD"];

static KNOWN: RwLock<Option<Arc<Known>>> = RwLock::new(None);

/// The values, with what finds them.
pub(super) struct Known {
    values: BTreeSet<Vec<u8>>,
    in_text: AhoCorasick,
    /// The values as they are written in JSON.
    in_json: AhoCorasick,
    /// True for the bytes with which a value begins.
    begins: [bool; 256],
    longest: usize,
}

/// True if the value of a variable with this name is a credential.
pub(crate) fn is_credential(variable: &str) -> bool {
    let name = variable.to_ascii_uppercase();
    CREDENTIALS.iter().any(|end| name.ends_with(end))
}

/// Hides values from now on, beside those of earlier calls. Values under 8 bytes are left out.
pub(crate) fn hide(values: impl IntoIterator<Item = String>) {
    let mut known = KNOWN.write().unwrap_or_else(PoisonError::into_inner);
    let mut all = known.as_ref().map(|known| known.values.clone()).unwrap_or_default();
    let before = all.len();
    for value in values.into_iter().filter(|value| !REDACTED.contains(value.as_str())) {
        // Programs print texts with quotes and line ends in the form of JSON, too.
        let escaped = in_json(value.as_bytes());
        all.extend(pieces(value.as_bytes()));
        all.extend(pieces(&escaped));
    }
    if all.len() != before
        && let Some(new) = Known::new(all)
    {
        *known = Some(Arc::new(new));
    }
}

/// The parts of a value that are hidden.
fn pieces(value: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    value.chunks(LONGEST).filter(|piece| piece.len() >= SHORTEST).map(<[u8]>::to_vec)
}

/// The text between the quotes of a JSON string.
fn in_json(value: &[u8]) -> Vec<u8> {
    let json = serde_json::Value::from(String::from_utf8_lossy(value)).to_string();
    json.as_bytes()[1..json.len() - 1].to_vec()
}

impl Known {
    /// `None` for values that cannot be searched: without any, or with more than fit into memory.
    fn new(values: BTreeSet<Vec<u8>>) -> Option<Self> {
        let in_text = AhoCorasick::new(&values).ok()?;
        let escaped: BTreeSet<_> = values.iter().map(|value| in_json(value)).collect();
        let in_json = AhoCorasick::new(escaped).ok()?;
        let mut begins = [false; 256];
        values.iter().for_each(|value| begins[usize::from(value[0])] = true);
        let longest = values.iter().map(Vec::len).max().unwrap_or_default();
        (longest > 0).then_some(Self { values, in_text, in_json, begins, longest })
    }

    /// The places of values in a text, in order. Values that overlap have one place together.
    pub(super) fn places_in(&self, text: &[u8]) -> Vec<Range<usize>> {
        // Usually there is none, which is found much faster than all.
        if !self.in_text.is_match(text) {
            return Vec::new();
        }
        let mut found: Vec<_> = self.in_text.find_overlapping_iter(text).map(|found| found.range()).collect();
        found.sort_by_key(|place| place.start);
        let mut places: Vec<Range<usize>> = Vec::new();
        for place in found {
            match places.last_mut().filter(|last| place.start < last.end) {
                Some(last) => last.end = last.end.max(place.end),
                None => places.push(place),
            }
        }
        places
    }

    /// The start of the longest end of `text` with which a longer value begins; the length of `text` if there is none.
    pub(super) fn begun_in(&self, text: &[u8]) -> usize {
        let first = text.len().saturating_sub(self.longest - 1);
        (first..text.len()).find(|start| self.is_begin(&text[*start..])).unwrap_or(text.len())
    }

    /// True if a longer value begins with `text`.
    fn is_begin(&self, text: &[u8]) -> bool {
        let Some(byte) = text.first() else { return false };
        if !self.begins[usize::from(*byte)] {
            return false;
        }
        // Values that begin with a text follow it in the order of values.
        let after = self.values.range::<[u8], _>((Bound::Excluded(text), Bound::Unbounded)).next();
        after.is_some_and(|value| value.starts_with(text))
    }
}

/// The values that are known now.
pub(super) fn values() -> Option<Arc<Known>> {
    KNOWN.read().unwrap_or_else(PoisonError::into_inner).clone()
}

pub(super) fn redact(text: Cow<'_, str>) -> Cow<'_, str> {
    let places = values().map(|known| known.places_in(text.as_bytes())).unwrap_or_default();
    if places.is_empty() {
        return text;
    }
    let (mut shown, mut at) = (String::with_capacity(text.len()), 0);
    for place in places {
        // Values are whole characters, except for pieces of long ones.
        shown.push_str(&String::from_utf8_lossy(&text.as_bytes()[at..place.start]));
        shown.push_str(REDACTED);
        at = place.end;
    }
    shown.push_str(&String::from_utf8_lossy(&text.as_bytes()[at..]));
    Cow::Owned(shown)
}

/// True if a value occurs in serialised JSON, as usual encoders write it.
pub(super) fn are_in(json: &str) -> bool {
    values().is_some_and(|known| known.in_json.is_match(json))
}
