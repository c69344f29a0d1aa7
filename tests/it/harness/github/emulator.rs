//! The REST API of the npm package `emulate` behind the origin of the stand-in, which adds git to it: a GitHub of which the
//! API was written elsewhere.

use std::{
    fs,
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
};

use super::http::{Connection, Request, Response};
use crate::harness::{DEADLINE, agents, free_port, json, processes, wait_for};

/// A running emulator. Dropping it kills it.
#[derive(Debug)]
pub(super) struct Emulator {
    child: Child,
}

impl Emulator {
    /// Starts an emulator that knows `octo/hello` and the App, and advertises addresses of `origin`. Returns its port.
    pub(super) fn start(folder: &Path, origin: &str, app_id: u64, key: &Path) -> (Self, u16) {
        let permissions =
            json!({"contents": "write", "issues": "write", "pull_requests": "write", "metadata": "read"});
        let app = json!({"app_id": app_id, "slug": "lumi-test", "name": "lumi test", "permissions": permissions,
                         "private_key": fs::read_to_string(key).expect("a key"),
                         "installations": [{"installation_id": 77, "account": "octo"}]});
        let organisation = json!({"login": "octo", "members": [{"login": "octocat", "role": "admin"}]});
        let repository = json!({"owner": "octo", "name": "hello", "auto_init": true});
        let seed = json!({"github": {"users": [{"login": "octocat"}], "orgs": [organisation], "repos": [repository],
                                     "apps": [app]}});
        let file = folder.join("emulate.json");
        fs::write(&file, seed.to_string()).expect("a file");
        let port = free_port();
        let mut command = Command::new(agents::node());
        command
            .arg(agents::installed("emulate/dist/index.js"))
            .args(["start", "--service", "github", "--port", &port.to_string(), "--base-url", origin, "--seed"])
            .arg(&file)
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut emulator = Self { child: command.spawn().expect("node runs") };
        wait_for(DEADLINE, "the emulator listens", || {
            assert!(matches!(emulator.child.try_wait(), Ok(None)), "the emulator runs");
            TcpStream::connect(("127.0.0.1", port)).ok()
        });
        (emulator, port)
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        processes::signal(-i32::try_from(self.child.id()).expect("a process id"), libc::SIGKILL);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a request for `path` to a port of this machine, and returns the answer; 502 without one.
pub(super) fn forward(port: u16, path: &str, request: &Request) -> Response {
    let answer = || {
        let mut connection = Connection::new(TcpStream::connect(("127.0.0.1", port)).ok()?);
        connection.send_request(path, request).ok()?;
        connection.next_response().ok()?
    };
    answer().unwrap_or_else(|| Response::text(502, "the emulator does not answer"))
}
