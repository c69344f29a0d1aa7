//! Ids of JSON-RPC requests. Those of this side are numbers; those of a peer are repeated verbatim, whatever they are.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

use super::loose::MAX_EXACT;

/// The id of a request: any JSON value. It is written as it was read.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum RequestId {
    Null,
    /// An integer of 64 bits with a sign, in its usual form.
    Number(i64),
    /// A string without escapes.
    Str(String),
    /// The JSON text of any other value: a larger integer, a fraction, a string with escapes.
    Raw(Box<str>),
}

/// The longest text that can be the id of a request of this side, in bytes.
const MAX_OWN_LEN: usize = 32;

impl RequestId {
    /// Reads an id from its JSON.
    pub(crate) fn read(json: &RawValue) -> Self {
        let text = json.get();
        if text == "null" {
            return Self::Null;
        }
        match text.parse::<i64>() {
            // `-0` is a number too, and has to stay as it is.
            Ok(number) if text != "-0" => return Self::Number(number),
            _ => {}
        }
        match text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
            Some(inner) if !inner.contains('\\') => Self::Str(inner.to_owned()),
            _ => Self::Raw(text.into()),
        }
    }

    /// Converts the id of an answer back to the number of the request; `None` if no request of this side had it. Some
    /// peers turn the number into a float (`3.0`) or a string.
    pub(crate) fn as_number(&self) -> Option<u64> {
        match self {
            Self::Number(number) => u64::try_from(*number).ok(),
            Self::Str(text) => text.parse().ok(),
            Self::Raw(text) if text.len() <= MAX_OWN_LEN => {
                let number = text.parse::<f64>().ok()?;
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "checked in the condition"
                )]
                (number.fract() == 0.0 && (0.0..=MAX_EXACT).contains(&number)).then_some(number as u64)
            }
            Self::Raw(_) | Self::Null => None,
        }
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => out.write_str("null"),
            Self::Number(number) => write!(out, "{number}"),
            Self::Str(text) => write!(out, "\"{text}\""),
            Self::Raw(text) => out.write_str(text),
        }
    }
}

impl Serialize for RequestId {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => to.serialize_unit(),
            Self::Number(number) => to.serialize_i64(*number),
            Self::Str(text) => to.serialize_str(text),
            Self::Raw(text) => {
                serde_json::from_str::<&RawValue>(text).map_err(serde::ser::Error::custom)?.serialize(to)
            }
        }
    }
}

impl<'de> Deserialize<'de> for RequestId {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Ok(Self::read(&Box::<RawValue>::deserialize(from)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_id_is_written_as_it_was_read() {
        for json in [
            "null",
            "0",
            "-0",
            "7",
            "-7",
            "9223372036854775807",
            "9223372036854775808",
            "18446744073709551615",
            "7.5",
            "3.0",
            "1e400",
            "\"a\"",
            "\"\"",
            r#""\u0041\ud800 \"b\"""#,
            "true",
            "[1, 2]",
            r#"{"a": 1.0}"#,
        ] {
            let id: RequestId = serde_json::from_str(json).unwrap();
            assert_eq!(serde_json::to_string(&id).unwrap(), json);
            assert_eq!(id.to_string(), json);
        }
    }

    #[test]
    fn number_of_a_request_is_recognised_as_float_and_as_text() {
        let number = |json: &str| serde_json::from_str::<RequestId>(json).unwrap().as_number();
        for json in ["3", "3.0", "3e0", "0.3e1", "\"3\""] {
            assert_eq!(number(json), Some(3), "{json}");
        }
        let long = format!("3.{}", "0".repeat(100));
        for json in ["3.5", "-3", "-3.0", "1e30", "1e400", "\"three\"", "null", "[3]", "\"\\u0033\"", &long] {
            assert_eq!(number(json), None, "{json}");
        }
    }
}
