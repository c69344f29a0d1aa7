//! Pages of records as CSV (RFC 4180), from the same values as the JSON.

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{Error as _, Visitor, value::Error},
    forward_to_deserialize_any,
};
use serde_json::Value;

/// The media type of [`csv_page`].
pub(crate) const TEXT_CSV: &str = "text/csv; charset=utf-8; header=present";

/// Records of a type that can name its own members.
pub(crate) trait TableRow: Serialize + Deserialize<'static> {}

impl<T: Serialize + Deserialize<'static>> TableRow for T {}

/// The names of a record's members in JSON, in the order of their declaration. A page without rows has a header too, so
/// they come from the type and not from a value: serde hands them to whatever deserializes the record.
///
/// # Errors
/// The type is not a struct.
fn columns<T: TableRow>() -> Result<&'static [&'static str], Error> {
    struct Names<'a>(&'a mut Option<&'static [&'static str]>);

    impl Deserializer<'static> for Names<'_> {
        type Error = Error;

        fn deserialize_struct<V: Visitor<'static>>(
            self,
            _name: &'static str,
            members: &'static [&'static str],
            visitor: V,
        ) -> Result<V::Value, Error> {
            *self.0 = Some(members);
            self.deserialize_any(visitor)
        }

        fn deserialize_any<V: Visitor<'static>>(self, _visitor: V) -> Result<V::Value, Error> {
            Err(Error::custom("only the names are wanted"))
        }

        forward_to_deserialize_any! {
            <V: Visitor<'static>>
            bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
            newtype_struct seq tuple tuple_struct map enum identifier ignored_any
        }
    }

    let mut names = None;
    let _: Result<T, Error> = T::deserialize(Names(&mut names));
    names.ok_or_else(|| Error::custom("a row of a table has to be a struct"))
}

/// A header, and one line for each record; lines end with CR LF. Null is an empty cell; lists and objects are JSON. Text
/// that a spreadsheet would run as a formula gets a leading `'`.
///
/// # Errors
/// A record is not a struct or not JSON; every record of this program is both.
pub(crate) fn csv_page<T: TableRow>(rows: &[T]) -> serde_json::Result<String> {
    let columns = columns::<T>().map_err(serde::ser::Error::custom)?;
    let mut out = columns.join(",");
    out.push_str("\r\n");
    for row in rows {
        let row = serde_json::to_value(row)?;
        for (index, column) in columns.iter().enumerate() {
            if index > 0 {
                out.push(',');
            }
            cell(&row[*column], &mut out);
        }
        out.push_str("\r\n");
    }
    Ok(out)
}

fn cell(value: &Value, out: &mut String) {
    match value {
        Value::Null => {}
        Value::String(text) => {
            let is_formula = text.starts_with(['=', '+', '-', '@', '\t', '\r']);
            quoted(if is_formula { "'" } else { "" }, text, out);
        }
        // Not a formula: numbers come from this program, and lists and objects begin with their bracket.
        other => quoted("", &other.to_string(), out),
    }
}

fn quoted(mark: &str, text: &str, out: &mut String) {
    if text.contains(['"', ',', '\r', '\n']) {
        out.push('"');
        out.push_str(mark);
        out.push_str(&text.replace('"', "\"\""));
        out.push('"');
    } else {
        out.push_str(mark);
        out.push_str(text);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::contract::audit::CapacityAlertItem;

    #[derive(Serialize, Deserialize)]
    struct Row {
        a: Value,
        b: Value,
    }

    fn line(a: Value, b: Value) -> String {
        let page = csv_page(&[Row { a, b }]).unwrap();
        page.strip_prefix("a,b\r\n").unwrap().strip_suffix("\r\n").unwrap().to_owned()
    }

    #[test]
    fn the_columns_of_an_alert_are_its_members_in_order() {
        let header = csv_page::<CapacityAlertItem>(&[]).unwrap();
        assert_eq!(header, "eventId,alertId,installationId,level,kind,taken,limit,createdAt\r\n");
    }

    #[test]
    fn a_type_that_is_not_a_struct_has_no_columns() {
        assert!(csv_page::<u32>(&[]).is_err());
    }

    #[test]
    fn a_cell_is_quoted_if_it_needs_quotes() {
        assert_eq!(csv_page::<Row>(&[]).unwrap(), "a,b\r\n");
        assert_eq!(line(json!("plain text"), Value::Null), "plain text,");
        assert_eq!(line(json!("a,b"), json!("say \"no\"")), "\"a,b\",\"say \"\"no\"\"\"");
        assert_eq!(line(json!("two\nlines"), json!(true)), "\"two\nlines\",true");
        assert_eq!(line(json!(7), json!({"k": [1]})), "7,\"{\"\"k\"\":[1]}\"");
        assert_eq!(line(json!(-7), json!([])), "-7,[]");
    }

    #[test]
    fn a_formula_gets_a_leading_apostrophe() {
        for text in ["=1+1", "+1", "-1", "@SUM(A1)", "\tx"] {
            assert_eq!(line(json!(text), Value::Null), format!("'{text},"));
        }
        assert_eq!(line(json!("\r=1"), Value::Null), "\"'\r=1\",");
        assert_eq!(line(json!("=HYPERLINK(\"x\",\"y\")"), Value::Null), "\"'=HYPERLINK(\"\"x\"\",\"\"y\"\")\",");
        assert_eq!(line(json!("a=1"), Value::Null), "a=1,");
    }
}
