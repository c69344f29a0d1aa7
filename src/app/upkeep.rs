//! Work beside the sessions: alerts of capacity and of rollback storms, expiry and retention.

use std::time::Duration;

use tokio::task::JoinHandle;

use crate::{
    actors::{
        erasure::continue_erasures,
        handles::capacity_guard::CapacityGuard,
        upkeep::{
            capacity::CapacityWatch,
            disk::measure_workspaces,
            folders::sweep_folders,
            retention::{self, Ages},
            token_use,
        },
        workspaces::Workspaces,
    },
    config::Config,
};

pub(super) struct UpkeepHandle {
    capacity: JoinHandle<()>,
    expiry: JoinHandle<()>,
    retention: JoinHandle<()>,
    folders: JoinHandle<()>,
    erasures: JoinHandle<()>,
    disk: JoinHandle<()>,
    storms: JoinHandle<()>,
    token_use: JoinHandle<()>,
    runtime: Option<JoinHandle<()>>,
}

/// Starts the capacity alerts, the ends of rollback storms, the expiry of sessions, the removal of old rows and folders, the
/// erasures of earlier processes, the records of the use of tokens, and the status requests to a separate runtime.
pub(super) fn start_upkeep(config: &Config, workspaces: &Workspaces, capacity: CapacityWatch) -> UpkeepHandle {
    let services = workspaces.services();
    let max_age = Duration::from_secs(config.session.max_age_s);
    let ages = Ages::new(&config.retention, &services.settings.window);
    UpkeepHandle {
        capacity: actix::spawn(capacity.run()),
        expiry: actix::spawn(retention::sweep_expired(services.clone(), max_age)),
        retention: actix::spawn(retention::sweep(services.clone(), ages)),
        folders: actix::spawn(sweep_folders(
            services.clone(),
            workspaces.workspace_client().clone(),
            config.retention.folders(),
        )),
        token_use: actix::spawn(token_use::record(services.clone())),
        disk: actix::spawn(measure_workspaces(
            services.clone(),
            workspaces.workspace_client().clone(),
            Duration::from_secs(config.workspaces.measure_s),
        )),
        erasures: actix::spawn(continue_erasures(workspaces.clone())),
        storms: actix::spawn(services.storm.clone().watch()),
        runtime: config.runtime.url.as_ref().map(|_| actix::spawn(services.runtime.clone().watch())),
    }
}

impl UpkeepHandle {
    /// Aborts the sweeps, and waits at most `flush` until the last changes of alerts are on disk.
    pub(super) async fn stop(self, guard: &CapacityGuard, flush: Duration) {
        self.expiry.abort();
        self.retention.abort();
        self.folders.abort();
        self.erasures.abort();
        self.disk.abort();
        self.storms.abort();
        self.token_use.abort();
        self.runtime.iter().for_each(JoinHandle::abort);
        guard.close();
        if tokio::time::timeout(flush, self.capacity).await.is_err() {
            tracing::error!(marker = "[CAPACITY]", "capacity alert changes were not written");
        }
    }
}
