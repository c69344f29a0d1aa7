//! Closed lists of words of the domain, as the OpenAPI document shows them.

use std::borrow::Cow;

use utoipa::{
    PartialSchema, ToSchema,
    openapi::{ObjectBuilder, RefOr, Schema, schema::Type},
};

use crate::domain::{
    automation::skip::{SkipDetail, SkipReason, WantedMode},
    notify::{
        subscription::ResetReason,
        toast::{Severity, Trigger},
        webhook::DeliveryState,
    },
};

macro_rules! closed {
    ($($list:ty => $name:literal, $description:literal;)*) => {$(
        impl PartialSchema for $list {
            fn schema() -> RefOr<Schema> {
                let words = <$list>::ALL.iter().map(|word| word.as_str());
                ObjectBuilder::new()
                    .schema_type(Type::String)
                    .description(Some($description))
                    .enum_values(Some(words))
                    .into()
            }
        }

        impl ToSchema for $list {
            fn name() -> Cow<'static, str> {
                $name.into()
            }
        }
    )*};
}

closed! {
    SkipReason => "SkipReason", "Why automation was left out.";
    SkipDetail => "SkipDetail", "The finer reason of a skip; a closed set.";
    WantedMode => "WantedMode", "What a caller wants of a turn's changes.";
    ResetReason => "ResetReason", "Why a cursor cannot be gone on from.";
    Severity => "ToastSeverity", "How bad a toast is.";
    Trigger => "ToastTrigger", "What a toast is about.";
    DeliveryState => "WebhookDeliveryState", "Where a delivery to a webhook stands.";
}
