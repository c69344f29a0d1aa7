//! The JSON-RPC 2.0 envelope: messages are read without copying and written without an intermediate tree.
//!
//! Written messages follow the specification. Messages that are read may deviate from it: a text that is recognisably an
//! answer or a request is one, and the members that cannot be read get the nearest value. Every other text is noise.
//!
//! `params`, `result` and `error.data` stay raw, so unknown fields, unknown updates and `_meta` pass through
//! unchanged.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use super::{
    loose::{self, Object},
    request_id::RequestId,
    schema::is_request,
};

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
        /// The id of that request; `null` in an answer to a request that the peer could not read.
        id: RequestId,
        /// The result, or the error; `null` if both are absent.
        result: Result<&'a RawValue, RpcError>,
    },
}

/// Reasons why a text is not a message.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FrameError {
    /// The text is not a JSON object.
    #[error("not a JSON-RPC object: {0}")]
    NotJson(#[from] serde_json::Error),
    /// The object is neither a call nor an answer.
    #[error("a JSON object with neither `method` nor an answer")]
    NotAMessage,
}

/// The members of a JSON object that are part of a message; of a repeated one, the last.
#[derive(Default)]
struct Envelope<'a> {
    id: Option<&'a RawValue>,
    method: Option<&'a RawValue>,
    params: Option<&'a RawValue>,
    result: Option<&'a RawValue>,
    error: Option<&'a RawValue>,
    has_version: bool,
    /// True if the object has a member that JSON-RPC does not define.
    has_others: bool,
}

enum Member {
    Id,
    Method,
    Params,
    Result,
    Error,
    Version,
    Meta,
    Other,
}

impl<'de> DeserializeSeed<'de> for Member {
    type Value = Self;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Self, D::Error> {
        // Read as bytes, a name may contain halves of surrogate pairs.
        from.deserialize_bytes(self)
    }
}

impl Visitor<'_> for Member {
    type Value = Self;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("the name of a member")
    }

    fn visit_bytes<E: Error>(self, name: &[u8]) -> Result<Self, E> {
        Ok(match name {
            b"id" => Self::Id,
            b"method" => Self::Method,
            b"params" => Self::Params,
            b"result" => Self::Result,
            b"error" => Self::Error,
            b"jsonrpc" => Self::Version,
            b"_meta" => Self::Meta,
            _ => Self::Other,
        })
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Self, E> {
        self.visit_bytes(name.as_bytes())
    }
}

struct Members;

impl<'de> Visitor<'de> for Members {
    type Value = Envelope<'de>;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Envelope<'de>, A::Error> {
        let mut envelope = Envelope::default();
        while let Some(member) = members.next_key_seed(Member::Other)? {
            let place = match member {
                Member::Id => &mut envelope.id,
                Member::Method => &mut envelope.method,
                Member::Params => &mut envelope.params,
                Member::Result => &mut envelope.result,
                Member::Error => &mut envelope.error,
                other => {
                    envelope.has_version |= matches!(other, Member::Version);
                    envelope.has_others |= matches!(other, Member::Other);
                    members.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            *place = Some(members.next_value()?);
        }
        Ok(envelope)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Envelope<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_map(Members)
    }
}

/// Reads one message. Members unknown to JSON-RPC are ignored, and so is the value of `jsonrpc`, which some agents
/// omit.
///
/// A call with `"id": null` is a notification, unless its method is a request of the protocol. An object with `result` or
/// `error` is an answer, whatever else it has; one with an id alone is an answer without a result.
///
/// # Errors
/// The text is not a JSON object, or the object is no message: noise.
pub(crate) fn parse(text: &str) -> Result<Message<'_>, FrameError> {
    let Envelope { id, method, params, result, error, has_version, has_others } = serde_json::from_str(text)?;
    let is_null = |raw: &&RawValue| raw.get() == "null";
    let method = method.filter(|raw| !is_null(raw));
    let answers = [result, error].into_iter().flatten().any(|raw| !is_null(&raw));
    let id = id.map(RequestId::read);
    if let (Some(method), false) = (method, answers && !matches!(id, None | Some(RequestId::Null))) {
        let method = loose::text(method).ok_or(FrameError::NotAMessage)?;
        let params = params.unwrap_or(RawValue::NULL);
        return Ok(match id {
            None => Message::Notification { method, params },
            Some(RequestId::Null) if !is_request(&method) => Message::Notification { method, params },
            Some(id) => Message::Request { id, method, params },
        });
    }
    // The entries of a log have ids too. An answer without a result comes from serialisers that drop undefined members.
    let is_answer = result.is_some() || error.is_some() || has_version || !has_others;
    match id {
        Some(id) if is_answer => Ok(Message::Response { id, result: read_result(result, error) }),
        _ => Err(FrameError::NotAMessage),
    }
}

fn read_result<'a>(result: Option<&'a RawValue>, error: Option<&RawValue>) -> Result<&'a RawValue, RpcError> {
    /// Written by some peers next to a result.
    const NO_ERROR: [&str; 5] = ["false", "\"\"", "{}", "[]", "0"];
    let result = result.filter(|raw| raw.get() != "null");
    let error = error.filter(|raw| raw.get() != "null");
    match error.filter(|raw| result.is_none() || !NO_ERROR.contains(&raw.get())) {
        Some(error) => Err(read_error(error)),
        None => Ok(result.unwrap_or(RawValue::NULL)),
    }
}

/// Reads the `error` of an answer, whatever its form: a code that is no number becomes part of the message.
fn read_error(raw: &RawValue) -> RpcError {
    if let Ok(error) = serde_json::from_str::<RpcError>(raw.get()) {
        return error;
    }
    let whole = || loose::text_or_json(raw).into_owned();
    let Some(members) = Object::read(raw) else { return RpcError::new(INTERNAL_ERROR, whole()) };
    let message = members.get("message").map(|raw| loose::text_or_json(raw).into_owned());
    let code = members.get("code");
    let number = code.and_then(loose::integer);
    let message = match (code.filter(|_| number.is_none()), message) {
        (Some(code), Some(message)) => format!("{}: {message}", loose::text_or_json(code)),
        (None, Some(message)) => message,
        (None, None) if number.is_some() => String::new(),
        (_, None) => whole(),
    };
    RpcError { code: number.unwrap_or(INTERNAL_ERROR), message, data: members.get("data").map(ToOwned::to_owned) }
}

/// Messages that are recovered from one line, at most; a longer batch is noise.
const MAX_RECOVERED: usize = 1000;

/// Returns the JSON values in a line that is not one message, each of which may be one: those of a batch, of objects
/// without a line end between them, and the object behind a byte-order mark, control characters or terminal sequences
/// such as a title. Empty if the line has anything else.
pub(crate) fn recover(line: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut rest = undecorated(line);
    while !rest.is_empty() {
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<&RawValue>();
        let Some(Ok(value)) = values.next() else { return Vec::new() };
        match value.get().as_bytes().first() {
            Some(b'{') => found.push(value.get()),
            Some(b'[') => match serde_json::from_str::<Batch<'_>>(value.get()) {
                Ok(Batch(members)) => found.extend(members),
                Err(_) => return Vec::new(),
            },
            _ => return Vec::new(),
        }
        if found.len() > MAX_RECOVERED {
            return Vec::new();
        }
        let end = values.byte_offset();
        rest = undecorated(rest.get(end..).unwrap_or_default());
    }
    found
}

/// The members of an array, up to [`MAX_RECOVERED`].
struct Batch<'a>(Vec<&'a str>);

impl<'de: 'a, 'a> Deserialize<'de> for Batch<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Vec<&'de str>;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a batch")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
                let mut found = Vec::new();
                while let Some(member) = members.next_element::<&RawValue>()? {
                    if found.len() == MAX_RECOVERED {
                        return Err(A::Error::custom("too long"));
                    }
                    found.push(member.get());
                }
                Ok(found)
            }
        }
        from.deserialize_seq(Members).map(Batch)
    }
}

/// Removes what may precede a message or follow it: a byte-order mark, whitespace, control characters, and terminal
/// sequences.
fn undecorated(mut text: &str) -> &str {
    loop {
        text = text.trim_start_matches(|char: char| {
            char == '\u{feff}' || char.is_whitespace() || (char.is_control() && char != ESCAPE)
        });
        match text.strip_prefix(ESCAPE).and_then(after_sequence) {
            Some(rest) => text = rest,
            None => return text,
        }
    }
}

const ESCAPE: char = '\u{1b}';

/// The text after the terminal sequence of which `text` is the part behind the escape character; `None` if that is
/// incomplete.
fn after_sequence(text: &str) -> Option<&str> {
    let first = text.chars().next()?;
    match first {
        // Strings, such as a title: up to BEL or ST.
        ']' | 'P' | 'X' | '^' | '_' => {
            let end = text.find(['\u{7}', ESCAPE, '\u{9c}'])?;
            let rest = text.get(end..)?;
            rest.strip_prefix(['\u{7}', '\u{9c}']).or_else(|| rest.strip_prefix("\u{1b}\\"))
        }
        // Control sequences, such as a colour: parameters, then one character.
        '[' => {
            let rest = text.get(1..)?.trim_start_matches(|char: char| matches!(char, ' '..='?'));
            rest.strip_prefix(|char: char| matches!(char, '@'..='~'))
        }
        _ => {
            let rest = text.trim_start_matches(|char: char| matches!(char, ' '..='/'));
            rest.strip_prefix(|char: char| matches!(char, '0'..='~'))
        }
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
    id.as_number()
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

    fn answer(text: &str) -> (RequestId, Result<String, (i64, String)>) {
        match parse(text) {
            Ok(Message::Response { id, result }) => {
                (id, result.map(|raw| raw.get().to_owned()).map_err(|error| (error.code, error.message)))
            }
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn answer_with_an_odd_error_is_an_answer_with_what_could_be_read() {
        for (error, code, message) in [
            (r#""it broke""#, INTERNAL_ERROR, "it broke"),
            (r#"{"message":"no code"}"#, INTERNAL_ERROR, "no code"),
            (r#"{"code":"rate_limit_error","message":"slow down"}"#, INTERNAL_ERROR, "rate_limit_error: slow down"),
            (r#"{"code":"-32602","message":"no"}"#, INVALID_PARAMS, "no"),
            (r#"{"code":-32603.0,"message":null}"#, INTERNAL_ERROR, ""),
            (r#"{"code":429.5,"message":["a"]}"#, INTERNAL_ERROR, r#"429.5: ["a"]"#),
            (r#"{"code":99999999999999999999,"message":"m"}"#, INTERNAL_ERROR, "99999999999999999999: m"),
            (r#"{"code":-32000,"code":-32002,"message":"\ud800!"}"#, RESOURCE_NOT_FOUND, "\u{fffd}\u{fffd}\u{fffd}!"),
            (r#"{"code":"E1"}"#, INTERNAL_ERROR, r#"{"code":"E1"}"#),
            ("{}", INTERNAL_ERROR, "{}"),
            ("7", INTERNAL_ERROR, "7"),
            ("true", INTERNAL_ERROR, "true"),
            (r#"["a",1e400]"#, INTERNAL_ERROR, r#"["a",1e400]"#),
        ] {
            let (id, result) = answer(&format!(r#"{{"jsonrpc":"2.0","id":3,"error":{error}}}"#));
            assert_eq!((own_id(&id), result), (Some(3), Err((code, message.to_owned()))), "{error}");
        }
    }

    #[test]
    fn text_is_recognised_as_answer_request_notification_or_noise() {
        let kind = |text: &str| match parse(text) {
            Ok(Message::Request { id, .. }) => format!("request {id}"),
            Ok(Message::Notification { method, .. }) => format!("notification {method}"),
            Ok(Message::Response { id, result }) => match result {
                Ok(result) => format!("answer {id}: {}", result.get()),
                Err(error) => format!("answer {id}: error {}", error.message),
            },
            Err(_) => "noise".to_owned(),
        };
        for (text, expected) in [
            // Members that some serialisers always write.
            (r#"{"id":1,"method":null,"params":null,"result":{},"error":null}"#, "answer 1: {}"),
            (r#"{"id":1,"method":"m","params":{},"result":null,"error":null}"#, "request 1"),
            (r#"{"id":1,"method":"session/prompt","result":7}"#, "answer 1: 7"),
            (r#"{"id":1,"method":"m","error":"no"}"#, "answer 1: error no"),
            (r#"{"id":1,"result":{"a":1},"error":false}"#, "answer 1: {\"a\":1}"),
            (r#"{"id":1,"result":{"a":1},"error":{}}"#, "answer 1: {\"a\":1}"),
            (r#"{"id":1,"result":{"a":1},"error":"no"}"#, "answer 1: error no"),
            (r#"{"id":1,"error":null}"#, "answer 1: null"),
            (r#"{"jsonrpc":"2.0","id":1}"#, "answer 1: null"),
            (r#"{"id":1}"#, "answer 1: null"),
            (r#"{"_meta":{},"id":1}"#, "answer 1: null"),
            (r#"{"id":1,"id":2,"result":3,"result":4}"#, "answer 2: 4"),
            (r#"{"\u0069d":1,"r\u0065sult":3,"\ud800":1}"#, "answer 1: 3"),
            (r#"{"id":{"a":[1]},"result":3}"#, "answer {\"a\":[1]}: 3"),
            // Notifications with an id of null.
            (r#"{"id":null,"method":"session/update","params":{}}"#, "notification session/update"),
            (r#"{"id":null,"method":"_x/y"}"#, "notification _x/y"),
            (r#"{"id":null,"method":"_x/y","result":3}"#, "notification _x/y"),
            (r#"{"id":null,"method":"session/request_permission"}"#, "request null"),
            (r#"{"method":"a\ud800","id":7.5}"#, "request 7.5"),
            // Entries of logs.
            (r#"{"id":"evt_1","msg":"started"}"#, "noise"),
            (r#"{"id":3,"level":"info","msg":"started"}"#, "noise"),
            (r#"{"level":"error","error":"no"}"#, "noise"),
            (r#"{"id":3,"method":7}"#, "noise"),
            (r#"{"method":{}}"#, "noise"),
            ("[{\"id\":3,\"result\":1}]", "noise"),
            ("{\"id\":3,\"result\":1} trailing", "noise"),
        ] {
            assert_eq!(kind(text), expected, "{text}");
        }
    }

    #[test]
    fn messages_are_recovered_from_decorated_lines_and_batches() {
        let one = r#"{"id":1}"#;
        for line in [
            "\u{feff}{\"id\":1}",
            "\u{1b}]0;a {title}\u{7}{\"id\":1}",
            "\u{1b}]2;t\u{1b}\\\u{1b}[?25l\u{1b}[1;32m\r{\"id\":1}\u{1b}[0m",
            "\u{1b}Pq\u{9c}\u{1b}(B\u{1b}=\0\0 {\"id\":1}\0",
            "[{\"id\":1}]",
        ] {
            assert_eq!(recover(line), [one], "{line:?}");
        }
        assert_eq!(recover("{\"id\":1}[{\"id\":2} , 3]\r{\"id\":4}"), [one, "{\"id\":2}", "3", "{\"id\":4}"]);
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(recover(&format!("[{deep}]")), [deep.as_str()]);
        for noise in [
            "",
            "text",
            "7",
            "received {\"id\":1}",
            "{\"id\":1} done",
            "\u{1b}]0;no end {\"id\":1}",
            "\u{1b}[31",
            "\u{1b}",
            "{broken",
            "[1,",
        ] {
            assert!(recover(noise).is_empty(), "{noise:?}");
        }
        assert!(recover(&format!("[{}]", vec!["{}"; MAX_RECOVERED + 1].join(","))).is_empty(), "too many");
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

    /// Generates JSON texts, also those that a tree of values cannot hold.
    pub(crate) fn any_json() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            Just("null".to_owned()),
            Just("true".to_owned()),
            Just("1e400".to_owned()),
            Just("-0".to_owned()),
            Just("\"\"".to_owned()),
            Just(r#""\ud800x""#.to_owned()),
            "-?[1-9][0-9]{0,25}(\\.[0-9]{1,3})?",
            "\"[a-z ]{0,8}\"",
            (1usize..400).prop_map(|depth| format!("{}{}", "[".repeat(depth), "]".repeat(depth))),
        ];
        leaf.prop_recursive(3, 12, 4, |inner| {
            let name = prop_oneof![Just("code"), Just("message"), Just("data"), Just("stopReason"), Just("usage")];
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(|items| format!("[{}]", items.join(","))),
                prop::collection::vec((name, inner), 0..4).prop_map(|members| {
                    let members: Vec<_> = members.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
                    format!("{{{}}}", members.join(","))
                }),
            ]
        })
    }

    /// Generates answers to the request 3: with a result or an error, and with any other member.
    pub(crate) fn any_answer() -> impl Strategy<Value = String> {
        let member = prop_oneof![Just("result"), Just("error")];
        let others =
            prop_oneof![Just("jsonrpc"), Just("params"), Just("_meta"), Just("x"), Just("id"), Just("result")];
        let others = prop::collection::vec((others, any_json()), 0..4);
        let id = prop_oneof![Just("3"), Just("3.0"), Just("\"3\""), Just("30e-1")];
        (member, any_json(), others, id).prop_map(|(member, value, others, id)| {
            let others: String = others.iter().map(|(name, value)| format!("\"{name}\":{value},")).collect();
            format!("{{{others}\"id\":{id},\"{member}\":{value}}}")
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_000))]

        #[test]
        fn answer_with_any_json_in_its_members_is_an_answer(text in any_answer()) {
            prop_assert!(serde_json::from_str::<&RawValue>(&text).is_ok(), "{}", text);
            let Ok(Message::Response { id, .. }) = parse(&text) else { return Err(TestCaseError::fail(text)) };
            prop_assert_eq!(own_id(&id), Some(3));
        }

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
