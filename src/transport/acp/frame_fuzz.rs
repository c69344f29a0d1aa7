//! A property test: every input from an agent yields events and one close reason.

use std::sync::Arc;

use futures_util::{FutureExt, StreamExt};
use proptest::prelude::*;

use super::connection::Events;
use crate::{
    acp::{
        jsonrpc::{
            self, Message,
            tests::{any_answer, nearly_a_frame},
        },
        schema::client_method,
    },
    domain::turn::read_prompt_end,
    transport::{
        AgentEvent, CloseReason,
        pipe::{PipeLimits, bounded},
    },
};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn answer_with_any_json_in_its_members_ends_its_call_and_a_prompt_has_one_outcome(text in any_answer()) {
        let (to_us, from_agent) = bounded(PipeLimits { frames: 16, bytes: 1 << 20 });
        prop_assert!(to_us.send(text.clone()).now_or_never().is_some_and(|sent| sent.is_ok()));
        let mut events = Events::new(from_agent, Arc::default());
        match events.next().now_or_never().flatten() {
            Some(AgentEvent::Answered { call: 3, result }) => {
                let end = read_prompt_end(result.as_deref().map_err(Clone::clone), false);
                prop_assert!(end.outcome.state().is_final());
            }
            other => return Err(TestCaseError::fail(format!("{text}: {other:?}"))),
        }
    }

    #[test]
    fn reader_never_panics_and_malformed_frames_are_violations(
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
        let ends_closed = matches!(events.last(), Some(AgentEvent::Closed(_)));
        prop_assert!(closed == 1 && ends_closed, "exactly one close event, at the end");
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
        // Each frame yields one event, except a notice of the agent's exit, which is merged into the close event, and an
        // update that is sent as a request, which is followed by the request for its answer.
        let exit_notices = frames.iter().filter(|frame| {
            matches!(jsonrpc::parse(frame), Ok(Message::Notification { method, .. })
                if method == crate::contract::runtime::AGENT_EXITED)
        });
        let updates_as_requests = frames.iter().filter(|frame| {
            matches!(jsonrpc::parse(frame), Ok(Message::Request { method, .. }) if method == client_method::SESSION_UPDATE)
        });
        prop_assert_eq!(events.len() + exit_notices.count(), frames.len() + updates_as_requests.count() + 1);
    }
}
