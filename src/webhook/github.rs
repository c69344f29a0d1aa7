//! Signatures of the deliveries of GitHub's webhook: HMAC-SHA-256 over the body, in `X-Hub-Signature-256`; and the hash by which
//! a delivery is recognised.

use hmac::{Hmac, Mac};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};

/// The begin of a signature.
const SCHEME: &str = "sha256=";
/// Bytes of the hash.
const HASH_BYTES: usize = 32;

/// True if `signature`, the value of the header, is that of the body. Takes the same time wherever they differ. GitHub's older
/// signature with SHA-1 is not accepted.
pub(crate) fn is_signed(secret: &SecretString, body: &[u8], signature: &str) -> bool {
    let Some(given) = signature.strip_prefix(SCHEME).and_then(bytes_of) else { return false };
    // HMAC accepts keys of any length.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret.expose_secret().as_bytes()) else { return false };
    mac.update(body);
    mac.verify_slice(&given).is_ok()
}

/// True if a text has the form of a signature.
pub(crate) fn is_signature(text: &str) -> bool {
    text.strip_prefix(SCHEME).and_then(bytes_of).is_some()
}

/// Hash of a body, 64 hexadecimal digits. The headers of a delivery do not count: its signature covers none of them, and so a
/// replay can have others.
pub(crate) fn content_hash(body: &[u8]) -> String {
    Sha256::digest(body).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes of 64 hexadecimal digits in lower case.
fn bytes_of(digits: &str) -> Option<[u8; HASH_BYTES]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; HASH_BYTES];
    let pairs = digits.as_bytes().chunks_exact(2);
    if digits.len() != 2 * HASH_BYTES {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(pairs) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signature_of_the_documentation_of_github_is_accepted_and_no_other() {
        // The example of GitHub's page "Validating webhook deliveries".
        let secret = SecretString::from("It's a Secret to Everybody");
        let good = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
        assert!(is_signed(&secret, b"Hello, World!", good));
        for bad in [
            "",
            "sha256=",
            &good[..70],
            &format!("{good}0"),
            &good.to_uppercase(),
            &good.replace("sha256=", "sha1="),
            &good.replace('7', "8"),
            &good.replace('7', "\u{e9}"),
            &good[7..],
        ] {
            assert!(!is_signed(&secret, b"Hello, World!", bad), "{bad}");
        }
        assert!(!is_signed(&secret, b"Hello, World?", good));
        assert!(!is_signed(&SecretString::from("other"), b"Hello, World!", good));
    }
}
