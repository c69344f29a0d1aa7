//! What migrations of fleets ask of the directory.

use std::sync::PoisonError;

use super::Workspaces;
use crate::domain::{
    ids::WorkspaceKey,
    migration::FleetHealth,
    routing::{Route, turn_route::RouteState},
};

/// A routing that nobody uses is held by the directory and by the workspace's supervisor.
const IDLE_HOLDERS: usize = 2;

impl Workspaces {
    /// How ACP does over the workspaces in use.
    pub fn fleet_health(&self) -> FleetHealth {
        let supervisors = self.0.supervisors.lock().unwrap_or_else(PoisonError::into_inner);
        let is_rolled_back = |route: RouteState| route.route == Route::Http && route.rollback.is_some();
        FleetHealth {
            is_storm: self.0.parts.storm.is_raging(),
            in_use: supervisors.len(),
            rolled_back: supervisors.values().filter(|it| is_rolled_back(it.routing.gate().state())).count(),
        }
    }

    /// Whether the workspace is in use.
    pub fn is_in_use(&self, key: &WorkspaceKey) -> bool {
        self.0.supervisors.lock().unwrap_or_else(PoisonError::into_inner).contains_key(key)
    }

    /// Lets go of a workspace that nobody uses, so that its next session starts it where it is served.
    pub fn let_go(&self, key: &WorkspaceKey) {
        let mut supervisors = self.0.supervisors.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever is about to use it has got it under the same lock.
        let is_idle = supervisors.get(key).is_some_and(|it| it.routing.holders() <= IDLE_HOLDERS);
        if is_idle && self.0.parts.index.of_workspace(key).is_empty() {
            supervisors.remove(key);
        }
    }
}
