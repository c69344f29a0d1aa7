//! Writes one event as one JSON object, and the fields of a span as members of it.
//!
//! The lines have the members of `tracing_subscriber`'s flat JSON format, but are written once: that format builds a tree
//! of values for each span, and reads it again for each line. A turn has one line and three spans.

use std::fmt::{self, Write};

use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
    span::Record,
};
use tracing_subscriber::{
    field::RecordFields,
    fmt::{
        FmtContext, FormatFields, FormattedFields,
        format::Writer,
        time::{FormatTime, SystemTime},
    },
    registry::LookupSpan,
};

/// Room for the fields of a usual span.
const USUAL_FIELDS_BYTES: usize = 128;

/// The fields of a span as one JSON object, in the order of their declaration.
pub(super) struct SpanMembers;

impl<'a> FormatFields<'a> for SpanMembers {
    fn format_fields<R: RecordFields>(&self, mut to: Writer<'a>, fields: R) -> fmt::Result {
        let mut text = String::with_capacity(USUAL_FIELDS_BYTES);
        text.push('{');
        fields.record(&mut Members { to: &mut text });
        to.write_str(&text)?;
        to.write_char('}')
    }

    /// Adds fields that get their values later; of a repeated field, the last value stays.
    fn add_fields(&self, current: &'a mut FormattedFields<Self>, fields: &Record<'_>) -> fmt::Result {
        let read = |text: &str| serde_json::from_str::<serde_json::Map<_, _>>(text).map_err(|_| fmt::Error);
        let mut added = String::from("{");
        fields.record(&mut Members { to: &mut added });
        added.push('}');
        let mut members = if current.fields.is_empty() { serde_json::Map::new() } else { read(&current.fields)? };
        members.extend(read(&added)?);
        current.fields = serde_json::Value::Object(members).to_string();
        Ok(())
    }
}

/// Writes an event with its time, level, fields, target and span. Not for records of the crate `log`, whose target is a
/// field.
pub(super) fn write_event<S, N>(to: &mut String, context: &FmtContext<'_, S, N>, event: &Event<'_>) -> fmt::Result
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    let metadata = event.metadata();
    to.push_str(r#"{"timestamp":""#);
    SystemTime.format_time(&mut Writer::new(to))?;
    to.push_str(r#"","level":""#);
    to.push_str(metadata.level().as_str());
    to.push('"');
    event.record(&mut Members { to });
    to.push_str(r#","target":""#);
    push_escaped(to, metadata.target());
    to.push('"');
    let span = event.parent().and_then(|id| context.span(id)).or_else(|| context.lookup_current());
    if let Some(span) = span {
        to.push_str(r#","span":"#);
        let extensions = span.extensions();
        let members = extensions.get::<FormattedFields<N>>().map_or("{}", |members| members.fields.as_str());
        to.push_str(members.strip_suffix('}').unwrap_or("{"));
        push_name(to, "name");
        to.push('"');
        push_escaped(to, span.name());
        to.push_str("\"}");
    }
    to.push('}');
    Ok(())
}

/// Appends fields as members to an object whose end is not written.
struct Members<'a> {
    to: &'a mut String,
}

impl Visit for Members<'_> {
    fn record_bool(&mut self, field: &Field, value: bool) {
        push_name(self.to, field.name());
        self.to.push_str(if value { "true" } else { "false" });
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        push_name(self.to, field.name());
        // Writing to a text never fails.
        let _ = write!(self.to, "{value}");
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        push_name(self.to, field.name());
        let _ = write!(self.to, "{value}");
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        push_name(self.to, field.name());
        // Infinite numbers have no form in JSON.
        self.to.push_str(&serde_json::Value::from(value).to_string());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        push_name(self.to, field.name());
        self.to.push('"');
        push_escaped(self.to, value);
        self.to.push('"');
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        push_name(self.to, field.name());
        self.to.push('"');
        // An error of the value's own formatter leaves a part of its text, and a valid line.
        let _ = write!(Escaped(self.to), "{value:?}");
        self.to.push('"');
    }
}

/// Escapes what is written to it.
struct Escaped<'a>(&'a mut String);

impl Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        push_escaped(self.0, text);
        Ok(())
    }
}

/// Appends the name of a member, with the comma before it unless it is the first.
fn push_name(to: &mut String, name: &str) {
    if !to.ends_with('{') {
        to.push(',');
    }
    to.push('"');
    push_escaped(to, name);
    to.push_str("\":");
}

/// Appends a text as the inner part of a JSON string.
fn push_escaped(to: &mut String, text: &str) {
    if text.bytes().all(|byte| byte >= b' ' && byte != b'"' && byte != b'\\') {
        return to.push_str(text);
    }
    let json = serde_json::Value::from(text).to_string();
    to.push_str(&json[1..json.len() - 1]);
}
