//! Raw HTTP requests, for malformed and hostile ones.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use super::tokens;

/// A response read from the socket.
#[derive(Debug, Clone)]
pub(crate) struct RawAnswer {
    /// The status; 0 if the connection was closed without a response.
    pub status: u16,
    /// The header lines, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body as received, including chunk framing.
    pub body: String,
}

impl RawAnswer {
    /// The first header of this name, which has to be in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// A request, written exactly as built.
#[derive(Debug, Clone)]
pub(crate) struct RawRequest {
    line: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl RawRequest {
    /// Begins a request without any header.
    pub(crate) fn new(method: &str, path: &str) -> Self {
        Self { line: format!("{method} {path} HTTP/1.1"), headers: Vec::new(), body: Vec::new() }
    }

    /// Adds a header.
    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sets the body and `Content-Length`.
    pub(crate) fn body(mut self, body: &str) -> Self {
        self.body = body.as_bytes().to_vec();
        self.header("Content-Length", &body.len().to_string())
    }

    /// Sends it on a new connection and reads until the connection closes or nothing arrives for 10 s.
    pub(crate) fn send(self, to: SocketAddr) -> RawAnswer {
        let mut bytes = format!("{}\r\n", self.line);
        let has_token = self.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("authorization"));
        if let Some(token) = tokens::of(to).filter(|_| !has_token) {
            bytes.push_str(&format!("Authorization: Bearer {token}\r\n"));
        }
        for (name, value) in self.headers {
            bytes.push_str(&format!("{name}: {value}\r\n"));
        }
        bytes.push_str("Connection: close\r\n\r\n");
        let mut bytes = bytes.into_bytes();
        bytes.extend(self.body);
        exchange(to, &bytes)
    }
}

/// Writes bytes on a new connection and reads the response, until the connection closes or nothing arrives for 10 s.
pub(crate) fn exchange(to: SocketAddr, bytes: &[u8]) -> RawAnswer {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(10)).expect("the server listens");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout can be set");
    // A server may refuse the request and close before it has read everything, so a failed write is no error.
    let _ = stream.write_all(bytes);
    let mut text = Vec::new();
    let mut buffer = [0u8; 8192];
    while let Ok(read @ 1..) = stream.read(&mut buffer) {
        text.extend_from_slice(&buffer[..read]);
    }
    parse(&String::from_utf8_lossy(&text))
}

fn parse(text: &str) -> RawAnswer {
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((text, ""));
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|it| it.parse().ok()).unwrap_or(0);
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.trim().to_lowercase(), value.trim().to_owned()))
        .collect();
    RawAnswer { status, headers, body: body.to_owned() }
}
