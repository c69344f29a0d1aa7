//! The public HTTP API and its server.
//!
//! Invariant: handlers parse, check and delegate; they never write to the database and never decide about a session.
//! Every error is answered as a problem document, whose status `contract/problem.rs` chooses.

pub(crate) mod audit;
mod automation;
mod compress;
mod erasure;
mod guard;
mod handbook;
mod headers;
mod health;
pub(crate) mod notifications;
mod openapi;
pub(crate) mod problem;
mod reading;
pub(crate) mod refusals;
mod request;
mod route_table;
mod routes;
pub(crate) mod routing;
mod rows;
mod secret;
pub(crate) mod sessions;
mod tenants;
mod tokens;
mod trace;
mod triggers;
pub(crate) mod waiting;

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
use utoipa::openapi::OpenApi;
use utoipa_actix_web::AppExt;
use utoipa_swagger_ui::SwaggerUi;

use self::{
    compress::Compressors,
    guard::Guard,
    notifications::connection::ConnectionFd,
    request::bad_input,
    routes::{index, no_route, routes},
};
pub(crate) use self::{route_table::RouteTable, routes::document};
use crate::{
    actors::{migrations::Migrations, notifications::NotificationHub, triggers::Triggers, workspaces::Workspaces},
    config::{Config, ReloadableSecret},
    contract::keep_alive::SERVER_KEEP_ALIVE,
    telemetry::watchdog::Watchdog,
};

/// The parts of the service that handlers call.
#[derive(Clone)]
pub(crate) struct ApiState {
    pub workspaces: Workspaces,
    pub migrations: Migrations,
    pub notifications: NotificationHub,
    /// Turns that GitHub starts, if they are switched on.
    pub triggers: Option<Triggers>,
    /// `server.token`; `None` admits every caller.
    pub token: ReloadableSecret,
}

/// The state that handlers share.
pub(crate) struct HttpState {
    pub workspaces: Workspaces,
    pub migrations: Migrations,
    pub notifications: NotificationHub,
    pub triggers: Option<Triggers>,
    pub config: Config,
    pub watchdog: Watchdog,
    guard: Guard,
    table: RouteTable,
    compressors: Compressors,
}

pub(crate) struct RunningHttp {
    /// The bound address, with the actual port if the configured one is 0.
    pub address: SocketAddr,
    pub handle: ServerHandle,
}

/// Time for answers that are being written when the server stops, in seconds; turns have ended by then.
const SHUTDOWN_S: u64 = 2;

/// Time limit for a client to send its headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// A second set of routes on the same threads, with an address and rules of its own.
pub(crate) struct EmbeddedListener<Routes> {
    pub listener: TcpListener,
    pub routes: Routes,
    /// Sets options of each accepted connection.
    pub tune: fn(&TcpStream),
}

/// Marks connections and requests of [`EmbeddedListener`].
#[derive(Clone, Copy)]
struct IsEmbedded;

/// The number of threads of the API.
fn workers_of(config: &Config) -> usize {
    match config.server.workers {
        0 => std::thread::available_parallelism().map_or(1, |cores| (cores.get() / 2).max(1)),
        workers => workers,
    }
}

fn shared_state(api: ApiState, config: &Config, watchdog: Watchdog, document: &OpenApi) -> Data<HttpState> {
    let ApiState { workspaces, migrations, notifications, triggers, token } = api;
    let table = RouteTable::new(document);
    let tokens = workspaces.services().tokens.clone();
    workspaces.services().metrics.set_http_operations(table.operations().to_vec());
    Data::new(HttpState {
        workspaces,
        migrations,
        notifications,
        triggers,
        config: config.clone(),
        watchdog,
        guard: Guard::new(&config.server, token, tokens),
        table,
        compressors: Compressors::new(),
    })
}

/// Serves on a bound address.
///
/// # Errors
/// The listener cannot be used.
pub(crate) fn serve<Routes>(
    api: ApiState,
    config: &Config,
    watchdog: Watchdog,
    embedded: Option<EmbeddedListener<Routes>>,
    listener: TcpListener,
) -> std::io::Result<RunningHttp>
where
    Routes: Fn(&mut ServiceConfig) + Clone + Send + 'static,
{
    let beats = watchdog.clone();
    let document = Arc::new(document());
    let state = shared_state(api, config, watchdog, &document);
    let body_bytes = config.limits.body_bytes;
    let embedded_address = embedded.as_ref().map(|it| it.listener.local_addr()).transpose()?;
    let tune = embedded.as_ref().map(|it| it.tune);
    let embedded_routes = embedded.as_ref().map(|it| it.routes.clone());
    let server = HttpServer::new(move || {
        // Sessions live on these threads.
        beats.heartbeats_of_this_thread(tokio::time::sleep).map(actix::spawn);
        let mut app = App::new();
        if let Some(embedded_routes) = &embedded_routes {
            let is_embedded = guard_fn(|request| request.req_data().contains::<IsEmbedded>());
            app = app.service(web::scope("").guard(is_embedded).configure(embedded_routes.clone()));
        }
        let (app, _) = app.into_utoipa_app().configure(routes).split_for_parts();
        app.app_data(state.clone())
            .app_data(web::PayloadConfig::new(body_bytes))
            .app_data(web::PathConfig::default().error_handler(|cause, _| bad_input(&cause).into()))
            .route("/", web::get().to(index))
            .service(web::redirect("/docs", "/docs/"))
            .configure(handbook::routes)
            .service(SwaggerUi::new("/docs/{_:.*}").url("/openapi.json", (*document).clone()))
            .default_service(web::to(no_route))
            .wrap(from_fn(guard::guard))
            .wrap(from_fn(compress::compress))
            .wrap(from_fn(trace::trace))
            .wrap(from_fn(headers::protect))
    })
    .on_connect(move |connection: &dyn Any, data| {
        let Some(stream) = connection.downcast_ref::<TcpStream>() else { return };
        // Without TCP_NODELAY a second small event waits up to 40 ms for the first. A failure only costs latency.
        let _ = stream.set_nodelay(true);
        data.insert(ConnectionFd::of(stream));
        if embedded_address.is_some() && stream.local_addr().ok() == embedded_address {
            data.insert(IsEmbedded);
            if let Some(tune) = tune {
                tune(stream);
            }
        }
    })
    .workers(workers_of(config))
    .keep_alive(SERVER_KEEP_ALIVE)
    .client_request_timeout(HEADER_TIMEOUT)
    .shutdown_timeout(SHUTDOWN_S)
    .disable_signals()
    .listen(listener)?;
    let address = server.addrs().first().copied().unwrap_or(config.server.listen);
    let server = match embedded {
        Some(embedded) => server.listen(embedded.listener)?,
        None => server,
    };
    let server = server.run();
    let handle = server.handle();
    actix::spawn(server);
    Ok(RunningHttp { address, handle })
}
