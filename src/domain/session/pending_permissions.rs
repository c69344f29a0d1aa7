//! Permission requests that wait for a person's answer.

use std::{sync::Arc, time::Duration};

use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};
use uuid::Uuid;

use super::permission::{self, AnsweredBy, Decision, MAX_OPTIONS, OfferedOption, PermissionPolicy};
use crate::{
    acp::{
        jsonrpc::{self, RpcError},
        schema::RequestId,
    },
    domain::{
        clock::Timestamp,
        ids::PromptId,
        text,
        turn::{
            outcome::{ErrorCode, Failure},
            payload::Payload,
        },
    },
};

/// The most requests of one session that wait at the same time; further ones are rejected at once. Known agents send one
/// at a time.
const MAX_WAITING: usize = 32;
/// The longest tool call that is kept with a waiting request, in bytes; a longer one is cut as in the transcript. All
/// requests of a session take at most 2 MiB.
const MAX_TOOL_CALL_BYTES: usize = 48 * 1024;
/// The longest option that is kept as the agent sent it, in bytes; of a longer one the known members are kept.
const MAX_OPTION_BYTES: usize = 2048;
/// The longest id of a tool call that is repeated, in bytes.
const MAX_CALL_ID_BYTES: usize = 256;

/// The waiting requests of one session, oldest first; at most [`MAX_WAITING`].
#[derive(Debug, Default)]
pub(crate) struct PendingPermissions {
    waiting: Vec<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    id: RequestId,
    request: Arc<WaitingRequest>,
    tool_call_id: Option<String>,
    options: Vec<OfferedOption>,
    /// Chosen if nobody answers in time.
    refusal: Option<OfferedOption>,
}

/// A waiting request, as clients see it.
#[derive(Debug, Clone)]
pub(crate) struct WaitingRequest {
    /// The id by which clients answer the request.
    pub request_id: String,
    /// The turn that waits; absent for a request outside a turn.
    pub prompt_id: Option<PromptId>,
    /// The agent's tool call, cut if it is long; `null` if the agent sent none.
    pub tool_call: Box<RawValue>,
    /// The offered options, each an object with at least `optionId`; at most [`MAX_OPTIONS`].
    pub options: Vec<Box<RawValue>>,
    pub since: Timestamp,
    /// The time at which the request is rejected.
    pub deadline: Timestamp,
}

impl WaitingRequest {
    /// The content of its event, with `tool_call` in place of the one that is kept.
    pub(crate) fn content(&self, tool_call: &RawValue) -> Value {
        // A tree cannot hold every JSON text: null stands for halves of characters, for example.
        let tree = |raw: &RawValue| serde_json::from_str::<Value>(raw.get()).unwrap_or_default();
        let options: Vec<_> = self.options.iter().map(|option| tree(option)).collect();
        json!({
            "requestId": self.request_id, "toolCall": tree(tool_call), "options": options,
            "since": self.since.to_string(), "deadline": self.deadline.to_string(),
        })
    }
}

/// A permission request of the agent, as it was received.
#[derive(Debug)]
pub(crate) struct ReceivedRequest<'a> {
    /// The JSON-RPC id of the agent's request.
    pub id: RequestId,
    pub params: &'a RawValue,
    /// A fresh id, by which clients answer.
    pub request_id: Uuid,
    /// The turn that asks.
    pub prompt_id: Option<PromptId>,
    pub now: Timestamp,
    /// Time for a person to answer.
    pub patience: Duration,
}

/// The handling of a received request.
#[derive(Debug)]
pub(crate) enum Received {
    Answer(Answer),
    Waits {
        request: Arc<WaitingRequest>,
        /// The content of the event to publish; its tool call is not cut.
        event: Value,
    },
    /// A request with this JSON-RPC id waits already; its answer is the answer to both.
    Repeated,
    /// The parameters do not follow the protocol; with the parser's message.
    Malformed(String),
}

/// The end of a permission request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Resolution {
    pub request_id: String,
    /// The turn that asked.
    pub prompt_id: Option<PromptId>,
    pub tool_call_id: Option<String>,
    /// The chosen option; `None` is `cancelled`.
    pub option: Option<OfferedOption>,
    pub by: AnsweredBy,
}

impl Resolution {
    /// The content of the event `permission_resolved`.
    pub(crate) fn event(&self) -> Value {
        json!({
            "requestId": self.request_id,
            "toolCallId": self.tool_call_id,
            "outcome": if self.option.is_some() { "selected" } else { "cancelled" },
            "optionId": self.option.as_ref().map(|option| &option.option_id),
            "option": self.option,
            "by": self.by,
        })
    }

    /// The text of the transcript's entry.
    pub(crate) fn text(&self) -> String {
        let by = self.by.as_str();
        match &self.option {
            Some(option) => format!("permission: {} (by {by})", text::cut(&option.option_id, 200)),
            None => format!("permission: cancelled (by {by})"),
        }
    }

    /// True if the chosen option may grant the permission.
    pub(crate) fn allows(&self) -> bool {
        self.option.as_ref().is_some_and(OfferedOption::may_allow)
    }
}

/// An answer to the agent.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    /// The JSON-RPC id of the agent's request.
    pub id: RequestId,
    /// ACP `RequestPermissionResponse`, or the error for a withdrawn request.
    pub response: Result<Value, RpcError>,
    pub resolution: Resolution,
}

impl Answer {
    fn new(id: RequestId, resolution: Resolution) -> Self {
        let response = match (&resolution.option, resolution.by) {
            (Some(option), _) => Ok(json!({"outcome": {"outcome": "selected", "optionId": option.option_id}})),
            (None, AnsweredBy::Withdrawn) => {
                Err(RpcError::new(jsonrpc::REQUEST_CANCELLED, "the agent withdrew the request"))
            }
            (None, _) => Ok(json!({"outcome": {"outcome": "cancelled"}})),
        };
        Self { id, response, resolution }
    }
}

/// The parts of a request that could be read.
struct Parts {
    tool_call: Box<RawValue>,
    tool_call_id: Option<String>,
    /// Every option with a usable id.
    options: Vec<(OfferedOption, Box<RawValue>)>,
}

impl Parts {
    /// # Errors
    /// The parser's message, if the parameters are no object with a list of options.
    fn read(params: &RawValue) -> Result<Self, String> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Raw {
            #[serde(default)]
            tool_call: Option<Box<RawValue>>,
            options: Vec<Box<RawValue>>,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Call {
            tool_call_id: String,
        }
        let raw: Raw = serde_json::from_str(params.get()).map_err(|cause| cause.to_string())?;
        let options = raw.options.into_iter().filter_map(|raw| Some((OfferedOption::read(&raw)?, raw)));
        let tool_call = raw.tool_call.unwrap_or_else(|| RawValue::NULL.to_owned());
        let call: Option<Call> = serde_json::from_str(tool_call.get()).ok();
        let tool_call_id = call.map(|call| text::cut_bytes(&call.tool_call_id, MAX_CALL_ID_BYTES).to_owned());
        Ok(Self { tool_call, tool_call_id, options: options.collect() })
    }
}

fn bounded_option((option, raw): (&OfferedOption, &RawValue)) -> Box<RawValue> {
    match raw.get().len() <= MAX_OPTION_BYTES {
        true => raw.to_owned(),
        false => serde_json::value::to_raw_value(option).unwrap_or_else(|_| RawValue::NULL.to_owned()),
    }
}

impl PendingPermissions {
    /// Answers a request by policy, or keeps it until a person answers.
    pub(crate) fn receive(&mut self, policy: PermissionPolicy, received: ReceivedRequest<'_>) -> Received {
        let ReceivedRequest { id, params, request_id, prompt_id, now, patience } = received;
        let Parts { tool_call, tool_call_id, options } = match Parts::read(params) {
            Ok(parts) => parts,
            Err(cause) => return Received::Malformed(cause),
        };
        if self.waiting.iter().any(|waiting| waiting.id == id) {
            return Received::Repeated;
        }
        let request_id = request_id.to_string();
        let (offered, raws): (Vec<_>, Vec<_>) = options.into_iter().unzip();
        let answer = |option, by| {
            let request_id = request_id.clone();
            let resolution = Resolution { request_id, prompt_id, tool_call_id: tool_call_id.clone(), option, by };
            Received::Answer(Answer::new(id.clone(), resolution))
        };
        match permission::decide(policy, &offered) {
            Decision::Select(option) => return answer(Some(option), policy.into()),
            Decision::Cancel => return answer(None, policy.into()),
            Decision::Ask if self.waiting.len() >= MAX_WAITING => {
                return answer(permission::refusal(&offered), AnsweredBy::Limit);
            }
            Decision::Ask => {}
        }
        let shown = offered.iter().zip(&raws).take(MAX_OPTIONS).map(|(option, raw)| bounded_option((option, raw)));
        let request = Arc::new(WaitingRequest {
            request_id,
            prompt_id,
            tool_call: Payload::new(&tool_call).render(MAX_TOOL_CALL_BYTES),
            options: shown.collect(),
            since: now,
            deadline: now.plus(patience),
        });
        let event = request.content(&tool_call);
        let refusal = permission::refusal(&offered);
        let mut options = offered;
        options.truncate(MAX_OPTIONS);
        self.waiting.push(Waiting { id, request: request.clone(), tool_call_id, options, refusal });
        Received::Waits { request, event }
    }

    /// Answers a waiting request with one of its options, or with `cancelled` for `None`.
    ///
    /// # Errors
    /// `permission_not_pending` if the request does not wait, or does not offer the option; it then waits on.
    pub(crate) fn answer(&mut self, request_id: &str, option_id: Option<&str>) -> Result<Answer, Failure> {
        let Some(place) = self.waiting.iter().position(|waiting| waiting.request.request_id == request_id) else {
            let detail = format!("no permission request {request_id:?} waits for an answer");
            return Err(Failure::new(ErrorCode::PermissionNotPending, detail));
        };
        let offered = &self.waiting[place].options;
        let option = match option_id {
            None => None,
            Some(wanted) => {
                let found = offered.iter().find(|option| option.option_id == wanted);
                let not_offered = || {
                    let offered: Vec<_> = offered.iter().map(|option| option.option_id.as_str()).collect();
                    let detail =
                        format!("the agent does not offer the option {wanted:?}; it offers {}", offered.join(", "));
                    Failure::new(ErrorCode::PermissionNotPending, text::cut(&detail, 1000))
                };
                Some(found.cloned().ok_or_else(not_offered)?)
            }
        };
        Ok(self.end(place, option, AnsweredBy::User))
    }

    /// Rejects a request without an answer in time; `None` if it was answered before.
    pub(crate) fn time_out(&mut self, request_id: &str) -> Option<Answer> {
        let place = self.waiting.iter().position(|waiting| waiting.request.request_id == request_id)?;
        let refusal = self.waiting[place].refusal.clone();
        Some(self.end(place, refusal, AnsweredBy::Timeout))
    }

    /// Ends a request that the agent withdraws (`$/cancel_request` with the JSON-RPC id of its request); `None` if none
    /// with that id waits.
    pub(crate) fn withdraw(&mut self, params: &RawValue) -> Option<Answer> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Withdrawn {
            request_id: RequestId,
        }
        let withdrawn: Withdrawn = serde_json::from_str(params.get()).ok()?;
        let place = self.waiting.iter().position(|waiting| waiting.id == withdrawn.request_id)?;
        Some(self.end(place, None, AnsweredBy::Withdrawn))
    }

    /// Answers the waiting requests of a turn, and those outside a turn, with `cancelled`. Agents wait for these answers
    /// before they end a cancelled turn.
    pub(crate) fn cancel_of(&mut self, prompt_id: Option<PromptId>, by: AnsweredBy) -> Vec<Answer> {
        let is_of = |waiting: &Waiting| waiting.request.prompt_id.is_none() || waiting.request.prompt_id == prompt_id;
        let mut answers = Vec::new();
        while let Some(place) = self.waiting.iter().position(is_of) {
            answers.push(self.end(place, None, by));
        }
        answers
    }

    /// Answers every waiting request with `cancelled`.
    pub(crate) fn cancel_all(&mut self, by: AnsweredBy) -> Vec<Answer> {
        (0..self.waiting.len()).map(|_| self.end(0, None, by)).collect()
    }

    fn end(&mut self, place: usize, option: Option<OfferedOption>, by: AnsweredBy) -> Answer {
        let Waiting { id, request, tool_call_id, .. } = self.waiting.remove(place);
        let (request_id, prompt_id) = (request.request_id.clone(), request.prompt_id);
        Answer::new(id, Resolution { request_id, prompt_id, tool_call_id, option, by })
    }

    /// True while a request waits for a person.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests;
