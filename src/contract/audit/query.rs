//! Query parameters of the audit's lists.

use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use crate::domain::{
    clock::Timestamp,
    ids::{InstallationId, SessionId, WorkspaceId},
};

/// Filters of a list of audit records, newest first.
#[derive(Debug, Clone, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct AuditQuery {
    /// Only records of this tenant.
    pub installation_id: Option<InstallationId>,
    /// Only records of workspaces of this name.
    pub workspace_id: Option<WorkspaceId>,
    /// Only records of this session. A record of a whole workspace, such as a rollback, belongs to the session if the
    /// workspace is the session's and the record is not older than the session.
    pub session_id: Option<SessionId>,
    /// Only records at or after this time, RFC 3339.
    pub from: Option<Timestamp>,
    /// Only records before this time, RFC 3339.
    pub until: Option<Timestamp>,
    /// The most records on the page, up to `[limits] page_entries`.
    #[param(minimum = 1, maximum = 1000)]
    pub limit: Option<usize>,
    /// `nextCursor` of the previous page.
    #[param(pattern = r"^-?[0-9]{1,18}~[!-~]{0,300}$")]
    pub cursor: Option<String>,
    /// `csv` or `json`; the default is chosen by `Accept`.
    #[param(inline)]
    pub format: Option<Format>,
}

/// Filters of the list of capacity alerts, which belong to no workspace and no session.
#[derive(Debug, Clone, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct CapacityAlertQuery {
    /// Only alerts about this tenant's share.
    pub installation_id: Option<InstallationId>,
    /// Only records at or after this time, RFC 3339.
    pub from: Option<Timestamp>,
    /// Only records before this time, RFC 3339.
    pub until: Option<Timestamp>,
    /// The most records on the page, up to `[limits] page_entries`.
    #[param(minimum = 1, maximum = 1000)]
    pub limit: Option<usize>,
    /// `nextCursor` of the previous page.
    #[param(pattern = r"^-?[0-9]{1,18}~[!-~]{0,300}$")]
    pub cursor: Option<String>,
    /// `csv` or `json`; the default is chosen by `Accept`.
    #[param(inline)]
    pub format: Option<Format>,
}

/// The media type of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[schema(as = PageFormat)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Format {
    /// `application/json`.
    Json,
    /// `text/csv`.
    Csv,
}
