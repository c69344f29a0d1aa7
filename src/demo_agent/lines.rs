//! Lines on stdin and stdout with a time limit for reading, so that a single thread sees a cancel during its work.

use std::{
    io::{self, Read as _, Stdin, Write},
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

use serde_json::Value;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Read {
    Text(String),
    /// The time limit expired.
    Silence,
    End,
}

/// Reads lines from stdin and writes lines to stdout.
pub(super) struct Lines {
    stdin: Stdin,
    buffer: Vec<u8>,
    ended: bool,
}

impl Lines {
    pub(crate) fn new() -> Self {
        Self { stdin: io::stdin(), buffer: Vec::new(), ended: false }
    }

    /// Returns the next line. Without a limit it waits for as long as stdin is open.
    pub(crate) fn read(&mut self, limit: Option<Duration>) -> io::Result<Read> {
        let deadline = limit.map(|limit| Instant::now() + limit);
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Ok(Read::Text(String::from_utf8_lossy(&line).trim_end().to_owned()));
            }
            if self.ended {
                return Ok(Read::End);
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if !self.ready(left)? {
                return Ok(Read::Silence);
            }
            let mut more = [0; 8192];
            // One read per readiness. The buffer of `Stdin` (8 KiB) is not larger than this one, so a read never
            // leaves bytes in it, which `poll` could not see.
            match read_fd(&mut self.stdin, &mut more)? {
                0 => self.ended = true,
                count => self.buffer.extend_from_slice(&more[..count]),
            }
        }
    }

    /// Sleeps without reading stdin.
    pub(crate) fn wait(&mut self, time: Duration) -> io::Result<()> {
        std::thread::park_timeout(time);
        Ok(())
    }

    /// Returns true if stdin is readable within the limit.
    fn ready(&self, limit: Option<Duration>) -> io::Result<bool> {
        // Rounded up: a wait that ended early would make the caller spin.
        let millis = limit.map_or(-1, |limit| i32::try_from(limit.as_micros().div_ceil(1000)).unwrap_or(i32::MAX));
        let mut poll = libc::pollfd { fd: self.stdin.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: the pointer is to one entry that is valid for the whole call.
        match unsafe { libc::poll(&raw mut poll, 1, millis) } {
            -1 if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => Ok(false),
            -1 => Err(io::Error::last_os_error()),
            count => Ok(count > 0),
        }
    }

    /// Writes a JSON-RPC message as one line.
    pub(crate) fn write(&mut self, message: &Value) -> io::Result<()> {
        self.write_raw(&message.to_string())
    }

    /// Writes a line without checking it, and flushes.
    pub(crate) fn write_raw(&mut self, line: &str) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(line.len() + 1);
        bytes.extend_from_slice(line.as_bytes());
        bytes.push(b'\n');
        let mut out = io::stdout().lock();
        out.write_all(&bytes)?;
        out.flush()
    }

    /// Writes this number of bytes without a line end.
    pub(crate) fn write_without_end(&mut self, bytes: u64) -> io::Result<()> {
        io::copy(&mut io::repeat(b'x').take(bytes), &mut io::stdout().lock())?;
        io::stdout().flush()
    }
}

fn read_fd(stdin: &mut Stdin, into: &mut [u8]) -> io::Result<usize> {
    stdin.read(into)
}
