//! Redaction: removes secrets from text and from JSON.
//!
//! Free text becomes [`Redacted`], JSON becomes [`RedactedJson`]. Shapes of secrets are found in texts only, never in
//! serialised JSON: each string of a JSON document is decoded, redacted and encoded by itself, so that structure,
//! numbers and the order of members stay as they are. Columns and messages that hold JSON take [`RedactedJson`], which
//! cannot be made from a `&str`.
//!
//! Rules, each with a corpus in this folder (`innocent.txt`, `secrets.txt`):
//! - A shape begins and ends at the edge of a word: `risk-adjusted` and `task-notification-center.md` stay whole.
//! - A shape whose prefix is also English or a common identifier needs a random part (digits among letters).
//! - In JSON, a string member with the name of a credential ([`names`]) is a secret whatever its value looks like.
//! - The values of the process's own secrets ([`known`]) are secrets wherever they occur, also when the parts of a text
//!   split them ([`stream`]).
//! - Redaction is idempotent and takes time linear in the length of the text.

mod json;
pub(crate) mod known;
mod names;
mod shapes;
pub(crate) mod stream;
pub(crate) mod variables;

use std::{borrow::Cow, fmt};

use serde::Serialize;
use serde_json::value::RawValue;

/// The replacement of a secret.
pub(crate) const REDACTED: &str = "[redacted]";

/// Text without secrets of a known shape. Text reaches disk, log, notification or GitHub only as this or as
/// [`RedactedJson`].
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Redacted(String);

impl Redacted {
    /// Redacts free text. Serialised JSON belongs in [`RedactedJson`].
    pub(crate) fn new(text: &str) -> Self {
        Self(shapes::redact(text).into_owned())
    }

    /// Wraps text that was redacted before it was persisted; only for the store.
    pub(crate) fn from_kept(text: String) -> Self {
        Self(text)
    }

    /// Transforms the text. `change` must not add text from another source.
    pub(crate) fn map(self, change: impl FnOnce(&str) -> String) -> Self {
        Self(change(&self.0))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    pub(crate) fn into_string(self) -> String {
        self.0
    }
}

impl fmt::Debug for Redacted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for Redacted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// JSON of which each string is redacted; always valid.
#[derive(Clone)]
pub(crate) struct RedactedJson(Box<RawValue>);

impl RedactedJson {
    /// Redacts a JSON document; what holds no secret is kept to the byte.
    pub(crate) fn new(raw: &RawValue) -> Self {
        match json::redact(raw.get()) {
            Cow::Borrowed(_) => Self(raw.to_owned()),
            // A document that redaction made invalid is not kept; the tests know of none.
            Cow::Owned(text) => Self::from_kept(text).unwrap_or_else(|| Self(RawValue::NULL.to_owned())),
        }
    }

    /// Serialises and redacts a value; `null` if it does not serialise, which no value of this crate does.
    pub(crate) fn of(value: &impl Serialize) -> Self {
        serde_json::value::to_raw_value(value).map_or_else(|_| Self(RawValue::NULL.to_owned()), |raw| Self::new(&raw))
    }

    /// Wraps JSON that was redacted before it was persisted; only for the store. `None` if it is not JSON.
    pub(crate) fn from_kept(text: String) -> Option<Self> {
        RawValue::from_string(text).ok().map(Self)
    }

    pub(crate) fn as_raw(&self) -> &RawValue {
        &self.0
    }

    pub(crate) fn as_str(&self) -> &str {
        self.0.get()
    }

    pub(crate) fn into_raw(self) -> Box<RawValue> {
        self.0
    }

    pub(crate) fn into_string(self) -> String {
        Box::<str>::from(self.0).into()
    }
}

/// Redacts a JSON document that is passed on.
pub(crate) fn of_json(json: &str) -> Cow<'_, str> {
    json::redact(json)
}

/// Finds secrets that must not be published, in the order of their places: the offset and the name of the rule. Stricter
/// than redaction: tokens with a prefix of their own, private keys, and known values.
pub(crate) fn secrets(text: &str) -> Vec<(usize, &'static str)> {
    shapes::secrets(text)
}

/// Redacts known values in text that is passed on.
pub(crate) fn known_of_text(text: &str) -> Cow<'_, str> {
    known::redact(Cow::Borrowed(text))
}

/// Redacts known values in a JSON document that is passed on to another process, which needs everything else.
pub(crate) fn known_of_json(json: &str) -> Cow<'_, str> {
    json::redact_known(json)
}

/// Redacts a JSON document that the caller has just written, so that it need not be read to check it: the log, which has
/// many small ones.
pub(crate) fn of_written_json(json: String) -> String {
    let changed = match json::redact(&json) {
        Cow::Borrowed(_) => None,
        Cow::Owned(changed) => Some(changed),
    };
    changed.unwrap_or(json)
}

impl fmt::Debug for RedactedJson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl PartialEq for RedactedJson {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for RedactedJson {}

#[cfg(test)]
mod tests;
