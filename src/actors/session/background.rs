//! Work of the agent outside a prompt turn: the state `background`, and turns that the agent begins by itself.

use actix::{AsyncContext, Context, SpawnHandle};
use serde_json::{json, value::RawValue};

use super::{
    Session,
    turn::Turn,
    woken::{WokenTurn, completed, interrupted},
};
use crate::{
    actors::handles::messages::EndCause,
    domain::{
        clock::Timestamp,
        ids::PromptId,
        routing::Route,
        session::{
            background::{Background, Mark, cut_off_note, mark_of_update},
            event::EventKind,
            lifecycle::SessionState,
            permission::AnsweredBy,
        },
        turn::{Severity, TurnOutcome, transcript::TranscriptEntry, update::UpdateView},
    },
    store::SessionChange,
};

/// Work outside a prompt turn.
#[derive(Default)]
pub(super) struct Outside {
    pub(super) work: Background,
    /// The running turn of the agent's own.
    pub(super) woken: Option<WokenTurn>,
    /// Ends the work and the turn by their limits.
    timer: Option<SpawnHandle>,
    /// True if the session's row says `background`, so that a crash is reported.
    is_recorded: bool,
}

impl Outside {
    /// Continues with an agent that an earlier process left behind.
    pub(super) fn resume(&mut self, in_background: bool, now: Timestamp) {
        self.work.resume(in_background, now);
        // The row may say `background`.
        self.is_recorded = true;
    }

    /// True if the session must not hibernate.
    pub(super) fn is_working(&self) -> bool {
        self.work.is_open() || (self.woken.is_some() && !self.work.is_over())
    }
}

impl Session {
    /// Records what an update says about open work, and ends the agent's own turn at its mark. Called for every update,
    /// before it is published; the mark itself belongs to the turn that it ends.
    pub(super) fn note_work(
        &mut self,
        view: Option<&UpdateView>,
        update: &RawValue,
        meta: Option<&RawValue>,
    ) -> Option<Mark> {
        let view = view?;
        let mark = mark_of_update(view, update, meta);
        self.outside.work.on_update(view, mark.as_ref());
        mark
    }

    /// Returns the agent's own turn if an update belongs to it although a prompt was sent: an agent that marks the ends of
    /// its turns finishes one before it begins the next.
    pub(super) fn is_of_woken(&self, view: Option<&UpdateView>, is_echo: bool) -> bool {
        let of_turn =
            |view| self.turn.as_ref().and_then(|turn| turn.ticket.as_ref()).is_some_and(|it| it.knows(view));
        self.outside.woken.as_ref().is_some_and(|woken| woken.is_marked) && !is_echo && !view.is_some_and(of_turn)
    }

    /// Begins a turn of the agent's own, if none is running. False if the session cannot record one.
    pub(super) fn wake(&mut self, is_marked: bool) -> bool {
        if self.outside.woken.is_some() {
            return true;
        }
        let can_record = self.shared.is_stored() && self.connection_route == Route::Acp && self.ending.is_none();
        if !can_record || !self.outside.work.may_wake() {
            return false;
        }
        self.write_late_updates();
        let conversation = self.remembered.clone();
        let (services, shared, now) = (self.services.clone(), self.shared.clone(), self.services.clock.now());
        match WokenTurn::begin(services, shared, conversation, is_marked, now) {
            Ok(woken) => {
                let began = json!({"state": SessionState::Background, "initiator": "agent"});
                self.shared.feed.announce(Some(woken.prompt_id()), EventKind::Status, &began);
                self.outside.woken = Some(woken);
                true
            }
            Err(cause) => {
                tracing::warn!(marker = "[ACP]", %cause, "turn of the agent could not be recorded; its output is kept");
                false
            }
        }
    }

    /// Ends the agent's own turn, if one is running.
    pub(super) fn end_woken(&mut self, outcome: &TurnOutcome, remark: Option<&str>) {
        if let Some(woken) = &self.outside.woken {
            let ended = self.permissions.cancel_of(Some(woken.prompt_id()), AnsweredBy::TurnEnd);
            // Before the end of the turn, because the decisions belong in its transcript.
            self.end_permissions(ended);
            // These writes, unlike the end, record which messages of the agent they cover.
            self.write_late_updates();
        }
        let Some(woken) = self.outside.woken.take() else { return };
        let (prompt_id, is_cancelled) = (woken.prompt_id(), woken.is_cancelled);
        let outcome = if is_cancelled { &TurnOutcome::Cancelled { confirmed: true } } else { outcome };
        let transcript = woken.end(outcome, remark);
        self.late.follow(prompt_id, transcript);
    }

    /// Ends the agent's own turn as its mark says.
    pub(super) fn on_turn_mark(&mut self, mark: Option<&Mark>, ctx: &mut Context<Self>) {
        match mark {
            Some(Mark::TurnBegan) if self.late.takes_updates => {
                self.wake(true);
            }
            Some(Mark::TurnEnded) => self.end_woken(&completed(), None),
            _ => return,
        }
        self.settle_background(ctx);
    }

    /// The turn to which requests of the agent belong: its own turn, or that of the prompt.
    pub(super) fn asking_turn(&self) -> Option<PromptId> {
        let woken = self.outside.woken.as_ref().filter(|woken| woken.is_marked || self.turn.is_none());
        woken.map(WokenTurn::prompt_id).or_else(|| self.turn.as_ref().map(Turn::prompt_id))
    }

    /// Shows whether the agent works outside a turn, and keeps the session from hibernating meanwhile.
    pub(super) fn settle_background(&mut self, ctx: &mut Context<Self>) {
        let is_working = self.outside.is_working();
        let woken = self.outside.woken.as_ref().map(WokenTurn::prompt_id);
        self.shared.set_activity(self.outside.work.activity(woken.is_some()));
        if self.turn.is_none() {
            let (state, connection) = {
                let mut view = self.shared.view();
                // In any other state a turn is accepted, or its automation runs.
                if matches!(view.state, SessionState::Idle | SessionState::Background) {
                    view.running = woken;
                }
                (view.state, view.connection)
            };
            match (state, is_working) {
                (SessionState::Idle, true) => {
                    self.disarm_idle_timer(ctx);
                    self.announce(SessionState::Background, connection);
                    self.record_background(true);
                }
                (SessionState::Background, false) => {
                    self.announce(SessionState::Idle, connection);
                    self.record_background(false);
                    self.arm_idle_timer(ctx);
                }
                (SessionState::Idle, false) => self.record_background(false),
                _ => {}
            }
        }
        self.arm_background_timer(ctx);
    }

    fn arm_background_timer(&mut self, ctx: &mut Context<Self>) {
        let (work, limits) = (&self.outside.work, self.services.settings.background);
        // A prompt turn has limits of its own, and its end comes here again.
        let is_limited = self.turn.is_none() && (self.outside.is_working() || self.outside.woken.is_some());
        if self.outside.timer.is_some() || !is_limited {
            return;
        }
        let work_ends = (!work.is_over()).then(|| work.ends_at(limits));
        let turn_ends = self.outside.woken.as_ref().map(|_| work.silent_at(limits));
        let Some(next) = work_ends.into_iter().chain(turn_ends).min() else { return };
        let wait = next.since(self.services.clock.now());
        self.outside.timer = Some(ctx.run_later(wait, |this, ctx| {
            this.outside.timer = None;
            this.on_background_timer(ctx);
        }));
    }

    fn on_background_timer(&mut self, ctx: &mut Context<Self>) {
        let (now, limits) = (self.services.clock.now(), self.services.settings.background);
        if self.permissions.is_waiting() {
            // The agent waits for a person, for which there is another limit.
            self.outside.work.hear(now);
        }
        let work = &self.outside.work;
        let is_silent = self.outside.woken.is_some() && now >= work.silent_at(limits);
        if is_silent && self.turn.is_none() {
            self.end_woken(&completed(), Some("the end of the turn is assumed: the agent fell silent"));
        }
        if self.turn.is_none() && !self.outside.work.is_over() && now >= self.outside.work.ends_at(limits) {
            self.outside.work.end();
        }
        self.settle_background(ctx);
    }

    /// Records in the session's row that its agent works, so that a crash is reported; best effort.
    fn record_background(&mut self, is_working: bool) {
        if self.outside.is_recorded == is_working || !self.shared.is_stored() {
            return;
        }
        self.outside.is_recorded = is_working;
        let state = if is_working { SessionState::Background } else { SessionState::Idle };
        let change = SessionChange { state: Some(state), ..SessionChange::new(self.shared.spec.session_id) };
        let store = self.services.store.clone();
        tokio::spawn(async move {
            if let Err(cause) = store.update_session(change).await {
                tracing::warn!(marker = "[ACP]", %cause, "state of a session was not written");
            }
        });
    }

    /// Ends the agent's work with its connection, and reports what was cut off.
    pub(super) fn cut_off_background(&mut self, reason: &str, outcome: Option<TurnOutcome>) {
        let work = self.outside.work.unfinished();
        let was_woken = self.outside.woken.is_some();
        self.end_woken(&outcome.clone().unwrap_or_else(|| interrupted(reason)), None);
        if let Some(work) = work.filter(|_| outcome.is_none()) {
            let note = cut_off_note(reason, Some(&work));
            let session_id = self.shared.spec.session_id;
            tracing::warn!(marker = "[ACP]", %session_id, reason, %work, was_woken, "background work was cut off");
            let update = json!({"severity": Severity::Warn, "message": note});
            self.shared.feed.announce(None, EventKind::Diagnostic, &update);
            self.late.note(TranscriptEntry::text("info", &note));
        }
        self.outside.work.begin(self.services.clock.now());
    }

    /// Asks the agent to stop its own turn, if `wanted` means that one. It ends as cancelled, by its mark or by silence.
    pub(super) fn cancel_woken(&mut self, wanted: Option<PromptId>) -> Option<PromptId> {
        let woken = self.outside.woken.as_mut().filter(|woken| wanted.is_none_or(|id| id == woken.prompt_id()))?;
        woken.is_cancelled = true;
        let prompt_id = woken.prompt_id();
        let ended = self.permissions.cancel_of(Some(prompt_id), AnsweredBy::Cancel);
        self.end_permissions(ended);
        if let Some(Err(cause)) = self.link.as_mut().map(|link| link.cancel()) {
            tracing::debug!(marker = "[ACP]", %cause, "cancel was not sent");
        }
        Some(prompt_id)
    }
}

/// Why the agent of a session stops, for people; `None` if a caller closed the session.
pub(super) fn reason_of(cause: &EndCause) -> Option<&'static str> {
    match cause {
        EndCause::Idle => Some("the session hibernated"),
        EndCause::Drained => Some("the service stopped"),
        EndCause::Broken(_) | EndCause::StartFailed(_) | EndCause::Panicked => Some("the agent stopped"),
        EndCause::Closed => None,
    }
}
