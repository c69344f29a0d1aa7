//! How a runtime is asked over HTTP, and what its refusals mean.

use std::time::Duration;

use reqwest::{Method, Url, header};
use secrecy::{ExposeSecret, SecretString};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    contract::{
        problem::Problem,
        runtime::{DiffWorkspace, PrepareWorkspace, PreparedWorkspace, RuntimeStatus, WorkspaceDiff},
    },
    domain::turn::outcome::{ErrorCode, Failure},
};

/// A runtime's HTTP door. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct RuntimeClient {
    client: reqwest::Client,
    base: Url,
    token: Option<SecretString>,
    cookies: Option<String>,
}

/// Outcome of connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Connections {
    /// They are kept and reused: for what may be asked again.
    Reused,
    /// Each request has its own: one that was just being closed by the other side cannot be told from one that broke
    /// after it had carried the request.
    OneEach,
}

impl RuntimeClient {
    /// Makes the door of the runtime whose ACP endpoint is `acp_url` (`ws` or `wss`).
    pub(crate) fn new(acp_url: &str, token: Option<SecretString>, connections: Connections) -> Result<Self, Failure> {
        let bad =
            |cause: String| Failure::new(ErrorCode::RuntimeUnavailable, format!("runtime.url {acp_url}: {cause}"));
        let http = match acp_url.strip_prefix("ws") {
            Some(rest) => format!("http{rest}"),
            None => return Err(bad("must begin with ws:// or wss://".into())),
        };
        let base = Url::parse(&http).and_then(|url| url.join("/")).map_err(|cause| bad(cause.to_string()))?;
        let mut client = reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(5))
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy();
        if connections == Connections::OneEach {
            client = client.pool_max_idle_per_host(0).retry(reqwest::retry::never());
        }
        let client = client.build().map_err(|cause| bad(cause.to_string()))?;
        Ok(Self { client, base, token, cookies: None })
    }

    /// The same door for a session that has cookies, which keep it on its replica.
    pub(crate) fn with_cookies(self, cookies: Option<String>) -> Self {
        Self { cookies, ..self }
    }

    /// Begins a request, with the token. `path` has no slash ahead, and may have a query behind.
    pub(crate) fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let mut url = self.base.clone();
        let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
        url.set_path(path);
        url.set_query(query);
        let mut request = self.client.request(method, url);
        if let Some(cookies) = &self.cookies {
            request = request.header(header::COOKIE, cookies);
        }
        match &self.token {
            Some(token) => request.bearer_auth(token.expose_secret()),
            None => request,
        }
    }

    /// Why there was no answer.
    pub(crate) fn unavailable(&self, cause: &reqwest::Error) -> Failure {
        let detail = format!("the runtime at {} does not answer: {}", self.base, root_cause(cause));
        Failure::new(ErrorCode::RuntimeUnavailable, detail)
    }

    /// What an answer says that is no success.
    pub(crate) async fn refusal(&self, response: reqwest::Response) -> Failure {
        let status = response.status();
        match response.json::<Problem>().await {
            Ok(problem) => understood(&problem),
            Err(_) => {
                let detail = format!("the runtime at {} answered {status}", self.base);
                Failure::new(ErrorCode::RuntimeUnavailable, detail)
            }
        }
    }
}

fn understood(problem: &Problem) -> Failure {
    match ErrorCode::from_name(&problem.code) {
        // Its token and ours differ: not the caller's fault.
        Some(ErrorCode::Unauthorized) | None => Failure::new(
            ErrorCode::RuntimeUnavailable,
            format!("the runtime refused ({}): {}", problem.code, problem.detail),
        ),
        Some(code) => {
            // The advice is added again when this becomes an answer.
            let detail = problem.detail.trim_end_matches(code.advice()).trim_end().to_owned();
            Failure::new(code, detail)
        }
    }
}

/// The innermost cause, which says most.
pub(crate) fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// Asks a runtime about workspaces. Cheap to clone; connections are kept and reused.
#[derive(Debug, Clone)]
pub(crate) struct WorkspaceClient {
    client: RuntimeClient,
    prepare_timeout: Duration,
}

/// Limit for questions that only read. A diff of a large checkout takes some seconds.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// Room on top of the clone's own limit, so that the runtime's clear answer arrives before ours.
const PREPARE_ROOM: Duration = Duration::from_secs(15);

impl WorkspaceClient {
    /// Makes the door of the runtime whose ACP endpoint is `acp_url` (`ws` or `wss`).
    pub(crate) fn new(acp_url: &str, token: Option<SecretString>, clone_timeout: Duration) -> Result<Self, Failure> {
        Ok(Self {
            client: RuntimeClient::new(acp_url, token, Connections::Reused)?,
            prepare_timeout: clone_timeout + PREPARE_ROOM,
        })
    }

    /// Makes sure that a workspace is there. Idempotent, so a retry is safe.
    pub(crate) async fn prepare(&self, request: &PrepareWorkspace) -> Result<PreparedWorkspace, Failure> {
        self.post("workspace/prepare", request, self.prepare_timeout).await
    }

    /// Tells what changed in a workspace since it was prepared.
    pub(crate) async fn diff(&self, request: &DiffWorkspace) -> Result<WorkspaceDiff, Failure> {
        self.post("workspace/diff", request, READ_TIMEOUT).await
    }

    /// Tells how the runtime is.
    pub(crate) async fn status(&self) -> Result<RuntimeStatus, Failure> {
        // Health is asked for by probes, which do not wait long either.
        self.send(self.client.request(Method::GET, "status").timeout(Duration::from_secs(2))).await
    }

    async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
        limit: Duration,
    ) -> Result<T, Failure> {
        self.send(self.client.request(Method::POST, path).json(body).timeout(limit)).await
    }

    async fn send<T: DeserializeOwned>(&self, request: reqwest::RequestBuilder) -> Result<T, Failure> {
        let unavailable = |cause: reqwest::Error| self.client.unavailable(&cause);
        let response = request.send().await.map_err(unavailable)?;
        if response.status().is_success() {
            return response.json().await.map_err(unavailable);
        }
        Err(self.client.refusal(response).await)
    }
}
