//! GitHub automation: which repositories are blocked, why automation is skipped, the steps of a run, and its texts.

pub(crate) mod branch;
pub(crate) mod markdown;
pub(crate) mod repository_pattern;
pub(crate) mod skip;
pub(crate) mod step;
pub(crate) mod texts;
