//! HTTP routes of the runtime and their access check.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use actix_web::{
    HttpRequest, HttpResponse,
    body::MessageBody,
    dev::{ServiceRequest, ServiceResponse},
    guard,
    http::header::{self, HeaderName, HeaderValue},
    middleware::{Next, from_fn},
    web,
};
use parking_lot::Mutex;
use secrecy::{ExposeSecret, SecretString};
use subtle::ConstantTimeEq;
use tokio::sync::watch;
use tracing::Instrument;
use uuid::Uuid;

use super::{
    automation::{self, Automation, rescue},
    fallback::{self, Fallback},
    preparing,
    reply::{answer, answer_failure, answer_stranger, read, refuse},
    socket::{self, SocketSettings},
    workspaces::Workspaces,
};
use crate::{
    config::ReloadableSecret,
    contract::{
        authorization::bearer_token,
        browsers::{self, CROSS_SITE, EVERYWHERE, NO_STORE, POLICY_OF_DATA, SEC_FETCH_SITE},
        fallback::{NDJSON, PROCESS_PROMPT},
        health::{PartStatus, Probe},
        runtime::{
            AgentProcesses, CONNECTION_ID_HEADER, CountProcesses, DiffWorkspace, MeasureWorkspace, PrepareWorkspace,
            PreparedWorkspace, RECEIVED_HEADER, RemoveTenant, RemoveWorkspace, RemovedHomes, RuntimeStatus,
        },
        steps::AUTOMATION,
    },
    domain::{
        log_limit::LogLimit,
        routing::Route,
        session::preparation::CloneProgress,
        turn::outcome::{ErrorCode, Failure},
    },
    github::Github,
    telemetry::{Metrics, metrics::TEXT_FORMAT, watchdog::Watchdog},
    transport::request_id::{self, REQUEST_ID, X_REQUEST_ID},
};

/// Largest body of a workspace request, in bytes. 64 KiB is ample for a path, a repository URL and a branch.
const MAX_BODY_BYTES: usize = 64 * 1024;
/// Subject of the error text for a larger body.
const BODY: &str = "a request about a workspace";

/// State shared by the routes. Cheap to clone.
#[derive(Clone)]
pub(super) struct RuntimeState {
    /// Bearer token that clients must send; `None` accepts requests without one.
    pub token: ReloadableSecret,
    /// Settings and shared handles of every socket.
    pub sockets: SocketSettings,
    pub workspaces: Arc<Workspaces>,
    /// Connections to GitHub and the pace of requests, shared by all threads.
    pub github: Github,
    pub fallback: Arc<Fallback>,
    /// True if `GET /acp` is offered; otherwise it answers 404.
    pub acp: bool,
    pub metrics: Metrics,
    /// Observes the threads of a runtime with its own server.
    pub watchdog: Option<Watchdog>,
    pub strangers: Strangers,
}

/// Limits the log lines of refused requests whose sender has no token. Cheap to clone.
#[derive(Clone)]
pub(super) struct Strangers {
    began: Instant,
    limit: Arc<Mutex<LogLimit>>,
}

impl Strangers {
    pub(super) fn new() -> Self {
        Self { began: Instant::now(), limit: Arc::default() }
    }

    fn admit(&self) -> Option<u64> {
        self.limit.lock().admit(self.began.elapsed())
    }
}

/// Returns a function that adds the routes, wrapped by [`trace`], to an application.
pub(super) fn configure(state: RuntimeState) -> impl FnOnce(&mut web::ServiceConfig) {
    move |config| {
        let scope = web::scope("")
            .wrap(from_fn(trace))
            .app_data(web::Data::from(state.fallback.clone()))
            .app_data(web::Data::new(Automation::new(state.workspaces.clone(), state.github.clone())))
            .app_data(web::Data::new(state))
            .app_data(web::PayloadConfig::new(MAX_BODY_BYTES))
            .service(resource("/acp", GET, web::get().to(acp)))
            .service(resource(LIVEZ, GET_OR_HEAD, get_or_head().to(livez)))
            .service(resource(READYZ, GET_OR_HEAD, get_or_head().to(readyz)))
            .service(resource("/status", GET_OR_HEAD, get_or_head().to(status)))
            .service(resource("/metrics", GET_OR_HEAD, get_or_head().to(metrics)))
            .service(resource("/agent/processes", POST, web::post().to(processes)))
            .service(resource("/workspace/prepare", POST, web::post().to(prepare)))
            .service(resource("/workspace/diff", POST, web::post().to(diff)))
            .service(resource("/workspace/measure", POST, web::post().to(measure)))
            .service(resource("/workspace/remove", POST, web::post().to(remove)))
            .service(resource("/tenant/remove", POST, web::post().to(remove_tenant)))
            // Also `POST /automation/{run}/rescue`, a step.
            .service(
                resource(&format!("{AUTOMATION}/{{run}}/rescue"), POST_OR_DELETE, web::delete().to(rescue::delete))
                    .route(web::post().to(automation::perform_rescue)),
            )
            .service(resource(&format!("{AUTOMATION}/{{run}}/{{step}}"), POST, web::post().to(automation::perform)))
            .service(resource(
                &format!("{AUTOMATION}/{{run}}/rescue/{{part}}"),
                GET_OR_HEAD,
                get_or_head().to(rescue::read),
            ))
            .service(resource(PROCESS_PROMPT, POST, web::post().to(fallback::process)))
            .service(
                resource(&format!("{PROCESS_PROMPT}/{{prompt_id}}"), GET_OR_DELETE, web::get().to(fallback::join))
                    .route(web::delete().to(fallback::cancel)),
            )
            .default_service(web::to(|| async { refuse(ErrorCode::NotFound, "the runtime has no such route") }));
        config.service(scope);
    }
}

/// Values of the header `Allow`.
const GET: &str = "GET";
const POST: &str = "POST";
const GET_OR_HEAD: &str = "GET, HEAD";
const GET_OR_DELETE: &str = "GET, DELETE";
const POST_OR_DELETE: &str = "POST, DELETE";

/// Probes of an orchestrator, which has no token.
const LIVEZ: &str = "/livez";
const READYZ: &str = "/readyz";

fn resource(path: &str, allow: &'static str, route: actix_web::Route) -> actix_web::Resource {
    let wrong = move || async move {
        let mut refusal = refuse(ErrorCode::MethodNotAllowed, "the route does not support this method");
        refusal.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static(allow));
        refusal
    };
    web::resource(path).route(route).default_service(web::to(wrong))
}

/// The server leaves out the body of an answer to HEAD.
fn get_or_head() -> actix_web::Route {
    web::route().guard(guard::Any(guard::Get()).or(guard::Head()))
}

/// Gives the request the id that the supervisor chose, or one of its own, for every log line and problem document of the
/// request; then checks it.
async fn trace(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> actix_web::Result<ServiceResponse<impl MessageBody>> {
    let given = request.headers().get(X_REQUEST_ID).and_then(|id| request_id::usable(id.to_str().ok()?));
    let id = given.map_or_else(|| Uuid::now_v7().to_string(), str::to_owned);
    let span = tracing::info_span!("runtime.request", request_id = id);
    let mut answer = REQUEST_ID.scope(id, check_access(request, next)).instrument(span).await?;
    let headers = answer.headers_mut();
    let protection = EVERYWHERE.into_iter().map(|(name, value)| (HeaderName::from_static(name), value));
    let of_data = [(header::CONTENT_SECURITY_POLICY, POLICY_OF_DATA), (header::CACHE_CONTROL, NO_STORE)];
    for (name, value) in protection.chain(of_data) {
        headers.insert(name, HeaderValue::from_static(value));
    }
    Ok(answer)
}

/// Refuses requests of browser pages, requests without the bearer token, if one is configured, and without one those to a
/// foreign host name. The log has few lines about them, because their senders may be anyone.
async fn check_access(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> actix_web::Result<ServiceResponse<impl MessageBody>> {
    match refusal_of(&request) {
        Some(failure) => {
            let state = request.app_data::<web::Data<RuntimeState>>();
            let suppressed = state.and_then(|state| state.strangers.admit());
            Ok(request.into_response(answer_stranger(&failure, suppressed)).map_into_right_body())
        }
        None => Ok(next.call(request).await?.map_into_left_body()),
    }
}

/// The reason to refuse a request. Only browsers send `Origin` and `Sec-Fetch-Site`. No page has a reason to call the
/// runtime, and a page that could reach it on loopback would be able to run commands.
fn refusal_of(request: &ServiceRequest) -> Option<Failure> {
    let headers = request.headers();
    let is_cross_site = headers.get(SEC_FETCH_SITE).is_some_and(|site| site.as_bytes() == CROSS_SITE.as_bytes());
    let is_probe = [LIVEZ, READYZ].contains(&request.path());
    if headers.contains_key(header::ORIGIN) || is_cross_site {
        let detail = "the runtime refuses requests from browser pages of any origin";
        return Some(Failure::new(ErrorCode::ForbiddenOrigin, detail));
    }
    if is_probe {
        return None;
    }
    let state = request.app_data::<web::Data<RuntimeState>>();
    let token = state.map(|state| state.token.get());
    match token.as_deref() {
        Some(Some(token)) if is_authorized(request, token) => None,
        // A page whose name was made to resolve to this address would need no token.
        Some(None) if has_fixed_host(request) => None,
        Some(None) => Some(Failure::new(
            ErrorCode::ForbiddenOrigin,
            "without `runtime.token`, `Host` must be an address or localhost",
        )),
        _ => Some(Failure::new(ErrorCode::Unauthorized, "the bearer token is missing or wrong")),
    }
}

/// True if no DNS server decides which machine the `Host` names.
fn has_fixed_host(request: &ServiceRequest) -> bool {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    host.and_then(browsers::host_name).is_some_and(browsers::is_fixed_name)
}

fn is_authorized(request: &ServiceRequest, token: &SecretString) -> bool {
    let sent = request.headers().get(header::AUTHORIZATION).and_then(|value| bearer_token(value.to_str().ok()?));
    sent.is_some_and(|sent| sent.as_bytes().ct_eq(token.expose_secret().as_bytes()).into())
}

async fn acp(request: HttpRequest, body: web::Payload, state: web::Data<RuntimeState>) -> HttpResponse {
    if !state.acp {
        return refuse(ErrorCode::NotFound, "this runtime serves turns over HTTP only (`[runtime] acp = false`)");
    }
    returning(&request)
        .and_then(|returning| socket::accept(&request, body, state.sockets.clone(), returning))
        .unwrap_or_else(|failure| answer_failure(&failure))
}

/// Reads the headers of a client that resumes a connection: the connection's id, and the number of the last message
/// that the client received, if it knows.
///
/// # Errors
/// `not_found` for an id that is not a UUID, `invalid_request` for a number that does not parse.
fn returning(request: &HttpRequest) -> Result<Option<(Uuid, Option<u64>)>, Failure> {
    let text = |name: &str| request.headers().get(name).map(|value| value.to_str().unwrap_or_default().trim());
    let Some(id) = text(CONNECTION_ID_HEADER) else { return Ok(None) };
    // The runtime issues UUIDs only, so it cannot hold a connection with any other id.
    let id = id.parse().map_err(|_| Failure::new(ErrorCode::NotFound, "no such connection"))?;
    let received = text(RECEIVED_HEADER).map(str::parse).transpose().map_err(|_| {
        Failure::new(ErrorCode::InvalidRequest, format!("the header {RECEIVED_HEADER} must be a number"))
    })?;
    Ok(Some((id, received)))
}

/// Liveness: 503 if all threads that run sockets are stalled, or one has been stalled for a minute.
async fn livez(state: web::Data<RuntimeState>) -> HttpResponse {
    match state.watchdog.as_ref().is_none_or(Watchdog::is_alive) {
        true => answer(Ok(Probe { status: PartStatus::Ok, runtime: None })),
        false => refuse(ErrorCode::Stalled, "a thread that runs sockets is stalled"),
    }
}

/// Readiness: 503 once the runtime is stopping.
async fn readyz(state: web::Data<RuntimeState>) -> HttpResponse {
    match *state.sockets.stopping.borrow() {
        false => answer(Ok(Probe { status: PartStatus::Ok, runtime: None })),
        true => refuse(ErrorCode::Draining, "the runtime is stopping"),
    }
}

async fn status(state: web::Data<RuntimeState>) -> HttpResponse {
    let agents = &state.sockets.agents;
    let looking = state.clone();
    let agent_details = web::block(move || looking.sockets.agents.details()).await.unwrap_or_default();
    answer(Ok(RuntimeStatus {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        agents: agents.names(),
        agent_details,
        agent_processes: agents.running() as u64,
        max_agents: agents.max() as u64,
        jail: Some(agents.jail()),
        held_conversations: state.sockets.conversations.away() as u64,
        protocols: Route::ALL
            .into_iter()
            .filter(|route| *route == Route::Http || state.acp)
            .map(|route| route.as_str().to_owned())
            .collect(),
    }))
}

async fn metrics(state: web::Data<RuntimeState>) -> HttpResponse {
    match state.metrics.render() {
        Ok(text) => HttpResponse::Ok().content_type(TEXT_FORMAT).body(text),
        Err(cause) => refuse(ErrorCode::Internal, &cause.to_string()),
    }
}

async fn prepare(request: HttpRequest, body: web::Payload, state: web::Data<RuntimeState>) -> HttpResponse {
    let asked = match read::<PrepareWorkspace>(&request, body, MAX_BODY_BYTES, BODY).await {
        Ok(asked) => asked,
        Err(failure) => return answer_failure(&failure),
    };
    if let Some(agent) = asked.agent.as_ref().filter(|agent| !state.sockets.agents.names().contains(agent)) {
        return refuse(ErrorCode::UnknownAgent, &format!("no agent {agent:?} is configured"));
    }
    if !preparing::accepts_lines(&request) {
        return answer(prepared(state.into_inner(), asked, None).await);
    }
    let (sender, progress) = watch::channel(None);
    // The answer is made after this function has returned.
    let id = request_id::current().unwrap_or_default();
    let work = prepared(state.into_inner(), asked, Some(sender)).in_current_span();
    let work: preparing::Preparing = Box::pin(REQUEST_ID.scope(id.clone(), work));
    HttpResponse::Ok().content_type(NDJSON).streaming(preparing::lines(work, progress, id))
}

async fn prepared(
    state: Arc<RuntimeState>,
    asked: PrepareWorkspace,
    progress: Option<watch::Sender<Option<CloneProgress>>>,
) -> Result<PreparedWorkspace, Failure> {
    let agents = &state.sockets.agents;
    let has_oneshot = agents.has_oneshot(asked.agent.as_deref());
    let user = match asked.workspace.path {
        Some(_) => agents.user_of(asked.agent.as_deref(), asked.installation_id.as_ref()).await?,
        // A new workspace gets its owner with its first agent.
        None => None,
    };
    let prepared = state.workspaces.prepare(asked, user, progress).await?;
    Ok(PreparedWorkspace { has_oneshot, ..prepared })
}

async fn diff(request: HttpRequest, body: web::Payload, state: web::Data<RuntimeState>) -> HttpResponse {
    match read::<DiffWorkspace>(&request, body, MAX_BODY_BYTES, BODY).await {
        Ok(asked) => answer(state.workspaces.diff(asked.workspace).await),
        Err(failure) => answer_failure(&failure),
    }
}

async fn processes(request: HttpRequest, body: web::Payload, state: web::Data<RuntimeState>) -> HttpResponse {
    let asked = match read::<CountProcesses>(&request, body, MAX_BODY_BYTES, "a request about processes").await {
        Ok(asked) => asked,
        Err(failure) => return answer_failure(&failure),
    };
    let Some(members) = state.sockets.conversations.members(asked.connection_id) else {
        return refuse(ErrorCode::NotFound, "no such connection");
    };
    let age = Duration::from_millis(asked.within_ms);
    let counted = web::block(move || members.younger_than(age)).await;
    answer(match counted {
        Ok(processes) => Ok(AgentProcesses { processes: processes as u64 }),
        Err(cause) => Err(Failure::new(ErrorCode::Internal, cause.to_string())),
    })
}

async fn measure(request: HttpRequest, body: web::Payload, state: web::Data<RuntimeState>) -> HttpResponse {
    match read::<MeasureWorkspace>(&request, body, MAX_BODY_BYTES, BODY).await {
        Ok(asked) => answer(state.workspaces.measure(asked.workspace.folder_id).await),
        Err(failure) => answer_failure(&failure),
    }
}

async fn remove(request: HttpRequest, body: web::Payload, state: web::Data<RuntimeState>) -> HttpResponse {
    match read::<RemoveWorkspace>(&request, body, MAX_BODY_BYTES, BODY).await {
        Ok(asked) => answer(state.workspaces.remove(asked.workspace, asked.erase).await),
        Err(failure) => answer_failure(&failure),
    }
}

async fn remove_tenant(request: HttpRequest, body: web::Payload, state: web::Data<RuntimeState>) -> HttpResponse {
    let asked = match read::<RemoveTenant>(&request, body, MAX_BODY_BYTES, "a request about a tenant").await {
        Ok(asked) => asked,
        Err(failure) => return answer_failure(&failure),
    };
    let agents = state.sockets.agents.clone();
    let removed = web::block(move || agents.remove_homes(asked.installation_id.as_str())).await;
    answer(match removed {
        Ok(Ok(homes)) => Ok(RemovedHomes { homes }),
        Ok(Err(cause)) => Err(Failure::new(ErrorCode::WorkspaceUnavailable, format!("home folder: {cause}"))),
        Err(cause) => Err(Failure::new(ErrorCode::Internal, cause.to_string())),
    })
}
