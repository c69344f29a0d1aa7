//! Parts that the benchmarks share: the command line, the processes under test, the load, the report.
//!
//! Invariant: a benchmark measures and prints, bad figures included; it never judges. The load and every wait are
//! bounded and stay on loopback, and every point starts with fresh processes, so that no point inherits from another.

pub(crate) mod api;
pub(crate) mod cli;
pub(crate) mod closed_loop;
pub(crate) mod conversation;
pub(crate) mod events;
pub(crate) mod facts;
pub(crate) mod http;
pub(crate) mod latency;
pub(crate) mod open_files;
pub(crate) mod processes;
pub(crate) mod program;
pub(crate) mod report;
