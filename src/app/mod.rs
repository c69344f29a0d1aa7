//! Builds every part in order, and takes them down in the reverse order.
//!
//! Invariant: this is the only place that names all the parts. A part gets what it needs as a value; none
//! looks for another.

mod demo;
mod start;
mod stop;
mod webhooks;

use std::{
    fs::TryLockError,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

pub(crate) use self::{demo::demo, start::Service};
use crate::{
    config::Loaded,
    domain::{turn::outcome::Failure, watchdog::WatchdogLimits},
    runtime,
    store::{BadDatabaseUrl, DatabaseUrl, RenewedEpoch, Store, StoreError},
    telemetry::watchdog::Watchdog,
};

/// Why the program does not serve.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AppError {
    /// The database cannot be used.
    #[error("database: {0}")]
    Store(#[from] StoreError),
    /// The database's URL is none.
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
    Runtime(#[from] runtime::StartError),
    /// The runtime's address cannot be used.
    #[error("{0}")]
    Interceptor(#[from] Failure),
    /// What operators are told cannot be posted.
    #[error("webhook: {0}")]
    Webhook(String),
    /// An address cannot be bound, or a file not be written.
    #[error("{what}: {cause}")]
    Io {
        /// What was tried.
        what: String,
        /// Why not.
        cause: io::Error,
    },
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

/// What to do beside serving.
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
    let metrics = crate::telemetry::Metrics::new(env!("CARGO_PKG_VERSION"), option_env!("LUMILINK_COMMIT"))?;
    let runtime = &loaded.config.runtime;
    let options = start::runtime_options(&loaded, runtime.listen, runtime.token.clone(), &metrics)?;
    let watching = Watchdog::watch(WatchdogLimits::default(), metrics);
    let watchdog = watching.map_err(AppError::io("the watchdog's thread"))?;
    let running = runtime::start(options, Some(watchdog)).await?;
    tracing::info!(marker = "[ACP]", address = %running.address(), "runtime serves");
    announce(announce_to.as_deref(), running.address())?;
    stop::signal().await;
    running.stop(stop::kill_grace(&loaded.config)).await;
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
/// before are reset. Refused while a supervisor works with a SQLite file; on PostgreSQL nobody sees that. Safe to repeat.
pub(crate) async fn restored(loaded: Loaded) -> Result<RenewedEpoch, AppError> {
    let url = database_url(&loaded)?;
    make_data_dir(&loaded)?;
    let _held = hold(&url)?;
    migrate(loaded).await?;
    Ok(Store::renew_epoch(&url)?)
}

fn make_data_dir(loaded: &Loaded) -> Result<(), AppError> {
    std::fs::create_dir_all(&loaded.data_dir)
        .map_err(AppError::io(format!("data folder {}", loaded.data_dir.display())))
}

/// Holds a SQLite database for this process: a second supervisor would take the turns of the first one for
/// abandoned. The system lets go of it with the process, however that ends. PostgreSQL is not held.
fn hold(url: &DatabaseUrl) -> Result<Option<std::fs::File>, AppError> {
    let DatabaseUrl::Sqlite(path) = url else { return Ok(None) };
    let mut name = path.clone().into_os_string();
    name.push(".lock");
    let failed = |cause| AppError::Io { what: format!("lock file {}", Path::new(&name).display()), cause };
    let file = std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(&name).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Err(AppError::InUse(path.clone())),
        Err(TryLockError::Error(cause)) => Err(failed(cause)),
    }
}

fn database_url(loaded: &Loaded) -> Result<DatabaseUrl, AppError> {
    use secrecy::ExposeSecret;
    Ok(match &loaded.config.database.url {
        Some(url) => url.expose_secret().parse()?,
        None => DatabaseUrl::Sqlite(loaded.data_dir.join("lumilink.db")),
    })
}

/// Writes the file whole or not at all: whoever waits for it reads it as soon as it is there.
fn announce(to: Option<&Path>, address: SocketAddr) -> Result<(), AppError> {
    let Some(to) = to else { return Ok(()) };
    let text = serde_json::json!({"http": format!("http://{address}"), "pid": std::process::id()}).to_string();
    let beside = to.with_extension("new");
    std::fs::write(&beside, text)
        .and_then(|()| std::fs::rename(&beside, to))
        .map_err(AppError::io(format!("--announce {}", to.display())))
}
