use super::*;

fn raw(value: &Value) -> Box<RawValue> {
    RawValue::from_string(value.to_string()).unwrap()
}

fn params() -> Value {
    json!({
        "sessionId": "s",
        "toolCall": {"toolCallId": "t", "title": "write"},
        "options": [
            {"optionId": "yes", "name": "Yes", "kind": "allow_once"},
            {"optionId": "no", "name": "No", "kind": "reject_once"},
        ]
    })
}

fn turn(n: u128) -> Option<PromptId> {
    Some(PromptId(Uuid::from_u128(n)))
}

/// Receives a request with the JSON-RPC id `id`, under which it also gets its own id.
fn receive(pending: &mut PendingPermissions, policy: PermissionPolicy, id: i64, params: &Value) -> Received {
    let received = ReceivedRequest {
        id: RequestId::Number(id),
        params: &raw(params),
        // Callers outside the domain use `Uuid::now_v7`.
        request_id: Uuid::from_u128(id.unsigned_abs().into()),
        prompt_id: turn(1),
        now: Timestamp(1_000_000),
        patience: Duration::from_secs(300),
    };
    pending.receive(policy, received)
}

fn ask_with(pending: &mut PendingPermissions, id: i64, params: &Value) -> (Arc<WaitingRequest>, Value) {
    match receive(pending, PermissionPolicy::Ask, id, params) {
        Received::Waits { request, event } => (request, event),
        other => panic!("{other:?}"),
    }
}

fn ask(pending: &mut PendingPermissions, id: i64) -> String {
    ask_with(pending, id, &params()).0.request_id.clone()
}

fn chosen(answer: &Answer) -> Option<&str> {
    answer.resolution.option.as_ref().map(|option| option.option_id.as_str())
}

#[test]
fn request_is_answered_once_and_only_with_an_offered_option() {
    let mut pending = PendingPermissions::default();
    let request_id = ask(&mut pending, 1);
    assert!(pending.answer(&request_id, Some("maybe")).is_err());
    let answer = pending.answer(&request_id, Some("yes")).unwrap();
    assert_eq!(chosen(&answer), Some("yes"));
    let expected = json!({
        "requestId": request_id, "toolCallId": "t", "outcome": "selected", "optionId": "yes",
        "option": {"optionId": "yes", "name": "Yes", "kind": "allow_once"}, "by": "user",
    });
    assert_eq!(answer.resolution.event(), expected);
    assert!(pending.answer(&request_id, Some("yes")).is_err());
    assert!(pending.time_out(&request_id).is_none());
}

#[test]
fn timeout_rejects_a_request_and_cancel_answers_all() {
    let mut pending = PendingPermissions::default();
    let request_id = ask(&mut pending, 1);
    assert_eq!(chosen(&pending.time_out(&request_id).unwrap()), Some("no"));
    ask(&mut pending, 2);
    ask(&mut pending, 3);
    let answers = pending.cancel_all(AnsweredBy::TurnEnd);
    assert_eq!(answers.len(), 2);
    assert_eq!(answers[0].response.as_ref().unwrap(), &json!({"outcome": {"outcome": "cancelled"}}));
    assert!(!pending.is_waiting());
}

#[test]
fn request_beyond_the_limit_is_rejected_at_once() {
    let mut pending = PendingPermissions::default();
    (0..32).for_each(|id| drop(ask(&mut pending, id)));
    for id in 32..10_000 {
        match receive(&mut pending, PermissionPolicy::Ask, id, &params()) {
            Received::Answer(answer) => {
                assert_eq!((chosen(&answer), answer.resolution.by), (Some("no"), AnsweredBy::Limit));
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(pending.cancel_all(AnsweredBy::Cancel).len(), MAX_WAITING);
}

#[test]
fn option_of_an_unknown_kind_is_offered_like_the_others() {
    let mut params = params();
    params["options"][0]["kind"] = json!("allow_persistent");
    params["options"].as_array_mut().unwrap().push(json!({"optionId": "ask-later"}));
    let mut pending = PendingPermissions::default();
    let (request, event) = ask_with(&mut pending, 1, &params);
    assert_eq!(event["options"], params["options"], "as the agent sent them");
    let answer = pending.answer(&request.request_id, Some("yes")).unwrap();
    assert_eq!(answer.resolution.event()["option"]["kind"], "allow_persistent");
    match receive(&mut pending, PermissionPolicy::AllowOnce, 2, &params) {
        Received::Answer(answer) => assert_eq!(chosen(&answer), Some("no"), "no policy chooses it"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn withdrawn_request_is_answered_with_the_error_of_a_cancelled_request() {
    let mut pending = PendingPermissions::default();
    ask(&mut pending, 7);
    for unknown in [json!({"requestId": 8}), json!({"requestId": "7"}), json!({}), json!(7)] {
        assert!(pending.withdraw(&raw(&unknown)).is_none(), "{unknown}");
    }
    let answer = pending.withdraw(&raw(&json!({"requestId": 7}))).unwrap();
    assert_eq!(answer.id, RequestId::Number(7));
    assert_eq!(answer.response.unwrap_err().code, -32800);
    assert_eq!(answer.resolution.event()["by"], "withdrawn");
    assert!(!pending.is_waiting() && pending.withdraw(&raw(&json!({"requestId": 7}))).is_none());
}

#[test]
fn request_with_the_id_of_a_waiting_one_is_a_repeat() {
    let mut pending = PendingPermissions::default();
    let request_id = ask(&mut pending, 1);
    assert!(matches!(receive(&mut pending, PermissionPolicy::Ask, 1, &params()), Received::Repeated));
    assert!(pending.answer(&request_id, None).is_ok() && !pending.is_waiting());
    ask(&mut pending, 1);
}

#[test]
fn cancel_of_a_turn_leaves_the_requests_of_another() {
    let mut pending = PendingPermissions::default();
    ask(&mut pending, 1);
    assert!(pending.cancel_of(turn(2), AnsweredBy::TurnEnd).is_empty());
    assert_eq!(pending.cancel_of(turn(1), AnsweredBy::TurnEnd).len(), 1);
}

#[test]
fn waiting_request_of_any_size_is_kept_within_bounds() {
    let mut pending = PendingPermissions::default();
    let option = |n: usize| json!({"optionId": format!("o{n}"), "name": "n".repeat(5000), "kind": "allow_once"});
    let mut options: Vec<_> = (0..10_000).map(option).collect();
    options.push(json!({"optionId": "no", "name": "No", "kind": "reject_once"}));
    let title = "x".repeat(4 * 1024 * 1024);
    let params = json!({"toolCall": {"toolCallId": "t".repeat(1000), "title": title}, "options": options});
    let (request, event) = ask_with(&mut pending, 1, &params);
    assert_eq!(event["toolCall"]["title"].as_str().unwrap().len(), title.len(), "the event has all of it");
    assert!(request.content(&request.tool_call).to_string().len() < 128 * 1024);
    assert_eq!(request.options.len(), MAX_OPTIONS);
    assert_eq!(chosen(&pending.time_out(&request.request_id).unwrap()), Some("no"), "the rejection is known");
}

#[test]
fn request_needs_a_list_of_options_and_one_without_an_option_can_be_cancelled() {
    let mut pending = PendingPermissions::default();
    for malformed in [json!({}), json!([]), json!({"options": 1})] {
        assert!(matches!(receive(&mut pending, PermissionPolicy::Ask, 1, &malformed), Received::Malformed(_)));
    }
    let (request, event) = ask_with(&mut pending, 1, &json!({"options": [1, {"name": "without an id"}]}));
    assert_eq!((&event["toolCall"], &event["options"]), (&Value::Null, &json!([])));
    assert_eq!(chosen(&pending.answer(&request.request_id, None).unwrap()), None);
}
