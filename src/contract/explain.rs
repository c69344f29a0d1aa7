//! One session's story: what carried it, when that changed, and why.

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use crate::domain::{
    clock::Timestamp,
    explain::{EntryKind, Placed},
    ids::{InstallationId, SessionId, WorkspaceId},
    routing::Route,
    session::lifecycle::SessionState,
};

/// Entries of one answer; a turn makes two to four.
pub(crate) const MAX_TIMELINE: usize = 500;

/// `GET /acp/session/{id}/explain`.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Explanation {
    /// What carries it now and why, in a sentence.
    pub answer: String,
    /// The session.
    #[schema(value_type = String)]
    pub session_id: SessionId,
    /// The tenant.
    #[schema(value_type = String)]
    pub installation_id: InstallationId,
    /// The tenant's name for the workspace.
    #[schema(value_type = String)]
    pub workspace_id: WorkspaceId,
    /// Where it stands.
    #[schema(value_type = String)]
    pub state: SessionState,
    /// What carries its line to an agent now, or carried it last: `acp` or `http`.
    #[schema(value_type = String)]
    pub protocol: Route,
    /// The workspace's route.
    #[schema(value_type = String)]
    pub route: Route,
    /// Counts the workspace's flips.
    pub epoch: u64,
    /// Whether older entries were left out: the newest 500 are shown.
    pub truncated: bool,
    /// What happened, oldest first.
    pub timeline: Vec<TimelineEntry>,
}

/// Something that happened.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TimelineEntry {
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// `session`, `connection` (a handshake), `transition` (of a connection), `turn`, `flip` (of the workspace's route),
    /// `note`, `automation` or `notification`.
    #[serde(serialize_with = "name")]
    #[schema(value_type = String)]
    pub kind: EntryKind,
    /// What happened, in a line.
    pub summary: String,
    /// The record of it.
    pub details: Value,
}

fn name<S: serde::Serializer>(kind: &EntryKind, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(kind.as_str())
}

impl Placed for TimelineEntry {
    fn place(&self) -> (Timestamp, EntryKind) {
        (self.at, self.kind)
    }
}
