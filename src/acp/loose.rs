//! Reads JSON of a peer value by value, so that one that cannot be read does not take the others along.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{Error, Visitor},
};
use serde_json::value::RawValue;

/// The largest integer up to which a float holds every one.
pub(crate) const MAX_EXACT: f64 = 9_007_199_254_740_992.0;

/// The members of a JSON object, each unread. Of a repeated member, the last.
#[derive(Debug, Default)]
pub(crate) struct Object<'a>(BTreeMap<Text, &'a RawValue>);

impl<'a> Object<'a> {
    /// Reads an object; `None` for any other value.
    pub(crate) fn read(json: &'a RawValue) -> Option<Self> {
        serde_json::from_str(json.get()).ok().map(Self)
    }

    /// Returns a member; `None` if it is missing or null.
    pub(crate) fn get(&self, name: &str) -> Option<&'a RawValue> {
        self.0.get(name).copied().filter(|raw| raw.get() != "null")
    }

    /// Returns the text of a member; `None` if it is not a string.
    pub(crate) fn text(&self, name: &str) -> Option<Cow<'a, str>> {
        self.get(name).and_then(text)
    }
}

/// A JSON string. Halves of surrogate pairs are U+FFFD.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Text(String);

impl std::borrow::Borrow<str> for Text {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl Visitor<'_> for Bytes {
            type Value = Text;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a string")
            }

            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Text, E> {
                Ok(Text(String::from_utf8_lossy(bytes).into_owned()))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Text, E> {
                Ok(Text(text.to_owned()))
            }
        }
        // Read as bytes, a JSON string may contain halves of surrogate pairs.
        from.deserialize_bytes(Bytes)
    }
}

/// The text of a JSON string; `None` for any other value. Halves of surrogate pairs become U+FFFD.
pub(crate) fn text(json: &RawValue) -> Option<Cow<'_, str>> {
    let inner = json.get().strip_prefix('"')?.strip_suffix('"')?;
    if !inner.contains('\\') {
        return Some(Cow::Borrowed(inner));
    }
    serde_json::from_str(json.get()).ok().map(|Text(text)| Cow::Owned(text))
}

/// The text of a JSON string, or the JSON of any other value.
pub(crate) fn text_or_json(json: &RawValue) -> Cow<'_, str> {
    text(json).unwrap_or(Cow::Borrowed(json.get()))
}

/// An integer: a number without a fraction, or a string with one; `None` for any other value.
pub(crate) fn integer(json: &RawValue) -> Option<i64> {
    let digits = text_or_json(json);
    let digits = digits.trim();
    if let Ok(number) = digits.parse() {
        return Some(number);
    }
    let number = digits.parse::<f64>().ok().filter(|number| number.fract() == 0.0 && number.abs() <= MAX_EXACT)?;
    #[expect(clippy::cast_possible_truncation, reason = "the value is in range and has no fraction")]
    Some(number as i64)
}

/// A count: an integer of 0 or more, a float, which is rounded, or a string with one; `None` for any other value.
pub(crate) fn count(json: &RawValue) -> Option<u64> {
    let digits = text_or_json(json);
    let digits = digits.trim();
    if let Ok(number) = digits.parse() {
        return Some(number);
    }
    let number = digits.parse::<f64>().ok().filter(|number| (0.0..=MAX_EXACT).contains(number))?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the value is in range")]
    Some(number.round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(json: &str) -> Box<RawValue> {
        RawValue::from_string(json.to_owned()).unwrap()
    }

    #[test]
    fn member_is_read_beside_unreadable_and_repeated_ones() {
        let json = raw(r#"{"a":1,"\ud800":2,"a":"x\ud800","n":null,"deep":[[[{}]]],"b":1e400}"#);
        let object = Object::read(&json).unwrap();
        assert_eq!(object.text("a").as_deref(), Some("x\u{fffd}\u{fffd}\u{fffd}"));
        assert!(object.get("n").is_none() && object.get("missing").is_none() && object.text("b").is_none());
        assert!(Object::read(&raw("[1]")).is_none() && Object::read(&raw("null")).is_none());
    }

    #[test]
    fn numbers_are_read_in_every_form() {
        for (json, integral, counted) in [
            ("7", Some(7), Some(7)),
            ("-32603", Some(-32603), None),
            ("-32603.0", Some(-32603), None),
            ("3.5", None, Some(4)),
            ("\"12\"", Some(12), Some(12)),
            ("\"many\"", None, None),
            ("1e400", None, None),
            ("\"NaN\"", None, None),
            ("18446744073709551615", None, Some(u64::MAX)),
            ("null", None, None),
            ("[1]", None, None),
            ("true", None, None),
        ] {
            assert_eq!((integer(&raw(json)), count(&raw(json))), (integral, counted), "{json}");
        }
    }
}
