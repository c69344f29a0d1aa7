//! `[github]`: automation of the changes that agents make.

use serde::{Deserialize, Serialize};

use super::check::Check;
use crate::domain::automation::repository_pattern::{MAX_PATTERNS, is_pattern};

/// Automation of the changes that agents make.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Github {
    /// True if changes are automated.
    pub enabled: bool,
    /// Switches automation off, whatever tenants and prompts request. The variable `GITHUB_AUTOMATION_DISABLED=1` sets
    /// it too.
    pub kill_switch: bool,
    /// Repositories that are never automated: `owner/name`, where `*` matches any characters. Tenants may block more.
    pub blocked_repositories: Vec<String>,
}

impl Default for Github {
    fn default() -> Self {
        Self { enabled: true, kill_switch: false, blocked_repositories: Vec::new() }
    }
}

impl Github {
    pub(super) fn validate(&self, check: &mut Check<'_>) {
        let patterns = &self.blocked_repositories;
        let setting = "github.blocked_repositories";
        check.require(patterns.len() <= MAX_PATTERNS, setting, format!("must be at most {MAX_PATTERNS} patterns"));
        for pattern in patterns {
            check.require(is_pattern(pattern), setting, format!("{pattern:?} must be like owner/name or owner/*"));
        }
    }
}
