//! How `lumilink session` shows what the server says, to people.

use serde_json::Value;

use crate::{
    client::clean::{clean, clean_line},
    contract::runtime::{ChangeStatus, WorkspaceDiff},
};

/// One entry of a transcript.
pub fn entry_text(entry: &Value) -> String {
    let kind = clean_line(entry["eventType"].as_str().unwrap_or("entry"));
    let text = entry["text"].as_str().filter(|text| !text.is_empty());
    let said = match (text, &entry["payload"]) {
        (Some(text), _) => clean(text),
        (None, Value::Null) => String::new(),
        // A payload may stand as JSON, or as text that is JSON.
        (None, Value::String(payload)) => payload_text(&serde_json::from_str(payload).unwrap_or_default()),
        (None, payload) => payload_text(payload),
    };
    format!("[{kind}] {}", said.trim_end())
}

/// What a person wants to see of an update: its title and status, else all of it.
fn payload_text(payload: &Value) -> String {
    let parts: Vec<_> =
        ["title", "status"].iter().filter_map(|name| payload[*name].as_str()).map(clean_line).collect();
    if parts.is_empty() { clean_line(&payload.to_string()) } else { parts.join(", ") }
}

/// One line of the list of sessions.
pub fn session_row(session: &Value) -> String {
    let shown = |name: &str| session[name].as_str().map_or_else(|| "-".to_owned(), clean_line);
    ["sessionId", "state", "installationId", "workspaceId", "lastUsedAt"].map(shown).join("  ")
}

/// An object, one member a line.
pub fn value_text(value: &Value) -> String {
    let Value::Object(members) = value else { return clean_line(&value.to_string()) };
    let line = |(name, value): (&String, &Value)| {
        let shown = match value {
            Value::String(text) => clean_line(text),
            other => clean_line(&other.to_string()),
        };
        format!("{}: {shown}\n", clean_line(name))
    };
    members.iter().map(line).collect()
}

/// The changed files, then the patch.
pub fn diff_text(diff: &WorkspaceDiff) -> String {
    let mut out = String::new();
    for file in &diff.files {
        let mark = match file.status {
            ChangeStatus::Added => 'A',
            ChangeStatus::Modified => 'M',
            ChangeStatus::Deleted => 'D',
        };
        out.push_str(&format!("{mark} {}\n", clean_line(&file.path)));
    }
    out.push_str(&clean(&diff.patch));
    if diff.truncated {
        out.push_str("\n(cut: the diff is larger than the server's limit)");
    }
    out.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn entries_and_rows_are_readable_and_harmless() {
        assert_eq!(
            entry_text(&json!({"eventType": "agent_message", "text": "a\u{1b}[2J\nb"})),
            "[agent_message] a[2J\nb"
        );
        assert_eq!(
            entry_text(
                &json!({"eventType": "tool_call", "text": "", "payload": {"title": "Write", "status": "completed"}})
            ),
            "[tool_call] Write, completed"
        );
        assert_eq!(session_row(&json!({"sessionId": "s\u{7}", "state": "idle"})), "s  idle  -  -  -");
        assert_eq!(value_text(&json!({"a": "x\ny", "b": {"c": 1}})), "a: x y\nb: {\"c\":1}\n");
    }
}
