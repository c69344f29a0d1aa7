//! Tables of automation: the state of each run, what became of the changes of turns, and the deliveries of GitHub that start
//! turns.

pub(crate) mod deliveries;
pub(crate) mod runs;
pub(crate) mod sagas;
