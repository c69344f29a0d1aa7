//! Which records of the audit to read, and how they are answered.

use serde::Deserialize;
use utoipa::IntoParams;

use crate::domain::{
    clock::Timestamp,
    ids::{InstallationId, SessionId, WorkspaceId},
};

/// Which records to read, and how they are answered. The newest come first.
#[derive(Debug, Clone, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct AuditQuery {
    /// Only this tenant's.
    #[param(value_type = Option<String>)]
    pub installation_id: Option<InstallationId>,
    /// Only those of workspaces of this name.
    #[param(value_type = Option<String>)]
    pub workspace_id: Option<WorkspaceId>,
    /// Only this session's. What belongs to a workspace as a whole, such as a rollback, is a session's where it is of
    /// the session's workspace and not older than the session.
    #[param(value_type = Option<String>)]
    pub session_id: Option<SessionId>,
    /// Only those of this time or later, RFC 3339.
    #[param(value_type = Option<String>, format = DateTime)]
    pub from: Option<Timestamp>,
    /// Only those before this time, RFC 3339.
    #[param(value_type = Option<String>, format = DateTime)]
    pub until: Option<Timestamp>,
    /// Records on the page, up to `[limits] page_entries`.
    pub limit: Option<usize>,
    /// `nextCursor` of the page before.
    pub cursor: Option<String>,
    /// `csv` or `json`; else what `Accept` says.
    #[param(value_type = Option<String>)]
    pub format: Option<Format>,
}

/// Which alerts of capacity to read. They are about no workspace and no session.
#[derive(Debug, Clone, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct CapacityAlertQuery {
    /// Only those about this tenant's share.
    #[param(value_type = Option<String>)]
    pub installation_id: Option<InstallationId>,
    /// Only those of this time or later, RFC 3339.
    #[param(value_type = Option<String>, format = DateTime)]
    pub from: Option<Timestamp>,
    /// Only those before this time, RFC 3339.
    #[param(value_type = Option<String>, format = DateTime)]
    pub until: Option<Timestamp>,
    /// Records on the page, up to `[limits] page_entries`.
    pub limit: Option<usize>,
    /// `nextCursor` of the page before.
    pub cursor: Option<String>,
    /// `csv` or `json`; else what `Accept` says.
    #[param(value_type = Option<String>)]
    pub format: Option<Format>,
}

/// The form of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Format {
    /// `application/json`.
    Json,
    /// `text/csv`.
    Csv,
}
