//! Runs one turn with an agent's headless command: prompt on standard input, answer on standard output.

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
    domain::{
        redaction::stream::StreamRedaction,
        session::choices::{Offers, Reapplied},
        turn::{
            outcome::{ErrorCode, Failure},
            prompt::Kinds,
        },
    },
    process::{
        AgentProcess,
        group::{EndSwitch, Ended, Exit, Life, MAX_PIPE_BYTES},
    },
    transport::{
        AgentEvent, AgentFacts, AgentSession, CloseReason, Delivered, OpenedSession, SendError, TurnRequest,
    },
};

/// Largest read from the command, in bytes, and so about the largest text of one update.
const CHUNK_BYTES: usize = 16 * 1024;
/// Events that may wait for the turn: 256 KiB of text. While the queue is full the command is not read, so it blocks
/// on its pipe.
const EVENTS: usize = 16;
/// Number of the prompt's call, the only one of the session.
const CALL: u64 = 1;

/// Presents a headless command as an agent session with one turn.
///
/// Output of more than `max_bytes` fails the turn with `frame_too_large`. Dropping the session's link ends the
/// command. Spawns two tasks on the caller's tokio runtime, which end with the command or when the events are
/// dropped.
pub(crate) fn open(process: AgentProcess, max_bytes: usize) -> OpenedSession {
    let AgentProcess { stdin, stdout, life, exit } = process;
    let (sender, events) = mpsc::channel(EVENTS);
    let (prompt, prompted) = oneshot::channel();
    let cancelled = Arc::new(AtomicBool::new(false));
    let link = OneshotLink { prompt: Some(prompt), switch: life.switch(), cancelled: cancelled.clone(), _life: life };
    tokio::spawn(
        Output {
            events: sender.clone(),
            exit,
            cancelled,
            room: max_bytes,
            redaction: StreamRedaction::default(),
            held: Vec::new(),
        }
        .carry(stdout),
    );
    tokio::spawn(write(stdin, prompted, sender));
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
        offers: Offers::default(),
        reapplied: Reapplied::default(),
        cookies: None,
    };
    OpenedSession { link: Box::new(link), events: Box::pin(events), next_call: CALL, facts }
}

struct OneshotLink {
    prompt: Option<oneshot::Sender<String>>,
    switch: EndSwitch,
    cancelled: Arc<AtomicBool>,
    /// Dropping the value ends the command.
    _life: Life,
}

impl AgentSession for OneshotLink {
    fn prompt(&mut self, _: u64, turn: TurnRequest<'_>) -> Result<(), SendError> {
        let prompt = self.prompt.take().ok_or(SendError::Full)?;
        prompt.send(turn.prompt.as_text(turn.context)).map_err(|_| SendError::Closed)
    }

    /// Sends SIGTERM, and SIGKILL after the kill grace.
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

    fn set_model(&mut self, _: u64, _: &str) -> Result<(), SendError> {
        Err(SendError::Full)
    }

    fn close(&mut self, _: u64) -> Result<(), SendError> {
        Err(SendError::Full)
    }

    /// Does nothing: a headless command sends no requests.
    fn respond(&mut self, _: &RequestId, _: Result<serde_json::Value, RpcError>) -> Result<(), SendError> {
        Ok(())
    }

    fn delivered(&self) -> Arc<Delivered> {
        Arc::default()
    }
}

/// Writes the prompt and closes the pipe. Errors are ignored, because a command may exit without reading its input.
async fn write(mut stdin: pipe::Sender, prompted: oneshot::Receiver<String>, events: mpsc::Sender<AgentEvent>) {
    let Ok(text) = prompted.await else { return };
    tokio::select! {
        _ = stdin.write_all(text.as_bytes()) => {}
        () = events.closed() => {}
    }
}

/// The turn has dropped its events, so the output is not needed any more.
struct EventsDropped;

struct Output {
    events: mpsc::Sender<AgentEvent>,
    exit: Exit,
    cancelled: Arc<AtomicBool>,
    /// Bytes of output left until the limit.
    room: usize,
    redaction: StreamRedaction,
    /// Bytes that are not sent yet: between reads, the beginning of an incomplete character.
    held: Vec<u8>,
}

impl Output {
    async fn carry(mut self, stdout: pipe::Receiver) {
        // An error means that the turn no longer receives events.
        let _ = self.until_end(stdout).await;
    }

    async fn until_end(&mut self, mut stdout: pipe::Receiver) -> Result<(), EventsDropped> {
        let mut chunk = vec![0; CHUNK_BYTES];
        let ended = loop {
            tokio::select! {
                biased;
                read = stdout.read(&mut chunk) => match read {
                    Ok(read @ 1..) => self.forward(&chunk[..read]).await?,
                    // The command may continue after closing its output; the turn's inactivity timeout limits that.
                    _ => break self.exit_of().await?,
                },
                // Output that was printed before the exit may still be in the pipe.
                ended = self.exit.wait() => {
                    self.rest(stdout).await?;
                    break ended;
                },
                () = self.events.closed() => return Err(EventsDropped),
            }
        };
        self.held.extend_from_slice(&self.redaction.finish());
        self.flush().await?;
        self.send(self.end_of(ended)).await
    }

    async fn exit_of(&mut self) -> Result<Ended, EventsDropped> {
        tokio::select! {
            ended = self.exit.wait() => Ok(ended),
            () = self.events.closed() => Err(EventsDropped),
        }
    }

    /// Reads what an exited command left in its pipe. Does not wait for the end of the pipe, which a process that the
    /// command left behind may hold open.
    async fn rest(&mut self, stdout: pipe::Receiver) -> Result<(), EventsDropped> {
        let Ok(mut file) = stdout.into_nonblocking_fd().map(File::from) else { return Ok(()) };
        let mut chunk = vec![0; CHUNK_BYTES];
        let mut unread = MAX_PIPE_BYTES;
        while let Ok(read @ 1..) = file.read(&mut chunk)
            && let Some(left) = unread.checked_sub(read)
        {
            unread = left;
            self.forward(&chunk[..read]).await?;
        }
        Ok(())
    }

    async fn forward(&mut self, bytes: &[u8]) -> Result<(), EventsDropped> {
        let Some(room) = self.room.checked_sub(bytes.len()) else {
            let detail = "the output of the agent's headless command is larger than [limits] frame_bytes";
            let failure = Failure::new(ErrorCode::FrameTooLarge, detail);
            self.send(AgentEvent::Failed { call: CALL, failure }).await?;
            return Err(EventsDropped);
        };
        self.room = room;
        self.held.extend_from_slice(&self.redaction.push(bytes));
        // An incomplete character at the end waits for its remaining bytes.
        let begun = beginning_of_character(&self.held);
        let rest = self.held.split_off(self.held.len() - begun);
        self.flush().await?;
        self.held = rest;
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), EventsDropped> {
        if self.held.is_empty() {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&std::mem::take(&mut self.held)).into_owned();
        let content = json!({"type": "text", "text": text});
        let update = raw(&json!({"sessionUpdate": "agent_message_chunk", "content": content}));
        self.send(AgentEvent::Update { update, meta: None }).await
    }

    async fn send(&self, event: AgentEvent) -> Result<(), EventsDropped> {
        self.events.send(event).await.map_err(|_| EventsDropped)
    }

    fn end_of(&self, ended: Ended) -> AgentEvent {
        let stop_reason = match ended {
            // A command that exited after SIGTERM confirmed the cancellation; one that needed SIGKILL did not.
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

/// Number of bytes at the end that are the beginning of an incomplete UTF-8 character, 0 to 3.
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
    fn character_split_across_two_reads_is_held_until_complete() {
        for text in ["é", "語", "🦀", "a"] {
            let bytes = text.as_bytes();
            assert_eq!(beginning_of_character(bytes), 0, "{text}");
            for cut in 1..bytes.len() {
                assert_eq!(beginning_of_character(&bytes[..cut]), cut, "{text} cut at {cut}");
            }
        }
        assert_eq!(beginning_of_character(b"a\x80\x80\x80\x80"), 0, "invalid bytes are not held back");
    }
}
