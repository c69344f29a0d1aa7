//! `cargo bench --bench stream`: agents that send as fast as they can, with a reader each.

#![allow(
    dead_code,
    unused_imports,
    reason = "parts of the other benchmarks, and tests, which run in the target `bench`"
)]

mod benchmarks {
    pub(crate) mod stream;
}
mod support;

fn main() -> std::process::ExitCode {
    support::cli::main::<benchmarks::stream::StreamPlan>()
}
