//! A headless Chromium, controlled over the `DevTools` protocol.

use std::{
    fs,
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
};

use futures_util::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async, tungstenite::Message};

use super::{DEADLINE, Value, block_on, eventually, json, process::Folder, processes, wait_for};

/// A running Chromium. Dropping it kills all of its processes.
pub(crate) struct Browser {
    child: Child,
    folder: Folder,
    devtools: WebSocketStream<MaybeTlsStream<TcpStream>>,
    last_call: u64,
}

/// A page of a [`Browser`].
pub(crate) struct Page<'a> {
    browser: &'a mut Browser,
    session: String,
}

impl Browser {
    /// Starts a browser with a new profile.
    pub(crate) fn start() -> Self {
        let folder = Folder::new();
        let profile = folder.path().join("profile");
        let mut command = Command::new("chromium");
        command
            .args(["--headless", "--remote-debugging-port=0", "--disable-gpu", "--disable-dev-shm-usage"])
            // No activity of its own.
            .args(["--no-first-run", "--disable-background-networking", "--disable-component-update"])
            .args(["--disable-breakpad", "--disable-extensions", "--no-proxy-server"])
            .arg(format!("--user-data-dir={}", profile.display()))
            .arg("about:blank")
            // Files that it leaves behind are removed with the folder.
            .env("HOME", folder.path())
            .env("TMPDIR", folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0);
        // SAFETY: geteuid(2) touches no memory.
        if unsafe { libc::geteuid() } == 0 {
            // Chromium refuses to start as root without this; only trusted pages are opened.
            command.arg("--no-sandbox");
        }
        let mut child = command
            .spawn()
            .unwrap_or_else(|cause| panic!("`chromium` is missing: run tests/run, which installs it ({cause})"));
        let url = wait_for(DEADLINE, "the browser listens", || {
            if let Ok(Some(status)) = child.try_wait() {
                panic!("the browser ended with {status}");
            }
            let announced = fs::read_to_string(profile.join("DevToolsActivePort")).ok()?;
            let (port, path) = announced.split_once('\n')?;
            Some(format!("ws://127.0.0.1:{port}{path}"))
        });
        let opening = async { tokio::time::timeout(DEADLINE, connect_async(url)).await.expect("an answer in time") };
        let (devtools, _) = block_on(opening).expect("the browser answers");
        Self { child, folder, devtools, last_call: 0 }
    }

    /// Opens a page.
    pub(crate) fn open(&mut self, url: &str) -> Page<'_> {
        let target = self.call(None, "Target.createTarget", json!({ "url": url }))["targetId"].clone();
        let attached = self.call(None, "Target.attachToTarget", json!({"targetId": target, "flatten": true}));
        let session = attached["sessionId"].as_str().expect("`sessionId` is a string").to_owned();
        Page { browser: self, session }
    }

    fn call(&mut self, session: Option<&str>, method: &str, params: Value) -> Value {
        self.last_call += 1;
        let mut call = json!({"id": self.last_call, "method": method, "params": params});
        if let Some(session) = session {
            call["sessionId"] = session.into();
        }
        let answered = async {
            self.devtools.send(Message::text(call.to_string())).await.expect("the browser accepts a call");
            loop {
                let message = self.devtools.next().await.expect("the browser lives").expect("a message");
                let Message::Text(text) = message else { continue };
                let received: Value = serde_json::from_str(&text).expect("JSON");
                // Messages with another id are events.
                if received["id"] == call["id"] {
                    return received;
                }
            }
        };
        let answer = block_on(async { tokio::time::timeout(DEADLINE, answered).await });
        let answer = answer.unwrap_or_else(|_| panic!("no answer to {call}"));
        assert!(answer.get("error").is_none(), "{call}: {answer}");
        answer["result"].clone()
    }
}

impl Page<'_> {
    /// Evaluates a JavaScript expression in the page; awaits a promise.
    pub(crate) fn evaluate(&mut self, expression: &str) -> Value {
        let params = json!({"expression": expression, "awaitPromise": true, "returnByValue": true});
        let result = self.browser.call(Some(&self.session), "Runtime.evaluate", params);
        assert!(result.get("exceptionDetails").is_none(), "{expression}: {result}");
        result["result"]["value"].clone()
    }

    /// Waits until an expression is true.
    pub(crate) fn becomes(&mut self, expression: &str) {
        // The names are undefined while the page loads.
        let guarded = format!("(() => {{ try {{ return !!({expression}) }} catch {{ return false }} }})()");
        eventually(expression, || self.evaluate(&guarded) == true);
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let group = i32::try_from(self.child.id()).expect("a process id");
        processes::signal(-group, libc::SIGKILL);
        let _ = self.child.wait();
        if !std::thread::panicking() {
            eventually("no process of the browser is left", || processes::with_marker(self.folder.path()).is_empty());
        }
        for left in processes::with_marker(self.folder.path()) {
            processes::signal(left.pid, libc::SIGKILL);
        }
    }
}
