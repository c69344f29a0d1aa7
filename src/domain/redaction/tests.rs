use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// Lines of text that must stay as they are.
fn innocent() -> Vec<&'static str> {
    include_str!("innocent.txt").lines().filter(|line| !line.is_empty()).collect()
}

/// Texts with their secrets between `«` and `»`; `␤` is a line end. Returns the text and the redacted text.
fn secrets() -> Vec<(String, String)> {
    let lines = include_str!("secrets.txt").lines().filter(|line| !line.is_empty());
    let of_line = |line: &str| {
        let line = line.replace('␤', "\n");
        let (before, rest) = line.split_once('«').unwrap();
        let (_, after) = rest.split_once('»').unwrap();
        (line.replace(['«', '»'], ""), format!("{before}{REDACTED}{after}"))
    };
    lines.map(of_line).collect()
}

fn raw(value: &Value) -> Box<RawValue> {
    serde_json::value::to_raw_value(value).unwrap()
}

fn redacted_json(value: &Value) -> Value {
    serde_json::from_str(RedactedJson::of(value).as_str()).unwrap()
}

#[test]
fn corpus_of_innocent_text_is_unchanged() {
    let lines = innocent();
    let changed: Vec<_> =
        lines.iter().map(|line| (*line, Redacted::new(line))).filter(|(line, now)| *line != now.as_str()).collect();
    println!("{} innocent lines, {} changed", lines.len(), changed.len());
    assert!(lines.len() >= 130, "{} lines", lines.len());
    assert!(changed.is_empty(), "{changed:#?}");
    let whole = lines.join("\n");
    assert_eq!(Redacted::new(&whole).as_str(), whole, "all in one text");
}

#[test]
fn corpus_of_secrets_leaves_none() {
    let secrets = secrets();
    let left: Vec<_> = secrets
        .iter()
        .map(|(text, expected)| (text, expected, Redacted::new(text)))
        .filter(|(_, expected, now)| *expected != now.as_str())
        .collect();
    println!("{} secrets, {} left", secrets.len(), left.len());
    assert!(secrets.len() >= 65, "{} lines", secrets.len());
    assert!(left.is_empty(), "{left:#?}");
    let (texts, expected): (Vec<_>, Vec<_>) = secrets.into_iter().unzip();
    assert_eq!(Redacted::new(&texts.join("\n")).as_str(), expected.join("\n"), "all in one text");
}

#[test]
fn corpora_keep_their_results_inside_json_of_any_nesting() {
    for line in innocent() {
        let document = json!({"content": [{"text": line, line: line}], "raw": json!({"in": line}).to_string()});
        assert_eq!(RedactedJson::of(&document).as_str(), document.to_string(), "{line}");
    }
    for (text, expected) in secrets() {
        let document = |text: &str| json!({"n": 1.50, "content": [{"text": text}, [text]], "last": "a@b.example"});
        assert_eq!(redacted_json(&document(&text)), document(&expected), "{text}");
        let nested = json!({"rawInput": json!({"text": text}).to_string()});
        let shown = redacted_json(&nested)["rawInput"].as_str().unwrap().to_owned();
        assert_eq!(serde_json::from_str::<Value>(&shown).unwrap(), json!({"text": expected}), "{text}");
    }
}

#[test]
fn url_with_a_port_and_a_later_address_keeps_every_member() {
    let update = json!({
        "sessionUpdate": "tool_call", "toolCallId": "t", "rawInput": {"url": "http://localhost:3000", "n": [1, 2]},
        "content": [{"type": "text", "text": "by"}], "locations": [{"path": "/a"}], "mail": "admin@example.com",
    });
    assert_eq!(RedactedJson::of(&update).as_str(), update.to_string());
}

#[test]
fn json_without_a_secret_is_kept_to_the_byte_and_with_one_everything_else_is() {
    let text =
        r#"{"b": 1.0, "a": 123456789012345678901234567890, "b": "\u0041\/task-1 \ud83d", "c":[ ] , "k" : "KEY" }"#;
    let document = RawValue::from_string(text.to_owned()).unwrap();
    assert_eq!(RedactedJson::new(&document).as_str(), text);
    let secret = text.replace("KEY", "ghp_abcdefghijklmnopqrstuvwxyz0123456789");
    let document = RawValue::from_string(secret).unwrap();
    assert_eq!(RedactedJson::new(&document).as_str(), text.replace("KEY", REDACTED));
}

#[test]
fn secret_that_is_written_with_escapes_is_redacted() {
    for text in [
        r#""\u0067hp_abcdefghijklmnopqrstuvwxyz0123456789""#,
        r#""a\nghp_abcdefghijklmnopqrstuvwxyz0123456789""#,
        r#""https:\/\/u:p4ss@host""#,
        r#"{"to\u006ben": "abcd1234efgh"}"#,
    ] {
        let document = RawValue::from_string(text.to_owned()).unwrap();
        let shown = RedactedJson::new(&document);
        assert!(shown.as_str().contains(REDACTED), "{text} became {shown:?}");
    }
}

#[test]
fn member_with_the_name_of_a_credential_hides_its_text() {
    let document = json!({
        "password": "hunter two", "API_KEY": "x", "x-api-key": "y", "Proxy-Authorization": "z",
        "nested": [{"clientSecret": "s", "token": "abcd1234efgh"}],
    });
    let hidden = json!({
        "password": REDACTED, "API_KEY": REDACTED, "x-api-key": REDACTED, "Proxy-Authorization": REDACTED,
        "nested": [{"clientSecret": REDACTED, "token": REDACTED}],
    });
    assert_eq!(redacted_json(&document), hidden);
    let harmless = json!({
        "token": "identifier", "secret": "the butler did it", "tokens": "abcd1234efgh", "inputTokens": 5,
        "password": {"type": "string"}, "passwords": ["a"], "apiKey": "", "clientSecret": "${SECRET}", "token_type": "Bearer",
        "x": "password", "authorization": null, "accessToken": true, "cookie": "a short recipe",
    });
    assert_eq!(RedactedJson::of(&harmless).as_str(), harmless.to_string());
}

#[test]
fn known_value_is_redacted_wherever_it_occurs() {
    let (plain, quoted) = ("no-shape-at-all", "with \"quotes\" and $1");
    known::hide([plain, quoted, "short"].map(str::to_owned));
    known::hide(["a later one".to_owned()]);
    let text = format!("x{plain}y {quoted} a later one short");
    let shown = "x[redacted]y [redacted] [redacted] short";
    assert_eq!(Redacted::new(&text).as_str(), shown);
    assert_eq!(redacted_json(&json!({"a": [text], plain: 1})), json!({"a": [shown], REDACTED: 1}));
    assert!(known::is_credential("OPENAI_API_KEY") && known::is_credential("db_password"));
    assert!(!known::is_credential("OPENAI_HOST") && !known::is_credential("TOKEN_PATH"));
}

#[test]
fn identifier_that_continues_a_shape_is_no_secret() {
    for text in [
        "ghp_abcdefghijklmnopqrstuvwxyz_0123456789",
        "xghp_abcdefghijklmnopqrstuvwxyz0123456789",
        "AKIAIOSFODNN7EXAMPLES",
    ] {
        assert_eq!(Redacted::new(text).as_str(), text);
    }
}

/// Texts of `bytes` bytes that are made to be slow: starts of shapes without an end, and candidates that are refused.
fn hostile(bytes: usize) -> Vec<String> {
    let units = [
        "sk-",
        "sk-a-",
        "eyJ",
        "eyJaaaaaaaa.",
        "://a:",
        "://",
        "-----BEGIN PRIVATE KEY-----",
        "-----BEGIN ",
        "-----BEGIN PRIVATE KEY-----\nAAAAAAAAAAAAAAAAAAAAAAAA\n",
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\n",
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\nAIzaSyA1234567890abcdefghijklmnopqrstuvw\n",
        "\\n",
        "\\nsk-",
        "Bearer ",
        "Bearer  a",
        "authorization: ",
        "authorization: basic ",
        "_TOKEN=",
        "?token=",
        "ghp_aaaaaaaaaaaaaaaaaaaaaaaa_",
        "AKIA",
        "-",
        "\\\"",
        "http://localhost:3000,",
        "a",
        "@",
        "\n",
        "sk-fading-circle-delay ",
        "{\"token\":\"",
        "\\u0067",
        "PRIVATE KEY",
    ];
    units.iter().map(|unit| unit.repeat(bytes / unit.len())).collect()
}

#[test]
fn text_that_is_made_to_be_slow_takes_time_linear_in_its_length() {
    let time = |text: &str| {
        let begun = Instant::now();
        black_box(Redacted::new(black_box(text)));
        black_box(RedactedJson::of(&black_box(text)));
        begun.elapsed()
    };
    for (small, large) in hostile(8 * 1024).into_iter().zip(hostile(8 * 8 * 1024)) {
        time(&small);
        // A quadratic shape takes 64 times as long in every try; a linear one only if other processes take the time.
        let is_linear = || time(&large) < time(&small).max(Duration::from_micros(200)) * 32;
        assert!((0..10).any(|_| is_linear()), "{:?}", &small[..small.len().min(60)]);
    }
}

fn text() -> impl Strategy<Value = String> {
    let parts: Vec<String> =
        innocent().iter().map(|&it| it.to_owned()).chain(secrets().into_iter().map(|it| it.0)).collect();
    let part = prop_oneof![prop::sample::select(parts), "\\PC{0,6}", "[a-zA-Z0-9_:/@.\"\\\\-]{0,8}"];
    prop::collection::vec(part, 0..6).prop_map(|parts| parts.concat())
}

/// The meaning of [`RedactedJson`]: each text of the value is redacted by itself.
fn by_value(value: &Value) -> Value {
    match value {
        Value::String(text) => json!(Redacted::new(text).as_str()),
        Value::Array(values) => values.iter().map(by_value).collect(),
        other => other.clone(),
    }
}

proptest! {
    #[test]
    fn redaction_is_idempotent(text in text()) {
        let once = Redacted::new(&text);
        prop_assert_eq!(Redacted::new(once.as_str()), once);
    }

    #[test]
    fn json_is_redacted_text_by_text(texts in prop::collection::vec(text(), 0..4)) {
        let value = json!([texts, 1, null]);
        prop_assert_eq!(redacted_json(&value), by_value(&value));
        prop_assert_eq!(RedactedJson::new(&raw(&value)), RedactedJson::of(&value));
    }
}
