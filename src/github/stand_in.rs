//! A GitHub for tests of the App: it answers where an App is installed, and makes tokens.

use std::{collections::BTreeMap, process::Command, sync::Arc};

use parking_lot::Mutex;
use secrecy::SecretString;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::{App, AppOptions, Github, GithubLimits};
use crate::domain::clock::Timestamp;

/// Time of the stand-in, which is that of all tests with it.
pub(crate) const NOW: Timestamp = Timestamp(1_790_000_000_000_000);

/// A running stand-in; ends with the runtime of its test.
pub(crate) struct StandIn {
    api_url: String,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// Installations by repository.
    installed: BTreeMap<String, u64>,
    /// Installation and body of each token that was asked for.
    minted: Vec<(u64, Value)>,
    requests: usize,
}

impl StandIn {
    /// Starts with installations of the App: repository and id.
    pub(crate) async fn start(installed: &[(&str, u64)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let api_url = format!("http://{}", listener.local_addr().unwrap());
        let installed = installed.iter().map(|(repository, id)| ((*repository).to_owned(), *id)).collect();
        let state = Arc::new(Mutex::new(State { installed, ..State::default() }));
        let shared = state.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, shared.clone()));
            }
        });
        Self { api_url, state }
    }

    pub(crate) fn api_url(&self) -> &str {
        &self.api_url
    }

    /// The App, with a key of its own.
    pub(crate) fn app(&self) -> App {
        let options = AppOptions { api_url: &self.api_url, app_id: "4711", private_key: &private_key() };
        App::new(Github::new(GithubLimits::default()), options).unwrap()
    }

    /// Installation and body of each token that was asked for.
    pub(crate) fn minted(&self) -> Vec<(u64, Value)> {
        self.state.lock().minted.clone()
    }

    pub(crate) fn requests(&self) -> usize {
        self.state.lock().requests
    }
}

/// A new RSA key in PEM format.
pub(crate) fn private_key() -> SecretString {
    let made = Command::new("openssl").args(["genrsa", "-traditional", "2048"]).output().unwrap();
    assert!(made.status.success(), "openssl: {}", String::from_utf8_lossy(&made.stderr));
    SecretString::from(String::from_utf8(made.stdout).unwrap())
}

/// Answers one request after the other.
async fn serve(mut stream: TcpStream, state: Arc<Mutex<State>>) {
    let mut read = Vec::new();
    loop {
        let head = loop {
            if let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            if stream.read_buf(&mut read).await.is_at_end() {
                return;
            }
        };
        let text = String::from_utf8_lossy(&read[..head]).to_ascii_lowercase();
        let length = text.lines().find_map(|line| line.strip_prefix("content-length:"));
        let length: usize = length.map_or(0, |length| length.trim().parse().unwrap());
        while read.len() < head + length {
            if stream.read_buf(&mut read).await.is_at_end() {
                return;
            }
        }
        assert!(text.contains("authorization: bearer ey"), "the App identifies itself: {text}");
        let body = serde_json::from_slice(&read[head..head + length]).unwrap_or_default();
        let path = text.split(' ').nth(1).unwrap_or_default().to_owned();
        read.drain(..head + length);
        let (status, answer) = answer(&path, body, &mut state.lock());
        let answer = answer.to_string();
        let head = format!("HTTP/1.1 {status} x\r\ncontent-length: {}\r\n\r\n", answer.len());
        if stream.write_all(format!("{head}{answer}").as_bytes()).await.is_err() {
            return;
        }
    }
}

trait Read {
    /// True at the end of the connection.
    fn is_at_end(self) -> bool;
}

impl Read for std::io::Result<usize> {
    fn is_at_end(self) -> bool {
        self.unwrap_or_default() == 0
    }
}

fn answer(path: &str, body: Value, state: &mut State) -> (u16, Value) {
    state.requests += 1;
    let parts: Vec<_> = path.trim_start_matches('/').split('/').collect();
    let all = json!({
        "contents": "write", "issues": "write", "metadata": "read", "pull_requests": "write", "workflows": "write",
        "administration": "write",
    });
    match parts[..] {
        ["repos", owner, name, "installation"] => match state.installed.get(&format!("{owner}/{name}")) {
            Some(id) => (200, json!({"id": id, "app_slug": "lumi-test", "permissions": all})),
            None => (404, json!({"message": "Not Found"})),
        },
        ["app", "installations", id, "access_tokens"] => {
            let permissions = body["permissions"].clone();
            state.minted.push((id.parse().unwrap(), body));
            let expires_at = NOW.plus(std::time::Duration::from_secs(3600)).to_string();
            let token = format!("ghs_{}{}", "a".repeat(36), state.minted.len());
            (201, json!({"token": token, "expires_at": expires_at, "permissions": permissions}))
        }
        _ => (404, json!({"message": "Not Found"})),
    }
}
