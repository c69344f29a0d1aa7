//! Helpers that handlers share: bodies, ids, pages, and work that must not stop half-way.

use std::{
    future::{Ready, ready},
    str::FromStr,
    time::Duration,
};

use actix_web::{FromRequest, HttpRequest, dev::Payload, error::QueryPayloadError, web};
use futures_util::{FutureExt, future::LocalBoxFuture};
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use tracing::Instrument;
use url::form_urlencoded;

use super::{
    HttpState,
    problem::{self, ApiError},
};
use crate::{
    contract::lists::NoMembers,
    domain::turn::outcome::{ErrorCode, Failure},
    store::{self, Cursor, Idempotency},
    transport::request_id::REQUEST_ID,
};

/// Time limit for a client to send its body; 4 MiB over a slow line take some seconds.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// The size of a page without `limit`: a screen full.
const DEFAULT_PAGE: usize = 50;

pub(super) fn bad_input(cause: &impl std::fmt::Display) -> ApiError {
    ApiError::new(ErrorCode::InvalidRequest, cause.to_string())
}

/// The parameters of a query. The refusal of a malformed one names it.
#[derive(Debug)]
pub(crate) struct Query<T>(T);

impl<T> Query<T> {
    pub(crate) fn into_inner(self) -> T {
        self.0
    }
}

impl<T> std::ops::Deref for Query<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: DeserializeOwned> FromRequest for Query<T> {
    type Error = ApiError;
    type Future = Ready<Result<Self, ApiError>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(Self::parse(request.query_string()))
    }
}

impl<T: DeserializeOwned> Query<T> {
    /// Parses the part of an address after `?`.
    pub(crate) fn parse(text: &str) -> Result<Self, ApiError> {
        match web::Query::<T>::from_query(text) {
            Ok(query) => Ok(Self(query.into_inner())),
            Err(QueryPayloadError::Deserialize(cause)) => {
                let cause = cause.to_string();
                let place = culprit::<T>(text, &cause).unwrap_or_else(|| "query".to_owned());
                Err(bad_input(&format!("{place}: {cause}")))
            }
            Err(other) => Err(bad_input(&other)),
        }
    }
}

/// The parameter that alone fails in the same way. Errors of values do not name their parameter, and others do.
fn culprit<T: DeserializeOwned>(text: &str, cause: &str) -> Option<String> {
    let pairs = form_urlencoded::parse(text.as_bytes()).filter(|(name, _)| !cause.contains(&format!("`{name}`")));
    let mut named = pairs.map(|(name, value)| {
        let alone = form_urlencoded::Serializer::new(String::new()).append_pair(&name, &value).finish();
        (name.into_owned(), web::Query::<T>::from_query(&alone))
    });
    let fails = |alone: &Result<_, QueryPayloadError>| matches!(alone, Err(QueryPayloadError::Deserialize(same)) if same.to_string() == cause);
    named.find_map(|(name, alone): (String, Result<web::Query<T>, _>)| fails(&alone).then_some(name))
}

/// The longest `Idempotency-Key`, in characters; a UUID has 36.
const MAX_KEY_LENGTH: usize = 128;

/// The `Idempotency-Key` of a request with a digest of its body; `None` without one.
///
/// # Errors
/// The key is malformed, or there are several.
pub(super) fn idempotency(request: &HttpRequest, body: &Body) -> Result<Option<Idempotency>, ApiError> {
    let mut keys = request.headers().get_all("idempotency-key");
    let Some(key) = keys.next() else { return Ok(None) };
    let usable = |key: &&str| {
        !key.is_empty() && key.len() <= MAX_KEY_LENGTH && key.bytes().all(|byte| (b'!'..=b'~').contains(&byte))
    };
    let (Some(key), None) = (key.to_str().ok().filter(usable), keys.next()) else {
        let detail = format!("Idempotency-Key: must be one key of 1 to {MAX_KEY_LENGTH} visible ASCII characters");
        return Err(ApiError::new(ErrorCode::InvalidRequest, detail));
    };
    let body_hash = Sha256::digest(&body.0).iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Some(Idempotency { key: key.to_owned(), body_hash }))
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
    let done = actix::spawn(REQUEST_ID.scope(id, work).in_current_span()).await;
    let panicked = |_| ApiError::new(ErrorCode::Internal, "the work of the request panicked");
    Ok(done.map_err(panicked)??)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::audit::query::AuditQuery;

    #[test]
    fn error_of_a_query_names_the_parameter() {
        let detail = |text: &str| Query::<AuditQuery>::parse(text).map(drop).unwrap_err().problem().detail;
        for (text, named) in [
            ("limit=abc", "limit: "),
            ("workspaceId=ws&limit=-1&cursor=x", "limit: "),
            ("limit=5&from=yesterday", "from: "),
            ("until=%20&limit=5", "until: "),
            ("sessionId=7", "sessionId: "),
            ("format=xml", "format: "),
            ("limit=1&limit=2", "`limit`"),
            ("nothing=1", "`nothing`"),
        ] {
            assert!(detail(text).contains(named), "{text}: {}", detail(text));
        }
        assert_eq!(Query::<AuditQuery>::parse("limit=5").unwrap().limit, Some(5));
    }
}
