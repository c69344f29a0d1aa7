//! Conversions between domain values and columns, and pages of lists.

use std::{fmt, str::FromStr};

use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    domain::{
        clock::Timestamp,
        ids::WorkspaceKey,
        redaction::{Redacted, RedactedJson},
        turn::outcome::{ErrorCode, Failure},
    },
    store::StoreError,
};

/// Replaces NUL by U+FFFD: `PostgreSQL` rejects NUL in text, and both databases shall store the same. Valid JSON contains
/// none.
pub(crate) fn clean(text: String) -> String {
    if text.contains('\0') { text.replace('\0', "\u{fffd}") } else { text }
}

/// [`clean`] for an optional text.
pub(crate) fn clean_option(text: Option<String>) -> Option<String> {
    text.map(clean)
}

/// Redacts and cleans text from an untrusted source.
pub(crate) fn clean_text(text: &str) -> String {
    clean(Redacted::new(text).into_string())
}

/// Serialises a value as JSON with each text in it redacted separately, so that the result is always valid JSON.
pub(crate) fn redacted_json(value: &impl Serialize, column: &'static str) -> Result<String, StoreError> {
    let value = serde_json::value::to_raw_value(value).map_err(|cause| not_json(column, &cause))?;
    Ok(RedactedJson::new(&value).into_string())
}

/// Serialises a value whose texts the caller has redacted. [`redacted_json`] would redact a name that looks like a secret.
pub(crate) fn json_text(value: &impl Serialize, column: &'static str) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|cause| not_json(column, &cause))
}

/// Parses JSON that this program wrote.
pub(crate) fn json<T: DeserializeOwned>(text: &str, column: &'static str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|cause| not_json(column, &cause))
}

/// Reads JSON that is only shown: malformed text gives null, so that one bad column does not hide the record.
pub(crate) fn json_or_null(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_default()
}

fn not_json(column: &'static str, cause: &serde_json::Error) -> StoreError {
    StoreError::Corrupt(format!("{column} is not the JSON that this version knows: {cause}"))
}

/// Redacts and cleans the detail of a failure.
pub(crate) fn clean_detail(failure: &Failure) -> String {
    clean_text(&failure.detail)
}

/// Parses an id or a name.
pub(crate) fn parse<T: FromStr>(text: &str, column: &'static str) -> Result<T, StoreError> {
    text.parse().map_err(|_| unreadable(column, text))
}

/// Parses a word of a closed list.
pub(crate) fn named<T>(
    from_name: impl FnOnce(&str) -> Option<T>,
    text: &str,
    column: &'static str,
) -> Result<T, StoreError> {
    from_name(text).ok_or_else(|| unreadable(column, text))
}

/// Parses the key of a workspace.
pub(crate) fn workspace_key(installation_id: String, workspace_id: String) -> Result<WorkspaceKey, StoreError> {
    let unreadable = |_| StoreError::Corrupt("the name of a tenant or workspace is not one".into());
    Ok(WorkspaceKey {
        installation_id: installation_id.try_into().map_err(unreadable)?,
        workspace_id: workspace_id.try_into().map_err(unreadable)?,
    })
}

/// Parses a failure; a code that this version does not know becomes `internal`.
pub(crate) fn failure(code: Option<String>, detail: Option<String>) -> Option<Failure> {
    let code = ErrorCode::from_name(&code?).unwrap_or(ErrorCode::Internal);
    Some(Failure::new(code, detail.unwrap_or_default()))
}

fn unreadable(column: &'static str, text: &str) -> StoreError {
    let text = crate::domain::text::cut(text, 64);
    StoreError::Corrupt(format!("{column} is {text:?}, which this version does not know"))
}

/// A count as SQL takes it.
pub(crate) fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// A count as SQL gives it; a negative one, which this program never writes, becomes 0.
pub(crate) fn unsigned(count: i64) -> u64 {
    u64::try_from(count).unwrap_or(0)
}

/// The place where a page of a list ends. Its text form is opaque to callers. Rows that are added or changed between pages
/// neither repeat nor hide other rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cursor {
    pub(crate) created: Timestamp,
    /// Orders rows of the same microsecond.
    pub(crate) id: String,
}

/// The text is not a cursor that this program made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a cursor of an earlier page")]
pub(crate) struct BadCursor;

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}~{}", self.created.0, self.id)
    }
}

impl FromStr for Cursor {
    type Err = BadCursor;

    fn from_str(text: &str) -> Result<Self, BadCursor> {
        let (created, id) = text.split_once('~').ok_or(BadCursor)?;
        let created = created.parse().map_err(|_| BadCursor)?;
        // The text is compared with ids in SQL; the longest ids are two names and a slash.
        let is_id = id.len() <= 300 && id.bytes().all(|byte| byte.is_ascii_graphic());
        if is_id { Ok(Self { created: Timestamp(created), id: id.to_owned() }) } else { Err(BadCursor) }
    }
}

/// The requested part of a list.
#[derive(Debug, Clone)]
pub(crate) struct Page {
    /// The most rows; at least 1, at most [`MAX_PAGE`].
    pub limit: usize,
    /// The end of the previous page; `None` for the first page.
    pub after: Option<Cursor>,
}

/// The most rows that one read returns, whatever limit the caller gives: with the largest entries a page is 64 MiB.
pub(crate) const MAX_PAGE: usize = 1000;

/// A limit as SQL takes it.
pub(crate) fn limit(rows: usize) -> i64 {
    i64::try_from(rows.clamp(1, MAX_PAGE)).unwrap_or(1)
}

/// A record that has a place in its list.
pub(crate) trait Listed {
    /// The cursor with which the list continues after this record.
    fn cursor(&self) -> Cursor;
}

/// Restricts a boxed query to one page, newest first: the rows after the page's cursor, by a time column and the id
/// that orders rows of the same microsecond. An id of two columns is `tenant/workspace` in the cursor. A macro, because
/// each column has a type of its own in Diesel.
macro_rules! page_of {
    ($rows:expr, $page:expr, $time:expr, $id:expr) => {{
        use diesel::{BoolExpressionMethods, ExpressionMethods, QueryDsl};
        let (mut rows, page): (_, &$crate::store::engine::columns::Page) = ($rows, &$page);
        if let Some(after) = &page.after {
            // The first filter adds nothing but the bound from which both databases search their index.
            rows = rows
                .filter($time.le(after.created.0))
                .filter($time.lt(after.created.0).or($id.lt(after.id.as_str())));
        }
        rows.order(($time.desc(), $id.desc())).limit($crate::store::engine::columns::limit(page.limit))
    }};
    ($rows:expr, $page:expr, $time:expr, $tenant:expr, $workspace:expr) => {{
        use diesel::{BoolExpressionMethods, ExpressionMethods, QueryDsl};
        let (mut rows, page): (_, &$crate::store::engine::columns::Page) = ($rows, &$page);
        if let Some(after) = &page.after {
            let (tenant, workspace) = after.id.split_once('/').unwrap_or((after.id.as_str(), ""));
            let is_before = $tenant.lt(tenant).or($tenant.eq(tenant).and($workspace.lt(workspace)));
            rows = rows.filter($time.le(after.created.0)).filter($time.lt(after.created.0).or(is_before));
        }
        let order = ($time.desc(), $tenant.desc(), $workspace.desc());
        rows.order(order).limit($crate::store::engine::columns::limit(page.limit))
    }};
}
pub(crate) use page_of;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redacted_json_is_valid_for_any_text() {
        // Redacted as one text, the first address would extend to the `@` in the last.
        let texts = ["@http://host", "\0 \" {", "ghp_abcdefghijklmnopqrstuvwxyz0123456789", "@http://host"];
        let stored = redacted_json(&texts, "test").unwrap();
        let expected = [texts[0], texts[1], "[redacted]", texts[3]].map(str::to_owned).to_vec();
        assert_eq!(json::<Vec<String>>(&stored, "test"), Ok(expected));
        assert!(!stored.contains('\0'));
        assert!(matches!(json::<Vec<String>>("{}", "test"), Err(StoreError::Corrupt(_))));
    }

    #[test]
    fn only_a_valid_cursor_parses() {
        let cursor = Cursor { created: Timestamp(-5), id: "a/b".into() };
        assert_eq!(cursor.to_string().parse(), Ok(cursor));
        for bad in ["", "1", "x~y", "1~a b", "1~\0", &format!("1~{}", "x".repeat(301))] {
            assert_eq!(bad.parse::<Cursor>(), Err(BadCursor), "{bad:?}");
        }
    }
}
