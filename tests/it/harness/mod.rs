//! What the black-box tests stand on: the built program, its HTTP face, and the peers that it talks to.
//!
//! Nothing here knows the program's code, and nothing sleeps but [`wait_for`].

pub mod acp_schema;
pub mod agents;
pub mod api;
pub mod browser;
pub mod contract;
pub mod dice;
pub mod disk;
pub mod gate;
pub mod git_server;
pub mod hostile;
pub mod metrics;
pub mod postgres;
pub mod process;
pub mod processes;
pub mod program;
pub mod proxy;
pub mod receiver;
pub mod sse;
pub mod stdio_client;
pub mod stub_model;
pub mod toasts;

use std::{
    future::Future,
    path::PathBuf,
    sync::LazyLock,
    time::{Duration, Instant},
};

pub use api::{Answer, Api, Session};
pub use program::Program;
pub use serde_json::{Value, json};

/// How long anything may take that takes milliseconds on an idle machine. Two cores are shared by several
/// tests, so this is generous; a test fails by it, it never waits for it.
pub const DEADLINE: Duration = Duration::from_secs(30);

static RUNTIME: LazyLock<tokio::runtime::Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
});

/// Runs a future on the harness's own runtime, from a test's thread.
pub fn block_on<F: Future>(future: F) -> F::Output {
    RUNTIME.block_on(future)
}

/// Asks `condition` again and again until it gives something, and fails the test after `deadline`.
pub fn wait_for<T>(deadline: Duration, what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + deadline;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < end, "waited {deadline:?} in vain for: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// [`wait_for`] something that is only true or false, with the usual deadline.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    wait_for(DEADLINE, what, || condition().then_some(()));
}

/// The built program.
pub fn lumilink() -> &'static str {
    env!("CARGO_BIN_EXE_lumilink")
}

/// A file of the repository.
pub fn repository(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A loopback port that was free a moment ago.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind(("127.0.0.1", 0)).and_then(|it| it.local_addr()).expect("a free port").port()
}

/// The command of the built-in demo agent with flags of its own, as a value for `--set agent.command=`.
pub fn demo_agent(flags: &[&str]) -> String {
    let mut command = vec![lumilink(), "demo-agent"];
    command.extend(flags);
    json!(command).to_string()
}
