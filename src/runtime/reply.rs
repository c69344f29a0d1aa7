//! Reads JSON request bodies and writes JSON and problem responses for the runtime's routes.

use actix_web::{
    HttpRequest, HttpResponse,
    http::{StatusCode, header},
    web,
};
use serde::{Serialize, de::DeserializeOwned};
use uuid::Uuid;

use crate::{
    contract::problem::{PROBLEM_JSON, Problem, retry_after_s},
    domain::{
        redaction::Redacted,
        turn::outcome::{ErrorCode, Failure},
    },
    transport::request_id,
};

/// Reads a JSON body of at most `limit` bytes. `limit_name` is the subject of the error text for a larger body.
///
/// # Errors
/// `unsupported_media_type` without `Content-Type: application/json`, `payload_too_large`, and `invalid_request` for
/// malformed JSON or a body that broke off.
pub(crate) async fn read<T: DeserializeOwned>(
    request: &HttpRequest,
    body: web::Payload,
    limit: usize,
    limit_name: &str,
) -> Result<T, Failure> {
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    if kind.split(';').next().map(str::trim) != Some("application/json") {
        return Err(Failure::new(ErrorCode::UnsupportedMediaType, "the body must be JSON (application/json)"));
    }
    let body = match body.to_bytes_limited(limit).await {
        Ok(Ok(body)) => body,
        Ok(Err(cause)) => {
            return Err(Failure::new(ErrorCode::InvalidRequest, format!("the body could not be read: {cause}")));
        }
        Err(_) => {
            let detail = format!("{limit_name} may have at most {limit} bytes");
            return Err(Failure::new(ErrorCode::PayloadTooLarge, detail));
        }
    };
    serde_json::from_slice(&body)
        .map_err(|cause| Failure::new(ErrorCode::InvalidRequest, format!("the body is malformed: {cause}")))
}

/// Builds the response to a request: 200 with the value as JSON, or the failure as a problem.
pub(crate) fn answer<T: Serialize>(result: Result<T, Failure>) -> HttpResponse {
    match result {
        Ok(value) => HttpResponse::Ok().json(value),
        Err(failure) => answer_failure(&failure),
    }
}

/// Builds and logs a problem response.
pub(crate) fn refuse(code: ErrorCode, detail: &str) -> HttpResponse {
    answer_failure(&Failure::new(code, detail))
}

/// Builds and logs the problem response for a failure, with `Retry-After` where the error code has one, and with the id
/// of the request, which the supervisor chose.
pub(crate) fn answer_failure(failure: &Failure) -> HttpResponse {
    answer_stranger(failure, Some(0))
}

/// Builds the problem response for a request of an unknown sender, as [`answer_failure`] does. It is logged with the number
/// of earlier ones that were not, or not at all.
pub(crate) fn answer_stranger(failure: &Failure, suppressed: Option<u64>) -> HttpResponse {
    let id = request_id::current().unwrap_or_else(|| Uuid::now_v7().to_string());
    let problem = logged_problem(failure, id, suppressed);
    // Every status in the problem table is valid, so the default (200) is never used.
    let status = StatusCode::from_u16(problem.status).unwrap_or_default();
    let mut response = HttpResponse::build(status);
    if let Some(seconds) = retry_after_s(failure.code) {
        response.insert_header((header::RETRY_AFTER, seconds));
    }
    response.insert_header((request_id::X_REQUEST_ID, problem.request_id.as_str()));
    response.content_type(PROBLEM_JSON).body(serde_json::to_string(&problem).unwrap_or_default())
}

/// Makes and logs the problem of a failed request, as [`answer_stranger`] does.
pub(crate) fn logged_problem(failure: &Failure, id: String, suppressed: Option<u64>) -> Problem {
    let mut problem = Problem::new(failure, id);
    // The supervisor does not know the values of this process.
    problem.detail = Redacted::new(&problem.detail).into_string();
    if let Some(suppressed) = suppressed {
        tracing::info!(
            marker = "[ACP]",
            code = failure.code.as_str(),
            class = failure.code.class().as_str(),
            detail = %Redacted::new(&failure.detail),
            request_id = problem.request_id,
            suppressed = Some(suppressed).filter(|count| *count > 0),
            "request refused by the runtime"
        );
    }
    problem
}
