//! Lines on stdin and stdout, with a limit on waiting: one thread sees a cancel in the middle of its work.

use std::{
    io::{self, Read as _, Stdin, Write},
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

use serde_json::Value;

/// Outcome of reading.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Read {
    Line(String),
    /// Nothing came in time.
    Silence,
    /// Nothing will come any more.
    End,
}

pub(super) struct Lines {
    stdin: Stdin,
    held: Vec<u8>,
    ended: bool,
}

impl Lines {
    pub(crate) fn new() -> Self {
        Self { stdin: io::stdin(), held: Vec::new(), ended: false }
    }

    /// The next line; waits without a limit where none is given.
    pub(crate) fn read(&mut self, limit: Option<Duration>) -> io::Result<Read> {
        let deadline = limit.map(|limit| Instant::now() + limit);
        loop {
            if let Some(end) = self.held.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.held.drain(..=end).collect();
                return Ok(Read::Line(String::from_utf8_lossy(&line).trim_end().to_owned()));
            }
            if self.ended {
                return Ok(Read::End);
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if !self.ready(left)? {
                return Ok(Read::Silence);
            }
            let mut more = [0; 8192];
            // One read for one readiness: stdin's own buffer is smaller than nothing it could hold back.
            match read_fd(&mut self.stdin, &mut more)? {
                0 => self.ended = true,
                count => self.held.extend_from_slice(&more[..count]),
            }
        }
    }

    /// Waits without reading.
    pub(crate) fn wait(&mut self, time: Duration) -> io::Result<()> {
        std::thread::park_timeout(time);
        Ok(())
    }

    /// Whether something can be read within the limit.
    fn ready(&self, limit: Option<Duration>) -> io::Result<bool> {
        // Rounded up, so that a wait never ends early and spins.
        let millis = limit.map_or(-1, |limit| i32::try_from(limit.as_micros().div_ceil(1000)).unwrap_or(i32::MAX));
        let mut poll = libc::pollfd { fd: self.stdin.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid entry is given, for the time of the call.
        match unsafe { libc::poll(&raw mut poll, 1, millis) } {
            -1 if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => Ok(false),
            -1 => Err(io::Error::last_os_error()),
            count => Ok(count > 0),
        }
    }

    /// Writes one message.
    pub(crate) fn write(&mut self, message: &Value) -> io::Result<()> {
        self.write_raw(&message.to_string())
    }

    /// Writes one line, whatever it is.
    pub(crate) fn write_raw(&mut self, line: &str) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(line.len() + 1);
        bytes.extend_from_slice(line.as_bytes());
        bytes.push(b'\n');
        let mut out = io::stdout().lock();
        out.write_all(&bytes)?;
        out.flush()
    }

    /// Writes so many bytes that are no line.
    pub(crate) fn write_without_end(&mut self, bytes: u64) -> io::Result<()> {
        io::copy(&mut io::repeat(b'x').take(bytes), &mut io::stdout().lock())?;
        io::stdout().flush()
    }
}

fn read_fd(stdin: &mut Stdin, into: &mut [u8]) -> io::Result<usize> {
    stdin.read(into)
}
