//! Starts the service: every area in order, those first that others need.

use std::net::{SocketAddr, TcpListener};

use super::{
    AppError,
    access::{client_token, client_token_place},
    api::{HttpHandle, MigrationsHandle, start_http, start_migrations},
    automation::{GithubKeys, TriggersHandle, github_keys, start_triggers},
    membership::join,
    notifications::{NotificationsHandle, WebhooksHandle, start_notifications, start_webhooks, webhooks},
    reload::Targets,
    runtime::{RuntimeHandle, start_runtime},
    sessions::{SessionsHandle, SessionsStart, start_sessions},
    store::{StoreHandle, start_store},
    upkeep::{UpkeepHandle, start_upkeep},
};
use crate::{
    actors::{handles::client_tokens::ClientTokens, migrations::Migrations, upkeep::keeper::Keeper},
    cluster::membership::Renewal,
    config::{DEFAULT_AGENT, Loaded, ReloadableSecret},
    domain::watchdog::WatchdogLimits,
    http::ApiState,
    process::inherited::Inherited,
    telemetry::{Metrics, watchdog::Watchdog},
};

pub(crate) struct Service {
    pub(super) store: StoreHandle,
    pub(super) membership: Renewal,
    pub(super) runtime: RuntimeHandle,
    pub(super) sessions: SessionsHandle,
    pub(super) upkeep: UpkeepHandle,
    pub(super) notifications: NotificationsHandle,
    pub(super) http: HttpHandle,
    pub(super) migrations: MigrationsHandle,
    pub(super) triggers: TriggersHandle,
    pub(super) webhooks: WebhooksHandle,
    pub(super) server_token: ReloadableSecret,
    /// The token of a separate runtime.
    pub(super) runtime_token: Option<ReloadableSecret>,
    pub(super) github: GithubKeys,
}

impl Service {
    pub(crate) async fn start(loaded: &Loaded, inherited: Inherited) -> Result<Self, AppError> {
        let config = &loaded.config;
        let metrics = Metrics::new(env!("CARGO_PKG_VERSION"), option_env!("LUMILINK_COMMIT"))?;
        metrics.configure_agents(config.agents.keys().map(String::as_str).chain([DEFAULT_AGENT]))?;
        // First: a taken address must not cost anything, and nothing is recovered before the address is ours.
        let listener = bind(config.server.listen)?;
        // Before anything is recovered: a key that cannot be used is an error of the start.
        let github = github_keys(config)?;
        let store = start_store(loaded, metrics.clone()).await?;
        let server_token = ReloadableSecret::new(client_token(loaded)?);
        let client_tokens = ClientTokens::of(&store.store.usable_tokens(store.store.time().await?).await?);
        let membership = join(config, &listener, &store.url, store.held.is_some()).await?;
        let watchdog = watchdog(metrics.clone())?;
        let (runtime, embedded, endpoint) =
            start_runtime(loaded, inherited, client_tokens.trust_boundary(), &metrics).await?;
        let can_resume = !runtime.is_embedded();
        // The token of an embedded runtime is not configured.
        let runtime_token = can_resume.then(|| endpoint.token.clone());
        let member = membership.membership.clone();
        let tokens = (client_tokens, can_resume);
        let sessions = start_sessions(config, store.store.clone(), member, metrics, endpoint, tokens, github.clone());
        let sessions = sessions.await?;
        let SessionsStart { handle: sessions, progress, capacity } = sessions;
        let workspaces = &sessions.workspaces;
        // Resumed sessions live on this thread.
        watchdog.heartbeats_of_this_thread(tokio::time::sleep).map(actix::spawn);
        let upkeep = start_upkeep(config, workspaces, capacity);
        // A database has one member at a time, so a step in progress was left by an earlier process.
        let migrations = Migrations::new(workspaces.clone(), true, config.migration.auto_look());
        // Before the API serves: bad settings of the webhook are an error of the start.
        let webhooks = webhooks(&config.webhook, workspaces.services())?;
        let keeper = Keeper::new(workspaces.services());
        // Another process may write notifications to a database that is not held for this one alone.
        let looks = store.held.is_none();
        let notifications = start_notifications(config, store.store.clone(), progress, keeper.clone(), looks);
        let triggers = start_triggers(config, workspaces, github.app.clone());
        let state = ApiState {
            workspaces: workspaces.clone(),
            migrations: migrations.clone(),
            notifications: notifications.hub.clone(),
            triggers: triggers.triggers(),
            token: server_token.clone(),
        };
        // The API starts after everything that its handlers call.
        let http = start_http(config, state, watchdog, embedded, listener, &loaded.data_dir)?;
        let migrations = start_migrations(migrations);
        let webhooks = start_webhooks(webhooks, keeper);
        let embedded_runtime = runtime.is_embedded();
        let client_token = client_token_place(loaded);
        tracing::info!(marker = "[ACP]", address = %http.address(), embedded_runtime, client_token, "serves");
        Ok(Self {
            store,
            membership,
            runtime,
            sessions,
            upkeep,
            notifications,
            http,
            migrations,
            triggers,
            webhooks,
            server_token,
            runtime_token,
            github,
        })
    }

    /// The parts that a reload changes.
    pub(super) fn targets(&self) -> Targets {
        let settings = &self.sessions.workspaces.services().settings;
        Targets {
            server_token: Some(self.server_token.clone()),
            runtime_token: self.runtime_token.clone(),
            secrets: self.runtime.secrets.clone(),
            blocked_repositories: Some(settings.blocked_repositories.clone()),
            poster: self.webhooks.poster.clone(),
            github: Some(self.github.clone()),
            triggers: self.triggers.triggers(),
            database: Some(self.store.url.clone()),
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.http.address()
    }
}

/// Binds the address of the API; clients that connect before it serves wait.
fn bind(listen: SocketAddr) -> Result<TcpListener, AppError> {
    TcpListener::bind(listen).map_err(|cause| {
        let hint = match cause.kind() {
            std::io::ErrorKind::AddrInUse => {
                " (another program listens there; --listen 127.0.0.1:0 takes a free port)"
            }
            _ => "",
        };
        AppError::Io { what: format!("server.listen {listen}{hint}"), cause }
    })
}

/// Starts the watchdog of the threads that run actors.
pub(super) fn watchdog(metrics: Metrics) -> Result<Watchdog, AppError> {
    Watchdog::watch(WatchdogLimits::default(), metrics).map_err(AppError::io("the watchdog's thread"))
}
