//! Schemas of the closed lists of words of the domain.

use std::borrow::Cow;

use utoipa::{
    PartialSchema, ToSchema,
    openapi::{ObjectBuilder, RefOr, Schema, schema::Type},
};

use crate::domain::{
    automation::skip::{SkipDetail, SkipReason, WantedMode},
    notify::{
        notification::{Severity, Trigger},
        subscription::ResetReason,
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
    SkipReason => "SkipReason", "Why automation was skipped.";
    SkipDetail => "SkipDetail", "The detailed reason of a skip.";
    WantedMode => "WantedMode", "Requested automation of the changes of a turn.";
    ResetReason => "ResetReason", "Why a cursor was rejected.";
    Severity => "ToastSeverity", "Severity of a notification.";
    Trigger => "ToastTrigger", "Cause of a notification.";
    DeliveryState => "WebhookDeliveryState", "State of a delivery to the webhook.";
}
