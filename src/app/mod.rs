//! Starts every part in order, and stops them in the order in which they can do without each other.
//!
//! Each area has a `start_*` function that returns a handle with `stop()`; [`start`] and [`stop`] only order them.
//!
//! Invariant: no other module names all the parts. A part gets what it needs as a value; none looks for another.

mod api;
mod demo;
mod notifications;
mod runtime;
mod sessions;
mod start;
mod stop;
mod store;
mod upkeep;

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use self::store::{database_url, lock_database, make_data_dir};
pub(crate) use self::{demo::demo, start::Service};
use crate::{
    config::Loaded,
    domain::turn::outcome::Failure,
    runtime::{self as container, StartError},
    store::{BadDatabaseUrl, RenewedEpoch, Store, StoreError},
    telemetry::Metrics,
};

/// Why the program does not serve.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AppError {
    /// The database cannot be used.
    #[error("database: {0}")]
    Store(#[from] StoreError),
    /// The database URL is malformed.
    #[error("database.url: {0}")]
    DatabaseUrl(#[from] BadDatabaseUrl),
    /// Another supervisor works with the SQLite file.
    #[error("another lumilink works with the database {}; stop it, or choose another --data-dir", .0.display())]
    InUse(PathBuf),
    /// The metrics cannot be made.
    #[error("metrics: {0}")]
    Metrics(#[from] crate::telemetry::metrics::MetricsError),
    /// The runtime cannot be started.
    #[error("runtime: {0}")]
    Runtime(#[from] StartError),
    /// The runtime's address cannot be used.
    #[error("{0}")]
    Interceptor(#[from] Failure),
    /// The webhook settings are invalid.
    #[error("webhook: {0}")]
    Webhook(String),
    /// An address cannot be bound, or a file not be written.
    #[error("{what}: {cause}")]
    Io { what: String, cause: io::Error },
    /// A step of the tour did not do what it says.
    #[error("the tour failed: {0}")]
    Demo(String),
}

impl AppError {
    fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |cause| Self::Io { what, cause }
    }
}

/// Options of serving that are not configuration.
#[derive(Debug, Clone, Default)]
pub(crate) struct ServeOptions {
    /// File that gets `{"http": "http://ADDR:PORT", "pid": N}` once it serves.
    pub announce: Option<PathBuf>,
}

/// Serves until SIGTERM or Ctrl-C, then stops cleanly. A second signal ends the process at once.
pub(crate) async fn serve(loaded: Loaded, options: ServeOptions) -> Result<(), AppError> {
    let service = Service::start(&loaded).await?;
    announce(options.announce.as_deref(), service.address())?;
    stop::signal().await;
    service.stop().await;
    Ok(())
}

/// Runs the container side alone until SIGTERM or Ctrl-C.
pub(crate) async fn runtime(loaded: Loaded, announce_to: Option<PathBuf>) -> Result<(), AppError> {
    let metrics = Metrics::new(env!("CARGO_PKG_VERSION"), option_env!("LUMILINK_COMMIT"))?;
    let settings = &loaded.config.runtime;
    let options = runtime::runtime_options(&loaded, settings.listen, settings.token.clone(), &metrics)?;
    let running = container::start(options, Some(start::watchdog(metrics)?)).await?;
    tracing::info!(marker = "[ACP]", address = %running.address(), "runtime started");
    announce(announce_to.as_deref(), running.address())?;
    stop::signal().await;
    running.stop(runtime::kill_grace(&loaded.config)).await;
    tracing::info!(marker = "[ACP]", "stopped");
    Ok(())
}

/// Brings the tables up to date.
pub(crate) async fn migrate(loaded: Loaded) -> Result<(), AppError> {
    let url = database_url(&loaded)?;
    make_data_dir(&loaded)?;
    for name in Store::upgrade_schema(&url)? {
        tracing::info!(name, "schema upgraded");
    }
    Ok(())
}

/// Brings the tables of a database that was restored from a backup up to date, and gives it a new epoch: cursors of
/// before are reset. Refused while a supervisor works with a SQLite file; on `PostgreSQL` nobody sees that. Safe to
/// repeat.
pub(crate) async fn restored(loaded: Loaded) -> Result<RenewedEpoch, AppError> {
    let url = database_url(&loaded)?;
    make_data_dir(&loaded)?;
    let _held = lock_database(&url)?;
    migrate(loaded).await?;
    Ok(Store::renew_epoch(&url)?)
}

/// Writes the file atomically, because waiting processes read it as soon as it exists.
fn announce(to: Option<&Path>, address: SocketAddr) -> Result<(), AppError> {
    let Some(to) = to else { return Ok(()) };
    let text = serde_json::json!({"http": format!("http://{address}"), "pid": std::process::id()}).to_string();
    let beside = to.with_extension("new");
    std::fs::write(&beside, text)
        .and_then(|()| std::fs::rename(&beside, to))
        .map_err(AppError::io(format!("--announce {}", to.display())))
}
