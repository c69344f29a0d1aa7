//! GitHub automation: which repositories are blocked, and why automation is skipped.

pub(crate) mod repository_pattern;
pub(crate) mod skip;
