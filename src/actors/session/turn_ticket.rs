//! Ticket of a turn that has begun. Dropping the ticket ends the turn, so a turn ends exactly once whatever happens to
//! its actor.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use secrecy::SecretString;
use serde_json::{Value, json, value::RawValue};
use tokio::sync::watch;

use super::{
    closing,
    notices::{self, SkipRecord},
};
use crate::{
    actors::{
        handles::{
            closing::AgentEnded,
            messages::TurnEnded,
            session::{SessionShared, SessionSpec},
        },
        services::Services,
    },
    contract::{
        automation::GithubAutomation,
        result::{ACPSessionResult, ResultWorkspace, TurnFacts},
    },
    domain::{
        automation::skip::{Automation, SkipDetail, SkipReason, WantedMode},
        clock::Timestamp,
        ids::{PromptId, SessionId},
        redaction::{Redacted, RedactedJson},
        routing::{
            Route,
            sampling::sample_of,
            success_window::bucket_start,
            turn_route::{TurnReport, TurnRoute, TurnStart},
        },
        session::{eta::PlanProgress, event::EventKind},
        turn::{
            Severity, TurnOutcome, TurnProgress,
            outcome::{ErrorCode, Failure},
            transcript::{KeptEntry, TranscriptBuilder, TranscriptEntry},
            update::UpdateView,
        },
    },
    store::{EndSlot, EndStep, Idempotency, OutcomeCount, RunEnd, StoreError, TurnEnd},
    telemetry::metrics::Metrics,
    transport::Delivered,
};

/// A turn that has begun and has not ended.
pub(crate) struct TurnTicket(Option<Box<Begun>>);

struct Begun {
    services: Arc<Services>,
    shared: Arc<SessionShared>,
    prompt_id: PromptId,
    route: TurnRoute,
    /// Carrier chosen when the turn was accepted: the label of its metrics.
    first_carrier: Route,
    carrier: Route,
    slot: EndSlot,
    ended: watch::Sender<Option<Arc<TurnEnded>>>,
    progress: TurnProgress,
    transcript: TranscriptBuilder,
    /// The rest of the transcript, at the end of the turn.
    entries: Vec<TranscriptEntry>,
    context_injected: bool,
    /// The agent's id of its conversation, once it has the prompt; absent for an agent of this turn alone.
    conversation: Option<String>,
    /// Decision about the turn's changes.
    automation: (WantedMode, Automation),
    /// The GitHub token that the turn was given.
    token: Option<SecretString>,
    counted: bool,
    span: tracing::Span,
    /// Starts when the agent receives the prompt.
    prompt_span: Option<tracing::Span>,
    when_dropped: WhenDropped,
}

/// Outcome of a turn whose ticket is dropped; set at most once, by the session if it ends while another future holds
/// the ticket.
pub(crate) type WhenDropped = Arc<OnceLock<TurnOutcome>>;

impl TurnTicket {
    /// Creates the ticket of a turn that is about to be persisted, and the receiver of its end, which is set once,
    /// after the end is on disk. `slot` is reserved in the writer's queue, so that the end can always be queued.
    pub(crate) fn new(
        services: Arc<Services>,
        shared: Arc<SessionShared>,
        start: TurnStart,
        slot: EndSlot,
        span: tracing::Span,
    ) -> (Self, watch::Receiver<Option<Arc<TurnEnded>>>) {
        let TurnStart { prompt_id, route, carrier, accepted_at } = start;
        let (ended, watching) = watch::channel(None);
        let transcript = shared.new_transcript(services.transcript_limits(&shared.spec.workspace.installation_id));
        let begun = Begun {
            services,
            shared,
            prompt_id,
            route,
            first_carrier: carrier,
            carrier,
            slot,
            ended,
            progress: TurnProgress::new(accepted_at),
            transcript,
            entries: Vec::new(),
            context_injected: false,
            conversation: None,
            automation: (WantedMode::Github, Automation::Nothing),
            token: None,
            counted: false,
            span,
            prompt_span: None,
            when_dropped: WhenDropped::default(),
        };
        (Self(Some(Box::new(begun))), watching)
    }

    /// Returns the cell for the outcome that applies if the ticket is dropped; for an owner that has handed the ticket
    /// over.
    pub(crate) fn when_dropped(&self) -> WhenDropped {
        self.0.as_ref().map(|begun| begun.when_dropped.clone()).unwrap_or_default()
    }

    /// Records the decision about the turn's changes.
    pub(crate) fn automate(&mut self, wanted: WantedMode, automation: Automation) {
        if let Some(begun) = &mut self.0 {
            begun.automation = (wanted, automation);
        }
    }

    /// Keeps the GitHub token that the turn was given, until the turn ends.
    pub(crate) fn keep_token(&mut self, token: Option<SecretString>) {
        if let Some(begun) = &mut self.0 {
            begun.token = token;
        }
    }

    /// Marks the turn as persisted; from now on it counts in the metrics.
    pub(crate) fn accepted(&mut self) {
        if let Some(begun) = &mut self.0 {
            begun.counted = true;
            begun.services.metrics.turn_started(begun.shared.spec.agent_name(), begun.first_carrier);
        }
    }

    /// Drops the ticket of a turn that was refused and not persisted, without an outcome.
    pub(crate) fn discard(mut self) {
        self.0 = None;
    }

    /// Switches the turn to the fallback after a failed handshake; a canary ends, because the handshake has already
    /// reported its failure.
    pub(crate) fn fell_back(&mut self) {
        if let Some(begun) = &mut self.0 {
            begun.carrier = Route::Http;
            begun.route.canary = None;
        }
    }

    /// The span of the turn, which is part of the request's.
    pub(crate) fn span(&self) -> tracing::Span {
        self.0.as_ref().map_or_else(tracing::Span::none, |begun| begun.span.clone())
    }

    pub(crate) fn carrier(&self) -> Route {
        self.0.as_ref().map_or(Route::Acp, |begun| begun.carrier)
    }

    pub(crate) fn accepted_at(&self) -> Timestamp {
        self.0.as_ref().map_or(Timestamp(0), |begun| begun.progress.accepted_at)
    }

    /// Marks the prompt as sent, and publishes the progress with the expected end. `conversation` is the agent's id of
    /// its conversation; `None` for an agent that ends with the turn.
    pub(crate) fn sent(&mut self, now: Timestamp, context_injected: bool, conversation: Option<String>) {
        if let Some(begun) = &mut self.0 {
            begun.progress.sent_at = Some(now);
            begun.context_injected = context_injected;
            begun.conversation = conversation;
            begun.prompt_span = Some(tracing::info_span!(parent: &begun.span, "transport.prompt"));
            begun.shared.turn_begins(begun.prompt_id, begun.progress.accepted_at, now);
            begun.services.telemetry.publish(&begun.shared, now);
        }
    }

    /// True if the update changes a tool call or message of this turn.
    pub(crate) fn knows(&self, view: &UpdateView) -> bool {
        self.0.as_ref().is_some_and(|begun| begun.transcript.knows(view))
    }

    /// Records an update of the agent and publishes it to the readers; `view` is `None` if it has no kind.
    /// The transcript already has the text of an echo of the prompt.
    pub(crate) fn on_update(
        &mut self,
        view: Option<UpdateView>,
        raw: &RawValue,
        meta: Option<&RawValue>,
        is_echo: bool,
        now: Timestamp,
    ) {
        let Some(begun) = &mut self.0 else { return };
        begun.services.metrics.update(view.as_ref().map_or("other", |view| &view.kind));
        let first = begun.progress.first_update_at.is_none();
        begun.progress.take(view.as_ref(), now);
        if first {
            begun.services.metrics.first_update(now.since(begun.progress.accepted_at));
        }
        begun.shared.feed.publish(Some(begun.prompt_id), EventKind::Update, raw, meta);
        if view.as_ref().is_some_and(|view| view.kind == "plan") {
            begun.shared.on_plan(begun.prompt_id, PlanProgress::read(raw), now);
            begun.services.telemetry.publish(&begun.shared, now);
        }
        if let Some(view) = view.filter(|_| !is_echo) {
            begun.transcript.on_update(&view, raw);
        }
    }

    /// Adds an entry of the service to the transcript.
    pub(crate) fn note(&mut self, entry: TranscriptEntry) {
        if let Some(begun) = &mut self.0 {
            begun.transcript.note(entry);
        }
    }

    /// Records a diagnostic and publishes it to the readers.
    pub(crate) fn remark(&mut self, severity: Severity, message: &str) {
        self.remark_with(severity, message, None);
    }

    /// [`Self::remark`] with data for programs.
    pub(crate) fn remark_with(&mut self, severity: Severity, message: &str, context: Option<Value>) {
        if let Some(begun) = &mut self.0 {
            let mut update = json!({"severity": severity, "message": message});
            if let Some(context) = &context {
                update["context"] = context.clone();
            }
            begun.progress.remark_with(severity, message, context);
            begun.shared.feed.announce(Some(begun.prompt_id), EventKind::Diagnostic, &update);
        }
    }

    /// Records a line of the agent's output that is not ACP.
    ///
    /// # Errors
    /// The failure with which the caller must end the turn.
    pub(crate) fn on_stray_line(&mut self, line: &str) -> Result<(), Failure> {
        let Some(begun) = &mut self.0 else { return Ok(()) };
        let counted = begun.progress.on_stray_line(line);
        if let Some(last) = begun.progress.diagnostics.last() {
            let update = json!({"severity": last.severity, "message": last.message});
            begun.shared.feed.announce(Some(begun.prompt_id), EventKind::Diagnostic, &update);
        }
        counted
    }

    /// Takes every entry that was added or changed since the last call, the growing message included, to persist them
    /// before the turn ends. `None` while fewer than `at_least` entries and fewer than `bytes` bytes wait, and while the
    /// agent is in the middle of a character, which no entry can hold.
    pub(crate) fn take_entries(&mut self, at_least: usize, bytes: usize) -> Option<Vec<TranscriptEntry>> {
        let transcript = &mut self.0.as_mut()?.transcript;
        let enough = transcript.waiting() >= at_least || transcript.waiting_bytes() >= bytes;
        (enough && !transcript.is_in_character()).then(|| transcript.take())
    }

    /// Resumes a turn that an earlier process began. `output` is the text that its agent had sent until then, and `kept`
    /// has the entries on disk that later updates may change.
    pub(crate) fn resume(&mut self, output: &[String], kept: &[KeptEntry]) {
        if let Some(begun) = &mut self.0 {
            output.iter().for_each(|text| begun.progress.on_message_text(text));
            // The bytes of the turn so far are those of the session; its own limit begins again.
            let transcript = begun.transcript_of(kept);
            begun.transcript = transcript;
            // The output so far may have been tool calls alone.
            begun.progress.has_output = true;
        }
        self.remark(Severity::Info, "the service restarted during the turn; the turn was resumed");
    }

    /// Returns entries that could not be queued, ahead of newer ones.
    pub(crate) fn put_back(&mut self, entries: Vec<TranscriptEntry>) {
        if let Some(begun) = &mut self.0 {
            begun.transcript.put_back(entries);
        }
    }

    /// Ends the turn: result and transcript are written in one transaction; then waiting callers are notified, and the
    /// runtime may discard the agent's messages that it kept for replay. If automation runs on the turn's changes, this
    /// is the end of the agent alone, and the turn closes later ([`closing`]).
    pub(crate) fn end(
        mut self,
        outcome: TurnOutcome,
        usage: Option<crate::domain::turn::Usage>,
        delivered: Option<Arc<Delivered>>,
        idempotency: Option<Idempotency>,
    ) -> TranscriptBuilder {
        let Some(mut begun) = self.0.take() else { return TranscriptBuilder::default() };
        begun.progress.usage = usage;
        if begun.is_automated(&outcome) {
            begun.hand_over(&outcome, delivered, idempotency)
        } else {
            begun.finish(outcome, delivered)
        }
    }
}

impl Drop for TurnTicket {
    fn drop(&mut self) {
        if let Some(begun) = self.0.take() {
            let died = || {
                let detail = "the session's actor died during the turn";
                TurnOutcome::Failed(Failure::new(ErrorCode::Internal, detail))
            };
            let outcome = begun.when_dropped.get().cloned().unwrap_or_else(died);
            let _transcript = begun.finish(outcome, None);
        }
    }
}

impl Begun {
    /// Takes the rest of the transcript, and counts it.
    fn finish_transcript(&mut self) {
        self.transcript.finish(&mut self.entries);
        self.shared.add_transcript_bytes(self.transcript.take_bytes());
    }

    /// The transcript of a turn that continues after entries on disk.
    fn transcript_of(&self, kept: &[KeptEntry]) -> TranscriptBuilder {
        let limits = self.services.transcript_limits(&self.shared.spec.workspace.installation_id);
        self.shared.resumed_transcript(kept, limits)
    }

    fn finish(mut self: Box<Self>, outcome: TurnOutcome, delivered: Option<Arc<Delivered>>) -> TranscriptBuilder {
        let now = self.services.clock.now();
        let took = now.since(self.progress.accepted_at);
        self.finish_transcript();
        let failure = match &outcome {
            TurnOutcome::Failed(failure) => Some(failure.clone()),
            _ => None,
        };
        if let Some(failure) = &failure {
            self.entries.push(TranscriptEntry::text(
                "info",
                &format!("turn failed ({}): {}", failure.code.as_str(), failure.detail),
            ));
        }
        let skipped = self.skipped(&outcome, now);
        let skip = skipped.as_ref().map(|skipped| skipped.why);
        let automation = skipped.as_ref().map(|skipped| skipped.automation.clone());
        let result = self.result(&outcome, automation, now).into_redacted_json();
        // Counted before the write, and even if the write fails: turns started and turns ended must balance.
        if self.counted {
            let agent = self.shared.spec.agent_name();
            self.services.metrics.turn_ended(agent, self.first_carrier, &outcome, took);
            if matches!(outcome, TurnOutcome::Completed(_)) {
                self.shared.spec.pace.add(took);
            }
        }
        {
            let _in_span = self.prompt_span.as_ref().unwrap_or(&self.span).enter();
            log_ended(&self.shared.spec, self.prompt_id, &outcome, self.carrier, self.progress.updates, took);
        }
        self.shared.turn_ends(failure.as_ref().map(|failure| failure.code.class()), now, &self.services.metrics);
        self.services.telemetry.publish(&self.shared, now);
        let report = self.report(&outcome);
        let end = TurnEnd {
            error: failure.clone(),
            run: skipped.map(|skipped| RunEnd { run: skipped.run, notice: Some(skipped.session_notice), saga: None }),
            ..self.row(EndStep::Whole, &outcome, &result, (&report, delivered.as_deref()), now)
        };
        let (report_outcome, counted) = (self.shared.spec.gate.reporter(), self.counted);
        let (session_id, metrics) = (self.shared.spec.session_id, self.services.metrics.clone());
        let settle = delivered.map(|delivered| (delivered.handled(), delivered));
        let (prompt_id, state, feed, ended) = (self.prompt_id, outcome.state(), self.shared.feed.clone(), self.ended);
        let transcript = self.transcript;
        self.slot.end_turn(
            end,
            Box::new(move |written| {
                // Only after the commit: until then the runtime must be able to replay the messages of the turn.
                if let (Ok(()), Some((seq, delivered))) = (&written, settle) {
                    delivered.settle(seq);
                }
                // Readers get the result only once it is on disk; callers are woken in either case.
                let event_id =
                    written.is_ok().then(|| feed.publish(Some(prompt_id), EventKind::Result, result.as_raw(), None));
                let is_fenced = written == Err(StoreError::Fenced);
                if is_fenced && counted {
                    tracing::error!(marker = "[ACP]", %session_id, %prompt_id, "turn was ended by another process");
                }
                let result = result.into_raw();
                let ending = TurnEnded { prompt_id, state, result, failure, event_id, is_fenced, is_open: false };
                if let (Ok(()), Some(skip)) = (&written, skip) {
                    report_skip(&metrics, session_id, prompt_id, skip);
                }
                ended.send_replace(Some(Arc::new(ending)));
                if counted && !is_fenced {
                    report_outcome(report);
                }
            }),
        );
        transcript
    }

    /// True if automation runs on the changes of the turn.
    fn is_automated(&self, outcome: &TurnOutcome) -> bool {
        let is_decided = self.automation.1 == Automation::Run && self.services.automate.is_some();
        is_decided && matches!(outcome, TurnOutcome::Completed(_))
    }

    /// Ends the agent's part of the turn and leaves the turn to automation. The outcome counts now: it is that of the
    /// agent.
    fn hand_over(
        mut self: Box<Self>,
        outcome: &TurnOutcome,
        delivered: Option<Arc<Delivered>>,
        idempotency: Option<Idempotency>,
    ) -> TranscriptBuilder {
        let now = self.services.clock.now();
        self.finish_transcript();
        let result = self.result(outcome, None, now);
        self.shared.spec.pace.add(now.since(self.progress.accepted_at));
        let _in_span = self.prompt_span.as_ref().unwrap_or(&self.span).clone().entered();
        let (updates, took) = (self.progress.updates, now.since(self.progress.accepted_at));
        log_ended(&self.shared.spec, self.prompt_id, outcome, self.carrier, updates, took);
        let report = self.report(outcome);
        let stored = result.clone().into_redacted_json();
        let end = self.row(EndStep::Agent, outcome, &stored, (&report, delivered.as_deref()), now);
        let agent = AgentEnded {
            prompt_id: self.prompt_id,
            session_id: end.session_id,
            key: end.key.clone(),
            protocol: self.carrier,
            known_by: end.known_by.clone(),
            accepted_at: self.progress.accepted_at,
            result,
            token: self.token.take(),
        };
        let (reporter, settle) = (self.shared.spec.gate.reporter(), delivered.map(|it| (it.handled(), it)));
        let durable = move || {
            settle.into_iter().for_each(|(seq, delivered)| delivered.settle(seq));
            reporter(report);
        };
        let closing = self.services.closing.clone();
        let (registered, stop) =
            closing.register(end.session_id, self.prompt_id, idempotency, self.ended.subscribe());
        let Self { services, shared, first_carrier, slot, ended, transcript, .. } = *self;
        let begin = closing::Begin { services, shared, agent, first_carrier, slot, ended, registered, stop };
        closing::begin(begin, end, durable);
        transcript
    }

    /// The write that ends the turn, or its agent. Takes the rest of the transcript.
    fn row(
        &mut self,
        step: EndStep,
        outcome: &TurnOutcome,
        result: &RedactedJson,
        (report, delivered): (&TurnReport, Option<&Delivered>),
        now: Timestamp,
    ) -> TurnEnd {
        let bucket = bucket_start(report.at, self.services.settings.window.bucket);
        let (epoch, route) = (report.turn.epoch, report.carrier);
        TurnEnd {
            step,
            counts: report.sample.map(|sample| OutcomeCount { epoch, route, bucket, sample }),
            prompt_id: self.prompt_id,
            protocol: self.carrier,
            known_by: self.conversation.take().filter(|_| matches!(outcome, TurnOutcome::Completed(_))),
            session_id: self.shared.spec.session_id,
            key: self.shared.spec.workspace.clone(),
            state: outcome.state(),
            result: Some(result.clone()),
            error: None,
            entries: std::mem::take(&mut self.entries),
            run: None,
            settles: delivered.map_or(0, Delivered::handled),
            now,
        }
    }

    /// Builds the report for the success window.
    fn report(&self, outcome: &TurnOutcome) -> TurnReport {
        let (turn, carrier, at) = (self.route, self.carrier, self.services.clock.steady());
        let sample = sample_of(outcome).filter(|_| !self.services.is_draining());
        TurnReport { turn, carrier, sample, at }
    }

    /// Builds the record of skipped automation; `None` if it was not skipped, or the turn did not complete.
    fn skipped(&self, outcome: &TurnOutcome, now: Timestamp) -> Option<SkipRecord> {
        let (wanted, Automation::Skip { reason, detail }) = self.automation else { return None };
        if !matches!(outcome, TurnOutcome::Completed(_)) {
            return None;
        }
        notices::of(&self.shared.spec, self.prompt_id, wanted, (reason, detail), now)
    }

    fn result(
        &mut self,
        outcome: &TurnOutcome,
        automation: Option<GithubAutomation>,
        now: Timestamp,
    ) -> ACPSessionResult {
        let spec = &self.shared.spec;
        let facts = TurnFacts {
            session_id: spec.session_id,
            prompt_id: self.prompt_id,
            protocol: self.carrier,
            route: self.route.route,
            protocol_version: self.shared.view().facts.as_ref().and_then(|facts| facts.protocol_version),
            workspace: ResultWorkspace { path: spec.cwd.clone(), is_ephemeral: spec.is_ephemeral },
            rollback: spec.gate.rollback(),
            context_injected: self.context_injected,
            automation,
        };
        ACPSessionResult::of_turn(&mut self.progress, outcome, facts, now)
    }
}

/// Logs the end of a turn, with its outcome and carrier.
fn log_ended(
    spec: &SessionSpec,
    prompt_id: PromptId,
    outcome: &TurnOutcome,
    carrier: Route,
    updates: u64,
    took: Duration,
) {
    let duration_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    match outcome {
        TurnOutcome::Failed(failure) => tracing::warn!(
            marker = "[ACP]",
            session_id = %spec.session_id,
            prompt_id = %prompt_id,
            workspace = %spec.workspace,
            agent = spec.agent_name(),
            outcome = outcome.label(),
            protocol = carrier.as_str(),
            error_code = failure.code.as_str(),
            error_class = failure.code.class().as_str(),
            detail = %Redacted::new(&failure.detail),
            updates,
            duration_ms,
            "turn ended"
        ),
        _ => tracing::info!(
            marker = "[ACP]",
            session_id = %spec.session_id,
            prompt_id = %prompt_id,
            workspace = %spec.workspace,
            agent = spec.agent_name(),
            outcome = outcome.label(),
            protocol = carrier.as_str(),
            updates,
            duration_ms,
            "turn ended"
        ),
    }
}

/// Counts and logs that automation was skipped; called once the skip is on disk.
fn report_skip(
    metrics: &Metrics,
    session_id: SessionId,
    prompt_id: PromptId,
    (reason, detail): (SkipReason, Option<SkipDetail>),
) {
    let (reason, detail) = (reason.as_str(), detail.map(SkipDetail::as_str));
    metrics.automation_run("skipped", Some(reason));
    tracing::info!(marker = "[GITHUB-AUTO]", %session_id, %prompt_id, reason, detail, "automation skipped");
}

#[cfg(test)]
pub(crate) mod tests;
