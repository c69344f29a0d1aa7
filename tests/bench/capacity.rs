//! `cargo bench --bench capacity`: a full service that refuses new sessions.

#![allow(
    dead_code,
    unused_imports,
    reason = "parts of the other benchmarks, and tests, which run in the target `bench`"
)]

mod benchmarks {
    pub(crate) mod capacity;
}
mod support;

fn main() -> std::process::ExitCode {
    support::cli::main::<benchmarks::capacity::CapacityPlan>()
}
