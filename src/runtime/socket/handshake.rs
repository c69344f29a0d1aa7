//! What of a client's messages is for the runtime: `initialize`, of which the agent gets a part, and of others what
//! the runtime has to know.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{json, value::RawValue};

use crate::{
    acp::{
        jsonrpc::{self, FrameError, Message, RpcError},
        schema::{RequestId, agent_method},
    },
    contract::runtime::{InitializeMeta, META_KEY, PromptMeta, RefusalMeta},
    domain::{
        ids::PromptId,
        turn::outcome::{ErrorCode, Failure},
    },
    runtime::agents::requests::ServedRequests,
};

type Fields = BTreeMap<String, Box<RawValue>>;

/// The params of `initialize`, with our part taken out. The rest stays as it was written.
#[derive(Debug)]
pub(crate) struct Opening {
    meta: InitializeMeta,
    params: Fields,
    capabilities: Fields,
}

impl Opening {
    /// Reads the params.
    pub(crate) fn read(params: &RawValue) -> Result<Self, RpcError> {
        let bad = |cause: serde_json::Error| RpcError::new(jsonrpc::INVALID_PARAMS, format!("initialize: {cause}"));
        let mut params: Fields = serde_json::from_str(params.get()).map_err(bad)?;
        let mut meta = InitializeMeta::default();
        if let Some(outer) = params.remove("_meta") {
            let mut outer: Fields = serde_json::from_str::<Option<_>>(outer.get()).map_err(bad)?.unwrap_or_default();
            if let Some(ours) = outer.remove(META_KEY) {
                meta = serde_json::from_str(ours.get()).map_err(bad)?;
            }
            if !outer.is_empty() {
                params.insert("_meta".into(), raw(&outer));
            }
        }
        let capabilities = match params.get("clientCapabilities") {
            Some(given) => serde_json::from_str::<Option<_>>(given.get()).map_err(bad)?.unwrap_or_default(),
            None => Fields::new(),
        };
        Ok(Self { meta, params, capabilities })
    }

    /// Our part.
    pub(crate) fn meta(&self) -> &InitializeMeta {
        &self.meta
    }

    /// The message for the agent: files and terminals are those that the runtime serves.
    pub(crate) fn for_agent(mut self, id: &RequestId, serves: ServedRequests) -> String {
        self.capabilities.insert("fs".into(), raw(&serves.fs_capability()));
        self.capabilities.insert("terminal".into(), raw(&serves.terminal));
        self.params.insert("clientCapabilities".into(), raw(&self.capabilities));
        let method = raw(&agent_method::INITIALIZE);
        let message = json!({"jsonrpc": "2.0", "id": id});
        let serde_json::Value::Object(envelope) = message else { unreachable!("an object was just written") };
        let mut fields: Fields = envelope.iter().map(|(name, value)| (name.clone(), raw(value))).collect();
        fields.insert("method".into(), method);
        fields.insert("params".into(), raw(&self.params));
        raw(&fields).get().to_owned()
    }
}

fn raw(value: &impl serde::Serialize) -> Box<RawValue> {
    serde_json::value::to_raw_value(value).unwrap_or_else(|_| RawValue::NULL.to_owned())
}

/// What is said to a client that begins with anything else.
pub(crate) const FIRST_MESSAGE: &str = "the first message has to be `initialize`";

/// A request, and what it is answered with.
type Refused = (RequestId, RpcError);

/// Reads the first message of a connection: an `initialize`, whether or not its params can be read, or else the end.
pub(crate) fn first(text: &str) -> Result<(RequestId, Result<Opening, RpcError>), Refused> {
    let wanted = || RpcError::new(jsonrpc::INVALID_REQUEST, FIRST_MESSAGE);
    match jsonrpc::parse(text) {
        Ok(Message::Request { id, method, params }) if method == agent_method::INITIALIZE => {
            Ok((id, Opening::read(params)))
        }
        Ok(Message::Request { id, .. }) => Err((id, wanted())),
        Ok(_) => Err((RequestId::Null, wanted())),
        Err(cause) => Err((RequestId::Null, unreadable(&cause))),
    }
}

/// The answer to another `initialize`.
pub(crate) fn already() -> RpcError {
    RpcError::new(jsonrpc::INVALID_REQUEST, "the connection is initialized already")
}

/// Whether a method's params have the folder of a session.
pub(crate) fn begins_session(method: &str) -> bool {
    matches!(method, agent_method::SESSION_NEW | agent_method::SESSION_LOAD | agent_method::SESSION_RESUME)
}

/// The folder of a session that begins.
pub(crate) fn cwd_of(params: &RawValue) -> Result<String, RpcError> {
    #[derive(Deserialize)]
    struct Params {
        cwd: String,
    }
    let params: Params = serde_json::from_str(params.get())
        .map_err(|cause| RpcError::new(jsonrpc::INVALID_PARAMS, cause.to_string()))?;
    Ok(params.cwd)
}

/// The answer to what is no message.
pub(crate) fn unreadable(cause: &FrameError) -> RpcError {
    let code = match cause {
        FrameError::NotJson(_) => jsonrpc::PARSE_ERROR,
        FrameError::NotAMessage => jsonrpc::INVALID_REQUEST,
    };
    RpcError::new(code, cause.to_string())
}

/// Which turn a message begins, and its call, where it is a `session/prompt` whose client says so.
pub(crate) fn prompt_of(message: &Message<'_>) -> Option<(PromptId, u64)> {
    #[derive(Deserialize)]
    struct Params {
        #[serde(rename = "_meta")]
        meta: Meta,
    }
    #[derive(Deserialize)]
    struct Meta {
        lumilink: PromptMeta,
    }
    match message {
        Message::Request { id, method, params } if method == agent_method::SESSION_PROMPT => {
            let params: Params = serde_json::from_str(params.get()).ok()?;
            Some((params.meta.lumilink.prompt_id, jsonrpc::own_id(id)?))
        }
        _ => None,
    }
}

/// A refusal as the answer to `initialize` carries it.
pub(crate) fn refusal(failure: &Failure) -> RpcError {
    let code = match failure.code {
        ErrorCode::UnknownAgent | ErrorCode::PathNotAllowed | ErrorCode::InvalidRequest => jsonrpc::INVALID_PARAMS,
        _ => jsonrpc::INTERNAL_ERROR,
    };
    let data = raw(&json!({META_KEY: RefusalMeta { code: failure.code.as_str().to_owned() }}));
    RpcError {
        code,
        message: format!("{}. {}", failure.detail.trim_end_matches('.'), failure.code.advice()),
        data: Some(data),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn opening(json: &str) -> Result<Opening, RpcError> {
        Opening::read(&RawValue::from_string(json.to_owned()).unwrap())
    }

    #[test]
    fn our_part_is_taken_out_and_the_rest_is_untouched() {
        let json = r#"{"protocolVersion":1,"_meta":{"lumilink":{"agent":"a","cwd":"/w"},"other":1e2},
            "clientCapabilities":{"fs":{"readTextFile":false},"x":{"y": 1.0}},"unknown":[ 1 ]}"#;
        let opening = opening(json).unwrap();
        assert_eq!(opening.meta().agent.as_deref(), Some("a"));
        assert_eq!(opening.meta().cwd.as_deref(), Some("/w"));
        let text = opening.for_agent(&RequestId::Str("i".into()), ServedRequests { fs: true, terminal: false });
        assert!(text.contains("1e2") && text.contains(r#"{"y": 1.0}"#) && text.contains("[ 1 ]"), "{text}");
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["id"], "i");
        assert_eq!(value["method"], "initialize");
        assert_eq!(value["params"]["clientCapabilities"]["fs"], json!({"readTextFile": true, "writeTextFile": true}));
        assert_eq!(value["params"]["clientCapabilities"]["terminal"], false);
        assert_eq!(value["params"]["_meta"], json!({"other": 100.0}));
    }

    #[test]
    fn a_plain_clients_message_needs_no_additions() {
        let opening = opening(r#"{"protocolVersion":1,"_meta":null}"#).unwrap();
        assert!(opening.meta().agent.is_none());
        let text = opening.for_agent(&RequestId::Number(0), ServedRequests { fs: false, terminal: false });
        assert!(!text.contains("_meta"));
    }

    #[test]
    fn params_that_are_no_object_are_refused() {
        assert_eq!(opening("[]").unwrap_err().code, jsonrpc::INVALID_PARAMS);
        assert_eq!(opening(r#"{"_meta":{"lumilink":3}}"#).unwrap_err().code, jsonrpc::INVALID_PARAMS);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(5_000))]

        #[test]
        fn no_params_make_it_panic_and_what_it_takes_is_a_message_for_the_agent(
            pieces in prop::collection::vec(
                prop_oneof![
                    "\"protocolVersion\":(-?[0-9]{1,21}|null|\"1\")",
                    "\"_meta\":(null|[0-9]|\\{\\}|\\{\"lumilink\":(null|3|\\{\\}|\\{\"(agent|cwd|x)\":(\"a\"|7|null)\\})(,\"o\":1e2)?\\})",
                    "\"clientCapabilities\":(null|[0-9]|\\[\\]|\\{\"(fs|terminal|y)\":(true|\\{\\}|1\\.0)\\})",
                    "\"[a-z]{0,3}\":(\\[[0-9]\\]|\"\\PC{0,4}\")",
                ],
                0..5,
            ),
            open in "[{\\[]?",
        ) {
            let text = format!("{open}{}{}", pieces.join(","), if open == "{" { "}" } else { "]" });
            let Ok(params) = RawValue::from_string(text) else { return Ok(()) };
            match Opening::read(&params) {
                Ok(opening) => {
                    let text = opening.for_agent(&RequestId::Number(1), ServedRequests { fs: true, terminal: true });
                    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
                    prop_assert_eq!(&value["params"]["clientCapabilities"]["terminal"], &json!(true));
                    prop_assert!(value["params"]["_meta"].get(META_KEY).is_none(), "ours is for us: {}", text);
                }
                Err(refusal) => {
                    prop_assert_eq!(refusal.code, jsonrpc::INVALID_PARAMS);
                    prop_assert!(refusal.message.len() > "initialize: ".len());
                }
            }
        }
    }
}
