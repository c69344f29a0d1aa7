//! A git server on loopback whose progress never ends: one line without an end, as fast as the client reads it.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
};

/// The repository that it serves.
const PATH: &str = "octo/endless.git";
/// The commit that it claims to have.
const COMMIT: &str = "1234567890123456789012345678901234567890";
/// The longest packet of git, in bytes, without its length.
const PACKET_BYTES: usize = 65_516;

/// Serves until the test process ends.
pub(crate) struct EndlessGit {
    /// `127.0.0.1:PORT`, for `workspaces.git_hosts`.
    pub host: String,
}

impl EndlessGit {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let host = listener.local_addr().expect("an address").to_string();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // The client goes away in the middle of an answer.
                std::thread::spawn(move || drop(serve(stream)));
            }
        });
        Self { host }
    }

    pub(crate) fn repository(&self) -> String {
        format!("http://{}/{PATH}", self.host)
    }
}

fn packet(text: &[u8]) -> Vec<u8> {
    [format!("{:04x}", text.len() + 4).as_bytes(), text].concat()
}

/// Answers one request by protocol version 2, and closes the connection.
fn serve(stream: TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut first, mut length) = (String::new(), 0);
    reader.read_line(&mut first)?;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim().split_once(": ") else { break };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.parse().unwrap_or_default();
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let is_list = first.starts_with("GET");
    let kind = if is_list { "advertisement" } else { "result" };
    let mut stream = stream;
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: application/x-git-upload-pack-{kind}\r\nConnection: close\r\n\r\n"
    )?;
    if is_list {
        let lines: [&[u8]; 5] =
            [b"version 2\n", b"agent=endless\n", b"ls-refs\n", b"fetch=shallow\n", b"object-format=sha1\n"];
        stream.write_all(b"001e# service=git-upload-pack\n0000")?;
        return stream.write_all(&[lines.map(packet).concat(), b"0000".to_vec()].concat());
    }
    if String::from_utf8_lossy(&body).contains("command=ls-refs") {
        let head = packet(format!("{COMMIT} HEAD symref-target:refs/heads/main\n").as_bytes());
        let main = packet(format!("{COMMIT} refs/heads/main\n").as_bytes());
        return stream.write_all(&[head, main, b"0000".to_vec()].concat());
    }
    stream.write_all(&packet(b"packfile\n"))?;
    // The second band is progress.
    let mut progress = vec![b'x'; PACKET_BYTES];
    progress[0] = 2;
    let progress = packet(&progress);
    loop {
        stream.write_all(&progress)?;
    }
}
