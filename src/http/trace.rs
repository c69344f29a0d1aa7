//! Wraps every request: id, span, metrics, and an answer even if the handler panics.

use std::{panic::AssertUnwindSafe, time::Instant};

use actix_web::{
    Error, HttpMessage,
    body::MessageBody,
    dev::{ServiceRequest, ServiceResponse},
    http::header::{HeaderName, HeaderValue},
    middleware::Next,
    web,
};
use futures_util::FutureExt;
use tracing::Instrument;
use uuid::Uuid;

use super::{
    HttpState, IsEmbedded,
    problem::{ApiError, REQUEST_ID},
};
use crate::domain::turn::outcome::ErrorCode;

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Uses a valid `X-Request-Id` of the caller, else makes an id. The id is in the answer, in a problem document and in
/// every log line of the request.
pub(crate) async fn trace<B: MessageBody + 'static>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<B>, Error> {
    if request.conn_data::<IsEmbedded>().is_some() {
        request.extensions_mut().insert(IsEmbedded);
        return next.call(request).await;
    }
    let began = Instant::now();
    let id = given_id(&request).unwrap_or_else(|| Uuid::now_v7().to_string());
    let method = request.method().to_string();
    let metrics = request.app_data::<web::Data<HttpState>>().map(|state| state.workspaces.services().metrics.clone());
    let span = tracing::info_span!("http.request", request_id = %id, method = %method, path = %request.path());
    let answering = AssertUnwindSafe(REQUEST_ID.scope(id.clone(), next.call(request))).catch_unwind();
    let answer = match answering.instrument(span.clone()).await {
        Ok(answer) => answer,
        Err(_) => REQUEST_ID.sync_scope(id.clone(), || {
            let _in_span = span.enter();
            Err(ApiError::new(ErrorCode::Internal, "the handler of the request panicked").into())
        }),
    };
    let mut answer = answer?;
    let status = answer.status().as_u16();
    if let Some(metrics) = metrics {
        metrics.http_answered(&method, status, began.elapsed());
    }
    if let Ok(id) = HeaderValue::from_str(&id) {
        answer.headers_mut().insert(X_REQUEST_ID, id);
    }
    let _in_span = span.enter();
    let duration_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
    tracing::debug!(marker = "[ACP]", status, duration_us, "request answered");
    Ok(answer)
}

fn given_id(request: &ServiceRequest) -> Option<String> {
    let id = request.headers().get(X_REQUEST_ID)?.to_str().ok()?;
    let usable = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
    (!id.is_empty() && id.len() <= 128 && id.bytes().all(usable)).then(|| id.to_owned())
}
