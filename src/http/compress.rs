//! Compresses long answers with gzip for clients that accept it.
//!
//! A compressed text that contains a secret beside text of an attacker can reveal the secret by its length (BREACH). The
//! attack needs a victim's browser that sends its credentials with requests of a foreign page. This API takes a token
//! from a header, which a foreign page cannot send, uses no cookies and refuses foreign origins; and answers with
//! `Cache-Control: no-store`, which mark credentials such as tickets, are never compressed.

use std::{io::Write, sync::Arc};

use actix_web::{
    Error, HttpResponse,
    body::{BodySize, BoxBody, MessageBody},
    dev::{ServiceRequest, ServiceResponse},
    http::header::{self, HeaderMap, HeaderValue},
    middleware::Next,
    web,
};
use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use tokio::sync::Semaphore;

use super::{HttpState, IsEmbedded};

/// The shortest body that is compressed, in bytes: below, the saving is less than a packet.
const MIN_BYTES: u64 = 1024;
/// The longest body that is compressed, in bytes: above the size of every page and document of the API.
const MAX_BYTES: u64 = 8 << 20;
/// The longest body that is compressed on the thread of the request, in bytes: less than a millisecond. Sessions live on
/// these threads, so longer ones are compressed on a thread for blocking work.
const MAX_INLINE_BYTES: usize = 32 * 1024;

/// Long bodies that are compressed at once. Beyond, answers are sent as they are.
#[derive(Debug, Clone)]
pub(crate) struct Compressors(Arc<Semaphore>);

impl Compressors {
    /// At most half of the processors compress.
    pub(crate) fn new() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self(Arc::new(Semaphore::new((cores / 2).max(1))))
    }

    /// The compressed body; `None` if all compressors are busy, or it would not be shorter.
    async fn compress(&self, body: Bytes) -> Option<Vec<u8>> {
        let length = body.len();
        let compressed = if length <= MAX_INLINE_BYTES {
            gzip(&body)
        } else {
            let permit = self.0.clone().try_acquire_owned().ok()?;
            web::block(move || {
                let _permit = permit;
                gzip(&body)
            })
            .await
            .ok()?
        };
        compressed.filter(|compressed| compressed.len() < length)
    }
}

fn gzip(body: &[u8]) -> Option<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 4), Compression::fast());
    encoder.write_all(body).ok()?;
    encoder.finish().ok()
}

/// Compresses the answer to a request, where that is of use.
pub(crate) async fn compress<B: MessageBody + 'static>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    if request.conn_data::<IsEmbedded>().is_some() {
        return Ok(next.call(request).await?.map_into_boxed_body());
    }
    let accepts = accepts_gzip(request.headers());
    let compressors = request.app_data::<web::Data<HttpState>>().map(|state| state.compressors.clone());
    let mut answer = next.call(request).await?.map_into_boxed_body();
    if !is_compressible(answer.response()) {
        return Ok(answer);
    }
    answer.headers_mut().append(header::VARY, HeaderValue::from_static("accept-encoding"));
    let Some(compressors) = compressors.filter(|_| accepts) else { return Ok(answer) };
    let (request, response) = answer.into_parts();
    let (mut response, body) = response.into_parts();
    let body = match body.try_into_bytes() {
        Ok(body) => body,
        Err(body) => return Ok(ServiceResponse::new(request, response.set_body(body))),
    };
    let body = match compressors.compress(body.clone()).await {
        Some(compressed) => {
            response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            compressed.into()
        }
        None => body,
    };
    Ok(ServiceResponse::new(request, response.set_body(BoxBody::new(body))))
}

/// True for a complete text of some length without credentials. Streams have no length.
fn is_compressible(response: &HttpResponse) -> bool {
    let headers = response.headers();
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok()).unwrap_or_default();
    let BodySize::Sized(length) = response.body().size() else { return false };
    (MIN_BYTES..=MAX_BYTES).contains(&length)
        && is_text(text(header::CONTENT_TYPE))
        && !headers.contains_key(header::CONTENT_ENCODING)
        && !text(header::CACHE_CONTROL).contains("no-store")
}

fn is_text(media_type: &str) -> bool {
    let media_type = media_type.split(';').next().unwrap_or_default().trim();
    let is_stream = media_type == "text/event-stream";
    !is_stream
        && (media_type.starts_with("text/")
            || media_type.ends_with("json")
            || ["application/javascript", "image/svg+xml"].contains(&media_type))
}

/// True if a client accepts gzip (RFC 9110, 12.5.3). A weight that cannot be read counts as 0.
fn accepts_gzip(headers: &HeaderMap) -> bool {
    let (mut gzip, mut any) = (None, None);
    let values = headers.get_all(header::ACCEPT_ENCODING).filter_map(|value| value.to_str().ok());
    for entry in values.flat_map(|value| value.split(',')) {
        let mut parts = entry.split(';').map(str::trim);
        let coding = parts.next().unwrap_or_default();
        let is_accepted = parts.all(|part| match part.split_once('=') {
            Some((name, weight)) if name.trim().eq_ignore_ascii_case("q") => {
                weight.trim().parse::<f32>().is_ok_and(|weight| weight > 0.0 && weight <= 1.0)
            }
            _ => true,
        });
        if coding.eq_ignore_ascii_case("gzip") || coding.eq_ignore_ascii_case("x-gzip") {
            gzip = Some(is_accepted);
        } else if coding == "*" {
            any = Some(is_accepted);
        }
    }
    gzip.or(any).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;

    fn accepts(values: &[&str]) -> bool {
        let mut request = TestRequest::get();
        for value in values {
            request = request.append_header((header::ACCEPT_ENCODING, *value));
        }
        accepts_gzip(request.to_http_request().headers())
    }

    #[test]
    fn gzip_is_used_only_where_the_client_accepts_it() {
        for yes in
            ["gzip", "GZIP", "x-gzip", "br, gzip;q=0.1", "*", "identity;q=0, *;q=0.5", "deflate , gzip ; q=1.0"]
        {
            assert!(accepts(&[yes]), "{yes}");
        }
        for no in [
            "",
            "br",
            "identity",
            "gzip;q=0",
            "gzip;q=0.000",
            "*;q=0",
            "gzip;q=0, *",
            "gzipped",
            "gzip;q=x",
            "gzip;q=-1",
            "gzip;q=NaN",
            "gzip;q=inf",
            ";;;,,,",
            "q=1",
        ] {
            assert!(!accepts(&[no]), "{no}");
        }
        assert!(accepts(&["br", "gzip"]) && !accepts(&[]));
        assert!(accepts(&[&format!("{}gzip", "x,".repeat(5000))]), "a long list");
    }

    #[test]
    fn streams_credentials_and_short_answers_are_not_compressed() {
        let of = |media_type: &str, body: usize| {
            let mut answer = HttpResponse::Ok();
            answer.content_type(media_type).body("x".repeat(body))
        };
        for text in [
            "application/json",
            "application/problem+json",
            "text/plain; version=0.0.4",
            "text/csv",
            "application/javascript",
        ] {
            assert!(is_compressible(&of(text, 1024)) && !is_compressible(&of(text, 1023)), "{text}");
        }
        assert!(!is_compressible(&of("text/event-stream", 5000)) && !is_compressible(&of("image/png", 5000)));
        let mut secret = of("application/json", 5000);
        secret.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        assert!(!is_compressible(&secret));
    }
}
