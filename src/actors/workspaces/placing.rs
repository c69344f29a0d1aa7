//! A session on its way into its workspace.

use serde_json::value::RawValue;

use crate::{
    domain::{
        ids::{SessionId, UserId},
        session::lifecycle::SessionMode,
    },
    store::SessionRow,
};

/// The name under which a session keeps that it named no agent.
pub const DEFAULT_AGENT: &str = "default";

/// What a session is, beside its workspace.
pub(super) struct Placing {
    pub(super) session_id: SessionId,
    pub(super) user_id: Option<UserId>,
    pub(super) mode: SessionMode,
    pub(super) enable_git_ops: bool,
    pub(super) agent: Option<String>,
    pub(super) mcp_servers: Box<RawValue>,
}

impl Placing {
    /// Of a session that comes back.
    pub(super) fn again(row: &SessionRow, mcp_servers: Box<RawValue>) -> Self {
        Self {
            session_id: row.session_id,
            user_id: row.user_id.clone(),
            mode: row.mode,
            enable_git_ops: row.enable_git_ops,
            agent: agent_name(&row.agent),
            mcp_servers,
        }
    }
}

fn agent_name(kept: &str) -> Option<String> {
    (kept != DEFAULT_AGENT).then(|| kept.to_owned())
}
