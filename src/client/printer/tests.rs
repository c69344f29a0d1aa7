use serde_json::json;

use super::*;

fn printed(updates: &[Value]) -> String {
    let mut out = Vec::new();
    let mut printer = Printer::new(&mut out);
    for update in updates {
        let (kind, update) = match update["kind"].as_str() {
            Some(kind) => (kind.to_owned(), update["update"].clone()),
            None => ("update".to_owned(), update.clone()),
        };
        let happened = Happened { id: None, kind, session_id: String::new(), prompt_id: None, update };
        printer.event(&TurnEvent::Happened(happened)).unwrap();
    }
    String::from_utf8(out).unwrap()
}

fn chunk(kind: &str, text: &str) -> Value {
    json!({"sessionUpdate": kind, "content": {"type": "text", "text": text}})
}

#[test]
fn text_flows_and_other_events_have_a_line_of_their_own() {
    let out = printed(&[
        chunk("agent_thought_chunk", "hm"),
        chunk("agent_message_chunk", "Hel"),
        chunk("agent_message_chunk", "lo\n"),
        chunk("agent_message_chunk", "there"),
        json!({"sessionUpdate": "tool_call", "toolCallId": "1", "title": "Write a.txt", "status": "pending"}),
        json!({"sessionUpdate": "tool_call_update", "toolCallId": "1", "content": []}),
        json!({"sessionUpdate": "tool_call_update", "toolCallId": "1", "status": "completed"}),
        json!({"sessionUpdate": "plan", "entries": [
            {"content": "look", "status": "completed"}, {"content": "write", "status": "in_progress"}]}),
        json!({"sessionUpdate": "usage_update"}),
        json!({"sessionUpdate": "unheard_of"}),
    ]);
    assert_eq!(
        out,
        "[thinking] hm\nHello\nthere\n[tool] Write a.txt (pending)\n[tool] Write a.txt (completed)\n\
         [plan] 1 of 2 done\n  [x] look\n  [>] write\n[unheard_of]\n"
    );
}

#[test]
fn a_permission_request_shows_its_options() {
    let out = printed(&[
        json!({"kind": "permission_request", "update": {"requestId": "r", "toolCall": {"title": "rm -rf"},
            "options": [{"optionId": "a", "name": "Allow"}, {"optionId": "b", "name": "Reject"}]}}),
        json!({"kind": "permission_resolved", "update": {"optionId": "a"}}),
    ]);
    assert_eq!(out, "[permission] rm -rf\n  1. Allow\n  2. Reject\n[permission] answered: a\n");
}

#[test]
fn changed_and_reapplied_settings_are_printed() {
    let current = json!({"modeId": "plan", "modelId": null, "options": {"fast": true, "tone": "loud"}});
    let event = |applied: &[&str], failed: &[&str], unavailable: Option<&str>| {
        let update = json!({"cause": "x", "current": current, "applied": applied, "failed": failed, "modeUnavailable": unavailable});
        json!({"kind": "settings", "update": update})
    };
    let out = printed(&[
        event(&[], &[], None),
        event(&["mode plan", "tone loud"], &["model large was not set: no"], Some("the mode plan is unavailable")),
    ]);
    assert_eq!(
        out,
        "[settings] mode plan, fast true, tone loud\n[settings] set again: mode plan, tone loud\n\
         [settings] model large was not set: no\n[settings] the mode plan is unavailable\n"
    );
}

#[test]
fn no_text_of_an_agent_controls_the_terminal() {
    let evil = "\u{1b}]0;pwned\u{7}\u{9b}2J\r\u{202e}";
    let out = printed(&[
        chunk("agent_message_chunk", evil),
        chunk("agent_thought_chunk", evil),
        json!({"sessionUpdate": "tool_call", "toolCallId": evil, "title": format!("{evil}\nfake"), "status": evil}),
        json!({"sessionUpdate": "plan", "entries": [{"content": evil, "status": evil}]}),
        json!({"sessionUpdate": "current_mode_update", "currentModeId": evil}),
        json!({"sessionUpdate": evil}),
        json!({"sessionUpdate": "agent_message_chunk", "content": {"type": evil}}),
        json!({"kind": "permission_request", "update": {"toolCall": {"title": evil}, "options": [{"optionId": "x", "name": evil}]}}),
        json!({"kind": "permission_resolved", "update": {"optionId": evil}}),
        json!({"kind": "status", "update": {"state": evil}}),
        json!({"kind": "diagnostic", "update": {"message": evil}}),
        json!({"kind": "settings", "update": {"current": {"modeId": evil, "options": {evil: evil}}}}),
        json!({"kind": "settings", "update": {"applied": [evil], "failed": [evil], "modeUnavailable": evil}}),
    ]);
    assert!(
        !out.chars().any(|character| character != '\n' && (character.is_control() || character == '\u{202e}')),
        "{out:?}"
    );
}

#[test]
fn the_result_line_has_reason_tokens_and_timings() {
    let result: ACPSessionResult = serde_json::from_value(json!({
        "stopReason": "completed",
        "usage": {"inputTokens": 12, "outputTokens": 34},
        "meta": {
            "sessionId": "s", "promptId": "p", "protocol": "acp", "route": "acp", "acpStopReason": "end_turn",
            "message": "", "messageTruncated": false, "workspace": {"path": "/w", "isEphemeral": false},
            "rollback": {"active": false}, "contextInjected": false, "usageKnown": true,
            "timings": {"firstUpdateMs": 1.25, "totalMs": 7.0, "updates": 3}
        }
    }))
    .unwrap();
    assert_eq!(
        result_line(&result),
        "completed (end_turn), 12 tokens in, 34 out, first update after 1.2 ms, 3 updates in 7.0 ms over acp"
    );
}

#[test]
fn steps_of_automation_have_a_line_once_they_end() {
    let step = |step: &str, state: &str, code: Option<&str>| json!({"kind": "automation", "update": {"step": step, "state": state, "code": code}});
    let out = printed(&[
        step("push", "started", None),
        step("push", "failed", Some("behind\u{1b}[2J")),
        step("rescue", "done", None),
        json!({"kind": "automation", "update": {}}),
    ]);
    assert_eq!(out, "[github] push failed: behind[2J\n[github] rescue\n");
}

#[test]
fn end_of_automation_names_what_is_there_and_what_to_do() {
    let line = |members: Value| {
        let mut all = json!({"mode": "github", "diagnostics": {"durationMs": 1, "attempts": 1, "logs": []}});
        members.as_object().unwrap().iter().for_each(|(name, value)| all[name] = value.clone());
        automation_line(&serde_json::from_value(all).unwrap())
    };
    let sha = "0123456789abcdef0123456789abcdef01234567";
    let made = json!({"status": "success", "branch": "topic", "commit": {"sha": sha, "message": "m"},
        "pullRequest": {"number": 2, "url": "https://github.com/a/b/pull/2", "branch": "topic"}});
    assert_eq!(
        line(made),
        "[github] delivered: branch topic, commit 0123456789ab, pull request https://github.com/a/b/pull/2"
    );
    let skipped = json!({"status": "skipped", "skipReason": "missingCredential", "toastMessage": "no",
        "transcriptNote": "no credential; bind an installation"});
    assert_eq!(line(skipped), "[github] no credential; bind an installation");
}
