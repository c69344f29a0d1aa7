//! Keeps the mode, model and options of a session, and sets them again in an agent that was found again. A fresh agent
//! gets them in its handshake (`transport/acp/reapply.rs`).

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use actix::{AsyncContext, Context, Handler, ResponseActFuture, SpawnHandle};
use serde_json::{json, value::RawValue};

use super::{Call, Session};
use crate::{
    actors::handles::messages::{ChangeSetting, Later},
    domain::{
        redaction::Redacted,
        routing::Route,
        session::{
            choices::{Choices, Effect, Reapplied, Setting, not_set, refusal_of_headless},
            event::EventKind,
        },
        turn::{
            Severity, TurnOutcome,
            outcome::{ErrorCode, Failure},
            transcript::TranscriptEntry,
            update::UpdateView,
        },
    },
    store::{self, SessionChange},
    transport::AgentFacts,
};

/// Writes of changed choices that may be queued; later changes are written together.
pub(super) const MAX_WRITES: usize = 4;
/// Time limit for the answers of an agent that was found again.
const RESTORE_TIMEOUT: Duration = Duration::from_secs(5);

/// Writes of choices that the agent changed by itself.
#[derive(Default)]
pub(super) struct ChoiceWrites {
    /// Writes that were queued and have not ended.
    in_flight: Arc<AtomicUsize>,
    /// True if a change is not queued.
    is_due: bool,
}

impl ChoiceWrites {
    /// True if a change is not on disk yet, so that the runtime must keep the message behind it.
    pub(super) fn is_pending(&self) -> bool {
        self.is_due || self.in_flight.load(Ordering::Acquire) > 0
    }
}

/// Setting the kept choices again in an agent that was found again.
#[derive(Default)]
pub(super) enum Restoring {
    /// Not needed, or over.
    #[default]
    No,
    /// Before the next prompt.
    Due,
    /// The agent has these and has not answered.
    Sent(Vec<Setting>, SpawnHandle),
}

impl Handler<ChangeSetting> for Session {
    type Result = ResponseActFuture<Self, Result<Box<RawValue>, Failure>>;

    fn handle(&mut self, ChangeSetting(setting): ChangeSetting, _: &mut Self::Context) -> Self::Result {
        match setting.check() {
            Ok(()) => self.call(setting),
            Err(failure) => Box::pin(actix::fut::ready(Err(failure))),
        }
    }
}

impl Session {
    /// The agent has confirmed a setting of a user: the caller gets the answer once the choice is on disk.
    pub(super) fn on_setting_confirmed(
        &mut self,
        setting: &Setting,
        answer: Box<RawValue>,
        later: Later<Result<Box<RawValue>, Failure>>,
    ) {
        self.shared.view().chosen.set(setting, &answer);
        self.announce_choices("user", &Reapplied::default());
        self.choice_writes.is_due = false;
        let change = self.change_of_choices();
        let in_flight = self.choice_writes.in_flight.clone();
        in_flight.fetch_add(1, Ordering::AcqRel);
        let (counted, session_id) = (in_flight.clone(), self.shared.spec.session_id);
        let (answered, waits) = tokio::sync::oneshot::channel();
        let queued = self.services.store.try_update_session(change, move |written| {
            counted.fetch_sub(1, Ordering::AcqRel);
            // Fails only if the caller has stopped waiting.
            let _ = answered.send(written.map(drop).map_err(|cause| store::failure(&cause)));
        });
        if let Err(cause) = queued {
            in_flight.fetch_sub(1, Ordering::AcqRel);
            self.choice_writes.is_due = true;
            let _ = later.send(Err(store::failure(&cause)));
            return;
        }
        let patience = self.services.settings.inactivity_timeout;
        actix::spawn(async move {
            let written = tokio::time::timeout(patience, waits).await;
            let lost = || Failure::new(ErrorCode::DatabaseUnavailable, "the choice was not written in time");
            let written = written.map_err(|_| lost()).and_then(|written| written.unwrap_or_else(|_| Err(lost())));
            if written.is_err() {
                tracing::warn!(marker = "[ACP]", %session_id, "choice of a user was not written");
            }
            let _ = later.send(written.map(|()| answer));
        });
    }

    /// Takes note of a mode or option that the agent changes by itself.
    pub(super) fn on_choice_update(&mut self, view: Option<&UpdateView>, update: &RawValue) {
        if !view.is_some_and(|view| matches!(view.kind.as_str(), "current_mode_update" | "config_option_update")) {
            return;
        }
        let effect = self.shared.view().chosen.on_update(update);
        match effect {
            Effect::Nothing => {}
            Effect::Changed => {
                self.choice_writes.is_due = true;
                self.write_choices(MAX_WRITES);
            }
            Effect::Unavailable => {
                let reason = self.shared.view().chosen.mode_unavailable().unwrap_or_default().to_owned();
                self.report(Severity::Error, &reason);
                self.announce_choices("agent", &Reapplied::default());
            }
        }
    }

    /// Queues the write of choices that have changed, unless `most` writes are queued. Called ahead of a write that lets
    /// the runtime discard the messages behind them.
    pub(super) fn write_choices(&mut self, most: usize) {
        let in_flight = &self.choice_writes.in_flight;
        if !self.choice_writes.is_due || !self.shared.is_stored() || in_flight.load(Ordering::Acquire) >= most {
            return;
        }
        let counted = in_flight.clone();
        counted.fetch_add(1, Ordering::AcqRel);
        let session_id = self.shared.spec.session_id;
        let queued = self.services.store.try_update_session(self.change_of_choices(), move |written| {
            counted.fetch_sub(1, Ordering::AcqRel);
            if let Err(cause) = written {
                tracing::error!(marker = "[ACP]", %session_id, %cause, "mode and options were not written");
            }
        });
        match queued {
            Ok(()) => self.choice_writes.is_due = false,
            Err(_) => drop(self.choice_writes.in_flight.fetch_sub(1, Ordering::AcqRel)),
        }
    }

    fn change_of_choices(&self) -> SessionChange {
        let chosen = self.shared.view().chosen.clone();
        let facts = self.facts.as_ref().filter(|_| self.connection_route == Route::Acp);
        SessionChange {
            choices: Some(chosen.choices().clone()),
            agent_facts: facts.map(|facts| facts.for_row(chosen.offers())),
            ..SessionChange::new(self.shared.spec.session_id)
        }
    }

    /// Records what a new connection offers, and reports which choices were set again.
    pub(super) fn take_offers(&mut self, route: Route, facts: &AgentFacts, is_adopted: bool) {
        self.restoring = if is_adopted { Restoring::Due } else { Restoring::No };
        {
            let chosen = &mut self.shared.view().chosen;
            match (route, is_adopted) {
                (Route::Http, _) => chosen.without_agent(),
                (Route::Acp, true) => chosen.adopted(facts.offers.clone()),
                (Route::Acp, false) => {
                    chosen.connected(facts.offers.clone(), &facts.reapplied, facts.remembers);
                }
            }
        }
        // The row of a new session is written with them.
        if route == Route::Acp && self.shared.is_stored() {
            self.choice_writes.is_due = true;
            self.write_choices(usize::MAX);
        }
        let Reapplied { applied, failed, mode_unavailable } = &facts.reapplied;
        if !applied.is_empty() {
            let names: Vec<_> = applied.iter().map(Setting::describe).collect();
            self.report(Severity::Info, &format!("set again in the fresh agent: {}", names.join(", ")));
        }
        for (setting, cause) in failed {
            self.report(Severity::Warn, &not_set(setting, cause));
        }
        if !(applied.is_empty() && failed.is_empty() && mode_unavailable.is_none()) {
            self.announce_choices("reapplied", &facts.reapplied);
        }
    }

    /// Returns the refusal of a turn over `carrier`, if the agent cannot have the mode that a user set.
    pub(super) fn refusal_of_mode(&self, carrier: Route) -> Option<Failure> {
        let view = self.shared.view();
        match carrier {
            Route::Http if self.shared.spec.has_oneshot => refusal_of_headless(view.chosen.choices()),
            Route::Acp if self.link.is_some() && self.connection_route == Route::Acp => {
                view.chosen.mode_unavailable().map(|detail| Failure::new(ErrorCode::ModeUnavailable, detail))
            }
            _ => None,
        }
    }

    /// Sets the kept choices again in an agent that was found again: it may have taken one that is not on disk. Returns
    /// true if a prompt has to wait.
    pub(super) fn restores(&mut self, ctx: &mut Context<Self>) -> bool {
        match &self.restoring {
            Restoring::No => return false,
            Restoring::Sent(..) => return true,
            Restoring::Due => self.restoring = Restoring::No,
        }
        let settings = {
            let chosen = &self.shared.view().chosen;
            chosen.choices().settings_to_restore(chosen.offers())
        };
        let Some(link) = self.link.as_mut().filter(|_| !settings.is_empty()) else { return false };
        let mut sent = Vec::new();
        for setting in settings {
            let call = self.calls.open_reserved(Call::Restore(setting.clone()));
            match link.set(call, &setting) {
                Ok(()) => sent.push(setting),
                Err(cause) => {
                    self.calls.take(call);
                    self.shared.view().chosen.refused(&setting, &cause.to_string());
                }
            }
        }
        if sent.is_empty() {
            return false;
        }
        let timer = ctx.run_later(RESTORE_TIMEOUT, |this, ctx| {
            let Restoring::Sent(unanswered, _) = std::mem::take(&mut this.restoring) else { return };
            for setting in unanswered {
                this.restore_failed(&setting, "the agent did not answer");
            }
            this.dispatch(ctx);
        });
        self.restoring = Restoring::Sent(sent, timer);
        true
    }

    /// The agent has answered a choice that was set again.
    pub(super) fn on_restored(
        &mut self,
        setting: &Setting,
        result: Result<&RawValue, String>,
        ctx: &mut Context<Self>,
    ) {
        match result {
            Ok(answer) => self.shared.view().chosen.restored(setting, answer),
            Err(cause) => self.restore_failed(setting, &format!("the agent refused it: {cause}")),
        }
        let Restoring::Sent(sent, timer) = &mut self.restoring else { return };
        sent.retain(|sent| sent != setting);
        if sent.is_empty() {
            ctx.cancel_future(*timer);
            self.restoring = Restoring::No;
            self.dispatch(ctx);
        }
    }

    fn restore_failed(&mut self, setting: &Setting, cause: &str) {
        self.shared.view().chosen.refused(setting, cause);
        self.report(Severity::Warn, &not_set(setting, cause));
    }

    /// Returns the choices that the agent of a single turn gets with its prompt; one over ACP has them already.
    pub(super) fn choices_for_prompt(&self) -> Choices {
        let chosen = &mut self.shared.view().chosen;
        chosen.prompted();
        match self.connection_route {
            Route::Http => chosen.choices().clone(),
            Route::Acp => Choices::default(),
        }
    }

    /// Ends a turn whose agent does not have the mode that a user set; nothing was sent to the agent.
    pub(super) fn ends_without_mode(&mut self, ctx: &mut Context<Self>) -> bool {
        let Some(refusal) = self.turn.as_ref().and_then(|turn| self.refusal_of_mode(turn.carrier)) else {
            return false;
        };
        self.end_turn(TurnOutcome::Failed(refusal), None, ctx);
        true
    }

    /// Records a diagnostic in the turn that waits for the agent, or a note outside a turn.
    fn report(&mut self, severity: Severity, message: &str) {
        let session_id = self.shared.spec.session_id;
        let detail = Redacted::new(message);
        tracing::info!(marker = "[ACP]", %session_id, %detail, "mode, model and options of the session");
        if let Some(ticket) = self.turn.as_mut().and_then(|turn| turn.ticket.as_mut()) {
            return ticket.remark(severity, message);
        }
        self.shared.feed.announce(None, EventKind::Diagnostic, &json!({"severity": severity, "message": message}));
        self.late.note(TranscriptEntry::text("info", message));
        self.write_late_updates();
    }

    /// Publishes the mode, model and options, and why they changed.
    fn announce_choices(&self, cause: &str, reapplied: &Reapplied) {
        let update = {
            let view = self.shared.view();
            let (values, unavailable) = (view.chosen.offers().values_as_json(), view.chosen.mode_unavailable());
            let applied: Vec<_> = reapplied.applied.iter().map(Setting::describe).collect();
            let failed: Vec<_> = reapplied.failed.iter().map(|(setting, why)| not_set(setting, why)).collect();
            json!({"cause": cause, "current": values, "applied": applied, "failed": failed, "modeUnavailable": unavailable})
        };
        self.shared.feed.announce(None, EventKind::Settings, &update);
    }
}
