//! `[session]`, `[turn]`, `[supervision]` and `[permission]`: the life of a session.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::check::Check;
use crate::domain::session::permission::PermissionPolicy;

/// Lifetime of sessions.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Session {
    /// An idle session hibernates after this time, in seconds, 1 or more: its agent ends and its seat is free.
    pub idle_timeout_s: u64,
    /// A hibernated session expires after this time without use, in seconds, 1 or more.
    pub max_age_s: u64,
    /// A session whose agent works on after a turn does not hibernate for this time, in seconds, 1 or more.
    pub background_max_s: u64,
}

impl Default for Session {
    fn default() -> Self {
        Self { idle_timeout_s: 1800, max_age_s: 7200, background_max_s: 1800 }
    }
}

impl Session {
    pub(super) fn validate(&self, check: &mut Check<'_>) {
        check.seconds("session.idle_timeout_s", self.idle_timeout_s);
        check.seconds("session.max_age_s", self.max_age_s);
        check.seconds("session.background_max_s", self.background_max_s);
    }
}

/// Time limits of a turn.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Turn {
    /// A turn fails when its agent is silent for this time, in seconds, 1 or more. The length of a turn is not
    /// limited. A build in a tool call is silent for minutes.
    pub inactivity_timeout_s: u64,
    /// Time limit for an agent to confirm a cancel before it is killed, in seconds, 1 or more. Known agents take up to
    /// 1 s.
    pub cancel_grace_s: u64,
    /// A turn is quiet when its agent and the processes that it started have been silent for this time, in seconds, 1 or
    /// more. Automation of the turn's changes waits for that.
    pub quiet_s: u64,
    /// The longest wait for a quiet turn, in seconds, 1 or more. A turn that the agent began by itself ends after this
    /// time of silence, unless the agent marks its end.
    pub quiet_max_s: u64,
}

impl Default for Turn {
    fn default() -> Self {
        Self { inactivity_timeout_s: 600, cancel_grace_s: 5, quiet_s: 1, quiet_max_s: 60 }
    }
}

impl Turn {
    pub(crate) fn inactivity_timeout(&self) -> Duration {
        Duration::from_secs(self.inactivity_timeout_s)
    }

    pub(crate) fn cancel_grace(&self) -> Duration {
        Duration::from_secs(self.cancel_grace_s)
    }

    pub(super) fn validate(&self, check: &mut Check<'_>) {
        check.seconds("turn.inactivity_timeout_s", self.inactivity_timeout_s);
        check.seconds("turn.cancel_grace_s", self.cancel_grace_s);
        check.seconds("turn.quiet_s", self.quiet_s);
        check.seconds("turn.quiet_max_s", self.quiet_max_s);
    }
}

/// Limit of restarts of a session.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Supervision {
    /// Restarts that a session may have within `within_s`; with one more it becomes `failed`.
    pub max_restarts: u32,
    /// The period in which `max_restarts` are counted, in seconds, 1 or more.
    pub within_s: u64,
    /// Time without a session after which the supervisor and the route of a workspace leave memory, in seconds, 1 or
    /// more. The next session restores them from the database.
    pub idle_workspace_s: u64,
}

impl Default for Supervision {
    fn default() -> Self {
        Self { max_restarts: 5, within_s: 30, idle_workspace_s: 60 }
    }
}

impl Supervision {
    pub(super) fn validate(&self, check: &mut Check<'_>) {
        check.seconds("supervision.within_s", self.within_s);
        check.seconds("supervision.idle_workspace_s", self.idle_workspace_s);
    }
}

/// Answers to permission requests of agents.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Permission {
    /// `allow-once`, `allow-always`, `reject` or `ask`, for workspaces that did not choose one. The default allows
    /// each call once: the container is the boundary, and nobody watches a background run.
    pub policy: PermissionPolicy,
    /// Under `ask`, a request without an answer is rejected after this time, in seconds, 1 or more.
    pub timeout_s: u64,
}

impl Default for Permission {
    fn default() -> Self {
        Self { policy: PermissionPolicy::default(), timeout_s: 300 }
    }
}

impl Permission {
    pub(super) fn validate(&self, check: &mut Check<'_>) {
        check.seconds("permission.timeout_s", self.timeout_s);
    }
}
