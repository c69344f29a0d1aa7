//! MCP servers with secrets as callers gave them, for the next start of a session's agent. They are kept in memory only,
//! as long as this process lives.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use parking_lot::Mutex;

use crate::domain::{ids::SessionId, session::mcp::McpServers};

/// Sessions whose servers are kept; a server with secrets takes about a kilobyte.
const MAX_SESSIONS: usize = 4096;
/// Bytes of all servers; the four thousand sessions of [`MAX_SESSIONS`] get 4 KiB each.
const MAX_BYTES: usize = 16 * 1024 * 1024;

/// The servers of sessions, live or not. When it is full, those of the session that was started least recently are
/// dropped; that session then reports lost secrets. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct GivenServers(Arc<Mutex<Given>>);

#[derive(Default)]
struct Given {
    servers: HashMap<SessionId, (McpServers, u64)>,
    /// Sessions by last use.
    used: BTreeMap<u64, SessionId>,
    last_use: u64,
    bytes: usize,
}

impl Given {
    fn remove(&mut self, id: SessionId) -> Option<McpServers> {
        let (servers, used) = self.servers.remove(&id)?;
        self.used.remove(&used);
        self.bytes -= servers.size_bytes();
        Some(servers)
    }

    /// Keeps the servers of a session as the newest, and drops the oldest beyond the limits.
    fn insert(&mut self, id: SessionId, servers: McpServers) {
        self.remove(id);
        self.last_use += 1;
        self.bytes += servers.size_bytes();
        self.used.insert(self.last_use, id);
        self.servers.insert(id, (servers, self.last_use));
        while self.servers.len() > MAX_SESSIONS || self.bytes > MAX_BYTES {
            let Some(oldest) = self.used.first_key_value().map(|(_, id)| *id) else { break };
            self.remove(oldest);
            tracing::warn!(marker = "[ACP]", session_id = %oldest, "secrets of MCP servers were dropped: too many are kept");
        }
    }
}

impl GivenServers {
    /// Keeps the servers of a session in place of earlier ones. Servers without secrets are not kept: the session's row
    /// has them.
    pub(crate) fn keep(&self, id: SessionId, servers: &McpServers) {
        match servers.has_secrets() {
            true => self.0.lock().insert(id, servers.clone()),
            false => drop(self.0.lock().remove(id)),
        }
    }

    /// The servers of a session that is started, which counts as a use.
    pub(crate) fn of(&self, id: SessionId) -> Option<McpServers> {
        let mut given = self.0.lock();
        let servers = given.remove(id)?;
        given.insert(id, servers.clone());
        Some(servers)
    }

    pub(crate) fn has(&self, id: SessionId) -> bool {
        self.0.lock().servers.contains_key(&id)
    }

    /// Drops the servers of a session that cannot be started again.
    pub(crate) fn drop_of(&self, id: SessionId) {
        self.0.lock().remove(id);
    }

    /// The sessions whose servers are kept.
    pub(crate) fn sessions(&self) -> Vec<SessionId> {
        self.0.lock().servers.keys().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{json, value::to_raw_value};
    use uuid::Uuid;

    use super::*;

    fn session(number: usize) -> SessionId {
        SessionId(Uuid::from_u128(number as u128))
    }

    fn servers(bytes: usize) -> McpServers {
        let env = json!([{"name": "KEY", "value": "s".repeat(bytes)}]);
        McpServers::given(to_raw_value(&json!([{"name": "a", "command": "x", "args": [], "env": env}])).unwrap())
    }

    #[test]
    fn kept_servers_are_bounded_in_sessions_and_bytes() {
        let given = GivenServers::default();
        let (small, large) = (servers(8), servers(MAX_BYTES / 4));
        for number in 0..MAX_SESSIONS + 2 {
            given.0.lock().insert(session(number), small.clone());
            assert!(given.of(session(0)).is_some(), "a session that is used stays");
        }
        assert_eq!(given.sessions().len(), MAX_SESSIONS);
        assert!(!given.has(session(1)) && !given.has(session(2)) && given.has(session(3)));
        for number in 0..5 {
            given.0.lock().insert(session(number), large.clone());
        }
        assert_eq!(given.sessions().len(), 3, "three quarters, because each server has a name as well");
        given.0.lock().insert(session(9), servers(MAX_BYTES));
        let left = given.0.lock();
        assert_eq!((left.servers.len(), left.used.len(), left.bytes), (0, 0, 0));
    }

    #[test]
    fn servers_without_secrets_are_not_kept() {
        let given = GivenServers::default();
        given.keep(session(1), &servers(8));
        given.keep(session(1), &McpServers::none());
        assert!(given.of(session(1)).is_none());
        given.keep(session(1), &servers(8));
        given.drop_of(session(1));
        assert_eq!((given.sessions().len(), given.0.lock().bytes), (0, 0));
    }
}
