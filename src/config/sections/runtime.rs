//! `[runtime]`: the container side, which starts and stops the agents.

use std::net::SocketAddr;

use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use super::{
    Listener,
    check::{Check, MAX_BYTES, is_reachable},
    hidden,
};

/// The runtime, which starts and stops the agents: embedded, or a process of its own (`lumilink runtime`).
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Runtime {
    /// Address of a separate runtime, `ws://host:port/acp` or `wss://…`. Not set: the supervisor embeds one.
    pub url: Option<String>,
    /// Bearer token between supervisor and runtime; required where the runtime listens on an address that other
    /// machines can reach.
    #[serde(serialize_with = "hidden")]
    pub token: Option<SecretString>,
    /// Address of `lumilink runtime`. The embedded runtime takes a free port on loopback instead.
    pub listen: SocketAddr,
    /// True if the runtime offers ACP over WebSocket. `false`: it speaks HTTP alone and every turn gets a fresh agent,
    /// which is slower and allows no permission requests.
    pub acp: bool,
    /// Agent processes that run at the same time, 1 to 1,000,000. The default is `capacity.max_sessions` plus room for
    /// restarts that overlap.
    pub max_agents: usize,
    /// Time limit for an agent to start and to open or load its session, in seconds, 1 or more. A Node agent starts
    /// within 3 s on a busy machine; loading a long conversation takes longer. `handshake_timeout_s` of an agent takes
    /// precedence.
    pub handshake_timeout_s: u64,
    /// Time limit for an agent to end after SIGTERM before its process group is killed, in milliseconds, 0 to 60,000.
    /// One of the known agents takes 2 s.
    pub kill_grace_ms: u64,
    /// Time for which an agent is kept after the connection to its supervisor broke, and for which the supervisor tries
    /// to reconnect, in seconds. 0: a broken connection ends the turn and the agent. The default outlasts a restart of
    /// the supervisor.
    pub reconnect_grace_s: u64,
    /// Messages of one agent that the runtime keeps until the supervisor has persisted them, 64 to 1,000,000; at the
    /// limit the agent waits. Must be equal on both sides of a separate runtime, because the supervisor
    /// acknowledges after a quarter of its own value. A turn of a talkative agent has some hundreds.
    pub replay_frames: usize,
    /// Bytes of those messages, for each agent, 65,536 to 1 GiB. Must be equal on both sides of a separate runtime.
    pub replay_bytes: usize,
}

impl Default for Runtime {
    fn default() -> Self {
        Self {
            url: None,
            token: None,
            listen: SocketAddr::from(([127, 0, 0, 1], 8090)),
            acp: true,
            max_agents: 1100,
            handshake_timeout_s: 60,
            kill_grace_ms: 2500,
            reconnect_grace_s: 120,
            replay_frames: 2048,
            replay_bytes: 2 * 1024 * 1024,
        }
    }
}

impl Runtime {
    pub(super) fn validate(&self, check: &mut Check<'_>, listeners: &[Listener]) {
        let is_served = listeners.contains(&Listener::Runtime);
        match &self.token {
            Some(token) => check.token("runtime", self.listen, token, is_served),
            None => {
                let what = format!(
                    "{} is reachable from other machines and no token is configured; set runtime.token \
                     (LUMILINK_RUNTIME__TOKEN) or listen on 127.0.0.1",
                    self.listen
                );
                check.require(!(is_served && is_reachable(self.listen)), "runtime.listen", what);
            }
        }
        let fine = self.url.as_ref().is_none_or(|text| {
            url::Url::parse(text).is_ok_and(|url| {
                matches!(url.scheme(), "ws" | "wss")
                    && url.has_host()
                    && url.username().is_empty()
                    && url.password().is_none()
            })
        });
        check.require(fine, "runtime.url", "must be ws://host:port/acp or wss://host/acp, without user or password");
        check.range("runtime.max_agents", self.max_agents, 1..=1_000_000);
        check.seconds("runtime.handshake_timeout_s", self.handshake_timeout_s);
        check.range_of("runtime.kill_grace_ms", self.kill_grace_ms, 0..=60_000, " milliseconds");
        check.seconds_or_0("runtime.reconnect_grace_s", self.reconnect_grace_s);
        // With less, agent and supervisor could wait for each other: one for an acknowledgement, the other for the
        // messages that trigger it.
        check.range("runtime.replay_frames", self.replay_frames, 64..=1_000_000);
        check.range("runtime.replay_bytes", self.replay_bytes, 64 * 1024..=MAX_BYTES);
    }
}
