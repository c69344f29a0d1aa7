//! Pages of records as CSV (RFC 4180), made of the same values as the JSON.

use serde::Serialize;
use serde_json::Value;

/// The media type of [`csv_page`].
pub(crate) const TEXT_CSV: &str = "text/csv; charset=utf-8; header=present";

/// A record that is a row of a table.
pub(crate) trait TableRow: Serialize {
    /// Its members, in the order of the columns; what is none of them stands only in the JSON.
    const COLUMNS: &'static [&'static str];
}

/// A header, and one line for each record; lines end with CR LF. Text stands as it is, nothing as an empty cell, and
/// what is more than one value as JSON. Text that a spreadsheet would take for a formula begins with a `'`.
///
/// # Errors
/// Where a record cannot be JSON, which none of ours is.
pub(crate) fn csv_page<T: TableRow>(rows: &[T]) -> serde_json::Result<String> {
    let mut out = T::COLUMNS.join(",");
    out.push_str("\r\n");
    for row in rows {
        let row = serde_json::to_value(row)?;
        for (index, column) in T::COLUMNS.iter().enumerate() {
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
        // Numbers are ours, and lists and objects begin with their bracket.
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

    #[derive(Serialize)]
    struct Row {
        a: Value,
        b: Value,
    }

    impl TableRow for Row {
        const COLUMNS: &'static [&'static str] = &["a", "b"];
    }

    fn line(a: Value, b: Value) -> String {
        let page = csv_page(&[Row { a, b }]).unwrap();
        page.strip_prefix("a,b\r\n").unwrap().strip_suffix("\r\n").unwrap().to_owned()
    }

    #[test]
    fn cells_are_quoted_where_they_have_to_be() {
        assert_eq!(csv_page::<Row>(&[]).unwrap(), "a,b\r\n");
        assert_eq!(line(json!("plain text"), Value::Null), "plain text,");
        assert_eq!(line(json!("a,b"), json!("say \"no\"")), "\"a,b\",\"say \"\"no\"\"\"");
        assert_eq!(line(json!("two\nlines"), json!(true)), "\"two\nlines\",true");
        assert_eq!(line(json!(7), json!({"k": [1]})), "7,\"{\"\"k\"\":[1]}\"");
        assert_eq!(line(json!(-7), json!([])), "-7,[]");
    }

    #[test]
    fn what_a_spreadsheet_would_run_is_defused() {
        for text in ["=1+1", "+1", "-1", "@SUM(A1)", "\tx"] {
            assert_eq!(line(json!(text), Value::Null), format!("'{text},"));
        }
        assert_eq!(line(json!("\r=1"), Value::Null), "\"'\r=1\",");
        assert_eq!(line(json!("=HYPERLINK(\"x\",\"y\")"), Value::Null), "\"'=HYPERLINK(\"\"x\"\",\"\"y\"\")\",");
        assert_eq!(line(json!("a=1"), Value::Null), "a=1,");
    }
}
