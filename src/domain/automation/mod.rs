//! GitHub automation: which repositories are blocked, why automation is skipped, and the steps of a run.

pub(crate) mod repository_pattern;
pub(crate) mod skip;
pub(crate) mod step;
