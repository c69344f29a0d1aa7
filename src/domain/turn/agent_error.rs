//! Classifies the error that an agent answers with: a fault of the credentials, of the model provider, of the caller, or
//! of the agent itself. Only the last one counts against ACP.
//!
//! Agents pass on the errors of their providers in many shapes: an HTTP status as the JSON-RPC code, a status field in
//! `data`, a status line or a JSON body in the message, or words. A number counts only where such a structure makes it a
//! status; a line number or an id never does.

use std::sync::LazyLock;

use regex::Regex;
use serde_json::Value;

use super::outcome::{ErrorCode, Failure};
use crate::acp::jsonrpc::{self, RpcError};

/// A JSON-RPC code that some agents use for credentials that are missing or refused.
const CONFIGURATION_ERROR: i64 = -31002;

/// Levels of `data` that are searched.
const MAX_DEPTH: usize = 6;
/// Values of `data` that are searched.
const MAX_VALUES: usize = 256;
/// Names of variables that a detail lists.
const MAX_VARIABLES: usize = 4;

/// Members of `data` with an HTTP status, in lower case without `_` and `-`.
const STATUS_MEMBERS: [&str; 8] =
    ["status", "statuscode", "httpstatus", "httpstatuscode", "httpcode", "code", "errorcode", "responsestatus"];

/// An HTTP status in text: a number after a word that announces one, at the start of an error, or before its reason
/// phrase.
static STATUS: LazyLock<Option<Regex>> = LazyLock::new(|| {
    regex(
        r#"(?x)
        \b(?: http(?:/[0-9.]+)? | (?:http[\ _-]?)?status(?:[\ _-]?code)? | (?:error[\ _-]?)?code | api[\ _]error )
          ["']? \s* [:=(]? \s* ["'(]? (?P<announced>[45][0-9]{2}) \b
        | (?: ^ | \berror:\s ) \s* \(? (?P<first>[45][0-9]{2}) \)? (?: $ | [:,]?\s+[a-z{"'<(\[] | : )
        | \b (?P<named>[45][0-9]{2}) [\s:,-]+ (?: bad\ request | unauthorized | payment\ required | forbidden | not\ found
          | request\ timeout | payload\ too\ large | unprocessable | too\ many\ requests | internal\ server\ error
          | bad\ gateway | service\ unavailable | gateway\ time-?out | overloaded | \(overloaded ) "#,
    )
});

/// Words of a provider or an agent that refuses the credentials.
static CREDENTIALS: LazyLock<Option<Regex>> = LazyLock::new(|| {
    regex(
        r"(?x)
        \b (?: (?: invalid | incorrect | missing | wrong | expired | revoked | no | bad | unauthorized | malformed )
             [\ _-] (?: (?:x|your|the|an)[\ _-] )? (?:[a-z]+[\ _-])?
             (?: api[\ _-]?key | access[\ _-]token | auth(?:entication|orization)?[\ _-]token | bearer[\ _-]token
               | credentials? ) s? \b
           | (?: api[\ _-]?key | access\ token | oauth\ token | [a-z0-9_]+_api_key | credentials? ) s?
             (?:\ provided)? (?:\ (?:is|are|was|has|were))? (?:\ been)?
             [\ _-] (?: not[\ _-](?: valid | set | found | configured | provided ) | invalid | missing | incorrect | required
                      | expired | revoked | rejected | refused ) \b
           | authentication [\ _-]? (?: error | failed | required | failure ) | authenticationerror
           | unauthenticated | unauthorized | not\ (?:logged|signed)\ in | please\ (?:log|sign)\ in | /login\b
           | (?:permission|auth|authorization)_error ) \b ",
    )
});

/// Words of a model provider that refuses or fails, whatever the request.
static PROVIDER: LazyLock<Option<Regex>> = LazyLock::new(|| {
    regex(
        r"(?x)
        \b (?: too\ many\ requests | rate[\ _-]?limit (?:s|ed|ing|[\ _-]?(?:error|exceeded|reached))? | ratelimiterror
           | overloaded (?:[\ _-]?error)? | insufficient[\ _-]quota | (?: exceeded\ your\ (?:current\ )? )? quota
           | credit\ balance | resource[\ _-]exhausted | (?:server|service)[\ _-]unavailable | model[\ _-]overloaded
           | api\ error:\ 5[0-9]{2} | usage\ limit\ (?:reached|exceeded) | internalservererror ) \b ",
    )
});

/// Phrases that contain a word of [`PROVIDER`] and concern this machine.
const LOCAL: [&str; 2] = ["disk quota", "inode quota"];

/// A name of a variable with a credential, as errors quote it.
static VARIABLE: LazyLock<Option<Regex>> =
    LazyLock::new(|| regex(r"\b[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)*_(?:KEY|TOKEN|SECRET)(?:_[A-Z0-9]+)*\b"));

fn regex(pattern: &str) -> Option<Regex> {
    // Every pattern is compiled by the tests below.
    Regex::new(pattern).ok()
}

fn finds(pattern: &LazyLock<Option<Regex>>, text: &str) -> bool {
    pattern.as_ref().is_some_and(|pattern| pattern.is_match(text))
}

/// Classifies the error that an agent answered a call with.
pub(crate) fn classify_agent_error(error: &RpcError) -> Failure {
    let data = error.data.as_ref().map_or("", |data| data.get());
    let code = code_of(error, data);
    let data = if data.is_empty() { String::new() } else { format!(" {data}") };
    Failure::new(code, format!("the agent answered: {}{data} (JSON-RPC {})", error.message, error.code))
}

fn code_of(error: &RpcError, data: &str) -> ErrorCode {
    if error.code == jsonrpc::AUTH_REQUIRED {
        return ErrorCode::AgentAuthRequired;
    }
    let evidence = Evidence::of(error, data);
    let has = |statuses: &[u16]| evidence.statuses.iter().any(|status| statuses.contains(status));
    let provider_fails = has(&[402, 408, 429]) || evidence.statuses.iter().any(|status| *status >= 500);
    if has(&[401]) {
        ErrorCode::Authentication
    } else if provider_fails {
        ErrorCode::ModelProvider
    } else if evidence.refuses_credentials || error.code == CONFIGURATION_ERROR {
        ErrorCode::Authentication
    } else if evidence.provider_fails {
        ErrorCode::ModelProvider
    } else if has(&[403]) {
        ErrorCode::Authentication
    } else if !evidence.statuses.is_empty() {
        ErrorCode::AgentRejected
    } else {
        match error.code {
            jsonrpc::INVALID_PARAMS | jsonrpc::RESOURCE_NOT_FOUND => ErrorCode::AgentRejected,
            jsonrpc::METHOD_NOT_FOUND => ErrorCode::NotSupportedByAgent,
            jsonrpc::PARSE_ERROR | jsonrpc::INVALID_REQUEST => ErrorCode::ProtocolViolation,
            _ => ErrorCode::AgentError,
        }
    }
}

/// Structures of an error that point to a cause outside the agent.
#[derive(Default)]
struct Evidence {
    /// HTTP statuses from 400 to 599.
    statuses: Vec<u16>,
    refuses_credentials: bool,
    provider_fails: bool,
}

impl Evidence {
    fn of(error: &RpcError, data: &str) -> Self {
        let mut evidence = Self::default();
        evidence.add_status(error.code);
        evidence.read(&error.message);
        match serde_json::from_str(data) {
            Ok(data) => {
                let mut left = MAX_VALUES;
                evidence.search(&data, MAX_DEPTH, &mut left);
            }
            Err(_) => evidence.read(data),
        }
        evidence
    }

    fn add_status(&mut self, number: i64) {
        if let Ok(status @ 400..=599) = u16::try_from(number) {
            self.statuses.push(status);
        }
    }

    /// Reads a text of the agent: a sentence, or the body of an HTTP answer.
    fn read(&mut self, text: &str) {
        let mut text = text.to_lowercase();
        for phrase in LOCAL {
            text = text.replace(phrase, "");
        }
        if let Some(pattern) = STATUS.as_ref() {
            let numbers = pattern.captures_iter(&text).filter_map(|found| {
                found.name("announced").or(found.name("first")).or(found.name("named"))?.as_str().parse().ok()
            });
            numbers.for_each(|number| self.add_status(number));
        }
        self.refuses_credentials |= finds(&CREDENTIALS, &text);
        self.provider_fails |= finds(&PROVIDER, &text);
    }

    fn search(&mut self, value: &Value, depth: usize, left: &mut usize) {
        if depth == 0 || *left == 0 {
            return;
        }
        *left -= 1;
        match value {
            Value::String(text) => self.read(text),
            Value::Array(values) => values.iter().for_each(|value| self.search(value, depth - 1, left)),
            Value::Object(members) => {
                for (name, value) in members {
                    let name = name.to_lowercase().replace(['_', '-'], "");
                    if STATUS_MEMBERS.contains(&name.as_str()) {
                        let number = value.as_i64().or_else(|| value.as_str()?.trim().parse().ok());
                        number.into_iter().for_each(|number| self.add_status(number));
                    }
                    self.search(value, depth - 1, left);
                }
            }
            _ => {}
        }
    }
}

/// Adds the variables that hold the credentials to a failure with the code `authentication`: those that the agent names,
/// else those of `configured` that look like credentials. Other failures are returned unchanged.
pub(crate) fn name_credentials(mut failure: Failure, configured: &[String]) -> Failure {
    if failure.code != ErrorCode::Authentication {
        return failure;
    }
    let Some(pattern) = VARIABLE.as_ref() else { return failure };
    if pattern.is_match(&failure.detail) {
        return failure;
    }
    let names: Vec<_> =
        configured.iter().filter(|name| pattern.is_match(name)).take(MAX_VARIABLES).map(String::as_str).collect();
    failure.detail += &match names.as_slice() {
        [] => "; no variable with a key is in `agent.env` or `agent.inherit_env`".to_owned(),
        names => format!("; the agent gets its key from {}", names.join(", ")),
    };
    failure
}

/// The failure of a turn whose agent reports an error without the id of a request, if it could not read a message: it
/// would never answer. `None` for other errors.
pub(crate) fn unread_message(error: &RpcError) -> Option<Failure> {
    matches!(error.code, jsonrpc::PARSE_ERROR | jsonrpc::INVALID_REQUEST).then(|| {
        let detail = format!("the agent could not read a message: {error}");
        Failure::new(ErrorCode::ProtocolViolation, detail)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;

    use super::*;

    fn classified(code: i64, message: &str, data: &str) -> ErrorCode {
        let data = (!data.is_empty()).then(|| RawValue::from_string(data.to_owned()).unwrap());
        classify_agent_error(&RpcError { code, message: message.into(), data }).code
    }

    #[test]
    fn every_pattern_compiles() {
        assert!([&STATUS, &CREDENTIALS, &PROVIDER, &VARIABLE].iter().all(|it| it.is_some()));
    }

    #[test]
    fn bad_key_is_recognised_in_every_shape() {
        for (code, message, data) in [
            (401, "Unauthorized", ""),
            (401, "something", ""),
            (-31002, "Missing MISTRAL_API_KEY", ""),
            (-32603, "401 {\"type\":\"error\",\"error\":{\"type\":\"authentication_error\"}}", ""),
            (-32603, "Internal error", r#"{"details":"invalid x-api-key"}"#),
            (-32603, "Internal error", r#"{"errorName":"APIError","statusCode":401}"#),
            (-32603, "Internal error", r#"{"error":{"code":"401","message":"no"}}"#),
            (-32603, "Internal error: Incorrect API key provided: sk-1***", ""),
            (-32603, "Internal error: API key not valid. Please pass a valid API key.", r#"{"code":400}"#),
            (-32603, "Invalid API key · Please run /login", ""),
            (-32603, "unexpected status 401 Unauthorized: ", ""),
            (-32603, "Internal error", r#"{"cause":{"response":{"status":403}}}"#),
            (-32603, "Authentication failed: the token was revoked", ""),
            (1, "OPENAI_API_KEY is not set", ""),
            (1, "AuthenticationError: No api key passed in.", ""),
            (1, "OAuth token has expired. Please obtain a new token.", ""),
        ] {
            assert_eq!(classified(code, message, data), ErrorCode::Authentication, "{code} {message} {data}");
        }
        assert!(!ErrorCode::Authentication.retryable());
    }

    #[test]
    fn provider_fault_is_recognised_in_every_shape() {
        for (code, message, data) in [
            (429, "slow down", ""),
            (500, "Internal", ""),
            (503, "", ""),
            (-32603, "Internal error: API Error: 529 Overloaded", ""),
            (-32603, "unexpected status 500", ""),
            (-32603, "stream error: unexpected status 503 Service Unavailable", ""),
            (-32603, r#"got {"error":{"code":503,"message":"The model is overloaded."}}"#, ""),
            (-32603, "Internal error", r#"{"details":"{\"error\":{\"code\":503}}"}"#),
            (-32603, "Internal error", r#"{"code":503}"#),
            (-32603, "Internal error", r#"{"status_code":"502"}"#),
            (-32603, "429 Too Many Requests", ""),
            (-32603, "HTTP 504", ""),
            (-32603, "Request failed with status code 500", ""),
            (-32603, "http/2 529", ""),
            (1, "rate limit reached", ""),
            (1, "rate_limit_error", ""),
            (1, "RESOURCE_EXHAUSTED: try later", ""),
            (-32602, "You exceeded your current quota", ""),
            (400, "Your credit balance is too low to access the API", ""),
            (-32603, "502 Bad Gateway", ""),
        ] {
            assert_eq!(classified(code, message, data), ErrorCode::ModelProvider, "{code} {message} {data}");
        }
    }

    #[test]
    fn request_that_the_provider_rejects_is_the_callers_fault() {
        for (code, message, data) in [
            (400, "prompt is too long", ""),
            (-32603, "Internal error", r#"{"status":400,"message":"image too large"}"#),
            (-32603, "Error: 413 Payload Too Large", ""),
            (-32602, "no such session", ""),
            (-32002, "no such file", ""),
        ] {
            assert_eq!(classified(code, message, data), ErrorCode::AgentRejected, "{code} {message} {data}");
        }
    }

    #[test]
    fn number_without_a_status_around_it_hides_no_failure_of_the_agent() {
        for (code, message, data) in [
            (-32603, "TypeError at turn.js:429:12", ""),
            (-32603, "panicked at src/main.rs line 429", ""),
            (-32603, "no tool call with id 529", ""),
            (-32603, "Internal error", r#"{"line":429,"column":503}"#),
            (-32603, "Internal error", r#"{"stack":"at read (/app/503/index.js:500:401)"}"#),
            (-32603, "undefined is not a function", ""),
            (-32603, "wrote 500 bytes of 503", ""),
            (-32603, "Disk quota exceeded", ""),
            (-32603, "process exited with code 137", ""),
            (-32800, "Request cancelled", ""),
            (-32001, "an agent's own code", ""),
            (1, "tokenizer failed at token 401", ""),
        ] {
            assert_eq!(classified(code, message, data), ErrorCode::AgentError, "{code} {message} {data}");
        }
        assert_eq!(
            classified(-32000, "quota", ""),
            ErrorCode::AgentAuthRequired,
            "the code is the stronger evidence"
        );
        assert_eq!(classified(-32700, "what?", ""), ErrorCode::ProtocolViolation);
    }

    #[test]
    fn failure_of_a_bad_key_names_the_variable() {
        let named = |detail: &str, configured: &[&str]| {
            let configured: Vec<_> = configured.iter().map(|&name| name.to_owned()).collect();
            name_credentials(Failure::new(ErrorCode::Authentication, detail), &configured).detail
        };
        assert_eq!(named("set OPENAI_API_KEY", &["OTHER_TOKEN"]), "set OPENAI_API_KEY");
        let detail = named("401", &["HTTPS_PROXY", "ANTHROPIC_API_KEY", "GH_TOKEN"]);
        assert_eq!(detail, "401; the agent gets its key from ANTHROPIC_API_KEY, GH_TOKEN");
        assert!(named("401", &[]).contains("`agent.env`"));
        let other = Failure::new(ErrorCode::ModelProvider, "429");
        assert_eq!(name_credentials(other.clone(), &[]), other);
    }
}
