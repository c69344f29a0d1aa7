//! GitHub automation: which repositories are blocked, why automation is skipped, the steps of a run,
//! the rules on what is pushed, and why GitHub rejects a push.

pub(crate) mod rejection;
pub(crate) mod repository_pattern;
pub(crate) mod skip;
pub(crate) mod step;
pub(crate) mod tree;
