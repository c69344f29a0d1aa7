//! The public HTTP face: the route table, and what all handlers share.
//!
//! Invariant: handlers read, check and ask; they never write to the database and never decide about a
//! session. Every error leaves as a problem document, chosen in `contract/problem.rs`.

pub(crate) mod audit;
mod guard;
mod health;
pub(crate) mod notifications;
mod openapi;
mod paging;
pub(crate) mod problem;
pub(crate) mod routing;
pub(crate) mod sessions;
mod trace;

use std::{
    any::Any,
    net::{SocketAddr, TcpListener},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use actix_web::{
    App, FromRequest, HttpRequest, HttpServer,
    dev::{Payload, ServerHandle},
    error::QueryPayloadError,
    guard::fn_guard as guard_fn,
    http::Method,
    middleware::from_fn,
    rt::net::TcpStream,
    web::{self, Data, ServiceConfig},
};
use futures_util::{FutureExt, future::LocalBoxFuture};
use serde::de::DeserializeOwned;
use tracing::Instrument;
use utoipa::openapi::OpenApi;
use utoipa_actix_web::AppExt;
use utoipa_swagger_ui::SwaggerUi;

use self::{guard::Guard, notifications::connection::ConnectionFd, problem::ApiError};
use crate::{
    actors::{migrations::Migrations, notifications::NotificationHub, workspaces::Workspaces},
    config::Config,
    domain::{
        ids::SessionId,
        turn::outcome::{ErrorCode, Failure},
    },
    store::SessionRow,
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

/// How long a client may take to send its body; 4 MiB over a slow line take some seconds.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

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

/// The route table.
fn routes(table: &mut utoipa_actix_web::service_config::ServiceConfig<'_>) {
    table
        .service(sessions::new_session)
        .service(sessions::prompt::run_prompt)
        .service(sessions::cancel_turn)
        .service(sessions::answer_permission)
        .service(sessions::set_mode)
        .service(sessions::set_config)
        .service(sessions::load_session)
        .service(sessions::close_session)
        .service(sessions::read::get_session)
        .service(sessions::read::get_transcript)
        .service(sessions::read::get_diff)
        .service(sessions::read::follow_events)
        .service(sessions::prompt::get_prompt)
        .service(sessions::read::list_sessions)
        .service(sessions::read::list_workspaces)
        .service(sessions::read::list_agents)
        .service(routing::protocol::get_protocol)
        .service(routing::protocol::put_protocol)
        .service(routing::protocol::roll_back)
        .service(routing::protocol::restore)
        .service(routing::tenants::get_tenant)
        .service(routing::tenants::put_tenant)
        .service(sessions::explain::explain_session)
        .service(audit::list_migrations)
        .service(audit::list_rollback_events)
        .service(audit::list_connections)
        .service(audit::list_automation_runs)
        .service(audit::list_capacity_alerts)
        .service(audit::list_notifications)
        .service(audit::summary::get_summary)
        .service(routing::migrations::begin_migration)
        .service(routing::migrations::list_migrations)
        .service(routing::migrations::get_migration)
        .service(routing::migrations::pause_migration)
        .service(routing::migrations::resume_migration)
        .service(routing::migrations::cancel_migration)
        .service(routing::migrations::roll_migration_back)
        .service(notifications::list_inbox)
        .service(notifications::make_ticket)
        .service(notifications::acknowledge)
        .service(notifications::subscribe)
        .service(notifications::webhooks::list_deliveries)
        .service(notifications::webhooks::replay_dead_deliveries)
        .service(notifications::webhooks::replay_delivery)
        .service(health::get_health)
        .service(health::livez)
        .service(health::readyz)
        .service(health::get_metrics);
}

/// The OpenAPI document of the routes above.
pub(crate) fn document() -> OpenApi {
    let (_, document) = App::new().into_utoipa_app().configure(routes).split_for_parts();
    openapi::complete(document)
}

async fn no_route(request: HttpRequest, document: Data<OpenApi>) -> Result<actix_web::HttpResponse, ApiError> {
    let path = request.path();
    let fitting: Vec<_> = document.paths.paths.iter().filter(|(template, _)| matches(template, path)).collect();
    // An id that is none is unknown; a route that is known by its whole name lacks the method.
    let exact = fitting.iter().any(|(template, _)| *template == path);
    let offered = fitting.iter().any(|(_, item)| item.get.is_some()) && request.method() == Method::GET;
    if exact || !(fitting.is_empty() || offered) {
        let detail = format!("{} is not possible on {path}", request.method());
        return Err(ApiError::new(ErrorCode::MethodNotAllowed, detail));
    }
    Err(ApiError::new(ErrorCode::NotFound, format!("no route {path}")))
}

/// Whether a path fits a template such as `/acp/session/{id}`.
fn matches(template: &str, path: &str) -> bool {
    let (mut template, mut path) = (template.split('/'), path.split('/'));
    loop {
        match (template.next(), path.next()) {
            (None, None) => return true,
            (Some(part), Some(given)) if part == given || (part.starts_with('{') && !given.is_empty()) => {}
            _ => return false,
        }
    }
}

fn bad_input(cause: &impl std::fmt::Display) -> ApiError {
    ApiError::new(ErrorCode::InvalidRequest, cause.to_string())
}

fn bad_query(cause: &QueryPayloadError) -> ApiError {
    match cause {
        QueryPayloadError::Deserialize(cause) => bad_input(&format!("query: {cause}")),
        other => bad_input(other),
    }
}

/// The body of a request, whole. One over `[limits] body_bytes` is refused.
pub(crate) struct Body(web::Bytes);

impl FromRequest for Body {
    type Error = ApiError;
    type Future = LocalBoxFuture<'static, Result<Self, ApiError>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let reading = web::Bytes::from_request(request, payload);
        async move {
            let slow = |_| ApiError::new(ErrorCode::InvalidRequest, "the body did not arrive in time");
            let read = tokio::time::timeout(BODY_TIMEOUT, reading).await.map_err(slow)?;
            read.map(Self).map_err(|cause| match cause.as_response_error().status_code().as_u16() {
                413 => ApiError::new(ErrorCode::PayloadTooLarge, "the body is larger than `[limits] body_bytes`"),
                _ => bad_input(&cause),
            })
        }
        .boxed_local()
    }
}

/// Reads a JSON body.
fn parse_body<T: DeserializeOwned>(body: &Body) -> Result<T, ApiError> {
    serde_json::from_slice(&body.0).map_err(|cause| bad_input(&format!("body: {cause}")))
}

/// Reads an id; one that is malformed is as unknown as any other.
fn path_id<T: FromStr>(text: &str, what: &str) -> Result<T, ApiError> {
    text.parse().map_err(|_| ApiError::new(ErrorCode::NotFound, format!("no {what} with this id")))
}

/// Runs something to its end even when the caller goes away in the middle: what is begun half-way would hold a
/// seat and an agent that nobody knows of.
async fn to_its_end<T: 'static>(work: impl Future<Output = Result<T, Failure>> + 'static) -> Result<T, ApiError> {
    let id = problem::request_id();
    let done = actix::spawn(problem::REQUEST_ID.scope(id, work).in_current_span()).await;
    let died = |_| ApiError::new(ErrorCode::Internal, "the request's work died");
    Ok(done.map_err(died)??)
}

async fn find_session(state: &HttpState, id: SessionId) -> Result<SessionRow, ApiError> {
    let row = state.workspaces.services().store.session(id).await?;
    row.ok_or_else(|| ApiError::new(ErrorCode::NotFound, format!("no session {id}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_is_documented_and_every_schema_is_there() {
        let document = document();
        assert_eq!(document.paths.paths.len(), 45);
        let components = document.components.unwrap();
        for name in ["ACPSessionResult", "GithubAutomation", "Toast", "TranscriptNote", "Problem"] {
            assert!(components.schemas.contains_key(name), "{name}");
        }
    }

    #[test]
    fn a_path_fits_its_template_and_no_other() {
        assert!(matches("/acp/session/{id}", "/acp/session/7"));
        assert!(!matches("/acp/session/{id}", "/acp/session/"));
        assert!(!matches("/acp/session/{id}", "/acp/session/7/diff"));
    }
}
