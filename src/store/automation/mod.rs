//! Tables of automation: the state of each run, and what became of the changes of turns.

pub(crate) mod runs;
pub(crate) mod sagas;
