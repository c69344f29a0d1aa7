//! Ways to an agent.

pub mod pipe;
