//! The JSON-RPC 2.0 envelope: one message, read without copying and written without a tree.
//!
//! `params`, `result` and `error.data` stay raw, so unknown fields, unknown updates and `_meta` pass
//! through untouched.

use std::borrow::Cow;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

use super::schema::RequestId;

/// `-32700`: not JSON.
pub(crate) const PARSE_ERROR: i64 = -32700;
/// `-32600`: JSON, but not a request.
pub(crate) const INVALID_REQUEST: i64 = -32600;
/// `-32601`: a method that this side does not have.
pub(crate) const METHOD_NOT_FOUND: i64 = -32601;
/// `-32602`: the caller's parameters are wrong.
pub(crate) const INVALID_PARAMS: i64 = -32602;
/// `-32603`: the callee failed.
pub(crate) const INTERNAL_ERROR: i64 = -32603;
/// `-32000`: the agent wants `authenticate` first.
pub(crate) const AUTH_REQUIRED: i64 = -32000;
/// `-32002`: a file, session or terminal that does not exist.
pub(crate) const RESOURCE_NOT_FOUND: i64 = -32002;
/// `-32800`: the request was cancelled.
pub(crate) const REQUEST_CANCELLED: i64 = -32800;

/// An error as it stands in a response.
#[derive(Debug, Clone, Serialize, Deserialize, thiserror::Error)]
#[error("{message} (JSON-RPC {code})")]
pub(crate) struct RpcError {
    /// One of the codes above, or the agent's own.
    pub code: i64,
    /// A sentence.
    #[serde(default)]
    pub message: String,
    /// Whatever the sender added.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Box<RawValue>>,
}

impl RpcError {
    /// Makes an error without data.
    pub(crate) fn new(code: i64, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), data: None }
    }
}

/// One message, borrowed from the text that it was read from.
#[derive(Debug)]
pub(crate) enum Message<'a> {
    /// Wants an answer.
    Request {
        /// To be repeated in the answer.
        id: RequestId,
        /// The method's spec name.
        method: Cow<'a, str>,
        /// `null` where absent.
        params: &'a RawValue,
    },
    /// Wants none.
    Notification {
        /// The method's spec name.
        method: Cow<'a, str>,
        /// `null` where absent.
        params: &'a RawValue,
    },
    /// Answers a request of ours.
    Response {
        /// The id of that request.
        id: RequestId,
        /// Outcome of it; `null` where the result was absent.
        result: Result<&'a RawValue, RpcError>,
    },
}

/// Why a text is no message.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FrameError {
    /// Not JSON, or JSON of another shape than an object.
    #[error("not a JSON-RPC object: {0}")]
    NotJson(#[from] serde_json::Error),
    /// An object with neither a method nor an id.
    #[error("a JSON object with neither `method` nor `id`")]
    NotAMessage,
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(default, deserialize_with = "present")]
    id: Option<RequestId>,
    #[serde(borrow, default)]
    method: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    params: Option<&'a RawValue>,
    #[serde(borrow, default)]
    result: Option<&'a RawValue>,
    #[serde(default)]
    error: Option<RpcError>,
}

/// Tells `"id": null` from an absent id.
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Option<T>, D::Error> {
    T::deserialize(from).map(Some)
}

/// Reads one message. Fields that JSON-RPC does not know are ignored, as is the value of `jsonrpc`: some
/// agents leave it out.
pub(crate) fn parse(text: &str) -> Result<Message<'_>, FrameError> {
    let Envelope { id, method, params, result, error } = serde_json::from_str(text)?;
    match (id, method) {
        (Some(id), Some(method)) => Ok(Message::Request { id, method, params: params.unwrap_or(RawValue::NULL) }),
        (None, Some(method)) => Ok(Message::Notification { method, params: params.unwrap_or(RawValue::NULL) }),
        (Some(id), None) => Ok(Message::Response {
            id,
            result: match error {
                Some(error) => Err(error),
                None => Ok(result.unwrap_or(RawValue::NULL)),
            },
        }),
        (None, None) => Err(FrameError::NotAMessage),
    }
}

/// The `jsonrpc` member.
struct Version;

impl Serialize for Version {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str("2.0")
    }
}

#[derive(Serialize)]
struct Outgoing<'a, P: Serialize, R: Serialize> {
    jsonrpc: Version,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a RequestId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    params: Option<P>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<R>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a RpcError>,
}

type Nothing = Option<()>;

fn write<P: Serialize, R: Serialize>(message: &Outgoing<'_, P, R>) -> String {
    serde_json::to_string(message).unwrap_or_else(|cause| {
        // Only a map with a key that is no string gets here; none of our types has one.
        unreachable!("a message of our own types serialises: {cause}")
    })
}

/// Writes a request.
pub(crate) fn request(id: u64, method: &str, params: impl Serialize) -> String {
    let id = RequestId::Number(i64::try_from(id).unwrap_or(i64::MAX));
    write(&Outgoing {
        jsonrpc: Version,
        id: Some(&id),
        method: Some(method),
        params: Some(params),
        result: Nothing::None,
        error: None,
    })
}

/// Writes a notification.
pub(crate) fn notification(method: &str, params: impl Serialize) -> String {
    write(&Outgoing {
        jsonrpc: Version,
        id: None,
        method: Some(method),
        params: Some(params),
        result: Nothing::None,
        error: None,
    })
}

/// Writes an answer.
pub(crate) fn response(id: &RequestId, result: Result<impl Serialize, &RpcError>) -> String {
    let (result, error) = match result {
        Ok(result) => (Some(result), None),
        Err(error) => (None, Some(error)),
    };
    write(&Outgoing { jsonrpc: Version, id: Some(id), method: None, params: Nothing::None, result, error })
}

/// The id as the number that [`request`] wrote; `None` for an id that is not one of ours.
pub(crate) fn own_id(id: &RequestId) -> Option<u64> {
    match id {
        RequestId::Number(number) => u64::try_from(*number).ok(),
        _ => None,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn request_notification_and_response_differ() {
        assert!(matches!(parse(r#"{"jsonrpc":"2.0","id":1,"method":"m"}"#), Ok(Message::Request { .. })));
        assert!(matches!(parse(r#"{"jsonrpc":"2.0","method":"m","params":{}}"#), Ok(Message::Notification { .. })));
        assert!(matches!(parse(r#"{"id":"x","result":null}"#), Ok(Message::Response { result: Ok(_), .. })));
        assert!(matches!(
            parse(r#"{"id":3,"error":{"code":-32603,"message":"no","data":{"a":1}}}"#),
            Ok(Message::Response { result: Err(RpcError { code: INTERNAL_ERROR, .. }), .. })
        ));
    }

    #[test]
    fn an_id_that_is_null_is_still_an_id() {
        assert!(matches!(
            parse(r#"{"id":null,"error":{"code":-32700,"message":"parse"}}"#),
            Ok(Message::Response { id: RequestId::Null, .. })
        ));
    }

    #[test]
    fn malformed_message_is_rejected() {
        for text in ["", "garbage", "[]", "1", "\"x\"", "{}", r#"{"params":1}"#] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn params_stay_as_they_were_written() {
        let text = r#"{"method":"session/update","params":{"b":1.0,  "a":[1e2],"_meta":{"x":"é"}}}"#;
        let Ok(Message::Notification { params, .. }) = parse(text) else { panic!("a notification") };
        assert_eq!(params.get(), r#"{"b":1.0,  "a":[1e2],"_meta":{"x":"é"}}"#);
    }

    #[test]
    fn writer_output_is_readable() {
        let text = response(&RequestId::Number(7), Err::<(), _>(&RpcError::new(METHOD_NOT_FOUND, "no such method")));
        assert_eq!(text, r#"{"jsonrpc":"2.0","id":7,"error":{"code":-32601,"message":"no such method"}}"#);
        assert_eq!(
            request(1, "session/prompt", serde_json::json!({"a": 1})),
            r#"{"jsonrpc":"2.0","id":1,"method":"session/prompt","params":{"a":1}}"#
        );
    }

    /// Text that is nearly a message: pieces of one in any order, and cut anywhere.
    pub(crate) fn nearly_a_frame() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            Just("{".to_owned()),
            Just("}".to_owned()),
            Just(",".to_owned()),
            Just("\"jsonrpc\":\"2.0\"".to_owned()),
            "\"id\":(null|-?[0-9]{1,22}|\"[a-z]{0,3}\"|\\[\\]|1e400|1\\.5)",
            "\"method\":(\"session/(update|request_permission)\"|\"_lumilink/(stray_line|agent_exited)\"|7|\"\\\\ud800\")",
            "\"params\":(null|\\[1\\]|\\{\"update\":(\\{\\}|3)(,\"_meta\":[0-9])?\\}|\\{\"line\":[0-9]\\})",
            "\"(result|error)\":(null|\\{\"code\":-?[0-9]{1,20},\"message\":(\"m\"|1)\\}|\\{\\}|true)",
            "\\PC{0,6}",
        ];
        let whole = prop::collection::vec(piece.clone(), 0..6).prop_map(|pieces| format!("{{{}}}", pieces.join(",")));
        let pieces = prop::collection::vec(piece, 0..6).prop_map(|pieces| pieces.concat());
        let deep = (1usize..3000).prop_map(|depth| format!("{{\"method\":\"m\",\"params\":{}", "[".repeat(depth)));
        (prop_oneof![8 => whole, 4 => pieces, 1 => deep], 0usize..400).prop_map(|(mut text, cut)| {
            // Most of them stay whole.
            text.truncate(text.floor_char_boundary(if cut < 80 { cut } else { text.len() }));
            text
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_000))]

        #[test]
        fn no_text_makes_it_panic_and_every_refusal_says_why(text in nearly_a_frame()) {
            match parse(&text) {
                Ok(Message::Request { params, .. } | Message::Notification { params, .. }) => {
                    prop_assert!(serde_json::from_str::<&RawValue>(params.get()).is_ok());
                }
                Ok(Message::Response { id, result }) => {
                    let again = response(&id, result.as_ref());
                    prop_assert!(parse(&again).is_ok(), "{}", again);
                }
                Err(cause) => prop_assert!(!cause.to_string().is_empty()),
            }
        }
    }
}
