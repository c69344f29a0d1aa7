//! The newest handshake with each configured agent since the start of this process, for the list of agents.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::Arc,
    time::Duration,
};

use parking_lot::RwLock;

use crate::{
    domain::{clock::Timestamp, redaction::RedactedJson, turn::outcome::Failure},
    transport::AgentFacts,
};

/// Agents that are remembered; a configuration has a handful. The handshakes of further ones are not recorded.
const MAX_AGENTS: usize = 64;

/// The newest handshake with an agent.
#[derive(Debug, Clone)]
pub(crate) struct LastHandshake {
    pub at: Timestamp,
    pub took: Duration,
    /// Absent if the agent became ready.
    pub failure: Option<Failure>,
    /// The agent's description of itself in the newest handshake that succeeded.
    pub facts: Option<RedactedJson>,
}

/// Handshakes by the configured name of the agent. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct AgentHandshakes(Arc<RwLock<BTreeMap<String, LastHandshake>>>);

impl AgentHandshakes {
    pub(crate) fn record(&self, agent: &str, outcome: Result<&AgentFacts, &Failure>, took: Duration, now: Timestamp) {
        let facts = outcome.ok().map(|facts| facts.for_row(&facts.offers));
        let failure = outcome.err().cloned();
        let mut known = self.0.write();
        let has_room = known.len() < MAX_AGENTS;
        match known.entry(agent.to_owned()) {
            Entry::Occupied(mut entry) => {
                let facts = facts.or_else(|| entry.get_mut().facts.take());
                entry.insert(LastHandshake { at: now, took, failure, facts });
            }
            Entry::Vacant(entry) if has_room => drop(entry.insert(LastHandshake { at: now, took, failure, facts })),
            Entry::Vacant(_) => {}
        }
    }

    pub(crate) fn of(&self, agent: &str) -> Option<LastHandshake> {
        self.0.read().get(agent).cloned()
    }
}
