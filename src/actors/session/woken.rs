//! A turn that the agent began by itself: without a prompt, and without an answer that ends it.

use std::sync::Arc;

use serde_json::value::RawValue;
use uuid::Uuid;

use crate::{
    acp::schema::StopReason,
    actors::{handles::session::SessionShared, services::Services},
    contract::result::{ACPSessionResult, ResultWorkspace, TurnFacts},
    domain::{
        automation::skip::{Automation, WantedMode},
        clock::Timestamp,
        ids::PromptId,
        redaction::Redacted,
        routing::Route,
        session::event::EventKind,
        turn::{
            Severity, TurnInitiator, TurnOutcome, TurnProgress,
            outcome::{ErrorCode, Failure},
            transcript::{TranscriptBuilder, TranscriptEntry},
            update::UpdateView,
        },
    },
    store::{AGENT_TURN, EndSlot, EndStep, NewTurn, StoreError, TurnEnd},
};

/// A turn of the agent's own that has not ended. It counts neither in the success window nor among the turns of the
/// metrics, because no prompt asked for it. Dropping it ends it as interrupted.
pub(super) struct WokenTurn {
    services: Arc<Services>,
    shared: Arc<SessionShared>,
    prompt_id: PromptId,
    route: Route,
    /// Present until the end.
    slot: Option<EndSlot>,
    progress: TurnProgress,
    pub(super) transcript: TranscriptBuilder,
    /// The agent's own conversation, if it remembers turns.
    conversation: Option<String>,
    /// True if the agent marks the end of the turn.
    pub(super) is_marked: bool,
    pub(super) is_cancelled: bool,
}

impl WokenTurn {
    /// Begins a turn: its row is queued before any entry of it.
    ///
    /// # Errors
    /// [`StoreError::Busy`] if the writer's queue is full; the caller keeps the agent's output without a turn.
    pub(super) fn begin(
        services: Arc<Services>,
        shared: Arc<SessionShared>,
        conversation: Option<String>,
        is_marked: bool,
        now: Timestamp,
    ) -> Result<Self, StoreError> {
        let (prompt_id, route) = (PromptId(Uuid::now_v7()), shared.spec.gate.outside_turns());
        let slot = services.store.begin_woken(NewTurn {
            prompt_id,
            session_id: shared.spec.session_id,
            key: shared.spec.workspace.clone(),
            initiator: TurnInitiator::Agent,
            idempotency: None,
            preview: Redacted::new(""),
            first_entry: TranscriptEntry::text(AGENT_TURN, "The agent began this turn by itself."),
            again: false,
            route: route.route,
            protocol: Route::Acp,
            epoch: route.epoch,
            is_canary: false,
            wanted: WantedMode::None.into(),
            decision: Automation::Nothing,
            now,
        })?;
        let transcript = shared.new_transcript(services.transcript_limits(&shared.spec.workspace.installation_id));
        services.metrics.woken_turn_began();
        let session_id = shared.spec.session_id;
        tracing::info!(marker = "[ACP]", %session_id, %prompt_id, "the agent began a turn by itself");
        Ok(Self {
            services,
            shared,
            prompt_id,
            route: route.route,
            slot: Some(slot),
            progress: TurnProgress::new(now),
            transcript,
            conversation,
            is_marked,
            is_cancelled: false,
        })
    }

    pub(super) fn prompt_id(&self) -> PromptId {
        self.prompt_id
    }

    /// Records an update and publishes it to the readers.
    pub(super) fn on_update(&mut self, view: &UpdateView, raw: &RawValue, meta: Option<&RawValue>, now: Timestamp) {
        self.services.metrics.update(&view.kind);
        self.progress.take(Some(view), now);
        self.shared.feed.publish(Some(self.prompt_id), EventKind::Update, raw, meta);
        self.transcript.on_update(view, raw);
    }

    /// Ends the turn: result and the rest of the transcript are one transaction, after which readers get the result.
    /// Returns the transcript, to which a late update may belong.
    pub(super) fn end(mut self, outcome: &TurnOutcome, remark: Option<&str>) -> TranscriptBuilder {
        self.end_once(outcome, remark);
        std::mem::take(&mut self.transcript)
    }

    fn end_once(&mut self, outcome: &TurnOutcome, remark: Option<&str>) {
        let Some(slot) = self.slot.take() else { return };
        let (now, spec, prompt_id) = (self.services.clock.now(), &self.shared.spec, self.prompt_id);
        remark.into_iter().for_each(|remark| self.progress.remark(Severity::Info, remark));
        let facts = TurnFacts {
            session_id: spec.session_id,
            prompt_id,
            protocol: Route::Acp,
            route: self.route,
            protocol_version: self.shared.view().facts.as_ref().and_then(|facts| facts.protocol_version),
            workspace: ResultWorkspace { path: spec.cwd.clone(), is_ephemeral: spec.is_ephemeral },
            rollback: spec.gate.rollback(),
            context_injected: false,
            automation: None,
        };
        let mut result = ACPSessionResult::of_turn(&mut self.progress, outcome, facts, now);
        if let Some(meta) = &mut result.meta {
            // Only the answer to a prompt has a stop reason.
            meta.acp_stop_reason = None;
        }
        let result = result.into_redacted_json();
        let mut entries = Vec::new();
        self.transcript.finish(&mut entries);
        self.shared.add_transcript_bytes(self.transcript.take_bytes());
        let error = match outcome {
            TurnOutcome::Failed(failure) => Some(failure.clone()),
            _ => None,
        };
        let end = TurnEnd {
            step: EndStep::Whole,
            prompt_id,
            protocol: Route::Acp,
            known_by: self.conversation.take().filter(|_| matches!(outcome, TurnOutcome::Completed(_))),
            session_id: spec.session_id,
            key: spec.workspace.clone(),
            state: outcome.state(),
            result: Some(result.clone()),
            error,
            entries,
            run: None,
            counts: None,
            settles: 0,
            now,
        };
        let session_id = spec.session_id;
        tracing::info!(marker = "[ACP]", %session_id, %prompt_id, outcome = outcome.label(), "turn of the agent ended");
        let feed = self.shared.feed.clone();
        let done = move |written: Result<(), StoreError>| {
            if written.is_ok() {
                feed.publish(Some(prompt_id), EventKind::Result, result.as_raw(), None);
            }
        };
        slot.end_turn(end, Box::new(done));
    }
}

/// Outcome of a turn whose agent marked its end, or fell silent.
pub(super) fn completed() -> TurnOutcome {
    TurnOutcome::Completed(StopReason::EndTurn)
}

/// Outcome of a turn whose agent was stopped.
pub(super) fn interrupted(reason: &str) -> TurnOutcome {
    TurnOutcome::Failed(Failure::new(ErrorCode::Interrupted, format!("the turn of the agent was cut off: {reason}")))
}

impl Drop for WokenTurn {
    fn drop(&mut self) {
        self.end_once(&interrupted("the session's actor died"), None);
    }
}
