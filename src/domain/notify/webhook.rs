//! Webhook deliveries: final answers, retry schedule, and the format of secrets.

use std::time::Duration;

use base64::{
    Engine,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use time::{PrimitiveDateTime, format_description::FormatItem, macros::format_description};

use crate::domain::{clock::Timestamp, session::restart::doubled, words::words};

words! {
    /// State of a delivery.
    DeliveryState {
        /// The delivery waits for its first attempt, or for a retry.
        Pending = "pending",
        /// The receiver answered with a status of success.
        Delivered = "delivered",
        /// The delivery was given up: the receiver refused it permanently, or all attempts failed.
        Dead = "dead",
    }
}

/// Prefix of a secret in base64 (Standard Webhooks).
const BASE64_PREFIX: &str = "whsec_";
/// The shortest key, in bytes (Standard Webhooks).
pub(crate) const MIN_SECRET_BYTES: usize = 24;
/// The longest wait that a receiver can ask for; an alert more than an hour late is of no use.
pub(crate) const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// The dates of `Retry-After` (RFC 9110, 5.6.7).
const HTTP_DATE: &[FormatItem<'_>] =
    format_description!("[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT");
/// Accepts base64 with and without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The retry schedule of deliveries (`[webhook]`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WebhookRules {
    /// Attempts, the first included; after the last one the delivery is dead.
    pub max_attempts: u32,
    /// The wait after the first attempt; doubles with each further one.
    pub first_retry: Duration,
    /// The longest wait, before the jitter and what a receiver asks for.
    pub max_retry: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Answer {
    pub status: u16,
    /// The wait that the receiver asks for.
    pub retry_after: Option<Duration>,
}

/// The result of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Delivered,
    /// Try again after this wait.
    Retry(Duration),
    /// Give up; only a replay tries again.
    Dead,
}

impl WebhookRules {
    /// Judges attempt number `attempt`, counted from 1. `answer` is `None` if no answer arrived in time; `fraction` is a
    /// random number from 0 to 1, for the jitter.
    pub(crate) fn judge(&self, attempt: u32, answer: Option<Answer>, fraction: f64) -> Verdict {
        let status = answer.map(|answer| answer.status);
        match status {
            Some(200..300) => return Verdict::Delivered,
            Some(status) if is_refusal(status) => return Verdict::Dead,
            _ if attempt >= self.max_attempts => return Verdict::Dead,
            // Redirects are not followed: they would lead the signature elsewhere.
            _ => {}
        }
        let wait = doubled(self.first_retry, self.max_retry, attempt.saturating_sub(1), fraction);
        let asked = answer.and_then(|answer| answer.retry_after).unwrap_or_default();
        Verdict::Retry(wait.max(asked.min(MAX_RETRY_AFTER)))
    }

    /// An upper bound of every wait that [`Self::judge`] returns, jitter included.
    pub(crate) fn longest_wait(&self) -> Duration {
        (self.max_retry * 2).max(MAX_RETRY_AFTER * 2)
    }
}

/// True if the receiver would refuse the same request again: 4xx except 408, 409, 425 and 429.
fn is_refusal(status: u16) -> bool {
    (400..500).contains(&status) && !matches!(status, 408 | 409 | 425 | 429)
}

/// Parses `Retry-After`, seconds or an HTTP date; a past date is a wait of zero. `None` if the value is malformed.
pub(crate) fn retry_after(text: &str, now: Timestamp) -> Option<Duration> {
    let text = text.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = PrimitiveDateTime::parse(text, HTTP_DATE).ok()?.assume_utc();
    let at = Timestamp(date.unix_timestamp().saturating_mul(1_000_000));
    Some(at.since(now))
}

/// The key of a secret: the base64 after `whsec_`, or else the bytes of the text itself. `None` if the key is shorter
/// than [`MIN_SECRET_BYTES`], the base64 is malformed, or the text is not visible ASCII without spaces.
pub(crate) fn key_of(secret: &str) -> Option<Vec<u8>> {
    let key = match secret.strip_prefix(BASE64_PREFIX) {
        Some(encoded) => BASE64.decode(encoded).ok()?,
        None => secret.bytes().all(|byte| byte.is_ascii_graphic()).then(|| secret.as_bytes().to_vec())?,
    };
    (key.len() >= MIN_SECRET_BYTES).then_some(key)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RULES: WebhookRules =
        WebhookRules { max_attempts: 12, first_retry: Duration::from_secs(1), max_retry: Duration::from_secs(300) };

    fn status(status: u16) -> Option<Answer> {
        Some(Answer { status, retry_after: None })
    }

    #[test]
    fn answers_deliver_refuse_or_retry_by_status() {
        for taken in [200, 201, 202, 204, 299] {
            assert_eq!(RULES.judge(12, status(taken), 0.5), Verdict::Delivered, "{taken}");
        }
        for refused in [400, 401, 403, 404, 405, 410, 413, 415, 422, 451, 499] {
            assert_eq!(RULES.judge(1, status(refused), 0.5), Verdict::Dead, "{refused}");
        }
        let again = [100, 199, 300, 301, 302, 307, 308, 399, 408, 409, 425, 429, 500, 502, 503, 504, 599, 999];
        for answer in again.map(status).into_iter().chain([None]) {
            assert_eq!(RULES.judge(11, answer, 0.5), Verdict::Retry(Duration::from_secs(300)), "{answer:?}");
            assert_eq!(RULES.judge(12, answer, 0.5), Verdict::Dead, "{answer:?}");
            assert_eq!(RULES.judge(u32::MAX, answer, 0.5), Verdict::Dead, "{answer:?}");
        }
    }

    #[test]
    fn waits_double_up_to_their_limit() {
        let waits: Vec<_> = (1..12).map(|attempt| RULES.judge(attempt, None, 0.5)).collect();
        let expected = [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300].map(|it| Verdict::Retry(Duration::from_secs(it)));
        assert_eq!(waits, expected);
        assert_eq!(RULES.judge(1, None, 0.0), Verdict::Retry(Duration::from_millis(800)));
        assert_eq!(RULES.judge(1, None, 1.0), Verdict::Retry(Duration::from_millis(1200)));
    }

    #[test]
    fn retry_after_lengthens_a_wait_up_to_an_hour() {
        let asked = |seconds| Some(Answer { status: 503, retry_after: Some(Duration::from_secs(seconds)) });
        assert_eq!(RULES.judge(1, asked(60), 0.5), Verdict::Retry(Duration::from_secs(60)));
        assert_eq!(RULES.judge(8, asked(60), 0.5), Verdict::Retry(Duration::from_secs(128)));
        assert_eq!(RULES.judge(1, asked(u64::MAX), 0.5), Verdict::Retry(MAX_RETRY_AFTER));
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = Timestamp::parse("2026-11-25T09:00:00Z").unwrap();
        assert_eq!(retry_after(" 120 ", now), Some(Duration::from_secs(120)));
        assert_eq!(retry_after("Wed, 25 Nov 2026 09:01:30 GMT", now), Some(Duration::from_secs(90)));
        assert_eq!(retry_after("Wed, 25 Nov 2026 08:00:00 GMT", now), Some(Duration::ZERO));
        for bad in ["", "-1", "soon", "1.5", "Wed, 25 Nov 2026 09:01:30", "99999999999999999999999"] {
            assert_eq!(retry_after(bad, now), None, "{bad}");
        }
    }

    #[test]
    fn secret_is_base64_with_its_prefix_or_the_key_itself() {
        let key = key_of("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        assert_eq!((key.len(), key[..2].to_vec()), (24, vec![0x31, 0xf2]));
        assert_eq!(key_of("whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNA==").unwrap(), b"0123456789012345678901234");
        assert_eq!(key_of("whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNA").unwrap(), b"0123456789012345678901234");
        assert_eq!(key_of("correct-horse-battery-st").unwrap(), b"correct-horse-battery-st");
        for bad in
            ["", "short", "correct horse battery st", "whsec_", "whsec_c2hvcnQ=", "whsec_!!!!", "ñññññññññññññ"]
        {
            assert_eq!(key_of(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn waits_stay_below_longest_wait(attempt: u32, seconds: u64, fraction: f64, status: u16) {
            let answer = Answer { status, retry_after: Some(Duration::from_secs(seconds)) };
            if let Verdict::Retry(wait) = RULES.judge(attempt, Some(answer), fraction) {
                prop_assert!(wait < RULES.longest_wait() && wait >= Duration::from_millis(800), "{:?}", wait);
            }
        }

        #[test]
        fn arbitrary_texts_do_not_panic(text in "\\PC{0,40}", now: i64) {
            let _ = retry_after(&text, Timestamp(now));
            let _ = key_of(&text);
            let _ = key_of(&format!("whsec_{text}"));
        }
    }
}
