//! ACP over the pipes of a child process: one JSON-RPC message per line, bounded in both directions.
//!
//! Two tasks serve each agent. The reader buffers at most one line up to the limit, and stops reading while the
//! receiver takes no frames. The writer sends all queued messages in one system call. Reading continues while a write
//! waits, so two large messages in opposite directions cannot deadlock.

use std::{
    fs::File,
    io::{self, Read},
    time::Duration,
};

use bytes::{Buf, BytesMut};
use futures_util::FutureExt;
use serde_json::value::RawValue;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::unix::pipe as unix_pipe,
    sync::mpsc,
    time::{Instant, sleep_until},
};

use super::{
    AgentProcess,
    group::{EndSwitch, Ended, Exit, Life, MAX_PIPE_BYTES},
};
use crate::{
    acp::{
        jsonrpc::{self, Message},
        schema::RequestId,
    },
    contract::runtime::{STRAY_LINE, StrayLine},
    domain::{
        redaction, text,
        turn::frames::{Chunk, FrameRedaction, chunk_of},
    },
    transport::pipe::{self, CloseReason, FrameReceiver, FrameSender, Incoming, Pipe, PipeLimits},
};

/// The most of a stray line that is forwarded, in characters (contract of [`STRAY_LINE`]).
const STRAY_LINE_CHARS: usize = 300;
/// Bytes requested in one read and gathered for one write: the default capacity of a pipe.
const CHUNK_BYTES: usize = 64 * 1024;
/// Capacity that the buffer of an idle connection may keep, in bytes; typical updates are a few hundred bytes.
const IDLE_BUFFER_BYTES: usize = 4 * 1024;

/// Time from the end of an agent's stdout to its termination by this program. An agent that is exiting does so within
/// microseconds.
const SILENT_EXIT_GRACE: Duration = Duration::from_secs(1);

/// Limits of the connection to one agent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StdioLimits {
    /// The longest line from the agent, in bytes.
    pub frame_bytes: usize,
    /// The queue limits of each direction.
    pub pipe: PipeLimits,
}

/// Intercepts some of the agent's requests, so that this program answers them instead of the client.
pub(crate) struct Interceptor {
    /// Returns true for the methods to intercept.
    pub takes: fn(&str) -> bool,
    /// Receives the intercepted requests. While it is full, the agent is not read.
    pub requests: mpsc::Sender<ClientRequest>,
    /// Supplies the answers to write to the agent.
    pub answers: FrameReceiver,
}

#[derive(Debug)]
pub(crate) struct ClientRequest {
    /// The id to repeat in the answer.
    pub id: RequestId,
    pub method: String,
    pub params: Box<RawValue>,
}

/// Connects an agent's process to a pipe.
///
/// Lines that are not JSON-RPC arrive as [`STRAY_LINE`] notifications. The pipe closes with
/// [`CloseReason::AgentExited`], after everything that the agent wrote, or with [`CloseReason::FrameTooLarge`].
/// Dropping the pipe's sender ends the agent.
///
/// Starts two tasks on the calling task's runtime.
pub(crate) fn connect(process: AgentProcess, limits: StdioLimits, interceptor: Option<Interceptor>) -> Pipe {
    let (to_agent, for_agent) = pipe::bounded(limits.pipe);
    let (to_client, from_agent) = pipe::bounded(limits.pipe);
    let (interceptor, answers) = match interceptor {
        Some(Interceptor { takes, requests, answers }) => (Some((takes, requests)), Some(answers)),
        None => (None, None),
    };
    let switch = process.life.switch();
    let lines = LineReader::new(process.stdout, limits.frame_bytes);
    let redaction = FrameRedaction::default();
    let reader = Reader { lines, to_client, interceptor, exit: process.exit, redaction, heard: Instant::now() };
    tokio::spawn(reader.run(switch));
    tokio::spawn(write_all(process.stdin, for_agent, answers, process.life));
    Pipe { to_agent, from_agent }
}

/// A line of the agent's output.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    Text(Vec<u8>),
    TooLong,
}

/// Splits bytes into lines of at most `limit` bytes.
#[derive(Debug)]
struct LineBuffer {
    bytes: BytesMut,
    /// Length of the prefix of `bytes` that is known to contain no line end.
    searched: usize,
    limit: usize,
}

impl LineBuffer {
    fn new(limit: usize) -> Self {
        Self { bytes: BytesMut::new(), searched: 0, limit }
    }

    /// Reads once from a non-blocking pipe. Returns 0 at its end.
    fn fill_from(&mut self, file: &mut File) -> io::Result<usize> {
        let mut chunk = [0; IDLE_BUFFER_BYTES];
        let room = self.reserve().min(chunk.len());
        let read = file.read(&mut chunk[..room])?;
        self.bytes.extend_from_slice(&chunk[..read]);
        Ok(read)
    }

    /// Returns the next complete line without its line end, or `None` if more has to be read first.
    fn next(&mut self) -> Option<Line> {
        match memchr::memchr(b'\n', &self.bytes[self.searched..]) {
            Some(at) if self.searched + at > self.limit => Some(Line::TooLong),
            Some(at) => {
                let line = self.bytes[..self.searched + at].to_vec();
                self.bytes.advance(self.searched + at + 1);
                self.searched = 0;
                Some(Line::Text(line))
            }
            None if self.bytes.len() > self.limit => Some(Line::TooLong),
            None => {
                self.searched = self.bytes.len();
                None
            }
        }
    }

    /// Returns the last line, if the output ended without a line end.
    fn rest(&mut self) -> Option<Line> {
        self.searched = 0;
        (!self.bytes.is_empty()).then(|| Line::Text(self.bytes.split().to_vec()))
    }

    /// Reserves space for the next read and returns its size in bytes: the buffer never exceeds the limit by more
    /// than one byte.
    fn reserve(&mut self) -> usize {
        // Releases the space of a large line: hundreds of idle agents would otherwise each retain their largest
        // message.
        if self.bytes.is_empty() && self.bytes.capacity() > IDLE_BUFFER_BYTES {
            self.bytes = BytesMut::new();
        }
        // The read size grows with the data, because most agents are idle most of the time.
        let wanted = self.bytes.len().clamp(IDLE_BUFFER_BYTES, CHUNK_BYTES);
        let room = (self.limit + 1).saturating_sub(self.bytes.len()).min(wanted);
        self.bytes.reserve(room);
        room
    }
}

struct LineReader {
    stdout: Option<unix_pipe::Receiver>,
    buffer: LineBuffer,
}

impl LineReader {
    fn new(stdout: unix_pipe::Receiver, limit: usize) -> Self {
        Self { stdout: Some(stdout), buffer: LineBuffer::new(limit) }
    }

    /// Reads once and returns the number of bytes; 0 at the end.
    ///
    /// # Cancel safety
    /// A dropped future has read nothing.
    async fn fill(&mut self) -> io::Result<usize> {
        let Some(stdout) = &mut self.stdout else { return Ok(0) };
        let room = self.buffer.reserve();
        stdout.read_buf(&mut bytes::BufMut::limit(&mut self.buffer.bytes, room)).await
    }

    /// Takes the stdout of an exited process, for reading it directly: tokio may not have seen yet that it is
    /// readable. Another process may hold the pipe open, so its end is not awaited.
    fn take_stdout(&mut self) -> Option<File> {
        self.stdout.take().and_then(|stdout| stdout.into_nonblocking_fd().ok()).map(File::from)
    }
}

struct Reader {
    lines: LineReader,
    to_client: FrameSender,
    interceptor: Option<ClientRequestQueue>,
    exit: Exit,
    redaction: FrameRedaction,
    /// The time of the agent's newest message.
    heard: Instant,
}

/// The test for intercepted methods, and the queue for their requests.
type ClientRequestQueue = (fn(&str) -> bool, mpsc::Sender<ClientRequest>);

/// A message of the agent.
enum Received {
    Intercepted(ClientRequest),
    ForClient { chunk: Option<Chunk>, is_answer: bool },
}

/// The receiver of the frames or requests was dropped.
struct ReceiverDropped;

impl Reader {
    async fn run(mut self, switch: EndSwitch) {
        let reason = match self.until_end(&switch).await {
            Err(ReceiverDropped) => return,
            Ok(reason) => reason,
        };
        // The rest of an oversized line cannot be interpreted, so the agent has to end.
        switch.end();
        self.to_client.close(reason).await;
    }

    async fn until_end(&mut self, switch: &EndSwitch) -> Result<CloseReason, ReceiverDropped> {
        let too_long = CloseReason::FrameTooLarge { limit: self.lines.buffer.limit };
        let ended = loop {
            if self.forward_lines().await? {
                return Ok(too_long);
            }
            let patience = self.redaction.patience();
            tokio::select! {
                biased;
                read = self.lines.fill() => if !matches!(read, Ok(1..)) {
                    break self.exit_without_output(switch).await?;
                },
                exited = self.exit.wait() => break exited,
                () = self.to_client.reader_dropped() => return Err(ReceiverDropped),
                () = sleep_until(self.heard + patience.unwrap_or_default()), if patience.is_some() => {
                    let mut due = Vec::new();
                    self.redaction.on_silence(self.heard.elapsed(), &mut due);
                    self.send_all(due).await?;
                }
            }
        };
        let mut stdout = self.lines.take_stdout();
        // A descendant that holds the pipe open may write without end, so the read ends after one full pipe.
        let mut unread = MAX_PIPE_BYTES;
        while let Some(stdout) = &mut stdout
            && let Ok(read @ 1..) = self.lines.buffer.fill_from(stdout)
            && let Some(left) = unread.checked_sub(read)
        {
            unread = left;
            if self.forward_lines().await? {
                return Ok(too_long);
            }
        }
        if let Some(Line::Text(line)) = self.lines.buffer.rest() {
            self.forward(line).await?;
        }
        let mut held = Vec::new();
        self.redaction.finish(&mut held);
        self.send_all(held).await?;
        Ok(CloseReason::AgentExited(ended.into()))
    }

    /// Waits for the exit of an agent that closed its stdout, and ends the agent after [`SILENT_EXIT_GRACE`].
    async fn exit_without_output(&mut self, switch: &EndSwitch) -> Result<Ended, ReceiverDropped> {
        let Self { exit, to_client, .. } = self;
        tokio::select! {
            ended = exit.wait() => return Ok(ended),
            () = to_client.reader_dropped() => return Err(ReceiverDropped),
            () = tokio::time::sleep(SILENT_EXIT_GRACE) => switch.end(),
        }
        tokio::select! {
            ended = exit.wait() => Ok(ended),
            () = to_client.reader_dropped() => Err(ReceiverDropped),
        }
    }

    /// Forwards the complete lines in the buffer. Returns true if a line exceeds the limit.
    async fn forward_lines(&mut self) -> Result<bool, ReceiverDropped> {
        while let Some(line) = self.lines.buffer.next() {
            match line {
                Line::TooLong => return Ok(true),
                Line::Text(line) => self.forward(line).await?,
            }
        }
        Ok(false)
    }

    async fn send_all(&self, messages: Vec<String>) -> Result<(), ReceiverDropped> {
        for message in messages {
            self.to_client.send(message).await.map_err(|_| ReceiverDropped)?;
        }
        Ok(())
    }

    async fn forward(&mut self, line: Vec<u8>) -> Result<(), ReceiverDropped> {
        // A message with a few bytes that are not UTF-8, such as output that a tool cut, is still a message.
        let line =
            String::from_utf8(line).unwrap_or_else(|cause| String::from_utf8_lossy(cause.as_bytes()).into_owned());
        if line.trim().is_empty() {
            return Ok(());
        }
        if let Some(message) = self.read(&line) {
            return self.forward_message(message, || line).await;
        }
        let found: Vec<_> = jsonrpc::recover(&line);
        if !found.iter().any(|text| self.read(text).is_some()) {
            return self.forward_stray(&line).await;
        }
        for text in found {
            match self.read(text) {
                Some(message) => self.forward_message(message, || text.to_owned()).await?,
                None => self.forward_stray(text).await?,
            }
        }
        Ok(())
    }

    /// Reads a text; `None` if it is not a message.
    fn read(&self, text: &str) -> Option<Received> {
        Some(match jsonrpc::parse(text).ok()? {
            Message::Request { id, method, params }
                if self.interceptor.as_ref().is_some_and(|(takes, _)| takes(&method)) =>
            {
                let (method, params) = (method.into_owned(), params.to_owned());
                Received::Intercepted(ClientRequest { id, method, params })
            }
            Message::Notification { params, .. } => {
                Received::ForClient { chunk: chunk_of(text, params), is_answer: false }
            }
            Message::Response { .. } => Received::ForClient { chunk: None, is_answer: true },
            Message::Request { .. } => Received::ForClient { chunk: None, is_answer: false },
        })
    }

    async fn forward_message(
        &mut self,
        message: Received,
        text: impl FnOnce() -> String,
    ) -> Result<(), ReceiverDropped> {
        self.heard = Instant::now();
        match (message, &self.interceptor) {
            (Received::Intercepted(request), Some((_, requests))) => {
                requests.send(request).await.map_err(|_| ReceiverDropped)
            }
            (Received::Intercepted(_), None) => Ok(()),
            (Received::ForClient { chunk, is_answer }, _) => {
                let mut messages = Vec::with_capacity(1);
                self.redaction.pass(text(), chunk, is_answer, &mut messages);
                self.send_all(messages).await
            }
        }
    }

    async fn forward_stray(&self, line: &str) -> Result<(), ReceiverDropped> {
        let stray = StrayLine { line: text::cut(redaction::known_of_text(line.trim()).as_ref(), STRAY_LINE_CHARS) };
        if stray.line.is_empty() {
            return Ok(());
        }
        self.to_client.send(jsonrpc::notification(STRAY_LINE, stray)).await.map_err(|_| ReceiverDropped)
    }
}

/// Writes queued messages to the agent until the client's sender is dropped, then ends the agent by dropping `life`.
async fn write_all(
    mut stdin: unix_pipe::Sender,
    mut frames: FrameReceiver,
    mut answers: Option<FrameReceiver>,
    life: Life,
) {
    let mut broken = false;
    loop {
        let first = tokio::select! {
            frame = frames.recv() => match frame {
                Some(Incoming::Frame(frame)) => Some(frame),
                _ => break,
            },
            answer = next_answer(&mut answers), if answers.is_some() => match answer {
                Some(Incoming::Frame(frame)) => Some(frame),
                _ => {
                    // The interceptor has ended; the client's messages are still written.
                    answers = None;
                    None
                }
            },
        };
        let Some(first) = first else { continue };
        let mut begins_turn = is_prompt(first.text());
        let mut bytes = as_line(first.into_text());
        // Combines queued messages into one write, and so into one wake-up of the agent.
        while bytes.len() < CHUNK_BYTES
            && let Some(frame) = ready_frame(&mut frames).or_else(|| ready_frame(answers.as_mut()?))
        {
            begins_turn |= is_prompt(frame.text());
            bytes.extend_from_slice(&as_line(frame.into_text()));
        }
        if begins_turn {
            life.begin_task();
        }
        // An agent that closed its stdin may still write: messages to it are dropped and the agent keeps running. A
        // write to an agent that does not read never finishes, so it must not keep the agent alive after the client
        // has disconnected.
        if !broken {
            tokio::select! {
                biased;
                written = stdin.write_all(&bytes) => broken = written.is_err(),
                () = frames.writers_dropped() => break,
            }
        }
    }
    // Close stdin before the agent is ended: some agents exit by themselves then.
    drop(stdin);
    drop(life);
}

/// True if a message to the agent is a prompt. Inside a JSON string the name of the method has other quotes.
fn is_prompt(text: &str) -> bool {
    memchr::memmem::find(text.as_bytes(), b"\"session/prompt\"").is_some()
}

async fn next_answer(answers: &mut Option<FrameReceiver>) -> Option<Incoming> {
    match answers {
        Some(answers) => answers.recv().await,
        None => std::future::pending().await,
    }
}

fn ready_frame(frames: &mut FrameReceiver) -> Option<pipe::Frame> {
    match frames.recv().now_or_never() {
        Some(Some(Incoming::Frame(frame))) => Some(frame),
        _ => None,
    }
}

/// Converts a message to one line. Line ends inside it become spaces: JSON allows them only as whitespace between
/// tokens.
fn as_line(text: String) -> Vec<u8> {
    let mut line = text.into_bytes();
    if memchr::memchr2(b'\n', b'\r', &line).is_some() {
        for byte in &mut line {
            if matches!(byte, b'\n' | b'\r') {
                *byte = b' ';
            }
        }
    }
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::super::AgentCommand;
    use super::*;
    use crate::process;

    fn lines_of(pieces: &[&[u8]], limit: usize) -> (Vec<Vec<u8>>, bool) {
        let mut buffer = LineBuffer::new(limit);
        let mut lines = Vec::new();
        for piece in pieces {
            let mut piece = *piece;
            while !piece.is_empty() {
                let room = buffer.reserve().min(piece.len());
                buffer.bytes.extend_from_slice(&piece[..room]);
                assert!(buffer.bytes.len() <= limit + 1, "the buffer exceeds the limit");
                piece = &piece[room..];
                while let Some(line) = buffer.next() {
                    match line {
                        Line::Text(line) => lines.push(line),
                        Line::TooLong => return (lines, true),
                    }
                }
            }
        }
        if let Some(Line::Text(line)) = buffer.rest() {
            lines.push(line);
        }
        (lines, false)
    }

    proptest! {
        #[test]
        fn splits_of_the_bytes_do_not_change_the_lines(
            lines in proptest::collection::vec("[a-z{}\"]{0,12}", 0..12),
            cuts in proptest::collection::vec(0usize..120, 0..8),
        ) {
            let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
            let bytes = text.as_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            let (found, too_long) = lines_of(&pieces, 12);
            prop_assert!(!too_long);
            prop_assert_eq!(found, lines.into_iter().map(String::into_bytes).collect::<Vec<_>>());
        }

        #[test]
        fn line_over_the_limit_is_detected_for_every_split(
            length in 13usize..200_000,
            piece in 1usize..70_000,
            ended: bool,
        ) {
            let mut bytes = b"{}\n".to_vec();
            bytes.extend(std::iter::repeat_n(b'x', length));
            if ended {
                bytes.push(b'\n');
            }
            let pieces: Vec<&[u8]> = bytes.chunks(piece).collect();
            prop_assert_eq!(lines_of(&pieces, 12), (vec![b"{}".to_vec()], true));
        }
    }

    const LIMITS: StdioLimits =
        StdioLimits { frame_bytes: 4 * 1024 * 1024, pipe: PipeLimits { frames: 16, bytes: 1024 * 1024 } };

    async fn agent(script: &str, limits: StdioLimits, interceptor: Option<Interceptor>) -> Pipe {
        let command = AgentCommand {
            program: "/bin/sh".into(),
            args: vec!["-c".into(), script.into()],
            env: BTreeMap::from([("PATH".to_owned(), "/usr/bin:/bin".into())]),
            run_as: None,
            cwd: "/".into(),
            kill_grace: Duration::from_millis(200),
            jail: None,
        };
        connect(process::spawn(command, ()).await.unwrap(), limits, interceptor)
    }

    async fn next(pipe: &mut Pipe) -> Incoming {
        tokio::time::timeout(Duration::from_secs(20), pipe.from_agent.recv()).await.unwrap().unwrap()
    }

    async fn next_text(pipe: &mut Pipe) -> String {
        match next(pipe).await {
            Incoming::Frame(frame) => frame.into_text(),
            other => panic!("closed: {other:?}"),
        }
    }

    #[tokio::test]
    async fn output_of_an_exited_agent_arrives_before_the_close_reason() {
        let script = r#"i=0; while [ $i -lt 300 ]; do echo "{\"method\":\"$i\"}"; i=$((i+1)); done
            printf '{"method":"last"}'; exit 3"#;
        let mut pipe = agent(script, LIMITS, None).await;
        for number in 0..300 {
            assert_eq!(next_text(&mut pipe).await, format!("{{\"method\":\"{number}\"}}"));
        }
        assert_eq!(next_text(&mut pipe).await, r#"{"method":"last"}"#);
        match next(&mut pipe).await {
            Incoming::Closed(CloseReason::AgentExited(exited)) => assert_eq!(exited.exit_code, Some(3)),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn stray_lines_become_notifications() {
        let script = "echo hello; echo; echo '{broken'; printf 'a\\377b\\n'; echo '{\"method\":\"m\"}'";
        let mut pipe = agent(script, LIMITS, None).await;
        for stray in ["hello", "{broken", "a\u{fffd}b"] {
            let text = next_text(&mut pipe).await;
            let value: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(value["method"], STRAY_LINE);
            assert_eq!(value["params"]["line"], stray);
        }
        assert_eq!(next_text(&mut pipe).await, "{\"method\":\"m\"}");
    }

    #[tokio::test]
    async fn decorated_messages_and_batches_become_messages_of_their_own() {
        let script = r#"printf '\357\273\277{"id":1,"result":1}\n\033]0;agent\007{"id":2,"result":2}\033[0m\r\n'
            printf '[{"id":3,"result":3},7,{"method":"m"}]\n{"id":4,"result":4}{"id":5,"result":5}\n'
            printf '\000\000{"method":"caf\351"}\n{"id":"evt_1","msg":"a line of a log"}\n'"#;
        let mut pipe = agent(script, LIMITS, None).await;
        for expected in [
            r#"{"id":1,"result":1}"#,
            r#"{"id":2,"result":2}"#,
            r#"{"id":3,"result":3}"#,
            r#"{"jsonrpc":"2.0","method":"_lumilink/stray_line","params":{"line":"7"}}"#,
            r#"{"method":"m"}"#,
            r#"{"id":4,"result":4}"#,
            r#"{"id":5,"result":5}"#,
            "{\"method\":\"caf\u{fffd}\"}",
        ] {
            assert_eq!(next_text(&mut pipe).await, expected);
        }
        assert!(next_text(&mut pipe).await.contains("stray_line"), "an entry of a log");
    }

    #[tokio::test]
    async fn endless_line_closes_the_connection_and_ends_the_agent() {
        let limits = StdioLimits { frame_bytes: 100_000, ..LIMITS };
        let mut pipe = agent("cat /dev/zero", limits, None).await;
        assert!(matches!(next(&mut pipe).await, Incoming::Closed(CloseReason::FrameTooLarge { limit: 100_000 })));
    }

    #[tokio::test]
    async fn large_messages_in_both_directions_do_not_deadlock() {
        let mut pipe = agent("cat", LIMITS, None).await;
        let large = format!("{{\"method\":\"{}\"}}", "x".repeat(3_000_000));
        for _ in 0..4 {
            let sender = pipe.to_agent.clone();
            let text = large.clone();
            tokio::spawn(async move { sender.send(text).await });
        }
        for _ in 0..4 {
            assert_eq!(next_text(&mut pipe).await.len(), large.len());
        }
    }

    #[tokio::test]
    async fn message_with_line_ends_is_written_as_one_line() {
        let mut pipe = agent("cat", LIMITS, None).await;
        pipe.to_agent.send("{\n \"method\":\r\n\"m\"}".into()).await.unwrap();
        assert_eq!(next_text(&mut pipe).await, "{  \"method\":  \"m\"}");
    }

    #[tokio::test]
    async fn agent_that_does_not_read_ends_with_its_pipe() {
        let mut pipe = agent("echo '{\"method\":\"up\"}'; exec sleep 1000", LIMITS, None).await;
        next_text(&mut pipe).await;
        for _ in 0..2 {
            pipe.to_agent.send(format!("{{\"method\":\"{}\"}}", "x".repeat(500_000))).await.unwrap();
        }
        drop(pipe.to_agent);
        let end = tokio::time::timeout(Duration::from_secs(20), pipe.from_agent.recv()).await.unwrap();
        assert!(matches!(end, Some(Incoming::Closed(CloseReason::AgentExited(_)))), "{end:?}");
    }

    #[tokio::test]
    async fn intercepted_requests_are_answered_without_the_client() {
        let (requests, mut intercepted) = mpsc::channel(4);
        let (answer, answers) = pipe::bounded(LIMITS.pipe);
        let interceptor = Interceptor { takes: |method| method.starts_with("fs/"), requests, answers };
        let script = r#"echo '{"id":1,"method":"fs/x","params":{"a":1}}'; echo '{"id":2,"method":"other"}'; cat"#;
        let mut pipe = agent(script, LIMITS, Some(interceptor)).await;
        assert_eq!(next_text(&mut pipe).await, r#"{"id":2,"method":"other"}"#);
        let request = intercepted.recv().await.unwrap();
        assert_eq!((request.method.as_str(), request.params.get()), ("fs/x", r#"{"a":1}"#));
        answer.send(jsonrpc::response(&request.id, Ok(true))).await.unwrap();
        assert_eq!(next_text(&mut pipe).await, r#"{"jsonrpc":"2.0","id":1,"result":true}"#);
    }
}
