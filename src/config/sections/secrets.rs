//! `[secrets.<NAME>]`: secrets that MCP servers get by name.

use std::collections::BTreeMap;

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use super::{check::Check, hidden};
use crate::domain::session::mcp::named::{self, NamedSecret, Place};

/// A secret that callers name in `mcpServers` with `{"secret": "NAME"}` as a value of `env` or `headers`. The runtime puts the
/// value in at each start of an agent; it is neither stored nor sent to the supervisor. NAME has letters, `_`, `-` and `.`, at
/// most 64. Settings of the runtime.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Secret {
    /// The value, best given by `value_file`, which names a file and is read again on SIGHUP.
    #[serde(serialize_with = "hidden")]
    pub value: Option<SecretString>,
    /// Tenants (`installationId`) whose sessions may use it, at least one.
    pub tenants: Vec<String>,
    /// Program and arguments of the MCP server that gets it as a variable, exactly as callers write them. The program alone
    /// allows any arguments: only for programs that cannot be made to print their environment. Either this or `mcp_origin`.
    pub mcp_command: Vec<String>,
    /// Scheme, host and port of the MCP server that gets it as a header: `https://mcp.example.com`.
    pub mcp_origin: Option<String>,
}

impl Secret {
    /// The rule by which it is used.
    pub(crate) fn rule(&self) -> Option<NamedSecret<'_>> {
        let place = match &self.mcp_origin {
            Some(origin) => Place::Origin(origin),
            None => Place::Command(&self.mcp_command),
        };
        Some(NamedSecret { value: self.value.as_ref()?.expose_secret(), tenants: &self.tenants, place })
    }
}

pub(super) fn validate(secrets: &BTreeMap<String, Secret>, check: &mut Check<'_>) {
    for (name, secret) in secrets {
        let setting = |key: &str| format!("secrets.{name}{key}");
        let what = "must be a name of letters, `_`, `-` and `.`, at most 64; digits are not possible";
        check.require(named::is_name(name), setting(""), what);
        let is_given = secret.value.as_ref().is_some_and(|value| !value.expose_secret().is_empty());
        check.require(is_given, setting(".value"), "is not set; set it, or `value_file`");
        let what = "is empty; name the tenants that may use the secret";
        check.require(!secret.tenants.is_empty(), setting(".tenants"), what);
        let is_bound = secret.mcp_command.is_empty() != secret.mcp_origin.is_none();
        check.require(is_bound, setting(".mcp_command"), "must be set, or `mcp_origin`, and not both");
        let is_origin = secret.mcp_origin.as_ref().is_none_or(|origin| {
            url::Url::parse(origin).is_ok_and(|url| {
                matches!(url.scheme(), "http" | "https") && url.origin().ascii_serialization() == *origin
            })
        });
        let what = "must be an exact origin such as https://mcp.example.com, without a path";
        check.require(is_origin, setting(".mcp_origin"), what);
    }
}
