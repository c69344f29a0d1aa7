//! HTTP/1.1 by hand, so that a connection can break at every point.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{Shutdown, TcpStream},
};

use crate::harness::Value;

/// A request, read whole.
#[derive(Debug, Clone, Default)]
pub(crate) struct Request {
    pub method: String,
    /// Path without the query, as sent.
    pub path: String,
    pub query: String,
    headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Request {
    /// A header's value; empty if it is absent.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(it, _)| it.eq_ignore_ascii_case(name)).map_or("", |(_, value)| value)
    }

    /// A parameter of the query; empty if it is absent.
    pub(super) fn parameter(&self, name: &str) -> String {
        let mut pairs = url::form_urlencoded::parse(self.query.as_bytes());
        pairs.find(|(it, _)| it == name).map(|(_, value)| value.into_owned()).unwrap_or_default()
    }

    /// The body as JSON; `null` if it is not.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The parts of the path below `prefix`, percent-decoded; `None` if it is elsewhere.
    pub(super) fn parts_below(&self, prefix: &str) -> Option<Vec<String>> {
        let rest = self.path.strip_prefix(prefix)?;
        // As at GitHub, the slashes of a ref may be encoded.
        Some(decoded(rest).split('/').filter(|part| !part.is_empty()).map(str::to_owned).collect())
    }
}

fn decoded(part: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = part.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let code = after.get(..2).filter(|_| *first == b'%').and_then(|it| std::str::from_utf8(it).ok());
        match code.and_then(|code| u8::from_str_radix(code, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A response.
#[derive(Debug, Clone, Default)]
pub(crate) struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    pub(crate) fn json(status: u16, body: &Value) -> Self {
        let headers = vec![("Content-Type".to_owned(), "application/json; charset=utf-8".to_owned())];
        Self { status, headers, body: body.to_string().into_bytes() }
    }

    pub(super) fn text(status: u16, body: &str) -> Self {
        let headers = vec![("Content-Type".to_owned(), "text/plain; charset=utf-8".to_owned())];
        Self { status, headers, body: body.as_bytes().to_vec() }
    }

    pub(crate) fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    fn head(&self) -> String {
        let mut head = format!("HTTP/1.1 {} X\r\nContent-Length: {}\r\n", self.status, self.body.len());
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        head + "\r\n"
    }
}

/// One side of a connection.
pub(super) struct Connection {
    reader: BufReader<TcpStream>,
}

impl Connection {
    pub(super) fn new(stream: TcpStream) -> Self {
        let _ = stream.set_nodelay(true);
        Self { reader: BufReader::new(stream) }
    }

    /// The next request; `None` at the end of the connection.
    pub(super) fn next(&mut self) -> io::Result<Option<Request>> {
        let line = self.line()?;
        let mut words = line.split(' ');
        let (Some(method), Some(target)) = (words.next().filter(|it| !it.is_empty()), words.next()) else {
            return Ok(None);
        };
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let mut request =
            Request { method: method.into(), path: path.into(), query: query.into(), ..Request::default() };
        loop {
            let line = self.line()?;
            let Some((name, value)) = line.split_once(':') else { break };
            request.headers.push((name.to_owned(), value.trim().to_owned()));
        }
        if request.header("expect").eq_ignore_ascii_case("100-continue") {
            self.send(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        request.body = self.body(&request)?;
        Ok(Some(request))
    }

    fn body(&mut self, request: &Request) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        if !request.header("transfer-encoding").eq_ignore_ascii_case("chunked") {
            let length = request.header("content-length").parse().unwrap_or(0);
            self.reader.by_ref().take(length).read_to_end(&mut body)?;
            return Ok(body);
        }
        loop {
            let size = self.line()?;
            let size = u64::from_str_radix(size.split(';').next().unwrap_or_default().trim(), 16);
            let size = size.map_err(|_| io::ErrorKind::InvalidData)?;
            self.reader.by_ref().take(size).read_to_end(&mut body)?;
            self.line()?;
            if size == 0 {
                return Ok(body);
            }
        }
    }

    /// Sends a request without those headers that are of one connection.
    pub(super) fn send_request(&mut self, path: &str, request: &Request) -> io::Result<()> {
        const OF_CONNECTION: [&str; 6] =
            ["connection", "content-length", "transfer-encoding", "expect", "keep-alive", "accept-encoding"];
        let query = if request.query.is_empty() { String::new() } else { format!("?{}", request.query) };
        let mut head = format!("{} {path}{query} HTTP/1.1\r\nConnection: close\r\n", request.method);
        let is_kept = |name: &str| !OF_CONNECTION.contains(&name.to_ascii_lowercase().as_str());
        for (name, value) in request.headers.iter().filter(|(name, _)| is_kept(name)) {
            head += &format!("{name}: {value}\r\n");
        }
        head += &format!("Content-Length: {}\r\n\r\n", request.body.len());
        self.send(&[head.as_bytes(), &request.body].concat())
    }

    /// The answer to [`Self::send_request`].
    pub(super) fn next_response(&mut self) -> io::Result<Option<Response>> {
        // Apart from the first line, `HTTP/1.1 200 OK`, an answer has the form of a request.
        let Some(read) = self.next()? else { return Ok(None) };
        let is_kept =
            |name: &str| !["content-length", "transfer-encoding", "connection", "keep-alive"].contains(&name);
        let headers = read.headers.into_iter().filter(|(name, _)| is_kept(&name.to_ascii_lowercase())).collect();
        Ok(read.path.parse().ok().map(|status| Response { status, headers, body: read.body }))
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        self.reader.read_until(b'\n', &mut line)?;
        Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.reader.get_mut().write_all(bytes)
    }

    pub(super) fn answer(&mut self, response: &Response) -> io::Result<()> {
        self.send(&[response.head().as_bytes(), &response.body].concat())
    }

    /// Sends the head and half of the body.
    pub(super) fn truncate(&mut self, response: &Response) -> io::Result<()> {
        self.send(&[response.head().as_bytes(), &response.body[..response.body.len() / 2]].concat())
    }

    /// Sends the head, and then the body in ten pieces with `pause` before each.
    pub(super) fn drip(&mut self, response: &Response, mut pause: impl FnMut()) -> io::Result<()> {
        self.send(response.head().as_bytes())?;
        for piece in response.body.chunks(response.body.len().div_ceil(10).max(1)) {
            pause();
            self.send(piece)?;
        }
        Ok(())
    }

    pub(super) fn close(&self) {
        let _ = self.reader.get_ref().shutdown(Shutdown::Both);
    }
}
