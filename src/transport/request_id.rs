//! The id of a request of a caller, which the log of supervisor and runtime has in common.

use crate::telemetry::request_ids;

/// The header of the id, in requests and in answers.
pub(crate) const X_REQUEST_ID: &str = "x-request-id";
/// The longest id that is taken from a client, in bytes; a UUID has 36.
const MAX_BYTES: usize = 128;

tokio::task_local! {
    /// Id of the request that the task answers.
    pub(crate) static REQUEST_ID: String;
}

/// Id of the request that is being answered, of this task or else of the current span.
pub(crate) fn current() -> Option<String> {
    REQUEST_ID.try_with(Clone::clone).ok().or_else(request_ids::current)
}

/// The id that a client sends, if it can be used in logs and headers: 1 to 128 letters, digits and `-_.:`.
pub(crate) fn usable(id: &str) -> Option<&str> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
    (!id.is_empty() && id.len() <= MAX_BYTES && id.bytes().all(is_plain)).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_could_forge_a_log_line_are_not_used() {
        let longest = "x".repeat(MAX_BYTES);
        for good in ["r", "0190-aB_c.d:e", longest.as_str()] {
            assert_eq!(usable(good), Some(good));
        }
        let long = "x".repeat(MAX_BYTES + 1);
        for bad in ["", " ", "a b", "a\nb", "a\"b", "{}", "\u{1b}[31m", "é", long.as_str()] {
            assert_eq!(usable(bad), None, "{bad:?}");
        }
    }
}
