//! GitHub automation: which repositories are blocked, why automation is skipped, and the runs with their steps and texts.

pub(crate) mod branch;
pub(crate) mod branch_rules;
pub(crate) mod clone_access;
pub(crate) mod github_answer;
pub(crate) mod github_host;
mod markdown;
pub(crate) mod omitted;
pub(crate) mod order;
pub(crate) mod plan;
pub(crate) mod policy;
pub(crate) mod progress;
pub(crate) mod rejection;
pub(crate) mod repository_pattern;
pub(crate) mod saga;
pub(crate) mod signing;
pub(crate) mod skip;
pub(crate) mod ssh_key;
pub(crate) mod step;
pub(crate) mod texts;
pub(crate) mod tree;
pub(crate) mod trigger;
pub(crate) mod wanted;
