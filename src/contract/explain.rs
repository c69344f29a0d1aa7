//! The history of a session: what carried its turns, when that changed, and why.

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

/// The most entries of an answer; a turn makes two to four.
pub(crate) const MAX_TIMELINE: usize = 500;

/// Answer to `GET /acp/session/{id}/explain`: the protocol of a session, and the history that led to it.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Explanation {
    /// Which protocol carries the turns now and why, in a sentence.
    pub answer: String,
    /// Id of the session.
    pub session_id: SessionId,
    /// Name of the tenant.
    pub installation_id: InstallationId,
    /// Name of the workspace, unique within its tenant.
    pub workspace_id: WorkspaceId,
    /// State of the session: starting, idle, running, hibernated, expired, interrupted, failed or closed.
    pub state: SessionState,
    /// Protocol that carries turns now, or carried the last one: `acp` or `http`.
    pub protocol: Route,
    /// The route of the workspace: `acp` or `http`.
    pub route: Route,
    /// Number of flips of the workspace.
    pub epoch: u64,
    /// True if older entries were omitted: the newest 500 are listed.
    pub truncated: bool,
    /// The entries, oldest first.
    pub timeline: Vec<TimelineEntry>,
}

/// An entry of a timeline.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TimelineEntry {
    /// Time, RFC 3339 in UTC.
    pub at: Timestamp,
    /// `session`, `connection` (a handshake), `transition` (of a connection), `turn`, `flip` (of the workspace's route),
    /// `note`, `automation` or `notification`.
    #[serde(serialize_with = "name")]
    pub kind: EntryKind,
    /// One line about the entry.
    pub summary: String,
    /// The record behind the entry.
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
