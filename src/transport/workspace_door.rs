//! The supervisor's side of the runtime's HTTP door: workspaces and status.

use std::time::Duration;

use reqwest::Method;
use secrecy::SecretString;
use serde::{Serialize, de::DeserializeOwned};

use super::http::client::{Connections, HttpDoor};
use crate::{
    contract::runtime::{DiffWorkspace, PrepareWorkspace, PreparedWorkspace, RuntimeStatus, WorkspaceDiff},
    domain::turn::outcome::Failure,
};

/// Asks a runtime about workspaces. Cheap to clone; connections are kept and reused.
#[derive(Debug, Clone)]
pub struct WorkspaceDoor {
    door: HttpDoor,
    prepare_timeout: Duration,
}

/// Limit for questions that only read. A diff of a large checkout takes some seconds.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// Room on top of the clone's own limit, so that the runtime's clear answer arrives before ours.
const PREPARE_ROOM: Duration = Duration::from_secs(15);

impl WorkspaceDoor {
    /// Makes the door of the runtime whose ACP endpoint is `acp_url` (`ws` or `wss`).
    pub fn new(acp_url: &str, token: Option<SecretString>, clone_timeout: Duration) -> Result<Self, Failure> {
        Ok(Self {
            door: HttpDoor::new(acp_url, token, Connections::Reused)?,
            prepare_timeout: clone_timeout + PREPARE_ROOM,
        })
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
        self.send(self.door.request(Method::GET, "status").timeout(Duration::from_secs(2))).await
    }

    async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
        limit: Duration,
    ) -> Result<T, Failure> {
        self.send(self.door.request(Method::POST, path).json(body).timeout(limit)).await
    }

    async fn send<T: DeserializeOwned>(&self, request: reqwest::RequestBuilder) -> Result<T, Failure> {
        let unavailable = |cause: reqwest::Error| self.door.unavailable(&cause);
        let response = request.send().await.map_err(unavailable)?;
        if response.status().is_success() {
            return response.json().await.map_err(unavailable);
        }
        Err(self.door.refusal(response).await)
    }
}
