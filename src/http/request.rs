//! Helpers that handlers share: bodies, ids, pages, and work that must not stop half-way.

use std::{str::FromStr, time::Duration};

use actix_web::{FromRequest, HttpRequest, dev::Payload, error::QueryPayloadError, web};
use futures_util::{FutureExt, future::LocalBoxFuture};
use serde::de::DeserializeOwned;
use tracing::Instrument;

use super::{
    HttpState,
    problem::{self, ApiError},
};
use crate::{
    contract::lists::NoMembers,
    domain::{
        ids::SessionId,
        turn::outcome::{ErrorCode, Failure},
    },
    store::{self, Cursor, SessionRow},
};

/// Time limit for a client to send its body; 4 MiB over a slow line take some seconds.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// The size of a page without `limit`: a screen full.
const DEFAULT_PAGE: usize = 50;

pub(super) fn bad_input(cause: &impl std::fmt::Display) -> ApiError {
    ApiError::new(ErrorCode::InvalidRequest, cause.to_string())
}

pub(super) fn bad_query(cause: &QueryPayloadError) -> ApiError {
    match cause {
        QueryPayloadError::Deserialize(cause) => bad_input(&format!("query: {cause}")),
        other => bad_input(other),
    }
}

/// The complete body of a request. A body over `limits.body_bytes` is refused.
pub(crate) struct Body(pub(super) web::Bytes);

impl FromRequest for Body {
    type Error = ApiError;
    type Future = LocalBoxFuture<'static, Result<Self, ApiError>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let reading = web::Bytes::from_request(request, payload);
        async move {
            let too_slow = |_| ApiError::new(ErrorCode::InvalidRequest, "the body did not arrive in time");
            let read = tokio::time::timeout(BODY_TIMEOUT, reading).await.map_err(too_slow)?;
            read.map(Self).map_err(|cause| match cause.as_response_error().status_code().as_u16() {
                413 => ApiError::new(ErrorCode::PayloadTooLarge, "the body is larger than `limits.body_bytes`"),
                _ => bad_input(&cause),
            })
        }
        .boxed_local()
    }
}

/// Parses a JSON body. A malformed body fails with a message that names the place of the error.
pub(super) fn parse_body<T: DeserializeOwned>(body: &Body) -> Result<T, ApiError> {
    serde_json::from_slice(&body.0).map_err(|cause| bad_input(&format!("body: {cause}")))
}

/// Checks the body of a request that needs none: nothing, or an empty JSON object.
pub(super) fn has_no_members(body: &Body) -> Result<(), ApiError> {
    if body.0.is_empty() { Ok(()) } else { parse_body::<NoMembers>(body).map(drop) }
}

/// Reads an id. A malformed id is answered like an unknown one.
pub(super) fn path_id<T: FromStr>(text: &str, what: &str) -> Result<T, ApiError> {
    text.parse().map_err(|_| ApiError::new(ErrorCode::NotFound, format!("no {what} with this id")))
}

/// Completes `work` even if the caller disconnects: a half-opened session would hold a seat and an agent that nobody
/// could release.
pub(super) async fn run_to_completion<T: 'static>(
    work: impl Future<Output = Result<T, Failure>> + 'static,
) -> Result<T, ApiError> {
    let id = problem::request_id();
    let done = actix::spawn(problem::REQUEST_ID.scope(id, work).in_current_span()).await;
    let panicked = |_| ApiError::new(ErrorCode::Internal, "the work of the request panicked");
    Ok(done.map_err(panicked)??)
}

pub(super) async fn find_session(state: &HttpState, id: SessionId) -> Result<SessionRow, ApiError> {
    let row = state.workspaces.services().store.session(id).await?;
    row.ok_or_else(|| ApiError::new(ErrorCode::NotFound, format!("no session {id}")))
}

/// The size of a page: `limit`, at most `limits.page_entries`.
pub(super) fn page_size(state: &HttpState, limit: Option<usize>) -> Result<usize, ApiError> {
    let most = state.config.limits.page_entries.min(store::MAX_PAGE);
    match limit {
        Some(limit) if limit == 0 || limit > most => {
            Err(Failure::new(ErrorCode::InvalidRequest, format!("limit: must be 1 to {most}")).into())
        }
        Some(limit) => Ok(limit),
        None => Ok(most.min(DEFAULT_PAGE)),
    }
}

/// The requested page of a list.
pub(super) fn page(state: &HttpState, limit: Option<usize>, cursor: Option<String>) -> Result<store::Page, ApiError> {
    let bad = |_| ApiError::new(ErrorCode::InvalidRequest, "cursor: not a cursor of this list");
    let after = cursor.map(|cursor| cursor.parse::<Cursor>().map_err(bad)).transpose()?;
    Ok(store::Page { limit: page_size(state, limit)?, after })
}
