//! The log on standard error: one line per event, JSON or text, without secrets of a known shape, and never longer than
//! log collectors accept.

use std::{fmt, str::FromStr};

use serde_json::Value;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::{
    EnvFilter, Registry,
    filter::filter_fn,
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::{Format, Json, Writer},
    },
    layer::SubscriberExt,
    registry::LookupSpan,
    reload,
    util::SubscriberInitExt,
};

use super::{
    json_line::{self, SpanMembers},
    request_ids::{self, REQUEST_ID, RequestIds},
};
use crate::domain::{
    redaction::{self, Redacted},
    text,
};

/// The longest line with its end, in bytes: under 32 KB.
pub(crate) const MAX_LINE_BYTES: usize = 32_000;
/// Length of each text after the first truncation of a long line, in characters.
const FIRST_CUT_CHARS: usize = 2_000;
/// Length of the message after the second truncation, in characters.
const LAST_CUT_CHARS: usize = 1_000;

/// The log could not be set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoggingError {
    /// The level is not a valid filter.
    #[error("the log level is not a valid filter: {0}")]
    Level(#[from] tracing_subscriber::filter::ParseError),
    /// There is one log per process.
    #[error("the log is set up already: {0}")]
    Twice(#[from] tracing_subscriber::util::TryInitError),
    /// The filter cannot be changed.
    #[error("the filter cannot be changed: {0}")]
    Reload(#[from] reload::Error),
}

/// The form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LineForm {
    /// One JSON object per line.
    Json,
    /// For people.
    Text,
}

/// Changes the filter of the log while the process runs. Cheap to clone.
#[derive(Clone)]
pub(crate) struct LogFilter(reload::Handle<EnvFilter, Registry>);

impl fmt::Debug for LogFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogFilter").finish_non_exhaustive()
    }
}

impl LogFilter {
    /// Uses another level or filter from now on.
    ///
    /// # Errors
    /// The level is not a valid filter; the old one remains.
    pub(crate) fn set(&self, level: &str) -> Result<(), LoggingError> {
        Ok(self.0.reload(filter_of(level)?)?)
    }
}

fn filter_of(level: &str) -> Result<EnvFilter, LoggingError> {
    let mut filter = EnvFilter::builder().parse(level)?;
    if !level.contains("actix_http") {
        // It logs malformed requests as errors; clients must not be able to cause errors in the log.
        filter = filter.add_directive(tracing_subscriber::filter::Directive::from_str("actix_http::h1=off")?);
    }
    if !level.contains("actix_server") {
        // It logs every thread; we log the address ourselves, once.
        filter = filter.add_directive(tracing_subscriber::filter::Directive::from_str("actix_server=warn")?);
    }
    Ok(filter)
}

/// True if the log takes a record: those of libraries only from info up, whatever the configured level is. At `trace` they
/// log whole frames, with prompts and tokens.
fn is_taken(metadata: &Metadata<'_>) -> bool {
    let target = metadata.target();
    let is_ours = target.strip_prefix(OURS).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"));
    is_ours || *metadata.level() <= Level::INFO
}

/// The target of this crate.
const OURS: &str = env!("CARGO_CRATE_NAME");

/// Sets up the log of this process. `level` is a level or a filter such as `info,lumilink=debug`, from the settings
/// alone, never from `RUST_LOG`.
///
/// # Errors
/// The level is not a valid filter, or the log is set up already.
pub(crate) fn init(form: LineForm, level: &str) -> Result<LogFilter, LoggingError> {
    let (filter, handle) = reload::Layer::new(filter_of(level)?);
    let registry = tracing_subscriber::registry().with(filter).with(filter_fn(is_taken)).with(RequestIds);
    // Reporting a closed terminal on itself would panic.
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).log_internal_errors(false);
    match form {
        LineForm::Json => {
            registry.with(layer.fmt_fields(SpanMembers).event_format(BoundedJson::new())).try_init()?;
        }
        LineForm::Text => {
            registry.with(layer.with_ansi(false).event_format(BoundedText(Format::default()))).try_init()?;
        }
    }
    Ok(LogFilter(handle))
}

/// Room for a usual line.
const USUAL_LINE_BYTES: usize = 640;

/// One JSON object per line, with the id of the request whose span, or a span inside it, has the event.
struct BoundedJson {
    /// For records of the crate `log`.
    library: Format<Json>,
}

impl BoundedJson {
    fn new() -> Self {
        let library = Format::default().json();
        Self { library: library.flatten_event(true).with_current_span(true).with_span_list(false) }
    }
}

/// The target of events that are records of the crate `log`; the library finds their own target in a field.
const LOG_RECORD: &str = "log";

impl<S, N> FormatEvent<S, N> for BoundedJson
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut to: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut line = String::with_capacity(USUAL_LINE_BYTES);
        if event.metadata().target() == LOG_RECORD {
            self.library.format_event(context, Writer::new(&mut line), event)?;
            line.truncate(line.trim_end().len());
        } else {
            json_line::write_event(&mut line, context, event)?;
        }
        let mut line = redaction::of_written_json(line);
        add_request_id(&mut line, context, event);
        if line.len() >= MAX_LINE_BYTES {
            line = bounded_json(&line);
        }
        line.push('\n');
        to.write_str(&line)
    }
}

/// Adds the member `request_id`, unless the event has one of its own.
fn add_request_id<S, N>(line: &mut String, context: &FmtContext<'_, S, N>, event: &Event<'_>)
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    if event.metadata().fields().field(REQUEST_ID).is_some() || !line.ends_with('}') {
        return;
    }
    if let Some(id) = context.parent_span().and_then(request_ids::of_span) {
        line.pop();
        line.push_str(&format!(",\"{REQUEST_ID}\":{}}}", Value::from(id)));
    }
}

/// Text for people.
struct BoundedText(Format);

impl<S, N> FormatEvent<S, N> for BoundedText
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut to: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut line = String::new();
        self.0.format_event(context, Writer::new(&mut line), event)?;
        let line = Redacted::new(line.trim_end());
        let kept = text::cut_bytes(line.as_str(), MAX_LINE_BYTES - 8);
        let mark = if kept.len() < line.as_str().len() { text::CUT_MARK } else { "" };
        // An event is one line, whatever its texts contain.
        for character in kept.chars() {
            match character {
                '\n' => to.write_str("\\n")?,
                other if other.is_control() && other != '\t' => to.write_char('\u{fffd}')?,
                other => to.write_char(other)?,
            }
        }
        writeln!(to, "{mark}")
    }
}

/// Truncates the texts of a long line; if that is not enough, keeps only time, level, target, message, marker and request id.
fn bounded_json(line: &str) -> String {
    let Ok(Value::Object(mut fields)) = serde_json::from_str(line) else {
        return format!(r#"{{"level":"ERROR","message":"a log line of {} bytes was dropped"}}"#, line.len());
    };
    for value in fields.values_mut() {
        cut_texts(value, FIRST_CUT_CHARS);
    }
    fields.insert("truncated".into(), true.into());
    let whole = Value::Object(fields.clone()).to_string();
    if whole.len() < MAX_LINE_BYTES {
        return whole;
    }
    fields.retain(|name, _| {
        ["timestamp", "level", "target", "message", "marker", REQUEST_ID, "truncated"].contains(&name.as_str())
    });
    for value in fields.values_mut() {
        cut_texts(value, LAST_CUT_CHARS);
    }
    Value::Object(fields).to_string()
}

fn cut_texts(value: &mut Value, chars: usize) {
    match value {
        Value::String(text) => *text = text::cut(text, chars),
        Value::Array(items) => items.iter_mut().for_each(|item| cut_texts(item, chars)),
        Value::Object(fields) => fields.values_mut().for_each(|field| cut_texts(field, chars)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;

    use tracing_subscriber::fmt::{MakeWriter, format::JsonFields};

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Sink {
        type Writer = Self;

        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }

    fn logged(json: bool, log: impl FnOnce()) -> String {
        let sink = Sink::default();
        let layer = tracing_subscriber::fmt::layer().with_writer(sink.clone());
        let registry = tracing_subscriber::registry().with(RequestIds);
        if json {
            let layer = layer.fmt_fields(SpanMembers).event_format(BoundedJson::new());
            tracing::subscriber::with_default(registry.with(layer), log);
        } else {
            let layer = layer.with_ansi(false).event_format(BoundedText(Format::default()));
            tracing::subscriber::with_default(registry.with(layer), log);
        }
        String::from_utf8(sink.0.lock().clone()).unwrap()
    }

    #[test]
    fn an_event_is_one_flat_object_with_marker_and_span() {
        let out = logged(true, || {
            let _span = tracing::info_span!("session.turn", route = "acp").entered();
            tracing::info!(marker = "[ACP]", updates = 3, "a turn\nended");
        });
        assert_eq!(out.lines().count(), 1);
        let line: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(line["marker"], "[ACP]");
        assert_eq!(line["updates"], 3);
        assert_eq!(line["message"], "a turn\nended");
        assert_eq!(line["span"]["name"], "session.turn");
        assert_eq!(line["span"]["route"], "acp");
    }

    /// The event of `log` in the library's own form.
    fn logged_by_the_library(log: impl FnOnce()) -> Value {
        let sink = Sink::default();
        let layer = tracing_subscriber::fmt::layer().with_writer(sink.clone());
        let layer = layer.fmt_fields(JsonFields::new()).event_format(BoundedJson::new().library);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), log);
        serde_json::from_slice(&sink.0.lock()).unwrap()
    }

    #[test]
    fn line_has_the_members_of_the_librarys_json_format() {
        let error = std::io::Error::other("no \"disk\"\n");
        let plain = || tracing::warn!("plain");
        let all_kinds = || {
            let outer = tracing::info_span!("outer", n = 1_u64, later = tracing::field::Empty);
            outer.record("later", "said \"later\"\u{1}");
            let _outer = outer.entered();
            let _inner =
                tracing::info_span!("inner \"name\"", text = "a\\b\n", shown = %"é\t", debug = ?Some("x"), f = 0.5);
            let none: Option<u64> = None;
            tracing::error!(
                yes = true, less = -7, more = u64::MAX, large = u128::MAX, float = 1.5e300, infinite = f64::INFINITY,
                text = "\"quoted\"\r\n\u{7f}", shown = %"a\u{0}b", debug = ?["x", "\\"], bytes = b"\x01a".as_slice(),
                error = &error as &dyn std::error::Error, none, "a message with {} and {:?}", "text\n", "\"",
            );
        };
        let in_empty_span = || {
            let span = tracing::info_span!("empty");
            tracing::info!(parent: &span, "inside");
            let _span = span.entered();
        };
        let later = || {
            let span = tracing::info_span!("later", a = tracing::field::Empty, b = tracing::field::Empty);
            span.record("a", 1);
            span.record("b", "2");
            span.in_scope(|| tracing::info!(parent: None, "a root"));
        };
        for log in [&plain as &dyn Fn(), &all_kinds, &in_empty_span, &later] {
            let ours = logged(true, log);
            assert_eq!(ours.lines().count(), 1, "{ours}");
            let (mut ours, mut theirs): (Value, _) =
                (serde_json::from_str(&ours).unwrap(), logged_by_the_library(log));
            for line in [&mut ours, &mut theirs] {
                assert_eq!(line["timestamp"].take().as_str().map(str::len), Some(27), "{line}");
            }
            assert_eq!(ours, theirs);
        }
    }

    #[test]
    fn record_of_the_log_crate_keeps_its_own_target_and_level() {
        let record = || {
            let _span = tracing::info_span!("outer", n = 1).entered();
            tracing::event!(target: "log", tracing::Level::WARN, log.target = "crate::module", "said");
        };
        let line: Value = serde_json::from_str(&logged(true, record)).unwrap();
        assert_eq!((&line["message"], &line["log.target"]), (&Value::from("said"), &Value::from("crate::module")));
        assert_eq!(line["span"], serde_json::json!({"n": 1, "name": "outer"}));
    }

    #[test]
    fn libraries_log_nothing_below_info_whatever_the_level_is() {
        let sink = Sink::default();
        let layer = tracing_subscriber::fmt::layer().with_writer(sink.clone()).with_ansi(false);
        let registry = tracing_subscriber::registry().with(filter_of("trace").unwrap()).with(filter_fn(is_taken));
        tracing::subscriber::with_default(registry.with(layer), || {
            tracing::trace!("ours in detail");
            tracing::trace!(target: "tungstenite::protocol", "a frame");
            tracing::debug!(target: "lumilink_other", "another crate");
            tracing::info!(target: "hyper", "a note");
        });
        let out = String::from_utf8(sink.0.lock().clone()).unwrap();
        assert!(out.contains("ours in detail") && out.contains("a note"), "{out}");
        assert!(!out.contains("a frame") && !out.contains("another crate"), "{out}");
    }

    #[test]
    fn request_id_is_in_the_lines_of_inner_spans() {
        let out = logged(true, || {
            let _request = tracing::info_span!("http.request", request_id = %"r-1").entered();
            let _turn = tracing::info_span!("session.turn", route = "acp").entered();
            assert_eq!(request_ids::current().as_deref(), Some("r-1"));
            tracing::info!("inner");
            tracing::info!(request_id = "own", "own");
        });
        let lines: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines[0]["request_id"], "r-1", "{out}");
        assert_eq!(lines[1]["request_id"], "own", "{out}");
        assert_eq!(out.matches("request_id").count(), 2, "{out}");
        assert!(!logged(true, || tracing::info!("outside")).contains("request_id"));
    }

    #[test]
    fn a_long_line_is_truncated_and_still_json() {
        let long = "\u{1}x".repeat(100_000);
        let out = logged(true, || tracing::error!(marker = "[ACP]", detail = %long, "said"));
        assert!(out.len() <= MAX_LINE_BYTES, "{}", out.len());
        let line: Value = serde_json::from_str(&out).unwrap();
        assert_eq!((&line["message"], &line["truncated"]), (&Value::from("said"), &Value::from(true)));
        let many = logged(true, || {
            tracing::error!(a = %long, b = %long, c = %long, d = %long, e = %long, f = %long, g = %long, "said");
        });
        assert!(many.len() <= MAX_LINE_BYTES && serde_json::from_str::<Value>(&many).is_ok());
    }

    #[test]
    fn no_secret_of_a_known_shape_is_logged() {
        let secret = "ghp_abcdefghijklmnopqrstuvwxyz0123456789";
        for json in [true, false] {
            let out = logged(json, || tracing::warn!(header = secret, "Bearer abcdefghijklmnop1234"));
            assert!(!out.contains("ghp_") && !out.contains("abcdefghijklmnop"), "{out}");
        }
    }

    #[test]
    fn text_is_one_line_per_event_without_control_characters() {
        let long = "é".repeat(50_000);
        let out = logged(false, || tracing::info!("one\ntwo \u{1b}[31mred {long}"));
        assert_eq!(out.lines().count(), 1);
        assert!(out.len() <= MAX_LINE_BYTES && !out.contains('\u{1b}'), "{}", out.len());
    }
}
