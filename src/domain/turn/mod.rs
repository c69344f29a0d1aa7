//! One prompt turn: its states, its progress, and its one outcome.

pub(crate) mod agent_error;
pub(crate) mod outcome;
pub(crate) mod payload;
pub(crate) mod prompt;
pub(crate) mod replay;
pub(crate) mod transcript;
pub(crate) mod update;

use serde::Deserialize;
use serde_json::value::RawValue;

use self::{
    agent_error::classify_agent_error,
    outcome::{ErrorCode, Failure},
    update::UpdateView,
};
use super::{clock::Timestamp, text, words::words};
use crate::acp::{jsonrpc::RpcError, schema::StopReason};

words! {
    /// State of a turn.
    TurnState {
        /// Persisted; the prompt was not sent to the agent yet.
        Accepted = "accepted",
        /// The prompt was sent to the agent.
        Running = "running",
        /// The agent ended the turn.
        Completed = "completed",
        /// Ended because a caller cancelled it.
        Cancelled = "cancelled",
        /// Ended with an error.
        Failed = "failed",
        /// The service stopped during the turn.
        Interrupted = "interrupted",
    }
}

words! {
    /// Initiator of a turn.
    TurnInitiator {
        /// A caller sent a prompt.
        User = "user",
        /// The agent began the turn by itself, for example when a background task ended. It has no prompt and no stop
        /// reason.
        Agent = "agent",
    }
}

words! {
    /// Phase of a turn's end.
    TurnPhase {
        /// The agent has not ended the turn.
        Agent = "agent",
        /// The agent has ended the turn, and automation of its changes has not.
        Automation = "automation",
        /// The turn is closed.
        Closed = "closed",
    }
}

impl TurnState {
    /// True for the states in which a turn ends.
    pub(crate) fn is_final(self) -> bool {
        !matches!(self, Self::Accepted | Self::Running)
    }
}

/// The end of a turn; exactly one for each turn that began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TurnOutcome {
    /// The agent answered with a stop reason other than `cancelled`.
    Completed(StopReason),
    Cancelled {
        /// True if the agent confirmed the cancel; false if it was killed or exited.
        confirmed: bool,
    },
    Failed(Failure),
}

impl TurnOutcome {
    /// Every value of [`Self::label`], for metrics that start at 0.
    pub(crate) const LABELS: [&'static str; 4] = ["completed", "cancelled", "failed", "interrupted"];

    /// The final state of the turn.
    pub(crate) fn state(&self) -> TurnState {
        match self {
            Self::Completed(_) => TurnState::Completed,
            Self::Cancelled { .. } => TurnState::Cancelled,
            Self::Failed(failure) if failure.code == ErrorCode::Interrupted => TurnState::Interrupted,
            Self::Failed(_) => TurnState::Failed,
        }
    }

    /// The outcome of a turn whose agent or agent connection failed.
    pub(crate) fn of_failure(failure: Failure, cancel_asked: bool) -> Self {
        // An agent that exits after a cancel has ended the turn as requested.
        if cancel_asked { Self::Cancelled { confirmed: false } } else { Self::Failed(failure) }
    }

    /// The value of the metric label `outcome`.
    pub(crate) fn label(&self) -> &'static str {
        self.state().as_str()
    }
}

words! {
    /// Initiator of a cancel.
    CancelCause {
        /// A caller cancelled the turn.
        User = "user",
        /// A caller closed the session.
        Close = "close",
        /// The service is stopping.
        Drain = "drain",
    }
}

/// Token counts of a turn, if the agent reports them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Usage {
    pub input_tokens: u64,
    pub output_tokens: u64,
}

/// Parses an agent's answer to `session/prompt`. A stop reason other than the five of protocol version 1 is a protocol
/// violation.
pub(crate) fn read_prompt_answer(answer: Result<&RawValue, RpcError>) -> (TurnOutcome, Option<Usage>) {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Answer {
        stop_reason: String,
        #[serde(default)]
        usage: Option<AnswerUsage>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct AnswerUsage {
        #[serde(default)]
        input_tokens: u64,
        #[serde(default)]
        output_tokens: u64,
    }

    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => return (TurnOutcome::Failed(classify_agent_error(&error)), None),
    };
    let parsed: Answer = match serde_json::from_str(answer.get()) {
        Ok(parsed) => parsed,
        Err(cause) => {
            let detail = format!("the agent's answer to the prompt has no usable stop reason: {cause}");
            return (TurnOutcome::Failed(Failure::new(ErrorCode::ProtocolViolation, detail)), None);
        }
    };
    let usage =
        parsed.usage.map(|usage| Usage { input_tokens: usage.input_tokens, output_tokens: usage.output_tokens });
    let outcome = match parsed.stop_reason.as_str() {
        "end_turn" => TurnOutcome::Completed(StopReason::EndTurn),
        "max_tokens" => TurnOutcome::Completed(StopReason::MaxTokens),
        "max_turn_requests" => TurnOutcome::Completed(StopReason::MaxTurnRequests),
        "refusal" => TurnOutcome::Completed(StopReason::Refusal),
        "cancelled" => TurnOutcome::Cancelled { confirmed: true },
        other => {
            let detail = format!("the agent ended the turn with the unknown stop reason {:?}", text::cut(other, 64));
            TurnOutcome::Failed(Failure::new(ErrorCode::ProtocolViolation, detail))
        }
    };
    (outcome, usage)
}

/// Like [`read_prompt_answer`], for a turn that may have been cancelled: then it ends as cancelled, whatever stop reason
/// the agent gives. The caller of the cancel was promised that.
pub(crate) fn read_prompt_end(
    answer: Result<&RawValue, RpcError>,
    cancel_asked: bool,
) -> (TurnOutcome, Option<Usage>) {
    match answer {
        // Some agents answer a cancelled prompt with the error of their own aborted request.
        Err(_) if cancel_asked => (TurnOutcome::Cancelled { confirmed: true }, None),
        answer => match read_prompt_answer(answer) {
            (TurnOutcome::Completed(_), usage) if cancel_asked => (TurnOutcome::Cancelled { confirmed: true }, usage),
            ended => ended,
        },
    }
}

/// The spec name of a stop reason.
pub(crate) fn stop_reason_name(reason: StopReason) -> &'static str {
    match reason {
        StopReason::EndTurn => "end_turn",
        StopReason::MaxTokens => "max_tokens",
        StopReason::MaxTurnRequests => "max_turn_requests",
        StopReason::Refusal => "refusal",
        StopReason::Cancelled => "cancelled",
        _ => "unknown",
    }
}

/// The longest `meta.message`, in bytes. It keeps a result below 32 KB, whatever the agent sends.
pub(crate) const MAX_MESSAGE_BYTES: usize = 16 * 1024;
/// The most diagnostics of a result.
pub(crate) const MAX_DIAGNOSTICS: usize = 100;
/// The longest message of a diagnostic, in characters; [`MAX_DIAGNOSTICS`] of them fit into a result beside the message.
pub(crate) const MAX_DIAGNOSTIC_CHARS: usize = 300;

words! {
    /// The severity of a diagnostic.
    Severity {
        /// Details for developers.
        Debug = "debug",
        Info = "info",
        /// A fault that was tolerated.
        Warn = "warn",
        /// A loss, such as dropped output.
        Error = "error",
    }
}

/// A remark about a turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Diagnostic {
    pub severity: Severity,
    /// One sentence, at most [`MAX_DIAGNOSTIC_CHARS`] characters.
    pub message: String,
}

/// The parts of a turn's result that accumulate while the turn runs; bounded, whatever the agent sends.
#[derive(Debug)]
pub(crate) struct TurnProgress {
    pub accepted_at: Timestamp,
    /// The time at which the prompt was sent to the agent.
    pub sent_at: Option<Timestamp>,
    pub first_update_at: Option<Timestamp>,
    pub updates: u64,
    /// True once the agent sent a part of an answer: text, a thought, a tool call or a plan.
    pub has_output: bool,
    /// The agent's message text so far, cut at [`MAX_MESSAGE_BYTES`].
    pub message: String,
    /// True once the message was cut.
    pub message_cut: bool,
    /// The first half of a character at the end of the message.
    message_half: Option<u16>,
    /// Token counts, once the agent has reported them.
    pub usage: Option<Usage>,
    /// At most [`MAX_DIAGNOSTICS`].
    pub diagnostics: Vec<Diagnostic>,
    /// Lines of the agent's output that were not JSON.
    pub stray_lines: u32,
}

/// Kinds of updates that report a state or repeat the prompt.
const NO_OUTPUT: [&str; 6] = [
    "user_message_chunk",
    "available_commands_update",
    "current_mode_update",
    "config_option_update",
    "session_info_update",
    "usage_update",
];

/// True if an update is part of an answer. A kind that this version does not know is.
fn is_output(view: &UpdateView) -> bool {
    !NO_OUTPUT.contains(&view.kind.as_str()) && view.text.as_deref() != Some("")
}

/// Stray lines that a turn tolerates; one more is a protocol violation.
pub(crate) const MAX_STRAY_LINES: u32 = 10;

impl TurnProgress {
    pub(crate) fn new(accepted_at: Timestamp) -> Self {
        Self {
            accepted_at,
            sent_at: None,
            first_update_at: None,
            updates: 0,
            has_output: false,
            message: String::new(),
            message_cut: false,
            message_half: None,
            usage: None,
            diagnostics: Vec::new(),
            stray_lines: 0,
        }
    }

    /// Counts one update and adds its text if it is a chunk of the agent's message.
    pub(crate) fn take(&mut self, view: Option<&UpdateView>, now: Timestamp) {
        self.on_update(now);
        self.has_output |= view.is_some_and(is_output);
        if let Some(UpdateView { kind, text: Some(text), .. }) = view
            && kind == "agent_message_chunk"
        {
            let mut half = self.message_half.take();
            self.on_message_text(&text.after(&mut half));
            self.message_half = half;
        }
    }

    pub(crate) fn on_update(&mut self, now: Timestamp) {
        self.updates += 1;
        self.first_update_at.get_or_insert(now);
    }

    /// Adds the text of an `agent_message_chunk`; text beyond [`MAX_MESSAGE_BYTES`] is dropped.
    pub(crate) fn on_message_text(&mut self, chunk: &str) {
        if self.message_cut {
            return;
        }
        let room = MAX_MESSAGE_BYTES - self.message.len();
        if chunk.len() <= room {
            self.message.push_str(chunk);
        } else {
            self.message.push_str(text::cut_bytes(chunk, room));
            self.message_cut = true;
        }
    }

    /// Adds a diagnostic. Beyond [`MAX_DIAGNOSTICS`] new ones are dropped: the first ones are closest to the cause.
    pub(crate) fn remark(&mut self, severity: Severity, message: impl AsRef<str>) {
        if self.diagnostics.len() < MAX_DIAGNOSTICS {
            let message = text::cut(message.as_ref(), MAX_DIAGNOSTIC_CHARS);
            self.diagnostics.push(Diagnostic { severity, message });
        }
    }

    /// Records a line of the agent's output that was not JSON.
    ///
    /// # Errors
    /// After more than [`MAX_STRAY_LINES`] lines; the caller ends the turn with the failure.
    pub(crate) fn on_stray_line(&mut self, line: &str) -> Result<(), Failure> {
        self.stray_lines += 1;
        self.remark(Severity::Warn, format!("the agent printed a line that is not JSON: {line}"));
        if self.stray_lines > MAX_STRAY_LINES {
            let detail = format!("the agent printed more than {MAX_STRAY_LINES} lines that are not JSON in one turn");
            return Err(Failure::new(ErrorCode::ProtocolViolation, detail));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, test_runner::RngAlgorithm};

    use super::{update::view_update, *};

    fn raw(text: &str) -> Box<RawValue> {
        RawValue::from_string(text.to_owned()).unwrap()
    }

    #[test]
    fn only_the_protocols_stop_reasons_end_a_turn_without_failure() {
        for (name, state) in [
            ("end_turn", TurnState::Completed),
            ("max_tokens", TurnState::Completed),
            ("max_turn_requests", TurnState::Completed),
            ("refusal", TurnState::Completed),
            ("cancelled", TurnState::Cancelled),
            ("tired", TurnState::Failed),
        ] {
            let answer = raw(&format!(r#"{{"stopReason":"{name}"}}"#));
            assert_eq!(read_prompt_answer(Ok(&answer)).0.state(), state, "{name}");
        }
        assert_eq!(read_prompt_answer(Ok(&raw("null"))).0.state(), TurnState::Failed);
    }

    #[test]
    fn error_confirms_a_cancel_only_if_a_cancel_was_asked() {
        let cancelled = || RpcError::new(-32800, "Request cancelled");
        assert_eq!(read_prompt_end(Err(cancelled()), true).0, TurnOutcome::Cancelled { confirmed: true });
        assert_eq!(read_prompt_end(Err(cancelled()), false).0.state(), TurnState::Failed);
    }

    #[test]
    fn turn_whose_cancel_was_promised_ends_cancelled_with_any_stop_reason() {
        for (name, state) in [
            ("end_turn", TurnState::Cancelled),
            ("refusal", TurnState::Cancelled),
            ("cancelled", TurnState::Cancelled),
            ("tired", TurnState::Failed),
        ] {
            let answer = raw(&format!(r#"{{"stopReason":"{name}","usage":{{"inputTokens":3,"outputTokens":4}}}}"#));
            let (outcome, usage) = read_prompt_end(Ok(&answer), true);
            assert_eq!(outcome.state(), state, "{name}");
            assert_eq!(usage, Some(Usage { input_tokens: 3, output_tokens: 4 }), "what was used is still reported");
        }
    }

    #[test]
    fn state_updates_and_empty_chunks_are_no_output() {
        let mut progress = TurnProgress::new(Timestamp(0));
        let view = |kind: &str, text: &str| {
            view_update(&raw(&format!(r#"{{"sessionUpdate":"{kind}","content":{{"type":"text","text":"{text}"}}}}"#)))
        };
        for (kind, text) in [("usage_update", ""), ("agent_message_chunk", ""), ("user_message_chunk", "prompt")] {
            progress.take(view(kind, text).as_ref(), Timestamp(1));
            assert!(!progress.has_output, "{kind}");
        }
        progress.take(view("tool_call", "").as_ref(), Timestamp(1));
        assert!(progress.has_output);
    }

    #[test]
    fn usage_is_parsed_if_the_agent_reports_it() {
        let answer = raw(r#"{"stopReason":"end_turn","usage":{"inputTokens":3,"outputTokens":4,"x":null}}"#);
        assert_eq!(read_prompt_answer(Ok(&answer)).1, Some(Usage { input_tokens: 3, output_tokens: 4 }));
    }

    #[test]
    fn message_is_cut_at_its_limit_and_never_inside_a_character() {
        let mut progress = TurnProgress::new(Timestamp(0));
        progress.on_message_text(&"x".repeat(MAX_MESSAGE_BYTES - 1));
        progress.on_message_text("é");
        progress.on_message_text("more");
        assert!(progress.message_cut);
        assert_eq!(progress.message.len(), MAX_MESSAGE_BYTES - 1);
    }

    #[test]
    fn eleventh_stray_line_fails_the_turn() {
        let mut progress = TurnProgress::new(Timestamp(0));
        for _ in 0..10 {
            progress.on_stray_line("noise").unwrap();
        }
        assert_eq!(progress.on_stray_line("noise").unwrap_err().code, ErrorCode::ProtocolViolation);
    }

    /// An event of a turn.
    #[derive(Debug, Clone)]
    enum Step {
        Update(i64),
        /// A chunk of this character, repeated.
        Text(char, usize),
        Remark(char, usize),
        StrayLine(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        let character = prop_oneof![Just('a'), Just('é'), Just('語'), Just('🦀'), Just('\n'), Just('\0')];
        let length = prop_oneof![3 => 0usize..40, 1 => 0usize..6000];
        prop_oneof![
            2 => (0i64..1000).prop_map(Step::Update),
            4 => (character.clone(), length.clone()).prop_map(|(it, times)| Step::Text(it, times)),
            2 => (character, 0usize..400).prop_map(|(it, times)| Step::Remark(it, times)),
            1 => (0usize..400).prop_map(Step::StrayLine),
        ]
    }

    proptest! {
        // XorShift instead of ChaCha: in a debug build the default generator takes most of the test's time.
        #![proptest_config(ProptestConfig { cases: 10_000, rng_algorithm: RngAlgorithm::XorShift, ..ProptestConfig::default() })]

        #[test]
        fn turn_progress_matches_its_model_and_stays_within_its_bounds(
            steps in prop::collection::vec(step(), 0..30),
            // One case in 20 exceeds the bounds.
            repeat in prop_oneof![19 => Just(1usize), 1 => Just(8usize)],
        ) {
            let mut progress = TurnProgress::new(Timestamp(0));
            let (mut sent, mut remarks, mut updates, mut first, mut stray) = (String::new(), 0usize, 0u64, None, 0u32);
            for step in std::iter::repeat_n(&steps, repeat).flatten() {
                match step {
                    Step::Update(at) => {
                        progress.on_update(Timestamp(*at));
                        updates += 1;
                        first.get_or_insert(Timestamp(*at));
                    }
                    Step::Text(character, times) => {
                        let text = character.to_string().repeat(*times);
                        progress.on_message_text(&text);
                        sent.push_str(&text);
                    }
                    Step::Remark(character, times) => {
                        progress.remark(Severity::Info, character.to_string().repeat(*times));
                        remarks += 1;
                    }
                    Step::StrayLine(length) => {
                        let ended = progress.on_stray_line(&"x".repeat(*length));
                        (stray, remarks) = (stray + 1, remarks + 1);
                        prop_assert_eq!(ended.is_err(), stray > MAX_STRAY_LINES, "line {}", stray);
                    }
                }
            }
            prop_assert!(progress.message.len() <= MAX_MESSAGE_BYTES);
            prop_assert!(sent.starts_with(&progress.message), "the message is a prefix of all chunks");
            prop_assert_eq!(progress.message_cut, progress.message != sent);
            if progress.message_cut {
                prop_assert!(progress.message.len() + 4 > MAX_MESSAGE_BYTES, "not cut before it is full");
            }
            prop_assert_eq!(progress.diagnostics.len(), remarks.min(MAX_DIAGNOSTICS));
            prop_assert!(progress.diagnostics.iter().all(|it| it.message.chars().count() <= MAX_DIAGNOSTIC_CHARS));
            prop_assert_eq!((progress.updates, progress.first_update_at), (updates, first));
        }

        #[test]
        fn every_answer_to_a_prompt_gives_one_outcome(
            reason in prop_oneof!["end_turn", "max_tokens", "max_turn_requests", "refusal", "cancelled", "[a-z_]{0,9}"],
            usage in prop_oneof![Just(String::new()), "(null|[0-9]{1,25}|\"x\"|\\{\"inputTokens\":-?[0-9]{1,22}\\})"],
            code in -33000i64..0,
            refuses in any::<bool>(),
        ) {
            let usage = if usage.is_empty() { usage } else { format!(",\"usage\":{usage}") };
            let text = format!("{{\"stopReason\":\"{reason}\"{usage}}}");
            // Numbers such as 007 are not JSON and cannot occur in an answer.
            let Ok(answer) = RawValue::from_string(text) else { return Ok(()) };
            let answer = if refuses { Err(RpcError::new(code, "no")) } else { Ok(&*answer) };
            let (outcome, _) = read_prompt_answer(answer);
            prop_assert!(outcome.state().is_final());
            prop_assert!(TurnOutcome::LABELS.contains(&outcome.label()));
            prop_assert!(!refuses || matches!(&outcome, TurnOutcome::Failed(failure) if !failure.detail.is_empty()));
        }
    }
}
