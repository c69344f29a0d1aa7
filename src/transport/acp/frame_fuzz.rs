//! Whatever an agent sends, its conversation continues or ends with a reason.

use std::sync::Arc;

use futures_util::{FutureExt, StreamExt};
use proptest::prelude::*;

use super::connection::Events;
use crate::{
    acp::jsonrpc::{self, Message, tests::nearly_a_frame},
    transport::{
        AgentEvent, CloseReason,
        pipe::{PipeLimits, bounded},
    },
};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn no_frame_panics_and_malformed_ones_are_violations(
        frames in prop::collection::vec(nearly_a_frame(), 1..6),
    ) {
        let (to_us, from_agent) = bounded(PipeLimits { frames: 16, bytes: 1 << 20 });
        for frame in &frames {
            prop_assert!(to_us.send(frame.clone()).now_or_never().is_some_and(|sent| sent.is_ok()));
        }
        let closed = to_us.close(CloseReason::Lost("cut".into())).now_or_never();
        prop_assert!(closed.is_some());
        let events: Vec<_> = Events::new(from_agent, Arc::default()).collect().now_or_never().unwrap_or_default();
        let closed = events.iter().filter(|event| matches!(event, AgentEvent::Closed(_))).count();
        prop_assert!(closed == 1 && matches!(events.last(), Some(AgentEvent::Closed(_))), "one end, and the last");
        let violations: Vec<_> = events
            .iter()
            .filter_map(|event| match event {
                AgentEvent::Violation(why) => Some(why),
                _ => None,
            })
            .collect();
        prop_assert!(violations.iter().all(|why| !why.is_empty() && why.len() < 2000), "{:?}", violations);
        let unreadable = frames.iter().filter(|frame| jsonrpc::parse(frame).is_err()).count();
        prop_assert!(violations.len() >= unreadable);
        // Each frame is one event, but for the word of an agent's end, which comes with the end.
        let last_words = frames.iter().filter(|frame| {
            matches!(jsonrpc::parse(frame), Ok(Message::Notification { method, .. })
                if method == crate::contract::runtime::AGENT_EXITED)
        });
        prop_assert_eq!(events.len(), frames.len() - last_words.count() + 1);
    }
}
