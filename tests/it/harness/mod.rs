//! Harness of the black-box tests: the built program, a client of its HTTP API, and its peers.
//!
//! The harness imports no code of the program, and only [`wait_for`] sleeps.

pub(crate) mod acp_schema;
pub(crate) mod agents;
pub(crate) mod api;
pub(crate) mod browser;
pub(crate) mod contract;
pub(crate) mod database;
pub(crate) mod dice;
pub(crate) mod disk;
pub(crate) mod endless_git;
pub(crate) mod gate;
pub(crate) mod git_server;
pub(crate) mod github;
pub(crate) mod hostile;
pub(crate) mod metrics;
pub(crate) mod notifications;
pub(crate) mod postgres;
pub(crate) mod process;
pub(crate) mod processes;
pub(crate) mod program;
pub(crate) mod proxy;
pub(crate) mod receiver;
pub(crate) mod resources;
pub(crate) mod sse;
pub(crate) mod stdio_client;
pub(crate) mod stub_model;
pub(crate) mod tokens;

use std::{
    future::Future,
    path::PathBuf,
    sync::LazyLock,
    time::{Duration, Instant},
};

pub(crate) use api::{Answer, Api, Session};
pub(crate) use program::Program;
pub(crate) use serde_json::{Value, json};

/// Deadline of an operation that takes milliseconds on an idle machine. Generous, because several tests share two
/// cores; it only bounds a failing test and never prolongs a passing one.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

static RUNTIME: LazyLock<tokio::runtime::Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
});

/// Runs a future on the harness's runtime, from a test's thread.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    RUNTIME.block_on(future)
}

/// Polls `condition` until it returns a value; fails the test after `deadline`. The pause between two polls is a tenth of
/// the time waited, 10 to 50 ms: a poll is often a request, and frequent ones would slow down what is waited for.
pub(crate) fn wait_for<T>(deadline: Duration, what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        let waited = begin.elapsed();
        assert!(waited < deadline, "timed out after {deadline:?} waiting for: {what}");
        std::thread::sleep((waited / 10).clamp(Duration::from_millis(10), Duration::from_millis(50)));
    }
}

/// Waits within [`DEADLINE`] until `condition` is true; fails the test otherwise.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    wait_for(DEADLINE, what, || condition().then_some(()));
}

/// The path of the built program.
pub(crate) fn lumilink() -> &'static str {
    env!("CARGO_BIN_EXE_lumilink")
}

/// The path of a file in the repository.
pub(crate) fn repository(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A loopback port that was free when the call returned; another process may take it.
pub(crate) fn free_port() -> u16 {
    std::net::TcpListener::bind(("127.0.0.1", 0)).and_then(|it| it.local_addr()).expect("a free port").port()
}

/// The command of the built-in demo agent with `flags`, as a value for `--set agent.command=`.
pub(crate) fn demo_agent(flags: &[&str]) -> String {
    let mut command = vec![lumilink(), "demo-agent"];
    command.extend(flags);
    json!(command).to_string()
}
