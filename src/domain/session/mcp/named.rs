//! Secrets of MCP servers by name: `{"secret": "NAME"}` in place of a value of `env` or of `headers`. The runtime puts the
//! values in when it gives the servers to an agent, so that no other part has them.

use serde_json::{Value, value::RawValue};
use url::Url;

use super::has_vetted_form;
use crate::domain::turn::outcome::{ErrorCode, Failure};

/// The member that names a secret.
const SECRET: &str = "secret";
/// Characters of the longest name.
const MAX_NAME_CHARS: usize = 64;

/// A secret of the settings, and where it may be used.
#[derive(Clone, Copy)]
pub(crate) struct NamedSecret<'a> {
    pub value: &'a str,
    /// Tenants whose sessions may use it.
    pub tenants: &'a [String],
    pub place: Place<'a>,
}

/// The MCP server that may get a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place<'a> {
    /// A program with these arguments, as a variable; any arguments if only the program is given.
    Command(&'a [String]),
    /// A server at this scheme, host and port, as a header.
    Origin(&'a str),
}

/// True for the name of a secret: letters, `_`, `-` and `.`, at most 64. Without digits, since a text with digits in a member
/// `secret` may be a secret itself and is redacted.
pub(crate) fn is_name(name: &str) -> bool {
    let fine = |byte: u8| byte.is_ascii_alphabetic() || matches!(byte, b'_' | b'-' | b'.');
    !name.is_empty() && name.len() <= MAX_NAME_CHARS && name.bytes().all(fine)
}

/// The name in `{"secret": "NAME"}`; `None` for any other value.
pub(super) fn name_in(value: &Value) -> Option<&str> {
    let members = value.as_object().filter(|members| members.len() == 1)?;
    members.get(SECRET)?.as_str().filter(|name| is_name(name))
}

/// Puts the values of named secrets into servers of a tenant; `None` if none is named. `find` finds a secret.
///
/// # Errors
/// `unknown_secret`, in the same words for a name that does not exist and for one that may not be used there.
pub(crate) fn resolve<'a>(
    servers: &RawValue,
    tenant: &str,
    find: impl Fn(&str) -> Option<NamedSecret<'a>>,
) -> Result<Option<Box<RawValue>>, Failure> {
    if !servers.get().contains("\"secret\"") {
        return Ok(None);
    }
    let Ok(mut servers) = serde_json::from_str::<Vec<Value>>(servers.get()) else { return Ok(None) };
    let mut is_changed = false;
    for (index, server) in servers.iter_mut().enumerate() {
        let is_vetted = has_vetted_form(server);
        for member in ["env", "headers"] {
            let Some(mut pairs) = server.get_mut(member).map(Value::take) else { continue };
            for pair in pairs.as_array_mut().into_iter().flatten() {
                let Some(name) = name_in(&pair["value"]) else { continue };
                let usable = find(name).filter(|secret| {
                    is_vetted && secret.tenants.iter().any(|it| it == tenant) && secret.place.takes(server, member)
                });
                let Some(secret) = usable else { return Err(unusable(index, name)) };
                pair["value"] = secret.value.into();
                is_changed = true;
            }
            server[member] = pairs;
        }
    }
    if !is_changed {
        return Ok(None);
    }
    serde_json::value::to_raw_value(&servers)
        .map(Some)
        .map_err(|cause| Failure::new(ErrorCode::Internal, cause.to_string()))
}

fn unusable(index: usize, name: &str) -> Failure {
    let detail = format!("mcpServers[{index}]: no secret {name:?} that this tenant may use for this server");
    Failure::new(ErrorCode::UnknownSecret, detail)
}

impl Place<'_> {
    /// True if a secret of this place may be in a member of a server.
    fn takes(self, server: &Value, member: &str) -> bool {
        match self {
            Self::Command(command) => {
                let Some((program, args)) = command.split_first() else { return false };
                let given = server["args"].as_array().map(Vec::as_slice).unwrap_or_default();
                let is_same =
                    args.is_empty() || given.iter().map(Value::as_str).eq(args.iter().map(|it| Some(it.as_str())));
                member == "env" && server["command"] == program.as_str() && is_same
            }
            Self::Origin(origin) => {
                let url = server["url"].as_str().and_then(|url| Url::parse(url).ok());
                let is_there = url.is_some_and(|url| url.origin().ascii_serialization() == origin);
                member == "headers" && server["command"].is_null() && is_there
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn resolved(server: Value, tenant: &str) -> Result<Option<Value>, String> {
        let (tenants, command) = (["acme".to_owned()], ["mcp-tool".to_owned(), "--stdio".to_owned()]);
        let program = ["mcp-any".to_owned()];
        let find = |name: &str| {
            let place = match name {
                "TOOL" => Place::Command(&command),
                "ANY" => Place::Command(&program),
                "REMOTE" => Place::Origin("https://mcp.example.com"),
                _ => return None,
            };
            Some(NamedSecret { value: "value-of-it", tenants: &tenants, place })
        };
        let servers = serde_json::value::to_raw_value(&[server]).unwrap();
        resolve(&servers, tenant, find)
            .map(|servers| servers.map(|servers| serde_json::from_str(servers.get()).unwrap()))
            .map_err(|failure| {
                assert_eq!(failure.code, ErrorCode::UnknownSecret);
                failure.detail
            })
    }

    fn local(name: &str, command: &str, args: &[&str]) -> Value {
        json!({"name": "a", "command": command, "args": args, "env": [{"name": "KEY", "value": {"secret": name}}]})
    }

    #[test]
    fn named_secret_is_put_in_only_for_its_tenant_and_its_server() {
        let servers = resolved(local("TOOL", "mcp-tool", &["--stdio"]), "acme").unwrap().unwrap();
        assert_eq!(servers[0]["env"], json!([{"name": "KEY", "value": "value-of-it"}]));
        assert!(resolved(local("ANY", "mcp-any", &["--whatever"]), "acme").unwrap().is_some());
        let remote = |url: &str| {
            let headers = json!([{"name": "Authorization", "value": {"secret": "REMOTE"}}]);
            json!({"type": "http", "name": "r", "url": url, "headers": headers})
        };
        assert!(resolved(remote("https://mcp.example.com/mcp?x=1"), "acme").unwrap().is_some());
        let refused = [
            resolved(local("TOOL", "mcp-tool", &["--stdio"]), "other"),
            resolved(local("TOOL", "mcp-tool", &["--stdio"]), ""),
            resolved(local("TOOL", "mcp-tool", &["--stdio", "--dump"]), "acme"),
            resolved(local("TOOL", "evil", &["--stdio"]), "acme"),
            resolved(local("REMOTE", "mcp-tool", &["--stdio"]), "acme"),
            resolved(remote("https://mcp.example.com.evil.com/"), "acme"),
            resolved(remote("https://user@evil.com/#mcp.example.com"), "acme"),
            resolved(remote("http://mcp.example.com/"), "acme"),
        ];
        for refusal in refused {
            let detail = refusal.unwrap_err();
            assert!(detail.starts_with("mcpServers[0]: no secret ") && !detail.contains("value-of-it"), "{detail}");
        }
        let unknown = resolved(local("NONE", "mcp-tool", &[]), "acme").unwrap_err();
        let foreign = resolved(local("TOOL", "mcp-tool", &[]), "acme").unwrap_err();
        assert_eq!(unknown.replace("NONE", "TOOL"), foreign, "both are refused in the same words");
    }

    #[test]
    fn servers_without_named_secrets_are_left_as_they_are() {
        for value in
            [json!("plain"), json!({"secret": "a b"}), json!({"secret": "A", "more": 1}), json!({"secret": 1})]
        {
            let server = json!({"name": "a", "command": "x", "env": [{"name": "KEY", "value": value}]});
            assert_eq!(resolved(server, "acme"), Ok(None));
        }
    }
}
