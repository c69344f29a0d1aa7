//! The supervisor's side of the runtime's HTTP door: workspaces and status.

use std::time::Duration;

use reqwest::Url;
use secrecy::{ExposeSecret, SecretString};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    contract::{
        problem::Problem,
        runtime::{DiffWorkspace, PrepareWorkspace, PreparedWorkspace, RuntimeStatus, WorkspaceDiff},
    },
    domain::outcome::{ErrorCode, Failure},
};

/// Asks a runtime about workspaces. Cheap to clone; connections are kept and reused.
#[derive(Debug, Clone)]
pub struct WorkspaceDoor {
    client: reqwest::Client,
    base: Url,
    token: Option<SecretString>,
    prepare_timeout: Duration,
}

/// Limit for questions that only read. A diff of a large checkout takes some seconds.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// Room on top of the clone's own limit, so that the runtime's clear answer arrives before ours.
const PREPARE_ROOM: Duration = Duration::from_secs(15);

impl WorkspaceDoor {
    /// Makes the door of the runtime whose ACP endpoint is `acp_url` (`ws` or `wss`).
    pub fn new(acp_url: &str, token: Option<SecretString>, clone_timeout: Duration) -> Result<Self, Failure> {
        let bad =
            |cause: String| Failure::new(ErrorCode::RuntimeUnavailable, format!("runtime.url {acp_url}: {cause}"));
        let http = match acp_url.strip_prefix("ws") {
            Some(rest) => format!("http{rest}"),
            None => return Err(bad("must begin with ws:// or wss://".into())),
        };
        let base = Url::parse(&http).and_then(|url| url.join("/")).map_err(|cause| bad(cause.to_string()))?;
        let client = reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(5))
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()
            .map_err(|cause| bad(cause.to_string()))?;
        Ok(Self { client, base, token, prepare_timeout: clone_timeout + PREPARE_ROOM })
    }

    /// Makes sure that a workspace is there. Idempotent, so a retry is safe.
    pub async fn prepare(&self, request: &PrepareWorkspace) -> Result<PreparedWorkspace, Failure> {
        self.post("workspace/prepare", request, self.prepare_timeout).await
    }

    /// Tells what changed in a workspace since it was prepared.
    pub async fn diff(&self, request: &DiffWorkspace) -> Result<WorkspaceDiff, Failure> {
        self.post("workspace/diff", request, READ_TIMEOUT).await
    }

    /// Tells how the runtime is.
    pub async fn status(&self) -> Result<RuntimeStatus, Failure> {
        // Health is asked for by probes, which do not wait long either.
        self.send(self.client.get(self.url("status")).timeout(Duration::from_secs(2))).await
    }

    fn url(&self, path: &str) -> Url {
        let mut url = self.base.clone();
        url.set_path(path);
        url
    }

    async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
        limit: Duration,
    ) -> Result<T, Failure> {
        self.send(self.client.post(self.url(path)).json(body).timeout(limit)).await
    }

    async fn send<T: DeserializeOwned>(&self, mut request: reqwest::RequestBuilder) -> Result<T, Failure> {
        if let Some(token) = &self.token {
            request = request.bearer_auth(token.expose_secret());
        }
        let unavailable = |cause: reqwest::Error| {
            let detail = format!("the runtime at {} does not answer: {}", self.base, root_cause(&cause));
            Failure::new(ErrorCode::RuntimeUnavailable, detail)
        };
        let response = request.send().await.map_err(unavailable)?;
        if response.status().is_success() {
            return response.json().await.map_err(unavailable);
        }
        let status = response.status();
        match response.json::<Problem>().await {
            Ok(problem) => Err(understood(&problem)),
            Err(_) => {
                let detail = format!("the runtime at {} answered {status}", self.base);
                Err(Failure::new(ErrorCode::RuntimeUnavailable, detail))
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

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
