//! `cargo bench --bench turn`: the cost of a turn along three paths.

#![allow(
    dead_code,
    unused_imports,
    reason = "parts of the other benchmarks, and tests, which run in the target `bench`"
)]

mod benchmarks {
    pub(crate) mod turn;
}
mod support;

fn main() -> std::process::ExitCode {
    support::cli::main::<benchmarks::turn::TurnPlan>()
}
