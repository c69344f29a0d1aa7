//! GitHub automation: which repositories are blocked, why automation is skipped, and the steps of a run.

pub(crate) mod branch_rules;
pub(crate) mod github_answer;
pub(crate) mod github_host;
pub(crate) mod repository_pattern;
pub(crate) mod skip;
pub(crate) mod step;
