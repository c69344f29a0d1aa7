//! Starts every part in order, and stops them in the order in which they can do without each other.
//!
//! Each area has a `start_*` function that returns a handle with `stop()`; [`start`] and [`stop`] only order them.
//!
//! Invariant: no other module names all the parts. A part gets what it needs as a value; none looks for another.

mod access;
mod api;
mod automation;
mod backup;
mod demo;
mod membership;
mod notifications;
mod reload;
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

pub(crate) use self::{
    backup::{CopyProgress, back_up},
    demo::demo,
    reload::Reload,
    start::Service,
};
use self::{
    membership::refuse_member,
    reload::{Reloader, Targets},
    store::{database_url, lock_database, make_data_dir},
};
use crate::{
    config::Loaded,
    domain::{redaction::known, turn::outcome::Failure},
    process::{inherited::Inherited, terminal::Terminal},
    runtime::{self as container, StartError},
    store::{BackupError, BadDatabaseUrl, RenewedEpoch, Store, StoreError},
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
    #[error("another lumilink works with the database {}{member}; stop it, or choose another --data-dir", path.display())]
    InUse { path: PathBuf, member: String },
    /// Another supervisor is the member of the database.
    #[error("another lumilink works with the database {database}: {member}; stop it, or use another database")]
    Member { database: String, member: String },
    /// Another supervisor has taken over.
    #[error("another lumilink has taken over the database")]
    Replaced,
    /// The database was not copied.
    #[error(transparent)]
    Backup(#[from] BackupError),
    /// Databases of this kind are copied with their own tools; holds the command.
    #[error("lumilink copies SQLite databases; a PostgreSQL one is copied with its own tools: {0}")]
    NotSqlite(String),
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
    /// The GitHub App cannot be used.
    #[error("github: {0}")]
    Github(String),
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
    /// Reloads the configuration on SIGHUP. `None`: SIGHUP changes nothing.
    pub reload: Option<Reload>,
}

/// Serves until SIGTERM or Ctrl-C, then stops cleanly. A second signal ends the process at once.
pub(crate) async fn serve(loaded: Loaded, options: ServeOptions) -> Result<(), AppError> {
    let inherited = Inherited::take_over();
    known::hide(loaded.secrets());
    let terminal = Terminal::at_start();
    let service = Service::start(&loaded, inherited).await?;
    let signals = stop::Signals::listen();
    announce(options.announce.as_deref(), service.address())?;
    let reloader = Reloader::new(options.reload, &loaded, service.targets());
    let membership = service.membership.membership.clone();
    let replaced = tokio::select! {
        () = stop::signal(signals, terminal, reloader) => Ok(()),
        () = membership.lost() => Err(AppError::Replaced),
    };
    service.stop().await;
    replaced
}

/// Runs the container side alone until SIGTERM or Ctrl-C.
pub(crate) async fn runtime(loaded: Loaded, options: ServeOptions) -> Result<(), AppError> {
    let inherited = Inherited::take_over();
    known::hide(loaded.secrets());
    let terminal = Terminal::at_start();
    let metrics = Metrics::of_runtime(env!("CARGO_PKG_VERSION"), option_env!("LUMILINK_COMMIT"))?;
    let github = &loaded.config.github;
    for (name, key) in [("github.private_key", &github.private_key), ("github.signing_key", &github.signing_key)] {
        if key.is_some() {
            tracing::warn!(marker = "[GITHUB-AUTO]", "{name} is set, and a runtime does not use it: remove it here");
        }
    }
    let settings = &loaded.config.runtime;
    let place = runtime::Place {
        listen: settings.listen,
        serves_on: settings.listen,
        is_separate: true,
        has_tenants: None,
        inherited,
    };
    let parts = runtime::runtime_options(&loaded, place, settings.token.clone(), &metrics)?;
    let secrets = Some(parts.secrets.clone());
    let running = container::start(parts, Some(start::watchdog(metrics)?)).await?;
    tracing::info!(marker = "[ACP]", address = %running.address(), "runtime started");
    let signals = stop::Signals::listen();
    announce(options.announce.as_deref(), running.address())?;
    let targets = Targets { runtime_token: Some(running.token().clone()), secrets, ..Targets::default() };
    stop::signal(signals, terminal, Reloader::new(options.reload, &loaded, targets)).await;
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
/// before are reset. Refused while a supervisor works with the database. Safe to repeat.
pub(crate) async fn restored(loaded: Loaded) -> Result<RenewedEpoch, AppError> {
    let url = database_url(&loaded)?;
    make_data_dir(&loaded)?;
    let held = lock_database(&url).await?;
    migrate(loaded).await?;
    if held.is_none() {
        refuse_member(&url)?;
    }
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
