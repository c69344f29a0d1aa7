use serde_json::{Value, json};
use utoipa::OpenApi;

use super::*;

#[derive(OpenApi)]
#[openapi(components(schemas(GithubAutomation)))]
struct Document;

/// True if the document's schema takes a value.
fn schema_takes(value: &Value) -> bool {
    let mut schema = serde_json::to_value(Document::openapi()).unwrap();
    schema["$ref"] = "#/components/schemas/GithubAutomation".into();
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema".into();
    jsonschema::draft202012::new(&schema).unwrap().is_valid(value)
}

fn merged(base: Value, more: Value) -> Value {
    let (Value::Object(mut base), Value::Object(more)) = (base, more) else { panic!("objects") };
    base.extend(more);
    base.retain(|_, value| !value.is_null());
    Value::Object(base)
}

fn success() -> Value {
    json!({
        "status": "success", "mode": "github",
        "issue": {"id": 1, "number": 7, "url": "https://github.com/o/r/issues/7", "title": "t"},
        "branch": "claude-code/issue-7",
        "commit": {"sha": "0123456789abcdef0123456789abcdef01234567", "message": "Fix issue #7"},
        "pullRequest": {"number": 8, "url": "https://github.com/o/r/pull/8", "branch": "claude-code/issue-7"},
        "diagnostics": {"durationMs": 10, "attempts": 1, "logs": ["done"]}
    })
}

fn skipped() -> Value {
    json!({
        "status": "skipped", "mode": "github", "skipReason": "automationDisabled", "skipDetail": "env-disabled",
        "toastMessage": "Left out.", "transcriptNote": "Left out: switched off.",
        "diagnostics": {"durationMs": 0, "attempts": 0, "logs": []}
    })
}

fn failed() -> Value {
    json!({
        "status": "error", "mode": "commit-only",
        "error": {"code": "push_refused", "message": "no", "retryable": true},
        "rollback": {"trigger": "autoThreshold", "threshold": {"successRate": 0.99, "windowMinutes": 60}},
        "diagnostics": {"durationMs": 1, "attempts": 2, "logs": [], "errorCode": "push_refused"}
    })
}

#[test]
fn valid_automation_satisfies_type_and_schema_and_round_trips() {
    let commit_only = merged(success(), json!({"mode": "commit-only", "issue": null, "pullRequest": null}));
    let without_issue = merged(success(), json!({"issue": null}));
    let dry = merged(success(), json!({"issue": null, "pullRequest": null, "dryRun": true}));
    let kept = json!({"rescue": {
        "id": "01977c2e-7c1a-7d3b-9b1e-3f0a5c2d4e6f", "branch": "b", "commit": "0123456789abcdef0123456789abcdef01234567"
    }, "retryAt": "2026-11-30T12:00:00.000000Z"});
    for value in [success(), commit_only, without_issue, dry, skipped(), merged(failed(), kept)] {
        let automation: GithubAutomation = serde_json::from_value(value.clone()).unwrap();
        assert_eq!(serde_json::to_value(&automation).unwrap(), value);
        assert!(schema_takes(&value), "{value}");
    }
}

#[test]
fn type_and_schema_refuse_the_same() {
    let long = |chars: usize| "é".repeat(chars);
    for (value, why) in [
        (merged(success(), json!({"pullRequest": null})), "a success has a pullRequest"),
        (merged(success(), json!({"skipReason": "other"})), "no skipReason"),
        (merged(success(), json!({"toastMessage": "t"})), "no toastMessage"),
        (merged(success(), json!({"transcriptNote": "t"})), "no transcriptNote"),
        (merged(success(), json!({"error": failed()["error"].clone()})), "no error"),
        (merged(success(), json!({"commit": {"sha": "0123", "message": ""}})), "40 hexadecimal"),
        (merged(success(), json!({"branch": long(201)})), "branch"),
        (merged(success(), json!({"surprise": 1})), "unknown field"),
        (merged(success(), json!({"mode": "none"})), "unknown variant"),
        (merged(skipped(), json!({"skipReason": null})), "has a skipReason"),
        (merged(skipped(), json!({"toastMessage": null})), "has a toastMessage"),
        (merged(skipped(), json!({"transcriptNote": null})), "has a transcriptNote"),
        (merged(skipped(), json!({"toastMessage": long(141)})), "1 to 140"),
        (merged(skipped(), json!({"transcriptNote": long(513)})), "1 to 512"),
        (merged(skipped(), json!({"skipDetail": "felt-like-it"})), "unknown variant"),
        (merged(failed(), json!({"error": null})), "says what failed"),
        (
            merged(
                failed(),
                json!({"rollback": {"trigger": "manualUser", "threshold": {"successRate": 99, "windowMinutes": 60}}}),
            ),
            "0 to 1",
        ),
        (
            merged(failed(), json!({"diagnostics": {"durationMs": 0, "attempts": 0, "logs": vec!["l"; 51]}})),
            "50 lines",
        ),
    ] {
        let refusal = serde_json::from_value::<GithubAutomation>(value.clone()).expect_err(why).to_string();
        assert!(refusal.contains(why), "{why:?} in {refusal}");
        assert!(!schema_takes(&value), "the schema takes {value}");
    }
}

#[test]
fn texts_at_their_limit_are_taken_by_characters_not_bytes() {
    let value = merged(skipped(), json!({"toastMessage": "é".repeat(140), "transcriptNote": "é".repeat(512)}));
    assert!(serde_json::from_value::<GithubAutomation>(value.clone()).is_ok() && schema_takes(&value));
}
