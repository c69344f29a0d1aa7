//! Wraps every request: id, span, metrics, one log line for a refusal or a failure, and an answer even if the handler
//! panics. HEAD is answered as GET without the body.

use std::{
    panic::AssertUnwindSafe,
    pin::Pin,
    task::{Context, Poll},
    time::Instant,
};

use actix_web::{
    Error, HttpMessage, HttpResponse, ResponseError,
    body::{BodySize, BoxBody, MessageBody},
    dev::{ServiceRequest, ServiceResponse},
    http::{
        Method,
        header::{HeaderName, HeaderValue},
    },
    middleware::Next,
    web,
};
use bytes::Bytes;
use futures_util::FutureExt;
use tracing::Instrument;
use uuid::Uuid;

use super::{
    HttpState, IsEmbedded,
    guard::routed_path,
    problem::{ApiError, Refusal},
    route_table::UNMATCHED,
};
use crate::{
    contract::problem::code_of_status,
    domain::{redaction::Redacted, text::plain, turn::outcome::ErrorCode},
    telemetry::Metrics,
    transport::request_id::{REQUEST_ID, X_REQUEST_ID, usable},
};

/// Characters of a method and of a path in the log; no route is longer.
const METHOD_CHARS: usize = 16;
const PATH_CHARS: usize = 200;
/// Characters of the detail of a refusal in the log.
const DETAIL_CHARS: usize = 500;

/// A request, for its metrics and its log lines.
struct Call {
    began: Instant,
    id: String,
    method: Method,
    /// The template of its route.
    route: String,
    /// Its operation in the metrics; `None` if no route takes it.
    operation: Option<usize>,
    metrics: Option<Metrics>,
}

impl Call {
    fn new(request: &ServiceRequest) -> Self {
        let given = request.headers().get(X_REQUEST_ID).and_then(|id| usable(id.to_str().ok()?));
        let id = given.map_or_else(|| Uuid::now_v7().to_string(), str::to_owned);
        let method = request.method().clone();
        let state = request.app_data::<web::Data<HttpState>>();
        let known = state.and_then(|state| state.table.find(routed_path(request)));
        Self {
            began: Instant::now(),
            id,
            route: known.map_or_else(|| UNMATCHED.to_owned(), |route| route.template.clone()),
            operation: known.and_then(|route| route.operation(&method)),
            method,
            metrics: state.map(|state| state.workspaces.services().metrics.clone()),
        }
    }

    /// Counts the answer, and logs it if it is a refusal or a failure.
    fn answered(&self, response: &HttpResponse) {
        let status = response.status().as_u16();
        if let Some(metrics) = &self.metrics {
            metrics.http_answered(self.operation, self.method.as_str(), status, self.began.elapsed());
        }
        let duration_us = u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX);
        tracing::debug!(marker = "[ACP]", status, duration_us, "request answered");
        let extensions = response.extensions();
        let Some(Refusal { code, detail, is_counted }) = extensions.get::<Refusal>() else { return };
        if let Some(metrics) = self.metrics.as_ref().filter(|_| !is_counted) {
            metrics.error(*code);
        }
        tracing::info!(
            marker = "[ACP]",
            request_id = self.id,
            code = code.as_str(),
            class = code.class().as_str(),
            route = self.route,
            status,
            detail = plain(Redacted::new(detail).as_str(), DETAIL_CHARS),
            "{}",
            if status < 500 { "request refused" } else { "request failed" }
        );
    }
}

/// Uses a valid `X-Request-Id` of the caller, else makes an id. The id is in the answer, in a problem document and in
/// every log line of the request.
pub(crate) async fn trace<B: MessageBody + 'static>(
    mut request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    if request.conn_data::<IsEmbedded>().is_some() {
        request.extensions_mut().insert(IsEmbedded);
        return Ok(next.call(request).await?.map_into_boxed_body());
    }
    let call = Call::new(&request);
    let span = tracing::info_span!(
        "http.request",
        request_id = call.id,
        method = plain(call.method.as_str(), METHOD_CHARS),
        path = plain(request.path(), PATH_CHARS)
    );
    if call.method == Method::HEAD {
        request.head_mut().method = Method::GET;
    }
    let answering = AssertUnwindSafe(REQUEST_ID.scope(call.id.clone(), next.call(request))).catch_unwind();
    let answer = match answering.instrument(span.clone()).await {
        Ok(answer) => answer.map(ServiceResponse::map_into_boxed_body),
        Err(_) => REQUEST_ID.sync_scope(call.id.clone(), || {
            let _in_span = span.enter();
            Err(ApiError::new(ErrorCode::Internal, "the handler of the request panicked").into())
        }),
    };
    let _in_span = span.enter();
    let answer = answer.inspect_err(|error| call.answered(&error.as_response_error().error_response()))?;
    let mut answer = REQUEST_ID.sync_scope(call.id.clone(), || as_problem(answer));
    call.answered(answer.response());
    if let Ok(id) = HeaderValue::from_str(&call.id) {
        answer.headers_mut().insert(HeaderName::from_static(X_REQUEST_ID), id);
    }
    Ok(if call.method == Method::HEAD {
        answer.map_body(|_, body| BoxBody::new(NoBody(body.size())))
    } else {
        answer
    })
}

/// Makes a problem document of an error that no handler answered: one of the framework, or of a static page.
fn as_problem(answer: ServiceResponse<BoxBody>) -> ServiceResponse<BoxBody> {
    let status = answer.status();
    let is_error = status.is_client_error() || status.is_server_error();
    if !is_error || answer.response().extensions().contains::<Refusal>() {
        return answer;
    }
    let code = code_of_status(status.as_u16());
    let reason = status.canonical_reason().unwrap_or("error").to_lowercase();
    answer.into_response(ApiError::new(code, reason).error_response())
}

/// The body of an answer to HEAD: the size of the body of GET, and nothing of it. A stream is never read.
struct NoBody(BodySize);

impl MessageBody for NoBody {
    type Error = std::convert::Infallible;

    fn size(&self) -> BodySize {
        self.0
    }

    fn poll_next(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Bytes, Self::Error>>> {
        Poll::Ready(None)
    }
}
