//! Redaction of an agent's events in the supervisor. A runtime elsewhere redacts the values that it knows; those of the
//! supervisor's own configuration are known here alone.

use std::{
    collections::VecDeque,
    pin::Pin,
    task::{Context, Poll},
};

use futures_util::Stream;
use serde_json::value::RawValue;
use tokio::time::{Instant, Sleep, sleep_until};

use super::AgentEvent;
use crate::domain::turn::frames::{FrameRedaction, chunk_of_update};

/// The events of an agent, in whose updates known values are redacted, also those that the chunks of a message split. The end
/// of a chunk that may begin a value is held back, at most for the waits of [`FrameRedaction`] and until the turn ends.
///
/// A held text belongs to a message that counts as handled. It is lost with this process only together with a turn that is
/// not settled yet, whose messages the runtime sends again.
pub(crate) struct RedactedEvents<S> {
    /// `None` after their end.
    events: Option<S>,
    redaction: FrameRedaction,
    /// Events that are due.
    due: VecDeque<AgentEvent>,
    /// The time of the agent's newest event.
    heard: Instant,
    /// Wakes the reader when a held text is due.
    timer: Option<Pin<Box<Sleep>>>,
}

impl<S: Stream<Item = AgentEvent> + Unpin> RedactedEvents<S> {
    pub(crate) fn new(events: S) -> Self {
        let redaction = FrameRedaction::default();
        Self { events: Some(events), redaction, due: VecDeque::new(), heard: Instant::now(), timer: None }
    }

    fn take(&mut self, event: AgentEvent) {
        (self.timer, self.heard) = (None, Instant::now());
        let (update, meta) = match event {
            AgentEvent::Update { update, meta } => (update, meta),
            other => {
                let ends =
                    matches!(other, AgentEvent::Answered { .. } | AgentEvent::Failed { .. } | AgentEvent::Closed(_));
                self.show(|redaction, out| redaction.pass_other(ends, out));
                self.due.push_back(other);
                return;
            }
        };
        let chunk = chunk_of_update(&update);
        if self.redaction.leaves(chunk.as_ref()) {
            self.due.push_back(AgentEvent::Update { update, meta });
            return;
        }
        self.show(|redaction, out| redaction.pass(Box::<str>::from(update).into(), chunk, false, out));
        // The newest is the update itself.
        if let Some(AgentEvent::Update { meta: of_update, .. }) = self.due.back_mut() {
            *of_update = meta;
        }
    }

    fn show(&mut self, redact: impl FnOnce(&mut FrameRedaction, &mut Vec<String>)) {
        let mut out = Vec::new();
        redact(&mut self.redaction, &mut out);
        let updates = out.into_iter().filter_map(|update| RawValue::from_string(update).ok());
        self.due.extend(updates.map(|update| AgentEvent::Update { update, meta: None }));
    }

    /// Waits for the time at which a held text is due. Pending if nothing is held.
    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(patience) = self.redaction.patience() else { return Poll::Pending };
        let due = self.heard + patience;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(due)));
        std::task::ready!(timer.as_mut().poll(cx));
        self.timer = None;
        let silence = self.heard.elapsed();
        self.show(|redaction, out| redaction.on_silence(silence, out));
        Poll::Ready(())
    }
}

impl<S: Stream<Item = AgentEvent> + Unpin> Stream for RedactedEvents<S> {
    type Item = AgentEvent;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<AgentEvent>> {
        let this = &mut *self;
        loop {
            if let Some(event) = this.due.pop_front() {
                return Poll::Ready(Some(event));
            }
            let Some(events) = &mut this.events else { return Poll::Ready(None) };
            match Pin::new(events).poll_next(cx) {
                Poll::Ready(Some(event)) => this.take(event),
                Poll::Ready(None) => {
                    this.events = None;
                    this.show(FrameRedaction::finish);
                }
                Poll::Pending => std::task::ready!(this.poll_timer(cx)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::{FutureExt, StreamExt};
    use serde_json::json;
    use tokio::sync::mpsc;

    use super::*;
    use crate::domain::redaction::known;

    const VALUE: &str = "omega-secret-of-the-supervisor";

    fn chunk(text: &str) -> AgentEvent {
        let update = json!({"sessionUpdate": "agent_message_chunk", "content": {"type": "text", "text": text}});
        AgentEvent::Update { update: serde_json::value::to_raw_value(&update).unwrap(), meta: None }
    }

    fn answered() -> AgentEvent {
        AgentEvent::Answered { call: 1, result: Ok(RawValue::NULL.to_owned()) }
    }

    /// The texts of the updates, and the other events as `|`.
    fn shown(events: impl IntoIterator<Item = AgentEvent>) -> String {
        let texts = events.into_iter().map(|event| match event {
            AgentEvent::Update { update, .. } => {
                let update: serde_json::Value = serde_json::from_str(update.get()).unwrap();
                update["content"]["text"].as_str().unwrap().to_owned()
            }
            _ => "|".to_owned(),
        });
        texts.collect()
    }

    fn redacted() -> (mpsc::Sender<AgentEvent>, impl Stream<Item = AgentEvent> + Unpin) {
        known::hide([VALUE.to_owned()]);
        let (says, mut heard) = mpsc::channel(16);
        (says, RedactedEvents::new(futures_util::stream::poll_fn(move |cx| heard.poll_recv(cx))))
    }

    #[tokio::test]
    async fn value_of_the_supervisor_that_chunks_split_is_redacted_in_order() {
        let (says, events) = redacted();
        for text in ["say omega-sec", "ret-of-the", "-supervisor, and omega-s"] {
            says.try_send(chunk(text)).unwrap();
        }
        says.try_send(answered()).unwrap();
        says.try_send(chunk("omega-secret")).unwrap();
        drop(says);
        assert_eq!(shown(events.collect::<Vec<_>>().await), "say [redacted], and omega-s|omega-secret");
    }

    #[tokio::test]
    async fn held_end_of_a_text_is_shown_while_the_agent_is_silent() {
        let (says, mut events) = redacted();
        says.try_send(chunk("see omega")).unwrap();
        assert_eq!(shown(events.next().await), "see ");
        assert!(events.next().now_or_never().is_none());
        let begun = Instant::now();
        assert_eq!(shown(events.next().await), "omega");
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
        assert!(events.next().now_or_never().is_none());
        drop(says);
        assert!(events.next().await.is_none() && events.next().await.is_none());
    }
}
