//! GitHub automation: which repositories are blocked, and why automation is skipped.

pub mod repository_pattern;
pub mod skip;
