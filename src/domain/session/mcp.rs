//! MCP servers of a session: passed to the agent verbatim, persisted without their secrets.

use serde_json::{Value, value::RawValue};

use crate::domain::turn::outcome::{ErrorCode, Failure};

/// The most servers of one session; each costs the agent a process or a connection.
pub(crate) const MAX_SERVERS: usize = 32;

pub(crate) fn none() -> Box<RawValue> {
    // Cannot fail: the constant is valid JSON.
    RawValue::from_string("[]".to_owned()).unwrap_or_else(|_| RawValue::NULL.to_owned())
}

/// Checks that `mcpServers` is an array of at most [`MAX_SERVERS`] objects with a name; the agent validates the rest.
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
    match servers.iter().position(|server| !server["name"].is_string()) {
        Some(index) => Err(bad(format!("mcpServers[{index}]: must be an object with a `name`"))),
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

/// The servers as JSON without their environment and headers, which may contain secrets.
pub(crate) fn without_secrets(servers: &RawValue) -> String {
    let mut servers: Value = serde_json::from_str(servers.get()).unwrap_or_default();
    for server in servers.as_array_mut().into_iter().flatten() {
        for place in ["env", "headers"] {
            if server.get(place).is_some() {
                server[place] = Value::Array(Vec::new());
            }
        }
    }
    servers.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_of_servers_are_removed() {
        let json = r#"[{"name":"a","command":"x","args":[],"env":[{"name":"KEY","value":"s3cret"}]},
            {"type":"http","name":"b","url":"https://x","headers":[{"name":"Authorization","value":"s3cret"}]}]"#;
        let servers = RawValue::from_string(json.to_owned()).unwrap();
        assert!(check(&servers).is_ok());
        let kept = without_secrets(&servers);
        assert!(!kept.contains("s3cret") && kept.contains("\"command\":\"x\""));
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
        for json in ["{}", "[1]", "[{}]"] {
            assert!(check(&RawValue::from_string(json.to_owned()).unwrap()).is_err(), "{json}");
        }
        assert!(check(&none()).is_ok());
    }
}
