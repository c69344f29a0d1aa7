//! `cargo bench --bench route`: the same turns over ACP and over the HTTP fallback.

#![allow(
    dead_code,
    unused_imports,
    reason = "parts of the other benchmarks, and tests, which run in the target `bench`"
)]

mod benchmarks {
    pub(crate) mod route;
}
mod support;

fn main() -> std::process::ExitCode {
    support::cli::main::<benchmarks::route::RoutePlan>()
}
