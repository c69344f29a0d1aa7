//! Schemas of the closed lists of words of the domain.

/// Implements the schema of lists: name in the OpenAPI document and description.
macro_rules! word_schemas {
    ($($list:ty => $name:literal, $description:literal;)*) => {$(
        impl utoipa::PartialSchema for $list {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
                let words = <$list>::ALL.iter().map(|word| word.as_str());
                utoipa::openapi::ObjectBuilder::new()
                    .schema_type(utoipa::openapi::schema::Type::String)
                    .description(Some($description))
                    .enum_values(Some(words))
                    .into()
            }
        }

        impl utoipa::ToSchema for $list {
            fn name() -> std::borrow::Cow<'static, str> {
                $name.into()
            }
        }
    )*};
}

pub(crate) use word_schemas;
