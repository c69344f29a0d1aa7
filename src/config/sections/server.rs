//! `[server]`: the HTTP API.

use std::net::SocketAddr;

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use super::{
    Listener,
    check::{Check, is_host, is_reachable},
    hidden,
};

/// The HTTP API.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Server {
    /// Address and port of the API. Port 0 takes a free port.
    pub listen: SocketAddr,
    /// Bearer token that clients must send: visible ASCII characters without spaces, 24 or more if other machines can reach
    /// `listen`. Not set: a random one, which the first start writes to the file `token` in the data folder. `none`: no
    /// token is required, possible only on a loopback address; every program on the machine, agents included, is then an
    /// operator.
    #[serde(serialize_with = "hidden")]
    pub token: Option<SecretString>,
    /// Host names under which clients reach the API. IP addresses and `localhost` always work; a request with any
    /// other `Host` is refused, which stops DNS rebinding.
    pub allowed_hosts: Vec<String>,
    /// Origins of browser pages that may call the API, exact and without a path: `https://app.example.com`.
    pub allowed_origins: Vec<String>,
    /// Threads of the API, which also run the sessions; 0 to 1024. 0: half of the processors, at least 1, because the
    /// embedded runtime, the database and the agents need the others.
    pub workers: usize,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            token: None,
            allowed_hosts: Vec::new(),
            allowed_origins: Vec::new(),
            workers: 0,
        }
    }
}

/// The value of `server.token` that switches the token off.
const NO_TOKEN: &str = "none";

/// The token that clients must send.
#[derive(Debug)]
pub(crate) enum ClientToken<'a> {
    /// Of the file in the data folder.
    OfDataFolder,
    /// As configured.
    Configured(&'a SecretString),
    /// None is required.
    None,
}

impl Server {
    /// The token that clients must send.
    pub(crate) fn client_token(&self) -> ClientToken<'_> {
        match &self.token {
            None => ClientToken::OfDataFolder,
            Some(token) if token.expose_secret() == NO_TOKEN => ClientToken::None,
            Some(token) => ClientToken::Configured(token),
        }
    }

    pub(super) fn validate(&self, check: &mut Check<'_>, listeners: &[Listener]) {
        let is_served = listeners.contains(&Listener::Server);
        match self.client_token() {
            ClientToken::OfDataFolder => {}
            ClientToken::Configured(token) => check.token("server", self.listen, token, is_served),
            ClientToken::None => {
                let what = format!(
                    "is `none`, and other machines can reach {}; leave it out, or listen on 127.0.0.1",
                    self.listen
                );
                check.require(!(is_served && is_reachable(self.listen)), "server.token", what);
            }
        }
        for (index, origin) in self.allowed_origins.iter().enumerate() {
            let is_exact = url::Url::parse(origin).is_ok_and(|url| {
                matches!(url.scheme(), "http" | "https") && url.origin().ascii_serialization() == *origin
            });
            let what = format!("{origin:?} must be an exact origin such as https://app.example.com, without a path");
            check.require(is_exact, format!("server.allowed_origins.{index}"), what);
        }
        for (index, host) in self.allowed_hosts.iter().enumerate() {
            let what = format!("{host:?} must be a host name such as lumilink.example.com, without scheme and port");
            check.require(is_host(host), format!("server.allowed_hosts.{index}"), what);
        }
        check.range("server.workers", self.workers, 0..=1024);
    }
}
