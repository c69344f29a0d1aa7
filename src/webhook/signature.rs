//! Signatures of the Standard Webhooks specification (v1): HMAC-SHA256 over id, timestamp and body.

use base64::{Engine, engine::general_purpose::STANDARD};
use hmac::{Hmac, Mac};
use secrecy::{ExposeSecret, SecretSlice, SecretString};
use sha2::Sha256;

use crate::domain::notify::webhook::key_of;

/// A secret that no key can be made of; `config/` refuses those.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the secret is too short, or not base64 after whsec_")]
pub(crate) struct BadSecret;

/// Signs what is posted, with one secret or, while it is being changed, with two. Its keys cannot be printed.
#[derive(Debug, Clone)]
pub(crate) struct Signer {
    keys: Vec<SecretSlice<u8>>,
}

impl Signer {
    /// A signer with these secrets, the newest first.
    ///
    /// # Errors
    /// Where one of them is none, as [`key_of`] says.
    pub(crate) fn new<'a>(secrets: impl IntoIterator<Item = &'a SecretString>) -> Result<Self, BadSecret> {
        let key = |secret: &SecretString| key_of(secret.expose_secret()).map(SecretSlice::from).ok_or(BadSecret);
        Ok(Self { keys: secrets.into_iter().map(key).collect::<Result<_, _>>()? })
    }

    /// The header `webhook-signature`: one `v1,` and base64 for each secret, separated by spaces. `timestamp` is in
    /// seconds since 1970 and goes into `webhook-timestamp`.
    pub(crate) fn sign(&self, id: &str, timestamp: i64, body: &[u8]) -> String {
        let signatures = self.keys.iter().filter_map(|key| {
            // Keys of any length are taken.
            let mut mac = Hmac::<Sha256>::new_from_slice(key.expose_secret()).ok()?;
            mac.update(format!("{id}.{timestamp}.").as_bytes());
            mac.update(body);
            Some(format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes())))
        });
        signatures.collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderMap;
    use standardwebhooks::Webhook;

    use super::*;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    fn signer(secrets: &[&str]) -> Signer {
        let secrets: Vec<_> = secrets.iter().map(|secret| SecretString::from(*secret)).collect();
        Signer::new(&secrets).unwrap()
    }

    /// What the specification's own libraries are tested with.
    #[test]
    fn the_published_vector_is_met() {
        let signature =
            signer(&[SECRET]).sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, b"{\"test\": 2432232314}");
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn specification_library_verifies_both_secrets_and_rejects_changes() {
        let raw = "correct-horse-battery-staple";
        let now = time::OffsetDateTime::now_utc().unix_timestamp();
        let body = r#"{"type":"notification","body":"Sitzplätze: 9 von 10"}"#.as_bytes();
        let headers = |id: &str, timestamp: i64, signature: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("webhook-id", id.parse().unwrap());
            headers.insert("webhook-timestamp", timestamp.to_string().parse().unwrap());
            headers.insert("webhook-signature", signature.parse().unwrap());
            headers
        };
        let signature = signer(&[SECRET, raw]).sign("id-1", now, body);
        assert_eq!(signature.split(' ').count(), 2);
        let receivers = [Webhook::new(SECRET).unwrap(), Webhook::from_bytes(raw.as_bytes().to_vec()).unwrap()];
        for receiver in receivers {
            receiver.verify(body, &headers("id-1", now, &signature)).unwrap();
            receiver.verify(body, &headers("id-2", now, &signature)).unwrap_err();
            receiver.verify(body, &headers("id-1", now + 1, &signature)).unwrap_err();
            receiver.verify(&body[1..], &headers("id-1", now, &signature)).unwrap_err();
        }
        let other = Webhook::new("whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA").unwrap();
        other.verify(body, &headers("id-1", now, &signature)).unwrap_err();
    }

    #[test]
    fn a_signer_shows_no_key_and_takes_no_weak_one() {
        let raw = "correct-horse-battery-staple";
        let shown = format!("{:?}", signer(&[SECRET, raw]));
        assert!(!shown.contains("horse") && !shown.contains("49") && !shown.contains("MfKQ"), "{shown}");
        assert_eq!(Signer::new(&[SecretString::from("short")]).err(), Some(BadSecret));
    }
}
