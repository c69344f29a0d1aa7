//! Admission of requests: host names, origins, the token, and the media type.
//!
//! Browsers are hostile even on loopback: any page can send requests here, and any name can be made to resolve to this
//! address.

use std::collections::HashSet;

use actix_web::{
    Error, HttpMessage, HttpResponse, ResponseError,
    body::{BoxBody, EitherBody, MessageBody},
    dev::{ServiceRequest, ServiceResponse},
    http::{
        Method,
        header::{self, HeaderMap, HeaderValue},
    },
    middleware::Next,
    web,
};
use secrecy::ExposeSecret;
use subtle::ConstantTimeEq;

use super::{
    HttpState, IsEmbedded,
    notifications::access::{SOCKET_PATH, offered_token, ticket},
    problem::ApiError,
    rows::permit,
    tokens,
    triggers::WEBHOOK_PATH,
};
use crate::{
    actors::handles::client_tokens::ClientTokens,
    config::{ReloadableSecret, sections::Server},
    contract::{
        authorization::bearer_token,
        browsers::{self, CROSS_SITE, SEC_FETCH_SITE},
    },
    domain::{
        access::{Caller, Privilege},
        clock::Timestamp,
        turn::outcome::ErrorCode,
    },
};

/// The rules, from `[server]`.
#[derive(Debug)]
pub(crate) struct Guard {
    token: ReloadableSecret,
    tokens: ClientTokens,
    hosts: HashSet<String>,
    origins: HashSet<String>,
}

/// Probes of an orchestrator, which knows neither the token nor the name of the service. Their answers have no secret.
const PROBES: [&str; 2] = ["/livez", "/readyz"];
/// Paths without a token beside the probes: documentation that is the same everywhere, and the way to it.
const OPEN: [&str; 3] = ["/", "/docs", "/openapi.json"];
/// Start of other paths without a token.
const OPEN_BELOW: &str = "/docs/";

/// Request headers that a page of an allowed origin may send.
const CORS_HEADERS: &str = "authorization, content-type, idempotency-key, last-event-id, prefer, x-request-id";
/// Response headers that such a page may read.
const CORS_EXPOSED: &str = "idempotent-replayed, link, location, retry-after, x-request-id";

/// True for a path below which the documentation is, with its pages.
pub(super) fn is_documentation(path: &str) -> bool {
    path == "/docs" || path.starts_with(OPEN_BELOW) || path == "/openapi.json"
}

/// True for a link on another site that a person follows to the documentation.
fn is_link_to_documentation(request: &ServiceRequest) -> bool {
    let is =
        |name: &str, value: &str| request.headers().get(name).is_some_and(|it| it.as_bytes() == value.as_bytes());
    let is_read = [Method::GET, Method::HEAD].contains(request.method());
    let is_page = request.path() == "/" || is_documentation(request.path());
    is_read && is_page && is("sec-fetch-mode", "navigate") && is("sec-fetch-dest", "document")
}

/// True for a path that needs no token.
pub(super) fn is_open(path: &str) -> bool {
    // Deliveries of GitHub have a signature instead.
    PROBES.contains(&path) || OPEN.contains(&path) || path.starts_with(OPEN_BELOW) || path == WEBHOOK_PATH
}

impl Guard {
    pub(crate) fn new(server: &Server, token: ReloadableSecret, tokens: ClientTokens) -> Self {
        let lower = |names: &[String]| names.iter().map(|name| name.to_lowercase()).collect();
        Self { token, tokens, hosts: lower(&server.allowed_hosts), origins: lower(&server.allowed_origins) }
    }

    /// Checks a request. `operation` is the one that takes it; without one its media type does not matter: it is answered
    /// with 404 or 405.
    fn check(
        &self,
        request: &ServiceRequest,
        operation: Option<Option<Privilege>>,
        now: impl Fn() -> Timestamp,
    ) -> Result<Admitted, ApiError> {
        let (headers, path) = (request.headers(), routed_path(request));
        let is_probe = PROBES.contains(&path);
        let host = text(headers, header::HOST).unwrap_or_default().to_lowercase();
        if !is_probe && !self.is_ours(&host) {
            let detail = format!("the host name {host:?} is not a name of this service");
            return Err(ApiError::new(ErrorCode::ForbiddenOrigin, detail));
        }
        let origin = self.allowed_origin(headers, &host)?;
        if origin.is_none()
            && headers.get(SEC_FETCH_SITE).and_then(|site| site.to_str().ok()) == Some(CROSS_SITE)
            && !is_link_to_documentation(request)
        {
            return Err(ApiError::new(ErrorCode::ForbiddenOrigin, "pages of another site may not call the API"));
        }
        // A preflight carries no token, and has no effect.
        if request.method() == Method::OPTIONS {
            return Ok(Admitted { origin, caller: None });
        }
        // The route redeems the ticket, because it knows what the ticket allows.
        let has_ticket = path == SOCKET_PATH && ticket(request.request()).is_some();
        let caller = match is_open(path) || has_ticket {
            true => None,
            false => Some(self.caller(headers, path == SOCKET_PATH, now)?),
        };
        if let (Some(caller), Some(Some(privilege))) = (&caller, operation) {
            permit(caller, privilege)?;
        }
        let has_body = matches!(*request.method(), Method::POST | Method::PUT | Method::PATCH);
        if operation.is_some() && has_body && !is_json(headers) {
            return Err(ApiError::new(ErrorCode::UnsupportedMediaType, "the body must be JSON"));
        }
        Ok(Admitted { origin, caller })
    }

    /// True while `server.token` is `none`.
    pub(super) fn admits_everyone(&self) -> bool {
        self.token.get().is_none()
    }

    /// True if a `Host` names this service. A name can be made to resolve to this address, an address cannot: names
    /// have to be configured.
    fn is_ours(&self, host: &str) -> bool {
        browsers::host_name(host).is_some_and(|name| browsers::is_fixed_name(name) || self.hosts.contains(name))
    }

    fn allowed_origin(&self, headers: &HeaderMap, host: &str) -> Result<Option<HeaderValue>, ApiError> {
        let mut given = headers.get_all(header::ORIGIN);
        let Some(value) = given.next() else { return Ok(None) };
        if given.next().is_some() {
            return Err(ApiError::new(ErrorCode::ForbiddenOrigin, "several Origin headers"));
        }
        let origin = value.to_str().unwrap_or_default().to_lowercase();
        let own = ["http://", "https://"].iter().any(|scheme| origin.strip_prefix(scheme) == Some(host));
        if own {
            return Ok(None);
        }
        if self.origins.contains(&origin) {
            return Ok(Some(value.clone()));
        }
        Err(ApiError::new(ErrorCode::ForbiddenOrigin, format!("pages of the origin {origin:?} may not call the API")))
    }

    /// The caller that the token of a request names.
    fn caller(&self, headers: &HeaderMap, is_socket: bool, now: impl Fn() -> Timestamp) -> Result<Caller, ApiError> {
        if headers.get_all(header::AUTHORIZATION).count() > 1 {
            // A proxy may have looked at the other one.
            return Err(ApiError::new(ErrorCode::InvalidRequest, "several Authorization headers"));
        }
        let token = self.token.get();
        let Some(token) = &*token else { return Ok(Caller::anonymous()) };
        let given = text(headers, header::AUTHORIZATION).unwrap_or_default();
        let given = bearer_token(given).map(str::to_owned);
        // A page cannot set headers of a WebSocket.
        let given = given.or_else(|| if is_socket { offered_token(headers) } else { None }).unwrap_or_default();
        if bool::from(given.as_bytes().ct_eq(token.expose_secret().as_bytes())) {
            return Ok(Caller::of_server());
        }
        let wrong = || ApiError::new(ErrorCode::Unauthorized, "the bearer token is missing or wrong");
        let hash = tokens::hash_of_well_formed(&given).ok_or_else(wrong)?;
        self.tokens.find(&hash, now()).ok_or_else(wrong)
    }
}

/// The path by which routes are matched: the framework decodes some of its characters first.
pub(super) fn routed_path(request: &ServiceRequest) -> &str {
    request.match_info().as_str()
}

/// A request that may be answered.
#[derive(Debug)]
struct Admitted {
    /// The allowed origin, if the request names one.
    origin: Option<HeaderValue>,
    /// Absent for what needs no token.
    caller: Option<Caller>,
}

fn text(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn is_json(headers: &HeaderMap) -> bool {
    let media_type = text(headers, header::CONTENT_TYPE).unwrap_or_default();
    media_type.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json")
}

/// Admits a request, or answers with the reason.
pub(crate) async fn guard<B: MessageBody + 'static>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<EitherBody<BoxBody, B>>, Error> {
    if request.conn_data::<IsEmbedded>().is_some() {
        return Ok(next.call(request).await?.map_into_right_body());
    }
    let Some(state) = request.app_data::<web::Data<HttpState>>().cloned() else {
        let error = ApiError::new(ErrorCode::Internal, "the service is not configured");
        return Ok(request.into_response(error.error_response().map_into_left_body()));
    };
    let route = state.table.find(routed_path(&request));
    let operation = route.and_then(|route| route.operation(request.method()));
    let operation = operation.map(|operation| state.table.privilege(operation));
    let clock = &state.workspaces.services().clock;
    let Admitted { origin, caller } = match state.guard.check(&request, operation, || clock.now()) {
        Ok(admitted) => admitted,
        Err(error) => return Ok(request.into_response(error.error_response().map_into_left_body())),
    };
    // Only with a checked privilege: a handler that this table does not know gets no caller, and refuses.
    if let (Some(caller), Some(Some(_))) = (caller, operation) {
        request.extensions_mut().insert(caller);
    }
    let mut answer = match (&origin, request.method() == Method::OPTIONS) {
        (Some(_), true) => request.into_response(preflight().map_into_left_body()),
        _ => next.call(request).await?.map_into_right_body(),
    };
    if let Some(origin) = origin {
        let headers = answer.headers_mut();
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.append(header::VARY, HeaderValue::from_static("origin"));
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(CORS_EXPOSED));
    }
    Ok(answer)
}

fn preflight() -> HttpResponse {
    HttpResponse::NoContent()
        .insert_header((header::ACCESS_CONTROL_ALLOW_METHODS, "GET, HEAD, POST, PUT, DELETE, OPTIONS"))
        .insert_header((header::ACCESS_CONTROL_ALLOW_HEADERS, CORS_HEADERS))
        .insert_header((header::ACCESS_CONTROL_MAX_AGE, "600"))
        .finish()
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;

    fn guard() -> Guard {
        let server = Server {
            allowed_hosts: vec!["acp.example.com".into()],
            allowed_origins: vec!["https://app.example.com".into()],
            ..Server::default()
        };
        Guard::new(&server, ReloadableSecret::new(Some("secret".to_owned().into())), ClientTokens::default())
    }

    fn check(request: &ServiceRequest, operation: Option<Option<Privilege>>) -> Result<Admitted, ApiError> {
        guard().check(request, operation, || Timestamp(0))
    }

    fn code(request: TestRequest) -> Option<ErrorCode> {
        let request = request.insert_header(("authorization", "Bearer secret")).to_srv_request();
        check(&request, Some(None)).err().and_then(|error| ErrorCode::from_name(&error.problem().code))
    }

    #[test]
    fn rebound_names_and_foreign_pages_are_refused() {
        for host in
            ["localhost:8080", "127.0.0.1", "[::1]:80", "10.0.0.7:8080", "acp.example.com", "ACP.example.com:443"]
        {
            assert_eq!(code(TestRequest::get().insert_header(("host", host))), None, "{host}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example",
            "",
            "acp.example.com.evil",
            "[::1]evil.com",
            "localhost:evil.com",
        ] {
            let refused = code(TestRequest::get().insert_header(("host", host)));
            assert_eq!(refused, Some(ErrorCode::ForbiddenOrigin), "{host}");
        }
        for (origin, allowed) in [
            ("https://app.example.com", true),
            ("http://localhost:8080", true),
            ("http://localhost:9090", false),
            ("https://app.example.com.evil", false),
            ("null", false),
        ] {
            let request =
                TestRequest::get().insert_header(("host", "localhost:8080")).insert_header(("origin", origin));
            assert_eq!(code(request).is_none(), allowed, "{origin}");
        }
    }

    #[test]
    fn request_of_another_site_without_an_allowed_origin_is_refused() {
        let of = |path, site| TestRequest::with_uri(path).insert_header(("host", "localhost")).insert_header(site);
        for path in ["/acp/sessions", "/livez", "/docs/", "/metrics"] {
            let refused = code(of(path, ("sec-fetch-site", "cross-site")));
            assert_eq!(refused, Some(ErrorCode::ForbiddenOrigin), "{path}");
        }
        for site in ["same-origin", "same-site", "none"] {
            assert_eq!(code(of("/acp/sessions", ("sec-fetch-site", site))), None, "{site}");
        }
        let allowed = of("/acp/sessions", ("sec-fetch-site", "cross-site"));
        assert_eq!(code(allowed.insert_header(("origin", "https://app.example.com"))), None);
        let link = |path| {
            of(path, ("sec-fetch-site", "cross-site"))
                .insert_header(("sec-fetch-mode", "navigate"))
                .insert_header(("sec-fetch-dest", "document"))
        };
        assert_eq!(code(link("/docs/")), None, "a person may follow a link to the documentation");
        assert_eq!(code(link("/acp/sessions")), Some(ErrorCode::ForbiddenOrigin));
    }

    #[test]
    fn a_form_post_is_refused_by_its_media_type() {
        let post = |media_type: &'static str| {
            TestRequest::post().insert_header(("host", "localhost")).insert_header(("content-type", media_type))
        };
        assert_eq!(code(post("text/plain")), Some(ErrorCode::UnsupportedMediaType));
        assert_eq!(code(post("application/json; charset=utf-8")), None);
    }

    #[test]
    fn a_probe_is_answered_whatever_its_host() {
        for host in ["lumilink.svc", "evil.example", ""] {
            let of = |path| TestRequest::with_uri(path).insert_header(("host", host));
            assert_eq!(code(of("/readyz")), None, "{host}");
            assert_eq!(code(of("/acp/health")), Some(ErrorCode::ForbiddenOrigin), "{host}");
        }
        assert_eq!(code(TestRequest::with_uri("/livez")), None, "HTTP/1.0 has no host");
        let page = TestRequest::with_uri("/livez").insert_header(("origin", "https://evil.example"));
        assert_eq!(code(page), Some(ErrorCode::ForbiddenOrigin));
    }

    #[test]
    fn media_type_of_a_request_that_no_route_takes_does_not_matter() {
        let put =
            TestRequest::put().insert_header(("host", "localhost")).insert_header(("authorization", "Bearer secret"));
        let request = put.to_srv_request();
        assert!(check(&request, None).is_ok() && check(&request, Some(None)).is_err());
    }

    #[test]
    fn the_token_is_required_except_for_probes_and_documentation() {
        for (path, token, allowed) in [
            ("/acp/sessions", "Bearer secret", true),
            ("/acp/sessions", "bearer secret", true),
            ("/acp/sessions", "BEARER  secret", true),
            ("/acp/sessions", "Bearersecret", false),
            ("/acp/sessions", "Basic secret", false),
            ("/acp/sessions", "Bearer wrong!", false),
            ("/acp/sessions", "", false),
            ("/metrics", "", false),
            ("/livez", "", true),
            ("/livezz", "", false),
            ("/", "", true),
            ("//", "", false),
            ("/docs", "", true),
            ("/docsx", "", false),
            ("/docs/index.html", "", true),
        ] {
            let request = TestRequest::with_uri(path)
                .insert_header(("host", "localhost"))
                .insert_header(("authorization", token))
                .to_srv_request();
            assert_eq!(check(&request, Some(None)).is_ok(), allowed, "{path} {token}");
        }
    }
}
