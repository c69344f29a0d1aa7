//! An agent's headless command: the prompt on its standard input, the answer on its standard output, one turn.

use std::{
    fs::File,
    io::Read,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use futures_util::stream;
use serde_json::{json, value::RawValue};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::unix::pipe,
    sync::{mpsc, oneshot},
};

use crate::{
    acp::{jsonrpc::RpcError, schema::RequestId},
    domain::turn::{
        outcome::{ErrorCode, Failure},
        prompt::Kinds,
    },
    process::{
        AgentProcess,
        group::{EndSwitch, Ended, Exit, Life, MAX_PIPE_BYTES},
    },
    transport::{
        AgentEvent, AgentFacts, AgentSession, CloseReason, Delivered, OpenedSession, SendError, TurnRequest,
    },
};

/// Bytes that one update carries at most.
const CHUNK_BYTES: usize = 16 * 1024;
/// Updates that wait for the turn; then the command is not read, and waits itself.
const EVENTS: usize = 16;
const CALL: u64 = 1;

/// Gives the command of one turn the form of a conversation. More than `most_bytes` of output fail the turn. Dropping
/// the link ends the command. Starts a task on the calling task's runtime.
pub(crate) fn open(process: AgentProcess, most_bytes: usize) -> OpenedSession {
    let AgentProcess { stdin, stdout, life, exit } = process;
    let (says, events) = mpsc::channel(EVENTS);
    let (prompt, asked) = oneshot::channel();
    let cancelled = Arc::new(AtomicBool::new(false));
    let link = OneshotLink { prompt: Some(prompt), switch: life.switch(), cancelled: cancelled.clone(), _life: life };
    tokio::spawn(Output { says: says.clone(), exit, cancelled, room: most_bytes, held: Vec::new() }.carry(stdout));
    tokio::spawn(write(stdin, asked, says));
    let events = stream::unfold(events, |mut events| async {
        let event = events.recv().await?;
        Some((event, events))
    });
    let facts = AgentFacts {
        connection_id: String::new(),
        protocol_version: None,
        agent_session_id: String::new(),
        remembers: false,
        takes: Kinds { embedded: true, ..Kinds::default() },
        can_close: false,
        info: None,
        capabilities: None,
        modes: None,
        config_options: None,
        cookies: None,
    };
    OpenedSession { link: Box::new(link), events: Box::pin(events), next_call: CALL, facts }
}

struct OneshotLink {
    prompt: Option<oneshot::Sender<String>>,
    switch: EndSwitch,
    cancelled: Arc<AtomicBool>,
    /// Dropped, the command ends.
    _life: Life,
}

impl AgentSession for OneshotLink {
    fn prompt(&mut self, _: u64, turn: TurnRequest<'_>) -> Result<(), SendError> {
        let prompt = self.prompt.take().ok_or(SendError::Full)?;
        prompt.send(turn.prompt.as_text(turn.context)).map_err(|_| SendError::Closed)
    }

    /// SIGTERM, and SIGKILL after the grace of processes.
    fn cancel(&mut self) -> Result<(), SendError> {
        self.cancelled.store(true, Ordering::Release);
        self.switch.end();
        Ok(())
    }

    fn set_mode(&mut self, _: u64, _: &str) -> Result<(), SendError> {
        Err(SendError::Full)
    }

    fn set_config_option(&mut self, _: u64, _: &str, _: &serde_json::Value) -> Result<(), SendError> {
        Err(SendError::Full)
    }

    fn close(&mut self, _: u64) -> Result<(), SendError> {
        Err(SendError::Full)
    }

    /// It asks nothing.
    fn respond(&mut self, _: &RequestId, _: Result<serde_json::Value, RpcError>) -> Result<(), SendError> {
        Ok(())
    }

    fn delivered(&self) -> Arc<Delivered> {
        Arc::default()
    }
}

/// Writes the prompt and closes the pipe; a command that does not read it is its own business.
async fn write(mut stdin: pipe::Sender, asked: oneshot::Receiver<String>, says: mpsc::Sender<AgentEvent>) {
    let Ok(text) = asked.await else { return };
    tokio::select! {
        _ = stdin.write_all(text.as_bytes()) => {}
        () = says.closed() => {}
    }
}

/// Nobody wants the output any more.
struct NobodyListens;

struct Output {
    says: mpsc::Sender<AgentEvent>,
    exit: Exit,
    cancelled: Arc<AtomicBool>,
    /// Bytes that may still come.
    room: usize,
    /// The beginning of a character.
    held: Vec<u8>,
}

impl Output {
    async fn carry(mut self, stdout: pipe::Receiver) {
        // An error means that nobody wants to know.
        let _ = self.until_end(stdout).await;
    }

    async fn until_end(&mut self, mut stdout: pipe::Receiver) -> Result<(), NobodyListens> {
        let mut chunk = vec![0; CHUNK_BYTES];
        let ended = loop {
            tokio::select! {
                biased;
                read = stdout.read(&mut chunk) => match read {
                    Ok(read @ 1..) => self.send_text(&chunk[..read]).await?,
                    // It may continue without an output; the turn's own limit watches over that.
                    _ => break self.exit_of().await?,
                },
                ended = self.exit.wait() => {
                    self.rest(stdout).await?;
                    break ended;
                },
                () = self.says.closed() => return Err(NobodyListens),
            }
        };
        self.flush().await?;
        self.send(self.end_of(ended)).await
    }

    async fn exit_of(&mut self) -> Result<Ended, NobodyListens> {
        tokio::select! {
            ended = self.exit.wait() => Ok(ended),
            () = self.says.closed() => Err(NobodyListens),
        }
    }

    /// What a process that has exited left in its pipe. Another one may hold the pipe open, so its end is not awaited.
    async fn rest(&mut self, stdout: pipe::Receiver) -> Result<(), NobodyListens> {
        let Ok(mut file) = stdout.into_nonblocking_fd().map(File::from) else { return Ok(()) };
        let mut chunk = vec![0; CHUNK_BYTES];
        let mut unread = MAX_PIPE_BYTES;
        while let Ok(read @ 1..) = file.read(&mut chunk)
            && let Some(left) = unread.checked_sub(read)
        {
            unread = left;
            self.send_text(&chunk[..read]).await?;
        }
        Ok(())
    }

    async fn send_text(&mut self, bytes: &[u8]) -> Result<(), NobodyListens> {
        let Some(room) = self.room.checked_sub(bytes.len()) else {
            let detail = "the agent's headless command printed more than a message may have ([limits] frame_bytes)";
            let failure = Failure::new(ErrorCode::FrameTooLarge, detail);
            self.send(AgentEvent::Failed { call: CALL, failure }).await?;
            return Err(NobodyListens);
        };
        self.room = room;
        self.held.extend_from_slice(bytes);
        let begun = beginning_of_character(&self.held);
        let rest = self.held.split_off(self.held.len() - begun);
        self.flush().await?;
        self.held = rest;
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), NobodyListens> {
        if self.held.is_empty() {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&std::mem::take(&mut self.held)).into_owned();
        let content = json!({"type": "text", "text": text});
        let update = raw(&json!({"sessionUpdate": "agent_message_chunk", "content": content}));
        self.send(AgentEvent::Update { update, meta: None }).await
    }

    async fn send(&self, event: AgentEvent) -> Result<(), NobodyListens> {
        self.says.send(event).await.map_err(|_| NobodyListens)
    }

    fn end_of(&self, ended: Ended) -> AgentEvent {
        let stop_reason = match ended {
            // Told to end, it ended; one that had to be killed did not.
            _ if self.cancelled.load(Ordering::Acquire) && ended.signal != Some(libc::SIGKILL) => "cancelled",
            Ended { exit_code: Some(0), .. } => "end_turn",
            ended => return AgentEvent::Closed(CloseReason::AgentExited(ended.into())),
        };
        AgentEvent::Answered { call: CALL, result: Ok(raw(&json!({"stopReason": stop_reason}))) }
    }
}

fn raw(value: &serde_json::Value) -> Box<RawValue> {
    serde_json::value::to_raw_value(value).unwrap_or_else(|_| RawValue::NULL.to_owned())
}

/// How many bytes at the end are the beginning of a character whose rest has not come.
fn beginning_of_character(bytes: &[u8]) -> usize {
    for (back, byte) in bytes.iter().rev().take(3).enumerate() {
        let needed = match byte {
            0xc0..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf7 => 4,
            0x80..=0xbf => continue,
            _ => return 0,
        };
        return if needed > back + 1 { back + 1 } else { 0 };
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_character_that_comes_in_two_reads_is_kept_whole() {
        for text in ["é", "語", "🦀", "a"] {
            let bytes = text.as_bytes();
            assert_eq!(beginning_of_character(bytes), 0, "{text}");
            for cut in 1..bytes.len() {
                assert_eq!(beginning_of_character(&bytes[..cut]), cut, "{text} cut at {cut}");
            }
        }
        assert_eq!(
            beginning_of_character(b"a\x80\x80\x80\x80"),
            0,
            "what never becomes a character is not waited for"
        );
    }
}
