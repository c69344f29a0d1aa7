//! Every error of the API as an answer.

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
    /// The id of the request that is being answered.
    pub(super) static REQUEST_ID: String;
}

/// The id of the request that is being answered; empty outside one.
pub(crate) fn request_id() -> String {
    REQUEST_ID.try_with(Clone::clone).unwrap_or_default()
}

/// An error on its way to the caller.
#[derive(Debug)]
pub(crate) struct ApiError {
    failure: Failure,
    request_id: String,
    prompt_id: Option<PromptId>,
    result: Option<Box<RawValue>>,
}

impl ApiError {
    /// An error with a code and a sentence.
    pub(crate) fn new(code: ErrorCode, detail: impl Into<String>) -> Self {
        Failure::new(code, detail).into()
    }

    /// The answer to a turn whose end is known and is not on disk.
    pub(crate) fn not_durable(ended: &TurnEnded) -> Self {
        let detail = "the turn ended, and its end is not on disk yet; `result` says how it ended";
        Self::new(ErrorCode::DatabaseUnavailable, detail)
            .about(ended.prompt_id)
            .with_result(Some(ended.result.clone()))
    }

    /// Names the turn that it is about.
    pub(crate) fn about(mut self, prompt_id: PromptId) -> Self {
        self.prompt_id = Some(prompt_id);
        self
    }

    /// Adds the result of the turn that failed.
    pub(crate) fn with_result(mut self, result: Option<Box<RawValue>>) -> Self {
        self.result = result;
        self
    }

    /// The document.
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
