//! `/process-prompt`: turns over HTTP.

use std::{convert::Infallible, time::Duration};

use actix_web::{
    HttpRequest, HttpResponse,
    http::header::{self, ContentType},
    web,
};
use bytes::Bytes;
use futures_util::{Stream, stream};
use serde::Deserialize;

use super::{
    Fallback, Wish,
    lines::{Ended, Reader, Told},
};
use crate::{
    contract::fallback::{LineFailure, NDJSON, ProcessPrompt, TurnCancelled, TurnLine},
    domain::{
        ids::PromptId,
        turn::outcome::{ErrorCode, Failure},
    },
    runtime::reply::{answer, answer_failure, read},
};

/// How often a silent turn says that it runs. A peer that is gone is noticed by it as well.
const ALIVE_EVERY: Duration = Duration::from_secs(5);

/// `POST /process-prompt`
pub async fn process(request: HttpRequest, body: web::Payload, fallback: web::Data<Fallback>) -> HttpResponse {
    let fallback = fallback.into_inner();
    let limit = fallback.settings.body_bytes;
    let read = read::<ProcessPrompt>(&request, body, limit, "a request for a turn ([limits] body_bytes)").await;
    // A repeat gets everything that is held.
    let wish = wish(&request, Some(0));
    let begun = match read {
        Ok(asked) => fallback.begin(asked, wish).await,
        Err(failure) => Err(failure),
    };
    respond(begun)
}

#[derive(Deserialize)]
struct Query {
    after: Option<u64>,
}

/// `GET /process-prompt/{promptId}`
pub async fn join(request: HttpRequest, path: web::Path<String>, fallback: web::Data<Fallback>) -> HttpResponse {
    let joined = match (named(&path), web::Query::<Query>::from_query(request.query_string())) {
        (Err(failure), _) => Err(failure),
        (_, Err(cause)) => Err(Failure::new(ErrorCode::InvalidRequest, cause.to_string())),
        (Ok(prompt_id), Ok(query)) => fallback.join(prompt_id, wish(&request, query.after)).await,
    };
    respond(joined)
}

/// `DELETE /process-prompt/{promptId}`
pub async fn cancel(path: web::Path<String>, fallback: web::Data<Fallback>) -> HttpResponse {
    answer(named(&path).map(|prompt_id| TurnCancelled { cancelled: fallback.cancel(prompt_id) }))
}

fn named(path: &str) -> Result<PromptId, Failure> {
    path.parse().map_err(|_| Failure::new(ErrorCode::NotFound, "no such prompt: its id is a UUID"))
}

fn wish(request: &HttpRequest, after: Option<u64>) -> Wish {
    let accepts = request.headers().get_all(header::ACCEPT).filter_map(|accepted| accepted.to_str().ok());
    if accepts.into_iter().any(|accepted| accepted.contains(NDJSON)) { Wish::Stream { after } } else { Wish::Result }
}

fn respond(begun: Result<Reader, Failure>) -> HttpResponse {
    match begun {
        Ok(reader) if reader.is_stream() => HttpResponse::Ok().content_type(NDJSON).streaming(told(reader)),
        Ok(reader) => HttpResponse::Ok().content_type(ContentType::json()).streaming(told(reader)),
        Err(failure) => answer_failure(&failure),
    }
}

/// The body: what the turn tells as it comes, then its end.
fn told(reader: Reader) -> impl Stream<Item = Result<Bytes, Infallible>> {
    stream::unfold(Some(reader), |reader| async {
        let mut reader = reader?;
        let is_stream = reader.is_stream();
        match tokio::time::timeout(ALIVE_EVERY, reader.next()).await {
            // JSON may have white space ahead of it.
            Err(_) if !is_stream => Some((Ok(Bytes::from_static(b"\n")), Some(reader))),
            Err(_) => Some((Ok(as_line(&TurnLine { alive: true, ..TurnLine::default() })), Some(reader))),
            Ok(Told::Lines(lines)) => Some((Ok(lines), Some(reader))),
            Ok(Told::Ended(ended)) => Some((Ok(last_words(ended, is_stream)), None)),
        }
    })
}

fn last_words(ended: Ended, is_stream: bool) -> Bytes {
    let (result, failure) = match ended {
        Ended::WithResult { result, failure } => (Some(result), failure),
        Ended::Died(failure) => (None, Some(failure)),
        // Its readers were told before there was a body.
        Ended::Refused(failure) => (None, Some(failure)),
    };
    if !is_stream {
        return result.map_or_else(Bytes::new, |result| Bytes::from(result.get().to_owned()));
    }
    let failure =
        failure.map(|failure| LineFailure { code: failure.code.as_str().to_owned(), detail: failure.detail });
    let result = result.map(|result| (*result).to_owned());
    as_line(&TurnLine { result, failure, ..TurnLine::default() })
}

fn as_line(line: &TurnLine) -> Bytes {
    let mut text = serde_json::to_vec(line).unwrap_or_default();
    text.push(b'\n');
    text.into()
}
