//! One post: bounded in time, without redirects, on a connection of its own.

use std::time::Duration;

use reqwest::{
    Client, Response, Url,
    header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER},
};
use secrecy::SecretString;
use uuid::Uuid;

use super::signature::Signer;
use crate::domain::{clock::Timestamp, redaction::Redacted, text::plain};

/// How much of an answer's body is read. None of it is used, but a receiver whose answer is not taken may see an error.
const MAX_ANSWER_BYTES: usize = 4096;
/// For how long: the status has come, and decides.
const ANSWER_PATIENCE: Duration = Duration::from_millis(500);
/// The most that is kept of what the system says about a connection, in characters.
const MAX_CAUSE_CHARS: usize = 200;

/// Where and how is posted.
#[derive(Debug)]
pub(crate) struct PosterOptions<'a> {
    /// The receiver's address; may hold a user and a password, which are sent as basic authentication.
    pub url: &'a SecretString,
    /// What signs, the newest first.
    pub signer: Signer,
    /// How long one post may take, until the head of the answer.
    pub timeout: Duration,
}

/// Nothing can be posted with these options.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct SetupError(&'static str);

/// Posts to one receiver. Its address and keys cannot be printed.
pub(crate) struct Poster {
    client: Client,
    url: Url,
    signer: Signer,
    timeout: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answered {
    /// The HTTP status, whatever it is.
    pub status: u16,
    /// The header `Retry-After`, as it came.
    pub retry_after: Option<String>,
}

/// Nothing came back, or not in time; the receiver may have the post all the same. The text names no address, is one
/// line and has no secret in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct NoAnswer(String);

impl std::fmt::Debug for Poster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Poster").field("origin", &self.url.origin().ascii_serialization()).finish_non_exhaustive()
    }
}

impl Poster {
    /// Makes one; connects to nothing yet. The address is used as it is, without a proxy.
    ///
    /// # Errors
    /// Where the address is none, or the system has no TLS roots.
    pub(crate) fn new(options: PosterOptions<'_>) -> Result<Self, SetupError> {
        use secrecy::ExposeSecret;
        let url = Url::parse(options.url.expose_secret()).map_err(|_| SetupError("the address is not a URL"))?;
        let client = Client::builder()
            .user_agent(concat!("lumilink/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            // Alerts are rare: a kept connection would be dead by the next one.
            .pool_max_idle_per_host(0)
            .retry(reqwest::retry::never())
            .no_proxy()
            .build()
            .map_err(|_| SetupError("the HTTP client cannot be set up: the system has no TLS roots"))?;
        Ok(Self { client, url, signer: options.signer, timeout: options.timeout })
    }

    /// Posts JSON once, signed under `id` and the time. The same id tells the receiver that it is the same message, so
    /// a retry is safe. A dropped future may have posted.
    ///
    /// # Errors
    /// Where no answer came in time; [`NoAnswer`] says why.
    pub(crate) async fn post(&self, id: Uuid, body: String, now: Timestamp) -> Result<Answered, NoAnswer> {
        let (id, timestamp) = (id.to_string(), now.0.div_euclid(1_000_000));
        let signature = self.signer.sign(&id, timestamp, body.as_bytes());
        let request = self
            .client
            .post(self.url.clone())
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
        // Too slow, too long or broken off: the status stands.
        let _ = tokio::time::timeout(ANSWER_PATIENCE, take_some(response)).await;
        Ok(answered)
    }
}

async fn take_some(mut response: Response) {
    let mut left = MAX_ANSWER_BYTES;
    while let Ok(Some(chunk)) = response.chunk().await
        && chunk.len() < left
    {
        left -= chunk.len();
    }
}

/// The innermost cause: the layers above name the address.
fn no_answer(error: &reqwest::Error) -> NoAnswer {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    let what = if error.is_connect() { "no connection" } else { "no answer" };
    let said = if cause.is::<reqwest::Error>() { String::new() } else { format!(": {cause}") };
    NoAnswer(plain(Redacted::new(&format!("{what}{said}")).as_str(), MAX_CAUSE_CHARS))
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    const SECRET: &str = "correct-horse-battery-staple";

    /// How long a post may take that is answered: what is tested is not how fast.
    const LONG: Duration = Duration::from_secs(30);

    /// Posts to a receiver that answers this and then closes.
    async fn answer(said: &str) -> Result<Answered, NoAnswer> {
        answer_within(Some(said), LONG).await
    }

    /// The same with a patience of one's own; the receiver keeps silent where there is nothing to say.
    async fn answer_within(said: Option<&str>, timeout: Duration) -> Result<Answered, NoAnswer> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://user:passw0rd@{}/path-secret?key=query-secret", listener.local_addr().unwrap());
        let said = said.map(str::to_owned);
        let receiver = tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"{}") {
                assert_ne!(socket.read_buf(&mut request).await.unwrap(), 0);
            }
            match said {
                Some(said) => socket.write_all(said.as_bytes()).await.unwrap(),
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
    async fn a_status_is_an_answer_whatever_follows_it() {
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
    async fn failed_post_is_reported_without_address_and_secret() {
        let told = |answered: Result<Answered, NoAnswer>| answered.unwrap_err().to_string();
        let silent = told(answer_within(None, Duration::from_millis(300)).await);
        assert_eq!(silent, "no answer within 0.3 s");
        let (lost, garbled) = (told(answer("").await), told(answer("no HTTP at all\r\n\r\n").await));
        for said in [&lost, &garbled] {
            assert!(said.starts_with("no answer: ") && !said.contains("secret") && !said.contains("://"), "{said}");
        }
        let url = SecretString::from("http://127.0.0.1:1/path-secret");
        let signer = Signer::new(&[SecretString::from(SECRET)]).unwrap();
        let poster = Poster::new(PosterOptions { url: &url, signer, timeout: LONG }).unwrap();
        let refused = told(poster.post(Uuid::nil(), String::new(), Timestamp(0)).await);
        assert!(refused.starts_with("no connection: ") && !refused.contains("secret"), "{refused}");
    }
}
