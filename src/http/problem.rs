//! Errors of the API as problem documents.

use actix_web::{
    HttpResponse, ResponseError,
    http::{StatusCode, header::ALLOW},
};
use serde_json::value::RawValue;

use crate::{
    actors::handles::messages::TurnEnded,
    contract::problem::{PROBLEM_JSON, Problem, retry_after_s, status_of},
    domain::{
        ids::PromptId,
        redaction::Redacted,
        turn::outcome::{ErrorCode, Failure},
    },
    transport::request_id,
};

/// The refusal or failure that an answer carries, for metrics and log.
#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    pub code: ErrorCode,
    pub detail: String,
    /// True if the error was counted before, when it ended a turn.
    pub is_counted: bool,
}

/// The header of an answer that repeats an earlier one, or joins the request that is being answered.
pub(crate) const REPLAYED: (&str, &str) = ("idempotent-replayed", "true");

/// Id of the request that is being answered; empty outside a request.
pub(crate) fn request_id() -> String {
    request_id::current().unwrap_or_default()
}

/// An error to be answered.
#[derive(Debug)]
pub(crate) struct ApiError {
    failure: Failure,
    request_id: Box<str>,
    prompt_id: Option<PromptId>,
    result: Option<Box<RawValue>>,
    /// True if the error ended a turn, which counted it.
    is_of_turn: bool,
    /// True if the answer repeats an earlier one.
    is_replay: bool,
    unrouted: Option<Unrouted>,
}

/// Reason why a request has no handler.
#[derive(Debug)]
enum Unrouted {
    /// No route has the path.
    Path,
    /// The route does not support the method.
    Method {
        /// The methods that it supports, as in the header `Allow`.
        allow: Box<str>,
    },
}

/// Advice for an unknown path, whose error code is that of an unknown id.
const SEE_ROUTES: &str = "See /docs/ for the routes.";

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
        let detail = match ended.is_open {
            true => "the agent has ended, and the turn waits for the database; `result` has what the agent did",
            false => "the turn ended, but its end is not on disk yet; `result` has the outcome",
        };
        Self::new(ErrorCode::DatabaseUnavailable, detail)
            .about(ended.prompt_id)
            .with_result(Some(ended.result.clone()))
    }

    /// The failure of a turn, whose end counted the error.
    pub(crate) fn of_turn(failure: Failure, prompt_id: PromptId) -> Self {
        Self { is_of_turn: true, ..Self::from(failure).about(prompt_id) }
    }

    /// A path that no route has.
    pub(crate) fn no_route(path: &str) -> Self {
        Self { unrouted: Some(Unrouted::Path), ..Self::new(ErrorCode::NotFound, format!("no route {path}")) }
    }

    /// A method that a path does not support; `allow` has those that it supports.
    pub(crate) fn no_method(detail: String, allow: String) -> Self {
        Self {
            unrouted: Some(Unrouted::Method { allow: allow.into() }),
            ..Self::new(ErrorCode::MethodNotAllowed, detail)
        }
    }

    /// Marks the answer as the repetition of an earlier one.
    pub(crate) fn replayed_if(self, is_replay: bool) -> Self {
        Self { is_replay, ..self }
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
        let mut problem = Problem::new(&self.failure, &*self.request_id);
        if let (Some(Unrouted::Path), Some(detail)) =
            (&self.unrouted, problem.detail.strip_suffix(self.failure.code.advice()))
        {
            problem.detail = format!("{detail}{SEE_ROUTES}");
        }
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
        Self {
            failure,
            request_id: request_id().into(),
            prompt_id: None,
            result: None,
            is_of_turn: false,
            is_replay: false,
            unrouted: None,
        }
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
        let of_limit = self.failure.limit().and_then(|limit| limit.retry_after_s);
        if let Some(seconds) = of_limit.or(retry_after_s(self.failure.code)) {
            answer.insert_header(("Retry-After", seconds.to_string()));
        }
        if self.failure.code == ErrorCode::Unauthorized {
            answer.insert_header(("WWW-Authenticate", "Bearer"));
        }
        if !self.request_id.is_empty() {
            answer.insert_header((request_id::X_REQUEST_ID, &*self.request_id));
        }
        if let Some(Unrouted::Method { allow }) = &self.unrouted {
            answer.insert_header((ALLOW, &**allow));
        }
        if self.is_replay {
            answer.insert_header(REPLAYED);
        }
        let Failure { code, detail, .. } = &self.failure;
        answer.extensions_mut().insert(Refusal { code: *code, detail: detail.clone(), is_counted: self.is_of_turn });
        match serde_json::to_string(&self.problem()) {
            Ok(body) => answer.body(body),
            Err(_) => answer.finish(),
        }
    }
}
