//! The public API, and the driver of the migrations that it starts.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
};

use tokio::task::JoinHandle;

use super::AppError;
use crate::{
    actors::migrations::Migrations,
    config::Config,
    http::{self, ApiState, EmbeddedListener, RunningHttp},
    process::local_server,
    runtime::{self, EmbeddedRuntime},
    telemetry::watchdog::Watchdog,
};

pub(super) struct HttpHandle {
    running: RunningHttp,
    data_dir: PathBuf,
}

/// Starts the server of the API on its bound address, which also serves the routes of an embedded runtime. Records the
/// address in the data folder for commands of this machine.
pub(super) fn start_http(
    config: &Config,
    state: ApiState,
    watchdog: Watchdog,
    embedded: Option<EmbeddedRuntime>,
    listener: TcpListener,
    data_dir: &Path,
) -> Result<HttpHandle, AppError> {
    let beside = embedded.map(|embedded| EmbeddedListener {
        routes: embedded.routes(),
        listener: embedded.listener,
        tune: runtime::tune,
    });
    let running = http::serve(state, config, watchdog, beside, listener)
        .map_err(AppError::io(format!("server.listen {}", config.server.listen)))?;
    if let Err(cause) = local_server::record(data_dir, running.address) {
        // Everything else works, for instance with PostgreSQL and a folder that cannot be written.
        let folder = data_dir.display().to_string();
        tracing::warn!(marker = "[ACP]", folder, %cause, "address not recorded: commands need LUMILINK_URL and a token");
    }
    Ok(HttpHandle { running, data_dir: data_dir.to_owned() })
}

impl HttpHandle {
    pub(super) fn address(&self) -> std::net::SocketAddr {
        self.running.address
    }

    /// Answers the requests that are under way, and closes the listeners.
    pub(super) async fn stop(self) {
        self.running.handle.stop(true).await;
        local_server::forget(&self.data_dir);
    }
}

pub(super) struct MigrationsHandle {
    driver: JoinHandle<()>,
}

pub(super) fn start_migrations(migrations: Migrations) -> MigrationsHandle {
    MigrationsHandle { driver: actix::spawn(migrations.run()) }
}

impl MigrationsHandle {
    /// Aborts the driver. The next start settles what was under way.
    pub(super) fn stop(&self) {
        self.driver.abort();
    }
}
