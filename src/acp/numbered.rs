//! Numbers on messages, so that a connection that broke can continue where it stood.
//!
//! A number travels as the first member of the message: `{"_meta":{"lumilink":{"seq":7,"ack":3}},"jsonrpc":…`.
//! Only peers that asked for numbers get them, so a plain ACP peer never sees one. The text is put ahead of the
//! message and taken off again without reading the rest: a turn pays for some bytes, not for another parse.

use std::borrow::Cow;

/// What stands ahead of the numbers; the form is fixed, since both ends are ours.
const HEAD: &str = r#"{"_meta":{"lumilink":{"seq":"#;
const ACK: &str = r#","ack":"#;
const TAIL: &str = "}},";

/// The numbers of one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Numbers {
    /// The number of this message in its direction, from 1, without gaps. 0: the message has none and only
    /// brings `ack`.
    pub seq: u64,
    /// The last number of the other direction up to which everything has arrived and need not be sent again.
    pub ack: u64,
}

/// Puts numbers on a message, which has to be a JSON object.
pub(crate) fn put(numbers: Numbers, message: &str) -> String {
    use std::fmt::Write;
    let rest = message.trim_start().strip_prefix('{').unwrap_or(message);
    let mut text = String::with_capacity(HEAD.len() + ACK.len() + TAIL.len() + 2 * 20 + rest.len());
    text.push_str(HEAD);
    // Writing to a string does not fail.
    let _ = write!(text, "{}{ACK}{}{TAIL}", numbers.seq, numbers.ack);
    text.push_str(rest);
    text
}

/// Takes the numbers off; `None` where the message has none.
pub(crate) fn take(text: &str) -> Option<(Numbers, Cow<'_, str>)> {
    let rest = text.strip_prefix(HEAD)?;
    let (seq, rest) = number(rest)?;
    let (ack, rest) = number(rest.strip_prefix(ACK)?)?;
    let rest = rest.strip_prefix(TAIL)?;
    Some((Numbers { seq, ack }, Cow::Owned(format!("{{{rest}"))))
}

/// The numbers alone, where the message may keep them.
pub(crate) fn peek(text: &str) -> Option<Numbers> {
    let (seq, rest) = number(text.strip_prefix(HEAD)?)?;
    let (ack, _) = number(rest.strip_prefix(ACK)?)?;
    Some(Numbers { seq, ack })
}

fn number(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|char: char| !char.is_ascii_digit())?;
    let (digits, rest) = text.split_at(end);
    Some((digits.parse().ok()?, rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_round_trip_without_changing_the_message() {
        let message = r#"{"jsonrpc":"2.0","method":"x","params":{"_meta":{"lumilink":{"seq":9}}, "y": 1.0}}"#;
        let numbers = Numbers { seq: 7, ack: u64::MAX };
        let text = put(numbers, message);
        assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok(), "{text}");
        assert_eq!(peek(&text), Some(numbers));
        let (taken, rest) = take(&text).unwrap();
        assert_eq!((taken, rest.as_ref()), (numbers, message));
        assert_eq!(take(message), None);
    }

    #[test]
    fn a_message_with_another_meta_has_no_numbers() {
        for text in [
            r#"{"_meta":{"lumilink":{"seq":-1,"ack":0}},"a":1}"#,
            r#"{"_meta":{"lumilink":{"seq":99999999999999999999,"ack":0}},"a":1}"#,
            r#"{"_meta":{"lumilink":{"seq":1}},"a":1}"#,
            r#"{"_meta":{"lumilink":{"seq":"#,
            "",
        ] {
            assert_eq!(take(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in ".*", cut in 0usize..80) {
            let _ = take(&text);
            let numbered = put(Numbers { seq: 1, ack: 2 }, &text);
            let cut = numbered.char_indices().map(|(at, _)| at).nth(cut).unwrap_or(numbered.len());
            let _ = take(&numbered[..cut]);
            let _ = peek(&numbered[..cut]);
        }
    }
}
