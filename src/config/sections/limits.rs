//! `[limits]`: bounds of queues and payloads.

use serde::{Deserialize, Serialize};

use super::check::{Check, MAX_BYTES};

/// The smallest limit of a message, in bytes: the handshake of an agent that offers many models and modes takes about
/// 20 KiB.
const MIN_FRAME_BYTES: usize = 64 * 1024;

/// Bounds of queues and payloads.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Limits {
    /// Largest HTTP body, in bytes, 1 KiB to 1 GiB. Agents take prompts of 1 to 2 MB; 4 MiB leaves room for images.
    pub body_bytes: usize,
    /// Largest message to or from an agent, over ACP and over the fallback, in bytes, 64 KiB to 1 GiB. Tool calls carry
    /// whole files.
    pub frame_bytes: usize,
    /// ACP messages in a queue between two parts of the service, 1 to 1,000,000; the sender waits when it is full.
    pub queue_frames: usize,
    /// Bytes of ACP messages in such a queue, 1 KiB to 1 GiB; the sender waits when it is full.
    pub queue_bytes: usize,
    /// Events that a session keeps in memory for readers that reconnect, 1 to 1,000,000; older ones are evicted.
    pub replay_events: usize,
    /// Bytes of events that a session keeps in memory, 1 KiB to 1 GiB. With the default 1,000 sessions hold at most 262
    /// MB.
    pub replay_bytes: usize,
    /// The largest page of a list or transcript, in entries, 1 to 10,000.
    pub page_entries: usize,
    /// Writes that wait for the database before new work is refused, 2 to 10,000,000. Must be more than
    /// `capacity.max_sessions`, because each running turn reserves a place for its end.
    pub write_queue: usize,
    /// Largest patch of a diff, in bytes, 1 KiB to 1 GiB.
    pub diff_bytes: usize,
    /// Largest file whose content is compared for a diff, in bytes, 1 KiB to 1 GiB; larger ones are listed only. Source files
    /// are smaller; a file of 2 GB took 19 s of processor time.
    pub diff_file_bytes: u64,
    /// Largest transcript of one turn, in bytes, 64 KiB to 1 GiB. Then the transcript of the turn is cut with a note; the turn
    /// continues, and its readers get everything.
    pub transcript_turn_bytes: usize,
    /// Largest transcript of one session, in bytes, 64 KiB to 1 TiB. Then the transcript of each turn is its prompt and a
    /// note.
    pub transcript_session_bytes: usize,
    /// Commands that one agent may run at the same time through `terminal/*`, 1 to 10,000.
    pub terminals: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes: 4 * 1024 * 1024,
            frame_bytes: 16 * 1024 * 1024,
            queue_frames: 256,
            queue_bytes: 1024 * 1024,
            replay_events: 1000,
            replay_bytes: 256 * 1024,
            page_entries: 200,
            write_queue: 4096,
            diff_bytes: 1024 * 1024,
            diff_file_bytes: 8 * 1024 * 1024,
            transcript_turn_bytes: 16 * 1024 * 1024,
            transcript_session_bytes: 256 * 1024 * 1024,
            terminals: 16,
        }
    }
}

impl Limits {
    pub(super) fn validate(&self, check: &mut Check<'_>, max_sessions: usize) {
        for (setting, value, least, most) in [
            ("limits.body_bytes", self.body_bytes, 1024, MAX_BYTES),
            ("limits.frame_bytes", self.frame_bytes, MIN_FRAME_BYTES, MAX_BYTES),
            ("limits.queue_frames", self.queue_frames, 1, 1_000_000),
            ("limits.queue_bytes", self.queue_bytes, 1024, MAX_BYTES),
            ("limits.replay_events", self.replay_events, 1, 1_000_000),
            ("limits.replay_bytes", self.replay_bytes, 1024, MAX_BYTES),
            ("limits.page_entries", self.page_entries, 1, 10_000),
            ("limits.write_queue", self.write_queue, 2, 10_000_000),
            ("limits.diff_bytes", self.diff_bytes, 1024, MAX_BYTES),
            ("limits.transcript_turn_bytes", self.transcript_turn_bytes, 64 * 1024, MAX_BYTES),
            ("limits.transcript_session_bytes", self.transcript_session_bytes, 64 * 1024, 1024 * MAX_BYTES),
            ("limits.terminals", self.terminals, 1, 10_000),
        ] {
            check.range(setting, value, least..=most);
        }
        check.range("limits.diff_file_bytes", self.diff_file_bytes, 1024..=MAX_BYTES as u64);
        let what = format!(
            "is {}, must be more than capacity.max_sessions ({max_sessions}): each running turn reserves a place for \
             its end",
            self.write_queue
        );
        check.require(self.write_queue > max_sessions, "limits.write_queue", what);
    }
}
