//! Headers that protect every answer in a browser, errors and refusals included.

use actix_web::{
    Error,
    body::MessageBody,
    dev::{ServiceRequest, ServiceResponse},
    error::InternalError,
    http::header::{self, HeaderMap, HeaderName, HeaderValue},
    middleware::Next,
};

use super::{IsEmbedded, guard::is_documentation};
use crate::contract::browsers::{EVERYWHERE, NO_STORE, POLICY_OF_DATA, POLICY_OF_PAGES};

/// Adds the headers to an answer. Outermost, so that no other part answers without them.
pub(super) async fn protect<B: MessageBody + 'static>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<B>, Error> {
    // The runtime adds its own.
    if request.conn_data::<IsEmbedded>().is_some() {
        return next.call(request).await;
    }
    let is_documentation = is_documentation(request.path());
    match next.call(request).await {
        Ok(mut answer) => {
            let is_page = is_documentation && answer.status().is_success();
            add(answer.headers_mut(), is_page);
            Ok(answer)
        }
        Err(error) => {
            let mut answer = error.as_response_error().error_response();
            add(answer.headers_mut(), false);
            Err(InternalError::from_response(error, answer).into())
        }
    }
}

fn add(headers: &mut HeaderMap, is_page: bool) {
    for (name, value) in EVERYWHERE {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    let policy = if is_page { POLICY_OF_PAGES } else { POLICY_OF_DATA };
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
    if !is_page {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(NO_STORE));
    }
}
