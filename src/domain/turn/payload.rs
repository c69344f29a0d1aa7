//! The payload of a transcript entry: a JSON object that later updates change, and that is cut where it is too large.
//!
//! A cut payload is valid JSON with the object's status and ids, with head and tail of every long text and list, and
//! with a mark: `_meta.lumilink` has `truncated` and `originalBytes`.

use std::{borrow::Cow, collections::BTreeMap};

use serde_json::{Map, Value, json, value::RawValue};

use crate::domain::text;

/// The key of the mark under `_meta`; the same as that of our members in messages.
const META_KEY: &str = "lumilink";
/// Bytes that are reserved for the mark.
const MARK_BYTES: usize = 128;
/// Members that a cut keeps, because readers find and judge the entry by them.
const KEPT: [&str; 6] = ["sessionUpdate", "toolCallId", "messageId", "status", "kind", "title"];
/// Bytes of a member of [`KEPT`], at most: a status has a dozen, an id about forty.
const KEPT_BYTES: usize = 1024;
/// A member that would get less than this is left out.
const SMALLEST_SHARE: usize = 64;
/// Texts are not cut below this, in bytes; lists become shorter instead.
const SHORTEST_TEXT: usize = 64;

#[derive(Debug, Clone)]
enum Members {
    /// As the agent sent it.
    Whole(Box<RawValue>),
    Split(BTreeMap<String, Box<RawValue>>),
}

/// A payload that may grow.
#[derive(Debug, Clone)]
pub(crate) struct Payload {
    members: Members,
    /// Bytes that an earlier [`Payload::render`] left out, by member.
    cut: BTreeMap<String, u64>,
}

fn split(raw: &RawValue) -> Option<BTreeMap<String, Box<RawValue>>> {
    serde_json::from_str(raw.get()).ok()
}

impl Payload {
    pub(crate) fn new(raw: &RawValue) -> Self {
        Self { members: Members::Whole(raw.to_owned()), cut: BTreeMap::new() }
    }

    /// Changes the members that `update` has, as ACP defines it for tool calls: a list is replaced as a whole, and null
    /// changes nothing. `sessionUpdate` stays. An update that is not an object replaces everything.
    pub(crate) fn merge(&mut self, update: &RawValue) {
        let members = match &mut self.members {
            Members::Whole(raw) => split(raw),
            Members::Split(members) => Some(std::mem::take(members)),
        };
        let (Some(mut members), Some(changes)) = (members, split(update)) else {
            *self = Self::new(update);
            return;
        };
        for (name, value) in changes {
            let is_new = !members.contains_key(&name);
            if is_new || (value.get() != "null" && name != "sessionUpdate") {
                self.cut.remove(&name);
                members.insert(name, value);
            }
        }
        self.members = Members::Split(members);
    }

    /// Bytes of the JSON text, about.
    pub(crate) fn size_bytes(&self) -> usize {
        match &self.members {
            Members::Whole(raw) => raw.get().len(),
            Members::Split(members) => members.iter().map(|(name, value)| size_of(name, value)).sum::<usize>() + 1,
        }
    }

    /// The JSON text, cut to at most `limit` bytes. A cut payload stays cut, so that it takes no more memory than its
    /// entry; a later update brings back the members that it has.
    pub(crate) fn render(&mut self, limit: usize) -> Box<RawValue> {
        let size = self.size_bytes();
        if size <= limit && self.cut.is_empty() {
            return match &self.members {
                Members::Whole(raw) => mended_raw(raw),
                Members::Split(members) => mended_raw(&to_raw(members)),
            };
        }
        let original = size as u64 + self.cut.values().sum::<u64>();
        let members = match &mut self.members {
            Members::Whole(raw) => split(raw),
            Members::Split(members) => Some(std::mem::take(members)),
        };
        let mut members = members.unwrap_or_default();
        if size + MARK_BYTES > limit {
            members = self.fit(members, limit.saturating_sub(MARK_BYTES));
        }
        let meta = members.get("_meta").and_then(|meta| serde_json::from_str(&mended(meta.get())).ok());
        let mut meta: Map<String, Value> = meta.unwrap_or_default();
        meta.insert(META_KEY.into(), json!({"truncated": true, "originalBytes": original}));
        let mut shown = members.clone();
        shown.insert("_meta".into(), raw_of(&Value::Object(meta)));
        self.members = Members::Split(members);
        mended_raw(&to_raw(&shown))
    }

    /// Cuts members to `limit` bytes together: small ones stay whole, large ones share what is left.
    fn fit(&mut self, members: BTreeMap<String, Box<RawValue>>, mut limit: usize) -> BTreeMap<String, Box<RawValue>> {
        let mut fitting = BTreeMap::new();
        let (kept, mut rest): (Vec<_>, Vec<_>) =
            members.into_iter().partition(|(name, _)| KEPT.contains(&name.as_str()));
        rest.sort_by_key(|(name, value)| size_of(name, value));
        let count = rest.len();
        let rest = rest.into_iter().enumerate().map(|(place, member)| (count - place, member));
        for (sharing, (name, value)) in kept.into_iter().map(|member| (0, member)).chain(rest) {
            let size = size_of(&name, &value);
            let share = match sharing {
                0 => KEPT_BYTES.min(limit),
                sharing => limit / sharing,
            };
            let room = share.saturating_sub(name.len() + 4);
            let value = match size <= share {
                true => value,
                false if room >= SMALLEST_SHARE => cut_value(&value, room),
                false => {
                    *self.cut.entry(name).or_default() += size as u64;
                    continue;
                }
            };
            let omitted = size.saturating_sub(size_of(&name, &value));
            if omitted > 0 {
                *self.cut.entry(name.clone()).or_default() += omitted as u64;
            }
            limit = limit.saturating_sub(size_of(&name, &value));
            fitting.insert(name, value);
        }
        fitting
    }
}

/// Bytes of a member in the JSON text of its object.
fn size_of(name: &str, value: &RawValue) -> usize {
    name.len() + value.get().len() + 4
}

fn to_raw(members: &BTreeMap<String, Box<RawValue>>) -> Box<RawValue> {
    serde_json::value::to_raw_value(members).unwrap_or_else(|_| RawValue::NULL.to_owned())
}

fn mended_raw(raw: &RawValue) -> Box<RawValue> {
    match mended(raw.get()) {
        Cow::Borrowed(_) => raw.to_owned(),
        Cow::Owned(text) => RawValue::from_string(text).unwrap_or_else(|_| RawValue::NULL.to_owned()),
    }
}

fn raw_of(value: &Value) -> Box<RawValue> {
    RawValue::from_string(value.to_string()).unwrap_or_else(|_| RawValue::NULL.to_owned())
}

/// Replaces escaped halves of surrogate pairs, which most JSON parsers reject, by U+FFFD.
fn mended(json: &str) -> Cow<'_, str> {
    if !json.contains("\\ud") && !json.contains("\\uD") {
        return Cow::Borrowed(json);
    }
    let unit_at = |at: usize| -> Option<u16> {
        let escape = json.get(at..at + 6)?.strip_prefix("\\u")?;
        u16::from_str_radix(escape, 16).ok()
    };
    let (mut out, mut copied, mut at) = (String::with_capacity(json.len()), 0, 0);
    while let Some(step) = json.get(at..).and_then(|rest| rest.find('\\')) {
        at += step;
        let half = match (unit_at(at), unit_at(at + 6)) {
            (Some(0xD800..=0xDBFF), Some(0xDC00..=0xDFFF)) => {
                at += 12;
                continue;
            }
            (Some(unit), _) => (0xD800..=0xDFFF).contains(&unit),
            // Every other escape has two characters.
            (None, _) => {
                at += 2;
                continue;
            }
        };
        if half {
            out.push_str(&json[copied..at]);
            out.push_str("\\ufffd");
            copied = at + 6;
        }
        at += 6;
    }
    out.push_str(&json[copied..]);
    Cow::Owned(out)
}

/// Cuts a value to at most `limit` bytes: texts keep head and tail, lists and objects their first and last members.
fn cut_value(raw: &RawValue, limit: usize) -> Box<RawValue> {
    let Ok(value) = serde_json::from_str::<Value>(&mended(raw.get())) else { return as_text(raw, limit) };
    let mut texts = limit;
    let mut members = usize::MAX;
    loop {
        let cut = Cut { texts, members };
        let mut left = limit;
        if cut.fits(&value, &mut left) {
            return raw_of(&cut.of(&value));
        }
        match (texts, members) {
            (SHORTEST_TEXT, 1) => return as_text(raw, limit),
            (SHORTEST_TEXT, usize::MAX) => members = limit / 4,
            (SHORTEST_TEXT, _) => members = (members * 3 / 4).max(1),
            _ => texts = (texts * 4 / 5).max(SHORTEST_TEXT),
        }
    }
}

/// Head and tail of a value's JSON text, as a JSON string.
fn as_text(raw: &RawValue, limit: usize) -> Box<RawValue> {
    let mut bytes = limit;
    loop {
        let cut = Value::String(text::middle_cut(raw.get(), bytes));
        let shown = raw_of(&cut);
        if shown.get().len() <= limit || bytes < 2 {
            return shown;
        }
        bytes = bytes * 3 / 4;
    }
}

/// Bounds of a cut.
#[derive(Clone, Copy)]
struct Cut {
    /// Bytes of a text.
    texts: usize,
    /// Members of a list or object.
    members: usize,
}

impl Cut {
    /// True if the value, when it is cut, takes at most `left` bytes; takes them off.
    fn fits(self, value: &Value, left: &mut usize) -> bool {
        let mut take = |bytes: usize| match left.checked_sub(bytes) {
            Some(less) => {
                *left = less;
                true
            }
            None => false,
        };
        match value {
            Value::Null | Value::Bool(_) => take(5),
            Value::Number(number) => take(number.to_string().len()),
            Value::String(text) => take(2) && take(self.escaped(text)),
            Value::Array(list) => {
                take(2 + OMITTED_BYTES)
                    && self
                        .ends(list.len())
                        .all(|place| list.get(place).is_none_or(|value| self.fits(value, left)) && reduce(left, 1))
            }
            Value::Object(object) => {
                take(2 + OMITTED_BYTES)
                    && object
                        .iter()
                        .take(self.members)
                        .all(|(name, value)| reduce(left, escaped(name.as_bytes()) + 4) && self.fits(value, left))
            }
        }
    }

    fn escaped(self, text: &str) -> usize {
        if text.len() <= self.texts { escaped(text.as_bytes()) } else { escaped(self.text(text).as_bytes()) }
    }

    fn text(self, text: &str) -> String {
        text::middle_cut(text, self.texts)
    }

    /// The places of a list that stay: the first and the last ones.
    fn ends(self, length: usize) -> impl Iterator<Item = usize> {
        let stay = self.members.min(length);
        let head = stay.div_ceil(2);
        (0..head).chain(length - (stay - head)..length)
    }

    fn of(self, value: &Value) -> Value {
        match value {
            Value::String(text) if text.len() > self.texts => Value::String(self.text(text)),
            Value::Array(list) => {
                let mut stay: Vec<Value> =
                    self.ends(list.len()).filter_map(|place| list.get(place)).map(|value| self.of(value)).collect();
                if let Some(missing @ 1..) = list.len().checked_sub(stay.len()) {
                    stay.insert(stay.len().div_ceil(2), Value::String(omitted(missing)));
                }
                Value::Array(stay)
            }
            Value::Object(object) => {
                let mut stay: Map<String, Value> =
                    object.iter().take(self.members).map(|(name, value)| (name.clone(), self.of(value))).collect();
                if let Some(missing @ 1..) = object.len().checked_sub(self.members) {
                    stay.insert("…".into(), Value::String(omitted(missing)));
                }
                Value::Object(stay)
            }
            other => other.clone(),
        }
    }
}

/// Bytes of the text that marks left out members, with its name in an object.
const OMITTED_BYTES: usize = 64;

fn omitted(members: usize) -> String {
    format!("… {members} members left out …")
}

fn reduce(left: &mut usize, bytes: usize) -> bool {
    let less = left.checked_sub(bytes);
    *left = less.unwrap_or(0);
    less.is_some()
}

/// Bytes of a text in JSON, without its quotes.
fn escaped(text: &[u8]) -> usize {
    let bytes = |byte: &u8| match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 8 | 12 => 2,
        0..0x20 => 6,
        _ => 1,
    };
    text.iter().map(bytes).sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMIT: usize = 64 * 1024;

    fn payload(value: &Value) -> Payload {
        Payload::new(&RawValue::from_string(value.to_string()).unwrap())
    }

    fn rendered(payload: &mut Payload) -> Value {
        let text = payload.render(LIMIT).get().to_owned();
        assert!(text.len() <= LIMIT, "{} bytes", text.len());
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn large_update_stays_valid_json_with_status_id_head_tail_and_mark() {
        let output = format!("first line\n{}last line", "x\n".repeat(60_000));
        let update = json!({
            "sessionUpdate": "tool_call_update", "toolCallId": "call-1",
            "content": [{"type": "content", "content": {"type": "text", "text": output}}],
            "rawOutput": {"output": output, "exit": 0}, "status": "completed", "_meta": {"k": 1},
        });
        let size = update.to_string().len();
        let shown = rendered(&mut payload(&update));
        assert_eq!((&shown["status"], &shown["toolCallId"]), (&json!("completed"), &json!("call-1")));
        for text in [&shown["content"][0]["content"]["text"], &shown["rawOutput"]["output"]] {
            let text = text.as_str().unwrap();
            assert!(text.starts_with("first line") && text.ends_with("last line") && text.contains("left out"));
            assert!(text.len() > LIMIT / 8, "the room is used: {}", text.len());
        }
        let mark = &shown["_meta"]["lumilink"];
        assert_eq!((&mark["truncated"], &shown["_meta"]["k"]), (&json!(true), &json!(1)));
        assert!(mark["originalBytes"].as_u64().unwrap().abs_diff(size as u64) < 64, "{mark} of {size}");
    }

    #[test]
    fn later_update_replaces_what_was_cut_and_keeps_the_mark_of_the_rest() {
        let mut call =
            payload(&json!({"toolCallId": "1", "content": "x".repeat(LIMIT), "rawOutput": "y".repeat(LIMIT)}));
        rendered(&mut call);
        call.merge(&RawValue::from_string(json!({"content": "short", "status": "completed"}).to_string()).unwrap());
        let shown = rendered(&mut call);
        assert_eq!((&shown["content"], &shown["status"]), (&json!("short"), &json!("completed")));
        assert!(shown["_meta"]["lumilink"]["originalBytes"].as_u64().unwrap() > LIMIT as u64, "{shown:.200}");
        call.merge(&RawValue::from_string(json!({"rawOutput": 1}).to_string()).unwrap());
        assert!(rendered(&mut call)["_meta"].is_null(), "nothing is cut any more");
    }

    #[test]
    fn null_and_missing_members_of_an_update_change_nothing() {
        let mut call = payload(&json!({"sessionUpdate": "tool_call", "title": "t", "status": "pending"}));
        let update = json!({"sessionUpdate": "tool_call_update", "title": null, "status": "completed"});
        call.merge(&RawValue::from_string(update.to_string()).unwrap());
        let whole = json!({"sessionUpdate": "tool_call", "title": "t", "status": "completed"});
        assert_eq!(rendered(&mut call), whole);
    }

    #[test]
    fn payload_of_any_shape_fits_and_stays_valid_json() {
        let many: Map<String, Value> = (0..20_000).map(|n| (format!("member {n}"), json!(n))).collect();
        let deep = (0..100).fold(json!("x".repeat(LIMIT)), |inner, _| json!([inner]));
        for value in [
            json!({"status": "failed", "list": (0..100_000).collect::<Vec<_>>()}),
            json!({"status": "failed", "title": "t".repeat(LIMIT), "many": many}),
            Value::Object(many.into_iter().chain([("status".to_owned(), json!("failed"))]).collect()),
            json!({"status": "failed", "text": "\u{1}\"".repeat(LIMIT), "deep": deep}),
        ] {
            assert_eq!(rendered(&mut payload(&value))["status"], "failed");
        }
    }

    #[test]
    fn halves_of_surrogate_pairs_are_mended() {
        let raw = r#"{"a":"\ud83d","b":"\ud83d\ude00 \\ud83d \uDE00x","c":"\u00e9\n"}"#;
        let shown = Payload::new(&RawValue::from_string(raw.to_owned()).unwrap()).render(LIMIT);
        let value: Value = serde_json::from_str(shown.get()).unwrap();
        assert_eq!(value, json!({"a": "\u{FFFD}", "b": "😀 \\ud83d \u{FFFD}x", "c": "é\n"}));
    }

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<i64>().prop_map(Value::from),
            ("\\PC{0,20}", 0usize..200).prop_map(|(text, times)| Value::String(text.repeat(times))),
        ];
        leaf.prop_recursive(4, 64, 12, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..12).prop_map(Value::Array),
                prop::collection::vec(("[a-z…\"]{0,9}", inner), 0..12)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn cut_payload_fits_its_limit_and_parses(value in values(), limit in 512usize..4096) {
            let mut payload = payload(&json!({"sessionUpdate": "tool_call", "toolCallId": "c", "value": value}));
            let text = payload.render(limit).get().to_owned();
            prop_assert!(text.len() <= limit, "{} of {}", text.len(), limit);
            let shown: Value = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(&shown["toolCallId"], "c");
        }
    }
}
