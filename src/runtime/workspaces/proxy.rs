//! A proxy on loopback between git and one repository of a host: it adds the token, which git never has.
//!
//! The proxy serves the smart HTTP interface of one repository, for the services that a step needs, and closes with the step. Its
//! address has a random path, and requests need a random header as well: addresses are in the arguments of git's
//! processes, which every process of the machine can read, and headers are in their environment, which an agent cannot.

use std::{io, net::TcpListener, sync::Arc, time::Duration};

use actix_web::{
    App, HttpRequest, HttpResponse, HttpServer,
    dev::ServerHandle,
    error::PayloadError,
    http::{StatusCode, header},
    web,
};
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use parking_lot::Mutex;
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::mpsc;
use url::Url;
use uuid::Uuid;

use super::repository::{Repository, Scheme};
use crate::{
    domain::{
        clock::{Clock, Timestamp},
        turn::outcome::{ErrorCode, Failure},
    },
    runtime::reply::answer_stranger,
    telemetry::clock::SystemClock,
};

/// Header with the key of a step.
const KEY: &str = "x-lumilink-step";
/// Largest request that is sent as a whole, in bytes; git sends larger ones in chunks.
const WHOLE_BYTES: usize = 1024 * 1024;
/// Largest body in one direction, in bytes: more than any clone or push that git's own limits permit.
const MAX_BODY_BYTES: usize = 12 * 1024 * 1024 * 1024;
/// Chunks of a request that wait for the host: the connection to git waits meanwhile. A chunk has at most 64 KiB.
const CHUNKS_IN_QUEUE: usize = 16;
/// Largest part of an error's text that is kept, in bytes: the texts of hosts have a few hundred.
const MAX_REFUSAL_BYTES: usize = 4096;
/// Time limits to connect, and between two parts of an answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const READ_TIMEOUT: Duration = Duration::from_secs(300);
/// The most redirects of one request, within one host: a renamed repository takes one.
const MAX_REDIRECTS: usize = 3;

/// The services of git that a step needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Services {
    /// Clone and fetch.
    Fetch,
    FetchAndPush,
}

/// An answer with an error status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RefusedAnswer {
    pub status: u16,
    /// The start of the text.
    pub text: String,
    /// The header `X-GitHub-SSO`.
    pub sso: Option<String>,
    /// The time of the header `Retry-After`, if that is a number of seconds.
    pub retry_at: Option<Timestamp>,
}

/// The last failure that the proxy saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ProxyFailure {
    Refused(RefusedAnswer),
    /// The host could not be reached, or the connection broke.
    Lost(String),
}

/// A running proxy. It closes when this is dropped.
pub(crate) struct Proxy {
    url: String,
    origin: String,
    key: String,
    state: Arc<Shared>,
    server: ServerHandle,
}

impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proxy").finish_non_exhaustive()
    }
}

struct Shared {
    client: reqwest::Client,
    /// Address of the repository, without a slash at the end; a redirect within the host changes it.
    upstream: Mutex<Url>,
    authorization: header::HeaderValue,
    path: String,
    key: String,
    services: Services,
    failure: Mutex<Option<ProxyFailure>>,
}

fn unavailable(cause: &dyn std::fmt::Display) -> Failure {
    Failure::new(ErrorCode::WorkspaceUnavailable, format!("git proxy: {cause}"))
}

impl Proxy {
    /// Starts a proxy to a repository. The host gets the token by HTTPS, or by HTTP on loopback.
    ///
    /// # Errors
    /// `workspace_unavailable` if no port is free.
    pub(crate) fn start(repository: &Repository, token: &SecretString, services: Services) -> Result<Self, Failure> {
        let upstream = repository.upstream();
        let value = BASE64_STANDARD.encode(format!("x-access-token:{}", token.expose_secret()));
        let mut authorization =
            header::HeaderValue::from_str(&format!("Basic {value}")).map_err(|cause| unavailable(&cause))?;
        authorization.set_sensitive(true);
        let mut client = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .redirect(same_origin())
            .retry(reqwest::retry::never());
        if repository.is_loopback() {
            client = client.no_proxy();
        }
        let client = client.build().map_err(|cause| unavailable(&cause))?;
        let (secret, key) = (Uuid::new_v4().simple().to_string(), Uuid::new_v4().simple().to_string());
        let path = format!("/{secret}{}", upstream.path().trim_end_matches('/'));
        let shared = Arc::new(Shared {
            client,
            upstream: Mutex::new(upstream),
            authorization,
            path: path.clone(),
            key: key.clone(),
            services,
            failure: Mutex::new(None),
        });
        let (address, server) = serve(shared.clone()).map_err(|cause| unavailable(&cause))?;
        let origin = format!("http://{address}/");
        Ok(Self { url: format!("http://{address}{path}"), origin, key, state: shared, server })
    }

    /// Address for git.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Protocol of [`url`](Self::url).
    pub(crate) fn scheme(&self) -> Scheme {
        Scheme::Http
    }

    /// Variables with which git may use the proxy. They hold no token.
    pub(crate) fn environment(&self) -> Vec<(&'static str, std::ffi::OsString)> {
        let of_origin = |name: &str| format!("http.{}.{name}", self.origin);
        vec![
            ("GIT_CONFIG_COUNT", "2".into()),
            ("GIT_CONFIG_KEY_0", of_origin("extraHeader").into()),
            ("GIT_CONFIG_VALUE_0", format!("{KEY}: {}", self.key).into()),
            ("GIT_CONFIG_KEY_1", of_origin("proxy").into()),
            ("GIT_CONFIG_VALUE_1", "".into()),
            ("no_proxy", "127.0.0.1".into()),
            ("NO_PROXY", "127.0.0.1".into()),
        ]
    }

    /// Takes the last failure that the proxy saw.
    pub(crate) fn take_failure(&self) -> Option<ProxyFailure> {
        self.state.failure.lock().take()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // The command is sent by the call; the future only waits for the end.
        drop(self.server.stop(false));
    }
}

/// Follows redirects within one origin.
fn same_origin() -> reqwest::redirect::Policy {
    reqwest::redirect::Policy::custom(|attempt| {
        let first = attempt.previous().first().map(Url::origin);
        if attempt.previous().len() > MAX_REDIRECTS || first != Some(attempt.url().origin()) {
            attempt.stop()
        } else {
            attempt.follow()
        }
    })
}

fn serve(shared: Arc<Shared>) -> io::Result<(std::net::SocketAddr, ServerHandle)> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let address = listener.local_addr()?;
    let server = HttpServer::new(move || {
        App::new().app_data(web::Data::from(shared.clone())).default_service(web::to(pass_on))
    })
    .workers(1)
    .disable_signals()
    .shutdown_timeout(1)
    .client_request_timeout(CONNECT_TIMEOUT)
    .listen(listener)?
    .run();
    let handle = server.handle();
    tokio::spawn(server);
    Ok((address, handle))
}

/// The part of the interface that a request addresses; `None` for anything else.
fn endpoint(request: &HttpRequest, shared: &Shared) -> Option<String> {
    let has_key = request.headers().get(KEY).is_some_and(|key| key.as_bytes() == shared.key.as_bytes());
    let rest = request.path().strip_prefix(&shared.path)?;
    let service = match (request.method().as_str(), rest) {
        ("GET", "/info/refs") => request.query_string().strip_prefix("service=")?,
        ("POST", rest) => rest.strip_prefix('/').filter(|_| request.query_string().is_empty())?,
        _ => return None,
    };
    let is_served = match service {
        "git-upload-pack" => true,
        "git-receive-pack" => shared.services == Services::FetchAndPush,
        _ => false,
    };
    let rest = if request.method() == "GET" { format!("/info/refs?service={service}") } else { rest.to_owned() };
    (has_key && is_served).then_some(rest)
}

async fn pass_on(request: HttpRequest, body: web::Payload, shared: web::Data<Shared>) -> HttpResponse {
    let Some(endpoint) = endpoint(&request, &shared) else { return refusal(ErrorCode::NotFound) };
    let method = if request.method() == "GET" { reqwest::Method::GET } else { reqwest::Method::POST };
    let url = format!("{}{endpoint}", shared.upstream.lock().as_str().trim_end_matches('/'));
    let mut upstream = shared.client.request(method.clone(), url);
    for name in ["content-type", "content-encoding", "accept", "git-protocol", "user-agent"] {
        if let Some(value) = request.headers().get(name) {
            upstream = upstream.header(name, value.as_bytes());
        }
    }
    upstream = upstream.header("authorization", shared.authorization.as_bytes());
    if method == reqwest::Method::POST {
        upstream = match body_of(&request, body).await {
            Ok(body) => upstream.body(body),
            Err(_) => return refusal(ErrorCode::PayloadTooLarge),
        };
    }
    match upstream.send().await {
        Ok(answer) if answer.status().is_success() => {
            if method == reqwest::Method::GET {
                moved(&shared, answer.url());
            }
            passed_back(answer, &shared)
        }
        Ok(answer) => refused(answer, &shared).await,
        Err(cause) => {
            let cause = without_url(cause);
            *shared.failure.lock() = Some(ProxyFailure::Lost(cause));
            refusal(ErrorCode::WorkspaceUnavailable)
        }
    }
}

/// Answer to git, which shows its status only.
fn refusal(code: ErrorCode) -> HttpResponse {
    answer_stranger(&Failure::new(code, "git proxy"), None)
}

/// The causes of a failed request, without its address.
fn without_url(cause: reqwest::Error) -> String {
    let cause = cause.without_url();
    let mut text = cause.to_string();
    let mut source = std::error::Error::source(&cause);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// The body for the host: as a whole if it is small, else in chunks as they come.
async fn body_of(request: &HttpRequest, body: web::Payload) -> Result<reqwest::Body, ()> {
    let length = request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if length.is_some_and(|length: usize| length <= WHOLE_BYTES) {
        let whole = body.to_bytes_limited(WHOLE_BYTES).await;
        return whole.ok().and_then(Result::ok).map(reqwest::Body::from).ok_or(());
    }
    let (sender, mut receiver) = mpsc::channel::<Result<Bytes, PayloadError>>(CHUNKS_IN_QUEUE);
    actix_web::rt::spawn(async move {
        let (mut body, mut total) = (body, 0);
        while let Some(chunk) = body.next().await {
            total += chunk.as_ref().map_or(0, Bytes::len);
            let chunk = if total > MAX_BODY_BYTES { Err(PayloadError::Overflow) } else { chunk };
            let is_last = chunk.is_err();
            if sender.send(chunk).await.is_err() || is_last {
                return;
            }
        }
    });
    let chunks = stream::poll_fn(move |context| receiver.poll_recv(context));
    Ok(reqwest::Body::wrap_stream(chunks.map(|chunk| chunk.map_err(|cause| io::Error::other(cause.to_string())))))
}

/// Remembers the address to which a redirect led: posts are never redirected.
fn moved(shared: &Shared, url: &Url) {
    let Some(path) = url.path().strip_suffix("/info/refs") else { return };
    let mut upstream = shared.upstream.lock();
    if url.origin() == upstream.origin() && path != upstream.path().trim_end_matches('/') {
        let path = path.to_owned();
        upstream.set_path(&path);
    }
}

fn passed_back(answer: reqwest::Response, shared: &web::Data<Shared>) -> HttpResponse {
    let mut response = HttpResponse::Ok();
    for name in [header::CONTENT_TYPE, header::CACHE_CONTROL] {
        if let Some(value) = answer.headers().get(name.as_str()) {
            response.insert_header((name, value.as_bytes()));
        }
    }
    response.streaming(bounded(answer, shared.clone().into_inner()))
}

fn bounded(answer: reqwest::Response, shared: Arc<Shared>) -> impl Stream<Item = io::Result<Bytes>> {
    let mut total = 0_usize;
    answer.bytes_stream().map(move |chunk| match chunk {
        Ok(chunk) => {
            total = total.saturating_add(chunk.len());
            if total > MAX_BODY_BYTES { Err(io::Error::other("the answer is too large")) } else { Ok(chunk) }
        }
        Err(cause) => {
            let cause = without_url(cause);
            *shared.failure.lock() = Some(ProxyFailure::Lost(cause.clone()));
            Err(io::Error::other(cause))
        }
    })
}

/// Keeps the start of an error's text and gives git the status.
async fn refused(mut answer: reqwest::Response, shared: &Shared) -> HttpResponse {
    let status = answer.status().as_u16();
    let of_header = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let (sso, retry_after) = (of_header("x-github-sso"), of_header("retry-after"));
    let mut bytes = Vec::new();
    while bytes.len() < MAX_REFUSAL_BYTES
        && let Ok(Some(chunk)) = answer.chunk().await
    {
        bytes.extend_from_slice(&chunk[..chunk.len().min(MAX_REFUSAL_BYTES - bytes.len())]);
    }
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let seconds = retry_after.and_then(|seconds| seconds.trim().parse::<u32>().ok());
    let retry_at = seconds.map(|seconds| SystemClock.now().plus(Duration::from_secs(seconds.into())));
    *shared.failure.lock() = Some(ProxyFailure::Refused(RefusedAnswer { status, text, sso, retry_at }));
    // A redirect must not make git leave the proxy, and 401 not make it ask for a password.
    let status = if (300..=401).contains(&status) { 403 } else { status };
    HttpResponse::build(StatusCode::from_u16(status).unwrap_or_default()).finish()
}
