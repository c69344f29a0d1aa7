//! Parses the client messages that the runtime acts on: `initialize`, which the agent gets without the runtime's
//! part, and the fields of `session/*` requests that the runtime needs.

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

/// Params of `initialize` without the runtime's part in `_meta`. All other members keep their exact JSON text.
#[derive(Debug)]
pub(crate) struct Opening {
    meta: InitializeMeta,
    params: Fields,
    capabilities: Fields,
}

impl Opening {
    /// Parses the params.
    ///
    /// # Errors
    /// `INVALID_PARAMS` for params that are no object, or whose `_meta` or `clientCapabilities` are malformed.
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

    /// Returns the runtime's part, `_meta.lumilink`; its default if the client sent none.
    pub(crate) fn meta(&self) -> &InitializeMeta {
        &self.meta
    }

    /// Returns the `initialize` message for the agent. The capabilities for files and terminals are those of the
    /// runtime, which serves these requests, not those of the client.
    pub(crate) fn for_agent(mut self, id: &RequestId, serves: ServedRequests) -> String {
        self.capabilities.insert("fs".into(), raw(&serves.fs_capability()));
        self.capabilities.insert("terminal".into(), raw(&serves.terminal));
        self.params.insert("clientCapabilities".into(), raw(&self.capabilities));
        let mut fields = Fields::from([("jsonrpc".into(), raw(&"2.0")), ("id".into(), raw(id))]);
        fields.insert("method".into(), raw(&agent_method::INITIALIZE));
        fields.insert("params".into(), raw(&self.params));
        raw(&fields).get().to_owned()
    }
}

fn raw(value: &impl serde::Serialize) -> Box<RawValue> {
    serde_json::value::to_raw_value(value).unwrap_or_else(|_| RawValue::NULL.to_owned())
}

/// Error text, and WebSocket close reason, for a first message other than `initialize`.
pub(crate) const FIRST_MESSAGE: &str = "the first message must be `initialize`";

/// Id of a refused message and its error response.
type Refused = (RequestId, RpcError);

/// Parses the first message of a connection. Returns the id of an `initialize` with its parsed params, or with the
/// error for malformed params; the client may then try again.
///
/// # Errors
/// The error response for anything else, after which the connection is closed.
pub(crate) fn first(text: &str) -> Result<(RequestId, Result<Opening, RpcError>), Refused> {
    let not_initialize = || RpcError::new(jsonrpc::INVALID_REQUEST, FIRST_MESSAGE);
    match jsonrpc::parse(text) {
        Ok(Message::Request { id, method, params }) if method == agent_method::INITIALIZE => {
            Ok((id, Opening::read(params)))
        }
        Ok(Message::Request { id, .. }) => Err((id, not_initialize())),
        Ok(_) => Err((RequestId::Null, not_initialize())),
        Err(cause) => Err((RequestId::Null, unreadable(&cause))),
    }
}

/// Returns the error for a second `initialize`.
pub(crate) fn already() -> RpcError {
    RpcError::new(jsonrpc::INVALID_REQUEST, "the connection is already initialized")
}

/// True if the params of the method contain a session's folder.
pub(crate) fn begins_session(method: &str) -> bool {
    matches!(method, agent_method::SESSION_NEW | agent_method::SESSION_LOAD | agent_method::SESSION_RESUME)
}

/// Parses the folder of a request for which [`begins_session`] is true.
///
/// # Errors
/// `INVALID_PARAMS` if `cwd` is missing or not a string.
pub(crate) fn cwd_of(params: &RawValue) -> Result<String, RpcError> {
    #[derive(Deserialize)]
    struct Params {
        cwd: String,
    }
    let params: Params = serde_json::from_str(params.get())
        .map_err(|cause| RpcError::new(jsonrpc::INVALID_PARAMS, cause.to_string()))?;
    Ok(params.cwd)
}

/// Replaces `mcpServers` in a request for a session by what `change` makes of them; `None` keeps the text.
///
/// # Errors
/// Those of `change`.
pub(crate) fn with_servers(
    text: String,
    change: impl FnOnce(&RawValue) -> Result<Option<Box<RawValue>>, Failure>,
) -> Result<String, Failure> {
    const SERVERS: &str = "mcpServers";
    let Ok(mut message) = serde_json::from_str::<Fields>(&text) else { return Ok(text) };
    let params = message.get("params").and_then(|params| serde_json::from_str::<Fields>(params.get()).ok());
    let Some(mut params) = params else { return Ok(text) };
    let Some(changed) = params.get(SERVERS).map(|servers| change(servers)).transpose()?.flatten() else {
        return Ok(text);
    };
    params.insert(SERVERS.to_owned(), changed);
    message.insert("params".to_owned(), raw(&params));
    Ok(raw(&message).get().to_owned())
}

/// Returns the error for a malformed message.
pub(crate) fn unreadable(cause: &FrameError) -> RpcError {
    let code = match cause {
        FrameError::NotJson(_) => jsonrpc::PARSE_ERROR,
        FrameError::NotAMessage => jsonrpc::INVALID_REQUEST,
    };
    RpcError::new(code, cause.to_string())
}

/// Returns the prompt id and the request number of a `session/prompt` that has a prompt id in `_meta.lumilink`.
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

/// Converts a failure to the error response of `initialize`, with the failure's code in `data`.
pub(crate) fn refusal(failure: &Failure) -> RpcError {
    let code = match failure.code {
        ErrorCode::UnknownAgent
        | ErrorCode::UnknownSecret
        | ErrorCode::PathNotAllowed
        | ErrorCode::FolderMissing
        | ErrorCode::InvalidRequest => jsonrpc::INVALID_PARAMS,
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
    fn runtime_part_is_removed_and_the_rest_keeps_its_text() {
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
    fn message_without_a_runtime_part_is_accepted() {
        let opening = opening(r#"{"protocolVersion":1,"_meta":null}"#).unwrap();
        assert!(opening.meta().agent.is_none());
        let text = opening.for_agent(&RequestId::Number(0), ServedRequests { fs: false, terminal: false });
        assert!(!text.contains("_meta"));
    }

    #[test]
    fn malformed_params_are_refused() {
        assert_eq!(opening("[]").unwrap_err().code, jsonrpc::INVALID_PARAMS);
        assert_eq!(opening(r#"{"_meta":{"lumilink":3}}"#).unwrap_err().code, jsonrpc::INVALID_PARAMS);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(5_000))]

        #[test]
        fn arbitrary_params_never_panic_and_accepted_ones_yield_a_valid_message(
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
                    let ours = value["params"]["_meta"].get(META_KEY);
                    prop_assert!(ours.is_none(), "the runtime's part was passed on to the agent: {}", text);
                }
                Err(refusal) => {
                    prop_assert_eq!(refusal.code, jsonrpc::INVALID_PARAMS);
                    prop_assert!(refusal.message.len() > "initialize: ".len());
                }
            }
        }
    }
}
