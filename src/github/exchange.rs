//! One request and its answer, bounded in time and size.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use reqwest::{
    Client, Method, RequestBuilder, Response,
    header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue, LOCATION},
};
use secrecy::{ExposeSecret, SecretString};
use serde::de::DeserializeOwned;
use serde_json::Value;
use url::Url;

use super::locks::{Hold, Locks};
use crate::{
    domain::{
        automation::github_answer::{Answer, Refusal},
        clock::Clock,
        redaction::REDACTED,
    },
    telemetry::SystemClock,
};

/// The largest answer that is read, in bytes. A page of a hundred issues with the longest bodies would be larger; a list
/// is then read in smaller pages.
const MAX_ANSWER_BYTES: usize = 2 * 1024 * 1024;
/// The version of the API that this client speaks.
const API_VERSION: &str = "2022-11-28";

/// Time limits of one request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GithubLimits {
    /// Until a connection is made. Default 5 s.
    pub connect: Duration,
    /// From the start of the request to the end of the answer's body. Default 30 s.
    pub request: Duration,
}

impl Default for GithubLimits {
    fn default() -> Self {
        Self { connect: Duration::from_secs(5), request: Duration::from_secs(30) }
    }
}

/// The state that all requests of a process share: connections and locks. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Github {
    limits: GithubLimits,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    client: OnceLock<Client>,
    locks: Locks,
}

impl Github {
    pub(crate) fn new(limits: GithubLimits) -> Self {
        Self { limits, shared: Arc::default() }
    }

    /// Waits for the lock of a run, so that two executions of its steps never create at the same time. Cancel-safe.
    pub(crate) async fn hold_run(&self, run: &str) -> Hold {
        self.shared.locks.lock(&format!("run {run}")).await
    }

    pub(super) fn locks(&self) -> &Locks {
        &self.shared.locks
    }

    /// The HTTP client, made at its first use: a process without TLS roots starts, and fails only where it needs them.
    fn client(&self) -> Result<&Client, Refusal> {
        if let Some(client) = self.shared.client.get() {
            return Ok(client);
        }
        let client = Client::builder()
            .user_agent(concat!("lumilink/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(self.limits.connect)
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .no_proxy()
            .build()
            .map_err(|_| Refusal::unusable("the HTTP client cannot be set up: the system has no TLS roots"))?;
        Ok(self.shared.client.get_or_init(|| client))
    }

    /// Starts a request with GitHub's headers and the token.
    ///
    /// # Errors
    /// The token has characters that a header cannot carry, or the system has no TLS roots. Nothing was sent.
    pub(super) fn request(&self, method: Method, url: Url, token: &SecretString) -> Result<Request, Refusal> {
        let origin = url.origin().ascii_serialization();
        let mut bearer = HeaderValue::try_from(format!("Bearer {}", token.expose_secret()))
            .map_err(|_| Refusal::unusable("the token has characters that a header cannot carry"))?;
        bearer.set_sensitive(true);
        let builder = self
            .client()?
            .request(method, url.clone())
            .timeout(self.limits.request)
            .header(AUTHORIZATION, bearer)
            .header(ACCEPT, "application/vnd.github+json")
            .header("X-GitHub-Api-Version", API_VERSION);
        Ok(Request { builder, url, origin, token: token.clone() })
    }
}

/// A request that is ready to be sent.
pub(super) struct Request {
    builder: RequestBuilder,
    url: Url,
    /// Scheme, host and port, for messages.
    origin: String,
    token: SecretString,
}

/// An answer whose body was read to its end.
#[derive(Debug)]
pub(super) struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    body: Vec<u8>,
    /// The address of the request.
    pub url: Url,
    origin: String,
    token: SecretString,
}

impl Request {
    pub(super) fn json(self, body: &Value) -> Self {
        Self { builder: self.builder.json(body), ..self }
    }

    /// Sends the request once.
    ///
    /// # Errors
    /// [`Cause::Unavailable`](crate::domain::automation::github_answer::Cause::Unavailable) without a whole answer:
    /// GitHub may have carried the request out.
    ///
    /// # Cancel safety
    /// A dropped future may have sent the request.
    pub(super) async fn send(self) -> Result<Reply, Refusal> {
        let Self { builder, url, origin, token } = self;
        let lost = |cause: &reqwest::Error| Refusal::unavailable(None, &without_answer(&origin, cause));
        let response = builder.send().await.map_err(|cause| lost(&cause))?;
        let status = response.status().as_u16();
        let headers = response.headers().clone();
        let body = match read_body(response).await {
            Ok(Some(body)) => body,
            Ok(None) => {
                let message = format!("the answer of {origin} is larger than {MAX_ANSWER_BYTES} bytes");
                return Err(Refusal::too_large(status, &message));
            }
            Err(cause) => return Err(lost(&cause)),
        };
        Ok(Reply { status, headers, body, url, origin, token })
    }
}

async fn read_body(mut response: Response) -> Result<Option<Vec<u8>>, reqwest::Error> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > MAX_ANSWER_BYTES {
            return Ok(None);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Some(body))
}

/// Describes a failure by its innermost cause, because the outer ones contain the address.
fn without_answer(origin: &str, error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    let what = if error.is_connect() { "no connection to" } else { "no answer from" };
    match () {
        () if error.is_timeout() => format!("{what} {origin} within the time limit"),
        () if cause.is::<reqwest::Error>() => format!("{what} {origin}"),
        () => format!("{what} {origin}: {cause}"),
    }
}

impl Reply {
    pub(super) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The target of a redirect on the same host.
    pub(super) fn redirect(&self) -> Option<Url> {
        if !matches!(self.status, 301 | 302 | 307 | 308) {
            return None;
        }
        let target = self.url.join(self.header(LOCATION.as_str())?).ok()?;
        (target.origin() == self.url.origin()).then_some(target)
    }

    /// Requests that GitHub permits until the reset.
    pub(super) fn rate_remaining(&self) -> Option<u64> {
        self.header("x-ratelimit-remaining")?.trim().parse().ok()
    }

    /// Classifies an answer without success. A token that the answer repeats is removed.
    pub(super) fn refusal(&self) -> Refusal {
        let body = self.text();
        Refusal::of(&self.answer(&body), SystemClock.now())
    }

    /// Classifies the errors of a successful answer of the GraphQL API; `None` for every other answer.
    pub(super) fn graphql_refusal(&self) -> Option<Refusal> {
        if !self.url.path().ends_with("/graphql") {
            return None;
        }
        let body = self.text();
        Refusal::of_graphql(&self.answer(&body), SystemClock.now())
    }

    fn text(&self) -> String {
        let body = String::from_utf8_lossy(&self.body);
        match self.token.expose_secret() {
            "" => body.into_owned(),
            token => body.replace(token, REDACTED),
        }
    }

    fn answer<'a>(&'a self, body: &'a str) -> Answer<'a> {
        Answer {
            status: self.status,
            retry_after: self.header("retry-after"),
            rate_remaining: self.header("x-ratelimit-remaining"),
            rate_reset: self.header("x-ratelimit-reset"),
            sso: self.header("x-github-sso"),
            accepted_permissions: self.header("x-accepted-github-permissions"),
            body,
        }
    }

    /// Reads the JSON of a successful answer.
    ///
    /// # Errors
    /// Malformed JSON, or a needed member is missing: GitHub carried the request out, and the answer is lost.
    pub(super) fn json<T: DeserializeOwned>(&self) -> Result<T, Refusal> {
        serde_json::from_slice(&self.body).map_err(|_| {
            let message = format!("the answer of {} is malformed", self.origin);
            Refusal::unavailable(Some(self.status), &message)
        })
    }
}
