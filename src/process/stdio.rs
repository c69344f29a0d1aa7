//! ACP over a child's pipes: one JSON-RPC message a line, bounded in both directions.
//!
//! Two tasks carry an agent: the reader never holds more than one line of at most the limit, and stops
//! reading while nobody takes its frames; the writer writes whatever is queued in one system call. Reading
//! continues while writing waits, so two large messages crossing each other do not lock up.

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
    domain::text,
    transport::pipe::{self, CloseReason, FrameReceiver, FrameSender, Incoming, Pipe, PipeLimits},
};

/// The largest part of a stray line that is passed on, in characters (contract of [`STRAY_LINE`]).
const STRAY_LINE_CHARS: usize = 300;
/// Bytes asked for in one read, and gathered for one write: the size of a pipe.
const CHUNK_BYTES: usize = 64 * 1024;
/// What an idle connection's buffer may keep; typical updates are a few hundred bytes.
const IDLE_BUFFER_BYTES: usize = 4 * 1024;

/// How long an agent may live on after it closed its stdout before it is ended. An exit follows within
/// microseconds.
const SILENT_EXIT_GRACE: Duration = Duration::from_secs(1);

/// Bounds of one agent's pipes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StdioLimits {
    /// The longest line, in bytes.
    pub frame_bytes: usize,
    /// What may wait in either direction.
    pub pipe: PipeLimits,
}

/// Takes some of the agent's requests out of the stream, to be answered on this side.
pub(crate) struct Interceptor {
    /// Whether requests of this method are taken.
    pub takes: fn(&str) -> bool,
    /// Where they go; when it is full the agent is not read.
    pub requests: mpsc::Sender<ClientRequest>,
    /// Answers to be written to the agent.
    pub answers: FrameReceiver,
}

/// A request that was taken out.
#[derive(Debug)]
pub(crate) struct ClientRequest {
    /// To be repeated in the answer.
    pub id: RequestId,
    pub method: String,
    pub params: Box<RawValue>,
}

/// Connects an agent. Stray lines come as [`STRAY_LINE`] notifications; the end comes as
/// [`CloseReason::AgentExited`] after everything the agent had said, or as
/// [`CloseReason::FrameTooLarge`]. Dropping the pipe's sender ends the agent.
///
/// Starts two tasks on the calling task's runtime.
pub(crate) fn connect(process: AgentProcess, limits: StdioLimits, interceptor: Option<Interceptor>) -> Pipe {
    let (to_agent, for_agent) = pipe::bounded(limits.pipe);
    let (said, from_agent) = pipe::bounded(limits.pipe);
    let (interceptor, answers) = match interceptor {
        Some(Interceptor { takes, requests, answers }) => (Some((takes, requests)), Some(answers)),
        None => (None, None),
    };
    let switch = process.life.switch();
    let lines = LineReader::new(process.stdout, limits.frame_bytes);
    let reader = Reader { lines, said, interceptor, exit: process.exit };
    tokio::spawn(reader.run(switch));
    tokio::spawn(write_all(process.stdin, for_agent, answers, process.life));
    Pipe { to_agent, from_agent }
}

/// What a read gave.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    Text(Vec<u8>),
    TooLong,
}

/// Cuts bytes into lines of at most `limit` bytes.
#[derive(Debug)]
struct LineBuffer {
    bytes: BytesMut,
    /// How much of `bytes` is known to have no line end.
    searched: usize,
    limit: usize,
}

impl LineBuffer {
    fn new(limit: usize) -> Self {
        Self { bytes: BytesMut::new(), searched: 0, limit }
    }

    /// Reads once from a pipe that does not block.
    fn fill_from(&mut self, file: &mut File) -> io::Result<usize> {
        let mut chunk = [0; IDLE_BUFFER_BYTES];
        let room = self.reserve().min(chunk.len());
        let read = file.read(&mut chunk[..room])?;
        self.bytes.extend_from_slice(&chunk[..read]);
        Ok(read)
    }

    /// The next whole line without its end; `None` when more has to be read first.
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

    /// What is left when nothing more comes: a last line without an end.
    fn rest(&mut self) -> Option<Line> {
        self.searched = 0;
        (!self.bytes.is_empty()).then(|| Line::Text(self.bytes.split().to_vec()))
    }

    /// Makes room for the next read and says how much may be read: never more than one byte over the limit.
    fn reserve(&mut self) -> usize {
        if self.bytes.is_empty() && self.bytes.capacity() > IDLE_BUFFER_BYTES {
            self.bytes = BytesMut::new();
        }
        // Grows with what comes: most agents are idle most of the time.
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

    /// Reads once; 0 at the end. Cancel-safe.
    async fn fill(&mut self) -> io::Result<usize> {
        let Some(stdout) = &mut self.stdout else { return Ok(0) };
        let room = self.buffer.reserve();
        stdout.read_buf(&mut bytes::BufMut::limit(&mut self.buffer.bytes, room)).await
    }

    /// The pipe of a process that has exited, to be read past tokio, which may not have been told yet that
    /// something is there. Another process may hold the pipe open, so its end is not awaited.
    fn take_stdout(&mut self) -> Option<File> {
        self.stdout.take().and_then(|stdout| stdout.into_nonblocking_fd().ok()).map(File::from)
    }
}

struct Reader {
    lines: LineReader,
    said: FrameSender,
    interceptor: Option<ClientRequestQueue>,
    exit: Exit,
}

/// What is taken, and where it goes.
type ClientRequestQueue = (fn(&str) -> bool, mpsc::Sender<ClientRequest>);

/// The receiver of the frames is gone.
struct NobodyListens;

impl Reader {
    async fn run(mut self, switch: EndSwitch) {
        let reason = match self.until_end(&switch).await {
            Err(NobodyListens) => return,
            Ok(reason) => reason,
        };
        // After a line that is too long nothing can be made of the rest.
        switch.end();
        self.said.close(reason).await;
    }

    async fn until_end(&mut self, switch: &EndSwitch) -> Result<CloseReason, NobodyListens> {
        let too_long = CloseReason::FrameTooLarge { limit: self.lines.buffer.limit };
        let ended = loop {
            if self.pass_on_lines().await? {
                return Ok(too_long);
            }
            tokio::select! {
                biased;
                read = self.lines.fill() => if !matches!(read, Ok(1..)) {
                    break self.exit_without_output(switch).await?;
                },
                exited = self.exit.wait() => break exited,
                () = self.said.reader_gone() => return Err(NobodyListens),
            }
        };
        let mut stdout = self.lines.take_stdout();
        let mut unread = MAX_PIPE_BYTES;
        while let Some(stdout) = &mut stdout
            && let Ok(read @ 1..) = self.lines.buffer.fill_from(stdout)
            && let Some(left) = unread.checked_sub(read)
        {
            unread = left;
            if self.pass_on_lines().await? {
                return Ok(too_long);
            }
        }
        if let Some(Line::Text(line)) = self.lines.buffer.rest() {
            self.pass_on(line).await?;
        }
        Ok(CloseReason::AgentExited(ended.into()))
    }

    /// The agent closed its stdout, usually because it is ending.
    async fn exit_without_output(&mut self, switch: &EndSwitch) -> Result<Ended, NobodyListens> {
        let Self { exit, said, .. } = self;
        tokio::select! {
            ended = exit.wait() => return Ok(ended),
            () = said.reader_gone() => return Err(NobodyListens),
            () = tokio::time::sleep(SILENT_EXIT_GRACE) => switch.end(),
        }
        tokio::select! {
            ended = exit.wait() => Ok(ended),
            () = said.reader_gone() => Err(NobodyListens),
        }
    }

    /// `true` when a line was too long.
    async fn pass_on_lines(&mut self) -> Result<bool, NobodyListens> {
        while let Some(line) = self.lines.buffer.next() {
            match line {
                Line::TooLong => return Ok(true),
                Line::Text(line) => self.pass_on(line).await?,
            }
        }
        Ok(false)
    }

    async fn pass_on(&mut self, line: Vec<u8>) -> Result<(), NobodyListens> {
        let line = match String::from_utf8(line) {
            Ok(line) => line,
            Err(cause) => return self.pass_on_stray(&String::from_utf8_lossy(cause.as_bytes())).await,
        };
        if line.trim().is_empty() {
            return Ok(());
        }
        let taken = match jsonrpc::parse(&line) {
            Err(_) => return self.pass_on_stray(&line).await,
            Ok(Message::Request { id, method, params })
                if self.interceptor.as_ref().is_some_and(|(takes, _)| takes(&method)) =>
            {
                Some(ClientRequest { id, method: method.into_owned(), params: params.to_owned() })
            }
            Ok(_) => None,
        };
        match (taken, &self.interceptor) {
            (Some(request), Some((_, requests))) => requests.send(request).await.map_err(|_| NobodyListens),
            _ => self.said.send(line).await.map_err(|_| NobodyListens),
        }
    }

    async fn pass_on_stray(&self, line: &str) -> Result<(), NobodyListens> {
        let stray = StrayLine { line: text::cut(line.trim(), STRAY_LINE_CHARS) };
        if stray.line.is_empty() {
            return Ok(());
        }
        self.said.send(jsonrpc::notification(STRAY_LINE, stray)).await.map_err(|_| NobodyListens)
    }
}

/// Writes until the client's sender is gone; `life` ends the agent then.
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
                    answers = None;
                    None
                }
            },
        };
        let Some(first) = first else { continue };
        let mut bytes = as_line(first.into_text());
        while bytes.len() < CHUNK_BYTES
            && let Some(frame) = ready_frame(&mut frames).or_else(|| ready_frame(answers.as_mut()?))
        {
            bytes.extend_from_slice(&as_line(frame.into_text()));
        }
        // An agent that closed its stdin may still talk: what is for it is dropped, its life continues. One
        // that does not read must not keep its life when nobody is left.
        if !broken {
            tokio::select! {
                biased;
                written = stdin.write_all(&bytes) => broken = written.is_err(),
                () = frames.writers_gone() => break,
            }
        }
    }
    // The end of stdin comes first: some agents leave by themselves then.
    drop(stdin);
    drop(life);
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

/// A line end inside a message is only white space between its parts: JSON has no other place for it.
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
                assert!(buffer.bytes.len() <= limit + 1, "more was held than the limit");
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
        fn any_split_of_the_bytes_gives_the_same_lines(
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
        fn a_line_over_the_limit_is_found_however_it_is_split(
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
    async fn output_of_a_dead_agent_precedes_its_end() {
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
    async fn lines_that_are_no_messages_become_notifications() {
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
    async fn a_line_without_end_closes_the_connection_and_ends_the_agent() {
        let limits = StdioLimits { frame_bytes: 100_000, ..LIMITS };
        let mut pipe = agent("cat /dev/zero", limits, None).await;
        assert!(matches!(next(&mut pipe).await, Incoming::Closed(CloseReason::FrameTooLarge { limit: 100_000 })));
    }

    #[tokio::test]
    async fn large_messages_cross_each_other_without_locking_up() {
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
    async fn a_message_with_line_ends_is_one_line() {
        let mut pipe = agent("cat", LIMITS, None).await;
        pipe.to_agent.send("{\n \"method\":\r\n\"m\"}".into()).await.unwrap();
        assert_eq!(next_text(&mut pipe).await, "{  \"method\":  \"m\"}");
    }

    #[tokio::test]
    async fn an_agent_that_does_not_read_ends_when_its_pipe_is_dropped() {
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
    async fn client_requests_are_intercepted_and_answered() {
        let (requests, mut taken) = mpsc::channel(4);
        let (answer, answers) = pipe::bounded(LIMITS.pipe);
        let interceptor = Interceptor { takes: |method| method.starts_with("fs/"), requests, answers };
        let script = r#"echo '{"id":1,"method":"fs/x","params":{"a":1}}'; echo '{"id":2,"method":"other"}'; cat"#;
        let mut pipe = agent(script, LIMITS, Some(interceptor)).await;
        assert_eq!(next_text(&mut pipe).await, r#"{"id":2,"method":"other"}"#);
        let request = taken.recv().await.unwrap();
        assert_eq!((request.method.as_str(), request.params.get()), ("fs/x", r#"{"a":1}"#));
        answer.send(jsonrpc::response(&request.id, Ok(true))).await.unwrap();
        assert_eq!(next_text(&mut pipe).await, r#"{"jsonrpc":"2.0","id":1,"result":true}"#);
    }
}
