//! Secrets that the process knows by value: those of its configuration. They are redacted wherever they occur.
//!
//! The only state of this module, because every text passes it: a handle would have to reach each of them.

use std::{
    borrow::Cow,
    collections::BTreeSet,
    sync::{PoisonError, RwLock},
};

use regex::{NoExpand, Regex, RegexBuilder};

use super::REDACTED;

/// The shortest value that is hidden, in bytes; a shorter one would hide parts of innocent text.
const SHORTEST: usize = 8;
/// Ends of the names of variables whose values are credentials. Names such as `TOKEN_PATH` have places as values.
const CREDENTIALS: [&str; 5] = ["KEY", "TOKEN", "SECRET", "PASSWORD", "PASSWD"];

static KNOWN: RwLock<Option<Known>> = RwLock::new(None);

struct Known {
    values: BTreeSet<String>,
    in_text: Regex,
    /// The values as they are written in JSON.
    in_json: Regex,
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
    all.extend(values.into_iter().filter(|value| value.len() >= SHORTEST && !REDACTED.contains(value.as_str())));
    let escaped = |value: &String| {
        let json = serde_json::Value::from(value.as_str()).to_string();
        json[1..json.len() - 1].to_owned()
    };
    let (in_text, in_json) = (one_of(all.iter().cloned().collect()), one_of(all.iter().map(escaped).collect()));
    if let (Some(in_text), Some(in_json)) = (in_text, in_json) {
        *known = Some(Known { values: all, in_text, in_json });
    }
}

/// A pattern for these values, the longest first; `None` without values.
fn one_of(mut values: Vec<String>) -> Option<Regex> {
    values.sort_by_key(|value| std::cmp::Reverse(value.len()));
    let patterns: Vec<_> = values.iter().map(|value| regex::escape(value)).collect();
    let size = 64 * 1024 * 1024;
    (!patterns.is_empty()).then(|| RegexBuilder::new(&patterns.join("|")).size_limit(size).build().ok())?
}

pub(super) fn redact(text: Cow<'_, str>) -> Cow<'_, str> {
    let known = KNOWN.read().unwrap_or_else(PoisonError::into_inner);
    let Some(known) = known.as_ref() else { return text };
    let changed = match known.in_text.replace_all(&text, NoExpand(REDACTED)) {
        Cow::Borrowed(_) => None,
        Cow::Owned(changed) => Some(changed),
    };
    changed.map_or(text, Cow::Owned)
}

/// True if a value occurs in serialised JSON.
pub(super) fn are_in(json: &str) -> bool {
    let known = KNOWN.read().unwrap_or_else(PoisonError::into_inner);
    known.as_ref().is_some_and(|known| known.in_json.is_match(json))
}
