//! Updates that the agent sends outside a turn: before the first one, and after the end of one. They are events and
//! entries of the transcript, as the updates of a turn are.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use actix::{AsyncContext, Context, SpawnHandle};
use serde_json::value::RawValue;

use super::{Session, agent_events::MAX_ENTRIES_WAITING};
use crate::{
    domain::{
        ids::PromptId,
        session::event::EventKind,
        turn::{
            transcript::{TranscriptBuilder, TranscriptEntry},
            update::UpdateView,
        },
    },
    store::TranscriptAppend,
};

/// Time that an update waits for more of them, so that a stream of them is not one write each.
const WRITE_AFTER: Duration = Duration::from_millis(250);

/// The updates outside a turn.
#[derive(Default)]
pub(super) struct LateUpdates {
    /// The turn that ended last; its late text continues its entries.
    prompt_id: Option<PromptId>,
    transcript: TranscriptBuilder,
    /// False while the agent may still replay a conversation that it has loaded, which the transcript has already.
    pub(super) takes_updates: bool,
    /// Entries that could not be queued, the oldest first.
    waiting: VecDeque<Waiting>,
    /// Writes that were queued and have not ended.
    in_flight: Arc<AtomicUsize>,
    timer: Option<SpawnHandle>,
}

/// Entries that wait for the queue.
struct Waiting {
    prompt_id: Option<PromptId>,
    entries: Vec<TranscriptEntry>,
    /// Number of the agent's last message that these entries and those before them cover; 0 if a turn's own writes count
    /// the messages.
    covers: u64,
}

impl LateUpdates {
    /// True if updates are not on disk yet.
    fn is_unwritten(&self) -> bool {
        !self.transcript.is_empty() || !self.waiting.is_empty() || self.in_flight.load(Ordering::Acquire) > 0
    }

    /// Continues with the transcript of a turn that has ended.
    pub(super) fn follow(&mut self, prompt_id: PromptId, transcript: TranscriptBuilder) {
        (self.prompt_id, self.transcript) = (Some(prompt_id), transcript);
    }

    /// Begins with a new connection, whose agent continues no turn.
    pub(super) fn begin(&mut self, takes_updates: bool, transcript: TranscriptBuilder) {
        (self.prompt_id, self.transcript, self.takes_updates) = (None, transcript, takes_updates);
    }

    /// Adds an entry of the service.
    pub(super) fn note(&mut self, entry: TranscriptEntry) {
        self.waiting.push_back(Waiting { prompt_id: None, entries: vec![entry], covers: 0 });
    }

    /// True if the update changes a tool call or message of the turn that ended last.
    pub(super) fn knows(&self, view: &UpdateView) -> bool {
        self.transcript.knows(view)
    }
}

impl Session {
    /// Publishes an update outside a turn, and writes it to the transcript soon.
    pub(super) fn on_late_update(
        &mut self,
        view: Option<&UpdateView>,
        update: &RawValue,
        meta: Option<&RawValue>,
        ctx: &mut Context<Self>,
    ) {
        let now = self.services.clock.now();
        let view = view.filter(|_| self.late.takes_updates);
        let (work, limits) = (&self.outside.work, self.services.settings.background);
        let is_marked = work.expects_turn();
        let wakes = view.is_some_and(|view| !self.late.knows(view) && work.wakes(view, now, limits));
        let is_woken = view.is_some_and(|view| !self.late.knows(view))
            && (self.outside.woken.is_some() || (wakes && self.wake(is_marked)));
        match (view, &mut self.outside.woken) {
            (Some(view), Some(woken)) if is_woken => woken.on_update(view, update, meta, now),
            (view, _) => {
                self.shared.feed.publish(None, EventKind::Update, update, meta);
                view.into_iter().for_each(|view| self.late.transcript.on_update(view, update));
            }
        }
        self.arm_late_timer(ctx);
    }

    /// True if updates outside a turn are not on disk yet.
    pub(super) fn has_unwritten_updates(&self) -> bool {
        let is_woken = self.outside.woken.as_ref().is_some_and(|woken| !woken.transcript.is_empty());
        is_woken || self.late.is_unwritten()
    }

    fn arm_late_timer(&mut self, ctx: &mut Context<Self>) {
        let waits = self.has_unwritten_updates();
        if waits && self.late.timer.is_none() {
            self.late.timer = Some(ctx.run_later(WRITE_AFTER, |this, ctx| {
                this.late.timer = None;
                this.write_late_updates();
                this.arm_late_timer(ctx);
            }));
        }
    }

    /// Queues the entries outside a turn for the database. They are kept while the session has no row or the queue is
    /// full, and dropped with the session.
    pub(super) fn write_late_updates(&mut self) {
        let delivered = self.link.as_ref().map(|link| link.delivered()).unwrap_or_default();
        let covers = if self.turn.is_none() { delivered.handled() } else { 0 };
        let late = &mut self.late;
        self.shared.add_transcript_bytes(late.transcript.take_bytes());
        if !late.transcript.is_empty() {
            late.waiting.push_back(Waiting { prompt_id: late.prompt_id, entries: late.transcript.take(), covers });
        }
        if let Some(woken) = self.outside.woken.as_mut().filter(|woken| !woken.transcript.is_empty()) {
            let (prompt_id, entries) = (Some(woken.prompt_id()), woken.transcript.take());
            late.waiting.push_back(Waiting { prompt_id, entries, covers });
        }
        if !self.shared.is_stored() {
            return;
        }
        let spec = &self.shared.spec;
        while let Some(Waiting { prompt_id, entries, covers }) = late.waiting.pop_front() {
            let append = TranscriptAppend {
                session_id: spec.session_id,
                key: spec.workspace.clone(),
                prompt_id,
                entries,
                settles: covers,
                now: self.services.clock.now(),
            };
            late.in_flight.fetch_add(1, Ordering::AcqRel);
            let (in_flight, settle) = (late.in_flight.clone(), delivered.clone());
            let refused = self.services.store.try_append(append, move |written| {
                in_flight.fetch_sub(1, Ordering::AcqRel);
                match written {
                    Ok(()) => settle.settle(covers),
                    Err(cause) => {
                        tracing::error!(marker = "[ACP]", %cause, "updates outside a turn were not written")
                    }
                }
            });
            if let Err((_, append)) = refused {
                late.in_flight.fetch_sub(1, Ordering::AcqRel);
                late.waiting.push_front(Waiting { prompt_id, entries: append.entries, covers });
                break;
            }
        }
        let mut kept = late.waiting.iter().map(|waiting| waiting.entries.len()).sum::<usize>();
        while kept > MAX_ENTRIES_WAITING
            && let Some(Waiting { entries: dropped, .. }) = late.waiting.pop_front()
        {
            kept -= dropped.len();
            tracing::error!(marker = "[ACP]", session_id = %spec.session_id, entries = dropped.len(),
                "updates outside a turn were dropped: the database accepts none");
        }
    }
}
