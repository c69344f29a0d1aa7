//! `cargo bench --bench notifications`: notifications to many subscribers.

#![allow(
    dead_code,
    unused_imports,
    reason = "parts of the other benchmarks, and tests, which run in the target `bench`"
)]

mod benchmarks {
    pub(crate) mod notifications;
}
mod support;

fn main() -> std::process::ExitCode {
    support::cli::main::<benchmarks::notifications::NotificationsPlan>()
}
