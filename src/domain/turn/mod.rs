//! One prompt turn: its states, its progress, and its one outcome.

pub(crate) mod agent_error;
pub(crate) mod arrival;
pub(crate) mod frames;
pub(crate) mod outcome;
pub(crate) mod payload;
pub(crate) mod prompt;
pub(crate) mod replay;
pub(crate) mod transcript;
pub(crate) mod update;

use serde_json::{Value, value::RawValue};

use self::{
    agent_error::classify_agent_error,
    outcome::{ErrorCode, Failure},
    update::UpdateView,
};
use super::{clock::Timestamp, redaction::Redacted, text, words::words};
use crate::acp::{
    jsonrpc::{INTERNAL_ERROR, RpcError},
    loose::{self, Object},
    schema::StopReason,
};

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

/// The end of a turn according to the agent's answer to the prompt.
#[derive(Debug)]
pub(crate) struct PromptEnd {
    pub outcome: TurnOutcome,
    pub usage: Option<Usage>,
    /// A diagnostic about a part of the answer that could not be read and was dropped.
    pub oddity: Option<String>,
}

impl From<TurnOutcome> for PromptEnd {
    fn from(outcome: TurnOutcome) -> Self {
        Self { outcome, usage: None, oddity: None }
    }
}

/// Diagnostic for an answer to a request that does not wait.
pub(crate) const UNKNOWN_ANSWER: &str = "the agent answered a request twice or too late, or one that was never sent";

/// Parses an agent's answer to `session/prompt`. The stop reason is essential: one that is missing, or unknown to
/// protocol version 1, is a protocol violation. `error` is the exception: the agent reports its own failure, as with an
/// error response. `usage` is an extension and dropped if it cannot be read.
pub(crate) fn read_prompt_answer(answer: Result<&RawValue, RpcError>) -> PromptEnd {
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => return TurnOutcome::Failed(classify_agent_error(&error)).into(),
    };
    let members = Object::read(answer).unwrap_or_default();
    let Some(reason) = members.text("stopReason") else {
        let given = text::cut(answer.get(), 64);
        let detail = format!("the agent's answer to the prompt has no usable stop reason: {given}");
        return TurnOutcome::Failed(Failure::new(ErrorCode::ProtocolViolation, detail)).into();
    };
    let outcome = match StopWord::of(&reason) {
        StopWord::Known(StopReason::Cancelled) => TurnOutcome::Cancelled { confirmed: true },
        StopWord::Known(reason) => TurnOutcome::Completed(reason),
        StopWord::Failed => TurnOutcome::Failed(classify_agent_error(&failed_answer(&reason, &members))),
        StopWord::Unknown => {
            let reason = text::cut(&reason, 64);
            let detail = format!("the agent ended the turn with the unknown stop reason {reason:?}");
            TurnOutcome::Failed(Failure::new(ErrorCode::ProtocolViolation, detail))
        }
    };
    let (usage, oddity) = match members.get("usage").map(read_usage) {
        None => (None, None),
        Some(Ok(usage)) => (usage, None),
        Some(Err(given)) => (None, Some(format!("the agent's `usage` could not be read and was left out: {given}"))),
    };
    PromptEnd { outcome, usage, oddity }
}

/// The meaning of the word in `stopReason`.
enum StopWord {
    Known(StopReason),
    /// The agent's word for its own failure.
    Failed,
    Unknown,
}

impl StopWord {
    /// Reads a word, whatever its case and separators are.
    fn of(word: &str) -> Self {
        let plain: String =
            word.chars().filter(char::is_ascii_alphanumeric).take(32).map(|char| char.to_ascii_lowercase()).collect();
        match plain.as_str() {
            "endturn" => Self::Known(StopReason::EndTurn),
            "maxtokens" => Self::Known(StopReason::MaxTokens),
            "maxturnrequests" => Self::Known(StopReason::MaxTurnRequests),
            "refusal" => Self::Known(StopReason::Refusal),
            "cancelled" | "canceled" => Self::Known(StopReason::Cancelled),
            "error" | "failed" => Self::Failed,
            _ => Self::Unknown,
        }
    }
}

/// The error of an answer whose stop reason reports a failure, with the agent's text about it, if there is one.
fn failed_answer(reason: &str, members: &Object<'_>) -> RpcError {
    let message = ["error", "errorMessage", "message"].into_iter().find_map(|name| {
        let given = members.get(name)?;
        let text = Object::read(given).and_then(|error| error.text("message"));
        Some(text.unwrap_or_else(|| loose::text_or_json(given)).into_owned())
    });
    let message = match message {
        Some(message) => format!("the agent ended the turn with the stop reason {reason:?}: {message}"),
        None => format!("the agent ended the turn with the stop reason {reason:?}"),
    };
    RpcError { code: INTERNAL_ERROR, message, data: members.get("error").map(ToOwned::to_owned) }
}

/// Reads `usage`; `None` if it has no count. A missing or null count is 0.
///
/// # Errors
/// The start of the value, if it is no object or one of its counts cannot be read.
fn read_usage(usage: &RawValue) -> Result<Option<Usage>, String> {
    let unreadable = || text::cut(usage.get(), 64);
    let members = Object::read(usage).ok_or_else(unreadable)?;
    let count = |name: &str| match members.get(name) {
        Some(given) => loose::count(given).map(Some).ok_or_else(unreadable),
        None => Ok(None),
    };
    Ok(match (count("inputTokens")?, count("outputTokens")?) {
        (None, None) => None,
        (input, output) => {
            Some(Usage { input_tokens: input.unwrap_or_default(), output_tokens: output.unwrap_or_default() })
        }
    })
}

/// Like [`read_prompt_answer`], for a turn that may have been cancelled: then it ends as cancelled, whatever stop reason
/// the agent gives. The caller of the cancel was promised that.
pub(crate) fn read_prompt_end(answer: Result<&RawValue, RpcError>, cancel_asked: bool) -> PromptEnd {
    match answer {
        // Some agents answer a cancelled prompt with the error of their own aborted request.
        Err(_) if cancel_asked => TurnOutcome::Cancelled { confirmed: true }.into(),
        answer => match read_prompt_answer(answer) {
            PromptEnd { outcome, usage, oddity } if cancel_asked && confirms_cancel(&outcome) => {
                PromptEnd { outcome: TurnOutcome::Cancelled { confirmed: true }, usage, oddity }
            }
            end => end,
        },
    }
}

/// True for the ends of a turn that an agent may give to a cancelled one.
fn confirms_cancel(outcome: &TurnOutcome) -> bool {
    match outcome {
        TurnOutcome::Failed(failure) => failure.code != ErrorCode::ProtocolViolation,
        TurnOutcome::Completed(_) | TurnOutcome::Cancelled { .. } => true,
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
    /// Data for programs, with a stable `code`; at most a few hundred bytes.
    pub context: Option<Value>,
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
    /// Lines of the agent's output that were no messages.
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
        self.remark_with(severity, message, None);
    }

    /// [`Self::remark`] with data for programs.
    pub(crate) fn remark_with(&mut self, severity: Severity, message: impl AsRef<str>, context: Option<Value>) {
        if self.diagnostics.len() < MAX_DIAGNOSTICS {
            let message = text::cut(Redacted::new(message.as_ref()).as_str(), MAX_DIAGNOSTIC_CHARS);
            self.diagnostics.push(Diagnostic { severity, message, context });
        }
    }

    /// Records a line of the agent's output that was no message.
    ///
    /// # Errors
    /// After more than [`MAX_STRAY_LINES`] lines; the caller ends the turn with the failure.
    pub(crate) fn on_stray_line(&mut self, line: &str) -> Result<(), Failure> {
        self.stray_lines += 1;
        self.remark(Severity::Warn, format!("the agent printed a line that is not ACP: {line}"));
        if self.stray_lines > MAX_STRAY_LINES {
            let detail = format!("the agent printed more than {MAX_STRAY_LINES} lines that are not ACP in one turn");
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
            ("error", TurnState::Failed),
            ("endTurn", TurnState::Completed),
            ("MAX_TOKENS", TurnState::Completed),
            ("canceled", TurnState::Cancelled),
        ] {
            let answer = raw(&format!(r#"{{"stopReason":"{name}"}}"#));
            assert_eq!(read_prompt_answer(Ok(&answer)).outcome.state(), state, "{name}");
        }
        assert_eq!(read_prompt_answer(Ok(&raw("null"))).outcome.state(), TurnState::Failed);
    }

    #[test]
    fn error_confirms_a_cancel_only_if_a_cancel_was_asked() {
        let cancelled = || RpcError::new(-32800, "Request cancelled");
        assert_eq!(read_prompt_end(Err(cancelled()), true).outcome, TurnOutcome::Cancelled { confirmed: true });
        assert_eq!(read_prompt_end(Err(cancelled()), false).outcome.state(), TurnState::Failed);
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
            let PromptEnd { outcome, usage, .. } = read_prompt_end(Ok(&answer), true);
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
        assert_eq!(read_prompt_answer(Ok(&answer)).usage, Some(Usage { input_tokens: 3, output_tokens: 4 }));
    }

    #[test]
    fn unreadable_usage_is_omitted_with_a_diagnostic_and_the_turn_completes() {
        let known = |input, output| Some(Usage { input_tokens: input, output_tokens: output });
        for (given, usage, is_odd) in [
            (r#"{"inputTokens":3.0,"outputTokens":4.4}"#, known(3, 4), false),
            (r#"{"inputTokens":"3","outputTokens":null}"#, known(3, 0), false),
            (r#"{"inputTokens":null,"outputTokens":null}"#, None, false),
            (r#"{"inputTokens":-1,"outputTokens":4}"#, None, true),
            (r#"{"inputTokens":3,"outputTokens":"many"}"#, None, true),
            (r#"{"inputTokens":3,"outputTokens":1e400}"#, None, true),
            (r#"{"inputTokens":3,"inputTokens":5,"outputTokens":[]}"#, None, true),
            ("{}", None, false),
            ("null", None, false),
            ("\"3 tokens\"", None, true),
            ("[3,4]", None, true),
            ("7", None, true),
        ] {
            let answer = raw(&format!(r#"{{"stopReason":"end_turn","usage":{given},"cost":[{{}}]}}"#));
            let end = read_prompt_answer(Ok(&answer));
            assert_eq!(end.outcome, TurnOutcome::Completed(StopReason::EndTurn), "{given}");
            assert_eq!((end.usage, end.oddity.is_some()), (usage, is_odd), "{given}");
        }
    }

    #[test]
    fn stop_reason_error_is_the_agents_own_failure_with_its_text() {
        let failure = |json: &str| match read_prompt_answer(Ok(&raw(json))).outcome {
            TurnOutcome::Failed(failure) => failure,
            other => panic!("{other:?}"),
        };
        assert_eq!(failure(r#"{"stopReason":"error"}"#).code, ErrorCode::AgentError);
        let named = failure(r#"{"stopReason":"error","error":{"message":"the disk is full"}}"#);
        assert!(named.code == ErrorCode::AgentError && named.detail.contains("the disk is full"), "{named}");
        let provider = failure(r#"{"stopReason":"error","message":"429 Too Many Requests"}"#);
        assert_eq!(provider.code, ErrorCode::ModelProvider);
        assert_eq!(
            read_prompt_end(Ok(&raw(r#"{"stopReason":"error"}"#)), true).outcome.state(),
            TurnState::Cancelled
        );
        assert_eq!(failure(r#"{"stopReason":"bored"}"#).code, ErrorCode::ProtocolViolation);
        assert_eq!(failure(r#"{"stopReason":7}"#).code, ErrorCode::ProtocolViolation);
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
            let outcome = read_prompt_answer(answer).outcome;
            prop_assert!(outcome.state().is_final());
            prop_assert!(TurnOutcome::LABELS.contains(&outcome.label()));
            prop_assert!(!refuses || matches!(&outcome, TurnOutcome::Failed(failure) if !failure.detail.is_empty()));
        }
    }
}
