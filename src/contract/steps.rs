//! The interface of the runtime's automation: `POST /automation/{run}/{step}` with a [`StepOrder`], answered by a
//! [`StepReport`](crate::domain::automation::step::StepReport).
//!
//! A failed step is an answer with status 200. Problem documents are for orders that the runtime cannot read, and for
//! workspaces that do not exist.

use std::collections::BTreeMap;

use secrecy::SecretString;
use serde::{Deserialize, Serialize};

pub(crate) use super::exposed::expose;
use super::exposed::expose_optional;
use super::runtime::WorkspaceRef;
use crate::domain::{automation::step::StepInput, ids::SessionId};

/// Path of the steps, to which run and step are appended.
pub(crate) const AUTOMATION: &str = "/automation";

/// One step of a run. Idempotent: a step that is ordered again finds what it made.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct StepOrder {
    pub workspace: WorkspaceRef,
    pub session_id: SessionId,
    /// Absent for a step that is local.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<Remote>,
    /// SSH key for signatures, for the steps that sign with it.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "expose_optional")]
    pub signing_key: Option<SecretString>,
    pub input: StepInput,
}

/// A repository at GitHub, with a token for it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Remote {
    /// `owner/name`, or an address, as the session gave it.
    pub repository: String,
    /// Root of the REST API without a slash at the end, such as `https://api.github.com`.
    pub api_url: String,
    #[serde(serialize_with = "expose")]
    pub token: SecretString,
    /// The longest time that one step waits for a rate limit, in milliseconds.
    pub max_wait_ms: u64,
    /// The installation to which the token belongs; absent for the token of a user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<AppInstallation>,
}

/// The installation of a GitHub App.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AppInstallation {
    pub id: u64,
    /// Name of the App in addresses; the login of its bot is this name with `[bot]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slug: Option<String>,
    /// The permissions of the token, such as `contents` with `write`; empty if they are not known.
    #[serde(default)]
    pub permissions: BTreeMap<String, String>,
}

/// Answer to `DELETE /automation/{run}/rescue`, which deletes the kept commit of a run. `GET /automation/{run}/rescue/bundle`
/// and `…/patch` answer with the files.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DeletedRescue {
    /// False if there was none.
    pub deleted: bool,
}
