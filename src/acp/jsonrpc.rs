//! The JSON-RPC 2.0 envelope: messages are read without copying and written without an intermediate tree.
//!
//! `params`, `result` and `error.data` stay raw, so unknown fields, unknown updates and `_meta` pass through
//! unchanged.

use std::borrow::Cow;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

use super::schema::RequestId;

/// `-32700`: the message is not JSON.
pub(crate) const PARSE_ERROR: i64 = -32700;
/// `-32600`: the message is JSON, but not a valid request.
pub(crate) const INVALID_REQUEST: i64 = -32600;
/// `-32601`: the receiver does not implement the method.
pub(crate) const METHOD_NOT_FOUND: i64 = -32601;
/// `-32602`: the parameters are malformed.
pub(crate) const INVALID_PARAMS: i64 = -32602;
/// `-32603`: the receiver failed.
pub(crate) const INTERNAL_ERROR: i64 = -32603;
/// `-32000`: the agent requires `authenticate` first.
pub(crate) const AUTH_REQUIRED: i64 = -32000;
/// `-32002`: the file, session or terminal does not exist.
pub(crate) const RESOURCE_NOT_FOUND: i64 = -32002;

/// `-32800`: the sender of the request withdrew it by `$/cancel_request`.
pub(crate) const REQUEST_CANCELLED: i64 = -32800;

/// The `error` member of a response.
#[derive(Debug, Clone, Serialize, Deserialize, thiserror::Error)]
#[error("{message} (JSON-RPC {code})")]
pub(crate) struct RpcError {
    /// One of the codes above, or a code of the agent's own.
    pub code: i64,
    /// One sentence for people; empty if absent.
    #[serde(default)]
    pub message: String,
    /// Details of the sender's own, raw.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Box<RawValue>>,
}

impl RpcError {
    /// Creates an error without `data`.
    pub(crate) fn new(code: i64, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), data: None }
    }
}

/// One message, borrowed from its text.
#[derive(Debug)]
pub(crate) enum Message<'a> {
    /// A call that requires an answer.
    Request {
        /// The id to repeat in the answer.
        id: RequestId,
        method: Cow<'a, str>,
        /// `null` where absent.
        params: &'a RawValue,
    },
    /// A call without an answer.
    Notification {
        method: Cow<'a, str>,
        /// `null` where absent.
        params: &'a RawValue,
    },
    /// An answer to one of this side's requests.
    Response {
        /// The id of that request.
        id: RequestId,
        /// The result, or the error; `null` if both are absent.
        result: Result<&'a RawValue, RpcError>,
    },
}

/// Reasons why a text is not a message.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FrameError {
    /// The text is not a JSON object, or a member has the wrong type.
    #[error("not a JSON-RPC object: {0}")]
    NotJson(#[from] serde_json::Error),
    /// The object has neither a method nor an id.
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

/// Distinguishes `"id": null` from an absent id.
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Option<T>, D::Error> {
    T::deserialize(from).map(Some)
}

/// Reads one message. Members unknown to JSON-RPC are ignored, and so is the value of `jsonrpc`, which some agents
/// omit.
///
/// # Errors
/// The text is not a JSON object, a member has the wrong type, or both `method` and `id` are absent.
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

/// Serialises as the value of the `jsonrpc` member.
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
        // Only a map with a key that is not a string fails; none of the types here has one.
        unreachable!("a message of these types serialises: {cause}")
    })
}

/// Writes a request as JSON on one line.
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

/// Writes a notification as JSON on one line.
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

/// Writes an answer as JSON on one line.
pub(crate) fn response(id: &RequestId, result: Result<impl Serialize, &RpcError>) -> String {
    let (result, error) = match result {
        Ok(result) => (Some(result), None),
        Err(error) => (None, Some(error)),
    };
    write(&Outgoing { jsonrpc: Version, id: Some(id), method: None, params: Nothing::None, result, error })
}

/// Converts the id of an answer back to the number given to [`request`]; `None` if [`request`] cannot have written
/// it.
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
    fn parse_distinguishes_requests_notifications_and_responses() {
        assert!(matches!(parse(r#"{"jsonrpc":"2.0","id":1,"method":"m"}"#), Ok(Message::Request { .. })));
        assert!(matches!(parse(r#"{"jsonrpc":"2.0","method":"m","params":{}}"#), Ok(Message::Notification { .. })));
        assert!(matches!(parse(r#"{"id":"x","result":null}"#), Ok(Message::Response { result: Ok(_), .. })));
        assert!(matches!(
            parse(r#"{"id":3,"error":{"code":-32603,"message":"no","data":{"a":1}}}"#),
            Ok(Message::Response { result: Err(RpcError { code: INTERNAL_ERROR, .. }), .. })
        ));
    }

    #[test]
    fn null_id_counts_as_an_id() {
        assert!(matches!(
            parse(r#"{"id":null,"error":{"code":-32700,"message":"parse"}}"#),
            Ok(Message::Response { id: RequestId::Null, .. })
        ));
    }

    #[test]
    fn parse_refuses_texts_that_are_not_messages() {
        for text in ["", "garbage", "[]", "1", "\"x\"", "{}", r#"{"params":1}"#] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn params_are_kept_verbatim() {
        let text = r#"{"method":"session/update","params":{"b":1.0,  "a":[1e2],"_meta":{"x":"é"}}}"#;
        let Ok(Message::Notification { params, .. }) = parse(text) else { panic!("a notification") };
        assert_eq!(params.get(), r#"{"b":1.0,  "a":[1e2],"_meta":{"x":"é"}}"#);
    }

    #[test]
    fn written_messages_match_the_wire_format() {
        let text = response(&RequestId::Number(7), Err::<(), _>(&RpcError::new(METHOD_NOT_FOUND, "no such method")));
        assert_eq!(text, r#"{"jsonrpc":"2.0","id":7,"error":{"code":-32601,"message":"no such method"}}"#);
        assert_eq!(
            request(1, "session/prompt", serde_json::json!({"a": 1})),
            r#"{"jsonrpc":"2.0","id":1,"method":"session/prompt","params":{"a":1}}"#
        );
    }

    /// Generates texts close to a message: members in any order, possibly truncated anywhere.
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
            // Most texts stay whole.
            text.truncate(text.floor_char_boundary(if cut < 80 { cut } else { text.len() }));
            text
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_000))]

        #[test]
        fn parse_never_panics_and_every_error_has_a_text(text in nearly_a_frame()) {
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
