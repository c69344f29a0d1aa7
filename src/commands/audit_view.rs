//! How `lumilink audit` and `lumilink session explain` show what the server says, to people.

use serde_json::Value;

use crate::client::clean::clean_line;

/// One record on a line: when, where, and what it is about.
pub fn row_text(records: &str, row: &Value) -> String {
    let members: &[&str] = match records {
        "migrations" => &[
            "startedAt",
            "workspaceId",
            "fromProtocol",
            "toProtocol",
            "epoch",
            "trigger",
            "status",
            "actor",
            "reason",
        ],
        "rollback-events" => &["createdAt", "workspaceId", "kind", "epoch", "trigger", "actor", "reason"],
        "connections" => {
            &["createdAt", "workspaceId", "sessionId", "outcome", "status", "handshakeMs", "agentName", "errorCode"]
        }
        "automation-runs" => {
            &["createdAt", "workspaceId", "sessionId", "status", "mode", "skipReason", "pullRequestUrl", "errorCode"]
        }
        "capacity-alerts" => &["createdAt", "level", "kind", "taken", "limit", "installationId"],
        _ => &["createdAt", "workspaceId", "severity", "trigger", "body"],
    };
    members.iter().map(|member| shown(&row[*member])).collect::<Vec<_>>().join("  ")
}

/// The figures: a line for all of it, then one for each day and tenant.
pub fn summary_text(summary: &Value) -> String {
    let cut = if summary["truncated"] == true { " (cut: ask for a shorter period)" } else { "" };
    let mut out = format!("{} to {}{cut}\n", shown(&summary["from"]), shown(&summary["until"]));
    out.push_str(&format!("all  {}\n", figures(&summary["total"])));
    for day in summary["days"].as_array().into_iter().flatten() {
        let latency = |of: &Value| format!("p50 {} ms, p95 {} ms", shown(&of["p50Ms"]), shown(&of["p95Ms"]));
        let gain = day["acpGain"]["p50"]
            .as_f64()
            .map_or_else(String::new, |gain| format!("; ACP saves {:.0} %", gain * 100.0));
        out.push_str(&format!(
            "{}  {}  {}; acp {}; http {}{gain}\n",
            shown(&day["day"]),
            shown(&day["installationId"]),
            figures(day),
            latency(&day["acp"]),
            latency(&day["http"])
        ));
    }
    out
}

fn figures(of: &Value) -> String {
    let rate =
        |of: &Value| of["successRate"].as_f64().map_or_else(|| "-".to_owned(), |it| format!("{:.2} %", it * 100.0));
    format!(
        "acp {} turns ({} succeeded), http {} ({}), flips to http {}, back {}",
        shown(&of["acp"]["turns"]),
        rate(&of["acp"]),
        shown(&of["http"]["turns"]),
        rate(&of["http"]),
        shown(&of["flipsToHttp"]),
        shown(&of["flipsToAcp"])
    )
}

/// The answer, then the story, oldest first.
pub fn story_text(story: &Value) -> String {
    let mut out = format!("{}\n\n", shown(&story["answer"]));
    if story["truncated"] == true {
        out.push_str("… (older entries are left out)\n");
    }
    for entry in story["timeline"].as_array().into_iter().flatten() {
        let (at, kind) = (shown(&entry["at"]), shown(&entry["kind"]));
        out.push_str(&format!("{at:<27}  {kind:<12}  {}\n", shown(&entry["summary"])));
    }
    out
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => clean_line(text),
        other => clean_line(&other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn records_are_readable_and_harmless() {
        let row = json!({"createdAt": "t", "workspaceId": "w", "kind": "rollback", "epoch": 1, "trigger": "manualUser",
            "actor": "a\u{1b}[2J", "reason": "two\nlines"});
        assert_eq!(row_text("rollback-events", &row), "t  w  rollback  1  manualUser  a[2J  two lines");
        let story = json!({"answer": "ACP carries it.", "truncated": true,
            "timeline": [{"at": "t", "kind": "turn", "summary": "A turn"}]});
        let text = story_text(&story);
        assert!(text.starts_with("ACP carries it.\n\n… (older"), "{text}");
        assert!(text.ends_with("turn          A turn\n"), "{text}");
        let day = json!({"day": "2026-11-25", "installationId": "acme", "acp": {"turns": 2, "successRate": 0.5},
            "http": {"turns": 0}, "acpGain": {"p50": 0.25}, "flipsToHttp": 1, "flipsToAcp": 0});
        let text = summary_text(&json!({"from": "a", "until": "b", "truncated": false, "total": {}, "days": [day]}));
        assert!(
            text.contains("acp 2 turns (50.00 % succeeded), http 0 (-)") && text.contains("saves 25 %"),
            "{text}"
        );
    }
}
