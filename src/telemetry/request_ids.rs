//! The id of the request on whose behalf code runs, taken from its span or from one around it.

use tracing::{
    Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id},
};
use tracing_subscriber::{
    Layer, Registry,
    layer::Context,
    registry::{LookupSpan, SpanRef},
};

/// The field of a span that has the id.
pub(crate) const REQUEST_ID: &str = "request_id";

/// The id that a span has as a field.
struct SpanRequestId(String);

/// Remembers the ids of spans.
pub(crate) struct RequestIds;

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for RequestIds {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut found = Found(None);
        attributes.record(&mut found);
        if let (Some(text), Some(span)) = (found.0, context.span(id)) {
            span.extensions_mut().insert(SpanRequestId(text));
        }
    }
}

struct Found(Option<String>);

impl Visit for Found {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == REQUEST_ID {
            self.0 = Some(format!("{value:?}"));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == REQUEST_ID {
            self.0 = Some(value.to_owned());
        }
    }
}

/// The id of a span, or of the nearest span around it that has one.
pub(crate) fn of_span<'a, S: LookupSpan<'a>>(span: SpanRef<'a, S>) -> Option<String> {
    span.scope().find_map(|span| span.extensions().get::<SpanRequestId>().map(|id| id.0.clone()))
}

/// The id of the current span; `None` outside a request, and if the log's level leaves spans out.
pub(crate) fn current() -> Option<String> {
    let span = tracing::Span::current().id()?;
    tracing::dispatcher::get_default(|dispatch| {
        let registry = dispatch.downcast_ref::<Registry>()?;
        of_span(registry.span(&span)?)
    })
}
