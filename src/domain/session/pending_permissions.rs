//! Permission requests that wait for a person's answer.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};
use uuid::Uuid;

use super::permission::{self, Decision, PermissionPolicy};
use crate::{
    acp::schema::{PermissionOption, PermissionOptionKind, RequestId, RequestPermissionRequest},
    domain::turn::outcome::{ErrorCode, Failure},
};

/// The most requests of one session that wait at the same time; further ones are answered `cancelled` at once. Known
/// agents send one at a time.
const MAX_WAITING: usize = 32;

/// The waiting requests of one session; at most [`MAX_WAITING`].
#[derive(Debug, Default)]
pub(crate) struct PendingPermissions {
    waiting: HashMap<String, Waiting>,
}

#[derive(Debug)]
struct Waiting {
    id: RequestId,
    options: Vec<PermissionOption>,
}

/// The handling of a received request.
#[derive(Debug)]
pub(crate) enum Received {
    Answer(Answer),
    Waits {
        /// The id by which clients answer the request.
        request_id: String,
        /// The content of the event to publish.
        event: Value,
    },
    /// The parameters do not follow the protocol; with the parser's message.
    Malformed(String),
}

/// An answer to the agent.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Answer {
    /// The JSON-RPC id of the agent's request.
    pub id: RequestId,
    /// ACP `RequestPermissionResponse`.
    pub response: Value,
    /// The chosen option; `None` is `cancelled`.
    pub option_id: Option<String>,
    /// True if that option grants the permission.
    pub allows: bool,
}

fn answer(id: RequestId, options: &[PermissionOption], option_id: Option<String>) -> Answer {
    let allows = options.iter().any(|option| {
        Some(&*option.option_id.0) == option_id.as_deref()
            && matches!(option.kind, PermissionOptionKind::AllowOnce | PermissionOptionKind::AllowAlways)
    });
    let outcome = match &option_id {
        Some(option_id) => json!({"outcome": "selected", "optionId": option_id}),
        None => json!({"outcome": "cancelled"}),
    };
    Answer { id, response: json!({"outcome": outcome}), option_id, allows }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawRequest<'a> {
    #[serde(borrow)]
    tool_call: &'a RawValue,
    #[serde(borrow)]
    options: &'a RawValue,
}

impl PendingPermissions {
    /// Answers a request by policy, or keeps it until a person answers. `request_id` is a fresh id.
    pub(crate) fn receive(
        &mut self,
        policy: PermissionPolicy,
        id: RequestId,
        params: &RawValue,
        request_id: Uuid,
    ) -> Received {
        let request: RequestPermissionRequest = match serde_json::from_str(params.get()) {
            Ok(request) => request,
            Err(cause) => return Received::Malformed(cause.to_string()),
        };
        match permission::decide(policy, &request.options) {
            Decision::Select(option_id) => Received::Answer(answer(id, &request.options, Some(option_id))),
            Decision::Cancel => Received::Answer(answer(id, &[], None)),
            Decision::Ask if self.waiting.len() >= MAX_WAITING => Received::Answer(answer(id, &[], None)),
            Decision::Ask => {
                let request_id = request_id.to_string();
                let event = match serde_json::from_str::<RawRequest<'_>>(params.get()) {
                    Ok(RawRequest { tool_call, options }) => {
                        // A tree cannot hold every JSON text: null stands for halves of characters, for example.
                        let [tool_call, options] = [tool_call, options]
                            .map(|raw| serde_json::from_str::<Value>(raw.get()).unwrap_or_default());
                        json!({"requestId": request_id, "toolCall": tool_call, "options": options})
                    }
                    Err(_) => json!({"requestId": request_id, "options": request.options}),
                };
                self.waiting.insert(request_id.clone(), Waiting { id, options: request.options });
                Received::Waits { request_id, event }
            }
        }
    }

    /// Answers a waiting request with one of its options, or with `cancelled` for `None`.
    ///
    /// # Errors
    /// `permission_not_pending` if the request does not wait, or does not offer the option; it then waits on.
    pub(crate) fn answer(&mut self, request_id: &str, option_id: Option<String>) -> Result<Answer, Failure> {
        let missing = || {
            Failure::new(
                ErrorCode::PermissionNotPending,
                format!("no permission request {request_id:?} waits for an answer"),
            )
        };
        let waiting = self.waiting.get(request_id).ok_or_else(missing)?;
        if let Some(option_id) = &option_id
            && !waiting.options.iter().any(|option| *option.option_id.0 == **option_id)
        {
            let offered: Vec<_> = waiting.options.iter().map(|option| option.option_id.to_string()).collect();
            let detail =
                format!("the agent does not offer the option {option_id:?}; it offers {}", offered.join(", "));
            return Err(Failure::new(ErrorCode::PermissionNotPending, detail));
        }
        let waiting = self.waiting.remove(request_id).ok_or_else(missing)?;
        Ok(answer(waiting.id, &waiting.options, option_id))
    }

    /// Rejects a request without an answer in time; `None` if it was answered before.
    pub(crate) fn time_out(&mut self, request_id: &str) -> Option<Answer> {
        let waiting = self.waiting.remove(request_id)?;
        let option_id = match permission::on_timeout(&waiting.options) {
            Decision::Select(option_id) => Some(option_id),
            Decision::Cancel | Decision::Ask => None,
        };
        Some(answer(waiting.id, &waiting.options, option_id))
    }

    /// Answers every waiting request with `cancelled`. Agents wait for these answers before they end a cancelled turn.
    pub(crate) fn cancel_all(&mut self) -> Vec<(String, Answer)> {
        self.waiting.drain().map(|(request_id, waiting)| (request_id, answer(waiting.id, &[], None))).collect()
    }

    /// True while a request waits for a person.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params() -> Box<RawValue> {
        RawValue::from_string(
            json!({
                "sessionId": "s",
                "toolCall": {"toolCallId": "t", "title": "write"},
                "options": [
                    {"optionId": "yes", "name": "Yes", "kind": "allow_once"},
                    {"optionId": "no", "name": "No", "kind": "reject_once"},
                ]
            })
            .to_string(),
        )
        .unwrap()
    }

    /// A fresh id; callers outside the domain use `Uuid::now_v7`.
    fn fresh(pending: &PendingPermissions) -> Uuid {
        Uuid::from_u128(pending.waiting.len() as u128)
    }

    fn ask(pending: &mut PendingPermissions) -> String {
        let request_id = fresh(pending);
        match pending.receive(PermissionPolicy::Ask, RequestId::Number(1), &params(), request_id) {
            Received::Waits { request_id, .. } => request_id,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn request_is_answered_once_and_only_with_an_offered_option() {
        let mut pending = PendingPermissions::default();
        let request_id = ask(&mut pending);
        assert!(pending.answer(&request_id, Some("maybe".into())).is_err());
        assert_eq!(pending.answer(&request_id, Some("yes".into())).unwrap().option_id.as_deref(), Some("yes"));
        assert!(pending.answer(&request_id, Some("yes".into())).is_err());
        assert!(pending.time_out(&request_id).is_none());
    }

    #[test]
    fn timeout_rejects_a_request_and_cancel_answers_all() {
        let mut pending = PendingPermissions::default();
        let request_id = ask(&mut pending);
        assert_eq!(pending.time_out(&request_id).unwrap().option_id.as_deref(), Some("no"));
        ask(&mut pending);
        ask(&mut pending);
        let answers = pending.cancel_all();
        assert_eq!(answers.len(), 2);
        assert_eq!(answers[0].1.response, json!({"outcome": {"outcome": "cancelled"}}));
        assert!(!pending.is_waiting());
    }

    #[test]
    fn request_beyond_the_limit_is_cancelled_at_once() {
        let mut pending = PendingPermissions::default();
        (0..MAX_WAITING).for_each(|_| drop(ask(&mut pending)));
        let request_id = fresh(&pending);
        let more = pending.receive(PermissionPolicy::Ask, RequestId::Number(1), &params(), request_id);
        assert!(matches!(more, Received::Answer(Answer { option_id: None, .. })));
    }
}
