//! How the runtime reads a request's body and says the outcome of it.

use actix_web::{
    HttpRequest, HttpResponse,
    http::{StatusCode, header},
    web,
};
use serde::{Serialize, de::DeserializeOwned};
use uuid::Uuid;

use crate::{
    contract::problem::{PROBLEM_JSON, Problem, retry_after_s},
    domain::turn::outcome::{ErrorCode, Failure},
};

/// Reads a JSON body of at most `limit` bytes, which `limit_name` is about.
pub(crate) async fn read<T: DeserializeOwned>(
    request: &HttpRequest,
    body: web::Payload,
    limit: usize,
    limit_name: &str,
) -> Result<T, Failure> {
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    if kind.split(';').next().map(str::trim) != Some("application/json") {
        return Err(Failure::new(ErrorCode::UnsupportedMediaType, "the body has to be JSON"));
    }
    let body = match body.to_bytes_limited(limit).await {
        Ok(Ok(body)) => body,
        Ok(Err(cause)) => return Err(Failure::new(ErrorCode::InvalidRequest, format!("the body: {cause}"))),
        Err(_) => {
            let detail = format!("{limit_name} has at most {limit} bytes");
            return Err(Failure::new(ErrorCode::PayloadTooLarge, detail));
        }
    };
    serde_json::from_slice(&body)
        .map_err(|cause| Failure::new(ErrorCode::InvalidRequest, format!("the body: {cause}")))
}

/// Says the outcome of a request.
pub(crate) fn answer<T: Serialize>(result: Result<T, Failure>) -> HttpResponse {
    match result {
        Ok(value) => HttpResponse::Ok().json(value),
        Err(failure) => answer_failure(&failure),
    }
}

/// Refuses a request.
pub(crate) fn refuse(code: ErrorCode, detail: &str) -> HttpResponse {
    answer_failure(&Failure::new(code, detail))
}

/// Says why a request failed, and logs it.
pub(crate) fn answer_failure(failure: &Failure) -> HttpResponse {
    let problem = Problem::new(failure, Uuid::now_v7().to_string());
    tracing::info!(code = failure.code.as_str(), %failure, request_id = problem.request_id, "refused");
    // Every status of the table is one.
    let status = StatusCode::from_u16(problem.status).unwrap_or_default();
    let mut response = HttpResponse::build(status);
    if let Some(seconds) = retry_after_s(failure.code) {
        response.insert_header((header::RETRY_AFTER, seconds));
    }
    response.content_type(PROBLEM_JSON).body(serde_json::to_string(&problem).unwrap_or_default())
}
