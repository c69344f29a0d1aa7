//! MCP servers of a session: passed to the agent verbatim, persisted without their secrets.

pub(crate) mod named;
mod secrets;
mod vetted;

use std::{fmt, sync::Arc};

use serde_json::{Value, value::RawValue};

use crate::domain::{
    redaction::RedactedJson,
    text,
    turn::outcome::{ErrorCode, Failure},
};

/// The most servers of one session; each costs the agent a process or a connection.
pub(crate) const MAX_SERVERS: usize = 32;

pub(crate) fn none() -> Box<RawValue> {
    // Cannot fail: the constant is valid JSON.
    RawValue::from_string("[]".to_owned()).unwrap_or_else(|_| RawValue::NULL.to_owned())
}

pub(crate) use vetted::has_vetted_form;

/// Checks that `mcpServers` is an array of at most [`MAX_SERVERS`] objects with a name, and that no credential is in their
/// arguments and URLs; the agent validates the rest.
///
/// # Errors
/// `invalid_request`.
pub(crate) fn check(servers: &RawValue) -> Result<(), Failure> {
    let bad = |detail: String| Failure::new(ErrorCode::InvalidRequest, detail);
    let servers: Vec<Value> =
        serde_json::from_str(servers.get()).map_err(|_| bad("mcpServers: must be an array".into()))?;
    if servers.len() > MAX_SERVERS {
        return Err(bad(format!("mcpServers: at most {MAX_SERVERS}")));
    }
    if let Some(index) = servers.iter().position(|server| !server["name"].is_string()) {
        return Err(bad(format!("mcpServers[{index}]: must be an object with a `name`")));
    }
    if let Some(index) = servers.iter().position(secrets::removed_from) {
        return Err(bad(format!(
            "mcpServers[{index}]: its secrets were removed (`_meta.lumilink.secretsRemoved`); give it with their values and \
             without that mark"
        )));
    }
    let exposed = servers.iter().enumerate().find_map(|(index, server)| Some((index, secrets::exposed_in(server)?)));
    match exposed {
        Some((index, place)) => Err(bad(format!(
            "mcpServers[{index}].{place}: has a credential, which other users of the machine and logs could see; put it into \
             `env` or `headers`, best as a named secret: {{\"secret\": \"NAME\"}} with `[secrets.NAME]` in the settings"
        ))),
        None => Ok(()),
    }
}

/// Remote transports of MCP servers that an agent supports; every agent supports `stdio`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct RemoteTransports {
    pub http: bool,
    pub sse: bool,
}

/// Checks the transport of each server against those that the agent supports. Transports unknown to ACP are the agent's
/// to judge.
///
/// # Errors
/// `not_supported_by_agent`, with the index of the first server of another transport.
pub(crate) fn check_taken_by(servers: &RawValue, takes: RemoteTransports) -> Result<(), Failure> {
    let servers: Vec<Value> = serde_json::from_str(servers.get()).unwrap_or_default();
    for (index, server) in servers.iter().enumerate() {
        let transport = server["type"].as_str().unwrap_or("stdio");
        if (transport == "http" && !takes.http) || (transport == "sse" && !takes.sse) {
            let detail = format!("mcpServers[{index}]: the agent does not support MCP servers of type `{transport}`");
            return Err(Failure::new(ErrorCode::NotSupportedByAgent, detail));
        }
    }
    Ok(())
}

/// MCP servers with their secrets. Cannot be printed; cheap to clone.
#[derive(Clone)]
pub(crate) struct McpServers(Arc<Inner>);

struct Inner {
    servers: Box<RawValue>,
    /// Names of the servers that are missing because their secrets are lost.
    lost: Vec<String>,
}

impl fmt::Debug for McpServers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("McpServers")
    }
}

impl McpServers {
    /// The servers as a caller gave them; [`check`] has accepted them.
    pub(crate) fn given(servers: Box<RawValue>) -> Self {
        Self(Arc::new(Inner { servers, lost: Vec::new() }))
    }

    pub(crate) fn none() -> Self {
        Self::given(none())
    }

    /// The servers of a session of an earlier process, from its row. Those whose secrets were removed are left out: an
    /// agent could not use them, and some agents refuse a session with such a server.
    pub(crate) fn of_row(kept: &str) -> Self {
        let servers: Vec<Value> = serde_json::from_str(kept).unwrap_or_default();
        let (lost, whole): (Vec<_>, Vec<_>) = servers.into_iter().partition(secrets::removed_from);
        let lost = lost.iter().map(|server| server["name"].as_str().unwrap_or_default().to_owned()).collect();
        let servers = serde_json::value::to_raw_value(&whole).unwrap_or_else(|_| none());
        Self(Arc::new(Inner { servers, lost }))
    }

    /// The JSON array for the agent.
    pub(crate) fn expose(&self) -> &RawValue {
        &self.0.servers
    }

    /// Names of the servers that are missing because their secrets are lost.
    pub(crate) fn lost(&self) -> &[String] {
        &self.0.lost
    }

    /// The servers without their secrets, for the row and for answers. The mark `_meta.lumilink.secretsRemoved` names what
    /// was removed.
    pub(crate) fn without_secrets(&self) -> RedactedJson {
        let mut servers: Value = serde_json::from_str(self.0.servers.get()).unwrap_or_default();
        for server in servers.as_array_mut().into_iter().flatten() {
            secrets::remove(server);
        }
        RedactedJson::of(&servers)
    }

    /// True if [`Self::without_secrets`] lacks something.
    pub(crate) fn has_secrets(&self) -> bool {
        let servers: Vec<Value> = serde_json::from_str(self.without_secrets().as_str()).unwrap_or_default();
        servers.iter().any(secrets::removed_from)
    }

    /// Bytes of the JSON.
    pub(crate) fn size_bytes(&self) -> usize {
        self.0.servers.get().len()
    }

    /// True if both are the same servers and none is missing.
    pub(crate) fn is_same_as(&self, other: &Self) -> bool {
        let value = |servers: &Self| serde_json::from_str::<Value>(servers.0.servers.get()).ok();
        self.0.lost.is_empty() && other.0.lost.is_empty() && value(self) == value(other)
    }
}

/// Code of the diagnostic of [`secrets_lost`], in its `context`.
const SECRETS_LOST: &str = "mcp_secrets_lost";
/// Characters of a server's name in the diagnostic.
const NAME_CHARS: usize = 40;
/// Names in the diagnostic, at most.
const NAMES: usize = 5;

/// The diagnostic of a turn whose fresh agent lacks these servers, with its `context`; `None` if it lacks none.
pub(crate) fn secrets_lost(lost: &[String]) -> Option<(String, Value)> {
    let names: Vec<_> = lost.iter().take(NAMES).map(|name| text::cut(name, NAME_CHARS)).collect();
    let more = if lost.len() > NAMES { " and others" } else { "" };
    // The advice first: a long message is cut.
    let message = format!(
        "the secrets of MCP servers were lost with the process that had them, and the agent works without these servers \
         until `POST /acp/session/load` gives `mcpServers` again: {}{more}",
        names.join(", ")
    );
    let context = serde_json::json!({"code": SECRETS_LOST, "servers": names});
    (!lost.is_empty()).then_some((message, context))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn servers(json: &str) -> McpServers {
        McpServers::given(RawValue::from_string(json.to_owned()).unwrap())
    }

    #[test]
    fn server_whose_secrets_are_lost_is_omitted_and_named() {
        let given = servers(
            r#"[{"name":"a","command":"x","args":[],"env":[{"name":"KEY","value":"s3cret"}]},
            {"type":"http","name":"b","url":"https://x","headers":[{"name":"Authorization","value":"s3cret"}]},
            {"name":"c","command":"x","args":[],"env":[]}]"#,
        );
        assert!(check(given.expose()).is_ok());
        let kept = given.without_secrets();
        assert!(
            given.has_secrets() && !kept.as_str().contains("s3cret") && kept.as_str().contains("\"command\":\"x\"")
        );
        assert!(check(kept.as_raw()).unwrap_err().detail.contains("secretsRemoved"), "the kept form is no servers");
        let again = McpServers::of_row(kept.as_str());
        assert_eq!(again.lost(), ["a", "b"]);
        let left: Vec<Value> = serde_json::from_str(again.expose().get()).unwrap();
        assert_eq!(left, [serde_json::json!({"name": "c", "command": "x", "args": [], "env": []})]);
        let (message, context) = secrets_lost(again.lost()).unwrap();
        assert!(message.ends_with("again: a, b") && message.len() < 250, "{message}");
        assert_eq!(context["code"], "mcp_secrets_lost");
        assert!(given.is_same_as(&given) && !given.is_same_as(&again) && !again.is_same_as(&again));
    }

    #[test]
    fn diagnostic_of_many_lost_servers_is_bounded() {
        let (message, context) = secrets_lost(&vec!["n".repeat(500); MAX_SERVERS]).unwrap();
        assert!(message.len() < 600 && context.to_string().len() < 600, "{message}");
        assert_eq!(secrets_lost(&[]), None);
    }

    #[test]
    fn named_secret_is_kept_by_name_and_is_never_lost() {
        let given = servers(
            r#"[{"name":"a","command":"x","args":[],"env":[{"name":"KEY","value":{"secret":"GITHUB_TOKEN"}}]}]"#,
        );
        assert!(check(given.expose()).is_ok() && !given.has_secrets());
        let again = McpServers::of_row(given.without_secrets().as_str());
        assert!(again.lost().is_empty() && again.is_same_as(&given));
    }

    #[test]
    fn servers_cannot_be_printed() {
        let given = servers(r#"[{"name":"a","command":"x","env":[{"name":"KEY","value":"s3cret"}]}]"#);
        assert!(!format!("{given:?}").contains("s3cret"));
    }

    #[test]
    fn remote_server_is_refused_for_an_agent_without_its_transport() {
        let json = r#"[{"name":"a","command":"x"},{"type":"http","name":"b","url":"https://x"},
            {"type":"sse","name":"c","url":"https://x"},{"type":"acp","name":"d"}]"#;
        let servers = RawValue::from_string(json.to_owned()).unwrap();
        let detail = |http, sse| check_taken_by(&servers, RemoteTransports { http, sse }).unwrap_err().detail;
        assert_eq!(check_taken_by(&servers, RemoteTransports { http: true, sse: true }), Ok(()));
        assert!(detail(false, true).contains("mcpServers[1]: the agent does not support MCP servers of type `http`"));
        assert!(detail(true, false).contains("mcpServers[2]"));
        assert_eq!(check_taken_by(&none(), RemoteTransports::default()), Ok(()));
    }

    #[test]
    fn malformed_list_of_servers_is_refused() {
        for json in ["{}", "[1]", "[{}]", r#"[{"name":"a","command":"x","args":["--token","s3cret"]}]"#] {
            assert!(check(&RawValue::from_string(json.to_owned()).unwrap()).is_err(), "{json}");
        }
        assert!(check(&none()).is_ok());
    }
}
