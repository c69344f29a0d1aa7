//! The public HTTP API and its server.
//!
//! Invariant: handlers parse, check and delegate; they never write to the database and never decide about a session.
//! Every error is answered as a problem document, whose status `contract/problem.rs` chooses.

pub(crate) mod audit;
mod guard;
mod handbook;
mod health;
pub(crate) mod notifications;
mod openapi;
pub(crate) mod problem;
mod request;
mod routes;
pub(crate) mod routing;
pub(crate) mod sessions;
mod trace;

use std::{
    any::Any,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};

use actix_web::{
    App, HttpServer,
    dev::ServerHandle,
    guard::fn_guard as guard_fn,
    middleware::from_fn,
    rt::net::TcpStream,
    web::{self, Data, ServiceConfig},
};
use utoipa_actix_web::AppExt;
use utoipa_swagger_ui::SwaggerUi;

pub(crate) use self::routes::document;
use self::{
    guard::Guard,
    notifications::connection::ConnectionFd,
    request::{bad_input, bad_query},
    routes::{no_route, routes},
};
use crate::{
    actors::{migrations::Migrations, notifications::NotificationHub, workspaces::Workspaces},
    config::Config,
    telemetry::watchdog::Watchdog,
};

/// The parts that the API is a face of.
#[derive(Clone)]
pub(crate) struct ApiState {
    /// Sessions.
    pub workspaces: Workspaces,
    /// Migrations of fleets.
    pub migrations: Migrations,
    /// Subscribers of toasts.
    pub toasts: NotificationHub,
}

/// What handlers share.
pub(crate) struct HttpState {
    /// Sessions.
    pub workspaces: Workspaces,
    /// Migrations of fleets.
    pub migrations: Migrations,
    /// Subscribers of toasts.
    pub toasts: NotificationHub,
    /// Settings.
    pub config: Config,
    /// Whether the threads run.
    pub watchdog: Watchdog,
    guard: Guard,
}

/// The face while it serves.
pub(crate) struct RunningHttp {
    /// Where.
    pub address: SocketAddr,
    /// For stopping it.
    pub handle: ServerHandle,
}

/// Answers that are being written when the server stops get this long; turns have ended by then.
const SHUTDOWN_S: u64 = 2;

/// How long a client may take to send its headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// Another face that is served by the same threads, at an address of its own and by its own rules.
pub(crate) struct EmbeddedListener<Routes> {
    /// Where.
    pub listener: TcpListener,
    /// What it answers.
    pub routes: Routes,
    /// What is set on each of its connections.
    pub tune: fn(&TcpStream),
}

/// Marks the connections and the requests of [`EmbeddedListener`].
#[derive(Clone, Copy)]
struct IsEmbedded;

/// Binds and serves. Fails when the address cannot be bound.
pub(crate) fn serve<Routes>(
    faces: ApiState,
    config: &Config,
    watchdog: Watchdog,
    beside: Option<EmbeddedListener<Routes>>,
) -> std::io::Result<RunningHttp>
where
    Routes: Fn(&mut ServiceConfig) + Clone + Send + 'static,
{
    let beats = watchdog.clone();
    let guard = Guard::new(&config.server);
    let ApiState { workspaces, migrations, toasts } = faces;
    let state = Data::new(HttpState { workspaces, migrations, toasts, config: config.clone(), watchdog, guard });
    let workers = match config.server.workers {
        0 => std::thread::available_parallelism().map_or(1, |cores| (cores.get() / 2).max(1)),
        workers => workers,
    };
    let body_bytes = config.limits.body_bytes;
    let document = Arc::new(document());
    let workspace_client = beside.as_ref().map(|beside| beside.listener.local_addr()).transpose()?;
    let tune = beside.as_ref().map(|beside| beside.tune);
    let more = beside.as_ref().map(|beside| beside.routes.clone());
    let server = HttpServer::new(move || {
        // Sessions live on these threads.
        beats.heartbeats_of_this_thread(tokio::time::sleep).map(actix::spawn);
        let mut app = App::new();
        if let Some(more) = &more {
            let is_beside = guard_fn(|request| request.req_data().contains::<IsEmbedded>());
            app = app.service(web::scope("").guard(is_beside).configure(more.clone()));
        }
        let (app, _) = app.into_utoipa_app().configure(routes).split_for_parts();
        app.app_data(state.clone())
            .app_data(web::PayloadConfig::new(body_bytes))
            .app_data(web::QueryConfig::default().error_handler(|cause, _| bad_query(&cause).into()))
            .app_data(web::PathConfig::default().error_handler(|cause, _| bad_input(&cause).into()))
            .app_data(Data::from(document.clone()))
            .configure(handbook::routes)
            .service(SwaggerUi::new("/docs/{_:.*}").url("/openapi.json", (*document).clone()))
            .default_service(web::to(no_route))
            .wrap(from_fn(guard::guard))
            .wrap(from_fn(trace::trace))
    })
    .on_connect(move |connection: &dyn Any, data| {
        let Some(stream) = connection.downcast_ref::<TcpStream>() else { return };
        // Events are small and follow each other: else the second waits until the first is acknowledged, for which
        // its reader takes up to 40 ms. Without it they are only slower.
        let _ = stream.set_nodelay(true);
        data.insert(ConnectionFd::of(stream));
        if workspace_client.is_some() && stream.local_addr().ok() == workspace_client {
            data.insert(IsEmbedded);
            if let Some(tune) = tune {
                tune(stream);
            }
        }
    })
    .workers(workers)
    .client_request_timeout(HEADER_TIMEOUT)
    .shutdown_timeout(SHUTDOWN_S)
    .disable_signals()
    .bind(config.server.listen)?;
    let address = server.addrs().first().copied().unwrap_or(config.server.listen);
    let server = match beside {
        Some(beside) => server.listen(beside.listener)?,
        None => server,
    };
    let server = server.run();
    let handle = server.handle();
    actix::spawn(server);
    Ok(RunningHttp { address, handle })
}
