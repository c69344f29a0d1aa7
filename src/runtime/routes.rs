//! The runtime's routes: who may come in, and what each answers.

use std::sync::Arc;

use actix_web::{
    HttpRequest, HttpResponse,
    body::MessageBody,
    dev::{ServiceRequest, ServiceResponse},
    http::header,
    middleware::{Next, from_fn},
    web,
};
use secrecy::{ExposeSecret, SecretString};
use subtle::ConstantTimeEq;
use uuid::Uuid;

use super::{
    fallback::{self, Fallback},
    reply::{answer, answer_failure, read, refuse},
    socket::{self, SocketSettings},
    workspaces::Workspaces,
};
use crate::{
    contract::{
        fallback::PROCESS_PROMPT,
        runtime::{
            CONNECTION_ID_HEADER, DiffWorkspace, PrepareWorkspace, PreparedWorkspace, RECEIVED_HEADER, RuntimeStatus,
        },
    },
    domain::{
        routing::Route,
        turn::outcome::{ErrorCode, Failure},
    },
    telemetry::{Metrics, metrics::TEXT_FORMAT},
};

/// The largest request about a workspace, in bytes: it holds a path, an address and a branch.
const MAX_BODY_BYTES: usize = 64 * 1024;
/// What that is a limit of.
const BODY: &str = "a request about a workspace";

/// What the routes need.
#[derive(Clone)]
pub(super) struct RuntimeState {
    /// Compared with what the client sends.
    pub token: Option<SecretString>,
    /// For every socket.
    pub sockets: SocketSettings,
    /// For the workspace routes.
    pub workspaces: Arc<Workspaces>,
    /// Turns over HTTP.
    pub fallback: Arc<Fallback>,
    /// Whether ACP over WebSocket is offered.
    pub acp: bool,
    /// Figures of this process.
    pub metrics: Metrics,
}

/// Adds the routes.
pub(super) fn configure(state: RuntimeState) -> impl FnOnce(&mut web::ServiceConfig) {
    move |config| {
        let scope = web::scope("")
            .wrap(from_fn(guard))
            .app_data(web::Data::from(state.fallback.clone()))
            .app_data(web::Data::new(state))
            .app_data(web::PayloadConfig::new(MAX_BODY_BYTES))
            .service(resource("/acp", web::get().to(acp)))
            .service(resource("/status", web::get().to(status)))
            .service(resource("/metrics", web::get().to(metrics)))
            .service(resource("/workspace/prepare", web::post().to(prepare)))
            .service(resource("/workspace/diff", web::post().to(diff)))
            .service(resource(PROCESS_PROMPT, web::post().to(fallback::process)))
            .service(
                resource(&format!("{PROCESS_PROMPT}/{{prompt_id}}"), web::get().to(fallback::join))
                    .route(web::delete().to(fallback::cancel)),
            )
            .default_service(web::to(|| async { refuse(ErrorCode::NotFound, "the runtime has no such route") }));
        config.service(scope);
    }
}

fn resource(path: &str, route: actix_web::Route) -> actix_web::Resource {
    let wrong = || async { refuse(ErrorCode::MethodNotAllowed, "the runtime has no such method here") };
    web::resource(path).route(route).default_service(web::to(wrong))
}

/// Browsers have no business here, and everybody else needs the token, if there is one.
async fn guard(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> actix_web::Result<ServiceResponse<impl MessageBody>> {
    let refused = if request.headers().contains_key(header::ORIGIN) {
        Some(Failure::new(
            ErrorCode::ForbiddenOrigin,
            "the runtime does not answer browser pages, whatever their origin",
        ))
    } else if !is_authorized(&request) {
        Some(Failure::new(ErrorCode::Unauthorized, "the runtime wants its token"))
    } else {
        None
    };
    match refused {
        Some(failure) => Ok(request.into_response(answer_failure(&failure)).map_into_right_body()),
        None => Ok(next.call(request).await?.map_into_left_body()),
    }
}

fn is_authorized(request: &ServiceRequest) -> bool {
    let Some(state) = request.app_data::<web::Data<RuntimeState>>() else { return false };
    let Some(token) = &state.token else { return true };
    let sent =
        request.headers().get(header::AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    sent.is_some_and(|sent| sent.ct_eq(token.expose_secret().as_bytes()).into())
}

async fn acp(request: HttpRequest, body: web::Payload, state: web::Data<RuntimeState>) -> HttpResponse {
    if !state.acp {
        return refuse(ErrorCode::NotFound, "this runtime speaks only HTTP (`[runtime] acp = false`)");
    }
    returning(&request)
        .and_then(|returning| socket::accept(&request, body, state.sockets.clone(), returning))
        .unwrap_or_else(|failure| answer_failure(&failure))
}

/// Which connection a client comes back to, and the number of the last message that it has, if it knows.
fn returning(request: &HttpRequest) -> Result<Option<(Uuid, Option<u64>)>, Failure> {
    let text = |name: &str| request.headers().get(name).map(|value| value.to_str().unwrap_or_default().trim());
    let Some(id) = text(CONNECTION_ID_HEADER) else { return Ok(None) };
    // No id of ours, so nothing that is held.
    let id = id.parse().map_err(|_| Failure::new(ErrorCode::NotFound, "no such connection"))?;
    let received = text(RECEIVED_HEADER).map(str::parse).transpose().map_err(|_| {
        Failure::new(ErrorCode::InvalidRequest, format!("the header {RECEIVED_HEADER} has to be a number"))
    })?;
    Ok(Some((id, received)))
}

async fn status(state: web::Data<RuntimeState>) -> HttpResponse {
    let agents = &state.sockets.agents;
    answer(Ok(RuntimeStatus {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        agents: agents.names(),
        agent_processes: agents.running() as u64,
        max_agents: agents.max() as u64,
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
    let agents = &state.sockets.agents;
    match read::<PrepareWorkspace>(&request, body, MAX_BODY_BYTES, BODY).await {
        Ok(asked) => match asked.agent.as_ref().filter(|agent| !agents.names().contains(agent)) {
            Some(agent) => refuse(ErrorCode::UnknownAgent, &format!("no agent {agent:?} is configured")),
            None => {
                let has_oneshot = agents.has_oneshot(asked.agent.as_deref());
                let prepared = state.workspaces.prepare(asked).await;
                answer(prepared.map(|prepared| PreparedWorkspace { has_oneshot, ..prepared }))
            }
        },
        Err(failure) => answer_failure(&failure),
    }
}

async fn diff(request: HttpRequest, body: web::Payload, state: web::Data<RuntimeState>) -> HttpResponse {
    match read::<DiffWorkspace>(&request, body, MAX_BODY_BYTES, BODY).await {
        Ok(asked) => answer(state.workspaces.diff(asked.workspace).await),
        Err(failure) => answer_failure(&failure),
    }
}
