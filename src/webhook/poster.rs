//! A single post: bounded in time, without redirects, on its own connection.

use std::time::Duration;

use reqwest::{
    Client, Response, Url,
    header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER},
};
use secrecy::{ExposeSecret, SecretString};
use uuid::Uuid;

use super::signature::Signer;
use crate::{
    config::Reloadable,
    domain::{clock::Timestamp, redaction::Redacted, text::plain},
};

/// Bytes read of an answer's body. They are not used, but a receiver whose answer is not read may log an error.
const MAX_ANSWER_BYTES: usize = 4096;
/// Time limit for reading the body; the status, which decides, has arrived before.
const BODY_TIMEOUT: Duration = Duration::from_millis(500);
/// Characters kept of the system's description of a connection failure.
const MAX_CAUSE_CHARS: usize = 200;

/// The receiver of posts, their signature and their time limit.
#[derive(Debug)]
pub(crate) struct PosterOptions<'a> {
    /// The receiver's URL; may hold a user and a password, which are sent as basic authentication.
    pub url: &'a SecretString,
    pub signer: Signer,
    /// Time limit of one post until the head of the answer.
    pub timeout: Duration,
}

/// The options are not usable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct SetupError(&'static str);

/// The address of a receiver, which may hold secrets.
pub(crate) struct Receiver(Url);

impl Receiver {
    /// # Errors
    /// The address is malformed.
    pub(crate) fn parse(url: &SecretString) -> Result<Self, SetupError> {
        Url::parse(url.expose_secret()).map(Self).map_err(|_| SetupError("the address is not a URL"))
    }
}

/// Posts to one receiver. Its address and keys are never printed: `Debug` shows only the origin.
pub(crate) struct Poster {
    client: Client,
    receiver: Reloadable<Receiver>,
    signer: Reloadable<Signer>,
    timeout: Duration,
}

/// An answer of the receiver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answered {
    /// The HTTP status: of success, redirect or failure.
    pub status: u16,
    /// The value of the header `Retry-After`, unparsed.
    pub retry_after: Option<String>,
}

/// No answer arrived in time; the receiver may have the post nevertheless. The text is a single line without
/// addresses and secrets.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct NoAnswer(String);

impl std::fmt::Debug for Poster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Poster")
            .field("origin", &self.receiver.get().0.origin().ascii_serialization())
            .finish_non_exhaustive()
    }
}

impl Poster {
    /// Creates a poster without connecting. The address is used directly, without a proxy.
    ///
    /// # Errors
    /// The address is malformed, or the system has no TLS roots. A retry does not help.
    pub(crate) fn new(options: PosterOptions<'_>) -> Result<Self, SetupError> {
        let receiver = Reloadable::new(Receiver::parse(options.url)?);
        let client = Client::builder()
            .user_agent(concat!("lumilink/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            // Alerts are rare: an idle connection would be closed before the next one.
            .pool_max_idle_per_host(0)
            .retry(reqwest::retry::never())
            .no_proxy()
            .build()
            .map_err(|_| SetupError("the HTTP client cannot be set up: the system has no TLS roots"))?;
        Ok(Self { client, receiver, signer: Reloadable::new(options.signer), timeout: options.timeout })
    }

    /// Signs later posts with other secrets.
    pub(crate) fn sign_with(&self, signer: Signer) {
        self.signer.set(signer);
    }

    /// Sends later posts to another URL.
    pub(crate) fn post_to(&self, receiver: Receiver) {
        self.receiver.set(receiver);
    }

    /// Posts JSON once, signed with `id` and the time. Receivers deduplicate by id.
    ///
    /// # Errors
    /// [`NoAnswer`], with the cause. A retry with the same id is safe.
    ///
    /// # Cancel safety
    /// A dropped future may have posted; a retry with the same id is safe.
    pub(crate) async fn post(&self, id: Uuid, body: String, now: Timestamp) -> Result<Answered, NoAnswer> {
        let (id, timestamp) = (id.to_string(), now.0.div_euclid(1_000_000));
        let signature = self.signer.get().sign(&id, timestamp, body.as_bytes());
        let request = self
            .client
            .post(self.receiver.get().0.clone())
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .header("webhook-id", id)
            .header("webhook-timestamp", timestamp)
            .header("webhook-signature", signature)
            .body(body);
        let response = match tokio::time::timeout(self.timeout, request.send()).await {
            Ok(Ok(response)) => response,
            Ok(Err(cause)) => return Err(no_answer(&cause)),
            Err(_) => return Err(NoAnswer(format!("no answer within {} s", self.timeout.as_secs_f64()))),
        };
        let answered = Answered {
            status: response.status().as_u16(),
            retry_after: response.headers().get(RETRY_AFTER).and_then(|it| it.to_str().ok()).map(str::to_owned),
        };
        // A body that is too slow, too long or incomplete does not change the status.
        let _ = tokio::time::timeout(BODY_TIMEOUT, drain_body(response)).await;
        Ok(answered)
    }
}

async fn drain_body(mut response: Response) {
    let mut left = MAX_ANSWER_BYTES;
    while let Ok(Some(chunk)) = response.chunk().await
        && chunk.len() < left
    {
        left -= chunk.len();
    }
}

/// Describes the innermost cause, because the outer errors contain the address.
fn no_answer(error: &reqwest::Error) -> NoAnswer {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    let what = if error.is_connect() { "no connection" } else { "no answer" };
    let description = if cause.is::<reqwest::Error>() { String::new() } else { format!(": {cause}") };
    NoAnswer(plain(Redacted::new(&format!("{what}{description}")).as_str(), MAX_CAUSE_CHARS))
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    const SECRET: &str = "correct-horse-battery-staple";

    /// Time limit of posts that are answered; these tests do not measure speed.
    const LONG: Duration = Duration::from_secs(30);

    /// Posts to a receiver that sends this answer and closes the connection.
    async fn answer(response: &str) -> Result<Answered, NoAnswer> {
        answer_within(Some(response), LONG).await
    }

    /// Posts with a time limit to a receiver that sends this answer; `None`: the receiver stays silent.
    async fn answer_within(response: Option<&str>, timeout: Duration) -> Result<Answered, NoAnswer> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://user:passw0rd@{}/path-secret?key=query-secret", listener.local_addr().unwrap());
        let response = response.map(str::to_owned);
        let receiver = tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"{}") {
                assert_ne!(socket.read_buf(&mut request).await.unwrap(), 0);
            }
            match response {
                Some(response) => socket.write_all(response.as_bytes()).await.unwrap(),
                None => std::future::pending().await,
            }
            String::from_utf8(request).unwrap()
        });
        let signer = Signer::new(&[SecretString::from(SECRET)]).unwrap();
        let options = PosterOptions { url: &url.into(), signer, timeout };
        let poster = Poster::new(options).unwrap();
        assert!(!format!("{poster:?}").contains("secret") && !format!("{poster:?}").contains("passw0rd"));
        let answered = poster.post(Uuid::nil(), "{}".to_owned(), Timestamp(1_614_265_330_999_999)).await;
        if answered.is_err() {
            receiver.abort();
        }
        if let Ok(request) = receiver.await {
            let head = request.to_lowercase();
            assert!(head.starts_with("post /path-secret?key=query-secret http/1.1\r\n"), "{request}");
            assert!(head.contains(&format!("\r\nwebhook-id: {}\r\n", Uuid::nil())), "{request}");
            assert!(head.contains("\r\nwebhook-timestamp: 1614265330\r\n"), "{request}");
            assert!(head.contains("\r\ncontent-type: application/json\r\n"), "{request}");
            assert!(head.contains("\r\nauthorization: basic ") && head.contains("\r\nuser-agent: lumilink/"));
            assert!(!request.contains(SECRET));
        }
        answered
    }

    #[tokio::test]
    async fn status_counts_as_an_answer_with_any_body() {
        let got =
            |status, retry_after: Option<&str>| Ok(Answered { status, retry_after: retry_after.map(str::to_owned) });
        assert_eq!(answer("HTTP/1.1 204 No Content\r\n\r\n").await, got(204, None));
        let redirect = "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n";
        assert_eq!(answer(redirect).await, got(302, None));
        let busy = "HTTP/1.1 429 Too Many\r\nRetry-After: 7\r\nContent-Length: 0\r\n\r\n";
        assert_eq!(answer(busy).await, got(429, Some("7")));
        let huge = format!("HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n{}", "x".repeat(100_000));
        assert_eq!(answer(&huge).await, got(200, None));
        assert_eq!(answer("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf").await, got(200, None));
    }

    #[tokio::test]
    async fn error_text_has_no_address_and_no_secret() {
        let error_text = |answered: Result<Answered, NoAnswer>| answered.unwrap_err().to_string();
        let silent = error_text(answer_within(None, Duration::from_millis(300)).await);
        assert_eq!(silent, "no answer within 0.3 s");
        let (lost, garbled) = (error_text(answer("").await), error_text(answer("no HTTP at all\r\n\r\n").await));
        for text in [&lost, &garbled] {
            assert!(text.starts_with("no answer: ") && !text.contains("secret") && !text.contains("://"), "{text}");
        }
        let url = SecretString::from("http://127.0.0.1:1/path-secret");
        let signer = Signer::new(&[SecretString::from(SECRET)]).unwrap();
        let poster = Poster::new(PosterOptions { url: &url, signer, timeout: LONG }).unwrap();
        let refused = error_text(poster.post(Uuid::nil(), String::new(), Timestamp(0)).await);
        assert!(refused.starts_with("no connection: ") && !refused.contains("secret"), "{refused}");
    }
}
