//! Errors of the API as problem documents.

use actix_web::{HttpResponse, ResponseError, http::StatusCode};
use serde_json::value::RawValue;

use crate::{
    actors::handles::messages::TurnEnded,
    contract::problem::{PROBLEM_JSON, Problem, retry_after_s, status_of},
    domain::{
        ids::PromptId,
        redaction::Redacted,
        turn::outcome::{ErrorCode, Failure},
    },
};

tokio::task_local! {
    /// Id of the request that is being answered.
    pub(super) static REQUEST_ID: String;
}

/// Id of the request that is being answered; empty outside a request.
pub(crate) fn request_id() -> String {
    REQUEST_ID.try_with(Clone::clone).unwrap_or_default()
}

/// An error to be answered.
#[derive(Debug)]
pub(crate) struct ApiError {
    failure: Failure,
    request_id: String,
    prompt_id: Option<PromptId>,
    result: Option<Box<RawValue>>,
}

impl ApiError {
    pub(crate) fn new(code: ErrorCode, detail: impl Into<String>) -> Self {
        Failure::new(code, detail).into()
    }

    /// A turn that ended, but whose end is not persisted yet, or never will be because another process ended the turn.
    pub(crate) fn not_durable(ended: &TurnEnded) -> Self {
        if ended.is_fenced {
            let detail = "another process of the service took over the turn and ended it";
            return Self::new(ErrorCode::Fenced, detail).about(ended.prompt_id);
        }
        let detail = "the turn ended, but its end is not on disk yet; `result` has the outcome";
        Self::new(ErrorCode::DatabaseUnavailable, detail)
            .about(ended.prompt_id)
            .with_result(Some(ended.result.clone()))
    }

    /// Adds the id of the turn concerned.
    pub(crate) fn about(mut self, prompt_id: PromptId) -> Self {
        self.prompt_id = Some(prompt_id);
        self
    }

    /// Adds the result of the turn that failed.
    pub(crate) fn with_result(mut self, result: Option<Box<RawValue>>) -> Self {
        self.result = result;
        self
    }

    pub(crate) fn problem(&self) -> Problem {
        let mut problem = Problem::new(&self.failure, self.request_id.clone());
        problem.detail = Redacted::new(&problem.detail).into_string();
        problem.prompt_id = self.prompt_id.map(|id| id.to_string());
        problem.result = self.result.clone();
        problem
    }
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        if failure.code == ErrorCode::Internal {
            tracing::error!(marker = "[ACP]", detail = %Redacted::new(&failure.detail), "internal error");
        }
        Self { failure, request_id: request_id(), prompt_id: None, result: None }
    }
}

impl From<crate::store::StoreError> for ApiError {
    fn from(cause: crate::store::StoreError) -> Self {
        crate::store::failure(&cause).into()
    }
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.failure.fmt(f)
    }
}

impl ResponseError for ApiError {
    fn status_code(&self) -> StatusCode {
        let status = status_of(self.failure.code);
        StatusCode::from_u16(status).unwrap_or_else(|_| unreachable!("{status} is a status"))
    }

    fn error_response(&self) -> HttpResponse {
        let mut answer = HttpResponse::build(self.status_code());
        answer.content_type(PROBLEM_JSON);
        if let Some(seconds) = retry_after_s(self.failure.code) {
            answer.insert_header(("Retry-After", seconds.to_string()));
        }
        if self.failure.code == ErrorCode::Unauthorized {
            answer.insert_header(("WWW-Authenticate", "Bearer"));
        }
        match serde_json::to_string(&self.problem()) {
            Ok(body) => answer.body(body),
            Err(_) => answer.finish(),
        }
    }
}
