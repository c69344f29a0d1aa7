//! `cargo bench --bench resume`: the cost of broken connections and of a killed supervisor.

#![allow(
    dead_code,
    unused_imports,
    reason = "parts of the other benchmarks, and tests, which run in the target `bench`"
)]

mod benchmarks {
    pub(crate) mod resume;
}
mod support;

fn main() -> std::process::ExitCode {
    support::cli::main::<benchmarks::resume::ResumePlan>()
}
