//! HTTP clients of a runtime, and the meaning of its error answers.

use std::{io, time::Duration};

use bytes::Bytes;
use futures_util::{
    StreamExt,
    stream::{self, BoxStream},
};
use reqwest::{Method, Url, header};
use secrecy::ExposeSecret;
use serde::{Serialize, de::DeserializeOwned};
use uuid::Uuid;

use crate::{
    config::ReloadableSecret,
    contract::{
        fallback::{NDJSON, PROCESS_PROMPT, TurnCancelled},
        keep_alive::CLIENT_KEEP_ALIVE,
        problem::Problem,
        runtime::{
            AgentProcesses, CountProcesses, DiffWorkspace, MeasureWorkspace, MeasuredWorkspace, PrepareLine,
            PrepareWorkspace, PreparedWorkspace, RemoveTenant, RemoveWorkspace, RemovedHomes, RemovedWorkspace,
            RuntimeStatus, WorkspaceDiff,
        },
        steps::{AUTOMATION, StepOrder},
    },
    domain::{
        automation::step::StepReport,
        ids::PromptId,
        session::preparation::CloneProgress,
        turn::outcome::{ErrorCode, Failure},
    },
    transport::request_id::{self, X_REQUEST_ID},
};

/// Sends HTTP requests to one runtime. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct RuntimeClient {
    client: reqwest::Client,
    base: Url,
    token: ReloadableSecret,
    cookies: Option<String>,
}

/// Time limit for one cancel request.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Connections {
    /// Connections are kept and reused: for requests that can be repeated.
    Reused,
    /// Each request opens its own connection. On a reused one, a connection that the peer was just closing cannot be
    /// distinguished from one that broke after it had carried the request.
    OneEach,
}

impl RuntimeClient {
    /// Creates a client of the runtime whose ACP endpoint is `acp_url` (`ws` or `wss`). Connecting takes at most 5 s;
    /// redirects are not followed and no proxy is used.
    ///
    /// # Errors
    /// `acp_url` is malformed or has another scheme.
    pub(crate) fn new(acp_url: &str, token: ReloadableSecret, connections: Connections) -> Result<Self, Failure> {
        let bad =
            |cause: String| Failure::new(ErrorCode::RuntimeUnavailable, format!("runtime.url {acp_url}: {cause}"));
        let http = match acp_url.strip_prefix("ws") {
            Some(rest) => format!("http{rest}"),
            None => return Err(bad("must begin with ws:// or wss://".into())),
        };
        let base = Url::parse(&http).and_then(|url| url.join("/")).map_err(|cause| bad(cause.to_string()))?;
        let mut client = reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(5))
            .pool_idle_timeout(CLIENT_KEEP_ALIVE)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy();
        if connections == Connections::OneEach {
            client = client.pool_max_idle_per_host(0).retry(reqwest::retry::never());
        }
        let client = client.build().map_err(|cause| bad(cause.to_string()))?;
        Ok(Self { client, base, token, cookies: None })
    }

    /// Sends these cookies with every request; they keep a session on its replica.
    pub(crate) fn with_cookies(self, cookies: Option<String>) -> Self {
        Self { cookies, ..self }
    }

    /// Starts a request with the token and the cookies. `path` has no leading slash and may have a query.
    pub(crate) fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let mut url = self.base.clone();
        let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
        url.set_path(path);
        url.set_query(query);
        let mut request = self.client.request(method, url);
        if let Some(id) = request_id::current() {
            request = request.header(X_REQUEST_ID, id);
        }
        if let Some(cookies) = &self.cookies {
            request = request.header(header::COOKIE, cookies);
        }
        match self.token.get().as_ref() {
            Some(token) => request.bearer_auth(token.expose_secret()),
            None => request,
        }
    }

    /// Sends one cancel request, for at most 2 s. Returns true if the runtime is now ending the turn.
    pub(crate) async fn cancel_is_accepted(&self, prompt_id: PromptId) -> bool {
        let path = format!("{}/{prompt_id}", PROCESS_PROMPT.trim_start_matches('/'));
        let request = self.request(Method::DELETE, &path).timeout(CANCEL_TIMEOUT);
        match request.send().await {
            Ok(response) => read_answer::<TurnCancelled>(response).await.is_some_and(|answer| answer.cancelled),
            Err(_) => false,
        }
    }

    /// Converts a failed request to [`ErrorCode::RuntimeUnavailable`].
    pub(crate) fn unavailable(&self, cause: &reqwest::Error) -> Failure {
        let detail = format!("the runtime at {} does not answer: {}", self.base, root_cause(cause));
        Failure::new(ErrorCode::RuntimeUnavailable, detail)
    }

    /// Converts an unsuccessful answer to a failure. An answer that is not a problem document becomes
    /// [`ErrorCode::RuntimeUnavailable`].
    pub(crate) async fn refusal(&self, response: reqwest::Response) -> Failure {
        let status = response.status();
        match read_answer::<Problem>(response).await {
            Some(problem) => failure_of(&problem),
            None => {
                let detail = format!("the runtime at {} answered {status}", self.base);
                Failure::new(ErrorCode::RuntimeUnavailable, detail)
            }
        }
    }
}

/// Largest problem document and answer to a cancel that are read, in bytes; they hold some sentences.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// Reads a short answer; `None` if it is larger than [`MAX_ANSWER_BYTES`], malformed or interrupted.
async fn read_answer<T: DeserializeOwned>(mut response: reqwest::Response) -> Option<T> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.ok()? {
        if body.len() + chunk.len() > MAX_ANSWER_BYTES {
            return None;
        }
        body.extend_from_slice(&chunk);
    }
    serde_json::from_slice(&body).ok()
}

fn failure_of(problem: &Problem) -> Failure {
    match ErrorCode::from_name(&problem.code) {
        // The runtime expects another token: an error of the configuration, not of the caller.
        Some(ErrorCode::Unauthorized) | None => Failure::new(
            ErrorCode::RuntimeUnavailable,
            format!("the runtime refused ({}): {}", problem.code, problem.detail),
        ),
        Some(code) => {
            // The advice is added again when this failure becomes an answer of this service.
            let detail = problem.detail.trim_end_matches(code.advice()).trim_end().to_owned();
            Failure::new(code, detail)
        }
    }
}

/// Returns the innermost cause, which is the most informative.
pub(crate) fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// Queries a runtime about workspaces and health. Cheap to clone; connections are kept and reused.
#[derive(Debug, Clone)]
pub(crate) struct WorkspaceClient {
    client: RuntimeClient,
    prepare_timeout: Duration,
}

/// A file of a kept commit.
pub(crate) struct KeptFile {
    /// Its size, if the runtime stated it.
    pub bytes: Option<u64>,
    pub chunks: BoxStream<'static, io::Result<Bytes>>,
}

/// Limit for requests that only read. A diff of a large checkout takes several seconds.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// Limit for the deletion of all files of a folder; a million of them take about a minute.
const ERASE_TIMEOUT: Duration = Duration::from_secs(600);
/// Limit of a step of automation: the clone limit of large repositories, and pauses of up to `github.max_wait_s`.
const STEP_TIMEOUT: Duration = Duration::from_secs(900);
/// Attempts of a request whose connection closes without an answer. Each failure removes one connection from the pool.
const TRIES: u32 = 3;
/// Added to the limit of a clone, so that the runtime's specific error arrives before this side times out.
const PREPARE_MARGIN: Duration = Duration::from_secs(15);

impl WorkspaceClient {
    /// Creates a client of the runtime whose ACP endpoint is `acp_url` (`ws` or `wss`). `clone_timeout` is the
    /// runtime's own limit for a clone.
    ///
    /// # Errors
    /// `acp_url` is malformed or has another scheme.
    pub(crate) fn new(acp_url: &str, token: ReloadableSecret, clone_timeout: Duration) -> Result<Self, Failure> {
        Ok(Self {
            client: RuntimeClient::new(acp_url, token, Connections::Reused)?,
            prepare_timeout: clone_timeout + PREPARE_MARGIN,
        })
    }

    /// Creates a workspace unless it exists, and hands over the progress of its clone. Takes at most the clone limit plus
    /// 15 s.
    ///
    /// # Errors
    /// The failure of the runtime, or [`ErrorCode::RuntimeUnavailable`]. Idempotent, so a retry is safe.
    ///
    /// # Cancel safety
    /// A dropped future ends the clone about a second later, and leaves no incomplete workspace.
    pub(crate) async fn prepare(
        &self,
        request: &PrepareWorkspace,
        on_progress: &(dyn Fn(CloneProgress) + Sync),
    ) -> Result<PreparedWorkspace, Failure> {
        let unavailable = |cause: reqwest::Error| self.client.unavailable(&cause);
        let post = self.client.request(Method::POST, "workspace/prepare").json(request);
        let post = post.header(header::ACCEPT, format!("{NDJSON}, application/json")).timeout(self.prepare_timeout);
        let mut response = self.send_again(post).await.map_err(unavailable)?;
        if !response.status().is_success() {
            return Err(self.client.refusal(response).await);
        }
        let kind = response.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        if !kind.is_some_and(|kind| kind.starts_with(NDJSON)) {
            // A runtime of an earlier version.
            return response.json().await.map_err(unavailable);
        }
        let mut held = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(unavailable)? {
            held.extend_from_slice(&chunk);
            while let Some(end) = memchr::memchr(b'\n', &held) {
                let line: Vec<u8> = held.drain(..=end).collect();
                if line.trim_ascii().is_empty() {
                    continue;
                }
                match serde_json::from_slice(&line) {
                    Ok(PrepareLine::Progress(progress)) => on_progress(progress),
                    Ok(PrepareLine::Prepared(prepared)) => return Ok(prepared),
                    Ok(PrepareLine::Failed(problem)) => return Err(failure_of(&problem)),
                    // Of a newer version.
                    Err(cause) => tracing::debug!(marker = "[ACP]", %cause, "line of a preparation was ignored"),
                }
            }
            if held.len() > MAX_ANSWER_BYTES {
                break;
            }
        }
        let detail = format!("the runtime at {} did not say how the preparation ended", self.client.base);
        Err(Failure::new(ErrorCode::RuntimeUnavailable, detail))
    }

    /// Counts the processes below the agent of a connection that started within `age` and still run. Takes at most
    /// 60 s. Cancel-safe.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`] for a connection that the runtime does not hold, or [`ErrorCode::RuntimeUnavailable`].
    pub(crate) async fn processes(&self, connection_id: Uuid, age: Duration) -> Result<u64, Failure> {
        let within_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        let counted: AgentProcesses =
            self.post("agent/processes", &CountProcesses { connection_id, within_ms }, READ_TIMEOUT).await?;
        Ok(counted.processes)
    }

    /// Returns the changes in a workspace since it was prepared. Takes at most 60 s.
    ///
    /// # Errors
    /// The failure of the runtime, or [`ErrorCode::RuntimeUnavailable`]. A retry is safe.
    pub(crate) async fn diff(&self, request: &DiffWorkspace) -> Result<WorkspaceDiff, Failure> {
        self.post("workspace/diff", request, READ_TIMEOUT).await
    }

    /// Carries out a step of automation. Takes at most 15 minutes: a push of a large change, with the pauses that GitHub asks
    /// for.
    ///
    /// # Errors
    /// The failure of the runtime, or [`ErrorCode::RuntimeUnavailable`]; a failed step is a report. Steps are idempotent, so
    /// a retry is safe.
    pub(crate) async fn automate(&self, run: Uuid, order: &StepOrder) -> Result<StepReport, Failure> {
        let path = format!("{}/{run}/{}", AUTOMATION.trim_start_matches('/'), order.input.name().as_str());
        self.post(&path, order, STEP_TIMEOUT).await
    }

    /// Removes the kept commit of a run. Takes at most 60 s.
    ///
    /// # Errors
    /// The failure of the runtime, or [`ErrorCode::RuntimeUnavailable`]. Idempotent, so a retry is safe.
    pub(crate) async fn discard_rescue(&self, run: Uuid) -> Result<(), Failure> {
        let path = format!("{}/{run}/rescue", AUTOMATION.trim_start_matches('/'));
        let request = self.client.request(Method::DELETE, &path).timeout(READ_TIMEOUT);
        let response = request.send().await.map_err(|cause| self.client.unavailable(&cause))?;
        if response.status().is_success() { Ok(()) } else { Err(self.client.refusal(response).await) }
    }

    /// Opens the kept commit of a run, `bundle` or `patch`. The answer begins within 60 s, and each chunk follows within
    /// 60 s; the whole takes as long as its reader.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`] if the runtime has none, or its other failure, or [`ErrorCode::RuntimeUnavailable`]. A retry
    /// is safe.
    pub(crate) async fn rescue(&self, run: Uuid, format: &str) -> Result<KeptFile, Failure> {
        let path = format!("{}/{run}/rescue/{format}", AUTOMATION.trim_start_matches('/'));
        let silent = || {
            let detail = format!("the runtime did not send the kept commit within {} s", READ_TIMEOUT.as_secs());
            Failure::new(ErrorCode::RuntimeUnavailable, detail)
        };
        let sent = tokio::time::timeout(READ_TIMEOUT, self.send_again(self.client.request(Method::GET, &path))).await;
        let response = sent.map_err(|_| silent())?.map_err(|cause| self.client.unavailable(&cause))?;
        if !response.status().is_success() {
            return Err(self.client.refusal(response).await);
        }
        let bytes = response.content_length();
        // One chunk at a time: nothing is read ahead of the reader but the buffer of the connection.
        let chunks = stream::try_unfold(response, |mut response| async move {
            let chunk = tokio::time::timeout(READ_TIMEOUT, response.chunk()).await.map_err(io::Error::other)?;
            Ok(chunk.map_err(io::Error::other)?.map(|chunk| (chunk, response)))
        });
        Ok(KeptFile { bytes, chunks: chunks.boxed() })
    }

    /// Measures a workspace on disk. Takes at most 60 s.
    ///
    /// # Errors
    /// The failure of the runtime, or [`ErrorCode::RuntimeUnavailable`]. A retry is safe.
    pub(crate) async fn measure(&self, request: &MeasureWorkspace) -> Result<MeasuredWorkspace, Failure> {
        self.post("workspace/measure", request, READ_TIMEOUT).await
    }

    /// Removes the folder of a workspace. Takes at most 60 s, and up to 10 minutes to erase it.
    ///
    /// # Errors
    /// The failure of the runtime, or [`ErrorCode::RuntimeUnavailable`]. Idempotent, so a retry is safe.
    pub(crate) async fn remove(&self, request: &RemoveWorkspace) -> Result<RemovedWorkspace, Failure> {
        let limit = if request.erase { ERASE_TIMEOUT } else { READ_TIMEOUT };
        self.post("workspace/remove", request, limit).await
    }

    /// Removes the private home folders of a tenant. Takes at most 10 minutes.
    ///
    /// # Errors
    /// The failure of the runtime, or [`ErrorCode::RuntimeUnavailable`]. Idempotent, so a retry is safe.
    pub(crate) async fn remove_homes(&self, request: &RemoveTenant) -> Result<u64, Failure> {
        Ok(self.post::<RemovedHomes>("tenant/remove", request, ERASE_TIMEOUT).await?.homes)
    }

    /// Returns the runtime's status. Takes at most 2 s.
    ///
    /// # Errors
    /// [`ErrorCode::RuntimeUnavailable`] if the runtime does not answer in time. A retry is safe.
    pub(crate) async fn status(&self) -> Result<RuntimeStatus, Failure> {
        // Health probes depend on this answer and have short timeouts of their own.
        self.send(self.client.request(Method::GET, "status").timeout(Duration::from_secs(2))).await
    }

    /// Cancels a turn over the fallback; false if the runtime runs no such turn. Takes at most 2 s.
    ///
    /// # Errors
    /// The failure of the runtime, or [`ErrorCode::RuntimeUnavailable`]. Idempotent, so a retry is safe.
    pub(crate) async fn cancel_turn(&self, prompt_id: PromptId) -> Result<bool, Failure> {
        let path = format!("{}/{prompt_id}", PROCESS_PROMPT.trim_start_matches('/'));
        let request = self.client.request(Method::DELETE, &path).timeout(CANCEL_TIMEOUT);
        Ok(self.send::<TurnCancelled>(request).await?.cancelled)
    }

    async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
        limit: Duration,
    ) -> Result<T, Failure> {
        self.send(self.client.request(Method::POST, path).json(body).timeout(limit)).await
    }

    /// Sends a request, and again if its connection closed before an answer came: the runtime may close a reused
    /// connection while the request is on its way. Every request of this client is idempotent.
    async fn send_again(&self, request: reqwest::RequestBuilder) -> Result<reqwest::Response, reqwest::Error> {
        for _ in 1..TRIES {
            let Some(copy) = request.try_clone() else { break };
            match copy.send().await {
                Err(cause) if cause.is_request() && !cause.is_connect() && !cause.is_timeout() => {
                    tracing::debug!(
                        marker = "[ACP]",
                        cause = root_cause(&cause),
                        "request to the runtime is repeated"
                    );
                }
                result => return result,
            }
        }
        request.send().await
    }

    async fn send<T: DeserializeOwned>(&self, request: reqwest::RequestBuilder) -> Result<T, Failure> {
        let unavailable = |cause: reqwest::Error| self.client.unavailable(&cause);
        let response = self.send_again(request).await.map_err(unavailable)?;
        if response.status().is_success() {
            return response.json().await.map_err(unavailable);
        }
        Err(self.client.refusal(response).await)
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
    };

    use super::*;

    /// Reads one request without a body.
    async fn request(stream: &mut TcpStream) {
        let (mut seen, mut byte) = (Vec::new(), [0]);
        while !seen.ends_with(b"\r\n\r\n") && stream.read(&mut byte).await.unwrap() == 1 {
            seen.push(byte[0]);
        }
    }

    async fn answer(stream: &mut TcpStream) {
        let body = r#"{"version":"test","agents":[],"agentProcesses":0,"maxAgents":0}"#;
        let head =
            format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
        stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
    }

    #[tokio::test]
    async fn request_is_repeated_if_the_server_closes_a_reused_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("ws://{}/acp", listener.local_addr().unwrap());
        let client = WorkspaceClient::new(&url, ReloadableSecret::new(None), Duration::from_secs(1)).unwrap();
        let server = async {
            let (mut first, _) = listener.accept().await.unwrap();
            request(&mut first).await;
            answer(&mut first).await;
            // The next request arrives in the moment of the close.
            request(&mut first).await;
            drop(first);
            let (mut second, _) = listener.accept().await.unwrap();
            request(&mut second).await;
            answer(&mut second).await;
            second
        };
        let calls = async { (client.status().await, client.status().await) };
        let ((first, second), _open) = tokio::join!(calls, server);
        assert!(first.is_ok() && second.is_ok(), "{first:?} {second:?}");
    }

    #[tokio::test]
    async fn prompt_is_not_repeated_if_its_connection_closes() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("ws://{}/acp", listener.local_addr().unwrap());
        let client = RuntimeClient::new(&url, ReloadableSecret::new(None), Connections::OneEach).unwrap();
        let server = async {
            let (mut first, _) = listener.accept().await.unwrap();
            request(&mut first).await;
            drop(first);
            tokio::time::timeout(Duration::from_millis(200), listener.accept()).await
        };
        let (sent, second) = tokio::join!(client.request(Method::POST, "process-prompt").send(), server);
        assert!(sent.is_err() && second.is_err(), "one request: {sent:?}");
    }
}
