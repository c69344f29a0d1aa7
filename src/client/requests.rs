//! What the client asks for.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::contract::result::ACPSessionResult;

/// Body of `POST /acp/session/new`.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NewSession {
    /// The workspace, by the caller's name for it.
    pub workspace_id: String,
    /// The tenant.
    pub installation_id: String,
    /// The person for whom the session works.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_id: Option<String>,
    /// `owner/name` or a URL, to be cloned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
    /// The branch of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub branch: Option<String>,
    /// An existing folder of the server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// A configured agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// `development` or `conversation`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// Who answers permission requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub permission_policy: Option<String>,
}

/// Answer to [`NewSession`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct OpenedSession {
    /// The new session.
    pub session_id: String,
    /// Everything else that the server says about it.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// One prompt. Its key makes it safe to send it again: one key, one execution.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PromptRequest {
    /// The session.
    pub session_id: String,
    /// A string, or ACP content blocks.
    pub prompt: Value,
    /// The `Idempotency-Key`.
    #[serde(skip)]
    pub key: String,
}

impl PromptRequest {
    /// A prompt of text, with a key of its own.
    pub(crate) fn text(session_id: impl Into<String>, text: impl Into<String>) -> Self {
        let key = uuid::Uuid::new_v4().to_string();
        Self { session_id: session_id.into(), prompt: Value::String(text.into()), key }
    }
}

/// Answer to a permission request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PermissionChoice {
    /// One of the options that were offered.
    Option(String),
    /// None of them.
    Cancelled,
}

/// Which sessions to list.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SessionFilter {
    /// Of this tenant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub installation_id: Option<String>,
    /// Of this workspace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workspace_id: Option<String>,
    /// In this state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Where the page before ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// Most entries.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// One page of a list.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Page {
    /// The entries.
    #[serde(alias = "entries")]
    pub items: Vec<Value>,
    /// Asks for the next page; absent on the last one.
    #[serde(default)]
    pub next_cursor: Option<String>,
}

/// Answer to `GET /acp/prompt/{id}`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PromptStatus {
    /// accepted, running, completed, cancelled, failed or interrupted.
    pub state: String,
    /// The result, once the turn ended.
    #[serde(default)]
    pub result: Option<ACPSessionResult>,
    /// Everything else that the server says about it.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}
