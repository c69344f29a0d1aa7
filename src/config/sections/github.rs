//! Settings of what becomes of an agent's changes.

use serde::{Deserialize, Serialize};

/// `[github]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Github {
    /// Whether changes are automated at all.
    pub enabled: bool,
    /// Switches automation off whatever else is said; set by the variable `GITHUB_AUTOMATION_DISABLED=1`.
    pub kill_switch: bool,
    /// Repositories for which nothing is automated, as `owner/name` where `*` stands for any characters; a tenant may
    /// block more.
    pub blocked_repositories: Vec<String>,
}

impl Default for Github {
    fn default() -> Self {
        Self { enabled: true, kill_switch: false, blocked_repositories: Vec::new() }
    }
}
