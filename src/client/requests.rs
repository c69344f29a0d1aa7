//! Requests of the client, and answers as far as it reads them.

use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::contract::{exposed::expose_optional, result::ACPSessionResult};

/// Body of `POST /acp/session/new`.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NewSession {
    pub workspace_id: String,
    /// Absent: that of the token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub installation_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub branch: Option<String>,
    /// Clones the repository, and delivers changes.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "expose_optional")]
    pub github_token: Option<SecretString>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub isolate: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pull_request: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub permission_policy: Option<String>,
}

/// Answer to [`NewSession`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct OpenedSession {
    pub session_id: String,
    /// All other members of the answer.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// One prompt. Its key makes a repeat safe: the server executes a key once.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PromptRequest {
    pub session_id: String,
    /// A string, or ACP content blocks.
    pub prompt: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub automation: Option<AutomationRequest>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "expose_optional")]
    pub github_token: Option<SecretString>,
    /// The `Idempotency-Key`.
    #[serde(skip)]
    pub key: String,
}

impl PromptRequest {
    /// A text prompt with a new key.
    pub(crate) fn text(session_id: impl Into<String>, text: impl Into<String>) -> Self {
        let key = uuid::Uuid::new_v4().to_string();
        let (automation, github_token) = (None, None);
        Self { session_id: session_id.into(), prompt: Value::String(text.into()), automation, github_token, key }
    }
}

/// Delivery of the changes of a turn.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AutomationRequest {
    /// Absent: `github`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// Changes nothing at GitHub.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
}

/// Answer to a permission request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PermissionChoice {
    Option(String),
    Cancelled,
}

/// Filter of a list of sessions.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SessionFilter {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub installation_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workspace_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// One page of a list.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Page {
    #[serde(alias = "entries")]
    pub items: Vec<Value>,
    /// `cursor` of the next page; absent on the last page.
    #[serde(default)]
    pub next_cursor: Option<String>,
}

/// Answer to `GET /acp/prompt/{id}`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PromptStatus {
    /// accepted, running, completed, cancelled, failed or interrupted.
    pub state: String,
    /// The result, once the turn has ended.
    #[serde(default)]
    pub result: Option<ACPSessionResult>,
    /// All other members of the answer.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}
